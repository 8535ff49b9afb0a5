# For an FFSD cohort.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs32.py'

val_evaluator = dict(type='kd_mm.CohortAccuracy', any_right=True)
test_evaluator = val_evaluator
