_base_ = [
    '../_base_/models/kdcl_imagenet.py',
    '../_base_/datasets/imagenet_bs256_2views.py',
    '../_base_/schedules/imagenet_bs2048_300e_by_student.py',
    '../_base_/default_runtime.py',
]

train_pipeline = _base_.train_pipeline
train_pipeline[1].num_views = 4
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
