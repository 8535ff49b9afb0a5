"""Which checkpoint a stopped run continues from."""

import zipfile
from pathlib import Path

from kd_mm.checkpoint import load_checkpoint

POINTER = 'last_checkpoint'  # the file in which MMEngine names the newest checkpoint
NEEDED = ('meta', 'message_hub', 'optimizer')  # what a run continues with, and best_*.pth lack


def pointed_at(work_dir: str | Path) -> Path | None:
    """Return the checkpoint that ``last_checkpoint`` names, which may be gone; None without one.

    In a work dir that was moved or copied it is the one of that name there, not the original's.
    """
    pointer = Path(work_dir) / POINTER
    named = pointer.read_text().strip() if pointer.is_file() else ''
    if not named:
        return None
    here = Path(work_dir) / Path(named).name
    return here if here.is_file() else Path(named)


def find_checkpoint(work_dir: str | Path) -> tuple[str | None, list[str]]:
    """Find the newest checkpoint in a work dir that can be read and that a run can continue from.

    The one that ``last_checkpoint`` names comes first, then the others by the time of writing.

    Returns:
        The checkpoint, None if nothing was written yet, and a sentence on each newer file that
        is missing or damaged.

    Raises:
        ValueError: If there are checkpoints, but the run cannot continue from any.
    """
    named = pointed_at(work_dir)
    candidates = [] if named is None else [named]
    folders = {path.parent: None for path in candidates} | {Path(work_dir): None}
    written = [path for folder in folders for path in folder.glob('*.pth') if path != named]
    written.sort(key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    passed_over = []
    for path in candidates + written:
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
            'from the beginning without --resume'
        )
    return None, []


def _check_sums(path: Path) -> None:
    """Raise ValueError if a part of the file is not as it was written; torch reads on."""
    if zipfile.is_zipfile(path):  # the format before torch 1.6 has no sums
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f'{path} is damaged: {damaged} is not as it was written')
