"""Model components of kd_mm: losses, heads, algorithms and the backbones that mmpretrain lacks."""

from . import algorithms, backbones, heads, losses

__all__ = ['algorithms', 'backbones', 'heads', 'losses']
