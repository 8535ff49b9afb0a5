"""Check an installation, and with a config rehearse its training on a few batches.

Nothing is written. The exit code is 1 where there is an error.
"""

import argparse
import platform
import resource
import shutil
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from datetime import timedelta
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

try:
    import kd_mm  # noqa: F401, refuses packages that do not fit; makes `kd_mm::` configs known
except ImportError as error:
    sys.exit(f'error:   {error}')

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from packaging.requirements import Requirement
from torch import Tensor

from kd_mm.checkpoint import bare_model, safe_files
from kd_mm.checks import few
from kd_mm.config import USER_ERRORS, read_config
from kd_mm.datasets import ClassInstanceSampler
from kd_mm.engine.hooks.loss_guard_hook import subjects
from kd_mm.installation import find_overlap, find_problem, installed_versions
from kd_mm.methods.base import NEEDS
from kd_mm.models.distiller import Distiller, named_networks
from kd_mm.models.heads import DistillingHead
from kd_mm.models.networks import num_classes_of
from kd_mm.run import launch
from kd_mm.run.errors import plain_errors
from kd_mm.run.rehearsal import check_config, check_folder
from kd_mm.version import __version__

OK, WARNING, ERROR = 'ok', 'warning', 'error'
LOADERS = ('train_dataloader', 'val_dataloader')
ENDLESS = 10**8  # MMEngine's end of a schedule without end is larger

Report = Callable[[str, str], None]  # takes the level and the sentence of a finding


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', nargs='?', help='config of the run; without it, versions alone')
    parser.add_argument('--work-dir', help='where the run will save its checkpoints')
    launch.add_common_arguments(parser)
    return parser.parse_args()


def complete_config(args: argparse.Namespace) -> Config:
    cfg = read_config(args.config, args.cfg_options)
    launch.set_work_dir(cfg, args)
    launch.set_dataloader_defaults(cfg, args, LOADERS, persistent=True)
    return cfg


def describe_machine(found: Mapping[str, str | None]) -> str:
    names = ('torch', 'torchvision', 'numpy', 'setuptools')
    versions = ', '.join(f'{name} {found.get(name, "(none)")}' for name in names)
    device = f'no GPU, {torch.get_num_threads()} CPU threads'
    if torch.cuda.is_available():
        memory = size(torch.cuda.get_device_properties(0).total_memory)
        device = f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, {memory}'
    return f'kd_mm {__version__}, Python {platform.python_version()}, {versions}; {device}'


def find_problems(
    found: Mapping[str, str | None], needs: Mapping[str, list[str]]
) -> Iterator[str]:
    """Yield what does not fit, with the command that repairs it.

    Args:
        found: Distribution name -> version.
        needs: Distribution name -> what its metadata require.
    """
    yield from (text for text in (find_problem(found), find_overlap(found)) if text is not None)
    for name, requirements in needs.items():
        for needed in map(Requirement, requirements):
            version = found.get(needed.name)
            here = needed.marker is None or needed.marker.evaluate({'extra': ''})
            if version and here and not needed.specifier.contains(version, prereleases=True):
                yield (
                    f'{name} {found[name]} needs {needed.name}{needed.specifier}, but found '
                    f'{needed.name} {version}. Run: pip install '
                    f'"{needed.name}{needed.specifier}" "{name}=={found[name]}"'
                )


class Doctor(Hook):
    """Reports time, memory, disk and gradients of a rehearsal.

    Args:
        cfg: Config of the run.
        report: Takes the findings.
    """

    priority = 'VERY_LOW'  # before the loaders are shortened

    def __init__(self, cfg: Config, report: Report) -> None:
        self.cfg, self.report = cfg, report
        self.savers: list[CheckpointHook] = []  # of the run, which save nothing in a rehearsal
        self.validations = 0
        self.batch_size: int | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Report weights that keep their random initial values."""
        found = {n.removeprefix('module.'): w for n, w in checkpoint['state_dict'].items()}
        wanted = bare_model(runner.model).state_dict()
        lacking = [n for n, w in wanted.items() if getattr(found.get(n), 'shape', 0) != w.shape]
        if lacking:
            self.report(
                WARNING,
                f'{len(lacking)} of {len(wanted)} weights are not in {runner._load_from}, or '
                f'differ in shape, and keep their random initial values: {few(lacking)}',
            )

    def before_train(self, runner: Runner) -> None:
        """Report what is known before the first batch."""
        model = bare_model(runner.model)
        if runner.val_loop is not None:
            self.validations = length(runner) // runner.train_loop.val_interval
        self.report(OK, 'types, options, folders, labels, sampler and checkpoints')
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.report(
            OK,
            f'the run can be built: {parameters / 1e6:.2f} M trainable parameters, '
            f'{len(runner.train_dataloader)} iterations per epoch, {runner.max_iters} in all',
        )
        for first, second in model.equal_students() if isinstance(model, Distiller) else ():
            self.report(
                WARNING,
                f'students {first} and {second} have identical initial weights, so they will '
                'stay identical; give them different init_cfg, or remove it',
            )
        for text in chain(late_schedules(runner), odd_heads(runner)):
            self.report(WARNING, text)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Follow the gradient of each loss term of the first batch."""
        if self.batch_size is None:
            self.batch_size = len(data_batch['data_samples'])
            report_gradients(runner, deepcopy(data_batch), self.report)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Report what is measured."""
        self.report(OK, f'validation gives {few(list(metrics))}')

    def after_train(self, runner: Runner) -> None:
        """Report time, memory and space on the disk."""
        if torch.cuda.is_available():
            total = torch.cuda.get_device_properties(0).total_memory
            memory = f'{size(torch.cuda.max_memory_reserved())} of {size(total)} GPU memory'
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
            memory = f'{size(peak)} of RAM'
        times = runner.message_hub.log_scalars  # by MMEngine's IterTimerHook
        step = times['train/time'].current()
        self.report(
            OK,
            f'a step takes {step:.3g} s ({self.batch_size / step:.3g} images/s), at most {memory}',
        )
        validating = 0.0
        if self.validations:
            per_batch = times['val/time'].current()
            validating = self.validations * per_batch * len(runner.val_loop.dataloader)
        whole = timedelta(seconds=round(runner.max_iters * step + validating))
        self.report(
            OK,
            f'the run takes about {whole} on this machine as one process '
            f'({self.validations} validations: {timedelta(seconds=round(validating))})',
        )
        runner.save_checkpoint(runner.work_dir, 'rehearsal.pth')
        each = (Path(runner.work_dir) / 'rehearsal.pth').stat().st_size
        for saver in self.savers:
            report_room(runner, saver, self.cfg.work_dir, each, self.report)


def length(runner: Runner, by_epoch: bool | None = None) -> int:
    """Return the epochs or iterations of a training, by default in the unit of its loop."""
    if by_epoch is None:
        by_epoch = not isinstance(runner.train_loop, IterBasedTrainLoop)
    return runner.max_epochs if by_epoch else runner.max_iters


def report_gradients(runner: Runner, batch: Mapping, report: Report) -> None:
    """Report loss terms that are not finite, and terms and parameters without gradient."""
    model = bare_model(runner.model)
    with runner.optim_wrapper.optim_context(model):
        losses = model._run_forward(model.data_preprocessor(batch, True), mode='loss')
    total, terms = model.parse_losses(losses)
    terms = {name: term for name, term in terms.items() if name in losses and 'loss' in name}
    bad = [name for name, term in terms.items() if not term.isfinite()]
    if bad:
        raise ValueError(
            f'the first batch has a loss that is not finite: {", ".join(subjects(model, bad))}; '
            'look at the images, the weights and the options of the loss'
        )
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def gradients(loss: Tensor) -> tuple[Tensor | None, ...]:
        if not loss.requires_grad:
            return (None,) * len(trained)
        parameters = list(trained.values())
        return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)

    idle = [n for n, t in terms.items() if all(grad is None for grad in gradients(t))]
    if idle:
        listed = ', '.join(subjects(model, idle))
        report(WARNING, f'no parameter learns from {listed}; is a detach() too many?')
    without = defaultdict(list)
    students = named_networks(model)
    for name, grad in zip(trained, gradients(total), strict=True):
        first, *rest = name.split('.')
        if grad is None:
            owned = first == 'students' and rest[0] in students
            without[f'student {rest[0]}' if owned else 'the model'].append(name)
    for owner, names in without.items():
        report(
            WARNING,
            f'no gradient reaches {len(names)} parameters of {owner}: {few(names)}; freeze or '
            'remove them, or several GPUs need find_unused_parameters=True',
        )
    if not idle and not without:
        report(OK, f'each of {len(terms)} loss terms and {len(trained)} parameters takes part')


def report_room(
    runner: Runner, saver: CheckpointHook, work_dir: str, each: int, report: Report
) -> None:
    """Compare the checkpoints of a run, of ``each`` bytes, with the free space on the disk."""
    kept = length(runner, saver.by_epoch) // saver.interval
    kept = kept if saver.max_keep_ckpts < 0 else min(kept, saver.max_keep_ckpts)
    kept = max(kept, 1) + bool(saver.save_best)
    above = check_folder(saver.out_dir or work_dir)
    free = shutil.disk_usage(above).free
    text = f'{kept} checkpoints of {size(each)}; {above} has {size(free)} free'
    if free > (kept + 1) * each:
        report(OK, f'the disk takes {text}')
    else:
        report(
            ERROR,
            f'the disk is too small for {text}; make room, set default_hooks.checkpoint.'
            'max_keep_ckpts, or choose another --work-dir',
        )


def odd_heads(runner: Runner) -> Iterator[str]:
    """Yield a warning for each head or method that does not fit the data, though it trains."""
    loader, model = runner.train_dataloader, bare_model(runner.model)
    classes = getattr(loader.dataset, 'metainfo', {}).get('classes')
    needs = set(model.needs) if isinstance(model, Distiller) else set()
    for name, network in named_networks(model).items():
        head = getattr(network, 'head', None)
        if isinstance(head, DistillingHead):
            needs |= head.needs
        of = f' of student {name}' if name else ''
        count = num_classes_of(network)
        if classes and count and count != len(classes):
            yield (
                f'the head{of} has {count} classes, but train_dataloader has {len(classes)}; set '
                f'its num_classes={len(classes)}'
            )
    if 'class_instances' in needs and not isinstance(loader.sampler, ClassInstanceSampler):
        what, _, fix = NEEDS['class_instances'].partition('; ')
        yield (
            f'the model needs {what}, but {type(loader.sampler).__name__} puts them into a batch '
            f'by chance alone; {fix}'
        )


def late_schedules(runner: Runner) -> list[str]:
    """Return a warning for each schedule that goes on after the run's end."""
    schedules = runner.param_schedulers or []
    if isinstance(schedules, Mapping):
        schedules = list(chain.from_iterable(schedules.values()))
    found = set()
    for schedule in schedules:
        end = length(runner, schedule.by_epoch)
        unit = 'epoch' if schedule.by_epoch else 'iteration'
        if end < schedule.end < ENDLESS:
            found.add(
                f'{type(schedule).__name__} of param_scheduler goes on to {unit} {schedule.end}, '
                f'but training ends at {end}; set its end (and T_max) to the length of the run'
            )
    return sorted(found)


def size(count: float) -> str:
    """Return a number of bytes for people."""
    return f'{count / 2**20:.3g} MiB' if count < 1000 * 2**20 else f'{count / 2**30:.3g} GiB'


def examine(cfg: Config, report: Report) -> None:
    """Rehearse a training, and report what is found; an error ends it."""
    try:
        check_config(cfg, LOADERS, Doctor(cfg, report))
    except Exception as error:
        report(ERROR, (str(error).strip().splitlines() or [type(error).__name__])[0])


def main() -> None:
    args = parse_args()
    warnings.simplefilter('ignore')
    errors, console = 0, sys.stdout  # a rehearsal redirects the latter

    def report(level: str, text: str) -> None:
        nonlocal errors
        errors += level == ERROR
        print(f'{level + ":":9}{text}', file=console, flush=True)

    with plain_errors():
        found = installed_versions()
        for name in ('torchvision', 'numpy'):
            with suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
        report(OK, describe_machine(found))
        needs = {name: metadata.requires(name) or [] for name, version in found.items() if version}
        problems = list(find_problems(found, needs))
        for problem in problems:
            report(ERROR, problem)
        if not problems:
            stack = [f'{name} {version}' for name, version in found.items() if 'mm' in name]
            report(OK, f'{", ".join(stack)} fit each other')
        if args.config is not None:
            try:
                cfg = complete_config(args)
            except USER_ERRORS as error:
                report(ERROR, str(error))
            else:
                with safe_files(args.trust_checkpoint):
                    examine(cfg, report)
    sys.exit(min(errors, 1))


if __name__ == '__main__':
    main()
