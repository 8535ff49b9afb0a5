"""The mistakes that can be named before a run begins."""

import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from unicodedata import is_normalized, normalize

import torch
from mmengine import registry as roots
from mmengine.config import Config
from mmengine.device import is_cuda_available
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    MODELS,
    DefaultScope,
    Registry,
    init_default_scope,
)
from mmengine.runner import Runner
from mmpretrain.datasets import CustomDataset
from torch import nn

import kd_mm.registry
from kd_mm.checkpoint import (
    bare_model,
    check_init_checkpoints,
    check_keys,
    load_checkpoint,
)
from kd_mm.config import USER_ERRORS as USER_ERRORS
from kd_mm.config import explained
from kd_mm.datasets import InMemory
from kd_mm.datasets.labels import index_labels, inner_datasets
from kd_mm.engine.hooks import DistillerHook
from kd_mm.models.data_preprocessor import CohortDataPreprocessor
from kd_mm.models.distiller import Distiller, as_distiller
from kd_mm.models.heads import DistillingHead
from kd_mm.models.networks import student_cfg
from kd_mm.models.teachers import OWN_OPTIONS
from kd_mm.registry import METHODS, SCHEDULES
from kd_mm.resume.find import find_checkpoint
from kd_mm.run import dry_run

PREFIX = f'{kd_mm.registry.SCOPE}.'
# Registries whose types take their options as they are written, and what is taken out before.
CHECKED = {
    'model': (),
    'dataset': (),
    'transform': (),
    'metric': (),
    'data sampler': (),
    'hook': ('priority',),
    'parameter scheduler': ('convert_to_iter_based',),
}
SHOWN = 3  # names of many
NO_REGISTRY = ('clip_grad', 'targets')  # whose type is no name of a registry


def check_config(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Raise on the first mistake in a config; nothing is written.

    Builds the data sets of ``loaders``, so that folders, labels and samplers are checked against
    each other, and reads the checkpoints that the run would start from. A cohort is built once,
    and the first sample of its training shows how many views there are.

    Args:
        cfg: Config of a run, complete with its command line. Left as it is.
        loaders: Data loaders that the run will read, such as ``('train_dataloader',)``.

    Raises:
        ValueError: A value is out of range, a name unknown, parts disagree, or a checkpoint
            cannot be read safely.
        TypeError: An option does not exist.
        FileNotFoundError: A folder or a file is missing.
    """
    scope = cfg.get('default_scope') or 'mmpretrain'
    if not isinstance(scope, str) or find_spec(scope) is None:
        raise ValueError(
            f'default_scope must be the name of a package that is installed, but got {scope!r}; '
            "kd_mm's own configs run in 'mmpretrain'"
        )
    init_default_scope(scope)
    dry_run.check_sections(cfg, loaders[0])
    used = inspect.signature(Runner).parameters  # the rest are names that configs use in between
    check_types({key: value for key, value in cfg.to_dict().items() if key in used})
    dry_run.check_settings(cfg)
    loaders = tuple(name for name in loaders if cfg.get(name) is not None)
    for name in loaders:
        dry_run.check_loader_counts(cfg, name)
    trains = 'train_dataloader' in loaders
    by_epoch = dry_run.check_length(cfg) if trains else True
    if 'Amp' in str((cfg.get('optim_wrapper') or {}).get('type')) and not is_cuda_available():
        raise ValueError(
            'mixed precision needs a GPU, but got AmpOptimWrapper on a machine without one; leave '
            "out --amp, or set optim_wrapper.type='kd_mm.Bfloat16OptimWrapper'"
        )
    check_parts(cfg)
    if cfg.get('work_dir') is not None:
        check_folder(cfg.work_dir)
    path = cfg.get('load_from')
    if cfg.get('resume') and path is None:
        path, _ = find_checkpoint(cfg.work_dir)
    found = None
    if path is not None:
        checkpoint = load_checkpoint(path)
        found = checkpoint['state_dict']
        if cfg.get('resume'):
            check_resumable(checkpoint, path)
    wrapped = dry_run.build_model(cfg)
    model = bare_model(wrapped)
    hooks = []
    if trains:
        dry_run.check_optimizer(cfg, model, by_epoch)
        hooks = dry_run.check_hooks(cfg, model, by_epoch)
    datasets = {name: check_dataloader(cfg, name) for name in loaders}
    check_same_classes(datasets)
    if found is not None:
        found = {name.removeprefix('module.'): weight for name, weight in found.items()}
        check_keys(found, model.state_dict(), path)
        check_tensors(found, path)
        if cfg.get('resume') or not trains:
            check_whole(found, model, path)
    if trains:
        check_init_checkpoints(model)
        batch = dry_run.first_batch(
            cfg.train_dataloader, 'train_dataloader', datasets['train_dataloader']
        )
        if isinstance(model, Distiller):
            inputs, preprocessor = batch['inputs'], model.data_preprocessor
            if isinstance(preprocessor, CohortDataPreprocessor) and preprocessor.augments:
                inputs = preprocessor.draw(inputs)
            model.check_views(inputs)
        dry_run.try_training(model, batch, len(datasets['train_dataloader']))
        if isinstance(model, Distiller) and 'held_out' in model.needs:
            check_held_out(cfg, hooks, model, by_epoch)
    for name in loaders:
        if name != 'train_dataloader':
            batch = dry_run.first_batch(cfg[name], name, datasets[name])
            evaluator = name.replace('dataloader', 'evaluator')
            metrics = dry_run.try_validation(wrapped, batch, cfg[evaluator], evaluator)
            if metrics is not None:
                dry_run.check_monitors(hooks, metrics)


def check_held_out(cfg: Config, hooks: Sequence[Hook], model: Distiller, by_epoch: bool) -> None:
    """Predict two held-out images.

    Args:
        cfg: Config of a run.
        hooks: Its hooks.
        model: The model.
        by_epoch: Whether the run counts epochs.

    Raises:
        ValueError: If they cannot be read, or come in views.
    """
    hook = next((h for h in hooks if isinstance(h, DistillerHook)), DistillerHook())
    evaluated = cfg.get('val_dataloader') or cfg.get('test_dataloader')
    loader = hook.held_out_cfg(cfg.train_dataloader, evaluated, by_epoch)
    name = 'the held-out images'
    with explained(f'{name} cannot be read', 'look at the data set and the pipeline of the hook'):
        dataset = DATASETS.build(deepcopy(loader['dataset']))
    loader = {**loader, 'drop_last': False}
    loader.setdefault('sampler', {'type': 'DefaultSampler', 'shuffle': False})
    batch = dry_run.first_batch(loader, name, dataset)
    with torch.no_grad(), explained(f'the model fails on {name}', dry_run.FIT):
        for _ in hook.held_out_logits(model, [batch]):
            pass


def check_resumable(checkpoint: Mapping, path: str) -> None:
    """Raise ValueError unless a checkpoint is one of a run, with all that goes on."""
    lacking = [key for key in ('meta', 'message_hub') if key not in checkpoint]
    if lacking:
        raise ValueError(
            f'--resume needs a checkpoint of a run, but {path} has no {" and no ".join(lacking)}; '
            f'to start from its weights alone, use --cfg-options load_from={path}'
        )


def check_tensors(found: Mapping[str, Any], path: str) -> None:
    """Raise ValueError where a weight of a checkpoint is no tensor."""
    for name, weight in found.items():
        if not isinstance(weight, torch.Tensor) and not name.endswith('_extra_state'):
            raise ValueError(
                f'weights must be tensors, but {name} of {path} is a {type(weight).__name__}; '
                'write the checkpoint anew'
            )


def check_whole(found: Mapping[str, Any], model: nn.Module, path: str) -> None:
    """Raise ValueError unless a checkpoint has each parameter of a model, in its shape."""
    state = model.state_dict(keep_vars=True)  # a model may store names of its own
    wanted = {name: w for name, w in state.items() if isinstance(w, nn.Parameter)}
    lacking = [name for name in wanted if name not in found]
    if lacking:
        raise ValueError(
            f'the checkpoint must have all weights of the model, but {path} lacks {len(lacking)} '
            f'of {len(wanted)} ({", ".join(lacking[:3])}, ...); use the config that was dumped '
            'beside it'
        )
    for name, weight in wanted.items():
        if found[name].shape != weight.shape:
            raise ValueError(
                f"the checkpoint's weights must have the model's shapes, but {name} is "
                f'{tuple(found[name].shape)} in {path} and {tuple(weight.shape)} in the model; '
                'use the config that was dumped beside it'
            )


def _our_registries() -> dict[str, Registry]:
    """Return each registry of ours with its modules imported."""
    registries = {n: r for n, r in vars(kd_mm.registry).items() if isinstance(r, Registry)}
    ours = {n: r for n, r in registries.items() if r.scope == kd_mm.registry.SCOPE}
    for registry in ours.values():
        registry.import_from_location()
    return ours


def _guess(word: str, known: list[str]) -> str:
    """Return the hint ``; did you mean ...?`` where a known word is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f'; did you mean {near[0]}?' if near else f'; there are {", ".join(sorted(known))}'


def options(cls: Callable) -> set[str]:
    """Return the arguments that a function or a class takes, those for its bases included.

    Args:
        cls: Any class or function.

    Returns:
        Names of keyword arguments.
    """
    if not inspect.isclass(cls):
        return set(inspect.signature(cls).parameters)
    names: set[str] = set()
    for base in cls.__mro__:
        if '__init__' not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        kinds = {p.kind for p in parameters}
        names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return names


def check_types(node: Any, path: str = '') -> None:
    """Check each type in a config, and its options, by name.

    Args:
        node: A config or a part of it.
        path: Where the part lies, for the message.

    Raises:
        ValueError: If a type does not exist, or lacks its prefix.
        TypeError: If a type has no such option. Of a type of another project that takes what it
            likes (``**kwargs``), options are its own affair.

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
    if 'cfg_path' in node:  # a student, whose parts are whole only with those of its recipe
        node = student_cfg(node)
    if path.rpartition('.')[0] == 'model.teachers':
        node = {key: value for key, value in node.items() if key not in OWN_OPTIONS}
    _check_type(node, path)
    for key, value in node.items():
        check_types(value, f'{path}.{key}' if path else str(key))


def _check_type(node: Mapping, path: str) -> None:
    """Check one typed dict."""
    name = node.get('type')
    if not isinstance(name, str):
        return
    registries = _our_registries().values()
    ours = {n: cls for r in registries for n, cls in r.module_dict.items()}
    if '.methods.' in path and name in {**METHODS.module_dict, **SCHEDULES.module_dict}:
        name = PREFIX + name  # as the Distiller takes them
    if name in ours:
        raise ValueError(
            f'{path}: types of kd_mm are written with their prefix; write type={PREFIX + name!r} '
            f'instead of {name!r}'
        )
    if not name.startswith(PREFIX):
        _check_other(node, path)
        return
    short = name.removeprefix(PREFIX)
    if short not in ours:
        raise ValueError(f'{path}: kd_mm has no {short}{_guess(short, list(ours))}')
    # A method and the model type of its name.
    known = set().union(
        *(options(r.module_dict[short]) for r in registries if short in r.module_dict)
    )
    if short in kd_mm.registry.HOOKS.module_dict:
        known |= {'priority'}
    if short in kd_mm.registry.OPTIM_WRAPPERS.module_dict:  # for who builds it
        known |= {'constructor', 'paramwise_cfg', 'parts'}
    for key in node:
        if key not in known and key not in ('type', '_scope_'):
            raise TypeError(f'{path}: {name} has no option {key}{_guess(key, list(known))}')
    if inspect.isclass(ours[short]) and issubclass(ours[short], DistillingHead):
        MODELS.build(node)  # a head is small, and knows the ranges of its options


def _check_other(node: Mapping, path: str) -> None:
    """Check a typed dict of MMEngine, MMCV, mmpretrain or a fourth project."""
    name = node['type']
    kind = re.sub(r'\[\d+\]', '', path).rpartition('.')[2]
    if kind in NO_REGISTRY:
        return
    found = find_type(node)
    if not found:
        known = _known_names()
        near = difflib.get_close_matches(name.rpartition('.')[2], known, n=1)
        hint = (
            f'did you mean {known[near[0]]}?'
            if near
            else 'install what it needs, or import the module that registers it: '
            'custom_imports=dict(imports=[...], allow_failed_imports=False)'
        )
        raise ValueError(f'{path}: no {name} is registered; {hint}')
    errors = [_unknown_option(node, registry, part) for registry, part in found.items()]
    if None not in errors and not kind.endswith('_cfg'):  # builders of layers take more
        raise TypeError(f'{path}: {name} has no option {errors[0]}')


def _unknown_option(node: Mapping, registry: str, part: Any) -> str | None:
    """Return the first option that a class does not take, with a hint, if that can be told."""
    if not inspect.isclass(part) or registry not in CHECKED:
        return None
    parameters = inspect.signature(part).parameters
    known = {*parameters, *CHECKED[registry]}
    if part is CheckpointHook:  # hands the rest on
        known |= set(inspect.signature(Runner.save_checkpoint).parameters)
    elif any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        return None
    unknown = [key for key in node if key not in known and key not in ('type', '_scope_')]
    return f'{unknown[0]}{_guess(unknown[0], list(known))}' if unknown else None


def find_type(node: Mapping) -> dict[str, Any]:
    """Return what the type of a dict stands for; one name may be a data set and a metric.

    Args:
        node: A typed dict of a config.

    Returns:
        dict[str, Any]: Name of a registry -> what it builds of the type.
    """
    default = DefaultScope.get_current_instance()
    scope = node.get('_scope_') or (default.scope_name if default else 'mmpretrain')
    _import_scope(scope)
    found = {r.name: _look_up(node['type'], r.children.get(scope, r)) for r in _root_registries()}
    return {registry: part for registry, part in found.items() if part is not None}


def _look_up(name: str, registry: Registry) -> Any:
    """Return what a registry has under a name."""
    if '.' in name:  # a scope, or the path of a module
        return registry.get(name)
    while registry is not None:  # as Registry.get, which then tries to import the name
        registry.import_from_location()
        if name in registry.module_dict:
            return registry.module_dict[name]
        registry = registry.parent
    return None


@cache
def _import_scope(scope: str) -> None:
    """Make the registries of a project known to their parents, as MMEngine does in building."""
    with suppress(ImportError):
        import_module(f'{scope}.registry')


@cache
def _root_registries() -> list[Registry]:
    """Return each registry that has no parent: MMEngine's, and what mmpretrain has beside them."""
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
        registries += registry.children.values()
        prefix = '' if registry.scope in ('mmengine', 'mmpretrain') else f'{registry.scope}.'
        names |= {name: prefix + name for name in registry.module_dict}
    return names


def check_parts(cfg: Config) -> None:
    """Check what a cohort's model, hooks and schedules owe each other.

    Args:
        cfg: Config of a run.

    Raises:
        ValueError: If a schedule is by part and the parts are others than the optimizer's, or a
            hook is for one network alone.
    """
    hooks = [*(cfg.get('custom_hooks') or []), *(cfg.get('default_hooks') or {}).values()]
    precise = [
        h for h in hooks if isinstance(h, Mapping) and 'PreciseBNHook' in str(h.get('type'))
    ]
    if precise and 'students' in cfg.model:
        raise ValueError(
            f'{precise[0]["type"]} sees the deployed student of a cohort alone, and leaves the '
            'statistics of the others as they are; leave it out'
        )
    parts = (cfg.get('optim_wrapper') or {}).get('parts')
    schedules = cfg.get('param_scheduler')
    by_part = isinstance(schedules, Mapping) and 'type' not in schedules
    if parts and by_part and set(schedules) != set(parts):
        raise ValueError(
            'schedules by part must have the parts of the optimizer, but param_scheduler has '
            f'{", ".join(schedules)} and optim_wrapper.parts has {", ".join(parts)}'
        )


def check_folder(folder: str | Path, name: str = 'the work dir', flag: str = '--work-dir') -> Path:
    """Check that files can be written into a folder.

    Args:
        folder: A folder that may not exist yet.
        name: What it is, for the message.
        flag: What sets it, for the message.

    Returns:
        The folder, or the one above it that exists.

    Raises:
        OSError: If it cannot be made or written to.
    """
    above = Path(folder).absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise NotADirectoryError(
            f'{name} must be a folder, but {above} is a file; choose another {flag}'
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(
            f'{name} must be writable, but {above} is not; choose another {flag}'
        )
    return above


def check_same_classes(datasets: Mapping[str, Sequence]) -> None:
    """Check that folders give a class the same number in training as in validation.

    Args:
        datasets: Data sets by the name of their loader.

    Raises:
        ValueError: If two that number their folders do so differently.
    """
    inner = {name: inner_datasets(dataset) for name, dataset in datasets.items()}
    named = {
        name: first.metainfo['classes']
        for name, (first, *_) in inner.items()  # MMEngine refuses to join different classes
        if type(first) is CustomDataset and first.metainfo.get('classes')
    }
    for (first, one), (second, other) in pairwise(named.items()):
        if tuple(one) != tuple(other):
            odd = sorted(set(one) ^ set(other))
            differ = f'only one of them has {listed(odd)}' if odd else 'the order differs'
            # A Mac may spell a letter and its accent apart, which looks the same.
            alike = [name for name in odd if not is_normalized('NFC', name)]
            if alike and len({normalize('NFC', name) for name in odd}) < len(odd):
                raise ValueError(
                    f'{first} and {second} must spell their classes alike, but {alike[0]} is '
                    f'{alike[0]!a} in one and {normalize("NFC", alike[0])!a} in the '
                    'other; rename the folders of one'
                )
            raise ValueError(
                f'{first} and {second} must number the same classes, or their labels mean '
                f'different ones, but {differ}; set classes=[...] of both data sets'
            )


def listed(names: Sequence[str]) -> str:
    """Return the first few names."""
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return ', '.join(names[:SHOWN]) + more


def _num_classes(model: Mapping) -> int | None:
    """Return the number of classes of a classifier or of a cohort's deployed student."""
    distiller = as_distiller(model)
    if distiller is not None:
        students = distiller.get('students') or {'': distiller.get('student') or {}}
        name = distiller.get('deploy') or min(students, default=None)
        model = student_cfg(students.get(name, {}))
    return (model.get('head') or {}).get('num_classes')


def _folders(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield each ``data_root`` of a data set and of those that it wraps."""
    if isinstance(node, Mapping):
        # A data set that can download itself may start from nothing.
        cls = DATASETS.get(node['type']) if isinstance(node.get('type'), str) else None
        if cls is not None and 'download' in options(cls):
            return
        if isinstance(node.get('data_root'), str) and node['data_root']:
            yield f'{path}.data_root', node['data_root']
        for key in ('dataset', 'datasets'):
            yield from _folders(node.get(key), f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, part in enumerate(node):
            yield from _folders(part, f'{path}[{index}]')


def check_dataloader(cfg: Config, name: str) -> Sequence:
    """Check a data loader's folder, labels and batch against the model and the sampler.

    Args:
        cfg: Config of a run.
        name: One of its data loaders.

    Returns:
        The loader's data set.

    Raises:
        FileNotFoundError: If the data folder is missing or empty.
        ValueError: If labels, classes, batch size and sampler do not fit each other.
    """
    loader = cfg[name]
    for path, folder in _folders(loader.dataset, f'{name}.dataset'):
        if '://' in folder:
            continue
        root = Path(folder).expanduser()
        if not root.is_dir() or not any(root.iterdir()):
            state = 'is empty' if root.is_dir() else 'does not exist'
            state = 'is a file' if root.is_file() else state
            raise FileNotFoundError(
                f'the data folder {folder} {state}; put the data there or pass '
                f'--cfg-options {path}=FOLDER'
            )

    sampler = loader.get('sampler') or {}
    ours = sampler.get('type') == 'kd_mm.ClassInstanceSampler'
    num_instances, batch_size = sampler.get('num_instances'), loader.get('batch_size')
    # What is no number of images is for the sampler to refuse.
    if ours and type(num_instances) is int and num_instances > 1 and batch_size % num_instances:
        raise ValueError(
            f'{name}.batch_size must be a multiple of sampler.num_instances, so that an anchor '
            f'and its partners share a batch, but got {batch_size} and {num_instances}; the '
            f'nearest are {batch_size - batch_size % num_instances or num_instances} and '
            f'{batch_size + num_instances - batch_size % num_instances}'
        )

    fix = 'look at its options, its data_root, and the lines of its ann_file'
    if loader.dataset.get('type') in ('ImageNet', 'mmpretrain.ImageNet'):
        fix += "; a folder with other classes than ImageNet's is a CustomDataset"
    with explained(f'{name}.dataset cannot be read', fix):
        dataset = DATASETS.build(loader.dataset)
        size = len(dataset)
    if size == 0:
        raise ValueError(f'a data set must have images, but {name}.dataset has none; {fix}')
    collate = (loader.get('collate_fn') or {}).get('type')
    if isinstance(dataset, InMemory) and collate != f'{PREFIX}batch_collate':
        raise ValueError(
            f'kd_mm.InMemory gives whole batches, but {name}.collate_fn is {collate!r}; set '
            "collate_fn=dict(type='kd_mm.batch_collate')"
        )
    if ours:
        with dry_run.quiet(), explained(f'{name}.sampler cannot be built', 'look at its options'):
            DATA_SAMPLERS.build(sampler, default_args={'dataset': dataset, 'seed': 0})
    num_classes = _num_classes(cfg.model)
    try:
        labels, _, classes, _ = index_labels(dataset)
    except (TypeError, ValueError):
        if ours:
            raise
        return dataset
    if labels.size and labels.min() < 0:
        raise ValueError(
            f'labels must be at least 0, but {name} has the label {labels.min()}; mend the labels'
        )
    if num_classes is not None and labels.size and labels.max() >= num_classes:
        of = f', whose classes are {listed(classes)}' if classes else ''
        raise ValueError(
            f'num_classes of the head must exceed every label, but got {num_classes} and the '
            f'label {labels.max()} in {name}{of}; set head.num_classes={labels.max() + 1} or '
            'more, or mend the labels'
        )
    return dataset
