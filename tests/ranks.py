"""Run a function on several gloo ranks and collect what each returns."""

import multiprocessing
import os
import pickle

import torch
import torch.distributed as dist
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample

NUM_CLASSES = 5


class SumOfRanks(torch.autograd.Function):
    """The sum over ranks, each of which gets the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return SumOfRanks.forward(ctx, grad)


@MODELS.register_module(force=True)
class SyncBNOnCPU(torch.nn.BatchNorm2d):
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


def _worker(rank, function, world_size, folder, args):
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=world_size
    )
    (folder / f'{rank}.pkl').write_bytes(pickle.dumps(function(rank, *args)))
    dist.barrier()
    # Destroying the group may hang in torch 2.4: who does it holds the lock of Python, for which
    # the thread that ends the barrier waits.
    os._exit(0)


def run_on_ranks(function, folder, *args, world_size=2):
    """Return ``[function(rank, *args) for rank in range(world_size)]``, one process each.

    The processes are forked from one that has imported, and done, nothing else: a fork of this
    one, whose autograd threads it would lack, may hang in its first backward pass.
    """
    multiprocessing.set_forkserver_preload(['mmpretrain.models', 'kd_mm.models', 'kd_mm.engine'])
    torch.multiprocessing.start_processes(
        _worker,
        args=(function, world_size, folder, args),
        nprocs=world_size,
        start_method='forkserver',
    )
    return [pickle.loads((folder / f'{rank}.pkl').read_bytes()) for rank in range(world_size)]


def draw(step, num_images):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(num_images, 1, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.randint(NUM_CLASSES, (num_images,), generator=generator)
    return images, [DataSample().set_gt_label(label) for label in labels]


def shard(rank, sizes):
    """Return where the images of a rank lie in the batch of all."""
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def losses_and_gradients(model, inputs, samples):
    model.zero_grad()
    losses = model(inputs, samples, mode='loss')
    sum(losses.values()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    return {n: loss.item() for n, loss in losses.items()}, gradients


def average(dicts, weights=None):
    """Return the mean by key, of parts that weigh the same or by their number of images."""
    weights = weights or [1] * len(dicts)
    total = sum(weights)
    pairs = list(zip(dicts, weights, strict=True))
    return {key: sum(d[key] * (w / total) for d, w in pairs) for key in dicts[0]}
