"""Images, batches and models of pictures are those of the recipe."""

from copy import deepcopy
from functools import cache

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from kd_mm.analysis.pictures import inputs
from kd_mm.datasets import Digits
from kd_mm.registry import MODELS
from tests.conftest import REPO

DIGITS = [digit['img'] for digit in (Digits(split='test')[i] for i in range(8))]


@cache
def read(name):
    cfg = Config.fromfile(REPO / 'configs' / f'{name}.py')
    for phase in ('train', 'val', 'test'):  # else MMEngine collects garbage for each data set
        dataset = cfg[f'{phase}_dataloader'].dataset
        while 'dataset' in dataset:
            dataset = dataset.dataset
        dataset.serialize_data = False
    return cfg


def recipe(name, **settings):
    """A recipe of the digits with small networks and few images."""
    cfg = deepcopy(read(name))
    small = {key: dict(backbone=dict(depth=10 if 'wrn' in key else 8))
             for key in cfg.model.get('students', {})}  # fmt: skip
    cfg.merge_from_dict({
        'model': dict(students=small) if small else dict(backbone=dict(depth=8)),
        'train_dataloader.batch_size': 12,
        'train_dataloader.dataset.indices': 60,
        'val_dataloader.dataset.indices': 8,
        'test_dataloader.dataset.indices': 8,
        **settings,
    })  # fmt: skip
    return cfg


def checkpoint(cfg, path, **meta):
    torch.manual_seed(0)
    model = MODELS.build({**cfg.to_dict()['model'], '_scope_': 'mmpretrain'})
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, path)
    return path


@pytest.fixture(scope='module')
def bake(tmp_path_factory):
    """A config with a BAKE head, and its model with weights from a file."""
    cfg = recipe('bake/resnet20_1xb64_digits')
    path = checkpoint(cfg, tmp_path_factory.mktemp('bake') / 'a.pth')
    return cfg, inputs.load_model(cfg, path)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A folder of eight pictures, the digits in files: grey, and the first one red."""
    folder = tmp_path_factory.mktemp('files')
    for number, digit in enumerate(DIGITS):
        cv2.imwrite(str(folder / f'{number}.png'), digit)
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 2] = 255  # of BGR
    cv2.imwrite(str(folder / 'red.bmp'), red)
    (folder / 'words.txt').write_text('no image')
    return folder


def test_weights_and_classes_come_from_the_checkpoint(tmp_path):
    cfg = recipe('bake/resnet20_1xb64_digits')
    names = [f'class {i}' for i in range(10)]
    path = checkpoint(cfg, tmp_path / 'a.pth', dataset_meta={'classes': names})
    before = cfg.to_dict()
    loaded = inputs.load_model(cfg, path)
    assert cfg.to_dict() == before
    assert loaded.classes == tuple(names)
    assert not loaded.model.training
    saved = torch.load(path, weights_only=True)['state_dict']
    assert all(torch.equal(value, saved[key]) for key, value in loaded.model.state_dict().items())


def test_a_device_that_is_not_there_is_named(tmp_path):
    cfg = recipe('bake/resnet20_1xb64_digits')
    with pytest.raises(ValueError, match=r'--device must be one that torch has here, .* got tpu'):
        inputs.load_model(cfg, tmp_path / 'a.pth', 'tpu')


def test_images_of_the_data_set_are_spread_over_it(bake):
    cfg, loaded = bake
    looks, classes = inputs.look_at(loaded, cfg, number=4)
    assert classes == tuple('0123456789')
    assert [look.name for look in looks] == [f'image {i}' for i in (0, 2, 4, 6)]
    for look, index in zip(looks, (0, 2, 4, 6), strict=True):
        expected = cv2.resize(DIGITS[index], (16, 16), interpolation=cv2.INTER_LINEAR)
        assert np.abs(look.image.astype(int) - expected).max() <= 1
        assert look.label is not None
        assert look.scores['network'].sum() == pytest.approx(1)
    named = loaded._replace(classes=tuple('abcdefghij'))  # by the checkpoint
    looks, classes = inputs.look_at(named, cfg, number=100, phase='val')
    assert (len(looks), classes) == (8, named.classes)


def test_files_and_folders_are_shown_as_the_data_set_would(bake, files):
    cfg, loaded = bake
    from_data, _ = inputs.look_at(loaded, cfg, number=8)
    from_files, _ = inputs.look_at(loaded, cfg, [files / '2.png', files / 'red.bmp'])
    assert [look.name for look in from_files] == ['2', 'red']
    assert from_files[0].label is None
    np.testing.assert_array_equal(from_files[0].image, from_data[2].image)
    np.testing.assert_allclose(
        from_files[0].scores['network'], from_data[2].scores['network'], rtol=1e-5
    )
    assert from_files[1].image[0, 0].tolist() == [255, 0, 0]
    everyone, _ = inputs.look_at(loaded, cfg, [files], number=3)
    assert [look.name for look in everyone] == ['0', '3', '6']


@pytest.mark.parametrize(
    ('arguments', 'error', 'sentence'),
    [
        ({'number': 0}, ValueError, '--number must be at least 1, but got 0'),
        ({'images': ['nowhere.png']}, FileNotFoundError, 'no image at nowhere.png'),
        ({'images': ['words.txt']}, ValueError, 'words.txt cannot be read .*; give an image'),
        ({'images': ['empty']}, FileNotFoundError, r'empty holds no image \(\.jpg, '),
        ({'layers': ['a']}, ValueError, 'network has no a; there are backbone'),
    ],
)
def test_what_cannot_be_shown_is_named(arguments, error, sentence, bake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'words.txt').write_text('no image')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(error, match=sentence):
        inputs.look_at(bake[1], bake[0], **arguments)


def test_a_config_without_images_is_named(bake):
    cfg, loaded = bake
    cfg = Config({**cfg.to_dict(), 'test_dataloader': None, 'train_dataloader': None})
    with pytest.raises(ValueError, match=r'must have a test_dataloader .* choose another --phase'):
        inputs.look_at(loaded, cfg)
    with pytest.raises(ValueError, match='must have a train_dataloader, whose batch is shown'):
        inputs.train_batch(cfg)
    with pytest.raises(ValueError, match='--seed must be at least 0, but got -1'):
        inputs.train_batch(cfg, -1)


def test_a_batch_is_that_of_the_recipes_sampler(bake):
    cfg, loaded = bake
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    found, classes = inputs.batch_knowledge(loaded, cfg, number=8, seed=3)
    assert list(found) == ['network']
    batch = found['network']
    assert batch.size == 12
    assert batch.affinity.shape == (8, 8)
    labels = batch.labels.argmax(axis=1)
    np.testing.assert_array_equal(labels[::2], labels[1::2])  # partners
    assert len(set(labels)) > 1
    assert classes == tuple('0123456789')
    after = loaded.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not loaded.model.training
    again = inputs.batch_knowledge(loaded, cfg, number=8, seed=3)[0]['network']
    np.testing.assert_array_equal(again.images, batch.images)
    named = loaded._replace(classes=tuple('abcdefghij'))
    found, classes = inputs.batch_knowledge(named, cfg, number=8, seed=4)
    assert (found['network'].images != batch.images).any()
    assert classes == named.classes


def test_affinities_need_a_method_that_has_them(tmp_path):
    cfg = recipe('vanilla/vanilla_resnet20_1xb64_digits')
    loaded = inputs.load_model(cfg, checkpoint(cfg, tmp_path / 'a.pth'))
    with pytest.raises(ValueError, match=r'need a method by .* but ImageClassifier has none; use'):
        inputs.batch_knowledge(loaded, cfg)


def test_a_batch_for_methods_with_a_clock_a_teacher_and_a_memory(tmp_path):
    cfg = recipe('vanilla/vanilla_resnet20_1xb64_digits')
    network, teacher = cfg.model.to_dict(), checkpoint(cfg, tmp_path / 'teacher.pth')
    methods = {'past': {'type': 'tests.PastLabels'}, 'kd': {'type': 'tests.Snapshot'}}
    cfg.model = {
        'type': 'kd_mm.BAKE',
        'student': network,
        'teachers': {'t': {**network, 'checkpoint': str(teacher)}},
        'methods': methods,
    }
    torch.manual_seed(0)
    model = MODELS.build({**cfg.to_dict()['model'], '_scope_': 'mmpretrain'})
    model.methods.past.memory.resize(60)
    model.methods.past.memory.write(torch.arange(60), torch.full((60, 10), 0.1))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    loaded = inputs.load_model(cfg, tmp_path / 'a.pth')
    (batch,) = inputs.batch_knowledge(loaded, cfg)[0].values()
    np.testing.assert_allclose(np.sort(batch.labels), [[0.05] * 9 + [0.55]] * 12, rtol=1e-3)


def equal(views, first, second):
    pairs = zip(views.views[first], views.views[second], strict=True)
    return [bool((a == b).all()) for a, b in pairs]


def test_each_student_sees_its_own_crop_of_the_image():
    cfg = recipe('kdcl/kdcl-minlogit_resnet20-wrn16-1_1xb64_digits')
    views, classes = inputs.recipe_views(cfg, number=12)
    assert list(views.views) == ['resnet20', 'wrn16_1']
    assert not all(equal(views, 'resnet20', 'wrn16_1'))
    train = Digits(split='train')
    for place, original in enumerate(views.originals):
        label = int(views.labels[place].argmax())
        (index,) = [i for i in range(60) if (train[i]['img'] == original).all()]
        assert train[index]['gt_label'] == label
        # A crop of the image between margins of one black pixel.
        large = np.pad(cv2.resize(original, (16, 16)), ((1, 1), (1, 1), (0, 0))).astype(int)
        crops = [large[y : y + 16, x : x + 16] for y in range(3) for x in range(3)]
        for name in views.views:
            view = views.views[name][place]
            assert min(np.abs(view - crop).max() for crop in crops) <= 1, name
    assert classes == tuple('0123456789')
    again, _ = inputs.recipe_views(cfg, number=12)
    np.testing.assert_array_equal(again.views['wrn16_1'], views.views['wrn16_1'])
    other, _ = inputs.recipe_views(cfg, number=12, seed=1)
    assert (other.views['wrn16_1'] != views.views['wrn16_1']).any()


def test_students_that_share_a_view_share_a_column():
    views, _ = inputs.recipe_views(recipe('ffsd/ffsd_resnet20_1xb64_digits'), number=3)
    assert list(views.views) == ['all students']
    assert views.views['all students'].shape == (3, 16, 16, 3)
    views, _ = inputs.recipe_views(recipe('bake/resnet20_1xb64_digits'), number=3)
    assert list(views.views) == ['network']


def test_views_that_the_preprocessor_draws():
    cfg = recipe(
        'in_memory/kdcl-general_resnet20-wrn16-1_1xb64_digits-in-memory',
        **{'train_dataloader.dataset.dataset.num_per_class': 2},
    )
    del cfg.train_dataloader.dataset['indices']
    views, _ = inputs.recipe_views(cfg, number=12)
    assert not all(equal(views, 'resnet20', 'wrn16_1'))
    assert views.originals == []  # the tensor does not know where they came from


def test_too_few_views_are_named():
    cfg = recipe('kdcl/kdcl-minlogit_resnet20-wrn16-1_1xb64_digits')
    cfg.train_dataloader.dataset.pipeline[1].num_views = 1
    with pytest.raises(ValueError, match=r'2 students needs 2 views per sample, .* gives 1 views'):
        inputs.recipe_views(cfg)


def test_mixed_images_bear_mixed_labels(tmp_path):
    mixup = {'augments': {'type': 'Mixup', 'alpha': 1.0}}
    cfg = recipe('bake/resnet20_1xb64_digits', **{'model.train_cfg': mixup})
    loaded = inputs.load_model(cfg, checkpoint(cfg, tmp_path / 'a.pth'))
    batch = inputs.batch_knowledge(loaded, cfg, number=12)[0]['network']
    views, _ = inputs.recipe_views(cfg, number=12)
    for labels in (batch.labels, views.labels):
        np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-5)
        assert (labels.max(axis=1) < 1).sum() > 0
    np.testing.assert_array_equal(batch.images, views.views['network'])
