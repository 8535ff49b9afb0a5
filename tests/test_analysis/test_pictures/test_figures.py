"""Figures show the numbers they were given, under the right names."""

import cv2
import numpy as np
import pytest

from kd_mm.analysis.pictures import figures
from kd_mm.analysis.pictures.inputs import FORMATS
from kd_mm.analysis.pictures.networks import BatchKnowledge, Look
from tests.toys.pictures import CLASSES

RNG = np.random.default_rng(0)


def images(count):
    return RNG.integers(256, size=(count, 8, 8, 3), dtype=np.uint8)


def a_look(label, **scores):
    scores = {name: np.array(row, np.float32) for name, row in scores.items()}
    maps = {(name, 'backbone'): RNG.random((2, 2)) for name in scores if name != 'ensemble'}
    return Look(images(1)[0], 'file', label, scores, maps)


LOOKS = [
    a_look(1, a=[0.1, 0.7, 0.2], b=[0.5, 0.3, 0.2], ensemble=[0.3, 0.5, 0.2]),
    a_look(None, a=[0, 0, 1], b=[0.2, 0.2, 0.6], ensemble=[0.1, 0.1, 0.8]),
]


def test_attention_shows_maps_classes_and_confidence():
    axes = figures.attention_figure(LOOKS, CLASSES).axes
    assert [axis.get_title() for axis in axes[:3]] == ['image', 'a', 'b']
    captions = [axis.get_xlabel() for axis in axes[:6]]
    assert captions[:3] == ['dog', '✓ dog · 70.0%', '✗ cat · 50.0%']
    assert captions[3:5] == ['file', 'great white sh… · 100.0%']
    for axis, key in zip(axes[4:6], LOOKS[1].attention, strict=True):
        image, heat = axis.images
        np.testing.assert_array_equal(image.get_array(), LOOKS[1].image)
        np.testing.assert_array_equal(heat.get_array(), LOOKS[1].attention[key])
        assert heat.get_extent() == image.get_extent()


def test_columns_of_several_layers_have_their_names():
    maps = {('a', layer): np.eye(2) for layer in ('layer1', 'layer2')}
    axes = figures.attention_figure([LOOKS[0]._replace(attention=maps)]).axes
    assert [axis.get_title() for axis in axes[:3]] == ['image', 'a\nlayer1', 'a\nlayer2']


def test_predictions_are_bars_over_the_same_classes():
    picture, *bars = figures.predictions_figure(LOOKS, CLASSES, topk=2).axes[:4]
    assert [axis.get_title() for axis in bars] == ['a', 'b', 'ensemble']
    assert picture.get_xlabel() == 'dog'
    assert [text.get_text() for text in bars[0].get_yticklabels()] == ['dog', 'cat']
    for axis, scores in zip(bars, LOOKS[0].scores.values(), strict=True):
        widths = [patch.get_width() for patch in axis.patches]
        np.testing.assert_allclose(widths, scores[[1, 0]])  # by the mean
        first, second = (patch.get_facecolor() for patch in axis.patches)
        assert first != second  # the true class


def test_the_true_class_and_each_choice_are_shown():
    look = a_look(2, a=[0.6, 0.3, 0.1, 0.0], b=[0.4, 0.5, 0.1, 0.0])
    assert figures.shown_classes(look, 1) == [0, 1, 2]
    assert figures.shown_classes(look._replace(label=None), 1) == [0, 1]


def a_batch(num_classes=3):
    affinity = np.array(
        [[0, 0.5, 0.2, 0.1], [0.4, 0, 0.15, 0.12], [0.11, 0.13, 0, 0.3], [0.1, 0.2, 0.35, 0]]
    )
    own, target = RNG.dirichlet(np.ones(num_classes), (2, 4))
    labels = np.eye(num_classes)[[2, 2, 0, 0]]
    return BatchKnowledge(images(4), labels, affinity, own, target, 4.0, 6)


def test_affinities_are_shown_in_the_order_of_classes_without_the_diagonal():
    batch = a_batch()
    matrix, bar, *axes = figures.affinity_figure(batch, 2, CLASSES).axes
    order, off = [2, 3, 0, 1], ~np.eye(4, dtype=bool)
    shown = matrix.images[0].get_array()
    assert np.ma.getmaskarray(shown).tolist() == (~off).tolist()
    np.testing.assert_array_equal(shown.data[off], batch.affinity[np.ix_(order, order)][off])
    names = [text.get_text() for text in matrix.get_yticklabels()]
    assert names == ['cat'] * 2 + ['great white shark'] * 2
    assert '(4 of 6 images of the batch)' in bar.get_ylabel()
    assert [axis.get_xlabel() for axis in axes[1:4]] == ['0.300', '0.130', '0.110']
    for axis, index in zip(axes, (2, 3, 1, 0), strict=False):
        np.testing.assert_array_equal(axis.images[0].get_array(), batch.images[index])
    for axis, values in zip(axes[-3:], (batch.labels, batch.own, batch.target), strict=True):
        np.testing.assert_allclose([bar.get_width() for bar in axis.patches], values[2])


def test_of_many_classes_the_likely_ones_are_named():
    batch = a_batch(num_classes=30)
    label = figures.affinity_figure(batch, 1).axes[-3]
    names = [int(text.get_text()) for text in label.get_yticklabels()]
    likely = np.argsort(-np.maximum(batch.own[1], batch.target[1]))
    assert names == [2, *[c for c in likely if c != 2][:9]]


@pytest.mark.parametrize('index', [-1, 4])
def test_an_image_that_is_not_shown_is_refused(index):
    with pytest.raises(ValueError, match=f'shown, 0 to 3, but got {index}'):
        figures.affinity_figure(a_batch(), index)


def test_views_have_their_labels():
    views = {'a': images(2), 'b': images(2)}
    labels = np.array([[0, 1.0, 0], [0.25, 0.75, 0]])
    axes = figures.views_figure(views, labels, CLASSES).axes
    assert [axis.get_title() for axis in axes[:2]] == ['a', 'b']
    assert [axis.get_xlabel() for axis in axes[::2]] == ['dog', 'dog 0.75, cat 0.25']
    np.testing.assert_array_equal(axes[3].images[0].get_array(), views['b'][1])


def test_files_and_arrays(tmp_path):
    figure = figures.views_figure({'$a_b': images(1)}, np.eye(1), ['$x'])
    for ending in FORMATS:
        figures.save(figure, tmp_path / 'new' / f'a{ending}')
        assert (tmp_path / 'new' / f'a{ending}').stat().st_size > 500
    array = figures.to_array(figure)
    assert array.dtype == np.uint8
    height, width = cv2.imread(str(tmp_path / 'new/a.png')).shape[:2]
    assert array.shape == (height // 2, width // 2, 3)
