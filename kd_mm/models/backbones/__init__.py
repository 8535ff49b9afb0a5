"""Backbones that mmpretrain lacks."""

from .cifar_resnet import CIFARResNet
from .densenet_cifar import DenseNet_CIFAR

__all__ = ['CIFARResNet', 'DenseNet_CIFAR']
