"""The students' weights in KDCL-General, from images that they do not train on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn

from kd_mm.datasets.hold_out import PARTS, HoldOut
from kd_mm.datasets.in_memory import InMemory
from kd_mm.functional.collaborative_target import second_moment, weights_from_second_moment
from kd_mm.registry import HOOKS
from kd_mm.utils.checkpoint import bare_model

PROGRESS_INTERVAL = 20  # iterations between two lines
# What says how training draws its images, and nothing about those that are held out.
DRAWING = ('sampler', 'batch_sampler', 'num_batch_per_epoch')


def held_out_dataloader(train_dataloader: Any, pipeline: Sequence[Mapping]) -> dict:
    """Return the config of a loader of the images that training leaves out.

    Args:
        train_dataloader: Config of the training's loader, whose data set is a ``kd_mm.HoldOut``,
            or one inside of a ``kd_mm.InMemory``. Left as it is.
        pipeline: Transforms of the held-out images.

    Returns:
        dict: ``train_dataloader`` with the other part of its data set, without what draws images.

    Raises:
        ValueError: If the data set is no config of a ``kd_mm.HoldOut`` with the part ``'train'``.

    Examples:
        >>> whole = {'type': 'CIFAR100', 'data_root': 'data', 'pipeline': ['crop', 'pack']}
        >>> split = {'type': 'kd_mm.HoldOut', 'num_per_class': 50, 'dataset': whole}
        >>> held_out_dataloader({'batch_size': 128, 'dataset': split}, ['pack'])['dataset']
        {'type': 'kd_mm.HoldOut', 'num_per_class': 50, 'dataset': {'type': 'CIFAR100', \
'data_root': 'data', 'pipeline': ['pack']}, 'part': 'held_out'}
    """
    given = train_dataloader.get('dataset') if isinstance(train_dataloader, Mapping) else None
    split = given if isinstance(given, Mapping) else {}
    if split.get('type') == 'kd_mm.InMemory':
        held_out = held_out_dataloader({**train_dataloader, 'dataset': split['dataset']}, pipeline)
        return {**held_out, 'dataset': {**split, 'dataset': held_out['dataset']}}
    whole = split.get('dataset')
    fits = split.get('type') == 'kd_mm.HoldOut' and split.get('part', 'train') == 'train'
    if not fits or not isinstance(whole, Mapping):
        found = {key: split[key] for key in ('type', 'part') if key in split}
        raise ValueError(
            "with a pipeline, kd_mm.GeneralizationWeightsHook looks at what train_dataloader's "
            "data set leaves out, which must be dict(type='kd_mm.HoldOut', part='train', "
            f'num_per_class=..., dataset=dict(...)), but got {found or type(given).__name__}; '
            'wrap the data set, or give the hook a dataloader instead of a pipeline'
        )
    kept = {key: value for key, value in train_dataloader.items() if key not in DRAWING}
    whole = {**whole, 'pipeline': pipeline}
    return {**kept, 'dataset': {**split, 'dataset': whole, 'part': PARTS[1]}}


@HOOKS.register_module()
class GeneralizationWeightsHook(Hook):
    """Weigh the students of ``kd_mm.KDCL(target='general')`` after each training epoch.

    In eval mode and without gradient, all students look at the held-out images, each image once,
    whatever the number of ranks; then the model's buffer ``weights`` is set by
    :func:`kd_mm.functional.collaborative_target.weights_from_second_moment`. Every module is in
    its former mode afterwards.

    The buffer is part of the model's state_dict. The weights of all epochs are scalars
    ``general_weight/<name>`` of MMEngine's message hub, which checkpoints carry and a resumed run
    continues, and lines of the log. At its priority, the hook comes after statistics of batch
    norm are made precise and before a checkpoint is written and validation begins.

    Args:
        dataloader (dict, optional): Config of a whole loader, as of a ``val_dataloader``, where
            the held-out images come from elsewhere. ``sampler`` defaults to MMEngine's
            ``DefaultSampler`` without shuffling; its ``round_up`` and ``drop_last`` are always
            false, so that no image counts twice or not at all. Left as it is.
        pipeline (list[dict], optional): Transforms of the held-out images, which give one image,
            without chance, and its label. The images are those that the training's
            ``kd_mm.HoldOut`` leaves out, read by a loader like the training's; see
            :func:`~kd_mm.engine.hooks.generalization_weights_hook.held_out_dataloader`. Either
            this or ``dataloader``. Left as it is.

    Raises:
        ValueError: If not exactly one of the arguments is given; before the first epoch, if the
            model has no buffer ``weights``, the training loop knows no epochs, there is a
            ``pipeline`` but training has no ``kd_mm.HoldOut``, the loader has no images, or
            training sees a part of a ``kd_mm.HoldOut`` that overlaps with it.
    """

    priority = 'NORMAL'

    def __init__(
        self, dataloader: Mapping | None = None, pipeline: Sequence[Mapping] | None = None
    ) -> None:
        if (pipeline is None) == (dataloader is None):
            raise ValueError(
                'kd_mm.GeneralizationWeightsHook needs either a pipeline or a dataloader, but got '
                f'{"neither" if pipeline is None else "both"}; give it pipeline=test_pipeline, or '
                "a dataloader where the held-out images are none of the training's data set"
            )
        self.pipeline = pipeline
        self.dataloader = dataloader

    def before_train(self, runner: Runner) -> None:
        """Check that the run fits, and build the loader.

        Args:
            runner: The runner whose training begins.

        Raises:
            ValueError: See the class.
        """
        self.check(bare_model(runner.model), not isinstance(runner.train_loop, IterBasedTrainLoop))
        cfg = self.dataloader
        if cfg is None:
            cfg = held_out_dataloader(runner._train_dataloader, self.pipeline)
        sampler = {'type': 'DefaultSampler', 'shuffle': False, **cfg.get('sampler', {})}
        sampler['round_up'] = False
        self._dataloader = runner.build_dataloader(
            {**cfg, 'sampler': sampler, 'drop_last': False},
            seed=runner.seed,
            diff_rank_seed=runner._randomness_cfg.get('diff_rank_seed', False),
        )
        held_out, trained = self._dataloader.dataset, runner.train_loop.dataloader.dataset
        if len(held_out) == 0:
            raise ValueError('the held-out data set must have images, but got 0')
        held_out, trained = (
            d.dataset if isinstance(d, InMemory) else d for d in (held_out, trained)
        )
        if isinstance(held_out, HoldOut) and isinstance(trained, HoldOut):
            counts = trained.num_per_class, held_out.num_per_class
            if (trained.part, held_out.part) != PARTS or counts[0] != counts[1]:
                raise ValueError(
                    'the held-out images must be those that training leaves out, but got '
                    f'train_dataloader.dataset with part={trained.part!r}, num_per_class='
                    f"{counts[0]} and the hook's with part={held_out.part!r}, num_per_class="
                    f"{counts[1]}; use part='train' and part='held_out' with one num_per_class"
                )

    def check(self, model: nn.Module, by_epoch: bool) -> None:
        """Check that a model has weights to set.

        Args:
            model: The model of a run.
            by_epoch: Whether its training loop knows epochs.

        Raises:
            ValueError: See the class.
        """
        if 'weights' not in dict(model.named_buffers(recurse=False)):
            raise ValueError(
                "kd_mm.GeneralizationWeightsHook needs a model with a buffer 'weights', "
                f"kd_mm.KDCL(target='general'), but got {type(model).__name__}(target="
                f"{getattr(model, 'target', None)!r}); set model.target='general' or remove the "
                'hook'
            )
        if not by_epoch:
            raise ValueError(
                'kd_mm.GeneralizationWeightsHook acts after each epoch, but the training loop is '
                'an IterBasedTrainLoop; use train_cfg=dict(by_epoch=True, max_epochs=...)'
            )

    @torch.no_grad()
    def after_train_epoch(self, runner: Runner) -> None:
        """Weigh the students.

        Args:
            runner: The runner that trains.
        """
        model = bare_model(runner.model)
        modes = {module: module.training for module in model.modules()}
        model.eval()
        moment = self._second_moment(model, runner)
        for module, training in modes.items():
            module.training = training
        weights = weights_from_second_moment(moment)
        model.weights.copy_(weights)
        named = dict(zip(model.names, weights.tolist(), strict=True))
        for name, weight in named.items():
            runner.message_hub.update_scalar(f'general_weight/{name}', weight)
        listed = '  '.join(f'general_weight/{name}: {w:.4f}' for name, w in named.items())
        runner.logger.info(f'Epoch(held out) [{runner.epoch + 1}]  {listed}')

    def _second_moment(self, model: nn.Module, runner: Runner) -> Tensor:
        """Return C, (m, m), over the held-out images of all ranks."""
        m, num_batches = len(model.students), len(self._dataloader)
        # One block for one reduction: the sum of C over images, and below it their number.
        sums = torch.zeros(m + 1, m, dtype=torch.float64, device=model.weights.device)
        for step, batch in enumerate(self._dataloader, 1):
            probs = true_class_probs(model, batch)
            sums[:m] += second_moment(probs) * probs.shape[1]
            sums[m] += probs.shape[1]
            if step % PROGRESS_INTERVAL == 0:
                runner.logger.info(
                    f'Epoch(held out) [{runner.epoch + 1}][{step:>{len(str(num_batches))}}/'
                    f'{num_batches}]'
                )
        all_reduce(sums)
        return sums[:m] / sums[m]


def true_class_probs(model: nn.Module, batch: dict) -> Tensor:
    """Return each student's probability of the true class of n images, (m, n) in float64."""
    data = model.data_preprocessor(batch, training=False)
    if not isinstance(data['inputs'], Tensor):
        raise ValueError(
            'the held-out pipeline must give one image per sample, but got '
            f'{len(data["inputs"])} views; leave MultiView out of it'
        )
    labels = torch.cat([sample.gt_label for sample in data['data_samples']])
    logits = torch.stack(
        [model.students[name](data['inputs'], mode='tensor') for name in model.names]
    )
    # In float64, so that f - 1 keeps its digits where a student is sure.
    probs = logits.double().softmax(dim=-1)
    return torch.take_along_dim(probs, labels[None, :, None], dim=2).squeeze(2)
