_base_ = './digits_runtime.py'

# The loss terms beside the classification grow over the first five epochs.
default_hooks = dict(
    loss_weight_ramp=dict(
        type='kd_mm.LossWeightRampHook',
        names=['diversity_weight', 'fusion_weight', 'self_distillation_weight'],
        ramp_epochs=5,
    ),
)
