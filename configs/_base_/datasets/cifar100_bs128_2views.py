# Each image is read once; then each student gets a random draw of its own.
_base_ = './cifar100_bs128_cohort.py'

train_pipeline = [
    dict(
        type='MultiView',
        num_views=2,
        transforms=[
            [
                dict(type='RandomCrop', crop_size=32, padding=4),
                dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            ]
        ],
    ),
    dict(type='PackInputs'),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
