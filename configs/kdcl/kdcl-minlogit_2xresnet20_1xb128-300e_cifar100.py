# On the recipe of FFSD's ResNet-20, to compare the methods.
_base_ = '../dml/dml_2xresnet20_1xb128-300e_cifar100.py'

model = dict(
    type='kd_mm.KDCL',
    target='min_logit',
    temperature=2.0,
    views='per_student',
)

# Each image is read once; then each student gets a random draw of its own.
train_pipeline = [
    dict(type='MultiView', num_views=2, transforms=[_base_.train_pipeline[:-1]]),
    _base_.train_pipeline[-1],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
