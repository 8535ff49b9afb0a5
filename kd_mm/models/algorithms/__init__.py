"""Algorithms: cohorts of classifiers that train together."""

from .base import BaseCohort
from .data_preprocessor import CohortDataPreprocessor
from .dml import DML

__all__ = ['DML', 'BaseCohort', 'CohortDataPreprocessor']
