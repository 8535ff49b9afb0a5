"""Hooks of the training loop."""

from .channels_last_hook import ChannelsLastHook
from .checkpoint_guard_hook import CheckpointGuardHook
from .compile_hook import CompileHook
from .diagnostics_hook import DiagnosticsHook
from .export_hook import ExportHook
from .generalization_weights_hook import GeneralizationWeightsHook
from .lazy_runtime_info_hook import LazyRuntimeInfoHook
from .learning_curve_hook import LearningCurveHook
from .loss_guard_hook import LossGuardHook
from .loss_weight_ramp_hook import LossWeightRampHook
from .picture_hook import PictureHook
from .safe_checkpoint_hook import SafeCheckpointHook
from .seed_hook import SeedHook

__all__ = [
    'ChannelsLastHook',
    'CheckpointGuardHook',
    'CompileHook',
    'DiagnosticsHook',
    'ExportHook',
    'GeneralizationWeightsHook',
    'LazyRuntimeInfoHook',
    'LearningCurveHook',
    'LossGuardHook',
    'LossWeightRampHook',
    'PictureHook',
    'SafeCheckpointHook',
    'SeedHook',
]
