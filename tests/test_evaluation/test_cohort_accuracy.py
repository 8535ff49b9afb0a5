"""Accuracies of a cohort, by hand and by NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook
from mmpretrain.evaluation import Accuracy
from mmpretrain.structures import DataSample

from tests.test_distributed.ranks import run_on_ranks

CONFIG = {'type': 'kd_mm.CohortAccuracy'}
# Four images of classes 0, 0, 1, 2; by hand: a is right on 0, 1, 2 and b on 0, 3, while their
# mean probability is right on 0, 1, 3.
LABELS = [0, 0, 1, 2]
A = [[0.5, 0.3, 0.2], [0.9, 0.0, 0.1], [0.3, 0.4, 0.3], [0.2, 0.5, 0.3]]
B = [[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.7, 0.2, 0.1], [0.0, 0.1, 0.9]]


def samples(scores, labels):
    out = []
    for i, label in enumerate(labels):
        sample = DataSample().set_gt_label(int(label))
        sample.set_field({n: torch.tensor(s[i]) for n, s in scores.items()}, 'student_scores')
        out.append(sample.set_pred_score(next(iter(sample.student_scores.values()))))
    return out


def evaluate(data_samples, *others, batch=3, **kwargs):
    evaluator = Evaluator([{**CONFIG, **kwargs}, *others])
    for start in range(0, len(data_samples), batch):
        evaluator.process(data_samples[start : start + batch])
    return evaluator.evaluate(len(data_samples))


def test_by_hand():
    metrics = evaluate(samples({'a': A, 'b': B}, LABELS))
    assert list(metrics.items()) == [
        ('a/accuracy/top1', 75.0),
        ('b/accuracy/top1', 50.0),
        ('mean/accuracy/top1', 62.5),
        ('best/accuracy/top1', 75.0),
        ('ensemble/accuracy/top1', 75.0),
    ]


def test_any_student_right_is_above_every_classifier():
    metrics = evaluate(samples({'a': A, 'b': B}, LABELS), any_right=True)
    assert metrics.pop('any_right/accuracy/top1') == 100.0
    assert metrics == evaluate(samples({'a': A, 'b': B}, LABELS))


def test_classifiers_beside_the_students_have_no_part_in_the_summaries():
    data = samples({'a': A, 'b': B}, LABELS)
    right = [[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.1, 0.9, 0.0], [0.1, 0.2, 0.7]]
    for i, sample in enumerate(data):
        beside = {'leader': torch.tensor(right[i]), 'fusion': torch.tensor(A[i])}
        sample.set_field(beside, 'scores_beside')
    metrics = evaluate(data, any_right=True)
    assert metrics.pop('leader/accuracy/top1') == 100.0
    assert metrics.pop('fusion/accuracy/top1') == 75.0
    assert metrics == evaluate(samples({'a': A, 'b': B}, LABELS), any_right=True)


@pytest.mark.parametrize('topk', [(1, 5), (2,), 3])
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


def test_beside_mmpretrains_accuracy_of_the_deployed_student():
    scores = {'a': [*A, [float('nan')] * 3, [0.0, 1.0, 0.0]], 'b': [*B, *B[:2]]}
    data = samples(scores, [*LABELS, 0, 0])
    metrics = evaluate(data, Accuracy(topk=(1, 2)), topk=(1, 2))
    for k in (1, 2):
        assert metrics[f'a/accuracy/top{k}'] == pytest.approx(metrics[f'accuracy/top{k}'])
    assert metrics['a/accuracy/top1'] == pytest.approx(50.0)


def test_prefix():
    metrics = evaluate(samples({'a': A}, LABELS), prefix='clean')
    assert metrics['clean/a/accuracy/top1'] == 75.0


def test_notes_are_small_and_no_tensors():
    metric = Evaluator({**CONFIG, 'topk': (1, 2)}).metrics[0]
    metric.process(None, [s.to_dict() for s in samples({'a': A, 'b': B}, LABELS)])
    assert metric.results[1] == {
        'students': {'a': [True, True], 'b': [False, False]},
        'ensemble': [True, True],
        'any_right': [True, True],
        'beside': {},
    }
    assert len(metric.results) == 4


@pytest.mark.parametrize('key', ['a/accuracy/top1', 'ensemble/accuracy/top1', 'auto'])
def test_save_best_keeps_the_higher(key, tmp_path):
    hook = CheckpointHook(save_best=key)
    saved = []
    infos = {}
    runner = SimpleNamespace(
        epoch=1,
        iter=1,
        work_dir=str(tmp_path),
        message_hub=SimpleNamespace(
            runtime_info=infos, update_info=infos.__setitem__, get_info=infos.__getitem__
        ),
        save_checkpoint=lambda folder, filename, **_: saved.append(filename),
        logger=SimpleNamespace(info=lambda *_: None),
    )
    hook.out_dir, hook.file_backend = str(tmp_path), get_file_backend(str(tmp_path))
    better = evaluate(samples({'a': A, 'b': B}, LABELS))
    worse = evaluate(samples({'a': B, 'b': B}, LABELS))
    for runner.epoch, metrics in ((1, worse), (2, better), (3, worse)):
        hook.after_val_epoch(runner, metrics)
    assert infos['best_score'] == 75.0
    name = 'a' if key == 'auto' else key.split('/')[0]
    assert saved == [f'best_{name}_accuracy_top1_epoch_{epoch}.pth' for epoch in (1, 2)]


def evaluate_on_a_rank(rank):
    """Images 0, 2, then 1, 3, then 0 again as padding, as DefaultSampler deals them."""
    data = samples({'a': A, 'b': B}, LABELS)[:3]
    evaluator = Evaluator([CONFIG])
    evaluator.process([data[i] for i in ((0, 2), (1, 0))[rank]])
    return evaluator.evaluate(3)


def test_two_ranks_equal_one_process_without_the_padding(tmp_path):
    expected = evaluate(samples({'a': A, 'b': B}, LABELS)[:3])
    assert expected['a/accuracy/top1'] == 100.0
    assert expected['b/accuracy/top1'] == pytest.approx(100 / 3)
    assert run_on_ranks(evaluate_on_a_rank, tmp_path) == [expected, expected]


def test_a_plain_classifier_is_named():
    sample = DataSample().set_gt_label(0).set_pred_score(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"only has .*pred_score.*type='Accuracy'"):
        evaluate([sample])


@pytest.mark.parametrize('name', ['mean', 'best', 'ensemble'])
def test_a_student_with_the_name_of_a_summary(name):
    with pytest.raises(ValueError, match=f'but got {name}; rename'):
        evaluate(samples({'a': A, name: B}, LABELS))


@pytest.mark.parametrize('topk', [0, (), (1, -1)])
def test_topk_below_one(topk):
    with pytest.raises(ValueError, match='numbers of at least 1, but got'):
        evaluate([], topk=topk)


def test_topk_above_the_number_of_classes():
    with pytest.raises(ValueError, match='number of classes, 3, but got 5'):
        evaluate(samples({'a': A}, LABELS), topk=(1, 5))
