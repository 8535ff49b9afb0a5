"""Samples carry the number of their image, whatever reads them."""

import numpy as np
import pytest
import torch
from mmengine.dataset import RepeatDataset
from mmengine.dataset import pseudo_collate as as_list
from mmpretrain.datasets.transforms import PackInputs
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader, IterableDataset, Subset

from kd_mm.datasets import InMemory, batch_collate
from kd_mm.datasets.numbered import NumberedDataset, number_images
from kd_mm.resume.seeded import SeededBatch
from tests.toys.datasets import Images


class Unbatched(Images):
    """As torch lets a data set say that it reads item by item."""

    __getitems__ = None


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(
    ('dataset', 'expected'),
    [
        (RepeatDataset(Images(5, 3), 2), [5, 6, 7] * 2),
        (InMemory(Images(0, 5)), [0, 1, 2, 3, 4]),
        (Subset(Images(0, 6), [4, 2, 2]), [4, 2, 2]),
        (Subset(InMemory(Images(0, 6)), [4, 2, 2]), [4, 2, 2]),
        (Unbatched(5, 2), [5, 6]),
    ],
)
def test_a_loaders_samples_carry_the_number_of_their_image(dataset, expected, workers):
    reads_batches = InMemory in (type(dataset), type(getattr(dataset, 'dataset', None)))
    collate = batch_collate if reads_batches else as_list
    loader = DataLoader(dataset, 3, shuffle=True, num_workers=workers, collate_fn=collate)
    count = number_images(loader)
    assert count == number_images(loader) == len(set(expected))  # a second call changes nothing
    batches = list(loader)
    values = [int(image.flatten()[0]) for batch in batches for image in batch['inputs']]
    samples = [sample.to('cpu') for batch in batches for sample in batch['data_samples']]
    numbers = [sample.image_number for sample in samples]
    assert sorted(values) == sorted(expected)
    assert set(numbers) == set(range(count))
    assert len(set(zip(numbers, values, strict=True))) == count
    assert all(type(number) is int for number in numbers)
    assert all(sample.keys() == ['gt_label'] for sample in samples)


def test_hooks_reach_the_data_set_inside():
    """As mmpretrain's SwitchRecipeHook does, which replaces the pipeline."""
    images = Images(0, 3)
    numbered = NumberedDataset(images)
    numbered.dataset.pipeline = lambda results: {'inputs': 'new', 'data_samples': DataSample()}
    assert numbered[2]['inputs'] == 'new'
    assert numbered[2]['data_samples'].image_number == 2
    assert numbered.metainfo == images.metainfo
    assert numbered.get_data_info(1)['gt_label'] == 1


def draw(results):
    return {**results, 'img': np.random.randint(256, size=(1, 1, 3), dtype=np.uint8)}


@pytest.mark.parametrize('wrap', [lambda d: d, lambda d: Subset(d, range(4))])
def test_a_seeded_batch_draws_as_without_numbers(wrap):
    dataset = wrap(Images(0, 4, pipeline=[draw, PackInputs()]))
    batch = SeededBatch([2, 0, 2], [(5, 0, 2, 0), (5, 0, 0, 0), (5, 0, 2, 1)])
    drawn = []
    for data in (dataset, NumberedDataset(dataset)):
        (items,) = DataLoader(data, batch_sampler=[batch], collate_fn=as_list)
        drawn.append(torch.stack(items['inputs']))
    assert torch.equal(*drawn)
    assert [sample.image_number for sample in items['data_samples']] == [2, 0, 2]


class Endless(IterableDataset):
    def __iter__(self):
        yield from iter(int, 1)


class Unmeasured(torch.utils.data.Dataset):
    def __getitem__(self, idx):
        return idx


@pytest.mark.parametrize('dataset', [Endless(), Unmeasured()])
def test_data_without_indices_or_length(dataset):
    loader = DataLoader(dataset, sampler=None if isinstance(dataset, Endless) else [0])
    name = type(dataset).__name__
    with pytest.raises(TypeError, match=f'with a length and indices, but got {name}; use'):
        number_images(loader)
    assert loader.dataset is dataset


@pytest.mark.parametrize('item', [3, {'inputs': 3}, {'inputs': 3, 'data_samples': [DataSample()]}])
def test_items_without_one_data_sample(item):
    loader = DataLoader([item], collate_fn=list)
    number_images(loader)
    with pytest.raises(TypeError, match=r"DataSample in its item's .* but got .*; end"):
        next(iter(loader))
