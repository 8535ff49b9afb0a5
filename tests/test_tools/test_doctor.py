"""What would fail after an hour is named in seconds, and nothing is written."""

import re
import sys
from collections import namedtuple

import pytest
import torch

from kd_mm.methods import DML
from kd_mm.registry import MODELS
from tests import hostile
from tests.conftest import REPO, run, run_tool
from tests.registry import METHODS
from tests.test_run.test_rehearsal import BAKE, FFSD, GENERAL, MUTUAL, VANILLA, small

OK, WARNING, ERROR = 'ok', 'warning', 'error'
FORKS = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmpretrain': '1.3.6',
    'torch': '2.15.0',
    'torchvision': '0.29.2',
    'setuptools': '84.2.1',
}


@pytest.fixture(scope='module')
def tool():
    return hostile.load_tool('misc/doctor.py')


@pytest.mark.parametrize(
    ('found', 'needs', 'words'),
    [
        (FORKS, {'torchvision': ['torch==2.15.0', 'scipy<1; extra == "all"']}, None),
        ({**FORKS, 'mmengine': '0.10.7'}, {}, 'installed more than once'),
        ({}, {}, 'which are not installed'),
        (FORKS, {'torchvision': ['torch==2.14.0']}, 'needs torch==2.14.0, but found torch 2.15.0'),
    ],
)
def test_versions(tool, found, needs, words):
    problems = list(tool.find_problems(found, needs))
    if words is None:
        assert not problems
    else:
        (problem,) = problems
        assert words in problem
        assert 'pip ' in problem  # the command that repairs it


@METHODS.register_module(force=True)
class Idle(DML):
    """Mutual learning with a term that no gradient passes and a layer that takes no part."""

    def setup(self, networks):
        networks.students['wrn16_1'].spare = torch.nn.Linear(2, 2)

    def losses(self, step):
        losses = super().losses(step)
        losses['resnet20/loss_dml'] = losses['resnet20/loss_dml'].detach()
        return losses


def examine(tool, cfg):
    before = cfg.to_dict()
    said = {OK: [], WARNING: [], ERROR: []}
    tool.examine(cfg, lambda level, text: said[level].append(text))
    assert cfg.to_dict() == before
    return said


@pytest.mark.parametrize('config', [BAKE, FFSD, GENERAL])
def test_each_kind_of_method_passes(tool, config, tmp_path, monkeypatch):
    cfg = small(config)
    monkeypatch.chdir(tmp_path)
    said = examine(tool, cfg)
    assert not said[ERROR] + said[WARNING]
    text = '\n'.join(said[OK])
    for words in ('parameters takes part', ' s (', 'images/s)', 'validation gives', 'disk takes'):
        assert words in text
    assert '(20 validations: ' in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (
            {'custom_hooks': [{'type': 'EarlyStoppingHook', 'monitor': 'accuracy/top5'}]},
            "monitor of EarlyStoppingHook must be a metric .*'accuracy/top5'; did you mean accura",
        ),
        (
            {'model__head__loss': {'type': 'CrossEntropyLoss', 'loss_weight': float('inf')}},
            'the first batch has a loss that is not finite: loss; look at the images',
        ),
    ],
)
def test_what_would_fail_later(tool, changes, words):
    (error,) = examine(tool, small(VANILLA, **changes))[ERROR]
    assert re.search(words, error)


def test_an_export_that_fails(tool, monkeypatch):
    def fail(*args):
        raise ValueError('a logit differs')

    monkeypatch.setattr('kd_mm.engine.hooks.export_hook.export_student', fail)
    (error,) = examine(tool, small(VANILLA))[ERROR]
    assert error.startswith('what follows the last batch fails (ValueError: a logit differs); ')


@pytest.mark.parametrize(
    ('kept', 'free', 'level'), [(-1, 2**26, OK), (-1, 2**25, ERROR), (2, 2**25, OK)]
)
def test_room_on_the_disk(tool, kept, free, level, monkeypatch):
    """A checkpoint of this ResNet has 2.1 MiB; twenty are kept, and the best."""
    monkeypatch.setattr('shutil.disk_usage', lambda path: namedtuple('usage', 'free')(free))
    said = examine(tool, small(VANILLA, default_hooks__checkpoint__max_keep_ckpts=kept))
    (text,) = [text for text in said[level] if ' checkpoints of 2.' in text]
    assert f' {21 if kept < 0 else 3} checkpoints of ' in text


def test_what_takes_no_part_is_named(tool):
    said = examine(tool, small(MUTUAL, model__type='tests.Idle', custom_hooks=[]))
    assert said[ERROR] == []
    assert said[WARNING] == [
        'no parameter learns from loss_dml of student resnet20; is a detach() too many?',
        'no gradient reaches 2 parameters of student wrn16_1: students.wrn16_1.spare.weight, '
        'students.wrn16_1.spare.bias; freeze or remove them, or several GPUs need '
        'find_unused_parameters=True',
    ]


def test_what_trains_but_should_not_is_warned_of(tool, tmp_path):
    """Equal students, a schedule that is too long, half a checkpoint, heads and samplers."""
    cfg = small(MUTUAL, train_cfg__max_epochs=10)
    cfg.model.students.wrn16_1 = cfg.model.students.resnet20
    for student in cfg.model.students.values():
        for part in (student.backbone, student.head):
            part.init_cfg = {'type': 'Constant', 'layer': ['Conv2d', 'Linear'], 'val': 0.01}
    equal, late = examine(tool, cfg)[WARNING]
    assert 'students resnet20 and wrn16_1 have identical initial weights' in equal
    assert 'CosineAnnealingLR of param_scheduler goes on to iteration 80, ' in late
    assert 'but training ends at 40; set its end' in late

    torch.save({'state_dict': {'head.fc.weight': torch.ones(12, 64)}}, tmp_path / 'a.pth')
    cfg = small(BAKE, load_from=str(tmp_path / 'a.pth'), model__head__num_classes=12)
    cfg.train_dataloader.sampler = {'type': 'DefaultSampler', 'shuffle': True}
    weights, number, partners = examine(tool, cfg)[WARNING]
    assert f' weights are not in {tmp_path}/a.pth, or differ in shape' in weights
    assert 'the head has 12 classes, but train_dataloader has 10; set its num_classes' in number
    assert 'of the same class, but DefaultSampler puts them into a batch by chance' in partners


def test_the_file_of_a_teacher_is_read_before_the_run(tool, tmp_path):
    cfg = small(MUTUAL)
    network, path = cfg.model.students.resnet20.to_dict(), tmp_path / 'teacher.pth'
    cfg.model.teachers = {'t': {**network, 'checkpoint': str(path), 'input_size': 20}}
    cfg.model.methods = {'kd': {'type': 'tests.Imitate'}}
    assert examine(tool, cfg)[ERROR] == [f'no checkpoint at {path}; check the path']
    model = MODELS.build({**network, '_scope_': 'mmpretrain'})
    torch.save({'state_dict': model.state_dict()}, path)
    said = examine(tool, cfg)
    assert not said[ERROR] + said[WARNING]


def test_the_tool_prints_one_line_per_check_and_writes_nothing(tmp_path):
    options = ['--cfg-options', 'model.head.type=kd_mm.BAKEHed']
    done = run_tool(
        'misc/doctor.py', REPO / BAKE, *options, check=False, cwd=tmp_path, PYTHONPATH=str(REPO)
    )
    lines = [line for line in done.stdout.splitlines() if line[:9].strip() in ('ok:', 'error:')]
    assert done.returncode == 1
    assert [line.split(':')[0] for line in lines] == ['ok', 'ok', 'error']
    assert 'kd_mm' in lines[0]
    assert 'mmpretrain' in lines[1]
    assert lines[2].endswith('no kd_mm.BAKEHed is registered; did you mean kd_mm.BAKEHead?')
    assert not list(tmp_path.iterdir())


def test_packages_that_do_not_fit_are_one_line_too():
    code = (
        'import importlib.metadata, importlib.util, runpy\n'
        'def absent(name): raise importlib.metadata.PackageNotFoundError(name)\n'
        'importlib.metadata.version = absent\n'
        'importlib.util.find_spec = lambda name: None\n'
        f'runpy.run_path({str(REPO / "tools/misc/doctor.py")!r})'
    )
    done = run([sys.executable, '-c', code], check=False, PYTHONPATH=str(REPO))
    assert done.returncode == 1
    assert done.stdout.startswith('error:   kd_mm needs mmengine and mmcv and mmpretrain, which')
    assert 'Traceback' not in done.stdout


def test_the_tool_runs_nothing_that_a_checkpoint_holds(tmp_path, monkeypatch):
    torch.save({'state_dict': {'a': hostile.Attack(tmp_path / 'ran')}}, tmp_path / 'a.pth')
    start = 'model.backbone.init_cfg'
    options = [f'{start}.type=Pretrained', f'{start}.checkpoint={tmp_path}/a.pth']
    ended = hostile.call_tool(monkeypatch, 'misc/doctor.py', BAKE, '--cfg-options', *options)
    assert ended == 1
    assert not (tmp_path / 'ran').exists()
