"""What would fail after an hour is named in seconds, and nothing is written."""

import sys
from argparse import Namespace
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from kd_mm.methods import DML
from kd_mm.registry import MODELS
from kd_mm.run import doctor
from kd_mm.run.doctor import (
    ERROR,
    OK,
    WARNING,
    Rehearsal,
    examine_config,
    examine_installation,
)
from kd_mm.run.launch import set_dataloader_defaults
from tests import forked
from tests.conftest import REPO, run, run_tool
from tests.registry import METHODS as OWN_METHODS

BAKE = 'configs/bake/resnet20_1xb64_digits.py'
MUTUAL = 'configs/dml/dml_resnet20-wrn16-1_1xb64_digits.py'
KDCL = 'configs/kdcl/kdcl-{}_resnet20-wrn16-1_1xb64_digits.py'
FFSD = 'configs/ffsd/ffsd_resnet20_1xb64_digits.py'
VANILLA = 'configs/vanilla/vanilla_resnet20_1xb64_digits.py'
METHODS = [BAKE, MUTUAL, FFSD, VANILLA, KDCL.format('general')]
FORKS = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmpretrain': '1.3.6',
    'torch': '2.15.0',
    'torchvision': '0.29.2',
    'setuptools': '84.2.1',
    'numpy': '2.4.6',
}
ORIGINALS = {
    'mmengine': '0.10.7',
    'mmcv-lite': '2.1.0',
    'mmpretrain': '1.2.0',
    'torch': '2.4.1+cu121',
    'torchvision': '0.19.1',
    'setuptools': '65.5.0',
    'numpy': '1.26.4',
}


@pytest.mark.parametrize(
    ('found', 'needs', 'level', 'words'),
    [
        (FORKS, {}, OK, ['onedl-mmengine 0.10.12, onedl-mmcv', '(maintained forks)']),
        (ORIGINALS, {}, OK, ['mmengine 0.10.7', '(originals)']),
        (
            {**ORIGINALS, 'torch': '2.6.0'},
            {},
            ERROR,
            ['cannot load its own checkpoints', 'Run: pip uninstall -y mmengine mmcv mmcv-lite'],
        ),
        (
            {**ORIGINALS, 'setuptools': '82.0.0'},
            {},
            ERROR,
            ['`mmpretrain::`', 'Run: pip install "setuptools<82"'],
        ),
        (
            {**ORIGINALS, **FORKS},
            {},
            ERROR,
            ['installed more than once', 'pip uninstall -y onedl-mmengine mmengine'],
        ),
        (
            {**FORKS, 'torch': '2.2.2'},
            {},
            ERROR,
            ['torch 2.2.2 was built for NumPy 1', 'numpy 2.4.6', 'Run: pip install "numpy<2"'],
        ),
        ({**FORKS, 'torch': '2.3.0'}, {}, OK, ['(maintained forks)']),
        (
            {**ORIGINALS, 'numpy': '2.0.0'},
            {},
            WARNING,
            ['released before NumPy 2', 'Run: pip install "numpy<2"'],
        ),
        (
            FORKS,
            {'torchvision': ['torch==2.14.0', 'numpy', 'scipy<1; extra == "all"']},
            ERROR,
            ['torchvision 0.29.2 needs torch==2.14.0, but found torch 2.15.0', '"torch==2.14.0"'],
        ),
        (FORKS, {'torchvision': ['torch==2.15.0']}, OK, ['(maintained forks)']),
        ({}, {}, ERROR, ['which are not installed', 'Run: pip install']),
    ],
)
def test_versions(found, needs, level, words):
    findings = examine_installation(found, needs)
    worst = [finding for finding in findings if finding.level == level]
    assert worst
    assert all(finding.level in (OK, level) for finding in findings)
    assert any(all(word in str(finding) for word in words) for finding in findings), findings


@OWN_METHODS.register_module(force=True)
class Idle(DML):
    """Mutual learning with a term that no gradient passes and a layer that takes no part."""

    def setup(self, networks):
        networks.students['wrn16_1'].spare = torch.nn.Linear(2, 2)

    def losses(self, step):
        losses = super().losses(step)
        losses['resnet20/loss_dml'] = losses['resnet20/loss_dml'].detach()
        return losses


def small(config, **changes):
    """A config with few images."""
    cfg = Config.fromfile(REPO / config)
    sets = [cfg.val_dataloader.dataset]
    trained = cfg.train_dataloader.dataset
    sets.append(trained.dataset if 'dataset' in trained else trained)
    sets[0].indices = 64
    sets[1].indices = 256 if 'dataset' in trained else 64  # a hold-out leaves some of each class
    cfg.train_dataloader.batch_size = 16
    cfg.work_dir = 'nowhere/at/all'
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    loaders = ('train_dataloader', 'val_dataloader')
    set_dataloader_defaults(cfg, Namespace(no_pin_memory=False), loaders, persistent=True)
    return cfg


@pytest.fixture(autouse=True)
def one_step(monkeypatch):
    monkeypatch.setattr(doctor, 'MAX_STEPS', 1)


def examine(cfg):
    before = cfg.to_dict()
    findings = list(examine_config(cfg))
    assert cfg.to_dict() == before
    return {
        level: [f.text for f in findings if f.level == level] for level in (OK, WARNING, ERROR)
    }


@pytest.mark.parametrize('config', METHODS)
def test_each_method_passes(config, tmp_path, monkeypatch):
    cfg = small(config)
    monkeypatch.chdir(tmp_path)
    said = examine(cfg)
    assert not said[ERROR] + said[WARNING]
    text = '\n'.join(said[OK])
    for words in ('parameters takes part', ' s (', 'images/s)', 'validation gives', 'exported'):
        assert words in text
    assert '(20 validations: ' in text
    assert not list(tmp_path.iterdir())


PIPELINE = 'val_dataloader__dataset__pipeline'


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (
            {'default_hooks__checkpoint__save_best': 'acuracy/top1'},
            ['save_best of CheckpointHook must be a metric', "did you mean 'accuracy/top1'?"],
        ),
        (
            {'custom_hooks': [{'type': 'EarlyStoppingHook', 'monitor': 'accuracy/top5'}]},
            ['monitor of EarlyStoppingHook', "'accuracy/top5'; did you mean 'accuracy/top1'"],
        ),
        ({'val_evaluator__topk': (1, 50)}, ['val_evaluator cannot measure two images']),
        ({PIPELINE: [{'type': 'Resize', 'scale': 16}]}, ['val_dataloader must end in PackInputs']),
        (
            {'param_scheduler': [{'type': 'MultiStepLR', 'gamma': 0.1}]},
            ['param_scheduler[0] cannot be built', 'milestones'],
        ),
        (
            {'model__backbone': {'_delete_': True, 'type': 'ResNeXt', 'depth': 50, 'grups': 2}},
            ['ResNeXt has no option grups; did you mean groups?'],
        ),
        (
            {'train_dataloader__drop_last': True, 'train_dataloader__batch_size': 300},
            ['an epoch must have a batch', 'lower the batch size'],
        ),
        (
            {'model__head__loss': {'type': 'CrossEntropyLoss', 'loss_weight': float('inf')}},
            ['the first batch fails: loss must be finite'],
        ),
    ],
)
def test_what_would_fail_later(changes, words):
    said = examine(small(VANILLA, **changes))
    assert all(any(word in text for text in said[ERROR]) for word in words), said


def test_an_export_that_fails(monkeypatch):
    def fail(*args):
        raise ValueError('a logit differs')

    monkeypatch.setattr('kd_mm.engine.hooks.export_hook.export_student', fail)
    said = examine(small(VANILLA))
    assert said[ERROR] == ['what follows the last epoch fails: a logit differs']


def test_room_on_the_disk(tmp_path, monkeypatch):
    """A checkpoint of a ResNet-20 has some 1 MiB, before there is momentum."""
    rehearsal = Rehearsal(
        small(VANILLA, default_hooks__checkpoint__max_keep_ckpts=-1), str(tmp_path)
    )
    list(rehearsal.start())
    usage = namedtuple('usage', 'free')

    def level(free):
        monkeypatch.setattr('shutil.disk_usage', lambda path: usage(free))
        (finding,) = rehearsal.room()
        assert finding.text.startswith(
            f'{"the disk takes " * (finding.level == OK)}{kept} checkpoints of 1.03 MiB; '
            f'{Path.cwd()} has '
        )
        return finding.level

    kept = 21  # twenty epochs, and the best
    assert [level(2**21), level(2**24), level(2**25)] == [ERROR, WARNING, OK]
    (saver,) = [h for h in rehearsal.runner.hooks if isinstance(h, CheckpointHook)]
    saver.max_keep_ckpts = 2
    kept = 3
    assert [level(2**22 - 2**20), level(2**24)] == [ERROR, OK]


def test_what_takes_no_part_is_named():
    said = examine(small(MUTUAL, model__type='tests.Idle', custom_hooks=[]))
    assert said[ERROR] == []
    assert said[WARNING] == [
        'no parameter learns from loss_dml of student resnet20; is a detach() too many?',
        'no gradient reaches 2 parameters of student wrn16_1: students.wrn16_1.spare.weight, '
        'students.wrn16_1.spare.bias; freeze or remove them, or several GPUs need '
        'find_unused_parameters=True',
    ]


def test_equal_students_schedules_and_half_a_checkpoint_are_warned_of(tmp_path):
    cfg = small(MUTUAL, train_cfg__max_epochs=10)
    cfg.model.students.wrn16_1 = cfg.model.students.resnet20
    for student in cfg.model.students.values():
        for part in (student.backbone, student.head):
            part.init_cfg = {'type': 'Constant', 'layer': ['Conv2d', 'Linear'], 'val': 0.01}
    said = examine(cfg)
    texts = '\n'.join(said[WARNING])
    assert 'students resnet20 and wrn16_1 start with identical weights' in texts
    assert 'CosineAnnealingLR of param_scheduler goes on to iteration 80, ' in texts
    assert 'but training ends at 40; set its end' in texts

    torch.save({'state_dict': {'head.fc.weight': torch.ones(10, 64)}}, tmp_path / 'a.pth')
    said = examine(small(VANILLA, load_from=str(tmp_path / 'a.pth')))
    assert f' weights are not in {tmp_path}/a.pth, or differ in shape' in said[WARNING][0]


def test_heads_that_do_not_fit_the_data_are_warned_of():
    sampler = {'type': 'DefaultSampler', 'shuffle': True}
    cfg = small(BAKE, model__head__num_classes=12)
    cfg.train_dataloader.sampler = sampler
    number, partners = examine(cfg)[WARNING]
    assert 'the head tells 12 classes apart, but train_dataloader has 10; set its num' in number
    assert 'of the same class, but DefaultSampler puts them into a batch by chance' in partners


def test_a_method_that_needs_a_sampler_is_warned_of_once():
    cfg = small(VANILLA)
    cfg.model = {'type': 'kd_mm.BAKE', 'student': cfg.model}
    said = examine(cfg)
    assert said[ERROR] == []
    (partners,) = said[WARNING]
    assert 'of the same class, but DefaultSampler puts them into a batch by chance' in partners
    assert "set train_dataloader.sampler=dict(_delete_=True, type='kd_mm.ClassI" in partners


def test_the_file_of_a_teacher_is_read_before_the_run(tmp_path):
    cfg = small(MUTUAL)
    network, path = cfg.model.students.resnet20.to_dict(), tmp_path / 'teacher.pth'
    cfg.model.teachers = {'t': {**network, 'checkpoint': str(path), 'input_size': 20}}
    cfg.model.methods = {'kd': {'type': 'tests.Imitate'}}
    assert examine(cfg)[ERROR] == [f'no checkpoint at {path}; check the path']
    model = MODELS.build({**network, '_scope_': 'mmpretrain'})
    torch.save({'state_dict': model.state_dict()}, path)
    said = examine(cfg)
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
    assert lines[2].endswith('model.head: kd_mm has no BAKEHed; did you mean BAKEHead?')
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


class Harm:
    """Content of a checkpoint that leaves a file behind when it is run."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


def test_the_tool_runs_nothing_that_a_checkpoint_holds(tmp_path):
    """Of a part's own init_cfg, too, which no check by name reads before the run is built."""
    torch.save({'state_dict': {'a': Harm(tmp_path / 'ran')}}, tmp_path / 'a.pth')
    start = 'model.backbone.init_cfg'
    options = [f'{start}.type=Pretrained', f'{start}.checkpoint={tmp_path}/a.pth']
    options = ['--cfg-options', *options, 'train_dataloader.dataset.indices=64']
    done = forked.run_tool('misc/doctor.py', BAKE, *options, check=False)
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith('error: ')]
    assert not (tmp_path / 'ran').exists()
