"""Checkpoints are read without running what they hold."""

import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub

from kd_mm.utils.checkpoint import load_checkpoint


class Attack:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


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


def test_bare_weights_are_a_state_dict(tmp_path):
    torch.save({'fc.weight': torch.ones(2)}, tmp_path / 'a.pth')
    assert set(load_checkpoint(tmp_path / 'a.pth')['state_dict']) == {'fc.weight'}


@pytest.mark.parametrize('save', [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_a_malicious_file_does_not_run(tmp_path, save):
    victim = tmp_path / 'victim'
    save({'state_dict': {}, 'meta': Attack(victim)}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='was not run'):
        load_checkpoint(tmp_path / 'a.pth')
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
