"""Small images that are read once and then handed out a batch at a time."""

import copy
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import torch
from mmengine.dataset import default_collate, force_full_init
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmpretrain.structures import DataSample
from torch import Tensor

from kd_mm.plain import Replaceable
from kd_mm.registry import DATASETS, FUNCTIONS

__all__ = ['InMemory', 'batch_collate']

_PROBES = 64  # images read twice, to tell whether the pipeline leaves something to chance


@FUNCTIONS.register_module()
def batch_collate(data: Mapping | Sequence) -> Mapping:
    """Collate a batch, or hand it on as it is where ``kd_mm.InMemory`` gave a whole one.

    Args:
        data: A batch, or its samples, for MMEngine's ``default_collate``.

    Returns:
        Mapping: A batch.

    Examples:
        >>> import torch
        >>> batch_collate([{'inputs': torch.zeros(3, 2, 2)}] * 4)['inputs'].shape
        torch.Size([4, 3, 2, 2])
        >>> batch_collate({'inputs': torch.zeros(4, 3, 2, 2)})['inputs'].shape
        torch.Size([4, 3, 2, 2])
    """
    return data if isinstance(data, Mapping) else default_collate(data)


@DATASETS.register_module()
class InMemory(Replaceable):
    """A classification data set whose images lie in one tensor, and whose batches are slices.

    The pipeline of the data set runs once for each image, at the start: it ends in ``PackInputs``
    and leaves nothing to chance. What is random is then drawn for whole batches, on the device of
    the model: ``augments`` of ``kd_mm.CohortDataPreprocessor``. The loader needs
    ``collate_fn=dict(type='kd_mm.batch_collate')`` and no worker processes.

    It is the outermost wrapper: a ``kd_mm.HoldOut`` or ``RepeatDataset`` goes inside.

    Args:
        dataset (Sized | dict): The data set, or its config. Left as it is. N images of equal size
            take N C H W bytes beside what it holds itself (CIFAR-100: 154 MB).
        lazy_init (bool): Read the images at the first access instead of now. Defaults to False.

    Raises:
        ValueError: If the data set is empty, a sample is not one uint8 image (C, H, W) with one
            label, images differ in size, or a second look at an image shows another one.

    Examples:
        >>> pipeline = [{'type': 'mmpretrain.PackInputs'}]
        >>> digits = InMemory({'type': 'kd_mm.Digits', 'pipeline': pipeline})
        >>> batch = digits.__getitems__([0, 5, 5])
        >>> batch['inputs'].shape, [sample.gt_label.item() for sample in batch['data_samples']]
        (torch.Size([3, 3, 8, 8]), [0, 7, 7])
    """

    def __init__(self, dataset: Sized | Mapping, lazy_init: bool = False) -> None:
        self.dataset = ROOT_DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    @classmethod
    def plain(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data set itself; see the base class."""
        return dict(cfg['dataset'])

    @property
    def metainfo(self) -> dict:
        """A copy of the data set's meta information."""
        return copy.deepcopy(self.dataset.metainfo)

    def full_init(self) -> None:
        """Read all images; a second call does nothing."""
        if self._fully_initialized:
            return
        name, size = type(self.dataset).__name__, len(self.dataset)
        if size == 0:
            raise ValueError(
                f'kd_mm.InMemory needs images, but {name} has 0; check its data_root and indices'
            )
        first, _ = self._read(0)
        images = torch.empty((size, *first.shape), dtype=torch.uint8)
        labels = []
        for index in range(size):
            image, label = self._read(index)
            if image.shape != first.shape:
                raise ValueError(
                    'kd_mm.InMemory needs images of one size, but image 0 is '
                    f'{tuple(first.shape)} and image {index} {tuple(image.shape)}; put '
                    "dict(type='Resize', scale=(width, height)) into the pipeline"
                )
            images[index] = image
            labels.append(label)
        for index in range(min(size, _PROBES)):
            if not torch.equal(images[index], self._read(index)[0]):
                raise ValueError(
                    'kd_mm.InMemory keeps what its pipeline gives once, so that must leave '
                    f'nothing to chance, but image {index} of {name} differs when it is read '
                    'again; move random transforms into data_preprocessor.augments'
                )
        self._images, self._labels = images, labels
        self._fully_initialized = True

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return image and label of an item as its pipeline gives them."""
        sample = self.dataset[index]
        image, info = sample['inputs'], sample.get('data_samples')
        if not (isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3):
            found = f'{image.dtype} {tuple(image.shape)}' if isinstance(image, Tensor) else ''
            raise ValueError(
                'kd_mm.InMemory needs a pipeline that ends in PackInputs with one uint8 image '
                f'(C, H, W), but item {index} is {found or type(image).__name__}; leave '
                'MultiView and normalisation out: data_preprocessor.num_views draws views'
            )
        if info is None or set(info.keys()) != {'gt_label'} or info.gt_label.numel() != 1:
            raise ValueError(
                'kd_mm.InMemory needs one class per image and nothing beside it, but item '
                f'{index} has {info and {k: v.tolist() for k, v in info.items()}}; use the data '
                'set without kd_mm.InMemory'
            )
        return image, info.gt_label

    def __len__(self) -> int:
        return len(self.dataset)

    @force_full_init
    def __getitem__(self, idx: int) -> dict:
        return {
            'inputs': self._images[idx].clone(),
            'data_samples': DataSample(gt_label=self._labels[idx]),
        }

    @force_full_init
    def __getitems__(self, indices: Sequence[int]) -> dict:
        """Return a batch, as PyTorch's ``DataLoader`` asks for it.

        Args:
            indices: Places of N items.

        Returns:
            dict: ``inputs``, uint8 (N, C, H, W), and ``data_samples``, a list.
        """
        indices = torch.as_tensor(indices)
        return {
            # Unlike indexing, copies each image in one piece: 20 times as fast on a CPU.
            'inputs': self._images.index_select(0, indices),
            'data_samples': [DataSample(gt_label=self._labels[i]) for i in indices.tolist()],
        }
