"""Algorithms: cohorts of classifiers that train together."""

from .base import BaseCohort
from .data_preprocessor import CohortDataPreprocessor
from .dml import DML
from .ffsd import FFSD
from .kdcl import KDCL

__all__ = ['DML', 'FFSD', 'KDCL', 'BaseCohort', 'CohortDataPreprocessor']
