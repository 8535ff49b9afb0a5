"""Deep mutual learning."""

from torch import Tensor

from kd_mm.checks import check_temperature
from kd_mm.functional.dml import mutual_kl
from kd_mm.registry import METHODS

from .base import Method, Step
from .schedules import schedule


@METHODS.register_module()
class DML(Method):
    r"""Each student learns from each other student's prediction.

    .. math:: L_i = L_i^{own} + \lambda \frac{T^2}{m - 1} \sum_{j \ne i}
        \mathrm{KL}(p_j \,\|\, p_i), \qquad p_i = \mathrm{softmax}(z_i / T)

    Source: Zhang et al., "Deep Mutual Learning", CVPR 2018, section 3.3. The paper updates the
    students in turn, each against the other's newest weights; here all learn from one forward
    pass, as in KDCL's and FFSD's comparisons. The other's prediction is detached.

    Args:
        temperature (float): T > 0. Defaults to 1, as in the paper.
        loss_weight (float | dict): :math:`\lambda` >= 0, or its schedule. Defaults to 1.

    Raises:
        ValueError: If there are fewer than two students or a value is out of range.
    """

    needs = frozenset({'peers'})

    def __init__(self, temperature: float = 1.0, loss_weight: float | dict = 1.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.loss_weight = schedule('loss_weight', loss_weight)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Return ``<name>/loss_dml`` of each student."""
        logits, weight = step.logits(), self.loss_weight(step.clock)
        divergences = mutual_kl(list(logits.values()), self.temperature)
        return {
            f'{name}/loss_dml': weight * value.mean()
            for name, value in zip(logits, divergences, strict=True)
        }
