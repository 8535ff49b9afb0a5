"""Small images that are read once, then handed out and augmented a batch at a time."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import default_collate, force_full_init
from mmengine.dist import get_rank
from mmengine.logging import MessageHub
from mmpretrain.structures import DataSample
from torch import Tensor

from kd_mm.checks import check_choice, check_int
from kd_mm.registry import DATASETS, FUNCTIONS, MODELS

from .wrapper import DatasetWrapper

_PROBES = 64  # images read twice, to find out whether the pipeline is random


@FUNCTIONS.register_module()
def batch_collate(data: Mapping | Sequence) -> Mapping:
    """Collate a batch, or return it as it is where ``kd_mm.InMemory`` gave a whole one.

    Args:
        data: A batch, or its samples, for MMEngine's ``default_collate``.

    Examples:
        >>> batch_collate([{'inputs': torch.zeros(3, 2, 2)}] * 4)['inputs'].shape
        torch.Size([4, 3, 2, 2])
        >>> batch_collate({'inputs': torch.zeros(4, 3, 2, 2)})['inputs'].shape
        torch.Size([4, 3, 2, 2])
    """
    return data if isinstance(data, Mapping) else default_collate(data)


@DATASETS.register_module()
class InMemory(DatasetWrapper):
    """A classification data set whose images lie in one tensor, and whose batches are slices.

    The pipeline of the data set runs once for each image, at the start: it ends in ``PackInputs``
    and is not random. Random changes are drawn for whole batches, on the device of the model:
    ``augments`` of ``kd_mm.CohortDataPreprocessor``. The loader needs
    ``collate_fn=dict(type='kd_mm.batch_collate')`` and no worker processes.

    It is the outermost wrapper: a ``kd_mm.HoldOut`` or ``RepeatDataset`` goes inside.

    Args:
        dataset (Sized | dict): The data set, or its config. Left as it is. N images of equal size
            take N C H W bytes on top of what it holds itself (CIFAR-100: 154 MB).
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

    def prepare(self) -> None:
        """Read all images."""
        name, size = type(self.dataset).__name__, len(self.dataset)
        if size == 0:
            raise ValueError(
                f'kd_mm.InMemory needs images, but {name} has 0; check its data_root and indices'
            )
        first, _ = self._read(0)
        self._images = torch.empty((size, *first.shape), dtype=torch.uint8)
        self._labels = []
        for index in range(size):
            image, label = self._read(index)
            if image.shape != first.shape:
                raise ValueError(
                    'kd_mm.InMemory needs images of one size, but image 0 is '
                    f'{tuple(first.shape)} and image {index} {tuple(image.shape)}; put '
                    "dict(type='Resize', scale=(width, height)) into the pipeline"
                )
            self._images[index] = image
            self._labels.append(label)
        for index in range(min(size, _PROBES)):
            if not torch.equal(self._images[index], self._read(index)[0]):
                raise ValueError(
                    'kd_mm.InMemory keeps what its pipeline gives once, so that must leave '
                    f'nothing to chance, but image {index} of {name} differs when it is read '
                    'again; move random transforms into data_preprocessor.augments'
                )

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
                'kd_mm.InMemory needs one class per image and nothing more, but item '
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
        """Return the batch of N items that PyTorch's ``DataLoader`` asks for.

        ``inputs`` is uint8 (N, C, H, W), ``data_samples`` a list.
        """
        indices = torch.as_tensor(indices)
        return {
            # Unlike indexing, copies each image in one piece: 20 times as fast on a CPU.
            'inputs': self._images.index_select(0, indices),
            'data_samples': [DataSample(gt_label=self._labels[i]) for i in indices.tolist()],
        }


def run_generator(device: torch.device) -> torch.Generator | None:
    """Return the generator of the present iteration of MMEngine's run.

    Its seed follows from the seed of the run, the number of the iteration and the rank alone,
    which the Runner's message hub holds: a resumed run draws what it would have drawn.

    Args:
        device: Where it draws.

    Returns:
        A new generator; None, which means torch's global one, outside of a run.
    """
    hub = MessageHub.get_current_instance()
    seed, iteration = hub.get_info('seed'), hub.get_info('iter')
    if seed is None or iteration is None:
        return None
    words = np.random.SeedSequence([seed, iteration, get_rank()]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(words[0]) >> 1)


class BatchAugment(ABC):
    """A random change of each image of a batch, drawn on the device of the batch.

    Each image gets its own draw, with the distribution of the transform of mmpretrain's pipelines
    of the same name, without a loop over images and without waiting for the device.
    """

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw for each of the images (N, C, H, W), left as they are, and return new ones.

        The generator lies on their device; None stands for torch's global one.
        """

    @property
    @abstractmethod
    def transforms(self) -> list[dict]:
        """The same for a single image: transforms of mmpretrain's pipelines, as config."""


@MODELS.register_module()
class BatchRandomCrop(BatchAugment):
    """Pad each image on all sides and cut a random square of its former size.

    Each of the ``(2 padding + 1)^2`` places has the same chance.

    Args:
        crop_size (int): Height and width of the images, in pixels.
        padding (int): Pixels on each side, at least 1 and, for ``'reflect'``, below
            ``crop_size``.
        padding_mode (str): ``'constant'`` pads with zeros; ``'reflect'`` mirrors the image
            without repeating its outermost pixels. Defaults to ``'constant'``.

    Raises:
        ValueError: If an argument is out of range or, later, images have another size.

    Examples:
        >>> crop = BatchRandomCrop(crop_size=2, padding=1)
        >>> crop(torch.ones(4, 3, 2, 2), None).shape
        torch.Size([4, 3, 2, 2])
    """

    def __init__(self, crop_size: int, padding: int, padding_mode: str = 'constant') -> None:
        check_choice('padding_mode', padding_mode, ('constant', 'reflect'))
        check_int('crop_size', crop_size)
        check_int('padding', padding)
        if padding_mode == 'reflect' and padding >= crop_size:
            raise ValueError(
                f'padding must be below crop_size={crop_size} to reflect, but got {padding}'
            )
        self.crop_size, self.padding, self.padding_mode = crop_size, padding, padding_mode

    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """See the base class."""
        size = self.crop_size
        if images.shape[2:] != (size, size):
            raise ValueError(
                f'kd_mm.BatchRandomCrop needs images of crop_size={size} pixels in height and '
                f'width, but got {tuple(images.shape[2:])}; resize them in the pipeline or set '
                'crop_size'
            )
        # Each crop's first row and first column in the padded image.
        corners = torch.randint(
            2 * self.padding + 1, (2, len(images)), generator=generator, device=images.device
        )
        places = corners[:, :, None] + torch.arange(size, device=images.device)
        if self.padding_mode == 'reflect':
            source, width, last = images, size, size - 1
            places = last - (last - (places - self.padding).abs()).abs()
        else:
            source, width = F.pad(images, (self.padding,) * 4), size + 2 * self.padding
        rows, columns = places
        pixels = (rows[:, :, None] * width + columns[:, None]).flatten(1)
        pixels = pixels[:, None].expand(-1, images.shape[1], -1)
        return source.flatten(2).gather(2, pixels).view_as(images)

    @property
    def transforms(self) -> list[dict]:
        """See the base class."""
        crop = {'type': 'RandomCrop', 'crop_size': self.crop_size}
        if self.padding_mode == 'constant':
            return [{**crop, 'padding': self.padding}]
        # mmpretrain applies the mode to this kind of padding only.
        padded = self.crop_size + 2 * self.padding
        pad = {'crop_size': padded, 'pad_if_needed': True, 'padding_mode': self.padding_mode}
        return [{**crop, **pad}, crop]


@MODELS.register_module()
class BatchRandomFlip(BatchAugment):
    """Mirror each image from left to right by chance.

    Args:
        prob (float): Chance of each image, in (0, 1].

    Raises:
        ValueError: If ``prob`` is out of range.

    Examples:
        >>> BatchRandomFlip(prob=1.0)(torch.tensor([[[[1, 2, 3]]]]), None)
        tensor([[[[3, 2, 1]]]])
    """

    def __init__(self, prob: float) -> None:
        if not 0 < prob <= 1:
            raise ValueError(
                f'prob must lie in (0, 1], but got {prob}; leave the flip out to change nothing'
            )
        self.prob = prob

    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """See the base class."""
        count, device = len(images), images.device
        chosen = torch.rand(count, generator=generator, device=device) < self.prob
        # Copies whole images: a quarter of the time of torch.where on a CPU.
        both = torch.cat([images, images.flip(3)])
        return both.index_select(0, torch.arange(count, device=device) + count * chosen)

    @property
    def transforms(self) -> list[dict]:
        """See the base class."""
        return [{'type': 'RandomFlip', 'prob': float(self.prob), 'direction': 'horizontal'}]
