"""Stop when a loss is NaN or infinite, before the optimizer steps."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from kd_mm.checkpoint import bare_model
from kd_mm.checks import check_choice, check_int, few
from kd_mm.models.distiller import named_networks
from kd_mm.registry import HOOKS

WARNING = 30
ADVICE = 'Lower the learning rate or clip gradients (optim_wrapper.clip_grad.max_norm)'


@HOOKS.register_module()
class LossGuardHook(Hook):
    """Stop when a loss is NaN or infinite before the optimizer steps; save no such weights.

    Each loss term is checked on every rank, and all ranks decide alike. The device does not wait:
    the verdict is copied while the backward pass runs, and the host reads it before it steps.
    Weights are checked before each checkpoint and each validation. A warning names loss terms
    without gradient. Under AMP the losses are those before scaling; a gradient that overflows
    through the scale alone is left to the GradScaler.

    Args:
        on_nonfinite (str): ``'stop'``: raise before the step, so that the last checkpoint holds
            good weights. ``'skip'``: drop the gradients gathered so far and continue with a
            warning. Defaults to ``'stop'``.
        max_consecutive_skips (int): With ``'skip'``, how many iterations in a row may be skipped
            before the run stops; at least 1. Defaults to 10.

    Raises:
        ValueError: If an argument is out of range.
        FloatingPointError: In training. It names the terms with their values, the student, the
            rank if there are several, epoch and iteration.
    """

    priority = 'LOW'  # after all that changes weights, before the checkpoint

    def __init__(self, on_nonfinite: str = 'stop', max_consecutive_skips: int = 10) -> None:
        check_choice('on_nonfinite', on_nonfinite, ('stop', 'skip'))
        check_int('max_consecutive_skips', max_consecutive_skips)
        self.on_nonfinite = on_nonfinite
        self.max_consecutive_skips = max_consecutive_skips
        self._terms: dict[str, Tensor] = {}  # of this iteration
        self._skips = 0

    def before_train(self, runner: Runner) -> None:
        """Observe the model's losses and the optimizers' steps."""
        record = self._record
        if runner.cfg.get('compile'):
            record = torch.compiler.disable(record)
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        before_step = partial(self._before_step, runner)
        self._handles = [
            bare_model(runner.model).register_forward_hook(record, with_kwargs=True),
            *(part.optimizer.register_step_pre_hook(before_step) for part in wrappers),
        ]

    def after_train(self, runner: Runner) -> None:
        """Remove the observers."""
        for handle in self._handles:
            handle.remove()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Check an iteration without a step, count skips, and check weights to be saved."""
        if not self._is_bad():
            self._skips = 0
        elif self.on_nonfinite == 'stop':
            self._raise(runner)
        else:
            self._skip(runner)
        self._terms, self._inputs = {}, None
        savers = [h for h in runner.hooks if isinstance(h, CheckpointHook) and not h.by_epoch]
        due = (self.every_n_train_iters(runner, h.interval, h.save_begin) for h in savers)
        if any(due) or (savers and self.is_last_train_iter(runner)):
            check_weights(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Check the weights of the checkpoint that may follow."""
        check_weights(runner)

    def before_val(self, runner: Runner) -> None:
        """Check the weights of the best checkpoint that may follow."""
        check_weights(runner)

    def _record(self, model: nn.Module, args: tuple, kwargs: dict, losses: Any) -> None:
        """Start the copy of the verdict on the losses to the host."""
        if kwargs.get('mode') != 'loss' or not model.training:
            return
        terms = {name: _mean(value) for name, value in losses.items() if 'loss' in name}
        if idle := [name for name, term in terms.items() if not term.requires_grad]:
            print_log(  # once: MMEngine's logger drops repeated warnings
                f'no parameter learns from {", ".join(subjects(model, idle))}: the logged '
                'loss holds it, and no gradient passes it',
                logger='current',
                level=WARNING,
            )
        self._terms = {name: term.detach() for name, term in terms.items()}
        self._inputs = kwargs.get('inputs')
        self._verdict = (~torch.stack([*self._terms.values()]).isfinite()).any().float()
        all_reduce(self._verdict, 'max')
        self._arrived = None
        if self._verdict.is_cuda:  # the copy goes to pinned memory, and the host does not wait
            self._verdict = self._verdict.to('cpu', non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def _is_bad(self) -> bool:
        """Return, once the verdict is there, whether a loss of the iteration is not finite."""
        if self._terms and self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._terms) and bool(self._verdict)

    def _before_step(self, runner: Runner, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Keep an optimizer from a step with gradients that are not finite."""
        if self._is_bad():
            if self.on_nonfinite == 'stop':
                self._raise(runner)
            optimizer.zero_grad()  # no optimizer of torch changes a parameter without gradient

    def _skip(self, runner: Runner) -> None:
        """Drop the iteration, or raise after too many or where a weight is not finite."""
        self._skips += 1
        if self._skips > self.max_consecutive_skips:
            self._raise(runner, f' It is skip number {self._skips} in a row.')
        if spoilt := nonfinite_names(bare_model(runner.model).state_dict()):
            self._raise(runner, f' It cannot be skipped, since {few(spoilt)} is not finite.')
        # Of the passes whose gradients add up, those before this one are dropped, too.
        runner.optim_wrapper.zero_grad()
        print_log(
            f'{self._describe(runner)}; the step is skipped ({self._skips} in a row, at most '
            f'{self.max_consecutive_skips})',
            logger='current',
            level=WARNING,
        )

    def _describe(self, runner: Runner) -> str:
        """Return where and which losses are not finite."""
        bad = {name: str(v.item()) for name, v in self._terms.items() if not v.isfinite()}
        ranks = all_gather_object(bad)
        parts = []
        for rank, terms in enumerate(ranks):
            where = f' on rank {rank}' if len(ranks) > 1 else ''
            named = subjects(bare_model(runner.model), terms)
            parts += [f'{n} = {v}{where}' for n, v in zip(named, terms.values(), strict=True)]
        return (
            f'the loss is not finite in epoch {runner.epoch + 1}, iteration {runner.iter + 1}: '
            f'{few(parts)}'
        )

    def _raise(self, runner: Runner, reason: str = '') -> None:
        """Raise the error that ends the run, on all ranks."""
        what = self._describe(runner)
        weights = nonfinite_names(dict(bare_model(runner.model).named_parameters()))
        views = self._inputs if isinstance(self._inputs, (list, tuple)) else [self._inputs]
        if weights and not reason:
            reason = (
                f' Weights are not finite either ({few(weights)}): the gradient of the step '
                'before was not, or the run began so.'
            )
        elif not all(view.isfinite().all() for view in views if isinstance(view, Tensor)):
            reason += ' The images of the batch are not finite either: look at the data.'
        skip = ", or skip such steps (kd_mm.LossGuardHook with on_nonfinite='skip')"
        raise FloatingPointError(
            f'{what}.{reason} The step was not taken and nothing was saved after it. {ADVICE}'
            f'{skip if self.on_nonfinite == "stop" else ""}'
        )


def check_weights(runner: Runner) -> None:
    """Raise FloatingPointError if a weight or a buffer is not finite, on all ranks alike."""
    if spoilt := nonfinite_names(bare_model(runner.model).state_dict()):
        raise FloatingPointError(
            f'after iteration {runner.iter} weights are not finite: {few(spoilt)}. They were not '
            f'saved. {ADVICE}'
        )


def nonfinite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that are not finite, on any rank.

    Examples:
        >>> nonfinite_names({'weight': torch.ones(2), 'bias': torch.tensor(float('nan'))})
        ['bias']
    """
    floating = {name: t for name, t in tensors.items() if t.is_floating_point()}
    finite = torch.stack([tensor.isfinite().all() for tensor in floating.values()]).tolist()
    mine = [name for name, ok in zip(floating, finite, strict=True) if not ok]
    return list(dict.fromkeys(name for names in all_gather_object(mine) for name in names))


def _mean(value: Tensor | list[Tensor]) -> Tensor:
    """Return a loss as MMEngine adds it up."""
    return value.mean() if isinstance(value, Tensor) else sum(part.mean() for part in value)


def subjects(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return loss terms with their students: ``loss_kd of student a`` for ``a/loss_kd``.

    Args:
        model: The model, not wrapped.
        names: Names of terms as they are logged.
    """
    students = named_networks(model)
    split = [(name, *name.partition('/')[::2]) for name in names]
    return [f'{term} of student {s}' if s in students else name for name, s, term in split]
