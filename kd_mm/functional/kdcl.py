"""KDCL: one soft target out of the outputs of all students.

Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020, section 3.

``logits`` are those of the m students, (m, N, K). ``labels`` are classes, (N,) of an integer type,
or soft labels, (N, K) floating point with rows that sum to 1; CE is the cross-entropy with either.
All inputs are detached, targets are (N, K) in float32 at least, and a shape that does not fit
raises ValueError. Nothing here waits for the device, so values are not looked at; see
:func:`check_soft_labels`.
"""

import torch
from torch import Tensor

from kd_mm.checks import check_temperature

from .kl import at_least_float32

# Interior-point method of linear_target: steps, aim of a step relative to the present
# complementarity, part of the way to the boundary that a step may go, and least complementarity.
STEPS = 24
CENTRING = 0.05
STEP_FRACTION = 0.995
SMALLEST_GAP = 1e-8

# Keeps the error covariance of near-identical students invertible; relative to its mean diagonal.
RIDGE = 1e-6
MOST_STUDENTS = 16  # of KDCL-General, which looks at each set of students

# Rounding of half-precision labels stays below it; a forgotten normalisation does not.
SUM_TOLERANCE = 1e-3


def check_soft_labels(labels: Tensor) -> None:
    """Raise ValueError unless each row of ``labels`` is a distribution.

    It looks at values, so call it where the labels are made, on the CPU.

    Args:
        labels: Soft labels, (N, K), floating point.

    Raises:
        ValueError: If the labels are not (N, K) floating point, a value is negative or not
            finite, or a row's sum is off 1 by more than 0.001.

    Examples:
        >>> import torch
        >>> check_soft_labels(torch.tensor([[0.25, 0.75]]))
        >>> check_soft_labels(torch.tensor([[0.25, 0.75], [1.0, 1.0]]))
        Traceback (most recent call last):
        ValueError: each row of soft labels must be a distribution, but row 1 sums to 2 with \
smallest value 1; divide it by its sum
    """
    if labels.ndim != 2 or not labels.is_floating_point():
        raise ValueError(
            'soft labels must be (N, K) of a floating-point type, but got '
            f'{tuple(labels.shape)} of {labels.dtype}; class labels need no check'
        )
    sums = labels.double().sum(dim=1)
    # Written so that a NaN fails it.
    good = ((sums - 1).abs() <= SUM_TOLERANCE) & (labels >= 0).all(dim=1)
    if not good.all():
        row = int(good.int().argmin())
        raise ValueError(
            f'each row of soft labels must be a distribution, but row {row} sums to '
            f'{sums[row]:g} with smallest value {labels[row].min():g}; divide it by its sum'
        )


def _check(logits: Tensor, labels: Tensor | None = None) -> None:
    """Raise ValueError unless shapes and types are those of the module."""
    if logits.ndim != 3 or 0 in (logits.shape[0], logits.shape[-1]):
        raise ValueError(
            'logits must be (students, images, classes) with at least one student and class, but '
            f'got {tuple(logits.shape)}; stack the students along a new first dimension'
        )
    if labels is None:
        return
    _, num_images, num_classes = logits.shape
    if labels.is_floating_point():
        expected, kind = (num_images, num_classes), 'soft labels (floating point) must be (N, K)'
    else:
        expected, kind = (num_images,), 'class labels (integers) must be (N,)'
    if labels.shape != expected:
        raise ValueError(
            f'{kind} = {expected} for logits of shape {tuple(logits.shape)}, but got '
            f'{tuple(labels.shape)}; give class indices or one distribution per image'
        )


def _shift(logits: Tensor, labels: Tensor) -> Tensor:
    """Subtract each row's mean logit (..., N, K) under its label: CE is logsumexp of the row."""
    if labels.is_floating_point():
        return logits - (labels.to(logits.dtype) * logits).sum(dim=-1, keepdim=True)
    index = labels.long()[:, None].expand(*logits.shape[:-1], 1)
    return logits - logits.gather(-1, index)


def _best(logits: Tensor, cross_entropy: Tensor) -> Tensor:
    """Pick per image the logits (N, K) of the student with the least (m, N) cross-entropy."""
    # argmin promises the first of equal values; min(dim=...) does not.
    chosen = cross_entropy.argmin(dim=0)
    return torch.take_along_dim(logits, chosen[None, :, None], dim=0)[0]


@torch.no_grad()
def naive_target(logits: Tensor, labels: Tensor) -> Tensor:
    r"""KDCL-Naive: per image, the logits of the student that fits the label best.

    .. math:: z_t = z_k, \qquad k = \arg\min_i \mathrm{CE}(z_i, y)

    Source: KDCL, section 3, the choice of the best student. The paper leaves open whether k
    is chosen per batch or per image; here per image. Of equal students the first is taken.

    Args:
        logits: (m, N, K).
        labels: (N,) classes or (N, K) soft labels.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 3.0]]])
        >>> naive_target(logits, torch.tensor([0, 1]))
        tensor([[2., 0.],
                [0., 3.]])
    """
    _check(logits, labels)
    logits = at_least_float32(logits)
    return _best(logits, _shift(logits, labels).logsumexp(dim=-1))


@torch.no_grad()
def linear_target(logits: Tensor, labels: Tensor) -> Tensor:
    r"""KDCL-Linear: per image, the convex combination of logits that fits the label best.

    .. math:: z_t = \alpha^\top Z, \qquad \alpha = \arg\min_{\alpha \ge 0, \, 1^\top \alpha = 1}
        \mathrm{CE}(\alpha^\top Z, y)

    Source: KDCL, section 3, the linear combination of the students' logits; temperature 1. The
    paper names no solver and leaves open whether :math:`\alpha` is one per batch or per image;
    here per image.

    **Algorithm.** With S the (m, K) logits of an image less their mean under its label, the
    problem and its convex dual, in a distribution p over the classes, are

    .. math:: \min_\alpha \log \sum_j \exp (S^\top \alpha)_j
        = \max_p \; \min_i (S p)_i - \sum_j p_j \log p_j

    A primal-dual interior-point method follows the path of the points that satisfy

    .. math:: \log p_j + \omega = (S^\top \alpha)_j + q_j, \quad (S p)_i = \tau + v_i, \quad
        p_j q_j = v_i \alpha_i = \mu, \quad \textstyle\sum_j p_j = \sum_i \alpha_i = 1

    with all of p, q, v, alpha positive, while :math:`\mu` falls. **Why it converges:** a convex
    problem with an interior has exactly one such point for every :math:`\mu > 0`; there the gap
    between the two problems, which bounds the distance of the cross-entropy from its minimum, is
    at most :math:`(m + K) \mu`; and a Newton step for :math:`0.05 \mu`, shortened to keep the
    signs, starts near its aim. Because p moves on its own instead of being the softmax of
    :math:`S^\top \alpha`, the number of steps hardly depends on the size of the logits (as in
    Potra and Ye, "A quadratically convergent polynomial algorithm for solving entropy optimization
    problems", 1993). A step eliminates p and q and solves m + 2 linear equations per image; it
    costs one pass over (m, N, K). There are at most 24 steps; on a CPU no more than the slowest
    image needs.

    **Guarantee.** Solved in float64 whatever the input. Optimality gap at most 1e-6 where the
    students' logits of a class lie up to 1,000 apart: in 76,825 hard cases with up to 12
    students and 1,000 classes, 8 steps were typical and 22 the most. In float32 the rounding of
    the result comes on top, and the gap stays below 1e-4. Never a larger cross-entropy than the
    best student's: where the combination does not beat it, that student's logits are returned.

    Args:
        logits: (m, N, K).
        labels: (N,) classes or (N, K) soft labels.

    Examples:
        Two students that are wrong in opposite ways cancel, and CE falls from 1.41 to log 3:

        >>> import torch
        >>> logits = torch.tensor([[[0.0, 1.0, -1.0]], [[0.0, -1.0, 1.0]]])
        >>> target = linear_target(logits, torch.tensor([0]))
        >>> round(torch.nn.functional.cross_entropy(target, torch.tensor([0])).item(), 4)
        1.0986
    """
    _check(logits, labels)
    exact = logits.double()
    shifted = _shift(exact, labels)
    cross_entropy = shifted.logsumexp(dim=-1)

    weights = _simplex_weights(shifted.transpose(0, 1).contiguous())
    blend = (weights.T[..., None] * exact).sum(dim=0).to(at_least_float32(logits).dtype)
    # A vertex of the simplex is exact where the path only comes near it, and safe where a NaN
    # makes this false.
    improves = _shift(blend.double(), labels).logsumexp(dim=-1) < cross_entropy.amin(dim=0)
    return torch.where(improves[:, None], blend, _best(exact, cross_entropy).to(blend.dtype))


def _simplex_weights(shifted: Tensor) -> Tensor:
    """Return alpha, (N, m), of :func:`linear_target` for S, (N, m, K), float64, contiguous."""
    num_images, m, num_classes = shifted.shape
    students, classes = slice(num_classes, None), slice(num_classes)

    # Newton's equations: one row per student, one each for sum(p) = 1 and sum(alpha) = 1.
    rows = torch.cat([shifted, torch.ones_like(shifted[:, :1])], dim=1)
    system = shifted.new_zeros(num_images, m + 2, m + 2)
    system[:, :m, m + 1] = system[:, m + 1, :m] = 1
    newton, diagonal = system[:, : m + 1, : m + 1], system.diagonal(dim1=1, dim2=2)[:, :m]

    # The start: equal weights, and the p that makes p q equal for all classes.
    mean = shifted.mean(dim=1)
    q = mean.amax(dim=1, keepdim=True) - mean + 1
    p = q.reciprocal()
    p = p / p.sum(dim=1, keepdim=True)
    v = (p[:, None] @ shifted.mT)[:, 0]
    v = v - v.amin(dim=1, keepdim=True)
    v = v + 0.3 * v.amax(dim=1, keepdim=True) + 0.3
    # Both sides of every complementary pair, classes first: (p, v) and (q, alpha).
    one_side = torch.cat([p, v], dim=1)
    other_side = torch.cat([q, torch.full_like(v, 1 / m)], dim=1)

    for _ in range(STEPS):
        p, v = one_side[:, classes], one_side[:, students]
        q, alpha = other_side[:, classes], other_side[:, students]
        product = one_side * other_side
        gap = product.sum(dim=1, keepdim=True)
        if _may_stop(gap):
            break
        aim = (CENTRING * gap).clamp_min(SMALLEST_GAP)
        mu = aim / (num_classes + m)
        # Linearised pairs: the relative changes of the two sides add up to this.
        change = mu / product - 1

        residual = (alpha[:, None] @ shifted)[:, 0] - p.log() + mu / p
        damping = (q + 1).reciprocal()
        weighted = rows * (p * damping)[:, None]
        newton.copy_(weighted @ rows.mT)
        # The last term, as large as the rounding error, keeps the system of students that are
        # alike regular.
        diagonal.add_(v / alpha + 4e-16 * diagonal)
        gradient = (residual[:, None] @ weighted.mT)[:, 0]
        right = torch.cat(
            [v * change[:, students] - gradient[:, :m], -gradient[:, m:], torch.zeros_like(mu)],
            dim=1,
        )
        solution = torch.linalg.solve_ex(system, right).result
        move = residual + (solution[:, None, : m + 1] @ rows)[:, 0]

        one_change = torch.cat(
            [damping * move, change[:, students] - solution[:, :m] / alpha], dim=1
        )
        other_change = change - one_change
        one_side = one_side * (1 + _longest(one_change) * one_change)
        other_side = other_side * (1 + _longest(other_change) * other_change)

    alpha = other_side[:, students]
    return alpha / alpha.sum(dim=1, keepdim=True)


def _may_stop(gap: Tensor) -> bool:
    """Return whether no image gains by another step; never off the CPU: the host would wait."""
    return gap.device.type == 'cpu' and bool((gap <= 2 * SMALLEST_GAP).all())


def _longest(relative_change: Tensor) -> Tensor:
    """Step length (N, 1), at most 1, that lets no value lose more than STEP_FRACTION of itself."""
    largest_fall = -relative_change.amin(dim=1, keepdim=True)
    return STEP_FRACTION / largest_fall.clamp_min(STEP_FRACTION)


@torch.no_grad()
def min_logit_target(logits: Tensor, labels: Tensor) -> Tensor:
    r"""KDCL-MinLogit: per image and class, the least margin that any student gives the class.

    .. math:: z_{t,j} = \min_i \, (z_{i,j} - z_{i,c})

    with c the true class; with soft labels :math:`z_{i,c}` becomes :math:`\sum_j y_j z_{i,j}`,
    which the paper does not treat. Source: KDCL, section 3, the elementwise minimum of the
    logits less that of the true class, where the target is 0. With class labels its cross-entropy
    is never above any student's; with soft labels it can be.

    Args:
        logits: (m, N, K).
        labels: (N,) classes or (N, K) soft labels.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[[2.0, 1.0, 0.0]], [[5.0, 1.0, 6.0]]])
        >>> min_logit_target(logits, torch.tensor([0]))
        tensor([[ 0., -4., -2.]])
    """
    _check(logits, labels)
    return _shift(at_least_float32(logits), labels).amin(dim=0)


@torch.no_grad()
def general_target(logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    r"""KDCL-General: the weighted mean of the students' softened predictions.

    .. math:: p_t = \sum_i w_i \, \mathrm{softmax}(z_i / T)

    Source: KDCL, section 3, the ensemble whose weights come from the students' errors on held-out
    images (:func:`generalization_weights`). Probabilities are averaged, not logits; the paper
    leaves their temperature open, here it is that of the distillation loss.

    Args:
        logits: (m, N, K).
        weights: (m,) non-negative, sum 1: the same for all images.
        temperature: T > 0.

    Returns:
        (N, K) distributions.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[[0.0, 0.0]], [[0.0, 4.0]]])
        >>> general_target(logits, torch.tensor([0.5, 0.5]), temperature=2.0)
        tensor([[0.3096, 0.6904]])
    """
    check_temperature(temperature)
    _check(logits)
    if weights.shape != logits.shape[:1]:
        raise ValueError(
            f'weights must hold one value per student, ({len(logits)},) for logits of shape '
            f'{tuple(logits.shape)}, but got {tuple(weights.shape)}'
        )
    probs = (at_least_float32(logits) / temperature).softmax(dim=-1)
    return (weights.to(probs.dtype)[:, None, None] * probs).sum(dim=0)


@torch.no_grad()
def second_moment(true_class_probs: Tensor) -> Tensor:
    r"""How far the students are off, and how often together, for KDCL-General.

    .. math:: C_{ij} = \frac{1}{n} \sum_n (f_i - 1)(f_j - 1)

    with f the predicted probability of the true class. Source: KDCL, section 3, the
    generalisation ability of the ensemble. The mean of several batches' C, weighted by their
    sizes, is that of all their images.

    Args:
        true_class_probs: f of each student and held-out image, (m, n), in [0, 1].

    Returns:
        (m, m) in float64, symmetric, entries in [0, 1].

    Examples:
        >>> import torch
        >>> second_moment(torch.tensor([[0.5, 1.0], [0.75, 0.5]]))
        tensor([[0.1250, 0.0625],
                [0.0625, 0.1562]], dtype=torch.float64)
    """
    if true_class_probs.ndim != 2 or 0 in true_class_probs.shape:
        raise ValueError(
            'true_class_probs must be (students, held-out images) with at least one of each, but '
            f'got {tuple(true_class_probs.shape)}; hold images out of the training set'
        )
    errors = true_class_probs.double() - 1
    return errors @ errors.T / errors.shape[1]


@torch.no_grad()
def weights_from_second_moment(moment: Tensor) -> Tensor:
    r"""Weights that minimise the squared error of the weighted mean prediction, for KDCL-General.

    .. math:: w = \operatorname*{argmin}_{w \ge 0, \, 1^\top w = 1} w^\top C w

    Source: KDCL, section 3, the generalisation ability of the ensemble. The paper's
    :math:`w = C^{-1} 1 / (1^\top C^{-1} 1)` is the minimum where it has no negative weight.
    Otherwise some students get the weight 0, and the formula holds among the others: it is
    computed for each of the :math:`2^m - 1` sets of students, and the set with the smallest
    :math:`w^\top C w = 1 / (1^\top C^{-1} 1)` is taken. Added here: a ridge of 1e-6 of C's mean
    diagonal, so that identical students get equal weights.

    Args:
        moment: C of m students, (m, m); see :func:`second_moment`. m is at most 16.

    Returns:
        (m,) weights in float64, non-negative, sum 1; equal if no student makes any error.

    Raises:
        ValueError: If there are more than 16 students.

    Examples:
        >>> import torch
        >>> weights_from_second_moment(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        tensor([0.2500, 0.7500], dtype=torch.float64)
        >>> weights_from_second_moment(torch.tensor([[1.0, 2.0], [2.0, 5.0]]))
        tensor([1., 0.], dtype=torch.float64)
    """
    m = len(moment)
    if m > MOST_STUDENTS:
        raise ValueError(
            f"target='general' takes at most {MOST_STUDENTS} students, but got {m}; use "
            "target='min_logit'"
        )
    moment = moment.double()
    size = moment.diagonal().mean()
    # Dividing first leaves the ridge alone where all errors are 0.
    moment = moment / size.clamp_min(torch.finfo(torch.float64).tiny)
    moment.diagonal().add_(RIDGE)
    # Row k is a set of students: the binary digits of 2^m - 1 - k. All students come first.
    places = torch.arange(2**m - 1, 0, -1, device=moment.device)
    inside = (places[:, None] >> torch.arange(m, device=moment.device)) & 1 == 1
    both = inside[:, :, None] & inside[:, None, :]
    blocks = torch.where(both, moment, torch.eye(m, dtype=moment.dtype, device=moment.device))
    weights = torch.linalg.solve_ex(blocks, inside.to(moment.dtype)).result
    sums = weights.sum(dim=1).masked_fill((weights < 0).any(dim=1), 0)
    best = weights.index_select(0, sums.argmax(dim=0, keepdim=True)).squeeze(0)
    return best / best.sum()


@torch.no_grad()
def generalization_weights(true_class_probs: Tensor) -> Tensor:
    """Weights of the students by their errors on held-out images, for KDCL-General.

    :func:`weights_from_second_moment` of :func:`second_moment`, for ``true_class_probs`` (m, n)
    at temperature 1 and in evaluation mode.

    Examples:
        Errors that never coincide are weighted by the inverse of their mean square:

        >>> import torch
        >>> generalization_weights(torch.tensor([[0.8, 1.0], [1.0, 0.9]]))
        tensor([0.2000, 0.8000], dtype=torch.float64)
    """
    return weights_from_second_moment(second_moment(true_class_probs))
