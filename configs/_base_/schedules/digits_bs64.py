# A recipe of this project: short enough for a demonstration on two CPU cores.
_base_ = 'mmpretrain::_base_/schedules/cifar10_bs128.py'

optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=5e-4, nesterov=True))

# `_scope_` is what a base of mmpretrain would carry; without it the types draw a warning for a
# project that inherits `kd_mm::`.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.1,
        by_epoch=True,
        begin=0,
        end=2,
        convert_to_iter_based=True,
        _scope_='mmpretrain',
    ),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=2,
        end=20,
        T_max=18,
        convert_to_iter_based=True,
        _scope_='mmpretrain',
    ),
]

train_cfg = dict(max_epochs=20)
auto_scale_lr = dict(base_batch_size=64)
