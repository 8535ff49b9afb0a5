"""Batch knowledge ensembling."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_mm.checks import check_temperature
from kd_mm.functional.bake import affinity, check_omega, ensemble_knowledge, propagate
from kd_mm.functional.kl import at_least_float32, mean_kl, soft_log_probs
from kd_mm.methods import diagnostics
from kd_mm.registry import METHODS

from .base import Method, Relations, Step
from .gather import BatchGatherer
from .schedules import schedule


@METHODS.register_module()
class BAKE(Method):
    r"""Each image learns from the ensembled knowledge of the similar images of its batch.

    .. math:: L = L^{own} + \lambda \, \frac{1}{N} \sum_i \tau^2 \,
        \mathrm{KL}(Q_i \,\|\, \mathrm{softmax}(z_i / \tau))

    Source: Ge et al., "Self-distillation with Batch Knowledge Ensembling Improves ImageNet
    Classification", arXiv:2104.13298, section 3; Q in :mod:`kd_mm.functional.bake`. The mean is
    over all images, anchors and partners alike, as in the released code. Q is detached. Each
    student ensembles over its own embeddings. Works with mixed labels: Q comes from the mixed
    images themselves.

    Args:
        omega (float): Weight in [0, 1) of the knowledge that an image takes from the others.
            Defaults to 0.5.
        temperature (float): :math:`\tau` > 0, softens predictions. Defaults to 4.
        loss_weight (float | dict): :math:`\lambda` >= 0 of ``loss_bake``, or its schedule.
            Defaults to 1.
        gather (str): ``'global'`` ensembles over the images of all ranks, as the released
            ImageNet recipes do; ``'group'`` over those of ``group_size`` consecutive ranks, whose
            cost does not grow with the number of ranks; ``'local'`` over this rank's. Defaults to
            ``'global'``.
        group_size (int, optional): Ranks of a group, at least 2, which divides the number of
            ranks. For ``'group'``.

    Raises:
        ValueError: If an argument is out of range.
    """

    needs = frozenset({'class_instances'})

    def __init__(
        self,
        omega: float = 0.5,
        temperature: float = 4.0,
        loss_weight: float | dict = 1.0,
        gather: str = 'global',
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        check_omega(omega)
        check_temperature(temperature)
        self.omega, self.temperature = omega, temperature
        self.loss_weight = schedule('loss_weight', loss_weight)
        self.gather = BatchGatherer(gather, group_size)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Return ``<name>/loss_bake`` of each student."""
        weight = self.loss_weight(step.clock) * self.temperature**2
        losses = {}
        for name, (seen, *_) in step.students.items():
            log_probs = soft_log_probs(seen.logits, self.temperature)
            batch = self.gather(seen.embedding, log_probs.detach().exp())
            target_probs = propagate(
                batch.features, batch.probs, self.omega, rows=batch.rows, valid=batch.valid
            )
            losses[f'{name}/loss_bake'] = mean_kl(log_probs, target_probs, weight)
        return losses

    def monitors(self, step: Step) -> dict[str, Tensor]:
        """Return how evenly images listen to each other, and how much to their own class."""
        values = {}
        for name, (seen, *_) in step.students.items():
            if len(seen.embedding) < 3:  # each has one other to listen to
                continue
            labels = step.labels
            if labels.ndim == 1:
                labels = F.one_hot(labels, seen.logits.shape[1])
            weights = affinity(seen.embedding)
            values[f'affinity_entropy/{name}'] = diagnostics.affinity_entropy(weights)
            mass = diagnostics.own_class_mass(weights, labels.to(weights.dtype))
            values[f'own_class_mass/{name}'] = mass
        return values

    @torch.no_grad()
    def relations(self, step: Step) -> dict[str, Relations]:
        """Return affinities and soft targets of this rank's images, by student."""
        tau = self.temperature
        return {
            name: Relations(
                affinity(seen.embedding),
                (at_least_float32(seen.logits) / tau).softmax(dim=1),
                ensemble_knowledge(seen.embedding, seen.logits, tau, self.omega),
                tau,
            )
            for name, (seen, *_) in step.students.items()
        }
