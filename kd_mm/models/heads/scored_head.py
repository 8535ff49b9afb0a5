"""Losses and logits of a head from one forward pass, for methods that distil between networks."""

from abc import abstractmethod

from mmpretrain.models.heads import ClsHead, EfficientFormerClsHead
from mmpretrain.structures import DataSample
from torch import Tensor


class ScoredHead(ClsHead):
    """A head whose losses need more than its logits, and that can hand out both."""

    @abstractmethod
    def losses_and_score(
        self, feats: tuple[Tensor], data_samples: list[DataSample], **kwargs
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses by name, and the logits (N, K) that they were computed from."""

    def loss(self, feats: tuple[Tensor], data_samples: list[DataSample], **kwargs) -> dict:
        """Return the losses alone, as mmpretrain's classifiers ask for them."""
        return self.losses_and_score(feats, data_samples, **kwargs)[0]


def losses_and_score(
    head: ClsHead, feats: tuple[Tensor], data_samples: list[DataSample]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return a head's losses and its logits from one forward pass.

    Args:
        head: A classification head of mmpretrain whose losses are a function of its logits, or
            one of ours.
        feats: Outputs of the neck.
        data_samples: Labels of the N images, hard or mixed.

    Returns:
        The losses by name, and the logits (N, K), with gradient.

    Raises:
        TypeError: If the head computes its losses in another way.
    """
    if isinstance(head, ScoredHead):
        return head.losses_and_score(feats, data_samples)
    check_scored(head)
    cls_score = head(feats)
    return head._get_loss(cls_score, data_samples), cls_score


def check_scored(head: ClsHead | None, name: str = 'the student') -> None:
    """Raise TypeError if logits and losses of a head cannot be had from one forward pass.

    Args:
        head: Any head of mmpretrain or ours.
        name: Whose head it is, for the message.

    Raises:
        TypeError: If the head computes its losses in a way of its own.
    """
    # EfficientFormerClsHead adds a guard to loss, and nothing else.
    plain = isinstance(head, ClsHead) and type(head).loss in (
        ClsHead.loss,
        EfficientFormerClsHead.loss,
    )
    plain = plain and type(head)._get_loss is ClsHead._get_loss
    if not (isinstance(head, ScoredHead) or plain):
        found = 'there is none' if head is None else f'{type(head).__name__} has a way of its own'
        raise TypeError(
            f'the head of {name} must compute its losses from one logit per class, as '
            f'LinearClsHead does, but {found}; use LinearClsHead or another head with one '
            'classifier'
        )
