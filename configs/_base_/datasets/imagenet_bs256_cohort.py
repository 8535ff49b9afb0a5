# For several students, who see the same images.
_base_ = './imagenet_bs256.py'

val_evaluator = dict(type='kd_mm.CohortAccuracy')
test_evaluator = val_evaluator
