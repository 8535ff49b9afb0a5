"""Students that share their first stages: each shared module runs once a step."""

import re
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from .networks import evaluating, zeros_for


class Once:
    """The forward of a shared module: computes once for each input.

    Args:
        forward: The module's own forward.
    """

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
        num_stages: Stages to share, at least 1.
        img_size: Height and width in pixels of the image that finds the modules.

    Raises:
        ValueError: If the backbones have too few stages, or a student would recompute a shared
            module.
    """

    def __init__(self, students: Mapping[str, nn.Module], num_stages: int, img_size: int) -> None:
        names = list(students)
        first = students[names[0]]
        self.paths = _shared_paths(first, names[0], num_stages, img_size)
        self.link(students)
        self._check(students, img_size)

    def link(self, students: Mapping[str, nn.Module]) -> None:
        """Make the modules the same objects in all students, where they are not.

        Args:
            students: Networks by name.
        """
        first, *others = students.values()
        self.once: list[Once] = []
        for path in self.paths:
            module = first.get_submodule(path)
            if not isinstance(module.forward, Once):
                module.forward = Once(module.forward)
            self.once.append(module.forward)
            above, _, name = path.rpartition('.')
            for student in others:
                _check_alike(student.get_submodule(path), module, path)
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

    def _check(self, students: Mapping[str, nn.Module], img_size: int) -> None:
        """Raise ValueError unless the second student takes everything from the first one's run."""
        first, second = list(students.values())[:2]
        image = zeros_for(first, img_size) + 1
        with evaluating(first), evaluating(second):
            first.extract_feat(image)
            counts = [len(once.calls) for once in self.once]
            shared = second.extract_feat(image)
            paths = [
                path
                for path, once, count in zip(self.paths, self.once, counts, strict=True)
                if len(once.calls) > count
            ]
            self.clear()
            alone = second.extract_feat(image)
            self.clear()
        changed = not all(torch.equal(a, b) for a, b in zip(shared, alone, strict=True))
        if paths or changed:
            what = f'recomputes {paths[0]}' if paths else 'gives another output'
            raise ValueError(
                f'shared_stages must name stages that a second student takes over, but it {what}; '
                'share fewer stages, or use another backbone'
            )


def _check_alike(module: nn.Module, shared: nn.Module, path: str) -> None:
    """Raise ValueError unless two modules have parameters of the same shapes."""
    shapes = [{n: tuple(p.shape) for n, p in m.named_parameters()} for m in (module, shared)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f'students that share stages must be alike in them, but their {path} differ; give '
            'them the same backbone up to there'
        )


def _stages(backbone: nn.Module) -> list[nn.Module]:
    """Return the stages of a backbone, shallow to deep."""
    for attribute in ('res_layers', 'stages', 'layers'):  # lists of names, or of modules
        stages = getattr(backbone, attribute, None)
        if isinstance(stages, (list, nn.ModuleList, nn.Sequential)):
            return [getattr(backbone, s) if isinstance(s, str) else s for s in stages]
    return [m for name, m in backbone.named_children() if re.fullmatch(r'layer\d+', name)]


def _shared_paths(student: nn.Module, name: str, num_stages: int, img_size: int) -> list[str]:
    """Return the largest modules that have done all their work when a stage ends, by path."""
    stages = _stages(getattr(student, 'backbone', nn.Module()))
    if num_stages >= len(stages):
        raise ValueError(
            f'shared_stages must be below the number of stages, {len(stages)} of the backbone of '
            f'{name} ({type(getattr(student, "backbone", None)).__name__}), but got {num_stages}; '
            'the last stage is what makes students different'
        )
    # What the backbone itself calls, by path, and when the call ends.
    paths = {module: f'backbone.{path}' for path, module in student.backbone.named_modules()}
    stack: list[nn.Module] = []
    ends: dict[nn.Module, int] = {}
    clock = count()

    def begin(module: nn.Module, args: tuple) -> None:
        stack.append(module)

    def end(module: nn.Module, args: tuple, output: Any) -> None:
        stack.pop()
        if stack == [student.backbone]:
            ends[module] = next(clock)

    handles = [m.register_forward_pre_hook(begin) for m in paths]
    handles += [m.register_forward_hook(end) for m in paths]
    try:
        with evaluating(student):
            student.extract_feat(zeros_for(student, img_size))
    finally:
        for handle in handles:
            handle.remove()
    last = max(ends[module] for module in stages[num_stages - 1].modules() if module in ends)
    return [paths[module] for module, order in ends.items() if order <= last]
