"""Pictures of what networks look at and say, while they train."""

from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from kd_mm.analysis.pictures.networks import BatchWatch, look, shows_relations
from kd_mm.analysis.run_log import SINGLE
from kd_mm.checkpoint import bare_model
from kd_mm.checks import check_int
from kd_mm.registry import HOOKS
from kd_mm.resume.seeded import kept_generators

SHOWN = 16  # images of a batch with their affinities


@HOOKS.register_module()
class PictureHook(Hook):
    """Add pictures of the networks to the visualizer at each validation of a training.

    ``attention`` and ``predictions`` are of the same validation images each time. ``affinity``, of
    several networks ``affinity_<name>``, is of the last training batch before, where a method has
    images learn from each other (BAKE). They go to every backend of the visualizer (local:
    ``vis_data/vis_image``) with the number of the epoch, or of the iteration where the run counts
    those. Training is not changed. The same for a checkpoint: ``tools/visualization``.

    Args:
        interval (int): Validations from one set of pictures to the next, at least 1. The last
            validation always has them. Defaults to 1.
        num_images (int): Validation images to show, at least 1. Defaults to 4.

    Raises:
        ValueError: If an argument is out of range, or the run does not validate.

    Examples:
        >>> custom_hooks = [dict(type='kd_mm.PictureHook', interval=10)]
    """

    priority = 'NORMAL'

    def __init__(self, interval: int = 1, num_images: int = 4) -> None:
        check_int('interval', interval)
        check_int('num_images', num_images)
        self.interval = interval
        self.num_images = num_images
        self._watch: BatchWatch | None = None
        self._trains = False

    def before_train(self, runner: Runner) -> None:
        """Check that there will be a validation."""
        if runner.val_loop is None:
            raise ValueError(
                'kd_mm.PictureHook draws at each validation, but the run has no val_dataloader; '
                'set val_dataloader, val_cfg and val_evaluator, or remove the hook'
            )
        self._trains = True

    def _is_due(self, runner: Runner, done: int) -> bool:
        """Return whether pictures belong to the validation after so many epochs or iterations."""
        most = runner.max_epochs if _by_epoch(runner) else runner.max_iters
        due = done % (self.interval * runner.train_loop.val_interval) == 0 or done == most
        return due and is_main_process()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any | None = None
    ) -> None:
        """Record what images take from each other in the last step before a validation."""
        last, done = True, runner.iter + 1
        if _by_epoch(runner):
            last, done = self.end_of_epoch(runner.train_dataloader, batch_idx), runner.epoch + 1
        model = bare_model(runner.model)
        if last and self._is_due(runner, done) and shows_relations(model):
            self._watch, self._step = BatchWatch(model), done

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Draw the affinities that were recorded."""
        if self._watch is None:
            return
        from kd_mm.analysis.pictures.figures import affinity_figure, to_array

        found, self._watch = self._watch.close(SHOWN), None
        for name, batch in found.items():
            key = 'affinity' if name == SINGLE else f'affinity_{name}'
            figure = affinity_figure(batch, classes=_classes(runner.train_dataloader))
            runner.visualizer.add_image(key, to_array(figure), step=self._step)

    def before_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Draw attention and predictions of a few images, once in a validation."""
        done = runner.epoch if _by_epoch(runner) else runner.iter
        if batch_idx > 0 or not self._trains or not self._is_due(runner, done):
            return
        from kd_mm.analysis.pictures.figures import attention_figure, predictions_figure, to_array

        dataset, model = runner.val_dataloader.dataset, bare_model(runner.model)
        count = min(self.num_images, len(dataset))
        with kept_generators():
            items = [dataset[number * len(dataset) // count] for number in range(count)]
            looks = [look(model, item) for item in items]
        classes = _classes(runner.val_dataloader)
        for name, draw in (('attention', attention_figure), ('predictions', predictions_figure)):
            runner.visualizer.add_image(name, to_array(draw(looks, classes)), step=done)


def _by_epoch(runner: Runner) -> bool:
    return isinstance(runner.train_loop, EpochBasedTrainLoop)


def _classes(loader: Any) -> tuple[str, ...]:
    return tuple(map(str, loader.dataset.metainfo.get('classes') or ()))
