"""What MMEngine's ``compile`` had better leave alone."""

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner

from kd_mm.registry import HOOKS


def keep_eager(optim_wrapper: OptimWrapper | OptimWrapperDict) -> None:
    """Keep a wrapper's update out of a compiled training step.

    The graph ends at the backward pass in any case. Behind it, torch would compile each optimizer
    anew for each learning rate.

    Args:
        optim_wrapper: Changed in place.
    """
    optim_wrapper.update_params = torch.compiler.disable(optim_wrapper.update_params)


@HOOKS.register_module()
class CompileHook(Hook):
    """Let ``compile=True`` of a config compile networks and losses, and no optimizer.

    MMEngine compiles the whole training step. Its optimizer would be compiled again whenever a
    schedule changes the learning rate, until torch gives up. Without ``compile`` in the config
    the hook does nothing.

    Examples:
        >>> default_hooks = dict(compile=dict(type='kd_mm.CompileHook'))
    """

    def before_train(self, runner: Runner) -> None:
        """Take the update out of the step, which is compiled when it first runs.

        Args:
            runner: The runner whose training begins.
        """
        if runner.cfg.get('compile'):
            keep_eager(runner.optim_wrapper)
