"""From a kd_mm checkpoint to plain mmpretrain weights and config."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.utils import digit_version
from mmpretrain.models.utils import ShiftWindowMSA
from torch import Tensor, nn

from kd_mm.checkpoint import check_keys
from kd_mm.config import explained
from kd_mm.installation import import_optional
from kd_mm.methods.base import Roles
from kd_mm.models.distiller import (
    SINGLE,
    Distiller,
    as_distiller,
    build_methods,
    choose_deployed,
    find_roles,
)
from kd_mm.models.networks import deepest_only, student_cfg
from kd_mm.plain import Replaceable
from kd_mm.registry import DATA_SAMPLERS, DATASETS, METRICS, MODELS, OPTIM_WRAPPERS, SCOPE

PREFIX = f'{SCOPE}.'
CONFIG = 'config.py'
REGISTRIES = (MODELS, DATASETS, DATA_SAMPLERS, METRICS, OPTIM_WRAPPERS)
FORMATS = ('pth', 'safetensors', 'onnx')
# What a logit may differ by. ONNX Runtime computes in another order: relative to the largest one,
# where that is above 1.
TOLERANCE, ONNX_TOLERANCE = 1e-5, 1e-4


class Export(NamedTuple):
    """What an export wrote.

    Attributes:
        weights: Path of the plain weights, ``model.pth``, ``.safetensors`` or ``.onnx``.
        config: Path of the plain config.
        difference: Largest absolute difference of a logit between the trained and the plain
            model, or its ONNX graph, on random images.
        needs: Types in the config that only kd_mm has.
    """

    weights: Path
    config: Path
    difference: float
    needs: tuple[str, ...]


def choose_weights(checkpoint: Mapping[str, Any], ema: bool | None = None) -> Mapping[str, Tensor]:
    """Return the weights of a model, averaged ones or those that the optimizer saw.

    In a checkpoint of a run with MMEngine's ``EMAHook``, ``state_dict`` holds the average, which
    validation looks at, and ``ema_state_dict`` the weights that were trained, as ``module.*``.

    Args:
        checkpoint: What a run wrote.
        ema: True for the average, False for the weights without it, None for ``state_dict``,
            whatever it is.

    Returns:
        Weights by name. A run without average has one set, which is what False gives.

    Raises:
        ValueError: If there is no average to give.

    Examples:
        >>> checkpoint = {'state_dict': {'w': 1}, 'ema_state_dict': {'steps': 9, 'module.w': 2}}
        >>> choose_weights(checkpoint, ema=True), choose_weights(checkpoint, ema=False)
        ({'w': 1}, {'w': 2})
    """
    beside = checkpoint.get('ema_state_dict')
    if ema and beside is None:
        raise ValueError(
            'an average of weights needs a checkpoint with ema_state_dict, as a run with an '
            f'EMAHook writes it, but this one has {", ".join(checkpoint)}; leave --ema out'
        )
    if ema is not False or beside is None:
        return checkpoint['state_dict']
    prefix = 'module.'
    return {key.removeprefix(prefix): w for key, w in beside.items() if key.startswith(prefix)}


def _type_of(node: Any) -> Any:
    """Return what the type of a config stands for, if it is one of kd_mm or of its users."""
    name = str(node.get('type')) if isinstance(node, Mapping) else ''
    if '.' not in name:
        return None
    found = (registry.get(name) for registry in REGISTRIES if name.split('.')[0] != 'mmpretrain')
    return next((cls for cls in found if cls is not None), None)


def plain_part(node: Any) -> Any:
    """Return a part of a config without distillation.

    Args:
        node: A part of a config, left as it is.

    Returns:
        A new one in which each :class:`~kd_mm.plain.Replaceable` has its plain form. Backbones and
        data sets that only kd_mm has keep their ``kd_mm.`` type.

    Examples:
        >>> plain_part({'head': {'type': 'kd_mm.BAKEHead', 'omega': 0.5, 'in_channels': 64}})
        {'head': {'type': 'LinearClsHead', 'in_channels': 64}}
    """
    if isinstance(node, (list, tuple)):
        return type(node)(map(plain_part, node))
    if not isinstance(node, Mapping):
        return node
    cls = _type_of(node)
    if isinstance(cls, type) and issubclass(cls, Replaceable):
        return plain_part(cls.plain(node))
    return {key: plain_part(value) for key, value in node.items()}


def our_types(node: Any) -> set[str]:
    """Return the types in a config that are kd_mm's.

    Args:
        node: A config or a part of it.

    Returns:
        Their names, with prefix.

    Examples:
        >>> our_types({'a': [{'type': 'kd_mm.Digits'}], 'type': 'LeNet5'})
        {'kd_mm.Digits'}
    """
    if isinstance(node, Mapping):
        name = str(node.get('type'))
        own = {name} if name.startswith(PREFIX) else set()
        return own.union(*map(our_types, node.values()))
    return set().union(*map(our_types, node)) if isinstance(node, (list, tuple)) else set()


def _without_our_scope(node: Any) -> Any:
    """Return a config without the scope that MMEngine notes where a config of ours is inherited.

    What it marks is found without: only types with our prefix are ours.
    """
    if isinstance(node, Mapping):
        return {
            key: _without_our_scope(value)
            for key, value in node.items()
            if (key, value) != ('_scope_', SCOPE)
        }
    return [_without_our_scope(part) for part in node] if isinstance(node, list) else node


def _roles_of(cfg: Config) -> tuple[dict | None, list[Roles]]:
    """Return the options of a config's Distiller, and what its methods make of the students."""
    options = as_distiller(cfg.model)
    if options is None:
        return None, []
    methods = build_methods(options.get('methods') or {})
    students = tuple(sorted(options.get('students') or [SINGLE]))
    teachers = tuple(sorted(options.get('teachers') or {}))
    return options, find_roles(methods, students, teachers, options.get('views', 'shared'))


def student_names(cfg: Config) -> list[str]:
    """Return the names of a model's students, the deployed one first; none for one network.

    Args:
        cfg: Config of a kd_mm run.

    Returns:
        Names that :func:`export_student` takes.
    """
    options, roles = _roles_of(cfg)
    if options is None or not options.get('students'):
        return []
    names = sorted(options['students'])
    deploy = choose_deployed(roles, tuple(names), options.get('deploy'))
    return [deploy, *(name for name in names if name != deploy)]


def shipped_names(cfg: Config) -> list[str]:
    """Return the names of the students that a finished training exports.

    Args:
        cfg: Config of a kd_mm run.

    Returns:
        All students, the deployed one first, or those that the methods export: of FFSD the leader
        alone, if it has one. None for one network.
    """
    chosen = [role.exported for role in _roles_of(cfg)[1] if role.exported is not None]
    return [name for name in student_names(cfg) if all(name in names for names in chosen)]


def _choose_student(cfg: Config, student: str | None) -> str | None:
    """Return the student to export, or None for one network alone."""
    names = student_names(cfg)
    if student is not None and student not in names:
        raise ValueError(
            f'student must be one of {", ".join(names)}, but got {student!r}'
            if names
            else f'the config trains one network, so there is no student {student!r}; leave it out'
        )
    return student or (names[0] if names else None)


def _plain_pipeline(pipeline: list[dict]) -> list[dict]:
    """Return a training pipeline with one view of each image."""
    plain = []
    for transform in pipeline:
        many = str(transform.get('type')).rpartition('.')[2] == 'MultiView'
        plain.extend(transform['transforms'][0] if many else [transform])
    return plain


def _plain_train_dataloader(loader: dict, augments: Sequence[dict]) -> dict:
    """Return the loader of a plain training on all images.

    Args:
        loader: Config of the loader.
        augments: What the preprocessor does to its batches, which becomes a part of the pipeline.
    """
    plain = plain_part(loader)
    collate = str((loader.get('collate_fn') or {}).get('type'))
    if collate.startswith(PREFIX):
        plain['collate_fn'] = {'type': 'default_collate'}
    dataset = plain.get('dataset') or {}
    if 'pipeline' in dataset:
        drawn = [t for augment in augments for t in MODELS.build(augment).transforms]
        steps = _plain_pipeline(dataset['pipeline'])
        plain['dataset'] = {**dataset, 'pipeline': [*steps[:-1], *drawn, *steps[-1:]]}
    return plain


def _plain_hooks(hooks: Mapping[str, Any], students: list[str]) -> dict:
    """Return default hooks without ours, and without the metric of one of several students."""
    plain = {key: hook for key, hook in hooks.items() if not our_types(hook)}
    save_best = (plain.get('checkpoint') or {}).get('save_best')
    if students and isinstance(save_best, str):
        plain['checkpoint'] = {**plain['checkpoint'], 'save_best': 'auto'}
    return plain


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


def _plain_network(
    options: Mapping, roles: Sequence[Roles], name: str | None, default: Mapping | None
) -> dict:
    """Return the config of one student of a Distiller as a model of its own.

    Args:
        options: Of the Distiller.
        roles: What its methods make of the students.
        name: The student; None for one network.
        default: The preprocessor that the run gives to a model without one.
    """
    network = student_cfg(options['student'] if name is None else options['students'][name])
    if any(role.stages is not None for role in roles):
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
    name = _choose_student(cfg, student)
    options, roles = _roles_of(cfg)
    if options is not None:
        default = plain.get('data_preprocessor')
        plain['model'] = _plain_network(options, roles, name, default)
        optim_wrapper = plain.get('optim_wrapper') or {}
        if 'parts' in optim_wrapper:
            part = _part_of(name or SINGLE, optim_wrapper['parts'])
            plain['optim_wrapper'] = {
                key: value
                for key, value in optim_wrapper['parts'][part].items()
                if key != 'prefix'
            }
            if isinstance(plain.get('param_scheduler'), Mapping):
                plain['param_scheduler'] = plain['param_scheduler'].get(
                    part, plain['param_scheduler']
                )
    augments = _preprocessor_of(plain).get('augments', ())
    if plain.get('train_dataloader'):
        plain['train_dataloader'] = _plain_train_dataloader(plain['train_dataloader'], augments)
    for key in ('model', 'optim_wrapper', 'val_evaluator', 'test_evaluator', 'data_preprocessor'):
        if plain.get(key):
            plain[key] = plain_part(plain[key])
    if plain.get('default_hooks'):
        plain['default_hooks'] = _plain_hooks(plain['default_hooks'], student_names(cfg))
    if plain.get('custom_hooks'):
        plain['custom_hooks'] = [h for h in plain['custom_hooks'] if not our_types(h)]
    plain.update(launcher='none', load_from=None, resume=False)
    for key in ('work_dir', 'model_wrapper_cfg'):
        plain.pop(key, None)
    plain = _without_our_scope(plain)
    if not our_types(plain) and 'custom_imports' in plain:
        imports = [name for name in plain['custom_imports']['imports'] if name != 'kd_mm']
        plain['custom_imports']['imports'] = imports
        if not imports:
            del plain['custom_imports']
    return Config(plain)


def _preprocessor_of(cfg: Mapping) -> Mapping:
    """Return the config of the preprocessor of a plain model: its own, or the run's."""
    return cfg['model'].get('data_preprocessor') or cfg.get('data_preprocessor') or {}


def _random_images(cfg: Config, count: int = 2) -> Tensor:
    """Return images of the shape that the config's test pipeline ends in."""
    height = width = 224
    loader = cfg.get('test_dataloader') or {}
    for transform in loader.get('dataset', {}).get('pipeline', []):
        size = transform.get('crop_size', transform.get('scale'))
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else (size[1], size[0])
    mean = _preprocessor_of(cfg).get('mean')
    channels = len(mean) if isinstance(mean, (list, tuple)) else 3
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, height, width, generator=generator)


def _load(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights that must fit to the name."""
    check_keys(state_dict, model.state_dict(), 'the checkpoint')
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise ValueError(
            f'the checkpoint must hold exactly the weights of the config; use the config that '
            f'was dumped beside it. {error}'
        ) from None


def _reverse_windows(windows: Tensor, height: int, width: int, size: int) -> Tensor:
    """Put windows (n, size, size, C) of Swin back together, into (N, height, width, C).

    As mmpretrain's, which divides by the number of windows and so fixes N in a graph.
    """
    rows, columns, channels = height // size, width // size, windows.shape[-1]
    maps = windows.view(-1, rows, columns, size, size, channels).permute(0, 1, 3, 2, 4, 5)
    return maps.contiguous().view(-1, height, width, channels)


def _onnx_graph(network: nn.Module, images: Tensor) -> bytes:
    """Return the network as an ONNX file: ``images`` (N, C, H, W) to ``logits`` (N, K), any N."""
    for module in network.modules():
        if isinstance(module, ShiftWindowMSA):
            module.window_reverse = _reverse_windows
    try:
        program = torch.onnx.export(
            network,
            (images,),
            input_names=['images'],
            output_names=['logits'],
            dynamic_shapes=({0: 'batch'},),
            dynamo=True,
            verbose=False,
        )
    except RuntimeError as error:  # torch's own errors of export are such
        raise ValueError(
            f'torch {torch.__version__} cannot write this network as ONNX; nothing was written. '
            f'({str(error).strip().partition(chr(10))[0]})'
        ) from error
    return program.model_proto.SerializeToString()


def _run_onnx(graph: bytes, images: Tensor) -> Tensor:
    """Return the logits (N, K) that ONNX Runtime computes on a CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(['logits'], {'images': images.numpy()})[0])


def _check_difference(found: Tensor, expected: Tensor, tolerance: float, what: str) -> float:
    """Return the largest difference of a logit, if it is small."""
    difference = (found - expected).abs().max().item()
    if not difference <= tolerance:
        raise ValueError(
            f'{what} must answer as the trained model, up to {tolerance:.1e}, but a logit '
            f'differs by {difference:.1e}; nothing was written'
        )
    return difference


def _require(file_format: str) -> None:
    """Raise if a format is unknown, or a package that it takes is missing."""
    if file_format not in FORMATS:
        raise ValueError(
            f'the format must be one of {", ".join(FORMATS)}, but got {file_format!r}'
        )
    if file_format == 'safetensors':
        import_optional('--format safetensors', 'safetensors')
    if file_format == 'onnx':
        import_optional('--format onnx', 'onnx', 'onnxscript', 'onnxruntime')
        if digit_version(torch.__version__) < digit_version('2.6'):
            raise ImportError(f'--format onnx needs torch>=2.6, but found {torch.__version__}')


def _plain_values(node: Any) -> Any:
    """Return what any reader takes: what is no container, number or text becomes text."""
    if isinstance(node, Mapping):
        return {str(key): _plain_values(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(map(_plain_values, node))
    if isinstance(node, (np.ndarray, np.generic)):
        return node.tolist()
    return node if node is None or isinstance(node, (str, int, float)) else str(node)


def _weights_file(file_format: str, state_dict: dict[str, Tensor], meta: dict) -> bytes:
    """Return what the file of the weights holds."""
    if file_format == 'safetensors':
        (safetensors,) = import_optional('--format safetensors', 'safetensors.torch')
        told = {name: json.dumps(value) for name, value in meta.items()}
        return safetensors.save(state_dict, {'format': 'pt', **told})
    buffer = io.BytesIO()
    torch.save({'state_dict': state_dict, 'meta': meta}, buffer)
    return buffer.getvalue()


def _put(files: Mapping[Path, bytes]) -> None:
    """Write files, each under another name first, so that none is ever there by half."""
    parts = {path: path.with_name(f'{path.name}.part') for path in files}
    try:
        for path, content in files.items():
            parts[path].write_bytes(content)
        for path, part in parts.items():
            os.replace(part, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


@torch.no_grad()
def export_student(
    cfg: Config,
    state_dict: Mapping[str, Tensor],
    out_dir: str | Path,
    meta: dict | None = None,
    student: str | None = None,
    file_format: str = 'pth',
) -> Export:
    """Write plain mmpretrain weights and config, after comparing their logits with the original.

    Args:
        cfg: Config of the kd_mm run.
        state_dict: Weights of its model; see :func:`choose_weights`.
        out_dir: Folder for ``model.<file_format>`` and ``config.py``; made if missing. The two
            files are replaced if they are there.
        meta: What else a checkpoint shall tell, such as ``dataset_meta`` with the classes.
        student: Name of a student of a cohort; by default the deployed one.
        file_format: ``'pth'``: a checkpoint that ``torch.load(weights_only=True)`` reads.
            ``'safetensors'``: tensors by name; ``meta`` is JSON in its metadata. ``'onnx'``: a
            graph from preprocessed ``images`` (N, C, H, W) in float32, any N, with the size of
            the config's test pipeline, to ``logits`` (N, K).

    Returns:
        The two paths, the largest difference of a logit on random images, and the types of kd_mm
        that the config needs.

    Raises:
        ValueError: If there is no such student or format, the weights do not fit the config, or
            the plain model or its graph answers differently. Nothing is written then.
        ImportError: If the format takes a package that is not installed.
    """
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    _require(file_format)
    if any(path.is_file() for path in (Path(out_dir), *Path(out_dir).parents)):
        raise NotADirectoryError(
            f'the export needs a folder, but {out_dir} is a file, or lies in one; choose another'
        )
    name = _choose_student(cfg, student)
    plain = plain_cfg(cfg, name)
    with explained('the model cannot be built', 'use the config that was dumped beside it'):
        trained, network = (MODELS.build(deepcopy(c.model)).eval() for c in (cfg, plain))
    _load(trained, state_dict)
    if isinstance(trained, Distiller):
        state_dict = trained.state_dict(keep_vars=True)
        prefix = '' if name is None else f'students.{name}.'
        trained = trained.students[name or SINGLE]
        known = trained.state_dict()
        state_dict = {
            key.removeprefix(prefix): weight
            for key, weight in state_dict.items()
            if key.startswith(prefix) and key.removeprefix(prefix) in known
        }
        # The norms of maps that a deployed backbone does not give. The logits tell if it is more.
        unused = state_dict.keys() - network.state_dict().keys()
        for key in (key for key in unused if key.startswith('backbone.')):
            del state_dict[key]
    _load(network, state_dict)
    images = _random_images(plain, 3)
    expected = trained(images)
    difference = _check_difference(network(images), expected, TOLERANCE, 'the plain model')
    if file_format == 'onnx':
        content = _onnx_graph(network, images[:2])
        tolerance = ONNX_TOLERANCE * max(1, expected.abs().max().item())
        # Another number of images than the graph was drawn with, and one alone.
        found = torch.cat([_run_onnx(content, images), _run_onnx(content, images[:1])])
        expected = torch.cat([expected, expected[:1]])
        difference = _check_difference(found, expected, tolerance, 'the ONNX graph')
    else:
        content = _weights_file(file_format, dict(network.state_dict()), _plain_values(meta or {}))

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    weights, config = out_dir / f'model.{file_format}', out_dir / CONFIG
    _put({weights: content, config: plain.pretty_text.encode()})
    return Export(weights, config, difference, tuple(sorted(our_types(plain.to_dict()))))
