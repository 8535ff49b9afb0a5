"""What a method remembers of each training image."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import all_gather, get_world_size
from torch import Tensor, nn

from .gather import Capacity


class SampleMemory(nn.Module):
    """A row of D values for each training image, such as its last predictions.

    Rows are found by image number (:func:`kd_mm.datasets.image_numbers`). They lie on the
    module's device, are the same on all ranks, and are saved in the checkpoint: a resumed run
    has them again. n images take n D values and n bytes (fp16, ImageNet, D = 1000: 2.6 GB).
    ``kd_mm.DistillerHook`` calls :meth:`resize` before the first :meth:`read` and :meth:`write`.

    Args:
        num_values (int): D, the values of an image.
        dtype (torch.dtype): Type that the values are stored in. float16 holds up to 65,504 and,
            for probabilities, rounds below 6e-8 to 0. Defaults to ``torch.float16``.

    Attributes:
        values (Tensor): (n, D), zeros where nothing was written; (0, D) before :meth:`resize`.
        filled (Tensor): (n,) bool, whether the image's row was written.

    Examples:
        >>> memory = SampleMemory(num_values=2)
        >>> memory.resize(num_images=3)
        >>> memory.write(torch.tensor([2, 0, 2]), torch.tensor([[1., 2.], [3., 4.], [5., 6.]]))
        >>> values, filled = memory.read(torch.tensor([0, 1, 2]))
        >>> values.tolist(), filled.tolist()
        ([[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]], [True, False, True])
    """

    def __init__(self, num_values: int, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.num_values = num_values
        self.register_buffer('values', torch.zeros(0, num_values, dtype=dtype))
        self.register_buffer('filled', torch.zeros(0, dtype=torch.bool))
        self._capacity = Capacity()

    def __deepcopy__(self, memo: dict) -> 'SampleMemory':
        """Share the rows with copies of the model, such as the average of an ``EMAHook``."""
        return self

    def resize(self, num_images: int) -> None:
        """Make a row for each of n different images; rows that a checkpoint has filled are kept.

        Raises:
            ValueError: If there are rows already, but not n.
        """
        if num_images == len(self.filled):
            return
        if len(self.filled):
            raise ValueError(
                'a SampleMemory belongs to one data set, but it holds '
                f'{len(self.filled)} images and is given {num_images}; train on the data set '
                'of the checkpoint, or load a checkpoint without this memory'
            )
        self.values = self.values.new_zeros(num_images, self.num_values)
        self.filled = self.filled.new_zeros(num_images)

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of the rows of some images, without gradient.

        Args:
            index: Image numbers (N,), int64.

        Returns:
            tuple: ``values``, (N, D) in float32, zeros for images that were never written, and
            ``filled``, (N,) bool, whether they were.

        Raises:
            ValueError: If :meth:`resize` was not called, or an index on the CPU is out of range
                (on a GPU, a check would wait for it).
        """
        index = self._checked(index)
        return self.values[index].float(), self.filled[index]

    @torch.no_grad()
    def write(self, index: Tensor, values: Tensor) -> None:
        """Replace the rows of the batch's images, on all ranks alike: one collective.

        All ranks write in the same steps, batches of different sizes too; see
        :class:`~kd_mm.methods.gather.Capacity`. Where the batches of all ranks, one after another,
        have an image several times, its first occurrence counts: on each device, in each run. It
        takes O(M^2) bytes for M images of all ranks.

        Args:
            index: Image numbers (N,), int64, N >= 1.
            values: Their values (N, D). Detached.

        Raises:
            ValueError: As :meth:`read`, or if the shapes or the capacity do not fit.
        """
        index = self._checked(index)
        if not len(index) or values.shape != (len(index), self.num_values):
            raise ValueError(
                f'values must be (N, {self.num_values}) for N >= 1 image numbers, but got '
                f'{tuple(values.shape)} for {len(index)}; write one row for each image'
            )
        values = values.to(self.values)
        if get_world_size() > 1:
            index, values = self._gather(index, values)
        # All occurrences write the same row: which of them is last does not matter.
        first = (index[:, None] == index).byte().argmax(dim=1)
        self.values.index_copy_(0, index, values[first])
        self.filled.index_fill_(0, index, True)

    def _checked(self, index: Tensor) -> Tensor:
        """Return image numbers on the device of the rows."""
        num_images = len(self.filled)
        if not num_images:
            raise ValueError(
                'a SampleMemory must know the number of training images, but it has no rows; '
                'call resize(num_images) before the first read or write'
            )
        if index.device.type == 'cpu' and len(index):
            low, high = (bound.item() for bound in index.aminmax())
            if low < 0 or high >= num_images:
                raise ValueError(
                    f'image numbers must lie in 0..{num_images - 1}, but got '
                    f'{low if low < 0 else high}; resize() takes what number_images returns'
                )
        return index.to(self.filled.device, torch.int64)

    def _gather(self, index: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the batches of all ranks, in their order, with repeated images as padding."""
        capacity = self._capacity(index)
        # As bytes, both fit into one collective, exactly.
        parts = [index[:, None].view(torch.uint8), values.contiguous().view(torch.uint8)]
        # A rank's last image once more is no new occurrence of it.
        rows = torch.arange(capacity, device=index.device).clamp(max=len(index) - 1)
        blocks = torch.cat(all_gather(torch.cat(parts, dim=1)[rows]))
        index, values = blocks.split([part.shape[1] for part in parts], dim=1)
        index = index.contiguous().view(torch.int64).squeeze(1)
        return index, values.contiguous().view(self.values.dtype)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any
    ) -> None:
        """Make the rows that a checkpoint has, and load them."""
        loaded = state_dict.get(f'{prefix}values')
        if loaded is not None:
            # MMEngine only warns of a wrong shape, and would load `filled` without the values.
            if loaded.shape[1:] != self.values.shape[1:]:
                raise ValueError(
                    f'a SampleMemory of {self.num_values} values for each image must load as '
                    f'many, but the checkpoint has {tuple(loaded.shape[1:])}; load a checkpoint '
                    'without this memory'
                )
            self.resize(len(loaded))
        super()._load_from_state_dict(state_dict, prefix, *args)
