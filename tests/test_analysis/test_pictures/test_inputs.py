"""Images, batches and models of pictures are those of the recipe, and each tool draws them."""

from functools import cache

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from kd_mm.analysis.pictures import inputs
from kd_mm.config import read_config
from kd_mm.datasets import Digits
from kd_mm.registry import MODELS
from tests.conftest import REPO
from tests.toys.recipes import run_tool

DIGITS = [digit['img'] for digit in (Digits(split='test')[i] for i in range(8))]
BAKE, VANILLA = 'bake/resnet20_1xb64_digits', 'vanilla/vanilla_resnet20_1xb64_digits'
MINLOGIT = 'kdcl/kdcl-minlogit_resnet20-wrn16-1_1xb64_digits'


@cache
def read(name):
    return read_config(REPO / 'configs' / f'{name}.py')


def recipe(name, **settings):
    """A recipe of the digits with small networks and few images."""
    cfg = Config(read(name).to_dict())
    depths = {key: 10 if 'wrn' in key else 8 for key in cfg.model.get('students', {})}
    small = {f'model.students.{key}.backbone.depth': depth for key, depth in depths.items()}
    cfg.merge_from_dict({**(small or {'model.backbone.depth': 8}),
                         'train_dataloader.batch_size': 12,
                         'train_dataloader.dataset.indices': 60,
                         'val_dataloader.dataset.indices': 8,
                         'test_dataloader.dataset.indices': 8, **settings})  # fmt: skip
    return cfg


def checkpoint(cfg, path, **meta):
    torch.manual_seed(0)
    model = MODELS.build({**cfg.to_dict()['model'], '_scope_': 'mmpretrain'})
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, path)
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Eight pictures, the digits in files: grey, and one more that is red."""
    folder = tmp_path_factory.mktemp('files')
    for number, digit in enumerate(DIGITS):
        cv2.imwrite(str(folder / f'{number}.png'), digit)
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 2] = 255  # of BGR
    cv2.imwrite(str(folder / 'red.bmp'), red)
    (folder / 'words.txt').write_text('no image')
    (folder / 'empty').mkdir()
    return folder


@pytest.fixture(scope='module')
def bake(tmp_path_factory):
    """A config with a BAKE head, and its model with weights from a file."""
    cfg = recipe(BAKE)
    path = checkpoint(cfg, tmp_path_factory.mktemp('bake') / 'a.pth')
    return cfg, inputs.load_model(cfg, path)


def test_weights_and_classes_come_from_the_checkpoint(tmp_path):
    cfg, names = recipe(BAKE), [f'class {i}' for i in range(10)]
    path = checkpoint(cfg, tmp_path / 'a.pth', dataset_meta={'classes': names})
    before = cfg.to_dict()
    loaded = inputs.load_model(cfg, path)
    assert cfg.to_dict() == before
    assert loaded.classes == tuple(names)
    assert not loaded.model.training
    saved = torch.load(path, weights_only=True)['state_dict']
    assert all(torch.equal(value, saved[key]) for key, value in loaded.model.state_dict().items())
    with pytest.raises(ValueError, match=r'--device must be one that torch has here, .* got tpu'):
        inputs.load_model(cfg, path, 'tpu')


def test_images_of_the_data_set_are_spread_over_it(bake):
    cfg, loaded = bake
    looks, classes = inputs.look_at(loaded, cfg, number=4)
    assert classes == tuple('0123456789')
    assert [look.name for look in looks] == [f'image {i}' for i in (0, 2, 4, 6)]
    for look, index in zip(looks, (0, 2, 4, 6), strict=True):
        expected = cv2.resize(DIGITS[index], (16, 16), interpolation=cv2.INTER_LINEAR)
        assert np.abs(look.image.astype(int) - expected).max() <= 1
        assert look.scores['network'].sum() == pytest.approx(1)
    named = loaded._replace(classes=tuple('abcdefghij'))  # by the checkpoint
    looks, classes = inputs.look_at(named, cfg, number=100, phase='val')
    assert (len(looks), classes) == (8, named.classes)


def test_files_and_folders_are_shown_as_the_data_set_would(bake, folder):
    cfg, loaded = bake
    from_data, _ = inputs.look_at(loaded, cfg, number=8)
    from_files, _ = inputs.look_at(loaded, cfg, [folder / '2.png', folder / 'red.bmp'])
    assert [(look.name, look.label) for look in from_files] == [('2', None), ('red', None)]
    np.testing.assert_array_equal(from_files[0].image, from_data[2].image)
    assert from_files[1].image[0, 0].tolist() == [255, 0, 0]
    everyone, _ = inputs.look_at(loaded, cfg, [folder], number=3)
    assert [look.name for look in everyone] == ['0', '3', '6']


@pytest.mark.parametrize(
    ('arguments', 'error', 'sentence'),
    [
        ({'number': 0}, ValueError, '--number must be an integer of at least 1, but got 0'),
        ({'images': ['nowhere.png']}, FileNotFoundError, 'no image at nowhere.png'),
        ({'images': ['words.txt']}, ValueError, 'words.txt cannot be read .*; give an image'),
        ({'images': ['empty']}, FileNotFoundError, 'no image at empty'),
        ({'layers': ['a']}, ValueError, 'network has no a; there are backbone'),
        ({'phase': 'no'}, ValueError, r'must have a no_dataloader .* choose another --phase'),
    ],
)
def test_what_cannot_be_shown_is_named(arguments, error, sentence, bake, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=sentence):
        inputs.look_at(bake[1], bake[0], **arguments)


def test_a_batch_is_that_of_the_recipes_sampler(bake):
    cfg, loaded = bake
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    found, classes = inputs.batch_knowledge(loaded, cfg, number=8, seed=3)
    batch = found['network']
    assert (batch.size, batch.affinity.shape) == (12, (8, 8))
    labels = batch.labels.argmax(axis=1)
    np.testing.assert_array_equal(labels[::2], labels[1::2])  # partners
    assert classes == tuple('0123456789')
    after = loaded.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    again = inputs.batch_knowledge(loaded, cfg, number=8, seed=3)[0]['network']
    np.testing.assert_array_equal(again.images, batch.images)
    other = inputs.batch_knowledge(loaded, cfg, number=8, seed=4)[0]['network']
    assert (other.images != batch.images).any()


def test_affinities_need_a_method_that_has_them(tmp_path):
    cfg = recipe(VANILLA)
    loaded = inputs.load_model(cfg, checkpoint(cfg, tmp_path / 'a.pth'))
    with pytest.raises(ValueError, match=r'need a method by .* but ImageClassifier has none; use'):
        inputs.batch_knowledge(loaded, cfg)


def test_a_batch_for_methods_with_a_clock_a_teacher_and_a_memory(tmp_path):
    cfg = recipe(VANILLA)
    network, teacher = cfg.model.to_dict(), checkpoint(cfg, tmp_path / 'teacher.pth')
    cfg.model = {
        'type': 'kd_mm.BAKE',
        'student': network,
        'teachers': {'t': {**network, 'checkpoint': str(teacher)}},
        'methods': {'past': {'type': 'tests.PastLabels'}, 'kd': {'type': 'tests.Snapshot'}},
    }
    model = MODELS.build({**cfg.to_dict()['model'], '_scope_': 'mmpretrain'})
    model.methods.past.memory.resize(60)
    model.methods.past.memory.write(torch.arange(60), torch.full((60, 10), 0.1))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    loaded = inputs.load_model(cfg, tmp_path / 'a.pth')
    (batch,) = inputs.batch_knowledge(loaded, cfg)[0].values()
    np.testing.assert_allclose(np.sort(batch.labels), [[0.05] * 9 + [0.55]] * 12, rtol=1e-3)


@pytest.mark.parametrize(
    ('name', 'columns'),
    [
        (MINLOGIT, ['resnet20', 'wrn16_1']),
        ('ffsd/ffsd_resnet20_1xb64_digits', ['all students']),
        (BAKE, ['network']),
    ],
)
def test_each_student_sees_its_own_crop_of_the_image(name, columns):
    views, labels, classes = inputs.recipe_views(recipe(name), number=5)
    assert list(views) == columns
    assert {view.shape for view in views.values()} == {(5, 16, 16, 3)}
    assert labels.shape == (5, 10)
    assert classes == tuple('0123456789')
    again, _, _ = inputs.recipe_views(recipe(name), number=5)
    other, _, _ = inputs.recipe_views(recipe(name), number=5, seed=1)
    first, last = views[columns[0]], views[columns[-1]]
    np.testing.assert_array_equal(again[columns[-1]], last)
    assert (other[columns[-1]] != last).any()
    assert (first != last).any() == (len(columns) > 1)


def test_too_few_views_are_named():
    cfg = recipe(MINLOGIT)
    cfg.train_dataloader.dataset.pipeline[1].num_views = 1
    with pytest.raises(ValueError, match=r'2 students needs 2 views per sample, .* gives 1 views'):
        inputs.recipe_views(cfg)


def test_mixed_images_have_mixed_labels(tmp_path):
    mixup = {'augments': {'type': 'Mixup', 'alpha': 1.0}}
    cfg = recipe(BAKE, **{'model.train_cfg': mixup})
    loaded = inputs.load_model(cfg, checkpoint(cfg, tmp_path / 'a.pth'))
    batch = inputs.batch_knowledge(loaded, cfg, number=12)[0]['network']
    views, labels, _ = inputs.recipe_views(cfg, number=12)
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-5)
    assert (labels.max(axis=1) < 1).sum() > 0
    np.testing.assert_array_equal(batch.labels, labels)
    np.testing.assert_array_equal(batch.images, views['network'])


@pytest.mark.parametrize(
    ('tool', 'name', 'flags'),
    [
        ('attention', BAKE, ['--target-layers', 'backbone.layer1', 'backbone.layer3']),
        ('predictions', MINLOGIT, ['--phase=val', '-n', '2', '--topk=3']),
        ('affinity', BAKE, ['-n', '8', '--index=1', '--seed=2']),
        ('views', MINLOGIT, ['-n', '2', '--seed=1']),
    ],
)
def test_each_tool_draws_its_picture(tool, name, flags, tmp_path, monkeypatch, capsys):
    cfg, out = recipe(name), tmp_path / 'new' / f'{tool}.png'
    cfg.dump(tmp_path / 'a.py')
    weights = [] if tool == 'views' else [checkpoint(cfg, tmp_path / 'a.pth')]
    path = f'visualization/vis_{tool}.py'
    run_tool(monkeypatch, path, tmp_path / 'a.py', *weights, *flags, '--save-path', out)
    said = capsys.readouterr().out
    assert said.rstrip().endswith(f'wrote {out}')
    assert ('network: attention of backbone.layer3' in said) == (tool == 'attention')
    assert min(cv2.imread(str(out)).shape[:2]) > 400
