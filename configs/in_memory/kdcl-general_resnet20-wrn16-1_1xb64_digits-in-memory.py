_base_ = '../kdcl/kdcl-general_resnet20-wrn16-1_1xb64_digits.py'

# Images are read once; each student's crops are drawn on the device of the model.
data_preprocessor = dict(
    type='kd_mm.CohortDataPreprocessor',
    num_views=2,
    augments=[
        dict(type='kd_mm.BatchRandomCrop', crop_size=16, padding=1),
    ],
)
train_dataloader = dict(
    collate_fn=dict(type='kd_mm.batch_collate'),
    dataset=dict(
        _delete_=True,
        type='kd_mm.InMemory',
        dataset=dict(
            _base_.train_dataloader.dataset,
            dataset=dict(_base_.train_dataloader.dataset.dataset, pipeline=_base_.test_pipeline),
        ),
    ),
)
