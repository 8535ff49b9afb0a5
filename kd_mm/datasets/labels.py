"""The labels of a data set, read once and fast, through MMEngine's wrappers."""

import pickle
from collections.abc import Iterator, Sized
from operator import index
from typing import NamedTuple

import numpy as np
from mmengine.dataset import BaseDataset, ClassBalancedDataset, RepeatDataset
from mmengine.runner.runner import _SlicedDataset
from mmpretrain.datasets import KFoldDataset
from torch.utils.data import ConcatDataset, Subset

from .hold_out import HoldOut
from .in_memory import InMemory
from .numbered import NumberedDataset

__all__ = ['LabelIndex', 'get_labels', 'image_numbers', 'index_labels']

_BLOCK = 1 << 16  # addresses turned into Python ints at a time


class LabelIndex(NamedTuple):
    """What a class-aware sampler must know of a data set with N items.

    Attributes:
        labels: (N,) the class of each item.
        images: (N,) the image of each item: equal numbers are the same image, as repeats are.
        classes: The names of the classes, or None where the data set does not know them.
        complete: True where the data set found its images by itself (in folders, in its own
            archive) and takes all of them; False where a list or a subset chose the images.
    """

    labels: np.ndarray
    images: np.ndarray
    classes: tuple[str, ...] | None
    complete: bool


def get_labels(dataset: Sized) -> np.ndarray:
    """Read the class of every item of a data set, without loading an image.

    The labels are ``gt_label`` of the data set's stored annotations, or else what its
    ``get_cat_ids`` answers. MMEngine's ``ConcatDataset``, ``RepeatDataset``,
    ``ClassBalancedDataset`` and ``num_batch_per_epoch``, mmpretrain's ``KFoldDataset``, our
    ``HoldOut`` and ``InMemory``, and PyTorch's ``ConcatDataset`` and ``Subset`` are looked
    through, nested as they may be.

    Args:
        dataset: A data set of N items.

    Returns:
        Integer labels (N,).

    Raises:
        TypeError: If the data set cannot tell its labels, or a label is no integer.
        ValueError: If an item has several labels, or ``num_batch_per_epoch`` asks for more
            images than there are.

    Examples:
        >>> import numpy as np
        >>> from kd_mm.datasets import Digits, get_labels
        >>> np.bincount(get_labels(Digits(split='test'))).tolist()
        [59, 61, 59, 61, 60, 61, 60, 60, 58, 60]
    """
    return index_labels(dataset).labels


def index_labels(dataset: Sized) -> LabelIndex:
    """Read the labels of a data set, and which items are the same image.

    Args:
        dataset: As in :func:`get_labels`.

    Returns:
        Labels, images, class names and completeness.

    Raises:
        TypeError: As :func:`get_labels`.
        ValueError: As :func:`get_labels`.
    """
    leaves: list[tuple[Sized, np.ndarray]] = []
    images = _flatten(dataset, leaves)
    labels = np.concatenate([_leaf_labels(leaf) for leaf, _ in leaves])
    classes = getattr(leaves[0][0], 'metainfo', {}).get('classes')
    used = np.bincount(images, minlength=len(labels)) > 0
    complete = bool(used.all()) and all(_is_complete(leaf) for leaf, _ in leaves)
    return LabelIndex(labels[images], images, classes and tuple(classes), complete)


def image_numbers(dataset: Sized) -> np.ndarray:
    """Number the images of a data set: items that show the same image have the same number.

    An image is an item of a data set that wraps no other. Of the wrappers in
    :func:`get_labels`, ``RepeatDataset``, ``ClassBalancedDataset``, a ``Subset`` that names an
    index twice and a concatenation that names a data set object twice repeat images. Two data
    set objects that read the same file have two images. No label is read.

    Args:
        dataset: A data set of M items that show n different images.

    Returns:
        Int64 numbers (M,). Each of 0..n-1 occurs; a data set without repeats in ascending order
        has ``arange(M)``. The numbers depend on the data set alone, so that a resumed run
        has the same ones.

    Raises:
        ValueError: If ``num_batch_per_epoch`` asks for more images than there are.

    Examples:
        >>> from torch.utils.data import ConcatDataset, Subset
        >>> from kd_mm.datasets import image_numbers
        >>> letters = ['a', 'b', 'c', 'd']
        >>> image_numbers(letters).tolist()
        [0, 1, 2, 3]
        >>> parts = [Subset(letters, [3, 1, 1]), Subset(letters, [3])]
        >>> image_numbers(ConcatDataset(parts)).tolist()
        [1, 0, 0, 1]
    """
    # Places have gaps where a subset leaves images out.
    _, numbers = np.unique(_flatten(dataset, []), return_inverse=True)
    return numbers.astype(np.int64, copy=False)


def _flatten(dataset: Sized, leaves: list[tuple[Sized, np.ndarray]]) -> np.ndarray:
    """Map each item to its place in the concatenation of the innermost data sets.

    ``leaves`` collects those data sets, each with its places.
    """
    size = len(dataset)  # initialises a lazy data set, too
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([_flatten(part, leaves) for part in dataset.datasets])
    if isinstance(dataset, NumberedDataset):
        return _flatten(dataset.inner, leaves)
    if isinstance(dataset, InMemory):
        return _flatten(dataset.dataset, leaves)
    if isinstance(dataset, RepeatDataset):
        return np.tile(_flatten(dataset.dataset, leaves), dataset.times)
    if isinstance(dataset, ClassBalancedDataset):
        return _flatten(dataset.dataset, leaves)[dataset.repeat_indices]
    if isinstance(dataset, Subset):
        return _flatten(dataset.dataset, leaves)[np.asarray(dataset.indices, dtype=np.intp)]
    if isinstance(dataset, _SlicedDataset):
        places = _flatten(dataset._dataset, leaves)
        if size > len(places):
            raise ValueError(
                f'num_batch_per_epoch asks for {size} images an epoch, but the data set has '
                f'{len(places)}. Lower num_batch_per_epoch, or wrap the data set in a '
                'RepeatDataset.'
            )
        return places[:size]
    for leaf, places in leaves:
        if leaf is dataset:
            return places
    start = sum(len(places) for _, places in leaves)
    leaves.append((dataset, np.arange(start, start + size)))
    return leaves[-1][1]


def inner_datasets(dataset: Sized) -> list[Sized]:
    """Return the data sets inside of all wrappers, in the order of their items.

    Args:
        dataset: As in :func:`get_labels`.

    Returns:
        The data sets that wrap no other; where there is no wrapper, the data set itself.
    """
    leaves: list[tuple[Sized, np.ndarray]] = []
    _flatten(dataset, leaves)
    return [_unwrapped(leaf) for leaf, _ in leaves]


def _unwrapped(leaf: Sized) -> Sized:
    """Look through a wrapper that keeps a part of its data set."""
    return leaf.dataset if isinstance(leaf, (HoldOut, KFoldDataset)) else leaf


def _leaf_labels(dataset: Sized) -> np.ndarray:
    """Read the labels (N,) of a data set that wraps no other."""
    dataset = _unwrapped(dataset)
    name = type(dataset).__name__
    labels = np.empty(len(dataset), dtype=np.intp)
    for i, value in enumerate(_leaf_values(dataset)):
        try:
            labels[i] = index(value)
        except TypeError:
            if np.ndim(value) > 0:
                raise ValueError(
                    f'Each item must have exactly one label, but item {i} of {name} has '
                    f'{value!r}. Multi-label data have no single class to draw partners from; '
                    'use a single-label data set.'
                ) from None
            raise TypeError(
                f'A label must be an integer, but item {i} of {name} has {value!r}. Check the '
                "'gt_label' of its annotations."
            ) from None
    return labels


def _leaf_values(dataset: Sized) -> Iterator[object]:
    """Yield the label of each item as the data set states it, by the fastest way it allows."""
    size = len(dataset)
    if size == 0:
        return
    if not isinstance(dataset, BaseDataset) or 'gt_label' not in dataset.get_data_info(0):
        yield from _told_values(dataset)
    elif type(dataset).get_data_info is not BaseDataset.get_data_info:
        # The data set forms its annotations anew: believe what it answers, at its own pace.
        for i in range(size):
            yield dataset.get_data_info(i).get('gt_label')
    elif not dataset.serialize_data:
        for info in dataset.data_list:
            yield info.get('gt_label')
    else:
        buffer, start = memoryview(dataset.data_bytes), 0
        for block in range(0, size, _BLOCK):
            for end in dataset.data_address[block : block + _BLOCK].tolist():
                yield pickle.loads(buffer[start:end]).get('gt_label')
                start = end


def _told_values(dataset: Sized) -> Iterator[object]:
    """Yield what ``get_cat_ids`` answers for each item, unpacked where it is a single label."""
    for i in range(len(dataset)):
        try:
            ids = dataset.get_cat_ids(i)
        except (AttributeError, KeyError, NotImplementedError) as error:
            raise TypeError(
                'The data set must be able to tell its labels, but '
                f"{type(dataset).__name__} has neither 'gt_label' in its annotations nor a "
                f"working 'get_cat_ids', which raised {error!r}. Give its annotations a "
                "'gt_label' (mmpretrain: with_label=True), or write get_cat_ids(idx) -> [label]."
            ) from error
        yield ids[0] if len(ids) == 1 else ids


def _is_complete(dataset: Sized) -> bool:
    """Tell whether the data set found its images by itself and takes all of them."""
    return isinstance(dataset, BaseDataset) and not dataset.ann_file and dataset._indices is None
