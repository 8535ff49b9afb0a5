# KDCL's settings on ImageNet, and the networks of its paper there: a cohort takes some of them.
_base_ = './resnet50_resnet18.py'

model = dict(
    type='kd_mm.KDCL',
    students=dict(
        mobilenet_v2=dict(cfg_path='mmpretrain::_base_/models/mobilenet_v2_1x.py'),
        mobilenet_v2_x05=dict(
            cfg_path='mmpretrain::_base_/models/mobilenet_v2_1x.py',
            backbone=dict(widen_factor=0.5),
        ),
    ),
    target='min_logit',
    temperature=2.0,
    loss_weight=1.0,
    views='per_student',
)
