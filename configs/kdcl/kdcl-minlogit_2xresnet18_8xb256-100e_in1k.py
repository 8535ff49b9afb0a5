_base_ = [
    '../_base_/models/kdcl_imagenet.py',
    '../_base_/datasets/imagenet_bs256_2views.py',
    '../_base_/schedules/imagenet_bs2048_100e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    students=dict(
        _delete_=True,
        resnet18_1=_base_.model.students.resnet18,
        resnet18_2=_base_.model.students.resnet18,
    ),
    deploy='resnet18_1',
)
