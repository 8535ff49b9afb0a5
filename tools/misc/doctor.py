"""Say in seconds what stands in the way of a run: versions and, with a config, its rehearsal.

Nothing is written. The exit code is 1 where there is an error.
"""

import argparse
import sys
import warnings

try:
    import kd_mm  # noqa: F401, refuses packages that do not fit; makes `kd_mm::` configs known
except ImportError as error:
    sys.exit(f'error:   {error}')

from mmengine.config import Config

from kd_mm.checkpoint import safe_files
from kd_mm.config import read_config
from kd_mm.run import doctor, launch, preflight
from kd_mm.run.errors import plain_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', nargs='?', help='config of the run; without it, versions alone')
    parser.add_argument('--work-dir', help='where the run shall save its checkpoints')
    launch.add_common_arguments(parser)
    return parser.parse_args()


def complete_config(args: argparse.Namespace) -> Config:
    cfg = read_config(args.config, args.cfg_options)
    launch.set_work_dir(cfg, args)
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    launch.set_dataloader_defaults(cfg, args, loaders, persistent=True)
    return cfg


def main() -> None:
    args = parse_args()
    warnings.simplefilter('ignore')
    errors = 0

    def show(finding: doctor.Finding) -> None:
        nonlocal errors
        errors += finding.level == doctor.ERROR
        print(finding, flush=True)

    with plain_errors():
        show(doctor.describe_machine())
        for finding in doctor.examine_installation(*doctor.installed()):
            show(finding)
        if args.config is not None:
            try:
                cfg = complete_config(args)
            except preflight.USER_ERRORS as error:
                show(doctor.Finding(doctor.ERROR, str(error)))
            else:
                with safe_files(args.trust_checkpoint):
                    for finding in doctor.examine_config(cfg):
                        show(finding)
    sys.exit(min(errors, 1))


if __name__ == '__main__':
    main()
