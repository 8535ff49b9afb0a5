"""The residual networks of depth 6n + 2 for 32-pixel images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmpretrain.models.backbones.resnet import BasicBlock
from torch import nn

from kd_mm.checks import check_choice, check_int
from kd_mm.registry import MODELS

from ._common import KAIMING, checked_out_indices, conv3x3, layers_per_stage

WIDTHS = (16, 32, 64)


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
        init_cfg: dict | list[dict] | None = KAIMING,  # BaseModule copies it
    ) -> None:
        super().__init__(init_cfg)
        self.out_indices = checked_out_indices(out_indices)
        check_int('depth', depth)
        hint = '; for ResNet-18, 34, 50 take mmpretrain.ResNet_CIFAR'
        num_blocks = layers_per_stage('CIFARResNet', depth, 6, 2, '20, 32, 44, 56, 110', hint)
        check_choice('shortcut', shortcut, ('A', 'B'))

        self.conv1 = conv3x3(in_channels, WIDTHS[0])
        self.bn1 = build_norm_layer(norm_cfg, WIDTHS[0])[1]
        self.relu = nn.ReLU(inplace=True)
        channels = WIDTHS[0]
        for stage, width in enumerate(WIDTHS, start=1):
            options = {'norm_cfg': norm_cfg}
            if width != channels:
                options['stride'] = 2
                options['downsample'] = _shortcut(shortcut, channels, width, norm_cfg)
            blocks = [BasicBlock(channels, width, **options)]
            blocks += [BasicBlock(width, width, norm_cfg=norm_cfg) for _ in range(1, num_blocks)]
            self.add_module(f'layer{stage}', nn.Sequential(*blocks))
            channels = width

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps of the stages in ``out_indices``, at 1, 1/2, 1/4 of the resolution."""
        x = self.relu(self.bn1(self.conv1(x)))
        outs = []
        for index, stage in enumerate((self.layer1, self.layer2, self.layer3)):
            x = stage(x)
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)


class ZeroPadShortcut(nn.Module):
    """Option A: every second pixel, then channels of zeros up to the new width."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C + new_channels, H / 2, W / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))


def _shortcut(option: str, channels: int, width: int, norm_cfg: dict) -> nn.Module:
    """Return what takes the input of a block past it, where the shape changes."""
    if option == 'A':
        return ZeroPadShortcut(width - channels)
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, stride=2, bias=False),
        build_norm_layer(norm_cfg, width)[1],
    )
