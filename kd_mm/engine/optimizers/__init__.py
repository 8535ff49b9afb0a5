"""Optimizers of several parts of a model that step together."""

from .joint_optim_wrapper import JointOptimWrapper
from .joint_optim_wrapper_constructor import JointOptimWrapperConstructor

__all__ = ['JointOptimWrapper', 'JointOptimWrapperConstructor']
