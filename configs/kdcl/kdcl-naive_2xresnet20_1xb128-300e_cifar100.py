_base_ = './kdcl-minlogit_2xresnet20_1xb128-300e_cifar100.py'

model = dict(target='naive')
