"""Figures of the report as inline SVG, in colours that the page's style sheet sets."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Okabe and Ito's palette, told apart by colour-blind readers; yellow is too faint on white. The
# page replaces each by a shade that reads well on its background.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
REFERENCE = '#999999'
TEXT, GRID = '#010101', '#020202'
# Lines are told apart without colour, too.
DASHES = ('', '6 3', '2 2', '8 3 2 3')  # in points
WIDE = 10  # ratio of values from which a logarithmic scale has two labels
SIZE = (4.4, 3.0)  # inches; narrow, so that text stays large on a phone
STYLE = {
    'svg.fonttype': 'none',
    'lines.scale_dashes': False,
    'text.parse_math': False,  # names may hold a dollar sign
    'font.size': 9.5,
    'text.color': TEXT,
    'axes.edgecolor': TEXT,
    'axes.labelcolor': TEXT,
    'xtick.color': TEXT,
    'ytick.color': TEXT,
    'grid.color': GRID,
    'axes.grid': True,
    'axes.axisbelow': True,
    'axes.spines.top': False,
    'axes.spines.right': False,
}


class Look(NamedTuple):
    """Colour and dashes of a curve.

    Attributes:
        color: Index in ``COLORS``; None: grey, for what others are compared with.
        dash: A stroke-dasharray of SVG; empty: a whole line.
    """

    color: int | None
    dash: str

    @property
    def css(self) -> str:
        """Colour for the style sheet."""
        return 'var(--reference)' if self.color is None else f'var(--c{self.color})'


class Curve(NamedTuple):
    """A curve over seeds.

    Attributes:
        label: Its name in the legend.
        look: Its colour and dashes.
        x: Steps, epochs or confidences, (n,).
        mean: Mean over the seeds, (n,).
        low: Smallest value over the seeds, (n,).
        high: Largest value over the seeds, (n,).
    """

    label: str
    look: Look
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Figure(NamedTuple):
    """A figure with its legend.

    Attributes:
        svg: The drawing, an ``svg`` element.
        title: Its heading.
        alt: What it shows, in words.
        legend: Labels and their looks.
    """

    svg: str
    title: str
    alt: str
    legend: list[tuple[str, Look]]


def look_of(index: int) -> Look:
    """Return the look of the curve with a number; 24 differ.

    Examples:
        >>> look_of(7)
        Look(color=1, dash='8 3 2 3')
    """
    return Look(index % len(COLORS), DASHES[(index + index // 12) % len(DASHES)])


def over_seeds(label: str, look: Look, runs: Sequence[Mapping[int, float]]) -> Curve:
    """Return mean and range over seeds at each step that any of them has.

    Args:
        label: Name of the curve.
        look: Its look.
        runs: Values by step of each seed.

    Examples:
        >>> over_seeds('a', look_of(0), [{1: 2.0, 2: 4.0}, {1: 4.0}]).mean
        array([3., 4.])
    """
    x = sorted(set().union(*runs))
    at = [np.array([run[step] for run in runs if step in run]) for step in x]
    columns = ([function(v) for v in at] for function in (np.mean, np.min, np.max))
    return Curve(label, look, np.array(x), *map(np.array, columns))


def line_figure(
    title: str,
    curves: Sequence[Curve],
    xlabel: str,
    ylabel: str,
    ylim: tuple[float, float] | None = None,
    log: bool = False,
) -> Figure:
    """Draw curves with the range over seeds as a band.

    Args:
        title: Heading of the figure.
        curves: At least one.
        xlabel: Quantity and unit of x.
        ylabel: Quantity and unit of y.
        ylim: Range of y; None: that of the curves.
        log: Logarithmic y, where all values are positive and far apart.

    Returns:
        The figure; its alternative text tells where each curve ends.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axis = _axis()
    for curve in curves:
        marker = '.' if len(curve.x) < 30 else ''
        _plot(axis, curve.look, curve.x, curve.mean, marker)
        if (curve.high > curve.low).any():
            axis.fill_between(
                curve.x, curve.low, curve.high, color=_color(curve.look), alpha=0.15, linewidth=0
            )
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    only = {x for curve in curves for x in curve.x.tolist()}
    if len(only) == 1:
        axis.set_xticks(list(only))
    lowest, highest = min(c.low.min() for c in curves), max(c.high.max() for c in curves)
    if log and 0 < WIDE * lowest <= highest:
        axis.set_yscale('log')
        axis.yaxis.set_major_formatter('{x:g}')
        axis.yaxis.set_minor_formatter('')
    if ylim is not None:
        axis.set_ylim(*ylim)
    ends = '; '.join(f'{curve.label} {curve.mean[-1]:.4g}' for curve in curves)
    alt = f'{title}: {ylabel} over {xlabel}. At the end: {ends}.'
    return Figure(_svg(figure), title, alt, [(curve.label, curve.look) for curve in curves])


def reliability_figure(
    title: str, curves: Sequence[tuple[str, Look, np.ndarray, np.ndarray, np.ndarray]]
) -> Figure:
    """Draw a reliability diagram; the area of a point is the share of images in its bin.

    Args:
        title: Heading of the figure.
        curves: Label, look, and confidence, accuracy and share (b,) of each network.

    Returns:
        The figure.
    """
    figure, axis = _axis()
    axis.plot([0, 1], [0, 1], color=REFERENCE, linewidth=1)
    for _, look, confidence, accuracy, share in curves:
        _plot(axis, look, confidence, accuracy, '')
        axis.scatter(confidence, accuracy, 6 + 90 * share, color=_color(look), linewidth=0)
    axis.set(xlabel='confidence', ylabel='share of right predictions', xlim=(0, 1.02),
             ylim=(0, 1.02))  # fmt: skip
    gaps = '; '.join(
        f'{label} {share @ (accuracy - confidence):+.3f}'
        for label, _, confidence, accuracy, share in curves
    )
    alt = f'{title}: accuracy in bins of confidence. Accuracy less confidence: {gaps}.'
    legend = [(label, look) for label, look, *_ in curves]
    return Figure(_svg(figure), title, alt, [*legend, ('calibrated', Look(None, ''))])


def gain_figure(title: str, classes: Sequence[str], gain: np.ndarray, named: int = 20) -> Figure:
    """Draw the gain of each class, largest first.

    Args:
        title: Heading of the figure.
        classes: Names of the classes, in the order of ``gain``.
        gain: (K,) percentage points, falling.
        named: Up to as many classes, each bar bears its name.

    Returns:
        The figure.
    """
    figure, axis = _axis()
    place = np.arange(len(gain))
    width = 0.75 if len(gain) <= 3 * named else 1.0
    for up, color in ((True, COLORS[0]), (False, COLORS[1])):
        chosen = (gain >= 0) == up
        axis.bar(place[chosen], gain[chosen], width, color=color, linewidth=0)
    axis.axhline(0, color=TEXT, linewidth=0.8)
    axis.grid(axis='x', visible=False)
    axis.set(ylabel='gain in percentage points')
    if len(gain) <= named:
        longest = max(map(len, classes))
        axis.set_xticks(place, [_short(name) for name in classes],
                        rotation=0 if longest < 4 else 90)  # fmt: skip
    else:
        axis.set(xlabel='classes, by gain', xticks=[])
    alt = (
        f'{title}: {int((gain > 0).sum())} of {len(gain)} classes gain, {int((gain < 0).sum())} '
        f'lose; from {gain.max():+.1f} ({classes[0]}) to {gain.min():+.1f} ({classes[-1]}) points.'
    )
    return Figure(_svg(figure), title, alt, [])


def _short(name: str) -> str:
    return name if len(name) < 15 else f'{name[:13]}…'


def _color(look: Look) -> str:
    return REFERENCE if look.color is None else COLORS[look.color]


def _plot(axis, look: Look, x: np.ndarray, y: np.ndarray, marker: str) -> None:
    dash = tuple(map(float, look.dash.split()))
    style = (0, dash) if dash else '-'
    axis.plot(x, y, color=_color(look), linewidth=1.6, linestyle=style, marker=marker)


def _axis() -> tuple:
    """Return an empty figure and its axis, apart from pyplot's state."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=SIZE, layout='constrained')
        return figure, figure.subplots()


def _svg(figure) -> str:
    """Return the figure as an ``svg`` element for a page."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format='svg', transparent=True)
    text = buffer.getvalue()
    text = text[text.index('<svg') :]
    text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.S)
    for index, color in enumerate(COLORS):
        text = text.replace(color, f'var(--c{index})')
    for color, name in ((REFERENCE, 'reference'), (TEXT, 'text'), (GRID, 'grid')):
        text = text.replace(color, f'var(--{name})')
    # Only what is referred to needs a name; that is Matplotlib's, and random.
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    for name in set(re.findall(r' id="([^"]+)"', text)):
        if name not in used:
            text = text.replace(f' id="{name}"', '')
    return re.sub(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1">', text, count=1)
