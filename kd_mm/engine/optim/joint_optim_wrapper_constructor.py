"""Optimizer settings by the name of a student."""

from collections import defaultdict
from collections.abc import Mapping, Sized
from copy import deepcopy

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_CONSTRUCTORS
from torch import nn

from kd_mm.checkpoint import bare_model
from kd_mm.checks import check_choice, did_you_mean, few, nearest
from kd_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

from .joint_optim_wrapper import JointOptimWrapper

TYPES = ('OptimWrapper', 'AmpOptimWrapper', 'kd_mm.Bfloat16OptimWrapper')
PART_OPTIONS = ('prefix', 'optimizer', 'paramwise_cfg', 'clip_grad', 'constructor')


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
        if not self.parts or not isinstance(self.parts, Mapping):
            raise ValueError(
                'optim_wrapper.parts must give the optimizer of each student, such as '
                f"parts=dict(resnet18=dict(optimizer=dict(type='SGD', lr=0.1))), but got "
                f'{self.parts!r}'
            )
        if 'optimizer' in self.cfg or paramwise_cfg is not None:
            key = 'optimizer' if 'optimizer' in self.cfg else 'paramwise_cfg'
            raise ValueError(
                f'with optim_wrapper.parts, {key} belongs to each part, but got '
                f'optim_wrapper.{key}; move it into the parts, or drop an inherited one with '
                'optim_wrapper=dict(_delete_=True, ...)'
            )
        check_choice('optim_wrapper.type', self.cfg.get('type', TYPES[0]), TYPES)
        for name, part in self.parts.items():
            if not isinstance(part, Mapping) or not isinstance(part.get('optimizer'), Mapping):
                raise ValueError(
                    f'optim_wrapper.parts.{name} must be a dict with an optimizer, but got '
                    f'{part!r}'
                )
            if unknown := [key for key in part if key not in (*PART_OPTIONS, '_scope_')]:
                raise TypeError(
                    f'optim_wrapper.parts.{name} has no option {unknown[0]}; there are '
                    f'{", ".join(PART_OPTIONS)}; type, accumulative_counts and what AMP takes '
                    'belong to optim_wrapper itself'
                )

    def __call__(self, model: nn.Module) -> JointOptimWrapper:
        """Build the wrapper.

        Args:
            model: The Distiller, in a distributed wrapper or not.

        Raises:
            ValueError: If a prefix names no module, a part has nothing to train, or a trainable
                parameter is not in exactly one part.
        """
        model = bare_model(model)
        known = dict(model.named_modules(remove_duplicate=False))
        known |= {  # what this model goes without
            f'{name}.{child}' if name else child: None
            for name, module in known.items()
            for child, value in module._modules.items()
            if value is None
        }
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
        part = self.parts[name]
        constructor = ROOT_CONSTRUCTORS.build(
            {
                'type': part.get('constructor', 'DefaultOptimWrapperConstructor'),
                'optim_wrapper_cfg': {k: part[k] for k in ('optimizer', 'clip_grad') if k in part},
                'paramwise_cfg': part.get('paramwise_cfg'),
            }
        )
        return constructor(modules[0] if len(modules) == 1 else nn.ModuleList(modules))


def _module(known: dict[str, nn.Module | None], prefix: str, part: str) -> nn.Module | None:
    """Return the module of a name, or None if it is registered as None."""
    if prefix in known:
        return known[prefix]
    # The module may be deeper than the prefix says.
    deeper = {name.rpartition('.')[2]: name for name in known if name.count('.') < 3}
    siblings = [n for n in known if n and n.rpartition('.')[0] == prefix.rpartition('.')[0]]
    hint = did_you_mean(prefix, siblings)
    if near := nearest(prefix, [*known, *deeper]):
        hint = f'did you mean {deeper.get(near, near)}?'
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
            owners[param].append(part)
    trainable = {name: owners[p] for name, p in model.named_parameters() if p.requires_grad}
    rule = 'each trainable parameter must be in exactly one of optim_wrapper.parts, but'
    if orphans := [name for name, parts in trainable.items() if not parts]:
        prefix = '.'.join(orphans[0].split('.')[:-1][:2])
        raise ValueError(
            f'{rule} {few(orphans)} {_are(orphans)} in none; add a part, such as '
            f"{prefix.rpartition('.')[2]}=dict(prefix='{prefix}', optimizer=dict(...))"
        )
    if twice := {name: parts for name, parts in trainable.items() if len(parts) > 1}:
        raise ValueError(
            f'{rule} {few(twice)} {_are(twice)} in {" and ".join(next(iter(twice.values())))}; '
            'give the parts prefixes of which none holds another, or train a shared module in a '
            'part of its own'
        )


def _are(names: Sized) -> str:
    return 'is' if len(names) == 1 else 'are'
