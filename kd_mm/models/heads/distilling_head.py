"""Heads of single networks that distil by themselves."""

from collections.abc import Callable

import torch
from mmpretrain.models.heads import ClsHead
from torch import Tensor

from kd_mm.methods.base import Method, Relations, Seen, Step
from kd_mm.methods.gather import weigh_by_share
from kd_mm.plain import Replaceable


class DistillingHead(Replaceable, ClsHead):
    """A head of mmpretrain's with a method of distillation, for a network that trains alone.

    Its network may also be a student of a Distiller. A subclass sets ``method``.
    """

    method: Method

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.observers: list[Callable[[Step, dict[str, Tensor]], None]] = []

    @property
    def needs(self) -> frozenset[str]:
        """What the method needs."""
        return self.method.needs

    def terms(self, step: Step) -> dict[str, Tensor]:
        """Return the terms ``<name>/loss_<term>`` of the method."""
        return self.method.losses(step)

    def monitors(self, step: Step) -> dict[str, Tensor]:
        """Return the numbers of the method, for ``kd_mm.DiagnosticsHook``."""
        return self.method.monitors(step)

    def relations(self, step: Step) -> dict[str, Relations]:
        """Return what images take from each other, for pictures."""
        return self.method.relations(step)

    def distil(self, seen: Seen, labels: Tensor, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the terms of the method to the losses of a network that trains alone.

        Each is weighed by this rank's share of the images, so that any number of ranks gives the
        gradients of one process.

        Args:
            seen: What the network made of the batch.
            labels: (N,) classes or (N, K) soft labels.
            losses: Of the head itself.
        """
        step = Step({'': [seen]}, {}, labels)  # one network alone has no name
        losses = losses | {key.removeprefix('/'): z for key, z in self.terms(step).items()}
        if self.training:
            losses = weigh_by_share(losses, labels)
        if self.observers:
            self._show(step, losses)
        return losses

    @torch.compiler.disable
    def _show(self, step: Step, losses: dict[str, Tensor]) -> None:
        """Show the step to the observers."""
        for observer in tuple(self.observers):
            observer(step, losses)
