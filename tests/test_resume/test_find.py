"""The checkpoint that a run goes on from is the newest whole one."""

import os
import shutil

import pytest
import torch

from kd_mm.resume.find import find_checkpoint


@pytest.fixture
def work_dir(tmp_path):
    """Three epochs, the best of which is written last, and what a killed run leaves."""
    for number, name in enumerate(('epoch_1', 'epoch_2', 'epoch_3', 'best_accuracy_top1_epoch_3')):
        content = {'meta': {}, 'message_hub': {}, 'state_dict': {'a': torch.ones(1000)}}
        if name.startswith('epoch'):
            content['optimizer'] = {}
        path = tmp_path / f'{name}.pth'
        torch.save(content, path)
        os.utime(path, (number, number))
    (tmp_path / 'epoch_4.pth.tmp').write_bytes(path.read_bytes()[:500])
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    return tmp_path


def tear(path):
    path.write_bytes(path.read_bytes()[:-700])


def flip_a_bit(path):
    """torch reads the wrong weight without a word."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(1000).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)


def test_nothing_was_written_yet(tmp_path):
    assert find_checkpoint(tmp_path) == (None, [])
    (tmp_path / 'epoch_1.pth.tmp').touch()
    assert find_checkpoint(tmp_path) == (None, [])


def test_takes_the_one_that_mmengine_names_before_those_written_later(work_dir):
    assert find_checkpoint(work_dir) == (str(work_dir / 'epoch_3.pth'), [])
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_1.pth'))
    assert find_checkpoint(work_dir) == (str(work_dir / 'epoch_1.pth'), [])


@pytest.mark.parametrize('damage', [tear, flip_a_bit, os.truncate])
def test_passes_over_a_damaged_file_and_says_so(work_dir, damage):
    newest = work_dir / 'epoch_3.pth'
    damage(*((newest, 0) if damage is os.truncate else (newest,)))
    path, (sentence,) = find_checkpoint(work_dir)
    assert path == str(work_dir / 'epoch_2.pth')
    assert str(newest) in sentence
    assert 'damaged' in sentence


@pytest.mark.parametrize('pointer', ['', None])
def test_a_pointer_that_was_not_written_to_its_end(work_dir, pointer):
    """What is left of MMEngine's last_checkpoint does not matter; the time of writing does."""
    if pointer is None:
        (work_dir / 'last_checkpoint').unlink()
    else:
        (work_dir / 'last_checkpoint').write_text(pointer)
    assert find_checkpoint(work_dir) == (str(work_dir / 'epoch_3.pth'), [])
    os.utime(work_dir / 'epoch_1.pth', (9, 9))
    assert find_checkpoint(work_dir) == (str(work_dir / 'epoch_1.pth'), [])


def test_a_pointer_to_a_file_that_is_gone(work_dir):
    (work_dir / 'epoch_3.pth').unlink()
    path, (sentence,) = find_checkpoint(work_dir)
    assert path == str(work_dir / 'epoch_2.pth')
    assert 'no checkpoint at' in sentence


def test_a_work_dir_that_was_moved(work_dir):
    (work_dir / 'last_checkpoint').write_text('/elsewhere/epoch_2.pth')
    assert find_checkpoint(work_dir) == (str(work_dir / 'epoch_2.pth'), [])


def test_a_work_dir_that_was_copied(work_dir, tmp_path_factory):
    copy = shutil.copytree(work_dir, tmp_path_factory.mktemp('copy') / 'work')
    (copy / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    assert find_checkpoint(copy) == (str(copy / 'epoch_2.pth'), [])


def test_checkpoints_that_lie_elsewhere(work_dir, tmp_path_factory):
    other = tmp_path_factory.mktemp('other')
    (other / 'last_checkpoint').write_text(str(work_dir / 'epoch_3.pth'))
    tear(work_dir / 'epoch_3.pth')
    assert find_checkpoint(other)[0] == str(work_dir / 'epoch_2.pth')


def test_refuses_to_begin_anew_over_a_run_that_cannot_be_read(work_dir):
    for number in (1, 2, 3):
        tear(work_dir / f'epoch_{number}.pth')
    with pytest.raises(ValueError, match='must hold a checkpoint that can be read') as error:
        find_checkpoint(work_dir)
    assert all(f'epoch_{number}.pth' in str(error.value) for number in (1, 2, 3))
