_base_ = [
    '../_base_/models/resnet20_wrn16_1.py',
    '../_base_/datasets/digits_bs64_cohort.py',
    '../_base_/schedules/digits_bs64.py',
    '../_base_/digits_runtime.py',
]

model = dict(type='kd_mm.DML', temperature=1.0, loss_weight=1.0, views='shared')
