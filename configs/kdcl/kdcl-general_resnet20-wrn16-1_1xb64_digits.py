_base_ = './kdcl-minlogit_resnet20-wrn16-1_1xb64_digits.py'

model = dict(target='general')

# 10 images of each class say how well each student generalises; none is trained on.
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='kd_mm.HoldOut',
        part='train',
        num_per_class=10,
        dataset=_base_.train_dataloader.dataset,
    )
)
