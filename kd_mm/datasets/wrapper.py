"""The base of our data sets that wrap another one."""

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sized
from typing import Any

import numpy as np
from mmengine.dataset import force_full_init
from mmengine.registry import DATASETS as ROOT_DATASETS

from kd_mm.plain import Replaceable

__all__ = ['DatasetWrapper']


class DatasetWrapper(Replaceable):
    """A data set around another one. Labels and image numbers are known through it.

    A subclass reads ``self.dataset``, or puts another one in its place, in :meth:`prepare`. Where
    its items are not those of ``self.dataset`` in their order, it overrides :meth:`inner_index`
    and the access to items.

    Args:
        dataset: The data set, or its config. Left as it is.
        lazy_init: Prepare at the first access instead of now.
    """

    def __init__(self, dataset: Sized | Mapping, lazy_init: bool = False) -> None:
        self.dataset = ROOT_DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    @abstractmethod
    def prepare(self) -> None:
        """Do the work of the wrapper, once."""

    def inner_index(self) -> tuple[Sized, np.ndarray]:
        """Return the data set inside, and the position there (N,) of each item of this one."""
        return self.dataset, np.arange(len(self.dataset))

    @classmethod
    def plain(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data set inside; see the base class."""
        return dict(cfg['dataset'])

    @property
    def metainfo(self) -> dict:
        """A copy of the data set's meta information."""
        return copy.deepcopy(self.dataset.metainfo)

    def full_init(self) -> None:
        """Prepare the data set; a second call does nothing."""
        if not self._fully_initialized:
            self.prepare()
            self._fully_initialized = True

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """Return the annotation of an item, as the data set inside answers."""
        return self.dataset.get_data_info(idx)

    @force_full_init
    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the classes of an item, as the data set inside answers."""
        return self.dataset.get_cat_ids(idx)

    @force_full_init
    def __len__(self) -> int:
        return len(self.dataset)

    @force_full_init
    def __getitem__(self, idx: int) -> dict:
        return self.dataset[idx]
