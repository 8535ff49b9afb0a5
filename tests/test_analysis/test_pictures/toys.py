"""Tiny networks, data and configs for pictures."""

import torch
from mmpretrain.structures import DataSample

from kd_mm.registry import MODELS

NUM_CLASSES = 3
CLASSES = ('cat', 'dog', 'great white shark, white shark')


def network(head='mmpretrain.LinearClsHead', **backbone):
    return {
        'type': 'mmpretrain.ImageClassifier',
        'backbone': {'type': 'kd_mm.CIFARResNet', 'depth': 8, **backbone},
        'neck': {'type': 'mmpretrain.GlobalAveragePooling'},
        'head': {'type': head, 'num_classes': NUM_CLASSES, 'in_channels': 64},
    }


def stages():
    return network(out_indices=(0, 1, 2))


def transformer(backbone, in_channels, **neck):
    return {
        'type': 'mmpretrain.ImageClassifier',
        'backbone': backbone,
        'neck': neck or None,
        'head': {
            'type': 'mmpretrain.LinearClsHead',
            'num_classes': NUM_CLASSES,
            'in_channels': in_channels,
        },
    }


NORMALISED = {'mean': [100.0] * 3, 'std': [50.0] * 3, 'num_classes': NUM_CLASSES}
MODEL_OF = {
    'plain': network,
    'bake': lambda: network('kd_mm.BAKEHead'),
    'bake_student': lambda: {'type': 'kd_mm.BAKE', 'student': network()},
    'dml': lambda: {
        'type': 'kd_mm.DML',
        'students': {'b': network('kd_mm.BAKEHead'), 'a': network()},
        'views': 'per_student',
    },
    'ffsd': lambda: {
        'type': 'kd_mm.FFSD',
        'students': {'leader': stages(), 'student2': stages(), 'student1': stages()},
        'img_size': 16,
    },
}


def alone(cfg):
    """A model with the preprocessor of these images."""
    return MODELS.build({**cfg, '_scope_': 'mmpretrain', 'data_preprocessor': dict(NORMALISED)})


def build(name, seed=0):
    """A model whose predictions differ from image to image."""
    torch.manual_seed(seed)
    model = alone(MODEL_OF[name]())
    model.init_weights()
    for key, parameter in model.named_parameters():
        if 'fc' in key:
            torch.nn.init.normal_(parameter, std=0.5)
    model._is_init = True  # a Runner leaves the weights alone
    return model


def samples(count):
    """Images (count, 3, 16, 16), labels in turn."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            'inputs': torch.randint(256, (3, 16, 16), generator=generator, dtype=torch.uint8),
            'data_samples': DataSample(metainfo={'sample_idx': index}).set_gt_label(
                index % NUM_CLASSES
            ),
        }
        for index in range(count)
    ]
