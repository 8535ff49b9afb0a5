"""Heads of mmpretrain that distil while they train."""

from .bake_head import BAKEHead
from .distilling_head import DistillingHead

__all__ = ['BAKEHead', 'DistillingHead']
