# On the recipe of FFSD's ResNet-20, to compare the methods; an epoch reads each image about once.
_base_ = '../vanilla/vanilla_resnet20_1xb128-300e_cifar100.py'

model = dict(head=dict(type='kd_mm.BAKEHead', omega=0.5, temperature=4.0, loss_weight=1.0))
train_dataloader = dict(
    sampler=dict(
        _delete_=True,
        type='kd_mm.ClassInstanceSampler',
        num_instances=4,
        epoch_length='images',
    )
)
