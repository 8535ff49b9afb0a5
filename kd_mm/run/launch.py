"""What training and testing from the command line share; the flags are mmpretrain's."""

import argparse
import ctypes
import os
import platform
import signal
from copy import deepcopy
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.runner import Runner

from kd_mm.config import OptionsAction
from kd_mm.engine.allocator import hold_freed_memory
from kd_mm.engine.hooks import CompileHook, DistillerHook, LossGuardHook
from kd_mm.resume import CheckpointGuardHook, SafeCheckpointHook, SeedHook

# What each training has, with a recipe of others too.
HOOKS = (
    CheckpointGuardHook,
    CompileHook,
    DistillerHook,
    LossGuardHook,
    SafeCheckpointHook,
    SeedHook,
)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that mmpretrain's train.py and test.py have in common."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='override settings of the config, as key=value pairs; nested keys are joined by '
        'dots (train_dataloader.batch_size=32), lists are written key="[a,b]" or key=a,b',
    )
    parser.add_argument(
        '--no-pin-memory', action='store_true', help='do not pin memory in the data loaders'
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    add_trust_argument(parser)
    # torch.distributed.launch wrote the first spelling before torch 2.0 and the second since.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag of every tool that reads a checkpoint, for ``safe_files``."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read checkpoints that hold more than plain data, which may run any code; only for '
        'files whose maker you know',
    )


def at_least_one(text: str) -> int:
    """Read a flag that counts something, as the ``type`` of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number of at least 1, but got {text}')
    return int(text)


def add_step_arguments(parser: argparse.ArgumentParser, steps: int, warmup: int) -> None:
    """Add the flags of a tool that measures training steps; the counts are defaults."""
    parser.add_argument('--batch-size', type=int, help="images in a step (config's)")
    parser.add_argument('--img-size', type=int, help="height and width in pixels (config's)")
    parser.add_argument('--num-classes', type=int, help="number of classes (config's)")
    parser.add_argument('--steps', type=int, default=steps, help=f'measured steps ({steps})')
    parser.add_argument('--warmup', type=int, default=warmup, help=f'steps before them ({warmup})')
    parser.add_argument('--threads', type=int, help="CPU threads (torch's choice)")
    parser.add_argument('--json', metavar='OUT', help='write every number to this file')


def check_step_arguments(
    parser: argparse.ArgumentParser, args: argparse.Namespace, *files: str
) -> None:
    """End such a tool at once if it could not write its ``files``, flags without dashes."""
    if args.threads is not None and args.threads < 1:
        parser.error(f'--threads must be at least 1, but got {args.threads}')
    for flag in ('json', *files):
        path = getattr(args, flag)
        if path and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
            parser.error(f'--{flag} must be a file in a folder that exists, but got {path}')


def step_settings(args: argparse.Namespace) -> dict[str, int | None]:
    """Return those of these arguments that a measurement takes, by name."""
    names = ('batch_size', 'img_size', 'num_classes', 'steps', 'warmup')
    return {name: getattr(args, name) for name in names}


def prepare_steps(args: argparse.Namespace) -> None:
    """Set threads and memory for training steps that are measured."""
    hold_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)


def set_launcher(cfg: Config, args: argparse.Namespace) -> None:
    """Give MMEngine the launcher and the local rank; let this process end with its torchrun.

    Otherwise the processes of a killed torchrun train on, and write into a work dir in which the
    run may have been resumed.

    Args:
        cfg: Changed in place.
        args: Parsed flags with ``launcher`` and ``local_rank``.

    Raises:
        ValueError: If ``--launcher pytorch`` was given without torchrun.
    """
    rank = from_launcher('OMPI_COMM_WORLD_LOCAL_RANK', default=str(args.local_rank))
    os.environ.setdefault('LOCAL_RANK', rank)
    cfg.launcher = args.launcher
    if args.launcher != 'pytorch':
        return
    lacking = [key for key in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR') if key not in os.environ]
    if lacking:
        raise ValueError(
            f'--launcher pytorch needs {", ".join(lacking)} in the environment, which torchrun '
            'sets; start it by tools/dist_train.sh or tools/dist_test.sh, or leave --launcher out'
        )
    if platform.system() == 'Linux':
        set_parent_death_signal = 1  # of linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def set_work_dir(cfg: Config, args: argparse.Namespace) -> None:
    """Choose the work dir: the flag, the config's, or ``work_dirs/<name of the config>``."""
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)


def set_dataloader_defaults(
    cfg: Config, args: argparse.Namespace, names: tuple[str, ...], persistent: bool
) -> None:
    """Fill in what mmpretrain's tools set for every data loader.

    Args:
        cfg: Changed in place.
        args: Parsed flags with ``no_pin_memory``.
        names: Data loaders, of which the config may lack some.
        persistent: Keep worker processes alive between epochs.
    """
    for name in names:
        if cfg.get(name) is None:
            continue
        loader = ConfigDict(
            pin_memory=True, persistent_workers=True, collate_fn=dict(type='default_collate')
        )
        loader.update(deepcopy(cfg[name]))
        # torch refuses persistent workers where there are none, and warns of pinning without GPU.
        loader.persistent_workers &= persistent and loader.get('num_workers', 0) > 0
        loader.pin_memory &= not args.no_pin_memory and torch.cuda.is_available()
        cfg[name] = loader


def use_gloo_without_gpu(cfg: Config) -> None:
    """Make ``--launcher pytorch`` work on a machine without a GPU.

    MMEngine's launcher asks for a CUDA device, but leaves an existing process group alone.

    Args:
        cfg: Changed in place: the model wrapper gets no device, and ``sync_bn``, which torch has
            for GPUs only, is dropped with a warning.
    """
    if cfg.get('launcher') != 'pytorch' or torch.cuda.is_available():
        return
    torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False
    )
    if cfg.pop('sync_bn', None) is not None:
        text = 'sync_bn needs GPUs; on CPU each rank normalises by its own batch'
        print_log(text, logger='current', level=30)


def register_hooks(runner: Runner) -> None:
    """Give the runner of a training each of :data:`HOOKS` that it does not have."""
    for hook in HOOKS:
        if not any(isinstance(there, hook) for there in runner.hooks):
            runner.register_hook(hook())


def is_first_process() -> bool:
    """Return whether this process speaks for all, before any process group exists."""
    return from_launcher('RANK', 'OMPI_COMM_WORLD_RANK', 'SLURM_PROCID', default='0') == '0'


def is_alone() -> bool:
    """Return whether no other process trains with this one, before any process group exists."""
    sizes = ('WORLD_SIZE', 'OMPI_COMM_WORLD_SIZE', 'SLURM_NTASKS')
    return from_launcher(*sizes, default='1') == '1'


def from_launcher(*names: str, default: str) -> str:
    """Return the first of several environment variables that is set; each launcher has its own.

    Those of ``mpirun`` come before SLURM's: it may run inside of a SLURM job.
    """
    return next((os.environ[name] for name in names if name in os.environ), default)
