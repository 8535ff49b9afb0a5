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
        mobilenet_v2=dict(cfg_path='mmpretrain::_base_/models/mobilenet_v2_1x.py'),
        mobilenet_v2_x05=dict(
            cfg_path='mmpretrain::_base_/models/mobilenet_v2_1x.py',
            backbone=dict(widen_factor=0.5),
        ),
    ),
    deploy='mobilenet_v2',
    target='min_logit',
    temperature=2.0,
    loss_weight=1.0,
    views='per_student',
)
