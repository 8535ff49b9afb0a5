"""The class-instance sampler: each anchor image is followed by partners of its class."""

from collections.abc import Iterator, Mapping, Sized
from itertools import chain
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.logging import MMLogger
from torch.utils.data import Sampler

from kd_mm.checks import check_choice, check_int, few
from kd_mm.plain import Replaceable
from kd_mm.registry import DATA_SAMPLERS

from .labels import LabelIndex, index_labels

__all__ = ['ClassInstanceSampler']

_BLOCK = 1 << 18  # indices drawn at a time: bounds the memory at any epoch length


@DATA_SAMPLERS.register_module()
class ClassInstanceSampler(Replaceable, Sampler):
    """Yield groups of ``num_instances`` images of one class: an anchor, then its partners.

    This is the batch of BAKE ("Self-distillation with Batch Knowledge Ensembling Improves
    ImageNet Classification", the paragraph on sampling in its method section), with
    ``num_instances = M + 1``. Anchors come in random order, and each is followed at once by M
    other images of its class: ``[anchor, partner_1 .. partner_M, next anchor, ..]``. Partners
    are drawn uniformly, independently for each anchor, without replacement where the class has
    M other images, otherwise with replacement. An image is never its own partner, nor is a repeat
    of it that a wrapper such as ``RepeatDataset`` made; only a class with a single image is paired
    with itself. Warnings count such classes, and those without an image.

    Groups are dealt to the ranks in turn, so a group never straddles ranks, and the ranks' k-th
    batches of b groups each together hold the k-th W b groups of the order of one process. Where
    the ranks W do not divide the groups, the order starts again from its beginning until they
    do. The order depends on the seed and the epoch alone.

    With a ``batch_size`` per rank that ``num_instances`` divides, every batch holds whole groups.

    Args:
        dataset: A data set of N items that knows its labels; see
            :func:`kd_mm.datasets.get_labels`.
        num_instances: Images in a group, anchor included; an integer of at least 2.
        epoch_length: ``'anchors'``: every item is an anchor exactly once an epoch, so an epoch
            reads ``num_instances`` times the data (the released code's meaning). ``'images'``:
            an epoch reads as many images as a plain one, rounded up to whole groups:
            ``ceil(N / num_instances)`` anchors, drawn again each epoch without replacement.
        seed: Seed of the order, the same on all ranks. By default the ranks agree on one.

    Raises:
        TypeError: If the data set does not know its labels.
        ValueError: If an argument is out of range, the data set is empty, or an item has several
            labels or one outside ``[0, num_classes)``.

    Examples:
        >>> from kd_mm.datasets import ClassInstanceSampler, Digits, get_labels
        >>> digits = Digits(split='train')
        >>> sampler = ClassInstanceSampler(digits, num_instances=4, seed=0)
        >>> len(digits), len(sampler)
        (1198, 4792)
        >>> labels = get_labels(digits)[list(sampler)].reshape(-1, 4)
        >>> bool((labels == labels[:, :1]).all())
        True
        >>> len(ClassInstanceSampler(digits, num_instances=4, epoch_length='images', seed=0))
        1200
    """

    def __init__(
        self,
        dataset: Sized,
        num_instances: int,
        epoch_length: str = 'anchors',
        seed: int | None = None,
    ) -> None:
        check_int('num_instances', num_instances, least=2)
        check_choice('epoch_length', epoch_length, ('anchors', 'images'))
        if seed is not None:
            check_int('seed', seed, least=0)
        if len(dataset) == 0:
            raise ValueError(
                f'The data set must not be empty, but {type(dataset).__name__} has 0 items. '
                'Check its data_root, its annotation file and its indices.'
            )
        self.rank, self.world_size = get_dist_info()
        self.dataset = dataset
        self.num_instances = num_instances
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        self._build_index(index_labels(dataset))
        per_anchor = 1 if epoch_length == 'anchors' else num_instances
        self.num_anchors = -(-len(dataset) // per_anchor)
        self.num_groups = -(-self.num_anchors // self.world_size)  # of this rank

    def _build_index(self, index: LabelIndex) -> None:
        """Sort the distinct images by class, and note each item's class and place there."""
        lowest, highest = int(index.labels.min()), int(index.labels.max())
        num_classes = max(highest + 1, 1) if index.classes is None else len(index.classes)
        for label in (lowest, highest):
            if not 0 <= label < num_classes:
                raise ValueError(
                    f'Labels must be in [0, {num_classes}), the number of classes of the data '
                    f'set, but one is {label}. Check the annotations (do they count from 1?) '
                    "and the data set's classes."
                )
        # A repeated image enters its class once, by the item where it comes first.
        _, first, image = np.unique(index.images, return_index=True, return_inverse=True)
        by_class = np.argsort(index.labels[first], kind='stable')
        place = np.empty(len(first), dtype=np.intp)
        place[by_class] = np.arange(len(first))

        self._members = first[by_class]
        self._labels = index.labels
        self._place = place[image]
        self._sizes = np.bincount(index.labels[first], minlength=num_classes)
        self._starts = np.cumsum(self._sizes) - self._sizes

        if index.classes is not None:
            empty = [repr(index.classes[i]) for i in np.flatnonzero(self._sizes == 0)]
            self._warn(len(empty), f'have no image and are never sampled: {few(empty)}.')
        singles = int((self._sizes == 1).sum())
        self._warn(singles, 'have a single image, which is paired with itself.')

    def _warn(self, count: int, sentence: str) -> None:
        """Log something about a number of classes, if there are any, once for all ranks."""
        if count and self.rank == 0:
            logger = MMLogger.get_current_instance()
            logger.warning(f'{count} of {len(self._sizes)} classes {sentence}')

    @classmethod
    def plain(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Return MMEngine's sampler; see the base class."""
        return {'type': 'DefaultSampler', 'shuffle': True}

    def __iter__(self) -> Iterator[int]:
        """Iterate over this rank's indices of the current epoch."""
        return chain.from_iterable(self._deal(self.epoch))

    def __len__(self) -> int:
        """Return the number of indices of this rank: the same on every rank."""
        return self.num_groups * self.num_instances

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, whose order the next iteration yields."""
        self.epoch = epoch

    def _deal(self, epoch: int) -> Iterator[list[int]]:
        """Deal the groups to the ranks in turn, and begin again while some rank lacks one."""
        total, position = self.num_groups * self.world_size, 0
        while position < total:
            for groups in self._draw(epoch):
                mine = slice((self.rank - position) % self.world_size, None, self.world_size)
                yield groups[: total - position][mine].ravel().tolist()
                position += len(groups)
                if position >= total:
                    return

    def _draw(self, epoch: int) -> Iterator[np.ndarray]:
        """Draw the order of an epoch, the same on all ranks, in blocks (G, num_instances)."""
        rng = np.random.default_rng([self.seed, epoch])
        anchors = rng.permutation(len(self._labels))[: self.num_anchors]
        block = -(-_BLOCK // self.num_instances)
        for start in range(0, self.num_anchors, block):
            yield self._draw_groups(rng, anchors[start : start + block])

    def _draw_groups(self, rng: np.random.Generator, anchors: np.ndarray) -> np.ndarray:
        """Put partners behind the anchors (G,): (G, num_instances)."""
        count = self.num_instances - 1
        classes = self._labels[anchors]
        starts, sizes = self._starts[classes], self._sizes[classes]
        own = self._place[anchors] - starts
        partners = np.empty((count, len(anchors)), dtype=np.intp)

        enough = sizes > count
        free = sizes[enough] - 1 - np.arange(count)[:, None]
        partners[:, enough] = _pick_distinct(rng.integers(free), own[enough])

        # In a class with one image the only choice is the image itself.
        own, sizes = own[~enough], sizes[~enough]
        picks = rng.integers(np.maximum(sizes - 1, 1), size=(count, len(own)))
        partners[:, ~enough] = np.minimum(picks + (picks >= own), sizes - 1)

        return np.column_stack([anchors, *self._members[partners + starts]])


def _pick_distinct(ranks: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Turn draws among the places still free into places (M, G), without replacement.

    Row j of ``ranks`` (M, G) counts, from 0, among the places that remain free after the anchor's
    ``own`` (G,) and the j earlier picks are taken. Uniform ranks give every ordered choice of M
    others the same chance.
    """
    picks, taken = ranks.copy(), own[None]  # taken: ascending, element by element
    for pick in picks:
        for place in taken:
            pick += pick >= place
        taken = np.sort([*taken, pick], axis=0)
    return picks
