"""Exact resume of MMEngine runs, and checkpoints that a crash cannot damage."""

from .checkpoint_guard_hook import CheckpointGuardHook
from .checkpoint_hook import SafeCheckpointHook
from .seed_hook import SeedHook

__all__ = ['CheckpointGuardHook', 'SafeCheckpointHook', 'SeedHook']
