"""Images of each class that training does not see."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset, force_full_init
from mmengine.registry import DATASETS as ROOT_DATASETS

from kd_mm.plain import Replaceable
from kd_mm.registry import DATASETS

__all__ = ['HoldOut']

PARTS = ('train', 'held_out')
_MOST_NAMED = 5


@DATASETS.register_module()
class HoldOut(Replaceable):
    """A data set without some images of each class, or those images alone.

    The two parts of one data set with the same ``num_per_class`` share no image and are all of
    it together. Class by class in ascending order, a permutation of its images is drawn from
    ``numpy.random.RandomState(0)``, whose numbers NumPy keeps from version to version, and its
    first ``num_per_class`` are held out; each part keeps the order of the data set. No seed of a
    run has a say in it: only the labels, in their order, have.

    Args:
        dataset (BaseDataset | dict): The data set to split, or its config. Left as it is. It
            chooses the pipeline, so that the parts may have different ones.
        num_per_class (int): Images of each class to hold out, at least 1.
        part (str): ``'train'`` or ``'held_out'``.
        lazy_init (bool): Split at the first access instead of now. Defaults to False.

    Raises:
        TypeError: If ``dataset`` is no ``BaseDataset``; or as ``kd_mm.datasets.get_labels``.
        ValueError: If an argument is out of range or a class would have no image left; or as
            ``kd_mm.datasets.get_labels``.

    Examples:
        >>> import numpy as np
        >>> from kd_mm.datasets import Digits, HoldOut, get_labels
        >>> parts = [HoldOut(Digits(), num_per_class=20, part=p) for p in ('train', 'held_out')]
        >>> [len(part) for part in parts]
        [998, 200]
        >>> np.bincount(get_labels(parts[1])).tolist()
        [20, 20, 20, 20, 20, 20, 20, 20, 20, 20]
    """

    def __init__(
        self,
        dataset: BaseDataset | Mapping,
        num_per_class: int,
        part: str = 'train',
        lazy_init: bool = False,
    ) -> None:
        if isinstance(num_per_class, bool) or not isinstance(num_per_class, int):
            raise ValueError(f'num_per_class must be an integer, but got {num_per_class!r}')
        if num_per_class < 1:
            raise ValueError(
                f'num_per_class must be at least 1, but got {num_per_class}; to hold nothing '
                'out, use the data set itself'
            )
        if part not in PARTS:
            raise ValueError(f'part must be one of {", ".join(PARTS)}, but got {part!r}')
        if isinstance(dataset, Mapping):
            dataset = ROOT_DATASETS.build(dataset)
        if not isinstance(dataset, BaseDataset):
            raise TypeError(
                'dataset must be an MMEngine BaseDataset or its config, but got '
                f'{type(dataset).__name__}; put the HoldOut inside of other wrappers'
            )
        self.dataset = dataset
        self.num_per_class = num_per_class
        self.part = part
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    @classmethod
    def plain(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Return the whole data set; see the base class."""
        return dict(cfg['dataset'])

    @property
    def metainfo(self) -> dict:
        """A copy of the data set's meta information."""
        return copy.deepcopy(self.dataset.metainfo)

    def full_init(self) -> None:
        """Load the annotations and keep the wanted part; a second call does nothing."""
        if self._fully_initialized:
            return
        from .labels import get_labels  # which in turn looks through a HoldOut

        self.dataset.full_init()
        labels = get_labels(self.dataset)
        held_out = _held_out(labels, self.num_per_class, self.dataset.metainfo.get('classes'))
        chosen = held_out if self.part == 'held_out' else ~held_out
        # A data set of its own: the pipeline's second tries at a broken image stay in this part.
        self.dataset = self.dataset.get_subset(np.flatnonzero(chosen).tolist())
        self._fully_initialized = True

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """Return the annotation of an item.

        Args:
            idx: Its place in this part.

        Returns:
            dict: As the data set answers.
        """
        return self.dataset.get_data_info(idx)

    @force_full_init
    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the classes of an item.

        Args:
            idx: Its place in this part.

        Returns:
            list[int]: As the data set answers.
        """
        return self.dataset.get_cat_ids(idx)

    @force_full_init
    def __len__(self) -> int:
        return len(self.dataset)

    @force_full_init
    def __getitem__(self, idx: int) -> dict:
        return self.dataset[idx]


def _held_out(labels: np.ndarray, num_per_class: int, classes: tuple | None) -> np.ndarray:
    """Tell which of N images, whose labels (N,) are given, are held out: (N,) bool."""
    present, counts = np.unique(labels, return_counts=True)
    emptied = present[counts <= num_per_class].tolist()
    if emptied:
        count_of = dict(zip(present.tolist(), counts.tolist(), strict=True))
        named = ', '.join(
            f'{classes[label] if classes else label} ({count_of[label]})'
            for label in emptied[:_MOST_NAMED]
        )
        rest = len(emptied) - _MOST_NAMED
        raise ValueError(
            'a hold-out must leave each class an image to train on, but num_per_class='
            f'{num_per_class} empties {len(emptied)} of {len(present)} classes: {named}'
            f'{f" and {rest} more" if rest > 0 else ""}; lower num_per_class or leave '
            'those classes out'
        )
    random = np.random.RandomState(0)
    held_out = np.zeros(len(labels), dtype=bool)
    by_class = np.argsort(labels, kind='stable')
    for members in np.split(by_class, np.cumsum(counts)[:-1]):
        held_out[random.permutation(members)[:num_per_class]] = True
    return held_out
