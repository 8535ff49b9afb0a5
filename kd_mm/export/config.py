"""The config of a plain mmpretrain run, from that of a kd_mm run."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

from kd_mm.models.distiller import SINGLE, Plan, as_distiller, plan_of
from kd_mm.models.networks import deepest_only, student_cfg
from kd_mm.plain import Replaceable
from kd_mm.registry import DATA_SAMPLERS, DATASETS, METRICS, MODELS, OPTIM_WRAPPERS, SCOPE

PREFIX = f'{SCOPE}.'
REGISTRIES = (MODELS, DATASETS, DATA_SAMPLERS, METRICS, OPTIM_WRAPPERS)


def plain_part(node: Any) -> Any:
    """Return a part of a config without distillation.

    Args:
        node: A part of a config, left as it is.

    Returns:
        A new one in which each :class:`~kd_mm.plain.Replaceable` has its plain form. Backbones and
        data sets that only kd_mm has keep their ``kd_mm.`` type. It lacks the scope that MMEngine
        notes where a config of ours is inherited: only types with our prefix need it.

    Examples:
        >>> plain_part({'head': {'type': 'kd_mm.BAKEHead', 'omega': 0.5, 'in_channels': 64}})
        {'head': {'type': 'LinearClsHead', 'in_channels': 64}}
    """
    if isinstance(node, (list, tuple)):
        return type(node)(map(plain_part, node))
    if not isinstance(node, Mapping):
        return node
    name = node.get('type')
    # Of kd_mm, or of a project that extends it.
    if isinstance(name, str) and '.' in name and not name.startswith('mmpretrain.'):
        for registry in REGISTRIES:
            found = registry.get(name)
            if isinstance(found, type) and issubclass(found, Replaceable):
                return plain_part(found.plain(node))
    items = [(key, value) for key, value in node.items() if (key, value) != ('_scope_', SCOPE)]
    return {key: plain_part(value) for key, value in items}


def our_types(node: Any) -> set[str]:
    """Return the types in a config, or in a part of it, that are kd_mm's.

    Examples:
        >>> our_types({'a': [{'type': 'kd_mm.Digits'}], 'type': 'LeNet5'})
        {'kd_mm.Digits'}
    """
    if isinstance(node, Mapping):
        name = str(node.get('type'))
        own = {name} if name.startswith(PREFIX) else set()
        return own.union(*map(our_types, node.values()))
    return set().union(*map(our_types, node)) if isinstance(node, (list, tuple)) else set()


def _plan(options: Mapping) -> Plan:
    """Return what the methods of a Distiller's options make of its networks."""
    return plan_of(
        options.get('students') or [SINGLE],
        options.get('teachers') or (),
        options.get('methods'),
        options.get('views', 'shared'),
        options.get('deploy'),
    )


def student_names(cfg: Config) -> list[str]:
    """Return the names of a model's students, the deployed one first; none for one network.

    Args:
        cfg: Config of a kd_mm run.
    """
    options = as_distiller(cfg.model)
    if options is None or not options.get('students'):
        return []
    deploy = _plan(options).deploy
    return sorted(options['students'], key=lambda name: (name != deploy, name))


def shipped_names(cfg: Config) -> list[str]:
    """Return the names of the students that a finished training exports.

    Args:
        cfg: Config of a kd_mm run.

    Returns:
        All students, the deployed one first, or those that the methods export: of FFSD the leader
        alone, if it has one. None for one network.
    """
    names = student_names(cfg)
    roles = _plan(as_distiller(cfg.model)).roles if names else []
    chosen = [role.exported for role in roles if role.exported is not None]
    return [name for name in names if all(name in exported for exported in chosen)]


def choose_student(cfg: Config, student: str | None) -> str | None:
    """Return the student to export, the deployed one by default, or None for one network alone.

    Raises:
        ValueError: If there is no such student.
    """
    names = student_names(cfg)
    if student is not None and student not in names:
        raise ValueError(
            f'student must be one of {", ".join(names)}, but got {student!r}'
            if names
            else f'the config trains one network, so there is no student {student!r}; leave it out'
        )
    return student or (names[0] if names else None)


def _plain_network(options: Mapping, name: str | None, default: Mapping | None) -> dict:
    """Return the config of one student of a Distiller as a model of its own.

    ``default`` is the preprocessor that the run gives to a model without one.
    """
    network = student_cfg(options['student'] if name is None else options['students'][name])
    if any(role.stages is not None for role in _plan(options).roles):
        network = deepest_only(network)
    network = network.to_dict()
    if options.get('train_cfg'):
        network['train_cfg'] = options['train_cfg']
    own = network.pop('data_preprocessor', None)  # of one of several students, it stays unused
    given = options.get('data_preprocessor')
    if own and name is None:
        network['data_preprocessor'] = {**own, **(given or default or {})}
    elif given:
        network['data_preprocessor'] = given
    return network


def _part_of(student: str, parts: Mapping[str, Mapping]) -> str:
    """Return the name of the optimizer part that trains a student."""
    for part, settings in parts.items():
        prefixes = settings.get('prefix', f'students.{part}')
        prefixes = [prefixes] if isinstance(prefixes, str) else prefixes
        if {'students', f'students.{student}'} & set(prefixes):
            return part
    raise ValueError(
        f'a part of optim_wrapper.parts must train student {student}, but there are only '
        f"{', '.join(parts)}; give one prefix='students.{student}'"
    )


def _plain_pipeline(pipeline: Sequence[dict], augments: Sequence[dict]) -> list[dict]:
    """Return a training pipeline with one view of each image.

    ``augments``, what the preprocessor does to its batches, becomes a part of it.
    """
    steps = []
    for step in pipeline:
        views = str(step.get('type')).rpartition('.')[2] == 'MultiView'
        steps.extend(step['transforms'][0] if views else [step])
    drawn = [t for augment in augments for t in MODELS.build(augment).transforms]
    return [*steps[:-1], *drawn, *steps[-1:]]


def plain_cfg(cfg: Config, student: str | None = None) -> Config:
    """Return the config of a plain mmpretrain run of the same network on the same data.

    Args:
        cfg: Config of a kd_mm run, left as it is.
        student: Name of a student of a cohort; by default the deployed one.

    Returns:
        A config without distillation, without our sampler and hooks, and without the paths of
        the run. It names kd_mm only where it needs a backbone or a data set that mmpretrain lacks.

    Raises:
        ValueError: If there is no such student.
    """
    plain = {key: value for key, value in cfg.to_dict().items() if not key.startswith('_')}
    name = choose_student(cfg, student)
    options = as_distiller(cfg.model)
    if options is not None:
        plain['model'] = _plain_network(options, name, plain.get('data_preprocessor'))
        if parts := (plain.get('optim_wrapper') or {}).get('parts'):
            part = _part_of(name or SINGLE, parts)
            plain['optim_wrapper'] = {k: v for k, v in parts[part].items() if k != 'prefix'}
            schedules = plain.get('param_scheduler')
            if isinstance(schedules, Mapping):
                plain['param_scheduler'] = schedules.get(part, schedules)
    augments = preprocessor_of(plain).get('augments', ())
    plain = plain_part(plain)
    loader = plain.get('train_dataloader') or {}
    if our_types(loader.get('collate_fn')):
        loader['collate_fn'] = {'type': 'default_collate'}
    dataset = loader.get('dataset') or {}
    if 'pipeline' in dataset:
        dataset['pipeline'] = _plain_pipeline(dataset['pipeline'], augments)
    if plain.get('default_hooks'):
        hooks = {key: h for key, h in plain['default_hooks'].items() if not our_types(h)}
        checkpoint = hooks.get('checkpoint') or {}
        if name and isinstance(checkpoint.get('save_best'), str):  # a metric of several students
            checkpoint['save_best'] = 'auto'
        plain['default_hooks'] = hooks
    if plain.get('custom_hooks'):
        plain['custom_hooks'] = [hook for hook in plain['custom_hooks'] if not our_types(hook)]
    plain.update(launcher='none', load_from=None, resume=False)
    for key in ('work_dir', 'model_wrapper_cfg'):
        plain.pop(key, None)
    if 'custom_imports' in plain and not our_types(plain):
        imports = [other for other in plain['custom_imports']['imports'] if other != SCOPE]
        plain['custom_imports']['imports'] = imports
        if not imports:
            del plain['custom_imports']
    return Config(plain)


def preprocessor_of(cfg: Mapping) -> Mapping:
    """Return the config of the preprocessor of a plain model: its own, or the run's."""
    return cfg['model'].get('data_preprocessor') or cfg.get('data_preprocessor') or {}
