"""Exact resume of MMEngine runs, and checkpoints that a crash cannot damage."""

from .checkpoint_hook import CheckpointGuardHook, SafeCheckpointHook
from .seed_hook import SeedHook

__all__ = ['CheckpointGuardHook', 'SafeCheckpointHook', 'SeedHook']
