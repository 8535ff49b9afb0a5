"""BAKE: the knowledge of a batch, propagated between its images.

Ge et al., "Self-distillation with Batch Knowledge Ensembling Improves ImageNet Classification",
arXiv:2104.13298, section 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_mm.checks import check_temperature, is_number

from .kl import at_least_float32, full_precision

_EPS = 1e-12  # smallest norm, as in F.normalize
_LARGE = 256  # images from which on the systems are solved from the right


def check_omega(omega: float) -> None:
    """Raise ValueError unless ``omega`` lies in [0, 1).

    Examples:
        >>> check_omega(0.5)
        >>> check_omega(1.0)
        Traceback (most recent call last):
        ValueError: omega must lie in [0, 1), but got 1.0; at 1 the propagation has no limit \
(BAKE: 0.5 on ImageNet and CIFAR-100)
    """
    if not (is_number(omega) and 0 <= omega < 1):
        raise ValueError(
            f'omega must lie in [0, 1), but got {omega!r}; at 1 the propagation has no limit '
            '(BAKE: 0.5 on ImageNet and CIFAR-100)'
        )


def _kernel(features: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return exp(cosine) with an empty diagonal, (N, N), symmetric, and its row sums, (N,)."""
    # As F.normalize, which copies the norm to the features' shape.
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min_(_EPS)
    features = features / norm
    kernel = (features @ features.T).exp_()
    kernel.fill_diagonal_(0)
    if valid is not None:
        kernel *= valid[:, None] * valid
    degree = kernel.sum(dim=1)
    if valid is None and len(features) > 1:
        return kernel, degree
    # A row without any partner keeps its own knowledge, as a softmax over itself alone would.
    alone = (degree == 0).to(kernel.dtype)
    kernel.diagonal().add_(alone)
    return kernel, degree.add_(alone)


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    """Return (U^T U)^-1 B, (N, K), with the upper factor U and the right-hand sides B.

    Two triangular steps are faster than ``cholesky_solve``; from the right in large batches.
    """
    triangular = torch.linalg.solve_triangular
    if len(factor) <= _LARGE:
        return triangular(factor, triangular(factor.T, right, upper=False), upper=True)
    rows = triangular(factor, right.T, upper=True, left=False)
    return triangular(factor.T, rows, upper=False, left=False).T


@torch.no_grad()
def affinity(features: Tensor) -> Tensor:
    r"""How much each image listens to each other image of the batch.

    .. math:: A_{ij} = \frac{\exp(\hat f_i \cdot \hat f_j)}{\sum_{k \ne i}
        \exp(\hat f_i \cdot \hat f_k)} \quad (i \ne j), \qquad A_{ii} = 0

    with L2-normalised features. Source: BAKE, section 3, the affinity matrix A; no temperature,
    as in the released code, which masks the diagonal before the softmax.

    Args:
        features: Embeddings that enter the classifier, (N, D). Detached.

    Returns:
        (N, N) affinities in [0, 1], rows sum to 1, zero diagonal; float32 at least. The one row
        of a batch of one image is 1.

    Examples:
        >>> import torch
        >>> affinity(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        tensor([[0.0000, 0.7311, 0.2689],
                [0.7311, 0.0000, 0.2689],
                [0.5000, 0.5000, 0.0000]])
    """
    with full_precision(features.device.type):
        kernel, degree = _kernel(at_least_float32(features), None)
        return kernel / degree[:, None]


@torch.no_grad()
def ensemble_knowledge(
    features: Tensor,
    logits: Tensor,
    temperature: float,
    omega: float,
    rows: slice | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    r"""The soft target of each image: its own prediction mixed with those of similar images.

    .. math:: Q = (1 - \omega) (I - \omega A)^{-1} P, \qquad P = \mathrm{softmax}(z / \tau)

    the limit of :math:`Q \leftarrow \omega A Q + (1 - \omega) P`. Source: BAKE, section 3,
    the propagation to infinity. The released code inverts the matrix. Here :math:`A = D^{-1} S`
    with the symmetric :math:`S_{ij} = \exp(\hat f_i \cdot \hat f_j)`, so that :math:`Q =
    (1 - \omega) (D - \omega S)^{-1} D P`, and :math:`D - \omega S` is symmetric and strictly
    diagonally dominant, hence positive definite: one Cholesky factor and triangular solves, for
    the n wanted rows alone: :math:`N^3 / 3 + 2 N^2 \min(n, K) + 2 n N K` operations.

    Args:
        features: Embeddings that enter the classifier, (N, D). Detached.
        logits: Logits ``z`` of the same images, (N, K). Detached.
        temperature: :math:`\tau` > 0.
        omega: Propagation weight in [0, 1). 0 gives P.
        rows: The images whose targets are wanted, n of N. None means all.
        valid: (N,) ones for images and zeros for padding, which neither gives nor takes
            knowledge. None means no padding.

    Returns:
        (n, K) distributions: rows are non-negative and sum to 1. Float32 at least under any
        autocast; float64 if an input is.

    Raises:
        ValueError: If ``temperature`` or ``omega`` is out of range or the batch sizes differ.

    Examples:
        >>> import torch
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> logits = torch.tensor([[0.0, 0.0], [0.0, 4.0]])
        >>> ensemble_knowledge(features, logits, temperature=4.0, omega=0.5)
        tensor([[0.4230, 0.5770],
                [0.3460, 0.6540]])
    """
    check_temperature(temperature)
    probs = F.softmax(at_least_float32(logits) / temperature, dim=1)
    return propagate(features, probs, omega, rows, valid)


def propagate(
    features: Tensor,
    probs: Tensor,
    omega: float,
    rows: slice | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Mix given predictions P, (N, K), detached: :func:`ensemble_knowledge` after its softmax.

    Examples:
        >>> import torch
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> propagate(features, torch.tensor([[0.5, 0.5], [0.25, 0.75]]), omega=0.5)
        tensor([[0.4167, 0.5833],
                [0.3333, 0.6667]])
    """
    check_omega(omega)
    if len(features) != len(probs):
        raise ValueError(
            'features and predictions must hold the same N images, but got '
            f'{len(features)} and {len(probs)} rows'
        )
    probs = at_least_float32(probs.detach())
    with full_precision(features.device.type):
        kernel, degree = _kernel(features.detach().to(probs.dtype), valid)
        # (1 - omega) (D - omega S)^-1 = (c D - c omega S)^-1 with c = 1 / (1 - omega)
        knowledge = probs * degree[:, None]
        system = kernel.mul_(omega / (omega - 1))
        system.diagonal().add_(degree, alpha=1 / (1 - omega))
        # cholesky_ex: the plain call waits for the device to report that the factor exists.
        factor = torch.linalg.cholesky_ex(system, upper=True).L
        num_images, num_classes = probs.shape
        num_rows = num_images if rows is None else len(range(*rows.indices(num_images)))
        if num_rows < num_classes:
            wanted = torch.eye(num_images, dtype=factor.dtype, device=factor.device)
            if rows is not None:
                wanted = wanted[:, rows]
            return _solve(factor, wanted).T @ knowledge
        target = _solve(factor, knowledge)
        return target if rows is None else target[rows]
