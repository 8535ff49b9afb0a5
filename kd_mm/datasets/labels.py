"""The labels of a data set, and which items show the same image, through all wrappers."""

import pickle
from collections.abc import Iterator, Sequence, Sized
from itertools import chain, pairwise
from operator import index
from typing import NamedTuple

import numpy as np
from mmengine.dataset import BaseDataset, ClassBalancedDataset, RepeatDataset
from mmengine.runner.runner import _SlicedDataset
from mmpretrain.datasets import KFoldDataset
from torch.utils.data import ConcatDataset, Subset

from .wrapper import DatasetWrapper

__all__ = ['LabelIndex', 'get_labels', 'image_numbers', 'index_labels', 'inner_datasets']


class LabelIndex(NamedTuple):
    """What a class-aware sampler must know of a data set with N items."""

    labels: np.ndarray  # (N,) the class of each item
    images: np.ndarray  # (N,) its image: equal numbers are the same image, as repeats are
    classes: tuple[str, ...] | None  # names; None where the data set does not know them


def get_labels(dataset: Sized) -> np.ndarray:
    """Read the class of every item of a data set, without loading an image.

    The labels are ``gt_label`` of the data set's stored annotations, or what its ``get_cat_ids``
    answers. These wrappers are looked through, however they are nested: MMEngine's
    ``ConcatDataset``, ``RepeatDataset``, ``ClassBalancedDataset`` and ``num_batch_per_epoch``,
    mmpretrain's ``KFoldDataset``, PyTorch's ``ConcatDataset`` and ``Subset``, and ours.

    Args:
        dataset: A data set of N items.

    Returns:
        Integer labels (N,).

    Raises:
        TypeError: If the data set does not know its labels, or a label is not an integer.
        ValueError: If an item has several labels, or ``num_batch_per_epoch`` asks for more
            images than there are.

    Examples:
        >>> import numpy as np
        >>> from kd_mm.datasets import Digits, get_labels
        >>> np.bincount(get_labels(Digits(split='test'))).tolist()
        [59, 61, 59, 61, 60, 61, 60, 60, 58, 60]
    """
    inside = _inside(dataset)
    if inside is None:
        return _stored_labels(dataset)
    parts, positions = inside
    return np.concatenate([get_labels(part) for part in parts])[positions]


def index_labels(dataset: Sized) -> LabelIndex:
    """Read the labels of a data set, as :func:`get_labels`, and which items are the same image."""
    leaves: list[tuple[Sized, np.ndarray]] = []
    images = _places(dataset, leaves)
    classes = getattr(leaves[0][0], 'metainfo', {}).get('classes')
    return LabelIndex(get_labels(dataset), images, classes and tuple(classes))


def image_numbers(dataset: Sized) -> np.ndarray:
    """Number the images of a data set: items that show the same image have the same number.

    An image is an item of a data set that wraps no other. ``RepeatDataset``,
    ``ClassBalancedDataset``, a ``Subset`` that names an index twice and a concatenation that names
    a data set object twice repeat images. Two data set objects that read the same file have two
    images. No label is read.

    Args:
        dataset: A data set of M items that show n different images.

    Returns:
        Int64 numbers (M,). Each of 0..n-1 occurs; a data set without repeats in ascending order
        has ``arange(M)``. The numbers depend on the data set alone.

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
    _, numbers = np.unique(_places(dataset, []), return_inverse=True)
    return numbers.astype(np.int64, copy=False)


def inner_datasets(dataset: Sized) -> list[Sized]:
    """Return the data sets inside of all wrappers, in the order of their items."""
    leaves: list[tuple[Sized, np.ndarray]] = []
    _places(dataset, leaves)
    return [leaf for leaf, _ in leaves]


def _inside(dataset: Sized) -> tuple[Sequence[Sized], np.ndarray] | None:
    """Return what a wrapper holds, and the position of each item in its concatenation."""
    size = len(dataset)  # initialises a lazy data set, too
    if isinstance(dataset, DatasetWrapper):
        inner, positions = dataset.inner_index()
        return [inner], positions
    if isinstance(dataset, KFoldDataset):
        return [dataset.dataset], np.arange(size)
    if isinstance(dataset, ConcatDataset):
        return dataset.datasets, np.arange(size)
    if isinstance(dataset, RepeatDataset):
        return [dataset.dataset], np.tile(np.arange(len(dataset.dataset)), dataset.times)
    if isinstance(dataset, ClassBalancedDataset):
        return [dataset.dataset], np.asarray(dataset.repeat_indices, dtype=np.intp)
    if isinstance(dataset, Subset):
        return [dataset.dataset], np.asarray(dataset.indices, dtype=np.intp)
    if isinstance(dataset, _SlicedDataset):
        if size > len(dataset._dataset):
            raise ValueError(
                f'num_batch_per_epoch asks for {size} images an epoch, but the data set has '
                f'{len(dataset._dataset)}. Lower num_batch_per_epoch, or wrap the data set in a '
                'RepeatDataset.'
            )
        return [dataset._dataset], np.arange(size)
    return None


def _places(dataset: Sized, leaves: list[tuple[Sized, np.ndarray]]) -> np.ndarray:
    """Map each item to its place in the concatenation of the innermost data sets, the leaves."""
    inside = _inside(dataset)
    if inside is not None:
        parts, positions = inside
        return np.concatenate([_places(part, leaves) for part in parts])[positions]
    for leaf, places in leaves:
        if leaf is dataset:
            return places
    start = sum(len(places) for _, places in leaves)
    leaves.append((dataset, np.arange(start, start + len(dataset))))
    return leaves[-1][1]


def _stored_labels(dataset: Sized) -> np.ndarray:
    """Read the labels (N,) of a data set that wraps no other."""
    name = type(dataset).__name__
    labels = np.empty(len(dataset), dtype=np.intp)
    for i, value in enumerate(_stored_values(dataset)):
        try:
            labels[i] = index(value)
        except TypeError:
            if np.ndim(value) > 0:
                raise ValueError(
                    f'Each item must have exactly one label, but item {i} of {name} has '
                    f'{value!r}. Use a single-label data set.'
                ) from None
            raise TypeError(
                f'A label must be an integer, but item {i} of {name} has {value!r}. Check the '
                "'gt_label' of its annotations."
            ) from None
    return labels


def _stored_values(dataset: Sized) -> Iterator[object]:
    """Yield the label of each item as the data set states it, by the fastest way it allows."""
    items = range(len(dataset))
    known = isinstance(dataset, BaseDataset) and items and 'gt_label' in dataset.get_data_info(0)
    if not known:
        yield from (_answered(dataset, i) for i in items)
    elif type(dataset).get_data_info is not BaseDataset.get_data_info:
        # The data set changes its annotations when asked: take what it answers, at its own pace.
        yield from (dataset.get_data_info(i).get('gt_label') for i in items)
    elif not dataset.serialize_data:
        yield from (info.get('gt_label') for info in dataset.data_list)
    else:
        buffer = memoryview(dataset.data_bytes)
        for start, end in pairwise(chain([0], map(int, dataset.data_address))):
            yield pickle.loads(buffer[start:end]).get('gt_label')


def _answered(dataset: Sized, item: int) -> object:
    """Return what ``get_cat_ids`` answers, unpacked where it is a single label."""
    try:
        ids = dataset.get_cat_ids(item)
    except (AttributeError, KeyError, NotImplementedError) as error:
        raise TypeError(
            f'The data set must know its labels, but {type(dataset).__name__} has '
            "neither 'gt_label' in its annotations nor a working 'get_cat_ids', which raised "
            f"{error!r}. Give its annotations a 'gt_label' (mmpretrain: with_label=True), or "
            'write get_cat_ids(idx) -> [label].'
        ) from error
    return ids[0] if len(ids) == 1 else ids
