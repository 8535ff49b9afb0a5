_base_ = '../vanilla/vanilla_resnext152-32x4d_8xb32_in1k.py'

model = dict(head=dict(type='kd_mm.BAKEHead', omega=0.5, temperature=4.0, loss_weight=1.0))
train_dataloader = dict(
    batch_size=64,
    sampler=dict(_delete_=True, type='kd_mm.ClassInstanceSampler', num_instances=2),
)

# Twice the batch without distillation, so twice its LR.
optim_wrapper = dict(optimizer=dict(lr=0.4))
auto_scale_lr = dict(base_batch_size=512)

# As released: partners share a rank, so one rank alone sees too few classes for its statistics.
sync_bn = 'torch'
