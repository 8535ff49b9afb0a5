_base_ = './ffsd_resnet18_8xb32_in1k.py'

model = dict(
    students={name: dict(backbone=dict(depth=34)) for name in ('student1', 'student2', 'leader')}
)
