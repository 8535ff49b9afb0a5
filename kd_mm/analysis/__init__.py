"""Tables, reports, step times and pictures of runs."""

from .learning_curve_hook import LearningCurveHook
from .picture_hook import PictureHook

__all__ = ['LearningCurveHook', 'PictureHook']
