_base_ = 'mmpretrain::_base_/models/resnet18_cifar.py'

model = dict(
    backbone=dict(_delete_=True, type='kd_mm.CIFARResNet', depth=20),
    head=dict(num_classes=10, in_channels=64),
)
