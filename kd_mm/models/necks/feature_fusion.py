"""FFSD's fusion of the students' features, and its counterpart behind the leader."""

from collections.abc import Sequence

import torch
from mmcv.cnn import DepthwiseSeparableConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from kd_mm.methods.layout import fastest_layout
from kd_mm.registry import MODELS


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
        init_cfg (dict, optional): Initialisation.

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
        norm_cfg: dict = {'type': 'BN'},  # noqa: B006, read only
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.fuse = _separable(sum(in_channels), out_channels, norm_cfg)
        self.fc = nn.Linear(out_channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Fuse the maps.

        Args:
            maps: The students' deepest maps, each (B, C_i, H, W). Not detached here.

        Returns:
            The fused map (B, out_channels, H, W), and logits (B, num_classes).
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
        init_cfg (dict, optional): Initialisation.

    Examples:
        >>> import torch
        >>> FusionDecoder(4, 8)(torch.rand(2, 4, 8, 8)).shape
        torch.Size([2, 8, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm_cfg: dict = {'type': 'BN'},  # noqa: B006, read only
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.widen = _separable(in_channels, out_channels, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        return self.widen(fastest_layout(x))
