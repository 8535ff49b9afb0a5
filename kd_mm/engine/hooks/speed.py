"""Faster steps: channels last, a compiled step, loss terms that stay on the device."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook, RuntimeInfoHook
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from kd_mm.checkpoint import bare_model
from kd_mm.registry import HOOKS


def use_channels_last(model: nn.Module) -> RemovableHandle:
    """Store a model's convolutions, and the images that it gets, channels last.

    Args:
        model: A classifier or a Distiller, not wrapped. Its weights keep their values and shapes.

    Returns:
        A handle that removes what converts the images; the weights stay as they are.
    """

    def convert(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim == 4:  # images, of one view or of several
            return value.contiguous(memory_format=torch.channels_last)
        return value

    model.to(memory_format=torch.channels_last)
    return model.register_forward_pre_hook(
        lambda module, args, kwargs: tree_map(convert, (args, kwargs)), with_kwargs=True
    )


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Train and validate with weights and images in the memory format ``channels_last``.

    This covers all networks, the methods' necks and every view. Results are those of the default
    format up to rounding. Fast on GPUs with Tensor Cores under mixed precision; on a CPU it
    depends on network and machine. Checkpoints hold the same tensors by value and shape, and are
    resumed and exported with or without the hook.

    Examples:
        >>> default_hooks = dict(channels_last=dict(type='kd_mm.ChannelsLastHook'))
    """

    def before_train(self, runner: Runner) -> None:
        """Convert the model."""
        self._handle = use_channels_last(bare_model(runner.model))

    def after_train(self, runner: Runner) -> None:
        """Convert no more images."""
        self._handle.remove()


def keep_eager(optim_wrapper: OptimWrapper | OptimWrapperDict) -> None:
    """Keep a wrapper's update out of a compiled training step.

    The graph ends at the backward pass in any case. After it, torch would compile each optimizer
    again for each learning rate.

    Args:
        optim_wrapper: Changed in place.
    """
    optim_wrapper.update_params = torch.compiler.disable(optim_wrapper.update_params)


@HOOKS.register_module()
class CompileHook(Hook):
    """Let ``compile=True`` of a config compile networks and losses, and no optimizer.

    MMEngine compiles the whole training step. Its optimizer would be compiled again whenever a
    schedule changes the learning rate, until torch gives up. Without ``compile`` in the config
    the hook does nothing.

    Examples:
        >>> default_hooks = dict(compile=dict(type='kd_mm.CompileHook'))
    """

    def before_train(self, runner: Runner) -> None:
        """Take the update out of the step, which is compiled when it first runs."""
        if runner.cfg.get('compile'):
            keep_eager(runner.optim_wrapper)


class LazyHistoryBuffer(HistoryBuffer):
    """A history whose newest values may still lie on the device until it is read.

    Copies of it, as in a checkpoint, are plain ``HistoryBuffer``s.

    Args:
        history: The history to continue. Left as it is.
        fetch: Called before each read; gives :meth:`extend` the newest values.
    """

    def __init__(self, history: HistoryBuffer, fetch: Callable[[], None]) -> None:
        self._fetch = fetch
        super().__init__(*history.data, history.max_length)

    def __getattribute__(self, name: str) -> Any:
        if name in ('_log_history', '_count_history'):  # what all methods of MMEngine's read
            self._fetch()
        return super().__getattribute__(name)

    def extend(self, values: list[float]) -> None:
        """Append values, oldest first, each counted once."""
        counts = np.ones(len(values), dtype=int)
        self._log_history = np.append(self._log_history, values)[-self.max_length :]
        self._count_history = np.append(self._count_history, counts)[-self.max_length :]

    def __reduce_ex__(self, protocol: int) -> tuple:
        return HistoryBuffer(*self.data, self.max_length).__reduce_ex__(protocol)


@HOOKS.register_module()
class LazyRuntimeInfoHook(RuntimeInfoHook):
    """MMEngine's ``RuntimeInfoHook`` that leaves loss terms on the device until they are read.

    MMEngine copies each term to the host after each iteration, and the host waits for the device
    each time. Here one small tensor per iteration stays where it is. Whoever reads a term (the
    logger at its interval, a checkpoint, a hook) gets all that are due by one copy; so does the
    end of an epoch, to free them. Each number in the log, in every backend of the visualizer and
    in checkpoints is the same to the last bit.

    A term's first iteration, and terms that are no floating-point tensors, are logged at once.

    Examples:
        >>> default_hooks = dict(runtime_info=dict(type='kd_mm.LazyRuntimeInfoHook'))
    """

    def __init__(self) -> None:
        self._pending: list[tuple[list[LazyHistoryBuffer], Tensor]] = []

    def _fetch(self) -> None:
        """Give each buffer its values since the last read, by one copy to the host."""
        if not self._pending:
            return
        steps, self._pending = self._pending, []
        values = torch.cat([terms for _, terms in steps]).tolist()
        histories = defaultdict(list)
        owners = (buffer for buffers, _ in steps for buffer in buffers)
        for buffer, value in zip(owners, values, strict=True):
            histories[buffer].append(value)
        for buffer, history in histories.items():
            buffer.extend(history)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Note the terms of this iteration as they are now."""
        histories = runner.message_hub.log_scalars
        now, buffers, later = {}, [], []
        for name, value in (outputs or {}).items():
            buffer = histories.get(f'train/{name}')
            is_float = isinstance(value, Tensor) and value.is_floating_point()
            if (
                isinstance(buffer, LazyHistoryBuffer)
                and is_float
                and value.device == outputs['loss'].device
            ):
                buffers.append(buffer)
                later.append(value.detach().reshape(()))
            else:
                now[name] = value
        super().after_train_iter(runner, batch_idx, data_batch, now)
        for name in now:
            key = f'train/{name}'
            histories[key] = LazyHistoryBuffer(histories[key], self._fetch)
        if later:
            self._pending.append((buffers, torch.stack(later)))

    def after_train_epoch(self, runner: Runner) -> None:
        """Read what is pending, however long the logger's interval is."""
        self._fetch()
