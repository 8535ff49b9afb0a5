_base_ = [
    '../_base_/models/kdcl_imagenet.py',
    '../_base_/datasets/imagenet_bs256_2views.py',
    '../_base_/schedules/imagenet_bs2048_200e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    students=dict(
        _delete_=True,
        resnet50=_base_.model.students.resnet50,
        resnet18=_base_.model.students.resnet18,
    ),
)
