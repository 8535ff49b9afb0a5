"""Loss weights that grow over the first epochs."""

import math
from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from kd_mm.registry import HOOKS
from kd_mm.utils.checkpoint import bare_model


def ramp(epoch: int, ramp_epochs: int) -> float:
    r"""Share of a loss weight in an epoch.

    .. math:: \exp(-5 \, (1 - e / E)^2) \text{ for } e \le E, \quad 1 \text{ after}

    Source: FFSD's released code, with E = 5; the sigmoid-shaped ramp of Laine and Aila,
    "Temporal Ensembling for Semi-Supervised Learning" (2017), section 2.

    Args:
        epoch: e, counted from 1.
        ramp_epochs: E, at least 1.

    Returns:
        A number in (0, 1].

    Examples:
        >>> [round(ramp(epoch, 5), 3) for epoch in (1, 3, 5, 6)]
        [0.041, 0.449, 1.0, 1.0]
    """
    return math.exp(-5 * max(0.0, 1 - epoch / ramp_epochs) ** 2)


@HOOKS.register_module()
class LossWeightRampHook(Hook):
    """Let loss weights grow from nearly nothing to their value over the first epochs.

    At the start of each epoch, each named attribute of the model is set to its configured value
    times :func:`~kd_mm.engine.hooks.loss_weight_ramp_hook.ramp`. It follows from the number of
    the epoch alone, so a resumed run goes on exactly. When training ends, the attributes have
    their configured values.

    Args:
        names (Sequence[str]): Attributes that are numbers, by their path in the model:
            ``'diversity_weight'`` of ``kd_mm.FFSD``, ``'loss_weight'`` of ``kd_mm.KDCL``,
            ``'head.bake_loss.loss_weight'`` of a classifier with ``kd_mm.BAKEHead``.
        ramp_epochs (int): First epoch, counted from 1, with the whole weight. Defaults to 5.

    Raises:
        ValueError: If there are no names or ``ramp_epochs`` is below 1; before the first epoch,
            if a name is no number of the model or the training loop knows no epochs.
    """

    def __init__(self, names: Sequence[str], ramp_epochs: int = 5) -> None:
        if isinstance(names, str) or not names:
            raise ValueError(
                "names must list attributes of the model, such as ['diversity_weight'], but got "
                f'{names!r}'
            )
        if isinstance(ramp_epochs, bool) or not isinstance(ramp_epochs, int) or ramp_epochs < 1:
            raise ValueError(f'ramp_epochs must be an integer of at least 1, got {ramp_epochs!r}')
        self.names = tuple(names)
        self.ramp_epochs = ramp_epochs

    def before_train(self, runner: Runner) -> None:
        """Note the configured weights.

        Args:
            runner: The runner whose training begins.

        Raises:
            ValueError: See the class.
        """
        model = bare_model(runner.model)
        self.check(model, not isinstance(runner.train_loop, IterBasedTrainLoop))
        self._weights = {name: _weight(model, name) for name in self.names}

    def check(self, model: nn.Module, by_epoch: bool) -> None:
        """Check that a model has the named weights.

        Args:
            model: The model of a run.
            by_epoch: Whether its training loop knows epochs.

        Raises:
            ValueError: See the class.
        """
        if not by_epoch:
            raise ValueError(
                'kd_mm.LossWeightRampHook counts epochs, but the training loop is an '
                'IterBasedTrainLoop; use train_cfg=dict(by_epoch=True, max_epochs=...)'
            )
        for name in self.names:
            _weight(model, name)

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the weights of this epoch.

        Args:
            runner: The runner that trains.
        """
        self._set(runner, ramp(runner.epoch + 1, self.ramp_epochs))

    def after_train(self, runner: Runner) -> None:
        """Set the weights back.

        Args:
            runner: The runner whose training ended.
        """
        self._set(runner, 1.0)

    def _set(self, runner: Runner, share: float) -> None:
        model = bare_model(runner.model)
        for name, weight in self._weights.items():
            path, _, attribute = name.rpartition('.')
            setattr(model.get_submodule(path), attribute, weight * share)


def _weight(model: nn.Module, name: str) -> float:
    """Return a number of the model by its path."""
    path, _, attribute = name.rpartition('.')
    module = dict(model.named_modules()).get(path)
    value = getattr(module, attribute, None)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(
            f'kd_mm.LossWeightRampHook needs names of numbers in {type(model).__name__}, but '
            f'{name!r} is {"none" if value is None else f"a {type(value).__name__}"}; give the '
            "path of a loss weight, such as 'loss_weight' or 'head.bake_loss.loss_weight'"
        )
    return value
