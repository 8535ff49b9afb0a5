"""Names in a config: each type must exist, and each option must be one that its type takes."""

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

from mmengine import registry as roots
from mmengine.hooks import CheckpointHook
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import Runner

import kd_mm.registry
from kd_mm.checks import did_you_mean, nearest
from kd_mm.models.networks import student_cfg
from kd_mm.models.teachers import OWN_OPTIONS

# Registries whose types of other projects are checked, as they take their options as written;
# and the options that are for whoever builds the type.
CHECKED = {
    'model': (),
    'dataset': (),
    'transform': (),
    'metric': (),
    'data sampler': (),
    'hook': ('priority',),
    'parameter scheduler': ('convert_to_iter_based',),
}
BUILDERS = {'hook': CHECKED['hook'], 'optim_wrapper': ('constructor', 'paramwise_cfg', 'parts')}
NO_REGISTRY = ('clip_grad', 'targets')  # whose type is no name of a registry
OWN_REGISTRIES = (kd_mm.registry.METHODS, kd_mm.registry.SCHEDULES)
STACK = ('kd_mm', 'mmengine', 'mmcv', 'mmpretrain')


def check_types(node: Any, path: str = '') -> None:
    """Check each type in a config, and its options, by name.

    Types are looked up as MMEngine does. The options of a type that takes any (``**kwargs``) are
    not checked, and neither are dicts inside the options of a type of another project.

    Args:
        node: A config or a part of it.
        path: Where the part lies, for the message.

    Raises:
        ValueError: If a type does not exist, or lacks its prefix.
        TypeError: If a type has no such option.

    Examples:
        >>> check_types({'head': {'type': 'kd_mm.BAKEHead', 'omga': 0.5}})
        Traceback (most recent call last):
        TypeError: head: kd_mm.BAKEHead has no option omga; did you mean omega?
        >>> check_types({'backbone': {'type': 'mmpretrain.ResNett'}})
        Traceback (most recent call last):
        ValueError: backbone: no mmpretrain.ResNett is registered; did you mean ResNet?
    """
    if isinstance(node, (list, tuple)):
        for index, part in enumerate(node):
            check_types(part, f'{path}[{index}]')
    if not isinstance(node, Mapping):
        return
    if 'cfg_path' in node:  # a student, which is whole only with its recipe
        node = student_cfg(node)
    if path.rpartition('.')[0] == 'model.teachers':
        node = {key: value for key, value in node.items() if key not in OWN_OPTIONS}
    found = _check_type(node, path) if isinstance(node.get('type'), str) else {}
    if any(_project(part) not in STACK for part in found.values()):
        return
    for key, value in node.items():
        check_types(value, f'{path}.{key}' if path else str(key))


def _check_type(node: Mapping, path: str) -> dict[str, Any]:
    """Check one typed dict; return what its type stands for."""
    kind = re.sub(r'\[\d+\]', '', path).rpartition('.')[2]
    if kind in NO_REGISTRY:
        return {}
    name = node['type']
    found = _find_type(node, is_method='.methods.' in path)
    if not found:
        known = _known_names()
        near = nearest(name.rpartition('.')[2], known)
        hint = (
            f'did you mean {known[near]}?'
            if near
            else 'install what it needs, or import the module that registers it: '
            'custom_imports=dict(imports=[...], allow_failed_imports=False)'
        )
        raise ValueError(f'{path}: no {name} is registered; {hint}')
    taken = [_options_of(part, registry) for registry, part in found.items()]
    if None in taken or kind.endswith('_cfg'):  # builders of layers take more
        return found
    known = set().union(*taken)
    for key in node:
        if key not in known and key not in ('type', '_scope_'):
            raise TypeError(
                f'{path}: {name} has no option {key}; {did_you_mean(key, sorted(known))}'
            )
    return found


def _options_of(part: Any, registry: str) -> set[str] | None:
    """Return the options that a registered type takes; None where it may take any."""
    ours = _project(part) == kd_mm.registry.SCOPE
    known_kind = registry in CHECKED and inspect.isclass(part)
    if not ours and (_project(part) not in STACK or not known_kind):
        return None
    known = options(part) | set((BUILDERS if ours else CHECKED).get(registry, ()))
    if inspect.isclass(part) and issubclass(part, CheckpointHook):  # hands the rest on
        return known | set(inspect.signature(Runner.save_checkpoint).parameters)
    kinds = {parameter.kind for parameter in inspect.signature(part).parameters.values()}
    return known if ours or inspect.Parameter.VAR_KEYWORD not in kinds else None


def options(cls: Callable) -> set[str]:
    """Return the arguments that a function or a class takes, including those for its bases."""
    if not inspect.isclass(cls):
        return set(inspect.signature(cls).parameters)
    names: set[str] = set()
    for base in (base for base in cls.__mro__ if '__init__' in vars(base)):
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        kinds = {p.kind for p in parameters}
        names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return names


def _project(part: Any) -> str:
    """Return the name of the package that a class or a function comes from."""
    module = getattr(part, '__module__', None) or type(part).__module__
    return module.partition('.')[0]


def _find_type(node: Mapping, is_method: bool) -> dict[str, Any]:
    """Return what the type of a dict stands for, by the name of its registry.

    One name may be a data set and a metric, or a method and the model of its name.
    """
    name, scope = node['type'], node.get('_scope_') or _default_scope()
    _import_scope(scope)
    registries = [
        registry
        for registry in _root_registries()
        if registry not in OWN_REGISTRIES or is_method or '.' in name
    ]
    found = {registry.name: _look_up(name, scope, registry) for registry in registries}
    return {registry: part for registry, part in found.items() if part is not None}


def _look_up(name: str, scope: str, registry: Registry | None) -> Any:
    """Return what a root registry has under a name."""
    prefix, dot, short = name.partition('.')
    if dot and prefix not in (*registry.children, registry.scope):
        return registry.get(name)  # another project's, or the path of a module
    if dot:
        scope, name = prefix, short
    registry = registry.children.get(scope, registry)
    while registry is not None:  # as Registry.get, which then tries to import the name
        registry.import_from_location()
        if name in registry.module_dict:
            return registry.module_dict[name]
        registry = registry.parent
    return None


def _default_scope() -> str:
    """Return the scope of types without a prefix."""
    default = DefaultScope.get_current_instance()
    return default.scope_name if default else 'mmpretrain'


@cache
def _import_scope(scope: str) -> None:
    """Make the registries of a project known to their parents, as MMEngine does in building."""
    with suppress(ImportError):
        import_module(f'{scope}.registry')


@cache
def _root_registries() -> list[Registry]:
    """Return each registry that has no parent: MMEngine's, mmpretrain's and ours."""
    from mmpretrain import registry as theirs

    modules = (roots, theirs, kd_mm.registry)
    found = [r for module in modules for r in vars(module).values()]
    found = [r for r in found if isinstance(r, Registry) and r.parent is None]
    return list(dict.fromkeys(found))


def _known_names() -> dict[str, str]:
    """Return how each registered type is written in a config, by its own name."""
    names: dict[str, str] = {}
    registries = list(_root_registries())
    while registries:
        registry = registries.pop()
        if registry.scope == kd_mm.registry.SCOPE:
            registry.import_from_location()
        registries += registry.children.values()
        plain = registry.scope in ('mmengine', _default_scope())
        prefix = '' if plain else f'{registry.scope}.'
        names |= {name: prefix + name for name in registry.module_dict}
    return names
