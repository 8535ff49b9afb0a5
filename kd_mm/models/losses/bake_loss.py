"""The distillation term of BAKE as a module."""

from torch import Tensor, nn

from kd_mm.functional.batch_ensemble import check_omega, propagate
from kd_mm.functional.divergence import check_temperature, mean_kl, soft_log_probs
from kd_mm.functional.ranges import check_weight
from kd_mm.registry import MODELS

from .global_batch import GlobalBatch


@MODELS.register_module()
class BAKELoss(nn.Module):
    r"""Divergence of each image's prediction from the ensembled knowledge of its batch.

    .. math:: \lambda \, \frac{1}{n} \sum_i \tau^2 \,
        \mathrm{KL}(Q_i \,\|\, \mathrm{softmax}(z_i / \tau))

    Source: BAKE (arXiv:2104.13298), section 3, the training objective. The released code's batch
    mean is over all images, anchors and partners alike, as here. Q is detached.

    Args:
        omega: Propagation weight in [0, 1). Defaults to 0.5.
        temperature: :math:`\tau` > 0. Defaults to 4.
        loss_weight: :math:`\lambda` >= 0. Defaults to 1.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> import torch
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> logits = torch.tensor([[0.0, 0.0], [0.0, 4.0]])
        >>> loss = BAKELoss()
        >>> log_probs = loss.log_probs(logits)
        >>> loss(log_probs, GlobalBatch(features, log_probs.exp(), None, None, None))
        tensor(0.2098)
    """

    def __init__(
        self, omega: float = 0.5, temperature: float = 4.0, loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_omega(omega)
        check_temperature(temperature)
        check_weight('loss_weight', loss_weight)
        self.omega = omega
        self.temperature = temperature
        self.loss_weight = loss_weight

    def log_probs(self, logits: Tensor) -> Tensor:
        """Return softened log-probabilities (n, K) of logits (n, K), in float32 at least."""
        return soft_log_probs(logits, self.temperature)

    def forward(self, log_probs: Tensor, batch: GlobalBatch) -> Tensor:
        """Return the weighted mean over this rank's images.

        Args:
            log_probs: Of this rank's logits, (n, K), see :meth:`log_probs`. Carry gradient.
            batch: The batch whose knowledge is ensembled, with the softened predictions of all
                its images; ``batch.rows`` are this rank's.

        Returns:
            A scalar >= 0 in float32 at least.
        """
        target_probs = propagate(
            batch.features, batch.probs, self.omega, rows=batch.rows, valid=batch.valid
        )
        return mean_kl(log_probs, target_probs, self.loss_weight * self.temperature**2)

    def extra_repr(self) -> str:
        """Show the three settings when the module is printed."""
        return (
            f'omega={self.omega}, temperature={self.temperature}, loss_weight={self.loss_weight}'
        )
