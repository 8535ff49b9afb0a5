"""One training at a time in a work dir."""

import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = '.lock'
PATIENCE = 10.0  # seconds that a run which is about to end may take


def lock_work_dir(work_dir: str) -> BinaryIO:
    """Keep other trainings out of a work dir, where each would overwrite the other's checkpoints.

    The lock ends with this process, however that ends, or when the file is closed that is
    returned; the file stays. Where the file system knows no locks, there is none.

    Raises:
        BlockingIOError: If another process has the lock, and does not end within ``PATIENCE``.
    """
    Path(work_dir).mkdir(parents=True, exist_ok=True)
    file = (Path(work_dir) / NAME).open('a+b', buffering=0)
    deadline = time.monotonic() + PATIENCE
    while fcntl:
        try:
            # By process, so that workers of a data loader that outlive it do not hold it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                with file:
                    file.seek(0)
                    raise BlockingIOError(
                        f'another training runs in {work_dir} ({file.read().decode()}); wait for '
                        'its end, stop it, or choose another --work-dir'
                    ) from None
            time.sleep(0.1)
            continue
        except OSError:  # no locks here
            pass
        break
    with suppress(OSError):  # the disk may be full
        file.truncate(0)
        file.write(f'process {os.getpid()} on {platform.node()}'.encode())
    return file
