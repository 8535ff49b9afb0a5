_base_ = './ffsd_resnet32_1xb128_cifar100.py'

model = dict(
    students={
        name: dict(
            backbone=dict(
                _delete_=True,
                type='kd_mm.CIFARGoogLeNet',
                out_indices=(0, 1, 2),
            ),
            head=dict(in_channels=1024),
        )
        for name in ('student1', 'student2', 'leader')
    }
)
