_base_ = './resnet20.py'

model = dict(backbone=dict(depth=32), head=dict(num_classes=100))
