"""Hooks of the training loop."""

from .checkpoint_guard_hook import CheckpointGuardHook
from .diagnostics_hook import DiagnosticsHook
from .export_hook import ExportHook
from .generalization_weights_hook import GeneralizationWeightsHook
from .lazy_runtime_info_hook import LazyRuntimeInfoHook
from .learning_curve_hook import LearningCurveHook
from .loss_guard_hook import LossGuardHook
from .loss_weight_ramp_hook import LossWeightRampHook
from .safe_checkpoint_hook import SafeCheckpointHook
from .seed_hook import SeedHook

__all__ = [
    'CheckpointGuardHook',
    'DiagnosticsHook',
    'ExportHook',
    'GeneralizationWeightsHook',
    'LazyRuntimeInfoHook',
    'LearningCurveHook',
    'LossGuardHook',
    'LossWeightRampHook',
    'SafeCheckpointHook',
    'SeedHook',
]
