"""Labels read through every wrapper, against what the data set itself answers."""

import numpy as np
import pytest
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.runner.runner import _SlicedDataset
from mmpretrain.datasets import KFoldDataset
from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import Subset

from kd_mm.datasets import Digits, get_labels, labels
from tests.test_datasets.toys import Labelled

FIRST, SECOND = [2, 0, 1, 1, 2], [0, 0, 1]


class Told(BaseDataset):
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


def answered(dataset):
    """The labels as the data set's own get_data_info states them, one by one."""
    return [int(dataset.get_data_info(i)['gt_label']) for i in range(len(dataset))]


@pytest.mark.parametrize('serialize_data', [True, False])
def test_stored_labels(serialize_data, monkeypatch):
    monkeypatch.setattr(labels, '_BLOCK', 2)
    found = get_labels(Labelled(FIRST, serialize_data=serialize_data))
    assert found.tolist() == FIRST
    assert found.dtype == np.intp


@pytest.mark.parametrize('serialize_data', [True, False])
def test_stored_labels_are_read_past_get_data_info(serialize_data, monkeypatch):
    """It copies or unpickles an annotation a call, and would take most of the time."""
    data = Labelled(FIRST, serialize_data=serialize_data)
    calls = []
    slow = BaseDataset.get_data_info
    monkeypatch.setattr(
        BaseDataset, 'get_data_info', lambda self, i: calls.append(i) or slow(self, i)
    )
    assert get_labels(data).tolist() == FIRST
    assert calls == [0]


def test_a_subset_of_serialised_data():
    data = Labelled(FIRST, serialize_data=True).get_subset([4, 2, 0])
    assert get_labels(data).tolist() == [2, 1, 2]


def test_lazy_data_are_initialised():
    assert get_labels(Labelled(FIRST, lazy_init=True)).tolist() == FIRST


@pytest.mark.parametrize('kind', [int, np.int64, np.array])
def test_integers_of_any_kind(kind):
    assert get_labels(Labelled([kind(label) for label in FIRST])).tolist() == FIRST


def test_a_data_set_that_only_answers_get_cat_ids():
    assert get_labels(Told([[7], [5], [6]])).tolist() == [7, 5, 6]


def test_labels_changed_on_the_way_out_are_believed():
    assert get_labels(Remapped(FIRST, serialize_data=True)).tolist() == [12, 10, 11, 11, 12]


@pytest.mark.parametrize(
    'wrapped',
    [
        ConcatDataset([Labelled(FIRST), Labelled(SECOND)]),
        RepeatDataset(Labelled(FIRST), 3),
        RepeatDataset(Labelled(FIRST, lazy_init=True), 2, lazy_init=True),
        ClassBalancedDataset(Labelled([0, 0, 0, 0, 0, 0, 1, 0]), oversample_thr=0.9),
        KFoldDataset(dict(type='kd_mm.Digits', split='test'), fold=2, seed=4),
        _SlicedDataset(Labelled(FIRST), 3),
    ],
    ids=['concat', 'repeat', 'lazy', 'balanced', 'kfold', 'sliced'],
)
def test_mm_wrappers(wrapped):
    assert get_labels(wrapped).tolist() == answered(wrapped)


def test_torch_wrappers_nested():
    data = TorchConcatDataset(
        [Subset(Labelled(FIRST), [4, 2, 2]), RepeatDataset(Labelled(SECOND), 2)]
    )
    assert get_labels(data).tolist() == [2, 1, 1, 0, 0, 1, 0, 0, 1]


def test_balanced_repeats_are_known_as_the_same_image():
    # sqrt(0.9 / 0.125) = 2.7: the rare image comes three times; sqrt(0.9 / 0.875) = 1.01: twice.
    data = ClassBalancedDataset(Labelled([0, 0, 0, 0, 0, 0, 1, 0]), oversample_thr=0.9)
    expected = [i for i in range(8) for _ in range(3 if i == 6 else 2)]
    assert labels.index_labels(data).images.tolist() == expected


def test_one_data_set_listed_twice_has_the_same_images():
    data = Labelled(SECOND)
    assert labels.index_labels(TorchConcatDataset([data, data])).images.tolist() == [0, 1, 2] * 2
    twins = TorchConcatDataset([data, Labelled(SECOND)])
    assert labels.index_labels(twins).images.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ('data', 'complete'),
    [
        (Digits(), True),
        (RepeatDataset(Digits(), 2), True),
        (Subset(Labelled(SECOND), [2, 1, 0]), True),
        (Subset(Labelled(SECOND), [2, 1, 1]), False),
        (Labelled(SECOND, indices=[0, 1]), False),
        (Labelled(SECOND, ann_file='train.txt'), False),
        (KFoldDataset(dict(type='kd_mm.Digits')), False),
    ],
)
def test_completeness(data, complete):
    assert labels.index_labels(data).complete is complete


def test_a_data_set_without_labels():
    with pytest.raises(
        TypeError, match=r"Labelled has neither 'gt_label'.* raised .*with_label=True"
    ):
        get_labels(Labelled([1, 2], key='caption'))


def test_something_that_is_no_data_set_of_ours():
    with pytest.raises(TypeError, match='list has neither'):
        get_labels([1, 2])


@pytest.mark.parametrize('several', [[0, 1], [1], np.array([0, 1]), []])
def test_several_labels(several):
    with pytest.raises(ValueError, match='exactly one label, but item 1 of Labelled has'):
        get_labels(Labelled([0, several]))


@pytest.mark.parametrize('several', [[0, 1], []])
def test_several_labels_of_get_cat_ids(several):
    with pytest.raises(ValueError, match='exactly one label, but item 1 of Told has'):
        get_labels(Told([[4], several]))


@pytest.mark.parametrize('value', [1.0, 'cat', None])
def test_labels_that_are_no_integers(value):
    with pytest.raises(
        TypeError, match=f'must be an integer, but item 1 of Labelled has.*{value}'
    ):
        get_labels(Labelled([0, value]))


def test_num_batch_per_epoch_beyond_the_data():
    with pytest.raises(ValueError, match='asks for 6 images an epoch, but the data set has 5'):
        get_labels(_SlicedDataset(Labelled(FIRST), 6))
