# Attention maps of the students are pushed apart as they are, without a diverse target.
_base_ = './ffsd_resnet32_1xb128_cifar100.py'

model = dict(diversity='l2')
