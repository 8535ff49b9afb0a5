"""Train the rows of a published table with several seeds, and write what they reached.

Each run is one process of ``tools/train.py`` with a config that is dumped beside its work dir, so
that any of them can be looked at, repeated, or resumed by hand.
"""

import copy
import csv
import json
import os
import platform
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, NamedTuple

import torch
import yaml
from mmengine.config import Config

import kd_mm
from kd_mm.checkpoint import load_checkpoint
from kd_mm.datasets.labels import index_labels
from kd_mm.registry import DATASETS
from kd_mm.resume.find import find_checkpoint

from .run_log import SINGLE, read_log, top1_curves

RESULT = 'result.json'
LOG = 'train.log'
LEFT_OUT = ('mean', 'best')  # of what a cohort's metric reports
OF_NO_STUDENT = ('ensemble', 'fusion', 'any_right')
# How a written table begins to tell of the length of its runs.
SHORTENED, WHOLE = '**The schedule was shortened**', 'The whole schedule'


class Row(NamedTuple):
    """A recipe of a table.

    Attributes:
        config: Path of its config.
        published: Published top-1 accuracy in percent, by network.
        vanilla: The plain recipe to compare a network with: one name for all, or one for each.
    """

    config: Path
    published: dict[str, float]
    vanilla: str | dict[str, str]

    @property
    def name(self) -> str:
        """Base name of the config."""
        return self.config.stem


class Settings(NamedTuple):
    """How the rows are trained.

    Attributes:
        epochs: Length of a run; None: the recipe's own.
        subset: Number of training images; None: all.
        data: Folder of the data set; None: the recipe's own.
    """

    epochs: int | None = None
    subset: int | None = None
    data: str | None = None


def table_names(configs: Path) -> list[str]:
    """Return the names of the tables.

    Args:
        configs: The folder with ``tables.yml``.
    """
    return list(yaml.safe_load((configs / 'tables.yml').read_text()))


def vanilla_recipes(configs: Path) -> dict[str, str | dict[str, str]]:
    """Return the plain recipe of each recipe of all tables; see :class:`Row`.

    Args:
        configs: The folder with ``tables.yml``.
    """
    tables = yaml.safe_load((configs / 'tables.yml').read_text())
    return {row['config']: row.get('vanilla', {}) for rows in tables.values() for row in rows}


def load_table(name: str, configs: Path) -> list[Row]:
    """Read a table's rows and what was published for them.

    Args:
        name: A table of ``tables.yml``.
        configs: The folder with ``tables.yml`` and the folders of configs.

    Returns:
        The rows, in the order of the file.

    Raises:
        ValueError: If there is no such table.
    """
    tables = yaml.safe_load((configs / 'tables.yml').read_text())
    if name not in tables:
        raise ValueError(f'the table must be one of {", ".join(tables)}, but got {name!r}')
    models = {
        model['Name']: model
        for path in configs.glob('*/metafile.yml')
        for model in yaml.safe_load(path.read_text())['Models']
    }
    return [
        Row(
            configs.parent / models[row['config']]['Config'],
            _published(models[row['config']]['Metadata']),
            row.get('vanilla', {}),
        )
        for row in tables[name]
    ]


def _published(metadata: Mapping[str, Any]) -> dict[str, float]:
    """Return published accuracies by network; one number is under ``SINGLE``."""
    accuracy = metadata.get('Published Top 1 Accuracy')
    if isinstance(accuracy, Mapping):  # null: the paper does not tell
        return {network: top1 for network, top1 in accuracy.items() if top1 is not None}
    if accuracy is None and 'Published Top 1 Error' in metadata:
        accuracy = round(100 - metadata['Published Top 1 Error'], 4)
    return {} if accuracy is None else {SINGLE: accuracy}


def published_for(network: str, published: Mapping[str, float]) -> float | None:
    """Return what was published for a network of a row.

    One number of a cohort is its leader's, or that of each student where there is no leader; one
    for ``students`` is that of each ``student<i>``.

    Args:
        network: Name in the log.
        published: Published numbers of the row.

    Examples:
        >>> published_for('student2', {'students': 72.0, 'leader': 72.7})
        72.0
        >>> [published_for(name, {'network': 74.06}) for name in ('leader', 'fusion')]
        [74.06, None]
    """
    if network in published:
        return published[network]
    if network.startswith('student') and 'students' in published:
        return published['students']
    return published.get(SINGLE) if network == 'leader' else None


def _schedulers(node: Any) -> Iterator[dict]:
    """Yield the schedulers of a config's ``param_scheduler``, by part or not."""
    if isinstance(node, Mapping) and 'type' in node:
        yield node
    elif isinstance(node, Mapping):
        for part in node.values():
            yield from _schedulers(part)
    elif isinstance(node, (list, tuple)):
        for part in node:
            yield from _schedulers(part)


def _shorten_scheduler(scheduler: dict, factor: float) -> None:
    """Scale a scheduler that counts epochs, in place."""
    if not scheduler.get('by_epoch', True):
        return
    for key in ('begin', 'end', 'T_max', 'step_size'):
        if isinstance(scheduler.get(key), int):
            scheduler[key] = max(int(key != 'begin'), round(scheduler[key] * factor))
    if isinstance(scheduler.get('end'), int):  # a phase keeps an epoch at least
        scheduler['end'] = max(scheduler['end'], scheduler.get('begin', 0) + 1)
    if 'milestones' in scheduler:
        scheduler['milestones'] = [max(1, round(at * factor)) for at in scheduler['milestones']]


def _data_sets(node: Any) -> Iterator[dict]:
    """Yield a data set's config and those inside it."""
    if isinstance(node, Mapping):
        yield node
        for key in ('dataset', 'datasets'):
            yield from _data_sets(node.get(key))
    elif isinstance(node, (list, tuple)):
        for part in node:
            yield from _data_sets(part)


def _take_subset(dataset: dict, count: int) -> None:
    """Train on the first images only, in place; images held out shrink alike."""
    *wrappers, innermost = _data_sets(dataset)
    labels = index_labels(DATASETS.build(innermost)).labels
    if not 0 < count <= len(labels):
        raise ValueError(f'--subset must lie in 1..{len(labels)}, but got {count}')
    classes, held = len(set(labels.tolist())), len(set(labels[:count].tolist()))
    if held < classes:
        raise ValueError(
            f'the first images must hold every class, but the first {count} hold {held} of '
            f'{classes}; use a larger --subset, or none where a data set lies sorted by class'
        )
    innermost['indices'] = count
    for wrapper in wrappers:
        if 'num_per_class' in wrapper:
            wrapper['num_per_class'] = max(
                1, round(wrapper['num_per_class'] * count / len(labels))
            )


def run_config(config: Path, seed: int, settings: Settings) -> Config:
    """Return the config of one run.

    Args:
        config: The recipe.
        seed: Seed of the run.
        settings: Length, data and their folder. Schedules by epoch shrink with the length; what
            counts iterations, and ramps of loss weights, stay.

    Raises:
        ValueError: If the length or the subset is out of range.
    """
    cfg = copy.deepcopy(Config.fromfile(config))
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for dataset in _data_sets(cfg[loader].dataset):
            if settings.data is not None and 'data_root' in dataset:
                dataset['data_root'] = settings.data
    if settings.epochs is not None:
        if settings.epochs < 1:
            raise ValueError(f'--epochs must be at least 1, but got {settings.epochs}')
        factor = settings.epochs / cfg.train_cfg.max_epochs
        for scheduler in _schedulers(cfg.get('param_scheduler')):
            _shorten_scheduler(scheduler, factor)
        cfg.train_cfg.max_epochs = settings.epochs
    if settings.subset is not None:
        _take_subset(cfg.train_dataloader.dataset, settings.subset)
    return cfg


def is_done(row: Row, seed: int, root: Path) -> bool:
    """Tell whether a run of :class:`Run` has a result."""
    return (_folder(row, seed, root) / RESULT).exists()


def _folder(row: Row, seed: int, root: Path) -> Path:
    return root / row.name / f'seed{seed}'


class Run:
    """One row with one seed.

    Args:
        row: The recipe.
        seed: Seed of the run.
        settings: How it is trained.
        root: Folder of all runs; this one's is ``<name>/seed<seed>`` in it.

    Raises:
        ValueError: If a run with other settings lies there.
    """

    def __init__(self, row: Row, seed: int, settings: Settings, root: Path) -> None:
        self.row, self.seed = row, seed
        self.work_dir = _folder(row, seed, root)
        cfg = run_config(row.config, seed, settings)
        self.max_epochs = cfg.train_cfg.max_epochs
        self.text = cfg.pretty_text
        self._process: subprocess.Popen | None = None
        self._stopped = False
        self.config = self.work_dir.with_suffix('.py')
        self._check_settings()

    def _check_settings(self) -> None:
        """Raise ValueError if what lies in the work dir was trained with other settings."""
        begun = (self.work_dir / RESULT).exists() or any(self.work_dir.glob('*.pth'))
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

    @property
    def epochs_done(self) -> int:
        """Number of validated epochs."""
        if (self.work_dir / RESULT).exists():  # asked once per second: no log is read in vain
            return self.max_epochs
        return len(read_log(self.work_dir)[1])

    def train(self, command: Sequence[str], env: Mapping[str, str]) -> int:
        """Train, or go on with it, and write the result.

        Where another process trains this run, wait for its end first.

        Args:
            command: The training tool.
            env: Environment of the process.

        Returns:
            The exit code of the tool; 0 if there is a result already.

        Raises:
            ValueError: If another process has trained it with other settings.
        """
        self.work_dir.mkdir(parents=True, exist_ok=True)
        with (self.work_dir / LOG).open('a') as log:
            if not self._wait_for(log):
                return -signal.SIGTERM
            self._check_settings()  # of what another process has trained meanwhile
            if self.result is not None:
                return 0
            self.config.write_text(self.text)
            resumed = find_checkpoint(self.work_dir)[0] is not None
            command = [*command, str(self.config), '--work-dir', str(self.work_dir)]
            start = time.monotonic()
            self._process = process = subprocess.Popen(
                command + ['--resume'] * resumed,
                env={**os.environ, **env},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode == 0:
                # Seconds of a run in one go only.
                seconds = None if resumed else round(time.monotonic() - start, 1)
                self._note_result(seconds, round(usage.ru_maxrss / 1024))
        return process.returncode

    def _note_result(self, seconds: float | None, peak_host_mib: int) -> None:
        train, val = read_log(self.work_dir)
        result = {
            'config': self.row.name,
            'seed': self.seed,
            'epochs': self.max_epochs,
            'steps': _last_step(self.work_dir),
            'top1': top1_curves(val),
            'seconds': seconds,
            'peak_host_mib': peak_host_mib,
            'peak_gpu_mib': max((entry.get('memory', 0) for entry in train), default=0),
        }
        path = self.work_dir / RESULT
        path.with_suffix('.part').write_text(json.dumps(result))
        path.with_suffix('.part').replace(path)

    def _wait_for(self, log: IO) -> bool:
        """Lock the run's log; False if it was stopped before it had the lock.

        The training process inherits the lock: it holds as long as either lives.
        """
        import fcntl  # Unix only, as os.wait4

        while not self._stopped:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                time.sleep(0.5)
        return False

    def stop(self) -> None:
        """Ask the process to end, once, if it runs; its checkpoints stay."""
        self._stopped = True
        process, self._process = self._process, None
        if process is not None:
            process.terminate()


def _last_step(work_dir: Path) -> int:
    """Return the number of iterations behind the last checkpoint."""
    return load_checkpoint(find_checkpoint(work_dir)[0])['meta']['iter']


def train_all(
    runs: Sequence[Run],
    command: Sequence[str],
    jobs: int,
    watch: Callable[[Sequence[Run]], None],
    interval: float = 1.0,
) -> list[Run]:
    """Train what is not done yet, several runs at a time.

    Args:
        runs: All runs; those with a result are left alone.
        command: The training tool.
        jobs: Number of processes at a time, >= 1. They share the cores and the GPUs.
        watch: Called with ``runs`` about once per ``interval``, for a progress bar.
        interval: Seconds between two calls.

    Returns:
        The runs that failed; their output is in ``train.log`` of their work dirs.

    Raises:
        ValueError: If ``jobs`` is below 1.
        KeyboardInterrupt: Ctrl-C, once the processes have ended; no other run was begun.
    """
    if jobs < 1:
        raise ValueError(f'--jobs must be at least 1, but got {jobs}')
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    slots: SimpleQueue[dict[str, str]] = SimpleQueue()
    devices = _devices() if jobs > 1 else []
    for slot in range(jobs):
        env = {'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', threads)}
        if len(devices) > 1:
            env['CUDA_VISIBLE_DEVICES'] = devices[slot % len(devices)]
        slots.put(env)

    def train(run: Run) -> int:
        env = slots.get()
        try:
            return run.train(command, env)
        finally:
            slots.put(env)

    with ThreadPoolExecutor(jobs) as pool:
        started = {run: pool.submit(train, run) for run in runs if run.result is None}
        try:
            while not all(done.done() for done in started.values()):
                watch(runs)
                time.sleep(interval)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(done.done() for done in started.values()):
                for run in started:  # one may have begun just now
                    run.stop()
                time.sleep(0.1)
            raise
        watch(runs)
    return [run for run, done in started.items() if done.result() != 0]


def _devices() -> list[str]:
    """Return the GPUs that this process may use, as a process of its own is told of each."""
    count = torch.cuda.device_count()
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    return (given.split(',') if given else [str(i) for i in range(count)])[:count]


class Line(NamedTuple):
    """A line of the written table: a network of a recipe, over seeds.

    Attributes:
        recipe: Name of the config.
        network: Name of the network in the log.
        published: Published top-1 accuracy in percent, or None.
        top1: Top-1 accuracy in percent after the last epoch, by seed.
        gain: Points above the vanilla recipe's of the same seed, by seed; None without one.
        steps: Iterations of a run.
        seconds: Median seconds of a whole run; None if all were resumed.
        peak_mib: Largest peak memory of a run: of the GPU where it used one, else of the process.
    """

    recipe: str
    network: str
    published: float | None
    top1: dict[int, float]
    gain: dict[int, float] | None
    steps: int
    seconds: float | None
    peak_mib: int


def summarise(rows: Sequence[Row], results: Sequence[dict]) -> list[Line]:
    """Put results beside published numbers.

    Args:
        rows: Rows of the table.
        results: Results of runs; rows without any are left out.

    Returns:
        One line per recipe and network.
    """
    reached: dict[str, dict[str, dict[int, float]]] = {}
    for result in results:
        for network, curve in result['top1'].items():
            by_seed = reached.setdefault(result['config'], {}).setdefault(network, {})
            by_seed[result['seed']] = curve[-1]
    lines = []
    for row in rows:
        own = [result for result in results if result['config'] == row.name]
        seconds = [result['seconds'] for result in own if result['seconds'] is not None]
        for network, top1 in reached.get(row.name, {}).items():
            if network in LEFT_OUT:
                continue
            plain = row.vanilla
            if isinstance(plain, str):
                plain = {} if network in OF_NO_STUDENT else {network: plain}
            base = reached.get(plain.get(network, ''), {}).get(SINGLE, {})
            gain = {seed: top1[seed] - base[seed] for seed in sorted(top1.keys() & base.keys())}
            lines.append(
                Line(
                    row.name,
                    network,
                    published_for(network, row.published),
                    dict(sorted(top1.items())),
                    gain or None,
                    own[-1]['steps'],
                    round(statistics.median(seconds), 1) if seconds else None,
                    max(result['peak_gpu_mib'] or result['peak_host_mib'] for result in own),
                )
            )
    return lines


def mean_sd(values: Sequence[float], sign: bool = False, digits: int = 2) -> str:
    """Return ``mean ± SD``; one value has no SD.

    Args:
        values: At least one.
        sign: Write a plus before positive means.
        digits: Digits behind the point.

    Examples:
        >>> mean_sd([1.0, 3.0]), mean_sd([2.0], sign=True, digits=1)
        ('2.00 ± 1.41', '+2.0')
    """
    mean = f'{statistics.mean(values):{"+" if sign else ""}.{digits}f}'
    return f'{mean} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else mean


def to_markdown(lines: Sequence[Line], title: str, notes: Sequence[str]) -> str:
    """Return the table in Markdown.

    Args:
        lines: Lines of :func:`summarise`.
        title: Its heading.
        notes: What the reader must know, one sentence each.
    """
    text = [f'# {title}', '', *(f'- {note}' for note in notes), '']
    text += [
        '| recipe | network | published | measured | gain | seeds | steps | s per run | MiB |',
        '| :-- | :-- | --: | --: | --: | --: | --: | --: | --: |',
    ]
    for line in lines:
        cells = (
            line.recipe,
            line.network,
            '' if line.published is None else f'{line.published:.2f}',
            mean_sd(list(line.top1.values())),
            mean_sd(list(line.gain.values()), sign=True) if line.gain else '',
            str(len(line.top1)),
            f'{line.steps:,}',
            '' if line.seconds is None else f'{line.seconds:.0f}',
            str(line.peak_mib),
        )
        text.append(f'| {" | ".join(cells)} |')
    return '\n'.join(text) + '\n'


def notes(settings: Settings, runs: Sequence[Run], jobs: int, command: str) -> list[str]:
    """Return what a reader of the table must know about how it was made.

    Args:
        settings: How the rows were trained.
        runs: All runs.
        jobs: Number of processes at a time.
        command: The command line.
    """
    recipes = {run.row.name: Config.fromfile(run.row.config) for run in runs}
    shortened = []
    if settings.epochs is not None:
        full = sorted({cfg.train_cfg.max_epochs for cfg in recipes.values()})
        if full != [settings.epochs]:
            listed = ' or '.join(map(str, full))
            unit = 'epoch' if settings.epochs == 1 else 'epochs'
            shortened.append(f'{settings.epochs} {unit} in place of {listed}')
    if settings.subset is not None:
        shortened.append(f'the first {settings.subset:,} training images only')
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    done = [run for run in runs if run.result is not None]
    return [
        'Top-1 accuracy in percent on the validation images after the last epoch, mean ± standard '
        'deviation over seeds; gains over the vanilla recipe are taken seed by seed. A recipe '
        "with more steps in as many epochs reads more images: BAKE's anchors bring others along.",
        f'{SHORTENED}: {"; ".join(shortened)}. Published numbers are for the '
        'whole schedule and cannot be compared.'
        if shortened
        else f'{WHOLE} of each recipe.',
        f'{len(done)} of {len(runs)} runs are done.',
        f'{jobs} at a time on {os.cpu_count()} cores, {device}; torch {torch.__version__}, kd_mm '
        f'{kd_mm.__version__}. Peak memory is that of the GPU, or of the whole process where '
        'there is none.',
        f'`{command}`',
    ]


def write_table(
    out: Path, name: str, lines: Sequence[Line], results: Sequence[dict], notes: Sequence[str]
) -> list[Path]:
    """Write ``<name>.md``, ``<name>.csv`` and ``<name>.json``.

    Args:
        out: Folder, made if missing.
        name: Name of the table.
        lines: Its lines; the CSV holds them, one value per seed.
        results: Results of all runs with their curves, for the JSON.
        notes: What the reader must know.

    Returns:
        The three paths.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f'{name}.{ending}' for ending in ('md', 'csv', 'json')]
    paths[0].write_text(to_markdown(lines, name, notes))
    seeds = sorted({seed for line in lines for seed in line.top1})
    with paths[1].open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                'recipe',
                'network',
                'published',
                *(f'seed{seed}' for seed in seeds),
                'steps',
                'seconds',
                'mib',
            ]
        )
        for line in lines:
            top1 = [f'{line.top1[seed]:.4f}' if seed in line.top1 else '' for seed in seeds]
            writer.writerow(
                [
                    line.recipe,
                    line.network,
                    line.published,
                    *top1,
                    line.steps,
                    line.seconds,
                    line.peak_mib,
                ]
            )
    content = {
        'table': name,
        'notes': list(notes),
        'lines': [line._asdict() for line in lines],
        'runs': list(results),
    }
    paths[2].write_text(json.dumps(content, indent=1) + '\n')
    return paths
