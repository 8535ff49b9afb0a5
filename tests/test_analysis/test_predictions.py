"""Predictions of a checkpoint give the accuracies that the run's own metric gives."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

from kd_mm.analysis.predictions import predict, read_predictions, scores_by_network
from tests.conftest import REPO


def test_ensemble_is_the_mean_of_the_students_alone():
    sample = DataSample()
    scores = {'a': torch.tensor([0.9, 0.1]), 'b': torch.tensor([0.3, 0.7])}
    sample.set_field(scores, 'student_scores')
    sample.set_field({'leader': torch.tensor([0.0, 1.0])}, 'extra_scores')
    found = {name: values[0].tolist() for name, values in scores_by_network([sample]).items()}
    assert list(found) == ['a', 'b', 'ensemble', 'leader']
    assert found['ensemble'] == pytest.approx([0.6, 0.4])
    sample.set_pred_score(torch.tensor([0.2, 0.8]))
    assert list(scores_by_network([sample], single=True)) == ['network', 'leader']


@pytest.mark.parametrize(
    'recipe', ['bake/resnet20_1xb64_digits', 'ffsd/ffsd_resnet20_1xb64_digits']
)
def test_accuracies_are_those_of_the_metric(recipe, tmp_path):
    cfg = Config.fromfile(REPO / f'configs/{recipe}.py')
    cfg.work_dir = str(tmp_path)
    cfg.val_dataloader.dataset.indices = 48
    cfg.val_dataloader.batch_size = 32  # and one that is not full
    cfg.custom_hooks = []
    cfg.default_hooks.checkpoint.save_best = None
    init_default_scope('mmpretrain')
    runner = Runner.from_cfg(cfg)
    for name, parameter in runner.model.named_parameters():
        if 'fc' in name:  # predictions of many classes
            torch.nn.init.normal_(parameter, std=0.5)
    checkpoint, pointer = tmp_path / 'epoch_1.pth', tmp_path / 'last_checkpoint'
    torch.save({'state_dict': runner.model.state_dict()}, checkpoint)
    pointer.write_text(str(checkpoint))
    metrics, before = runner.val(), cfg.pretty_text

    found = predict(tmp_path, cfg)
    assert cfg.pretty_text == before
    assert found.classes.tolist() == list('0123456789')
    if recipe.startswith('bake'):
        metrics = {f'network/{key}': value for key, value in metrics.items()}
    for row, name in enumerate(found.networks):
        hits = found.predicted[row] == found.labels
        assert len(hits) == 48
        assert 100 * hits.mean() == pytest.approx(metrics[f'{name}/accuracy/top1'], abs=1e-4)
        same = found.confidence[row] == found.true_prob[row]
        np.testing.assert_array_equal(same, hits)
    assert len(found.networks) == (1 if recipe.startswith('bake') else 5)

    # They are kept until the run goes on, and where the folder was moved.
    pointer.write_text('/moved/epoch_1.pth')
    kept = read_predictions(tmp_path)
    for ours, theirs in zip(found, kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    torch.save({'state_dict': runner.model.state_dict(), 'trained': 'again'}, checkpoint)
    assert read_predictions(tmp_path) is None
    checkpoint.unlink()
    with pytest.raises(FileNotFoundError, match='must hold a checkpoint to predict with'):
        predict(tmp_path, cfg)
