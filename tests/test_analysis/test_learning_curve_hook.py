"""The picture holds the curves of the message hub."""

import logging
from types import SimpleNamespace

import cv2
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from mmengine.logging import MessageHub

from kd_mm.analysis import LearningCurveHook
from kd_mm.analysis.learning_curve_hook import smooth


@pytest.fixture
def runner(tmp_path):
    hub = MessageHub.get_instance(f'curves_{tmp_path.name}')
    for step in range(400):
        hub.update_scalar('train/loss', 2.0 - step / 400)
        hub.update_scalar('train/loss_bake', 0.5)
        hub.update_scalar('train/time', 0.1)
        hub.update_scalar('train/lr', 0.1)
    for epoch in range(4):
        hub.update_scalar('val/accuracy/top1', 60.0 + 10 * epoch)
        hub.update_scalar('val/time', 0.1)
    return SimpleNamespace(
        message_hub=hub,
        epoch=4,
        iter=400,
        work_dir=str(tmp_path),
        experiment_name='demo',
        logger=logging.getLogger('curves'),
    )


def test_draws_losses_left_and_validation_right(runner, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plt, 'close', figures.append)
    LearningCurveHook().after_train(runner)
    left, right = figures[0].axes
    assert [line.get_label() for line in left.lines] == ['loss', 'loss_bake']
    assert [line.get_label() for line in right.lines] == ['accuracy/top1']
    np.testing.assert_allclose(right.lines[0].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [60, 70, 80, 90])
    # The mean of the last 4 of 400 values: 2 - (396 + 397 + 398 + 399) / 4 / 400.
    assert left.lines[0].get_ydata()[-1] == pytest.approx(1.00625)
    assert cv2.imread(str(tmp_path / 'learning_curves.png')).shape[2] == 3


def test_counts_iterations_where_there_are_no_epochs(runner, monkeypatch):
    figures = []
    monkeypatch.setattr(plt, 'close', figures.append)
    runner.epoch = 0
    LearningCurveHook().after_train(runner)
    assert figures[0].axes[1].get_xlabel() == 'iteration'
    np.testing.assert_allclose(figures[0].axes[1].lines[0].get_xdata(), [100, 200, 300, 400])


def test_needs_no_display_and_leaves_the_backend_alone(runner):
    before = matplotlib.get_backend()
    LearningCurveHook().after_train(runner)
    assert matplotlib.get_backend() == before


def test_smooth_is_a_running_mean_by_hand():
    np.testing.assert_allclose(smooth(np.array([1.0, 2, 3, 4]), 3), [1, 1.5, 2, 3])
