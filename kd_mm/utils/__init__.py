"""Checks and small helpers that are no component of a model."""

from .setup_env import register_all_modules
from .versions import check_installation

__all__ = ['check_installation', 'register_all_modules']
