"""What a distillation method costs: paired timing of the training steps of two recipes.

Both recipes run in one process, A B, B A, A B, …, on equal images and equal weights, and each
pair of neighbouring steps gives one ratio, so that a machine that slows down for a while slows
both sides. Printed with the interval of its median, because on a shared machine a step's own
spread exceeds the cost of a cheap method many times over.
"""

import copy
import platform
import random
import time
from collections.abc import Sequence
from pathlib import Path

import mmengine
import mmpretrain
import numpy as np
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample

from kd_mm.version import __version__


def compare_steps(
    config: Config,
    against: Config,
    batch_size: int | None = None,
    img_size: int | None = None,
    num_classes: int | None = None,
    steps: int = 30,
    warmup: int = 5,
    device: str = 'cpu',
    clock: str = 'wall',
    amp: bool = False,
) -> dict:
    """Time the training step of two recipes against each other.

    A step is ``model.train_step`` with the recipe's own data preprocessor (its Mixup and CutMix
    included) and optimizer wrapper, on images that already lie on the device as the default
    collate function gives them: uint8, random, with random labels. The learning rate is set to 0
    once the optimizer is built: the arithmetic is the same, and both sides keep equal weights.
    Each pair of steps draws the same random numbers. On CUDA, times come from events and the
    host never waits inside the timed loop.

    Where the two recipes differ in nothing but the loss of an ``ImageClassifier``'s head, the
    stretch of the step from the call of that loss to the arrival of the gradient at the head's
    input is also timed, in the same steps and so with the caches as they are there. Both sides
    get equal features, and the difference, pair by pair, is what the distillation adds: its error
    is much smaller than that of a step.

    Args:
        config: The recipe in question. It is not changed.
        against: The recipe that it is compared with. It is not changed.
        batch_size: Images in a step; by default that of ``config``'s training loader.
        img_size: Height and width in pixels; by default what ``config``'s training pipeline
            crops or resizes to last.
        num_classes: Replaces every ``num_classes`` of both models.
        steps: Timed pairs, at least 2.
        warmup: Untimed pairs before them, at least 0.
        device: ``'cpu'`` or ``'cuda'``.
        clock: ``'wall'``, or on the CPU also ``'cpu'``: processor time of this process. That is
            blind to what else the machine runs, and with a single thread it is the time that the
            step would take there alone; with several it counts each thread's waiting, too.
        amp: Train both under MMEngine's ``AmpOptimWrapper``. CUDA only, as it is.

    Returns:
        dict: What :func:`to_markdown` prints: ``machine``, ``settings``, ``config`` and
        ``against`` (times in milliseconds), ``ratio`` of config to against, pair by pair, and
        ``distillation`` (None where the two differ in more than the loss of the head).

    Raises:
        ValueError: If an argument is out of range, or a size is neither given nor found in the
            config.
        RuntimeError: If a loss is not finite, since the time of such a step means nothing.
    """
    _check_sizes(steps, warmup, (batch_size, img_size, num_classes))
    _check_device(device, clock, amp)
    settings = {
        'batch_size': batch_size or _configured_batch_size(config),
        'img_size': img_size or _configured_img_size(config),
        'num_classes': num_classes or _configured_num_classes(config),
        'steps': steps,
        'warmup': warmup,
        'clock': clock,
        'amp': amp,
    }
    init_default_scope('mmpretrain')
    batch = RandomBatch(config, settings, device)
    watch = Stopwatch(device, clock)
    sides = [Side(cfg, settings, device, watch) for cfg in (config, against)]
    same_weights = _share_weights(*sides)
    memory = [_peak_memory(side, batch, device) for side in sides]

    spans, loss_spans = ([], []), ([], [])
    for pair in range(-warmup, steps):
        for index in _order(pair):
            side, data = sides[index], batch.fresh()
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

    report = {'machine': describe_machine(device), 'settings': settings}
    for name, index, cfg in (('config', 0, config), ('against', 1, against)):
        report[name] = {
            'name': _name(cfg) or ('this recipe', 'the same without distillation')[index],
            'step_ms': {**summarize(times[index]), 'all': times[index]},
            'images_per_s': settings['batch_size'] / np.median(times[index]) * 1000,
            **_complexity(sides[index].model, batch.shape),
            'peak_memory_bytes': memory[index],
        }
    ratios = [a / b for a, b in zip(times[0], times[1], strict=True)]
    report['ratio'] = {**_median_with_interval(ratios), 'pairs': ratios}
    report['distillation'] = None
    if same_weights and all(isinstance(side.model, ImageClassifier) for side in sides):
        loss_times = [watch.milliseconds(side_spans) for side_spans in loss_spans]
        extra = [a - b for a, b in zip(*loss_times, strict=True)]
        plain_ms = report['against']['step_ms']['median']
        report['distillation'] = {
            'extra_ms': {**_median_with_interval(extra), 'pairs': extra},
            'overhead': _median_with_interval([value / plain_ms for value in extra]),
        }
    return report


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
    for side in (report['config'], report['against']):
        step = side['step_ms']
        memory = side['peak_memory_bytes']
        lines.append(
            f'| {side["name"]} | {step["median"]:.1f} ({step["quartiles"][0]:.1f} to '
            f'{step["quartiles"][1]:.1f}) | {side["images_per_s"]:.1f} '
            f'| {side["parameters"] / 1e6:.2f} M | {side["multiply_adds"] / 1e6:.1f} M '
            f'| {"not measured on CPU" if memory is None else f"{memory / 2**20:.0f} MiB"} |'
        )
    lines += [
        '',
        f'- Step of the first by step of the second, {settings["steps"]} pairs: median '
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
    """One batch of random images and labels on the device, equal for both sides."""

    def __init__(self, config: Config, settings: dict, device: str):
        channels = config.model.get('backbone', {}).get('in_channels', 3)
        size = settings['img_size']
        self.shape = (channels, size, size)
        rng = torch.Generator().manual_seed(0)
        count = settings['batch_size']
        images = torch.randint(256, (count, *self.shape), generator=rng, dtype=torch.uint8)
        labels = torch.randint(settings['num_classes'], (count, 1), generator=rng)
        self.images, self.labels = images.to(device), labels.to(device)

    def fresh(self) -> dict:
        """Return the batch with new data samples: Mixup writes into those that it is given."""
        samples = [DataSample().set_gt_label(label) for label in self.labels]
        return {'inputs': self.images, 'data_samples': samples}


class Side:
    """One of the two recipes: its model and its optimizer wrapper.

    Attributes:
        loss: The last step's loss.
        loss_span: Start of the last step's head loss and end of its backward, as the stopwatch
            tells time. None if the model has no single head.
    """

    def __init__(self, config: Config, settings: dict, device: str, watch: 'Stopwatch'):
        model_cfg = copy.deepcopy(config.model)
        preprocessor_cfg = config.get('data_preprocessor')
        if preprocessor_cfg is not None:
            model_cfg.setdefault('data_preprocessor', copy.deepcopy(preprocessor_cfg))
        _set_num_classes(model_cfg, settings['num_classes'])
        optim_cfg = copy.deepcopy(config.optim_wrapper)
        if settings['amp']:
            optim_cfg.type = 'AmpOptimWrapper'
        self.model = MODELS.build(model_cfg).to(device)
        self.model.train()
        self.optim_wrapper = build_optim_wrapper(self.model, optim_cfg)
        for group in self.optim_wrapper.param_groups:
            group['lr'] = 0.0
        self.loss = None
        self.loss_span = None
        if isinstance(self.model, ImageClassifier):
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


def _peak_memory(side: Side, batch: RandomBatch, device: str) -> int | None:
    """Bytes of one side at the largest moment of a step: weights, gradients, optimizer, graph.

    What the other side holds lies there too, but does not change meanwhile.
    """
    if device != 'cuda':
        return None
    own = sum(t.nbytes for t in (*side.model.parameters(), *side.model.buffers()))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated() - own
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):  # the first allocates gradients and optimizer state
        side.step(batch.fresh())
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _share_weights(first: Side, second: Side) -> bool:
    """Give the second side the weights of the first, if it has the same ones."""
    weights = first.model.state_dict()
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    others = {name: tensor.shape for name, tensor in second.model.state_dict().items()}
    if shapes != others:
        return False
    second.model.load_state_dict(weights)
    return True


def _complexity(model: torch.nn.Module, shape: tuple[int, int, int]) -> dict:
    """Count parameters and the multiply-adds of one image's forward pass."""
    model.eval()
    info = get_model_complexity_info(model, shape, show_table=False, show_arch=False)
    model.train()
    return {'parameters': info['params'], 'multiply_adds': info['flops']}


def _median_with_interval(values: list[float]) -> dict:
    return {'median': float(np.median(values)), 'interval': bootstrap_interval(values)}


def _order(pair: int) -> tuple[int, int]:
    """Swap the order in every other pair, so that going first favours neither side."""
    return (0, 1) if pair % 2 == 0 else (1, 0)


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
