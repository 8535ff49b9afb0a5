"""The checkpoint that a run continues from is the newest whole one."""

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
    """torch reads the wrong weight without an error."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(1000).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)


def empty(path):
    os.truncate(path, 0)


def test_nothing_was_written_yet(tmp_path):
    (tmp_path / 'epoch_1.pth.tmp').touch()
    assert find_checkpoint(tmp_path) == (None, [])


@pytest.mark.parametrize(
    ('pointer', 'found'),
    [
        ('{folder}/epoch_3.pth', 'epoch_3'),
        (
            '{folder}/epoch_1.pth',
            'epoch_1',
        ),  # though others are newer
        ('/elsewhere/epoch_2.pth', 'epoch_2'),  # the work dir was moved
        ('', 'epoch_3'),  # MMEngine was killed as it wrote the name
        (None, 'epoch_3'),
    ],
)
def test_the_one_that_mmengine_names_comes_first(work_dir, pointer, found):
    (work_dir / 'last_checkpoint').unlink()
    if pointer is not None:
        (work_dir / 'last_checkpoint').write_text(pointer.format(folder=work_dir))
    assert find_checkpoint(work_dir) == (str(work_dir / f'{found}.pth'), [])


@pytest.mark.parametrize(
    ('damage', 'sentence'),
    [(tear, 'damaged'), (flip_a_bit, 'damaged'), (empty, 'damaged'), (os.unlink, 'no checkpoint')],
)
def test_passes_over_a_damaged_or_lost_file_and_says_so(work_dir, damage, sentence):
    damage(work_dir / 'epoch_3.pth')
    path, (passed_over,) = find_checkpoint(work_dir)
    assert path == str(work_dir / 'epoch_2.pth')
    assert str(work_dir / 'epoch_3.pth') in passed_over
    assert sentence in passed_over


def test_a_work_dir_that_was_copied(work_dir, tmp_path_factory):
    copy = shutil.copytree(work_dir, tmp_path_factory.mktemp('copy') / 'work')
    (copy / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    assert find_checkpoint(copy) == (str(copy / 'epoch_2.pth'), [])


def test_refuses_to_start_over_a_run_that_cannot_be_read(work_dir):
    for number in (1, 2, 3):
        tear(work_dir / f'epoch_{number}.pth')
    with pytest.raises(ValueError, match='must hold a checkpoint that can be read') as error:
        find_checkpoint(work_dir)
    assert all(f'epoch_{number}.pth' in str(error.value) for number in (1, 2, 3))
