"""What stands in the way of a run, found in seconds: the installation, a config, one dry batch.

A finding is one line. The run itself is rehearsed with its own Runner, in a temporary folder
that is removed again: the real loaders, hooks and evaluator, a few steps, one validation batch
and what follows the last epoch.
"""

import difflib
import platform
import re
import resource
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from copy import deepcopy
from datetime import timedelta
from importlib import metadata
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook
from mmengine.runner import EpochBasedTrainLoop, Runner
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from torch import Tensor, nn

from kd_mm.checkpoint import bare_model, load_checkpoint
from kd_mm.datasets import ClassInstanceSampler
from kd_mm.engine.hooks.loss_guard_hook import subjects
from kd_mm.installation import PROVIDERS, find_overlap, find_problem, installed_versions
from kd_mm.methods.base import NEEDS
from kd_mm.models.distiller import Distiller, named_networks
from kd_mm.models.heads import DistillingHead
from kd_mm.models.networks import num_classes_of
from kd_mm.run.preflight import (
    USER_ERRORS,
    check_config,
    check_folder,
    find_type,
    listed,
    options,
)
from kd_mm.version import __version__

OK, WARNING, ERROR = 'ok', 'warning', 'error'
OTHERS = ('torchvision', 'numpy')  # distributions that do not decide on import
MAX_STEPS, MAX_SECONDS = 8, 5.0  # of timed steps
FEW = 3  # checkpoints that must fit on the disk
ENDLESS = 10**8  # MMEngine's end of a schedule without end is larger
KIB = 1024


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        level: ``'ok'``, ``'warning'`` or ``'error'``.
        text: What was found, and for the latter two the fix.
    """

    level: str
    text: str

    def __str__(self) -> str:
        return f'{self.level + ":":9}{self.text}'


def examine_installation(
    found: Mapping[str, str | None], needs: Mapping[str, list[str]] | None = None
) -> list[Finding]:
    """Judge versions.

    Args:
        found: Distribution name -> version, as :func:`installed` gives it.
        needs: Distribution name -> what its metadata require, as ``importlib.metadata`` has it.

    Returns:
        Findings; those that are no ``'ok'`` name the command that repairs them.

    Examples:
        >>> forks = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6'}
        >>> stack = {**forks, 'onedl-mmpretrain': '1.3.6', 'torch': '2.2.0', 'numpy': '2.1.0'}
        >>> for finding in examine_installation(stack):
        ...     print(finding)
        ok:      onedl-mmengine 0.10.12, onedl-mmcv 2.3.6, onedl-mmpretrain 1.3.6 (maintained \
forks)
        error:   torch 2.2.0 was built for NumPy 1, but found numpy 2.1.0. Run: pip install \
"numpy<2"
    """
    stack = [name for name in chain.from_iterable(PROVIDERS.values()) if name in found]
    kinds = {name.startswith('onedl-') for name in stack}
    kind = {(True,): 'maintained forks', (False,): 'originals'}.get(tuple(kinds), 'mixed')
    findings = []
    problem, overlap = find_problem(found), find_overlap(found)
    if problem is None and overlap is None:
        listed = ', '.join(f'{name} {found[name]}' for name in stack)
        findings.append(Finding(OK, f'{listed} ({kind})'))
    findings += [Finding(ERROR, text) for text in (problem, overlap) if text is not None]

    if _is(found, 'torch', '<2.3') and _is(found, 'numpy', '>=2'):
        findings.append(
            Finding(
                ERROR,
                f'torch {found["torch"]} was built for NumPy 1, but found numpy {found["numpy"]}. '
                'Run: pip install "numpy<2"',
            )
        )
    elif kind == 'originals' and _is(found, 'numpy', '>=2'):
        findings.append(
            Finding(
                WARNING,
                f'the original OpenMMLab packages were released before NumPy 2, but found numpy '
                f'{found["numpy"]}. Run: pip install "numpy<2"',
            )
        )
    for name, requirements in (needs or {}).items():
        for requirement in map(Requirement, requirements):
            version = found.get(requirement.name)
            here = requirement.marker is None or requirement.marker.evaluate({'extra': ''})
            if version and here and not requirement.specifier.contains(version, prereleases=True):
                findings.append(
                    Finding(
                        ERROR,
                        f'{name} {found[name]} needs {requirement.name}{requirement.specifier}, '
                        f'but found {requirement.name} {version}. Run: pip install '
                        f'"{requirement.name}{requirement.specifier}" "{name}=={found[name]}"',
                    )
                )
    return findings


def _is(found: Mapping[str, str | None], name: str, specifier: str) -> bool:
    """Whether a version is known and lies within a specifier."""
    version = found.get(name)
    return version is not None and SpecifierSet(specifier).contains(version, prereleases=True)


def installed() -> tuple[dict[str, str | None], dict[str, list[str]]]:
    """Return what :func:`examine_installation` judges."""
    found = installed_versions()
    for name in OTHERS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    needs = {n: metadata.requires(n) or [] for n, version in found.items() if version is not None}
    return found, needs


def describe_machine() -> Finding:
    """Name interpreter, library versions and device."""
    found, _ = installed()
    names = ('torch', 'torchvision', 'numpy', 'setuptools')
    versions = ', '.join(f'{name} {found.get(name, "(none)")}' for name in names)
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        device = f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, {memory:.0f} GiB'
    else:
        device = f'no GPU, {torch.get_num_threads()} CPU threads'
    return Finding(
        OK, f'kd_mm {__version__}, Python {platform.python_version()}, {versions}; {device}'
    )


def examine_config(cfg: Config) -> Iterator[Finding]:
    """Check a config by name, then rehearse its run.

    Nothing is written but into a temporary folder, and that is removed.

    Args:
        cfg: Config of a training run, complete with its command line. Left as it is.

    Yields:
        Findings as they come. After an error that makes the next checks impossible, none.
    """
    try:
        check_config(cfg, ('train_dataloader', 'val_dataloader'))
    except USER_ERRORS as error:
        yield Finding(ERROR, cause(error, cfg.to_dict()))
        return
    yield Finding(OK, 'types, options, folders, labels, sampler, views and checkpoints')
    with tempfile.TemporaryDirectory() as folder:
        rehearsal = Rehearsal(cfg, folder)
        for name, check in rehearsal.checks().items():
            try:
                yield from check()
            except Exception as error:
                yield Finding(ERROR, f'{name} fails: {cause(error, cfg.to_dict())}')
                return


class Rehearsal:
    """A run in small, with its own Runner; it saves no checkpoint.

    Args:
        cfg: Config of the run. Left as it is.
        folder: Stands for its work dir.
    """

    def __init__(self, cfg: Config, folder: str) -> None:
        self.cfg, self.folder = cfg, folder
        self.validations = 0
        self.validation_seconds = 0.0

    def checks(self) -> dict[str, Callable[[], Iterator[Finding]]]:
        """Return the checks by name, in the order in which they build on each other."""
        checks = {
            'building the run': self.start,
            'comparing weights': self.weights,
            'the first batch': self.gradients,
            'a training step': self.steps,
            'validating a batch': self.validation,
            'what follows the last epoch': self.end,
        }
        if self.cfg.get('val_dataloader') is None:
            del checks['validating a batch']
        return checks

    def start(self) -> Iterator[Finding]:
        """Build model, data, optimizer, schedules, evaluator and hooks."""
        cfg = deepcopy(self.cfg)
        cfg.work_dir, cfg.launcher, cfg.resume, cfg.log_level = self.folder, 'none', False, 'ERROR'
        cfg.experiment_name = Path(self.folder).name  # loggers and visualizers go by it
        if cfg.get('visualizer') is not None:  # no run is opened on a server
            cfg.visualizer.vis_backends = [{'type': 'LocalVisBackend'}]
        runner = self.runner = Runner.from_cfg(cfg)
        # As in Runner.train.
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        if len(runner.train_dataloader) == 0:
            raise ValueError(
                'an epoch must have a batch, but train_dataloader has fewer images than its '
                'batch_size, and drop_last=True'
            )
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        if runner.param_schedulers is not None:
            runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
        if runner._val_loop is not None:
            runner._val_loop = runner.build_val_loop(runner._val_loop)
        self._call('before_run')
        runner._init_model_weights()
        runner.load_or_resume()
        runner.optim_wrapper.initialize_count_status(runner.model, 0, runner.max_iters)
        self._call('before_train')
        self._call('before_train_epoch')
        self.model = runner.model.train()
        self.batches = iter(runner.train_dataloader)
        parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        yield Finding(
            OK,
            f'the run can be built: {parameters / 1e6:.2f} M trainable parameters, '
            f'{len(runner.train_dataloader)} iterations per epoch, {runner.max_iters} in all',
        )
        yield from late_schedules(runner)
        yield from odd_heads(runner)

    def weights(self) -> Iterator[Finding]:
        """Compare students, and the model with the checkpoint that it starts from."""
        if isinstance(self.model, Distiller):
            for first, second in self.model.equal_students():
                yield Finding(
                    WARNING,
                    f'students {first} and {second} start with identical weights and will stay '
                    'alike; give them different init_cfg or leave it to chance',
                )
        path = self.cfg.get('load_from')
        if path is not None and '://' not in path:
            found = load_checkpoint(path)['state_dict']
            found = {name.removeprefix('module.'): weight for name, weight in found.items()}
            wanted = self.model.state_dict()
            lacking = [
                n for n, w in wanted.items() if getattr(found.get(n), 'shape', 0) != w.shape
            ]
            if lacking:
                yield Finding(
                    WARNING,
                    f'{len(lacking)} of {len(wanted)} weights are not in {path}, or differ in '
                    f'shape, and start from chance: {listed(lacking)}',
                )

    def gradients(self) -> Iterator[Finding]:
        """Follow the gradient of each loss term of the first batch."""
        runner, model = self.runner, self.model
        batch = next(self.batches)
        with runner.optim_wrapper.optim_context(model):
            losses = model._run_forward(model.data_preprocessor(batch, True), mode='loss')
        total, terms = model.parse_losses(losses)
        terms = {name: term for name, term in terms.items() if name in losses and 'loss' in name}
        bad = [name for name, term in terms.items() if not term.isfinite()]
        if bad:
            raise ValueError(
                f'{", ".join(subjects(model, bad))} must be finite, but is not; look at the '
                'images, the weights and the options of the loss'
            )
        idle = [name for name, term in terms.items() if not reached(term)]
        if idle:
            yield Finding(
                WARNING,
                f'no parameter learns from {", ".join(subjects(model, idle))}; is a detach() too '
                'many?',
            )
        total.backward()
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        without = [name for name, param in trainable.items() if param.grad is None]
        runner.optim_wrapper.zero_grad()
        for owner, names in by_student(model, without).items():
            yield Finding(
                WARNING,
                f'no gradient reaches {len(names)} parameters of {owner}: {listed(names)}; freeze '
                'or remove them, or several GPUs need find_unused_parameters=True',
            )
        if not idle and not without:
            yield Finding(
                OK, f'each of {len(terms)} loss terms and {len(trainable)} parameters takes part'
            )

    def steps(self) -> Iterator[Finding]:
        """Time a few steps, with the loader and all hooks."""
        runner, device = self.runner, next(self.model.parameters()).device
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(device)
        marks = [time.perf_counter()]
        # Where there are few batches, the loader starts once more, as it will.
        for step, batch in enumerate(chain(self.batches, runner.train_dataloader)):
            self._call('before_train_iter', batch_idx=step, data_batch=batch)
            outputs = self.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
            self._call('after_train_iter', batch_idx=step, data_batch=batch, outputs=outputs)
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
            marks.append(time.perf_counter())
            if step + 1 == MAX_STEPS or marks[-1] - marks[0] > MAX_SECONDS:
                break
        del self.batches
        warm = marks[1:] if len(marks) > 2 else marks  # the first step is slow
        self.step_seconds = (warm[-1] - warm[0]) / (len(warm) - 1)
        images = len(batch['data_samples'])
        if device.type == 'cuda':
            peak = torch.cuda.max_memory_reserved(device)
            total = torch.cuda.get_device_properties(device).total_memory
            memory = f'{size(peak)} of {size(total)} GPU memory'
        else:
            memory = f'{size(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB)} of RAM'
        yield Finding(
            OK,
            f'a step takes {self.step_seconds:.3g} s ({images / self.step_seconds:.3g} images/s), '
            f'at most {memory} so far',
        )

    def validation(self) -> Iterator[Finding]:
        """Validate two batches, and look for the metrics that hooks wait for."""
        runner = self.runner
        loop = runner.val_loop
        self._call('before_val')
        self._call('before_val_epoch')
        self.model.eval()
        marks = [time.perf_counter()]
        for index, batch in zip(range(2), loop.dataloader, strict=False):
            loop.run_iter(index, batch)
            marks.append(time.perf_counter())
        self.validation_seconds = (marks[-1] - marks[-2]) * len(loop.dataloader)
        interval = runner.train_loop.val_interval
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        length = runner.max_epochs if by_epoch else runner.max_iters
        self.validations = length // interval
        metrics = loop.evaluator.evaluate(len(loop.dataloader.dataset))
        self._call('after_val_epoch', metrics=metrics)
        self.model.train()
        hooks = [h for h in runner.hooks if isinstance(h, (CheckpointHook, EarlyStoppingHook))]
        for hook in hooks:
            is_saver = isinstance(hook, CheckpointHook)
            wanted = (
                (hook.key_indicators if hook.save_best else []) if is_saver else [hook.monitor]
            )
            for key in wanted:
                if key not in metrics and key != 'auto':
                    option = 'save_best' if is_saver else 'monitor'
                    near = difflib.get_close_matches(key, metrics, n=1)
                    yield Finding(
                        ERROR,
                        f'{option} of {type(hook).__name__} must be a metric of the validation, '
                        f'but got {key!r}; '
                        + (f'did you mean {near[0]!r}?' if near else f'there are {list(metrics)}'),
                    )
        yield Finding(OK, f'validation gives {listed(list(metrics))}')

    def end(self) -> Iterator[Finding]:
        """Do what follows the last epoch (export, pictures), and add up the time."""
        yield from self.room()
        self._call('after_train')
        yield Finding(OK, 'the network can be exported when training ends')
        training = self.runner.max_iters * self.step_seconds
        validating = self.validations * self.validation_seconds
        whole = timedelta(seconds=round(training + validating))
        yield Finding(
            OK,
            f'the run takes about {whole} on this machine as one process '
            f'({self.validations} validations: {timedelta(seconds=round(validating))})',
        )

    def room(self) -> Iterator[Finding]:
        """Compare the checkpoints of the run with the room for them."""
        runner = self.runner
        savers = [h for h in runner.hooks if isinstance(h, CheckpointHook)]
        if not savers:
            return
        weights = total_bytes(self.model.state_dict())
        each = weights + total_bytes(runner.optim_wrapper.state_dict())
        each += weights * sum(isinstance(hook, EMAHook) for hook in runner.hooks)
        saver = savers[0]
        saves = (runner.max_epochs if saver.by_epoch else runner.max_iters) // saver.interval
        kept = saves if saver.max_keep_ckpts < 0 else min(saves, saver.max_keep_ckpts)
        kept = max(kept, 1) + bool(saver.save_best)
        above = check_folder(saver.out_dir if saver.out_dir != self.folder else self.cfg.work_dir)
        free = shutil.disk_usage(above).free
        said = f'{kept} checkpoints of {size(each)}; {above} has {size(free)} free'
        if free < (min(kept, FEW) + 1) * each:
            yield Finding(ERROR, f'{said}; make room, or choose another --work-dir')
        elif free < (kept + 1) * each:
            yield Finding(
                WARNING, f'{said}; make room, or set default_hooks.checkpoint.max_keep_ckpts'
            )
        else:
            yield Finding(OK, f'the disk takes {said}')

    def _call(self, name: str, **kwargs) -> None:
        """Call all hooks but those that save checkpoints."""
        with redirect_stdout(StringIO()):
            for hook in self.runner.hooks:
                if not isinstance(hook, CheckpointHook) or name == 'before_train':
                    getattr(hook, name)(self.runner, **kwargs)


def odd_heads(runner: Runner) -> Iterator[Finding]:
    """Warn of heads and methods that do not fit the training data, though they train.

    Args:
        runner: A runner with its model and its training data built.

    Yields:
        A warning for each.
    """
    loader = runner.train_dataloader
    classes = getattr(loader.dataset, 'metainfo', {}).get('classes')
    model = bare_model(runner.model)
    needs = set(model.needs) if isinstance(model, Distiller) else set()
    for name, network in named_networks(model).items():
        head = getattr(network, 'head', None)
        if isinstance(head, DistillingHead):
            needs |= head.needs
        of = f' of student {name}' if name else ''
        count = num_classes_of(network)
        if classes and count and count != len(classes):
            yield Finding(
                WARNING,
                f'the head{of} tells {count} classes apart, but train_dataloader has '
                f'{len(classes)}; set its num_classes={len(classes)}',
            )
    if 'class_instances' in needs and not isinstance(loader.sampler, ClassInstanceSampler):
        what, _, fix = NEEDS['class_instances'].partition('; ')
        yield Finding(
            WARNING,
            f'the model needs {what}, but {type(loader.sampler).__name__} puts them into a batch '
            f'by chance alone; {fix}',
        )


def late_schedules(runner: Runner) -> Iterator[Finding]:
    """Warn of schedules that go on after the run's end.

    Args:
        runner: A runner with its schedules built.

    Yields:
        A warning for each.
    """
    schedules = runner.param_schedulers or []
    if isinstance(schedules, Mapping):
        schedules = list(chain.from_iterable(schedules.values()))
    said = set()
    for schedule in schedules:
        length = runner.max_epochs if schedule.by_epoch else runner.max_iters
        unit = 'epoch' if schedule.by_epoch else 'iteration'
        if length < schedule.end < ENDLESS:
            said.add(
                f'{type(schedule).__name__} of param_scheduler goes on to {unit} {schedule.end}, '
                f'but training ends at {length}; set its end (and T_max) to the length of the run'
            )
    yield from (Finding(WARNING, text) for text in sorted(said))


def reached(loss: Tensor) -> bool:
    """Tell whether the gradient of a loss reaches a parameter, without computing it.

    Args:
        loss: Scalar.

    Examples:
        >>> layer = nn.Linear(1, 1)
        >>> y = layer(torch.ones(1)).sum()
        >>> reached(y), reached(y.detach() * torch.ones((), requires_grad=True) ** 2)
        (True, True)
        >>> reached(y.detach())
        False
    """
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == 'AccumulateGrad':
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False


def by_student(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """Sort names of parameters by the student that they belong to.

    Args:
        model: Any model.
        names: Names of its parameters.

    Returns:
        dict[str, list[str]]: ``student <name>`` or ``the model`` -> names.
    """
    students = named_networks(model)
    owners = defaultdict(list)
    for name in names:
        first, *rest = name.split('.')
        owned = first == 'students' and rest[0] in students
        owners[f'student {rest[0]}' if owned else 'the model'].append(name)
    return owners


def total_bytes(state: Any) -> int:
    """Return the size of all tensors of a nested state."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(map(total_bytes, state.values()))
    return sum(map(total_bytes, state)) if isinstance(state, (list, tuple)) else 0


def size(count: float) -> str:
    """Return a number of bytes for people.

    Examples:
        >>> size(512), size(3 * 2**20), size(1010 * 2**20), size(2.5 * 2**30)
        ('0.5 KiB', '3 MiB', '0.986 GiB', '2.5 GiB')
    """
    for unit in ('KiB', 'MiB', 'GiB'):
        count /= KIB
        if count < 1000 or unit == 'GiB':  # three digits are shown
            break
    return f'{count:.3g} {unit}'


def cause(error: Exception, cfg: Mapping) -> str:
    """Return the sentence of an error, with a suggestion for a misspelt option.

    Args:
        error: What building a part raised.
        cfg: The config that it was built of.

    Examples:
        >>> cause(ValueError('depth must be 8'), {})
        'depth must be 8'
        >>> cause(KeyError('img'), {})
        "KeyError: 'img'"
    """
    text = (str(error).strip().splitlines() or [''])[0]
    option = re.search(r"unexpected keyword argument '(\w+)'", text)
    # The message may name a base class; the config says which type got the option.
    for node in _typed_with(cfg, option and option[1]):
        classes = [part for part in find_type(node).values() if isinstance(part, type)]
        near = difflib.get_close_matches(option[1], set().union(*map(options, classes)), n=1)
        hint = f'; did you mean {near[0]}?' if near else ''
        return f'{node["type"]} has no option {option[1]}{hint}'
    return text if isinstance(error, USER_ERRORS) else f'{type(error).__name__}: {text}'


def _typed_with(node: Any, option: str | None) -> Iterator[Mapping]:
    """Yield the typed dicts of a config that have an option."""
    if isinstance(node, Mapping):
        if option in node and isinstance(node.get('type'), str):
            yield node
        node = node.values()
    elif not isinstance(node, (list, tuple)):
        return
    for part in node:
        yield from _typed_with(part, option)
