"""Checkpoints that a crash cannot take away, and that a run goes on from exactly."""

import os
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from kd_mm.checkpoint import bare_model
from kd_mm.registry import HOOKS
from kd_mm.resume.find import find_checkpoint

BACKEND = 'kd_mm_local'
UNFINISHED = '.tmp'
# In the message hub, which checkpoints carry: the step whose validation has begun, and the names
# of files that are to be removed once the checkpoint is there.
VALIDATED, OUTDATED = 'kd_mm_validated', 'kd_mm_outdated'


@register_backend(BACKEND)
class WholeFileBackend(LocalBackend):
    """Local files that are there as a whole, or as they were before.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     WholeFileBackend().put(b'new', f'{folder}/a.pth')
        ...     os.listdir(folder)
        ['a.pth']
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes: on the disk under another name first, then in place at one stroke.

        A process that is killed leaves at most ``<filepath>.tmp``.

        Args:
            obj: The bytes.
            filepath: Where they go.

        Raises:
            OSError: If they cannot be written; what was there stays.
        """
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(path.name + UNFINISHED)
        try:
            with open(whole, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(whole, path)
        except BaseException:
            whole.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put a folder's new names on the disk, where the system can."""
    if os.name == 'nt':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _RemoveLater:
    """A file backend that only notes which files to remove."""

    def __init__(self, backend: Any, outdated: list[str]) -> None:
        self.backend = backend
        self.outdated = outdated

    def remove(self, filepath: str) -> None:
        self.outdated.append(Path(filepath).name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


@HOOKS.register_module()
class SafeCheckpointHook(Hook):
    """Let MMEngine's ``CheckpointHook`` write what survives a crash and resumes exactly.

    - A checkpoint is written under another name, and takes its own when it is on the disk.
    - An old one is removed when the new one is there, not before (``max_keep_ckpts``,
      ``save_best``).
    - ``--resume`` without a path takes the newest checkpoint that can be read, and warns of those
      that cannot.
    - A run that is resumed from a checkpoint without its validation, because that came later or
      was cut off, begins with it, so that no accuracy and no best checkpoint is missing.
    - Gradients that are still being accumulated are part of the checkpoint. With several ranks
      there is a warning instead, since only the first one's are at hand.

    Files on other storage than local disks are written as MMEngine writes them. Our tools add
    this hook to each run that has none.
    """

    priority = 'LOWEST'

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from.

        Args:
            runner: The runner that was asked to train.

        Raises:
            ValueError: If there are checkpoints, but none can be read.
        """
        if not runner._resume or runner._load_from is not None:
            return
        found = [None, []]
        if is_main_process():
            found = list(find_checkpoint(runner.work_dir))
        broadcast_object_list(found)
        path, passed_over = found
        for sentence in passed_over:
            runner.logger.warning(f'--resume passes over a checkpoint: {sentence}')
        if path is None:
            runner.logger.info(f'{runner.work_dir} holds no checkpoint yet: the run begins')
        # MMEngine itself would take what last_checkpoint names, there or not.
        runner._resume = path is not None
        runner._load_from = path

    def before_train(self, runner: Runner) -> None:
        """Change how checkpoints are written, and validate where the checkpoint is from before.

        Args:
            runner: The runner whose training begins.
        """
        hub = runner.message_hub
        outdated = hub.runtime_info.get(OUTDATED) or []  # of a run that was killed
        hub.update_info(OUTDATED, outdated)  # this very list
        self._writers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        for hook in self._writers:
            if hook.last_ckpt is None and 'last_ckpt' in hub.runtime_info:
                # Else a better accuracy would not be noted in it, as it is without a stop.
                hook.last_ckpt = str(Path(hook.out_dir) / Path(hub.get_info('last_ckpt')).name)
            if type(hook.file_backend) is not LocalBackend:
                continue
            if hook.backend_args is None and hook.file_client_args is None:
                hook.backend_args = {'backend': BACKEND}
            hook.file_backend = _RemoveLater(hook.file_backend, outdated)
            outdated += [path.name for path in Path(hook.out_dir).glob(f'*.pth{UNFINISHED}')]
        self._remove_outdated(runner)
        if self._validation_is_missing(runner):
            runner.logger.info('The checkpoint is from before its validation, which is due now')
            runner.val_loop.run()

    def _validation_is_missing(self, runner: Runner) -> bool:
        """Tell whether the loop validates where it stands, and the checkpoint is from before."""
        loop, step = runner.train_loop, _step(runner)
        if step == 0 or runner.val_loop is None:
            return False
        loop._decide_current_val_interval()
        last = loop.max_iters if isinstance(loop, IterBasedTrainLoop) else loop.max_epochs
        due = step >= loop.val_begin and (step % loop.val_interval == 0 or step == last)
        return due and runner.message_hub.runtime_info.get(VALIDATED) != step

    def before_val_epoch(self, runner: Runner) -> None:
        """Note which step is validated: checkpoints that follow are those after it.

        Args:
            runner: The runner that validates.
        """
        runner.message_hub.update_info(VALIDATED, _step(runner))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add gradients that are not complete yet.

        Args:
            runner: The runner that saves.
            checkpoint: What will be written, changed in place.
        """
        if 'optimizer' not in checkpoint or runner.optim_wrapper.should_update():
            return
        if get_world_size() > 1:
            runner.logger.warning(
                'this checkpoint lies between two steps of the optimizer, and the gradients of '
                'the other ranks are not in it: a run that is resumed from it is not exact; let '
                'accumulative_counts divide the iterations between two checkpoints'
            )
            return
        named = bare_model(runner.model).named_parameters()
        checkpoint['gradients'] = {n: p.grad.cpu() for n, p in named if p.grad is not None}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take up gradients that are not complete yet.

        Args:
            runner: The runner that loads.
            checkpoint: What was read.
        """
        if not runner._resume:
            return
        gradients = checkpoint.get('gradients', {})
        for name, parameter in bare_model(runner.model).named_parameters():
            if name in gradients:
                parameter.grad = gradients[name].to(parameter)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Remove what the checkpoint of this iteration replaced.

        Args:
            runner: The runner that trains.
            *args: Unused.
            **kwargs: Unused.
        """
        self._remove_outdated(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Remove what the checkpoint of this epoch replaced.

        Args:
            runner: The runner that trains.
        """
        self._remove_outdated(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Remove the best checkpoint that a better one replaced.

        Args:
            runner: The runner that validates.
            metrics: Unused.
        """
        self._remove_outdated(runner)

    def _remove_outdated(self, runner: Runner) -> None:
        """Remove the files noted so far."""
        outdated = runner.message_hub.runtime_info.get(OUTDATED)
        if not outdated:
            return
        for hook in self._writers:
            for name in outdated if is_main_process() else ():
                (Path(hook.out_dir) / Path(name).name).unlink(missing_ok=True)
        outdated.clear()


def _step(runner: Runner) -> int:
    """Return what the training loop counts: epochs done, or iterations."""
    loop = runner.train_loop
    return loop.iter if isinstance(loop, IterBasedTrainLoop) else loop.epoch
