# Deep mutual learning of two students, and a leader that learns from their fusion.
_base_ = './ffsd_resnet32_1xb128_cifar100.py'

model = dict(diversity=None, self_distillation=None)
