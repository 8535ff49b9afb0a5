_base_ = './kdcl-minlogit_resnet50-resnet18_8xb256_in1k.py'

model = dict(target='linear')
