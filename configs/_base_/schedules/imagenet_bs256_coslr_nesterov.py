# Of BAKE's released code, for a plain run at batch 256: LR and weight decay are ResNet's.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256.py'

optim_wrapper = dict(optimizer=dict(lr=0.2, weight_decay=5e-5, nesterov=True))

# Both act at once, as released: a cosine over all 100 epochs, times 0.1 + 0.18 e in epoch e < 5.
#
# `_scope_` is what a base of mmpretrain would carry; without it the types draw a warning for a
# project that inherits `kd_mm::`.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=6, _scope_='mmpretrain'),
    dict(
        type='CosineAnnealingLR', T_max=100, by_epoch=True, begin=0, end=100, _scope_='mmpretrain'
    ),
]
