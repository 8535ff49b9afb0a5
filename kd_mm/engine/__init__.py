"""Runtime components of kd_mm: hooks and optimizers."""

from . import hooks, optimizers

__all__ = ['hooks', 'optimizers']
