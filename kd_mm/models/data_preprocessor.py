"""Normalisation and batch augmentation of one image or of several views of it."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from mmpretrain.models.utils import ClsDataPreprocessor
from torch import Tensor

from kd_mm.datasets.in_memory import run_generator
from kd_mm.functional.kdcl import check_soft_labels
from kd_mm.plain import Replaceable
from kd_mm.registry import MODELS


@MODELS.register_module()
class CohortDataPreprocessor(Replaceable, ClsDataPreprocessor):
    """``mmpretrain.ClsDataPreprocessor`` that also takes a list of views of each image.

    Mixup and CutMix draw once for all views, so that one mixed label holds for each of them.

    With ``augments``, crops and flips are drawn here in place of the pipeline, for a whole batch
    at once and on the device of the model: for images in memory (``kd_mm.InMemory``), which then
    need no work one by one. Each image, and each view of it, has its own draw, from the seed of
    the run, the number of the iteration and the rank; see
    :func:`kd_mm.datasets.in_memory.run_generator`. One network alone may use it as well.

    Args:
        augments (Sequence[dict]): Configs of ``kd_mm.BatchRandomCrop`` and the like, applied in
            turn to the images as they come, before normalisation, in training only.
        num_views (int, optional): Views to draw of each image, at least 1. By default the
            students get the images themselves, no list.
        **kwargs: Arguments of ``mmpretrain.ClsDataPreprocessor``.

    Raises:
        ValueError: If ``num_views`` is below 1 or nothing tells views apart.

    Examples:
        >>> import torch
        >>> preprocess = CohortDataPreprocessor(mean=[1.0] * 3, std=[2.0] * 3)
        >>> views = preprocess({'inputs': [torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)]})
        >>> [view.mean().item() for view in views['inputs']]
        [0.0, -0.5]
    """

    def __init__(
        self, *args, augments: Sequence[Mapping] = (), num_views: int | None = None, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        if num_views is not None and (num_views < 1 or not augments):
            raise ValueError(
                'num_views must be at least 1, with augments that tell the views apart, but got '
                f'num_views={num_views} and {len(augments)} augments; leave num_views out if all '
                'students see the same images, or if the pipeline has a MultiView'
            )
        self.augments = [MODELS.build(dict(augment)) for augment in augments]
        self.num_views = num_views

    @classmethod
    def plain(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Return mmpretrain's preprocessor, the default; see the base class."""
        known = signature(ClsDataPreprocessor).parameters
        return {key: value for key, value in cfg.items() if key in known}

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch for the students, in training with augmentations.

        ``data`` holds ``inputs``, images (N, C, H, W) or a list of such views, as default_collate
        gives them, and ``data_samples``. So does what is returned.

        Raises:
            ValueError: If the data set's soft labels are no distributions, or there are
                ``augments`` and the images came as a list.
        """
        if training and self.augments:
            data = {**data, 'inputs': self.draw(data['inputs'])}
        views, given = data['inputs'], data.get('data_samples')
        if given and 'gt_score' in given[0]:  # a data set's own, still on the CPU
            check_soft_labels(torch.stack([sample.gt_score for sample in given]).float())
        if not (isinstance(views, (list, tuple)) and views[0].ndim == 4):
            return super().forward(data, training)
        prepare = super().forward
        views = [prepare({'inputs': view})['inputs'] for view in views]
        # Labels without images: mixing comes after, for all views at once.
        samples = prepare({**data, 'inputs': views[0][:0]})['data_samples']
        if training and self.batch_augments is not None:
            scores = torch.stack([sample.gt_score for sample in samples])
            mixed, scores = self.batch_augments(torch.cat(views, dim=1), scores)
            views = list(mixed.chunk(len(views), dim=1))
            for sample, score in zip(samples, scores, strict=True):
                sample.set_gt_score(score)
        return {'inputs': views, 'data_samples': samples}

    def draw(self, images: Tensor) -> Tensor | list[Tensor]:
        """Augment images (N, C, H, W), each by its own draw, or draw ``num_views`` views of them.

        Raises:
            ValueError: If the images are a list.
        """
        if not isinstance(images, Tensor):
            raise ValueError(
                'data_preprocessor.augments takes a batch of images in one tensor, but got a '
                f'{type(images).__name__} of {len(images)}; set train_dataloader.collate_fn='
                "dict(type='kd_mm.batch_collate') or 'default_collate', and leave MultiView out "
                'of the pipeline: num_views draws views'
            )
        images = self.cast_data(images)
        generator = run_generator(images.device)
        views = []
        for _ in range(self.num_views or 1):
            view = images
            for augment in self.augments:
                view = augment(view, generator)
            views.append(view)
        return views[0] if self.num_views is None else views
