"""Pictures of what networks look at and say, while they train."""

from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from kd_mm.analysis.pictures.figures import (
    affinity_figure,
    attention_figure,
    predictions_figure,
    to_array,
)
from kd_mm.analysis.pictures.networks import BatchWatch, Look, Watch, shows_relations
from kd_mm.analysis.run_log import SINGLE
from kd_mm.checkpoint import bare_model
from kd_mm.registry import HOOKS

SHOWN = 16  # images of a batch with their affinities


@HOOKS.register_module()
class PictureHook(Hook):
    """Add pictures of the networks to the visualizer at each validation of a training.

    - ``attention``: where each network looks, on the same validation images each time, spread
      over the data set;
    - ``predictions``: what they and their ensemble predict for these images;
    - ``affinity``, of several networks ``affinity_<name>``, where a method has images learn from
      each other (BAKE): what those of the last training batch before the validation take from
      each other, and the soft target of the first one.

    They go to every backend of the visualizer (local: ``vis_data/vis_image``, TensorBoard, WandB)
    with the number of the epoch, or of the iteration where the run counts those. The same for a
    checkpoint: ``tools/visualization``.

    Training is not changed: the hook records passes that happen anyway and draws no random
    numbers, so that weights are the same to the last bit. Only the main process draws, of its own
    images.

    Args:
        interval (int): Validations from one set of pictures to the next, at least 1. The last
            validation always has them. Defaults to 1.
        num_images (int): Validation images to show, at least 1. Defaults to 4.

    Raises:
        ValueError: If an argument is out of range; before the first epoch, if the run does not
            validate.

    Examples:
        >>> custom_hooks = [dict(type='kd_mm.PictureHook', interval=10)]
    """

    priority = 'NORMAL'

    def __init__(self, interval: int = 1, num_images: int = 4) -> None:
        for name, value in (('interval', interval), ('num_images', num_images)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'{name} must be an integer of at least 1, but got {value!r}')
        self.interval = interval
        self.num_images = num_images
        self._watch: Watch | BatchWatch | None = None
        self._trains = False

    def before_train(self, runner: Runner) -> None:
        """Check that there will be a validation.

        Args:
            runner: The runner whose training begins.

        Raises:
            ValueError: If there will be none.
        """
        if runner.val_loop is None:
            raise ValueError(
                'kd_mm.PictureHook draws at each validation, but the run has no val_dataloader; '
                'set val_dataloader, val_cfg and val_evaluator, or remove the hook'
            )
        self._trains = True

    def _is_due(self, runner: Runner, done: int) -> bool:
        """Tell whether pictures belong to the validation after so many epochs or iterations."""
        loop = runner.train_loop
        most = runner.max_epochs if _by_epoch(runner) else runner.max_iters
        return done % (self.interval * loop.val_interval) == 0 or done == most

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any | None = None
    ) -> None:
        """Record what images take from each other in the last step before a validation.

        Args:
            runner: The runner that trains.
            batch_idx: Number of the batch in the epoch.
            data_batch: Unused.
        """
        last, done = True, runner.iter + 1
        if _by_epoch(runner):
            last, done = self.end_of_epoch(runner.train_dataloader, batch_idx), runner.epoch + 1
        if last and is_main_process() and self._is_due(runner, done):
            model = bare_model(runner.model)
            if shows_relations(model):
                self._watch, self._step = BatchWatch(model), done

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Draw the affinities that were recorded.

        Args:
            runner: The runner that trains.
            batch_idx: Unused.
            data_batch: Unused.
            outputs: Unused.
        """
        if self._watch is None:
            return
        self._watch.close()
        found = dict(self._watch.knowledge(SHOWN))
        self._watch = None
        for name, batch in found.items():
            key = 'affinity' if name == SINGLE else f'affinity_{name}'
            figure = affinity_figure(batch, classes=_classes(runner.train_dataloader))
            runner.visualizer.add_image(key, to_array(figure), step=self._step)

    def before_val_epoch(self, runner: Runner) -> None:
        """Choose the images.

        Args:
            runner: The runner that validates.
        """
        self._looks: list[Look] = []
        self._seen = 0
        self._places: list[int] = []
        if not self._trains:
            return
        self._step = runner.epoch if _by_epoch(runner) else runner.iter
        if is_main_process() and self._is_due(runner, self._step):
            size = len(runner.val_dataloader.sampler)
            count = min(self.num_images, size)
            self._places = [number * size // count for number in range(count)]

    def before_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Record a batch with chosen images.

        Args:
            runner: The runner that validates.
            batch_idx: Unused.
            data_batch: The batch.
        """
        first = self._seen
        self._seen += len(data_batch['data_samples'])
        self._chosen = [place - first for place in self._places if first <= place < self._seen]
        if self._chosen:
            self._watch = Watch(bare_model(runner.model))

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Any | None = None,
    ) -> None:
        """Keep what was recorded of the chosen images.

        Args:
            runner: The runner that validates.
            batch_idx: Unused.
            data_batch: Unused.
            outputs: Unused.
        """
        if self._watch is not None:
            self._watch.close()
            self._looks += self._watch.looks(self._chosen)
            self._watch = None

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draw attention and predictions.

        Args:
            runner: The runner that validates.
            metrics: Unused.
        """
        if not self._looks:
            return
        classes = _classes(runner.val_dataloader)
        for name, draw in (('attention', attention_figure), ('predictions', predictions_figure)):
            figure = draw(self._looks, classes)
            runner.visualizer.add_image(name, to_array(figure), step=self._step)
        self._looks = []


def _by_epoch(runner: Runner) -> bool:
    return isinstance(runner.train_loop, EpochBasedTrainLoop)


def _classes(loader: Any) -> tuple[str, ...]:
    return tuple(map(str, loader.dataset.metainfo.get('classes') or ()))
