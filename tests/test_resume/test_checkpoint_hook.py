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
from mmengine.model import BaseTTAModel
from torch import nn

from kd_mm.resume import CheckpointGuardHook, SafeCheckpointHook, checkpoint_hook
from kd_mm.resume.checkpoint_hook import OUTDATED, WholeFileBackend
from kd_mm.resume.find import POINTER


@pytest.fixture
def runner(tmp_path, request):
    """What the hook asks of a runner that was asked to resume."""
    hub = MessageHub.get_instance(request.node.name)
    yield SimpleNamespace(
        work_dir=str(tmp_path),
        message_hub=hub,
        logger=logging.getLogger(__name__),
        train_loop=SimpleNamespace(epoch=0),
        val_loop=None,
        _resume=True,
        _load_from=None,
    )
    del MessageHub._instance_dict[request.node.name]


def prepare(runner, folder, backend, **kwargs):
    """Return a CheckpointHook as ``before_train`` leaves it."""
    writer = CheckpointHook(out_dir=str(folder), **kwargs)
    writer.file_backend = backend
    runner.hooks = [writer]
    SafeCheckpointHook().before_train(runner)
    return writer


def write_checkpoint(path):
    torch.save({'meta': {}, 'message_hub': {}, 'optimizer': {}, 'state_dict': {}}, path)
    (path.parent / POINTER).write_text(str(path))


def test_a_file_is_there_as_a_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / 'new folder' / 'epoch_1.pth'
    WholeFileBackend().put(b'old', str(path))
    assert path.read_bytes() == b'old'

    def full(descriptor):
        contents = path.read_bytes(), path.with_name('epoch_1.pth.tmp').read_bytes()
        assert contents == (b'old', b'new')
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        WholeFileBackend().put(b'new', path)
    assert [file.name for file in path.parent.iterdir()] == ['epoch_1.pth']
    assert path.read_bytes() == b'old'


def test_an_old_file_goes_when_the_next_one_is_there(runner, tmp_path, monkeypatch):
    backend = prepare(runner, tmp_path, LocalBackend()).file_backend
    old, new = tmp_path / 'epoch_1.pth', tmp_path / 'epoch_2.pth'
    old.touch()
    assert backend.isfile(str(old))
    backend.remove(str(old))
    monkeypatch.setattr(checkpoint_hook, '_sync_folder', lambda _: new.exists() and old.stat())
    backend.put(b'new', str(new))
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_2.pth']


def test_what_a_killed_run_had_to_remove_is_removed(runner, tmp_path):
    """Names come from a checkpoint: a path in it leads nowhere else."""
    outside, folder = tmp_path / 'outside', tmp_path / 'in'
    outside.touch()
    folder.mkdir()
    for name in ('epoch_1.pth', 'epoch_3.pth', 'epoch_4.pth.tmp'):
        (folder / name).touch()
    names = ['epoch_1.pth', 'gone.pth', str(outside), '../outside']
    runner.message_hub.update_info(OUTDATED, names)
    prepare(runner, folder, LocalBackend())
    assert [path.name for path in folder.iterdir()] == ['epoch_3.pth']
    assert outside.exists()


def test_other_storage_is_left_alone(runner, tmp_path):
    class Remote(LocalBackend):
        pass

    local = {'backend': 'local'}
    assert type(prepare(runner, tmp_path, Remote()).file_backend) is Remote
    assert prepare(runner, tmp_path, LocalBackend(), backend_args=local).backend_args == local
    assert prepare(runner, tmp_path, LocalBackend()).backend_args == {'backend': 'kd_mm_local'}


def test_resume_without_a_checkpoint_begins(runner, tmp_path):
    (tmp_path / POINTER).touch()  # MMEngine would open the file without a name
    SafeCheckpointHook().before_run(runner)
    assert (runner._resume, runner._load_from) == (False, None)


@pytest.mark.parametrize(('ranks', 'complete'), [(1, False), (1, True), (2, False)])
def test_gradients_that_are_not_complete(runner, monkeypatch, caplog, ranks, complete):
    monkeypatch.setattr(checkpoint_hook, 'get_world_size', lambda: ranks)
    runner.model = model = nn.Linear(2, 1)
    model.weight.grad = torch.ones(1, 2)
    runner.optim_wrapper = SimpleNamespace(should_update=lambda: complete)
    checkpoint = {'optimizer': {}}
    SafeCheckpointHook().before_save_checkpoint(runner, checkpoint)
    assert ('gradients' in checkpoint) == (ranks == 1 and not complete)
    assert ('the gradients of the other ranks are not in it' in caplog.text) == (ranks == 2)
    model.weight.grad = None
    SafeCheckpointHook().after_load_checkpoint(runner, checkpoint)
    assert (model.weight.grad is not None) == ('gradients' in checkpoint)


class Model(nn.Linear):
    def test_step(self, data):
        return data


class Mirrored(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


@pytest.mark.parametrize('wrap', [lambda model: model, Mirrored], ids=['plain', 'augmented'])
def test_the_guard_refuses_a_checkpoint_of_which_nothing_fits(wrap):
    runner = SimpleNamespace(model=wrap(Model(2, 2)), _load_from='a.pth')
    hook, weights = CheckpointGuardHook(), nn.Linear(2, 2).state_dict()
    hook.after_load_checkpoint(runner, {'state_dict': weights})
    prefixed = {f'module.{name}': weight for name, weight in weights.items()}  # of a DDP model
    hook.after_load_checkpoint(runner, {'state_dict': prefixed})
    hook.after_load_checkpoint(runner, weights)  # bare weights
    with pytest.raises(ValueError, match=r'none of the 1 names in a\.pth \(fc\.weight'):
        hook.after_load_checkpoint(runner, {'state_dict': {'fc.weight': torch.ones(1)}})
