# Of KDCL's paper, for ResNets.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs2048.py'

optim_wrapper = dict(optimizer=dict(nesterov=False))

# `_scope_` is what a base of mmpretrain would carry; without it the types draw a warning for a
# project that inherits `kd_mm::`.
param_scheduler = [
    dict(
        type='LinearLR',  # from 0.1 to 0.8
        start_factor=0.125,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
        _scope_='mmpretrain',
    ),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        milestones=[60, 120, 180],
        gamma=0.1,
        _scope_='mmpretrain',
    ),
]

train_cfg = dict(max_epochs=200)
