"""Two small students that learn from each other, their data, and optimizers by name."""

import torch
from mmengine.optim import build_optim_wrapper
from mmpretrain.structures import DataSample

from kd_mm.registry import MODELS

NUM_CLASSES = 5
SGD = {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9, 'weight_decay': 0.01}
ADAM = {'type': 'Adam', 'lr': 0.01}


def student(**kwargs):
    return {
        'type': 'mmpretrain.ImageClassifier',
        'backbone': {'type': 'mmpretrain.LeNet5'},
        'neck': {'type': 'mmpretrain.GlobalAveragePooling'},
        'head': {
            'type': 'mmpretrain.LinearClsHead',
            'num_classes': NUM_CLASSES,
            'in_channels': 120,
        },
        **kwargs,
    }


def build_cohort(seed=0, **students):
    """Students ``a`` and ``b``, or others, with weights that a Runner leaves alone."""
    torch.manual_seed(seed)
    students = students or {'a': student(), 'b': student()}
    cohort = MODELS.build({'type': 'kd_mm.DML', 'students': students})
    cohort.init_weights()
    with torch.no_grad():  # gradients that are seen, in the convolutions as in the heads
        for name, param in cohort.named_parameters():
            if name.endswith('weight'):
                param.copy_(torch.randn_like(param) * 0.2)
    return cohort


def in_double(cohort):
    """The cohort in float64, which takes the preprocessor's float32."""
    for model in cohort.students.values():
        model.backbone.register_forward_pre_hook(lambda module, inputs: inputs[0].double())
    return cohort.double()


def draw(num_images, seed=0):
    """A batch as a data loader gives it."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, 1, 32, 32, generator=generator)
    labels = torch.randint(NUM_CLASSES, (num_images,), generator=generator)
    samples = [DataSample().set_gt_label(label) for label in labels]
    return {'inputs': images, 'data_samples': samples}


def items(num_images):
    """The images of a batch one by one, as a data set gives them."""
    batch = draw(num_images)
    pairs = zip(batch['inputs'], batch['data_samples'], strict=True)
    return [{'inputs': image, 'data_samples': sample} for image, sample in pairs]


def joint_cfg(a=SGD, b=ADAM, **kwargs):
    """An ``optim_wrapper`` with parts ``a`` and ``b``, given by their optimizers or whole."""
    whole = {n: p if 'optimizer' in p else {'optimizer': p} for n, p in (('a', a), ('b', b))}
    return {'constructor': 'kd_mm.JointOptimWrapperConstructor', 'parts': whole, **kwargs}


def build_joint(model, **kwargs):
    return build_optim_wrapper(model, joint_cfg(**kwargs))


def loss_of(model, batch):
    """The sum of all losses, term by term as MMEngine adds them."""
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    return sum(value.mean() for key, value in losses.items() if 'loss' in key)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(actual, expected, **tolerance):
    torch.testing.assert_close(actual, expected, **(tolerance or {'rtol': 0, 'atol': 0}))
