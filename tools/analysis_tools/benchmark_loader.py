"""Compare how many images per second the training loaders of recipes give on one core.

The figures in docs/benchmarks.md, section "Data loading", come from this script.
"""

import argparse
import shlex
import sys

from kd_mm.analysis.loader_benchmark import compare_loaders, to_markdown
from kd_mm.config import read_config
from kd_mm.run.errors import plain_errors
from kd_mm.run.launch import at_least_one


def parse_args():
    parser = argparse.ArgumentParser(description='Images per second of training loaders')
    parser.add_argument('configs', nargs='+', help='config files; all are compared with the first')
    parser.add_argument('--data', metavar='DIR', help="folder of the data (configs')")
    parser.add_argument('--batch-size', type=at_least_one, help="images in a batch (configs')")
    parser.add_argument('--batches', type=at_least_one, default=50, help='batches in a round (50)')
    parser.add_argument('--rounds', type=at_least_one, default=7, help='rounds, by turns (7)')
    return parser.parse_args()


def main():
    args = parse_args()
    with plain_errors():
        configs = [read_config(path) for path in args.configs]
        if args.batch_size:
            for config in configs:
                config.train_dataloader.batch_size = args.batch_size
        report = compare_loaders(configs, args.data, args.batches, args.rounds)
        print(to_markdown({**report, 'command': shlex.join(['python', *sys.argv])}))


if __name__ == '__main__':
    main()
