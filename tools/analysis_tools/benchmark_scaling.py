"""Measure what grows with the ranks (BAKE's ensembling) and with the images (its sampler).

The figures in docs/scaling.md come from this script.
"""

import argparse

from kd_mm.analysis.scaling import (
    SAMPLER_HEAD,
    ensembling_table,
    inverse_table,
    measure_ensembling,
    measure_inverse,
    measure_sampler,
    sampler_line,
)
from kd_mm.run.errors import plain_errors
from kd_mm.run.launch import at_least_one


def parse_args():
    parser = argparse.ArgumentParser(description='Cost by number of ranks or of images')
    parser.add_argument(
        '--ranks', type=at_least_one, nargs='*', default=[], help='numbers of ranks'
    )
    parser.add_argument('--images', type=at_least_one, default=128, help='images of a rank (128)')
    parser.add_argument(
        '--features', type=at_least_one, default=768, help='length of an embedding (768)'
    )
    parser.add_argument(
        '--classes', type=at_least_one, default=1000, help='number of classes (1000)'
    )
    parser.add_argument('--rounds', type=at_least_one, default=5, help='timed rounds of each (5)')
    parser.add_argument('--step-ms', type=float, help="a rank's plain step on the same core")
    parser.add_argument(
        '--inverse', type=at_least_one, metavar='IMAGES', help='compare with an explicit inverse'
    )
    parser.add_argument(
        '--labels', type=at_least_one, nargs='*', default=[], help='numbers of labels'
    )
    parser.add_argument(
        '--num-instances', type=at_least_one, default=2, help='images of a group (2)'
    )
    args = parser.parse_args()
    if not (args.ranks or args.inverse or args.labels):
        parser.error('nothing to measure; give --ranks, --inverse or --labels')
    return args


def main():
    args = parse_args()
    with plain_errors():
        if args.ranks:
            rows = measure_ensembling(
                args.ranks, args.images, args.features, args.classes, args.rounds
            )
            print(ensembling_table(rows, args.step_ms))
        if args.inverse:
            print(inverse_table(measure_inverse(args.inverse, args.features, args.classes)))
        if args.labels:
            print(SAMPLER_HEAD)
            for row in measure_sampler(args.labels, args.classes, args.num_instances):
                print(sampler_line(row), flush=True)


if __name__ == '__main__':
    main()
