"""BAKE as a head, for recipes with a linear one."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from mmpretrain.models.heads import LinearClsHead
from mmpretrain.structures import DataSample
from torch import Tensor

from kd_mm.checks import check_weight
from kd_mm.methods.bake import BAKE
from kd_mm.methods.base import Seen, labels_of
from kd_mm.registry import MODELS

from .distilling_head import DistillingHead


@MODELS.register_module()
class BAKEHead(DistillingHead, LinearClsHead):
    """``mmpretrain.LinearClsHead`` with batch knowledge ensembling.

    The model stays mmpretrain's ``ImageClassifier``: parameters, state_dict keys, predictions and
    the recipe's own loss are those of ``LinearClsHead``, so that a checkpoint is a plain
    mmpretrain checkpoint. For other heads, ``type='kd_mm.BAKE', student=_base_.model`` does the
    same.

    Args:
        omega (float): As of :class:`~kd_mm.methods.bake.BAKE`. Defaults to 0.5.
        temperature (float): Likewise. Defaults to 4.
        loss_weight (float): Weight >= 0 of ``loss_bake``. Defaults to 1.
        gather (str): As of ``BAKE``. Defaults to ``'global'``.
        group_size (int, optional): As of ``BAKE``.
        **kwargs: Arguments of ``mmpretrain.LinearClsHead``.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> import torch
        >>> from mmpretrain.structures import DataSample
        >>> head = BAKEHead(num_classes=2, in_channels=2, omega=0.5)
        >>> _ = torch.nn.init.eye_(head.fc.weight), torch.nn.init.zeros_(head.fc.bias)
        >>> samples = [DataSample().set_gt_label(label) for label in (0, 1)]
        >>> losses = head.loss((torch.tensor([[1.0, 0.0], [0.0, 1.0]]),), samples)
        >>> {name: round(value.item(), 4) for name, value in losses.items()}
        {'loss': 0.3133, 'loss_bake': 0.0555}
    """

    def __init__(
        self,
        *args,
        omega: float = 0.5,
        temperature: float = 4.0,
        loss_weight: float = 1.0,
        gather: str = 'global',
        group_size: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_weight('loss_weight', loss_weight)  # a head alone has no clock for a schedule
        self.method = BAKE(omega, temperature, loss_weight, gather, group_size)

    @classmethod
    def plain(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Return the linear head; see the base class."""
        own = {'type', *signature(BAKE).parameters}
        return {'type': 'LinearClsHead', **{k: v for k, v in cfg.items() if k not in own}}

    def loss(self, feats: tuple[Tensor], data_samples: list[DataSample], **kwargs) -> dict:
        """Return ``loss`` and ``loss_bake``, scalars, and what else the head logs, by name.

        Args:
            feats: Outputs of the neck; the last one enters the head.
            data_samples: Labels of the n images, hard or mixed.
            **kwargs: Arguments of the classification loss.
        """
        embedding = self.pre_logits(feats)
        seen = Seen(self.fc(embedding), embedding, tuple(feats))
        losses = self._get_loss(seen.logits, data_samples, **kwargs)
        return self.distil(seen, labels_of(data_samples), losses)
