_base_ = [
    '../_base_/datasets/imagenet_bs256_2views.py',
    '../_base_/schedules/imagenet_bs2048_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    # Types without a prefix are mmpretrain's, for a project that inherits `kd_mm::` as well.
    _scope_='mmpretrain',
    type='kd_mm.KDCL',
    students=dict(
        resnet50=dict(cfg_path='mmpretrain::_base_/models/resnet50.py'),
        mobilenet_v2_x05=dict(
            cfg_path='mmpretrain::_base_/models/mobilenet_v2_1x.py',
            backbone=dict(widen_factor=0.5),
        ),
    ),
    deploy='resnet50',
    target='min_logit',
    temperature=2.0,
    loss_weight=1.0,
    views='per_student',
)

# Each student has the steps of its own recipe; all train as long as the longest, MobileNetV2's.
optim_wrapper = dict(
    _delete_=True,
    constructor='kd_mm.JointOptimWrapperConstructor',
    parts=dict(
        resnet50=dict(optimizer=_base_.optim_wrapper.optimizer),
        mobilenet_v2_x05=dict(optimizer=_base_.optim_wrapper.optimizer),
    ),
)
param_scheduler = dict(
    _delete_=True,
    resnet50=[
        _base_.param_scheduler[0],
        dict(_base_.param_scheduler[1], milestones=[60, 120, 180]),
    ],
    mobilenet_v2_x05=_base_.param_scheduler,
)
