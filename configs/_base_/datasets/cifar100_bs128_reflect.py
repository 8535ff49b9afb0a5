# Of FFSD's released code: crops of reflected images, and its constants of normalisation.
_base_ = './cifar100_bs128.py'

data_preprocessor = dict(
    # 255 times (0.5071, 0.4865, 0.4409) and (0.2673, 0.2564, 0.2762), in RGB order.
    mean=[129.3105, 124.0575, 112.4295],
    std=[68.1615, 65.382, 70.431],
)

train_pipeline = [
    # Four pixels on each side. mmpretrain heeds the mode for this kind of padding only: with
    # `padding=4` the border would be zeros.
    dict(type='RandomCrop', crop_size=40, pad_if_needed=True, padding_mode='reflect'),
    dict(type='RandomCrop', crop_size=32),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
