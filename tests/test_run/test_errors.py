"""What ends a run says so in one sentence, and the run goes on with --resume."""

import errno
import fcntl
import importlib.util
import logging
import os
import platform
import signal
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS
from mmengine.runner import Runner

from kd_mm.resume import lock as locks
from kd_mm.resume.lock import lock_work_dir
from kd_mm.run import errors
from tests import forked
from tests.conftest import REPO

BREAKS_IN_EPOCH = 2


def main_of(name):
    spec = importlib.util.spec_from_file_location(name, REPO / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@HOOKS.register_module(force=True)
class Breaker(Hook):
    """Does its harm once, at the start of the second epoch."""

    harm = None

    def before_train_epoch(self, runner):
        if runner.epoch + 1 == BREAKS_IN_EPOCH and self.harm:
            harm, Breaker.harm = self.harm, None
            harm(runner)


@TRANSFORMS.register_module(force=True)
class DyingWith:
    """Kills its own process once a file is there."""

    def __init__(self, path):
        self.path = Path(path)

    def __call__(self, results):
        if self.path.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return results


def no_space(runner):
    """The next checkpoint meets a full disk."""
    save = Runner.save_checkpoint

    def fail(self, *args, **kwargs):
        Runner.save_checkpoint = save
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'epoch_2.pth')

    Runner.save_checkpoint = fail


def not_a_number(runner):
    torch.nn.init.constant_(runner.model.head.fc.weight, float('inf'))


HARMS = {
    'full disk': (
        no_space,
        1,
        r"[Errno 28] No space left on device: 'epoch_2.pth'; free some space, or keep fewer",
    ),
    'vanished file': (
        lambda runner: Path(runner.cfg.picture).unlink(),
        1,
        "a data loader's worker failed: FileNotFoundError: [Errno 2] No such file or directory: ",
    ),
    'dead worker': (
        lambda runner: Path(runner.cfg.trigger).touch(),
        1,
        '; most likely the machine ran out of memory; use fewer workers',
    ),
    'Ctrl-C': (
        lambda runner: os.kill(os.getpid(), signal.SIGINT),
        130,
        'the run was stopped by Ctrl-C. ',
    ),
    'SIGTERM': (
        lambda runner: os.kill(os.getpid(), signal.SIGTERM),
        143,
        'the run was stopped by SIGTERM. ',
    ),
    'NaN': (not_a_number, 1, 'not finite in epoch 2, iteration 5: loss = nan. Weights are'),
}


def write_picture(path):
    cv2.imwrite(str(path), np.full((16, 16, 3), 128, np.uint8))


@pytest.fixture
def config(tmp_path, image_folder):
    """Three epochs of four iterations, on pictures that are read each time."""
    picture = tmp_path / 'own' / 'train_0.JPEG'
    picture.parent.mkdir()
    write_picture(picture)
    listed = (image_folder / 'meta' / 'train.txt').read_text().splitlines()[1:]
    annotation = tmp_path / 'train.txt'
    lines = [f'{image_folder}/train/{line}' for line in listed]
    lines.insert(1, f'{picture} 0')  # the first and the last are read before the run begins
    annotation.write_text('\n'.join(lines) + '\n')
    pipeline = [
        {'type': 'LoadImageFromFile'},
        {'type': 'DyingWith', 'path': str(tmp_path / 'die')},
        {'type': 'Resize', 'scale': 16},
        {'type': 'PackInputs'},
    ]
    loader = {
        'batch_size': 4,
        'num_workers': 0,
        'persistent_workers': False,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'dataset': {
            'type': 'CustomDataset',
            'data_root': '',
            'ann_file': str(annotation),
            'pipeline': pipeline,
        },
    }
    cfg = Config(
        {
            'default_scope': 'mmpretrain',
            'custom_imports': {'imports': ['kd_mm'], 'allow_failed_imports': False},
            'experiment_name': tmp_path.name,  # or runs of one second share a logger
            'picture': str(picture),
            'trigger': str(tmp_path / 'die'),
            'model': {
                'type': 'ImageClassifier',
                'backbone': {'type': 'kd_mm.CIFARResNet', 'depth': 8},
                'neck': {'type': 'GlobalAveragePooling'},
                'head': {'type': 'LinearClsHead', 'num_classes': 4, 'in_channels': 64},
            },
            'train_dataloader': loader,
            'train_cfg': {'by_epoch': True, 'max_epochs': 3},
            'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.01}},
            'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
            'custom_hooks': [{'type': 'Breaker'}],
        }
    )
    cfg.dump(tmp_path / 'config.py')
    return tmp_path / 'config.py'


@pytest.fixture
def interruptible():
    """Ctrl-C as Python begins with it; a process of pytest-xdist ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('interruptible')
@pytest.mark.parametrize('name', HARMS)
def test_one_sentence_then_resume(name, config, tmp_path, monkeypatch, capsys):
    harm, code, sentence = HARMS[name]
    monkeypatch.setattr(Breaker, 'harm', staticmethod(harm))
    work_dir = tmp_path / 'work'
    workers = int(name in ('vanished file', 'dead worker'))
    options = [f'train_dataloader.num_workers={workers}', 'train_dataloader.persistent_workers=0']
    command = ['train.py', str(config), '--work-dir', str(work_dir), '--cfg-options', *options]
    monkeypatch.setattr(sys, 'argv', command)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        main_of('train')()
    assert caught.value.code == code
    assert signal.getsignal(signal.SIGTERM) == before

    console = capsys.readouterr()
    (line,) = [line for line in console.err.splitlines() if line.startswith('error: ')]
    assert sentence in line
    latest = work_dir / 'epoch_1.pth'
    assert line.endswith(
        f'The last checkpoint is {latest}; repeat the command with --resume to go on from it.'
    )
    assert 'Traceback' not in console.err + console.out
    log = next(work_dir.glob('*/*.log')).read_text()
    assert 'the run ended here\nTraceback (most recent call last):' in log

    (tmp_path / 'die').unlink(missing_ok=True)
    write_picture(tmp_path / 'own' / 'train_0.JPEG')
    monkeypatch.setattr(sys, 'argv', [*command, '--resume'])
    main_of('train')()
    assert (work_dir / 'epoch_3.pth').exists()
    assert 'resumed epoch: 1' in capsys.readouterr().out


def test_what_comes_with_sigterm_does_not_change_the_sentence(monkeypatch, capsys):
    """A cluster ends the workers, too: before their run, or while it tells how to go on."""
    ended = RuntimeError('DataLoader worker (pid 7) is killed by signal: Terminated. ')

    def worker_ended(number, frame):
        raise ended

    def find(work_dir):
        os.kill(os.getpid(), signal.SIGCHLD)
        os.kill(os.getpid(), signal.SIGTERM)
        return 'work/epoch_1.pth', []

    def run():
        os.kill(os.getpid(), signal.SIGTERM)

    def run_of_ended_worker():
        raise ended

    monkeypatch.setattr(errors, 'find_checkpoint', find)
    before = signal.signal(signal.SIGCHLD, worker_ended)
    try:
        for end in (run, run_of_ended_worker):
            with pytest.raises(SystemExit) as caught, errors.one_sentence('work'):
                end()
            assert caught.value.code == 143
            assert capsys.readouterr().err == (
                'error: the run was stopped by SIGTERM. The last checkpoint is work/epoch_1.pth; '
                'repeat the command with --resume to go on from it.\n'
            )
            assert signal.getsignal(signal.SIGCHLD) is worker_ended
    finally:
        signal.signal(signal.SIGCHLD, before)


def hold(work_dir, locked, seconds=60):
    """Train in a work dir, as far as others can tell."""
    with lock_work_dir(work_dir):
        locked.set()
        time.sleep(seconds)


def test_a_work_dir_takes_one_training_at_a_time(config, tmp_path, monkeypatch):
    work_dir, context = tmp_path / 'work', forked.server()
    locked = context.Event()
    other = context.Process(target=hold, args=(work_dir, locked))
    other.start()
    assert locked.wait(60)
    monkeypatch.setattr(sys, 'argv', ['train.py', str(config), '--work-dir', str(work_dir)])
    monkeypatch.setattr(locks, 'PATIENCE', 0.1)
    with pytest.raises(SystemExit) as caught:
        main_of('train')()
    assert caught.value.code == (
        f'error: another training runs in {work_dir} (process {other.pid} on {platform.node()}); '
        'wait for its end, stop it, or choose another --work-dir'
    )
    assert [path.name for path in work_dir.iterdir()] == ['.lock']

    threading.Timer(0.5, other.kill).start()
    monkeypatch.setattr(locks, 'PATIENCE', 60)
    main_of('train')()
    assert (work_dir / 'epoch_3.pth').exists()


def test_a_lock_is_not_needed_where_there_is_none(tmp_path, monkeypatch):
    def unknown(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'lockf', unknown)
    lock_work_dir(tmp_path).close()
    assert (tmp_path / '.lock').read_text() == f'process {os.getpid()} on {platform.node()}'


def test_a_stopped_tool_says_so_and_how_to_go_on(capsys):
    with pytest.raises(SystemExit) as caught, errors.plain_errors('; go on'):
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert capsys.readouterr().err == 'error: the run was stopped by Ctrl-C; go on\n'
    with pytest.raises(KeyError), errors.plain_errors():
        raise KeyError('a mistake')


def print_to_nobody(log, num_lines):
    forked.begin(log)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(reader)
    with errors.plain_errors():
        for _ in range(num_lines):
            print('a line')


@pytest.mark.parametrize('num_lines', [1, 100_000])  # within the buffer, and beyond it
def test_a_tool_whose_output_nobody_reads_ends_quietly(num_lines, tmp_path):
    log = tmp_path / 'log.txt'
    process = forked.server().Process(target=print_to_nobody, args=(log, num_lines))
    process.start()
    process.join(60)
    assert process.exitcode == 128 + signal.SIGPIPE
    assert log.read_text() == ''


class ClosedPipe:
    """A console that is gone."""

    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        pass


def test_lines_that_nobody_reads_leave_no_tracebacks(capsys):
    logger = logging.Logger('run')
    logger.addHandler(logging.StreamHandler(ClosedPipe()))
    with errors.one_sentence():
        logger.info('a line')
    assert capsys.readouterr().err == ''
    logger.info('a line')  # no run any more: as ever
    assert 'BrokenPipeError' in capsys.readouterr().err
