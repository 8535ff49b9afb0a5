"""The residual networks of depth 6n + 2 for 32-pixel images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmpretrain.models.backbones.resnet import BasicBlock
from torch import nn

from kd_mm.registry import MODELS

WIDTHS = (16, 32, 64)
STRIDES = (1, 2, 2)


@MODELS.register_module()
class CIFARResNet(BaseModule):
    """ResNet of depth 6n + 2 for small images: ResNet-20, 32, 44, 56, 110.

    A 3x3 convolution to 16 channels with BN and ReLU, then three stages of n basic blocks
    (post-activation) with 16, 32 and 64 channels; the second and the third stage halve the
    resolution. Source: He et al., "Deep Residual Learning for Image Recognition",
    arXiv:1512.03385, section 4.2. It is another family than mmpretrain's ``ResNet_CIFAR``
    (ResNet-18 to 152 with a small stem, 64 to 512 channels).

    Layers carry the names that mmpretrain's ResNet gives them. Follow it by mmpretrain's
    ``GlobalAveragePooling`` neck and a head with ``in_channels=64``.

    Args:
        depth (int): Number of weighted layers with the classifier, 6n + 2. Defaults to 20.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages whose feature maps are returned, from 0 to 2.
            Defaults to ``(2, )``.
        shortcut (str): What the two shortcuts do whose block changes the shape. ``'A'``, the
            paper's choice: take every second pixel and fill the new channels with zeros, no
            parameters. ``'B'``, that of FFSD's released code and of many distillation
            studies: a 1x1 convolution with stride 2 and BN, 2,752 parameters more at any
            depth. Defaults to ``'A'``.
        norm_cfg (dict): Normalisation layers. Defaults to ``dict(type='BN')``.
        init_cfg (dict | list[dict]): Initialisation. By default mmpretrain's for its ResNet:
            Kaiming normal (fan out) for convolutions, scale 1 for normalisation layers. The
            last scale of a block starts at 1, too, not at 0.

    Raises:
        TypeError: If ``depth`` is no int or ``out_indices`` no sequence.
        ValueError: If ``depth`` is not 6n + 2, a stage does not exist or ``shortcut`` is
            neither ``'A'`` nor ``'B'``.

    Examples:
        >>> import torch
        >>> model = CIFARResNet(depth=20, out_indices=(0, 1, 2)).eval()
        >>> [tuple(level.shape) for level in model(torch.rand(1, 3, 32, 32))]
        [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8)]
        >>> sum(p.numel() for p in model.parameters())
        269072
    """

    def __init__(
        self,
        depth: int = 20,
        in_channels: int = 3,
        out_indices: Sequence[int] = (2,),
        shortcut: str = 'A',
        norm_cfg: dict = {'type': 'BN'},  # noqa: B006, read only
        init_cfg: dict | list[dict] | None = [  # noqa: B006, BaseModule copies it
            {'type': 'Kaiming', 'layer': 'Conv2d'},
            {'type': 'Constant', 'val': 1, 'layer': ['_BatchNorm', 'GroupNorm']},
        ],
    ):
        super().__init__(init_cfg)
        self.out_indices = checked_out_indices(out_indices)
        num_blocks = _blocks_per_stage(depth)
        if shortcut not in ('A', 'B'):
            raise ValueError(f"shortcut must be 'A' or 'B', got {shortcut!r}.")

        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = build_norm_layer(norm_cfg, WIDTHS[0])[1]
        self.relu = nn.ReLU(inplace=True)
        channels = WIDTHS[0]
        for stage, (width, stride) in enumerate(zip(WIDTHS, STRIDES, strict=True), start=1):
            blocks = []
            for index in range(num_blocks):
                downsample = None
                if index == 0 and stride != 1:
                    downsample = _shortcut(shortcut, channels, width, stride, norm_cfg)
                blocks.append(
                    BasicBlock(
                        channels,
                        width,
                        stride=stride if index == 0 else 1,
                        downsample=downsample,
                        norm_cfg=norm_cfg,
                    )
                )
                channels = width
            self.add_module(f'layer{stage}', nn.Sequential(*blocks))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the feature maps of the stages in ``out_indices``.

        Args:
            x (torch.Tensor): Images of shape ``(B, in_channels, H, W)``.

        Returns:
            tuple[torch.Tensor, ...]: Maps of 16, 32, 64 channels at 1, 1/2, 1/4 of the
            resolution, shallow to deep.
        """
        x = self.relu(self.bn1(self.conv1(x)))
        outs = []
        for index, stage in enumerate((self.layer1, self.layer2, self.layer3)):
            x = stage(x)
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)


class ZeroPadShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, then channels of zeros up to the new width."""

    def __init__(self, new_channels: int, stride: int):
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C + new_channels, H / stride, W / stride)``."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


def _shortcut(option: str, channels: int, width: int, stride: int, norm_cfg: dict) -> nn.Module:
    if option == 'A':
        return ZeroPadShortcut(width - channels, stride)
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, stride=stride, bias=False),
        build_norm_layer(norm_cfg, width)[1],
    )


def _blocks_per_stage(depth: int) -> int:
    if not isinstance(depth, int):
        raise TypeError(f'depth must be an int, got {depth!r}.')
    num_blocks, rest = divmod(depth - 2, 6)
    if rest or num_blocks < 1:
        lower = 6 * num_blocks + 2
        near = '8' if lower < 8 else f'{lower} or {lower + 6}'
        raise ValueError(
            f'CIFARResNet has 6n + 2 layers with n >= 1 (20, 32, 44, 56, 110, ...), '
            f'got depth={depth}. Try {near}; for ResNet-18, 34, 50 take mmpretrain.ResNet_CIFAR.'
        )
    return num_blocks


def checked_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    """Return the stages as a tuple, or say what is wrong with them.

    Args:
        out_indices: Some of the stages 0, 1, 2.

    Raises:
        TypeError: If it is no sequence.
        ValueError: If it is empty or a stage does not exist.
    """
    if not isinstance(out_indices, Sequence):
        raise TypeError(
            f'out_indices must be a sequence of stages such as (2, ), got {out_indices!r}.'
        )
    if not out_indices or any(index not in range(len(WIDTHS)) for index in out_indices):
        raise ValueError(
            f'out_indices must name some of the stages 0, 1, 2, got {tuple(out_indices)}.'
        )
    return tuple(out_indices)
