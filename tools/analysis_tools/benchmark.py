"""Compare the time and memory of a distilled training step with those of the plain one.

The recipe and its counterpart (of a cohort: each student's own plain training, added up) run in
one process, in turns, on equal random images; no data set is needed. Options hold for both, but
not for what `--against` names. `--save docs/benchmarks` writes the tables of docs/benchmarks.md.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from mmengine.registry import init_default_scope

from kd_mm.analysis import step_costs
from kd_mm.analysis.benchmark import compare_steps, undistilled
from kd_mm.config import OptionsAction, explained, read_config
from kd_mm.export import student_names
from kd_mm.run import launch
from kd_mm.run.check_types import check_types
from kd_mm.run.errors import plain_errors


def parse_args():
    parser = argparse.ArgumentParser(description='Paired timing of training steps')
    parser.add_argument('config', help='config file of the recipe in question')
    parser.add_argument(
        '--against',
        nargs='+',
        metavar='CONFIG',
        help='config to compare with, or several whose steps add up (CONFIG undistilled)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        default={},
        help='settings of CONFIG, as key=value pairs (compile=True); also of CONFIG undistilled, '
        'but not of what --against names',
    )
    launch.add_step_arguments(parser, steps=30, warmup=5)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument(
        '--clock', choices=['wall', 'cpu'], default='wall', help='cpu: blind to other programs'
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (CUDA)')
    parser.add_argument('--markdown', metavar='OUT', help='write the table to this file')
    parser.add_argument(
        '--save',
        metavar='FOLDER',
        help='keep the numbers here, and fill the tables of the page FOLDER.md with them',
    )
    args = parser.parse_args()
    launch.check_step_arguments(parser, args, 'markdown')
    if args.save and not Path(f'{args.save}.md').is_file():
        parser.error(f'--save must be a folder next to its page, but {args.save}.md is missing')
    return args


def measure(args):
    config = read_config(args.config, args.cfg_options)
    init_default_scope(config.get('default_scope') or 'mmpretrain')
    check_types(config.to_dict())
    if args.against:
        against = [read_config(path) for path in args.against]
    else:
        against = [undistilled(config, name) for name in student_names(config) or [None]]
    for cfg in against:
        check_types(cfg.to_dict())
    for cfg in (config, *against) if args.amp else ():
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
    settings = launch.step_settings(args)
    run = {name: settings.pop(name) for name in ('steps', 'warmup')}
    with explained('the steps cannot be timed', 'look at the config and at the sizes given'):
        return compare_steps(
            config, against, settings, device=args.device, clock=args.clock, **run
        )


def main():
    args = parse_args()
    launch.prepare_steps(args)
    with plain_errors():
        report = {
            **measure(args),
            'recipe': '/'.join(Path(args.config).with_suffix('').parts[-2:]),
            'options': args.cfg_options | ({'amp': True} if args.amp else {}),
            'undistilled': not args.against,
            'command': shlex.join(['python', *sys.argv]),
        }
        text = step_costs.section([report])
        print(text)
        if args.json:
            Path(args.json).write_text(json.dumps(report, indent=1))
        if args.markdown:
            Path(args.markdown).write_text(text)
        if args.save:
            step_costs.save(report, Path(args.save))
            page = Path(f'{args.save}.md')
            page.write_text(step_costs.fill(page.read_text(), step_costs.read(Path(args.save))))


if __name__ == '__main__':
    main()
