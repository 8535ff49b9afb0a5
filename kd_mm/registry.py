"""kd_mm's registries, next to mmpretrain's under MMEngine's roots, with the scope ``kd_mm``.

A type written ``kd_mm.X`` in any config is found without an import of kd_mm: MMEngine imports
``kd_mm.registry`` by the scope's name, and each registry imports its ``locations`` at its first
look-up.

MMEngine marks what a config takes from a base ``kd_mm::`` with that scope, mmpretrain's types in
``_base_.train_pipeline``, too. Hence each registry knows what mmpretrain's does.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import Registry
from mmpretrain import registry as mmpretrain_registry

from kd_mm.checks import did_you_mean

__all__ = [
    'DATASETS',
    'DATA_SAMPLERS',
    'FUNCTIONS',
    'HOOKS',
    'METHODS',
    'METRICS',
    'MODELS',
    'OPTIM_WRAPPERS',
    'OPTIM_WRAPPER_CONSTRUCTORS',
    'SCHEDULES',
    'MethodRegistry',
]

SCOPE = 'kd_mm'


class _OwnRegistry(Registry):
    """A registry of kd_mm's own, which neither MMEngine nor mmpretrain has."""

    def create(self, cfg: Mapping[str, Any], place: str) -> Any:
        """Build what a config names, in whatever scope it is written.

        Args:
            cfg: With a ``type``, such as ``'kd_mm.KDCL'`` or ``'KDCL'``. Left as it is.
            place: Where the config has it, for the error.

        Raises:
            ValueError: If there is no such type, or it refuses a value.
            TypeError: If it has no such option.
        """
        options = {key: value for key, value in cfg.items() if key not in ('type', '_scope_')}
        name = cfg.get('type')
        found = self.get(name) if isinstance(name, str) else None
        if found is None:
            known = [f'{SCOPE}.{known}' for known in self.module_dict]
            raise ValueError(
                f'{place} must have the type of a {self.name}, but got {name!r}; '
                f'{did_you_mean(str(name), known)}'
            )
        return found(**options)


class DistillerOf:
    """The model type of a method: builds the Distiller with that one method.

    Args:
        method: The class of the method.
        type_name: How a config writes it, with the scope of its registry.
    """

    def __init__(self, method: type, type_name: str) -> None:
        self.method, self.type_name = method, type_name
        self.__name__, self.__doc__ = method.__name__, method.__doc__
        self.__module__ = method.__module__

    @property
    def _distiller(self) -> type:
        """The class of the model, which imports the methods."""
        return MODELS.get('Distiller')

    @property
    def _own(self) -> list[inspect.Parameter]:
        """The options of the method."""
        parameters = inspect.signature(self.method).parameters.values()
        return [parameter for parameter in parameters if parameter.name != 'init_cfg']

    @property
    def __signature__(self) -> inspect.Signature:
        """The options of the method, then those of the Distiller."""
        together = (*self._own, *inspect.signature(self._distiller).parameters.values())
        keyword = inspect.Parameter.KEYWORD_ONLY
        return inspect.Signature([parameter.replace(kind=keyword) for parameter in together])

    def options(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config of this type, with or without ``type``, as options of the Distiller."""
        names = {parameter.name for parameter in self._own}
        own = {key: value for key, value in cfg.items() if key in names}
        rest = {k: value for k, value in cfg.items() if k not in names and k != 'type'}
        methods = {self.method.__name__.lower(): {'type': self.type_name, **own}}
        return {**rest, 'methods': {**methods, **(rest.get('methods') or {})}}

    def __call__(self, **kwargs) -> Any:
        """Build the Distiller with the method, from options of both."""
        return self._distiller(**self.options(kwargs))


class MethodRegistry(_OwnRegistry):
    """The distillation methods of a project.

    Registering a method also registers the model type of its name: ``type='kd_mm.KDCL'`` is the
    Distiller with the method ``KDCL``. A project of its own writes, in its ``registry.py``,
    ``METHODS = MethodRegistry('my_project', MODELS, ['my_project.methods'])``.

    Args:
        scope: Prefix of the types in configs.
        models: The project's registry of models.
        locations: Modules that register methods.
    """

    def __init__(self, scope: str, models: Registry, locations: list[str]) -> None:
        parent = None if scope == SCOPE else METHODS
        super().__init__('method', parent=parent, scope=scope, locations=locations)
        self.models = models

    def _register_module(self, module, module_name=None, force=False) -> None:
        super()._register_module(module, module_name, force)
        names = (
            [module_name or module.__name__] if not isinstance(module_name, list) else module_name
        )
        for name in names:
            model = DistillerOf(module, f'{self.scope}.{name}')
            self.models.register_module(name=name, module=model, force=force)


class _ExtendingRegistry(Registry):
    """A registry that extends one of mmpretrain's, and is found next to it by its scope."""

    def __init__(self, base: Registry, *locations: str) -> None:
        super().__init__(base.name, parent=base.parent, scope=SCOPE, locations=list(locations))
        self.parent = base  # where a look-up goes on

    def import_from_location(self) -> None:
        """Import what registers types, here and in the registry that is extended."""
        super().import_from_location()
        self.parent.import_from_location()


MODELS = _ExtendingRegistry(mmpretrain_registry.MODELS, 'kd_mm.models', 'kd_mm.methods')
METHODS = MethodRegistry(SCOPE, MODELS, ['kd_mm.methods'])
SCHEDULES = _OwnRegistry('schedule', scope=SCOPE, locations=['kd_mm.methods'])
DATASETS = _ExtendingRegistry(mmpretrain_registry.DATASETS, 'kd_mm.datasets')
DATA_SAMPLERS = _ExtendingRegistry(mmpretrain_registry.DATA_SAMPLERS, 'kd_mm.datasets')
FUNCTIONS = Registry(
    'function', parent=MMENGINE_FUNCTIONS, scope=SCOPE, locations=['kd_mm.datasets']
)
HOOKS = _ExtendingRegistry(
    mmpretrain_registry.HOOKS, 'kd_mm.engine', 'kd_mm.resume', 'kd_mm.analysis'
)
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
