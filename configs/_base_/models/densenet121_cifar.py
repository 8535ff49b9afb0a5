_base_ = 'mmpretrain::_base_/models/densenet/densenet121.py'

model = dict(backbone=dict(type='kd_mm.DenseNet_CIFAR'), head=dict(num_classes=100))
