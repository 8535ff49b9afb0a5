"""Finished or running trainings side by side: recipes over seeds, their gains and their cost."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from mmengine.config import Config

from kd_mm.methods.base import RESERVED_ROWS
from kd_mm.models.distiller import as_distiller
from kd_mm.models.networks import student_cfg

from .reproduction import RESULT, summarise
from .run_log import LEFT_OUT, SINGLE, find_runs, has_trained, read_log, top1_curves

# What a dumped config holds of the run and not of the recipe.
OF_THE_RUN = ('work_dir', 'resume', 'load_from', 'launcher', 'experiment_name', 'randomness.seed')
# What a backbone's config holds that is not the network.
OF_NO_NETWORK = ('out_indices', 'init_cfg', '_scope_')
DATA = ('type', 'data_root', 'ann_file', 'data_prefix', 'split')


class RecordedRun(NamedTuple):
    """What a training left in its work dir: its dumped config and the entries of its log.

    ``name`` is that of its config, or of its row in ``tools/reproduce.py``, whose ``result`` is
    empty without that tool.
    """

    work_dir: Path
    name: str
    cfg: Config
    train: list[dict]
    val: list[dict]
    result: dict

    @property
    def steps(self) -> int:
        """Iterations of the run so far, as far as the log has them."""
        return self.result.get('steps', max((entry['iter'] for entry in self.train), default=0))

    @property
    def length(self) -> tuple[int, int, str]:
        """How far the run is, how far it will go, and the unit of both."""
        if 'max_epochs' not in self.cfg.train_cfg:
            return self.steps, self.cfg.train_cfg.max_iters, 'iterations'
        done = max((entry.get('epoch', 0) for entry in self.train), default=0)
        # A training entry is of an epoch that goes on; a validation ends it.
        validated = max((entry['step'] for entry in self.val), default=done)
        return min(done, validated), self.cfg.train_cfg.max_epochs, 'epochs'


class Recipe(NamedTuple):
    """Runs of one config by seed, and the vanilla recipe that each network is compared with.

    Configs of one name add to it how they differ. A random seed has a negative number of its own.
    """

    name: str
    runs: dict[int, RecordedRun]
    vanilla: dict[str, str]

    @property
    def networks(self) -> list[str]:
        """Names of the networks, in the order of the log."""
        names = {name: None for run in self.runs.values() for name in top1_curves(run.val)}
        return [name for name in names if name not in LEFT_OUT]

    @property
    def first(self) -> RecordedRun:
        """One of the runs, for what they have in common."""
        return next(iter(self.runs.values()))


def read_run(work_dir: Path) -> RecordedRun:
    """Read what a training left; raise ValueError if its dumped config is missing."""
    dumped = sorted(work_dir.glob('*/vis_data/config.py'))
    # A test in the work dir dumps its own.
    dumped = [path for path in dumped if has_trained(path.with_name('scalars.json'))] or dumped
    if not dumped:
        raise ValueError(
            'a run must have its config next to its log, */vis_data/config.py, but '
            f'{work_dir} has none; keep the files that MMEngine writes together'
        )
    result = work_dir / RESULT
    result = json.loads(result.read_text()) if result.exists() else {}
    name = next((path.stem for path in sorted(work_dir.glob('*.py'))), work_dir.name)
    name = work_dir.parent.name if re.fullmatch(r'seed\d+', name) else name
    cfg = Config.fromfile(dumped[-1])
    return RecordedRun(work_dir, result.get('config', name), cfg, *read_log(work_dir), result)


def read_recipes(
    paths: Sequence[str | Path],
    vanilla: Sequence[str] = (),
    known: Mapping[str, str | Mapping[str, str]] | None = None,
) -> list[Recipe]:
    """Read runs and group them by recipe.

    A network is compared with the recipe that ``known`` names for it. Otherwise it is compared
    with the vanilla recipe of the same backbone and validation data.

    Args:
        paths: Work dirs, or folders of them at any depth.
        vanilla: Names of the recipes without distillation; a single one serves every network.
            Default: those whose names begin with ``vanilla_``.
        known: The vanilla recipe of known recipes, for all networks or by network.

    Returns:
        The recipes, vanilla ones first.

    Raises:
        FileNotFoundError: If a folder does not exist.
        ValueError: If there is no run, two runs of one recipe have one seed, ``vanilla`` names
            an unknown recipe, or several vanilla recipes fit a network.
    """
    groups: dict[tuple, dict[int, RecordedRun]] = {}
    for index, run in enumerate(map(read_run, find_runs(paths))):
        (cfg,) = pd.json_normalize(run.cfg.to_dict()).to_dict('records')
        settings = frozenset((key, repr(cfg[key])) for key in cfg if key not in OF_THE_RUN)
        runs = groups.setdefault((run.name, settings), {})
        # A number of its own for a random seed: no gain is taken seed by seed.
        seed = (run.cfg.get('randomness') or {}).get('seed')
        seed = -1 - index if seed is None else seed
        if seed in runs:
            raise ValueError(
                f'runs of {run.name} must have different seeds, but {runs[seed].work_dir} and '
                f'{run.work_dir} both have {seed}; give one of them'
            )
        runs[seed] = run
    recipes = [
        Recipe(_name(*key, groups), dict(sorted(runs.items())), {}) for key, runs in groups.items()
    ]
    names = [recipe.name for recipe in recipes]
    unknown = set(vanilla) - set(names)
    if unknown:
        raise ValueError(
            f'--vanilla must name recipes that were trained, {", ".join(names)}, but got '
            f'{", ".join(sorted(unknown))}'
        )
    chosen = vanilla or [name for name in names if name.startswith('vanilla_')]
    plain = [recipe for recipe in recipes if recipe.name in chosen]
    return plain + [
        recipe._replace(vanilla=_find_vanilla(recipe, plain, known or {}, len(vanilla) == 1))
        for recipe in recipes
        if recipe.name not in chosen
    ]


def _name(name: str, settings: frozenset, groups: Mapping[tuple, dict]) -> str:
    """Return a recipe's name, with what differs in it from others of the same name."""
    alike = [other for other_name, other in groups if other_name == name]
    differing = sorted(
        f'{key}={value}' for key, value in settings - frozenset.intersection(*alike)
    )
    if len(alike) == 1:
        return name
    if 0 < len(differing) <= 3:
        return f'{name} ({", ".join(differing)})'
    return f'{name} (variant {alike.index(settings) + 1})'


def _find_vanilla(
    recipe: Recipe, plain: Sequence[Recipe], known: Mapping[str, str | dict], serves_all: bool
) -> dict[str, str]:
    """Return the vanilla recipe of each network that has one."""
    named = known.get(recipe.first.name, {})
    found = {}
    for network in recipe.networks:
        if network in RESERVED_ROWS:
            continue
        name = named if isinstance(named, str) else named.get(network)
        fitting = [other for other in plain if serves_all or other.name == name]
        fitting = fitting or [o for o in plain if _same_network(recipe.first, network, o.first)]
        if len(fitting) > 1:  # the same network on several schedules
            length = recipe.first.length[1:]
            fitting = [other for other in fitting if other.first.length[1:] == length] or fitting
        if len(fitting) > 1:
            raise ValueError(
                f'one vanilla recipe must fit {network} of {recipe.name}, but '
                f'{" and ".join(o.name for o in fitting)} do; choose with --vanilla'
            )
        if fitting:
            found[network] = fitting[0].name
    return found


def _same_network(run: RecordedRun, network: str, plain: RecordedRun) -> bool:
    """Return whether a vanilla run trains the same backbone for the same validation images."""
    model, options = run.cfg.model, as_distiller(run.cfg.model)
    if options is not None:
        students = options.get('students') or {SINGLE: options['student']}
        model = student_cfg(students[network]) if network in students else {}
    own, others = (dict(m.get('backbone', {})) for m in (model, plain.cfg.model))
    for backbone in (own, others):
        for key in OF_NO_NETWORK:
            backbone.pop(key, None)
        backbone['type'] = str(backbone.get('type')).removeprefix('mmpretrain.')
    data = [
        [(r.cfg.get('val_dataloader') or {}).get('dataset', {}).get(key) for key in DATA]
        for r in (run, plain)
    ]
    return own == others and data[0] == data[1]


def lines(recipes: Sequence[Recipe]) -> list[dict]:
    """Return a line per recipe and network; see :func:`kd_mm.analysis.reproduction.summarise`."""
    results = [
        {
            'config': recipe.name,
            'seed': seed,
            'steps': run.steps,
            'top1': top1_curves(run.val),
            'seconds': run.result.get('seconds'),
            'peak_gpu_mib': max((entry.get('memory', 0) for entry in run.train), default=0),
        }
        for recipe in recipes
        for seed, run in recipe.runs.items()
    ]
    return summarise(results, {recipe.name: recipe.vanilla for recipe in recipes})


def costs(recipes: Sequence[Recipe]) -> pd.DataFrame:
    """Return time and memory of each recipe, medians over runs; NaN where the log has none.

    The training time is that of all steps. It is compared with the sum of the vanilla recipes.
    """
    rows = []
    for recipe in recipes:
        logs = []
        for run in recipe.runs.values():
            log = pd.DataFrame(run.train, columns=['time', 'data_time', 'memory'])
            logs.append(log[log.index >= min(1, len(log) - 1)])  # without the slow first entry
        typical = pd.DataFrame([log.median() for log in logs]).median()
        steps = max(run.steps for run in recipe.runs.values())
        seconds = [run.result.get('seconds') for run in recipe.runs.values()]
        row = {
            'recipe': recipe.name,
            'ms per step': 1000 * typical['time'],
            'of it waiting for data': 1000 * typical['data_time'],
            'steps': steps,
            'training, s': steps * typical['time'],
            'whole run, s': pd.Series(seconds, dtype=float).median(),
            'GPU peak, MiB': pd.concat(logs)['memory'].max(),
        }
        rows.append(row)
    frame = pd.DataFrame(rows)
    training = frame.set_index('recipe')['training, s']
    complete = [len(r.vanilla) == len(set(r.networks).difference(RESERVED_ROWS)) for r in recipes]
    alone = pd.Series([training[[*r.vanilla.values()]].sum(skipna=False) for r in recipes])
    frame['training over vanilla'] = (frame['training, s'] / alone).where(complete)
    return frame
