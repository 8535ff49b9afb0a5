"""The start's check and the doctor's report; wrong settings are rows of test_bad_input."""

import logging
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, HOOKS, METRICS
from mmpretrain.registry import MODELS
from torch.utils.data import IterableDataset

from kd_mm.run.rehearsal import check_config, check_folder, quiet
from tests import hostile
from tests.conftest import REPO

BAKE = 'configs/bake/resnet20_1xb64_digits.py'
MUTUAL = 'configs/dml/dml_resnet20-wrn16-1_1xb64_digits.py'
GENERAL = 'configs/kdcl/kdcl-general_resnet20-wrn16-1_1xb64_digits.py'
FFSD = 'configs/ffsd/ffsd_resnet20_1xb64_digits.py'
VANILLA = 'configs/vanilla/vanilla_resnet20_1xb64_digits.py'
LOADERS = ('train_dataloader', 'val_dataloader')
OK, WARNING, ERROR = 'ok', 'warning', 'error'


def small(config, **changes):
    """A config with few images."""
    cfg = Config.fromfile(REPO / config)
    trained = cfg.train_dataloader.dataset
    cfg.val_dataloader.dataset.indices = 64
    if 'dataset' in trained:  # a hold-out, which leaves some of each class
        trained.dataset.indices = 256
    else:
        trained.indices = 64
    cfg.train_dataloader.batch_size = 16
    cfg.work_dir = 'nowhere/at/all'
    for name in LOADERS:
        cfg[name].collate_fn = {'type': 'default_collate'}
        cfg[name].persistent_workers = False
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return cfg


@HOOKS.register_module(force=True)
class Watch(Hook):
    """Notes the batches that a rehearsal passes."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        SEEN.append(('train', runner.model.training, len(data_batch['data_samples'])))

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        SEEN.append(('val', runner.model.training, len(data_batch['data_samples'])))


SEEN = []


@pytest.mark.parametrize('by_epoch', [True, False])
def test_the_start_passes_two_images_through_the_run(by_epoch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SEEN.clear()
    cfg = small(VANILLA, custom_hooks=[{'type': 'Watch'}])
    if not by_epoch:
        cfg.train_cfg = {'by_epoch': False, 'max_iters': 4}
    before = cfg.to_dict()
    check_config(cfg, LOADERS)
    assert SEEN == [('train', True, 2), ('val', False, 2)]
    assert cfg.to_dict() == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('config', [FFSD, GENERAL])
def test_a_run_is_the_same_after_its_check(config, tmp_path, monkeypatch):
    """Bitwise: no generator, setting or registry that the run meets is changed."""
    monkeypatch.chdir(tmp_path)
    losses = []
    for checked in (False, True):
        tool = hostile.load_tool('train.py')
        cfg = small(config, train_cfg__max_epochs=1, randomness__seed=3)
        cfg.dump(tmp_path / 'config.py')
        work_dir = tmp_path / f'checked_{checked}'
        options = [] if checked else ['--no-check']
        command = ['train.py', 'config.py', '--work-dir', str(work_dir), *options]
        monkeypatch.setattr(sys, 'argv', command)
        tool.main()
        checkpoint = torch.load(work_dir / 'epoch_1.pth', weights_only=False)
        losses.append(checkpoint['state_dict'])
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


@METRICS.register_module(force=True)
class NeedsMany(BaseMetric):
    """A metric that two images do not define."""

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        assert len(results) > 2
        return {'many': 1.0}


@DATASETS.register_module(force=True)
class Stream(IterableDataset):
    """Images without a length or an index."""

    def __init__(self, dataset):
        self.dataset = DATASETS.build(dataset)

    def __len__(self):
        return len(self.dataset)

    def __iter__(self):
        return (self.dataset[index] for index in range(len(self.dataset)))


@MODELS.register_module(force=True)
class Diverges(torch.nn.Module):
    """A loss that is NaN on few images."""

    def forward(self, cls_score, label, **kwargs):
        return cls_score.sum() * (float('nan') if len(label) < 3 else 1.0)


@pytest.mark.parametrize(
    'changes',
    [
        {'val_evaluator': [{'type': 'NeedsMany'}]},
        {'model__head__loss': {'type': 'Diverges', '_delete_': True}},
        {'visualizer': None, 'custom_hooks': (), 'param_scheduler': None},
        {'optim_wrapper__type': 'kd_mm.Bfloat16OptimWrapper', 'compile': True},
        {'runner_type': 'FlexibleRunner'},
        {'val_dataloader': None, 'val_cfg': None, 'val_evaluator': None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_plain_training_takes_is_not_refused(changes):
    check_config(small(VANILLA, **changes), LOADERS)


def test_data_without_indices_are_read_as_they_come():
    cfg = small(VANILLA)
    dataset = cfg.train_dataloader.dataset.to_dict()
    cfg.train_dataloader.dataset = {'type': 'Stream', 'dataset': dataset}
    cfg.train_dataloader.sampler = None
    check_config(cfg, LOADERS)


def test_what_the_run_will_log_is_not_said_before():
    """MMEngine's logger remembers that it is loud; a recipe has a line for each parameter."""
    logger, lines = MMLogger.get_current_instance(), []
    logger.addHandler(handler := logging.Handler(logging.INFO))
    handler.emit = lambda record: lines.append(record.msg)
    try:
        logger.info('loud')
        with quiet():
            logger.info('held back')
        logger.info('loud again')
    finally:
        logger.removeHandler(handler)
    assert lines == ['loud', 'loud again']


def test_a_work_dir_that_cannot_be_written(tmp_path, monkeypatch):
    assert check_folder(tmp_path / 'a/b') == tmp_path
    monkeypatch.setattr('os.access', lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError, match=f'{tmp_path} is not; choose another --work-dir'):
        check_folder(tmp_path / 'a/b')
