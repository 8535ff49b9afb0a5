_base_ = './resnet20.py'

model = dict(
    backbone=dict(_delete_=True, type='kd_mm.CIFARWideResNet', depth=16, widen_factor=1),
)
