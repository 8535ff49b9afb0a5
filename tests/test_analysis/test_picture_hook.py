"""Pictures reach the visualizer, and training is the same."""

import copy

import cv2
import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from kd_mm.analysis import PictureHook, picture_hook
from kd_mm.analysis.pictures import figures
from tests.toys import pictures as toys

EPOCHS, BATCH, VAL = 3, 6, 10
TOGETHER = {'attention', 'predictions'}


class Images(list):
    metainfo = {'classes': toys.CLASSES}  # noqa: RUF012


def loader(count, batch_size, views=1):
    data = toys.samples(count)
    if views > 1:
        data = [{**one, 'inputs': [one['inputs'], 255 - one['inputs']]} for one in data]
    return {
        'dataset': Images(data),
        'batch_size': batch_size,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'collate_fn': {'type': 'default_collate'},
    }


def train(model, work_dir, by_epoch=True, validates=True, **hook):
    """Two iterations in each of three epochs; a validation follows each."""
    views = 2 if getattr(model, 'views', '') == 'per_student' else 1
    length = {'max_epochs': EPOCHS} if by_epoch else {'max_iters': 2 * EPOCHS, 'val_interval': 2}
    validation = {
        'val_dataloader': loader(VAL, 4),
        'val_cfg': {},
        'val_evaluator': {'type': 'mmpretrain.Accuracy'},
    }
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=loader(2 * BATCH * (1 if by_epoch else EPOCHS), BATCH, views),
        train_cfg={'by_epoch': by_epoch, **length},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9}},
        custom_hooks=[{'type': 'kd_mm.PictureHook', **hook}] * bool(hook),
        default_hooks={'checkpoint': None},
        visualizer={'type': 'Visualizer', 'vis_backends': [{'type': 'LocalVisBackend'}]},
        randomness={'seed': 0},
        experiment_name=f'pictures_{work_dir.parent.name}_{work_dir.name}',
        log_level='ERROR',
        **(validation if validates else {}),
    )
    runner.train()
    return runner


def pictures(work_dir):
    """Names and steps of what the local backend wrote."""
    return {path.stem for path in work_dir.rglob('vis_image/*.png')}


def steps(names, numbers):
    return {f'{name}_{number}' for name in names for number in numbers}


@pytest.fixture
def drawn(monkeypatch):
    """What the figures are given, by their names; nothing is drawn, which takes a while."""
    calls = {}
    for name in ('attention_figure', 'predictions_figure', 'affinity_figure'):
        noted = calls.setdefault(name, [])
        monkeypatch.setattr(
            figures, name, lambda *args, noted=noted, **kw: noted.append((*args, *kw.values()))
        )
    blank = np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(figures, 'to_array', lambda figure: blank)
    return calls


@pytest.mark.parametrize(
    ('name', 'names'),
    [('bake', {*TOGETHER, 'affinity'}), ('dml', {*TOGETHER, 'affinity_b'}), ('ffsd', TOGETHER)],
)
def test_training_is_the_same_to_the_last_bit(name, names, tmp_path, drawn):
    model = toys.build(name)
    plain = train(copy.deepcopy(model), tmp_path / 'plain')
    random = [torch.rand(()), np.random.random()]
    watched = train(model, tmp_path / 'watched', interval=2, num_images=2)
    assert random == [torch.rand(()), np.random.random()]
    expected, found = plain.model.state_dict(), watched.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert not any(module._forward_hooks for module in model.modules())
    assert pictures(tmp_path / 'plain') == set()
    assert pictures(tmp_path / 'watched') == steps(names, [2, 3])


def test_pictures_are_whole(tmp_path):
    train(toys.build('bake'), tmp_path, interval=3, num_images=1)
    for name in ('attention', 'predictions', 'affinity'):
        (path,) = tmp_path.rglob(f'{name}_3.png')
        picture = cv2.imread(str(path))
        assert min(picture.shape[:2]) > 150
        assert (picture[0, 0] == 255).all()
        assert np.ptp(picture, axis=2).max() > 100  # it has colours


@pytest.mark.parametrize(
    ('by_epoch', 'interval', 'numbers'),
    [(True, 2, [2, 3]), (False, 1, [2, 4, 6]), (False, 2, [4, 6])],
)
def test_interval_counts_validations_and_the_last_one_has_pictures(
    by_epoch, interval, numbers, tmp_path, drawn
):
    train(toys.build('bake'), tmp_path, by_epoch, interval=interval)
    assert pictures(tmp_path) == steps({*TOGETHER, 'affinity'}, numbers)


@pytest.mark.parametrize(('num_images', 'numbers'), [(3, [0, 3, 6]), (99, list(range(VAL)))])
def test_the_same_validation_images_each_time(num_images, numbers, tmp_path, drawn):
    runner = train(toys.build('bake'), tmp_path, interval=1, num_images=num_images)
    looks = [[one.name for one in found] for found, _ in drawn['attention_figure']]
    assert looks == [[f'image {number}' for number in numbers]] * EPOCHS
    for found, classes in drawn['predictions_figure']:
        assert classes == tuple(toys.CLASSES)
        shown = np.stack([one.image for one in found])
        given = torch.stack([toys.samples(VAL)[number]['inputs'] for number in numbers])
        np.testing.assert_array_equal(shown, given.permute(0, 2, 3, 1))
    (batch, _) = drawn['affinity_figure'][-1]
    given = torch.stack([one['inputs'] for one in toys.samples(2 * BATCH)[BATCH:]])
    np.testing.assert_array_equal(batch.images, given.permute(0, 2, 3, 1))
    runner._hooks = [PictureHook()]  # which has seen no training
    runner.val()
    assert len(drawn['attention_figure']) == EPOCHS


def test_other_ranks_draw_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_hook, 'is_main_process', lambda: False)
    train(toys.build('bake'), tmp_path, interval=1)
    assert pictures(tmp_path) == set()


def test_a_run_without_validation_is_refused(tmp_path):
    with pytest.raises(ValueError, match='the run has no val_dataloader; set val_dataloader'):
        train(toys.build('bake'), tmp_path, validates=False, interval=1)


@pytest.mark.parametrize('name', ['interval', 'num_images'])
def test_numbers_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f'{name} must be an integer of at least 1, but got 0'):
        PictureHook(**{name: 0})
