_base_ = [
    '../_base_/models/resnet20_wrn16_1.py',
    '../_base_/datasets/digits_bs64_2views.py',
    '../_base_/schedules/digits_bs64.py',
    '../_base_/digits_runtime.py',
]

model = dict(
    type='kd_mm.KDCL',
    target='min_logit',
    temperature=2.0,
    loss_weight=1.0,
    views='per_student',
)
