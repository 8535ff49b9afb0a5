"""What a distillation method costs: paired timing of training steps with and without it."""

import copy
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import mmengine
import mmpretrain
import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer

from kd_mm.checks import check_choice, check_int
from kd_mm.engine.hooks import ChannelsLastHook
from kd_mm.engine.hooks.speed import keep_eager, use_channels_last
from kd_mm.export import plain_cfg
from kd_mm.models.distiller import Distiller, as_distiller, named_networks
from kd_mm.models.networks import student_cfg
from kd_mm.resume.seeded import seed_generators
from kd_mm.run.rehearsal import set_last_epoch
from kd_mm.version import __version__

CHANNELS_LAST, BFLOAT16 = 'kd_mm.ChannelsLastHook', 'kd_mm.Bfloat16OptimWrapper'
CLOCKS = {'wall': timer, 'cpu': time.process_time}  # torch's waits for the GPU


def compare_steps(
    config: Config,
    against: Sequence[Config],
    sizes: Mapping[str, int | None],
    steps: int = 30,
    warmup: int = 5,
    device: str = 'cpu',
    clock: str = 'wall',
) -> dict:
    """Time a recipe's training step against another's, or against the sum of several others'.

    A step is ``model.train_step`` with the recipe's own data preprocessor and optimizer wrapper,
    on random images on the device. All recipes run in turns, A B, B A, A B, ..., so that a machine
    that slows down slows both steps of a pair. The learning rate is 0, loss weights are those of
    the last epoch, teachers have random weights.

    Peak memory: weights, buffers, gradients and optimizer state, and the most that a step
    allocates on top of them. The images are not counted.

    Of two recipes that differ only in the loss of an ``ImageClassifier``'s head, the time from the
    call of that loss to the gradient at the head's input is measured in the same steps. The
    difference, pair by pair, is what the distillation adds; it is much more exact than the ratio.

    Args:
        config: The recipe in question. It is not changed.
        against: What it is compared with, such as :func:`undistilled` of each student.
        sizes: Arguments of :func:`sizes_of`.
        steps: Timed pairs, at least 2.
        warmup: Untimed pairs before them.
        device: ``'cpu'`` or ``'cuda'``.
        clock: ``'wall'``, or on the CPU also ``'cpu'``: processor time of this process, which
            other programs on the machine do not change.

    Returns:
        dict: ``machine``, ``settings``, ``config`` and the ``sum`` of the others (milliseconds
        and bytes), ``ratio`` of config to sum, ``distillation`` (None where it was not measured)
        and ``pairs``, the single values behind the medians.

    Raises:
        ValueError: If an argument is out of range, a size is neither given nor found in the
            config, or a loss is not finite.
    """
    check_int('steps', steps, 2)
    check_int('warmup', warmup, 0)
    check_choice('clock', clock, ['wall'] if device == 'cuda' else list(CLOCKS))
    init_default_scope('mmpretrain')
    plain = plain_cfg(config)
    settings = sizes_of(plain, **sizes) | {'steps': steps, 'warmup': warmup, 'clock': clock}
    batch = random_batch(plain, settings, device)
    sides = [Side(cfg, settings, device) for cfg in (config, *against)]

    times, loss_times = np.zeros((2, len(sides), warmup + steps))
    for pair in range(warmup + steps):
        for index in range(len(sides))[:: 1 if pair % 2 == 0 else -1]:
            side = sides[index]
            data = side.fresh(*batch)
            seed_generators(pair, devices=True)
            start = side.now()
            side.step(data)
            times[index, pair] = 1000 * (side.now() - start)
            loss_times[index, pair] = side.loss_ms
    times, loss_times = times[:, warmup:], loss_times[:, warmup:]
    if not all(bool(torch.isfinite(side.loss)) for side in sides):
        raise ValueError(
            'losses must be finite, or their steps say nothing about time, but got '
            f'{[side.loss.item() for side in sides]}; give a larger batch size'
        )

    together = times[1:].sum(axis=0)
    peaks = [_peak_memory(side, batch, device) for side in sides]
    pairs = {'step_ms': times, 'ratio': times[0] / together}
    distillation = None
    shapes = [{k: v.shape for k, v in side.model.state_dict().items()} for side in sides]
    alike = shapes[1:] == shapes[:1] and _switches(against[0]) == _switches(config)
    if alike and np.isfinite(loss_times).all():
        pairs['extra_ms'] = loss_times[0] - loss_times[1]
        distillation = {
            'extra_ms': _median_with_interval(pairs['extra_ms']),
            'overhead': _median_with_interval(pairs['extra_ms'] / np.median(together)),
        }
    return {
        'machine': describe_machine(device),
        'settings': settings,
        'config': {'step_ms': summarize(times[0]), 'peak_memory_bytes': peaks[0]},
        'sum': {'step_ms': summarize(together), 'peak_memory_bytes': sum(peaks[1:])},
        'ratio': _median_with_interval(pairs['ratio']),
        'distillation': distillation,
        'pairs': {name: values.tolist() for name, values in pairs.items()},
    }


def sizes_of(plain: Config, **given: int | None) -> dict[str, int]:
    """Return ``batch_size``, ``img_size`` (pixels) and ``num_classes`` of a step.

    Args:
        plain: Config of one network.
        **given: Those that replace its own: the training loader's, the last crop's or resize's of
            the training pipeline, and the head's.

    Raises:
        ValueError: If a size is neither given nor found, or below 1.
    """
    loader = plain.get('train_dataloader') or {}
    steps = loader.get('dataset', {}).get('pipeline', [])
    found = [size for step in steps if (size := step.get('crop_size', step.get('scale')))]
    sizes = {
        'batch_size': loader.get('batch_size'),
        'img_size': found[-1] if found else None,
        'num_classes': plain.model.get('head', {}).get('num_classes'),
        **{name: size for name, size in given.items() if size is not None},
    }
    for name, size in sizes.items():
        check_int(name, size)
    return sizes


def summarize(values: Iterable[float]) -> dict:
    """Return median and quartiles.

    Examples:
        >>> summarize([1.0, 2.0, 3.0, 4.0, 100.0])
        {'median': 3.0, 'quartiles': [2.0, 4.0]}
    """
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {'median': middle, 'quartiles': [low, high]}


def describe_machine(device: str = 'cpu') -> dict:
    """Return the name of the device, the number of threads and the versions of packages."""
    info = Path('/proc/cpuinfo')
    found = re.search(r'model name\s*: (.*)', info.read_text()) if info.is_file() else None
    name = f'{found[1] if found else platform.processor() or "CPU"} ({platform.machine()})'
    versions = {module.__name__: module.__version__ for module in (torch, mmengine, mmpretrain)}
    return {
        'device': torch.cuda.get_device_name() if device == 'cuda' else name,
        'threads': torch.get_num_threads(),
        'versions': {'python': platform.python_version(), **versions, 'kd_mm': __version__},
    }


def random_batch(plain: Config, settings: Mapping, device: str = 'cpu') -> tuple[Tensor, Tensor]:
    """Return random images (N, C, H, W), uint8, and labels (N, 1).

    Args:
        plain: Config of one network, whose backbone says the number of channels.
        settings: Of :func:`sizes_of`.
        device: Where the batch lies.
    """
    rng = torch.Generator().manual_seed(0)
    count, size = settings['batch_size'], settings['img_size']
    shape = count, plain.model.get('backbone', {}).get('in_channels', 3), size, size
    images = torch.randint(256, shape, generator=rng, dtype=torch.uint8)
    labels = torch.randint(settings['num_classes'], (count, 1), generator=rng)
    return images.to(device), labels.to(device)


class Side:
    """One of the recipes: its model and its optimizer wrapper, ready to train.

    Attributes:
        networks: The classifiers that it trains: the students, or the model alone.
        loss: The last step's loss.
        loss_ms: Milliseconds of the last step from the call of the head's loss to the gradient at
            its input. NaN if the model has no single head, or is compiled.
    """

    def __init__(self, config: Config, settings: Mapping, device: str = 'cpu') -> None:
        model_cfg = copy.deepcopy(config.model)
        if config.get('data_preprocessor') is not None:
            model_cfg.setdefault('data_preprocessor', copy.deepcopy(config.data_preprocessor))
        if as_distiller(model_cfg) is not None:
            if model_cfg.get('student'):
                model_cfg.student = student_cfg(model_cfg.student)
            for group in {'students', 'teachers'} & set(model_cfg):
                networks = model_cfg[group] or {}
                model_cfg[group] = {name: student_cfg(cfg) for name, cfg in networks.items()}
        _set_num_classes(model_cfg, settings['num_classes'])
        self.now = CLOCKS[settings.get('clock', 'wall')]
        seed_generators(0)  # equal networks get equal weights
        self.model = MODELS.build(model_cfg).to(device).train()
        self.networks = list(named_networks(self.model).values())
        self.states: list[dict] = []
        self.optim_wrapper = build_optim_wrapper(self.model, copy.deepcopy(config.optim_wrapper))
        joint = isinstance(self.optim_wrapper, OptimWrapperDict)
        for part in self.optim_wrapper.values() if joint else [self.optim_wrapper]:
            self.states.append(part.optimizer.state)
            for group in part.optimizer.param_groups:
                group['lr'] = 0.0
        if isinstance(self.model, Distiller):
            set_last_epoch(self.model, settings['batch_size'])
            self.model.teachers.ready = True  # the time of a step depends on no weight
        self.loss, self.loss_ms = None, float('nan')
        compiled, channels_last, _ = _switches(config)
        if channels_last:
            use_channels_last(self.model)
        if compiled:
            keep_eager(self.optim_wrapper)
            options = {} if compiled is True else compiled
            self.model.train_step = torch.compile(self.model.train_step, **options)
        elif isinstance(self.model, ImageClassifier):
            self._time_loss(self.model.head.loss)

    def fresh(self, images: Tensor, labels: Tensor) -> dict:
        """Return a batch as this side takes it, with new data samples: Mixup writes into them."""
        samples = [DataSample().set_gt_label(label) for label in labels]
        if not isinstance(self.model, Distiller):
            return {'inputs': images, 'data_samples': samples}
        if 'index' in self.model.needs:
            for number, sample in enumerate(samples):
                sample.set_field(number, 'image_number', field_type='metainfo')
        views = {'shared': None, 'per_student': len(self.networks)}
        count = views.get(self.model.views, self.model.views)
        drawn = getattr(self.model.data_preprocessor, 'num_views', None) is not None
        inputs = images if drawn or count is None else [images] * count
        return {'inputs': inputs, 'data_samples': samples}

    def step(self, data: dict) -> None:
        """Run one whole training step."""
        self.loss = self.model.train_step(data, self.optim_wrapper)['loss']

    def _time_loss(self, loss: Callable) -> None:
        """Let the head's loss measure itself."""

        def timed_loss(feats, data_samples, **kwargs):
            start = self.now()

            def stop(grad):
                self.loss_ms = 1000 * (self.now() - start)

            feats[-1].register_hook(stop)
            return loss(feats, data_samples, **kwargs)

        self.model.head.loss = timed_loss


def undistilled(config: Config, student: str | None = None) -> Config:
    """Return the plain recipe of a network, with the switches of its distilled one.

    Args:
        config: A recipe. It is not changed.
        student: Name of a student; by default the deployed one.

    Returns:
        :func:`kd_mm.export.plain_cfg` with the hook of channels last and the bfloat16 wrapper.
    """
    plain = plain_cfg(config, student)
    _, channels_last, wrapper = _switches(config)
    if channels_last:
        plain.custom_hooks = [*(plain.get('custom_hooks') or []), {'type': CHANNELS_LAST}]
    if wrapper == BFLOAT16:
        plain.optim_wrapper.type = wrapper
        plain.optim_wrapper.pop('dtype', None)
    return plain


def cpu_rise(run: Callable[[], object]) -> int:
    """Return the most bytes of tensors on the CPU while something runs, above those before.

    Args:
        run: What is run, once.

    Examples:
        >>> cpu_rise(lambda: torch.zeros(100).sum())
        404
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    # The profiler's own tables leave out when each allocation was and some of them.
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == '[memory]']
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


def _peak_memory(side: Side, batch: tuple[Tensor, Tensor], device: str) -> int:
    """Return the bytes of one side at the largest moment of a step that is not its first."""
    models = [side.model]
    if isinstance(side.model, Distiller):
        models += side.model.teachers.networks.values()
    held = [tensor for m in models for tensor in (*m.parameters(), *m.buffers())]
    held += [param.grad for param in side.model.parameters() if param.grad is not None]
    states = [state for states in side.states for state in states.values()]
    held += [value for state in states for value in state.values() if torch.is_tensor(value)]
    count = sum(tensor.nbytes for tensor in held)
    if device == 'cpu':
        return count + cpu_rise(lambda: side.step(side.fresh(*batch)))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    side.step(side.fresh(*batch))
    return count + torch.cuda.max_memory_allocated() - before


def _median_with_interval(values: np.ndarray) -> dict:
    """Return the median and its 95 % percentile-bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values)))
    interval = np.quantile(np.median(draws, axis=1), [0.025, 0.975]).tolist()
    return {'median': float(np.median(values)), 'interval': interval}


def _switches(config: Config) -> tuple[bool | dict, bool, str | None]:
    """Return what makes a config's steps faster: ``compile``, channels last, wrapper's type."""
    hooks = [*(config.get('default_hooks') or {}).values(), *(config.get('custom_hooks') or [])]
    types = [hook.get('type') for hook in hooks if hook]
    channels_last = CHANNELS_LAST in types or ChannelsLastHook in types
    return config.get('compile') or False, channels_last, config.optim_wrapper.get('type')


def _set_num_classes(cfg: dict, num_classes: int) -> None:
    """Replace every number of classes, at any depth."""
    for key, value in cfg.items():
        if key == 'num_classes':
            cfg[key] = num_classes
        elif isinstance(value, dict):
            _set_num_classes(value, num_classes)
