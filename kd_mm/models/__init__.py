"""Model parts of kd_mm: losses, heads, necks, algorithms, and backbones that mmpretrain lacks."""

from . import algorithms, backbones, batch_augments, heads, losses, necks

__all__ = ['algorithms', 'backbones', 'batch_augments', 'heads', 'losses', 'necks']
