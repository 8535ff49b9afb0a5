"""Compare how many images per second the training loaders of recipes give on one core.

Timed from the sampler to what the network takes, all views, in this process on one thread,
without workers, in processor time. The recipes take turns. The figures in docs/benchmarks.md,
section "Data loading", come from this script.
"""

import argparse
import copy
import shlex
import sys
import time
from itertools import chain, repeat
from pathlib import Path

import cv2
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from kd_mm.analysis.benchmark import describe_machine, summarize
from kd_mm.analysis.step_costs import machine_line, table
from kd_mm.config import read_config
from kd_mm.models.distiller import as_distiller
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


def batches_of(config, data_root=None, batch_size=None):
    """Yield batches as a recipe's network takes them, without end."""
    loader = {'collate_fn': {'type': 'default_collate'}, **copy.deepcopy(config.train_dataloader)}
    loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
    loader['batch_size'] = batch_size or loader['batch_size']
    dataset = loader['dataset']
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if data_root is not None:
        dataset.data_root = data_root
    distills = as_distiller(config.model) is not None
    kind = 'kd_mm.CohortDataPreprocessor' if distills else 'mmpretrain.ClsDataPreprocessor'
    preprocess = MODELS.build({'type': kind, **config.data_preprocessor})
    for batch in chain.from_iterable(repeat(Runner.build_dataloader(loader, seed=0))):
        yield preprocess(batch, training=True)


def images_per_second(batches, count):
    """Return the speed of the next so many batches."""
    start = time.process_time()
    images = sum(len(next(batches)['data_samples']) for _ in range(count))
    return images / (time.process_time() - start)


def compare_loaders(configs, data_root=None, batch_size=None, batches=50, rounds=7):
    """Return a row for each recipe: batch, views, and images per second over the rounds."""
    init_default_scope('mmpretrain')
    feeds = [batches_of(config, data_root, batch_size) for config in configs]
    firsts = [next(feed) for feed in feeds]
    speeds = [[images_per_second(feed, batches) for feed in feeds] for _ in range(rounds)]
    return [
        {
            'batch': len(first['data_samples']),
            'views': len(first['inputs']) if isinstance(first['inputs'], list) else 1,
            **summarize(column),
        }
        for first, column in zip(firsts, zip(*speeds, strict=True), strict=True)
    ]


def main():
    args = parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with plain_errors():
        configs = [read_config(path) for path in args.configs]
        rows = compare_loaders(configs, args.data, args.batch_size, args.batches, args.rounds)
    lines = [
        {
            'recipe': Path(path).stem,
            'batch': str(row['batch']),
            'views': str(row['views']),
            'images/s (quartiles)': '{:,.0f} ({:,.0f} to {:,.0f})'.format(
                row['median'], *row['quartiles']
            ),
            'microseconds per image': f'{1e6 / row["median"]:,.1f}',
            'by the first': f'{row["median"] / rows[0]["median"]:.2f} x',
        }
        for path, row in zip(args.configs, rows, strict=True)
    ]
    print(f'{table(lines)}\n\n- Processor time, 1 thread; {machine_line(describe_machine())}.')
    print(f'- `{shlex.join(["python", *sys.argv])}`')


if __name__ == '__main__':
    main()
