"""Tell where the time of a training step goes: networks, necks, losses, optimizer, and the rest.

On the CPU, on random images; no data set is needed.
"""

import argparse
import json
import shlex
import sys

import torch
from mmengine.registry import init_default_scope

from kd_mm.utils import launch
from kd_mm.utils.configs import (
    USER_ERRORS,
    OptionsAction,
    check_measuring_args,
    explained,
    read_config,
)
from kd_mm.utils.preflight import check_types
from kd_mm.utils.step_profile import profile_step, to_markdown


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
    parser.add_argument('--batch-size', type=int, help="images in a step (config's)")
    parser.add_argument('--img-size', type=int, help="height and width in pixels (config's)")
    parser.add_argument('--num-classes', type=int, help="number of classes (config's)")
    parser.add_argument('--steps', type=int, default=5, help='profiled steps (5)')
    parser.add_argument('--warmup', type=int, default=2, help='steps before them (2)')
    parser.add_argument('--threads', type=int, help="CPU threads (torch's choice)")
    parser.add_argument('--json', metavar='OUT', help='write every number to this file')
    args = parser.parse_args()
    check_measuring_args(parser, args.threads, {'--json': args.json})
    return args


def measure(args):
    config = read_config(args.config, args.cfg_options)
    init_default_scope(config.get('default_scope') or 'mmpretrain')
    check_types(config.to_dict())
    with explained('the step cannot be timed', 'look at the config and at the sizes given'):
        return profile_step(
            config,
            batch_size=args.batch_size,
            img_size=args.img_size,
            num_classes=args.num_classes,
            steps=args.steps,
            warmup=args.warmup,
        )


def main():
    args = parse_args()
    launch.hold_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        report = measure(args)
    except USER_ERRORS as error:
        sys.exit(f'error: {error}')
    report['command'] = shlex.join(['python', *sys.argv])
    print(to_markdown(report))
    if args.json:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(report, file, indent=1)


if __name__ == '__main__':
    main()
