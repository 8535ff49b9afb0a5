_base_ = '../ffsd/ffsd_resnet20_1xb128_cifar100.py'

# Images are read once; crops and flips of a whole batch are drawn on the device of the model.
data_preprocessor = dict(
    type='kd_mm.CohortDataPreprocessor',
    augments=[
        dict(type='kd_mm.BatchRandomCrop', crop_size=32, padding=4, padding_mode='reflect'),
        dict(type='kd_mm.BatchRandomFlip', prob=0.5),
    ],
)
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='kd_mm.batch_collate'),
    dataset=dict(
        _delete_=True,
        type='kd_mm.InMemory',
        dataset=dict(_base_.train_dataloader.dataset, pipeline=_base_.test_pipeline),
    ),
)
