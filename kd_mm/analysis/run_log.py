"""What a finished or a running training wrote into its work dir."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

TOP1 = 'accuracy/top1'
SINGLE = 'network'  # the name of a network that is trained alone
MONITOR = 'diagnostics/'  # what kd_mm.DiagnosticsHook writes


def read_log(work_dir: str | Path) -> tuple[list[dict], list[dict]]:
    """Read the numbers that MMEngine's local visualizer backend wrote.

    A resumed run has one file per start; where they overlap, the later one counts. Where a run was
    begun anew in the same folder, nothing counts from before.

    Args:
        work_dir: Work dir of a run.

    Returns:
        Training entries in the order of their ``step``, an iteration, and validation entries in
        the order of their ``step``, an epoch (an iteration in runs by iteration). None of either
        where nothing was logged yet.
    """
    parts: tuple[dict[int, dict], dict[int, dict]] = ({}, {})
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        entries = list(_entries(path))
        first = next((entry['step'] for entry in entries if 'iter' in entry), None)
        if first is not None and parts[0] and first <= min(parts[0]):
            parts[0].clear()
            parts[1].clear()
        for entry in entries:
            parts['iter' not in entry][entry['step']] = entry
    train, val = ([part[step] for step in sorted(part)] for part in parts)
    return train, val


def _entries(path: Path) -> Iterator[dict]:
    """Yield the lines of a log that are whole; a killed run may leave half a one."""
    for line in path.read_text(errors='replace').splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and 'step' in entry:
            yield entry


def has_trained(scalars: Path) -> bool:
    """Tell whether a log file is of a training that came to its first line."""
    return scalars.exists() and any('iter' in entry for entry in _entries(scalars))


def top1_curves(val: list[dict]) -> dict[str, list[float]]:
    """Return the top-1 accuracy of each network at each validation.

    Args:
        val: Validation entries of :func:`read_log`.

    Returns:
        Percent by the network's name; ``'network'`` where the run trains one alone. A cohort's
        ``mean``, ``best`` and ``ensemble`` are among them, as in the log.

    Examples:
        >>> top1_curves([{'accuracy/top1': 50.0, 'step': 1}, {'accuracy/top1': 75.0, 'step': 2}])
        {'network': [50.0, 75.0]}
        >>> top1_curves([{'a/accuracy/top1': 50.0, 'mean/accuracy/top1': 40.0, 'step': 1}])
        {'a': [50.0], 'mean': [40.0]}
    """
    curves: dict[str, list[float]] = {}
    for entry in val:
        for key, value in entry.items():
            name, found, rest = key.rpartition(TOP1)
            if found and not rest:
                curves.setdefault(name.rstrip('/') or SINGLE, []).append(value)
    return curves


def top1_key(network: str) -> str:
    """Return the key of a network's top-1 accuracy in validation entries.

    Args:
        network: A name of :func:`top1_curves`.

    Examples:
        >>> top1_key('network'), top1_key('leader')
        ('accuracy/top1', 'leader/accuracy/top1')
    """
    return TOP1 if network == SINGLE else f'{network}/{TOP1}'


def series(entries: list[dict], key: str) -> dict[int, float]:
    """Return the values of a key by step.

    Args:
        entries: Entries of :func:`read_log`.
        key: A number of the log.

    Examples:
        >>> series([{'loss': 2.0, 'step': 10}, {'step': 20}], 'loss')
        {10: 2.0}
    """
    return {entry['step']: entry[key] for entry in entries if key in entry}


def keys_with(entries: list[dict], part: str) -> list[str]:
    """Return the keys that hold a word, in the order in which they first appear.

    Args:
        entries: Entries of :func:`read_log`.
        part: ``'loss'`` for loss terms, ``MONITOR`` for what the diagnostics hook wrote.

    Examples:
        >>> keys_with([{'a/loss': 2.0, 'a/loss_kdcl': 1.0, 'step': 10}], 'loss')
        ['a/loss', 'a/loss_kdcl']
    """
    return list(dict.fromkeys(key for entry in entries for key in entry if part in key))


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Return the work dirs of runs, in or below folders.

    Args:
        paths: Work dirs, or folders of them at any depth.

    Returns:
        Each work dir once, in order.

    Raises:
        FileNotFoundError: If a folder does not exist.
        ValueError: If there is no run in one.
    """
    found = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise FileNotFoundError(f'a work dir must be a folder, but there is none at {path}')
        logs = sorted(path.glob('**/vis_data/scalars.json'))
        if not logs:
            raise ValueError(
                f'a work dir must hold a log, */vis_data/scalars.json, but {path} has none in or '
                "below it; train with MMEngine's LocalVisBackend (the default)"
            )
        found |= {log.resolve().parents[2]: None for log in logs}
    return list(found)
