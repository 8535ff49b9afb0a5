_base_ = './default_runtime.py'

# A keyed hook, not a custom one: lists are replaced whole, and kd_mm's have to stay.
default_hooks = dict(
    precise_bn=dict(type='mmpretrain.PreciseBNHook', num_samples=8192, interval=1)
)
