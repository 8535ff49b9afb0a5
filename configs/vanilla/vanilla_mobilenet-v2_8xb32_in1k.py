_base_ = [
    'mmpretrain::_base_/models/mobilenet_v2_1x.py',
    '../_base_/datasets/imagenet_bs32_lighting.py',
    '../_base_/schedules/imagenet_bs256_coslr_nesterov.py',
    '../_base_/precise_bn_runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=0.05, weight_decay=4e-05))
