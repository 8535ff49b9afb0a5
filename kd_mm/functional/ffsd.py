r"""FFSD: attention maps, how far apart they lie, and how they are made to differ.

Li et al., "Distilling a Powerful Student Model via Online Knowledge Distillation",
arXiv:2103.14473, section III: the transfer of fused and of own features, and the diversity of the
common students. As in the released code, which adds the scale of the diverse map.

The terms of the loss, by their names in the log, with maps :math:`F^1, \ldots, F^s` of a network,
shallow to deep, logits z, and R its self-distillation neck:

- common student i: :math:`\frac{T^2}{k - 1} \sum_{j \ne i} KL(p_j \| p_i)` as ``loss_mutual``; all
  but the first :math:`\lambda_{div} D(att(F_i^s), att(F_{i-1}^s))` as ``loss_diversity`` and
  :math:`\lambda_{div} G(R_i, F_i, F_{i-1}^*)` as ``loss_self_distillation``;
- fusion of the deepest maps, with classifier f: cross-entropy as ``fusion/loss`` and
  :math:`T^2 KL(softmax(\bar z / T) \| f)` as ``fusion/loss_ensemble``;
- leader: :math:`T^2 KL(f \| z)` as ``loss_kd``, :math:`\lambda_{fus} d` from the fused map as
  ``loss_fusion``, of its decoded map from the concatenated ones as ``loss_decoder``, and
  :math:`\lambda_{fus} G(R, F, fused)` as ``loss_self_distillation``;
- each neck R: :math:`\lambda_{sd} \sum_{i<s} d(R^i, F^i)` as ``loss_neck_feature`` and
  :math:`\lambda_{sd} \sum_{i<s} d(att(R^i), att(F^i))` as ``loss_neck_attention``.

:math:`G(R, F, X) = \sum_{i<s} d(att(F^i), att(R^i(X)))` with R in evaluation mode. What is a
target in a term, the input of the fusion and that of R are detached, so that the sum of all terms
gives each parameter the gradient that it gets in the released code's separate backward passes.

Values are scalars >= 0, in float32 at least. Shapes that do not fit raise ValueError.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .kl import at_least_float32

_EPS = 1e-12  # smallest norm, as in F.normalize


def attention_map(feature_map: Tensor) -> Tensor:
    r"""Where a layer looks: the mean square of its channels at each place.

    .. math:: \mathrm{att}(F) = \frac{1}{C} \sum_c F_c^2

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017), section 3.1; FFSD
    takes it with a mean in place of the sum.

    Args:
        feature_map: F, (B, C, H, W). Carries gradient.

    Returns:
        (B, 1, H, W), >= 0, in float32 at least.

    Examples:
        >>> import torch
        >>> attention_map(torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1))
        tensor([[[[5.]]]])
    """
    if feature_map.ndim != 4:
        raise ValueError(
            f'a feature map must be (B, C, H, W), but got shape {tuple(feature_map.shape)}'
        )
    return _MeanSquare.apply(at_least_float32(feature_map))


def joint_attention_map(attention: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
    r"""Attention of maps that lie one after the other along the channels, from that of each.

    .. math:: \mathrm{att}([F_1, F_2, \ldots]) = \sum_i \frac{C_i}{\sum_j C_j} \mathrm{att}(F_i)

    Args:
        attention: att(F_i), each (B, 1, H, W).
        widths: Channels :math:`C_i` of the maps.

    Returns:
        (B, 1, H, W).

    Examples:
        >>> import torch
        >>> one, two = torch.tensor([[3.0]]).reshape(1, 1, 1, 1), torch.ones(1, 3, 1, 1)
        >>> joint_attention_map([attention_map(one), attention_map(two)], widths=(1, 3))
        tensor([[[[3.]]]])
        >>> attention_map(torch.cat([one, two], dim=1))
        tensor([[[[3.]]]])
    """
    return sum(a * (width / sum(widths)) for a, width in zip(attention, widths, strict=True))


def attention_distance(x: Tensor, y: Tensor) -> Tensor:
    r"""Mean squared difference of two maps whose samples are L2-normalised.

    .. math:: d(x, y) = \frac{1}{B L} \sum_b \lVert n(x_b) - n(y_b) \rVert^2

    with L values per sample; at most 4 / L. Source: FFSD, the transfer distance between attention
    maps, and between feature maps in the training of a self-distillation neck.

    Args:
        x: Maps of the learner, (B, ...). Carry gradient.
        y: Maps of the target, of the same shape. Detached.

    Examples:
        >>> import torch
        >>> attention_distance(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(1.)
    """
    _check_shapes(x, y)
    return _UnitDistance.apply(at_least_float32(x), at_least_float32(y.detach()))


def guidance(attention: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> Tensor:
    r"""How far a network looks from what a neck makes of a map: G(R, F, X) of the module.

    .. math:: \sum_i d(\mathrm{att}(F^i), \mathrm{att}(R^i(X)))

    Source: FFSD, the guidance of the shallower stages.

    Args:
        attention: att(F^i) of the stages, each (B, 1, H, W). Carry gradient.
        rebuilt: The neck's maps of the same stages, each (B, C, H, W). Detached.

    Examples:
        >>> import torch
        >>> x, y = torch.tensor([[3.0, 0.0], [0.0, 2.0]]).reshape(2, 1, 1, 2, 1)
        >>> guidance([attention_map(x)], [y])
        tensor(1.)
    """
    pairs = zip(attention, rebuilt, strict=True)
    return sum(attention_distance(own, attention_map(target)) for own, target in pairs)


def rebuilding_distances(x: Tensor, y: Tensor, y_attention: Tensor) -> tuple[Tensor, Tensor]:
    r"""Distance of two maps, and that of where they look.

    .. math:: d(x, y), \quad d(\mathrm{att}(x), \mathrm{att}(y))

    as of :func:`attention_distance` and :func:`attention_map`, with one pass over the maps for
    both gradients. Source: FFSD, the training of a self-distillation neck.

    Args:
        x: Maps of the learner, (B, C, H, W). Carry gradient.
        y: Maps of the target, of the same shape. Detached.
        y_attention: Where the target looks, att(y), (B, 1, H, W). Detached.

    Examples:
        >>> import torch
        >>> x, y = torch.tensor([[3.0, 0.0], [0.0, 2.0]]).reshape(2, 1, 1, 2, 1)
        >>> rebuilding_distances(x, y, attention_map(y))
        (tensor(1.), tensor(1.))
    """
    _check_shapes(x, y)
    _check_shapes(x[:, :1], y_attention)
    maps = (at_least_float32(z) for z in (x, y.detach(), y_attention.detach()))
    return _RebuildingDistances.apply(*maps)


def diversity_distance(x: Tensor, y: Tensor) -> Tensor:
    r"""Distance of an attention map from what another student does *not* look at.

    .. math:: D(x, y) = \frac{1}{B L} \sum_b \lVert n(x_b) - y_b^* \rVert^2, \qquad
        y^* = (v / 2 - y') \, \mathrm{sign}(y' - \theta) + v / 2

    with :math:`v = \lVert y \rVert`, :math:`y' = n(y)` and :math:`\theta` the
    :math:`\lfloor L / 3 \rfloor`-th smallest of the L values of y'. So places above the threshold
    turn to :math:`v - y'`, those below stay. Source: FFSD, diversity enhancement; the scale v,
    which a normalised map does not have, is the released code's.

    Args:
        x: Attention map of the student that shall differ, (B, 1, H, W). Carries gradient.
        y: Attention map of the student before it, of the same shape. Detached. At least 3 places.

    Examples:
        >>> import torch
        >>> y = torch.tensor([[[[0.0, 3.0, 4.0]]]])
        >>> diversity_distance(torch.tensor([[[[1.0, 0.0, 0.0]]]]), y)
        tensor(13.0833)
    """
    if x.shape != y.shape:
        raise ValueError(
            'the deepest maps of two students must have one shape, but got '
            f'{tuple(x.shape)} and {tuple(y.shape)}'
        )
    x, y = at_least_float32(x).flatten(1), at_least_float32(y.detach()).flatten(1)
    return (F.normalize(x, dim=1) - _diverse(y)[1]).square().mean()


@torch.no_grad()
def diverse_feature_map(feature_map: Tensor, attention: Tensor | None = None) -> Tensor:
    r"""A feature map whose attention lies where that of the given one does not.

    .. math:: F^* = F + (a^* - a') \, v / C

    with :math:`a = \mathrm{att}(F)` and :math:`v, a', a^*` made from it as in
    :func:`diversity_distance`; the difference is added to each channel. Source: FFSD, diversity
    enhancement, in the released code's form.

    Args:
        feature_map: F, the deepest map of a student, (B, C, H, W). Detached. At least 3 places.
        attention: att(F), (B, 1, H, W), where it is known. Detached.

    Returns:
        (B, C, H, W), in float32 at least.

    Examples:
        >>> import torch
        >>> diverse_feature_map(torch.tensor([[[[0.0, 1.0, 2.0]]]]))
        tensor([[[[ 8.5000, 16.0000, 11.0000]]]])
    """
    if attention is None:
        attention = attention_map(feature_map)
    unit, diverse, norm = _diverse(attention.flatten(1))
    change = (diverse - unit) * norm / feature_map.shape[1]
    return at_least_float32(feature_map) + change.view_as(attention)


def _diverse(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return y' = n(y), y* and v = ||y|| of maps (B, L)."""
    num_values = y.shape[1]
    if num_values < 3:
        raise ValueError(
            'diversity takes a third of the places of a map, so that the deepest map must have at '
            f'least 3, but got {num_values}; use larger images or diversity=None'
        )
    norm = y.norm(dim=1, keepdim=True)
    unit = F.normalize(y, dim=1)
    # Not kthvalue, which some versions of torch refuse on GPUs under deterministic algorithms.
    threshold = unit.topk(num_values // 3, dim=1, largest=False).values[:, -1:]
    half = norm / 2
    return unit, (half - unit) * torch.sign(unit - threshold) + half, norm


def _check_shapes(x: Tensor, y: Tensor) -> None:
    """Raise ValueError unless two maps have one shape."""
    if x.shape != y.shape:
        raise ValueError(
            f'two maps must have one shape, but got {tuple(x.shape)} and {tuple(y.shape)}; the '
            'stages of a student must halve in size, from shallow to deep'
        )


# The same values and gradients as those of the plain formulas, in fewer passes over the maps.
# d(x, y) is (2 - 2 cos(x, y)) / L where neither is zero, without normalised copies.


class _MeanSquare(torch.autograd.Function):
    """``x.square().mean(dim=1, keepdim=True)``; its gradient passes over x once."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _mean_square(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * (grad * (2 / x.shape[1]))


class _UnitDistance(torch.autograd.Function):
    """``(n(x) - n(y)).square().mean()``."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, y: Tensor) -> Tensor:
        distance, *shares = _unit_distance(x, y, _square(x), _square(y))
        ctx.save_for_backward(x, y, *shares)
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        x, y, x_share, y_share = ctx.saved_tensors
        return (x * (grad * x_share)).addcmul_(y, grad * y_share), None


class _RebuildingDistances(torch.autograd.Function):
    """Both distances. The length of a map is known by its attention: |x|^2 = C sum(att(x))."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, y: Tensor, y_attention: Tensor) -> tuple:
        x_attention = _mean_square(x)
        sums = (a.sum(dim=(1, 2, 3), keepdim=True) for a in (x_attention, y_attention))
        feature, *shares = _unit_distance(x, y, *(x.shape[1] * total for total in sums))
        squares = _square(x_attention), _square(y_attention)
        attention, *attention_shares = _unit_distance(x_attention, y_attention, *squares)
        ctx.save_for_backward(x, y, *shares, x_attention, y_attention, *attention_shares)
        return feature, attention

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, feature: Tensor, attention: Tensor) -> tuple:
        x, y, x_share, y_share, x_attention, y_attention, own, other = ctx.saved_tensors
        # Not by addcmul, of which torch.compile makes slower code.
        through = x_attention * own + y_attention * other
        scale = feature * x_share + (2 * attention / x.shape[1]) * through
        # Laid out as x: a sum of maps in two layouts would take longer.
        gradient = torch.empty_like(x).copy_(y).mul_(feature * y_share)
        return gradient.addcmul_(x, scale), None, None


def _mean_square(x: Tensor) -> Tensor:
    """Return the mean square of channels, in one pass where they lie last."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.linalg.vector_norm(x, dim=1, keepdim=True).square_().div_(x.shape[1])
    return x.square().sum(dim=1, keepdim=True).div_(x.shape[1])


def _square(z: Tensor) -> Tensor:
    """Return the squared length of each sample, with as many dimensions as it has."""
    return torch.linalg.vector_norm(z, dim=tuple(range(1, z.ndim)), keepdim=True).square_()


def _unit_distance(
    x: Tensor, y: Tensor, x_square: Tensor, y_square: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return d(x, y) and the shares of x and of y in its gradient at x, given |x|^2 and |y|^2."""
    squares = torch.stack((x_square, y_square))
    inverses = squares.clamp_min(_EPS**2).reciprocal_()
    scale = inverses.sqrt().prod(dim=0)  # 1 / (|x| |y|)
    cosine = (x * y).sum(dim=tuple(range(1, x.ndim)), keepdim=True).mul_(scale)
    # The length of n(z) is 1, and 0 if z = 0.
    lengths = (squares * inverses).sum(dim=0)
    distance = torch.sub(lengths, cosine, alpha=2).sum() / x.numel()
    weight = 2 / x.numel()
    return distance, (cosine * inverses[0]).mul_(weight), scale.mul_(-weight)
