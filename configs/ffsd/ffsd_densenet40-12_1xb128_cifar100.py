_base_ = './ffsd_resnet32_1xb128_cifar100.py'

model = dict(
    students={
        name: dict(
            backbone=dict(
                _delete_=True,
                type='kd_mm.CIFARDenseNet',
                depth=40,
                growth_rate=12,
                init_channels=24,  # as in FFSD's released code; DenseNet's paper has 16
                out_indices=(0, 1, 2),
            ),
            head=dict(in_channels=456),
        )
        for name in ('student1', 'student2', 'leader')
    }
)
