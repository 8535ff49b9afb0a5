_base_ = [
    '../_base_/models/resnet50_resnet18.py',
    '../_base_/datasets/imagenet_bs256_cohort.py',
    '../_base_/schedules/imagenet_bs2048_200e.py',
    '../_base_/default_runtime.py',
]

model = dict(type='kd_mm.DML', temperature=1.0, loss_weight=1.0, views='shared')
