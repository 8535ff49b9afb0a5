"""What goes on between the networks of a run, in its log."""

from collections.abc import Sequence
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
from kd_mm.methods.base import Seen, Step
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
      ``own_class_mass/<name>``, how evenly images listen to each other, 1 for all alike, and how
      much of that is to their own class; KDCL's ``general_weight/<name>``, the students' weights
      in the general target.

    Where one network trains alone there is no ``<name>``. Diversity and ensemble leave out the
    students that the cohort's ensemble leaves out (FFSD's leader). See
    :mod:`kd_mm.methods.diagnostics`.

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
            Distiller nor a classifier with a BAKE head.

    Examples:
        >>> custom_hooks = [dict(type='kd_mm.DiagnosticsHook', interval=100)]
    """

    priority = 'NORMAL'  # before the logger's

    def __init__(self, interval: int = 100) -> None:
        check_int('interval', interval)
        self.interval = interval
        self._watched: Observed | None = None

    def before_train(self, runner: Runner) -> None:
        """Check that there is something to look at.

        Raises:
            ValueError: See the class.
        """
        model = bare_model(runner.model)
        if observed(model) is None:
            head = getattr(model, 'head', None)
            raise ValueError(
                'kd_mm.DiagnosticsHook looks at models of kd_mm (kd_mm.KDCL, kd_mm.Distiller) and '
                f'BAKE heads, but got {type(model).__name__} with {type(head).__name__}; remove '
                'the hook'
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any | None = None
    ) -> None:
        """Observe every ``interval``-th step."""
        if not (self.every_n_train_iters(runner, self.interval) and is_main_process()):
            return
        self._watched = observed(bare_model(runner.model))
        self._values: dict[str, Tensor] = {}
        self._watched.observers.append(self._observe)

    def _observe(self, step: Step, losses: dict[str, Tensor]) -> None:
        """Measure while the graph of the step stands."""
        outside = ()
        if isinstance(self._watched, Distiller):
            outside = self._watched.outside_ensemble
        alone = len(step.students) == 1
        for name, logits in step.logits().items():
            prefix = '' if alone and f'{name}/loss' not in losses else f'{name}/'
            own = {
                key.removeprefix(prefix): value
                for key, value in losses.items()
                if 'loss' in key and key.startswith(prefix)
            }
            classification = own.pop('loss')
            compared = diagnostics.compare_gradients(
                _gradient(own.values(), logits), _gradient([classification], logits)
            )
            self._note('gradient_ratio', prefix, compared.ratio)
            self._note('gradient_cosine', prefix, compared.cosine)
        with torch.no_grad():
            for key, value in self._watched.monitors(_detached(step)).items():
                self._note(key, '', value)
            self._compare_students(step, outside)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Write what was measured into MMEngine's message hub, which the logger reads."""
        if self._watched is None:
            return
        self._watched.observers.remove(self._observe)
        self._watched = None
        numbers = torch.stack([value.float() for value in self._values.values()]).tolist()
        for key, number in zip(self._values, numbers, strict=True):
            runner.message_hub.update_scalar(key, number)
        del self._values

    def _compare_students(self, step: Step, outside: tuple[str, ...]) -> None:
        """Note how several students differ."""
        logits = {name: z.detach() for name, z in step.logits().items()}
        for first, second in combinations(logits, 2):
            value = diagnostics.agreement(logits[first], logits[second])
            self._note('agreement', f'{first}-{second}', value)
        together = [z for n, z in logits.items() if n not in outside]
        if len(together) > 1:
            probs = at_least_float32(torch.stack(together)).softmax(dim=-1)
            classes = step.labels if step.labels.ndim == 1 else step.labels.argmax(dim=1)
            gap = diagnostics.ensemble_gap(probs, classes)
            self._note('diversity', '', diagnostics.diversity(probs))
            self._note('ensemble_gap', 'mean', gap.mean)
            self._note('ensemble_gap', 'best', gap.best)

    def _note(self, kind: str, name: str, value: Tensor) -> None:
        self._values[PREFIX + f'{kind}/{name}'.rstrip('/')] = value


def _detached(step: Step) -> Step:
    """Return a step whose logits and embeddings carry no gradient."""
    students = {
        name: [Seen(s.logits.detach(), s.embedding.detach(), s.maps) for s in views]
        for name, views in step.students.items()
    }
    return step._replace(students=students)


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
