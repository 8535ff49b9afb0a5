"""None of our tools runs what a checkpoint holds, however it gets at it."""

import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch

from tests.hostile import FORMATS, Attack, call_tool

STUDENT = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, stem_channels=2, base_channels=2),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=16),
)
CONFIG = """
experiment_name = {name!r}  # MMEngine shares what two runs of one second and one name log
default_scope = 'mmpretrain'
model = {model}
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3, to_rgb=False, num_classes=10)
pipeline = [dict(type='Resize', scale=32), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='kd_mm.Digits', indices=8, pipeline=pipeline),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='kd_mm.Digits', split='test', indices=8, pipeline=pipeline),
)
test_evaluator = dict(type='Accuracy')
test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
randomness = dict(seed=0)
"""


def cohort(checkpoint=None):
    started = {'type': 'Pretrained', 'checkpoint': str(checkpoint)}
    students = {'a': STUDENT, 'b': {**STUDENT, 'init_cfg': started} if checkpoint else STUDENT}
    return {'type': 'kd_mm.DML', 'students': students}


def by_backbone(checkpoint):
    started = {'type': 'Pretrained', 'checkpoint': str(checkpoint), 'prefix': 'backbone'}
    return {**STUDENT, 'backbone': {**STUDENT['backbone'], 'init_cfg': started}}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A checkpoint of a finished epoch, as training writes it."""
    folder = tmp_path_factory.mktemp('whole')
    (folder / 'config.py').write_text(CONFIG.format(model=STUDENT, name=folder.name))
    train = ['train.py', folder / 'config.py', '--work-dir', folder]
    with pytest.MonkeyPatch.context() as monkeypatch:
        call_tool(monkeypatch, *train, '--cfg-options', 'train_cfg.max_epochs=1')
    return torch.load(folder / 'epoch_1.pth', weights_only=False)


class Case:
    """A checkpoint with more than data in it, and command lines that read it."""

    def __init__(self, folder, content, save):
        self.folder, self.victim, self.file = folder, folder / 'victim', folder / 'a.pth'
        save({**content, 'extra': Attack(self.victim)}, self.file)

    def config(self, model=STUDENT):
        path = self.folder / 'config.py'
        path.write_text(CONFIG.format(model=model, name=self.folder.name))
        return [path, '--work-dir', self.folder / 'run']

    def command(self, way, file=None):
        file = file or self.file
        if way == 'resume':
            return ['train.py', *self.config(), '--resume', file]
        if way == 'resume the latest':
            (self.folder / 'run').mkdir(exist_ok=True)
            (self.folder / 'run' / 'last_checkpoint').write_text(str(file))
            return ['train.py', *self.config(), '--resume']
        if way == 'load_from':
            return ['train.py', *self.config(), '--cfg-options', f'load_from={file}']
        if way == 'student':
            return ['train.py', *self.config(cohort(file))]
        if way == 'backbone':
            return ['train.py', *self.config(by_backbone(file))]
        if way == 'test':
            return ['test.py', self.config()[0], file, '--work-dir', self.folder / 'run']
        if way == 'export':
            out = self.folder / 'out'
            config = self.config()[0]
            return ['model_converters/export_student.py', config, file, '--out', out]
        assert way == 'resize'
        out = self.folder / 'out.pth'
        return ['model_converters/resize_swin_windows.py', file, out, '--window-size', 2]


RUNS = ['resume', 'resume the latest', 'load_from', 'student', 'backbone', 'test']
CONVERTERS = ['export', 'resize']


@pytest.mark.parametrize('way', RUNS + CONVERTERS)
def test_only_a_trusted_checkpoint_may_run(way, whole, tmp_path, monkeypatch, capfd):
    case = Case(tmp_path, whole, FORMATS['legacy' if way == 'test' else 'zip'])
    said = call_tool(monkeypatch, *case.command(way))
    assert not case.victim.exists()
    assert said.startswith('error: ')
    assert 'a.pth is not a checkpoint that can be read safely' in said
    assert '\n' not in said
    assert not {'out', 'out.pth'} & {path.name for path in tmp_path.iterdir()}

    said = call_tool(monkeypatch, *case.command(way), '--trust-checkpoint')
    assert case.victim.exists()
    assert 'a.pth holds more than plain data' in capfd.readouterr().err
    if way == 'resize':
        assert said.startswith('error: the checkpoint must be of a Swin Transformer')
    else:
        assert said is None


def test_a_run_that_meets_such_a_file_ends_in_one_line(whole, tmp_path, monkeypatch):
    """MMEngine initialises a plain network when training begins."""
    case = Case(tmp_path, whole, torch.save)
    said = call_tool(monkeypatch, *case.command('backbone'), '--no-check')
    assert said.startswith('error: ')
    assert '\n' not in said
    assert not case.victim.exists()


@pytest.mark.parametrize('way', ['resume', 'test'])
def test_a_rank_that_leaves_checks_to_the_first_is_safe_too(way, whole, tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    case = Case(tmp_path, whole, torch.save)
    assert call_tool(monkeypatch, *case.command(way)).startswith('error: ')
    assert not case.victim.exists()


@pytest.mark.parametrize('way', ['load_from', 'student', 'backbone', 'export'])
def test_what_comes_from_the_web_does_not_run(way, whole, tmp_path, monkeypatch):
    case = Case(tmp_path, whole, torch.save)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    with served(tmp_path) as address:
        said = call_tool(monkeypatch, *case.command(way, f'{address}/a.pth'))
    assert said.startswith('error: ')
    assert 'a.pth is not a checkpoint that can be read safely' in said
    assert list((tmp_path / 'cache').rglob('a.pth'))
    assert not case.victim.exists()
    assert not (tmp_path / 'run').exists()


def test_plain_weights_from_the_web_are_read(whole, tmp_path, monkeypatch):
    case = Case(tmp_path, whole, torch.save)
    torch.save(whole, case.file)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    with served(tmp_path) as address:
        said = call_tool(monkeypatch, *case.command('export', f'{address}/a.pth'))
        missing = call_tool(monkeypatch, *case.command('test', f'{address}/b.pth'))
    assert said is None
    assert (tmp_path / 'out/model.pth').exists()
    assert missing.startswith(f'error: no checkpoint at {address}/b.pth; check the address')


def test_safetensors_are_tested_as_the_weights_they_came_from(whole, tmp_path, monkeypatch):
    pytest.importorskip('safetensors', reason='safetensors is not installed')
    case = Case(tmp_path, whole, torch.save)
    torch.save(whole, case.file)
    export = case.command('export')
    assert call_tool(monkeypatch, *export, '--format', 'safetensors') is None
    found = []
    for file in (case.file, tmp_path / 'out/model.safetensors'):
        metrics = ['--out', tmp_path / 'metrics.json', '--out-item', 'metrics']
        assert call_tool(monkeypatch, *case.command('test', file), *metrics) is None
        found.append(json.loads((tmp_path / 'metrics.json').read_text()))
    assert found[0] == found[1] != {}


def test_resuming_does_not_run_the_config_in_a_checkpoint(whole, tmp_path, monkeypatch):
    """MMEngine would, although all in it is text."""
    victim = tmp_path / 'victim'
    meta = {**whole['meta'], 'config': f'open({str(victim)!r}, "w")'}
    case = Case(tmp_path, whole, torch.save)
    torch.save({**whole, 'meta': meta}, case.file)
    assert call_tool(monkeypatch, *case.command('resume')) is None
    assert (tmp_path / 'run/epoch_2.pth').exists()
    assert not victim.exists()
    assert call_tool(monkeypatch, *case.command('resume'), '--trust-checkpoint') is None
    assert victim.exists()


class served:
    """A folder on a web server of this machine."""

    def __init__(self, folder):
        handler = partial(QuietHandler, directory=str(folder))
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), handler)

    def __enter__(self):
        Thread(target=self.server.serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{self.server.server_port}'

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
