"""Accuracies of a cohort, by hand and by NumPy."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook
from mmpretrain.evaluation import Accuracy
from mmpretrain.structures import DataSample

from kd_mm.methods.base import RESERVED_ROWS
from tests.ranks import run_on_ranks

CONFIG = {'type': 'kd_mm.CohortAccuracy'}
# Four images of classes 0, 0, 1, 2; by hand: a is right on 0, 1, 2 and b on 0, 3, while their
# mean probability is right on 0, 1, 3.
LABELS = [0, 0, 1, 2]
A = [[0.5, 0.3, 0.2], [0.9, 0.0, 0.1], [0.3, 0.4, 0.3], [0.2, 0.5, 0.3]]
B = [[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.7, 0.2, 0.1], [0.0, 0.1, 0.9]]


def samples(scores, labels=LABELS, extra=None):
    out = []
    for i, label in enumerate(labels):
        sample = DataSample().set_gt_label(int(label))
        for field, tables in (('student_scores', scores), ('extra_scores', extra)):
            if tables:
                sample.set_field({n: torch.tensor(s[i]) for n, s in tables.items()}, field)
        out.append(sample.set_pred_score(next(iter(sample.student_scores.values()))))
    return out


def evaluate(data_samples, *others, batch=3, **kwargs):
    evaluator = Evaluator([{**CONFIG, **kwargs}, *others])
    for start in range(0, len(data_samples), batch):
        evaluator.process(data_samples[start : start + batch])
    return evaluator.evaluate(len(data_samples))


def test_by_hand():
    right = [[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.1, 0.9, 0.0], [0.1, 0.2, 0.7]]
    data = samples({'a': A, 'b': B}, extra={'leader': right, 'fusion': A})
    metrics = evaluate(data, any_right=True, prefix='clean')
    expected = {'a': 75, 'b': 50, 'mean': 62.5, 'best': 75, 'ensemble': 75, 'any_right': 100}
    expected |= {'leader': 100, 'fusion': 75}  # no part in the summaries
    assert list(metrics.items()) == [
        (f'clean/{name}/accuracy/top1', value) for name, value in expected.items()
    ]
    assert set(expected) - set(RESERVED_ROWS) == {'a', 'b', 'leader'}
    del expected['any_right']
    assert list(evaluate(data).values()) == list(expected.values())


@pytest.mark.parametrize('topk', [(1, 5), 3])
def test_against_numpy(topk):
    rng = np.random.default_rng(0)
    labels = rng.integers(7, size=50)
    scores = {name: rng.dirichlet(np.ones(7), size=50) for name in ('x', 'y', 'z')}
    metrics = evaluate(samples(scores, labels), batch=8, topk=topk)
    ks = [topk] if isinstance(topk, int) else topk
    assert len(metrics) == 6 * len(ks)
    for k in ks:
        accuracy = {}
        for name, table in {**scores, 'ensemble': sum(scores.values()) / 3}.items():
            best = np.argsort(-table, axis=1)[:, :k]
            accuracy[name] = 100 * np.mean([labels[i] in best[i] for i in range(50)])
        students = [accuracy[name] for name in scores]
        accuracy |= {'mean': np.mean(students), 'best': max(students)}
        for name, expected in accuracy.items():
            assert metrics[f'{name}/accuracy/top{k}'] == pytest.approx(expected)


def test_equals_mmpretrains_accuracy_of_the_deployed_student():
    scores = {'a': [*A, [float('nan')] * 3, [0.0, 1.0, 0.0]], 'b': [*B, *B[:2]]}
    data = samples(scores, [*LABELS, 0, 0])
    metrics = evaluate(data, Accuracy(topk=(1, 2)), topk=(1, 2))
    for k in (1, 2):
        assert metrics[f'a/accuracy/top{k}'] == pytest.approx(metrics[f'accuracy/top{k}'])
    assert metrics['a/accuracy/top1'] == pytest.approx(50.0)


def test_the_best_checkpoint_is_that_of_the_higher_accuracy():
    for key in evaluate(samples({'a': A, 'b': B})):
        assert CheckpointHook(save_best=key).rules == ['greater']


def evaluate_on_a_rank(rank):
    """Images 0, 2, then 1, 3, then 0 again as padding, as DefaultSampler deals them."""
    data = samples({'a': A, 'b': B})[:3]
    evaluator = Evaluator([CONFIG])
    evaluator.process([data[i] for i in ((0, 2), (1, 0))[rank]])
    return evaluator.evaluate(3)


def test_two_ranks_equal_one_process_without_the_padding(tmp_path):
    expected = evaluate(samples({'a': A, 'b': B})[:3])
    assert expected['a/accuracy/top1'] == 100.0
    assert expected['b/accuracy/top1'] == pytest.approx(100 / 3)
    assert run_on_ranks(evaluate_on_a_rank, tmp_path) == [expected, expected]


@pytest.mark.parametrize(
    ('topk', 'message'),
    [
        (0, 'numbers of at least 1, but got 0'),
        ((), 'numbers of at least 1, but got'),
        ((1, 5), 'number of classes, 3, but got 5'),
    ],
)
def test_topk_out_of_range(topk, message):
    with pytest.raises(ValueError, match=message):
        evaluate(samples({'a': A}), topk=topk)


def test_a_plain_classifier_is_named():
    sample = DataSample().set_gt_label(0).set_pred_score(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"only has .*pred_score.*type='Accuracy'"):
        evaluate([sample])
