"""What a distillation method is: terms of the loss, from what the networks made of a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from mmpretrain.structures import DataSample
from torch import Tensor, nn

# What a method may need, and how to give it. The Distiller checks this when it is built.
NEEDS = {
    'teacher': 'a teacher; add model.teachers=dict(name=dict(cfg_path=..., checkpoint=...))',
    'peers': 'at least two students; add one to model.students',
    'maps': 'the maps of several stages; set out_indices of the backbone',
    'views': 'several views of each image for each student; set model.views to their number',
    'clock': 'the epoch',
    'index': 'the number of each image',
    'held_out': 'images that training leaves out',
    'class_instances': (
        'batches with images of the same class; set train_dataloader.sampler='
        "dict(_delete_=True, type='kd_mm.ClassInstanceSampler', num_instances=2)"
    ),
}

# Rows of the metric that are no network's, and so names that no network may have.
SUMMARY_ROWS = ('mean', 'best')
JOINT_ROWS = ('ensemble', 'any_right', 'fusion')
RESERVED_ROWS = (*SUMMARY_ROWS, *JOINT_ROWS)


class Seen(NamedTuple):
    """What one network made of one view of the batch.

    Attributes:
        logits: (N, K).
        embedding: (N, D), the input of the network's last linear layer.
        maps: Outputs of the backbone, shallow to deep. Empty without a backbone of mmpretrain's.
    """

    logits: Tensor
    embedding: Tensor
    maps: tuple[Tensor, ...]


class Clock(NamedTuple):
    """Where training stands. Epochs and iterations are counted from 0.

    Attributes:
        num_images: Images of the training set. Repeats of an image count once.
    """

    epoch: int
    max_epochs: int
    iteration: int
    max_iters: int
    num_images: int


def labels_of(data_samples: list[DataSample]) -> Tensor:
    """Return what the classification losses see: mixed scores (N, K), or classes (N,)."""
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples]).float()
    return torch.cat([sample.gt_label for sample in data_samples])


class Step(NamedTuple):
    """All that a method may look at.

    Attributes:
        students: By name, then by view. With gradient.
        teachers: Likewise, without gradient. Empty in prediction.
        labels: (N,) classes or (N, K) soft labels. None in prediction.
        weight: (N,) weight of each image in the students' own losses. None: 1 for each.
        index: (N,) number of each image in the training set, where a method needs it.
        clock: Where training stands. None in prediction, and outside of a run.
    """

    students: dict[str, list[Seen]]
    teachers: dict[str, list[Seen]]
    labels: Tensor | None = None
    weight: Tensor | None = None
    index: Tensor | None = None
    clock: Clock | None = None

    def logits(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return the logits (N, K) of each student's first view; ``names`` None means all."""
        return {name: self.students[name][0].logits for name in names or self.students}


class Roles(NamedTuple):
    """What a method makes of the students.

    Attributes:
        deploy: The student that predicts and is deployed. None: the method does not mind.
        exported: Students that a finished training exports. None: all.
        outside_ensemble: Students that are no part of the ensemble in metric and diagnostics.
        stages: Students whose maps of several stages the method reads; the others give their
            deepest map alone. None: the method reads no maps.
        views_without_gradient: Numbers of the views that need no gradient.
    """

    deploy: str | None = None
    exported: tuple[str, ...] | None = None
    outside_ensemble: tuple[str, ...] = ()
    stages: tuple[str, ...] | None = None
    views_without_gradient: tuple[int, ...] = ()


class Networks(NamedTuple):
    """The networks by name, for which :meth:`Method.setup` builds necks and classifiers.

    Attributes:
        num_classes: K.
        probe: Returns what a network (a student or a teacher, by name) makes of an image of
            zeros, in evaluation mode: for the widths and sizes of maps and embeddings.
    """

    students: Mapping[str, nn.Module]
    teachers: Mapping[str, nn.Module]
    num_classes: int
    probe: Callable[[str], Seen]


class EpochEnd(NamedTuple):
    """What a method gets after each training epoch.

    Attributes:
        teachers: Those that are copies of students may be given new weights.
        clock: The epoch that has ended.
        held_out: Returns an iterator over the images that training leaves out: logits (m, N, K)
            of all students in evaluation mode, without gradient, and classes (N,). Each image
            comes once, on one of the ranks.
        log: Writes a number under a name into the log and the checkpoint.
    """

    students: Mapping[str, nn.Module]
    teachers: Mapping[str, nn.Module]
    clock: Clock
    held_out: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    log: Callable[[str, float], None]


class Relations(NamedTuple):
    """What the images of a batch take from each other, for pictures.

    Attributes:
        affinity: (N, N), rows sum to 1: the weight that each image gives to each other.
        own: (N, K), the network's own softened predictions.
        target: (N, K), the soft targets.
        temperature: Of ``own`` and ``target``.
    """

    affinity: Tensor
    own: Tensor
    target: Tensor
    temperature: float


class Method(BaseModule, ABC):
    """One paper. Subclasses are final.

    A method has no networks of its own: the :class:`~kd_mm.models.distiller.Distiller` runs them
    and calls the method. Registering a method in ``METHODS`` also registers the model type of its
    name, the Distiller with that one method.
    """

    needs: frozenset[str] = frozenset()

    def roles(self, students: tuple[str, ...], teachers: tuple[str, ...]) -> Roles:
        """Check the names of the networks, in alphabetical order, and give the students roles.

        Those of a method that needs maps read the stages of all students.

        Raises:
            ValueError: If a network is missing.
        """
        return Roles(stages=students if 'maps' in self.needs else None)

    def setup(self, networks: Networks) -> None:
        """Build what depends on the networks. Nothing by default."""

    def before(self, step: Step) -> Step:
        """Return the step with other ``labels`` or ``weight`` of the students' own losses."""
        return step

    @abstractmethod
    def losses(self, step: Step) -> dict[str, Tensor]:
        """Return the terms of the loss, means over the batch, as ``<network>/loss_<term>``."""

    def extra_logits(self, step: Step) -> dict[str, Tensor]:
        """Return the logits (N, K) of classifiers that are not students, by name.

        The metric measures them in prediction; they are never exported. None by default.
        """
        return {}

    def monitors(self, step: Step) -> dict[str, Tensor]:
        """Return scalars for ``kd_mm.DiagnosticsHook``, by names without "loss"."""
        return {}

    def relations(self, step: Step) -> dict[str, Relations]:
        """Return what images take from each other, by student, for pictures."""
        return {}

    def extra_maps(self, step: Step) -> dict[str, Tensor]:
        """Return the maps (N, C, H, W) behind ``extra_logits``, for pictures."""
        return {}

    def after_epoch(self, end: EpochEnd) -> None:
        """Act after a training epoch. Nothing by default."""
