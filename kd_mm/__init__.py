"""kd_mm: online and self-distillation of image classifiers for the OpenMMLab stack."""

import warnings
from importlib import import_module
from typing import Any

from .installation import check_installation
from .version import __version__

# What a project of its own builds on. Imported when it is asked for: mmpretrain takes seconds.
_PUBLIC = {
    'kd_mm.methods': ('Clock', 'EpochEnd', 'Method', 'Roles', 'SampleMemory', 'Seen', 'Step'),
    'kd_mm.models': ('Distiller',),
    'kd_mm.registry': ('METHODS',),
}

__all__ = ['__version__']

check_installation()

# mmcv advises at each start to install another build of it, for an operation that no classifier
# has.
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

from mmengine.config.utils import MODULE2PACKAGE  # noqa: E402 (only after the check)

# Makes `_base_ = 'kd_mm::bake/…'` known to MMEngine. It takes the folder of the package from a
# distribution's record or, where there is no such distribution, from the module's own file. In an
# editable install the record points elsewhere, so we name a module and not the distribution.
MODULE2PACKAGE['kd_mm'] = 'kd_mm.version'


def __getattr__(name: str) -> Any:
    for module, names in _PUBLIC.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
