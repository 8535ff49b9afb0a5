# Two students: each is a classifier of its own, under the name that logs and checkpoints show.
model = dict(
    # Types without a prefix are mmpretrain's, for a project that inherits `kd_mm::` as well.
    _scope_='mmpretrain',
    students=dict(
        resnet50=dict(cfg_path='mmpretrain::_base_/models/resnet50.py'),
        resnet18=dict(cfg_path='mmpretrain::_base_/models/resnet18.py'),
    ),
    deploy='resnet50',
)
