_base_ = './ffsd-3students_resnet32_1xb128_cifar100.py'

model = dict(students=dict(student4=_base_.model.students.student2))
