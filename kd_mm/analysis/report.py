"""One page that shows which method helps, by how much, at what cost."""

import base64
import datetime
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_calibration_error

import kd_mm

from .comparison import Recipe, costs, lines
from .figures import COLORS, REFERENCE
from .predictions import Predictions
from .reproduction import mean_sd, to_table
from .run_log import MONITOR, SINGLE, TOP1

BINS = 15  # of the calibration error
LISTED = 10  # classes at each end of a long table
STYLE = {
    'svg.fonttype': 'none',
    'text.parse_math': False,  # names may hold a dollar sign
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.alpha': 0.4,
    'axes.spines.top': False,
    'axes.spines.right': False,
}
Found = tuple[list[dict[str, str]], pd.DataFrame]  # figures and a table


def write_report(
    recipes: Sequence[Recipe], predictions: Mapping[Path, Predictions], out: Path
) -> None:
    """Write the page: one HTML file that opens without network.

    Args:
        recipes: Of :func:`kd_mm.analysis.comparison.read_recipes`.
        predictions: Predictions of runs by work dir; none for runs without.
        out: Path of the page; its folder is made.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['table'] = lambda frame: Markup(
        frame.to_html(index=False, border=0, na_rep='-', float_format='{:,.2f}'.format)
    )
    images = _images(recipes, predictions)
    runs = [run for recipe in recipes for run in recipe.runs.values()]
    with matplotlib.rc_context(STYLE):
        page = environment.get_template('report.html.j2').render(
            created=datetime.datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z'),
            version=kd_mm.__version__,
            recipes=recipes,
            notes=_notes(recipes),
            results=_results(recipes),
            curves=_learning_curves(recipes),
            losses=_logged(recipes, 'loss'),
            monitors=_logged(recipes, MONITOR),
            costs=costs(recipes),
            calibration=_calibration(images),
            classes=_class_gains(recipes, images),
            missing=[run for run in runs if run.work_dir not in predictions],
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding='utf-8')


def _notes(recipes: Sequence[Recipe]) -> list[str]:
    """Return what a reader must know of these runs."""
    notes, lengths = [], set()
    for run in (run for recipe in recipes for run in recipe.runs.values()):
        done, whole, unit = run.length
        lengths.add(f'{whole} {unit}')
        if done < whole:
            notes.append(f'{run.work_dir} has gone {done} of {whole} {unit}.')
    if len(lengths) > 1:
        listed = ', '.join(sorted(lengths))
        notes.append(f'Recipes differ in length: {listed}. A gain holds for one length only.')
    if min(len(recipe.runs) for recipe in recipes) < 3:
        notes.append('With fewer than three seeds the spread says little: train more of them.')
    if not any(recipe.vanilla for recipe in recipes):
        notes.append(
            'There are no gains: no recipe here is the vanilla one of another. Train it too (its '
            'name begins with vanilla_), or name it with --vanilla.'
        )
    return notes


def _results(recipes: Sequence[Recipe]) -> Found:
    """Return accuracies and gains, and each seed's in a figure."""
    found = lines(recipes)
    if not found:
        return [], pd.DataFrame()
    table = to_table(found).drop(columns=['published', 'steps', 's per run', 'GPU MiB'])
    both = _axes(columns=2, size=(9.2, 1 + 0.25 * len(found)))
    for index, line in enumerate(found):
        for axis, key in zip(both, ('top1', 'gain'), strict=True):
            values = list((line[key] or {}).values())
            axis.plot(values, [index] * len(values), 'o', color=COLORS[0], alpha=0.6)
            axis.plot(np.mean(values or np.nan), index, '|', color='black', markersize=14)
    both[0].set(xlabel='top-1 accuracy in percent', yticks=range(len(found)))
    both[0].set_yticklabels([f'{line["recipe"]}, {line["network"]}' for line in found])
    both[0].invert_yaxis()
    both[1].axvline(0, color=REFERENCE)
    figure = _finish(both[1], 'Each seed, and the mean', xlabel='gain in percentage points')
    return [figure], table


def _learning_curves(recipes: Sequence[Recipe]) -> list[dict[str, str]]:
    """Return a figure for each recipe; its vanilla recipes are grey."""
    logs = {r.name: [pd.DataFrame(run.val) for run in r.runs.values()] for r in recipes}
    found = []
    for recipe in (recipe for recipe in recipes if recipe.networks):
        axis = _axes()
        for index, name in enumerate(sorted(set(recipe.vanilla.values()))):
            look = {'color': REFERENCE, 'linestyle': ('--', ':', '-.')[index % 3]}
            _plot_curve(axis, logs[name], TOP1, name, look)
        for network, look in _looks(recipe.networks).items():
            key = TOP1 if network == SINGLE else f'{network}/{TOP1}'
            _plot_curve(axis, logs[recipe.name], key, network, look)
        unit = recipe.first.length[2].removesuffix('s')
        found.append(_finish(axis, recipe.name, xlabel=unit, ylabel='top-1 accuracy in percent'))
    return found


def _logged(recipes: Sequence[Recipe], part: str) -> list[dict[str, str]]:
    """Return figures of the training log: of a recipe's losses, or of each kind of diagnostics."""
    found = []
    for recipe in recipes:
        logs = [pd.DataFrame(run.train) for run in recipe.runs.values()]
        kinds: dict[str, dict[str, str]] = {}
        for key in dict.fromkeys(key for log in logs for key in log if part in key):
            kind, _, label = key.removeprefix(MONITOR).partition('/')
            if part == MONITOR:
                kinds.setdefault(kind.replace('_', ' '), {})[key] = label or kind
            elif not key.startswith(MONITOR):
                kinds.setdefault('loss', {})[key] = key
        for kind, labels in kinds.items():
            axis = _axes()
            for key, look in _looks(list(labels)).items():
                _plot_curve(axis, logs, key, labels[key], look)
            if part == 'loss' and 0 < 10 * axis.dataLim.y0 <= axis.dataLim.y1:
                axis.set_yscale('log')
                axis.yaxis.set_major_formatter('{x:g}')  # no mathematics, see STYLE
                axis.yaxis.set_minor_formatter('')
            title = recipe.name if part == 'loss' else f'{kind}: {recipe.name}'
            found.append(_finish(axis, title, xlabel='iteration', ylabel=kind))
    return found


def _images(recipes: Sequence[Recipe], predictions: Mapping[Path, Predictions]) -> pd.DataFrame:
    """Return all predictions, one row for each recipe, network, seed and image."""
    parts = [pd.DataFrame(columns=['recipe', 'network', 'seed', 'class', 'hit'])]
    for recipe in recipes:
        for seed, run in recipe.runs.items():
            found = predictions.get(run.work_dir)
            for row, network in enumerate([] if found is None else found.networks):
                part = {
                    'recipe': recipe.name,
                    'network': network,
                    'seed': seed,
                    'class': found.classes[found.labels],
                    'hit': found.predicted[row] == found.labels,
                    'confidence': found.confidence[row],
                    'nll': -np.log(found.true_prob[row].clip(np.finfo(np.float32).tiny)),
                }
                parts.append(pd.DataFrame(part))
    return pd.concat(parts[1:] or parts)


def _calibration(images: pd.DataFrame) -> Found:
    """Return the reliability diagrams, with seeds pooled, and the measures."""
    figures = []
    for recipe, own in images.groupby('recipe', sort=False):
        axis = _axes()
        axis.axline((0, 0), slope=1, color=REFERENCE)
        for network, look in _looks(own.network.unique()).items():
            seeds = own[own.network == network]
            accuracy, confidence = calibration_curve(seeds.hit, seeds.confidence, n_bins=BINS)
            axis.plot(confidence, accuracy, label=network, marker='.', **look)
        axis.set(xlim=(0, 1.02), ylim=(0, 1.02), ylabel='share of right predictions')
        figures.append(_finish(axis, recipe, xlabel='confidence'))
    if images.empty:
        return figures, images

    def measures(seed: pd.DataFrame) -> pd.Series:
        confidence, hit = (torch.tensor(seed[key].to_numpy()) for key in ('confidence', 'hit'))
        values = {
            'top-1, %': 100 * seed.hit.mean(),
            'mean confidence, %': 100 * seed.confidence.mean(),
            'ECE, %': 100 * binary_calibration_error(confidence, hit, n_bins=BINS).item(),
            'NLL, nats': seed.nll.mean(),
        }
        return pd.Series(values)

    columns = ['hit', 'confidence', 'nll']
    by_seed = images.groupby(['recipe', 'network', 'seed'], sort=False)[columns].apply(measures)
    over_seeds = by_seed.groupby(['recipe', 'network'], sort=False)
    return figures, over_seeds.agg(lambda values: mean_sd(values.tolist(), digits=3)).reset_index()


def _class_gains(recipes: Sequence[Recipe], images: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the gain of each class, for each network with a vanilla recipe."""
    groups = images.groupby(['recipe', 'network', 'class'], sort=False)
    accuracy, found = 100 * groups.hit.mean(), []
    pairs = [(r.name, network, plain) for r in recipes for network, plain in r.vanilla.items()]
    for recipe, network, plain in pairs:
        if (recipe, network) not in accuracy or (plain, SINGLE) not in accuracy:
            continue
        columns = {'vanilla': accuracy[plain, SINGLE], 'this recipe': accuracy[recipe, network]}
        table = pd.DataFrame(columns).eval('gain = `this recipe` - vanilla')
        table = table.sort_values('gain', ascending=False, kind='stable').reset_index()
        axis = _axes()
        colors = np.where(table.gain < 0, COLORS[1], COLORS[0])
        axis.bar(range(len(table)), table.gain, color=colors)
        if len(table) <= 2 * LISTED:
            axis.set_xticks(range(len(table)), table['class'], rotation=90)
        title = recipe if network == SINGLE else f'{network} in {recipe}'
        axis.set_xlabel('classes, by gain')
        figure = _finish(axis, title, ylabel='gain in percentage points')
        left_out = max(0, len(table) - 2 * LISTED)
        table = table.drop(index=range(LISTED, LISTED + left_out))
        found.append({'figure': figure, 'vanilla': plain, 'table': table, 'left_out': left_out})
    return found


def _looks(labels: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return Matplotlib's color and line style of each label; 24 differ."""
    styles = [
        {'color': color, 'linestyle': style}
        for style in ('-', '--', ':', '-.')
        for color in COLORS
    ]
    return {label: styles[index % len(styles)] for index, label in enumerate(labels)}


def _axes(rows: int = 1, columns: int = 1, size: tuple[float, float] = (4.6, 3.4)) -> Any:
    """Return the axes of a new figure that pyplot does not know."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout='constrained').subplots(rows, columns, sharey=True)


def _plot_curve(
    axis: Any, logs: Sequence[pd.DataFrame], key: str, label: str, look: Mapping[str, str]
) -> None:
    """Draw the mean over seeds at each step that any log has, and the range as a band."""
    series = [log.set_index('step')[key].dropna() for log in logs if key in log]
    if series:
        seeds = pd.concat(series, axis=1).sort_index()
        marker = '.' if len(seeds) < 30 else ''
        axis.plot(seeds.index, seeds.mean(axis=1), label=label, marker=marker, **look)
        low, high = seeds.min(axis=1), seeds.max(axis=1)
        axis.fill_between(seeds.index, low, high, color=look['color'], alpha=0.15, linewidth=0)


def _finish(axis: Any, title: str, **labels: Any) -> dict[str, str]:
    """Return the ``title`` of a figure and its image as ``uri``, with labels and a legend."""
    axis.set(**labels)
    if axis.get_legend_handles_labels()[1]:
        axis.figure.legend(loc='outside lower center', ncols=2, frameon=False, fontsize='small')
    buffer = io.BytesIO()
    axis.figure.savefig(buffer, format='svg')
    image = base64.b64encode(buffer.getvalue()).decode()
    return {'title': title, 'uri': f'data:image/svg+xml;base64,{image}'}
