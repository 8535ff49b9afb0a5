_base_ = [
    'mmpretrain::_base_/models/resnet101.py',
    '../_base_/datasets/imagenet_bs32_lighting.py',
    '../_base_/schedules/imagenet_bs256_coslr_nesterov.py',
    '../_base_/precise_bn_runtime.py',
]
