_base_ = './ffsd_resnet32_1xb128_cifar100.py'

model = dict(diversity=None)
