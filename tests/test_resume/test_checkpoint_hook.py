"""Checkpoints survive what happens while they are written."""

import errno
import logging
import os
from types import SimpleNamespace

import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub
from torch import nn

from kd_mm.resume import SafeCheckpointHook, checkpoint_hook
from kd_mm.resume.checkpoint_hook import WholeFileBackend
from kd_mm.resume.find import POINTER


def test_a_file_is_there_as_a_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / 'new folder' / 'epoch_1.pth'
    WholeFileBackend().put(b'old', str(path))
    assert path.read_bytes() == b'old'

    def full(descriptor):
        assert (path.read_bytes(), path.with_name('epoch_1.pth.tmp').read_bytes()) == (
            b'old',
            b'new',
        )
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        WholeFileBackend().put(b'new', path)
    assert [file.name for file in path.parent.iterdir()] == ['epoch_1.pth']
    assert path.read_bytes() == b'old'


def runner_in(folder, hub, **kwargs):
    """What the hook asks of a runner."""
    return SimpleNamespace(
        work_dir=str(folder),
        message_hub=MessageHub.get_instance(f'{__name__}.{hub}'),
        logger=logging.getLogger(__name__),
        **kwargs,
    )


@pytest.fixture
def runner(tmp_path, request):
    """A runner that was asked to resume."""
    return runner_in(tmp_path, request.node.name, _resume=True, _load_from=None)


def write_checkpoint(path):
    content = {'meta': {}, 'message_hub': {}, 'optimizer': {}, 'state_dict': {}}
    torch.save(content, path)
    (path.parent / POINTER).write_text(str(path))


def test_resume_passes_over_a_damaged_file_with_a_warning(runner, tmp_path, caplog):
    write_checkpoint(tmp_path / 'epoch_1.pth')
    write_checkpoint(tmp_path / 'epoch_2.pth')
    os.truncate(tmp_path / 'epoch_2.pth', 100)
    SafeCheckpointHook().before_run(runner)
    assert (runner._resume, runner._load_from) == (True, str(tmp_path / 'epoch_1.pth'))
    assert f'passes over a checkpoint: {tmp_path / "epoch_2.pth"}' in caplog.text


def test_resume_without_a_checkpoint_begins(runner, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / POINTER).touch()  # MMEngine would open the file without a name
    SafeCheckpointHook().before_run(runner)
    assert (runner._resume, runner._load_from) == (False, None)
    assert 'holds no checkpoint yet' in caplog.text


@pytest.mark.parametrize(('resume', 'load_from'), [(False, None), (True, 'named.pth')])
def test_what_is_named_is_taken(runner, tmp_path, resume, load_from):
    write_checkpoint(tmp_path / 'epoch_1.pth')
    runner._resume, runner._load_from = resume, load_from
    SafeCheckpointHook().before_run(runner)
    assert (runner._resume, runner._load_from) == (resume, load_from)


def prepared(runner, tmp_path, backend, **kwargs):
    """Hooks as ``before_train`` leaves them."""
    writer = CheckpointHook(out_dir=str(tmp_path), **kwargs)
    writer.file_backend = backend
    runner.hooks, runner.val_loop = [writer], None
    runner.train_loop = SimpleNamespace(epoch=0)
    hook = SafeCheckpointHook()
    hook.before_train(runner)
    return hook, writer


def test_an_old_checkpoint_goes_when_the_new_one_is_there(runner, tmp_path):
    hook, writer = prepared(runner, tmp_path, LocalBackend())
    old = tmp_path / 'epoch_1.pth'
    old.touch()
    assert writer.file_backend.isfile(str(old))
    writer.file_backend.remove(str(old))
    assert old.exists()
    hook.after_train_epoch(runner)
    assert not old.exists()


def test_what_a_killed_run_had_to_remove_is_removed(runner, tmp_path):
    """Names come from a checkpoint: a path in it leads nowhere else."""
    outside = tmp_path / 'outside'
    outside.touch()
    (tmp_path / 'in').mkdir()
    for name in ('epoch_1.pth', 'epoch_3.pth', 'epoch_4.pth.tmp'):
        (tmp_path / 'in' / name).touch()
    names = ['epoch_1.pth', 'gone.pth', str(outside), '../outside']
    runner.message_hub.update_info(checkpoint_hook.OUTDATED, names)
    prepared(runner, tmp_path / 'in', LocalBackend())
    assert [path.name for path in (tmp_path / 'in').iterdir()] == ['epoch_3.pth']
    assert outside.exists()


def test_other_storage_is_left_alone(runner, tmp_path):
    class Remote(LocalBackend):
        pass

    remote = Remote()
    _, writer = prepared(runner, tmp_path, remote)
    assert writer.file_backend is remote
    assert writer.backend_args is None
    local = {'backend': 'local'}
    assert prepared(runner, tmp_path, LocalBackend(), backend_args=local)[1].backend_args == local
    assert prepared(runner, tmp_path, LocalBackend())[1].backend_args == {'backend': 'kd_mm_local'}


@pytest.mark.parametrize(('ranks', 'complete'), [(1, False), (1, True), (2, False)])
def test_gradients_that_are_not_complete(runner, monkeypatch, caplog, ranks, complete):
    monkeypatch.setattr(checkpoint_hook, 'get_world_size', lambda: ranks)
    model = nn.Linear(2, 1)
    model.weight.grad = torch.ones(1, 2)
    runner.model = model
    runner.optim_wrapper = SimpleNamespace(should_update=lambda: complete)
    checkpoint = {'optimizer': {}}
    SafeCheckpointHook().before_save_checkpoint(runner, checkpoint)
    assert ('gradients' in checkpoint) == (ranks == 1 and not complete)
    assert ('the gradients of the other ranks are not in it' in caplog.text) == (ranks == 2)
    model.weight.grad = None
    SafeCheckpointHook().after_load_checkpoint(runner, checkpoint)
    assert (model.weight.grad is not None) == ('gradients' in checkpoint)
    best = {}
    SafeCheckpointHook().before_save_checkpoint(runner, best)
    assert best == {}  # without optimizer: nothing goes on from it
