_base_ = [
    '../_base_/models/resnet20.py',
    '../_base_/datasets/digits_bs64.py',
    '../_base_/schedules/digits_bs64.py',
    '../_base_/digits_runtime.py',
]
