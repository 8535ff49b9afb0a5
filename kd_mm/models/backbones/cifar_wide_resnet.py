"""The wide residual networks for 32-pixel images."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import nn

from kd_mm.checks import check_int
from kd_mm.registry import MODELS

from ._common import KAIMING, checked_out_indices, conv3x3, layers_per_stage


class PreActivationBlock(nn.Module):
    """BN, ReLU, 3x3 convolution, twice, around a shortcut.

    Where the shape changes, a 1x1 convolution of the activated input is the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        activated = self.relu(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.shortcut is None else self.shortcut(activated))


@MODELS.register_module()
class CIFARWideResNet(BaseModule):
    """Wide ResNet of depth 6n + 4 for small images: WRN-16-1, 16-2, 28-10, 40-2.

    A 3x3 convolution to 16 channels, then three stages of n pre-activation blocks with 16k, 32k
    and 64k channels; the second and the third stage halve the resolution; BN and ReLU close the
    last. Source: Zagoruyko and Komodakis, "Wide Residual Networks", arXiv:1605.07146, table 1,
    without dropout. mmpretrain's wide ResNets are the ImageNet ones.

    Follow it by mmpretrain's ``GlobalAveragePooling`` neck and a head with
    ``in_channels=64 * widen_factor``.

    Args:
        depth (int): Number of convolutions with the classifier, 6n + 4. Defaults to 16.
        widen_factor (int): k >= 1. Defaults to 2.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages whose maps are returned, from 0 to 2. Those before
            the last are not activated. Defaults to ``(2, )``.
        init_cfg (dict | list[dict]): Initialisation. Kaiming normal (fan out) for convolutions
            by default.

    Examples:
        >>> import torch
        >>> model = CIFARWideResNet(depth=16, widen_factor=2, out_indices=(0, 1, 2)).eval()
        >>> [tuple(level.shape) for level in model(torch.rand(1, 3, 32, 32))]
        [(1, 32, 32, 32), (1, 64, 16, 16), (1, 128, 8, 8)]
        >>> sum(p.numel() for p in model.parameters())
        690384
    """

    def __init__(
        self,
        depth: int = 16,
        widen_factor: int = 2,
        in_channels: int = 3,
        out_indices: Sequence[int] = (2,),
        init_cfg: dict | list[dict] | None = KAIMING,  # BaseModule copies it
    ) -> None:
        super().__init__(init_cfg)
        num_blocks = layers_per_stage('CIFARWideResNet', depth, 6, 4, '16, 22, 28, 40')
        check_int('widen_factor', widen_factor)
        self.out_indices = checked_out_indices(out_indices)
        channels = 16
        self.conv1 = conv3x3(in_channels, channels)
        self.stages = nn.ModuleList()
        for stride, base in ((1, 16), (2, 32), (2, 64)):
            width = base * widen_factor
            blocks = [PreActivationBlock(channels, width, stride)]
            blocks += [PreActivationBlock(width, width, 1) for _ in range(num_blocks - 1)]
            self.stages.append(nn.Sequential(*blocks))
            channels = width
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps of the stages in ``out_indices``, at 1, 1/2, 1/4 of the resolution."""
        x = self.conv1(x)
        outs = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index == len(self.stages) - 1:
                x = self.relu(self.bn(x))
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)
