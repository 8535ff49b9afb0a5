"""What ranks know of each other's batches."""

from functools import cache
from typing import NamedTuple

import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from mmengine.dist import all_gather, all_reduce, get_rank, get_world_size
from torch import Tensor

from kd_mm.checks import is_int
from kd_mm.functional.kl import at_least_float32


@torch.compiler.disable
def _share_of_images(num_images: int, device: torch.device) -> Tensor:
    """Return n G / N, for n images on this rank and N on all G ranks."""
    total = torch.full((), num_images, dtype=torch.float64, device=device)
    all_reduce(total)
    return num_images * get_world_size() / total


def weigh_by_share(losses: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Weigh means over this rank's images by their share of all images.

    After gradients are averaged over the ranks, any number of ranks then equals one process.

    Args:
        losses: Scalars by name. Those without "loss" in their name are left as they are.
        labels: Of this rank's images.
    """
    if get_world_size() == 1:
        return losses
    share = _share_of_images(len(labels), labels.device)
    return {k: v * share.to(v.dtype) if 'loss' in k else v for k, v in losses.items()}


class Capacity:
    """Rows to which ranks pad batches of different sizes, without a host sync in each step.

    The ranks settle the largest batch of the first two steps: a resumed run may begin with the
    smaller last batch of an epoch.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._to_settle = 2

    def __call__(self, batch: Tensor, group: torch_dist.ProcessGroup | None = None) -> int:
        """Return the rows; ValueError if this rank's batch has more."""
        if self._to_settle:
            self._to_settle -= 1
            largest = torch.tensor(len(batch), device=batch.device)
            all_reduce(largest, op='max', group=group)
            self._rows = max(self._rows, int(largest))
        if len(batch) > self._rows:
            raise ValueError(
                f'a batch must not exceed the largest one of the first two training steps, '
                f'{self._rows} images per rank, but got {len(batch)}; train with a constant '
                'batch_size (drop_last=True drops a smaller last batch)'
            )
        return self._rows


class GlobalBatch(NamedTuple):
    """What a loss over a whole batch needs to know, without gradient.

    Attributes:
        features: Embeddings, (N, D), of this rank's n images or of N of all ranks of its group.
        probs: Softened predictions of the same images, (N, K).
        rows: Where this rank's n images lie in N; None where they are all of it.
        valid: (N,) ones for images and zeros for padding; None where nothing is padded.
    """

    features: Tensor
    probs: Tensor
    rows: slice | None
    valid: Tensor | None


@cache
def _consecutive_ranks(group_size: int) -> torch_dist.ProcessGroup:
    """Return this rank's group of consecutive ranks, the same one to all who ask."""
    world_size, rank = get_world_size(), get_rank()
    if world_size % group_size:
        raise ValueError(
            f'group_size must divide the number of ranks, but got group_size={group_size} with '
            f'{world_size} ranks; take one of its divisors, such as the GPUs of a node, or '
            "gather='global'"
        )
    start = rank - rank % group_size
    # Otherwise each rank would take part in making each group.
    return torch_dist.new_group(range(start, start + group_size), use_local_synchronization=True)


class BatchGatherer:
    """Concatenate the ranks' features and predictions: one collective, no host sync per step.

    Args:
        mode: ``'global'`` gathers over all ranks, ``'group'`` over each ``group_size``
            consecutive ranks, ``'local'`` looks at this rank's batch alone.
        group_size: Ranks of a group, at least 2: for ``'group'`` and nothing else.

    Raises:
        ValueError: If ``group_size`` does not fit ``mode`` or, in training, does not divide the
            number of ranks; or if a batch exceeds the :class:`Capacity`.
    """

    def __init__(self, mode: str, group_size: int | None = None) -> None:
        if mode not in ('global', 'group', 'local'):
            raise ValueError(
                f"gather must be 'global' (the batch of all ranks), 'group' (of group_size "
                f"consecutive ranks) or 'local' (this rank's batch), but got {mode!r}"
            )
        if mode == 'group' and not is_int(group_size, least=2):
            raise ValueError(
                "gather='group' needs group_size, an integer of at least 2 ranks, but got "
                f"{group_size!r}; give that of a node's GPUs, or take gather='local'"
            )
        if mode != 'group' and group_size is not None:
            raise ValueError(
                f"group_size needs gather='group', but got gather={mode!r} and group_size="
                f'{group_size!r}; leave one of them out'
            )
        self.mode = mode
        self.group_size = group_size
        self._capacity = Capacity()

    def __call__(self, features: Tensor, probs: Tensor) -> GlobalBatch:
        """Return the batch, detached, for embeddings (n, D) and predictions (n, K)."""
        features, probs = features.detach(), probs.detach()
        if self.mode == 'local' or get_world_size() == 1:
            return GlobalBatch(features, probs, None, None)
        group = _consecutive_ranks(self.group_size) if self.mode == 'group' else None
        capacity, num_images = self._capacity(features, group), len(features)
        features, probs = at_least_float32(features), at_least_float32(probs)
        block = torch.cat([features, probs, features.new_ones(num_images, 1)], dim=1)
        block = F.pad(block, (0, 0, 0, capacity - num_images))
        block = torch.cat(all_gather(block, group))
        features, probs, valid = block.split([features.shape[1], probs.shape[1], 1], dim=1)
        start = get_rank(group) * capacity
        return GlobalBatch(features, probs, slice(start, start + num_images), valid.squeeze(1))
