_base_ = './ffsd-5students_resnet32_1xb128_cifar100.py'

model = dict(students=dict(student6=_base_.model.students.student2))
