"""Figures of images, attention maps, predictions and affinities, for a page or a slide."""

import io
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from kd_mm.analysis.figures import COLORS, REFERENCE
from kd_mm.analysis.run_log import SINGLE

from .networks import BatchKnowledge, Look, Views

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

BLUE, RED, GREEN, ORANGE = COLORS[0], COLORS[1], COLORS[2], COLORS[4]
RIGHT, WRONG = '\N{CHECK MARK}', '\N{BALLOT X}'  # told apart without colour, too
FORMATS = ('.png', '.pdf', '.svg', '.jpg')
SIDE = 224  # pixels, at least, of an image under a heat map
CELL = 1.5  # inches
COLOR_MAP, OPACITY = 'turbo', 0.6
DPI = 200  # of a file
STYLE = {
    'font.size': 9,
    'text.parse_math': False,  # names may hold a dollar sign
    'axes.spines.top': False,
    'axes.spines.right': False,
    'svg.fonttype': 'none',
}
# With the letters that Matplotlib's own font lacks, of which a machine may have any.
CHINESE = (
    'Noto Sans CJK SC',
    'Noto Sans CJK JP',
    'Noto Sans SC',
    'Source Han Sans SC',
    'WenQuanYi Micro Hei',
    'WenQuanYi Zen Hei',
    'Droid Sans Fallback',
    'Microsoft YaHei',
    'SimHei',
    'PingFang SC',
    'Arial Unicode MS',
)
NAMED, NARROW = 10, 16  # classes that the bars of a soft target name, and letters of a name
MATRIX, LETTER = 4.9, 0.07  # inches


class Cell(NamedTuple):
    """An image of a grid.

    Attributes:
        image: (H, W, 3), uint8, or floats in [0, 1].
        caption: What stands below it.
        color: Of the caption.
    """

    image: np.ndarray
    caption: str = ''
    color: str = 'black'


class _Series(NamedTuple):
    """Bars over classes: title, values (K,), a mark for each, colour and end of the axis."""

    title: str
    values: np.ndarray
    mark: np.ndarray | None
    color: str
    limit: float


def styled(draw: Callable) -> Callable:
    """Draw in the style of this module, whatever the user's own is."""

    @wraps(draw)
    def drawn(*args, **kwargs):
        import matplotlib
        from matplotlib import font_manager

        defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if 'backend' not in k}
        there = font_manager.get_font_names()
        fonts = {'font.family': ['sans-serif', *(name for name in CHINESE if name in there)]}
        with matplotlib.rc_context({**defaults, **STYLE, **fonts}):
            return draw(*args, **kwargs)

    return drawn


def class_name(classes: Sequence[str], label: int, width: int = 18) -> str:
    """Return the name of a class for a small space.

    Args:
        classes: Names of the classes; where there are none, numbers stand for them.
        label: The class.
        width: Largest number of letters.

    Returns:
        The first of several names (ImageNet's), cut where it is long.

    Examples:
        >>> class_name(['tench, Tinca tinca'], 0), class_name([], 7)
        ('tench', '7')
    """
    name = str(classes[label]).partition(',')[0] if label < len(classes) else str(label)
    return _cut(name, width)


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else f'{name[: width - 1]}…'


def percent(probability: float) -> str:
    """Return a probability for a caption; '100 %' and '0 %' stand for 1 and 0 alone.

    Examples:
        >>> percent(0.987), percent(0.99996), percent(0.0001), percent(1)
        ('98.7 %', '>99.9 %', '<0.1 %', '100 %')
    """
    if probability in (0, 1):
        return f'{100 * probability:.0f} %'
    if probability > 0.9995:
        return '>99.9 %'
    return '<0.1 %' if 0 < probability < 0.0005 else f'{100 * probability:.1f} %'


def overlay(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Lay an attention map over its image.

    Args:
        image: (H, W, 3) uint8, RGB.
        attention: (h, w), of any range: it is scaled to its own, from blue to red. A constant one
            is blue.

    Returns:
        (H', W', 3) floats in [0, 1]: the image enlarged by a whole number where it is small, and
        the map by bilinear interpolation.
    """
    import matplotlib

    image = enlarge(image)
    height, width = image.shape[:2]
    heat = cv2.resize(attention.astype(np.float32), (width, height))
    heat -= heat.min()
    heat /= max(heat.max(), np.finfo(np.float32).tiny)
    colors = matplotlib.colormaps[COLOR_MAP](heat)[..., :3]
    return OPACITY * colors + (1 - OPACITY) * image / 255


def enlarge(image: np.ndarray) -> np.ndarray:
    """Repeat the pixels of a small image until its longer side has 224 or more."""
    times = -(-SIDE // max(image.shape[:2]))
    return image.repeat(times, axis=0).repeat(times, axis=1)


@styled
def image_grid(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], scale: str | None = None
) -> 'Figure':
    """Draw rows of images, with captions, under the names of the columns.

    Args:
        columns: A title for each column.
        rows: Cells, as many as columns in each row.
        scale: What the colours of heat maps show, for a scale at the foot. None: no scale.

    Returns:
        The figure.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    aspect = max(cell.image.shape[0] / cell.image.shape[1] for row in rows for cell in row)
    titles = [_wrapped(title) for title in columns]
    lines = 1 + max(title.count('\n') for title in titles)
    captions = any(cell.caption for row in rows for cell in row)
    pad, line = 0.08, 0.17  # inches between cells, and of a line of text
    cell_height = CELL * aspect + line * captions + pad
    foot = 0.5 if scale else 0.0
    # Inches, so that no text meets another however many rows and columns there are.
    width = len(columns) * (CELL + pad) + pad
    height = lines * line + 0.1 + len(rows) * cell_height + foot
    figure = Figure(figsize=(width, height))
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            left = pad + x * (CELL + pad)
            top = height - (lines * line + 0.1) - y * cell_height
            box = (left / width, (top - CELL * aspect) / height)
            axis = figure.add_axes((*box, CELL / width, CELL * aspect / height))
            axis.imshow(cell.image, interpolation='nearest')
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(visible=True, color=REFERENCE, linewidth=0.5)
            _caption(axis, cell.caption, cell.color)
            if y == 0:
                axis.set_title(titles[x], fontsize=10, pad=4)
    if scale:
        wide = min(2.4, width - 1.2)
        box = ((width - wide) / 2 / width, 0.3 / height, wide / width, 0.09 / height)
        bar = figure.colorbar(
            ScalarMappable(cmap=COLOR_MAP),
            cax=figure.add_axes(box),
            orientation='horizontal',
            ticks=[0, 1],
        )
        bar.ax.set_xticklabels(['lowest', 'highest'], fontsize=8)
        bar.ax.set_xlabel(scale, fontsize=8, labelpad=-8)
        bar.solids.set_alpha(1)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
    return figure


def _caption(axis: 'Axes', text: str, color: str = 'black') -> None:
    """Write below an image, as wide as a cell at most."""
    size = 8.5 * min(1, 21 / max(len(text), 1))
    axis.set_xlabel(text, color=color, labelpad=2.5, fontsize=size)


def _wrapped(title: str) -> str:
    """Break a title at what joins its words, for the width of a cell."""
    lines = []
    for part in title.split('\n'):
        for sign in '_-.':
            part = part.replace(sign, f'{sign} ')
        wrapped = textwrap.wrap(part, 21)
        lines += [''.join(f'{word} ' if word[-1] not in '_-.' else word
                          for word in line.split()).strip() for line in wrapped]  # fmt: skip
    return '\n'.join(lines)


def attention_figure(looks: Sequence[Look], classes: Sequence[str] = ()) -> 'Figure':
    """Lay the attention of each network over each image, side by side.

    Source: the pictures of attention in FFSD (arXiv:2103.14473), for any model.

    Args:
        looks: Rows, at least one.
        classes: Names of the classes.

    Returns:
        The figure: first the image, with its true class below where it is known, then a column
        for each network, with the class it predicts and its confidence.
    """
    keys = list(looks[0].attention)
    layers = {network: {layer for name, layer in keys if name == network} for network, _ in keys}
    titles = [
        network
        if len(layers[network]) == 1
        else layer
        if network == SINGLE
        else f'{network}\n{layer}'
        for network, layer in keys
    ]
    rows = []
    for look in looks:
        cells = [Cell(enlarge(look.image), _truth(look, classes))]
        for key in keys:
            caption, color = _answer(look, key[0], classes)
            cells.append(Cell(overlay(look.image, look.attention[key]), caption, color))
        rows.append(cells)
    return image_grid(['image', *titles], rows, scale='attention')


def _truth(look: Look, classes: Sequence[str]) -> str:
    return _cut(look.name, 28) if look.label is None else class_name(classes, look.label)


def _answer(look: Look, network: str, classes: Sequence[str]) -> tuple[str, str]:
    """Return what a network predicts, in words, and the colour of right or wrong."""
    label = int(look.scores[network].argmax())
    name = class_name(classes, label, 15)
    text = f'{name} \N{MIDDLE DOT} {percent(look.scores[network][label])}'
    if look.label is None:
        return text, 'black'
    right = label == look.label
    return f'{RIGHT if right else WRONG} {text}', GREEN if right else RED


def views_figure(views: Views, classes: Sequence[str] = ()) -> 'Figure':
    """Draw what each student sees of the same images.

    Args:
        views: Of the images, at least one.
        classes: Names of the classes.

    Returns:
        The figure: first the image as the data set has it, where that is known, with its label
        below, then a column for each student, or one for all where they share a view.
    """
    names = list(views.views)
    rows = []
    for place, label in enumerate(views.labels):
        cells = [Cell(enlarge(views.views[name][place])) for name in names]
        mixed = label.max() < 1  # with another image, in what the students see
        cells[0] = cells[0]._replace(caption=_mixture(label, classes))
        if views.originals:
            cells.insert(0, Cell(_square(views.originals[place])))
        if views.originals and not mixed:
            caption = cells[1].caption
            cells[:2] = cells[0]._replace(caption=caption), cells[1]._replace(caption='')
        rows.append(cells)
    return image_grid(['image'] * bool(views.originals) + names, rows)


def _square(image: np.ndarray) -> np.ndarray:
    """Return an enlarged image on a white square: photos have any format."""
    image = enlarge(image)
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def _mixture(label: np.ndarray, classes: Sequence[str]) -> str:
    """Name the one or two classes of a label (K,)."""
    first, *others = np.argsort(-label, kind='stable')[:2].tolist()
    if not others or label[others[0]] == 0:
        return class_name(classes, first)
    return ', '.join(f'{class_name(classes, c, 9)} {label[c]:.2f}' for c in (first, *others))


@styled
def predictions_figure(
    looks: Sequence[Look], classes: Sequence[str] = (), topk: int = 5
) -> 'Figure':
    """Draw what each network predicts for each image, as bars over the same classes.

    Args:
        looks: Rows, at least one.
        classes: Names of the classes.
        topk: Classes per image, by the mean of the networks, at most all. The true class and each
            network's own choice are added where they are not among them.

    Returns:
        The figure: images on the left, then a column for each network, the ensemble of a cohort
        among them. Bars of the true class are green.
    """
    from matplotlib.figure import Figure

    names = list(looks[0].scores)
    chosen = [shown_classes(look, topk) for look in looks]
    most = max(map(len, chosen))
    longest = max(len(class_name(classes, c)) for row in chosen for c in row)
    label_width, bar_width, gap, foot = 0.12 + 0.075 * longest, 1.45, 0.16, 0.42
    titles = [_wrapped(name) for name in names]
    head = 0.16 + 0.17 * (1 + max(title.count('\n') for title in titles))
    caption = 0.24
    row_height = max(CELL + caption, 0.2 * most) + 0.16
    width = CELL + label_width + len(names) * (bar_width + gap) + 0.36
    height = head + len(looks) * row_height + foot
    figure = Figure(figsize=(width, height))

    def axis_at(left: float, top: float, wide: float, high: float) -> 'Axes':
        box = (left / width, (height - top - high) / height, wide / width, high / height)
        return figure.add_axes(box)

    for y, (look, labels) in enumerate(zip(looks, chosen, strict=True)):
        top = head + y * row_height
        rows, columns = look.image.shape[:2]
        high = min(CELL * rows / columns, CELL)
        axis = axis_at(0.08, top, high * columns / rows, high)
        axis.imshow(enlarge(look.image), interpolation='nearest')
        axis.set(xticks=[], yticks=[])
        _caption(axis, _truth(look, classes))
        axis.spines[:].set(visible=True, color=REFERENCE, linewidth=0.5)
        place = np.arange(len(labels))
        for x, name in enumerate(names):
            left = 0.08 + CELL + label_width + x * (bar_width + gap)
            axis = axis_at(left, top, bar_width, row_height - 0.16)
            probs = look.scores[name][labels]
            colors = [GREEN if label == look.label else BLUE for label in labels]
            axis.barh(place, probs, 0.68, color=colors)
            for spot, prob in zip(place, probs, strict=True):
                inside = prob > 0.62
                axis.text(
                    prob - 0.02 if inside else prob + 0.02,
                    spot,
                    percent(prob),
                    va='center',
                    ha='right' if inside else 'left',
                    color='white' if inside else 'black',
                    fontsize=7.5,
                )
            axis.set(xlim=(0, 1), ylim=(most - 0.5, -0.5), xticks=[0, 0.5, 1])
            axis.set_xticklabels(['0', '0.5', '1'] if y == len(looks) - 1 else [])
            axis.grid(axis='x', color='#dddddd', linewidth=0.6)
            axis.set_axisbelow(True)
            axis.set_yticks(place, [class_name(classes, c) for c in labels] if x == 0 else [])
            axis.tick_params(length=0)
            for text, label in zip(axis.get_yticklabels(), labels, strict=False):
                if label == look.label:
                    text.set(color=GREEN, weight='bold')
            if y == 0:
                axis.set_title(titles[x], fontsize=10, pad=4)
            if y == len(looks) - 1:
                axis.set_xlabel('probability', fontsize=8)
    return figure


def shown_classes(look: Look, topk: int) -> list[int]:
    """Return the classes that :func:`predictions_figure` shows of an image, likely ones first."""
    scores = np.stack(list(look.scores.values()))
    mean = scores.mean(axis=0)
    first = {*np.argsort(-mean, kind='stable')[:topk].tolist(), *scores.argmax(axis=1).tolist()}
    if look.label is not None:
        first.add(look.label)
    return sorted(first, key=lambda label: (-mean[label], label))


@styled
def affinity_figure(
    batch: BatchKnowledge, index: int = 0, classes: Sequence[str] = ()
) -> 'Figure':
    """Draw what the images of a batch take from each other, and the soft target of one.

    Args:
        batch: What the N images of a batch take from each other, n of which are shown.
        index: The image whose target is shown, below n.
        classes: Names of the classes.

    Returns:
        The figure. Left, the affinities of the shown images, in the order of their classes; an
        image takes nothing from itself. Right, the chosen image, those it takes most from, and
        its label, own prediction and target, of the ten likeliest classes.

    Raises:
        ValueError: If there is no such image.
    """
    from matplotlib.figure import Figure

    count = len(batch.images)
    if not 0 <= index < count:
        raise ValueError(
            f'the chosen image must be one of those that are shown, 0 to {count - 1}, but got '
            f'{index}'
        )
    chosen = _likely(batch, index)
    labels = batch.labels.argmax(axis=1)
    longest, longest_chosen = (
        max(len(class_name(classes, int(label), NARROW)) for label in row)
        for row in (labels, chosen)
    )
    upright = longest > 2
    left, right = 0.2 + LETTER * longest, 0.1 + LETTER * longest_chosen
    top = 0.3 + 0.6 * LETTER * longest * upright
    start = left + MATRIX + 1.1 + right  # of the bars
    width = max(start + 3.45, start - right + 4.0)
    height = top + MATRIX + 0.15
    figure = Figure(figsize=(width, height))

    def axis_at(x: float, y: float, wide: float, high: float) -> 'Axes':
        """Place an axis, in inches from the upper left corner."""
        box = (x / width, 1 - (y + high) / height, wide / width, high / height)
        return figure.add_axes(box)

    matrix = axis_at(left, top, MATRIX, MATRIX)
    shown = _draw_matrix(matrix, batch, index, classes, upright)
    bar = figure.colorbar(shown, cax=axis_at(left + MATRIX + 0.12, top + 1.2, 0.13, MATRIX - 1.2))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    whole = f' of {batch.size}' if batch.size > count else ''
    bar.set_label('how much the image of a row takes from that of a column\n'
                  f'({count}{whole} images of the batch)', fontsize=8.5)  # fmt: skip
    for column, (other, weight) in enumerate(_partners(batch, index)):
        gap = 0.1 * (column > 0)
        axis = axis_at(start - right + 0.65 * column + gap, top, 0.6, 0.6)
        _draw_partner(axis, batch.images[other], weight)
        if column == 1:
            title = 'of those shown, it takes most from' if whole else 'it takes most from'
            axis.set_title(title, fontsize=8.5, loc='left', pad=4)
    for column, series in enumerate(_series(batch, index)):
        axis = axis_at(start + 1.15 * column, top + 1.7, 1.05, MATRIX - 1.7)
        names = [class_name(classes, label, NARROW) for label in chosen] if column == 0 else []
        _draw_bars(axis, series, chosen, names)
    return figure


def _likely(batch: BatchKnowledge, index: int) -> list[int]:
    """Return the classes that the bars of an image show: all, where there are few."""
    values = np.max([batch.labels[index], batch.own[index], batch.target[index]], axis=0)
    chosen = np.argsort(-values, kind='stable')[:NAMED].tolist()
    return sorted(chosen) if len(values) <= NAMED else chosen


def _draw_matrix(
    axis: 'Axes', batch: BatchKnowledge, index: int, classes: Sequence[str], upright: bool
) -> 'AxesImage':
    """Draw the affinities with thumbnails along both axes."""
    import matplotlib
    from matplotlib.patches import Rectangle

    labels = batch.labels.argmax(axis=1)
    order = np.argsort(labels, kind='stable')
    count, labels = len(order), labels[order]
    matrix = batch.affinity[np.ix_(order, order)].astype(float)
    np.fill_diagonal(matrix, np.nan)
    cmap = matplotlib.colormaps['viridis'].with_extremes(bad='#e8e8e8')
    shown = axis.imshow(matrix, cmap=cmap)
    # Thumbnails are squares of one place, in the units of the matrix.
    near = -0.5 - 0.01 * count
    far = near - 1
    thumbs = [_thumbnail(batch.images[i]) for i in order]
    axis.imshow(np.concatenate(thumbs, axis=0), extent=(far, near, count - 0.5, -0.5))
    axis.imshow(np.concatenate(thumbs, axis=1), extent=(-0.5, count - 0.5, near, far))
    names = far - 0.01 * count
    starts = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), count]
    for start, end in pairwise(starts):
        square = (start - 0.5, start - 0.5), end - start, end - start
        axis.add_patch(Rectangle(*square, fill=False, edgecolor='black', linewidth=1.2))
        middle, name = (start + end - 1) / 2, class_name(classes, int(labels[start]), NARROW)
        axis.text(names, middle, name, ha='right', va='center', fontsize=8)
        axis.text(middle, names, name, ha='left' if upright else 'center', va='bottom',
                  fontsize=8, rotation=35 * upright, rotation_mode='anchor')  # fmt: skip
    row = int(np.flatnonzero(order == index)[0])
    frame = (far, row - 0.5), count - 0.5 - far, 1
    axis.add_patch(Rectangle(*frame, fill=False, edgecolor=RED, linewidth=2, clip_on=False))
    axis.set(xlim=(far, count - 0.5), ylim=(count - 0.5, far), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    return shown


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """Return a square image with a white rim."""
    small = cv2.resize(enlarge(image), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.copyMakeBorder(small, 6, 6, 6, 6, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def _partners(batch: BatchKnowledge, index: int) -> list[tuple[int, float | None]]:
    """Return an image and those shown ones that it takes most from, with their affinities."""
    weights = batch.affinity[index].copy()
    weights[index] = -1
    others = np.argsort(-weights, kind='stable')[: min(5, len(weights) - 1)].tolist()
    return [(index, None), *((other, float(weights[other])) for other in others)]


def _draw_partner(axis: 'Axes', image: np.ndarray, weight: float | None) -> None:
    """Draw an image with its affinity; the chosen one has none."""
    axis.imshow(_thumbnail(image)[6:-6, 6:-6])
    axis.set(xticks=[], yticks=[])
    color, width = (RED, 2) if weight is None else (REFERENCE, 0.5)
    axis.spines[:].set(visible=True, color=color, linewidth=width)
    axis.set_xlabel('' if weight is None else f'{weight:.3f}', fontsize=8, labelpad=2.5)


def _series(batch: BatchKnowledge, index: int) -> list[_Series]:
    """Return label, own prediction and target of an image; the latter two on one scale."""
    label, own, target = batch.labels[index], batch.own[index], batch.target[index]
    most = 1.55 * max(own.max(), target.max())  # room for the numbers
    title = f'own prediction at\ntemperature {batch.temperature:g}'
    return [
        _Series('label', label, None, ORANGE, 1.55),
        _Series(title, own, None, BLUE, most),
        _Series('soft target\n(black: own)', target, own, GREEN, most),
    ]


def _draw_bars(axis: 'Axes', series: _Series, chosen: list[int], names: list[str]) -> None:
    """Draw one of the three, with the numbers next to the bars."""
    place, values = np.arange(len(chosen)), series.values[chosen]
    axis.barh(place, values, 0.7, color=series.color)
    ends = values
    if series.mark is not None:
        marks = series.mark[chosen]
        axis.vlines(marks, place - 0.42, place + 0.42, color='black', linewidth=1.4)
        ends = np.maximum(values, marks)
    digits = 1 if series.values.max() > 0.01 else 2
    for spot, end, value in zip(place, ends, values, strict=True):
        if value > 0:
            text = f'{100 * value:.{digits}f} %'.replace('100.0', '100')
            axis.text(end + 0.03 * series.limit, spot, text, va='center', fontsize=7.5)
    axis.set(xlim=(0, series.limit), ylim=(len(chosen) - 0.4, -0.6), xticks=[])
    axis.set_yticks(place[: len(names)], names)
    axis.tick_params(length=0)
    axis.spines['bottom'].set_visible(False)
    axis.set_title(series.title, fontsize=8.5, loc='left', pad=6)


@styled
def save(figure: 'Figure', path: str | Path) -> None:
    """Write a figure to a file, whose folder is made where it is missing.

    Args:
        figure: Any figure.
        path: Its ending says the format.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


@styled
def to_array(figure: 'Figure', dpi: int = 100) -> np.ndarray:
    """Return a figure as an image, for a backend of the visualizer.

    Args:
        figure: Any figure.
        dpi: Pixels per inch.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=dpi)
    encoded = np.frombuffer(buffer.getvalue(), np.uint8)
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
