"""Two ranks of a cohort equal one process on the concatenated batch, whatever the target."""

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmpretrain.registry import MODELS

from kd_mm.models.algorithms.kdcl import TARGETS
from tests.test_distributed.ranks import (
    NUM_CLASSES,
    average,
    draw,
    losses_and_gradients,
    run_on_ranks,
)


def build_model(settings):
    torch.manual_seed(0)
    student = {
        'type': 'ImageClassifier',
        'backbone': {'type': 'LeNet5'},
        'neck': {'type': 'GlobalAveragePooling'},
        'head': {'type': 'LinearClsHead', 'num_classes': NUM_CLASSES, 'in_channels': 120},
    }
    model = MODELS.build({'students': {name: dict(student) for name in 'abc'}, **settings})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.double()


def train_on_a_rank(rank, settings):
    ddp = MMDistributedDataParallel(build_model(settings), device_ids=None)
    images, samples = draw(0, 8)
    mine = slice(4 * rank, 4 * rank + 4)
    return losses_and_gradients(ddp, images[mine], samples[mine])


@pytest.mark.parametrize(
    'settings',
    [{'type': 'kd_mm.KDCL', 'target': target} for target in TARGETS] + [{'type': 'kd_mm.DML'}],
    ids=[*TARGETS, 'dml'],
)
def test_two_ranks_equal_one(tmp_path, settings):
    ranks = run_on_ranks(train_on_a_rank, tmp_path, settings)
    losses, gradients = losses_and_gradients(build_model(settings), *draw(0, 8))
    close = {'rtol': 1e-6, 'atol': 1e-9}
    torch.testing.assert_close(average([loss for loss, _ in ranks]), losses, **close)
    for name, expected in gradients.items():
        for _, gradient in ranks:  # DDP has averaged
            torch.testing.assert_close(gradient['module.' + name], expected, **close)
