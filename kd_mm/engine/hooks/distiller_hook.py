"""What a Distiller needs of a run: the clock, image numbers, held-out images, ends of epochs."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner
from torch import Tensor
from torch.utils.data import IterableDataset

from kd_mm.checkpoint import bare_model
from kd_mm.datasets import image_numbers
from kd_mm.datasets.hold_out import PARTS, HoldOut
from kd_mm.datasets.in_memory import InMemory
from kd_mm.datasets.numbered import NumberedDataset, number_images
from kd_mm.engine.allocator import hold_freed_memory
from kd_mm.methods.base import Clock, EpochEnd
from kd_mm.methods.memory import SampleMemory
from kd_mm.models.distiller import Distiller
from kd_mm.models.networks import evaluating
from kd_mm.models.teachers import Teachers
from kd_mm.registry import HOOKS


@HOOKS.register_module()
class DistillerHook(Hook):
    """Tell a :class:`~kd_mm.models.distiller.Distiller` where training stands.

    It sets the model's clock before each iteration, gives each training image its number and each
    ``SampleMemory`` its size where a method needs them, and calls ``Method.after_epoch``, with the
    held-out images, after each training epoch: after hooks that make BN statistics precise, before
    a checkpoint is written and before validation. Checkpoints hold the weights of teachers that
    are copies of students, and the hashes of the other teachers' files.

    For every model, it keeps the C library from returning freed memory to the system at each step.

    Args:
        held_out_pipeline (list[dict], optional): Transforms of the images that the training's
            ``kd_mm.HoldOut`` leaves out; they give one image, without chance, and its label. By
            default those of the ``val_dataloader``, or of the ``test_dataloader`` where there is
            none. Left as it is.
        held_out_dataloader (dict, optional): Config of a whole loader, where the held-out images
            come from elsewhere. Its ``sampler`` defaults to MMEngine's ``DefaultSampler`` without
            shuffling; ``round_up`` and ``drop_last`` are always false, so that each image counts
            once. Left as it is.

    Raises:
        ValueError: If both arguments are given; before the first epoch, if a method needs
            held-out images and there are none, they overlap with the training's, or the training
            loop counts no epochs.

    Examples:
        >>> default_hooks = dict(distiller=dict(type='kd_mm.DistillerHook'))
    """

    priority = 'NORMAL'

    def __init__(
        self,
        held_out_pipeline: Sequence[Mapping] | None = None,
        held_out_dataloader: Mapping | None = None,
    ) -> None:
        if held_out_pipeline is not None and held_out_dataloader is not None:
            raise ValueError(
                'kd_mm.DistillerHook takes either a held_out_pipeline or a held_out_dataloader, '
                'but got both; leave one of them out'
            )
        self.held_out_pipeline = held_out_pipeline
        self.held_out_dataloader = held_out_dataloader
        self._held_out = None
        self._loaded: Mapping[str, Any] = {}
        self._num_images = 0

    def before_run(self, runner: Runner) -> None:
        """Number the images, before hooks copy the model and before a checkpoint is loaded."""
        hold_freed_memory()
        model = _distiller(runner)
        if model is None or not isinstance(runner._train_loop, BaseLoop):
            return  # a test
        loader = runner.train_loop.dataloader
        self._num_images = 0
        if 'index' in model.needs:
            self._num_images = number_images(loader)
        elif not isinstance(loader.dataset, IterableDataset):
            self._num_images = int(image_numbers(loader.dataset).max()) + 1
        for module in model.modules():
            if isinstance(module, SampleMemory):
                module.resize(self._num_images)

    def before_train(self, runner: Runner) -> None:
        """Give copied teachers their weights, and build the loader of the held-out images."""
        model = _distiller(runner)
        if model is None:
            return
        checkpoint, self._loaded = self._loaded, {}
        model.teachers.copy_students()
        if checkpoint and runner.iter > 0:  # a run that resumes
            model.teachers.load_copied_state(checkpoint['teachers'])
            check_same_teachers(model.teachers, checkpoint['meta'].get('teachers') or {})
        if 'held_out' in model.needs:
            self._held_out = self._build_held_out(runner)
        self._set_clock(runner, model)

    def held_out_cfg(
        self, train_dataloader: Any, val_dataloader: Any, by_epoch: bool = True
    ) -> dict:
        """Return the config of the loader of the held-out images.

        Args:
            train_dataloader: Config of the training's loader, whose data set is a
                ``kd_mm.HoldOut``, or one inside of a ``kd_mm.InMemory``. Left as it is.
            val_dataloader: Config of the validation's loader, or of the test's.
            by_epoch: Whether the run counts epochs.

        Raises:
            ValueError: If there are no held-out images, no transforms for them, or no epochs.
        """
        if not by_epoch:
            raise ValueError(
                'the method acts on held-out images after each epoch, but the training loop is an '
                'IterBasedTrainLoop; use train_cfg=dict(by_epoch=True, max_epochs=...)'
            )
        if self.held_out_dataloader is not None:
            return dict(self.held_out_dataloader)
        pipeline = self.held_out_pipeline
        if pipeline is None and isinstance(val_dataloader, Mapping):
            dataset = val_dataloader.get('dataset') or {}
            while 'pipeline' not in dataset and isinstance(dataset.get('dataset'), Mapping):
                dataset = dataset['dataset']
            pipeline = dataset.get('pipeline')
        if pipeline is None:
            raise ValueError(
                'the held-out images need a pipeline, but there is no val_dataloader to take one '
                'from; give kd_mm.DistillerHook a held_out_pipeline'
            )
        loader = train_dataloader if isinstance(train_dataloader, Mapping) else {}
        drawing = ('sampler', 'batch_sampler', 'num_batch_per_epoch')  # of the training's images
        kept = {key: value for key, value in loader.items() if key not in drawing}
        return {**kept, 'dataset': _left_out(loader.get('dataset'), pipeline)}

    def _build_held_out(self, runner: Runner) -> Any:
        """Build the loader of the held-out images, and check that it fits the training."""
        by_epoch = not isinstance(runner.train_loop, IterBasedTrainLoop)
        evaluated = runner._val_dataloader or runner._test_dataloader
        cfg = self.held_out_cfg(runner._train_dataloader, evaluated, by_epoch)
        sampler = {'type': 'DefaultSampler', 'shuffle': False, **cfg.get('sampler', {})}
        loader = runner.build_dataloader(
            {**cfg, 'sampler': {**sampler, 'round_up': False}, 'drop_last': False},
            seed=runner.seed,
            diff_rank_seed=runner._randomness_cfg.get('diff_rank_seed', False),
        )
        if len(loader.dataset) == 0:
            raise ValueError('the held-out data set must have images, but got 0')
        trained, held_out = map(_inner, (runner.train_loop.dataloader.dataset, loader.dataset))
        if isinstance(held_out, HoldOut) and isinstance(trained, HoldOut):
            parts = trained.part, held_out.part
            counts = trained.num_per_class, held_out.num_per_class
            if parts != PARTS or counts[0] != counts[1]:
                raise ValueError(
                    'the held-out images must be those that training leaves out, but training '
                    f'and kd_mm.DistillerHook have part={parts} and num_per_class={counts}; use '
                    "part='train' and part='held_out' with one num_per_class"
                )
        return loader

    def _set_clock(self, runner: Runner, model: Distiller) -> None:
        per_epoch = len(runner.train_loop.dataloader)
        max_epochs = runner.max_epochs
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            max_epochs = -(-runner.max_iters // per_epoch)
        model.clock = Clock(
            runner.iter // per_epoch, max_epochs, runner.iter, runner.max_iters, self._num_images
        )

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Set the clock."""
        if model := _distiller(runner):
            self._set_clock(runner, model)

    def after_train_epoch(self, runner: Runner) -> None:
        """Let the methods act."""
        model = _distiller(runner)
        if model is None:
            return
        logged = {}
        end = EpochEnd(
            dict(model.students),
            model.teachers.networks,
            model.clock,
            partial(self.held_out_logits, model, self._held_out),
            logged.__setitem__,
        )
        with torch.no_grad():
            for method in model.methods.values():
                method.after_epoch(end)
        if logged:
            runner.message_hub.update_scalars(logged)
            listed = '  '.join(f'{name}: {value:.4f}' for name, value in logged.items())
            runner.logger.info(f'Epoch(held out) [{runner.epoch + 1}]  {listed}')

    @staticmethod
    def held_out_logits(
        model: Distiller, batches: Sequence[dict]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits (m, N, K) of all students, and classes (N,), batch by batch.

        Args:
            model: The model. Its modes are as before when the iteration ends.
            batches: Of held-out images.

        Raises:
            ValueError: If images come in views.
        """
        with evaluating(model):
            for batch in batches:
                data = model.data_preprocessor(batch, training=False)
                if not isinstance(data['inputs'], Tensor):
                    raise ValueError(
                        'the held-out pipeline must give one image per sample, but got '
                        f'{len(data["inputs"])} views; leave MultiView out of it'
                    )
                classes = torch.cat([sample.gt_label for sample in data['data_samples']])
                yield model.all_logits(data['inputs']), classes

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the weights of copied teachers, and the hashes of the other teachers' files."""
        if model := _distiller(runner):
            if copies := model.teachers.copied_state():
                checkpoint['teachers'] = copies
            if model.teachers.hashes:
                checkpoint['meta']['teachers'] = dict(model.teachers.hashes)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what the checkpoint holds of teachers, for a run that resumes."""
        self._loaded = {key: checkpoint.get(key) or {} for key in ('teachers', 'meta')}


def check_same_teachers(teachers: Teachers, hashes: Mapping[str, str]) -> None:
    """Raise ValueError if a teacher's file is another one than that of the resumed run."""
    for name, now in teachers.hashes.items():
        if hashes.get(name, now) != now:
            raise ValueError(
                'a resumed run must have the teachers that it began with, but the file of teacher '
                f'{name}, {teachers.files[name]}, has changed; put the first one back, or start '
                'another run'
            )


def _left_out(dataset: Any, pipeline: Sequence[Mapping]) -> dict:
    """Return the config of the other part of a training's data set."""
    found = type(dataset).__name__
    if isinstance(dataset, Mapping):
        if dataset.get('type') == 'kd_mm.InMemory':
            return {**dataset, 'dataset': _left_out(dataset['dataset'], pipeline)}
        whole, part = dataset.get('dataset'), dataset.get('part', PARTS[0])
        found = {key: dataset[key] for key in ('type', 'part') if key in dataset}
        is_split = dataset.get('type') == 'kd_mm.HoldOut' and isinstance(whole, Mapping)
        if is_split and part == PARTS[0]:
            return {**dataset, 'dataset': {**whole, 'pipeline': pipeline}, 'part': PARTS[1]}
    raise ValueError(
        'the method needs images that training leaves out, so the data set of train_dataloader '
        "must be dict(type='kd_mm.HoldOut', part='train', num_per_class=..., dataset=dict(...)), "
        f'but got {found}; wrap the data set, or give kd_mm.DistillerHook a held_out_dataloader'
    )


def _distiller(runner: Runner) -> Distiller | None:
    model = bare_model(runner.model)
    return model if isinstance(model, Distiller) else None


def _inner(dataset: Any) -> Any:
    """Return the data set inside of our wrappers."""
    while isinstance(dataset, (InMemory, NumberedDataset)):
        dataset = dataset.dataset
    return dataset
