# Each student has the steps of its own recipe; all train as long as the longest, MobileNetV2's.
# A cohort takes the parts of its own students.
_base_ = './imagenet_bs2048_300e.py'

optim_wrapper = dict(
    _delete_=True,
    constructor='kd_mm.JointOptimWrapperConstructor',
    parts=dict(
        resnet50=dict(optimizer=_base_.optim_wrapper.optimizer),
        resnet18=dict(optimizer=_base_.optim_wrapper.optimizer),
        mobilenet_v2=dict(optimizer=_base_.optim_wrapper.optimizer),
        mobilenet_v2_x05=dict(optimizer=_base_.optim_wrapper.optimizer),
    ),
)
param_scheduler = dict(
    _delete_=True,
    resnet50=[
        _base_.param_scheduler[0],
        dict(_base_.param_scheduler[1], milestones=[60, 120, 180]),
    ],
    resnet18=[
        _base_.param_scheduler[0],
        dict(_base_.param_scheduler[1], milestones=[60, 120, 180]),
    ],
    mobilenet_v2=_base_.param_scheduler,
    mobilenet_v2_x05=_base_.param_scheduler,
)
