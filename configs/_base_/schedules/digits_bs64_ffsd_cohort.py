# Optimizers of an FFSD cohort: networks, fusion, and the necks that teach themselves.
_base_ = './digits_bs64.py'

optim_wrapper = dict(
    _delete_=True,
    constructor='kd_mm.JointOptimWrapperConstructor',
    parts=dict(
        networks=dict(
            prefix=['students', 'methods.ffsd.decoder'], optimizer=_base_.optim_wrapper.optimizer
        ),
        fusion=dict(
            prefix='methods.ffsd.fusion',
            optimizer=dict(_base_.optim_wrapper.optimizer, weight_decay=1e-5),
        ),
        self_distillation=dict(
            prefix='methods.ffsd.self_distillation',
            optimizer=dict(type='Adam', lr=1e-3, weight_decay=1e-4, _scope_='mmpretrain'),
        ),
    ),
)
