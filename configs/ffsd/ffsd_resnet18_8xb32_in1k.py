_base_ = [
    '../_base_/models/ffsd_resnet18_in1k.py',
    '../_base_/datasets/imagenet_bs32_cohort.py',
    '../_base_/schedules/imagenet_bs256_ffsd_cohort.py',
    '../_base_/default_runtime.py',
]
