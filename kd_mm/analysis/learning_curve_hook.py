"""The learning curves of a run as one picture."""

from pathlib import Path

import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from kd_mm.registry import HOOKS

FILENAME = 'learning_curves.png'
NUM_COLORS = 10  # of Matplotlib's cycle; the next ten curves get another line style
LINE_STYLES = ('-', '--', ':')


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Return the running mean over the last ``width`` values, fewer at the start.

    Args:
        values: (n,) numbers; those that are not finite (a skipped step's) count for nothing.
        width: Number of values per mean, at least 1.

    Returns:
        (n,) means; NaN where no value is finite.

    Examples:
        >>> import numpy as np
        >>> smooth(np.array([4.0, 2.0, 0.0, 0.0]), width=2)
        array([4., 3., 1., 0.])
        >>> smooth(np.array([np.nan, 4.0, np.inf, 2.0]), width=2)
        array([nan,  4.,  4.,  2.])
    """
    finite = np.isfinite(values)
    total = np.cumsum(np.concatenate([[0.0], np.where(finite, values, 0.0)]))
    count = np.cumsum(np.concatenate([[0], finite]))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - width, 0)
    counted = count[end] - count[start]
    return (total[end] - total[start]) / np.where(counted, counted, np.nan)


@HOOKS.register_module()
class LearningCurveHook(Hook):
    """Draw ``learning_curves.png`` into the work dir when training ends.

    Left, each loss term, smoothed over a hundredth of the run; right, each number of the
    validation. Both come from MMEngine's message hub, which a checkpoint carries, so that the
    picture of a resumed run is whole.
    """

    priority = 'LOW'

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Draw the picture.

        Args:
            runner: The runner whose training ended.
        """
        import matplotlib.pyplot as plt
        from matplotlib.ticker import MaxNLocator

        histories = {
            name: buffer.data[0] for name, buffer in runner.message_hub.log_scalars.items()
        }
        epochs = runner.epoch or None
        unit, length = ('epoch', epochs) if epochs else ('iteration', runner.iter)
        figure, axes = plt.subplots(1, 2, figsize=(14, 5), layout='constrained')
        panels = (('train/', 'loss', axes[0]), ('val/', '', axes[1]))
        for prefix, part, axis in panels:
            for name, values in histories.items():
                label = name.removeprefix(prefix)
                if not name.startswith(prefix) or part not in label or 'time' in label:
                    continue
                position = np.arange(1, len(values) + 1) * length / len(values)
                if prefix == 'train/':
                    values = smooth(values, max(1, len(values) // 100))
                style = LINE_STYLES[len(axis.lines) // NUM_COLORS % len(LINE_STYLES)]
                marker = '.' if len(values) < 50 else ''
                axis.plot(position, values, style, label=label, marker=marker)
            axis.set_xlabel(unit)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
            if axis.lines:  # beside the curves: a cohort has many
                axis.legend(loc='upper left', bbox_to_anchor=(1, 1), fontsize='small')
        axes[0].set_title('training loss')
        axes[1].set_title('validation')
        figure.suptitle(runner.experiment_name)
        path = Path(runner.work_dir) / FILENAME
        figure.savefig(path, dpi=120)
        plt.close(figure)
        runner.logger.info(f'Learning curves: {path}')
