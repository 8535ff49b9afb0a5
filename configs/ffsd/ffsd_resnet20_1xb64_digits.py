_base_ = [
    '../_base_/models/ffsd_resnet32.py',
    '../_base_/datasets/digits_bs64.py',
    '../_base_/schedules/digits_bs64_ffsd_cohort.py',
    '../_base_/ffsd_digits_runtime.py',
]

model = dict(
    students={
        name: dict(backbone=dict(depth=20), head=dict(num_classes=10))
        for name in ('student1', 'student2', 'leader')
    }
)
val_evaluator = dict(type='kd_mm.CohortAccuracy', any_right=True)
test_evaluator = val_evaluator
