"""The picture holds the curves of the message hub."""

import logging
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from mmengine.logging import MessageHub

from kd_mm.analysis import LearningCurveHook


@pytest.mark.parametrize(('epochs', 'unit', 'steps'), [(4, 'epoch', 1), (0, 'iteration', 100)])
def test_draws_losses_left_and_validation_right(epochs, unit, steps, tmp_path, monkeypatch):
    hub = MessageHub.get_instance(f'curves_{tmp_path.name}')
    for step in range(400):
        hub.update_scalar('train/loss', np.nan if step == 398 else 2.0 - step / 400)
        hub.update_scalar('train/loss_bake', 0.5)
        hub.update_scalar('train/time', 0.1)
        hub.update_scalar('train/lr', 0.1)
    for epoch in range(4):
        hub.update_scalar('val/accuracy/top1', 60.0 + 10 * epoch)
        hub.update_scalar('val/time', 0.1)
    runner = SimpleNamespace(
        message_hub=hub, epoch=epochs, iter=400, work_dir=str(tmp_path), experiment_name='demo',
        logger=logging.getLogger('curves'),
    )  # fmt: skip
    figures, backend = [], matplotlib.get_backend()
    monkeypatch.setattr(plt, 'close', figures.append)
    LearningCurveHook().after_train(runner)
    left, right = figures[0].axes
    assert [line.get_label() for line in left.lines] == ['loss', 'loss_bake']
    assert [line.get_label() for line in right.lines] == ['accuracy/top1']
    assert right.get_xlabel() == unit
    np.testing.assert_allclose(right.lines[0].get_xdata(), steps * np.arange(1, 5))
    np.testing.assert_allclose(right.lines[0].get_ydata(), [60, 70, 80, 90])
    # The mean of the last 4 of 400 values but one, which is not finite.
    assert left.lines[0].get_ydata()[-1] == pytest.approx(2 - (396 + 397 + 399) / 3 / 400)
    assert plt.imread(tmp_path / 'learning_curves.png').ndim == 3
    assert matplotlib.get_backend() == backend
