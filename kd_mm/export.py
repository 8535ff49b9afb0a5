"""From a kd_mm checkpoint to plain mmpretrain weights and config."""

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.evaluation import Accuracy
from torch import Tensor, nn

from kd_mm.models.algorithms import FFSD, BaseCohort
from kd_mm.models.algorithms.base import student_cfg
from kd_mm.models.algorithms.ffsd import deepest_only
from kd_mm.models.heads import BAKEMixin
from kd_mm.registry import MODELS
from kd_mm.utils.checkpoint import check_keys

PREFIX = 'kd_mm.'
WEIGHTS, CONFIG = 'model.pth', 'config.py'
TOLERANCE = 1e-5


class Export(NamedTuple):
    """What an export wrote.

    Attributes:
        weights: Path of the plain checkpoint.
        config: Path of the plain config.
        difference: Largest absolute difference of a logit between the trained and the plain
            model, on random images.
    """

    weights: Path
    config: Path
    difference: float


def _plain_head(head: dict) -> dict:
    """Return the config of the mmpretrain head that a BAKE head extends."""
    cls = MODELS.get(head['type'])
    plain = next(base for base in cls.__mro__ if base.__module__.startswith('mmpretrain.'))
    own = inspect.signature(BAKEMixin.__init__).parameters
    return {'type': plain.__name__, **{k: v for k, v in head.items() if k not in {'type', *own}}}


def _is_bake_head(node: Mapping) -> bool:
    """Tell whether a config builds one of our BAKE heads."""
    name = str(node.get('type'))
    cls = MODELS.get(name) if name.startswith(PREFIX) else None
    return cls is not None and issubclass(cls, BAKEMixin)


def plain_model_cfg(model: Any) -> Any:
    """Return the config of the same network without distillation.

    Args:
        model: Config of a classifier or of a part of it, left as it is.

    Returns:
        A new config in which each head of ours is the mmpretrain head that it extends. Backbones
        that only kd_mm has keep their ``kd_mm.`` type.

    Examples:
        >>> plain_model_cfg({'head': {'type': 'kd_mm.BAKEHead', 'omega': 0.5, 'in_channels': 64}})
        {'head': {'type': 'LinearClsHead', 'in_channels': 64}}
    """
    if isinstance(model, (list, tuple)):
        return [plain_model_cfg(part) for part in model]
    if not isinstance(model, Mapping):
        return model
    if _is_bake_head(model):
        return _plain_head(model)
    return {key: plain_model_cfg(value) for key, value in model.items()}


def _names_ours(node: Any) -> bool:
    """Tell whether any type in a config is one of ours."""
    if isinstance(node, Mapping):
        return str(node.get('type', '')).startswith(PREFIX) or any(
            _names_ours(value) for value in node.values()
        )
    return isinstance(node, (list, tuple)) and any(_names_ours(value) for value in node)


def student_names(cfg: Config) -> list[str]:
    """Return the names of a cohort's students, the deployed one first; none for one network.

    Args:
        cfg: Config of a kd_mm run.

    Returns:
        Names that :func:`export_student` takes.
    """
    cls = _model_class(cfg)
    if cls is None or not issubclass(cls, BaseCohort):
        return []
    names = list(cfg.model.students)
    deploy = cfg.model.get('deploy') or _leader(cfg) or names[0]
    return [deploy, *(name for name in names if name != deploy)]


def shipped_names(cfg: Config) -> list[str]:
    """Return the names of the students that a finished training exports.

    Args:
        cfg: Config of a kd_mm run.

    Returns:
        All students, the deployed one first; of an FFSD cohort the leader alone, if it has one.
        None for one network.
    """
    leader = _leader(cfg)
    return student_names(cfg) if leader is None else [leader]


def _model_class(cfg: Config) -> type | None:
    return MODELS.get(str(cfg.model.get('type')))


def _leader(cfg: Config) -> str | None:
    """Return the name of an FFSD cohort's leader."""
    cls = _model_class(cfg)
    if cls is None or not issubclass(cls, FFSD):
        return None
    default = inspect.signature(FFSD).parameters['leader'].default
    return cfg.model.get('leader', default)


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


def _plain_train_dataloader(loader: dict) -> dict:
    """Return the loader of a plain training on all images."""
    plain = {**loader}
    if (plain.get('sampler') or {}).get('type') == f'{PREFIX}ClassInstanceSampler':
        plain['sampler'] = {'type': 'DefaultSampler', 'shuffle': True}
    dataset = plain.get('dataset') or {}
    if dataset.get('type') == f'{PREFIX}HoldOut':
        dataset = dataset['dataset']
    if 'pipeline' in dataset:
        dataset = {**dataset, 'pipeline': _plain_pipeline(dataset['pipeline'])}
    return {**plain, 'dataset': dataset}


def _plain_evaluator(evaluator: Any) -> Any:
    """Return mmpretrain's accuracy in place of a cohort's."""
    if isinstance(evaluator, (list, tuple)):
        return [_plain_evaluator(part) for part in evaluator]
    if isinstance(evaluator, Mapping) and evaluator.get('type') == f'{PREFIX}CohortAccuracy':
        known = inspect.signature(Accuracy).parameters
        return {**{k: v for k, v in evaluator.items() if k in known}, 'type': 'Accuracy'}
    return evaluator


def _plain_hooks(hooks: Mapping[str, Any], students: list[str]) -> dict:
    """Return default hooks without ours, and without the metric of one of several students."""
    plain = {key: hook for key, hook in hooks.items() if not _names_ours(hook)}
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
    if name is not None:
        augments = plain['model'].get('train_cfg')
        student = student_cfg(plain['model']['students'][name])
        if issubclass(_model_class(cfg), FFSD):
            student = deepest_only(student)
        plain['model'] = student.to_dict()
        if augments:
            plain['model']['train_cfg'] = augments
        optim_wrapper = plain.get('optim_wrapper') or {}
        if 'parts' in optim_wrapper:
            part = _part_of(name, optim_wrapper['parts'])
            plain['optim_wrapper'] = {
                key: value
                for key, value in optim_wrapper['parts'][part].items()
                if key != 'prefix'
            }
            if isinstance(plain.get('param_scheduler'), Mapping):
                plain['param_scheduler'] = plain['param_scheduler'].get(
                    part, plain['param_scheduler']
                )
    plain['model'] = plain_model_cfg(plain['model'])
    if plain.get('train_dataloader'):
        plain['train_dataloader'] = _plain_train_dataloader(plain['train_dataloader'])
    for key in ('val_evaluator', 'test_evaluator'):
        if plain.get(key):
            plain[key] = _plain_evaluator(plain[key])
    if plain.get('default_hooks'):
        plain['default_hooks'] = _plain_hooks(plain['default_hooks'], student_names(cfg))
    if plain.get('custom_hooks'):
        plain['custom_hooks'] = [h for h in plain['custom_hooks'] if not _names_ours(h)]
    plain.update(launcher='none', load_from=None, resume=False)
    for key in ('work_dir', 'model_wrapper_cfg'):
        plain.pop(key, None)
    if not _names_ours(plain) and 'custom_imports' in plain:
        imports = [name for name in plain['custom_imports']['imports'] if name != 'kd_mm']
        plain['custom_imports']['imports'] = imports
        if not imports:
            del plain['custom_imports']
    return Config(plain)


def _random_images(cfg: Config, count: int = 2) -> Tensor:
    """Return images of the shape that the config's test pipeline ends in."""
    height = width = 224
    loader = cfg.get('test_dataloader') or {}
    for transform in loader.get('dataset', {}).get('pipeline', []):
        size = transform.get('crop_size', transform.get('scale'))
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else (size[1], size[0])
    channels = len((cfg.get('data_preprocessor') or {}).get('mean', 'RGB'))
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


@torch.no_grad()
def export_student(
    cfg: Config,
    state_dict: Mapping[str, Tensor],
    out_dir: str | Path,
    meta: dict | None = None,
    student: str | None = None,
) -> Export:
    """Write plain mmpretrain weights and config, after comparing their logits with the original.

    Args:
        cfg: Config of the kd_mm run.
        state_dict: Weights of its model.
        out_dir: Folder for ``model.pth`` and ``config.py``; made if missing. The two files are
            replaced if they are there.
        meta: What else the checkpoint shall tell, such as ``dataset_meta`` with the classes.
        student: Name of a student of a cohort; by default the deployed one.

    Returns:
        The two paths, and the largest difference of a logit on two random images.

    Raises:
        ValueError: If there is no such student, the weights do not fit the config, or the plain
            model answers differently. Nothing is written then.
    """
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    name = _choose_student(cfg, student)
    plain = plain_cfg(cfg, name)
    trained, network = (MODELS.build(c.model).eval() for c in (cfg, plain))
    _load(trained, state_dict)
    if name is not None:
        prefix = f'students.{name}.'
        trained = trained.students[name]
        state_dict = {
            key.removeprefix(prefix): weight
            for key, weight in state_dict.items()
            if key.startswith(prefix)
        }
        # The norms of maps that a deployed backbone does not give. The logits tell if it is more.
        unused = state_dict.keys() - network.state_dict().keys()
        for key in (key for key in unused if key.startswith('backbone.')):
            del state_dict[key]
    _load(network, state_dict)
    images = _random_images(cfg)
    difference = (trained(images) - network(images)).abs().max().item()
    if not difference <= TOLERANCE:
        raise ValueError(
            f'the plain model must answer as the trained one, up to {TOLERANCE}, but a logit '
            f'differs by {difference}; nothing was written'
        )

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    weights, config = out_dir / WEIGHTS, out_dir / CONFIG
    torch.save({'state_dict': dict(network.state_dict()), 'meta': meta or {}}, f'{weights}.part')
    os.replace(f'{weights}.part', weights)
    plain.dump(config)
    return Export(weights, config, difference)
