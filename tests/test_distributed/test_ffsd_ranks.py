"""Two ranks of FFSD, with synchronised BN, equal one process on the whole batch."""

import pytest
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS
from torch import nn

from tests.test_distributed.ranks import (
    NUM_CLASSES,
    average,
    draw,
    losses_and_gradients,
    run_on_ranks,
    shard,
)

# Batches of the two ranks: alike, then a smaller last one, on either side.
STEPS = [(4, 4), (6, 2), (3, 6)]


class SumOfRanks(torch.autograd.Function):
    """The sum over ranks, each of which gets the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


@MODELS.register_module(force=True)
class MeanBN(nn.BatchNorm2d):
    """What torch's SyncBatchNorm, which runs on GPUs alone, does: each element counts once."""

    def forward(self, x):
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        own = x.new_full((1,), x.numel() / x.shape[1])
        sums = SumOfRanks.apply(torch.cat([x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), own]))
        count = sums[-1].detach()
        mean, square = (sums[:-1] / count).chunk(2)
        variance = square - mean.square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        x = (x - mean[:, None, None]) / (variance[:, None, None] + self.eps).sqrt()
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def build_model(settings):
    torch.manual_seed(0)
    norm_cfg = {'type': 'MeanBN'}
    student = {
        'type': 'ImageClassifier',
        'backbone': {
            'type': 'kd_mm.CIFARResNet',
            'depth': 8,
            'in_channels': 1,
            'out_indices': (0, 1, 2),
            'norm_cfg': norm_cfg,
        },
        'neck': {'type': 'GlobalAveragePooling'},
        'head': {'type': 'LinearClsHead', 'num_classes': NUM_CLASSES, 'in_channels': 64},
    }
    students = dict.fromkeys(('student1', 'student2', 'leader'), student)
    cfg = {'type': 'kd_mm.FFSD', 'students': students, 'norm_cfg': norm_cfg, '_scope_': 'kd_mm'}
    model = MODELS.build({**cfg, **settings}).double()
    model.init_weights()
    return model


def train_on_a_rank(rank, settings):
    model = build_model(settings)
    ddp = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
    results = []
    for step, sizes in enumerate(STEPS):
        images, samples = draw(step, sum(sizes))
        mine = shard(rank, sizes)
        found = losses_and_gradients(ddp, images[mine], samples[mine])
        results.append((*found, {name: b.clone() for name, b in model.named_buffers()}))
    return results


@pytest.mark.parametrize(
    'settings',
    [{'diversity_weight': 1.0}, {'fusion': False, 'self_distillation': None, 'diversity': None}],
    ids=['whole', 'bare'],
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
        for name, expected in model.named_buffers():
            for rank in ranks:
                torch.testing.assert_close(rank[step][2][name], expected, **close)
