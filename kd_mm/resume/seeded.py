"""Random augmentation as a function of seed, epoch, image and view."""

import random
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

# The image that this process reads now: its seed and key.
_current: tuple[int, ...] | None = None


def seed_generators(seed: int, *key: int, devices: bool = False) -> None:
    """Seed Python's, NumPy's and torch's global generators by a hash of the seed and a key.

    About 12 microseconds. Different keys, and keys of different lengths, give unrelated streams.

    Args:
        seed: Seed of the run, at least 0.
        *key: What is drawn: integers of at least 0.
        devices: Seed the generators of the GPUs, too, if they are in use; nothing waits for them.

    Examples:
        >>> seed_generators(0, 1, 2)
        >>> round(random.random(), 4)
        0.5475
    """
    words = np.random.SeedSequence(seed, spawn_key=key).generate_state(3).tolist()
    random.seed(words[0])
    np.random.seed(words[1])
    # torch.manual_seed would take a hundred microseconds to note it for GPUs that are not in use.
    torch.default_generator.manual_seed(words[2])
    if devices and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(words[2])


@contextmanager
def kept_generators() -> Iterator[None]:
    """Restore Python's, NumPy's and torch's generators of the CPU afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededBatch(list):
    """Indices of a batch, each of which seeds the global generators when it is asked for.

    A data loader asks for one index, reads that item, and asks for the next: so each item is
    drawn from the seed and the key that ``keys`` has for it, in whichever process. The generators
    then continue as if nothing had been drawn.
    """

    def __init__(self, indices: list[int], keys: list[tuple[int, ...]]) -> None:
        super().__init__(indices)
        self.keys = keys

    def __iter__(self) -> Iterator[int]:
        """Iterate over the indices, in generators of their own."""
        global _current
        with kept_generators():
            try:
                for index, key in zip(super().__iter__(), self.keys, strict=True):
                    _current = key
                    seed_generators(*key)
                    yield index
            finally:
                _current = None

    def __reduce__(self) -> tuple:
        """Pickle for a worker, without iterating here."""
        return SeededBatch, (list(self[:]), self.keys)


class SeededBatchSampler(Sampler):
    """Batches of another batch sampler whose images draw from seeds of their own.

    The key of an image is the epoch, its index, how often this sampler had that index in this
    epoch before, so that each time draws differently, and ``rank``. The number of workers does
    not matter. In a loop without epochs (``by_iteration``), each iteration counts as an epoch.

    Args:
        batch_sampler: Gives the batches. Its attributes are this one's.
        size: Number of items of the data set.
        seed: Seed of the run, the same on all ranks.
        rank: 0 where ranks never share an image, as under MMEngine's ``DefaultSampler``, so that
            it draws the same wherever it is read; otherwise this rank.
        by_iteration: Whether each iteration is an epoch.
    """

    def __init__(
        self, batch_sampler: Sampler, size: int, seed: int, rank: int, by_iteration: bool
    ) -> None:
        self.batch_sampler, self.size = batch_sampler, size
        self.seed, self.rank, self.by_iteration = seed, rank, by_iteration
        self.epoch = 0
        self.done = 0  # batches to pass over when the iteration begins, once

    def __iter__(self) -> Iterator[SeededBatch]:
        """Iterate over the batches of the epoch that are not done."""
        done, self.done = self.done, 0
        # Four bytes per image; a Counter of an epoch of ImageNet takes a hundred.
        seen = Counter() if self.by_iteration else array('I', bytes(4 * self.size))
        for number, batch in enumerate(self.batch_sampler):
            keys = []
            for index in map(int, batch):
                keys.append((self.seed, self.epoch, index, seen[index], self.rank))
                seen[index] += 1
            if number >= done:
                yield SeededBatch(batch, keys)
            if self.by_iteration:
                self.epoch += 1
                seen.clear()

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self.batch_sampler)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the batch sampler inside."""
        if name == 'batch_sampler':  # not there yet while this is copied
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)


class SeededView:
    """One view's transforms, which draw from the image's seed and the number of the view.

    Otherwise what a view draws would depend on how much the views before it drew.
    """

    def __init__(self, transform: Any, view: int) -> None:
        self.transform = transform
        self.view = view

    def __call__(self, results: dict) -> dict | None:
        """Transform an image, from the view's seed where the image has one."""
        if _current is not None:
            seed_generators(*_current, self.view)
        return self.transform(results)

    def __repr__(self) -> str:
        return repr(self.transform)


def seed_views(node: Any) -> None:
    """Let each view of each ``MultiView`` in a data set's pipelines draw from its own seed.

    The pipelines are changed in place, also inside of wrappers and of transforms that hold others.
    """
    if any(base.__name__ == 'MultiView' for base in type(node).__mro__):  # mmpretrain's
        if not any(isinstance(view, SeededView) for view in node.transforms):
            node.transforms = [SeededView(view, n) for n, view in enumerate(node.transforms)]
        return
    for name in ('datasets', 'dataset', 'pipeline', 'transforms'):
        inner = getattr(node, name, None)
        for part in inner if isinstance(inner, (list, tuple)) else [inner]:
            if part is not None:
                seed_views(part)
