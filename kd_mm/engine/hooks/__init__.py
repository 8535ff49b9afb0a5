"""Hooks of the training loop."""

from .channels_last_hook import ChannelsLastHook
from .checkpoint_guard_hook import CheckpointGuardHook
from .compile_hook import CompileHook
from .diagnostics_hook import DiagnosticsHook
from .distiller_hook import DistillerHook
from .export_hook import ExportHook
from .lazy_runtime_info_hook import LazyRuntimeInfoHook
from .learning_curve_hook import LearningCurveHook
from .loss_guard_hook import LossGuardHook
from .picture_hook import PictureHook
from .safe_checkpoint_hook import SafeCheckpointHook
from .seed_hook import SeedHook

__all__ = [
    'ChannelsLastHook',
    'CheckpointGuardHook',
    'CompileHook',
    'DiagnosticsHook',
    'DistillerHook',
    'ExportHook',
    'LazyRuntimeInfoHook',
    'LearningCurveHook',
    'LossGuardHook',
    'PictureHook',
    'SafeCheckpointHook',
    'SeedHook',
]
