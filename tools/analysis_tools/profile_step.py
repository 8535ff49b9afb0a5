"""Tell where the time of a training step goes: networks, necks, losses, optimizer, and the rest.

On the CPU, on random images; no data set is needed.
"""

import argparse
import json
import shlex
import sys

from mmengine.registry import init_default_scope

from kd_mm.analysis.step_profile import profile_step, to_markdown
from kd_mm.config import OptionsAction, explained, read_config
from kd_mm.run import launch
from kd_mm.run.errors import plain_errors
from kd_mm.run.preflight import check_types


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


def measure(args):
    config = read_config(args.config, args.cfg_options)
    init_default_scope(config.get('default_scope') or 'mmpretrain')
    check_types(config.to_dict())
    with explained('the step cannot be timed', 'look at the config and at the sizes given'):
        return profile_step(config, **launch.step_settings(args))


def main():
    args = parse_args()
    launch.prepare_steps(args)
    with plain_errors():
        report = measure(args)
        report['command'] = shlex.join(['python', *sys.argv])
        print(to_markdown(report))
        if args.json:
            with open(args.json, 'w', encoding='utf-8') as file:
                json.dump(report, file, indent=1)


if __name__ == '__main__':
    main()
