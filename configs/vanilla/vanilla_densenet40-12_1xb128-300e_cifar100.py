_base_ = [
    '../_base_/models/densenet40_12.py',
    '../_base_/datasets/cifar100_bs128_reflect.py',
    '../_base_/schedules/cifar100_bs128_ffsd.py',
    '../_base_/default_runtime.py',
]
