_base_ = [
    'mmpretrain::_base_/models/resnest50.py',
    '../_base_/datasets/imagenet_bs32_lighting.py',
    '../_base_/schedules/imagenet_bs256_coslr_nesterov.py',
    '../_base_/precise_bn_runtime.py',
]

# The stock ResNeSt recipe smooths labels and mixes images; BAKE's does neither.
model = dict(
    head=dict(loss=dict(_delete_=True, type='CrossEntropyLoss', loss_weight=1.0)),
    train_cfg=None,
)
