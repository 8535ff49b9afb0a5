"""Random augmentation of whole batches, for images that need no decoding.

Each image of a batch gets its own draw, with the distribution of the transform of mmpretrain's
pipelines of the same name, on the device where the batch lies, without a loop over images and
without a word between host and device.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import get_rank
from mmengine.logging import MessageHub
from torch import Tensor

from kd_mm.registry import MODELS

__all__ = ['BatchAugment', 'BatchRandomCrop', 'BatchRandomFlip', 'run_generator']

PADDING_MODES = ('constant', 'reflect')


def run_generator(device: torch.device) -> torch.Generator | None:
    """Return the generator of the present iteration of MMEngine's run.

    It is seeded by the seed of the run, the number of the iteration and the rank, which the
    Runner's message hub tells, and by nothing else: a run that is resumed draws what it would
    have drawn.

    Args:
        device: Where it draws.

    Returns:
        A new generator; None, which stands for torch's global one, where no run is under way.
    """
    hub = MessageHub.get_current_instance()
    seed, iteration = hub.get_info('seed'), hub.get_info('iter')
    if seed is None or iteration is None:
        return None
    words = np.random.SeedSequence([seed, iteration, get_rank()]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(words[0]) >> 1)


class BatchAugment(ABC):
    """A random change of each image of a batch."""

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw for each image and return new ones.

        Args:
            images: (N, C, H, W) of any type. Left as they are.
            generator: On the device of the images; None for torch's global one.

        Returns:
            Tensor: (N, C, H, W) of the same type.
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
        >>> import torch
        >>> crop = BatchRandomCrop(crop_size=2, padding=1)
        >>> crop(torch.ones(4, 3, 2, 2), None).shape
        torch.Size([4, 3, 2, 2])
    """

    def __init__(self, crop_size: int, padding: int, padding_mode: str = 'constant') -> None:
        if padding_mode not in PADDING_MODES:
            raise ValueError(
                f'padding_mode must be one of {", ".join(PADDING_MODES)}, but got {padding_mode!r}'
            )
        if crop_size < 1:
            raise ValueError(f'crop_size must be at least 1 pixel, but got {crop_size}')
        most = crop_size - 1 if padding_mode == 'reflect' else float('inf')
        if not 1 <= padding <= most:
            raise ValueError(
                f'padding must be at least 1{" and below crop_size" * (most == crop_size - 1)}, '
                f'but got {padding} with crop_size={crop_size}; leave the crop out to change '
                'nothing'
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
        places = 2 * self.padding + 1
        offsets = torch.randint(
            places, (2, len(images)), generator=generator, device=images.device
        )
        return self.crop(images, offsets)

    def crop(self, images: Tensor, offsets: Tensor) -> Tensor:
        """Pad the images and cut each at its place.

        Args:
            images: (N, C, H, W).
            offsets: (2, N), each crop's first row and first column in the padded image.

        Returns:
            Tensor: (N, C, H, W).
        """
        size, last = self.crop_size, self.crop_size - 1
        places = offsets[:, :, None] + torch.arange(size, device=images.device)
        if self.padding_mode == 'reflect':
            source, width = images, size
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
        # mmpretrain heeds the mode for this kind of padding only.
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
        >>> import torch
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
        draws = torch.rand(len(images), generator=generator, device=images.device)
        return self.flip(images, draws < self.prob)

    @staticmethod
    def flip(images: Tensor, chosen: Tensor) -> Tensor:
        """Mirror the chosen images.

        Args:
            images: (N, C, H, W).
            chosen: (N,) bool.

        Returns:
            Tensor: (N, C, H, W).
        """
        # Copies whole images: a quarter of the time of torch.where on a CPU.
        both = torch.cat([images, images.flip(3)])
        count = len(images)
        return both.index_select(0, torch.arange(count, device=images.device) + count * chosen)

    @property
    def transforms(self) -> list[dict]:
        """See the base class."""
        return [{'type': 'RandomFlip', 'prob': float(self.prob), 'direction': 'horizontal'}]
