_base_ = './resnet20.py'

model = dict(
    backbone=dict(_delete_=True, type='kd_mm.CIFARDenseNet', depth=40, growth_rate=12),
    head=dict(num_classes=100, in_channels=448),
)
