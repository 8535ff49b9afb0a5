"""Test (and evaluate) a classifier, with mmpretrain's flags."""

import argparse
import sys
from copy import deepcopy
from pathlib import Path

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import kd_mm  # noqa: F401, makes `kd_mm::` configs known
from kd_mm.checkpoint import UnsafeFileError, safe_files
from kd_mm.config import read_config
from kd_mm.resume import CheckpointGuardHook
from kd_mm.run import errors, launch
from kd_mm.run.rehearsal import check_config, check_folder

PREDICTIONS, METRICS = ('.pkl', '.pickle'), ('.json', '.yml', '.yaml', '.pkl', '.pickle')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='test config file path')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--work-dir', help='the directory to save the file containing evaluation metrics'
    )
    parser.add_argument('--out', help='the file to output results')
    parser.add_argument(
        '--out-item',
        choices=['metrics', 'pred'],
        help='what --out gets, metrics or predictions; predictions by default',
    )
    parser.add_argument('--amp', action='store_true', help='enable automatic-mixed-precision test')
    parser.add_argument('--show-dir', help='directory for visualised predictions')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--interval', type=int, default=1, help='visualise every n-th sample')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='display time of every window, in seconds'
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation by the config's tta_pipeline and tta_model, or else the "
        'mean of the image and its mirror image',
    )
    launch.add_common_arguments(parser)
    args = parser.parse_args()
    if args.out is None and args.out_item is not None:
        parser.error('--out-item needs --out, the path of the output file')
    check_outputs(parser, args)
    return args


def check_outputs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    endings = METRICS if args.out_item == 'metrics' else PREDICTIONS
    if args.out is not None and Path(args.out).suffix not in endings:
        parser.error(f'--out must end in {", ".join(endings)}, but got {args.out}')
    if args.out is not None and Path(args.out).is_dir():
        parser.error(f'--out must be a file, but {args.out} is a folder')
    if args.show_dir is not None and Path(args.show_dir).is_file():
        parser.error(f'--show-dir must be a folder, but {args.show_dir} is a file')
    if args.tta and (args.show or args.show_dir is not None):
        parser.error(
            '--tta has several versions of an image, of which --show and --show-dir take '
            'none; leave one out'
        )
    if args.interval < 1:
        parser.error(f'--interval must be at least 1, but got {args.interval}')


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    launch.set_launcher(cfg, args)
    launch.set_work_dir(cfg, args)
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.tta:
        set_tta(cfg)
    launch.set_dataloader_defaults(cfg, args, ('test_dataloader',), persistent=False)
    return cfg


def show_pictures(cfg: Config, args: argparse.Namespace) -> None:
    if args.show or args.show_dir is not None:
        cfg.default_hooks.visualization = dict(
            type='VisualizationHook',
            enable=True,
            show=args.show,
            wait_time=args.wait_time,
            out_dir=args.show_dir,
            interval=args.interval,
        )


def set_tta(cfg: Config) -> None:
    cfg.setdefault('tta_model', dict(type='mmpretrain.AverageClsScoreTTA'))
    if 'tta_pipeline' not in cfg:
        *steps, pack = deepcopy(cfg.test_dataloader.dataset.pipeline)
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        cfg.tta_pipeline = [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


class Tester(Runner):
    """A runner that leaves the config that training has dumped into the work dir."""

    def dump_config(self) -> None:
        """Write the config, unless there is one."""
        if not (Path(self.work_dir) / Path(self.cfg.filename).name).exists():
            super().dump_config()


def test(args: argparse.Namespace) -> None:
    with errors.plain_errors():
        cfg = merge_args(read_config(args.config, args.cfg_options), args)
        if launch.is_first_process():
            for flag, path in (('--out', args.out), ('--show-dir', args.show_dir)):
                if path is not None:
                    check_folder(Path(path).parent, f'the folder of {flag}', flag)
            check_config(cfg, ('test_dataloader',))
    show_pictures(cfg, args)
    with errors.one_sentence():
        launch.use_gloo_without_gpu(cfg)
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Tester.from_cfg(cfg)
        runner.register_hook(CheckpointGuardHook())
        if args.out and args.out_item != 'metrics':
            runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
        metrics = runner.test()
        if args.out and args.out_item == 'metrics':
            mmengine.dump(metrics, args.out)


def main() -> None:
    args = parse_args()
    try:
        with safe_files(args.trust_checkpoint):
            test(args)
    except UnsafeFileError as error:  # met by the run itself
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
