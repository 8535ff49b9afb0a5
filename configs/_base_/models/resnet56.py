_base_ = './resnet20.py'

model = dict(backbone=dict(depth=56), head=dict(num_classes=100))
