"""Build each part of a run, and pass two images through it, before anything is written."""

import difflib
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from numbers import Integral
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, PARAM_SCHEDULERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.runner.priority import get_priority
from mmpretrain.evaluation import Accuracy
from torch import Tensor, nn

from kd_mm.checkpoint import bare_model
from kd_mm.config import explained
from kd_mm.evaluation import CohortAccuracy
from kd_mm.methods.base import Clock
from kd_mm.methods.memory import SampleMemory
from kd_mm.models.distiller import Distiller

SECTIONS = {
    'train_dataloader': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'val_dataloader': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test_dataloader': ('test_dataloader', 'test_cfg', 'test_evaluator'),
}
LOOPS = {True: (EpochBasedTrainLoop, 'max_epochs'), False: (IterBasedTrainLoop, 'max_iters')}
MAX_SEED = 2**32  # of NumPy
CHECKED_METRICS = (Accuracy, CohortAccuracy)  # whose keys do not depend on the data
LONG = 10_000  # epochs, after which each schedule has its whole weight


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back log lines, which the run itself will write."""
    logger = MMLogger.get_current_instance()
    level, disabled = logger.level, logging.root.manager.disable
    logger.setLevel(logging.ERROR)  # it has a memory of its own, which logging.disable leaves
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        logger.setLevel(level)


def check_sections(cfg: Config, first: str) -> None:
    """Check that the parts of a config that need each other are there.

    Args:
        cfg: Config of a run.
        first: The data loader that the run cannot do without.

    Raises:
        ValueError: If one is missing.
    """
    for loader, keys in SECTIONS.items():
        lacking = [key for key in keys if not isinstance(cfg.get(key), (Mapping, list, tuple))]
        if lacking and (loader == first or len(lacking) < len(keys)):
            raise ValueError(
                f'{", ".join(keys)} belong together, but {" and ".join(lacking)} '
                f'{"is" if len(lacking) == 1 else "are"} not set; give all of them'
                f'{"" if loader == first else ", or set all to None"}'
            )


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise ValueError unless a value is a whole number.

    Args:
        name: Where the config has it.
        value: What it is.
        least: The smallest that makes sense.

    Examples:
        >>> check_count('train_dataloader.batch_size', '32')
        Traceback (most recent call last):
        ValueError: train_dataloader.batch_size must be an integer of at least 1, but got '32'
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f'{name} must be an integer of at least {least}, but got {value!r}')


def check_loader_counts(cfg: Config, name: str) -> None:
    """Check batch size and workers of a data loader.

    Args:
        cfg: Config of a run.
        name: The data loader.

    Raises:
        ValueError: If one is no number, or too small.
    """
    loader = cfg[name]
    if not isinstance(loader.get('dataset'), Mapping):
        raise ValueError(
            f'{name}.dataset must be a dict with a type, but got {loader.get("dataset")!r}'
        )
    if 'batch_sampler' not in loader:
        check_count(f'{name}.batch_size', loader.get('batch_size', 1))
    check_count(f'{name}.num_workers', loader.get('num_workers', 0), least=0)


def check_length(cfg: Config) -> bool:
    """Check the length of a training.

    Args:
        cfg: Config of a run.

    Returns:
        Whether the loop counts epochs.

    Raises:
        ValueError: If it is no number, or too small.
        TypeError: If the loop has no such option.
    """
    train_cfg = cfg.train_cfg
    by_epoch = train_cfg.get('by_epoch', True)
    if 'type' in train_cfg:
        by_epoch = train_cfg['type'] != 'IterBasedTrainLoop'
    loop, key = LOOPS[bool(by_epoch)]
    if train_cfg.get('type', loop.__name__) != loop.__name__:
        return by_epoch  # a loop of another project
    known = [*list(inspect.signature(loop).parameters)[2:], 'by_epoch', 'type', '_scope_']
    for option in train_cfg:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f'did you mean {near[0]}?' if near else f'there are {", ".join(known[:-2])}'
            raise TypeError(f'train_cfg has no option {option}; {hint}')
    check_count(f'train_cfg.{key}', train_cfg.get(key))
    check_count('train_cfg.val_interval', train_cfg.get('val_interval', 1))
    return by_epoch


def check_settings(cfg: Config) -> None:
    """Check the settings of a run that are in no part of their own.

    Args:
        cfg: Config of a run.

    Raises:
        ValueError: If one is out of range.
    """
    seed = (cfg.get('randomness') or {}).get('seed')
    if seed is not None:
        check_count('randomness.seed', seed, least=0)
        if seed >= MAX_SEED:
            raise ValueError(f'randomness.seed must be below 2**32, but got {seed}')
    level = cfg.get('log_level', 'INFO')
    if not isinstance(logging.getLevelName(level), int):  # an unknown name gives a text
        raise ValueError(f"log_level must be one such as 'INFO', but got {level!r}")
    start = ((cfg.get('env_cfg') or {}).get('mp_cfg') or {}).get('mp_start_method', 'fork')
    known = torch.multiprocessing.get_all_start_methods()
    if start not in known:
        raise ValueError(
            f'env_cfg.mp_cfg.mp_start_method must be one of {", ".join(known)}, but got {start!r}'
        )


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a run, without its initial weights.

    Args:
        cfg: Config of a run.

    Returns:
        The model, outside of any wrapper.

    Raises:
        ValueError: If it cannot be built.
    """
    preprocessor = cfg.get('data_preprocessor')
    default = {} if preprocessor is None else {'data_preprocessor': deepcopy(preprocessor)}
    with quiet(), explained('the model cannot be built', 'look at the options of model'):
        return MODELS.build({**default, **deepcopy(cfg.model)})


def check_optimizer(cfg: Config, model: nn.Module, by_epoch: bool) -> None:
    """Build the optimizer and the schedules.

    Args:
        cfg: Config of a run.
        model: Its model.
        by_epoch: Whether the run counts epochs.

    Raises:
        ValueError: If one cannot be built.
    """
    wrapper = cfg.optim_wrapper
    if not {'optimizer', 'parts', 'constructor'} & set(wrapper):
        raise ValueError(
            "optim_wrapper must have an optimizer, such as dict(type='SGD', lr=0.1), but has "
            f'{", ".join(wrapper) or "nothing"}'
        )
    if 'parts' in wrapper and 'JointOptimWrapperConstructor' not in wrapper.get('constructor', ''):
        raise ValueError(
            "optim_wrapper.parts needs constructor='kd_mm.JointOptimWrapperConstructor', but got "
            f'{wrapper.get("constructor")!r}'
        )
    with quiet(), explained('the optimizer cannot be built', 'look at optim_wrapper'):
        build_optim_wrapper(model, deepcopy(wrapper))
    schedules = cfg.get('param_scheduler') or []
    end = cfg.train_cfg.get('max_epochs' if by_epoch else 'max_iters')
    for path, schedule in _schedules(schedules, 'param_scheduler'):
        given = {'end': end, **deepcopy(schedule)}
        given.pop('convert_to_iter_based', None)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
        with explained(f'{path} cannot be built', f'look at the options of {given.get("type")}'):
            PARAM_SCHEDULERS.build(given, default_args={'optimizer': optimizer})


def _schedules(node: Any, path: str) -> Iterator[tuple[str, Mapping]]:
    """Yield each schedule of a ``param_scheduler``, by part or not, with its place."""
    if isinstance(node, Mapping) and 'type' in node:
        yield path, node
    elif isinstance(node, Mapping):
        for key, part in node.items():
            yield from _schedules(part, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, part in enumerate(node):
            yield from _schedules(part, f'{path}[{index}]')


def check_hooks(cfg: Config, model: nn.Module, by_epoch: bool) -> list[Hook]:
    """Build the hooks of MMEngine and ours, and compare them with the model.

    Args:
        cfg: Config of a run.
        model: Its model.
        by_epoch: Whether the run counts epochs.

    Returns:
        The hooks.

    Raises:
        ValueError: If one cannot be built, or asks what the model does not have.
    """
    custom = cfg.get('custom_hooks') or []
    if not isinstance(custom, (list, tuple)):
        raise ValueError(f'custom_hooks must be a list of hooks, but got {custom!r}')
    named = {f'custom_hooks[{i}]': hook for i, hook in enumerate(custom)}
    for name, hook in (cfg.get('default_hooks') or {}).items():
        if hook is not None:  # None: without it
            named[f'default_hooks.{name}'] = hook
    hooks = []
    for path, hook in named.items():
        cls = HOOKS.get(hook['type']) if isinstance(hook, Mapping) and 'type' in hook else None
        # Hooks of other projects may do more than keep their options.
        if cls is None or cls.__module__.partition('.')[0] not in ('kd_mm', 'mmengine'):
            if isinstance(hook, Mapping) and 'type' not in hook:
                raise ValueError(f'{path} must have a type, but got {dict(hook)}')
            continue
        with explained(f'{path} cannot be built', f'look at the options of {hook["type"]}'):
            given = deepcopy(dict(hook))
            if (priority := given.pop('priority', None)) is not None:
                get_priority(priority)
            hooks.append(HOOKS.build(given))
            if isinstance(hooks[-1], EMAHook):
                MODELS.build(deepcopy(hooks[-1].ema_cfg), default_args={'model': model})
    return hooks


def first_batch(loader: Mapping, name: str, dataset: Sequence) -> dict:
    """Return two items of a data set as a batch.

    Args:
        loader: Config of the data loader.
        name: Its place in the config.
        dataset: Its data set.

    Returns:
        What the loader would give.

    Raises:
        ValueError: If the loader cannot be built, an image cannot be read, or the pipeline gives
            something else than images and labels.
    """
    with quiet(), explained(f'{name} cannot be built', 'look at its options and its sampler'):
        given = {'collate_fn': {'type': 'default_collate'}, **deepcopy(dict(loader))}
        built = Runner.build_dataloader({**given, 'dataset': dataset}, seed=0)
    if len(built) == 0:
        raise ValueError(
            f'an epoch must have a batch, but {name} has {len(dataset)} images, batches of '
            f'{loader.get("batch_size")} and drop_last=True; lower the batch size'
        )
    items = []
    for index in (0, len(dataset) - 1):
        with explained(
            f'item {index} of {name}{_path_of(dataset, index)} cannot be read',
            'replace the file, or mend the list or the pipeline of the data set',
        ):
            items.append(dataset[index])
        if not isinstance(items[-1], Mapping) or not {'inputs', 'data_samples'} <= set(items[-1]):
            got = ', '.join(items[-1]) if isinstance(items[-1], Mapping) else items[-1]
            raise ValueError(
                f'the pipeline of {name} must end in PackInputs, which gives inputs and '
                f'data_samples, but it gives {got}'
            )
    with explained(f'items of {name} make no batch', 'give all images one size (Resize, crop)'):
        return built.collate_fn(items)


def _path_of(dataset: Sequence, index: int) -> str:
    """Name the file of an item, where there is one."""
    try:
        return f' ({dataset.get_data_info(index)["img_path"]})'
    except (AttributeError, KeyError, TypeError):
        return ''


FIT = (
    'make backbone, neck and head fit each other and the images (head.in_channels, '
    'head.num_classes, size of the crops, mean and std of data_preprocessor)'
)


def set_last_epoch(model: nn.Module, num_images: int) -> None:
    """Give a Distiller what kd_mm.DistillerHook gives it, in the last epoch of a long training.

    Args:
        model: Any model. One that is no Distiller stays as it is.
        num_images: Images of the training set.
    """
    if not isinstance(model, Distiller):
        return
    last = LONG - 1
    model.clock = Clock(last, LONG, last, LONG, num_images)
    for module in model.modules():
        if isinstance(module, SampleMemory) and not len(module.filled):
            module.resize(num_images)


def load_teachers(model: nn.Module) -> None:
    """Load the weights of teachers that have none yet.

    Args:
        model: Any model.

    Raises:
        OSError: If there is no such file.
        ValueError: If a file cannot be read safely, or does not fit strictly.
    """
    if isinstance(model, Distiller) and not model.teachers.ready:
        model.teachers.load()


@torch.no_grad()
def try_training(model: nn.Module, batch: Mapping, num_images: int) -> None:
    """Compute the losses of a batch once, in evaluation mode, so that nothing learns.

    Args:
        model: The model of a run.
        batch: Two items.
        num_images: Images of the training set.

    Raises:
        ValueError: If the model does not take them.
    """
    model.eval()
    set_last_epoch(model, num_images)
    load_teachers(model)
    if isinstance(model, Distiller):
        for number, sample in enumerate(batch['data_samples']):
            sample.set_field(number, 'image_number', field_type='metainfo')
    with explained('the model fails on two training images', FIT):
        data = model.data_preprocessor(batch, True)
        model.parse_losses(model(**data, mode='loss'))


@torch.no_grad()
def try_validation(
    model: nn.Module, batch: Mapping, evaluator: Any, name: str
) -> list[str] | None:
    """Predict and measure a batch once.

    Args:
        model: The model of a run.
        batch: Two items.
        evaluator: Config of the metrics.
        name: Its place in the config.

    Returns:
        Names of the metrics, or None where they may depend on the data.

    Raises:
        ValueError: If the model does not take the images, or the metric the predictions.
    """
    model.eval()
    with quiet(), explained(f'{name} cannot be built', 'look at the options of the metric'):
        built = Evaluator(deepcopy(evaluator))
    if isinstance(model, BaseTTAModel):
        return None
    model = bare_model(model)
    with explained('the model fails on two images of the validation', FIT):
        data = model.data_preprocessor(batch, False)
        if not isinstance(data['inputs'], Tensor):
            return None  # views for test-time augmentation
        samples = model(**data, mode='predict')
    built.dataset_meta = {}
    with quiet(), explained(f'{name} cannot measure two images', 'look at its options'):
        built.process(data_samples=samples, data_batch=batch)
        if all(isinstance(metric, CHECKED_METRICS) for metric in built.metrics):
            return list(built.evaluate(len(samples)))
    return None


def check_monitors(hooks: Sequence[Hook], metrics: Sequence[str]) -> None:
    """Check that the metrics that hooks wait for are measured.

    Args:
        hooks: Hooks of a run.
        metrics: Names that validation gives.

    Raises:
        ValueError: If there is no such metric.
    """
    for hook in hooks:
        saves = isinstance(hook, CheckpointHook) and hook.save_best
        stops = isinstance(hook, EarlyStoppingHook)
        for key in hook.key_indicators if saves else [hook.monitor] if stops else ():
            if key not in metrics and key != 'auto':
                near = difflib.get_close_matches(key, metrics, n=1)
                raise ValueError(
                    f'{"save_best" if saves else "monitor"} of {type(hook).__name__} must be a '
                    f'metric of the validation, but got {key!r}; '
                    + (f'did you mean {near[0]!r}?' if near else f'there are {list(metrics)}')
                )
