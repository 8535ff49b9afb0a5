# Self-distillation of the leader alone.
_base_ = './ffsd_resnet32_1xb128_cifar100.py'

model = dict(self_distillation='leader')
