"""DenseNet with the stem for 32-pixel images."""

from mmpretrain.models.backbones import DenseNet
from torch import nn

from kd_mm.registry import MODELS


@MODELS.register_module()
class DenseNet_CIFAR(DenseNet):
    """DenseNet backbone for CIFAR, named after mmpretrain's ``ResNet_CIFAR``.

    mmpretrain's DenseNet whose stem is a single 3x3 convolution with stride 1 and no pooling,
    so that a 32-pixel image comes out at 4 x 4 after the four dense blocks. The stem has no BN
    and no ReLU: each dense layer begins with its own. Source: Huang et al., "Densely Connected
    Convolutional Networks", arXiv:1608.06993, section 3, "Implementation Details"; with
    ``arch='121'`` it is the network of BAKE's CIFAR trainer.

    Args:
        arch (str | dict): ``'121'``, ``'169'``, ``'201'``, ``'161'`` or a dict, as for
            mmpretrain's DenseNet. Defaults to ``'121'``.
        in_channels (int): Channels of the image. Defaults to 3.
        **kwargs: Every other argument of mmpretrain's DenseNet.

    Examples:
        >>> import torch
        >>> model = DenseNet_CIFAR()
        >>> [tuple(level.shape) for level in model(torch.rand(1, 3, 32, 32))]
        [(1, 1024, 4, 4)]
        >>> sum(p.numel() for p in model.parameters())
        6946048
    """

    def __init__(self, arch: str | dict = '121', in_channels: int = 3, **kwargs):
        super().__init__(arch=arch, in_channels=in_channels, **kwargs)
        self.stem = nn.Conv2d(in_channels, self.init_channels, 3, padding=1, bias=False)
