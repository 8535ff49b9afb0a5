"""Optimizers of several parts of a model that step together."""

from .bfloat16_optim_wrapper import Bfloat16OptimWrapper
from .joint_optim_wrapper import JointOptimWrapper
from .joint_optim_wrapper_constructor import JointOptimWrapperConstructor

__all__ = ['Bfloat16OptimWrapper', 'JointOptimWrapper', 'JointOptimWrapperConstructor']
