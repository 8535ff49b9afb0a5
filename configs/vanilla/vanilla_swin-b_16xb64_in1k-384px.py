# Swin-B at 384 px is the 224 px model, fine-tuned. mmpretrain's config of that size is for
# evaluation only (plain cross-entropy, no augmentation), so training follows what Swin's authors
# released as configs/swin/swin_base_patch4_window12_384_finetune.yaml: 30 epochs, 5 of them
# warm-up, weight decay 1e-8, losses and augmentation of the 224 px recipe. Their LR of 2e-5 for
# 512 images is 4e-5 at batch 1024; it starts at a thousandth and ends at a hundredth of that.
_base_ = './vanilla_swin-b_8xb128_in1k.py'

# Attention windows grow from 7 to 12 tokens, so the checkpoint has to be adapted first:
#   python tools/model_converters/resize_swin_windows.py \
#       work_dirs/vanilla_swin-b_8xb128_in1k/epoch_300.pth OUT.pth --window-size 12
load_from = 'work_dirs/vanilla_swin-b_8xb128_in1k/epoch_300_window12.pth'

model = dict(backbone=dict(img_size=384, stage_cfgs=dict(block_cfgs=dict(window_size=12))))

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 384  # of RandomResizedCrop
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=384, backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]

train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8))

# `_scope_` is what a base of mmpretrain would carry; without it the types draw a warning for a
# project that inherits `kd_mm::`.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        end=5,
        convert_to_iter_based=True,
        _scope_='mmpretrain',
    ),
    dict(type='CosineAnnealingLR', eta_min=4e-7, by_epoch=True, begin=5, _scope_='mmpretrain'),
]

train_cfg = dict(max_epochs=30)
