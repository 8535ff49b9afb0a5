"""Numbers about the networks of a run, in its log."""

from collections.abc import Iterable
from itertools import combinations
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from kd_mm.checkpoint import bare_model
from kd_mm.checks import check_int
from kd_mm.functional.kl import at_least_float32
from kd_mm.methods import diagnostics
from kd_mm.methods.base import Step
from kd_mm.models.distiller import Distiller, Observed, observed
from kd_mm.registry import HOOKS

PREFIX = 'train/diagnostics/'  # MMEngine logs what begins with train/


@HOOKS.register_module()
class DiagnosticsHook(Hook):
    """Log how students differ, the size and direction of the distillation gradient, and more.

    Of a batch of this iteration, before the step, in training mode:

    - ``agreement/<a>-<b>``, for each two students: share of the images with the same class;
    - ``diversity``: Jensen-Shannon divergence of the students' predictions, in nats;
    - ``ensemble_gap/mean`` and ``ensemble_gap/best``: accuracy of their mean prediction above the
      mean and the best student's, in percentage points;
    - ``gradient_ratio/<name>`` and ``gradient_cosine/<name>``: length of the gradient of the
      distillation terms over that of the classification loss, and the cosine between them;
    - the numbers of the methods themselves: BAKE's ``affinity_entropy/<name>`` and
      ``own_class_mass/<name>``, how evenly images weigh each other, 1 for all alike, and the
      weight of their own class; KDCL's ``general_weight/<name>``, the students' weights in the
      general target.

    Where one network trains alone there is no ``<name>``. Diversity and ensemble leave out the
    students that the cohort's ensemble leaves out (FFSD's leader). See
    :mod:`kd_mm.methods.diagnostics`.

    Gradients are those with respect to the network's *logits*, weights of the loss terms
    included. There they are exact and cost no pass through the network; terms that act on feature
    maps (FFSD's attention, fusion and self-distillation) do not reach the logits and count as
    nothing.

    Training does not change, to the last bit, and no network runs a second time. Numbers are those
    of the main process's images. They stand under ``diagnostics/`` in the next line of the log, in
    the terminal and in every backend of the visualizer; checkpoints hold them.

    Args:
        interval (int): Iterations from one measurement to the next, at least 1. A multiple of the
            logger's gives each number once. Defaults to 100.

    Raises:
        ValueError: If ``interval`` is below 1; before the first epoch, if the model is neither a
            Distiller nor a classifier with a BAKE head.

    Examples:
        >>> custom_hooks = [dict(type='kd_mm.DiagnosticsHook', interval=100)]
    """

    priority = 'NORMAL'  # before the logger's

    def __init__(self, interval: int = 100) -> None:
        check_int('interval', interval)
        self.interval = interval
        self._observed: Observed | None = None
        self._values: dict[str, Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        """Check that there is something to observe."""
        model = bare_model(runner.model)
        if observed(model) is None:
            head = getattr(model, 'head', None)
            raise ValueError(
                'kd_mm.DiagnosticsHook looks at models of kd_mm (kd_mm.KDCL, kd_mm.Distiller) and '
                f'BAKE heads, but got {type(model).__name__} with {type(head).__name__}; remove '
                'the hook'
            )

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Observe every ``interval``-th step."""
        if self.every_n_train_iters(runner, self.interval) and is_main_process():
            self._observed = observed(bare_model(runner.model))
            self._observed.observers.append(self._observe)

    def _observe(self, step: Step, losses: dict[str, Tensor]) -> None:
        """Measure while the graph of the step stands."""
        alone = len(step.students) == 1
        for name, logits in step.logits().items():
            prefix = '' if alone and f'{name}/loss' not in losses else f'{name}/'
            own = {
                key.removeprefix(prefix): value
                for key, value in losses.items()
                if 'loss' in key and key.startswith(prefix)
            }
            classification = _gradient([own.pop('loss')], logits)
            compared = diagnostics.compare_gradients(
                _gradient(own.values(), logits), classification
            )
            for kind, value in zip(('gradient_ratio', 'gradient_cosine'), compared, strict=True):
                self._values[f'{kind}/{prefix}'] = value
        with torch.no_grad():
            self._values |= self._observed.monitors(step)
            self._compare_students(step)

    def _compare_students(self, step: Step) -> None:
        """Measure how several students differ."""
        logits = step.logits()
        for (a, first), (b, second) in combinations(logits.items(), 2):
            self._values[f'agreement/{a}-{b}'] = diagnostics.agreement(first, second)
        outside = ()
        if isinstance(self._observed, Distiller):
            outside = self._observed.outside_ensemble
        together = [z for name, z in logits.items() if name not in outside]
        if len(together) > 1:
            probs = at_least_float32(torch.stack(together)).softmax(dim=-1)
            classes = step.labels if step.labels.ndim == 1 else step.labels.argmax(dim=1)
            above_mean, above_best = diagnostics.ensemble_gap(probs, classes)
            self._values['diversity'] = diagnostics.diversity(probs)
            self._values['ensemble_gap/mean'] = above_mean
            self._values['ensemble_gap/best'] = above_best

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Write what was measured into MMEngine's message hub, which the logger reads."""
        if self._observed is None:
            return
        self._observed.observers.remove(self._observe)
        self._observed = None
        numbers = torch.stack([value.float() for value in self._values.values()]).tolist()
        for key, number in zip(self._values, numbers, strict=True):
            runner.message_hub.update_scalar(PREFIX + key.rstrip('/'), number)
        self._values = {}


def _gradient(terms: Iterable[Tensor], logits: Tensor) -> Tensor:
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
