"""One page that shows which method helps, by how much, at what cost."""

import datetime
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import kd_mm

from . import figures
from .calibration import (
    Predictions,
    Reliability,
    expected_calibration_error,
    negative_log_likelihood,
    per_class_accuracy,
    reliability,
)
from .comparison import Cost, Recipe, costs, lines
from .figures import DASHES, Curve, Figure, Look, look_of, over_seeds
from .predictions import RunPredictions
from .reproduction import Line, mean_sd
from .run_log import MONITOR, SINGLE, keys_with, series, top1_key

TEMPLATE = 'report.html.j2'
LISTED = 10  # classes at each end of a long table


class Dots(NamedTuple):
    """Values of seeds on a common scale, as places in percent of its length.

    Attributes:
        at: Place of each seed.
        mean: Place of the mean.
        zero: Place of 0; None where the scale has none.
    """

    at: list[float]
    mean: float
    zero: float | None


class Result(NamedTuple):
    """A line of the first table.

    Attributes:
        line: The network of a recipe, over seeds.
        top1: Mean and spread of its accuracy.
        dots: Accuracies of the seeds.
        vanilla: What it is compared with; None: nothing.
        gains: Gain of each seed, or of the mean where seeds differ; empty without a comparison.
        gain: Mean and spread of the gains.
        gain_dots: Gains of the seeds.
        rises: How many seeds gain; empty where seeds differ.
        cost: What the recipe costs.
    """

    line: Line
    top1: str
    dots: Dots
    vanilla: str | None
    gains: list[float]
    gain: str
    gain_dots: Dots | None
    rises: str
    cost: Cost


class ClassGain(NamedTuple):
    """Per-class gain of a network of a recipe."""

    recipe: str
    network: str
    vanilla: str
    figure: Figure
    rows: list[tuple[str, int, float, float, float]]
    left_out: int


def write_report(
    recipes: Sequence[Recipe], predictions: Mapping[Path, RunPredictions], out: Path
) -> None:
    """Write the page: one HTML file that opens without network.

    Args:
        recipes: Of :func:`kd_mm.analysis.comparison.read_recipes`.
        predictions: Predictions of runs by work dir; none for runs without.
        out: Path of the page; its folder is made.
    """
    results = _results(recipes)
    context = {
        'created': datetime.datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z'),
        'version': kd_mm.__version__,
        'recipes': recipes,
        'notes': _notes(recipes),
        'costs': costs(recipes),
        'results': results,
        'best': _best(results),
        'curves': _learning_curves(recipes),
        'losses': _logged(recipes, 'loss'),
        'monitors': _logged(recipes, MONITOR),
        'calibration': _calibration(recipes, predictions),
        'classes': _class_gains(recipes, predictions),
        'missing': _missing(recipes, predictions),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {'svg': lambda figure: Markup(figure.svg), 'number': _number}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(environment.get_template(TEMPLATE).render(context), encoding='utf-8')


def _number(value: float | None, digits: int = 1) -> str:
    """Write a number with thousands apart; nothing for None.

    Examples:
        >>> _number(1234.56), _number(None), _number(7, 0)
        ('1,234.6', '-', '7')
    """
    return '-' if value is None else f'{value:,.{digits}f}'


def _results(recipes: Sequence[Recipe]) -> list[Result]:
    """Return the lines of the first table."""
    vanilla = {recipe.name: recipe.vanilla for recipe in recipes}
    cost = costs(recipes)
    all_lines = lines(recipes)
    plain = {line.recipe: line for line in all_lines if line.network == SINGLE}
    gains = [
        _gain(line, plain.get(vanilla[line.recipe].get(line.network, ''))) for line in all_lines
    ]
    scale = [value for line in all_lines for value in line.top1.values()]
    gain_scale = [0.0, *(value for gain in gains for value in gain)]
    results = []
    for line, gain in zip(all_lines, gains, strict=True):
        top1 = list(line.top1.values())
        paired = bool(gain and line.gain)
        results.append(
            Result(
                line,
                mean_sd(top1),
                _dots(top1, scale),
                vanilla[line.recipe].get(line.network) if gain else None,
                gain,
                mean_sd(gain, sign=True) if gain else '',
                _dots(gain, gain_scale) if gain else None,
                f'{sum(g > 0 for g in gain)} of {len(gain)}' if paired else '',
                cost[line.recipe],
            )
        )
    return results


def _gain(line: Line, base: Line | None) -> list[float]:
    """Return the gain of each seed, or of the means where no seed is in common."""
    if base is None:
        return []
    if line.gain:
        return list(line.gain.values())
    return [statistics.mean(line.top1.values()) - statistics.mean(base.top1.values())]


def _dots(values: Sequence[float], scale: Sequence[float]) -> Dots:
    low, high = min(scale), max(scale)

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2) if high > low else 50.0

    mean = place(statistics.mean(values))
    return Dots([place(v) for v in values], mean, place(0.0) if low <= 0 <= high else None)


def _best(results: Sequence[Result]) -> Result | None:
    """Return the largest mean gain."""
    gained = [result for result in results if result.gains]
    return max(gained, key=lambda result: statistics.mean(result.gains), default=None)


def _notes(recipes: Sequence[Recipe]) -> list[str]:
    """Return what a reader must know of these runs."""
    notes = []
    for recipe in recipes:
        for run in recipe.runs.values():
            done, whole, unit = run.length
            if done < whole:
                notes.append(f'{run.work_dir} has gone {done} of {whole} {unit}.')
            if not run.val:
                notes.append(f'{run.work_dir} has not been validated: it has no accuracy.')
    lengths = {next(iter(recipe.runs.values())).length[1:] for recipe in recipes}
    if len(lengths) > 1:
        notes.append(
            'Recipes differ in length: '
            + ', '.join(f'{whole} {unit}' for whole, unit in sorted(lengths))
            + '. A gain holds for one length only.'
        )
    counts = {len(recipe.runs) for recipe in recipes}
    if min(counts) < 3:
        notes.append(
            'With fewer than three seeds the spread says little: train more before you decide.'
        )
    if not any(recipe.vanilla for recipe in recipes):
        notes.append(
            'There are no gains: no recipe here is the vanilla one of another. Train it too (its '
            'name begins with vanilla_), or name it with --vanilla.'
        )
    return notes


def _looks(recipes: Sequence[Recipe]) -> dict[str, Look]:
    """Return one look for each network name of the page."""
    names = dict.fromkeys(name for recipe in recipes for name in recipe.networks)
    return {name: look_of(index) for index, name in enumerate(names)}


def _learning_curves(recipes: Sequence[Recipe]) -> list[Figure]:
    """Return a figure per recipe, all with one range of y."""
    looks, by_name = _looks(recipes), {recipe.name: recipe for recipe in recipes}
    drawn = {
        recipe.name: [
            _curve(recipe, network, network, looks[network]) for network in recipe.networks
        ]
        for recipe in recipes
    }
    values = [value for curves in drawn.values() for c in curves for value in (*c.low, *c.high)]
    if not values:
        return []
    margin = 0.03 * (max(values) - min(values)) or 1.0
    ylim = min(values) - margin, max(values) + margin
    found = []
    for recipe in recipes:
        references = [
            _curve(by_name[name], SINGLE, name, Look(None, DASHES[1 + index % 3]))
            for index, name in enumerate(dict.fromkeys(recipe.vanilla.values()))
            if SINGLE in by_name[name].networks
        ]
        if curves := drawn[recipe.name]:
            unit = next(iter(recipe.runs.values())).length[2].removesuffix('s')
            found.append(
                figures.line_figure(
                    recipe.name, [*references, *curves], unit, 'top-1 accuracy in percent', ylim
                )
            )
    return found


def _curve(recipe: Recipe, network: str, label: str, look: Look) -> Curve:
    runs = [series(run.val, top1_key(network)) for run in recipe.runs.values()]
    return over_seeds(label, look, [run for run in runs if run])


def _logged(recipes: Sequence[Recipe], part: str) -> list[Figure]:
    """Return figures of the training log, per recipe; monitors by kind, too."""
    found = []
    for recipe in recipes:
        runs = [run.train for run in recipe.runs.values()]
        keys = dict.fromkeys(key for run in runs for key in keys_with(run, part))
        groups: dict[str, dict[str, str]] = {}
        for key in keys:
            if part == MONITOR:
                kind, _, label = key.removeprefix(MONITOR).partition('/')
                groups.setdefault(kind, {})[label or kind] = key
            elif not key.startswith(MONITOR):
                groups.setdefault('', {})[key] = key
        for kind, labels in groups.items():
            curves = [
                over_seeds(label, look_of(index), [s for run in runs if (s := series(run, key))])
                for index, (label, key) in enumerate(labels.items())
            ]
            title = f'{kind.replace("_", " ")}: {recipe.name}' if kind else recipe.name
            found.append(
                figures.line_figure(title, curves, 'iteration', kind.replace('_', ' ') or 'loss',
                                    log=part == 'loss')
            )  # fmt: skip
    return found


def _of_network(
    recipe: Recipe, predictions: Mapping[Path, RunPredictions], network: str
) -> list[Predictions]:
    """Return a network's predictions, one for each seed that has them."""
    kept = [predictions[r.work_dir] for r in recipe.runs.values() if r.work_dir in predictions]
    return [run.networks[network] for run in kept if network in run.networks]


def _calibration(
    recipes: Sequence[Recipe], predictions: Mapping[Path, RunPredictions]
) -> dict[str, list]:
    """Return the reliability diagrams and the lines of the table."""
    looks = _looks(recipes)
    found: dict[str, list] = {'figures': [], 'rows': []}
    for recipe in recipes:
        curves = []
        for network in recipe.networks:
            seeds = _of_network(recipe, predictions, network)
            if not seeds:
                continue
            measures = (
                [100 * float(seed.hits.mean()) for seed in seeds],
                [100 * float(seed.confidence.mean()) for seed in seeds],
                [100 * expected_calibration_error(seed) for seed in seeds],
            )
            likelihood = [negative_log_likelihood(seed) for seed in seeds]
            found['rows'].append(
                (recipe.name, network, len(seeds), *map(mean_sd, measures),
                 mean_sd(likelihood, digits=3))
            )  # fmt: skip
            curves.append((network, looks[network], *_pooled(seeds)))
        if curves:
            found['figures'].append(figures.reliability_figure(recipe.name, curves))
    return found


def _pooled(seeds: Sequence[Predictions]) -> Reliability:
    """Return the diagram of all seeds together."""
    return reliability(
        Predictions(*(np.concatenate(column) for column in zip(*seeds, strict=True)))
    )


def _class_gains(
    recipes: Sequence[Recipe], predictions: Mapping[Path, RunPredictions]
) -> list[ClassGain]:
    """Return the gain of each class, for each network with a vanilla recipe."""
    by_name = {recipe.name: recipe for recipe in recipes}
    found = []
    for recipe in recipes:
        for network, plain in recipe.vanilla.items():
            own = _of_network(recipe, predictions, network)
            base = _of_network(by_name[plain], predictions, SINGLE)
            if not own or not base:
                continue
            run = next(r for r in recipe.runs.values() if r.work_dir in predictions)
            classes = predictions[run.work_dir].classes
            before, after = (
                100 * np.mean([per_class_accuracy(s, len(classes)) for s in seeds], axis=0)
                for seeds in (base, own)
            )
            gain = after - before
            order = [k for k in np.argsort(-gain, kind='stable') if not np.isnan(gain[k])]
            count = np.bincount(own[0].labels, minlength=len(classes))
            rows = [(classes[k], int(count[k]), before[k], after[k], gain[k]) for k in order]
            long = len(rows) > 2 * LISTED
            title = recipe.name if network == SINGLE else f'{network} in {recipe.name}'
            figure = figures.gain_figure(title, [classes[k] for k in order], gain[order])
            shown = rows[:LISTED] + rows[-LISTED:] if long else rows
            found.append(
                ClassGain(recipe.name, network, plain, figure, shown, len(rows) - len(shown))
            )
    return found


def _missing(recipes: Sequence[Recipe], predictions: Mapping[Path, RunPredictions]) -> list[Path]:
    """Return the runs without predictions."""
    return [
        run.work_dir
        for recipe in recipes
        for run in recipe.runs.values()
        if run.work_dir not in predictions
    ]
