"""Loss terms that reach the log without making the host wait in each iteration."""

from collections import defaultdict

import numpy as np
import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from torch import Tensor

from kd_mm.registry import HOOKS


class _Pending:
    """Terms of the iterations since they were last read, on the device."""

    def __init__(self) -> None:
        self._steps: list[tuple[list[LazyHistoryBuffer], Tensor]] = []

    def add(self, buffers: 'list[LazyHistoryBuffer]', terms: list[Tensor]) -> None:
        """Keep one iteration's terms as they are now, each for its buffer."""
        terms = [term.detach().reshape(()) for term in terms]
        self._steps.append((buffers, torch.stack(terms)))

    def read(self) -> None:
        """Give each buffer its values, by one copy to the host."""
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        values = torch.cat([terms for _, terms in steps]).tolist()
        histories = defaultdict(list)
        owners = (buffer for buffers, _ in steps for buffer in buffers)
        for buffer, value in zip(owners, values, strict=True):
            histories[buffer].append(value)
        for buffer, history in histories.items():
            buffer.extend(history)


class LazyHistoryBuffer(HistoryBuffer):
    """A history of which the newest values may still lie on the device until it is read.

    Copies of it, as in a checkpoint, are plain ``HistoryBuffer``s.

    Args:
        history: The history to go on with. Left as it is.
        pending: Where the newest values are kept.
    """

    def __init__(self, history: HistoryBuffer, pending: _Pending) -> None:
        self._pending = pending
        super().__init__(*history.data, history.max_length)

    @property
    def _log_history(self) -> np.ndarray:  # what all methods of MMEngine's class look at
        self._pending.read()
        return self._values

    @_log_history.setter
    def _log_history(self, values: np.ndarray) -> None:
        self._values = values

    @property
    def _count_history(self) -> np.ndarray:
        self._pending.read()
        return self._counts

    @_count_history.setter
    def _count_history(self, counts: np.ndarray) -> None:
        self._counts = counts

    def extend(self, values: list[float]) -> None:
        """Append values, each counted once.

        Args:
            values: Oldest first.
        """
        self._values = np.append(self._values, values)[-self.max_length :]
        counts = np.append(self._counts, np.ones(len(values), dtype=int))
        self._counts = counts[-self.max_length :]

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
        self._pending = _Pending()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Note the terms of this iteration.

        Args:
            runner: The runner that trains.
            batch_idx: Unused.
            data_batch: Unused.
            outputs: The terms by name.
        """
        histories = runner.message_hub.log_scalars
        now, buffers, later = {}, [], []
        for name, value in (outputs or {}).items():
            buffer = histories.get(f'train/{name}')
            if isinstance(buffer, LazyHistoryBuffer) and _deferrable(value, outputs['loss']):
                buffers.append(buffer)
                later.append(value)
            else:
                now[name] = value
        super().after_train_iter(runner, batch_idx, data_batch, now)
        for name in now:
            key = f'train/{name}'
            histories[key] = LazyHistoryBuffer(histories[key], self._pending)
        if later:
            self._pending.add(buffers, later)

    def after_train_epoch(self, runner: Runner) -> None:
        """Read what is pending, however long the logger's interval is.

        Args:
            runner: Unused.
        """
        self._pending.read()


def _deferrable(value: object, loss: Tensor) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.device == loss.device
