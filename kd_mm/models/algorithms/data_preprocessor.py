"""Normalisation and batch augmentation of one image or of several views of it."""

import torch
from mmpretrain.models.utils import ClsDataPreprocessor

from kd_mm.functional.collaborative_target import check_soft_labels
from kd_mm.registry import MODELS


@MODELS.register_module()
class CohortDataPreprocessor(ClsDataPreprocessor):
    """``mmpretrain.ClsDataPreprocessor`` that also takes a list of views of each image.

    Mixup and CutMix draw once for all views, so that one mixed label holds for each of them.

    Args:
        **kwargs: Arguments of ``mmpretrain.ClsDataPreprocessor``.

    Examples:
        >>> import torch
        >>> preprocess = CohortDataPreprocessor(mean=[1.0] * 3, std=[2.0] * 3)
        >>> views = preprocess({'inputs': [torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)]})
        >>> [view.mean().item() for view in views['inputs']]
        [0.0, -0.5]
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch for the students.

        Args:
            data: ``inputs``, images (N, C, H, W) or a list of such views, as default_collate
                gives them, and ``data_samples``.
            training: Apply the batch augmentations.

        Returns:
            dict: ``inputs`` in the form they came in, and ``data_samples``.

        Raises:
            ValueError: If the data set's soft labels are no distributions.
        """
        views, given = data['inputs'], data.get('data_samples')
        if given and 'gt_score' in given[0]:  # a data set's own, still on the CPU
            check_soft_labels(torch.stack([sample.gt_score for sample in given]).float())
        if not (isinstance(views, (list, tuple)) and views[0].ndim == 4):
            return super().forward(data, training)
        views = [
            super(CohortDataPreprocessor, self).forward({'inputs': v})['inputs'] for v in views
        ]
        # Labels alone, beside no image: mixing comes after, for all views at once.
        samples = super().forward({**data, 'inputs': views[0][:0]})['data_samples']
        if training and self.batch_augments is not None:
            scores = torch.stack([sample.gt_score for sample in samples])
            mixed, scores = self.batch_augments(torch.cat(views, dim=1), scores)
            views = list(mixed.chunk(len(views), dim=1))
            for sample, score in zip(samples, scores, strict=True):
                sample.set_gt_score(score)
        return {'inputs': views, 'data_samples': samples}
