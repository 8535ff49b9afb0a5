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
from .scored_head import ScoredHead, losses_and_score

__all__ = [
    'BAKEEfficientFormerClsHead',
    'BAKEHead',
    'BAKELeViTClsHead',
    'BAKEMixin',
    'BAKEStackedLinearClsHead',
    'BAKEVigClsHead',
    'BAKEVisionTransformerClsHead',
    'ScoredHead',
    'losses_and_score',
]
