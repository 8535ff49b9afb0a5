_base_ = [
    '../_base_/models/ffsd_googlenet_cifar.py',
    '../_base_/datasets/cifar100_bs128_reflect_cohort.py',
    '../_base_/schedules/cifar100_bs128_ffsd_cohort.py',
    '../_base_/default_runtime.py',
]
