"""Images read once, handed out and augmented in batches: mmpretrain's pixels and chances."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import MessageHub
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.transforms import PackInputs
from scipy.stats import chisquare
from torch.utils.data import DataLoader

from kd_mm.datasets import BatchRandomCrop, BatchRandomFlip, Digits, InMemory
from kd_mm.datasets.in_memory import batch_collate, run_generator
from kd_mm.run.rehearsal import check_config
from tests.conftest import REPO

PIPELINE = [dict(type='Resize', scale=16), dict(type='PackInputs')]
# Every pixel differs, and none is the zero of the padding.
IMAGE = torch.arange(1, 3 * 4 * 4 + 1, dtype=torch.uint8).view(3, 4, 4)


class Toy(BaseDataset):
    """Eight images (2, 2, 3) whose values are their numbers."""

    def __init__(self, change=lambda results: {}, **info):
        self.change, self.info, self.reads = change, info, 0
        super().__init__('', pipeline=[self.read, PackInputs()], serialize_data=False)

    def read(self, results):
        self.reads += 1
        return {**results, **self.change(results)}

    def load_data_list(self):
        images = [np.full((2, 2, 3), index, np.uint8) for index in range(8)]
        return [{'img': img, 'gt_label': i % 2, **self.info} for i, img in enumerate(images)]


def test_batches_hold_the_samples_of_the_data_set():
    digits = Digits(pipeline=PIPELINE)
    loader = DataLoader(InMemory(digits), batch_size=500, shuffle=False, collate_fn=batch_collate)
    batches = list(loader)
    assert [len(batch['data_samples']) for batch in batches] == [500, 500, 198]
    images = torch.cat([batch['inputs'] for batch in batches])
    samples = [sample for batch in batches for sample in batch['data_samples']]
    assert (images.shape, images.dtype) == ((1198, 3, 16, 16), torch.uint8)
    for index in (0, 1, 700, 1197):
        assert torch.equal(images[index], digits[index]['inputs'])
        assert torch.equal(samples[index].gt_label, digits[index]['data_samples'].gt_label)


def test_an_item_and_its_batch_are_the_same():
    dataset = InMemory(Toy())
    batch, item = dataset.__getitems__([3, 3, 5]), dataset[5]
    assert batch['inputs'][:, 0, 0, 0].tolist() == [3, 3, 5]
    assert torch.equal(batch['inputs'][2], item['inputs'])
    assert item['data_samples'].gt_label.tolist() == [1]
    # What a model writes stays with the batch.
    batch['inputs'].zero_(), item['inputs'].zero_()
    batch['data_samples'][0].set_gt_label(9).set_gt_score(torch.ones(3))
    again = dataset.__getitems__([3, 5])
    assert again['inputs'][:, 0, 0, 0].tolist() == [3, 5]
    assert [sample.keys() for sample in again['data_samples']] == [['gt_label']] * 2
    assert [sample.gt_label.tolist() for sample in again['data_samples']] == [[1], [1]]


def test_each_image_is_read_at_the_start_alone():
    toy = Toy()
    dataset = InMemory(toy, lazy_init=True)
    assert len(dataset) == 8
    assert toy.reads == 0
    dataset[0]
    read = toy.reads
    assert 8 <= read <= 8 + 1 + 8  # the shape, and a second look at some
    dataset.full_init(), dataset.__getitems__(range(8)), dataset[3]
    assert toy.reads == read


@pytest.mark.parametrize(
    ('dataset', 'message'),
    [
        ([], 'needs images, but list has 0'),
        (
            Toy(lambda r: {'img': r['img'] + np.random.randint(200, dtype=np.uint8)}),
            r'image \d of Toy differs .* data_preprocessor\.augments',
        ),
        (
            Toy(lambda r: {'img': np.zeros((2, 2 + r['sample_idx'], 3), np.uint8)}),
            r'image 0 is \(3, 2, 2\) and image 1 \(3, 2, 3\)',
        ),
        (
            Toy(lambda r: {'img': r['img'].astype(np.float32)}),
            r'item 0 is torch\.float32 \(3, 2, 2\)',
        ),
        (Toy(lambda r: {'img': [r['img']] * 2}), r'item 0 is list; leave MultiView'),
        (Toy(gt_label=[0, 1]), r"item 0 has {'gt_label': \[0, 1\]}"),
        (Toy(gt_score=[0.5, 0.5]), r"'gt_score': \[0\.5, 0\.5\]"),
    ],
)
def test_data_that_does_not_fit_is_refused(dataset, message):
    with pytest.raises(ValueError, match=message):
        InMemory(dataset)


def one_by_one(augment):
    """Return mmpretrain's transforms of single images, (C, H, W) to (C, H, W)."""
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
    monkeypatch.setattr(torch, 'randint', lambda *_, **__: torch.tensor(draws).T)
    crops = augment(images, None)
    assert crops.dtype == torch.uint8
    for image, crop, draw in zip(images, crops, draws, strict=True):
        monkeypatch.setattr(np.random, 'randint', lambda *_, draws=list(draw): draws.pop(0))
        assert torch.equal(crop, transform(image))


def test_flip_has_mmpretrains_pixels_for_the_same_draw(monkeypatch):
    augment = BatchRandomFlip(0.5)
    transform = one_by_one(augment)
    images = torch.randint(256, (4, 3, 5, 4), dtype=torch.uint8)
    draws = torch.tensor([0.1, 0.9, 0.5, 0.4])
    monkeypatch.setattr(torch, 'rand', lambda *_, **__: draws)
    for image, flipped, draw in zip(images, augment(images, None), draws, strict=True):
        monkeypatch.setattr(np.random, 'choice', lambda c, p, i=draw < 0.5: c[0] if i else c[1])
        assert torch.equal(flipped, transform(image))


@pytest.mark.parametrize('padding_mode', ['constant', 'reflect'])
def test_outcomes_are_mmpretrains_with_the_same_frequencies(padding_mode, monkeypatch):
    augments = [BatchRandomCrop(4, 1, padding_mode), BatchRandomFlip(0.25)]
    generator = torch.Generator().manual_seed(0)
    batch = IMAGE.expand(9000, -1, -1, -1)
    for augment in augments:
        batch = augment(batch, generator)
    ours = Counter(image.numpy().tobytes() for image in batch)

    np.random.seed(0)
    crop, flip = map(one_by_one, augments)
    theirs = Counter(flip(crop(IMAGE)).numpy().tobytes() for _ in range(1500))

    places = torch.tensor([*product(range(3), repeat=2)]).T
    monkeypatch.setattr(torch, 'randint', lambda *_, **__: places)
    crops = augments[0](IMAGE.expand(9, -1, -1, -1), None)
    expected = {image.numpy().tobytes(): 0.75 / 9 for image in crops}
    expected |= {image.numpy().tobytes(): 0.25 / 9 for image in crops.flip(3)}
    assert len(expected) == 18
    assert ours.keys() == theirs.keys() == expected.keys()
    for counts, total in ((ours, 9000), (theirs, 1500)):
        pairs = [(counts[key], total * chance) for key, chance in expected.items()]
        assert chisquare(*zip(*pairs, strict=True)).pvalue > 0.01


def draw(seed, iteration, rank, hub, monkeypatch):
    """Draw as a run does at this place."""
    hub.update_info_dict({'seed': seed, 'iter': iteration})
    monkeypatch.setattr('kd_mm.datasets.in_memory.get_rank', lambda: rank)
    return torch.rand(3, generator=run_generator(torch.device('cpu'))).tolist()


def test_draws_follow_seed_iteration_and_rank(monkeypatch):
    hub = MessageHub.get_instance('test_in_memory')
    assert run_generator(torch.device('cpu')) is None  # outside of a run
    state = torch.get_rng_state()
    places = [(0, 7, 0), (1, 7, 0), (0, 8, 0), (0, 7, 1), (7, 0, 0)]
    drawn = [draw(*place, hub, monkeypatch) for place in places]
    assert len({tuple(numbers) for numbers in drawn}) == 5
    assert draw(*places[0], hub, monkeypatch) == drawn[0]  # as a resumed run does
    assert torch.equal(torch.get_rng_state(), state)
    del MessageHub._instance_dict['test_in_memory']


@pytest.mark.parametrize(
    ('cls', 'arguments', 'message'),
    [
        (BatchRandomCrop, (32, 4, 'edge'), "one of 'constant', 'reflect', but got 'edge'"),
        (BatchRandomCrop, (0, 4), 'crop_size must be an integer of at least 1, but got 0'),
        (BatchRandomCrop, (32, 0), 'padding must be an integer of at least 1, but got 0'),
        (BatchRandomCrop, (4, 4, 'reflect'), 'below crop_size=4 to reflect, but got 4'),
        (BatchRandomFlip, (0.0,), r'prob must lie in \(0, 1\], but got 0.0'),
        (BatchRandomFlip, (1.5,), r'prob must lie in \(0, 1\], but got 1.5'),
    ],
)
def test_arguments_out_of_range_are_refused(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(*arguments)


@pytest.mark.parametrize(
    ('option', 'value', 'sentence'),
    [
        ('data_preprocessor.num_views', 3, 'needs 2 views per sample, but .* gives 3 views'),
        ('train_dataloader.collate_fn', {'type': 'default_collate'}, 'gives whole batches'),
    ],
)
def test_wrong_settings_are_found_before_the_run(tmp_path, option, value, sentence):
    name = 'kdcl-general_resnet20-wrn16-1_1xb64_digits-in-memory.py'
    cfg = Config.fromfile(REPO / 'configs/in_memory' / name)
    cfg.work_dir = str(tmp_path)
    cfg.train_dataloader.dataset.dataset.dataset.indices = 400
    cfg.merge_from_dict({option: value})
    with pytest.raises(ValueError, match=sentence):
        check_config(cfg, ('train_dataloader',))
