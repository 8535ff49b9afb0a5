_base_ = './kdcl-minlogit-shared_resnet32-wrn16-2_1xb128_cifar100.py'

model = dict(target='linear')
