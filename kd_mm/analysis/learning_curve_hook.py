"""The learning curves of a run as one picture."""

from pathlib import Path

import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_mm.registry import HOOKS

FILENAME = 'learning_curves.png'
POINTS = 100  # of a loss curve, each the mean over a hundredth of the run


@HOOKS.register_module()
class LearningCurveHook(Hook):
    """Draw ``learning_curves.png`` into the work dir when training ends.

    Left, each loss term as means over a hundredth of the run; right, each number of the
    validation. Both come from MMEngine's message hub, which a checkpoint carries, so that the
    picture of a resumed run is whole.
    """

    priority = 'LOW'

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Draw the picture."""
        import matplotlib.pyplot as plt

        length, unit = (runner.epoch, 'epoch') if runner.epoch else (runner.iter, 'iteration')
        figure, axes = plt.subplots(1, 2, figsize=(14, 5), layout='constrained')
        panels = (('train/', 'loss', 'training loss'), ('val/', '', 'validation'))
        for axis, (prefix, part, title) in zip(axes, panels, strict=True):
            for name, buffer in runner.message_hub.log_scalars.items():
                label, values = name.removeprefix(prefix), np.asarray(buffer.data[0], dtype=float)
                if not name.startswith(prefix) or part not in label or 'time' in label:
                    continue
                parts = np.array_split(values, min(len(values), POINTS if part else len(values)))
                finite = [own[np.isfinite(own)] for own in parts]  # a skipped step's loss is not
                mean = [own.mean() if len(own) else np.nan for own in finite]
                position = np.linspace(length / len(parts), length, len(parts))
                style = ('-', '--', ':')[len(axis.lines) // 10 % 3]  # after ten colors
                axis.plot(position, mean, style, label=label, marker='' if len(mean) > 50 else '.')
            axis.set(title=title, xlabel=unit)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.3)
            if axis.lines:
                axis.legend(loc='upper left', bbox_to_anchor=(1, 1), fontsize='small')
        figure.suptitle(runner.experiment_name)
        path = Path(runner.work_dir) / FILENAME
        figure.savefig(path, dpi=120)
        plt.close(figure)
        runner.logger.info(f'Learning curves: {path}')
