"""Figures show the numbers they were given, under the right names."""

import warnings

import cv2
import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from kd_mm.analysis.pictures import figures
from kd_mm.analysis.pictures.networks import BatchKnowledge, Look, Views
from tests.test_analysis.test_pictures.toys import CLASSES

RNG = np.random.default_rng(0)


def an_image(side=8):
    return RNG.integers(256, size=(side, side, 3), dtype=np.uint8)


def a_look(label, **scores):
    scores = {name: np.array(row, np.float32) for name, row in scores.items()}
    maps = {(name, 'backbone'): RNG.random((2, 2)) for name in scores if name != 'ensemble'}
    return Look(an_image(), 'file', label, scores, maps)


LOOKS = [
    a_look(1, resnet20=[0.1, 0.7, 0.2], wrn16_1=[0.5, 0.3, 0.2], ensemble=[0.3, 0.5, 0.2]),
    a_look(None, resnet20=[0, 0, 1], wrn16_1=[0.2, 0.2, 0.6], ensemble=[0.1, 0.1, 0.8]),
]


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def captions(figure):
    return [axis.get_xlabel() for axis in figure.axes]


def test_an_overlay_is_red_where_attention_is_and_blue_elsewhere():
    grey = np.full((3, 4, 3), 128, np.uint8)
    found = figures.overlay(grey, np.array([[0.0, 7.0]]))
    height, width = found.shape[:2]
    assert (height, width) == (3 * 56, 4 * 56)  # whole pixels, at least 224
    left, right = found[:, 0], found[:, -1]
    colors = matplotlib.colormaps['turbo']([0.0, 1.0])[:, :3]
    for edge, color in ((left, colors[0]), (right, colors[1])):
        np.testing.assert_allclose(edge, 0.6 * color + 0.4 * 128 / 255 + 0 * edge, atol=1e-2)
    np.testing.assert_allclose(found, figures.overlay(grey, np.array([[1.0, 15.0]])), atol=0.02)
    assert np.isfinite(figures.overlay(grey, np.zeros((2, 2)))).all()


def test_large_images_keep_their_size():
    assert figures.enlarge(an_image(300)).shape == (300, 300, 3)
    image = an_image(8)
    np.testing.assert_array_equal(figures.enlarge(image)[::28, ::28], image)


def test_attention_names_networks_classes_and_confidence():
    figure = figures.attention_figure(LOOKS, CLASSES)
    assert titles(figure) == ['image', 'resnet20', 'wrn16_1']
    assert captions(figure)[:6] == [
        'dog',
        '✓ dog · 70.0 %',
        '✗ cat · 50.0 %',
        'file',
        'great white sh… · 100 %',
        'great white sh… · 60.0 %',
    ]
    colors = [to_hex(axis.xaxis.label.get_color()) for axis in figure.axes[:6]]
    assert colors == ['#000000', '#009e73', '#d55e00', '#000000', '#000000', '#000000']
    shown = figure.axes[4].images[0].get_array()
    expected = figures.overlay(LOOKS[1].image, LOOKS[1].attention['resnet20', 'backbone'])
    np.testing.assert_allclose(shown, expected)


def test_columns_of_several_layers_bear_their_names():
    maps = {(name, f'layer{i}'): np.eye(2) for name in ('a', 'b') for i in (1, 2)}
    look = LOOKS[0]._replace(attention=maps, scores=dict.fromkeys('ab', np.ones(3)))
    assert titles(figures.attention_figure([look])) == [
        'image', 'a\nlayer1', 'a\nlayer2', 'b\nlayer1', 'b\nlayer2',
    ]  # fmt: skip
    maps = {('network', f'layer{i}'): np.eye(2) for i in (1, 2)}
    look = look._replace(attention=maps, scores={'network': np.ones(3)})
    assert titles(figures.attention_figure([look])) == ['image', 'layer1', 'layer2']


def test_no_text_of_a_grid_meets_another():
    looks = [LOOKS[0]._replace(scores={'mobilenet-v2-x05_second': s, 'b': s}, attention={
        (name, 'backbone'): np.eye(2) for name in ('mobilenet-v2-x05_second', 'b')
    }) for s in (np.array([0.0, 0.0, 1.0]), np.array([0.3, 0.3, 0.4]))]  # fmt: skip
    for figure in (
        figures.attention_figure(looks, CLASSES),
        figures.predictions_figure(looks, CLASSES),
        figures.affinity_figure(a_batch(), 2, CLASSES),
    ):
        FigureCanvasAgg(figure).draw()
        boxes = []
        for axis in figure.axes:
            texts = [axis.title, axis._left_title, axis.xaxis.label, *axis.texts]
            texts += [*axis.get_yticklabels(), *axis.get_xticklabels()]
            boxes += [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text()]
        for place, (text, box) in enumerate(boxes):
            assert box.x0 >= 0, text
            assert box.x1 <= figure.bbox.width, text
            assert box.y0 >= 0, text
            assert box.y1 <= figure.bbox.height, text
            for other, second in boxes[:place]:
                assert not box.shrunk(0.9, 0.9).overlaps(second.shrunk(0.9, 0.9)), (text, other)


def test_predictions_are_bars_over_the_same_classes():
    figure = figures.predictions_figure(LOOKS, CLASSES, topk=2)
    assert titles(figure) == ['resnet20', 'wrn16_1', 'ensemble']
    picture, *bars = figure.axes[:4]
    assert picture.get_xlabel() == 'dog'
    order = [1, 0]  # by the mean; the third is nobody's choice
    assert figures.shown_classes(LOOKS[0], 2) == order
    assert [t.get_text() for t in bars[0].get_yticklabels()] == ['dog', 'cat']
    for axis, (name, scores) in zip(bars, LOOKS[0].scores.items(), strict=True):
        widths = [patch.get_width() for patch in axis.patches]
        np.testing.assert_allclose(widths, scores[order], err_msg=name)
        assert [to_hex(p.get_facecolor()) for p in axis.patches] == ['#009e73', '#0072b2']
    assert [t.get_text() for t in bars[0].texts] == ['70.0 %', '10.0 %']


def test_the_true_class_and_each_choice_are_shown():
    look = a_look(2, a=[0.6, 0.3, 0.1, 0.0], b=[0.4, 0.5, 0.1, 0.0])
    assert figures.shown_classes(look, 1) == [0, 1, 2]
    assert figures.shown_classes(look._replace(label=None), 1) == [0, 1]


def a_batch():
    labels = np.eye(3)[[2, 2, 0, 0]]
    affinity = np.array(
        [[0, 0.5, 0.2, 0.1], [0.4, 0, 0.15, 0.12], [0.11, 0.13, 0, 0.3], [0.1, 0.2, 0.35, 0]]
    )
    own, target = RNG.dirichlet(np.ones(3), 4), RNG.dirichlet(np.ones(3), 4)
    images = np.stack([an_image() for _ in range(4)])
    return BatchKnowledge(images, labels, affinity, own, target, 4.0, 6)


def test_affinities_are_shown_in_the_order_of_classes_without_the_diagonal():
    batch = a_batch()
    figure = figures.affinity_figure(batch, 2, CLASSES)
    matrix, bar, *partners = figure.axes
    order = [2, 3, 0, 1]
    shown = matrix.images[0].get_array()
    assert np.ma.getmaskarray(shown).tolist() == np.eye(4, dtype=bool).tolist()
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_array_equal(shown.data[off], batch.affinity[np.ix_(order, order)][off])
    assert '(4 of 6 images of the batch)' in bar.get_ylabel()
    assert partners[1].get_title(loc='left') == 'of those shown, it takes most from'
    whole = figures.affinity_figure(batch._replace(size=4)).axes
    assert '(4 images of the batch)' in whole[1].get_ylabel()
    assert whole[3].get_title(loc='left') == 'it takes most from'
    assert [t.get_text() for t in matrix.texts] == [*['cat'] * 2, *['great white sha…'] * 2]
    squares = [p for p in matrix.patches if isinstance(p, Rectangle) and p.get_width() == 2]
    assert [p.get_xy() for p in squares] == [(-0.5, -0.5), (1.5, 1.5)]
    frame = matrix.patches[-1]
    assert frame.get_y() == -0.5  # image 2 is the first row
    assert [axis.get_xlabel() for axis in partners[:4]] == ['', '0.300', '0.130', '0.110']
    thumbs = [axis.images[0].get_array() for axis in partners[:4]]
    for thumb, index in zip(thumbs, (2, 3, 1, 0), strict=True):
        np.testing.assert_array_equal(thumb[14::28, 14::28], batch.images[index])


def test_bars_are_label_own_prediction_and_target():
    batch = a_batch()
    *_, label, own, target = figures.affinity_figure(batch, 2, CLASSES).axes
    for axis, values in ((label, batch.labels), (own, batch.own), (target, batch.target)):
        np.testing.assert_allclose([p.get_width() for p in axis.patches], values[2])
    marks = target.collections[0].get_segments()
    np.testing.assert_allclose([mark[0, 0] for mark in marks], batch.own[2])
    assert own.get_title(loc='left') == 'own prediction at\ntemperature 4'
    assert own.get_xlim() == target.get_xlim()
    names = [t.get_text() for t in label.get_yticklabels()]
    assert names == ['cat', 'dog', 'great white sha…']


def test_of_many_classes_the_likely_ones_are_named():
    probs = RNG.dirichlet(np.ones(30), 4)
    labels = np.eye(30)[[5, 5, 7, 7]]
    batch = a_batch()._replace(labels=labels, own=probs, target=probs)
    label = figures.affinity_figure(batch, 1).axes[-3]
    names = [int(t.get_text()) for t in label.get_yticklabels()]
    assert len(names) == 10
    assert names[0] == 5
    assert names[1:] == [c for c in np.argsort(-probs[1]) if c != 5][:9]


@pytest.mark.parametrize('index', [-1, 4])
def test_an_image_that_is_not_shown_is_refused(index):
    with pytest.raises(ValueError, match=f'shown, 0 to 3, but got {index}'):
        figures.affinity_figure(a_batch(), index)


def test_views_stand_beside_the_image():
    views = {'a': np.stack([an_image(), an_image()]), 'b': np.stack([an_image(), an_image()])}
    originals = [an_image(6), np.zeros((2, 4, 3), np.uint8)]
    labels = np.array([[0, 1.0, 0], [0.25, 0.75, 0]])
    figure = figures.views_figure(Views(originals, views, labels), CLASSES)
    assert titles(figure) == ['image', 'a', 'b']
    assert captions(figure) == ['dog', '', '', '', 'dog 0.75, cat 0.25', '']
    shown = figure.axes[5].images[0].get_array()
    np.testing.assert_array_equal(shown, figures.enlarge(views['b'][1]))
    square = figure.axes[3].images[0].get_array()
    assert square.shape[0] == square.shape[1]
    assert square[0].min() == 255  # white above a wide image
    figure = figures.views_figure(Views([], views, labels), CLASSES)
    assert titles(figure) == ['a', 'b']
    assert captions(figure)[0] == 'dog'


def test_files_and_arrays(tmp_path):
    figure = figures.image_grid(['$a_b'], [[figures.Cell(an_image(), '$x')]])
    for ending in figures.FORMATS:
        figures.save(figure, tmp_path / 'new' / f'a{ending}')
        assert (tmp_path / 'new' / f'a{ending}').stat().st_size > 500
    saved = cv2.imread(str(tmp_path / 'new' / 'a.png'))[..., ::-1]
    array = figures.to_array(figure, dpi=figures.DPI)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, saved)


def test_a_users_style_neither_changes_nor_is_changed():
    cells = [[figures.Cell(an_image())]]
    plain = figures.to_array(figures.image_grid(['a'], cells, 'attention'))
    with matplotlib.rc_context({'font.size': 30, 'figure.facecolor': 'red'}):
        styled = figures.to_array(figures.image_grid(['a'], cells, 'attention'))
        assert matplotlib.rcParams['font.size'] == 30
    np.testing.assert_array_equal(styled, plain)


def test_chinese_names_take_a_font_that_has_them(tmp_path, monkeypatch):
    letter, name = '\ue123', figures.CHINESE[3]  # no real font has this one
    font = FontBuilder(1000)
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((0, 900))
    pen.lineTo((900, 900))
    pen.closePath()
    font.setupGlyphOrder(['.notdef', 'letter'])
    font.setupCharacterMap({ord(letter): 'letter'})
    font.setupGlyf({'.notdef': pen.glyph(), 'letter': pen.glyph()})
    font.setupHorizontalMetrics({'.notdef': (1000, 0), 'letter': (1000, 0)})
    font.setupHorizontalHeader(ascent=900, descent=0)
    font.setupNameTable({'familyName': name, 'styleName': 'Regular'})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / 'font.ttf')
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, 'ttflist', list(manager.ttflist))

    def draw():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            picture = figures.to_array(figures.attention_figure(LOOKS, [letter] * 3))
        return picture, [str(warning.message) for warning in caught]

    boxes, told = draw()
    assert told
    assert all('missing from font' in text for text in told)
    manager.addfont(tmp_path / 'font.ttf')
    picture, told = draw()
    assert told == []
    assert not np.array_equal(picture, boxes)
