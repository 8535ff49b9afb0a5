"""FFSD's necks: they learn with the students, and stay behind when a student is deployed."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from mmcv.cnn import DepthwiseSeparableConvModule, build_norm_layer
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_mm.methods.maps import fastest_layout
from kd_mm.registry import MODELS

BN = {'type': 'BN'}  # read only


def _separable(in_channels: int, out_channels: int, norm_cfg: dict) -> nn.Module:
    """Depthwise 3x3 and pointwise convolution, each with normalisation and ReLU."""
    return DepthwiseSeparableConvModule(
        in_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg={'type': 'ReLU'}
    )


@MODELS.register_module()
class FeatureFusionNeck(BaseModule):
    """Fuse the deepest maps of several students into one map with a classifier of its own.

    Depthwise 3x3 convolution of the concatenated maps, pointwise convolution to the leader's
    width, each with BN and ReLU; then mean over places and a linear classifier. Source: FFSD
    (arXiv:2103.14473), the fusion module. Convolutions start Kaiming normal, fan out, as in the
    released code.

    Args:
        in_channels (Sequence[int]): Widths of the students' deepest maps.
        out_channels (int): Width of the fused map.
        num_classes (int): Number of classes.
        norm_cfg (dict): Normalisation layers. Defaults to ``dict(type='BN')``.

    Examples:
        >>> import torch
        >>> neck = FeatureFusionNeck(in_channels=(4, 4), out_channels=4, num_classes=3)
        >>> fused, logits = neck([torch.rand(2, 4, 8, 8), torch.rand(2, 4, 8, 8)])
        >>> fused.shape, logits.shape
        (torch.Size([2, 4, 8, 8]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_classes: int,
        norm_cfg: dict = BN,
    ) -> None:
        super().__init__()
        self.fuse = _separable(sum(in_channels), out_channels, norm_cfg)
        self.fc = nn.Linear(out_channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the fused map (B, out_channels, H, W), and logits (B, num_classes).

        Args:
            maps: The students' deepest maps, each (B, C_i, H, W). Not detached here.
        """
        fused = self.fuse(torch.cat([fastest_layout(level) for level in maps], dim=1))
        # Channels last by name, too, so that the gradient is laid out as the map.
        return fused, self.fc(fused.permute(0, 2, 3, 1).mean(dim=(1, 2)))


@MODELS.register_module()
class FusionDecoder(BaseModule):
    """Widen the leader's deepest map to that of all students, for the transfer of their attention.

    Depthwise 3x3 and pointwise convolution, each with BN and ReLU. Source: FFSD
    (arXiv:2103.14473), the decoder; it learns with the leader and is left behind when the leader
    is deployed.

    Args:
        in_channels (int): Width of the leader's deepest map.
        out_channels (int): Sum of the widths of the students' deepest maps.
        norm_cfg (dict): Normalisation layers. Defaults to ``dict(type='BN')``.

    Examples:
        >>> import torch
        >>> FusionDecoder(4, 8)(torch.rand(2, 4, 8, 8)).shape
        torch.Size([2, 8, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: dict = BN) -> None:
        super().__init__()
        self.widen = _separable(in_channels, out_channels, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        return self.widen(fastest_layout(x))


@MODELS.register_module()
class SelfDistillationNeck(BaseModule):
    """Rebuild the maps of the shallower stages from the deepest one.

    One 3x3 transposed convolution with stride 2, BN and ReLU per stage, deep to shallow. Source:
    FFSD (arXiv:2103.14473), the self-distillation module.

    Args:
        channels (Sequence[int]): Widths of the stages, shallow to deep, at least two.
        norm_cfg (dict): Normalisation layers. Defaults to ``dict(type='BN')``.

    Examples:
        >>> import torch
        >>> neck = SelfDistillationNeck(channels=(4, 8, 16))
        >>> [tuple(level.shape) for level in neck(torch.rand(2, 16, 4, 4))]
        [(2, 4, 16, 16), (2, 8, 8, 8)]
    """

    def __init__(self, channels: Sequence[int], norm_cfg: dict = BN) -> None:
        super().__init__()
        upwards = {'stride': 2, 'padding': 1, 'output_padding': 1, 'bias': False}
        self.blocks = Sequential(
            *(
                Sequential(
                    nn.ConvTranspose2d(deep, shallow, 3, **upwards),
                    build_norm_layer(norm_cfg, shallow)[1],
                    nn.ReLU(inplace=True),
                )
                for deep, shallow in pairwise(reversed(channels))
            )
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Rebuild the maps of all stages but the deepest, shallow to deep.

        From (B, channels[-1], H, W) to (B, channels[i], 2^k H, 2^k W), k stages above the deepest.
        """
        x = fastest_layout(x)
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return tuple(reversed(maps))

    @torch.no_grad()
    def predict(self, x: Tensor) -> tuple[Tensor, ...]:
        """Rebuild the shallower maps as in evaluation mode, whichever mode is on.

        As :meth:`forward`, without gradient. The statistics of BN are folded into the
        convolutions, which saves a pass over each map.
        """
        x = fastest_layout(x)
        maps = []
        for conv, norm, activation in self.blocks:
            if isinstance(norm, _BatchNorm) and norm.track_running_stats:
                gain, offset = (norm.weight, norm.bias) if norm.affine else (1, 0)
                scale = gain * (norm.running_var + norm.eps).rsqrt()
                weight = conv.weight * scale[:, None, None]
                bias = offset - norm.running_mean * scale
                geometry = conv.stride, conv.padding, conv.output_padding
                x = F.conv_transpose2d(x, weight, bias, *geometry)
            else:
                x = norm(conv(x))
            x = activation(x)
            maps.append(x)
        return tuple(reversed(maps))
