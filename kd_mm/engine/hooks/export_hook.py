"""The deployable network, written when training ends."""

from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor

from kd_mm.checkpoint import bare_model
from kd_mm.export import export_student, shipped_names
from kd_mm.registry import HOOKS

FOLDER = 'deploy'


@HOOKS.register_module()
class ExportHook(Hook):
    """Export the trained network as plain mmpretrain weights and config, and say what to do next.

    The weights are those of the last validation: with an ``EMAHook`` the average, unless it
    evaluates on the original alone; otherwise those at the end of training.
    ``tools/model_converters/export_student.py`` does the same for any other checkpoint. See
    :func:`kd_mm.export.export_student`.
    """

    priority = 'LOWEST'

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Write ``deploy/model.pth`` and ``deploy/config.py`` into the work dir.

        Several students go to ``deploy/<name>/``; of FFSD, the leader alone.
        """
        work_dir = Path(runner.work_dir)
        state_dict = _validated(runner)
        meta = {'dataset_meta': runner.train_loop.dataloader.dataset.metainfo}
        exports = {
            name: export_student(
                runner.cfg, state_dict, work_dir / FOLDER / (name or ''), meta, name
            )
            for name in shipped_names(runner.cfg) or [None]
        }
        lines = ['Training is done. Written:']
        latest = find_latest_checkpoint(str(work_dir))
        written = [latest] if latest else []
        written += [*sorted(work_dir.glob('best_*.pth')), *sorted(work_dir.glob('*.png'))]
        lines += [f'  {path}' for path in written]
        lines += [f'  {done.weights}, {done.config}' for done in exports.values()]
        worst = max(done.difference for done in exports.values())
        done = next(iter(exports.values()))
        lines.append(
            '    plain mmpretrain weights and config; their logits differ from the trained '
            f"network's by at most {worst:.1e}"
        )
        if needs := {name for done in exports.values() for name in done.needs}:
            listed = ', '.join(sorted(needs))
            lines.append(f'    config.py needs kd_mm installed: mmpretrain has no {listed}')
        lines += [
            'Next, evaluate with mmpretrain or with our tool, or start another training from it:',
            f'  mim test mmpretrain {done.config} --checkpoint {done.weights}',
            f'  python tools/test.py {done.config} {done.weights}',
            f'  --cfg-options load_from={done.weights}',
        ]
        runner.logger.info('\n'.join(lines))


def _validated(runner: Runner) -> dict[str, Tensor]:
    """Return a copy of the weights that validation sees, by name."""
    averages = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    for hook in averages:  # each swaps its average in, unless it evaluates on the original
        hook.before_val_epoch(runner)
    weights = {name: w.cpu().clone() for name, w in bare_model(runner.model).state_dict().items()}
    for hook in reversed(averages):  # and out
        hook.before_val_epoch(runner)
    return weights
