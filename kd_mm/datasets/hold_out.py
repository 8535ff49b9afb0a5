"""Images of each class that training does not see."""

from collections.abc import Mapping

import numpy as np
from mmengine.dataset import BaseDataset

from kd_mm.checks import check_choice, check_int, few
from kd_mm.registry import DATASETS

from .labels import get_labels
from .wrapper import DatasetWrapper

__all__ = ['HoldOut']

PARTS = ('train', 'held_out')


@DATASETS.register_module()
class HoldOut(DatasetWrapper):
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
        TypeError: If ``dataset`` is not a ``BaseDataset``; or as ``kd_mm.datasets.get_labels``.
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
        check_int('num_per_class', num_per_class)
        check_choice('part', part, PARTS)
        self.num_per_class = num_per_class
        self.part = part
        super().__init__(dataset, lazy_init)

    def prepare(self) -> None:
        """Load the annotations and keep the wanted part."""
        if not isinstance(self.dataset, BaseDataset):
            raise TypeError(
                'dataset must be an MMEngine BaseDataset or its config, but got '
                f'{type(self.dataset).__name__}; put the HoldOut inside of other wrappers'
            )
        self.dataset.full_init()
        chosen = self._held_out(get_labels(self.dataset)) == (self.part == 'held_out')
        # A data set of its own: the pipeline's second tries at a broken image stay in this part.
        self.dataset = self.dataset.get_subset(np.flatnonzero(chosen).tolist())

    def _held_out(self, labels: np.ndarray) -> np.ndarray:
        """Return which of N images, whose labels (N,) are given, are held out: (N,) bool."""
        random, classes = np.random.RandomState(0), self.dataset.metainfo.get('classes')
        held_out, emptied = np.zeros(len(labels), dtype=bool), []
        present = np.unique(labels).tolist()
        for label in present:
            members = np.flatnonzero(labels == label)
            if len(members) <= self.num_per_class:
                emptied.append(f'{classes[label] if classes else label} ({len(members)})')
            held_out[random.permutation(members)[: self.num_per_class]] = True
        if emptied:
            raise ValueError(
                'a hold-out must leave each class an image to train on, but num_per_class='
                f'{self.num_per_class} empties {len(emptied)} of {len(present)} classes: '
                f'{few(emptied)}; lower num_per_class or leave those classes out'
            )
        return held_out
