"""Checkpoints are read without running what they hold."""

import io
import tarfile

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.runner.checkpoint import _load_checkpoint as load_as_mmengine

from kd_mm.checkpoint import UnsafeFileError, load_checkpoint, safe_files
from tests.hostile import FORMATS, Attack


class GetAttr:
    """A pickle that asks for an attribute of an allowed class."""

    def __init__(self, owner, name):
        self.arguments = owner, name

    def __reduce__(self):
        return getattr, self.arguments


def test_reads_what_mmengine_writes(tmp_path):
    hub = MessageHub.get_instance('test_checkpoint')
    hub.update_scalar('train/loss', 0.5)
    hub.update_info('iter', np.int64(3))
    content = {
        'state_dict': {'fc.weight': torch.ones(2)},
        'message_hub': hub.state_dict(),
        'meta': {'epoch': 1, 'classes': ('a', 'b'), 'mean': np.arange(3.0)},
    }
    torch.save(content, tmp_path / 'a.pth')
    read = load_checkpoint(tmp_path / 'a.pth')
    assert torch.equal(read['state_dict']['fc.weight'], torch.ones(2))
    assert read['message_hub']['log_scalars']['train/loss'].current() == 0.5
    assert read['meta']['mean'].tolist() == [0, 1, 2]
    torch.save({'fc.weight': torch.ones(2)}, tmp_path / 'a.pth')  # bare weights
    assert set(load_checkpoint(tmp_path / 'a.pth')['state_dict']) == {'fc.weight'}


def mmengine_reads(path):
    """On its own it warns, and runs the file."""
    with safe_files():
        load_as_mmengine(str(path))


@pytest.mark.parametrize('read', [load_checkpoint, mmengine_reads])
@pytest.mark.parametrize('save', FORMATS.values(), ids=FORMATS)
def test_a_malicious_file_does_not_run(tmp_path, save, read):
    victim = tmp_path / 'victim'
    save({'state_dict': {}, 'meta': Attack(victim)}, tmp_path / 'a.pth')
    with pytest.raises(UnsafeFileError, match='was not run'):
        read(tmp_path / 'a.pth')
    assert not victim.exists()


@pytest.mark.parametrize(
    ('owner', 'name'),
    [(np.ndarray, 'tofile'), (type(MessageHub.get_instance('x')), '__init__')],
)
def test_getattr_reaches_the_statistics_of_the_history_only(tmp_path, owner, name):
    torch.save({'state_dict': {}, 'meta': GetAttr(owner, name)}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='not a checkpoint that can be read safely'):
        load_checkpoint(tmp_path / 'a.pth')


def test_the_list_of_allowed_names_is_left_as_it_was(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({'fc.weight': torch.ones(2)}, tmp_path / 'a.pth')
    load_checkpoint(tmp_path / 'a.pth')
    assert set(torch.serialization.get_safe_globals()) == before


def test_missing_damaged_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no checkpoint at .*a\.pth'):
        load_checkpoint(tmp_path / 'a.pth')
    torch.save({'fc.weight': torch.ones(1000)}, tmp_path / 'a.pth')
    whole = (tmp_path / 'a.pth').read_bytes()
    (tmp_path / 'a.pth').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match='it is damaged'):
        load_checkpoint(tmp_path / 'a.pth')
    torch.save([1, 2], tmp_path / 'b.pth')
    with pytest.raises(ValueError, match='holds a list'):
        load_checkpoint(tmp_path / 'b.pth')


def test_trust_is_said_and_ends_with_the_block(tmp_path, capfd):
    victim, path = tmp_path / 'victim', tmp_path / 'a.pth'
    torch.save({'state_dict': {'w': torch.ones(1)}, 'meta': Attack(victim)}, path)
    read = torch.load
    with safe_files(trust=True):
        assert load_checkpoint(path)['state_dict'] == {'w': torch.ones(1)}
    assert victim.exists()
    assert 'a.pth holds more than plain data' in capfd.readouterr().err
    assert torch.load is read
    victim.unlink()
    with pytest.raises(UnsafeFileError):
        load_checkpoint(path)
    assert not victim.exists()
    torch.save({'w': torch.ones(1)}, path)
    with safe_files(trust=True):
        load_checkpoint(path)
    assert 'a.pth' not in ''.join(capfd.readouterr())  # of plain data there is nothing to say


def test_the_real_getattr_is_out_of_reach_where_mmengine_allows_it(tmp_path):
    torch.save({'state_dict': {}, 'meta': GetAttr(np.ndarray, 'tofile')}, tmp_path / 'a.pth')
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([getattr])
    try:
        with safe_files(), pytest.raises(UnsafeFileError):
            torch.load(tmp_path / 'a.pth')
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_an_open_file_is_read_from_where_it_stands(tmp_path):
    buffer = io.BytesIO()
    torch.save({'w': torch.ones(1)}, buffer)
    buffer.seek(0)
    with safe_files():
        assert torch.load(buffer, weights_only=False) == {'w': torch.ones(1)}


def test_programs_are_refused_whatever_torch_does_with_them(tmp_path, monkeypatch):
    """Before 2.6, torch runs these in spite of ``weights_only``."""
    monkeypatch.setattr('kd_mm.checkpoint._torch_load', lambda *_, **__: {'state_dict': {}})
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1, 1)), tmp_path / 'a.pth')
    with pytest.raises(UnsafeFileError, match='TorchScript'):
        load_checkpoint(tmp_path / 'a.pth')
    with tarfile.open(tmp_path / 'b.pth', 'w') as archive:
        archive.add(tmp_path / 'a.pth', 'storages')
    with pytest.raises(UnsafeFileError, match='tar format'):
        load_checkpoint(tmp_path / 'b.pth')
