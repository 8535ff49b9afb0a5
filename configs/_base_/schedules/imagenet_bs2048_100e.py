# Of KDCL's paper in length; the steps come after the same shares of it as in the long run.
_base_ = './imagenet_bs2048_200e.py'

param_scheduler = _base_.param_scheduler
param_scheduler[1].milestones = [30, 60, 90]

train_cfg = dict(max_epochs=100)
