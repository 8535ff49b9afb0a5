# Two common students and a leader, all of one kind; the necks take the maps of their stages.
_base_ = './densenet40_12.py'

model = dict(
    _delete_=True,
    # Types without a prefix are mmpretrain's, for a project that inherits `kd_mm::` as well.
    _scope_='mmpretrain',
    type='kd_mm.FFSD',
    # The weights of the terms grow over the first five epochs.
    diversity_weight=dict(type='kd_mm.SigmoidRamp', value=1e-5, epochs=5),
    fusion_weight=dict(type='kd_mm.SigmoidRamp', value=10.0, epochs=5),
    self_distillation_weight=dict(type='kd_mm.SigmoidRamp', value=1000.0, epochs=5),
    students={
        name: dict(_base_.model, backbone=dict(_base_.model.backbone, out_indices=(0, 1, 2)))
        for name in ('student1', 'student2', 'leader')
    },
    deploy='leader',
    img_size=32,
)
