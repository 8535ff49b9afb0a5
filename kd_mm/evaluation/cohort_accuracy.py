"""The accuracy of every student of a cohort, in one pass over the data."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmpretrain.evaluation import Accuracy
from torch import Tensor

from kd_mm.checks import check_flag, is_int
from kd_mm.plain import Replaceable
from kd_mm.registry import METRICS


@METRICS.register_module()
class CohortAccuracy(Replaceable, BaseMetric):
    """Top-k accuracy of each student, their mean, the best of them, and their ensemble.

    Keys, in this order, for each k: ``<name>/accuracy/top<k>`` of each student;
    ``mean/accuracy/top<k>``, the mean of the students' accuracies; ``best/accuracy/top<k>``, the
    highest of them; ``ensemble/accuracy/top<k>``, the accuracy of the students' mean probability;
    and ``<name>/accuracy/top<k>`` of each other classifier (FFSD's leader and fusion), which has
    no part in the three summaries. All are percentages of the images. Each of them serves as
    ``save_best`` of MMEngine's ``CheckpointHook``. The names of the summaries are
    ``kd_mm.methods.base.RESERVED_ROWS``.

    As in mmpretrain's ``Accuracy``, a class of probability 0 or NaN is never a hit.

    Args:
        topk (int | Sequence[int]): The k, each at least 1. Defaults to 1.
        any_right (bool): Add ``any_right/accuracy/top<k>``, the share of the images on which at
            least one student is right. No classifier reaches it: it is what the released code of
            FFSD, and so its paper's tables, call the accuracy of the ensemble. Defaults to False.
        collect_device (str): As in MMEngine's ``BaseMetric``. Defaults to ``'cpu'``.
        prefix (str, optional): Goes before each key. Defaults to none.

    Raises:
        ValueError: If a k is below 1 or above the number of classes, or if a sample holds no
            ``student_scores``.

    Examples:
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
        any_right: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        check_flag('any_right', any_right)
        self.any_right = any_right
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if not self.topk or not all(is_int(k) for k in self.topk):
            raise ValueError(f'topk must hold numbers of at least 1, but got {topk!r}')

    @classmethod
    def plain(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Return mmpretrain's accuracy; see the base class."""
        known = signature(Accuracy).parameters
        return {**{k: v for k, v in cfg.items() if k in known}, 'type': 'Accuracy'}

    def process(self, data_batch: object, data_samples: Sequence[Mapping]) -> None:
        """Note who was right on N images.

        Args:
            data_batch: Unused.
            data_samples: Predictions: ``gt_label`` and ``student_scores``, each student's class
                probabilities (K,) by name; ``extra_scores``, those of other classifiers, if any.
        """
        for sample in data_samples:
            if 'student_scores' not in sample:
                raise ValueError(
                    'kd_mm.CohortAccuracy needs the student_scores that a cohort (such as '
                    f'kd_mm.KDCL) predicts, but a sample only has {", ".join(sample)}; measure '
                    "a single classifier with type='Accuracy'"
                )
        labels = torch.cat([sample['gt_label'] for sample in data_samples])
        scores = _stack(data_samples, 'student_scores')
        students = {name: self._hits(s, labels) for name, s in scores.items()}
        others = {'ensemble': self._hits(torch.stack([*scores.values()]).mean(dim=0), labels)}
        if self.any_right:
            others['any_right'] = torch.stack([*students.values()]).any(dim=0)
        extra = _stack(data_samples, 'extra_scores')
        others |= {name: self._hits(s, labels) for name, s in extra.items()}
        # One small row per image, which MMEngine collects over ranks and cuts to the data set.
        groups = {
            group: {name: hits.tolist() for name, hits in rows.items()}
            for group, rows in (('students', students), ('others', others))
        }
        self.results += [
            {group: {n: hits[i] for n, hits in rows.items()} for group, rows in groups.items()}
            for i in range(len(labels))
        ]

    def _hits(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return for scores (N, K) and labels (N,) what is right, (N, number of k) bool."""
        most, num_classes = max(self.topk), scores.shape[-1]
        if most > num_classes:
            raise ValueError(
                f'topk must not exceed the number of classes, {num_classes}, but got {most}'
            )
        values, classes = scores.topk(most)
        hits = (classes == labels.to(classes.device)[:, None]) & (values > 0)
        return torch.stack([hits[:, :k].any(dim=1) for k in self.topk], dim=1)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Return percentages by key, in the order that the class describes."""
        metrics = {}
        for place, k in enumerate(self.topk):
            students, others = (
                {
                    name: 100 * sum(row[group][name][place] for row in results) / len(results)
                    for name in results[0][group]
                }
                for group in ('students', 'others')
            )
            accuracy = {
                **students,
                'mean': sum(students.values()) / len(students),
                'best': max(students.values()),
                **others,
            }
            metrics |= {f'{name}/accuracy/top{k}': value for name, value in accuracy.items()}
        return metrics


def _stack(samples: Sequence[Mapping], field: str) -> dict[str, Tensor]:
    """Return the scores (N, K) of N samples, by name."""
    names = samples[0].get(field, {})
    return {name: torch.stack([sample[field][name] for sample in samples]) for name in names}
