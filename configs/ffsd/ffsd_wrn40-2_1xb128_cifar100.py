_base_ = './ffsd_wrn16-2_1xb128_cifar100.py'

model = dict(
    students={name: dict(backbone=dict(depth=40)) for name in ('student1', 'student2', 'leader')}
)
