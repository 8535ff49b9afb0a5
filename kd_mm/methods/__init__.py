"""Distillation methods, one file per paper, and what they are made of."""

from .bake import BAKE
from .base import Clock, EpochEnd, Method, Networks, Relations, Roles, Seen, Step
from .dml import DML
from .ffsd import FFSD
from .kdcl import KDCL
from .memory import SampleMemory
from .schedules import LinearRamp, SigmoidRamp, schedule

__all__ = [
    'BAKE',
    'DML',
    'FFSD',
    'KDCL',
    'Clock',
    'EpochEnd',
    'LinearRamp',
    'Method',
    'Networks',
    'Relations',
    'Roles',
    'SampleMemory',
    'Seen',
    'SigmoidRamp',
    'Step',
    'schedule',
]
