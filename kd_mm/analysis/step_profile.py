"""Where the time of a training step goes, part by part, forward and backward."""

import os
import platform
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS, init_default_scope
from mmpretrain.models import ImageClassifier
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from kd_mm.analysis.benchmark import (
    RandomBatch,
    Side,
    Stopwatch,
    cpu_rise,
    describe_machine,
    sizes_of,
)
from kd_mm.export import plain_cfg
from kd_mm.models.distiller import Distiller, named_networks
from kd_mm.models.heads import DistillingHead
from kd_mm.models.networks import find_classifier

MARK = 'kd_mm: '
STEP, REST = 'step', 'Python and all else'
BACKWARD = 'autograd::engine::evaluate_function: '
# Ranges that torch marks itself.
OPTIMIZER = ('Optimizer.step#', 'Optimizer.zero_grad#')


class Range(NamedTuple):
    """An event of the profiler's, on the thread of the step.

    Attributes:
        name: The operation, or :data:`MARK` and a part.
        start: In nanoseconds.
        end: In nanoseconds.
        sequence: What an operation and its backward share; below 0 where there is none.
    """

    name: str
    start: int
    end: int
    sequence: int


def profile_step(
    config: Config,
    batch_size: int | None = None,
    img_size: int | None = None,
    num_classes: int | None = None,
    steps: int = 5,
    warmup: int = 2,
) -> dict:
    """Tell what the parts of a recipe's training step cost on the CPU.

    The step is that of :func:`kd_mm.analysis.benchmark.compare_steps`, with what the recipe's
    ``runtime_info`` hook does with its loss terms behind it. An operation's backward counts for
    the part that the operation is in; networks nested in others count for themselves alone.

    Args:
        config: The recipe. It is not changed.
        batch_size: Images in a step; by default that of the training loader.
        img_size: Height and width in pixels; by default what the training pipeline ends in.
        num_classes: Replaces every ``num_classes`` of all models.
        steps: Profiled steps, at least 1.
        warmup: Steps before them.

    Returns:
        dict: ``parts``, milliseconds per step of ``forward`` and ``backward`` by name;
        ``step_ms``, their sum; ``name``, ``settings`` and ``machine``.

    Raises:
        ValueError: If an argument is out of range, a size is neither given nor in the config, or
            the step is compiled, which leaves no parts.
    """
    if config.get('compile'):
        raise ValueError(
            'a compiled step has no parts, but the config has compile='
            f'{config.compile}; leave it out'
        )
    if steps < 1 or warmup < 0:
        raise ValueError(
            f'steps must be at least 1 and warmup at least 0, got {steps} and {warmup}.'
        )
    init_default_scope('mmpretrain')
    plain = plain_cfg(config)
    settings = sizes_of(plain, batch_size, img_size, num_classes)
    batch = RandomBatch(plain, settings, 'cpu')
    side = Side(config, {**settings, 'amp': False}, 'cpu', Stopwatch('cpu', 'wall'))
    batch.numbered = side.needs_numbers
    _mark_parts(side.model)
    log = _logging(config)

    def step() -> None:
        data = batch.fresh(side.num_views)
        with record_function(MARK + STEP):
            outputs = side.model.train_step(data, side.optim_wrapper)
            with record_function(MARK + 'logging'):
                log(outputs)

    for _ in range(warmup):
        step()
    _grow_heap(2 * cpu_rise(step))
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        for _ in range(steps):
            step()
    events = [
        Range(e.name(), e.start_ns(), e.start_ns() + e.duration_ns(), e.sequence_nr())
        for e in prof.profiler.kineto_results.events()
    ]
    times = share_out(events)
    parts = {
        part: {way: time / 1e6 / steps for way, time in ways.items()}
        for part, ways in times.items()
    }
    return {
        'name': Path(config.filename).stem if config.filename else 'this recipe',
        'settings': {**settings, 'steps': steps},
        'parts': parts,
        'step_ms': sum(sum(ways.values()) for ways in parts.values()),
        'machine': describe_machine('cpu'),
    }


def _grow_heap(num_bytes: int) -> None:
    """Let the C library's heap grow before a profile.

    The profiler's records come to lie between a step's tensors, whose room the next step then
    does not find again. To map new pages takes longer than many an operation on them.

    Args:
        num_bytes: How much to grow, at most half of the memory that is free.
    """
    if platform.libc_ver()[0] == 'glibc':
        free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
        torch.ones(min(num_bytes, free // 2), dtype=torch.uint8)


def share_out(events: Iterable[Range]) -> dict[str, dict[str, int]]:
    """Give each nanosecond of the marked steps to one part.

    Args:
        events: All of one thread, each inside of another or apart from it.

    Returns:
        dict: Nanoseconds of ``forward`` and ``backward`` by part. What is in no part is under
        :data:`REST`.

    Examples:
        A step of 10 with 4 in a network, whose only operation takes 3 in the backward pass:

        >>> share_out([
        ...     Range('kd_mm: step', 0, 10, -1), Range('kd_mm: network', 1, 5, -1),
        ...     Range('aten::conv2d', 1, 4, 7),
        ...     Range(BACKWARD + 'ConvolutionBackward0', 6, 9, 7),
        ... ])
        {'Python and all else': {'forward': 3, 'backward': 0}, 'network': {'forward': 4, \
'backward': 3}}
    """
    times: dict = defaultdict(lambda: {'forward': 0, 'backward': 0})
    owner: dict[int, str] = {}  # the part of the operation that made a backward node: the last
    around: list[tuple[Range, str, str]] = []
    for event in sorted(events, key=lambda e: (e.start, -e.end)):
        while around and around[-1][0].end <= event.start:
            around.pop()
        part, way = _part_of(event, owner)
        if part is None:
            if around and around[-1][2] == 'forward' and event.sequence >= 0:
                owner[event.sequence] = around[-1][1]
            continue
        if not around and part != REST:
            continue
        length = event.end - event.start
        times[part][way] += length
        if around:
            _, outer_part, outer_way = around[-1]
            times[outer_part][outer_way] -= length
        around.append((event, part, way))
    return dict(times)


def to_markdown(report: dict) -> str:
    """Write a report of :func:`profile_step` as a Markdown table.

    Args:
        report: What :func:`profile_step` returned, with the command line under ``command``.

    Returns:
        str: Table, machine and command.
    """
    settings, whole = report['settings'], report['step_ms']
    lines = [
        f'### {report["name"]}, {settings["batch_size"]} images of {settings["img_size"]} px',
        '',
        '| part | forward, ms | backward, ms | share |',
        '|---|---|---|---|',
    ]
    parts = sorted(report['parts'].items(), key=lambda item: -sum(item[1].values()))
    for part, ways in parts:
        lines.append(
            f'| {part} | {ways["forward"]:.2f} | {ways["backward"]:.2f} '
            f'| {100 * sum(ways.values()) / whole:.2f} % |'
        )
    machine = report['machine']
    lines += [
        f'| all | {sum(w["forward"] for _, w in parts):.2f} '
        f'| {sum(w["backward"] for _, w in parts):.2f} | {whole:.2f} ms |',
        '',
        f'- Mean of {settings["steps"]} steps on {machine["device"]}, CPU threads: '
        f'{machine["threads"]}, the profiler itself included.',
        f'- `{report["command"]}`',
        '',
    ]
    return '\n'.join(lines)


def _part_of(event: Range, owner: dict[int, str]) -> tuple[str | None, str]:
    """Return the part that an event is the time of, or None, and which way it goes."""
    if event.name.startswith(BACKWARD):
        return owner.get(event.sequence, 'gradients added up'), 'backward'
    if event.name.startswith(OPTIMIZER):
        return 'optimizer', 'forward'
    if event.name.startswith(MARK):
        part = event.name.removeprefix(MARK)
        return (REST if part == STEP else part), 'forward'
    return None, 'forward'


def _mark_parts(model: nn.Module) -> None:
    """Let the profiler see which part is at work."""
    _mark(model.data_preprocessor, 'preprocessor')
    for name, network in named_networks(model).items():
        head = _mark_network(network, f'network {name}'.strip())
        _mark(head.loss_module, 'classification losses')
        if isinstance(head, DistillingHead):
            _mark(find_classifier(network, name), f'network {name}'.strip())
            head.terms = _marked(head.terms, 'distillation losses')
    if not isinstance(model, Distiller):
        return
    for name, network in model.teachers.networks.items():
        _mark_network(network, f'teacher {name}')
    for method in model.methods.values():
        method.losses = _marked(method.losses, 'distillation losses')
        for name, module in method.named_children():
            for part in module.values() if isinstance(module, nn.ModuleDict) else [module]:
                _mark(part, name.replace('_', ' '))


def _mark_network(network: nn.Module, part: str) -> nn.Module:
    """Mark a classifier, and return what has its classification loss."""
    if not isinstance(network, ImageClassifier):  # of timm or transformers
        _mark(network.model, part)
        return network
    _mark(network.backbone, part)
    if network.with_neck:
        _mark(network.neck, part)
    _mark(network.head, part)
    return network.head


def _mark(module: nn.Module, part: str) -> None:
    """Mark the forward passes of a module."""
    module.forward = _marked(module.forward, part)


def _marked(function: Callable, part: str) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
        with record_function(MARK + part):
            return function(*args, **kwargs)

    return run


def _logging(config: Config) -> Callable[[dict], None]:
    """Return what a recipe's runs do with the loss terms of an iteration."""
    hooks = config.get('default_hooks') or {}
    hook = HOOKS.build(dict(hooks.get('runtime_info') or {'type': 'RuntimeInfoHook'}))
    runner = SimpleNamespace(message_hub=MessageHub('profile'))
    return lambda outputs: hook.after_train_iter(runner, 0, None, outputs)
