"""Maps of several stages: what methods ask of them, and the layout in which necks are fastest."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Shape = tuple[int, ...]  # (C, H, W)


def fastest_layout(x: Tensor) -> Tensor:
    """Return a map (B, C, H, W) with its channels last in memory on a CPU, or as it is on a GPU.

    Transposed and depthwise convolutions and BN then take about half the time. The gradient goes
    back in x's own layout: the network below would work in two layouts at once, which is slower.

    Examples:
        >>> fastest_layout(torch.rand(2, 3, 4, 5)).stride()
        (60, 1, 15, 3)
    """
    if x.device.type != 'cpu':
        return x
    last = x.contiguous(memory_format=torch.channels_last)
    # A compiler lays out gradients by itself, and those of older torch know no hook here.
    if last is not x and last.requires_grad and not torch.compiler.is_compiling():
        last.register_hook(torch.Tensor.contiguous)
    return last


def shapes_of(maps: Sequence[Tensor]) -> list[Shape]:
    """Return the shape (C, H, W) of each map (N, C, H, W)."""
    return [tuple(level.shape[1:]) for level in maps]


def check_same_size(shapes: Mapping[str, Sequence[Shape]]) -> None:
    """Raise ValueError unless the students' deepest maps have one height and width.

    Args:
        shapes: Of the maps of each student, shallow to deep.
    """
    for name, stages in shapes.items():
        if not stages or len(stages[-1]) != 3:
            found = f'have shape {stages[-1]}' if stages else 'are unknown'
            raise ValueError(
                f'the outputs of a backbone must be maps (C, H, W), but those of student {name} '
                f'{found}; use a hierarchical backbone (a ConvNeXt with '
                'gap_before_final_norm=False and a GlobalAveragePooling neck)'
            )
    if len({stages[-1][1:] for stages in shapes.values()}) > 1:
        listed = ', '.join(f'{name}: {stages[-1]}' for name, stages in shapes.items())
        raise ValueError(
            "the students' deepest maps must have one height and width, but their shapes are "
            f'{listed}; use backbones of one family, or other out_indices'
        )


def check_halving(name: str, shapes: Sequence[Shape]) -> None:
    """Raise ValueError unless a student gives several maps, each half as large as the one before.

    Args:
        name: Of the student.
        shapes: Of its maps, shallow to deep.
    """
    if len(shapes) < 2:
        raise ValueError(
            f'self-distillation needs the maps of several stages, but student {name} gives one; '
            f'set model.students.{name}.backbone.out_indices, such as (0, 1, 2, 3) of a ResNet, '
            'or self_distillation=None'
        )
    sizes = [shape[1:] for shape in shapes]
    if any(a != (2 * b[0], 2 * b[1]) for a, b in pairwise(sizes)):
        listed = ', '.join(f'{h} x {w}' for h, w in sizes)
        raise ValueError(
            f'the maps of a student must halve in size from one to the next, but those of {name} '
            f'are {listed}; choose other out_indices'
        )
