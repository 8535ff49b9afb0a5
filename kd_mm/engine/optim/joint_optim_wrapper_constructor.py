"""Optimizer settings by the name of a student."""

import difflib
from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_CONSTRUCTORS
from torch import nn

from kd_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

from .joint_optim_wrapper import JointOptimWrapper

TYPES = ('OptimWrapper', 'AmpOptimWrapper', 'kd_mm.Bfloat16OptimWrapper')
PART_OPTIONS = ('prefix', 'optimizer', 'paramwise_cfg', 'clip_grad', 'constructor')
SHOWN = 3


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class JointOptimWrapperConstructor:
    """Build a :class:`JointOptimWrapper` from optimizer settings by name.

    .. code-block:: python

        optim_wrapper = dict(
            constructor='kd_mm.JointOptimWrapperConstructor',
            accumulative_counts=1,
            parts=dict(
                resnet50=dict(optimizer=dict(type='SGD', lr=0.8, weight_decay=1e-4)),
                mobilenet=dict(
                    optimizer=dict(type='SGD', lr=0.8, weight_decay=4e-5),
                    paramwise_cfg=dict(norm_decay_mult=0),
                ),
            ),
        )
        param_scheduler = dict(
            resnet50=dict(type='MultiStepLR', milestones=[30, 60, 90]),
            mobilenet=dict(type='CosineAnnealingLR'),
        )

    A part takes the settings of its student's own recipe: its constructor sees the student alone,
    so keys of ``paramwise_cfg`` are names inside it. Each trainable parameter is in exactly one
    part. ``param_scheduler`` is one schedule for all parts, or a dict with each part's; over an
    inherited list, such a dict and ``optim_wrapper`` need ``_delete_=True``.

    Args:
        optim_wrapper_cfg (dict): ``parts``, and the settings of the wrapper of all: ``type``
            (``'OptimWrapper'``, ``'AmpOptimWrapper'`` or ``'kd_mm.Bfloat16OptimWrapper'``),
            ``accumulative_counts``, ``clip_grad`` over all parts, ``loss_scale`` and ``dtype``
            under AMP. A part is a dict of

            - ``optimizer``: config of the optimizer;
            - ``prefix``: name, or list of names, of the modules whose parameters it trains;
              ``students.<name of the part>`` by default. A module that is registered as None
              (``kd_mm.FFSD`` without a fusion) has none, and a part of such alone is left out;
            - ``paramwise_cfg``, ``constructor``: as in ``optim_wrapper``;
            - ``clip_grad``: clips the part's gradients alone.
        paramwise_cfg (dict, optional): Refused; it belongs to a part.

    Raises:
        ValueError: If there are no parts, a setting is at the wrong level, or ``type`` is unknown.
        TypeError: If a part has an unknown option.

    Examples:
        >>> model = nn.ModuleDict({'students': nn.ModuleDict({'a': nn.Linear(1, 1)})})
        >>> parts = {'a': {'optimizer': {'type': 'SGD', 'lr': 0.8}}}
        >>> JointOptimWrapperConstructor({'parts': parts})(model).get_lr()
        {'a.lr': [0.8]}
    """

    def __init__(self, optim_wrapper_cfg: Mapping, paramwise_cfg: Mapping | None = None) -> None:
        self.cfg = deepcopy(dict(optim_wrapper_cfg))
        self.parts = self.cfg.pop('parts', None)
        if not self.parts:
            raise ValueError(
                'optim_wrapper.parts must give the optimizer of each student, such as '
                f"parts=dict(resnet18=dict(optimizer=dict(type='SGD', lr=0.1))), but got "
                f'{self.parts}'
            )
        if not isinstance(self.parts, Mapping):
            raise ValueError(
                'optim_wrapper.parts must be a dict with settings by the name of a part, but got '
                f'{self.parts!r}'
            )
        if 'optimizer' in self.cfg or paramwise_cfg is not None:
            key = 'optimizer' if 'optimizer' in self.cfg else 'paramwise_cfg'
            raise ValueError(
                f'with optim_wrapper.parts, {key} belongs to each part, but got '
                f'optim_wrapper.{key}; move it into the parts, or drop an inherited one with '
                'optim_wrapper=dict(_delete_=True, ...)'
            )
        if self.cfg.get('type', TYPES[0]) not in TYPES:
            raise ValueError(
                f'optim_wrapper.type must be one of {", ".join(TYPES)}, but got '
                f'{self.cfg["type"]!r}'
            )
        for name, part in self.parts.items():
            self._check_part(name, part)

    @staticmethod
    def _check_part(name: str, part: Mapping) -> None:
        """Raise if a part is not what the constructor takes."""
        if not isinstance(part, Mapping) or not isinstance(part.get('optimizer'), Mapping):
            raise ValueError(
                f'optim_wrapper.parts.{name} must be a dict with an optimizer, but got {part!r}'
            )
        for key in part:
            if key not in (*PART_OPTIONS, '_scope_'):
                raise TypeError(
                    f'optim_wrapper.parts.{name} has no option {key}; there are '
                    f'{", ".join(PART_OPTIONS)}; type, accumulative_counts and what AMP takes '
                    'belong to optim_wrapper itself'
                )

    def __call__(self, model: nn.Module) -> JointOptimWrapper:
        """Build the wrapper.

        Args:
            model: The cohort, in a distributed wrapper or not.

        Returns:
            The parts' optimizers as one.

        Raises:
            ValueError: If a prefix names no module, a part has nothing to train, or a trainable
                parameter is not in exactly one part.
        """
        if is_model_wrapper(model):
            model = model.module
        known = dict(model.named_modules(remove_duplicate=False))
        known |= _absent(known)
        modules = {}
        for name, part in self.parts.items():
            prefixes = part.get('prefix', f'students.{name}')
            prefixes = [prefixes] if isinstance(prefixes, str) else list(prefixes)
            found = [_module(known, prefix, name) for prefix in prefixes]
            if any(module is not None for module in found):
                modules[name] = [module for module in found if module is not None]
        _check_owners(model, modules)
        parts = {name: self._build_part(name, modules[name]) for name in modules}
        return JointOptimWrapper(parts, self.cfg)

    def _build_part(self, name: str, modules: list[nn.Module]) -> OptimWrapper:
        """Build the optimizer of one part as MMEngine builds that of a model."""
        cfg = {key: v for key, v in self.parts[name].items() if key in ('optimizer', 'clip_grad')}
        constructor = ROOT_CONSTRUCTORS.build(
            {
                'type': self.parts[name].get('constructor', 'DefaultOptimWrapperConstructor'),
                'optim_wrapper_cfg': cfg,
                'paramwise_cfg': self.parts[name].get('paramwise_cfg'),
            }
        )
        return constructor(modules[0] if len(modules) == 1 else nn.ModuleList(modules))


def _absent(known: dict[str, nn.Module]) -> dict[str, None]:
    """Return the names that modules have registered as None: what this model goes without."""
    return {
        f'{name}.{child}' if name else child: None
        for name, module in known.items()
        for child, value in module._modules.items()
        if value is None
    }


def _module(known: dict[str, nn.Module | None], prefix: str, part: str) -> nn.Module | None:
    """Return the module of a name, or None if it is registered as None."""
    if prefix in known:
        return known[prefix]
    near = difflib.get_close_matches(prefix, known, n=1)
    if not near:  # the module may lie deeper than the prefix says
        last = {name.rpartition('.')[2]: name for name in known if name.count('.') < 3}
        near = [last[word] for word in difflib.get_close_matches(prefix, last, n=1)]
    above = prefix.rpartition('.')[0]
    beside = [name for name in known if name and name.rpartition('.')[0] == above]
    hint = f'did you mean {near[0]}?' if near else f'there are {", ".join(beside) or "none"}'
    raise ValueError(
        f'optim_wrapper.parts.{part}: prefix must name a module of the model, but got '
        f'{prefix!r}; {hint}'
    )


def _check_owners(model: nn.Module, modules: dict[str, list[nn.Module]]) -> None:
    """Raise unless each trainable parameter is in exactly one part, and each part has some."""
    owners = defaultdict(list)
    for part, members in modules.items():
        params = [p for module in members for p in module.parameters()]
        if not any(p.requires_grad for p in params):
            raise ValueError(
                f'optim_wrapper.parts.{part} must have something to train, but each of its '
                f'{len(params)} parameters is frozen; leave the part out'
            )
        for param in params:
            owners[id(param)].append(part)
    trainable = {name: owners[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    rule = 'each trainable parameter must be in exactly one of optim_wrapper.parts, but'
    orphans = [name for name, parts in trainable.items() if not parts]
    if orphans:
        prefix = '.'.join(orphans[0].split('.')[:-1][:2])
        raise ValueError(
            f'{rule} {_shorten(orphans)} in none; add a part, such as '
            f"{prefix.rpartition('.')[2]}=dict(prefix='{prefix}', optimizer=dict(...))"
        )
    twice = {name: parts for name, parts in trainable.items() if len(parts) > 1}
    if twice:
        raise ValueError(
            f'{rule} {_shorten(list(twice))} in {" and ".join(next(iter(twice.values())))}; give '
            'the parts prefixes of which none holds another, or train a shared module in a part '
            'of its own'
        )


def _shorten(names: list[str]) -> str:
    """Return the first few names as the subject of a sentence."""
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return f'{", ".join(names[:SHOWN])}{more} {"is" if len(names) == 1 else "are"}'
