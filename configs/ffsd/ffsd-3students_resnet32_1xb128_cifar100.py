_base_ = './ffsd_resnet32_1xb128_cifar100.py'

model = dict(students=dict(student3=_base_.model.students.student2))
