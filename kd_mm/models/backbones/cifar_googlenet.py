"""GoogLeNet for 32-pixel images."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import nn

from kd_mm.registry import MODELS

from ._common import KAIMING, checked_out_indices

STEM_CHANNELS = 192
# Channels of the modules of each stage: 1x1 | 1x1, 3x3 | 1x1, two of 3x3 | after the pooling.
MODULES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class InceptionBN(nn.Module):
    """Four branches, concatenated; each convolution is followed by BN and ReLU.

    A 1x1 convolution; a 1x1 and a 3x3; a 1x1 and two 3x3, which see 5x5 pixels; 3x3 max-pooling
    and a 1x1.
    """

    def __init__(
        self,
        in_channels: int,
        width_1x1: int,
        reduced_3x3: int,
        width_3x3: int,
        reduced_5x5: int,
        width_5x5: int,
        width_pool: int,
    ) -> None:
        super().__init__()
        self.branch1x1 = _conv(in_channels, width_1x1, 1)
        self.branch3x3 = nn.Sequential(
            _conv(in_channels, reduced_3x3, 1), _conv(reduced_3x3, width_3x3, 3)
        )
        self.branch5x5 = nn.Sequential(
            _conv(in_channels, reduced_5x5, 1),
            _conv(reduced_5x5, width_5x5, 3),
            _conv(width_5x5, width_5x5, 3),
        )
        self.branch_pool = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), _conv(in_channels, width_pool, 1)
        )
        self.out_channels = width_1x1 + width_3x3 + width_5x5 + width_pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        branches = (self.branch1x1, self.branch3x3, self.branch5x5, self.branch_pool)
        return torch.cat([branch(x) for branch in branches], dim=1)


@MODELS.register_module()
class CIFARGoogLeNet(BaseModule):
    """GoogLeNet with batch normalisation for small images.

    A 3x3 convolution to 192 channels, then three stages of 2, 5 and 2 inception modules, which
    end in 480, 832 and 1024 channels; 3x3 max-pooling with stride 2 parts them. Widths are those
    of Szegedy et al., "Going Deeper with Convolutions", arXiv:1409.4842, table 1, from
    "inception (3a)" on. As in the networks for CIFAR that distillation studies share
    (github.com/kuangliu/pytorch-cifar, and FFSD's released code, which took it over), the stem
    keeps the resolution, two 3x3 convolutions stand for a 5x5 one, and there are no auxiliary
    classifiers. Convolutions have no biases: BN would cancel them. mmpretrain has no GoogLeNet
    (its InceptionV3 is another network).

    Follow it by mmpretrain's ``GlobalAveragePooling`` neck and a head with ``in_channels=1024``.

    Args:
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages whose feature maps are returned, from 0 to 2.
            Defaults to ``(2, )``.
        init_cfg (dict | list[dict]): Initialisation. Kaiming normal (fan out) for convolutions
            by default.

    Examples:
        >>> import torch
        >>> model = CIFARGoogLeNet(out_indices=(0, 1, 2)).eval()
        >>> [tuple(level.shape) for level in model(torch.rand(1, 3, 32, 32))]
        [(1, 480, 32, 32), (1, 832, 16, 16), (1, 1024, 8, 8)]
        >>> sum(p.numel() for p in model.parameters())
        6148096
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_indices: Sequence[int] = (2,),
        init_cfg: dict | list[dict] | None = KAIMING,  # BaseModule copies it
    ) -> None:
        super().__init__(init_cfg)
        self.out_indices = checked_out_indices(out_indices)
        self.stem = _conv(in_channels, STEM_CHANNELS, 3)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        channels = STEM_CHANNELS
        for widths in MODULES:
            stage = nn.Sequential()
            for module_widths in widths:
                stage.append(InceptionBN(channels, *module_widths))
                channels = stage[-1].out_channels
            self.stages.append(stage)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps of the stages in ``out_indices``, at 1, 1/2, 1/4 of the resolution."""
        x = self.stem(x)
        outs = []
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else self.pool(x))
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)


def _conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Return a convolution that keeps the resolution, BN and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
