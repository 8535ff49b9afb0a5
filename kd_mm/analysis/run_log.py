"""What a finished or a running training wrote into its work dir."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

TOP1 = 'accuracy/top1'
SINGLE = 'network'  # the name of a network that trains alone: the log has none
LEFT_OUT = ('mean', 'best')  # rows of the metric that are no network's
MONITOR = 'diagnostics/'  # how the keys of kd_mm.DiagnosticsHook begin


def read_log(work_dir: str | Path) -> tuple[list[dict], list[dict]]:
    """Read the numbers that MMEngine's local visualizer backend wrote.

    A resumed run has one file per start; where they overlap, the later one counts. If a run was
    started from its first iteration again in the same folder, only the last start counts.

    Returns:
        Training entries by ``step``, an iteration, and validation entries by ``step``, an epoch
        (an iteration in runs by iteration).
    """
    train: dict[int, dict] = {}
    val: dict[int, dict] = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        entries = list(_entries(path))
        first = next((entry['step'] for entry in entries if 'iter' in entry), None)
        if first is not None and train and first <= min(train):
            train, val = {}, {}
        for entry in entries:
            (train if 'iter' in entry else val)[entry['step']] = entry
    return [train[step] for step in sorted(train)], [val[step] for step in sorted(val)]


def _entries(path: Path) -> Iterator[dict]:
    """Yield the lines of a log; a killed run may leave half a line."""
    for line in path.read_text(errors='replace').splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and 'step' in entry:
            yield entry


def has_trained(scalars: Path) -> bool:
    """Return whether a log file has entries of a training."""
    return scalars.exists() and any('iter' in entry for entry in _entries(scalars))


def top1_curves(val: list[dict]) -> dict[str, list[float]]:
    """Return the top-1 accuracy in percent by network, at each validation of :func:`read_log`.

    Examples:
        >>> top1_curves([{'accuracy/top1': 50.0, 'step': 1}, {'accuracy/top1': 75.0, 'step': 2}])
        {'network': [50.0, 75.0]}
        >>> top1_curves([{'a/accuracy/top1': 50.0, 'mean/accuracy/top1': 40.0, 'step': 1}])
        {'a': [50.0], 'mean': [40.0]}
    """
    curves: dict[str, list[float]] = {}
    for entry in val:
        for key, value in entry.items():
            if key.endswith(TOP1):
                curves.setdefault(key.removesuffix(TOP1).rstrip('/') or SINGLE, []).append(value)
    return curves


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Return the work dirs in or below folders, each once.

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
