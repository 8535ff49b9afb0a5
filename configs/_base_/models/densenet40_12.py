_base_ = './resnet20.py'

# As in FFSD's released code: 24 channels to start with, where DenseNet's paper has 16.
model = dict(
    backbone=dict(
        _delete_=True, type='kd_mm.CIFARDenseNet', depth=40, growth_rate=12, init_channels=24
    ),
    head=dict(num_classes=100, in_channels=456),
)
