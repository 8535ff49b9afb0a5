"""kd_mm: online and self-distillation of image classifiers for the OpenMMLab stack."""

from .version import __version__

__all__ = ['__version__']
