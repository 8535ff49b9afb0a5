_base_ = [
    '../_base_/models/resnet32_wrn16_2.py',
    '../_base_/datasets/cifar100_bs128_cohort.py',
    '../_base_/schedules/cifar100_bs128_kdcl.py',
    '../_base_/default_runtime.py',
]

model = dict(type='kd_mm.DML', temperature=1.0, loss_weight=1.0, views='shared')
