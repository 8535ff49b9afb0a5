# Of FFSD's paper.
_base_ = 'mmpretrain::_base_/schedules/cifar10_bs128.py'

optim_wrapper = dict(optimizer=dict(nesterov=True))

param_scheduler = dict(milestones=[150, 225])

train_cfg = dict(max_epochs=300)
