"""Students that share their first stages: each shared module runs once a step."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .networks import evaluating, zeros_for


class Once:
    """The forward of a shared module: computes once for each input."""

    def __init__(self, forward: Callable) -> None:
        self.forward = forward
        self.calls: list[tuple[tuple, Any]] = []

    def __call__(self, *args, **kwargs) -> Any:
        """Return the output, computed or kept."""
        inputs = (*args, *kwargs.values())
        for seen, output in self.calls:
            if _same(seen, inputs):
                return output
        self.calls.append((inputs, self.forward(*args, **kwargs)))
        return self.calls[-1][1]


def _same(first: tuple, second: tuple) -> bool:
    """Return whether two calls have the same tensors, and equal other arguments."""
    return len(first) == len(second) and all(
        a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)
        for a, b in zip(first, second, strict=True)
    )


class Trunk:
    """The modules up to a stage, which are the same objects in all students.

    Students stay whole networks, so that export, prediction and the metric see nothing of it. The
    first student, in alphabetical order, brings the weights.

    Args:
        students: Networks by name, all of one kind.
        num_stages: Stages to share. With 0, nothing is shared.
        img_size: Height and width in pixels of the image that finds the modules.

    Raises:
        ValueError: If the backbones have too few stages, or a student would recompute a shared
            module.
    """

    def __init__(self, students: Mapping[str, nn.Module], num_stages: int, img_size: int) -> None:
        first, *others = students.values()
        self.paths = _shared_paths(first, num_stages, img_size) if num_stages else []
        self.link(students)
        if self.paths:
            self._check(first, others[0], zeros_for(first, img_size) + 1)

    def link(self, students: Mapping[str, nn.Module]) -> None:
        """Make the modules the same objects in all students, where they are not."""
        first, *others = students.values()
        self.once: list[Once] = []
        for path in self.paths:
            module = first.get_submodule(path)
            if not isinstance(module.forward, Once):
                module.forward = Once(module.forward)
            self.once.append(module.forward)
            above, _, name = path.rpartition('.')
            for student in others:
                if _shapes(student.get_submodule(path)) != _shapes(module):
                    raise ValueError(
                        f'students that share stages must be alike in them, but their {path} '
                        'differ; give them the same backbone up to there'
                    )
                setattr(student.get_submodule(above), name, module)

    def is_linked(self, students: Mapping[str, nn.Module]) -> bool:
        """Return whether all students hold the same modules, as a conversion to SyncBN ends."""
        first, *others = students.values()
        return all(
            isinstance(module.forward, Once)
            and all(student.get_submodule(path) is module for student in others)
            for path in self.paths
            for module in [first.get_submodule(path)]
        )

    def clear(self) -> None:
        """Drop what was computed, at the end of each step."""
        for once in self.once:
            once.calls.clear()

    def _check(self, first: nn.Module, second: nn.Module, image: Tensor) -> None:
        """Raise ValueError unless the second student takes everything from the first one's run."""
        with evaluating(first), evaluating(second):
            first.extract_feat(image)
            counts = [len(once.calls) for once in self.once]
            shared = second.extract_feat(image)
            pairs = zip(self.once, counts, strict=True)
            recomputed = [len(once.calls) > count for once, count in pairs]
            self.clear()
            alone = second.extract_feat(image)
            self.clear()
        changed = not all(torch.equal(a, b) for a, b in zip(shared, alone, strict=True))
        if any(recomputed) or changed:
            what = 'gives another output'
            if any(recomputed):
                what = f'recomputes {self.paths[recomputed.index(True)]}'
            raise ValueError(
                f'shared_stages must name stages that a second student takes over, but it {what}; '
                'share fewer stages, or use another backbone'
            )


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters by name."""
    return {name: tuple(param.shape) for name, param in module.named_parameters()}


def _shared_paths(student: nn.Module, num_stages: int, img_size: int) -> list[str]:
    """Return the largest modules that have done all their work when a stage ends, by path."""
    backbone = getattr(student, 'backbone', nn.Module())
    stages = [m for name, m in backbone.named_children() if re.fullmatch(r'layer\d+', name)]
    for attribute in ('layers', 'stages', 'res_layers'):  # lists of names, or of modules
        found = getattr(backbone, attribute, None)
        if isinstance(found, (list, nn.ModuleList, nn.Sequential)):
            stages = [getattr(backbone, s) if isinstance(s, str) else s for s in found]
    if num_stages >= len(stages):
        raise ValueError(
            f'shared_stages must be below the number of stages, {len(stages)} of the backbone '
            f'({type(backbone).__name__}), but got {num_stages}; the last stage is what makes '
            'students different'
        )
    # What the backbone itself calls, in the order in which the calls end.
    paths = {module: f'backbone.{path}' for path, module in backbone.named_modules()}
    running: list[nn.Module] = []
    ended: list[nn.Module] = []

    def begin(module: nn.Module, args: tuple) -> None:
        running.append(module)

    def end(module: nn.Module, args: tuple, output: Any) -> None:
        running.pop()
        if running == [backbone]:
            ended.append(module)

    handles = [m.register_forward_pre_hook(begin) for m in paths]
    handles += [m.register_forward_hook(end) for m in paths]
    try:
        with evaluating(student):
            student.extract_feat(zeros_for(student, img_size))
    finally:
        for handle in handles:
            handle.remove()
    # Of a module that runs several times, the last call counts.
    ends = {module: order for order, module in enumerate(ended)}
    last = max(ends[module] for module in stages[num_stages - 1].modules() if module in ends)
    return [paths[module] for module, order in ends.items() if order <= last]
