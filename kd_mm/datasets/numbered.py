"""Samples that carry the number of their image."""

from collections.abc import Callable, Mapping, Sequence, Sized
from functools import partial
from typing import Any

from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader, IterableDataset

__all__ = ['NumberedDataset', 'number_images']


class NumberedDataset:
    """A data set whose samples carry the number of their image.

    Each item is that of the data set inside; its ``DataSample`` has the meta information
    ``image_number``, an int in 0..n-1 as :func:`kd_mm.datasets.image_numbers` gives it. All
    attributes are read from, and set in, the data set inside.

    A data set that reads another image in place of a broken one (MMEngine's ``max_refetch``)
    gives that image the number of the broken one.

    Args:
        dataset (Sized): A data set of M items. An item is a dict with one ``DataSample`` in
            ``data_samples``, as ``PackInputs`` makes it. Left as it is.

    Raises:
        TypeError: If the data set has no length or no indices; when an item is read, if it has no
            ``DataSample``.

    Examples:
        >>> from mmengine.dataset import RepeatDataset
        >>> from kd_mm.datasets import Digits
        >>> digits = Digits(pipeline=[{'type': 'mmpretrain.PackInputs'}])
        >>> dataset = NumberedDataset(RepeatDataset(digits, 2))
        >>> len(dataset), dataset[1198 + 7]['data_samples'].image_number
        (2396, 7)
    """

    def __init__(self, dataset: Sized) -> None:
        from .labels import image_numbers  # which in turn looks through a NumberedDataset

        if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
            raise TypeError(
                'images can be numbered only in a data set with a length and indices, but got '
                f'{type(dataset).__name__}; use a data set with __len__ and __getitem__'
            )
        vars(self).update(inner=dataset, _numbers=image_numbers(dataset))

    @property
    def num_images(self) -> int:
        """The number n of different images."""
        return int(self._numbers.max(initial=-1)) + 1

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, idx: int) -> dict:
        item = self.inner[idx]
        _set_numbers([_sample(item)], [self._numbers[idx]])
        return item

    def _read_batch(self, read: Callable, indices: Sequence[int]) -> Mapping | list:
        """Return a batch that the data set inside reads at once."""
        batch = read(indices)
        if isinstance(batch, Mapping):  # kd_mm.InMemory
            samples = batch['data_samples']
        else:  # torch's Subset
            samples = [_sample(item) for item in batch]
        # Iterating over a SeededBatch would seed the generators.
        _set_numbers(samples, self._numbers[list(indices[:])])
        return batch

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the data set inside."""
        if name == '__getitems__':  # torch reads item by item where this is missing
            read = self.inner.__getitems__
            return read and partial(self._read_batch, read)  # None also means item by item
        if name.startswith('__'):  # copying and pickling ask for them, of this object
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the data set inside: hooks replace its pipeline."""
        setattr(self.inner, name, value)


def number_images(loader: DataLoader) -> int:
    """Let a data loader's samples carry the number of their image, from its next iteration on.

    Args:
        loader: The data loader, whose ``dataset`` becomes a :class:`NumberedDataset`. A second
            call changes nothing.

    Returns:
        int: The number n of different images in its data set.

    Raises:
        TypeError: As :class:`NumberedDataset`.

    Examples:
        >>> from mmengine.dataset import pseudo_collate
        >>> from kd_mm.datasets import Digits
        >>> digits = Digits(pipeline=[{'type': 'mmpretrain.PackInputs'}])
        >>> loader = DataLoader(digits, batch_size=3, collate_fn=pseudo_collate)
        >>> number_images(loader)
        1198
        >>> [sample.image_number for sample in next(iter(loader))['data_samples']]
        [0, 1, 2]
    """
    if not isinstance(loader.dataset, NumberedDataset):
        # A loader refuses a new data set, which would come too late once it is read.
        vars(loader)['dataset'] = NumberedDataset(loader.dataset)
    return loader.dataset.num_images


def _sample(item: object) -> BaseDataElement:
    """Return the DataSample of an item."""
    sample = item.get('data_samples') if isinstance(item, Mapping) else item
    if not isinstance(sample, BaseDataElement):
        raise TypeError(
            "the number of an image needs a DataSample in its item's 'data_samples', but got "
            f'{type(sample).__name__}; end the pipeline in PackInputs'
        )
    return sample


def _set_numbers(samples: Sequence[BaseDataElement], numbers: Sequence[int]) -> None:
    """Write the number of its image into each sample."""
    for sample, number in zip(samples, numbers, strict=True):
        sample.set_field(int(number), 'image_number', field_type='metainfo')
