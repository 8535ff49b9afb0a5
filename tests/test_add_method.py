"""The worked method of docs/add_method.md, run as it stands there."""

import re
import sys
from importlib import import_module

import pytest
import torch
from mmengine.config import Config

from kd_mm.registry import METHODS, MODELS
from tests import contract
from tests.conftest import REPO, run_tool

PAGE = (REPO / 'docs' / 'add_method.md').read_text()
FILES = dict(re.findall(r'```python\n# (\S+)\n(.*?)```', PAGE, re.S))
CONFIG = next(path for path in FILES if '/configs/' in path)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """The project in a folder of its own, on Python's path."""
    folder = tmp_path_factory.mktemp('project')
    for path, text in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope='module')
def row(project):
    return import_module('mutual.tests.row').ROW


def test_it_is_short():
    assert sum(len(text.strip().splitlines()) for text in FILES.values()) < 100


def test_the_project_registers_method_and_model_type(project):
    assert METHODS.get('mutual.JSD').__name__ == 'JSD'
    assert MODELS.get('mutual.JSD').method is METHODS.get('mutual.JSD')
    assert METHODS.get('JSD') is None


@pytest.mark.parametrize('check', contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(row, check):
    check(row)


@pytest.mark.parametrize('check', contract.CHECKS_OF_FILES, ids=lambda check: check.__name__)
def test_contract_of_files(row, check, tmp_path):
    check(row, tmp_path)


def test_two_ranks_equal_one(row, tmp_path):
    ranks = contract.on_two_ranks({'JSD': row}, tmp_path)
    contract.check_two_ranks(row, [rank['JSD'] for rank in ranks])


def test_a_run_has_metric_rows_diagnostics_checks_and_exports(project, tmp_path):
    done = run_tool(
        'train.py',
        project / CONFIG,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'default_hooks.diagnostics.type=kd_mm.DiagnosticsHook',
        'default_hooks.diagnostics.interval=1',
        'train_dataloader.num_batch_per_epoch=2',
        PYTHONPATH=project,
    )
    for text in (
        'resnet20/loss_jsd',
        'wrn16_1/loss_embedding',
        'wrn16_1/accuracy/top1',
        'ensemble/accuracy/top1',
        'diagnostics/gradient_ratio/resnet20',
    ):
        assert text in done.stdout, text
    for name in ('resnet20', 'wrn16_1'):
        plain = Config.fromfile(tmp_path / 'deploy' / name / 'config.py')
        assert 'mutual' not in plain.pretty_text
        assert torch.load(tmp_path / 'deploy' / name / 'model.pth')['state_dict']
