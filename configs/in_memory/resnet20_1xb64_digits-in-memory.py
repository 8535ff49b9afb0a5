_base_ = './vanilla_resnet20_1xb64_digits-in-memory.py'

model = dict(head=dict(type='kd_mm.BAKEHead', omega=0.5, temperature=4.0, loss_weight=1.0))
train_dataloader = dict(
    sampler=dict(_delete_=True, type='kd_mm.ClassInstanceSampler', num_instances=2)
)
