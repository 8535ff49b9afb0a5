_base_ = './ffsd_resnet32_1xb128_cifar100.py'

model = dict(
    students={name: dict(backbone=dict(depth=56)) for name in ('student1', 'student2', 'leader')}
)
