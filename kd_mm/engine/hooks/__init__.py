"""Hooks of the training loop."""

from .channels_last_hook import ChannelsLastHook
from .compile_hook import CompileHook
from .diagnostics_hook import DiagnosticsHook
from .distiller_hook import DistillerHook
from .export_hook import ExportHook
from .lazy_runtime_info_hook import LazyRuntimeInfoHook
from .loss_guard_hook import LossGuardHook

__all__ = [
    'ChannelsLastHook',
    'CompileHook',
    'DiagnosticsHook',
    'DistillerHook',
    'ExportHook',
    'LazyRuntimeInfoHook',
    'LossGuardHook',
]
