"""Classification heads that distil while they train."""

from .bake_head import (
    BAKEEfficientFormerClsHead,
    BAKEHead,
    BAKELeViTClsHead,
    BAKEMixin,
    BAKEStackedLinearClsHead,
    BAKEVigClsHead,
    BAKEVisionTransformerClsHead,
)

__all__ = [
    'BAKEEfficientFormerClsHead',
    'BAKEHead',
    'BAKELeViTClsHead',
    'BAKEMixin',
    'BAKEStackedLinearClsHead',
    'BAKEVigClsHead',
    'BAKEVisionTransformerClsHead',
]
