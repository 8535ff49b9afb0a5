"""Which checkpoint a stopped run goes on from."""

import zipfile
from pathlib import Path

from kd_mm.checkpoint import load_checkpoint

POINTER = 'last_checkpoint'  # the file in which MMEngine names the newest checkpoint
NEEDED = ('meta', 'message_hub', 'optimizer')  # what a run goes on with, and best_*.pth lack


def pointed_at(work_dir: str | Path) -> Path | None:
    """Return the checkpoint that ``last_checkpoint`` names, which may be gone; None without one.

    In a work dir that was moved or copied it is the one of that name there, not the original's.

    Args:
        work_dir: Work dir of a run.
    """
    pointer = Path(work_dir) / POINTER
    named = pointer.read_text().strip() if pointer.is_file() else ''
    if not named:
        return None
    beside = Path(work_dir) / Path(named).name
    return beside if beside.is_file() else Path(named)


def find_checkpoint(work_dir: str | Path) -> tuple[str | None, list[str]]:
    """Find the newest checkpoint in a work dir that can be read and that a run can go on from.

    The one that ``last_checkpoint`` names comes first, then the others by the time of writing,
    which a copied folder may have lost.

    Args:
        work_dir: Work dir of a run.

    Returns:
        The checkpoint, None if nothing was written yet, and a sentence on each newer file that
        is missing or damaged.

    Raises:
        ValueError: If there are checkpoints, but the run cannot go on from any.
    """
    work_dir = Path(work_dir)
    named = pointed_at(work_dir)
    folders = {work_dir: None}  # in order, each once
    candidates = []
    if named is not None:
        candidates = [named]
        folders = {named.parent: None, **folders}
    written = [path for folder in folders for path in folder.glob('*.pth')]
    written.sort(key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    candidates += [path for path in written if path not in candidates]
    passed_over = []
    for path in candidates:
        try:
            checkpoint = load_checkpoint(path)
            _check_sums(path)
        except (ValueError, FileNotFoundError) as error:
            passed_over.append(str(error))
            continue
        if all(key in checkpoint for key in NEEDED):
            return str(path), passed_over
    if passed_over:
        raise ValueError(
            f'to resume, {work_dir} must hold a checkpoint that can be read, but it holds none: '
            f'{"; ".join(passed_over)}. Resume from another one with --resume PATH, or start '
            'anew without --resume'
        )
    return None, []


def _check_sums(path: Path) -> None:
    """Raise ValueError if a part of the file is not as it was written; torch reads on."""
    if not zipfile.is_zipfile(path):  # the format before torch 1.6 has no sums
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f'{path} is damaged: {damaged} is not as it was written')
