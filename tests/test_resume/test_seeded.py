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
from kd_mm.resume.seeded import SeededBatchSampler, seed_views


def draw():
    return [random.random(), np.random.random(), torch.rand(()).item()]


class Drawing(BaseDataset):
    """Images that are what a transform draws."""

    def __init__(self, num_images=6, pipeline=(lambda results: {'drawn': draw()},)):
        self.num_images = num_images
        super().__init__(pipeline=list(pipeline), serialize_data=False)

    def load_data_list(self):
        return [{'number': number} for number in range(self.num_images)]


def seeded_loader(dataset, indices=None, workers=0, by_iteration=False, done=0):
    sampler = DefaultSampler(dataset, seed=0) if indices is None else indices
    batches = SeededBatchSampler(
        BatchSampler(sampler, 2, False), dataset, seed=3, by_iteration=by_iteration
    )
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
    drawn = []
    for epoch in epochs:
        loader.batch_sampler.sampler.set_epoch(epoch)
        loader.batch_sampler.epoch = epoch
        drawn.append([item['drawn'] for batch in loader for item in batch])
    return np.array(drawn)


def test_any_number_of_workers_draws_the_same():
    expected = read(seeded_loader(Drawing()))
    assert len(np.unique(expected)) == expected.size  # each epoch, image and generator its own
    for workers in (1, 2):
        assert np.array_equal(read(seeded_loader(Drawing(), workers=workers)), expected)


def test_an_image_draws_the_same_wherever_it_comes():
    order = list(DefaultSampler(Drawing(), seed=0))
    plain = seeded_loader(Drawing(), indices=range(6))
    in_order = np.array([item['drawn'] for batch in plain for item in batch])
    assert np.array_equal(read(seeded_loader(Drawing()), epochs=[0])[0], in_order[order])


def test_the_main_process_goes_on_as_if_nothing_was_drawn():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    generators = torch.Generator().manual_seed(0)  # else the loader itself draws a seed
    loader = seeded_loader(Drawing())
    loader.generator = generators
    read(loader)
    assert draw() == expected


def broken(results):
    draw()
    raise OSError('not an image')


def test_an_image_that_cannot_be_read_leaves_the_generators_alone():
    random.seed(0)
    expected = random.random()
    random.seed(0)
    with pytest.raises(OSError, match='not an image'):
        list(seeded_loader(Drawing(pipeline=[broken])))
    assert random.random() == expected


def test_an_image_that_comes_twice_draws_twice():
    """As a partner in its own batch, and as an item of a wrapper that repeats."""
    again = seeded_loader(Drawing(), indices=[4, 4, 1, 4])
    drawn = np.array([item['drawn'] for batch in again for item in batch])
    assert len(np.unique(drawn)) == drawn.size
    for wrapped in (RepeatDataset(Drawing(), 2), ConcatDataset([Drawing(), Drawing()])):
        drawn = read(seeded_loader(wrapped), epochs=[0])
        assert drawn.shape == (1, 12, 3)
        assert len(np.unique(drawn)) == drawn.size


def test_what_is_done_is_passed_over_once():
    loader = seeded_loader(Drawing(), done=2)
    epochs = [[item['drawn'] for batch in loader for item in batch] for _ in range(2)]
    assert [len(epoch) for epoch in epochs] == [2, 6]
    assert epochs[0] == epochs[1][4:]
    assert len(loader) == 3


def test_without_epochs_each_iteration_draws_anew():
    def drawn(first):
        loader = seeded_loader(Drawing(), indices=[4, 1] * 3, by_iteration=True)
        loader.batch_sampler.epoch = first
        return np.array([item['drawn'] for batch in loader for item in batch])

    all_of_it = drawn(0)
    assert len(np.unique(all_of_it)) == all_of_it.size
    assert np.array_equal(drawn(2)[:2], all_of_it[4:])  # resumed at the third iteration


class Images:
    """A view draws as many numbers as the first one was told to."""

    def __init__(self):
        self.extra = 0
        self.calls = 0

    def __call__(self, results):
        for _ in range(self.extra if self.calls % 2 == 0 else 0):
            draw()
        self.calls += 1
        return {'img': draw()}


@pytest.mark.parametrize(
    'wrap',
    [
        lambda inner: inner,
        lambda inner: RepeatDataset(inner, 1),
        lambda inner: ConcatDataset([inner]),
    ],
)
def test_what_a_view_draws_does_not_depend_on_the_views_before(wrap):
    def drawn(extra, seeded=True):
        transform = Images()
        transform.extra = extra
        views = MultiView([[transform]], num_views=2)
        dataset = Drawing(pipeline=[views, lambda results: {'drawn': results['img']}])
        wrapped = wrap(dataset)
        if seeded:
            seed_views(wrapped)
            seed_views(wrapped)  # once is enough
        return read(seeded_loader(wrapped), epochs=[0])[0]

    few, many = drawn(0), drawn(5)
    assert len(np.unique(few)) == few.size
    assert np.array_equal(few[:, 1], many[:, 1])
    assert not np.array_equal(drawn(0, seeded=False)[:, 1], drawn(5, seeded=False)[:, 1])


def test_views_of_a_data_set_that_is_asked_directly_draw_freely():
    dataset = Drawing(pipeline=[MultiView([[Images()]], num_views=2)])
    seed_views(dataset)
    random.seed(0)
    first = dataset[0]['img']
    assert dataset[0]['img'] != first


def test_batches_travel_without_a_draw(monkeypatch):
    """The loader packs them in a thread beside the main one, whose generators are not its own."""
    (batch, *_) = seeded_loader(Drawing()).batch_sampler
    with monkeypatch.context() as patched:
        patched.setattr(seeded, 'seed_generators', None)
        sent = pickle.loads(pickle.dumps(batch))
    assert (list(sent), sent.keys) == (list(batch), batch.keys)


def test_a_copied_sampler_knows_what_the_one_inside_knows():
    batches = seeded_loader(Drawing()).batch_sampler
    assert copy.deepcopy(batches).batch_size == batches.batch_size == 2
