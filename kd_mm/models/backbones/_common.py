"""What the backbones for 32-pixel images share."""

from collections.abc import Sequence

from torch import nn

NUM_STAGES = 3
# mmpretrain's for its ResNet: Kaiming normal (fan out), scale 1 in normalisation layers.
KAIMING = [
    {'type': 'Kaiming', 'layer': 'Conv2d'},
    {'type': 'Constant', 'val': 1, 'layer': ['_BatchNorm', 'GroupNorm']},
]


def checked_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    """Return some of the stages 0, 1, 2 as a tuple.

    Raises:
        TypeError: If it is no sequence.
        ValueError: If it is empty or a stage does not exist.
    """
    if not isinstance(out_indices, Sequence):
        raise TypeError(
            f'out_indices must be a sequence of stages such as (2, ), got {out_indices!r}.'
        )
    if not out_indices or any(index not in range(NUM_STAGES) for index in out_indices):
        raise ValueError(
            f'out_indices must name some of the stages 0, 1, 2, got {tuple(out_indices)}.'
        )
    return tuple(out_indices)


def layers_per_stage(
    network: str, depth: int, per_layer: int, others: int, examples: str, hint: str = ''
) -> int:
    """Return the n of a depth of ``per_layer`` n + ``others``.

    Raises:
        ValueError: If there is none of at least 1. It names depths that exist, and the hint.
    """
    num_layers, rest = divmod(depth - others, per_layer)
    if rest or num_layers < 1:
        lower = per_layer * max(num_layers, 1) + others
        raise ValueError(
            f'{network} has {per_layer}n + {others} layers with n >= 1 ({examples}, ...), got '
            f'depth={depth}. Try {lower} or {lower + per_layer}{hint}.'
        )
    return num_layers


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without biases that keeps the resolution over its stride."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
