"""FFSD's neck that tells a shallow stage what a deep map implies for it."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_mm.methods.layout import fastest_layout
from kd_mm.registry import MODELS


@MODELS.register_module()
class SelfDistillationNeck(BaseModule):
    """Rebuild the maps of the shallower stages from the deepest one.

    One 3x3 transposed convolution with stride 2, BN and ReLU per stage, deep to shallow. Source:
    FFSD (arXiv:2103.14473), the self-distillation module.

    Args:
        channels (Sequence[int]): Widths of the stages, shallow to deep, at least two.
        norm_cfg (dict): Normalisation layers. Defaults to ``dict(type='BN')``.
        init_cfg (dict, optional): Initialisation; PyTorch's own by default, as in the released
            code.

    Raises:
        ValueError: If there are fewer than two stages.

    Examples:
        >>> import torch
        >>> neck = SelfDistillationNeck(channels=(4, 8, 16))
        >>> [tuple(level.shape) for level in neck(torch.rand(2, 16, 4, 4))]
        [(2, 4, 16, 16), (2, 8, 8, 8)]
    """

    def __init__(
        self,
        channels: Sequence[int],
        norm_cfg: dict = {'type': 'BN'},  # noqa: B006, read only
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if len(channels) < 2:
            raise ValueError(
                'self-distillation needs the maps of at least two stages, but got widths '
                f'{tuple(channels)}; set out_indices of the backbone'
            )
        self.blocks = Sequential(
            *(
                Sequential(
                    nn.ConvTranspose2d(
                        deep, shallow, 3, stride=2, padding=1, output_padding=1, bias=False
                    ),
                    build_norm_layer(norm_cfg, shallow)[1],
                    nn.ReLU(inplace=True),
                )
                for deep, shallow in pairwise(reversed(channels))
            )
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Rebuild the shallower maps.

        Args:
            x: A map as wide as the deepest stage, (B, channels[-1], H, W).

        Returns:
            Maps of all stages but the deepest, shallow to deep: (B, channels[i], 2^k H, 2^k W)
            with k stages in between.
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

        The statistics of BN are folded into the convolutions, which saves a pass over each map.

        Args:
            x: As in :meth:`forward`. Detached.

        Returns:
            As :meth:`forward`, without gradient.
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
