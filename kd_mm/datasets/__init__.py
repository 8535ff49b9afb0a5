"""Data sets and samplers that mmpretrain lacks."""

from .digits import Digits
from .hold_out import HoldOut
from .labels import get_labels
from .published import MITIndoor67, StanfordDogs, TinyImageNet
from .samplers import ClassInstanceSampler

__all__ = [
    'ClassInstanceSampler',
    'Digits',
    'HoldOut',
    'MITIndoor67',
    'StanfordDogs',
    'TinyImageNet',
    'get_labels',
]
