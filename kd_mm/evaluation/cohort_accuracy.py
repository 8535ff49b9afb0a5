"""The accuracy of every student of a cohort, in one pass over the data."""

from collections.abc import Mapping, Sequence

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from kd_mm.registry import METRICS

SUMMARIES = ('mean', 'best', 'ensemble')


@METRICS.register_module()
class CohortAccuracy(BaseMetric):
    """Top-k accuracy of each student, their mean, the best of them, and their ensemble.

    Keys, in this order, for each k: ``<name>/accuracy/top<k>`` of each student;
    ``mean/accuracy/top<k>``, the mean of the students' accuracies; ``best/accuracy/top<k>``, the
    highest of them; ``ensemble/accuracy/top<k>``, the accuracy of the students' mean probability.
    All are percentages of the images. Each of them serves as ``save_best`` of MMEngine's
    ``CheckpointHook``.

    As in mmpretrain's ``Accuracy``, a class of probability 0 or NaN is never a hit.

    Args:
        topk (int | Sequence[int]): The k, each at least 1. Defaults to 1.
        collect_device (str): As in MMEngine's ``BaseMetric``. Defaults to ``'cpu'``.
        prefix (str, optional): Goes before each key. Defaults to none.

    Raises:
        ValueError: If a k is below 1 or above the number of classes, if a sample holds no
            ``student_scores``, or if a student is named ``mean``, ``best`` or ``ensemble``.

    Examples:
        >>> import torch
        >>> from mmengine.evaluator import Evaluator
        >>> from mmpretrain.structures import DataSample
        >>> scores = {'a': torch.tensor([0.9, 0.1]), 'b': torch.tensor([0.4, 0.6])}
        >>> sample = DataSample().set_gt_label(0)
        >>> sample.set_field(scores, 'student_scores')
        >>> evaluator = Evaluator(CohortAccuracy())
        >>> evaluator.process([sample])
        >>> for key, value in evaluator.evaluate(1).items():
        ...     print(key, value)
        a/accuracy/top1 100.0
        b/accuracy/top1 0.0
        mean/accuracy/top1 50.0
        best/accuracy/top1 100.0
        ensemble/accuracy/top1 100.0
    """

    default_prefix = ''  # None would draw a warning

    def __init__(
        self,
        topk: int | Sequence[int] = 1,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if not self.topk or min(self.topk) < 1:
            raise ValueError(f'topk must hold numbers of at least 1, but got {topk!r}')

    def process(self, data_batch: object, data_samples: Sequence[Mapping]) -> None:
        """Note which students were right.

        Args:
            data_batch: Unused.
            data_samples: N predictions of a cohort: ``gt_label`` and ``student_scores``, each
                student's class probabilities (K,) by name.
        """
        for sample in data_samples:
            if 'student_scores' not in sample:
                raise ValueError(
                    'kd_mm.CohortAccuracy needs the student_scores that a cohort (such as '
                    f'kd_mm.KDCL) predicts, but a sample only has {", ".join(sample)}; measure '
                    "a single classifier with type='Accuracy'"
                )
        names = list(data_samples[0]['student_scores'])
        taken = [name for name in names if name in SUMMARIES]
        if taken:
            raise ValueError(
                f'a student must not bear the name of a summary ({", ".join(SUMMARIES)}), but got '
                f'{taken[0]}; rename model.students.{taken[0]}'
            )
        scores = torch.stack(
            [torch.stack([s['student_scores'][name] for s in data_samples]) for name in names]
        )
        scores = torch.cat([scores, scores.mean(dim=0, keepdim=True)])
        hits = self._hits(scores, torch.cat([s['gt_label'] for s in data_samples]))
        # One small row per image, which MMEngine collects over ranks and cuts to the data set.
        self.results += [
            dict(zip([*names, 'ensemble'], row, strict=True)) for row in hits.tolist()
        ]

    def _hits(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Tell for scores (M, N, K) and labels (N,) what is right: (N, M, number of k) bool."""
        most, num_classes = max(self.topk), scores.shape[-1]
        if most > num_classes:
            raise ValueError(
                f'topk must not exceed the number of classes, {num_classes}, but got {most}'
            )
        values, classes = scores.topk(most)
        hits = (classes == labels.to(classes.device)[:, None]) & (values > 0)
        return torch.stack([hits[..., :k].any(dim=-1) for k in self.topk], dim=-1).transpose(0, 1)

    def compute_metrics(self, results: list[dict[str, list[bool]]]) -> dict[str, float]:
        """Turn the notes of all images into percentages.

        Args:
            results: One dict per image.

        Returns:
            dict[str, float]: Numbers by key, in the order that the class describes.
        """
        metrics = {}
        for place, k in enumerate(self.topk):
            accuracy = {
                name: 100 * sum(row[name][place] for row in results) / len(results)
                for name in results[0]
            }
            ensemble = accuracy.pop('ensemble')
            accuracy |= {
                'mean': sum(accuracy.values()) / len(accuracy),
                'best': max(accuracy.values()),
                'ensemble': ensemble,
            }
            metrics |= {f'{name}/accuracy/top{k}': value for name, value in accuracy.items()}
        return metrics
