"""Adapt a Swin checkpoint to larger attention windows, to fine-tune it at a higher resolution.

mmpretrain does so on loading, but by a function that SciPy 1.14 removed.
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from mmpretrain.models.utils import WindowMSA

import kd_mm  # noqa: F401, checks the versions of what is installed
from kd_mm.checkpoint import load_checkpoint, safe_files
from kd_mm.run.errors import plain_errors
from kd_mm.run.launch import add_trust_argument

TABLE, INDEX = 'relative_position_bias_table', 'relative_position_index'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='checkpoint of mmpretrain.SwinTransformer')
    parser.add_argument('out', help='where to write the adapted checkpoint')
    parser.add_argument('--window-size', type=int, required=True, help='new width in tokens')
    add_trust_argument(parser)
    args = parser.parse_args()
    if args.window_size < 2:
        parser.error(f'--window-size must be at least 2 tokens, but got {args.window_size}')
    if Path(args.out).is_dir() or not Path(args.out).absolute().parent.is_dir():
        parser.error(f'out must be a file in a folder that exists, but got {args.out}')
    return args


def resize_table(table: torch.Tensor, window_size: int) -> torch.Tensor:
    """Interpolate position biases ((2w - 1)^2, heads) bicubically, as Swin's authors do."""
    old, new = math.isqrt(len(table)), 2 * window_size - 1
    if old**2 != len(table) or table.ndim != 2:
        raise ValueError(
            f'a {TABLE} must have (2 w - 1)^2 rows for windows of w x w tokens, but one has the '
            f'shape {tuple(table.shape)}; the checkpoint is damaged, or of another network'
        )
    image = table.T.reshape(1, -1, old, old)
    image = F.interpolate(image, size=(new, new), mode='bicubic')
    return image.reshape(-1, new * new).T.contiguous()


def resize_windows(state_dict: dict, window_size: int) -> dict:
    """Return the weights with every table and index of relative positions resized."""
    if not any(name.endswith(TABLE) for name in state_dict):
        raise ValueError(f'the checkpoint must be of a Swin Transformer, but has no {TABLE}')
    index = WindowMSA(1, (window_size, window_size), 1).relative_position_index
    resized = {}
    for name, value in state_dict.items():
        if name.endswith(TABLE):
            value = resize_table(value, window_size)
        elif name.endswith(INDEX):
            value = index.clone()
        resized[name] = value
    return resized


def main() -> None:
    args = parse_args()
    with plain_errors():
        with safe_files(args.trust_checkpoint):
            state_dict = load_checkpoint(args.checkpoint)['state_dict']
        torch.save({'state_dict': resize_windows(state_dict, args.window_size)}, args.out)
        print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
