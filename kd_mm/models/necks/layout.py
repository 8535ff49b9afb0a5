"""The memory layout in which the necks are fastest."""

import torch
from torch import Tensor


def fastest_layout(x: Tensor) -> Tensor:
    """Return a map (B, C, H, W) with its channels last in memory on a CPU, else as it is.

    Transposed and depthwise convolutions and BN take about half the time so.

    Examples:
        >>> fastest_layout(torch.rand(2, 3, 4, 5)).stride()
        (60, 1, 15, 3)
    """
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == 'cpu' else x
