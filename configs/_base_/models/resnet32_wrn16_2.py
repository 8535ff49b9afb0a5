# Two students: each is a classifier of its own, under the name that logs and checkpoints show.
_base_ = './resnet32.py'

model = dict(
    _delete_=True,
    # Types without a prefix are mmpretrain's, for a project that inherits `kd_mm::` as well.
    _scope_='mmpretrain',
    students=dict(
        resnet32=_base_.model,
        wrn16_2=dict(
            _base_.model,
            backbone=dict(type='kd_mm.CIFARWideResNet', depth=16, widen_factor=2),
            head=dict(_base_.model.head, in_channels=128),
        ),
    ),
    deploy='resnet32',
)
