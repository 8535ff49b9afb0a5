# Deep mutual learning of two students, and a leader that learns from their fusion.
_base_ = './ffsd_wrn16-2_1xb128_cifar100.py'

model = dict(diversity=None, self_distillation=None)
