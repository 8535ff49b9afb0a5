"""Export a checkpoint of kd_mm as plain mmpretrain weights with a plain config."""

import argparse
import sys

from mmengine.config import Config

import kd_mm  # noqa: F401, makes `kd_mm::` configs known
from kd_mm.export import export_student
from kd_mm.utils.checkpoint import load_checkpoint, safe_files
from kd_mm.utils.launch import add_trust_argument
from kd_mm.utils.preflight import USER_ERRORS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the run, such as the one in its work dir')
    parser.add_argument('checkpoint', help='checkpoint of the run')
    parser.add_argument('--out', required=True, help='folder for model.pth and config.py')
    parser.add_argument('--student', help='student of a cohort; by default the deployed one')
    add_trust_argument(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        with safe_files(args.trust_checkpoint):
            checkpoint = load_checkpoint(args.checkpoint)
        meta = {'dataset_meta': checkpoint.get('meta', {}).get('dataset_meta', {})}
        cfg = Config.fromfile(args.config)
        done = export_student(cfg, checkpoint['state_dict'], args.out, meta, args.student)
    except USER_ERRORS as error:
        sys.exit(f'error: {error}')
    print(f'logits of the plain model differ by at most {done.difference:.1e}')
    print(f'wrote {done.weights}\nwrote {done.config}')


if __name__ == '__main__':
    main()
