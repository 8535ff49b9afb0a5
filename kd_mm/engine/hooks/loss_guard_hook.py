"""A loss that is no number stops the run before it spoils anything."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from kd_mm.checkpoint import bare_model
from kd_mm.models.distiller import named_networks
from kd_mm.registry import HOOKS

WARNING = 30
CHOICES = ('stop', 'skip')
SHOWN = 3


class _Watched(NamedTuple):
    """The losses of one forward pass, and whether one of any rank is not finite, on its way."""

    names: list[str]
    values: Tensor  # (n,), on the device
    inputs: Any
    flag: Tensor  # (), 1 where a loss is not finite; under CUDA the host's copy
    arrived: torch.cuda.Event | None  # when the copy is complete


@HOOKS.register_module()
class LossGuardHook(Hook):
    """Let no step be taken whose loss is not finite, and no weight be saved that is not finite.

    Each loss term is looked at between the forward pass and the optimizer's step, on every rank,
    and all ranks decide alike. The device is not made to wait: the verdict is copied while the
    backward pass runs, and the host reads it before it steps. Weights are looked at before each
    checkpoint and each validation. Terms that no gradient can pass are named once, at the start.

    Under AMP the losses looked at are those before scaling; a gradient that overflows through the
    scale alone is the GradScaler's to skip, and no concern of this hook.

    Args:
        on_nonfinite (str): ``'stop'``: raise before the step, so that the last checkpoint is that
            of good weights. ``'skip'``: drop the gradients gathered so far and go on with a
            warning. Defaults to ``'stop'``.
        max_consecutive_skips (int): With ``'skip'``, how many iterations in a row may be skipped
            before the run stops after all; at least 1. Defaults to 10.

    Raises:
        ValueError: If an argument is out of range.
        FloatingPointError: In training. It names the terms with their values, the student, the
            rank if there are several, epoch and iteration.
    """

    priority = 'LOW'  # after all that changes weights, before the checkpoint

    def __init__(self, on_nonfinite: str = 'stop', max_consecutive_skips: int = 10) -> None:
        if on_nonfinite not in CHOICES:
            raise ValueError(
                f'on_nonfinite must be one of {", ".join(CHOICES)}, but got {on_nonfinite!r}'
            )
        if type(max_consecutive_skips) is not int or max_consecutive_skips < 1:
            raise ValueError(
                'max_consecutive_skips must be an integer of at least 1, but got '
                f'{max_consecutive_skips!r}'
            )
        self.on_nonfinite = on_nonfinite
        self.max_consecutive_skips = max_consecutive_skips
        self._watched: _Watched | None = None
        self._skips = 0
        self._handles: list = []

    def before_train(self, runner: Runner) -> None:
        """Begin to watch the model's losses and the optimizers' steps.

        Args:
            runner: The runner whose training begins.
        """
        watch = self._watch
        if runner.cfg.get('compile'):
            watch = torch.compiler.disable(watch)
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        self._handles = [
            bare_model(runner.model).register_forward_hook(watch, with_kwargs=True),
            *(
                w.optimizer.register_step_pre_hook(partial(self._before_step, runner))
                for w in wrappers
            ),
        ]

    def after_train(self, runner: Runner) -> None:
        """Watch no longer.

        Args:
            runner: The runner whose training ended.
        """
        for handle in self._handles:
            handle.remove()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Mapping | None = None,
    ) -> None:
        """Judge an iteration that has taken no step, count skips, and guard what will be saved.

        Args:
            runner: The runner that trains.
            batch_idx: Number of the batch in its epoch.
            data_batch: The batch.
            outputs: The losses.

        Raises:
            FloatingPointError: See the class.
        """
        if not self._is_bad():
            self._skips = 0
        elif self.on_nonfinite == 'stop':
            self._stop(runner)
        else:
            self._skip(runner)
        self._watched = None
        savers = [h for h in runner.hooks if isinstance(h, CheckpointHook) and not h.by_epoch]
        if any(
            self.every_n_train_iters(runner, h.interval, h.save_begin)
            or self.is_last_train_iter(runner)
            for h in savers
        ):
            check_weights(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Guard the checkpoint that may follow.

        Args:
            runner: The runner that trains.

        Raises:
            FloatingPointError: See the class.
        """
        check_weights(runner)

    def before_val(self, runner: Runner) -> None:
        """Guard the best checkpoint that may follow.

        Args:
            runner: The runner that validates.

        Raises:
            FloatingPointError: See the class.
        """
        check_weights(runner)

    def _watch(self, model: nn.Module, args: tuple, kwargs: dict, losses: Any) -> None:
        """Send the verdict over the losses on its way to the host."""
        if kwargs.get('mode') != 'loss' or not model.training:
            return
        terms = {name: _mean(value) for name, value in losses.items() if 'loss' in name}
        unreachable = [name for name, term in terms.items() if not term.requires_grad]
        if unreachable:  # MMEngine's logger drops what it has warned of before
            print_log(
                f'no parameter learns from {", ".join(subjects(model, unreachable))}: the logged '
                'loss holds it, and no gradient passes it',
                logger='current',
                level=WARNING,
            )
        values = torch.stack([term.detach() for term in terms.values()])
        flag = (~values.isfinite()).any().float()
        all_reduce(flag, 'max')
        arrived = None
        if flag.is_cuda:  # the copy goes to pinned memory, and the host does not wait for it here
            flag = flag.to('cpu', non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._watched = _Watched(list(terms), values, kwargs.get('inputs'), flag, arrived)

    def _is_bad(self) -> bool:
        """Tell, once the verdict is there, whether a loss of the iteration is not finite."""
        watched = self._watched
        if watched is None:
            return False
        if watched.arrived is not None:
            watched.arrived.synchronize()
        return bool(watched.flag)

    def _before_step(
        self, runner: Runner, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict
    ) -> None:
        """Keep an optimizer from a step of gradients that are not finite."""
        if not self._is_bad():
            return
        if self.on_nonfinite == 'stop':
            self._stop(runner)
        optimizer.zero_grad()  # no optimizer of torch changes a parameter without gradient

    def _skip(self, runner: Runner) -> None:
        """Drop the iteration, unless it has done harm already or is one too many."""
        self._skips += 1
        if self._skips > self.max_consecutive_skips:
            self._stop(runner, f' This is iteration {self._skips} of its kind in a row.')
        spoilt = nonfinite_names(bare_model(runner.model))
        if any(all_gather_object(spoilt)):
            spoilt = _listed(spoilt) or 'a weight of another rank'
            self._stop(runner, f' It cannot be skipped, since {spoilt} is not finite either.')
        # Of the passes whose gradients add up, those before this one are dropped, too.
        runner.optim_wrapper.zero_grad()
        print_log(
            f'{self._describe(runner)}; the step is skipped ({self._skips} in a row, at most '
            f'{self.max_consecutive_skips})',
            logger='current',
            level=WARNING,
        )

    def _describe(self, runner: Runner) -> str:
        """Say where and which losses are not finite."""
        watched = self._watched
        mine = {
            name: value
            for name, value, finite in zip(
                watched.names,
                watched.values.tolist(),
                watched.values.isfinite().tolist(),
                strict=True,
            )
            if not finite
        }
        ranks = defaultdict(list)
        everyone = all_gather_object(mine)
        for rank, terms in enumerate(everyone):
            for name, value in terms.items():
                ranks[name, str(value)].append(rank)  # a NaN does not equal itself
        named = subjects(bare_model(runner.model), (name for name, _ in ranks))
        parts = [
            f'{subject} = {value}{_where(on, len(everyone))}'
            for subject, (_, value), on in zip(named, ranks, ranks.values(), strict=True)
        ]
        return (
            f'the loss is not finite in epoch {runner.epoch + 1}, iteration {runner.iter + 1}: '
            f'{_listed(parts)}'
        )

    def _stop(self, runner: Runner, more: str = '') -> None:
        """Raise the error that ends the run, on all ranks."""
        said = self._describe(runner)
        spoilt = nonfinite_names(bare_model(runner.model), buffers=False)
        if spoilt and not more:
            more = (
                f' Weights are not finite either ({_listed(spoilt)}): the gradient of the step '
                'before was not, or the run began so.'
            )
        elif not _all_finite(self._watched.inputs):
            more += ' The images of the batch are not finite either: look at the data.'
        skip = ", or skip such steps (kd_mm.LossGuardHook with on_nonfinite='skip')"
        raise FloatingPointError(
            f'{said}.{more} The step was not taken and nothing was saved after it. Lower the '
            'learning rate or clip gradients (optim_wrapper.clip_grad.max_norm)'
            f'{skip if self.on_nonfinite == "stop" else ""}'
        )


def check_weights(runner: Runner) -> None:
    """Raise if a weight or a buffer of the model is not finite, on all ranks alike.

    Args:
        runner: The runner of the model.

    Raises:
        FloatingPointError: It names the first of them.
    """
    tensors = _floating(bare_model(runner.model))
    flag = (~torch.stack([t.isfinite().all() for t in tensors.values()])).any().float()
    all_reduce(flag, 'max')
    if not flag:
        return
    spoilt = nonfinite_names(bare_model(runner.model))
    raise FloatingPointError(
        f'after iteration {runner.iter} weights are not finite: '
        f'{_listed(spoilt) or "those of another rank"}. They were not saved. Lower the learning '
        'rate or clip gradients (optim_wrapper.clip_grad.max_norm)'
    )


def nonfinite_names(model: nn.Module, buffers: bool = True) -> list[str]:
    """Return the names of the weights that are not finite.

    Args:
        model: Any model.
        buffers: Look at buffers as well.

    Examples:
        >>> layer = nn.Linear(1, 1)
        >>> _ = nn.init.constant_(layer.bias, float('nan'))
        >>> nonfinite_names(layer)
        ['bias']
    """
    tensors = _floating(model) if buffers else dict(model.named_parameters())
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def _floating(model: nn.Module) -> dict[str, Tensor]:
    """Return weights and buffers that could be other than finite."""
    return {n: t for n, t in model.state_dict().items() if t.is_floating_point()}


def _mean(value: Tensor | list[Tensor]) -> Tensor:
    """Return a loss as MMEngine adds it up."""
    return value.mean() if isinstance(value, Tensor) else sum(part.mean() for part in value)


def _all_finite(inputs: Any) -> bool:
    """Tell whether images, or lists of their views, are finite."""
    views = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    return all(bool(view.isfinite().all()) for view in views if isinstance(view, Tensor))


def subjects(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return loss terms with the student that each belongs to.

    Args:
        model: The model, not wrapped.
        names: Names of terms as they are logged.

    Returns:
        list[str]: ``loss_kdcl of student resnet18`` for ``resnet18/loss_kdcl`` of a cohort; else
        the name.
    """
    students = named_networks(model)
    split = [(name, *name.partition('/')[::2]) for name in names]
    return [f'{term} of student {s}' if s in students else name for name, s, term in split]


def _where(ranks: list[int], count: int) -> str:
    """Return on which of several ranks something is.

    Examples:
        >>> _where([0], 1), _where([0, 1], 2), _where([1, 2], 3)
        ('', ' on all ranks', ' on rank 1, 2')
    """
    if count == 1:
        return ''
    return ' on all ranks' if len(ranks) == count else f' on rank {", ".join(map(str, ranks))}'


def _listed(names: list[str]) -> str:
    """Return the first few names."""
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return ', '.join(names[:SHOWN]) + more
