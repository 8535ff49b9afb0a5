"""Heads of single networks that distil by themselves."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from mmpretrain.models.heads import ClsHead
from torch import Tensor

from kd_mm.methods.base import Relations, Seen, Step
from kd_mm.methods.gather import weigh_by_share
from kd_mm.plain import Replaceable

ALONE = ''  # the name of the network in the step of a head


class DistillingHead(Replaceable, ClsHead):
    """A head of mmpretrain's with more terms in its loss while it trains.

    Its network trains alone, or as a student of a Distiller. ``needs`` is as of ``Method``.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.observers: list[Callable[[Step, dict[str, Tensor]], None]] = []

    @abstractmethod
    def terms(self, step: Step) -> dict[str, Tensor]:
        """Return the terms ``<name>/loss_<term>`` of the networks of a step.

        Args:
            step: What the network of this head made of the batch.
        """

    @abstractmethod
    def monitors(self, step: Step) -> dict[str, Tensor]:
        """Return numbers for ``kd_mm.DiagnosticsHook``; see ``Method``.

        Args:
            step: As of :meth:`terms`.
        """

    @abstractmethod
    def relations(self, step: Step) -> dict[str, Relations]:
        """Return what images take from each other, for pictures; see ``Method``.

        Args:
            step: As of :meth:`terms`.
        """

    def distil(self, seen: Seen, labels: Tensor, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the terms to the losses of a network that trains alone.

        Each is weighed by this rank's share of the images, so that any number of ranks gives the
        gradients of one process.

        Args:
            seen: What the network made of the batch.
            labels: (N,) classes or (N, K) soft labels.
            losses: Of the head itself.
        """
        step = Step({ALONE: [seen]}, {}, labels)
        terms = {key.removeprefix(f'{ALONE}/'): value for key, value in self.terms(step).items()}
        losses = losses | terms
        if self.training:
            losses = weigh_by_share(losses, labels)
        if self.observers:
            self._show(step, losses)
        return losses

    @torch.compiler.disable
    def _show(self, step: Step, losses: dict[str, Tensor]) -> None:
        for observer in tuple(self.observers):
            observer(step, losses)
