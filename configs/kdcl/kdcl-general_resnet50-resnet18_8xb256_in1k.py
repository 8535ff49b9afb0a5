_base_ = './kdcl-minlogit_resnet50-resnet18_8xb256_in1k.py'

model = dict(target='general')

# 20 images of each class say how well each student generalises; none is trained on.
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='kd_mm.HoldOut',
        part='train',
        num_per_class=20,
        dataset=_base_.train_dataloader.dataset,
    )
)
