"""What ends a run, in one sentence, with the way to go on."""

import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from mmengine.logging import MMLogger

from kd_mm.config import USER_ERRORS
from kd_mm.resume.find import find_checkpoint
from kd_mm.run.launch import is_alone, is_first_process

FULL = (errno.ENOSPC, errno.EDQUOT)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which clusters send before they end a job."""


def explain(error: BaseException) -> str | None:
    """Return in a sentence what has ended a run, and the likely fix; None for other errors.

    Examples:
        >>> explain(FileNotFoundError(2, 'No such file or directory', 'a.png'))
        "[Errno 2] No such file or directory: 'a.png'"
        >>> explain(KeyError('a mistake in the program'))
    """
    text = str(error).strip().rstrip('.')
    lines = text.splitlines() or ['']
    if _is_sigterm(error):
        return 'the run was stopped by SIGTERM'
    if isinstance(error, KeyboardInterrupt):
        return 'the run was stopped by Ctrl-C'
    # A worker's error holds its own traceback as text; the last line is the error.
    if lines[0].startswith('Caught ') and 'DataLoader worker' in lines[0]:
        return f"a data loader's worker failed: {lines[-1]}"
    if isinstance(error, FloatingPointError):
        return text
    if isinstance(error, OSError):
        full = error.errno in FULL
        return f'{text}; free some space, or keep fewer checkpoints' if full else text
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return (
            f'{lines[0]}; use smaller batches (train_dataloader.batch_size, and '
            'optim_wrapper.accumulative_counts for the same sum) or --amp'
        )
    if isinstance(error, RuntimeError) and text.startswith('DataLoader worker'):
        return (
            f'{text}; most likely the machine ran out of memory; use fewer workers '
            '(train_dataloader.num_workers) or smaller batches'
        )
    if isinstance(error, RuntimeError) and 'PytorchStreamWriter failed' in text:
        return 'a file could not be written to its end; most likely the disk is full'
    return None


def exit_code(error: BaseException) -> int:
    """Return the exit code of a program that an error ended: 130 for Ctrl-C, 143 for SIGTERM."""
    if _is_sigterm(error):
        return 128 + signal.SIGTERM
    return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Raise :class:`Terminated` in the block where SIGTERM arrives, as Ctrl-C raises."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def plain_errors(way_on: str = '') -> Iterator[None]:
    """End a tool in one line for a user's mistake, or where the user has stopped it.

    Args:
        way_on: What to do after Ctrl-C, for the message.

    Raises:
        SystemExit: With 130 after Ctrl-C, 141 where nobody reads the output any more
            (``| head``), otherwise 1. Mistakes of the program pass with their traceback.

    Examples:
        >>> with plain_errors():
        ...     raise ValueError('omega must lie in [0, 1), but got 2')
        Traceback (most recent call last):
        SystemExit: error: omega must lie in [0, 1), but got 2
    """
    try:
        yield
        sys.stdout.flush()  # otherwise Python meets a closed pipe at its very end
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except USER_ERRORS as error:
        raise SystemExit(f'error: {error}') from None
    except KeyboardInterrupt as error:
        print(f'error: {explain(error)}{way_on}', file=sys.stderr)
        raise SystemExit(exit_code(error)) from None


@contextmanager
def one_sentence(work_dir: str | None = None) -> Iterator[None]:
    """Turn what ends a run into one sentence on the console and an exit code.

    The traceback goes to the log file. What :func:`explain` does not know passes unchanged.
    SIGTERM ends a run as Ctrl-C does; where several processes train together it keeps its
    meaning, since their launcher sends it to those whose peer has failed.

    Args:
        work_dir: Where a training keeps its checkpoints, to say how it goes on.

    Raises:
        SystemExit: With 130 after Ctrl-C, 143 after SIGTERM, otherwise 1.
    """
    # The disk may be full, the console closed: no traceback for each line that is not logged.
    loud, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        with sigterm_as_interrupt() if is_alone() else nullcontext():
            try:
                yield
            except (Exception, KeyboardInterrupt) as error:
                sentence = explain(error)
                if sentence is None:
                    raise
                # Clusters send SIGTERM to all processes of a job: late signals, and the ends of
                # workers, must not interrupt the sentence.
                deaf = {signal.SIGTERM: signal.SIG_IGN, signal.SIGCHLD: signal.SIG_DFL}
                before = {number: signal.signal(number, how) for number, how in deaf.items()}
                _log_traceback(error)
                # All ranks meet the first two; anything else, the rank to which it happens.
                everywhere = isinstance(error, (FloatingPointError, KeyboardInterrupt))
                if is_first_process() or not everywhere:
                    way_on = '' if work_dir is None else f' {_way_on(work_dir)}'
                    print(f'error: {sentence}.{way_on}', file=sys.stderr)
                for number, handler in before.items():
                    signal.signal(number, handler)
                raise SystemExit(exit_code(error)) from None
    finally:
        logging.raiseExceptions = loud


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def _is_sigterm(error: BaseException) -> bool:
    """Return whether a run, or first a worker of its data loader, was asked to end."""
    worker = isinstance(error, RuntimeError) and str(error).startswith('DataLoader worker')
    return isinstance(error, Terminated) or (worker and 'signal: Terminated' in str(error))


def _way_on(work_dir: str) -> str:
    """Say how to go on."""
    try:
        latest, _ = find_checkpoint(work_dir)
    except ValueError as error:
        return f'{error}.'
    if latest is None:
        return f'There is no checkpoint in {work_dir} yet; start again with the same command.'
    return f'The last checkpoint is {latest}; repeat the command with --resume to go on from it.'


def _log_traceback(error: BaseException) -> None:
    """Write the traceback into the log files of the run, and not on the console."""
    logger, trace = MMLogger.get_current_instance(), (type(error), error, error.__traceback__)
    record = logger.makeRecord(
        logger.name, logging.ERROR, __file__, 0, 'the run ended here', (), trace
    )
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
