_base_ = [
    'mmpretrain::_base_/models/efficientnet_b0.py',
    '../_base_/datasets/imagenet_bs32_lighting.py',
    '../_base_/schedules/imagenet_bs256_coslr_nesterov.py',
    '../_base_/precise_bn_runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=0.4, weight_decay=1e-05))
