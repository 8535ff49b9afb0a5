"""Optimizers of several parts behind one ``update_params``."""

from collections.abc import Mapping
from contextlib import AbstractContextManager

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.optim import Optimizer


class JointOptimizer(Optimizer):
    """The optimizers of all parts as one, for a wrapper or a GradScaler that takes one.

    It holds all parameters in one group, so that unscaling, clipping and overflow checks see the
    gradients of all parts at once. A step is one step of each part.

    Args:
        parts (dict[str, OptimWrapper]): Wrapped optimizers of disjoint parameters, by name.
    """

    def __init__(self, parts: Mapping[str, OptimWrapper]) -> None:
        self.parts = dict(parts)
        groups = [g for part in self.parts.values() for g in part.optimizer.param_groups]
        super().__init__([param for group in groups for param in group['params']], defaults={})

    def step(self) -> None:
        """Clip as each part asks for, and update all parts."""
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict:
        """Return each part's state by name, under ``parts``."""
        return {'parts': {name: part.state_dict() for name, part in self.parts.items()}}

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what :meth:`state_dict` returned; raise ValueError if it has other parts."""
        states = state_dict.get('parts', {})
        if states.keys() != self.parts.keys():
            raise ValueError(
                'a resumed run must have the optimizer parts of its checkpoint, '
                f'{", ".join(states) or "a single optimizer"}, but got {", ".join(self.parts)}; '
                'keep the names in optim_wrapper.parts, or start another run from its weights '
                'with load_from and resume=False'
            )
        for name, state in states.items():
            self.parts[name].load_state_dict(dict(state))


class JointOptimWrapper(OptimWrapperDict):
    """Optimizers of several parts of a model that share one backward pass and step together.

    MMEngine's ``OptimWrapperDict`` names each optimizer, in logged learning rates
    (``<name>.lr``), in ``param_scheduler=dict(<name>=...)`` and for ``auto_scale_lr``, but refuses
    ``update_params``, which the stock ``train_step`` and the stock distributed wrapper call. Here
    one wrapper of MMEngine's, over a ``JointOptimizer``, does that for all parts: accumulation
    with ``no_sync``, autocast, one GradScaler. If a gradient of one part overflows, no part steps.

    Args:
        parts (dict[str, OptimWrapper]): Wrapped optimizers of disjoint parameters, by name. Their
            gradients are clipped each by its own wrapper's ``clip_grad``, whose norm is logged
            as ``<name>.grad_norm``.
        cfg (dict, optional): The wrapper of all: ``type='OptimWrapper'`` (the default) or
            ``'AmpOptimWrapper'`` or ``'kd_mm.Bfloat16OptimWrapper'``, and its arguments, such as
            ``accumulative_counts``, ``clip_grad`` (over all parts together) or ``loss_scale``.
            Left as it is.

    Examples:
        >>> import torch
        >>> a, b = (nn.Parameter(torch.ones(1)) for _ in 'ab')
        >>> parts = {'a': torch.optim.SGD([a], lr=0.5), 'b': torch.optim.Adam([b], lr=0.25)}
        >>> joint = JointOptimWrapper({n: OptimWrapper(part) for n, part in parts.items()})
        >>> joint.update_params((a * b).sum())
        >>> a.item(), round(b.item(), 4), joint.get_lr()
        (0.5, 0.75, {'a.lr': [0.5], 'b.lr': [0.25]})
    """

    def __init__(self, parts: Mapping[str, OptimWrapper], cfg: Mapping | None = None) -> None:
        super().__init__(**parts)
        for name, part in parts.items():
            if part.clip_grad_kwargs:
                part.grad_name = f'{name}.{part.grad_name}'
        cfg = {'type': 'OptimWrapper', **(cfg or {})}
        if cfg.get('clip_grad') is not None:
            cfg['clip_grad'] = dict(cfg['clip_grad'])  # MMEngine takes its type out
        self.joint = OPTIM_WRAPPERS.build({**cfg, 'optimizer': JointOptimizer(parts)})

    def update_params(
        self, loss: Tensor, step_kwargs: dict | None = None, zero_kwargs: dict | None = None
    ) -> None:
        """Backward once, then, if gradients are complete, step all parts and zero gradients."""
        self.joint.update_params(loss, step_kwargs, zero_kwargs)

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Backward the loss, scaled by the GradScaler if there is one, and count."""
        self.joint.backward(loss, **kwargs)

    def step(self, **kwargs) -> None:
        """Update all parts, or none if a gradient overflowed under a GradScaler."""
        self.joint.step(**kwargs)

    def zero_grad(self, **kwargs) -> None:
        """Clear the gradients of all parts."""
        self.joint.zero_grad(**kwargs)

    def optim_context(self, model: nn.Module) -> AbstractContextManager:
        """Return the context of a forward pass: autocast, and ``no_sync`` where it is due."""
        return self.joint.optim_context(model)

    def initialize_count_status(self, model: nn.Module, cur_iter: int, max_iters: int) -> None:
        """Take over where training stands, so that the last accumulation is complete."""
        self.joint.initialize_count_status(model, cur_iter, max_iters)

    def should_update(self) -> bool:
        """Return whether the gradients are complete."""
        return self.joint.should_update()

    def should_sync(self) -> bool:
        """Return whether the next backward pass completes the gradients."""
        return self.joint.should_sync()

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return the loss divided by the number of passes whose gradients add up."""
        return self.joint.scale_loss(loss)

    @property
    def inner_count(self) -> int:
        """Backward passes done."""
        return self.joint.inner_count

    def state_dict(self) -> dict:
        """Return each part's state by name under ``parts``, and under AMP ``loss_scaler``."""
        return self.joint.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what :meth:`state_dict` returned, with or without AMP."""
        self.joint.load_state_dict(dict(state_dict))
