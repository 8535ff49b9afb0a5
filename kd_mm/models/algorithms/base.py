"""A cohort: named classifiers that train together."""

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import combinations

import torch
import torch.utils.checkpoint
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.model import BaseModel, ModuleDict
from mmengine.registry import MODELS as ROOT_MODELS
from mmpretrain.models.classifiers import BaseClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd_mm.functional.ranges import check_flag
from kd_mm.models.heads import losses_and_score
from kd_mm.models.heads.scored_head import check_scored
from kd_mm.utils.checkpoint import check_init_checkpoints
from kd_mm.utils.configs import read_config

WARNING = 30
VIEWS = ('shared', 'per_student')
RESERVED = ('mean', 'best', 'ensemble', 'any_right', 'fusion')  # rows of the metric


def student_cfg(cfg: Mapping) -> ConfigDict:
    """Return the config of one student's classifier.

    Args:
        cfg: A whole classifier config, or ``cfg_path``, the path of a recipe
            (``mmpretrain::resnet/resnet50_8xb32_in1k.py``) whose model is taken, with settings
            that change it. Left as it is.

    Returns:
        A classifier config.

    Examples:
        >>> student_cfg({'type': 'ImageClassifier', 'head': {'topk': (1, 5)}})['head']
        {'topk': (1, 5)}
    """
    cfg = ConfigDict(cfg)
    path = cfg.pop('cfg_path', None)
    if path is None:
        return cfg
    base = Config({'model': _recipe(path).model})
    try:
        base.merge_from_dict({'model': cfg.to_dict()})
    except (KeyError, TypeError) as error:
        raise ValueError(f'a student does not fit its cfg_path {path}: {error}') from None
    return base.model


def _recipe(path: str) -> Config:
    """Return the config of a path, with a model."""
    if not isinstance(path, str) or '::' not in path:
        return read_config(path)
    from mmengine.hub import get_config

    try:
        return get_config(path)
    except Exception as error:  # MMEngine's, which raises what it likes
        raise ValueError(
            'cfg_path must name a recipe that is installed, such as '
            f"'mmpretrain::resnet/resnet50_8xb32_in1k.py', but got {path!r} ({error})"
        ) from None


def check_students(students: Mapping[str, Mapping]) -> None:
    """Check the names of a cohort's students, and that each has a config.

    Args:
        students: Configs by name.

    Raises:
        ValueError: If it is no dict, is empty, or holds what is no student.

    Examples:
        >>> check_students({'res.net': {'type': 'ImageClassifier'}})
        Traceback (most recent call last):
        ValueError: the name of a student must be a word without dots, but got 'res.net'; it is \
part of keys that dots and slashes separate
    """
    if not isinstance(students, Mapping) or not students:
        raise ValueError(
            'a cohort must have a student, students=dict(name=dict(...), ...), but students is '
            f'{repr(students) if students else "empty"}'
        )
    for name, cfg in students.items():
        if not isinstance(name, str) or not re.fullmatch(r'[\w-]+', name):
            raise ValueError(
                f'the name of a student must be a word without dots, but got {name!r}; it is '
                'part of keys that dots and slashes separate'
            )
        if name in RESERVED:
            raise ValueError(
                f'a student must not be called {", ".join(RESERVED)}, as the metric calls its '
                f'own rows, but got {name!r}'
            )
        if 'loss' in name:
            raise ValueError(
                'the name of a student must not contain "loss", by which MMEngine knows what it '
                f'adds up to the total, but got {name!r}'
            )
        if name in dir(ModuleDict):
            raise ValueError(
                'a student must not be called as what every container of modules has, but got '
                f'{name!r}; choose another name'
            )
        if not isinstance(cfg, Mapping) or not {'type', 'cfg_path'} & set(cfg):
            raise ValueError(
                f'students.{name} must be the config of a classifier, with its type or a '
                f'cfg_path, but got {cfg!r}'
            )


class BaseCohort(BaseModel):
    """Named classifiers of mmpretrain that see one batch and learn from each other.

    One forward pass, one sum of losses: any optimizer wrapper and the stock distributed wrapper
    take it. A subclass says what the students owe each other, in :meth:`distillation_losses`.

    Args:
        students (dict[str, dict]): Classifier configs by name; see
            :func:`~kd_mm.models.algorithms.base.student_cfg`. Names appear in logs, metrics and
            the state_dict (``students.<name>.``). A student's own ``init_cfg`` may load its own
            plain checkpoint.
        deploy (str, optional): The student that ``predict`` answers with. By default the first
            in alphabetical order.
        views (str): ``'shared'``: all students see the same images (N, C, H, W);
            ``'per_student'``: the pipeline ends in mmpretrain's ``MultiView`` with one view per
            student, in alphabetical order. Defaults to ``'shared'``.
        with_cp (bool): Whether the students' backbones forget what their layers gave, and compute
            it again in the backward pass, one student after the other: a step then holds the
            activations of the largest student and not of all, for about 40 % more time.
            Gradients and statistics of BN stay what they are. Defaults to False.
        train_cfg (dict, optional): Batch augmentations, as of mmpretrain's ``ImageClassifier``.
        data_preprocessor (dict, optional): Config of the preprocessor; its type defaults to
            ``kd_mm.CohortDataPreprocessor``.
        init_cfg (dict, optional): Initialisation of the whole cohort.

    Raises:
        ValueError: If there is no student, a name holds a dot, ``deploy`` names nobody, ``views``
            is unknown, students differ in their number of classes, or a student brings batch
            augmentations of its own.
        TypeError: If a student's head has no logits to distil from.
    """

    neck_inputs = slice(None)  # which of the backbone's outputs the neck and the head see
    not_in_ensemble: tuple[str, ...] = ()  # students that the ensemble leaves out

    def __init__(
        self,
        students: Mapping[str, dict],
        deploy: str | None = None,
        views: str = 'shared',
        with_cp: bool = False,
        train_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        preprocessor = {'type': 'kd_mm.CohortDataPreprocessor', **(data_preprocessor or {})}
        if train_cfg:
            preprocessor.setdefault('batch_augments', train_cfg)
        super().__init__(data_preprocessor=preprocessor, init_cfg=init_cfg)
        check_students(students)
        # What is stored by position follows the order, and a dumped config has its keys sorted.
        students = dict(sorted(students.items()))
        check_flag('with_cp', with_cp)
        if views not in VIEWS:
            raise ValueError(f'views must be one of {", ".join(VIEWS)}, but got {views!r}')
        self.deploy = next(iter(students)) if deploy is None else deploy
        if not isinstance(self.deploy, str) or self.deploy not in students:
            raise ValueError(
                f'deploy must name one of the students {", ".join(students)}, but got {deploy!r}'
            )
        self.views = views
        self.with_cp = with_cp
        self.students = ModuleDict(  # MMEngine's, which initialises what it holds
            {name: self._build_student(name, cfg) for name, cfg in students.items()}
        )
        self._check_classes()

    @property
    def names(self) -> tuple[str, ...]:
        """The students' names, in alphabetical order."""
        return tuple(self.students)

    @staticmethod
    def _build_student(name: str, cfg: Mapping) -> nn.Module:
        """Build one student, whose preprocessor stays unused."""
        cfg = student_cfg(cfg)
        if cfg.get('train_cfg'):
            raise ValueError(
                'batch augmentations must be the same for all students, but '
                f'students.{name}.train_cfg is {dict(cfg.train_cfg)}; set it to None and give '
                'model.train_cfg'
            )
        cfg.setdefault('_scope_', 'mmpretrain')  # whatever project the cohort trains in
        student = ROOT_MODELS.build(cfg)
        if not isinstance(student, BaseClassifier):
            raise ValueError(
                f'students must be classifiers, such as an ImageClassifier, but {name} is a '
                f'{type(student).__name__}; set model.students.{name}.type'
            )
        check_scored(getattr(student, 'head', None), name)
        return student

    def _check_classes(self) -> None:
        """Raise ValueError if the students differ in their number of classes."""
        counts = {n: getattr(s.head, 'num_classes', None) for n, s in self.students.items()}
        if len(set(counts.values()) - {None}) > 1:
            listed = ', '.join(f'{name}: {count}' for name, count in counts.items())
            raise ValueError(
                f'students must have the same number of classes, but got {listed}; set '
                'model.students.<name>.head.num_classes'
            )

    def init_weights(self) -> None:
        """Initialise the students; refuse a checkpoint that fits nothing, warn of equal starts."""
        self.check_checkpoints()
        super().init_weights()
        for first, second in self.equal_students():
            print_log(
                f'students {first} and {second} start with identical weights and will stay '
                'alike; give them different init_cfg or leave it to chance',
                logger='current',
                level=WARNING,
            )

    def equal_students(self) -> list[tuple[str, str]]:
        """Return the pairs of students whose weights are the same, name by name."""
        pairs = combinations(self.students.items(), 2)
        return [(first, second) for (first, a), (second, b) in pairs if _equal(a, b)]

    def check_checkpoints(self) -> None:
        """Check that each checkpoint of an ``init_cfg`` has a weight for its module.

        Raises:
            OSError: If there is no such file, here or in the web.
            ValueError: If the file cannot be read safely, or none of its names is the module's.
        """
        check_init_checkpoints(self)

    def forward(
        self,
        inputs: Tensor | list[Tensor],
        data_samples: list[DataSample] | None = None,
        mode: str = 'tensor',
    ) -> Tensor | list[DataSample] | dict[str, Tensor]:
        """Run the cohort.

        Args:
            inputs: Images (N, C, H, W), or, for ``mode='loss'`` and views per student, a list of
                such views.
            data_samples: Labels of the N images.
            mode: ``'tensor'``: logits of the deployed student; ``'predict'``: its predictions,
                beside every student's scores; ``'loss'``: losses by name.

        Returns:
            What ``mode`` asks for.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'tensor':
            return self.students[self.deploy](inputs, mode='tensor')
        raise RuntimeError(f'Invalid mode "{mode}".')

    def loss(
        self, inputs: Tensor | list[Tensor], data_samples: list[DataSample]
    ) -> dict[str, Tensor]:
        """Return each student's own losses and what the students owe each other.

        Args:
            inputs: Images (N, C, H, W), or one such view per student.
            data_samples: Labels of the N images, hard or mixed.

        Returns:
            dict[str, Tensor]: ``<name>/<loss>`` by student.
        """
        logits, maps, losses = {}, {}, {}
        for (name, student), view in zip(self.students.items(), self._views(inputs), strict=True):
            maps[name] = self._maps(student, view)
            own, logits[name] = losses_and_score(
                student.head, self._feats(student, maps[name]), data_samples
            )
            losses.update({f'{name}/{key}': value for key, value in own.items()})
        return losses | self.distillation_losses(logits, maps, data_samples)

    def _maps(self, student: nn.Module, view: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of a student's backbone, with gradient."""
        if self.with_cp:
            return _maps_without_activations(student, view)
        return student.extract_feat(view, stage='backbone')

    def _feats(self, student: nn.Module, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what the head takes: the backbone's outputs, through the neck if there is one."""
        maps = maps[self.neck_inputs]
        return student.neck(maps) if student.with_neck else maps

    def _views(self, inputs: Tensor | list[Tensor]) -> list[Tensor]:
        """Return what each student sees."""
        self.check_views(inputs)
        return [inputs] * len(self.students) if self.views == 'shared' else list(inputs)

    def check_views(self, inputs: Tensor | list[Tensor]) -> None:
        """Check that training gets as many views as it needs.

        Args:
            inputs: One image, or a list of its views, of a sample or of a batch.

        Raises:
            ValueError: If it does not.
        """
        num_students = len(self.students)
        given = len(inputs) if isinstance(inputs, (list, tuple)) else None
        if given == (None if self.views == 'shared' else num_students):
            return
        wanted = f'{num_students} views' if self.views == 'per_student' else 'one image'
        raise ValueError(
            f'views={self.views!r} with {num_students} students needs {wanted} per sample, but '
            f'the pipeline gives {"one image" if given is None else f"{given} views"}; '
            f"use dict(type='MultiView', num_views={num_students}, transforms=[...]) for views "
            "per student, and none for views='shared'"
        )

    @abstractmethod
    def distillation_losses(
        self,
        logits: dict[str, Tensor],
        maps: dict[str, tuple[Tensor, ...]],
        data_samples: list[DataSample],
    ) -> dict[str, Tensor]:
        """Return the losses between students.

        Args:
            logits: Each student's logits (N, K), with gradient.
            maps: Each student's backbone outputs, with gradient.
            data_samples: Labels of the N images.

        Returns:
            dict[str, Tensor]: Scalars named ``<name>/loss_<method>``.
        """

    def predict(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None
    ) -> list[DataSample]:
        """Return the deployed student's predictions, beside the scores of all.

        Args:
            inputs: Images (N, C, H, W).
            data_samples: Samples to write into.

        Returns:
            Samples with ``pred_score`` and ``pred_label`` of the deployed student, and
            ``student_scores``, each student's class probabilities (K,) by name. Where there are
            classifiers that are no part of the ensemble, ``scores_beside`` holds theirs.
        """
        logits, maps = {}, {}
        for name, student in self.students.items():
            maps[name] = student.extract_feat(inputs, stage='backbone')
            logits[name] = student.head(self._feats(student, maps[name]))
        scores = {name: z.softmax(dim=1) for name, z in logits.items()}
        beside = {name: z.softmax(dim=1) for name, z in self.logits_beside(maps).items()}
        deployed = scores[self.deploy]
        beside |= {name: scores.pop(name) for name in self.not_in_ensemble}
        labels = deployed.argmax(dim=1, keepdim=True)
        samples = data_samples or [DataSample() for _ in deployed]
        for index, sample in enumerate(samples):
            sample.set_pred_score(deployed[index]).set_pred_label(labels[index])
            sample.set_field({n: score[index] for n, score in scores.items()}, 'student_scores')
            if beside:
                sample.set_field({n: score[index] for n, score in beside.items()}, 'scores_beside')
        return samples

    def logits_beside(self, maps: dict[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """Return the logits (N, K) of classifiers that are no students, by name. None here.

        Args:
            maps: Each student's backbone outputs.
        """
        return {}


@torch.compiler.disable  # torch.compile takes no context_fn of ours
def _maps_without_activations(student: nn.Module, view: Tensor) -> tuple[Tensor, ...]:
    """Return a student's maps; the backward pass computes what lies before them anew."""
    return torch.utils.checkpoint.checkpoint(
        student.extract_feat,
        view,
        stage='backbone',
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _statistics_kept(student.backbone)),
    )


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep what BN layers normalise by, but do not count a batch twice in their statistics."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def labels_of(data_samples: list[DataSample]) -> Tensor:
    """Return what the classification losses see: mixed scores (N, K), or classes (N,).

    Args:
        data_samples: Samples of a batch.

    Returns:
        Labels of the batch.
    """
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples]).float()
    return torch.cat([sample.gt_label for sample in data_samples])


def _equal(first: nn.Module, second: nn.Module) -> bool:
    """Tell whether two networks have the same parameters, name by name."""
    a, b = dict(first.named_parameters()), dict(second.named_parameters())
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape and torch.equal(a[name], b[name]) for name in a
    )
