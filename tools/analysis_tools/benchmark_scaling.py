"""Measure what grows with the ranks (BAKE's ensembling) and with the images (its sampler).

In processor time, on one thread. The figures in docs/scaling.md come from this script.
"""

import argparse
import multiprocessing
import resource
import time
import timeit
from collections import deque

import numpy as np
import torch

from kd_mm.analysis.benchmark import summarize
from kd_mm.analysis.step_costs import table
from kd_mm.datasets import ClassInstanceSampler
from kd_mm.functional.bake import affinity, ensemble_knowledge
from kd_mm.run.errors import plain_errors
from kd_mm.run.launch import at_least_one


def parse_args():
    parser = argparse.ArgumentParser(description='Cost by number of ranks or of images')
    number = {'type': at_least_one}
    parser.add_argument('--ranks', **number, nargs='*', default=[], help='numbers of ranks')
    parser.add_argument('--images', **number, default=128, help='images of a rank (128)')
    parser.add_argument('--features', **number, default=768, help='length of an embedding (768)')
    parser.add_argument('--classes', **number, default=1000, help='number of classes (1000)')
    parser.add_argument('--rounds', **number, default=5, help='timed rounds of each (5)')
    parser.add_argument('--step-ms', type=float, help="a rank's plain step on the same core")
    parser.add_argument(
        '--inverse', **number, metavar='IMAGES', help='compare with an explicit inverse'
    )
    parser.add_argument('--labels', **number, nargs='*', default=[], help='numbers of labels')
    parser.add_argument('--num-instances', **number, default=2, help='images of a group (2)')
    args = parser.parse_args()
    if not (args.ranks or args.inverse or args.labels):
        parser.error('nothing to measure; give --ranks, --inverse or --labels')
    return args


def ensembling_cost(ranks, images, features, classes):
    """Return operations, bytes received and bytes of the matrix of BAKE's ensembling on one rank.

    Of W ranks of n images, with N = W n, D features and K classes: 2 N^2 D (cosines), N^3 / 3
    (Cholesky factor), 2 N^2 min(n, K) (triangular solves), and 2 n N K where n < K (product with
    the predictions). Numbers are float32.
    """
    total = ranks * images
    operations = 2 * total**2 * features + total**3 // 3 + 2 * total**2 * min(images, classes)
    if images < classes:
        operations += 2 * images * total * classes
    return operations, 4 * (total - images) * (features + classes + 1), 4 * total**2


def inverse_targets(features, logits, temperature, omega):
    """Return BAKE's targets as its paper writes them."""
    matrix = torch.eye(len(features)) - omega * affinity(features)
    return (1 - omega) * torch.linalg.inv(matrix) @ (logits / temperature).softmax(dim=1)


def milliseconds(rounds, *functions):
    """Return the times of functions that take turns, without their first, (functions, rounds)."""
    times = [[timeit.timeit(f, time.process_time, number=1) for f in functions]
             for _ in range(rounds + 1)]  # fmt: skip
    return 1000 * np.array(times[1:]).T


def random_batch(count, features, classes):
    """Return random embeddings and logits."""
    rng = torch.Generator().manual_seed(0)
    return tuple(torch.randn(count, width, generator=rng) for width in (features, classes))


def cell(values, digits=1):
    """Return median and quartiles as text."""
    found = summarize(values)
    return '{1:,.{0}f} ({2:,.{0}f} to {3:,.{0}f})'.format(
        digits, found['median'], *found['quartiles']
    )


def ensembling_row(ranks, images, features, classes, rounds, step_ms):
    """Time what one rank computes once all is gathered."""
    batch = random_batch(ranks * images, features, classes)
    (times,) = milliseconds(
        rounds, lambda: ensemble_knowledge(*batch, 4.0, 0.5, rows=slice(0, images))
    )
    operations, received, matrix = ensembling_cost(ranks, images, features, classes)
    return {
        'ranks': f'{ranks:,}',
        'images': f'{ranks * images:,}',
        'operations': f'{operations / 1e9:,.2f} G',
        'matrix, MiB': f'{matrix / 2**20:,.1f}',
        'received, MiB': f'{received / 2**20:,.1f}',
        'ms (quartiles)': cell(times),
        'share of the step': step_ms and f'{np.median(times) / step_ms:.2%}',
    }


def inverse_row(ranks, batch):
    """Time the targets of one of several ranks that share a batch, and the inverse of all."""
    own = slice(0, len(batch[0]) // ranks)
    ours, inverse = milliseconds(
        15,
        lambda: ensemble_knowledge(*batch, 4.0, 0.5, rows=own),
        lambda: inverse_targets(*batch, 4.0, 0.5),
    )
    return {
        'ranks that share the batch': str(ranks),
        'ms (quartiles)': cell(ours),
        'explicit inverse, ms': cell(inverse),
        'ratio': cell(ours / inverse, 2),
    }


class Labels:
    """A data set that has labels and nothing more: N random ones of K classes."""

    def __init__(self, size, num_classes):
        self.labels = np.random.default_rng(0).integers(num_classes, size=size, dtype=np.int32)
        self.labels[:num_classes] = np.arange(num_classes)[:size]
        self.metainfo = {'classes': tuple(map(str, range(num_classes)))}

    def __len__(self):
        return len(self.labels)

    def get_cat_ids(self, idx):
        """Return the class of an item, as the samplers ask for it."""
        return [self.labels.item(idx)]


def sampler_row(size, num_classes, num_instances):
    """Time the class-instance sampler: its index, and an epoch of one rank."""
    dataset = Labels(size, num_classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    sampler = ClassInstanceSampler(dataset, num_instances, seed=0)
    built = time.process_time()
    deque(sampler, maxlen=0)
    seconds = time.process_time() - built
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        'labels': f'{size:,}',
        'build, s': f'{built - start:,.2f}',
        'indices of an epoch': f'{len(sampler):,}',
        'epoch, s': f'{seconds:,.2f}',
        'us per index': f'{1e6 * seconds / len(sampler):.3f}',
        'peak memory, MiB': f'{kibibytes / 1024:,.0f}',
    }


def main():
    args = parse_args()
    torch.set_num_threads(1)
    sizes = args.features, args.classes
    with plain_errors():
        if args.ranks:
            print(table(ensembling_row(ranks, args.images, *sizes, args.rounds, args.step_ms)
                        for ranks in args.ranks))  # fmt: skip
        if args.inverse:
            batch = random_batch(args.inverse, *sizes)
            print(table(inverse_row(ranks, batch) for ranks in (1, 2, 4, 8)))
        if args.labels:
            rows = []
            for size in args.labels:  # each in a process of its own, for its memory
                with multiprocessing.get_context('fork').Pool(1) as pool:
                    rows.append(pool.apply(sampler_row, (size, args.classes, args.num_instances)))
            print(table(rows))


if __name__ == '__main__':
    main()
