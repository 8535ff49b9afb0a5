"""From a kd_mm checkpoint to plain mmpretrain weights and config."""

from .config import our_types, plain_cfg, plain_part, shipped_names, student_names
from .weights import FORMATS, Export, choose_weights, export_student

__all__ = [
    'FORMATS',
    'Export',
    'choose_weights',
    'export_student',
    'our_types',
    'plain_cfg',
    'plain_part',
    'shipped_names',
    'student_names',
]
