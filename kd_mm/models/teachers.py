"""Frozen networks that students learn from."""

from collections.abc import Mapping
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmpretrain.models.utils import ClsDataPreprocessor
from torch import Tensor, nn

from kd_mm.checkpoint import load_checkpoint
from kd_mm.checks import check_int, few
from kd_mm.methods.base import Seen

from .networks import EmbeddingTap, build_network, recipe, see, student_cfg

OWN_OPTIONS = ('checkpoint', 'copy_of', 'input_size')  # a teacher's, not its classifier's


class Teachers:
    """Frozen classifiers by name, outside of the module tree.

    So they are absent from parameters, state_dict, DDP, EMA and optimizers. Only device, dtype
    and memory format of the model reach them. They run in evaluation mode and without gradient.

    A teacher is a classifier config, or a recipe by ``cfg_path``, with

    - ``checkpoint``: file of its weights, which must fit strictly; or
    - ``copy_of``: name of a student, in place of a classifier. It starts as a copy of the
      student's weights, and a method refreshes it;
    - ``input_size``: height and width in pixels of its images, where the students have others;
    - ``data_preprocessor``: its ``mean``, ``std`` and ``to_rgb``, where it was trained on other
      ones than the students. That of a recipe is taken by itself.

    Args:
        cfgs: Configs by name.
        students: The networks that it may be a copy of.
    """

    def __init__(self, cfgs: Mapping[str, Mapping], students: Mapping[str, nn.Module]) -> None:
        self.networks: dict[str, nn.Module] = {}
        self.taps: dict[str, EmbeddingTap] = {}
        self.files: dict[str, str] = {}
        self.copies: dict[str, str] = {}
        self.hashes: dict[str, str] = {}
        self.ready = not cfgs
        self._students = students
        self._preprocessors: dict[str, ClsDataPreprocessor] = {}
        self._sizes: dict[str, int] = {}
        for name, cfg in sorted(cfgs.items()):
            self._add(name, ConfigDict(cfg))

    def __deepcopy__(self, memo: dict) -> 'Teachers':
        return self  # an average of the model needs no teachers of its own

    def _add(self, name: str, cfg: ConfigDict) -> None:
        """Build one teacher, without its weights."""
        checkpoint, copy_of = cfg.pop('checkpoint', None), cfg.pop('copy_of', None)
        input_size, own = cfg.pop('input_size', None), cfg.pop('data_preprocessor', None)
        if (checkpoint is None) == (copy_of is None) or (copy_of is not None and cfg):
            raise ValueError(
                f'teachers.{name} must have either the config of a classifier and the file of '
                'its weights, checkpoint=..., or only copy_of=<name of a student>, but got '
                f'checkpoint={checkpoint!r} and copy_of={copy_of!r}'
            )
        if copy_of is None:
            if own is None and 'cfg_path' in cfg:
                own = recipe(cfg.cfg_path).get('data_preprocessor')
            network = build_network(student_cfg(cfg), f'teachers.{name}')
            self.files[name] = checkpoint
        elif copy_of in self._students:
            network = deepcopy(self._students[copy_of])
            self.copies[name] = copy_of
        else:
            raise ValueError(
                f'teachers.{name}.copy_of must name one of the students '
                f'{", ".join(self._students)}, but got {copy_of!r}'
            )
        if own is not None:
            own = {key: own[key] for key in ('mean', 'std', 'to_rgb') if key in own}
            self._preprocessors[name] = ClsDataPreprocessor(**own)
        if input_size is not None:
            check_int('input_size', input_size)
            self._sizes[name] = input_size
        self.networks[name] = network.requires_grad_(False).eval()
        self.taps[name] = EmbeddingTap(network, f'teacher {name}')

    def load(self) -> None:
        """Load the weights of each teacher.

        Raises:
            OSError: If there is no such file.
            ValueError: If a file cannot be read safely, or does not fit strictly.
        """
        self.copy_students()
        for name, path in self.files.items():
            weights = load_checkpoint(path)['state_dict']
            weights = {key.removeprefix('module.'): w for key, w in weights.items()}
            known = self.networks[name].state_dict()
            problems = {
                'lacks': [key for key in known if key not in weights],
                'has no place for': [key for key in weights if key not in known],
                'differs in': [
                    k for k in known if k in weights and known[k].shape != weights[k].shape
                ],
            }
            for kind, keys in problems.items():
                if keys:
                    raise ValueError(
                        f'the checkpoint of teacher {name} must hold exactly its weights, but '
                        f'{path} {kind} {few(keys)}; give the config that it was trained with'
                    )
            self.networks[name].load_state_dict(weights)
            if Path(path).is_file():
                self.hashes[name] = sha256(Path(path).read_bytes()).hexdigest()
        self.ready = True

    def copy_students(self) -> None:
        """Give each teacher that is a copy of a student the student's weights."""
        for name, student in self.copies.items():
            self.networks[name].load_state_dict(self._students[student].state_dict())

    @torch.no_grad()
    def see(self, views: list[Tensor], students: ClsDataPreprocessor) -> dict[str, list[Seen]]:
        """Run each teacher on each view.

        Args:
            views: Images (N, C, H, W), as the students see them.
            students: What normalised them.

        Returns:
            What each teacher made of each view, in the order of the views.

        Raises:
            RuntimeError: If the teachers have no weights yet.
        """
        if not self.ready:
            raise RuntimeError(
                'teachers must have their weights before training; call init_weights() of the '
                "model, as MMEngine's Runner does"
            )
        found = {}
        for name, network in self.networks.items():
            images = [self._as_trained(name, view, students) for view in views]
            found[name] = [see(network, image, self.taps[name], False) for image in images]
        return found

    def _as_trained(self, name: str, images: Tensor, students: ClsDataPreprocessor) -> Tensor:
        """Return images (N, C, H, W) with the size, mean, std and channels of a teacher."""
        size = (self._sizes.get(name),) * 2
        if name in self._sizes and tuple(images.shape[-2:]) != size:
            images = F.interpolate(
                images, size, mode='bilinear', align_corners=False, antialias=True
            )
        own = self._preprocessors.get(name)
        if own is None:
            return images
        mean, std = _statistics(students, images)
        images = images * std + mean
        if own.to_rgb != students.to_rgb and images.shape[1] == 3:
            images = images.flip(1)
        mean, std = _statistics(own, images)
        return (images - mean) / std

    def copied_state(self) -> dict[str, Any]:
        """Return the weights of the teachers that are copies of students, for a checkpoint."""
        return {name: self.networks[name].state_dict() for name in self.copies}

    def load_copied_state(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`copied_state` returned."""
        for name, weights in state.items():
            self.networks[name].load_state_dict(weights)


def _statistics(preprocessor: ClsDataPreprocessor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and std of a preprocessor, as (C, 1, 1), or 0 and 1."""
    if not preprocessor._enable_normalize:
        return images.new_zeros(()), images.new_ones(())
    return preprocessor.mean.to(images), preprocessor.std.to(images)
