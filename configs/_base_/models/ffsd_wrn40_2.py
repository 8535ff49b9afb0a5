_base_ = './ffsd_wrn16_2.py'

model = dict(
    students={name: dict(backbone=dict(depth=40)) for name in ('student1', 'student2', 'leader')}
)
