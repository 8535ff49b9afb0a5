"""What a finished or a running training wrote into its work dir."""

import json
from pathlib import Path

TOP1 = 'accuracy/top1'


def read_log(work_dir: str | Path) -> tuple[list[dict], list[dict]]:
    """Read the numbers that MMEngine's local visualizer backend wrote.

    A resumed run has one file per start; where they overlap, the later one counts.

    Args:
        work_dir: Work dir of a run.

    Returns:
        Training entries in the order of their ``step``, an iteration, and validation entries in
        the order of their ``step``, an epoch (an iteration in runs by iteration). None of either
        where nothing was logged yet.
    """
    parts: tuple[dict[int, dict], dict[int, dict]] = ({}, {})
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # a killed run may leave half a line
                continue
            parts['iter' not in entry][entry['step']] = entry
    train, val = ([part[step] for step in sorted(part)] for part in parts)
    return train, val


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
                curves.setdefault(name.rstrip('/') or 'network', []).append(value)
    return curves
