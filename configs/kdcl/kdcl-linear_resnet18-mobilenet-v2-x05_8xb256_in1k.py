_base_ = './kdcl-minlogit_resnet18-mobilenet-v2-x05_8xb256_in1k.py'

model = dict(target='linear')
