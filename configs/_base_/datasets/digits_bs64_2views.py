# Each image is read once; then each student gets a random draw of its own.
_base_ = './digits_bs64_cohort.py'

train_pipeline = [
    dict(type='Resize', scale=16),
    dict(
        type='MultiView',
        num_views=2,
        transforms=[[dict(type='RandomCrop', crop_size=16, padding=1)]],
    ),
    dict(type='PackInputs'),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
