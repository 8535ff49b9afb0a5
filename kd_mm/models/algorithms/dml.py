"""Deep mutual learning."""

from collections.abc import Mapping

from mmpretrain.structures import DataSample
from torch import Tensor

from kd_mm.functional.divergence import check_temperature
from kd_mm.functional.mutual_learning import mutual_kl
from kd_mm.functional.ranges import check_weight
from kd_mm.registry import MODELS

from .base import BaseCohort, check_students


@MODELS.register_module()
class DML(BaseCohort):
    r"""Each student learns from each other student's prediction.

    .. math:: L_i = L_i^{own} + \lambda \frac{T^2}{m - 1} \sum_{j \ne i}
        \mathrm{KL}(p_j \,\|\, p_i), \qquad p_i = \mathrm{softmax}(z_i / T)

    Source: Zhang et al., "Deep Mutual Learning", CVPR 2018, section 3.3. The paper updates the
    students in turn, each against the other's newest weights; here all learn from one forward
    pass, as in KDCL's and FFSD's comparisons. The other's prediction is detached.

    Args:
        students (dict[str, dict]): At least two classifiers by name.
        temperature (float): T > 0. Defaults to 1, as in the paper.
        loss_weight (float): :math:`\lambda` >= 0. Defaults to 1.
        **kwargs: Arguments of :class:`kd_mm.models.algorithms.BaseCohort`.

    Raises:
        ValueError: If there are fewer than two students or a value is out of range.
    """

    def __init__(
        self,
        students: Mapping[str, dict],
        temperature: float = 1.0,
        loss_weight: float = 1.0,
        **kwargs,
    ) -> None:
        check_temperature(temperature)
        check_weight('loss_weight', loss_weight)
        check_students(students)
        if len(students) < 2:
            raise ValueError(
                'mutual learning needs at least two students, but got '
                f'{", ".join(students) or "none"}; add one to model.students'
            )
        super().__init__(students, **kwargs)
        self.temperature = temperature
        self.loss_weight = loss_weight

    def distillation_losses(
        self,
        logits: dict[str, Tensor],
        maps: dict[str, tuple[Tensor, ...]],
        data_samples: list[DataSample],
    ) -> dict[str, Tensor]:
        """Return ``<name>/loss_dml`` of each student; see the base class."""
        divergences = mutual_kl(list(logits.values()), self.temperature)
        return {
            f'{name}/loss_dml': self.loss_weight * value.mean()
            for name, value in zip(logits, divergences, strict=True)
        }
