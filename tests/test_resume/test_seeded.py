"""Random augmentation depends on seed, epoch, image and view alone."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ConcatDataset, DefaultSampler, RepeatDataset
from mmpretrain.datasets.transforms import MultiView
from torch.utils.data import BatchSampler, DataLoader

from kd_mm.resume import seeded
from kd_mm.resume.seeded import SeededBatchSampler, seed_generators, seed_views


def draw():
    return [random.random(), np.random.random(), torch.rand(()).item()]


def drawn(*key):
    seed_generators(*key)
    return draw()


def test_each_generator_follows_from_seed_and_key_alone():
    first = drawn(7, 1, 2)
    draw()
    assert drawn(7, 1, 2) == first
    for other in ((8, 1, 2), (7, 2, 1), (7, 1), (7, 1, 2, 0), (7, 0, 1, 2)):
        assert all(a != b for a, b in zip(first, drawn(*other), strict=True)), other


def test_gpus_that_are_in_use_are_seeded_where_asked(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeds.append)
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    seed_generators(0, 1)
    assert seeds == []
    seed_generators(0, 1, devices=True)
    assert seeds == [torch.initial_seed()]


class Drawing(BaseDataset):
    """Images that are what a transform draws."""

    def __init__(self, pipeline=(lambda results: {'drawn': draw()},)):
        super().__init__(pipeline=list(pipeline), serialize_data=False)

    def load_data_list(self):
        return [{'number': number} for number in range(6)]


def seeded_loader(dataset, indices=None, workers=0, by_iteration=False, done=0):
    sampler = DefaultSampler(dataset, seed=0) if indices is None else indices
    plain = BatchSampler(sampler, 2, False)
    batches = SeededBatchSampler(plain, len(dataset), 3, 0, by_iteration)
    batches.done = done
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=list,
    )


def read(loader, epochs=(0, 1)):
    """What each epoch draws, image by image in the order of reading."""
    epochs_drawn = []
    for epoch in epochs:
        if isinstance(loader.batch_sampler.sampler, DefaultSampler):
            loader.batch_sampler.sampler.set_epoch(epoch)
        loader.batch_sampler.epoch = epoch
        epochs_drawn.append([item['drawn'] for batch in loader for item in batch])
    return np.array(epochs_drawn)


def test_any_number_of_workers_and_any_order_draw_the_same():
    expected = read(seeded_loader(Drawing()))
    assert len(np.unique(expected)) == expected.size  # each epoch, image and generator its own
    for workers in (1, 2):
        assert np.array_equal(read(seeded_loader(Drawing(), workers=workers)), expected)
    in_order = read(seeded_loader(Drawing(), indices=range(6)), epochs=[0])[0]
    assert np.array_equal(expected[0], in_order[list(DefaultSampler(Drawing(), seed=0))])


def broken(results):
    draw()
    raise OSError('not an image')


@pytest.mark.parametrize('pipeline', [None, [broken]])
def test_the_main_process_continues_as_if_nothing_was_drawn(pipeline):
    expected = drawn(0)
    loader = seeded_loader(Drawing() if pipeline is None else Drawing(pipeline))
    loader.generator = torch.Generator().manual_seed(0)  # otherwise the loader draws a seed
    seed_generators(0)
    if pipeline is None:
        list(loader)
    else:
        with pytest.raises(OSError, match='not an image'):
            list(loader)
    assert draw() == expected


def test_an_image_that_comes_twice_draws_twice():
    """As a partner in its own batch, and as an item of a wrapper that repeats."""
    for dataset, indices in (
        (Drawing(), [4, 4, 1, 4]),
        (RepeatDataset(Drawing(), 2), None),
        (ConcatDataset([Drawing(), Drawing()]), None),
    ):
        numbers = read(seeded_loader(dataset, indices), epochs=[0])
        assert len(np.unique(numbers)) == numbers.size == 3 * len(indices or dataset)


def test_what_is_done_is_passed_over_once():
    loader = seeded_loader(Drawing(), done=2)
    epochs = [[item['drawn'] for batch in loader for item in batch] for _ in range(2)]
    assert [len(epoch) for epoch in epochs] == [2, 6]
    assert epochs[0] == epochs[1][4:]
    assert len(loader) == 3


def test_without_epochs_each_iteration_draws_for_itself():
    def from_iteration(first):
        loader = seeded_loader(Drawing(), indices=[4, 1] * 3, by_iteration=True)
        return read(loader, epochs=[first])[0]

    all_of_it = from_iteration(0)
    assert len(np.unique(all_of_it)) == all_of_it.size
    assert np.array_equal(from_iteration(2)[:2], all_of_it[4:])  # resumed at the third iteration


class Images:
    """A view that draws some numbers more if it is the first of an image."""

    def __init__(self, extra=0):
        self.extra = extra
        self.calls = 0

    def __call__(self, results):
        for _ in range(self.extra if self.calls % 2 == 0 else 0):
            draw()
        self.calls += 1
        return {'img': draw()}


@pytest.mark.parametrize(
    'wrap', [lambda d: d, lambda d: RepeatDataset(d, 1), lambda d: ConcatDataset([d])]
)
def test_what_a_view_draws_does_not_depend_on_the_views_before(wrap):
    def views(extra, seed=True):
        transform = MultiView([[Images(extra)]], num_views=2)
        dataset = wrap(Drawing([transform, lambda results: {'drawn': results['img']}]))
        for _ in range(2 * seed):  # a second call changes nothing
            seed_views(dataset)
        return read(seeded_loader(dataset), epochs=[0])[0]

    few, many = views(0), views(5)
    assert len(np.unique(few)) == few.size
    assert np.array_equal(few[:, 1], many[:, 1])
    assert not np.array_equal(views(0, seed=False)[:, 1], views(5, seed=False)[:, 1])


def test_batches_travel_without_a_draw(monkeypatch):
    """The loader packs them in another thread than the main one, whose generators they are."""
    (batch, *_) = seeded_loader(Drawing()).batch_sampler
    with monkeypatch.context() as patched:
        patched.setattr(seeded, 'seed_generators', None)
        sent = pickle.loads(pickle.dumps(batch))
    assert (list(sent), sent.keys) == (list(batch), batch.keys)


def test_a_copied_sampler_knows_what_the_one_inside_knows():
    batches = seeded_loader(Drawing()).batch_sampler
    assert copy.deepcopy(batches).batch_size == batches.batch_size == 2
