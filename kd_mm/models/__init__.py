"""Model components of kd_mm: losses, heads and the backbones that mmpretrain lacks."""

from . import backbones, heads, losses

__all__ = ['backbones', 'heads', 'losses']
