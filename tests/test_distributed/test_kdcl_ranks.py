"""Two ranks of KDCL and DML equal one process on the concatenated batch, however it is split."""

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmpretrain.registry import MODELS

from kd_mm.methods import Clock
from kd_mm.methods.kdcl import LOGIT_TARGETS
from tests.test_distributed.ranks import (
    NUM_CLASSES,
    average,
    draw,
    losses_and_gradients,
    run_on_ranks,
    shard,
)

TARGETS = (*LOGIT_TARGETS, 'general')
# Batches of the two ranks: alike, then a smaller last one, on either side.
STEPS = [(4, 4), (6, 2), (3, 6)]


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
    model.clock = Clock(0, 1, 0, len(STEPS), num_images=16)  # as in a run with kd_mm.DistillerHook
    return model.double()


def train_on_a_rank(rank, settings):
    ddp = MMDistributedDataParallel(build_model(settings), device_ids=None)
    results = []
    for step, sizes in enumerate(STEPS):
        images, samples = draw(step, sum(sizes))
        mine = shard(rank, sizes)
        results.append(losses_and_gradients(ddp, images[mine], samples[mine]))
    return results


@pytest.mark.parametrize(
    'settings',
    [{'type': 'kd_mm.KDCL', 'target': target} for target in TARGETS] + [{'type': 'kd_mm.DML'}],
    ids=[*TARGETS, 'dml'],
)
def test_two_ranks_equal_one(tmp_path, settings):
    ranks = run_on_ranks(train_on_a_rank, tmp_path, settings)
    model = build_model(settings)
    for step, sizes in enumerate(STEPS):
        losses, gradients = losses_and_gradients(model, *draw(step, sum(sizes)))
        close = {'rtol': 1e-6, 'atol': 1e-9, 'msg': lambda m, s=sizes: f'{s}: {m}'}
        mean = average([rank[step][0] for rank in ranks])
        torch.testing.assert_close(mean, losses, **close)
        for name, expected in gradients.items():
            for rank in ranks:  # DDP has averaged
                torch.testing.assert_close(rank[step][1]['module.' + name], expected, **close)
