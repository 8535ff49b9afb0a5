"""What goes on between the networks of a run, in its log."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd_mm.functional import diagnostics
from kd_mm.functional.batch_ensemble import affinity
from kd_mm.functional.divergence import at_least_float32
from kd_mm.models.algorithms.base import BaseCohort, labels_of
from kd_mm.models.heads import BAKEMixin
from kd_mm.registry import HOOKS
from kd_mm.utils.checkpoint import bare_model

PREFIX = 'train/diagnostics/'  # MMEngine logs what begins with train/


@HOOKS.register_module()
class DiagnosticsHook(Hook):
    """Log how students differ, how distillation pulls, and whom BAKE's images listen to.

    Of a batch of this iteration, before the step, in training mode:

    - ``agreement/<a>-<b>``, for each two students: share of the images with the same class;
    - ``diversity``: Jensen-Shannon divergence of the students' predictions, in nats;
    - ``ensemble_gap/mean`` and ``ensemble_gap/best``: accuracy of their mean prediction above the
      mean and the best student's, in percentage points;
    - ``gradient_ratio/<name>`` and ``gradient_cosine/<name>``: length of the gradient of the
      distillation terms over that of the classification loss, and the cosine between them;
    - ``affinity_entropy/<name>`` and ``own_class_mass/<name>`` of each BAKE head: how evenly
      images listen to each other, 1 for all alike, and how much of that is to their own class;
    - ``general_weight/<name>``: the students' weights in KDCL's general target.

    Where one network trains alone there is no ``<name>``. Diversity and ensemble leave out the
    students that the cohort's ensemble leaves out (FFSD's leader). See
    :mod:`kd_mm.functional.diagnostics`.

    Gradients are those with respect to the network's *logits*, weights of the loss terms
    included. There they are exact and cost no pass through the network; terms that act on feature
    maps (FFSD's attention, fusion and self-distillation) do not reach the logits and count as
    nothing.

    Training is not changed: no network runs a second time, and weights are the same to the last
    bit. Other iterations cost nothing. The numbers are those of the main process's images and
    stand under ``diagnostics/`` in the line of the log that comes next, in the terminal and in
    every backend of the visualizer (local, TensorBoard, WandB); checkpoints carry them.

    Args:
        interval (int): Iterations from one measurement to the next, at least 1. A multiple of the
            logger's gives each number once. Defaults to 100.

    Raises:
        ValueError: If ``interval`` is below 1; before the first epoch, if the model is neither a
            cohort nor a classifier with a BAKE head.

    Examples:
        >>> custom_hooks = [dict(type='kd_mm.DiagnosticsHook', interval=100)]
    """

    priority = 'NORMAL'  # before the logger's

    def __init__(self, interval: int = 100) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f'interval must be an integer of at least 1, but got {interval!r}')
        self.interval = interval
        self._handles: list[RemovableHandle] = []

    def before_train(self, runner: Runner) -> None:
        """Check that there is something to look at.

        Args:
            runner: The runner whose training begins.

        Raises:
            ValueError: See the class.
        """
        model = bare_model(runner.model)
        head = getattr(model, 'head', None)
        if not isinstance(model, BaseCohort) and not isinstance(head, BAKEMixin):
            raise ValueError(
                'kd_mm.DiagnosticsHook looks at cohorts (kd_mm.KDCL, kd_mm.DML, kd_mm.FFSD) and '
                f'BAKE heads, but got {type(model).__name__} with {type(head).__name__}; remove '
                'the hook'
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any | None = None
    ) -> None:
        """Listen to the heads and the losses of every ``interval``-th step.

        Args:
            runner: The runner that trains.
            batch_idx: Unused.
            data_batch: Unused.
        """
        if not (self.every_n_train_iters(runner, self.interval) and is_main_process()):
            return
        model = bare_model(runner.model)
        self._logits: dict[str, Tensor] = {}
        self._embeddings: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}
        for name, head in _heads(model).items():
            bake = isinstance(head, BAKEMixin)
            listen = partial(self._hear_head, name, bake)
            module = head.classifier if bake else head
            self._handles.append(module.register_forward_hook(listen))
        self._handles.append(model.register_forward_hook(self._hear_losses, with_kwargs=True))

    def _hear_head(
        self, name: str, bake: bool, module: nn.Module, args: tuple, output: Tensor
    ) -> None:
        """Keep a network's logits, with their graph, and what enters a BAKE head's classifier."""
        self._logits[name] = output
        if bake:
            self._embeddings[name] = args[0].detach()

    def _hear_losses(
        self, model: nn.Module, args: tuple, kwargs: dict, losses: dict[str, Tensor]
    ) -> None:
        """Measure while the graph of the step stands."""
        for name, logits in self._logits.items():
            own = {
                key.removeprefix(f'{name}/'): value
                for key, value in losses.items()
                if 'loss' in key and key.startswith(f'{name}/' if name else '')
            }
            classification = own.pop('loss')
            compared = diagnostics.compare_gradients(
                _gradient(own.values(), logits), _gradient([classification], logits)
            )
            self._note('gradient_ratio', name, compared.ratio)
            self._note('gradient_cosine', name, compared.cosine)
        self._labels = labels_of(kwargs['data_samples'])
        self._logits = {name: logits.detach() for name, logits in self._logits.items()}

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Write what was measured into MMEngine's message hub, which the logger reads.

        Args:
            runner: The runner that trains.
            batch_idx: Unused.
            data_batch: Unused.
            outputs: Unused.
        """
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        model = bare_model(runner.model)
        with torch.no_grad():
            self._look_at_batches()
            if isinstance(model, BaseCohort):
                self._look_at_students(model)
        numbers = torch.stack([value.float() for value in self._values.values()]).tolist()
        for key, number in zip(self._values, numbers, strict=True):
            runner.message_hub.update_scalar(key, number)
        del self._logits, self._embeddings, self._values, self._labels

    def _look_at_batches(self) -> None:
        """Note whom the images of each BAKE head listen to."""
        for name, embedding in self._embeddings.items():
            if len(embedding) < 3:  # each has one other to listen to
                continue
            labels = self._labels
            if labels.ndim == 1:
                labels = F.one_hot(labels, self._logits[name].shape[1])
            affinities = affinity(embedding)
            self._note('affinity_entropy', name, diagnostics.affinity_entropy(affinities))
            mass = diagnostics.own_class_mass(affinities, labels.to(affinities.dtype))
            self._note('own_class_mass', name, mass)

    def _look_at_students(self, model: BaseCohort) -> None:
        """Note how the students of a cohort differ, and what General makes of them."""
        for first, second in combinations(self._logits, 2):
            value = diagnostics.agreement(self._logits[first], self._logits[second])
            self._note('agreement', f'{first}-{second}', value)
        together = [z for n, z in self._logits.items() if n not in model.not_in_ensemble]
        if len(together) > 1:
            probs = at_least_float32(torch.stack(together)).softmax(dim=-1)
            classes = self._labels if self._labels.ndim == 1 else self._labels.argmax(dim=1)
            gap = diagnostics.ensemble_gap(probs, classes)
            self._note('diversity', '', diagnostics.diversity(probs))
            self._note('ensemble_gap', 'mean', gap.mean)
            self._note('ensemble_gap', 'best', gap.best)
        weights = dict(model.named_buffers(recurse=False)).get('weights')
        if weights is not None:
            for name, weight in zip(model.names, weights, strict=True):
                self._note('general_weight', name, weight)

    def _note(self, kind: str, name: str, value: Tensor) -> None:
        self._values[PREFIX + (f'{kind}/{name}' if name else kind)] = value


def _heads(model: nn.Module) -> Mapping[str, nn.Module]:
    """Return the head of each network; one alone has no name."""
    if isinstance(model, BaseCohort):
        return {name: student.head for name, student in model.students.items()}
    return {'': model.head}


def _gradient(terms: Sequence[Tensor], logits: Tensor) -> Tensor:
    """Return the gradient of a sum of loss terms, times the number of images.

    The factor keeps the small numbers of half precision from vanishing; ratios and cosines do not
    see it. The graph stays as it is, for the step.
    """
    total = sum(term.mean() for term in terms)
    gradient = None
    if isinstance(total, Tensor) and total.requires_grad:
        scale = torch.full_like(total, len(logits))
        (gradient,) = torch.autograd.grad(
            total, logits, scale, retain_graph=True, allow_unused=True
        )
    return at_least_float32(torch.zeros_like(logits) if gradient is None else gradient)
