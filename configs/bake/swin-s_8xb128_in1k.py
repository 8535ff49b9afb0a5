_base_ = '../vanilla/vanilla_swin-s_8xb128_in1k.py'

model = dict(head=dict(type='kd_mm.BAKEHead', omega=0.5, temperature=4.0, loss_weight=1.0))
# 'images': an epoch costs what it costs without BAKE. What the paper's Swin runs did is unknown.
train_dataloader = dict(
    sampler=dict(
        _delete_=True,
        type='kd_mm.ClassInstanceSampler',
        num_instances=2,
        epoch_length='images',
    )
)
