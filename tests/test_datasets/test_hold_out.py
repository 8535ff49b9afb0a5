"""The parts of a data set: apart, whole, the same in every run."""

import pickle

import numpy as np
import pytest
from mmengine.dataset import ClassBalancedDataset, RepeatDataset
from mmengine.registry import DATASETS
from mmpretrain.datasets import KFoldDataset

from kd_mm.datasets import Digits, HoldOut, get_labels
from kd_mm.datasets.labels import index_labels
from tests.toys.datasets import Labelled

LABELS = [2, 0, 2, 1, 0, 2, 0, 1, 2, 2, 0, 1]


class Numbered(Labelled):
    """Items that know their number in the whole data set."""

    def load_data_list(self):
        return [{**info, 'number': i} for i, info in enumerate(super().load_data_list())]


def numbers(dataset):
    return [dataset[i]['number'] for i in range(len(dataset))]


def split(num_per_class=2, data=None, **kwargs):
    data = Numbered(LABELS, 3) if data is None else data
    return [HoldOut(data, num_per_class, part=p, **kwargs) for p in ('train', 'held_out')]


@pytest.mark.parametrize('serialize_data', [True, False])
@pytest.mark.parametrize('num_per_class', [1, 2])
def test_parts_are_disjoint_complete_and_balanced(num_per_class, serialize_data):
    data = Numbered(LABELS, 3, serialize_data=serialize_data)
    train, held_out = (numbers(part) for part in split(num_per_class, data))
    assert sorted(train + held_out) == list(range(12))
    assert (sorted(train), sorted(held_out)) == (train, held_out)
    assert np.bincount([LABELS[i] for i in held_out]).tolist() == [num_per_class] * 3
    assert numbers(data) == list(range(12))  # left as it was


def test_the_split_is_the_documented_draw():
    """By hand from NumPy's frozen stream: each class's images, permuted, the first two taken."""
    random = np.random.RandomState(0)
    expected = []
    for label in range(3):
        members = [i for i, other in enumerate(LABELS) if other == label]
        order = random.permutation(len(members))
        expected += [members[order[0]], members[order[1]]]
    np.random.seed(5)  # a run's seed does not matter
    assert numbers(split()[1]) == sorted(expected)


def test_items_and_annotations_are_those_of_the_data_set():
    cfg = {'type': 'kd_mm.HoldOut', 'dataset': {'type': 'kd_mm.Digits'}, 'num_per_class': 3}
    digits, held_out = Digits(), DATASETS.build({**cfg, 'part': 'held_out'})
    images = [digits[i]['img'].tobytes() for i in range(len(digits))]
    assert len(held_out) == 30
    for i in range(len(held_out)):
        match = images.index(held_out[i]['img'].tobytes())
        label = digits.get_data_info(match)['gt_label']
        assert held_out.get_data_info(i)['gt_label'] == label
        assert held_out.get_cat_ids(i) == [label]
    held_out.metainfo['classes'] = ()
    assert held_out.metainfo == digits.metainfo


def test_lazy_init_waits_for_the_first_access():
    data = Numbered(LABELS, 3, lazy_init=True)
    train, held_out = split(data=data, lazy_init=True)
    assert held_out.metainfo['classes'] == ('a', 'b', 'c')
    assert not data._fully_initialized
    eager = split()
    assert held_out.get_data_info(0)['number'] == eager[1].get_data_info(0)['number']
    assert train[0]['number'] == eager[0][0]['number']


class Broken(Numbered):
    """Every read of an image in training fails, and MMEngine tries others."""

    def prepare_data(self, idx):
        self.asked = [*getattr(self, 'asked', []), self.get_data_info(idx)['number']]
        return None


def test_second_tries_at_a_broken_image_stay_in_the_part():
    train = HoldOut(Broken(LABELS, 3, max_refetch=200), 2)
    with pytest.raises(Exception, match='Cannot find valid image'):
        train[0]
    assert set(train.dataset.asked) == set(numbers(split()[0]))


def test_inside_of_other_wrappers_and_workers():
    train = split()[0]
    assert get_labels(train).tolist() == [LABELS[i] for i in numbers(train)]
    assert index_labels(train).classes == ('a', 'b', 'c')
    assert numbers(pickle.loads(pickle.dumps(train))) == numbers(train)
    inner = {'type': 'kd_mm.HoldOut', 'dataset': {'type': 'kd_mm.Digits'}, 'num_per_class': 99}
    labels = get_labels(HoldOut(Digits(), 99)).tolist()
    assert get_labels(RepeatDataset(inner, 2)).tolist() == labels * 2
    # Classes of 19 to 23 images, by the counts of the digits: the rare ones twice.
    balanced = ClassBalancedDataset(inner, oversample_thr=0.1)
    repeats = np.ceil(np.sqrt(0.1 / (np.bincount(labels) / len(labels)))).astype(int)
    expected = np.bincount(labels) * np.maximum(1, repeats)
    assert np.bincount(get_labels(balanced)).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ('data', 'kwargs', 'error', 'message'),
    [
        (Labelled([0, 0, 0, 1, 1], 2), {}, ValueError, r'empties 1 of 2 classes: b \(2\); lower'),
        (Labelled([0, 0, 1]), {}, ValueError, r'empties 2 of 2 classes: 0 \(2\), 1 \(1\); lower'),
        (Labelled(range(7), 7), {}, ValueError, r'7 of 7 classes: .* and 4 more; lower'),
        (Labelled(LABELS), {'num_per_class': 0}, ValueError, 'at least 1, but got 0'),
        (Labelled(LABELS), {'num_per_class': True}, ValueError, 'integer .* but got True'),
        (Labelled(LABELS), {'part': 'val'}, ValueError, "'train', 'held_out', but got 'val'"),
        (
            KFoldDataset({'type': 'kd_mm.Digits'}),
            {},
            TypeError,
            'but got KFoldDataset; put the HoldOut inside',
        ),
    ],
)
def test_refusals_name_the_value(data, kwargs, error, message):
    with pytest.raises(error, match=message):
        HoldOut(data, **{'num_per_class': 2, **kwargs})
