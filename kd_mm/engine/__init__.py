"""Runtime components of kd_mm: hooks."""

from . import hooks

__all__ = ['hooks']
