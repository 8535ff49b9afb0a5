# Two common students and a leader, all of one kind; the necks take the maps of their stages.
_base_ = './resnet20.py'

model = dict(
    _delete_=True,
    # Types without a prefix are mmpretrain's, for a project that inherits `kd_mm::` as well.
    _scope_='mmpretrain',
    type='kd_mm.FFSD',
    students={
        name: dict(
            _base_.model, backbone=dict(_base_.model.backbone, out_indices=(0, 1, 2), shortcut='B')
        )
        for name in ('student1', 'student2', 'leader')
    },
    deploy='leader',
    img_size=32,
)
