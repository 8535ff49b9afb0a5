"""Crops and flips of whole batches: mmpretrain's pixels, mmpretrain's chances."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from scipy.stats import chisquare

from kd_mm.models import CohortDataPreprocessor
from kd_mm.models.batch_augments import BatchRandomCrop, BatchRandomFlip, run_generator

CROP = {'type': 'kd_mm.BatchRandomCrop', 'crop_size': 4, 'padding': 1}
FLIP = {'type': 'kd_mm.BatchRandomFlip', 'prob': 0.25}
# Every pixel differs, and none is the zero of the padding.
IMAGE = torch.arange(1, 3 * 4 * 4 + 1, dtype=torch.uint8).view(3, 4, 4)


@pytest.fixture
def hub():
    """The message hub of no run, until a test writes into it."""
    yield MessageHub.get_instance('test_batch_augments')
    del MessageHub._instance_dict['test_batch_augments']


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def one_by_one(augment):
    """Return mmpretrain's transforms of single images, (C, H, W) to (C, H, W)."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        transforms = Compose(augment.transforms)

    def transform(image):
        array = transforms({'img': image.permute(1, 2, 0).numpy()})['img']
        return torch.from_numpy(array.transpose(2, 0, 1).copy())

    return transform


@pytest.mark.parametrize('padding_mode', ['constant', 'reflect'])
@pytest.mark.parametrize('padding', [1, 3])
def test_crop_has_mmpretrains_pixels_for_the_same_draw(padding, padding_mode, monkeypatch):
    augment = BatchRandomCrop(4, padding, padding_mode)
    transform = one_by_one(augment)
    draws = list(product(range(2 * padding + 1), repeat=2))
    images = torch.randint(256, (len(draws), 3, 4, 4), dtype=torch.uint8)
    crops = augment.crop(images, torch.tensor(draws).T)
    assert crops.dtype == torch.uint8
    for image, crop, draw in zip(images, crops, draws, strict=True):
        monkeypatch.setattr(np.random, 'randint', lambda *_, draws=list(draw): draws.pop(0))
        assert torch.equal(crop, transform(image))


def test_flip_has_mmpretrains_pixels_for_the_same_draw(monkeypatch):
    transform = one_by_one(BatchRandomFlip(0.5))
    images = torch.randint(256, (4, 3, 5, 4), dtype=torch.uint8)
    chosen = torch.tensor([True, False, False, True])
    for image, flipped, choice in zip(
        images, BatchRandomFlip.flip(images, chosen), chosen, strict=True
    ):
        monkeypatch.setattr(np.random, 'choice', lambda c, p, i=choice: c[0] if i else c[1])
        assert torch.equal(flipped, transform(image))


@pytest.mark.parametrize('padding_mode', ['constant', 'reflect'])
def test_outcomes_are_mmpretrains_with_the_same_frequencies(padding_mode, generator):
    augments = [BatchRandomCrop(4, 1, padding_mode), BatchRandomFlip(0.25)]
    batch = IMAGE.expand(9000, -1, -1, -1)
    transforms = []
    for augment in augments:
        batch = augment(batch, generator)
        transforms.append(one_by_one(augment))
    ours = Counter(image.numpy().tobytes() for image in batch)

    np.random.seed(0)
    theirs = Counter()
    for _ in range(3000):
        image = IMAGE
        for transform in transforms:
            image = transform(image)
        theirs[image.numpy().tobytes()] += 1

    # Nine places, mirrored in one case of four.
    assert len(ours) == 18
    assert ours.keys() == theirs.keys()
    crops = augments[0].crop(
        IMAGE.expand(9, -1, -1, -1), torch.tensor([*product(range(3), repeat=2)]).T
    )
    expected = {crop.numpy().tobytes(): 0.75 / 9 for crop in crops}
    expected |= {crop.numpy().tobytes(): 0.25 / 9 for crop in crops.flip(3)}
    for counts, total in ((ours, 9000), (theirs, 3000)):
        pairs = [(counts[key], total * chance) for key, chance in expected.items()]
        assert chisquare(*zip(*pairs, strict=True)).pvalue > 0.01


def places(images):
    """Tell the place of each crop of IMAGE, by a pixel that is never padding."""
    return images[:, 0, 1, 1].tolist()


def test_images_and_views_draw_independently(hub):
    """All 81 pairs of places are equally frequent: of two views, and of neighbours."""
    torch.manual_seed(0)
    preprocess = CohortDataPreprocessor(augments=[CROP], num_views=2)
    views = preprocess.draw(IMAGE.expand(20000, -1, -1, -1))
    first, second = map(places, views)
    assert len(set(first)) == 9
    for pairs in (zip(first, second, strict=True), zip(first[::2], first[1::2], strict=True)):
        counts = Counter(pairs)
        assert len(counts) == 81
        assert chisquare(list(counts.values())).pvalue > 0.01


def test_draws_follow_seed_iteration_and_rank(hub, monkeypatch):
    batch = IMAGE.expand(16, -1, -1, -1)
    preprocess = CohortDataPreprocessor(augments=[CROP, FLIP])

    def draw(seed, iteration, rank=0):
        hub.update_info_dict({'seed': seed, 'iter': iteration})
        monkeypatch.setattr('kd_mm.models.batch_augments.get_rank', lambda: rank)
        return preprocess.draw(batch).numpy().tobytes()

    state = torch.get_rng_state()
    first = draw(0, 7)
    draw(0, 8)
    assert draw(0, 7) == first  # as a resumed run does
    assert len({first, draw(1, 7), draw(0, 8), draw(0, 7, rank=1), draw(7, 0)}) == 5
    assert torch.equal(torch.get_rng_state(), state)
    assert run_generator(torch.device('cpu')).initial_seed() >= 0


def test_outside_of_a_run_the_global_generator_draws(hub):
    batch = IMAGE.expand(16, -1, -1, -1)
    preprocess = CohortDataPreprocessor(augments=[CROP])
    assert run_generator(batch.device) is None
    torch.manual_seed(3)
    first, second = preprocess.draw(batch), preprocess.draw(batch)
    torch.manual_seed(3)
    assert torch.equal(preprocess.draw(batch), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize('num_views', [None, 1, 3])
def test_training_alone_sees_augmented_images(num_views, hub):
    """Before normalisation: the border is the mean subtracted from zero."""
    torch.manual_seed(0)
    settings = {'mean': [1.0] * 3, 'std': [2.0] * 3}
    preprocess = CohortDataPreprocessor(augments=[CROP], num_views=num_views, **settings)
    batch = IMAGE.expand(64, -1, -1, -1).clone()
    data = {'inputs': batch, 'data_samples': [DataSample().set_gt_label(1) for _ in batch]}
    seen = preprocess(data, training=True)
    views = [seen['inputs']] if num_views is None else seen['inputs']
    assert len(views) == (num_views or 1)
    assert len({view.numpy().tobytes() for view in views}) == len(views)
    for view in views:
        assert (view.shape, view.dtype) == (batch.shape, torch.float32)
        assert view.min() == -0.5
    assert [sample.gt_label.item() for sample in seen['data_samples']] == [1] * 64

    plain = CohortDataPreprocessor(**settings)(data)['inputs']
    assert torch.equal(preprocess(data)['inputs'], plain)
    assert torch.equal(batch, IMAGE.expand(64, -1, -1, -1))


def test_mixup_sees_the_augmented_views(hub):
    """Two images alike stay so when they are mixed, in each view by one draw."""
    mixup = {'augments': [{'type': 'mmpretrain.Mixup', 'alpha': 1.0}]}
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        preprocess = CohortDataPreprocessor(
            augments=[FLIP], num_views=2, num_classes=2, batch_augments=mixup
        )
    batch = torch.ones(2, 3, 4, 4, dtype=torch.uint8)
    samples = [DataSample().set_gt_label(label) for label in (0, 1)]
    seen = preprocess({'inputs': batch, 'data_samples': samples}, training=True)
    assert [view.unique().tolist() for view in seen['inputs']] == [[1.0], [1.0]]
    torch.testing.assert_close(sum(s.gt_score for s in seen['data_samples']), torch.ones(2))


@pytest.mark.parametrize(
    ('cls', 'arguments', 'message'),
    [
        (BatchRandomCrop, (32, 4, 'edge'), "one of constant, reflect, but got 'edge'"),
        (BatchRandomCrop, (0, 4), 'crop_size must be at least 1 pixel, but got 0'),
        (BatchRandomCrop, (32, 0), 'padding must be at least 1, but got 0'),
        (BatchRandomCrop, (4, 4, 'reflect'), 'at least 1 and below crop_size, but got 4'),
        (BatchRandomFlip, (0.0,), r'prob must lie in \(0, 1\], but got 0.0'),
        (BatchRandomFlip, (1.5,), r'prob must lie in \(0, 1\], but got 1.5'),
    ],
)
def test_arguments_out_of_range_are_refused(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(*arguments)


def test_inputs_that_do_not_fit_are_refused(hub):
    preprocess = CohortDataPreprocessor(augments=[CROP])
    with pytest.raises(ValueError, match=r'crop_size=4 pixels .* but got \(5, 4\)'):
        preprocess.draw(torch.zeros(2, 3, 5, 4))
    with pytest.raises(ValueError, match='a list of 2; set train_dataloader'):
        preprocess({'inputs': [IMAGE, IMAGE]}, training=True)
    for views, augments in ((0, [CROP]), (2, [])):
        with pytest.raises(ValueError, match=f'num_views={views} and {len(augments)} augments'):
            CohortDataPreprocessor(augments=augments, num_views=views)
