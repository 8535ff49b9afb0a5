"""Two ranks of an FFSD cohort, with synchronised BN, equal one process on the whole batch."""

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
)


class MeanOfRanks(torch.autograd.Function):
    """The mean over ranks, each of which gets the mean of the ranks' gradients."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x / dist.get_world_size()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad / dist.get_world_size()


@MODELS.register_module(force=True)
class MeanBN(nn.BatchNorm2d):
    """What torch's SyncBatchNorm, which runs on GPUs alone, does with equal batches."""

    def forward(self, x):
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        moments = MeanOfRanks.apply(torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))]))
        mean, variance = moments[0], moments[1] - moments[0].square()
        count = x.numel() / x.shape[1] * dist.get_world_size()
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
    images, samples = draw(0, 8)
    mine = slice(4 * rank, 4 * rank + 4)
    losses, gradients = losses_and_gradients(ddp, images[mine], samples[mine])
    return losses, gradients, dict(model.named_buffers())


@pytest.mark.parametrize(
    'settings',
    [{'diversity_weight': 1.0}, {'fusion': False, 'self_distillation': None, 'diversity': None}],
    ids=['whole', 'bare'],
)
def test_two_ranks_equal_one(tmp_path, settings):
    ranks = run_on_ranks(train_on_a_rank, tmp_path, settings)
    model = build_model(settings)
    losses, gradients = losses_and_gradients(model, *draw(0, 8))
    close = {'rtol': 1e-6, 'atol': 1e-9}
    torch.testing.assert_close(average([loss for loss, *_ in ranks]), losses, **close)
    for name, expected in gradients.items():
        for _, gradient, _ in ranks:  # DDP has averaged
            torch.testing.assert_close(gradient['module.' + name], expected, **close)
    for name, expected in model.named_buffers():
        for *_, buffers in ranks:
            torch.testing.assert_close(buffers[name], expected, **close)
