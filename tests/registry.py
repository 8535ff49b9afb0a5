"""The registries of a project of its own, as a user of kd_mm writes them."""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

from kd_mm.registry import MethodRegistry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='tests', locations=['tests.methods'])
METHODS = MethodRegistry('tests', MODELS, ['tests.methods'])
