_base_ = './ffsd-4students_resnet32_1xb128_cifar100.py'

model = dict(students=dict(student5=_base_.model.students.student2))
