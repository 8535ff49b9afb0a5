"""Show where the time of a training step goes: networks, necks, losses, optimizer, and the rest.

On the CPU, on random images; no data set is needed. The backward pass of an operation counts for
the part that the operation is in.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import pandas as pd
from mmengine.registry import init_default_scope
from mmpretrain.models import ImageClassifier
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from kd_mm.analysis.benchmark import Side, describe_machine, random_batch, sizes_of
from kd_mm.analysis.step_costs import machine_line
from kd_mm.checks import check_int
from kd_mm.config import OptionsAction, explained, read_config
from kd_mm.export import plain_cfg
from kd_mm.models.distiller import Distiller, named_networks
from kd_mm.models.heads import DistillingHead
from kd_mm.models.networks import find_classifier
from kd_mm.run import launch
from kd_mm.run.check_types import check_types
from kd_mm.run.errors import plain_errors

MARK, STEP = 'kd_mm: ', 'Python and all else'
BACKWARD = 'autograd::engine::evaluate_function: '
OPTIMIZER = ('Optimizer.step#', 'Optimizer.zero_grad#')  # ranges that torch marks itself


def parse_args():
    parser = argparse.ArgumentParser(description='Time of the parts of a training step')
    parser.add_argument('config', help='config file of the recipe')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        default={},
        help='settings of the config, as key=value pairs',
    )
    launch.add_step_arguments(parser, steps=5, warmup=2)
    args = parser.parse_args()
    launch.check_step_arguments(parser, args)
    return args


def profile_step(config, steps, warmup, **sizes):
    """Return milliseconds per step by part, forward and backward, and the settings."""
    check_int('steps', steps)
    check_int('warmup', warmup, 0)
    if config.get('compile'):
        raise ValueError('a compiled step has no parts, but the config has compile; leave it out')
    plain = plain_cfg(config)
    settings = sizes_of(plain, **sizes)
    batch, side = random_batch(plain, settings), Side(config, settings)
    mark_parts(side.model)
    mark(side, 'step', STEP)
    for _ in range(warmup):
        side.step(side.fresh(*batch))
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        for _ in range(steps):
            side.step(side.fresh(*batch))
    makers = {}  # parts of the operations that made nodes of the graph, by sequence number
    rows = []
    for event in sorted(prof.events(), key=lambda event: event.time_range.start):
        part, way = part_of(event, makers)
        if way == 'forward' and event.sequence_nr >= 0:
            makers[event.sequence_nr] = part
        rows.append({'part': part, 'way': way, 'ms': event.self_cpu_time_total / 1000 / steps})
    times = pd.DataFrame(rows).pivot_table('ms', 'part', 'way', aggfunc='sum', fill_value=0.0)
    return times, {**settings, 'steps': steps}


def part_of(event, makers):
    """Return the part that an event is the time of, and which way it goes."""
    while event is not None:
        if event.name.startswith(BACKWARD):
            return makers.get(event.sequence_nr, 'gradients added up'), 'backward'
        if event.name.startswith(OPTIMIZER):
            return 'optimizer', 'forward'
        if event.name.startswith(MARK):
            return event.name.removeprefix(MARK), 'forward'
        event = event.cpu_parent
    return None, None


def mark(owner, name, part):
    """Make the profiler see calls of a method."""
    setattr(owner, name, record_function(MARK + part)(getattr(owner, name)))


def mark_parts(model):
    """Make the profiler see the parts of a model."""
    mark(model.data_preprocessor, 'forward', 'preprocessor')
    for name, network in named_networks(model).items():
        mark_network(network, name, f'network {name}'.strip())
    if not isinstance(model, Distiller):
        return
    for name, network in model.teachers.networks.items():
        mark_network(network, name, f'teacher {name}')
    for method in model.methods.values():
        mark(method, 'losses', 'distillation losses')
        for name, module in method.named_children():
            for part in module.values() if isinstance(module, nn.ModuleDict) else [module]:
                mark(part, 'forward', name.replace('_', ' '))


def mark_network(network, name, part):
    """Make the profiler see a classifier and its losses."""
    if not isinstance(network, ImageClassifier):  # of timm or transformers
        mark(network.model, 'forward', part)
        mark(network.loss_module, 'forward', 'classification losses')
        return
    for module in (network.backbone, network.neck, network.head):
        if module is not None:
            mark(module, 'forward', part)
    mark(network.head.loss_module, 'forward', 'classification losses')
    if isinstance(network.head, DistillingHead):
        mark(find_classifier(network, name), 'forward', part)
        mark(network.head, 'terms', 'distillation losses')


def main():
    args = parse_args()
    launch.prepare_steps(args)
    with plain_errors():
        config = read_config(args.config, args.cfg_options)
        init_default_scope(config.get('default_scope') or 'mmpretrain')
        check_types(config.to_dict())
        with explained('the step cannot be timed', 'look at the config and at the sizes given'):
            times, settings = profile_step(config, **launch.step_settings(args))
        machine, whole = describe_machine(), times.sum().sum()
        report = {
            'settings': settings,
            'parts': times.to_dict('index'),
            'step_ms': whole,
            'machine': machine,
            'command': shlex.join(['python', *sys.argv]),
        }
        table = times[['forward', 'backward']].add_suffix(', ms')
        table['share, %'] = 100 * times.sum(axis=1) / whole
        table = table.sort_values('share, %', ascending=False)
        table.loc['all'] = table.sum()
        print(
            f'### {Path(args.config).stem}, {settings["batch_size"]} images of '
            f'{settings["img_size"]} px\n\n{table.to_markdown(floatfmt=".2f")}\n\n'
            f'- Mean of {settings["steps"]} steps, CPU threads: {machine["threads"]}, the '
            f'profiler itself included; {machine_line(machine)}.\n- `{report["command"]}`\n'
        )
        if args.json:
            Path(args.json).write_text(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
