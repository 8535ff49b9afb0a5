"""Models of kd_mm: the Distiller, its heads and necks, and backbones that mmpretrain lacks."""

from .backbones import *  # noqa: F403
from .data_preprocessor import CohortDataPreprocessor
from .distiller import Distiller
from .heads import BAKEHead
from .necks import FeatureFusionNeck, FusionDecoder, SelfDistillationNeck

__all__ = [
    'BAKEHead',
    'CohortDataPreprocessor',
    'Distiller',
    'FeatureFusionNeck',
    'FusionDecoder',
    'SelfDistillationNeck',
]
