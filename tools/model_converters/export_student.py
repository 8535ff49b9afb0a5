"""Export a checkpoint of kd_mm as plain mmpretrain weights with a plain config."""

import argparse

import kd_mm  # noqa: F401, makes `kd_mm::` configs known
from kd_mm.checkpoint import load_checkpoint, safe_files
from kd_mm.config import read_config
from kd_mm.export import FORMATS, choose_weights, export_student
from kd_mm.run.errors import plain_errors
from kd_mm.run.launch import add_trust_argument


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the run, such as the one in its work dir')
    parser.add_argument('checkpoint', help='checkpoint of the run, a file or an address')
    parser.add_argument('--out', required=True, help='folder for model.FORMAT and config.py')
    parser.add_argument('--student', help='student of a cohort; by default the deployed one')
    parser.add_argument(
        '--ema',
        action=argparse.BooleanOptionalAction,
        help='the average of weights that an EMAHook kept, or the weights without it; by default '
        "the checkpoint's state_dict, which holds the average where there is one",
    )
    parser.add_argument('--format', choices=FORMATS, default=FORMATS[0], help='pth by default')
    add_trust_argument(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with plain_errors():
        with safe_files(args.trust_checkpoint):
            checkpoint = load_checkpoint(args.checkpoint)
        done = export_student(
            read_config(args.config),
            choose_weights(checkpoint, args.ema),
            args.out,
            {'dataset_meta': checkpoint.get('meta', {}).get('dataset_meta', {})},
            args.student,
            args.format,
        )
        print(f'logits of the plain model differ by at most {done.difference:.1e}')
        print(f'wrote {done.weights}\nwrote {done.config}')
        if done.needs:
            print(f'config.py needs kd_mm installed: mmpretrain has no {", ".join(done.needs)}')


if __name__ == '__main__':
    main()
