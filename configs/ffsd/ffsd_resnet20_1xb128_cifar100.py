_base_ = [
    '../_base_/models/ffsd_resnet20.py',
    '../_base_/datasets/cifar100_bs128_reflect_cohort.py',
    '../_base_/schedules/cifar100_bs128_ffsd_cohort.py',
    '../_base_/default_runtime.py',
]

model = dict(
    students={
        name: dict(head=dict(num_classes=100)) for name in ('student1', 'student2', 'leader')
    }
)
