"""BAKE as a head: mmpretrain's classification heads with one more loss while they train."""

from abc import abstractmethod

from mmpretrain.models.heads import (
    EfficientFormerClsHead,
    LeViTClsHead,
    LinearClsHead,
    StackedLinearClsHead,
    VigClsHead,
    VisionTransformerClsHead,
)
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from kd_mm.models.losses import BAKELoss, BatchGatherer
from kd_mm.registry import MODELS

from .scored_head import ScoredHead


class BAKEMixin(ScoredHead):
    """Batch knowledge ensembling for a head with one embedding and one classifier per image.

    Source: Ge et al., "Self-distillation with Batch Knowledge Ensembling Improves ImageNet
    Classification", arXiv:2104.13298, section 3; equations in
    :mod:`kd_mm.functional.batch_ensemble`. Parameters, state_dict keys, predictions and the
    recipe's own loss are those of the mmpretrain head that a subclass names, so that a
    checkpoint is a plain mmpretrain checkpoint.

    Args:
        omega (float): Weight in [0, 1) of the knowledge that an image takes from the others.
            Defaults to 0.5.
        temperature (float): Softens predictions, > 0. Defaults to 4.
        loss_weight (float): Weight >= 0 of ``loss_bake``. Defaults to 1.
        gather (str): ``'global'`` ensembles over the images of all ranks, as the released
            ImageNet recipes do; ``'group'`` over those of ``group_size`` consecutive ranks, whose
            cost does not grow with the number of ranks; ``'local'`` over this rank's. Defaults to
            ``'global'``.
        group_size (int, optional): Ranks of a group, at least 2, which divides the number of
            ranks. For ``'group'``.
        **kwargs: Arguments of the mmpretrain head.

    Raises:
        ValueError: If an argument is out of range.
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
        self.bake_loss = BAKELoss(omega, temperature, loss_weight)
        self.gather = BatchGatherer(gather, group_size)

    @property
    @abstractmethod
    def classifier(self) -> nn.Module:
        """The last layer, which maps embeddings (N, D) to logits (N, K)."""

    def losses_and_score(
        self, feats: tuple[Tensor], data_samples: list[DataSample], **kwargs
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the recipe's own losses with ``loss_bake``, and the logits.

        Ranks with unequal batches weigh in by their number of images under
        ``gather='global'``, so that any number of ranks equals one process on the concatenated
        batch. Under ``'group'`` that holds for the ranks of each group, and all groups weigh the
        same, as all ranks do under ``'local'``.

        Args:
            feats: Outputs of the neck; the last one enters the head.
            data_samples: Labels of the n images, hard or mixed.
            **kwargs: Arguments of the classification loss.

        Returns:
            tuple: ``loss`` and ``loss_bake``, scalars, and what else the head logs, by name; and
            the logits (n, K) that they were computed from.
        """
        embedding = self.pre_logits(feats)
        cls_score = self.classifier(embedding)
        losses = self._get_loss(cls_score, data_samples, **kwargs)
        bake_loss = self.bake_loss
        log_probs = bake_loss.log_probs(cls_score)
        batch = self.gather(embedding, log_probs.detach().exp())
        losses['loss_bake'] = bake_loss(log_probs, batch)
        if batch.share is not None:
            for name in ('loss', 'loss_bake'):
                losses[name] = losses[name] * batch.share
        return losses, cls_score


def _refuse_token_distillation(head: str, distillation: bool) -> None:
    """Raise ValueError for a second, distilled classifier, which mmpretrain cannot train."""
    if distillation:
        raise ValueError(
            f'{head} needs distillation=False, but got {distillation}: mmpretrain cannot train '
            'the second classifier of the distilled version'
        )


@MODELS.register_module()
class BAKEHead(BAKEMixin, LinearClsHead):
    """``mmpretrain.LinearClsHead`` with batch knowledge ensembling. See :class:`BAKEMixin`.

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

    @property
    def classifier(self) -> nn.Module:
        """The linear layer."""
        return self.fc


@MODELS.register_module()
class BAKEStackedLinearClsHead(BAKEMixin, StackedLinearClsHead):
    """``mmpretrain.StackedLinearClsHead`` with batch knowledge ensembling. See the mixin."""

    @property
    def classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.fc


@MODELS.register_module()
class BAKEVisionTransformerClsHead(BAKEMixin, VisionTransformerClsHead):
    """``mmpretrain.VisionTransformerClsHead`` with batch knowledge ensembling. See the mixin."""

    @property
    def classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.layers.head


@MODELS.register_module()
class BAKEVigClsHead(BAKEMixin, VigClsHead):
    """``mmpretrain.VigClsHead`` with batch knowledge ensembling. See :class:`BAKEMixin`."""

    @property
    def classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.fc2


@MODELS.register_module()
class BAKEEfficientFormerClsHead(BAKEMixin, EfficientFormerClsHead):
    """``mmpretrain.EfficientFormerClsHead`` with batch knowledge ensembling. See the mixin.

    Raises:
        ValueError: If ``distillation`` is on, which mmpretrain cannot train.
    """

    def __init__(self, *args, distillation: bool = False, **kwargs) -> None:
        _refuse_token_distillation('BAKEEfficientFormerClsHead', distillation)
        super().__init__(*args, distillation=False, **kwargs)

    @property
    def classifier(self) -> nn.Module:
        """The linear layer."""
        return self.head


@MODELS.register_module()
class BAKELeViTClsHead(BAKEMixin, LeViTClsHead):
    """``mmpretrain.LeViTClsHead`` with batch knowledge ensembling. See :class:`BAKEMixin`.

    Raises:
        ValueError: If ``distillation`` is on, which mmpretrain cannot train.
    """

    def __init__(self, *args, distillation: bool = False, **kwargs) -> None:
        _refuse_token_distillation('BAKELeViTClsHead', distillation)
        super().__init__(*args, distillation=False, **kwargs)

    @property
    def classifier(self) -> nn.Module:
        """The linear layer behind its batch normalisation."""
        return self.head
