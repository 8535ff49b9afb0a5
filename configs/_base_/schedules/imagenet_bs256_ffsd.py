# Of FFSD's released code; its paper has a peak LR of 0.8 and no fall at epoch 80.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256.py'

optim_wrapper = dict(optimizer=dict(nesterov=True))

# `_scope_` is what a base of mmpretrain would carry; without it the types draw a warning for a
# project that inherits `kd_mm::`.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=4e-5,  # one of the iterations in five epochs
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
        _scope_='mmpretrain',
    ),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        milestones=[30, 60, 80],
        gamma=0.1,
        _scope_='mmpretrain',
    ),
]

train_cfg = dict(max_epochs=90)
