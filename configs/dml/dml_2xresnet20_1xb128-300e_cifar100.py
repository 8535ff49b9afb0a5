# On the recipe of FFSD's ResNet-20, to compare the methods.
_base_ = [
    '../_base_/models/resnet20.py',
    '../_base_/datasets/cifar100_bs128_reflect_cohort.py',
    '../_base_/schedules/cifar100_bs128_ffsd.py',
    '../_base_/default_runtime.py',
]

model = dict(
    _delete_=True,
    # Types without a prefix are mmpretrain's, for a project that inherits `kd_mm::` as well.
    _scope_='mmpretrain',
    type='kd_mm.DML',
    students={
        name: dict(
            _base_.model,
            backbone=dict(_base_.model.backbone, shortcut='B'),
            head=dict(_base_.model.head, num_classes=100),
        )
        for name in ('resnet20_1', 'resnet20_2')
    },
    deploy='resnet20_1',
    temperature=1.0,
    loss_weight=1.0,
    views='shared',
)
