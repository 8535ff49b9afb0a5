# Two students: each is a classifier of its own, under the name that logs and checkpoints show.
_base_ = './resnet20.py'

model = dict(
    _delete_=True,
    # Types without a prefix are mmpretrain's, for a project that inherits `kd_mm::` as well.
    _scope_='mmpretrain',
    students=dict(
        resnet20=_base_.model,
        wrn16_1=dict(
            _base_.model,
            backbone=dict(type='kd_mm.CIFARWideResNet', depth=16, widen_factor=1),
        ),
    ),
    deploy='resnet20',
)
