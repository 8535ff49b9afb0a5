"""Algorithms: cohorts of classifiers that train together."""

from .base import BaseCohort
from .data_preprocessor import CohortDataPreprocessor
from .dml import DML
from .kdcl import KDCL

__all__ = ['DML', 'KDCL', 'BaseCohort', 'CohortDataPreprocessor']
