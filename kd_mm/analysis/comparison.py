"""Finished or running trainings side by side: recipes over seeds, their gains and their cost."""

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from kd_mm.models.distiller import as_distiller
from kd_mm.models.networks import student_cfg

from .reproduction import LEFT_OUT, OF_NO_STUDENT, RESULT, Line, Row, summarise
from .run_log import SINGLE, find_runs, has_trained, read_log, series, top1_curves

VANILLA = 'vanilla_'  # how the names of the configs in configs/vanilla begin
# What a dumped config holds of the run and not of the recipe.
OF_THE_RUN = ('work_dir', 'resume', 'load_from', 'launcher', 'experiment_name', 'randomness.seed')
# What a backbone's config holds that is not the network.
OF_NO_NETWORK = ('out_indices', 'init_cfg', '_scope_')
DATA = ('type', 'data_root', 'ann_file', 'data_prefix', 'split')


class RecordedRun(NamedTuple):
    """What a training left in its work dir.

    Attributes:
        work_dir: The folder.
        name: Base name of its config.
        cfg: The config as it was dumped.
        train: Training entries of its log.
        val: Validation entries of its log.
        noted: What ``tools/reproduce.py`` noted at its end; empty without it.
    """

    work_dir: Path
    name: str
    cfg: Config
    train: list[dict]
    val: list[dict]
    noted: dict

    @property
    def seed(self) -> int | None:
        """Seed of the run; None if it was left to chance."""
        return (self.cfg.get('randomness') or {}).get('seed')

    @property
    def networks(self) -> list[str]:
        """Names of the networks with a curve, without summaries of them."""
        return [name for name in top1_curves(self.val) if name not in LEFT_OUT]

    @property
    def steps(self) -> int:
        """Iterations of the run so far, as far as the log tells."""
        logged = max((entry['iter'] for entry in self.train), default=0)
        return self.noted.get('steps', logged)

    @property
    def length(self) -> tuple[int, int, str]:
        """How far the run is, how far it will go, and the unit of both."""
        cfg = self.cfg.train_cfg
        if 'max_epochs' in cfg:
            done = max((entry.get('epoch', 0) for entry in self.train), default=0)
            # A log entry is of an epoch that goes on; a validation ends it.
            validated = max((entry['step'] for entry in self.val), default=done)
            return min(done, validated), cfg.max_epochs, 'epochs'
        return self.steps, cfg.max_iters, 'iterations'


class Recipe(NamedTuple):
    """Runs of one config, one for each seed.

    Attributes:
        name: Base name of the config; where configs of one name differ, how they do is added.
        runs: The runs by seed. A seed left to chance has a negative number of its own.
        vanilla: The recipe without distillation that a network is compared with, by network.
    """

    name: str
    runs: dict[int, RecordedRun]
    vanilla: dict[str, str]

    @property
    def networks(self) -> list[str]:
        """Names of the networks, in the order of the log."""
        return list(dict.fromkeys(n for run in self.runs.values() for n in run.networks))


class Cost(NamedTuple):
    """What a recipe costs; medians over its runs, None where the log does not tell.

    Attributes:
        step_ms: Milliseconds of a step, waiting for data included.
        data_ms: Milliseconds of it spent waiting for data.
        steps: Iterations of a run.
        train_s: Seconds of all steps of a run.
        run_s: Seconds of a whole process with start and validation, as measured.
        gpu_mib: Largest peak memory of the GPU.
        host_mib: Largest peak memory of the process.
        times_vanilla: ``train_s`` over that of the vanilla recipes of its networks together.
    """

    step_ms: float | None
    data_ms: float | None
    steps: int
    train_s: float | None
    run_s: float | None
    gpu_mib: int | None
    host_mib: int | None
    times_vanilla: float | None


def read_run(work_dir: Path) -> RecordedRun:
    """Read what a training left.

    Args:
        work_dir: Its work dir.

    Returns:
        The run.

    Raises:
        ValueError: If the config that MMEngine dumps next to the log is missing.
    """
    dumped = sorted(work_dir.glob('*/vis_data/config.py'))
    # A test in the work dir dumps its own.
    dumped = [path for path in dumped if has_trained(path.with_name('scalars.json'))] or dumped
    if not dumped:
        raise ValueError(
            f'a run must have its config beside its log, */vis_data/config.py, but {work_dir} has '
            'none; keep the files that MMEngine writes together'
        )
    note = work_dir / RESULT
    noted = json.loads(note.read_text()) if note.exists() else {}
    name = noted.get('config')
    if name is None:
        named = [path.stem for path in sorted(work_dir.glob('*.py'))]
        name = named[0] if named else work_dir.name
        name = work_dir.parent.name if re.fullmatch(r'seed\d+', name) else name
    return RecordedRun(work_dir, name, Config.fromfile(dumped[-1]), *read_log(work_dir), noted)


def read_recipes(
    paths: Sequence[str | Path],
    vanilla: Sequence[str] = (),
    known: Mapping[str, str | Mapping[str, str]] | None = None,
) -> list[Recipe]:
    """Read runs and sort them by recipe.

    A network is compared with the recipe that ``known`` names for it, else with the vanilla recipe
    of the same backbone and validation data.

    Args:
        paths: Work dirs, or folders of them at any depth.
        vanilla: Names of the recipes without distillation; a single one serves every network.
            Default: those whose names begin with ``vanilla_``, as in ``configs/vanilla``.
        known: The vanilla recipe of published recipes: one name for all networks, or by network.

    Returns:
        The recipes in the order in which they are found, vanilla ones first.

    Raises:
        FileNotFoundError: If a folder does not exist.
        ValueError: If there is no run, two runs of one recipe have one seed, ``vanilla`` names
            none of the recipes, or several vanilla recipes fit a network.
    """
    groups: dict[tuple, dict[int, RecordedRun]] = {}
    for index, run in enumerate(map(read_run, find_runs(paths))):
        settings = frozenset(
            (key, repr(value))
            for key, value in flatten(run.cfg.to_dict())
            if key not in OF_THE_RUN
        )
        runs = groups.setdefault((run.name, settings), {})
        # A number of its own for a seed left to chance: no gain is taken seed by seed.
        seed = -1 - index if run.seed is None else run.seed
        if seed in runs:
            raise ValueError(
                f'runs of {run.name} must have different seeds, but {runs[seed].work_dir} and '
                f'{run.work_dir} both have {seed}; give one of them'
            )
        runs[seed] = run
    names = _names(list(groups))
    recipes = [
        Recipe(name, dict(sorted(runs.items())), {})
        for name, runs in zip(names, groups.values(), strict=True)
    ]
    unknown = set(vanilla) - set(names)
    if unknown:
        raise ValueError(
            f'--vanilla must name recipes that were trained, {", ".join(names)}, but got '
            f'{", ".join(sorted(unknown))}'
        )
    plain = [r for r in recipes if (r.name in vanilla if vanilla else is_vanilla(r.name))]
    taken = {recipe.name for recipe in plain}
    return plain + [
        recipe._replace(vanilla=_find_vanilla(recipe, plain, known or {}, len(vanilla) == 1))
        for recipe in recipes
        if recipe.name not in taken
    ]


def is_vanilla(name: str) -> bool:
    """Tell whether a config's name is one of ``configs/vanilla``."""
    return name.startswith(VANILLA)


def flatten(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested config with their dotted paths.

    Examples:
        >>> list(flatten({'a': {'b': 1}, 'c': [2, {'d': 3}]}))
        [('a.b', 1), ('c.0', 2), ('c.1.d', 3)]
    """
    if isinstance(node, Mapping):
        children = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        yield path, node
        return
    for key, child in children:
        yield from flatten(child, f'{path}.{key}' if path else str(key))


def _names(keys: Sequence[tuple[str, frozenset]]) -> list[str]:
    """Return one name for each (name, settings), saying what differs where names are alike."""
    names = []
    for name, settings in keys:
        alike = [other for other_name, other in keys if other_name == name]
        differing = settings - frozenset.intersection(*alike)
        listed = sorted(f'{key}={value}' for key, value in differing)
        if len(alike) == 1:
            names.append(name)
        elif 0 < len(listed) <= 3:
            names.append(f'{name} ({", ".join(listed)})')
        else:
            names.append(f'{name} (variant {alike.index(settings) + 1})')
    return names


def _find_vanilla(
    recipe: Recipe,
    plain: Sequence[Recipe],
    known: Mapping[str, str | Mapping[str, str]],
    serves_all: bool,
) -> dict[str, str]:
    """Return the vanilla recipe of each network that has one."""
    run = next(iter(recipe.runs.values()))
    noted = known.get(run.name, {})
    found = {}
    for network in recipe.networks:
        if network in OF_NO_STUDENT:
            continue
        name = noted if isinstance(noted, str) else noted.get(network)
        fitting = [other for other in plain if other.name == name]
        fitting = fitting or [o for o in plain if _same_network(run, network, o)]
        if serves_all:
            fitting = list(plain)
        if len(fitting) > 1:  # the same network on several schedules
            fitting = [o for o in fitting if _max(o) == _max(recipe)] or fitting
        if len(fitting) > 1:
            raise ValueError(
                f'one vanilla recipe must fit {network} of {recipe.name}, but '
                f'{" and ".join(o.name for o in fitting)} do; choose with --vanilla'
            )
        if fitting:
            found[network] = fitting[0].name
    return found


def _max(recipe: Recipe) -> tuple[int, str]:
    return next(iter(recipe.runs.values())).length[1:]


def _same_network(run: RecordedRun, network: str, other: Recipe) -> bool:
    """Tell whether a vanilla recipe trains the same backbone for the same validation images."""
    plain = next(iter(other.runs.values()))
    model, options = run.cfg.model, as_distiller(run.cfg.model)
    if options is not None:
        students = options.get('students') or {SINGLE: options['student']}
        model = student_cfg(students[network]) if network in students else {}
    own, others = ({**m.get('backbone', {})} for m in (model, plain.cfg.model))
    for backbone in (own, others):
        for key in OF_NO_NETWORK:
            backbone.pop(key, None)
        backbone['type'] = str(backbone.get('type')).removeprefix('mmpretrain.')
    return own == others and _data(run.cfg) == _data(plain.cfg)


def _data(cfg: Config) -> list:
    """Return what tells data sets apart."""
    loader = cfg.get('val_dataloader') or {}
    return [loader.get('dataset', {}).get(key) for key in DATA]


def lines(recipes: Sequence[Recipe]) -> list[Line]:
    """Return a line per recipe and network.

    See :func:`kd_mm.analysis.reproduction.summarise`.

    Args:
        recipes: Of :func:`read_recipes`; runs without a validation are left out.
    """
    rows = [Row(Path(f'{recipe.name}.py'), {}, recipe.vanilla) for recipe in recipes]
    results = [
        {
            'config': row.name,
            'seed': seed,
            'steps': run.steps,
            'top1': top1_curves(run.val),
            'seconds': run.noted.get('seconds'),
            'peak_host_mib': run.noted.get('peak_host_mib', 0),
            'peak_gpu_mib': peak_gpu(run) or 0,
        }
        for row, recipe in zip(rows, recipes, strict=True)
        for seed, run in recipe.runs.items()
        if run.val
    ]
    return summarise(rows, results)


def peak_gpu(run: RecordedRun) -> int | None:
    """Return the peak memory of the GPU in MiB; None where the log has none."""
    return max(series(run.train, 'memory').values(), default=None)


def costs(recipes: Sequence[Recipe]) -> dict[str, Cost]:
    """Return what each recipe costs, by its name.

    Args:
        recipes: Of :func:`read_recipes`.
    """
    found = {recipe.name: _cost(recipe) for recipe in recipes}
    for recipe in recipes:
        own = found[recipe.name].train_s
        plain = [found[name].train_s for name in recipe.vanilla.values()]
        students = [name for name in recipe.networks if name not in OF_NO_STUDENT]
        if own and plain and all(plain) and len(plain) == len(students):
            found[recipe.name] = found[recipe.name]._replace(times_vanilla=own / sum(plain))
    return found


def _cost(recipe: Recipe) -> Cost:
    runs = list(recipe.runs.values())
    step, data = (
        _median(_typical(series(run.train, key)) for run in runs if series(run.train, key))
        for key in ('time', 'data_time')
    )
    steps = max(run.steps for run in runs)
    return Cost(
        None if step is None else 1000 * step,
        None if data is None else 1000 * data,
        steps,
        None if step is None else steps * step,
        _median(run.noted['seconds'] for run in runs if run.noted.get('seconds')),
        max((peak for run in runs if (peak := peak_gpu(run))), default=None),
        max((run.noted.get('peak_host_mib', 0) for run in runs), default=0) or None,
        None,
    )


def _typical(values: Mapping[int, float]) -> float:
    """Return the median of a series but its first value, in which the run warms up."""
    first, *others = values.values()
    return statistics.median(others or [first])


def _median(values: Iterator[float]) -> float | None:
    values = list(values)
    return statistics.median(values) if values else None
