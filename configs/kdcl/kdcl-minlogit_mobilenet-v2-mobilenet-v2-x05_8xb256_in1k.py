_base_ = [
    '../_base_/models/kdcl_imagenet.py',
    '../_base_/datasets/imagenet_bs256_2views.py',
    '../_base_/schedules/imagenet_bs2048_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    students=dict(
        _delete_=True,
        mobilenet_v2=_base_.model.students.mobilenet_v2,
        mobilenet_v2_x05=_base_.model.students.mobilenet_v2_x05,
    ),
    deploy='mobilenet_v2',
)
