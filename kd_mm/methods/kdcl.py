"""Online knowledge distillation via collaborative learning."""

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from kd_mm.checks import check_choice, check_temperature
from kd_mm.functional import kdcl
from kd_mm.functional.kl import soft_target_kl
from kd_mm.registry import METHODS

from .base import EpochEnd, Method, Networks, Step
from .schedules import schedule

LOGIT_TARGETS = {
    'naive': kdcl.naive_target,
    'linear': kdcl.linear_target,
    'min_logit': kdcl.min_logit_target,
}


@METHODS.register_module()
class KDCL(Method):
    r"""Each student learns from one soft target that is built from all students' outputs.

    .. math:: L_i = L_i^{own} + \lambda \, T^2 \,
        \mathrm{KL}(p_t \,\|\, \mathrm{softmax}(z_i / T))

    Source: Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020,
    section 3; the four targets in :mod:`kd_mm.functional.kdcl`. The target carries no gradient.
    With a single student it is that student's own prediction, and training is plain.

    Args:
        target (str): ``'naive'``, ``'linear'``, ``'min_logit'`` or ``'general'``. The last one
            needs ``kd_mm.HoldOut`` around the training set: the students' weights, equal at
            first, are set after each epoch from the images that it leaves out. Defaults to
            ``'min_logit'``.
        temperature (float): T > 0. Defaults to 2, the paper's on CIFAR-100.
        loss_weight (float | dict): :math:`\lambda` >= 0, or its schedule. Defaults to 1.

    Raises:
        ValueError: If ``target`` does not exist or a value is out of range.
    """

    def __init__(
        self,
        target: str = 'min_logit',
        temperature: float = 2.0,
        loss_weight: float | dict = 1.0,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_choice('target', target, (*LOGIT_TARGETS, 'general'))
        self.target, self.temperature = target, temperature
        self.loss_weight = schedule('loss_weight', loss_weight)
        if target == 'general':
            self.needs = frozenset({'held_out'})

    def setup(self, networks: Networks) -> None:
        """Weigh the students equally at first."""
        if self.target == 'general':
            m = len(networks.students)
            self.register_buffer('weights', torch.full((m,), 1 / m))

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Return ``<name>/loss_kdcl`` of each student."""
        logits, weight = step.logits(), self.loss_weight(step.clock)
        stacked = torch.stack([z.detach() for z in logits.values()])
        if self.target == 'general':
            target_probs = kdcl.general_target(stacked, self.weights, self.temperature)
        else:
            target = LOGIT_TARGETS[self.target](stacked, step.labels)
            target_probs = (target / self.temperature).softmax(dim=1)
        return {
            f'{name}/loss_kdcl': weight * soft_target_kl(z, target_probs, self.temperature).mean()
            for name, z in logits.items()
        }

    def monitors(self, step: Step) -> dict[str, Tensor]:
        """Return the students' weights in the general target."""
        if self.target != 'general':
            return {}
        return {f'general_weight/{n}': w for n, w in zip(step.students, self.weights, strict=True)}

    def after_epoch(self, end: EpochEnd) -> None:
        """Weigh the students by their errors on the held-out images of all ranks."""
        if self.target != 'general':
            return
        m = len(end.students)
        # One block for one reduction: the sum of C over images, and below it their number.
        sums = torch.zeros(m + 1, m, dtype=torch.float64, device=self.weights.device)
        for logits, classes in end.held_out():
            # In float64, so that f - 1 keeps its digits where a student is sure.
            probs = logits.double().softmax(dim=-1)
            true = torch.take_along_dim(probs, classes[None, :, None], dim=2).squeeze(2)
            sums[:m] += kdcl.second_moment(true) * true.shape[1]
            sums[m] += true.shape[1]
        all_reduce(sums)
        self.weights.copy_(kdcl.weights_from_second_moment(sums[:m] / sums[m]))
        for name, weight in zip(end.students, self.weights.tolist(), strict=True):
            end.log(f'general_weight/{name}', weight)
