"""Hooks of the training loop."""

from .diagnostics_hook import DiagnosticsHook
from .distiller_hook import DistillerHook
from .export_hook import ExportHook
from .loss_guard_hook import LossGuardHook
from .speed import ChannelsLastHook, CompileHook, LazyRuntimeInfoHook

__all__ = [
    'ChannelsLastHook',
    'CompileHook',
    'DiagnosticsHook',
    'DistillerHook',
    'ExportHook',
    'LazyRuntimeInfoHook',
    'LossGuardHook',
]
