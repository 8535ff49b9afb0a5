"""Runtime components of kd_mm: hooks and optimizers."""

from . import hooks, optim

__all__ = ['hooks', 'optim']
