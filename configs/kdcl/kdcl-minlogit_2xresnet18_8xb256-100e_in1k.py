_base_ = [
    '../_base_/datasets/imagenet_bs256_2views.py',
    '../_base_/schedules/imagenet_bs2048_100e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    # Types without a prefix are mmpretrain's, for a project that inherits `kd_mm::` as well.
    _scope_='mmpretrain',
    type='kd_mm.KDCL',
    students=dict(
        resnet18_1=dict(cfg_path='mmpretrain::_base_/models/resnet18.py'),
        resnet18_2=dict(cfg_path='mmpretrain::_base_/models/resnet18.py'),
    ),
    deploy='resnet18_1',
    target='min_logit',
    temperature=2.0,
    loss_weight=1.0,
    views='per_student',
)
