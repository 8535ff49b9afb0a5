_base_ = [
    'mmpretrain::_base_/models/densenet/densenet121.py',
    '../_base_/datasets/cub_bs32_224.py',
    'mmpretrain::_base_/schedules/cifar10_bs128.py',
    '../_base_/default_runtime.py',
]

model = dict(head=dict(num_classes=200))

auto_scale_lr = dict(base_batch_size=32)
