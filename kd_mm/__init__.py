"""kd_mm: online and self-distillation of image classifiers for the OpenMMLab stack."""

import warnings

from .utils.versions import check_installation
from .version import __version__

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
