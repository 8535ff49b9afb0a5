"""The model wrapper: named students, frozen teachers, and the methods that distil between them."""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel, ModuleDict
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from kd_mm.checkpoint import check_init_checkpoints
from kd_mm.checks import check_flag, check_int, is_int
from kd_mm.methods.base import (
    NEEDS,
    Clock,
    Method,
    Networks,
    Relations,
    Roles,
    Seen,
    Step,
    labels_of,
)
from kd_mm.methods.gather import weigh_by_share
from kd_mm.methods.schedules import Ramp
from kd_mm.registry import METHODS, MODELS, DistillerOf

from .heads.distilling_head import DistillingHead
from .networks import (
    EmbeddingTap,
    build_network,
    check_names,
    deepest_only,
    evaluating,
    num_classes_of,
    own_losses,
    see,
    strip_part,
    student_cfg,
    zeros_for,
)
from .teachers import Teachers
from .trunk import Trunk

SINGLE = 'student'  # the name of one network that trains alone
RUN_NEEDS = ('clock', 'index', 'held_out')  # what kd_mm.DistillerHook gives

Observer = Callable[[Step, dict[str, Tensor]], None]


@MODELS.register_module()
class Distiller(BaseModel):
    """Classifiers of mmpretrain that train by distillation.

    One forward pass, one sum of losses: any optimizer wrapper and the stock distributed wrapper
    take it. The Distiller runs each network once per view and adds up the losses of the students'
    own heads and the terms of the methods. ``kd_mm.KDCL`` and its like as a model type are the
    Distiller with that one method: options of both stand side by side.

    Each mean over the batch is weighed by the rank's share of the images, so that any number of
    ranks gives the gradients of one process, with unequal last batches too.

    Args:
        students (dict[str, dict], optional): Classifier configs by name; see
            :func:`~kd_mm.models.networks.student_cfg`. Names appear in logs, metrics and the
            state_dict (``students.<name>.``). A student's own ``init_cfg`` may load its own plain
            checkpoint.
        student (dict, optional): One network in place of ``students``. It has no name in logs and
            checkpoints, so that a checkpoint is a plain mmpretrain checkpoint. Its ``train_cfg``
            and ``data_preprocessor`` count as the model's.
        methods (dict[str, dict], optional): Configs of :class:`~kd_mm.methods.base.Method` by a
            name of their own.
        teachers (dict[str, dict], optional): Frozen classifiers by name; see
            :class:`~kd_mm.models.teachers.Teachers`.
        shared_stages (int): First stages of the backbone that all students share, as one trunk
            that runs once. Defaults to 0.
        views (str | int): ``'shared'``: all students see the same images (N, C, H, W);
            ``'per_student'``: the pipeline ends in mmpretrain's ``MultiView`` with one view per
            student, in alphabetical order; a number of at least 2: each student sees that many
            views. Defaults to ``'shared'``.
        deploy (str, optional): The student that predicts and is deployed. By default the one
            that a method names, or the first in alphabetical order.
        with_cp (bool): Use activation checkpointing: recompute each backbone's activations in the
            backward pass. Peak memory is that of the largest student instead of the sum of all;
            a step takes about 40 % longer. Gradients and BN statistics do not change. Defaults to
            False.
        img_size (int): Height and width in pixels of the image of zeros that finds the widths of
            maps and the shared stages, no smaller than the backbone takes. Defaults to 224.
        train_cfg (dict, optional): Batch augmentations, as of mmpretrain's ``ImageClassifier``.
        data_preprocessor (dict, optional): Config of the preprocessor; its type defaults to
            ``kd_mm.CohortDataPreprocessor``.
        init_cfg (dict, optional): Initialisation of the whole model.

    Raises:
        ValueError: If there is no student, a name holds a dot, ``deploy`` names nobody, ``views``
            is unknown, networks differ in their number of classes, a student brings batch
            augmentations of its own, or a method lacks what it needs.
        TypeError: If a student's head has no logits to distil from.
    """

    def __init__(
        self,
        students: Mapping[str, dict] | None = None,
        student: Mapping | None = None,
        methods: Mapping[str, dict] | None = None,
        teachers: Mapping[str, dict] | None = None,
        shared_stages: int = 0,
        views: str | int = 'shared',
        deploy: str | None = None,
        with_cp: bool = False,
        img_size: int = 224,
        train_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        if (student is None) == (students is None):
            raise ValueError(
                'a model must have either one student=dict(...) or students=dict(name=dict(...), '
                f'...), but got {"neither" if student is None else "both"}'
            )
        preprocessor: dict[str, Any] = {'type': 'kd_mm.CohortDataPreprocessor'}
        if student is not None:
            student = student_cfg(student)
            train_cfg = train_cfg or student.pop('train_cfg', None)
            preprocessor |= student.pop('data_preprocessor', None) or {}
            students = {SINGLE: student}
        preprocessor |= data_preprocessor or {}
        if train_cfg:
            preprocessor.setdefault('batch_augments', train_cfg)
        super().__init__(data_preprocessor=preprocessor, init_cfg=init_cfg)
        check_names(students)
        check_flag('with_cp', with_cp)
        check_int('img_size', img_size)
        check_int('shared_stages', shared_stages, least=0)
        if views not in ('shared', 'per_student') and not is_int(views, least=2):
            raise ValueError(
                "views must be 'shared', 'per_student' or a number of at least 2, but got "
                f'{views!r}'
            )
        self.is_single = student is not None
        self.views, self.with_cp, self.img_size = views, with_cp, img_size
        self._clock: Clock | None = None
        self.observers: list[Observer] = []

        # What is stored by position follows the order, and a dumped config has its keys sorted.
        students = {name: student_cfg(cfg) for name, cfg in sorted(students.items())}
        built, roles, self.deploy = plan_of(students, teachers or (), methods, views, deploy)
        self.outside_ensemble = tuple(
            name for name in students if any(name in role.outside_ensemble for role in roles)
        )
        views_left = [set(role.views_without_gradient) for role in roles]
        self.views_without_gradient = set.intersection(*views_left) if views_left else set()
        # Neck and head take the deepest map alone, as when deployed, where a method reads maps.
        self._deepest = any(role.stages is not None for role in roles)
        staged = {name for role in roles for name in role.stages or ()}
        if self._deepest:
            students = {n: c if n in staged else deepest_only(c) for n, c in students.items()}
        self.students = ModuleDict(  # MMEngine's, which initialises what it holds
            {name: build_network(cfg, f'students.{name}') for name, cfg in students.items()}
        )
        for name, network in self.students.items():
            if with_cp and not isinstance(network, ImageClassifier):
                raise ValueError(
                    f'with_cp recomputes the backbone of an ImageClassifier, but {name} is a '
                    f'{type(network).__name__}; set with_cp=True in students.{name}'
                )
        self.teachers = Teachers(teachers or {}, self.students)
        self._taps = {name: EmbeddingTap(net, name) for name, net in self.students.items()}
        self._check_classes()
        if shared_stages and (with_cp or len(students) < 2 or views == 'per_student'):
            raise ValueError(
                'shared_stages needs at least two students that see the same images, without '
                f'with_cp, but got {len(students)} students, views={views!r} and '
                f'with_cp={with_cp}'
            )
        self.trunk = Trunk(self.students, shared_stages, img_size)
        self.methods = ModuleDict(built)
        networks = Networks(
            dict(self.students), self.teachers.networks, self.num_classes, self._probe
        )
        for method in self.methods.values():
            method.setup(networks)
        if self.is_single:
            self._register_state_dict_hook(partial(strip_part, f'students.{SINGLE}.'))
            self._register_load_state_dict_pre_hook(_with_prefix)

    @property
    def clock(self) -> Clock | None:
        """Where training stands. ``kd_mm.DistillerHook`` sets it before each iteration."""
        return self._clock

    @clock.setter
    def clock(self, clock: Clock | None) -> None:
        self._clock = clock
        for method in self.methods.values():
            for schedule in vars(method).values():
                if isinstance(schedule, Ramp):
                    schedule.tick(clock)

    @property
    def names(self) -> tuple[str, ...]:
        """The students' names, in alphabetical order."""
        return tuple(self.students)

    @property
    def needs(self) -> frozenset[str]:
        """What the methods need, together."""
        return frozenset().union(*(method.needs for method in self.methods.values()))

    @property
    def num_classes(self) -> int:
        """K, the number of classes that the networks tell apart."""
        return num_classes_of(self.students[self.deploy])

    def _check_classes(self) -> None:
        """Raise ValueError if the networks differ in their number of classes."""
        networks = {**self.students, **self.teachers.networks}
        counts = {name: num_classes_of(network) for name, network in networks.items()}
        if len(set(counts.values()) - {None}) > 1:
            listed = ', '.join(f'{name}: {count}' for name, count in counts.items())
            raise ValueError(
                f'students must have the same number of classes, but got {listed}; set '
                'model.students.<name>.head.num_classes'
            )

    def _probe(self, name: str) -> Seen:
        """Return what a network makes of an image of zeros, in evaluation mode."""
        network = {**self.teachers.networks, **self.students}[name]
        tap = {**self.teachers.taps, **self._taps}[name]
        with evaluating(network):
            try:
                return see(network, zeros_for(network, self.img_size), tap, self._deepest)
            except (AssertionError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f'students must take an image of img_size x img_size pixels, but with '
                    f'{self.img_size} one fails: {error}; set model.img_size to the size that '
                    f'they train on, or correct neck and head of {name}'
                ) from error
            finally:
                self.trunk.clear()

    def init_weights(self) -> None:
        """Initialise the students, load the teachers; warn of students with equal weights.

        Raises OSError if there is no such checkpoint, ValueError if one is not safe, or misfits.
        """
        check_init_checkpoints(self)
        super().init_weights()
        for first, second in self.equal_students():
            print_log(
                f'students {first} and {second} have identical initial weights, so they will stay '
                'identical; give them different init_cfg, or remove it',
                logger='current',
                level=logging.WARNING,
            )
        self.teachers.load()

    def equal_students(self) -> list[tuple[str, str]]:
        """Return the pairs of students whose weights are the same, name by name."""
        weights = {name: dict(net.named_parameters()) for name, net in self.students.items()}
        return [
            (a, b)
            for a, b in combinations(weights, 2)
            if weights[a].keys() == weights[b].keys()
            and all(torch.equal(weight, weights[b][key]) for key, weight in weights[a].items())
        ]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'Distiller':
        """Move or convert the model, and the teachers with it."""
        super()._apply(fn, recurse)
        for network in self.teachers.networks.values():
            network._apply(fn)
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of one network's layer, for layer-wise decay of the learning rate."""
        if not self.is_single:
            raise ValueError(
                'layer-wise decay of the learning rate needs one network, but there are '
                f'{", ".join(self.names)}; use kd_mm.JointOptimWrapperConstructor with a part for '
                'each student'
            )
        inside = f'{prefix}students.{SINGLE}.'
        return self.students[SINGLE].get_layer_depth(param_name, inside)

    def forward(
        self,
        inputs: Tensor | list[Tensor],
        data_samples: list[DataSample] | None = None,
        mode: str = 'tensor',
    ) -> Tensor | list[DataSample] | dict[str, Tensor]:
        """Run the model.

        Args:
            inputs: Images (N, C, H, W), or, for ``mode='loss'`` and several views, their list.
            data_samples: Labels of the N images, hard or mixed.
            mode: ``'tensor'``: logits of the deployed student; ``'predict'``: its predictions,
                with every student's scores; ``'loss'``: losses by name.
        """
        try:
            if mode == 'loss':
                return self.loss(inputs, data_samples)
            if mode == 'predict':
                return self.predict(inputs, data_samples)
            if mode == 'tensor':
                return self.students[self.deploy](inputs, mode='tensor')
        finally:
            self.trunk.clear()
        raise RuntimeError(f'Invalid mode "{mode}".')

    def loss(
        self, inputs: Tensor | list[Tensor], data_samples: list[DataSample]
    ) -> dict[str, Tensor]:
        """Return each student's own losses and the terms of the methods, by ``<network>/<loss>``.

        The names of one network alone lack ``<network>/``.

        Raises:
            ValueError: If there are not as many views as ``views`` says.
            RuntimeError: If a method needs ``kd_mm.DistillerHook`` and there is none.
        """
        if self.observers:
            return self._observed_loss(inputs, data_samples)
        return self._losses(self._step(inputs, data_samples))

    @torch.compiler.disable  # a compiled graph has no logits to take gradients at
    def _observed_loss(
        self, inputs: Tensor | list[Tensor], data_samples: list[DataSample]
    ) -> dict[str, Tensor]:
        """Return the losses, and show the step to the observers."""
        step = self._step(inputs, data_samples)
        losses = self._losses(step)
        for observer in tuple(self.observers):
            observer(step, losses)
        return losses

    def _step(self, inputs: Tensor | list[Tensor], data_samples: list[DataSample]) -> Step:
        """Run all networks on their views, and let the methods change labels and weights."""
        self.check_views(inputs)
        views = [inputs] if self.views == 'shared' else list(inputs)
        if self.training and self._clock is None:
            self._check_hook()
        if not self.trunk.is_linked(self.students):
            self.trunk.link(self.students)
        students = {}
        for place, name in enumerate(self.students):
            mine = views[place : place + 1] if self.views == 'per_student' else views
            students[name] = [self._see(name, view, number) for number, view in enumerate(mine)]
        teachers = {}
        if self.teachers.networks:
            teachers = self.teachers.see(views, self.data_preprocessor)
        index = None
        if 'image_number' in data_samples[0]:
            numbers = [sample.image_number for sample in data_samples]
            # From pinned memory, so that the host does not wait for the device.
            index = torch.tensor(numbers, pin_memory=views[0].is_cuda)
            index = index.to(views[0].device, non_blocking=True)
        step = Step(students, teachers, labels_of(data_samples), None, index, self._clock)
        for method in self.methods.values():
            step = method.before(step)
        return step

    def _see(self, name: str, view: Tensor, number: int) -> Seen:
        """Run one student on the view of a number."""
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and number not in self.views_without_gradient
        ):
            return see(self.students[name], view, self._taps[name], self._deepest, self.with_cp)

    def _losses(self, step: Step) -> dict[str, Tensor]:
        """Return the losses of the students' own heads and the terms of the methods."""
        losses = {}
        for name, views in step.students.items():
            losses |= self._own_losses(name, views, step)
        for name, method in self.methods.items():
            for key, value in method.losses(step).items():
                # Two methods of one kind, such as two teachers, give terms of one name.
                losses[f'{key}_{name}' if key in losses else key] = value
        if self.training:
            losses = weigh_by_share(losses, step.labels)
        if self.is_single:
            losses = {key.removeprefix(f'{SINGLE}/'): value for key, value in losses.items()}
        return losses

    def _own_losses(self, name: str, views: list[Seen], step: Step) -> dict[str, Tensor]:
        """Return the losses of a student's own head, means over the views with gradient."""
        found = [
            own_losses(self.students[name], seen, step.labels, step.weight)
            for number, seen in enumerate(views)
            if number not in self.views_without_gradient
        ]
        losses = found[0]
        if len(found) > 1:
            losses = {key: sum(part[key] for part in found) / len(found) for key in losses}
        losses = {f'{name}/{key}': value for key, value in losses.items()}
        if head := self._distilling_heads().get(name):
            losses |= head.terms(step._replace(students={name: views}))
        return losses

    def _distilling_heads(self) -> dict[str, DistillingHead]:
        """Return the heads that distil by themselves, by student."""
        heads = {name: getattr(net, 'head', None) for name, net in self.students.items()}
        return {name: head for name, head in heads.items() if isinstance(head, DistillingHead)}

    def _check_hook(self) -> None:
        """Raise RuntimeError if a method needs what the hook gives."""
        for method in self.methods.values():
            for need in RUN_NEEDS:
                if need in method.needs:
                    raise RuntimeError(
                        f'kd_mm.{type(method).__name__} needs {NEEDS[need]}, which '
                        'kd_mm.DistillerHook gives; add '
                        "default_hooks=dict(distiller=dict(type='kd_mm.DistillerHook'))"
                    )

    def check_views(self, inputs: Tensor | list[Tensor]) -> None:
        """Raise ValueError unless a sample or batch has as many views as training needs."""
        num_students = len(self.students)
        wanted = {'shared': None, 'per_student': num_students}.get(self.views, self.views)
        given = len(inputs) if isinstance(inputs, (list, tuple)) else None
        if given == wanted:
            return
        raise ValueError(
            f'views={self.views!r} with {num_students} students needs '
            f'{"one image" if wanted is None else f"{wanted} views"} per sample, but '
            f'the pipeline gives {"one image" if given is None else f"{given} views"}; '
            f"use dict(type='MultiView', num_views={wanted or num_students}, transforms=[...]) "
            "for several views, and none for views='shared'"
        )

    def monitors(self, step: Step) -> dict[str, Tensor]:
        """Return the numbers of all methods, for ``kd_mm.DiagnosticsHook``."""
        return self._gathered(step, 'monitors')

    def relations(self, step: Step) -> dict[str, Relations]:
        """Return what images take from each other, by network, for pictures."""
        return self._gathered(step, 'relations')

    def _gathered(self, step: Step, question: str) -> dict[str, Any]:
        """Ask all methods, and heads that distil by themselves, about a step."""
        found = {}
        for method in self.methods.values():
            found |= getattr(method, question)(step)
        for name, head in self._distilling_heads().items():
            own = step._replace(students={name: step.students[name]})
            found |= getattr(head, question)(own)
        if self.is_single:
            found = {key.removesuffix(SINGLE).removesuffix('/'): v for key, v in found.items()}
        return found

    def all_logits(self, inputs: Tensor) -> Tensor:
        """Return the logits (m, N, K) of all students for images (N, C, H, W)."""
        return torch.stack([seen.logits for (seen,) in self._see_all(inputs).values()])

    def _see_all(self, inputs: Tensor) -> dict[str, list[Seen]]:
        """Return what each student makes of the same images, in prediction."""
        try:
            return {
                name: [see(net, inputs, self._taps[name], self._deepest)]
                for name, net in self.students.items()
            }
        finally:
            self.trunk.clear()

    def predict(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None
    ) -> list[DataSample]:
        """Write ``pred_score`` and ``pred_label`` of the deployed student into samples.

        ``student_scores`` holds each student's class probabilities (K,) by name. Where there are
        classifiers that are no part of the ensemble, ``extra_scores`` holds theirs.
        """
        step = Step(self._see_all(inputs), {})
        for observer in tuple(self.observers):
            observer(step, {})
        scores = {name: z.softmax(dim=1) for name, z in step.logits().items()}
        others = {
            name: z.softmax(dim=1)
            for method in self.methods.values()
            for name, z in method.extra_logits(step).items()
        }
        deployed = scores[self.deploy]
        others |= {name: scores.pop(name) for name in self.outside_ensemble}
        labels = deployed.argmax(dim=1, keepdim=True)
        samples = data_samples or [DataSample() for _ in deployed]
        for index, sample in enumerate(samples):
            sample.set_pred_score(deployed[index]).set_pred_label(labels[index])
            sample.set_field({n: score[index] for n, score in scores.items()}, 'student_scores')
            if others:
                sample.set_field({n: score[index] for n, score in others.items()}, 'extra_scores')
        return samples


class Plan(NamedTuple):
    """What the methods of a model make of its networks.

    Attributes:
        methods: By name, in alphabetical order.
        roles: What each makes of the students.
        deploy: Name of the deployed student.
    """

    methods: dict[str, Method]
    roles: list[Roles]
    deploy: str


def plan_of(
    students: Iterable[str],
    teachers: Iterable[str] = (),
    methods: Mapping[str, Mapping] | None = None,
    views: str | int = 'shared',
    deploy: str | None = None,
) -> Plan:
    """Build the methods, and check that networks of these names are what they need.

    Raises:
        ValueError: If a method does not exist, an option is out of range, a method lacks
            something, or ``deploy`` does not name a student.
    """
    students, teachers = tuple(sorted(students)), tuple(sorted(teachers))
    lacking = {
        'teacher': None if teachers else 'there is none',
        'peers': None if len(students) > 1 else f'got {", ".join(students)}',
        'views': None if is_int(views, least=2) else f'views={views!r}',
    }
    built = {}
    for name, cfg in sorted((methods or {}).items()):
        if not isinstance(cfg, Mapping) or not str(name).isidentifier():
            raise ValueError(
                f'model.methods must hold configs of methods by names that are words, but '
                f'{name!r} is {cfg!r}'
            )
        built[name] = METHODS.create(cfg, f'model.methods.{name}')
        for need, found in lacking.items():
            if need in built[name].needs and found:
                what, _, fix = NEEDS[need].partition('; ')
                method = type(built[name]).__name__
                raise ValueError(f'{method} needs {what}, but {found}; {fix}')
    roles = [method.roles(students, teachers) for method in built.values()]
    wanted = sorted({role.deploy for role in roles} - {None})
    if deploy is None and len(wanted) > 1:
        raise ValueError(
            f'the methods deploy different students, {", ".join(wanted)}; set model.deploy'
        )
    chosen = deploy if deploy is not None else [*wanted, *students][0]
    if not isinstance(chosen, str) or chosen not in students:
        raise ValueError(
            f'deploy must name one of the students {", ".join(students)}, but got {chosen!r}'
        )
    return Plan(built, roles, chosen)


def as_distiller(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the config of a model as options of the Distiller; None if it builds another model.

    Args:
        model: Config of a model. Left as it is.

    Examples:
        >>> as_distiller({'type': 'kd_mm.DML', 'students': {}, 'temperature': 2.0})
        {'students': {}, 'methods': {'dml': {'type': 'kd_mm.DML', 'temperature': 2.0}}}
        >>> as_distiller({'type': 'ImageClassifier'})
    """
    name = model.get('type')
    found = MODELS.get(name) if isinstance(name, str) else name
    if isinstance(found, DistillerOf):
        return found.options(model)
    if found is Distiller:
        return {key: value for key, value in model.items() if key != 'type'}
    return None


Observed = Distiller | DistillingHead


def observed(model: nn.Module) -> Observed | None:
    """Return the part of a model that shows its steps to observers; None where nothing distils."""
    found = model if isinstance(model, Distiller) else getattr(model, 'head', None)
    return found if isinstance(found, (Distiller, DistillingHead)) else None


def named_networks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the networks of a model that train, by name; one alone has the name ''."""
    if not isinstance(model, Distiller):
        return {'': model}
    return {'': model.students[SINGLE]} if model.is_single else dict(model.students)


def _with_prefix(state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Find the one network under its plain names."""
    kept = tuple(f'{prefix}{part}.' for part in ('methods', 'students', 'data_preprocessor'))
    for key in [key for key in state_dict if key.startswith(prefix)]:
        if not key.startswith(kept):
            inside = f'{prefix}students.{SINGLE}.'
            state_dict[inside + key.removeprefix(prefix)] = state_dict.pop(key)
