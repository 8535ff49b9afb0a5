"""Weights of loss terms that follow the clock of the training."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from kd_mm.checks import check_int, check_weight
from kd_mm.registry import SCHEDULES

from .base import Clock

Schedule = Callable[[Clock | None], float]


class Ramp(ABC):
    """A weight that grows to its value over the first epochs.

    Args:
        epochs (int): E, the first epoch, counted from 1, with the whole weight. At least 1.
        value (float): w, the whole weight, at least 0. Defaults to 1.
    """

    def __init__(self, epochs: int, value: float = 1.0) -> None:
        check_int('epochs', epochs)
        check_weight('value', value)
        self.epochs, self.value = epochs, value
        self._now: float | None = None

    @abstractmethod
    def _share(self, epoch: int) -> float:
        """Return the share of the weight in an epoch, counted from 1, that ends in 1."""

    def tick(self, clock: Clock | None) -> None:
        """Compute the weight of an epoch before its steps, which may be compiled.

        A compiled step that read the number of the epoch would be compiled again in each.
        """
        self._now = None if clock is None else self.value * self._share(clock.epoch + 1)

    def __call__(self, clock: Clock | None) -> float:
        """Return the weight in the current epoch."""
        if self._now is not None:
            return self._now
        if clock is None:
            raise RuntimeError(
                f'{type(self).__name__} needs the epoch, which kd_mm.DistillerHook gives; add '
                "default_hooks=dict(distiller=dict(type='kd_mm.DistillerHook'))"
            )
        return self.value * self._share(clock.epoch + 1)


@SCHEDULES.register_module()
class SigmoidRamp(Ramp):
    r"""A weight that grows like a sigmoid function.

    .. math:: w \exp(-5 \, (1 - e / E)^2) \text{ for } e \le E, \quad w \text{ after}

    Source: FFSD's released code, with E = 5; the ramp of Laine and Aila, "Temporal Ensembling for
    Semi-Supervised Learning" (2017), section 2.

    Examples:
        >>> ramp = SigmoidRamp(epochs=5)
        >>> [round(ramp(Clock(epoch, 10, 0, 100, 50)), 3) for epoch in (0, 2, 4, 5)]
        [0.041, 0.449, 1.0, 1.0]
    """

    def _share(self, epoch: int) -> float:
        return math.exp(-5 * max(0.0, 1 - epoch / self.epochs) ** 2)


@SCHEDULES.register_module()
class LinearRamp(Ramp):
    r"""A weight that grows linearly: :math:`w \min(1, e / E)`.

    Examples:
        >>> ramp = LinearRamp(epochs=4, value=2.0)
        >>> [ramp(Clock(epoch, 10, 0, 100, 50)) for epoch in (0, 1, 3, 9)]
        [0.5, 1.0, 2.0, 2.0]
    """

    def _share(self, epoch: int) -> float:
        return min(1.0, epoch / self.epochs)


def schedule(name: str, weight: float | Mapping[str, Any]) -> Schedule:
    """Return the weight of a loss term as a function of the :class:`~kd_mm.methods.base.Clock`.

    Args:
        name: What the config calls it, for the error.
        weight: A number of at least 0, or the config of a schedule, such as
            ``dict(type='kd_mm.SigmoidRamp', epochs=5, value=10.0)``.

    Raises:
        ValueError: If the weight is negative or not finite, or the schedule does not exist.

    Examples:
        >>> schedule('loss_weight', 0.5)(None)
        0.5
        >>> half = schedule('loss_weight', dict(type='kd_mm.LinearRamp', epochs=2))
        >>> half(Clock(0, 10, 0, 100, 50))
        0.5
    """
    if isinstance(weight, Mapping):
        return SCHEDULES.create(weight, name)
    check_weight(name, weight)
    return lambda clock: weight
