_base_ = [
    '../_base_/models/kdcl_imagenet.py',
    '../_base_/datasets/imagenet_bs256_2views.py',
    '../_base_/schedules/imagenet_bs2048_300e_by_student.py',
    '../_base_/default_runtime.py',
]

model = dict(
    students=dict(
        _delete_=True,
        resnet18=_base_.model.students.resnet18,
        mobilenet_v2_x05=_base_.model.students.mobilenet_v2_x05,
    ),
    deploy='resnet18',
)
optim_wrapper = dict(
    parts=dict(
        _delete_=True,
        resnet18=_base_.optim_wrapper.parts.resnet18,
        mobilenet_v2_x05=_base_.optim_wrapper.parts.mobilenet_v2_x05,
    )
)
param_scheduler = dict(
    _delete_=True,
    resnet18=_base_.param_scheduler.resnet18,
    mobilenet_v2_x05=_base_.param_scheduler.mobilenet_v2_x05,
)
