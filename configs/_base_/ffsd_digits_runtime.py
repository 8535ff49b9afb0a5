_base_ = './digits_runtime.py'

# The best checkpoint is the leader's; the loss terms beside the classification grow at first.
default_hooks = dict(
    checkpoint=dict(save_best='leader/accuracy/top1'),
    loss_weight_ramp=dict(
        type='kd_mm.LossWeightRampHook',
        names=['diversity_weight', 'fusion_weight', 'self_distillation_weight'],
        ramp_epochs=5,
    ),
)
