"""One rehearsal of a run: its own Runner on a few batches, in a temporary folder."""

import inspect
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from io import StringIO
from itertools import chain, islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner
from mmpretrain.datasets import CustomDataset
from mmpretrain.engine import PreciseBNHook
from mmpretrain.evaluation import Accuracy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from kd_mm.checkpoint import bare_model, check_init_checkpoints, check_keys, load_checkpoint
from kd_mm.checks import check_int, did_you_mean, few
from kd_mm.config import explained
from kd_mm.datasets import ClassInstanceSampler, InMemory, batch_collate
from kd_mm.datasets.labels import index_labels, inner_datasets
from kd_mm.engine.hooks import DistillerHook, LossGuardHook
from kd_mm.evaluation import CohortAccuracy
from kd_mm.methods.base import Clock
from kd_mm.methods.memory import SampleMemory
from kd_mm.models.distiller import Distiller, named_networks
from kd_mm.models.networks import num_classes_of
from kd_mm.resume.find import find_checkpoint
from kd_mm.run import launch
from kd_mm.run.check_types import check_types

LONG = 10_000  # epochs, after which each schedule has its whole weight
FIT = (
    'make backbone, neck and head fit each other and the images (head.in_channels, '
    'head.num_classes, size of the crops, mean and std of data_preprocessor), and let the '
    'pipeline end in PackInputs'
)
SETTINGS = (
    'look at the settings that it names, and at data_root and ann_file of the data sets '
    '(--cfg-options train_dataloader.dataset.data_root=FOLDER)'
)
FILES = 'look at its files, its list and its pipeline, and give all images one size'
AFTER = ('what follows the last batch fails', 'look at hooks and evaluators')


def check_config(cfg: Config, loaders: tuple[str, ...], observer: Hook | None = None) -> None:
    """Raise on the first mistake in a config; nothing is written but into a temporary folder.

    Names are checked, then the run is built as it will be. Two images of each data loader pass
    through the model: in training forward, backward and a step, then in validation, to the
    metric. With an ``observer``, two batches do, and what follows the last epoch runs too.

    Args:
        cfg: Config of a run, complete with its command line. Left as it is.
        loaders: Data loaders that the run reads, the one that it cannot do without first.
        observer: A hook that sees the rehearsal of a training. Its ``savers`` become the
            checkpoint hooks of the run, which save nothing here.

    Raises:
        ValueError: A value is out of range, a name unknown, parts disagree, or a file cannot be
            read safely.
        TypeError: An option does not exist.
        OSError: A file or a folder is missing, or the work dir cannot be written.
    """
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    used = inspect.signature(Runner).parameters  # the rest are names that configs use
    check_types({key: value for key, value in cfg.to_dict().items() if key in used})
    if cfg.get('work_dir') is not None:
        check_folder(cfg.work_dir)
    if cfg.get(loaders[0]) is None:
        raise ValueError(f'the config must have a {loaders[0]}, but it has none')
    small = deepcopy(cfg)
    if cfg.get('resume') and cfg.get('load_from') is None:
        small.load_from, _ = find_checkpoint(cfg.work_dir)
    rehearsal = Rehearsal(cfg, loaders[0] == 'train_dataloader', observer)
    with quiet(), TemporaryDirectory() as folder:
        set_small(small, folder)
        try:
            runner = Runner.from_cfg(small)
            rehearsal.run(runner)
        except Rehearsed:
            pass
        except Exception:
            with explained(*rehearsal.stage):
                raise
    torch.cuda.empty_cache()


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back output, which the run itself will give."""
    logger = MMLogger.get_current_instance()
    level, disabled = logger.level, logging.root.manager.disable
    logger.setLevel(logging.ERROR)  # it has a memory of its own, which logging.disable leaves
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(disabled)
        logger.setLevel(level)


def set_small(cfg: Config, folder: str) -> None:
    """Change a config in place: one process, which leaves nothing outside of a folder."""
    vars(cfg)['_format_python_code'] = False  # which takes a second each time
    cfg.update(work_dir=folder, launcher='none', resume=False)
    cfg.experiment_name = Path(folder).name  # loggers and visualizers go by it
    cfg.pop('runner_type', None)
    cfg.pop('compile', None)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name) is not None:  # as in mmpretrain's tools
            cfg[name].setdefault('collate_fn', {'type': 'default_collate'})
    if cfg.get('visualizer') is not None:  # no run is opened on a server
        cfg.visualizer.vis_backends = [{'type': 'LocalVisBackend'}]
        cfg.visualizer.pop('name', None)


class Rehearsed(Exception):
    """Ends a rehearsal that has seen enough."""


class Rehearsal(Hook):
    """Shortens a run to few batches, and checks what happens in it.

    Args:
        cfg: Config of the run.
        trains: Whether it trains; otherwise it tests.
        observer: A hook that sees the whole. Without one, two images are enough.
    """

    priority = 'LOWEST'

    def __init__(self, cfg: Config, trains: bool, observer: Hook | None) -> None:
        self.cfg, self.trains, self.observer = cfg, trains, observer
        self.num_batches = 1 if observer is None else 2
        self.seen = 0
        self.stage = ('the run cannot be built', SETTINGS)

    def run(self, runner: Runner) -> None:
        """Check the checkpoints of a run whose model is built, and run it."""
        if self.trains:
            launch.register_hooks(runner)
        self.model, self.hooks = bare_model(runner.model), list(runner.hooks)
        # Nothing is saved. Two images may have a loss that is not finite.
        left_out = (CheckpointHook,) if self.observer else (CheckpointHook, LossGuardHook)
        runner._hooks = [hook for hook in self.hooks if not isinstance(hook, left_out)]
        runner.register_hook(self)
        if self.observer:
            self.observer.savers = [h for h in self.hooks if isinstance(h, CheckpointHook)]
            runner.register_hook(self.observer)
        if runner._load_from is not None:
            self._check_checkpoint(runner._load_from)
        if not self.trains:
            runner.test()
            return
        check_init_checkpoints(self.model)
        parts = (self.cfg.get('optim_wrapper') or {}).get('parts')
        schedules = self.cfg.get('param_scheduler')
        by_part = isinstance(schedules, Mapping) and 'type' not in schedules
        if by_part and parts is not None and set(schedules) != set(parts):
            raise ValueError(
                'schedules by part must have the parts of the optimizer, but param_scheduler has '
                f'{", ".join(schedules)} and optim_wrapper.parts has {", ".join(parts)}'
            )
        runner.train()

    def _check_checkpoint(self, path: str) -> None:
        """Check that the run can start from a checkpoint, or test it."""
        checkpoint = load_checkpoint(path)
        lacking = [key for key in ('meta', 'message_hub') if key not in checkpoint]
        if self.cfg.get('resume') and lacking:
            raise ValueError(
                f'--resume needs a checkpoint of a run, but {path} has no '
                f'{" and no ".join(lacking)}; to start from its weights alone, use --cfg-options '
                f'load_from={path}'
            )
        weights = {n.removeprefix('module.'): w for n, w in checkpoint['state_dict'].items()}
        check_keys(weights, self.model.state_dict(), path)
        if self.trains and not self.cfg.get('resume'):
            return
        for name, weight in self.model.state_dict(keep_vars=True).items():
            given = weights.get(name)
            if isinstance(weight, nn.Parameter) and getattr(given, 'shape', None) != weight.shape:
                shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
                raise ValueError(
                    f'the checkpoint must have all weights of the model, but {name} is '
                    f'{"missing" if given is None else shape} in {path} and '
                    f'{tuple(weight.shape)} in the model; use the config that was dumped next to '
                    'it'
                )

    def before_run(self, runner: Runner) -> None:
        """Check what data loaders and model owe each other, and shorten a test."""
        loops = {name: getattr(runner, f'_{name}_loop') for name in ('train', 'val', 'test')}
        loops = {name: loop for name, loop in loops.items() if isinstance(loop, BaseLoop)}
        loaders = {f'{name}_dataloader': loop.dataloader for name, loop in loops.items()}
        for name, loader in loaders.items():
            check_loader(name, loader, self.model)
        check_same_classes({name: loader.dataset for name, loader in loaders.items()})
        if self.trains:
            check_int('train_cfg.val_interval', loops['train'].val_interval)
        else:
            self._shorten(loops['test'], 'test_dataloader')
        precise = any(isinstance(hook, PreciseBNHook) for hook in self.hooks)
        if precise and len(named_networks(self.model)) > 1:
            raise ValueError(
                'PreciseBNHook updates the BN statistics of the deployed student alone; leave it '
                'out where several students train'
            )
        self.stage = ('the run cannot begin', SETTINGS)

    def before_train(self, runner: Runner) -> None:
        """Shorten training, validation, and what methods do with held-out images."""
        loop = runner.train_loop
        self._shorten(loop, 'train_dataloader')
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = chain(*[loop.dataloader] * self.num_batches)
        loop.val_begin = loop.val_interval = 1
        loop.dynamic_milestones, loop.dynamic_intervals = [0], [1]
        if runner.val_loop is not None:
            self._shorten(runner.val_loop, 'val_dataloader')
        for hook in self.hooks:
            if isinstance(hook, DistillerHook) and hook._held_out is not None:
                hook._held_out = Few(hook._held_out, 'the held-out images', self)

    def _shorten(self, loop: BaseLoop, name: str) -> None:
        loop.dataloader = Few(loop.dataloader, name, self)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the clock to the last epoch, where each term has its whole weight."""
        if self.seen == self.num_batches:  # a loop that does not end
            raise Rehearsed
        if isinstance(self.model, Distiller):
            set_last_epoch(self.model, self.model.clock.num_images)
        self.stage = ('the model fails on a batch of train_dataloader', FIT)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """End the training after the last batch."""
        self.seen += 1
        by_epoch = not isinstance(runner.train_loop, IterBasedTrainLoop)
        runner.train_loop.stop_training = by_epoch or self.seen == self.num_batches
        self.stage = AFTER

    def after_train_epoch(self, runner: Runner) -> None:
        """End the start's check where nothing is validated."""
        if not self.observer and runner.val_loop is None:
            raise Rehearsed

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note what comes next."""
        self.stage = (f'the model fails on a batch of {self.reading}', FIT)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """End the start's check before metrics that two images may not define."""
        self.stage = AFTER
        loop = runner.val_loop if self.trains else runner.test_loop
        known = all(isinstance(m, (Accuracy, CohortAccuracy)) for m in loop.evaluator.metrics)
        if not self.observer and not known:
            raise Rehearsed

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Look for the metrics that hooks wait for."""
        for hook in self.hooks if self.trains else ():
            saves = isinstance(hook, CheckpointHook) and hook.save_best
            stops = isinstance(hook, EarlyStoppingHook)
            for key in hook.key_indicators if saves else [hook.monitor] if stops else ():
                if key not in metrics and key != 'auto':
                    raise ValueError(
                        f'{"save_best" if saves else "monitor"} of {type(hook).__name__} must be '
                        f'a metric of the validation, but got {key!r}; '
                        f'{did_you_mean(key, metrics)}'
                    )
        if not self.observer:
            raise Rehearsed

    # A test is checked as a validation is.
    before_test_iter, after_test_iter = before_val_iter, after_val_iter
    after_test_epoch = after_val_epoch


class Few:
    """The first batches of a data loader; in the start's check, its first and last image."""

    def __init__(self, loader: DataLoader, name: str, rehearsal: Rehearsal) -> None:
        self.loader, self.name, self.rehearsal = loader, name, rehearsal

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the data loader."""
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the few batches."""
        rehearsal, dataset = self.rehearsal, self.loader.dataset
        rehearsal.reading = self.name
        rehearsal.stage = reading = (f'{self.name} cannot be read', FILES)
        if rehearsal.observer or isinstance(dataset, IterableDataset):
            batches = islice(self.loader, rehearsal.num_batches)
        else:
            two = Subset(dataset, [0, len(dataset) - 1])
            batches = DataLoader(two, 2, collate_fn=self.loader.collate_fn)
        for batch in batches:
            yield batch
            rehearsal.stage = reading
        rehearsal.stage = AFTER


def check_folder(folder: str | Path, name: str = 'the work dir', flag: str = '--work-dir') -> Path:
    """Check that files can be written into a folder, which may not exist yet.

    Args:
        folder: The folder.
        name: What it is, for the message.
        flag: What sets it, for the message.

    Returns:
        The folder, or the one above it that exists. OSError if it cannot be written to.
    """
    above = Path(folder).absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise NotADirectoryError(
            f'{name} must be a folder, but {above} is a file; choose another {flag}'
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(
            f'{name} must be writable, but {above} is not; choose another {flag}'
        )
    return above


def check_loader(name: str, loader: DataLoader, model: nn.Module | None = None) -> None:
    """Raise ValueError unless a loader has batches, of whole groups, with labels of the head."""
    dataset, sampler, size = loader.dataset, loader.sampler, loader.batch_size
    if isinstance(dataset, IterableDataset):
        return
    if len(loader) == 0:
        raise ValueError(
            f'an epoch must have a batch, but {name} has {len(dataset)} images and batches of '
            f'{size}; look at its data, or lower the batch size'
        )
    group = sampler.num_instances if isinstance(sampler, ClassInstanceSampler) else 1
    if size is not None and size % group:
        below = size - size % group
        raise ValueError(
            f'{name}.batch_size must be a multiple of sampler.num_instances, so that an anchor '
            f'and its partners share a batch, but got {size} and {group}; the nearest are '
            f'{below or group} and {below + group}'
        )
    collate = getattr(loader.collate_fn, 'func', loader.collate_fn)  # MMEngine gives a partial
    if isinstance(dataset, InMemory) and collate is not batch_collate:
        raise ValueError(
            f'kd_mm.InMemory gives whole batches, but {name}.collate_fn is {collate.__name__!r}; '
            "set collate_fn=dict(type='kd_mm.batch_collate')"
        )
    try:
        index = index_labels(dataset)
    except (TypeError, ValueError):  # several labels for an image, or none
        return
    labels, classes = index.labels, index.classes
    count = model and num_classes_of(next(iter(named_networks(model).values())))
    if labels.min() < 0:
        raise ValueError(
            f'labels must be at least 0, but {name} has the label {labels.min()}; correct them'
        )
    if count is not None and labels.max() >= count:
        of = f', whose classes are {few(classes)}' if classes else ''
        raise ValueError(
            f'num_classes of the head must exceed every label, but got {count} and the label '
            f'{labels.max()} in {name}{of}; set head.num_classes={labels.max() + 1} or more, or '
            'correct the labels'
        )


def check_same_classes(datasets: Mapping[str, Sequence]) -> None:
    """Raise ValueError where folders give a class different numbers in different data sets."""
    inner = {name: inner_datasets(dataset)[0] for name, dataset in datasets.items()}
    named = {
        name: tuple(dataset.metainfo['classes'])
        for name, dataset in inner.items()
        if type(dataset) is CustomDataset and dataset.metainfo.get('classes')
    }
    for (first, one), (second, other) in pairwise(named.items()):
        if one != other:
            odd = [ascii(name) for name in sorted(set(one) ^ set(other))]
            differ = f'only one of them has {few(odd)}' if odd else 'the order differs'
            raise ValueError(
                f'{first} and {second} must number the same classes, or their labels mean '
                f'different ones, but {differ}; set classes=[...] of both data sets'
            )


def set_last_epoch(model: nn.Module, num_images: int) -> None:
    """Give a Distiller what kd_mm.DistillerHook gives it, in the last epoch of a long training.

    Args:
        model: Any model. One that is no Distiller stays as it is.
        num_images: Images of the training set.
    """
    if not isinstance(model, Distiller):
        return
    last = LONG - 1
    model.clock = Clock(last, LONG, last, LONG, num_images)
    for module in model.modules():
        if isinstance(module, SampleMemory) and not len(module.filled):
            module.resize(num_images)


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a run, without its initial weights, outside of any wrapper."""
    preprocessor = cfg.get('data_preprocessor')
    default = {} if preprocessor is None else {'data_preprocessor': deepcopy(preprocessor)}
    with quiet(), explained('the model cannot be built', 'look at the options of model'):
        return MODELS.build({**default, **deepcopy(cfg.model)})


def check_dataloader(cfg: Config, name: str) -> Sequence:
    """Build a data loader of a config, and check it as a run does; return its data set."""
    with quiet(), explained(f'{name} cannot be built', SETTINGS.replace('train_dataloader', name)):
        loader = Runner.build_dataloader(deepcopy(cfg[name]), seed=0)
    check_loader(name, loader)
    return loader.dataset
