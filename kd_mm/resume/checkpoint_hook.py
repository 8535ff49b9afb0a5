"""Checkpoints that survive a crash, and from which a run continues exactly."""

import os
from pathlib import Path

from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MessageHub
from mmengine.runner import IterBasedTrainLoop, Runner

from kd_mm.checkpoint import bare_model, check_keys
from kd_mm.registry import HOOKS
from kd_mm.resume.find import find_checkpoint

BACKEND = 'kd_mm_local'
UNFINISHED = '.tmp'
# In the message hub, which checkpoints carry: the step whose validation has begun, and the names
# of files that are to be removed once the checkpoint is there.
VALIDATED, OUTDATED = 'kd_mm_validated', 'kd_mm_outdated'


@register_backend(BACKEND)
class WholeFileBackend(LocalBackend):
    """Local files that are there as a whole; an old one stays until the next one is there."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes under another name, rename the file, and remove outdated ones.

        A process that is killed leaves at most ``<filepath>.tmp``. If the bytes cannot be
        written, what was there stays.
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
        hub = MessageHub.get_current_instance()
        for name in hub.runtime_info.get(OUTDATED, ()):
            path.with_name(name).unlink(missing_ok=True)
        hub.update_info(OUTDATED, [])

    def remove(self, filepath: str | Path) -> None:
        """Note a file that is to be removed when the next one is there."""
        hub = MessageHub.get_current_instance()
        outdated = hub.runtime_info.get(OUTDATED, [])
        hub.update_info(OUTDATED, [*outdated, Path(filepath).name])


def _sync_folder(folder: Path) -> None:
    """Put a folder's new names on the disk, where the system can."""
    if os.name != 'nt':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@HOOKS.register_module()
class SafeCheckpointHook(Hook):
    """Let MMEngine's ``CheckpointHook`` write what survives a crash and resumes exactly.

    - A checkpoint is written under another name, and renamed when it is on the disk.
    - An old one (``max_keep_ckpts``, ``save_best``) is removed when the new one is there.
    - ``resume=True`` without ``load_from`` takes the newest checkpoint that can be read, and warns
      of those that cannot.
    - A run that is resumed from a checkpoint without its validation begins with it, so that no
      accuracy and no best checkpoint is missing.
    - Gradients that are still being accumulated are part of the checkpoint; with several ranks
      there is a warning instead, since only the first one's are at hand.

    Files on other storage than local disks, or with ``backend_args``, are written by MMEngine.
    """

    priority = 'LOWEST'

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from."""
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
        runner._resume, runner._load_from = path is not None, path

    def before_train(self, runner: Runner) -> None:
        """Change how checkpoints are written, and validate where the checkpoint is from before."""
        hub = runner.message_hub
        outdated = hub.runtime_info.get(OUTDATED, ())  # of a run that was killed
        for hook in runner.hooks:
            if not isinstance(hook, CheckpointHook):
                continue
            folder = Path(hook.out_dir)
            if hook.last_ckpt is None and 'last_ckpt' in hub.runtime_info:
                # A better accuracy is then noted in it, as it is without a stop.
                hook.last_ckpt = str(folder / Path(hub.get_info('last_ckpt')).name)
            given = hook.backend_args or hook.file_client_args
            if given or type(hook.file_backend) is not LocalBackend:
                continue
            hook.backend_args, hook.file_backend = {'backend': BACKEND}, WholeFileBackend()
            if is_main_process():
                # Names come from a file: none of them leads out of the folder.
                left = [folder / Path(name).name for name in outdated]
                for path in [*left, *folder.glob(f'*.pth{UNFINISHED}')]:
                    path.unlink(missing_ok=True)
        hub.update_info(OUTDATED, [])
        if self._validation_is_missing(runner):
            runner.logger.info('The checkpoint is from before its validation, which is due now')
            runner.val_loop.run()

    def _validation_is_missing(self, runner: Runner) -> bool:
        """Return whether the loop validates where it stands, and the checkpoint is from before."""
        loop, step = runner.train_loop, _step(runner)
        if step == 0 or runner.val_loop is None:
            return False
        loop._decide_current_val_interval()
        last = loop.max_iters if isinstance(loop, IterBasedTrainLoop) else loop.max_epochs
        due = step >= loop.val_begin and (step % loop.val_interval == 0 or step == last)
        return due and runner.message_hub.runtime_info.get(VALIDATED) != step

    def before_val_epoch(self, runner: Runner) -> None:
        """Note which step is validated: checkpoints that follow are those after it."""
        runner.message_hub.update_info(VALIDATED, _step(runner))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add gradients that are not complete yet."""
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
        """Take up gradients that are not complete yet."""
        gradients = checkpoint.get('gradients', {}) if runner._resume else {}
        for name, parameter in bare_model(runner.model).named_parameters():
            if name in gradients:
                parameter.grad = gradients[name].to(parameter)


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Refuse a loaded checkpoint of which no weight is one of the model's.

    MMEngine warns and continues with random weights.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare names before they are loaded; ValueError if no name fits."""
        weights = checkpoint.get('state_dict', checkpoint)
        names = [name.removeprefix('module.') for name in weights]
        source = runner._load_from or 'the checkpoint'
        check_keys(names, bare_model(runner.model).state_dict(), source)


def _step(runner: Runner) -> int:
    """Return what the training loop counts: epochs done, or iterations."""
    loop = runner.train_loop
    return loop.iter if isinstance(loop, IterBasedTrainLoop) else loop.epoch
