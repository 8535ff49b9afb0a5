"""Data sets, wrappers and samplers that mmpretrain lacks."""

from .class_instance_sampler import ClassInstanceSampler
from .digits import Digits
from .hold_out import HoldOut
from .in_memory import BatchRandomCrop, BatchRandomFlip, InMemory, batch_collate
from .labels import get_labels, image_numbers
from .published import MITIndoor67, StanfordDogs, TinyImageNet

__all__ = [
    'BatchRandomCrop',
    'BatchRandomFlip',
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
