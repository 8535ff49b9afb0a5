"""Small recipes as training configs, and tools that run in this process."""

import runpy
import sys

from mmengine.config import Config

from tests.conftest import REPO
from tests.toys.models import model_cfg, network, optim_cfg


def recipe(method, model=None, **settings):
    """ResNet-8, alone or as students, on four images of 16 pixels with 3 classes."""
    model = model or (network() if method == 'plain' else model_cfg(method))
    optim = optim_cfg('bake' if method == 'plain' else method)
    pipeline = [{'type': 'RandomCrop', 'crop_size': 16, 'padding': 2}, {'type': 'PackInputs'}]
    dataset = {'type': 'CIFAR100', 'pipeline': pipeline}
    return Config(
        {
            'model': {'_scope_': 'mmpretrain', **model},
            'data_preprocessor': {'num_classes': 3, 'mean': [127.0] * 3, 'std': [64.0] * 3},
            'optim_wrapper': optim,
            'train_dataloader': {'batch_size': 4, 'dataset': dataset},
            **settings,
        }
    )


def run_tool(monkeypatch, name, *arguments):
    """Run ``python tools/NAME ARGUMENTS``."""
    path = str(REPO / 'tools' / name)
    monkeypatch.setattr(sys, 'argv', [path, *map(str, arguments)])
    runpy.run_path(path, run_name='__main__')
