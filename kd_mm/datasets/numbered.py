"""Samples that carry the number of their image."""

from collections.abc import Mapping, Sequence, Sized

import numpy as np
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader, IterableDataset

from .labels import image_numbers
from .wrapper import DatasetWrapper

__all__ = ['NumberedDataset', 'number_images']


class NumberedDataset(DatasetWrapper):
    """A data set whose samples carry the number of their image.

    Each item is that of the data set inside; its ``DataSample`` has the meta information
    ``image_number``, an int in 0..n-1 as :func:`kd_mm.datasets.image_numbers` gives it. A data
    set that reads another image in place of a broken one (MMEngine's ``max_refetch``) gives that
    image the number of the broken one.

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

    def prepare(self) -> None:
        """Number the images."""
        if isinstance(self.dataset, IterableDataset) or not isinstance(self.dataset, Sized):
            raise TypeError(
                'images can be numbered only in a data set with a length and indices, but got '
                f'{type(self.dataset).__name__}; use a data set with __len__ and __getitem__'
            )
        self._numbers = image_numbers(self.dataset)
        self.num_images = int(self._numbers.max(initial=-1)) + 1

    def __getitem__(self, idx: int) -> dict:
        item = self.dataset[idx]
        _set_numbers([item], self._numbers[[idx]])
        return item

    def __getitems__(self, indices: Sequence[int]) -> Mapping | list:
        """Return the items, or the batch where ``kd_mm.InMemory`` reads one at once."""
        read = getattr(self.dataset, '__getitems__', None)  # None also says item by item
        batch = read(indices) if read else [self.dataset[idx] for idx in indices]
        items = batch['data_samples'] if isinstance(batch, Mapping) else batch
        # A second iteration over a SeededBatch would seed the generators; a copy of it does not.
        _set_numbers(items, self._numbers[list(indices[:])])
        return batch


def number_images(loader: DataLoader) -> int:
    """Let a data loader's samples carry the number of their image, from its next iteration on.

    Args:
        loader: The data loader, whose ``dataset`` becomes a :class:`NumberedDataset`, with the
            same errors. A second call changes nothing.

    Returns:
        The number n of different images in its data set.

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


def _set_numbers(items: Sequence[object], numbers: np.ndarray) -> None:
    """Write the number of its image into the DataSample of each item."""
    for item, number in zip(items, numbers.tolist(), strict=True):
        sample = item.get('data_samples') if isinstance(item, Mapping) else item
        if not isinstance(sample, BaseDataElement):
            raise TypeError(
                "the number of an image needs a DataSample in its item's 'data_samples', but got "
                f'{type(sample).__name__}; end the pipeline in PackInputs'
            )
        sample.set_field(number, 'image_number', field_type='metainfo')
