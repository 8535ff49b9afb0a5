"""The temperature-softened Kullback-Leibler divergence that every method here distils with."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from kd_mm.checks import check_temperature


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision to float32; float32 and float64 are returned as they are.

    Examples:
        >>> import torch
        >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def full_precision(device_type: str) -> AbstractContextManager:
    """Switch autocast off for a block, at no cost where it is off already.

    Args:
        device_type: Type of the tensors' device: ``'cpu'``, ``'cuda'``, ...

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


def soft_log_probs(logits: Tensor, temperature: float) -> Tensor:
    r"""Log-probabilities of softened predictions: :math:`\log \mathrm{softmax}(z / T)`.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), section 2.

    Args:
        logits: Logits ``z``, (..., K). Carry gradient.
        temperature: T > 0.

    Returns:
        (..., K), in float32 at least.

    Raises:
        ValueError: If ``temperature`` is not positive.

    Examples:
        >>> import torch
        >>> soft_log_probs(torch.tensor([[0.0, 2.0]]), temperature=2.0).exp()
        tensor([[0.2689, 0.7311]])
    """
    check_temperature(temperature)
    return torch.log_softmax(at_least_float32(logits) / temperature, dim=-1)


def soft_target_kl(logits: Tensor, target_probs: Tensor, temperature: float) -> Tensor:
    r"""Temperature-softened divergence of a student from a soft target, one value per sample.

    .. math:: T^2 \sum_k q_k \, (\log q_k - \log \mathrm{softmax}(z / T)_k)

    The factor :math:`T^2` keeps the size of the gradient with respect to the logits when T
    changes. Source: Hinton et al. (2015), section 2; the distillation term of BAKE, KDCL, DML and
    FFSD alike.

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
    terms = _negative_kl_terms(soft_log_probs(logits, temperature), target_probs)
    return -(temperature**2) * terms.sum(dim=-1)


def mean_kl(log_probs: Tensor, target_probs: Tensor, weight: float) -> Tensor:
    r"""Weighted mean over samples of the divergence from a target, in few operations.

    .. math:: \frac{w}{N} \sum_n \sum_k q_{nk} \, (\log q_{nk} - \log p_{nk})

    With the log-probabilities of :func:`soft_log_probs` and :math:`w = T^2`, the mean of
    :func:`soft_target_kl`.

    Args:
        log_probs: :math:`\log p`, (N, K). Carry gradient.
        target_probs: Target distributions ``q``, (N, K). Detached here. Zeros are allowed.
        weight: ``w``.

    Returns:
        A scalar, >= 0 for w >= 0, in float32 at least.

    Raises:
        ValueError: If the shapes differ.

    Examples:
        >>> import torch
        >>> log_probs = soft_log_probs(torch.tensor([[0.0, 2.0]]), temperature=2.0)
        >>> mean_kl(log_probs, torch.tensor([[0.5, 0.5]]), weight=4.0)
        tensor(0.4805)
    """
    return _negative_kl_terms(log_probs, target_probs).sum() * (-weight / len(log_probs))


def mean_logit_kl(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""Mean over samples of the divergence from a teacher's softened prediction.

    .. math:: \frac{T^2}{N} \sum_n
        \mathrm{KL}(\mathrm{softmax}(t_n / T) \,\|\, \mathrm{softmax}(z_n / T))

    Args:
        logits: z, (N, K). Carry gradient.
        teacher_logits: t, (N, K). Detached here.
        temperature: T > 0.

    Returns:
        A scalar >= 0, in float32 at least.

    Examples:
        >>> import torch
        >>> mean_logit_kl(torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2), temperature=2.0)
        tensor(0.4805)
    """
    target_probs = (at_least_float32(teacher_logits.detach()) / temperature).softmax(dim=-1)
    return mean_kl(soft_log_probs(logits, temperature), target_probs, temperature**2)


def _negative_kl_terms(log_probs: Tensor, target_probs: Tensor) -> Tensor:
    """Return q (log p - log q), with 0 log 0 = 0; as F.kl_div, in fewer operations."""
    if log_probs.shape != target_probs.shape:
        raise ValueError(
            'logits and target_probs must have one shape (N, K), but got '
            f'{tuple(log_probs.shape)} and {tuple(target_probs.shape)}'
        )
    target_probs = at_least_float32(target_probs.detach())
    return (target_probs * log_probs).sub_(torch.xlogy(target_probs, target_probs))
