_base_ = './kdcl-minlogit_resnet20-wrn16-1_1xb64_digits.py'

model = dict(target='naive')
