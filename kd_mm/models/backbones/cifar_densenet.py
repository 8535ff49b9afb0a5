"""The densely connected networks of depth 3n + 4 for 32-pixel images."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import nn

from kd_mm.checks import check_int
from kd_mm.registry import MODELS

from ._common import KAIMING, NUM_STAGES, checked_out_indices, conv3x3, layers_per_stage


class BasicDenseLayer(nn.Module):
    """BN, ReLU and a 3x3 convolution, whose channels are put behind those of the input."""

    def __init__(self, in_channels: int, growth_rate: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = conv3x3(in_channels, growth_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, H, W) to (B, in_channels + growth_rate, H, W)."""
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], dim=1)


@MODELS.register_module()
class CIFARDenseNet(BaseModule):
    """DenseNet of depth 3n + 4 for small images, without bottlenecks: DenseNet-40-12.

    A 3x3 convolution, then three dense blocks of n layers, each a 3x3 convolution that adds
    ``growth_rate`` channels; BN, ReLU, a 1x1 convolution that keeps all channels and 2x2 average
    pooling between the blocks; BN and ReLU after the last. Source: Huang et al., "Densely
    Connected Convolutional Networks", arXiv:1608.06993, section 3, "DenseNet" of table 2,
    without dropout.

    Not to be taken for :class:`DenseNet_CIFAR`, which is DenseNet-121 and the like (mmpretrain's,
    with bottlenecks, compression and four blocks) behind a stem for small images.

    Follow it by mmpretrain's ``GlobalAveragePooling`` neck and a head with
    ``in_channels=init_channels + (depth - 4) * growth_rate``: 448 for DenseNet-40-12.

    Args:
        depth (int): Number of convolutions with the classifier, 3n + 4. Defaults to 40.
        growth_rate (int): k >= 1, the channels that each layer adds. Defaults to 12.
        init_channels (int): Channels of the first convolution. Defaults to 16, the paper's. FFSD's
            released code has 24, and with it 456 channels at the end.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Blocks whose feature maps are returned, from 0 to 2. Those
            before the last are neither normalised nor activated. Defaults to ``(2, )``.
        init_cfg (dict | list[dict]): Initialisation. Kaiming normal (fan out) for convolutions
            by default.

    Examples:
        >>> import torch
        >>> model = CIFARDenseNet(depth=40, growth_rate=12, out_indices=(0, 1, 2)).eval()
        >>> [tuple(level.shape) for level in model(torch.rand(1, 3, 32, 32))]
        [(1, 160, 32, 32), (1, 304, 16, 16), (1, 448, 8, 8)]
        >>> sum(p.numel() for p in model.parameters())
        1015232
    """

    def __init__(
        self,
        depth: int = 40,
        growth_rate: int = 12,
        init_channels: int = 16,
        in_channels: int = 3,
        out_indices: Sequence[int] = (2,),
        init_cfg: dict | list[dict] | None = KAIMING,  # BaseModule copies it
    ) -> None:
        super().__init__(init_cfg)
        hint = '; for DenseNet-121, 161, 169, 201 take kd_mm.DenseNet_CIFAR'
        num_layers = layers_per_stage('CIFARDenseNet', depth, 3, 4, '22, 40, 100', hint)
        check_int('growth_rate', growth_rate)
        check_int('init_channels', init_channels)
        self.out_indices = checked_out_indices(out_indices)
        channels = init_channels
        self.stem = conv3x3(in_channels, channels)
        self.stages = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for index in range(NUM_STAGES):
            stage = nn.Sequential()
            for _ in range(num_layers):
                stage.append(BasicDenseLayer(channels, growth_rate))
                channels += growth_rate
            self.stages.append(stage)
            if index < NUM_STAGES - 1:
                self.transitions.append(
                    nn.Sequential(
                        nn.BatchNorm2d(channels),
                        nn.ReLU(inplace=True),
                        nn.Conv2d(channels, channels, 1, bias=False),
                        nn.AvgPool2d(2),
                    )
                )
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps of the blocks in ``out_indices``, at 1, 1/2, 1/4 of the resolution."""
        x = self.stem(x)
        outs = []
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else self.transitions[index - 1](x))
            if index == NUM_STAGES - 1:
                x = self.relu(self.bn(x))
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)
