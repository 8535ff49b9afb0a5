"""What a distillation method costs: paired timing of training steps with and without it.

Both sides run in one process, A B, B A, A B, …, on equal images and equal weights, and each pair
of neighbouring steps gives one ratio, so that a machine that slows down for a while slows both
sides. Printed with the interval of its median, because on a shared machine a step's own spread
exceeds the cost of a cheap method many times over. The other side of several students is the
plain training of each, one after the other.
"""

import copy
import platform
import random
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import mmengine
import mmpretrain
import numpy as np
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch import nn
from torch.profiler import ProfilerActivity, profile

from kd_mm.engine.hooks import ChannelsLastHook
from kd_mm.engine.hooks.channels_last_hook import use_channels_last
from kd_mm.engine.hooks.compile_hook import keep_eager
from kd_mm.export import plain_cfg
from kd_mm.models.distiller import Distiller, as_distiller, named_networks
from kd_mm.models.networks import student_cfg
from kd_mm.run.dry_run import set_last_epoch
from kd_mm.version import __version__

CHANNELS_LAST, BFLOAT16 = 'kd_mm.ChannelsLastHook', 'kd_mm.Bfloat16OptimWrapper'


def compare_steps(
    config: Config,
    against: Config | Sequence[Config],
    names: Sequence[str] | None = None,
    batch_size: int | None = None,
    img_size: int | None = None,
    num_classes: int | None = None,
    steps: int = 30,
    warmup: int = 5,
    device: str = 'cpu',
    clock: str = 'wall',
    amp: bool = False,
) -> dict:
    """Time a recipe's training step against another's, or against the sum of several others'.

    A step is ``model.train_step`` with the recipe's own data preprocessor (its Mixup and CutMix
    included) and optimizer wrapper, on images that already lie on the device as the default
    collate function gives them: uint8, random, with random labels. The learning rate is set to 0
    once the optimizer is built: the arithmetic is the same, and all keep equal weights. The steps
    of a pair draw the same random numbers. On CUDA, times come from events and the host never
    waits inside the timed loop.

    Several students are compared with their own recipes, :func:`undistilled` for each name: the
    times of their steps add up, and so do their memories, as they would on a device each. A model
    that takes several views gets each of its own, of the same images. Weights of loss terms are
    those of the last epoch, teachers have random weights, and a method's memory of the training
    images holds those of the batch alone.

    What a config says of ``compile``, ``kd_mm.ChannelsLastHook`` and its optimizer wrapper holds,
    as in a run of it; of what else its hooks do, nothing.

    Peak memory is measured in one more step of each recipe: its weights, buffers and optimizer
    state, and the most that the step holds next to them at any moment (gradients, the graph, the
    normalised images). The images as they come are not counted, nor is what an operation takes
    outside PyTorch's allocator.

    Where there are two recipes that differ in nothing but the loss of an ``ImageClassifier``'s
    head, the stretch of the step from the call of that loss to the arrival of the gradient at the
    head's input is also timed, in the same steps and so with the caches as they are there. Both
    sides get equal features, and the difference, pair by pair, is what the distillation adds: its
    error is much smaller than that of a step.

    Args:
        config: The recipe in question. It is not changed.
        against: The recipe that it is compared with, or several whose steps add up. They are not
            changed.
        names: What the report calls those; by default each by its file.
        batch_size: Images in a step; by default that of ``config``'s training loader.
        img_size: Height and width in pixels; by default what ``config``'s training pipeline
            crops or resizes to last.
        num_classes: Replaces every ``num_classes`` of all models.
        steps: Timed pairs, at least 2.
        warmup: Untimed pairs before them, at least 0.
        device: ``'cpu'`` or ``'cuda'``.
        clock: ``'wall'``, or on the CPU also ``'cpu'``: processor time of this process. That is
            blind to what else the machine runs, and with a single thread it is the time that the
            step would take there alone; with several it counts each thread's waiting, too.
        amp: Train all under MMEngine's ``AmpOptimWrapper``. CUDA only, as it is.

    Returns:
        dict: What :func:`to_markdown` prints: ``machine``, ``settings``, ``config``, ``against``
        (a list) and ``sum``, that list's in one (times in milliseconds), ``ratio`` of config to
        sum, pair by pair, and ``distillation`` (None where it is not two recipes, or they differ
        in more than the loss of the head).

    Raises:
        ValueError: If an argument is out of range, a size is neither given nor found in the
            config, or ``names`` are not as many as the recipes of ``against``.
        RuntimeError: If a loss is not finite, since the time of such a step means nothing.
    """
    against = [against] if isinstance(against, Config) else list(against)
    names = _names_of(against, names)
    _check_sizes(steps, warmup, (batch_size, img_size, num_classes))
    _check_device(device, clock, amp)
    init_default_scope('mmpretrain')
    plain = plain_cfg(config)
    settings = {
        **sizes_of(plain, batch_size, img_size, num_classes),
        'steps': steps,
        'warmup': warmup,
        'clock': clock,
        'amp': amp,
    }
    batch = RandomBatch(plain, settings, device)
    watch = Stopwatch(device, clock)
    sides = [Side(cfg, settings, device, watch) for cfg in (config, *against)]
    batch.numbered = any(side.needs_numbers for side in sides)
    same_weights = _share_weights(*sides)

    spans, loss_spans = [[] for _ in sides], [[] for _ in sides]
    for pair in range(-warmup, steps):
        for index in _order(pair, len(sides)):
            side = sides[index]
            data = batch.fresh(side.num_views)
            _seed(pair + warmup)
            start = watch.now()
            side.step(data)
            end = watch.now()
            if pair >= 0:
                spans[index].append((start, end))
                loss_spans[index].append(side.loss_span)
    times = [watch.milliseconds(side_spans) for side_spans in spans]
    if not all(bool(torch.isfinite(side.loss)) for side in sides):
        raise RuntimeError(
            'a loss is not finite, so that its step says nothing about time: '
            f'{[side.loss.item() for side in sides]}. Give a larger batch size.'
        )

    rows = [
        {
            'name': name,
            **_speed(side_times, settings['batch_size']),
            **_complexity(side, batch.shape),
            'peak_memory_bytes': _peak_memory(side, batch, device),
        }
        for name, side, side_times in zip(
            [_name(config) or 'this recipe', *names], sides, times, strict=True
        )
    ]
    report = {
        'machine': describe_machine(device),
        'settings': settings,
        'config': rows[0],
        'against': rows[1:],
        'sum': _add_up(rows[1:], settings['batch_size']),
    }
    pairs = zip(times[0], report['sum']['step_ms']['all'], strict=True)
    ratios = [ours / theirs for ours, theirs in pairs]
    report['ratio'] = {**_median_with_interval(ratios), 'pairs': ratios}
    report['distillation'] = None
    classifiers = all(isinstance(side.model, ImageClassifier) for side in sides)
    alike = all(_switches(cfg) == _switches(config) for cfg in against)
    timed = all(side.loss_span is not None for side in sides)
    if same_weights and classifiers and alike and timed and len(sides) == 2:
        loss_times = [watch.milliseconds(side_spans) for side_spans in loss_spans]
        extra = [a - b for a, b in zip(*loss_times, strict=True)]
        plain_ms = report['sum']['step_ms']['median']
        report['distillation'] = {
            'extra_ms': {**_median_with_interval(extra), 'pairs': extra},
            'overhead': _median_with_interval([value / plain_ms for value in extra]),
        }
    return report


def sizes_of(
    plain: Config, batch_size: int | None, img_size: int | None, num_classes: int | None
) -> dict:
    """Return the sizes of a step: those given, or else those of a config.

    Args:
        plain: Config of one network.
        batch_size: Images in a step.
        img_size: Height and width in pixels.
        num_classes: Number of classes.

    Returns:
        dict: ``batch_size``, ``img_size`` and ``num_classes``.

    Raises:
        ValueError: If a size is neither given nor found.
    """
    return {
        'batch_size': batch_size or _configured_batch_size(plain),
        'img_size': img_size or _configured_img_size(plain),
        'num_classes': num_classes or _configured_num_classes(plain),
    }


def bootstrap_interval(values: Sequence[float], resamples: int = 10_000) -> list[float]:
    """95 % percentile-bootstrap interval of the median.

    Args:
        values: Independent measurements, at least one.
        resamples: Draws with replacement; the generator is seeded.

    Returns:
        list[float]: Lower and upper end.

    Examples:
        >>> bootstrap_interval([1.0, 1.0, 1.0])
        [1.0, 1.0]
    """
    values = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975])
    return [float(low), float(high)]


def summarize(values: Sequence[float]) -> dict:
    """Median and quartiles.

    Examples:
        >>> summarize([1.0, 2.0, 3.0, 4.0, 100.0])
        {'median': 3.0, 'quartiles': [2.0, 4.0]}
    """
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {'median': float(middle), 'quartiles': [float(low), float(high)]}


def to_markdown(report: dict) -> str:
    """Write a report of :func:`compare_steps` as a Markdown section.

    Args:
        report: What :func:`compare_steps` returned, with the command line under ``command``.

    Returns:
        str: Table, ratio, distillation part, machine and command.
    """
    settings, machine, ratio = report['settings'], report['machine'], report['ratio']
    name = report['config']['name']
    size = f'{settings["batch_size"]} images of {settings["img_size"]} px'
    lines = [
        f'### {name}, {size}, {settings["num_classes"]} classes',
        '',
        '| recipe | step, ms (quartiles) | images/s | parameters | multiply-adds per image '
        '| peak memory |',
        '|---|---|---|---|---|---|',
    ]
    several = len(report['against']) > 1
    for side in (report['config'], *report['against'], *[report['sum']] * several):
        step = side['step_ms']
        lines.append(
            f'| {side["name"]} | {step["median"]:.1f} ({step["quartiles"][0]:.1f} to '
            f'{step["quartiles"][1]:.1f}) | {side["images_per_s"]:.1f} '
            f'| {side["parameters"] / 1e6:.2f} M | {side["multiply_adds"] / 1e6:.1f} M '
            f'| {side["peak_memory_bytes"] / 2**20:.1f} MiB |'
        )
    lines += [
        '',
        f'- Step of the first by {"sum" if several else "step"} of the '
        f'{"others" if several else "second"}, {settings["steps"]} pairs: median '
        f'{_percent(ratio["median"] - 1)}, 95 % interval {_percents(ratio["interval"], 1)}.',
    ]
    if report['distillation']:
        extra, overhead = report['distillation']['extra_ms'], report['distillation']['overhead']
        lines.append(
            f'- What the head adds, in the same steps: median {extra["median"]:+.3f} ms, 95 % '
            f'interval {extra["interval"][0]:+.3f} to {extra["interval"][1]:+.3f} ms, that is '
            f'**{_percent(overhead["median"])}** of the plain step '
            f'({_percents(overhead["interval"])}).'
        )
    versions = ', '.join(f'{package} {v}' for package, v in machine['versions'].items())
    precision = ', automatic mixed precision' if settings['amp'] else ''
    clock = 'Processor time' if settings['clock'] == 'cpu' else 'Wall time'
    lines += [
        f'- {clock} on {machine["device"]}, CPU threads: {machine["threads"]}{precision}; '
        f'{versions}.',
        f'- `{report["command"]}`',
        '',
    ]
    return '\n'.join(lines)


def describe_machine(device: str) -> dict:
    """Name the device, the number of threads and the versions that matter for time."""
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    else:
        name = f'{_cpu_name()} ({platform.machine()})'
    return {
        'device': name,
        'threads': torch.get_num_threads(),
        'versions': {
            'python': platform.python_version(),
            'torch': torch.__version__,
            'mmengine': mmengine.__version__,
            'mmpretrain': mmpretrain.__version__,
            'kd_mm': __version__,
        },
    }


class RandomBatch:
    """One batch of random images and labels on the device, equal for all sides.

    Args:
        plain: Config of one network, whose backbone tells the number of channels.
        settings: Batch size, image size and number of classes.
        device: Where the batch lies.

    Attributes:
        numbered: Whether data samples carry the number of their image.
    """

    numbered = False

    def __init__(self, plain: Config, settings: dict, device: str):
        channels = plain.model.get('backbone', {}).get('in_channels', 3)
        size = settings['img_size']
        self.shape = (channels, size, size)
        rng = torch.Generator().manual_seed(0)
        count = settings['batch_size']
        images = torch.randint(256, (count, *self.shape), generator=rng, dtype=torch.uint8)
        labels = torch.randint(settings['num_classes'], (count, 1), generator=rng)
        self.images, self.labels = images.to(device), labels.to(device)

    def fresh(self, num_views: int | None = None) -> dict:
        """Return the batch with new data samples: Mixup writes into those that it is given.

        Args:
            num_views: Length of the list of views; by default the images are no list.
        """
        samples = [DataSample().set_gt_label(label) for label in self.labels]
        for number, sample in enumerate(samples if self.numbered else ()):
            sample.set_field(number, 'image_number', field_type='metainfo')
        inputs = self.images if num_views is None else [self.images] * num_views
        return {'inputs': inputs, 'data_samples': samples}


class Side:
    """One of the recipes: its model and its optimizer wrapper.

    Attributes:
        networks: The classifiers that it trains: the students, or the model alone.
        optimizers: One, or those of a joint wrapper's parts.
        num_views: Views of each image that a step takes; None where it takes the images.
        needs_numbers: Whether a method needs the numbers of the images.
        loss: The last step's loss.
        loss_span: Start of the last step's head loss and end of its backward, as the stopwatch
            tells time. None if the model has no single head, or is compiled.
    """

    def __init__(self, config: Config, settings: dict, device: str, watch: 'Stopwatch'):
        model_cfg = copy.deepcopy(config.model)
        preprocessor_cfg = config.get('data_preprocessor')
        if preprocessor_cfg is not None:
            model_cfg.setdefault('data_preprocessor', copy.deepcopy(preprocessor_cfg))
        if as_distiller(model_cfg) is not None:
            model_cfg.update(_whole_networks(model_cfg))
        _set_num_classes(model_cfg, settings['num_classes'])
        optim_cfg = copy.deepcopy(config.optim_wrapper)
        if settings['amp']:
            optim_cfg.type = 'AmpOptimWrapper'
        self.model = MODELS.build(model_cfg).to(device)
        self.model.train()
        self.optim_wrapper = build_optim_wrapper(self.model, optim_cfg)
        joint = isinstance(self.optim_wrapper, OptimWrapperDict)
        parts = self.optim_wrapper.values() if joint else [self.optim_wrapper]
        self.optimizers = [part.optimizer for part in parts]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group['lr'] = 0.0
        self.networks = list(named_networks(self.model).values())
        self.teachers: list[nn.Module] = []
        self.num_views = None
        self.needs_numbers = False
        if isinstance(self.model, Distiller):
            set_last_epoch(self.model, settings['batch_size'])
            self.model.teachers.ready = True  # the time of a step depends on no weight
            self.teachers = list(self.model.teachers.networks.values())
            self.needs_numbers = 'index' in self.model.needs
            if getattr(self.model.data_preprocessor, 'num_views', None) is None:
                views = {'shared': None, 'per_student': len(self.networks)}
                self.num_views = views.get(self.model.views, self.model.views)
        self.loss = None
        self.loss_span = None
        compiled, channels_last, _ = _switches(config)
        if channels_last:
            use_channels_last(self.model)
        if compiled:
            keep_eager(self.optim_wrapper)
            options = {} if compiled is True else compiled
            self.model.train_step = torch.compile(self.model.train_step, **options)
        elif isinstance(self.model, ImageClassifier):
            self._time_loss(watch)

    def step(self, data: dict) -> None:
        """Run one whole training step."""
        self.loss = self.model.train_step(data, self.optim_wrapper)['loss']

    def _time_loss(self, watch: 'Stopwatch') -> None:
        loss = self.model.head.loss

        def timed_loss(feats, data_samples, **kwargs):
            start = watch.now()

            def stop(grad):
                self.loss_span = (start, watch.now())

            feats[-1].register_hook(stop)
            return loss(feats, data_samples, **kwargs)

        self.model.head.loss = timed_loss


class Stopwatch:
    """Tells time on a device without making the host wait for it."""

    def __init__(self, device: str, clock: str):
        self.cuda = device == 'cuda'
        self.clock = clock

    def now(self) -> 'float | torch.cuda.Event':
        """Return the present, for :meth:`milliseconds`."""
        if self.clock == 'cpu':
            return time.process_time()
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, spans: list[tuple]) -> list[float]:
        """Return the length of each span of two moments."""
        if self.cuda:
            torch.cuda.synchronize()
            return [start.elapsed_time(end) for start, end in spans]
        return [(end - start) * 1000 for start, end in spans]


def undistilled(config: Config, student: str | None = None) -> Config:
    """Return the plain recipe of a network, with the switches of its distilled one.

    Args:
        config: A recipe. It is not changed.
        student: Name of a student; by default the deployed one.

    Returns:
        :func:`kd_mm.export.plain_cfg`, which keeps ``compile``, with what that leaves out of
        kd_mm's own: ``kd_mm.ChannelsLastHook`` and ``kd_mm.Bfloat16OptimWrapper``.
    """
    plain = plain_cfg(config, student)
    _, channels_last, wrapper = _switches(config)
    if channels_last:
        plain.custom_hooks = [*(plain.get('custom_hooks') or []), {'type': CHANNELS_LAST}]
    if wrapper == BFLOAT16:
        plain.optim_wrapper.type = wrapper
        plain.optim_wrapper.pop('dtype', None)
    return plain


def _whole_networks(model: ConfigDict) -> dict:
    """Return the students and teachers of a Distiller's config, with the recipes they name."""
    groups = {key: model[key] for key in ('students', 'teachers') if model.get(key)}
    found = {key: {n: student_cfg(c) for n, c in cfgs.items()} for key, cfgs in groups.items()}
    return {**found, 'student': student_cfg(model['student'])} if model.get('student') else found


def _names_of(against: list[Config], names: Sequence[str] | None) -> list[str]:
    if not against:
        raise ValueError('against must hold at least one config, but it is empty.')
    if names is None:
        if len(against) == 1:
            return [_name(against[0]) or 'the same without distillation']
        return [_name(cfg) or f'recipe {index}' for index, cfg in enumerate(against, 1)]
    if len(names) != len(against):
        raise ValueError(
            f'names must be as many as the configs of against, {len(against)}, but got '
            f'{list(names)}.'
        )
    return list(names)


def _switches(config: Config) -> tuple[bool | dict, bool, str | None]:
    """Return what a config makes faster: ``compile``, channels last, and its wrapper's type."""
    hooks = [*(config.get('default_hooks') or {}).values(), *(config.get('custom_hooks') or [])]
    types = [hook.get('type') for hook in hooks if hook]
    channels_last = CHANNELS_LAST in types or ChannelsLastHook in types
    return config.get('compile') or False, channels_last, config.optim_wrapper.get('type')


def _speed(times: list[float], batch_size: int) -> dict:
    summary = summarize(times)
    return {
        'step_ms': {**summary, 'all': times},
        'images_per_s': batch_size / summary['median'] * 1000,
    }


def _add_up(rows: list[dict], batch_size: int) -> dict:
    """Return the row of all recipes in one: their times added pair by pair, and their counts."""
    times = [sum(pair) for pair in zip(*(row['step_ms']['all'] for row in rows), strict=True)]
    counts = ('parameters', 'multiply_adds', 'peak_memory_bytes')
    return {
        'name': 'their sum',
        **_speed(times, batch_size),
        **{count: sum(row[count] for row in rows) for count in counts},
    }


def _peak_memory(side: Side, batch: RandomBatch, device: str) -> int:
    """Bytes of one side at the largest moment of a step: weights, gradients, optimizer, graph.

    Not of its first step, which has no optimizer state until its end.
    """
    states = [state for optimizer in side.optimizers for state in optimizer.state.values()]
    models = [side.model, *side.teachers]
    held = [w for model in models for w in (*model.parameters(), *model.buffers())]
    held += [param.grad for param in side.model.parameters() if param.grad is not None]
    held += [value for state in states for value in state.values() if torch.is_tensor(value)]
    measure = _cuda_rise if device == 'cuda' else cpu_rise
    rise = measure(lambda: side.step(batch.fresh(side.num_views)))
    return sum(tensor.nbytes for tensor in held) + rise


def _cuda_rise(run: Callable[[], None]) -> int:
    """Most bytes on the GPU while something runs, above those before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def cpu_rise(run: Callable[[], None]) -> int:
    """Most bytes of tensors on the CPU while something runs, above those before.

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


def _share_weights(first: Side, *others: Side) -> bool:
    """Give each of the others the weights of that network of the first that has the same ones.

    Returns:
        bool: Whether each has found its own.
    """
    free = list(first.networks)
    found = [_take_equal(free, side.model) for side in others]
    return all(found)


def _take_equal(networks: list[nn.Module], model: nn.Module) -> bool:
    """Load the weights of the first fitting network, and take it off the list."""
    for index, network in enumerate(networks):
        if _shapes(network) == _shapes(model):
            model.load_state_dict(networks.pop(index).state_dict())
            return True
    return False


def _shapes(model: nn.Module) -> dict:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _complexity(side: Side, shape: tuple[int, int, int]) -> dict:
    """Count parameters and the multiply-adds of one image's forward pass of each network."""
    side.model.eval()
    flops = [
        get_model_complexity_info(network, shape, show_table=False, show_arch=False)['flops']
        for network in side.networks
    ]
    side.model.train()
    return {
        'parameters': sum(param.numel() for param in side.model.parameters()),
        'multiply_adds': sum(flops),
    }


def _median_with_interval(values: list[float]) -> dict:
    return {'median': float(np.median(values)), 'interval': bootstrap_interval(values)}


def _order(pair: int, count: int) -> Sequence[int]:
    """Turn the order round in every other pair, so that going first favours neither side."""
    return range(count) if pair % 2 == 0 else range(count)[::-1]


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _set_num_classes(cfg: dict, num_classes: int) -> None:
    for key, value in cfg.items():
        if key == 'num_classes':
            cfg[key] = num_classes
        elif isinstance(value, dict):
            _set_num_classes(value, num_classes)


def _check_sizes(steps: int, warmup: int, sizes: tuple[int | None, ...]) -> None:
    if any(size is not None and size < 1 for size in sizes):
        raise ValueError(
            f'batch size, image size and number of classes must be positive, got {sizes}.'
        )
    if steps < 2 or warmup < 0:
        raise ValueError(
            f'steps must be at least 2 and warmup at least 0, got {steps} and {warmup}.'
        )


def _check_device(device: str, clock: str, amp: bool) -> None:
    if device not in ('cpu', 'cuda'):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}.")
    if clock not in ('wall', 'cpu'):
        raise ValueError(f"clock must be 'wall' or 'cpu', got {clock!r}.")
    if device == 'cuda' and clock == 'cpu':
        raise ValueError("clock 'cpu' cannot time a GPU. Take 'wall', which reads its events.")
    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch sees no GPU here. Take 'cpu'.")
    if device == 'cpu' and amp:
        raise ValueError("amp needs device 'cuda': MMEngine's AmpOptimWrapper runs on no CPU.")


def _configured_batch_size(config: Config) -> int:
    loader = config.get('train_dataloader')
    if not loader or 'batch_size' not in loader:
        raise ValueError('the config has no train_dataloader.batch_size. Give a batch size.')
    return loader.batch_size


def _configured_img_size(config: Config) -> int:
    loader = config.get('train_dataloader') or {}
    pipeline = loader.get('dataset', {}).get('pipeline', [])
    sizes = [t.get('crop_size', t.get('scale')) for t in pipeline]
    sizes = [size for size in sizes if size is not None]
    if not sizes or not isinstance(sizes[-1], int):
        raise ValueError(
            'the training pipeline names no single crop_size or scale in pixels. '
            'Give an image size.'
        )
    return sizes[-1]


def _configured_num_classes(config: Config) -> int:
    num_classes = config.model.get('head', {}).get('num_classes')
    if num_classes is None:
        raise ValueError('the config has no model.head.num_classes. Give a number of classes.')
    return num_classes


def _name(config: Config) -> str:
    return Path(config.filename).stem if config.filename else ''


def _cpu_name() -> str:
    try:
        with open('/proc/cpuinfo') as file:
            names = [line.split(':', 1)[1] for line in file if line.startswith('model name')]
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or 'CPU'


def _percent(share: float) -> str:
    return f'{100 * share:+.2f} %'


def _percents(interval: list[float], base: float = 0.0) -> str:
    return ' to '.join(_percent(end - base) for end in interval)
