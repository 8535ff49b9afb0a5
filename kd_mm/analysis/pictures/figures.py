"""Matplotlib figures of images, attention maps, predictions and affinities."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .networks import BatchKnowledge, Look

BLUE, RED, GREEN, ORANGE = '#0072b2', '#d55e00', '#009e73', '#e69f00'  # of Okabe and Ito
STYLE = {'font.size': 8, 'text.parse_math': False}  # names may hold a dollar sign
COLOR_MAP = 'turbo'
LIKELY = 10  # classes in the bars of a soft target


def class_name(classes: Sequence[str], label: int, width: int = 18) -> str:
    """Return the name of a class for a small space.

    Args:
        classes: Names of the classes; where there are none, numbers stand for them.
        label: The class.
        width: Largest number of letters.

    Examples:
        >>> class_name(['tench, Tinca tinca'], 0), class_name([], 7)
        ('tench', '7')
    """
    name = str(classes[label]).partition(',')[0] if label < len(classes) else str(label)
    return name if len(name) <= width else f'{name[: width - 1]}…'


def _grid(titles: Sequence[str], rows: int) -> tuple[Figure, np.ndarray]:
    """Return a figure, and its axes (rows, columns) under titles."""
    figure = Figure((1.6 * len(titles) + 0.1, 1.75 * rows + 0.4), layout='constrained')
    axes = figure.subplots(rows, len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title('\n'.join(textwrap.fill(line, 22) for line in title.split('\n')))
    return figure, axes


def _show(axis: Axes, image: np.ndarray, caption: str = '', color: str = 'black') -> None:
    """Draw an image with a caption below."""
    axis.imshow(image, interpolation='nearest')
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(caption, color=color)


def _truth(look: Look, classes: Sequence[str]) -> str:
    return look.name[:20] if look.label is None else class_name(classes, look.label)


@matplotlib.rc_context(STYLE)
def attention_figure(looks: Sequence[Look], classes: Sequence[str] = ()) -> Figure:
    """Lay the attention of each network over each image, side by side.

    Source: the pictures of attention in FFSD (arXiv:2103.14473), for any model.

    Args:
        looks: Rows, at least one.
        classes: Names of the classes.

    Returns:
        First the image, with its true class below where it is known, then a column for each
        network, with the class it predicts and its confidence.
    """
    keys = list(looks[0].attention)
    networks = {name for name, _ in keys}
    names = [name if len(keys) == len(networks) else f'{name}\n{layer}' for name, layer in keys]
    figure, axes = _grid(['image', *names], len(looks))
    for row, look in zip(axes, looks, strict=True):
        height, width = look.image.shape[:2]
        _show(row[0], look.image, _truth(look, classes))
        for axis, (name, layer) in zip(row[1:], keys, strict=True):
            label = int(look.scores[name].argmax())
            text = f'{class_name(classes, label, 15)} · {look.scores[name][label]:.1%}'
            right = label == look.label
            mark = '' if look.label is None else '✓ ' if right else '✗ '
            color = 'black' if look.label is None else GREEN if right else RED
            _show(axis, look.image, mark + text, color)
            axis.imshow(
                look.attention[name, layer],
                cmap=COLOR_MAP,
                alpha=0.6,
                interpolation='bilinear',
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )
    bar = figure.colorbar(
        ScalarMappable(cmap=COLOR_MAP),
        ax=axes,
        location='bottom',
        shrink=0.5,
        aspect=40,
        ticks=[0, 1],
    )
    bar.ax.set_xticklabels(['lowest', 'highest'])
    bar.set_label('attention, each map on its own scale')
    return figure


@matplotlib.rc_context(STYLE)
def views_figure(
    views: Mapping[str, np.ndarray], labels: np.ndarray, classes: Sequence[str] = ()
) -> Figure:
    """Draw what each student sees of the same images, a column for each, with the labels below.

    Args:
        views: N images (N, H, W, 3) by student, or one for all that share a view.
        labels: (N, K).
        classes: Names of the classes.
    """
    figure, axes = _grid(list(views), len(labels))
    for place, (row, label) in enumerate(zip(axes, labels, strict=True)):
        mixed = [c for c in np.argsort(-label, kind='stable')[:2] if label[c] > 0]
        parts = [f'{class_name(classes, c, 9)} {label[c]:.2f}' for c in mixed]
        caption = ', '.join(parts) if len(mixed) > 1 else class_name(classes, mixed[0])
        for axis, images in zip(row, views.values(), strict=True):
            _show(axis, images[place], caption)
    return figure


@matplotlib.rc_context(STYLE)
def predictions_figure(
    looks: Sequence[Look], classes: Sequence[str] = (), topk: int = 5
) -> Figure:
    """Draw what each network predicts for each image, as bars over the same classes.

    Args:
        looks: Rows, at least one.
        classes: Names of the classes.
        topk: Classes per image, by the mean of the networks, at most all. The true class and each
            network's own choice are added where they are not among them.

    Returns:
        Images on the left, then a column for each network and the ensemble of a cohort. Bars of
        the true class are green.
    """
    figure, axes = _grid(['image', *looks[0].scores], len(looks))
    for row, look in zip(axes, looks, strict=True):
        _show(row[0], look.image, _truth(look, classes))
        labels = shown_classes(look, topk)
        colors = [GREEN if label == look.label else BLUE for label in labels]
        for axis, scores in zip(row[1:], look.scores.values(), strict=True):
            names = [class_name(classes, label) for label in labels] if axis is row[1] else ()
            _bars(axis, scores[labels], names, colors)
    return figure


def _bars(
    axis: Axes,
    values: np.ndarray,
    names: Sequence[str],
    color: object,
    title: str = '',
    most: float = 1.0,
) -> None:
    """Draw horizontal bars of probabilities from the top, with their numbers."""
    bars = axis.barh(range(len(values)), values, color=color)
    axis.bar_label(bars, [f'{value:.1%}' for value in values], padding=2, fontsize=7)
    axis.set_yticks(range(len(names)), names)
    axis.set(xticks=[], xlim=(0, 1.4 * most), title=title or axis.get_title())
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.spines[['top', 'right', 'bottom']].set_visible(False)


def shown_classes(look: Look, topk: int) -> list[int]:
    """Return the classes that :func:`predictions_figure` shows of an image, likely ones first."""
    scores = np.stack(list(look.scores.values()))
    mean = scores.mean(axis=0)
    first = {*np.argsort(-mean, kind='stable')[:topk].tolist(), *scores.argmax(axis=1).tolist()}
    if look.label is not None:
        first.add(look.label)
    return sorted(first, key=lambda label: (-mean[label], label))


@matplotlib.rc_context(STYLE)
def affinity_figure(batch: BatchKnowledge, index: int = 0, classes: Sequence[str] = ()) -> Figure:
    """Draw what the images of a batch take from each other, and the soft target of one.

    Args:
        batch: What the N images of a batch take from each other, n of which are shown.
        index: The image whose target is shown, below n.
        classes: Names of the classes.

    Returns:
        Left, the affinities of the shown images, in the order of their classes; an image takes
        nothing from itself. Right, the chosen image, those it takes most from, and its label, own
        prediction and target, of the ten likeliest classes.

    Raises:
        ValueError: If there is no such image.
    """
    count = len(batch.images)
    if not 0 <= index < count:
        raise ValueError(
            f'the chosen image must be one of those that are shown, 0 to {count - 1}, but got '
            f'{index}'
        )
    figure = Figure((10.5, 5), layout='constrained')
    left, right = figure.subfigures(1, 2, width_ratios=[1.2, 1])
    _draw_matrix(left.subplots(), batch, index, classes)
    top, bottom = right.subfigures(2, 1, height_ratios=[1, 3])
    weights = batch.affinity[index].copy()
    weights[index] = np.inf  # the image itself comes first
    partners = np.argsort(-weights, kind='stable')[:6]
    for axis, other in zip(top.subplots(1, len(partners)), partners, strict=True):
        own = other == index
        _show(axis, batch.images[other], 'takes from' if own else f'{weights[other]:.3f}')
        axis.spines[:].set(color=RED if own else 'black', linewidth=2 if own else 0.5)
    label, own, target = batch.labels[index], batch.own[index], batch.target[index]
    chosen = np.argsort(-np.max([label, own, target], axis=0), kind='stable')[:LIKELY]
    chosen = np.sort(chosen) if len(label) <= LIKELY else chosen
    names = [class_name(classes, c) for c in chosen]
    most = max(own.max(), target.max())
    axes = bottom.subplots(1, 3)
    _bars(axes[0], label[chosen], names, ORANGE, 'label', 1)
    _bars(axes[1], own[chosen], (), BLUE, f'own, T = {batch.temperature:g}', most)
    _bars(axes[2], target[chosen], (), GREEN, 'soft target', most)
    return figure


def _draw_matrix(axis: Axes, batch: BatchKnowledge, index: int, classes: Sequence[str]) -> None:
    """Draw the affinities, with the images along both axes."""
    labels = batch.labels.argmax(axis=1)
    order = np.argsort(labels, kind='stable')
    count = len(order)
    matrix = batch.affinity[np.ix_(order, order)].astype(float)
    np.fill_diagonal(matrix, np.nan)
    shown = axis.imshow(matrix)
    images, near, far = batch.images[order], -0.6, -1.6
    axis.imshow(np.concatenate(images, axis=0), extent=(far, near, count - 0.5, -0.5))
    axis.imshow(np.concatenate(images, axis=1), extent=(-0.5, count - 0.5, near, far))
    row = int(np.flatnonzero(order == index)[0])
    frame = Rectangle((far, row - 0.5), count - 0.5 - far, 1, fill=False, edgecolor=RED, lw=2)
    axis.add_patch(frame)
    names = [class_name(classes, int(label)) for label in labels[order]]
    axis.set(xlim=(far, count - 0.5), ylim=(count - 0.5, far))
    axis.set_xticks(range(count), names, rotation=90)
    axis.set_yticks(range(count), names)
    whole = f' of {batch.size}' if batch.size > count else ''
    bar = axis.figure.colorbar(shown, ax=axis, shrink=0.8)
    bar.set_label(
        'how much the image of a row takes from that of a column\n'
        f'({count}{whole} images of the batch)'
    )


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file, whose folder is made where it is missing.

    Args:
        figure: Any figure.
        path: Its ending says the format.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def to_array(figure: Figure) -> np.ndarray:
    """Return a figure as an image, (H, W, 3) uint8, RGB, for a backend of the visualizer."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
