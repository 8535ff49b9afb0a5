"""Convolutions on images whose channels lie side by side in memory."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd_mm.checkpoint import bare_model
from kd_mm.registry import HOOKS

CHANNELS_LAST = torch.channels_last


def use_channels_last(model: nn.Module) -> RemovableHandle:
    """Store a model's convolutions, and the images that it gets, channels last.

    Args:
        model: A classifier or a cohort, not wrapped. Its weights keep their values and shapes.

    Returns:
        Removes what converts the images; the weights stay as they are.
    """
    model.to(memory_format=CHANNELS_LAST)
    return model.register_forward_pre_hook(_convert_images, with_kwargs=True)


def _convert_images(model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Convert images (N, C, H, W), one batch or a list of views, wherever they stand."""
    args = tuple(_converted(arg) for arg in args)
    return args, {key: _converted(value) for key, value in kwargs.items()}


def _converted(value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim == 4:
        return value.contiguous(memory_format=CHANNELS_LAST)
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
        return type(value)(_converted(item) for item in value)
    return value


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Train and validate with weights and images in the memory format ``channels_last``.

    All networks of a cohort, its necks and each of its views are covered. Results are those of
    the default format up to rounding. Fast on GPUs with Tensor Cores under mixed precision; on a
    CPU it depends on network and machine. Checkpoints hold the same tensors by value and shape,
    and are resumed and exported with or without the hook.

    Examples:
        >>> default_hooks = dict(channels_last=dict(type='kd_mm.ChannelsLastHook'))
    """

    def before_train(self, runner: Runner) -> None:
        """Convert the model.

        Args:
            runner: The runner whose training begins.
        """
        self._handle = use_channels_last(bare_model(runner.model))

    def after_train(self, runner: Runner) -> None:
        """Convert no more images.

        Args:
            runner: The runner whose training ended.
        """
        self._handle.remove()
