"""Tiny models and images for pictures."""

import torch
from mmpretrain.structures import DataSample

from kd_mm.registry import MODELS
from tests.toys.models import model_cfg, network

CLASSES = ('cat', 'dog', 'great white shark, white shark')
MODEL_OF = {
    'plain': network,
    'bake': lambda: network('kd_mm.BAKEHead'),
    'dml': lambda: {
        'type': 'kd_mm.DML',
        'students': {'b': network('kd_mm.BAKEHead'), 'a': network()},
        'views': 'per_student',
    },
}


def alone(cfg):
    """A model with the preprocessor of these images."""
    preprocessor = {'mean': [100.0] * 3, 'std': [50.0] * 3, 'num_classes': len(CLASSES)}
    return MODELS.build({'_scope_': 'mmpretrain', **cfg, 'data_preprocessor': preprocessor})


def build(name):
    """A model in evaluation mode whose predictions differ from image to image."""
    torch.manual_seed(0)
    cfg = MODEL_OF[name]() if name in MODEL_OF else model_cfg(name)
    cfg.pop('fusion_weight', None)  # whose schedule needs a clock
    model = alone(cfg)
    model.init_weights()
    for key, parameter in model.named_parameters():
        if 'fc' in key:
            torch.nn.init.normal_(parameter, std=0.5)
    model._is_init = True  # a Runner leaves the weights alone
    return model.eval()


def samples(count):
    """Images (3, 16, 16), labels in turn."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return [
        {
            'inputs': image,
            'data_samples': DataSample(metainfo={'sample_idx': index}).set_gt_label(index % 3),
        }
        for index, image in enumerate(images)
    ]
