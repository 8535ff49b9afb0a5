_base_ = './wrn16_1.py'

model = dict(backbone=dict(widen_factor=2), head=dict(num_classes=100, in_channels=128))
