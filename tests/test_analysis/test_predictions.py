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

NUM_IMAGES = 48


def make_run(work_dir, recipe, seed=0):
    """Write a checkpoint of random weights; return its config and what the metric says of it."""
    cfg = Config.fromfile(REPO / 'configs' / recipe)
    cfg.work_dir = str(work_dir)
    cfg.val_dataloader.dataset.indices = NUM_IMAGES
    cfg.val_dataloader.batch_size = 32  # and one that is not full
    cfg.randomness = {'seed': seed}
    cfg.custom_hooks = []
    cfg.default_hooks.checkpoint.save_best = None
    init_default_scope('mmpretrain')
    runner = Runner.from_cfg(cfg)
    for name, parameter in runner.model.named_parameters():
        if 'fc' in name:  # predictions of many classes, and not sure ones
            torch.nn.init.normal_(parameter, std=0.5)
    torch.save({'state_dict': runner.model.state_dict()}, work_dir / 'epoch_1.pth')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_1.pth'))
    return cfg, runner.val()


def test_ensemble_is_the_mean_of_the_students_alone():
    scores = {'a': torch.tensor([0.9, 0.1]), 'b': torch.tensor([0.3, 0.7])}
    sample = DataSample()
    sample.set_field(scores, 'student_scores')
    sample.set_field({'leader': torch.tensor([0.0, 1.0])}, 'scores_beside')
    found = {name: values[0].tolist() for name, values in scores_by_network([sample]).items()}
    assert list(found) == ['a', 'b', 'ensemble', 'leader']
    assert found['ensemble'] == pytest.approx([0.6, 0.4])
    assert found['leader'] == [0.0, 1.0]
    sample.set_pred_score(torch.tensor([0.2, 0.8]))
    assert list(scores_by_network([sample], single=True)) == ['network', 'leader']


@pytest.mark.parametrize(
    'recipe',
    ['bake/resnet20_1xb64_digits.py', 'ffsd/ffsd_resnet20_1xb64_digits.py'],
    ids=['bake', 'ffsd'],
)
def test_accuracies_are_those_of_the_metric(recipe, tmp_path):
    cfg, metrics = make_run(tmp_path, recipe)
    before = cfg.pretty_text
    found = predict(tmp_path, cfg)
    assert cfg.pretty_text == before
    assert found.classes == list('0123456789')
    prefix = '' if 'network' in found.networks else '{}/'
    names = {'network'} if not prefix else {'student1', 'student2', 'leader', 'ensemble', 'fusion'}
    assert found.networks.keys() == names
    for name, predictions in found.networks.items():
        top1 = metrics[f'{prefix.format(name)}accuracy/top1']
        assert len(predictions.labels) == NUM_IMAGES
        assert 100 * predictions.hits.mean() == pytest.approx(top1, abs=1e-4)
        right, wrong = predictions.hits, ~predictions.hits
        np.testing.assert_array_equal(predictions.confidence[right], predictions.true_prob[right])
        assert (predictions.true_prob[wrong] < predictions.confidence[wrong]).all()

    # They are kept, until the run goes on.
    kept = read_predictions(tmp_path)
    for name, predictions in found.networks.items():
        for ours, theirs in zip(predictions, kept.networks[name], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    (tmp_path / 'last_checkpoint').write_text('/moved/epoch_1.pth')
    assert read_predictions(tmp_path) is not None
    weights = torch.load(tmp_path / 'epoch_1.pth')
    torch.save({**weights, 'trained': 'again'}, tmp_path / 'epoch_1.pth')
    assert read_predictions(tmp_path) is None
    predict(tmp_path, cfg)
    (tmp_path / 'epoch_1.pth').rename(tmp_path / 'epoch_2.pth')
    assert read_predictions(tmp_path) is None
    with pytest.raises(FileNotFoundError, match='must hold a checkpoint to predict with'):
        predict(tmp_path, cfg)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    assert read_predictions(tmp_path) is None
