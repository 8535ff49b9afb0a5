"""Online knowledge distillation via collaborative learning."""

from collections.abc import Mapping

import torch
from mmpretrain.structures import DataSample
from torch import Tensor

from kd_mm.functional.collaborative_target import (
    general_target,
    linear_target,
    min_logit_target,
    naive_target,
)
from kd_mm.functional.divergence import check_temperature, soft_target_kl
from kd_mm.functional.ranges import check_weight
from kd_mm.registry import MODELS

from .base import BaseCohort, labels_of

LOGIT_TARGETS = {
    'naive': naive_target,
    'linear': linear_target,
    'min_logit': min_logit_target,
}
TARGETS = (*LOGIT_TARGETS, 'general')


@MODELS.register_module()
class KDCL(BaseCohort):
    r"""Each student learns from one soft target that is built from all students' outputs.

    .. math:: L_i = L_i^{own} + \lambda \, T^2 \,
        \mathrm{KL}(p_t \,\|\, \mathrm{softmax}(z_i / T))

    Source: Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020,
    section 3; the four targets in :mod:`kd_mm.functional.collaborative_target`. The target
    carries no gradient. With a single student it is that student's own prediction, and training
    is plain.

    Args:
        students (dict[str, dict]): Classifiers by name.
        target (str): ``'naive'``, ``'linear'``, ``'min_logit'`` or ``'general'``. The last one
            needs ``kd_mm.GeneralizationWeightsHook``, which sets the students' weights after
            each epoch; until then they are equal. Defaults to ``'min_logit'``.
        temperature (float): T > 0. Defaults to 2, the paper's on CIFAR-100.
        loss_weight (float): :math:`\lambda` >= 0. Defaults to 1.
        **kwargs: Arguments of :class:`kd_mm.models.algorithms.BaseCohort`.

    Raises:
        ValueError: If ``target`` does not exist or a value is out of range.
    """

    def __init__(
        self,
        students: Mapping[str, dict],
        target: str = 'min_logit',
        temperature: float = 2.0,
        loss_weight: float = 1.0,
        **kwargs,
    ) -> None:
        check_temperature(temperature)
        check_weight('loss_weight', loss_weight)
        if target not in TARGETS:
            raise ValueError(f'target must be one of {", ".join(TARGETS)}, but got {target!r}')
        super().__init__(students, **kwargs)
        self.target = target
        self.temperature = temperature
        self.loss_weight = loss_weight
        if target == 'general':
            num_students = len(self.students)
            self.register_buffer('weights', torch.full((num_students,), 1 / num_students))

    def distillation_losses(
        self,
        logits: dict[str, Tensor],
        maps: dict[str, tuple[Tensor, ...]],
        data_samples: list[DataSample],
    ) -> dict[str, Tensor]:
        """Return ``<name>/loss_kdcl`` of each student; see the base class."""
        stacked = torch.stack([logits[name].detach() for name in self.names])
        target_probs = self.target_probs(stacked, data_samples)
        return {
            f'{name}/loss_kdcl': self.loss_weight
            * soft_target_kl(z, target_probs, self.temperature).mean()
            for name, z in logits.items()
        }

    def target_probs(self, logits: Tensor, data_samples: list[DataSample]) -> Tensor:
        """Return the soft target at the temperature.

        Args:
            logits: All students' logits, (m, N, K), by name in alphabetical order.
            data_samples: Labels of the N images.

        Returns:
            (N, K) distributions without gradient.
        """
        if self.target == 'general':
            return general_target(logits, self.weights, self.temperature)
        target = LOGIT_TARGETS[self.target](logits, labels_of(data_samples))
        return (target / self.temperature).softmax(dim=1)
