"""The digits: the fixed split, the grey levels, the format of mmpretrain's data sets."""

import sys

import numpy as np
import pytest
from mmpretrain.registry import DATASETS
from sklearn.datasets import load_digits

from kd_mm.datasets import Digits


def images_of(data):
    return np.stack([data.get_data_info(i)['img'] for i in range(len(data))])


@pytest.fixture(scope='module')
def parts():
    return Digits(split='train'), Digits(split='test')


def test_two_thirds_and_a_stratified_third(parts):
    train, test = parts
    assert (len(train), len(test)) == (1198, 599)
    of_all = np.bincount(load_digits().target)
    of_test = np.bincount(test.get_gt_labels())
    assert (of_test + np.bincount(train.get_gt_labels()) == of_all).all()
    assert np.abs(of_test - of_all / 3).max() < 1
    assert train.metainfo['classes'] == tuple('0123456789')


def test_each_scan_is_in_one_part_with_its_label(parts):
    digits = load_digits()
    scans = {}
    for image, label in zip(digits.images, digits.target, strict=True):
        # By hand: 255 / 16 = 15.9375 a level; only level 8 is a half, 127.5, and rounds up.
        levels = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
        grey = tuple(levels[int(v)] for v in image.ravel())
        scans.setdefault(grey, []).append(int(label))
    assert sum(map(len, scans.values())) == 1797
    for data in parts:
        for image, label in zip(images_of(data), data.get_gt_labels(), strict=True):
            assert image.shape == (8, 8, 3)
            assert image.dtype == np.uint8
            assert (image == image[..., :1]).all()
            scans[tuple(image[..., 0].ravel().tolist())].remove(label)
    assert not any(scans.values())


def test_the_split_is_the_published_one():
    """Whatever the seed of the run, and scikit-learn's version: numbers seen with 1.9.1."""
    np.random.seed(99)
    digits = load_digits()
    number = {image.tobytes(): i for i, image in enumerate(digits.images)}
    grey = images_of(Digits(split='test'))[..., 0]
    levels = np.round(grey / 255 * 16).astype(digits.images.dtype)
    numbers = [number[image.tobytes()] for image in levels]
    assert numbers == sorted(numbers)
    assert numbers[:8] == [1, 4, 10, 21, 24, 25, 28, 32]


def test_works_in_mmpretrain_by_name_with_a_pipeline():
    data = DATASETS.build(
        dict(type='kd_mm.Digits', split='test', pipeline=[dict(type='PackInputs')])
    )
    item = data[3]
    assert item['inputs'].shape == (3, 8, 8)
    assert item['data_samples'].gt_label.item() == data.get_cat_ids(3)[0]
    assert data.test_mode
    assert not Digits(split='train').test_mode


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(ImportError, match='pip install scikit-learn'):
        Digits()
