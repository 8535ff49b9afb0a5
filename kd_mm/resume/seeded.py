"""Random augmentation as a function of seed, epoch, image and view."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from torch.utils.data import Sampler

from kd_mm.resume.generators import kept_generators, seed_generators

__all__ = ['SeededBatch', 'SeededBatchSampler', 'SeededView', 'seed_views']

# The image that this process reads now: its seed and key.
_current: tuple[int, ...] | None = None


class SeededBatch(list):
    """Indices of a batch, each of which seeds the global generators when it is asked for.

    A data loader asks for one index, reads that item, and asks for the next: so each item is
    drawn from its own seed, in whichever process. The generators then go on as if nothing had
    been drawn.

    Args:
        indices (list[int]): Items of a data set.
        keys (list[tuple[int, ...]]): The seed and the key of each.

    Examples:
        >>> import random
        >>> batch = SeededBatch([4, 7], [(0, 1, 4), (0, 1, 7)])
        >>> drawn = [(index, random.random()) for index in batch]
        >>> drawn == [(index, random.random()) for index in batch]
        True
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
    epoch before, so that a sampler with partners draws each time anew, and ``rank``. The number
    of workers has no say in it.

    In a loop without epochs, each iteration counts as an epoch.

    Args:
        batch_sampler (Sampler[list[int]]): Gives the batches. Its attributes are this one's.
        dataset (Sized): The data set, for its number of items.
        seed (int): Seed of the run, the same on all ranks.
        rank (int): 0 where ranks never share an image, so that it draws the same wherever it is
            read; else this rank, so that each draws for itself. Defaults to 0.
        by_iteration (bool): Whether each iteration is an epoch. Defaults to False.
    """

    def __init__(
        self,
        batch_sampler: Sampler,
        dataset: Sized,
        seed: int,
        rank: int = 0,
        by_iteration: bool = False,
    ) -> None:
        self.batch_sampler = batch_sampler
        self.size = len(dataset)
        self.seed = seed
        self.rank = rank
        self.by_iteration = by_iteration
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
        """Give the number of batches of a whole epoch."""
        return len(self.batch_sampler)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the batch sampler inside."""
        if name == 'batch_sampler':  # not there yet while this is copied
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)


class SeededView:
    """One view's transforms, which draw from a seed of their own.

    Else what a view draws would depend on how much the views before it drew.

    Args:
        transform (callable): Transforms of the view.
        view (int): Number of the view.
    """

    def __init__(self, transform: Any, view: int) -> None:
        self.transform = transform
        self.view = view

    def __call__(self, results: dict) -> dict | None:
        """Transform an image, from the view's seed where the image has one.

        Args:
            results: As the transforms take it.

        Returns:
            As the transforms answer.
        """
        if _current is not None:
            seed_generators(*_current, self.view)
        return self.transform(results)

    def __repr__(self) -> str:
        return repr(self.transform)


def seed_views(dataset: Any) -> None:
    """Let each view of each ``MultiView`` in a data set's pipelines draw from its own seed.

    Args:
        dataset: A data set with a pipeline, or a wrapper of one (``dataset``) or several
            (``datasets``). Its pipelines are changed in place.
    """
    inside = [*getattr(dataset, 'datasets', ()), getattr(dataset, 'dataset', None)]
    for part in inside:
        if part is not None:
            seed_views(part)
    _seed_views(getattr(dataset, 'pipeline', None))


def _seed_views(node: Any) -> None:
    """Do so in a pipeline, or in a transform that holds others."""
    from mmpretrain.datasets.transforms import MultiView  # takes seconds, and is there by now

    if isinstance(node, MultiView):
        if not any(isinstance(view, SeededView) for view in node.transforms):
            node.transforms = [SeededView(view, n) for n, view in enumerate(node.transforms)]
        return
    inner = getattr(node, 'transforms', None)
    if isinstance(inner, Iterable):
        for transform in inner:
            _seed_views(transform)
