"""kd_mm's registries, beside mmpretrain's under MMEngine's roots, with the scope ``kd_mm``.

A type written ``kd_mm.X`` in any config is found without an import of kd_mm: MMEngine imports
``kd_mm.registry`` by the scope's name, and each registry imports its ``locations`` at its first
look-up.

MMEngine marks what a config takes from a base ``kd_mm::`` with that scope, mmpretrain's types in
``_base_.train_pipeline``, too. Hence each registry knows what mmpretrain's does.
"""

from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import Registry
from mmpretrain import registry as mmpretrain_registry

__all__ = [
    'DATASETS',
    'DATA_SAMPLERS',
    'FUNCTIONS',
    'HOOKS',
    'METRICS',
    'MODELS',
    'OPTIM_WRAPPERS',
    'OPTIM_WRAPPER_CONSTRUCTORS',
]

SCOPE = 'kd_mm'


class _ExtendingRegistry(Registry):
    """A registry that extends one of mmpretrain's, and is found by its scope beside it."""

    def __init__(self, base: Registry, location: str) -> None:
        super().__init__(base.name, parent=base.parent, scope=SCOPE, locations=[location])
        self.parent = base  # where a look-up goes on

    def import_from_location(self) -> None:
        """Import what registers types, here and in the registry that is extended."""
        super().import_from_location()
        self.parent.import_from_location()


MODELS = _ExtendingRegistry(mmpretrain_registry.MODELS, 'kd_mm.models')
DATASETS = _ExtendingRegistry(mmpretrain_registry.DATASETS, 'kd_mm.datasets')
DATA_SAMPLERS = _ExtendingRegistry(mmpretrain_registry.DATA_SAMPLERS, 'kd_mm.datasets')
FUNCTIONS = Registry(
    'function', parent=MMENGINE_FUNCTIONS, scope=SCOPE, locations=['kd_mm.datasets']
)
HOOKS = _ExtendingRegistry(mmpretrain_registry.HOOKS, 'kd_mm.engine')
OPTIM_WRAPPERS = _ExtendingRegistry(mmpretrain_registry.OPTIM_WRAPPERS, 'kd_mm.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _ExtendingRegistry(
    mmpretrain_registry.OPTIM_WRAPPER_CONSTRUCTORS, 'kd_mm.engine'
)
METRICS = _ExtendingRegistry(mmpretrain_registry.METRICS, 'kd_mm.evaluation')

# Nothing is ours in mmpretrain's others: transforms, optimizers, visualizers, ...
# With no location at all MMEngine would import every module of ours.
for _registry in vars(mmpretrain_registry).values():
    _nested = isinstance(_registry, Registry) and _registry.parent is not None
    if _nested and SCOPE not in _registry.parent.children:
        _ExtendingRegistry(_registry, 'kd_mm')
