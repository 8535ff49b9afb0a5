"""Backbones that mmpretrain lacks."""

from .cifar_densenet import CIFARDenseNet
from .cifar_googlenet import CIFARGoogLeNet
from .cifar_resnet import CIFARResNet
from .cifar_wide_resnet import CIFARWideResNet
from .densenet_cifar import DenseNet_CIFAR

__all__ = [
    'CIFARDenseNet',
    'CIFARGoogLeNet',
    'CIFARResNet',
    'CIFARWideResNet',
    'DenseNet_CIFAR',
]
