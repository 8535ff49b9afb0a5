"""Labels and image numbers through every wrapper, as the items themselves have them."""

import numpy as np
import pytest
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.runner.runner import _SlicedDataset
from mmpretrain.datasets import KFoldDataset
from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import Subset

from kd_mm.datasets import Digits, HoldOut, InMemory, get_labels, image_numbers
from kd_mm.datasets.labels import index_labels, inner_datasets
from kd_mm.datasets.numbered import NumberedDataset
from tests.toys.datasets import Images, Labelled


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
    'repeat': (lambda: RepeatDataset(Images(0, 3, lazy_init=True), 3), [0, 1, 2] * 3),
    'subset': (lambda: Subset(Images(0, 6), [4, 2, 2, 0]), [4, 2, 2, 0]),
    'overlapping': (overlapping, [5, 1, 1, 3, 5, 5]),
    # sqrt(0.9 / 0.125) = 2.7: the rare image comes three times; sqrt(0.9 / 0.875) = 1.01: twice.
    'balanced': (balanced, [v for v in range(8) for _ in range(3 if v == 6 else 2)]),
    'in_memory': (lambda: InMemory(RepeatDataset(Images(0, 3), 2)), [0, 1, 2] * 2),
    'in_memory_subset': (lambda: Subset(InMemory(Images(0, 6)), [4, 2, 2]), [4, 2, 2]),
    # RandomState(0) permutes three members to 2, 1, 0 and then to 2, 0, 1: holds out 2 and 5.
    'hold_out': (lambda: HoldOut(Images(0, 6, [0, 0, 0, 1, 1, 1]), 1), [0, 1, 3, 4]),
    'sliced': (lambda: _SlicedDataset(RepeatDataset(Images(0, 3), 2), 4), [0, 1, 2, 0]),
    'numbered': (lambda: NumberedDataset(Subset(Images(0, 6), [4, 2, 2])), [4, 2, 2]),
    'nested': (nested, [11, 1, 1, 1, 20, 21, *[0, 1, 2] * 2, 10, 11]),
}


@pytest.fixture(params=WRAPPED)
def wrapped(request):
    build, values = WRAPPED[request.param]
    return build(), values


def test_equal_numbers_are_the_same_image(wrapped):
    dataset, values = wrapped
    numbers = image_numbers(dataset)
    assert numbers.dtype == np.int64
    assert len(numbers) == len(values) == len(dataset)
    assert set(numbers.tolist()) == set(range(len(set(values))))  # no gaps
    assert len(set(zip(numbers.tolist(), values, strict=True))) == len(set(values))


def test_labels_are_those_of_the_items(wrapped):
    dataset, values = wrapped
    labels = get_labels(dataset).tolist()
    assert labels == [dataset[i]['data_samples'].gt_label.item() for i in range(len(values))]
    _, images, classes = index_labels(dataset)
    assert classes is None
    assert len(set(zip(images.tolist(), values, strict=True))) == len(set(values))


def test_plain_data_are_numbered_in_order():
    assert image_numbers(Digits()).tolist() == list(range(1198))
    assert image_numbers(['a', 'b', 'c']).tolist() == [0, 1, 2]  # without labels
    assert image_numbers([]).tolist() == []
    assert image_numbers(Subset(range(10**6), [999_999, 5, 999_999])).tolist() == [1, 0, 1]


def test_a_fold():
    fold = KFoldDataset(dict(type='kd_mm.Digits', split='test'), fold=2, seed=4)
    assert image_numbers(fold).tolist() == list(range(len(fold)))
    assert get_labels(fold).tolist() == [
        fold.get_data_info(i)['gt_label'] for i in range(len(fold))
    ]


def test_data_sets_inside_of_all_wrappers():
    data, others = Labelled([0, 1], 2), Labelled([1], 2)
    wrapped = NumberedDataset(TorchConcatDataset([RepeatDataset(data, 2), others, data]))
    assert inner_datasets(wrapped) == [data, others]
    assert index_labels(wrapped).classes == ('a', 'b')


@pytest.mark.parametrize('function', [get_labels, image_numbers])
def test_more_than_there_is(function):
    with pytest.raises(ValueError, match='asks for 6 images an epoch, but the data set has 5'):
        function(_SlicedDataset(Images(0, 5), 6))


class Answering(BaseDataset):
    """A data set that keeps its labels elsewhere and answers get_cat_ids alone."""

    def __init__(self, answers):
        self.answers = answers
        super().__init__(serialize_data=False)

    def load_data_list(self):
        return [{'name': 'x'} for _ in self.answers]

    def get_cat_ids(self, idx):
        return self.answers[idx]


class Remapped(Labelled):
    """A data set that changes its labels when asked."""

    def get_data_info(self, idx):
        info = super().get_data_info(idx)
        return {**info, 'gt_label': info['gt_label'] + 10}


@pytest.mark.parametrize(
    ('dataset', 'expected'),
    [
        (Labelled([2, 0, 1]), [2, 0, 1]),
        (Labelled([2, 0, 1], serialize_data=True), [2, 0, 1]),
        (Labelled([2, 0, 1], serialize_data=True).get_subset([2, 0]), [1, 2]),
        (Labelled([np.int64(2), np.array(1)]), [2, 1]),
        (Answering([[7], [5], [6]]), [7, 5, 6]),
        (Remapped([2, 0, 1], serialize_data=True), [12, 10, 11]),
        (Labelled([]), []),
    ],
)
def test_labels_of_each_kind_of_data_set(dataset, expected):
    found = get_labels(dataset)
    assert found.tolist() == expected
    assert found.dtype == np.intp


@pytest.mark.parametrize('serialize_data', [True, False])
def test_stored_labels_are_read_past_get_data_info(serialize_data, monkeypatch):
    """It copies or unpickles an annotation a call, and would take most of the time."""
    data, calls, slow = Labelled([2, 0, 1], serialize_data=serialize_data), [], []
    slow = BaseDataset.get_data_info
    monkeypatch.setattr(
        BaseDataset, 'get_data_info', lambda self, i: calls.append(i) or slow(self, i)
    )
    assert get_labels(data).tolist() == [2, 0, 1]
    assert calls == [0]


@pytest.mark.parametrize(
    ('dataset', 'error', 'message'),
    [
        (Labelled([1], key='caption'), TypeError, "Labelled has neither 'gt_label'.*with_label="),
        ([1, 2], TypeError, 'list has neither'),
        (Labelled([0, [0, 1]]), ValueError, 'one label, but item 1 of Labelled has'),
        (Labelled([0, np.array([1])]), ValueError, 'one label, but item 1 of Labelled has'),
        (Answering([[4], [0, 1]]), ValueError, 'one label, but item 1 of Answering has'),
        (Answering([[4], []]), ValueError, 'one label, but item 1 of Answering has'),
        (Labelled([0, 1.0]), TypeError, r'must be an integer, but item 1 of Labelled has 1\.0'),
        (Labelled([0, None]), TypeError, 'must be an integer, but item 1 of Labelled has None'),
    ],
)
def test_labels_that_do_not_fit(dataset, error, message):
    with pytest.raises(error, match=message):
        get_labels(dataset)
