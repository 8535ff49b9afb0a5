"""DML: each network learns from each other one's prediction.

Zhang et al., "Deep Mutual Learning", CVPR 2018, section 3.
"""

from collections.abc import Sequence

from torch import Tensor

from kd_mm.checks import check_temperature

from .kl import at_least_float32, soft_target_kl


def mutual_kl(logits: Sequence[Tensor], temperature: float) -> list[Tensor]:
    r"""Mean divergence of each student from all the others, one value per student and sample.

    .. math:: \frac{T^2}{m - 1} \sum_{j \ne i} \mathrm{KL}(p_j \,\|\, p_i), \qquad
        p_i = \mathrm{softmax}(z_i / T)

    Source: DML, sections 3.2 and 3.3 (T = 1 there); FFSD's common students with T = 2.

    Args:
        logits: Of m >= 2 students, each (N, K). Carry gradient as learner, detached as target.
        temperature: T > 0.

    Returns:
        m tensors (N,), each value >= 0, in float32 at least.

    Raises:
        ValueError: If there are fewer than two students or ``temperature`` is not positive.

    Examples:
        >>> import torch
        >>> logits = [torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 0.0]])]
        >>> [round(value.item(), 4) for value in mutual_kl(logits, temperature=2.0)]
        [0.4805, 0.4438]
    """
    check_temperature(temperature)
    if len(logits) < 2:
        raise ValueError(f'mutual learning needs at least two students, but got {len(logits)}')
    probs = [(at_least_float32(z.detach()) / temperature).softmax(dim=1) for z in logits]
    return [
        sum(soft_target_kl(z, p, temperature) for j, p in enumerate(probs) if j != i)
        / (len(logits) - 1)
        for i, z in enumerate(logits)
    ]
