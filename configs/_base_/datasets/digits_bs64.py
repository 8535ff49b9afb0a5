# 8x8 scans inside scikit-learn's wheel, scaled up to 16 px. No flip: a mirrored digit is another.
_base_ = 'mmpretrain::_base_/datasets/cifar100_bs16.py'

data_preprocessor = dict(
    num_classes=10,
    # Of the training split's pixels, in [0, 255].
    mean=[77.9, 77.9, 77.9],
    std=[95.8, 95.8, 95.8],
)

train_pipeline = [
    dict(type='Resize', scale=16),
    dict(type='RandomCrop', crop_size=16, padding=1),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='Resize', scale=16),
    dict(type='PackInputs'),
]

# The images are in memory and small: worker processes would cost more than they save.
dataset_type = 'kd_mm.Digits'
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type=dataset_type, data_root='', split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type=dataset_type, data_root='', split='test', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
