"""Train a classifier, with mmpretrain's flags."""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

import kd_mm  # noqa: F401, makes `kd_mm::` configs known
from kd_mm.checkpoint import UnsafeFileError, safe_files
from kd_mm.config import read_config
from kd_mm.engine.hooks import ExportHook
from kd_mm.export import shipped_names
from kd_mm.resume.lock import lock_work_dir
from kd_mm.run import errors, launch
from kd_mm.run.rehearsal import check_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='train config file path')
    parser.add_argument('--work-dir', help='the dir to save logs and models')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or, without a path, from the latest one in the work '
        'directory',
    )
    parser.add_argument(
        '--amp', action='store_true', help='enable automatic-mixed-precision training'
    )
    parser.add_argument(
        '--no-validate', action='store_true', help='do not evaluate during training'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the actual batch size over the original one',
    )
    parser.add_argument(
        '--no-persistent-workers',
        action='store_true',
        help='start new workers of the data loaders in each epoch',
    )
    parser.add_argument(
        '--no-check',
        action='store_true',
        help='start without the check of the config, which passes two images through the run',
    )
    launch.add_common_arguments(parser)
    return parser.parse_args()


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    launch.set_launcher(cfg, args)
    launch.set_work_dir(cfg, args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise ValueError(
                '--auto-scale-lr needs auto_scale_lr.base_batch_size, the batch size that the '
                f'learning rate is for, but the config has {cfg.get("auto_scale_lr")}; leave the '
                'flag out'
            )
        cfg.auto_scale_lr.enable = True
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    launch.set_dataloader_defaults(cfg, args, loaders, not args.no_persistent_workers)
    return cfg


def train(args: argparse.Namespace) -> None:
    lock = nullcontext()
    with errors.plain_errors():
        cfg = merge_args(read_config(args.config, args.cfg_options), args)
        if launch.is_first_process():
            if not args.no_check:
                check_config(cfg, ('train_dataloader', 'val_dataloader'))
            lock = lock_work_dir(cfg.work_dir)
    with lock, errors.one_sentence(cfg.work_dir):
        launch.use_gloo_without_gpu(cfg)
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        launch.register_hooks(runner)
        runner.train()
        if launch.is_first_process():
            log_next_step(runner)


def log_next_step(runner: Runner) -> None:
    """Log how to take the students out of a cohort's checkpoint, where no hook has done so."""
    names = shipped_names(runner.cfg)
    if not names or any(isinstance(hook, ExportHook) for hook in runner.hooks):
        return
    checkpoint = find_latest_checkpoint(runner.work_dir)
    if checkpoint is None:
        return
    work_dir = Path(runner.work_dir)
    config = work_dir / Path(runner.cfg.filename).name
    commands = [
        f'  python tools/model_converters/export_student.py {config} {checkpoint} '
        f'--student {name} --out {work_dir / "deploy" / name}'
        for name in names
    ]
    intro = (
        'Training is done. Next, write what is deployed as plain mmpretrain weights and config:'
    )
    runner.logger.info('\n'.join([intro, *commands]))


def main() -> None:
    args = parse_args()
    try:
        with safe_files(args.trust_checkpoint):
            train(args)
    except UnsafeFileError as error:  # met by the run itself
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
