"""The number of an image, through every wrapper: as the image itself tells it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.dataset import pseudo_collate as as_list
from mmengine.runner.runner import _SlicedDataset
from mmpretrain.datasets import KFoldDataset
from mmpretrain.datasets.transforms import PackInputs
from mmpretrain.structures import DataSample
from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import DataLoader, IterableDataset, Subset

from kd_mm.datasets import Digits, HoldOut, InMemory, batch_collate, get_labels, image_numbers
from kd_mm.datasets.labels import inner_datasets
from kd_mm.datasets.numbered import NumberedDataset, number_images
from kd_mm.resume.seeded import SeededBatch


class Images(BaseDataset):
    """Images (1, 1, 3) of one value each, which no other image has."""

    def __init__(self, first, count, labels=None, pipeline=None):
        self.first, self.count = first, count
        self.given = labels or [i % 2 for i in range(count)]
        super().__init__(pipeline=pipeline or [PackInputs()], serialize_data=False)

    def load_data_list(self):
        values = range(self.first, self.first + self.count)
        images = [np.full((1, 1, 3), value, np.uint8) for value in values]
        return [{'img': i, 'gt_label': g} for i, g in zip(images, self.given, strict=True)]

    def get_cat_ids(self, idx):
        return [self.given[idx]]


def twice():
    data = Images(0, 3)
    return TorchConcatDataset([data, Images(10, 2), data])


def overlapping():
    data = Images(0, 6)
    return TorchConcatDataset([Subset(data, [5, 1, 1]), Subset(data, [3, 5, -1])])


def nested():
    part = TorchConcatDataset([RepeatDataset(Images(0, 3), 2), InMemory(Images(10, 2))])
    return TorchConcatDataset([Subset(part, [7, 4, 1, 1]), Images(20, 2), part])


def balanced():
    return ClassBalancedDataset(Images(0, 8, [0, 0, 0, 0, 0, 0, 1, 0]), oversample_thr=0.9)


# Wrapped data, and the values of its images in the order of their items.
WRAPPED = {
    'plain': (lambda: Images(7, 4), [7, 8, 9, 10]),
    'concat': (lambda: ConcatDataset([Images(0, 2), Images(10, 3)]), [0, 1, 10, 11, 12]),
    'twice': (twice, [0, 1, 2, 10, 11, 0, 1, 2]),
    'repeat': (lambda: RepeatDataset(Images(0, 3), 3), [0, 1, 2] * 3),
    'subset': (lambda: Subset(Images(0, 6), [4, 2, 2, 0]), [4, 2, 2, 0]),
    'overlapping': (overlapping, [5, 1, 1, 3, 5, 5]),
    # sqrt(0.9 / 0.125) = 2.7: the rare image comes three times; sqrt(0.9 / 0.875) = 1.01: twice.
    'balanced': (balanced, [v for v in range(8) for _ in range(3 if v == 6 else 2)]),
    'in_memory': (lambda: InMemory(Images(0, 5)), [0, 1, 2, 3, 4]),
    'in_memory_repeat': (lambda: InMemory(RepeatDataset(Images(0, 3), 2)), [0, 1, 2] * 2),
    'in_memory_subset': (lambda: Subset(InMemory(Images(0, 6)), [4, 2, 2]), [4, 2, 2]),
    # RandomState(0) permutes three members to 2, 1, 0 and then to 2, 0, 1: holds out 2 and 5.
    'hold_out': (lambda: HoldOut(Images(0, 6, [0, 0, 0, 1, 1, 1]), 1), [0, 1, 3, 4]),
    'sliced': (lambda: _SlicedDataset(RepeatDataset(Images(0, 3), 2), 4), [0, 1, 2, 0]),
    'sliced_in_memory': (lambda: _SlicedDataset(InMemory(Images(0, 5)), 3), [0, 1, 2]),
    'nested': (nested, [11, 1, 1, 1, 20, 21, *[0, 1, 2] * 2, 10, 11]),
}


@pytest.fixture(params=WRAPPED)
def wrapped(request):
    build, values = WRAPPED[request.param]
    return build(), values


def collate(dataset):
    return batch_collate if hasattr(dataset, '__getitems__') else as_list


def read(loader):
    """The value and the number of each image, as a loader hands them out."""
    batches = list(loader)
    values = [int(image.flatten()[0]) for batch in batches for image in batch['inputs']]
    samples = [sample for batch in batches for sample in batch['data_samples']]
    return values, [sample.image_number for sample in samples], samples


def test_equal_numbers_are_the_same_image(wrapped):
    dataset, values = wrapped
    numbers = image_numbers(dataset)
    assert numbers.dtype == np.int64
    assert len(numbers) == len(values) == len(dataset)
    assert set(numbers.tolist()) == set(range(len(set(values))))  # no gaps
    assert len(set(zip(numbers.tolist(), values, strict=True))) == len(set(values))


@pytest.mark.parametrize('workers', [0, 2])
def test_a_loaders_samples_carry_the_number_of_their_image(wrapped, workers):
    dataset, expected = wrapped
    loader = DataLoader(
        dataset, batch_size=3, shuffle=True, num_workers=workers, collate_fn=collate(dataset)
    )
    count = number_images(loader)
    assert count == len(set(expected))
    values, numbers, samples = read(loader)
    assert sorted(values) == sorted(expected)
    assert set(numbers) == set(range(count))
    assert len(set(zip(numbers, values, strict=True))) == count
    assert all(type(number) is int for number in numbers)
    assert all('image_number' in sample.metainfo_keys() for sample in samples)
    assert all(sample.keys() == ['gt_label'] for sample in samples)


def test_plain_data_are_numbered_in_order():
    assert image_numbers(Digits()).tolist() == list(range(1198))
    assert image_numbers(['a', 'b', 'c']).tolist() == [0, 1, 2]  # without labels
    assert image_numbers([]).tolist() == []
    kfold = KFoldDataset(dict(type='kd_mm.Digits', split='test'), fold=2, seed=4)
    assert image_numbers(kfold).tolist() == list(range(len(kfold)))


def test_a_subset_counts_its_own_images_alone():
    subset = Subset(range(10**6), [999_999, 5, 999_999])
    assert image_numbers(subset).tolist() == [1, 0, 1]


def test_more_than_there_is():
    with pytest.raises(ValueError, match='asks for 6 images an epoch, but the data set has 5'):
        image_numbers(_SlicedDataset(Images(0, 5), 6))


def test_a_second_call_changes_nothing():
    loader = DataLoader(Images(0, 3), collate_fn=as_list)
    assert number_images(loader) == 3
    dataset = loader.dataset
    assert number_images(loader) == 3
    assert loader.dataset is dataset
    assert not isinstance(dataset.inner, NumberedDataset)


def test_the_number_survives_collation_and_the_device():
    """As mmpretrain's data preprocessor moves samples."""
    loader = DataLoader(InMemory(Images(0, 4)), batch_size=4, collate_fn=batch_collate)
    number_images(loader)
    (batch,) = loader
    assert [s.to('cpu', torch.float64).image_number for s in batch['data_samples']] == [0, 1, 2, 3]


def test_labels_are_seen_through_it():
    data = twice()
    numbered = NumberedDataset(data)
    np.testing.assert_array_equal(get_labels(numbered), get_labels(data))
    assert inner_datasets(numbered) == inner_datasets(data)
    np.testing.assert_array_equal(image_numbers(numbered), image_numbers(data))


def test_attributes_are_those_of_the_data_set():
    repeated = RepeatDataset(Digits(pipeline=[PackInputs()]), 2)
    numbered = NumberedDataset(repeated)
    assert len(numbered) == 2 * 1198
    assert numbered.metainfo == repeated.metainfo
    assert numbered.dataset is repeated.dataset
    assert numbered.get_data_info(1201)['gt_label'] == repeated.get_data_info(3)['gt_label']
    numbered.full_init()
    with pytest.raises(AttributeError):
        _ = numbered.pipeline
    assert not hasattr(numbered, '__getitems__')
    assert hasattr(NumberedDataset(InMemory(Images(0, 3))), '__getitems__')


def test_a_hook_replaces_the_pipeline():
    """As mmpretrain's SwitchRecipeHook does."""
    images = Images(0, 3)
    numbered = NumberedDataset(images)
    numbered.pipeline = lambda results: {'inputs': 'new', 'data_samples': DataSample()}
    assert numbered[2]['inputs'] == 'new'
    assert numbered[2]['data_samples'].image_number == 2
    assert 'pipeline' not in vars(numbered)


@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
@pytest.mark.parametrize('build', [overlapping, lambda: InMemory(Images(0, 6))])
def test_copies(build, duplicate):
    numbered = NumberedDataset(build())
    copied = duplicate(numbered)
    assert type(copied) is NumberedDataset
    assert copied.inner is not numbered.inner
    for index in range(6):
        assert torch.equal(copied[index]['inputs'], numbered[index]['inputs'])
        found, expected = (d[index]['data_samples'].image_number for d in (copied, numbered))
        assert found == expected


class CopiesItself(Images):
    """A data set that copies and restores itself in a way of its own."""

    def __deepcopy__(self, memo):
        return Images(0, 2)

    def __setstate__(self, state):
        vars(self).update(state)


def test_a_data_sets_own_way_to_copy_is_not_the_wrappers():
    numbered = NumberedDataset(CopiesItself(0, 2))
    for copied in (copy.deepcopy(numbered), pickle.loads(pickle.dumps(numbered))):
        assert type(copied) is NumberedDataset
        assert copied[1]['data_samples'].image_number == 1


def test_spawned_workers():
    loader = DataLoader(
        Subset(Digits(pipeline=[PackInputs()]), [9, 3, 9]),
        batch_size=2,
        num_workers=1,
        multiprocessing_context='spawn',
        collate_fn=as_list,
    )
    number_images(loader)
    numbers = [sample.image_number for batch in loader for sample in batch['data_samples']]
    assert numbers == [1, 0, 1]


class Drawing(Images):
    """Images that are what the global generators draw."""

    def __init__(self):
        super().__init__(0, 4, pipeline=[self.draw, PackInputs()])

    def draw(self, results):
        return {**results, 'img': np.random.randint(256, size=(1, 1, 3), dtype=np.uint8)}


@pytest.mark.parametrize('wrap', [lambda d: d, lambda d: Subset(d, range(4))])
def test_a_seeded_batch_draws_as_without_numbers(wrap):
    dataset = wrap(Drawing())
    batch = SeededBatch([2, 0, 2], [(5, 0, 2, 0), (5, 0, 0, 0), (5, 0, 2, 1)])
    drawn = []
    for data in (dataset, NumberedDataset(dataset)):
        loader = DataLoader(data, batch_sampler=[batch], collate_fn=as_list)
        (items,) = loader
        drawn.append(torch.stack(items['inputs']))
    assert torch.equal(*drawn)
    assert [sample.image_number for sample in items['data_samples']] == [2, 0, 2]


def test_a_seeded_batch_is_iterated_once(monkeypatch):
    calls = []
    iterate = SeededBatch.__iter__
    monkeypatch.setattr(SeededBatch, '__iter__', lambda self: calls.append(1) or iterate(self))
    counts = []
    for dataset in (InMemory(Images(0, 4)), NumberedDataset(InMemory(Images(0, 4)))):
        calls.clear()
        dataset.__getitems__(SeededBatch([2, 0], [(5, 0, 2, 0), (5, 0, 0, 0)]))
        counts.append(len(calls))
    assert counts[0] == counts[1]


class Unbatched(Images):
    """As torch lets a data set say that it reads item by item."""

    __getitems__ = None


def test_a_data_set_that_declines_batches():
    loader = DataLoader(Unbatched(5, 2), batch_size=2, collate_fn=as_list)
    number_images(loader)
    assert read(loader)[:2] == ([5, 6], [0, 1])


class Endless(IterableDataset):
    def __iter__(self):
        yield from iter(int, 1)


class Measured(Endless):
    def __len__(self):
        return 3


class Unmeasured(torch.utils.data.Dataset):
    def __getitem__(self, idx):
        return idx


@pytest.mark.parametrize('dataset', [Endless(), Measured(), Unmeasured()])
def test_data_without_indices_or_length(dataset):
    loader = DataLoader(dataset, sampler=None if isinstance(dataset, Endless) else [0])
    name = type(dataset).__name__
    with pytest.raises(TypeError, match=f'with a length and indices, but got {name}; use'):
        number_images(loader)
    assert loader.dataset is dataset


@pytest.mark.parametrize('item', [3, {'inputs': 3}, {'inputs': 3, 'data_samples': [DataSample()]}])
@pytest.mark.parametrize('wrap', [lambda d: d, lambda d: Subset(d, [0])])
def test_items_without_one_data_sample(item, wrap):
    loader = DataLoader(wrap([item]), collate_fn=list)
    number_images(loader)
    with pytest.raises(TypeError, match=r"DataSample in its item's .* but got .*; end"):
        next(iter(loader))
