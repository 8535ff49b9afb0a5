"""Training in bfloat16, with or without a GPU."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from kd_mm.plain import Replaceable
from kd_mm.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(Replaceable, OptimWrapper):
    """MMEngine's ``OptimWrapper`` whose forward passes run under bfloat16 autocast.

    Unlike ``AmpOptimWrapper`` it runs on a CPU as well, and has no GradScaler: bfloat16 has the
    range of float32, so that no gradient vanishes for lack of a scale, and the host does not wait
    in each step for an overflow check. Weights, gradients, optimizers and the losses of kd_mm
    stay in float32.

    Args:
        **kwargs: Arguments of MMEngine's ``OptimWrapper``.

    Examples:
        >>> layer = nn.Linear(1, 1)
        >>> wrapper = Bfloat16OptimWrapper(torch.optim.SGD(layer.parameters(), lr=0.1))
        >>> with wrapper.optim_context(layer):
        ...     layer(torch.ones(1, 1)).dtype
        torch.bfloat16
    """

    @classmethod
    def plain(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Return MMEngine's wrapper for mixed precision; see the base class."""
        return {**cfg, 'type': 'AmpOptimWrapper', 'dtype': 'bfloat16'}

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run what is inside under autocast."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield
