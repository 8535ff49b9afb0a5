# For an FFSD cohort.
_base_ = './cifar100_bs128_reflect.py'

val_evaluator = dict(type='kd_mm.CohortAccuracy', any_right=True)
test_evaluator = val_evaluator
