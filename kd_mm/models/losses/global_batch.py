"""The batch of all ranks, seen from one of them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, all_reduce, get_rank, get_world_size
from torch import Tensor

from kd_mm.functional.divergence import at_least_float32


class GlobalBatch(NamedTuple):
    """What a loss over a whole batch needs to know, without gradient.

    Attributes:
        features: Embeddings, (N, D), of this rank's n images or of all ranks' N.
        logits: Logits of the same images, (N, K).
        rows: Where this rank's n images lie in N; None where they are all of it.
        valid: (N,) ones for images and zeros for padding; None where nothing is padded.
        share: Factor that turns this rank's mean over n images into its part of the mean over all
            images, once gradients are averaged over ranks: ``n * world_size / N``. None where
            the batch is one rank's.
    """

    features: Tensor
    logits: Tensor
    rows: slice | None
    valid: Tensor | None
    share: Tensor | None


class BatchGatherer:
    """Concatenate the ranks' features and logits, with one collective and no host sync per step.

    Ranks may hold batches of different sizes (the last one of an epoch): each pads to a common
    capacity, the largest batch of the first training step, which the ranks settle once.

    Args:
        mode: ``'global'`` gathers over all ranks, ``'local'`` looks at this rank's batch alone.

    Raises:
        ValueError: If ``mode`` is neither, or, at a later step, if a batch exceeds the capacity.
    """

    def __init__(self, mode: str) -> None:
        if mode not in ('global', 'local'):
            raise ValueError(
                f"gather must be 'global' (the batch of all ranks) or 'local' (this rank's "
                f'batch), but got {mode!r}'
            )
        self.mode = mode
        self._capacity = 0

    def __call__(self, features: Tensor, logits: Tensor) -> GlobalBatch:
        """Return the batch that the ensembling runs over.

        Args:
            features: This rank's embeddings, (n, D).
            logits: This rank's logits, (n, K).

        Returns:
            The batch, detached and in float32 at least where it was gathered.
        """
        features, logits = features.detach(), logits.detach()
        num_images = len(features)
        if self.mode == 'local' or get_world_size() == 1:
            return GlobalBatch(features, logits, None, None, None)

        if not self._capacity:
            largest = torch.tensor(num_images, device=features.device)
            all_reduce(largest, op='max')
            self._capacity = int(largest)
        if num_images > self._capacity:
            raise ValueError(
                f'a batch must not exceed the largest batch of the first training step, '
                f'{self._capacity} images per rank, but got {num_images}; train with a constant '
                "batch_size (drop_last=True drops a smaller last batch), or set gather='local'"
            )
        features, logits = at_least_float32(features), at_least_float32(logits)
        block = torch.cat([features, logits, features.new_ones(num_images, 1)], dim=1)
        block = F.pad(block, (0, 0, 0, self._capacity - num_images))
        block = torch.cat(all_gather(block))
        features, logits, valid = block.split([features.shape[1], logits.shape[1], 1], dim=1)
        valid = valid.squeeze(1)
        start = get_rank() * self._capacity
        share = num_images * get_world_size() / valid.sum()
        return GlobalBatch(features, logits, slice(start, start + num_images), valid, share)
