_base_ = './kdcl-minlogit_2xresnet18_8xb256-100e_in1k.py'

model = dict(students=dict(resnet18_3=dict(cfg_path='mmpretrain::_base_/models/resnet18.py')))

train_pipeline = _base_.train_pipeline
train_pipeline[1].num_views = 3
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
