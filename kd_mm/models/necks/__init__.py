"""Necks that learn beside the students, and stay behind when a student is deployed."""

from .feature_fusion import FeatureFusionNeck, FusionDecoder
from .self_distillation import SelfDistillationNeck

__all__ = ['FeatureFusionNeck', 'FusionDecoder', 'SelfDistillationNeck']
