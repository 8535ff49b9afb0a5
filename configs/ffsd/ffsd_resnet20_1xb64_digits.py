_base_ = [
    '../_base_/models/ffsd_resnet20.py',
    '../_base_/datasets/digits_bs64.py',
    '../_base_/schedules/digits_bs64_ffsd_cohort.py',
    '../_base_/ffsd_digits_runtime.py',
]

val_evaluator = dict(type='kd_mm.CohortAccuracy', any_right=True)
test_evaluator = val_evaluator
