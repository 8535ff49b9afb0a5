_base_ = './resnet20.py'

model = dict(
    backbone=dict(_delete_=True, type='kd_mm.CIFARGoogLeNet'),
    head=dict(num_classes=100, in_channels=1024),
)
