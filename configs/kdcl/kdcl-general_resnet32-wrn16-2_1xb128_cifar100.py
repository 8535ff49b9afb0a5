_base_ = './kdcl-minlogit_resnet32-wrn16-2_1xb128_cifar100.py'

model = dict(target='general')

# 50 images of each class say how well each student generalises; none is trained on.
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='kd_mm.HoldOut',
        part='train',
        num_per_class=50,
        dataset=_base_.train_dataloader.dataset,
    )
)
