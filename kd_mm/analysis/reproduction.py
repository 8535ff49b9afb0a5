"""Train the rows of a table of ``configs/tables.yml`` with several seeds and write the results.

Each run is one process of ``tools/train.py``. Its config is written next to its work dir.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any, NamedTuple

import pandas as pd
import torch
import yaml
from mmengine.config import Config
from scipy import stats

import kd_mm
from kd_mm.checkpoint import load_checkpoint
from kd_mm.config import read_config
from kd_mm.datasets.labels import index_labels
from kd_mm.methods.base import RESERVED_ROWS
from kd_mm.registry import DATASETS
from kd_mm.resume.find import find_checkpoint

from .run_log import LEFT_OUT, SINGLE, read_log, top1_curves

RESULT = 'result.json'
LOG = 'train.log'
# How the note on the length of the runs begins.
SHORTENED, WHOLE = '**The schedule was shortened**', 'The whole schedule'


class Row(NamedTuple):
    """A recipe of a table.

    Attributes:
        name: Its name in the table; by default that of its config.
        config: Path of its config.
        options: What it changes there, with keys as of ``--cfg-options``.
        published: Published top-1 accuracy in percent, by network.
        vanilla: Name of the recipe without distillation, for all networks or by network.
    """

    name: str
    config: Path
    options: dict[str, Any]
    published: dict[str, float]
    vanilla: str | dict[str, str]


class Settings(NamedTuple):
    """Number of epochs and of training images, and folder of the data; None: the recipe's own."""

    epochs: int | None = None
    subset: int | None = None
    data: str | None = None


def load_tables(configs: Path) -> dict[str, list[Row]]:
    """Read all tables, with the published numbers of the metafiles.

    Args:
        configs: The folder with the configs and ``tables.yml``, whose head describes a row.

    Raises:
        ValueError: If a row names no config.
    """
    metadata = {
        model['Name']: model['Metadata']
        for path in configs.glob('*/metafile.yml')
        for model in yaml.safe_load(path.read_text())['Models']
    }
    paths = {path.stem: path for path in configs.glob('*/*.py')}
    tables = yaml.safe_load((configs / 'tables.yml').read_text())
    return {
        table: [_read_row(row, paths, metadata) for row in rows] for table, rows in tables.items()
    }


def _read_row(row: str | dict, paths: Mapping[str, Path], metadata: Mapping[str, dict]) -> Row:
    """Read a row: the name of a config, or a dict with it."""
    row = {'config': row} if isinstance(row, str) else row
    config = Path(row['config']).stem
    name = row.get('name', config)
    if config not in paths:
        raise ValueError(f'a row of tables.yml must name a config, but there is no {config}.py')
    known = metadata.get(name, {})
    published = row.get('published', known.get('Published Top 1 Accuracy'))
    if published is None and 'Published Top 1 Error' in known:
        published = round(100 - known['Published Top 1 Error'], 4)
    published = published if isinstance(published, dict) else {SINGLE: published}
    published = {network: top1 for network, top1 in published.items() if top1 is not None}
    return Row(name, paths[config], row.get('options', {}), published, row.get('vanilla', {}))


def load_table(name: str, configs: Path) -> list[Row]:
    """Return one table of :func:`load_tables`; raise ValueError if there is none of that name."""
    tables = load_tables(configs)
    if name not in tables:
        raise ValueError(f'the table must be one of {", ".join(tables)}, but got {name!r}')
    return tables[name]


def vanilla_recipes(configs: Path) -> dict[str, str | dict[str, str]]:
    """Return the vanilla recipe of each row of all tables; see :class:`Row`."""
    return {row.name: row.vanilla for rows in load_tables(configs).values() for row in rows}


def _typed_dicts(node: Any) -> Iterator[dict]:
    """Yield a config's dicts with a type, from the outside in."""
    if isinstance(node, Mapping) and 'type' in node:
        yield node
    if isinstance(node, (Mapping, list, tuple)):
        for part in node.values() if isinstance(node, Mapping) else node:
            yield from _typed_dicts(part)


def _shorten(scheduler: dict, factor: float) -> None:
    """Scale a scheduler that counts epochs, in place; a phase keeps at least one epoch."""
    if not scheduler.get('by_epoch', True):
        return
    for key in ('begin', 'end', 'T_max', 'step_size'):
        if isinstance(scheduler.get(key), int):
            scheduler[key] = max(int(key != 'begin'), round(scheduler[key] * factor))
    if isinstance(scheduler.get('end'), int):
        scheduler['end'] = max(scheduler['end'], scheduler.get('begin', 0) + 1)
    if 'milestones' in scheduler:
        scheduler['milestones'] = [max(1, round(at * factor)) for at in scheduler['milestones']]


def _take_subset(dataset: dict, count: int) -> None:
    """Train on the first images only, in place; held-out images shrink in proportion."""
    wrappers = []
    while 'dataset' in dataset:
        wrappers.append(dataset)
        dataset = dataset['dataset']
    labels = index_labels(DATASETS.build(dataset)).labels
    if count > len(labels):
        raise ValueError(f'--subset must lie in 1..{len(labels)}, but got {count}')
    classes, held = len(set(labels.tolist())), len(set(labels[:count].tolist()))
    if held < classes:
        raise ValueError(
            f'the first images must hold every class, but the first {count} hold {held} of '
            f'{classes}; use a larger --subset, or none where a data set lies sorted by class'
        )
    dataset['indices'] = count
    for wrapper in wrappers:
        if 'num_per_class' in wrapper:
            held_out = round(wrapper['num_per_class'] * count / len(labels))
            wrapper['num_per_class'] = max(1, held_out)


def run_config(row: Row, seed: int, settings: Settings) -> Config:
    """Return the config of one run.

    With the length, schedules by epoch shrink; those by iteration and ramps of loss weights stay.

    Raises:
        ValueError: If the subset is larger than the data set, or lacks a class.
    """
    cfg = read_config(row.config, row.options)
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for dataset in _typed_dicts(cfg[loader].dataset):
            if settings.data is not None and 'data_root' in dataset:
                dataset['data_root'] = settings.data
    if settings.epochs is not None:
        for scheduler in _typed_dicts(cfg.get('param_scheduler')):
            _shorten(scheduler, settings.epochs / cfg.train_cfg.max_epochs)
        cfg.train_cfg.max_epochs = settings.epochs
    if settings.subset is not None:
        _take_subset(cfg.train_dataloader.dataset, settings.subset)
    return cfg


class Run:
    """One row with one seed, in the folder ``<name>/seed<seed>`` of ``root``.

    Raises:
        ValueError: If a run with other settings lies there.
    """

    def __init__(self, row: Row, seed: int, settings: Settings, root: Path) -> None:
        self.row, self.seed = row, seed
        self.work_dir = root / row.name / f'seed{seed}'
        self.config = self.work_dir.with_suffix('.py')
        cfg = run_config(row, seed, settings)
        self.max_epochs, self.text = cfg.train_cfg.max_epochs, cfg.pretty_text
        begun = self.result is not None or any(self.work_dir.glob('*.pth'))
        if begun and self.config.exists() and self.config.read_text() != self.text:
            raise ValueError(
                f'{self.work_dir} holds a run with other settings, which must not be mixed with '
                'this one; choose another --work-dir, or remove it'
            )

    @property
    def result(self) -> dict | None:
        """What the run reached; None until it is done."""
        path = self.work_dir / RESULT
        return json.loads(path.read_text()) if path.exists() else None

    def train(self, command: Sequence[str], env: Mapping[str, str], stop: Event) -> bool:
        """Train or resume, and write the result; ``stop`` ends it. Return whether it is done."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        self.config.write_text(self.text)
        resumed = find_checkpoint(self.work_dir)[0] is not None
        command = [*command, str(self.config), '--work-dir', str(self.work_dir)]
        start = time.monotonic()
        with (self.work_dir / LOG).open('a') as log:
            process = subprocess.Popen(
                command + ['--resume'] * resumed,
                env={**os.environ, **env},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            while process.poll() is None:
                if stop.wait(0.1):
                    process.terminate()
                    process.wait()
        if process.returncode == 0:
            self._write_result(None if resumed else round(time.monotonic() - start, 1))
        return process.returncode == 0

    def _write_result(self, seconds: float | None) -> None:
        """Write what the run reached; a resumed one has no ``seconds``."""
        train, val = read_log(self.work_dir)
        result = {
            'config': self.row.name,
            'seed': self.seed,
            'epochs': self.max_epochs,
            'steps': load_checkpoint(find_checkpoint(self.work_dir)[0])['meta']['iter'],
            'top1': top1_curves(val),
            'seconds': seconds,
            'peak_gpu_mib': max((entry.get('memory', 0) for entry in train), default=0),
        }
        part = self.work_dir / f'{RESULT}.part'
        part.write_text(json.dumps(result))
        part.replace(self.work_dir / RESULT)


def train_all(
    runs: Sequence[Run], command: Sequence[str], jobs: int, report: Callable[[Run], None]
) -> list[Run]:
    """Train what is not done yet.

    Args:
        runs: All runs; those with a result are left alone.
        command: The training tool.
        jobs: Number of processes at a time, >= 1. They share the cores and the GPUs.
        report: Called with each run that has ended.

    Returns:
        The runs that failed; their output is in ``train.log`` of their work dirs.
    """
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    devices = visible.split(',') if visible else list(map(str, range(torch.cuda.device_count())))
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    slots, stop = SimpleQueue(), Event()
    for slot in range(jobs):
        env = {'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', threads)}
        if jobs > 1 and len(devices) > 1:
            env['CUDA_VISIBLE_DEVICES'] = devices[slot % len(devices)]
        slots.put(env)

    def train(run: Run) -> bool:
        env = slots.get()
        try:
            return run.train(command, env, stop)
        finally:
            slots.put(env)

    failed = []
    with ThreadPoolExecutor(jobs) as pool:
        started = {pool.submit(train, run): run for run in runs if run.result is None}
        try:
            for future in as_completed(started):
                failed += [] if future.result() else [started[future]]
                report(started[future])
        except BaseException:  # Ctrl-C, too; the pool waits for the processes
            pool.shutdown(wait=False, cancel_futures=True)
            stop.set()
            raise
    return failed


def summarise(
    results: Sequence[dict], vanilla: Mapping[str, str | Mapping[str, str]]
) -> list[dict]:
    """Return a line for each recipe and network, over seeds.

    Args:
        results: Results of runs.
        vanilla: Name of the vanilla recipe of each recipe, for all networks or by network.

    Returns:
        Lines in the order of ``vanilla``: ``recipe``, ``network``, ``top1`` in percent after the
        last epoch and ``gain`` in points over the vanilla recipe's by seed (``gain`` None where
        no seed is in common), ``steps``, median ``seconds``, largest ``peak_mib`` of the GPU.
    """
    last: dict[tuple[str, str], dict[int, float]] = {}
    for result in sorted(results, key=lambda result: result['seed']):
        for network, curve in result['top1'].items():
            last.setdefault((result['config'], network), {})[result['seed']] = curve[-1]
    lines = []
    for (recipe, network), top1 in last.items():
        plain = vanilla[recipe]
        if isinstance(plain, str):
            plain = {} if network in RESERVED_ROWS else {network: plain}
        base = last.get((plain.get(network), SINGLE), {})
        own = [result for result in results if result['config'] == recipe]
        seconds = [result['seconds'] for result in own if result['seconds'] is not None]
        line = {
            'recipe': recipe,
            'network': network,
            'published': None,
            'top1': top1,
            'gain': {seed: top1[seed] - base[seed] for seed in top1 if seed in base} or None,
            'steps': own[-1]['steps'],
            'seconds': round(statistics.median(seconds), 1) if seconds else None,
            'peak_mib': max(result['peak_gpu_mib'] for result in own),
        }
        lines += [line] if network not in LEFT_OUT else []
    return sorted(lines, key=lambda line: list(vanilla).index(line['recipe']))


def published_for(network: str, published: Mapping[str, float]) -> float | None:
    """Return the published number of a network in a row's numbers by network.

    ``students`` is the number of each student. A single number is the leader's, if there is one.

    Examples:
        >>> published_for('student2', {'students': 72.0}), published_for('leader', {'network': 74})
        (72.0, 74)
    """
    if network.startswith('student'):
        return published.get(network, published.get('students'))
    return published.get(network, published.get(SINGLE) if network == 'leader' else None)


def mean_sd(values: Sequence[float], sign: bool = False, digits: int = 2) -> str:
    """Return ``mean ± SD``; one value has no SD, and none has an empty text.

    Examples:
        >>> mean_sd([1.0, 3.0]), mean_sd([2.0], sign=True, digits=1)
        ('2.00 ± 1.41', '+2.0')
    """
    if not values:
        return ''
    mean = f'{statistics.mean(values):{"+" if sign else ""}.{digits}f}'
    return f'{mean} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else mean


def confidence_interval(values: Sequence[float]) -> str:
    """Return the 95 % confidence interval of the mean by Student's t; fewer than two have none.

    Examples:
        >>> confidence_interval([1.0, 2.0, 3.0])
        '-0.48 to +4.48'
    """
    if len(values) < 2:
        return ''
    mean, half = statistics.mean(values), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f'{mean - half:+.2f} to {mean + half:+.2f}'


def to_table(lines: Sequence[dict]) -> pd.DataFrame:
    """Return a row of text for each line of :func:`summarise`."""
    frame = pd.DataFrame(lines)
    top1, gain = (
        frame[key].map(lambda by_seed: [*(by_seed or {}).values()]) for key in ('top1', 'gain')
    )
    return frame[['recipe', 'network']].assign(
        **{
            'published': frame.published.map('{:.2f}'.format, na_action='ignore'),
            'measured': top1.map(mean_sd),
            'gain': gain.map(lambda values: mean_sd(values, sign=True)),
            '95 % interval': gain.map(confidence_interval),
            'seeds': top1.map(len),
            'steps': frame.steps.map('{:,}'.format),
            's per run': frame.seconds.map('{:.0f}'.format, na_action='ignore'),
            'GPU MiB': frame.peak_mib.map(lambda mib: mib or None),
        }
    )


def notes(settings: Settings, runs: Sequence[Run], jobs: int, command: str) -> list[str]:
    """Return what a reader of the table must know about how it was made."""
    shortened = []
    configs = {run.row.config for run in runs}
    full = sorted({Config.fromfile(path).train_cfg.max_epochs for path in configs})
    if settings.epochs is not None and full != [settings.epochs]:
        unit = 'epoch' if settings.epochs == 1 else 'epochs'
        shortened.append(f'{settings.epochs} {unit} in place of {" or ".join(map(str, full))}')
    if settings.subset is not None:
        shortened.append(f'the first {settings.subset:,} training images only')
    length = f'{WHOLE} of each recipe.'
    if shortened:
        length = (
            f'{SHORTENED}: {"; ".join(shortened)}. Published numbers are for the whole schedule '
            'and cannot be compared.'
        )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return [
        'Top-1 accuracy in percent on the validation images after the last epoch, mean ± standard '
        'deviation over seeds. Gains over the vanilla recipe are taken seed by seed, with the '
        "95 % confidence interval of their mean (Student's t). A recipe with more steps in as "
        "many epochs reads more images: BAKE's anchors bring others along.",
        length,
        f'{sum(run.result is not None for run in runs)} of {len(runs)} runs are done.',
        f'{jobs} at a time on {os.cpu_count()} cores, {device}; torch {torch.__version__}, kd_mm '
        f'{kd_mm.__version__}.',
        f'`{command}`',
    ]


def write_table(
    out: Path, name: str, rows: Sequence[Row], results: Sequence[dict], notes: Sequence[str]
) -> list[Path]:
    """Write ``<name>.md``, ``<name>.csv`` and ``<name>.json`` into a folder, and return the paths.

    The CSV has one column per seed. The JSON holds each run's curves.
    """
    lines = summarise(results, {row.name: row.vanilla for row in rows})
    published = {row.name: row.published for row in rows}
    for line in lines:
        line['published'] = published_for(line['network'], published[line['recipe']])
    table = to_table(lines)
    text = (
        table.astype(object)
        .where(table.notna(), '')
        .to_markdown(index=False, disable_numparse=True, colalign=['left'] * 2 + ['right'] * 8)
    )
    head = '\n'.join([f'# {name}', '', *(f'- {note}' for note in notes)])
    by_seed = pd.json_normalize([line['top1'] for line in lines]).add_prefix('seed')
    content = {'table': name, 'notes': list(notes), 'lines': lines, 'runs': list(results)}
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f'{name}.{ending}' for ending in ('md', 'csv', 'json')]
    paths[0].write_text(f'{head}\n\n{text}\n')
    table.join(by_seed).to_csv(paths[1], index=False, float_format='%.4f')
    paths[2].write_text(json.dumps(content, indent=1) + '\n')
    return paths
