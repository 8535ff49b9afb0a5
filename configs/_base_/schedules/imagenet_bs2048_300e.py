# Of KDCL's paper, for MobileNetV2.
_base_ = './imagenet_bs2048_200e.py'

param_scheduler = _base_.param_scheduler
param_scheduler[1].milestones = [90, 180, 270]

train_cfg = dict(max_epochs=300)
