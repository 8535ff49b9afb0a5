"""What scaling costs: the formula by hand, the protocol on a fake clock."""

import runpy
import sys
from itertools import count

import numpy as np
import pytest
import torch

from kd_mm.analysis import scaling
from tests.conftest import REPO


def test_cost_by_hand():
    """Two ranks of 3 images, 5 features, 7 classes; then 2 classes, which make solves cheaper."""
    assert scaling.ensembling_cost(2, 3, 5, 7) == {
        'operations': 2 * 36 * 5 + 72 + 2 * 36 * 3 + 2 * 3 * 6 * 7,
        'received_bytes': 4 * 3 * (5 + 7 + 1),
        'matrix_bytes': 4 * 36,
    }
    assert scaling.ensembling_cost(2, 3, 5, 2)['operations'] == 2 * 36 * 5 + 72 + 2 * 36 * 2
    assert scaling.ensembling_cost(1, 3, 5, 7)['received_bytes'] == 0


def test_ensembling_is_timed_for_one_rank_without_the_first(monkeypatch):
    calls = []
    moments = iter([0, 100, 100, 101, 101, 103, 103, 107])
    monkeypatch.setattr(scaling.time, 'process_time', lambda: next(moments))
    monkeypatch.setattr(
        scaling,
        'ensemble_knowledge',
        lambda features, logits, *args, rows: calls.append((features.shape, logits.shape, rows)),
    )
    rows = scaling.measure_ensembling([2], images=3, features=5, classes=7, rounds=3)
    assert calls == [((6, 5), (6, 7), slice(0, 3))] * 4
    assert rows[0]['ms'] == {'median': 2000.0, 'quartiles': [1500.0, 3000.0]}
    assert scaling.ensembling_table(rows, step_ms=400000.0).splitlines()[2] == (
        '| 2 | 6 | 0.00 G | 0.0 | 0.0 | 2,000.0 (1,500.0 to 3,000.0) | 0.50 % |'
    )
    assert 'share' not in scaling.ensembling_table(rows)


def test_ensembling_takes_turns_with_an_inverse_that_gives_the_same(monkeypatch):
    targets = []
    monkeypatch.setattr(scaling.time, 'process_time', count(0, 1).__next__)
    for name in ('ensemble_knowledge', '_by_inverse'):
        function = getattr(scaling, name)
        monkeypatch.setattr(
            scaling,
            name,
            lambda *args, function=function, **kwargs: targets.append(function(*args, **kwargs)),
        )
    rows = scaling.measure_inverse(6, features=5, classes=7, shares=(1, 3), rounds=2)
    assert [len(target) for target in targets] == [6] * 6 + [2, 6] * 3
    for ours, inverse in zip(targets[::2], targets[1::2], strict=True):
        torch.testing.assert_close(ours, inverse[: len(ours)])
    assert [row['ratio']['median'] for row in rows] == [1.0, 1.0]
    assert scaling.inverse_table(rows).splitlines()[3] == (
        '| 3 | 1000.0 (1000.0 to 1000.0) | 1000.0 (1000.0 to 1000.0) | 1.00 (1.00 to 1.00) |'
    )


def test_sampler_is_timed_apart_from_its_index(monkeypatch):
    moments = iter([0.0, 2.0, 5.0])
    peaks = count(0, 3 * 2**20)
    monkeypatch.setattr(scaling.time, 'process_time', lambda: next(moments))
    monkeypatch.setattr(scaling, '_peak_bytes', lambda: next(peaks))
    row = scaling._measure_sampler(50, num_classes=5, num_instances=3)
    assert row == {
        'labels': 50,
        'indices': 150,
        'build_s': 2.0,
        'epoch_s': 3.0,
        'peak_bytes': 3 * 2**20,
    }
    assert scaling.sampler_line(row) == '| 50 | 2.00 | 150 | 3.00 | 20000.000 | 3 |'


def test_each_class_has_a_label():
    labels = scaling.Labels(7, num_classes=5)
    assert set(labels.labels) == set(range(5))
    assert labels.get_cat_ids(3) == [3]
    assert np.bincount(scaling.Labels(5000, num_classes=5).labels).min() > 800


def test_tool_prints_both_tables(monkeypatch, capsys):
    command = 'x --ranks 1 2 --images 4 --rounds 1 --features 3 --classes 5 --labels 20'
    monkeypatch.setattr(sys, 'argv', [*command.split(), '--num-instances', '4'])
    monkeypatch.setattr(scaling.time, 'process_time', lambda: 0.0)  # in forks, too
    tool = REPO / 'tools/analysis_tools/benchmark_scaling.py'
    runpy.run_path(str(tool), run_name='__main__')
    table = capsys.readouterr().out
    assert '| 2 | 8 | 0.00 G |' in table
    assert '| 20 | 0.00 | 80 | 0.00 | 0.000 |' in table


def test_tool_without_a_question_says_which_there_are(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['x', '--images', '4'])
    tool = REPO / 'tools/analysis_tools/benchmark_scaling.py'
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tool), run_name='__main__')
    assert ended.value.code == 2
    assert 'give --ranks, --inverse or --labels' in capsys.readouterr().err
