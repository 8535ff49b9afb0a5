# What FFSD is compared with: its two students without the rest.
_base_ = [
    '../_base_/models/wrn16_2.py',
    '../_base_/datasets/cifar100_bs128_reflect_cohort.py',
    '../_base_/schedules/cifar100_bs128_ffsd.py',
    '../_base_/default_runtime.py',
]

model = dict(
    _delete_=True,
    _scope_='mmpretrain',
    type='kd_mm.DML',
    students={name: dict(_base_.model) for name in ('student1', 'student2')},
    deploy='student1',
    temperature=2.0,
)
