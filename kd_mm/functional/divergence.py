"""The temperature-softened Kullback-Leibler divergence that every method here distils with."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from .ranges import is_number


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision to float32 and leave float32 and float64 as they are.

    Args:
        x: Any floating-point tensor.

    Returns:
        ``x`` itself, or a float32 copy where its type is narrower.

    Examples:
        >>> import torch
        >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x if x.dtype == torch.float64 else x.float()


def full_precision(device_type: str) -> AbstractContextManager:
    """Switch autocast off for a block, at no cost where it is off already.

    Args:
        device_type: Type of the tensors' device: ``'cpu'``, ``'cuda'``, ...

    Returns:
        A context manager.

    Examples:
        >>> import torch
        >>> x = torch.ones(1, 1)
        >>> with torch.autocast('cpu'), full_precision('cpu'):
        ...     (x @ x).dtype
        torch.float32
    """
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless ``temperature`` is positive and finite.

    Args:
        temperature: The divisor of the logits.

    Examples:
        >>> check_temperature(4.0)
        >>> check_temperature(0)
        Traceback (most recent call last):
        ValueError: temperature must be positive and finite, but got 0; 1 leaves logits as they \
are, larger values soften them (BAKE: 4, KDCL and FFSD: 2)
    """
    if not (is_number(temperature) and 0 < temperature < float('inf')):
        raise ValueError(
            f'temperature must be positive and finite, but got {temperature!r}; 1 leaves logits '
            'as they are, larger values soften them (BAKE: 4, KDCL and FFSD: 2)'
        )


def soft_target_kl(logits: Tensor, target_probs: Tensor, temperature: float) -> Tensor:
    r"""Temperature-softened divergence of a student from a soft target, one value per sample.

    .. math:: T^2 \sum_k q_k \, (\log q_k - \log \mathrm{softmax}(z / T)_k)

    The factor :math:`T^2` keeps the size of the gradient with respect to the logits when T
    changes. Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015),
    section 2; the distillation term of BAKE, KDCL, DML and FFSD alike.

    Args:
        logits: Logits ``z`` of the student, (N, K). Carry gradient.
        target_probs: Target distributions ``q``, (N, K), rows sum to 1, already at temperature
            T. Detached here. Zeros are allowed.
        temperature: T > 0.

    Returns:
        (N,) divergences, each >= 0, in float32 at least.

    Raises:
        ValueError: If the shapes differ or ``temperature`` is not positive.

    Examples:
        >>> import torch
        >>> target = torch.tensor([[0.5, 0.5]])
        >>> soft_target_kl(torch.tensor([[0.0, 2.0]]), target, temperature=2.0)
        tensor([0.4805])
    """
    check_temperature(temperature)
    if logits.shape != target_probs.shape:
        raise ValueError(
            'logits and target_probs must have one shape (N, K), but got '
            f'{tuple(logits.shape)} and {tuple(target_probs.shape)}'
        )
    log_probs = F.log_softmax(at_least_float32(logits) / temperature, dim=-1)
    target_probs = at_least_float32(target_probs.detach())
    # As F.kl_div, in fewer operations; 0 log 0 = 0.
    terms = torch.xlogy(target_probs, target_probs).sub_(target_probs * log_probs)
    return temperature**2 * terms.sum(dim=-1)
