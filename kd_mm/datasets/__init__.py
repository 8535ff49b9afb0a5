"""Data sets and samplers that mmpretrain lacks."""

from .digits import Digits
from .hold_out import HoldOut
from .in_memory import InMemory, batch_collate
from .labels import get_labels, image_numbers
from .published import MITIndoor67, StanfordDogs, TinyImageNet
from .samplers import ClassInstanceSampler

__all__ = [
    'ClassInstanceSampler',
    'Digits',
    'HoldOut',
    'InMemory',
    'MITIndoor67',
    'StanfordDogs',
    'TinyImageNet',
    'batch_collate',
    'get_labels',
    'image_numbers',
]
