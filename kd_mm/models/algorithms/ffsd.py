"""Feature fusion and self-distillation."""

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.model import ModuleDict
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from kd_mm.functional.attention import (
    attention_distance,
    attention_map,
    diverse_feature_map,
    diversity_distance,
    joint_attention_map,
    rebuilding_distances,
)
from kd_mm.functional.divergence import (
    at_least_float32,
    check_temperature,
    mean_kl,
    soft_log_probs,
)
from kd_mm.functional.mutual_learning import mutual_kl
from kd_mm.functional.ranges import check_flag, check_weight
from kd_mm.models.necks import FeatureFusionNeck, FusionDecoder, SelfDistillationNeck
from kd_mm.models.necks.layout import fastest_layout
from kd_mm.registry import MODELS

from .base import BaseCohort, check_students, labels_of, student_cfg

DIVERSITIES = ('attention', 'l2', None)
SELF_DISTILLATIONS = ('both', 'common', 'leader', None)


@MODELS.register_module()
class FFSD(BaseCohort):
    r"""Common students learn from each other, and a leader from the fusion of their features.

    Source: Li et al., "Distilling a Powerful Student Model via Online Knowledge Distillation",
    arXiv:2103.14473, section III, and the released code, whose loss terms these are; see
    :mod:`kd_mm.functional.attention` for D, d, att and F*. The common students are those that
    are not the leader, in alphabetical order. With maps :math:`F^1, \ldots, F^s` of a network,
    shallow to deep, logits z, its own head's loss, and R its self-distillation neck:

    - common student i: :math:`\frac{T^2}{k - 1} \sum_{j \ne i} KL(p_j \| p_i)` as
      ``loss_mutual``; all but the first :math:`\lambda_{div} D(att(F_i^s), att(F_{i-1}^s))` as
      ``loss_diversity`` and :math:`\lambda_{div} G(R_i, F_i, F_{i-1}^*)` as
      ``loss_self_distillation``;
    - fusion of the deepest maps, with classifier f: cross-entropy as ``fusion/loss`` and
      :math:`T^2 KL(softmax(\bar z / T) \| f)` as ``fusion/loss_ensemble``;
    - leader: :math:`T^2 KL(f \| z)` as ``loss_kd``, :math:`\lambda_{fus} d` from the fused map as
      ``loss_fusion``, of its decoded map from the concatenated ones as ``loss_decoder``, and
      :math:`\lambda_{fus} G(R, F, fused)` as ``loss_self_distillation``;
    - each neck R: :math:`\lambda_{sd} \sum_{i<s} d(R^i, F^i)` as ``loss_neck_feature`` and
      :math:`\lambda_{sd} \sum_{i<s} d(att(R^i), att(F^i))` as ``loss_neck_attention``.

    :math:`G(R, F, X) = \sum_{i<s} d(att(F^i), att(R^i(X)))` with R in evaluation mode. What is a
    target in a term, the input of the fusion and that of R are detached, so that the sum of all
    terms gives each parameter the gradient that it gets in the released code's separate
    backward passes.

    Stage maps are the outputs of the backbone: set its ``out_indices``. Widths of the necks are
    read off an image of zeros when the cohort is built.

    Args:
        students (dict[str, dict]): At least two common students and the leader, by name.
        leader (str, optional): The student that learns from the fusion, and is deployed. None:
            there is none. Defaults to ``'leader'``.
        temperature (float): T > 0. Defaults to 2.
        diversity (str, optional): ``'attention'``: as above. ``'l2'``: attention maps are pushed
            apart by :math:`-\lambda_{div} d(att(F_i^s), att(F_{i-1}^s))`. None: no such term. In
            the latter two, G takes the student's own deepest map. Defaults to ``'attention'``.
        self_distillation (str, optional): Who has a neck R: ``'common'`` (students but the
            first), ``'leader'``, ``'both'`` or None. Defaults to ``'both'``.
        fusion (bool): False: no fusion. The leader learns from the mean logits of the common
            students alone, and G takes its own deepest map. Defaults to True.
        diversity_weight (float): :math:`\lambda_{div}` >= 0. Defaults to 1e-5.
        fusion_weight (float): :math:`\lambda_{fus}` >= 0. Defaults to 10.
        self_distillation_weight (float): :math:`\lambda_{sd}` >= 0. Defaults to 1000.
        norm_cfg (dict): Normalisation of the necks. Defaults to ``dict(type='BN')``.
        img_size (int): Height and width in pixels of the image of zeros, no smaller than the
            backbone takes. Defaults to 224.
        **kwargs: Arguments of :class:`kd_mm.models.algorithms.BaseCohort` but ``views``.

    Raises:
        ValueError: If there are fewer than two common students, the leader is missing or needed
            and None, an ablation does not exist, a value is out of range, students differ in
            their deepest maps, or the maps of a student with a neck are fewer than two or do not
            halve in size from one to the next.
    """

    neck_inputs = slice(-1, None)  # as when deployed, without the other maps

    def __init__(
        self,
        students: Mapping[str, dict],
        leader: str | None = 'leader',
        temperature: float = 2.0,
        diversity: str | None = 'attention',
        self_distillation: str | None = 'both',
        fusion: bool = True,
        diversity_weight: float = 1e-5,
        fusion_weight: float = 10.0,
        self_distillation_weight: float = 1000.0,
        norm_cfg: dict = {'type': 'BN'},  # noqa: B006, read only
        img_size: int = 224,
        deploy: str | None = None,
        **kwargs,
    ) -> None:
        check_temperature(temperature)
        check_students(students)
        check_flag('fusion', fusion)
        common = tuple(sorted(name for name in students if name != leader))
        _check_roles(students, leader, common)
        _check_choice('diversity', diversity, DIVERSITIES)
        _check_choice('self_distillation', self_distillation, SELF_DISTILLATIONS)
        if self_distillation == 'leader' and leader is None:
            raise ValueError(
                "self_distillation='leader' needs a leader, but leader is None; name one of the "
                "students, or use 'common' or None"
            )
        weights = {
            'diversity_weight': diversity_weight,
            'fusion_weight': fusion_weight,
            'self_distillation_weight': self_distillation_weight,
        }
        for name, weight in weights.items():
            check_weight(name, weight)

        if type(img_size) is not int or img_size < 1:
            raise ValueError(
                f'img_size must be a number of pixels of at least 1, but got {img_size!r}; set it '
                'to the size that the students train on'
            )
        if not isinstance(norm_cfg, Mapping):
            raise ValueError(
                f"norm_cfg must be a dict such as dict(type='BN'), but got {norm_cfg!r}"
            )
        taught = common[1:] if self_distillation in ('both', 'common') else ()
        if leader is not None and self_distillation in ('both', 'leader'):
            taught += (leader,)
        students = {
            name: student_cfg(cfg) if name in taught else deepest_only(student_cfg(cfg))
            for name, cfg in students.items()
        }
        super().__init__(students, deploy=deploy or leader, views='shared', **kwargs)
        self.common, self.leader = common, leader
        self.not_in_ensemble = () if leader is None else (leader,)
        self.temperature = temperature
        self.diversity = diversity
        self.diversity_weight = diversity_weight
        self.fusion_weight = fusion_weight
        self.self_distillation_weight = self_distillation_weight

        shapes = {name: _map_shapes(s, img_size) for name, s in self.students.items()}
        _check_deepest(shapes)
        for name in taught:
            _check_stages(name, shapes[name])
        self.taught = taught
        necks = {
            name: SelfDistillationNeck([c for c, _, _ in shapes[name]], norm_cfg)
            for name in taught
        }
        widths = [shapes[name][-1][0] for name in common]
        width = widths[0] if leader is None else shapes[leader][-1][0]
        num_classes = self.students[common[0]].head.num_classes
        parts = {
            'self_distillation': ModuleDict(necks) if taught else None,
            'fusion': FeatureFusionNeck(widths, width, num_classes, norm_cfg) if fusion else None,
            'decoder': FusionDecoder(width, sum(widths), norm_cfg) if fusion and leader else None,
        }
        for name, part in parts.items():
            self.register_module(name, part)  # None, too: optimizer settings may name it

    def distillation_losses(
        self,
        logits: dict[str, Tensor],
        maps: dict[str, tuple[Tensor, ...]],
        data_samples: list[DataSample],
    ) -> dict[str, Tensor]:
        """Return all losses but those of the students' own heads; see the class."""
        common = torch.stack([logits[name].detach() for name in self.common])
        ensemble = at_least_float32(common).mean(dim=0)
        attention = {name: [attention_map(m) for m in levels] for name, levels in maps.items()}
        # What the necks take, laid out for them once.
        deepest = {name: fastest_layout(levels[-1]) for name, levels in maps.items()}
        losses = self._common_losses(logits, deepest, attention)
        fused, teacher = None, ensemble
        if self.fusion is not None:
            fused, teacher = self.fusion([deepest[name].detach() for name in self.common])
            labels = labels_of(data_samples)
            losses['fusion/loss'] = F.cross_entropy(at_least_float32(teacher), labels)
            losses['fusion/loss_ensemble'] = self._divergence(teacher, ensemble)
        if self.leader is not None:
            losses.update(
                self._leader_losses(logits[self.leader], deepest, attention, teacher, fused)
            )
        # Last: the necks' statistics change here, and guidance comes from those before. Their
        # backward pass, then the first, frees what they keep before other gradients need room.
        losses.update(self._neck_losses(maps, deepest, attention))
        return losses

    def _common_losses(
        self,
        logits: dict[str, Tensor],
        deepest: dict[str, Tensor],
        attention: dict[str, list[Tensor]],
    ) -> dict[str, Tensor]:
        """Return what the common students learn from each other."""
        divergences = mutual_kl([logits[name] for name in self.common], self.temperature)
        losses = {
            f'{name}/loss_mutual': value.mean()
            for name, value in zip(self.common, divergences, strict=True)
        }
        for before, name in zip(self.common[:-1], self.common[1:], strict=True):
            source = deepest[name]
            own, others = attention[name][-1], attention[before][-1]
            if self.diversity == 'attention':
                distance = diversity_distance(own, others)
                source = diverse_feature_map(deepest[before], others)
            elif self.diversity == 'l2':
                distance = -attention_distance(own, others)
            if self.diversity is not None:
                losses[f'{name}/loss_diversity'] = self.diversity_weight * distance
            if name in self.taught:
                losses[f'{name}/loss_self_distillation'] = self.diversity_weight * self._guidance(
                    name, attention[name], source
                )
        return losses

    def _leader_losses(
        self,
        logits: Tensor,
        deepest: dict[str, Tensor],
        attention: dict[str, list[Tensor]],
        teacher: Tensor,
        fused: Tensor | None,
    ) -> dict[str, Tensor]:
        """Return what the leader learns."""
        name, own = self.leader, deepest[self.leader]
        losses = {f'{name}/loss_kd': self._divergence(logits, teacher)}
        if fused is not None:
            together = joint_attention_map(
                [attention[common][-1].detach() for common in self.common],
                [deepest[common].shape[1] for common in self.common],
            )
            for key, learner, target in (
                ('loss_fusion', attention[name][-1], attention_map(fused.detach())),
                ('loss_decoder', attention_map(self.decoder(own)), together),
            ):
                losses[f'{name}/{key}'] = self.fusion_weight * attention_distance(learner, target)
        if name in self.taught:
            losses[f'{name}/loss_self_distillation'] = self.fusion_weight * self._guidance(
                name, attention[name], own if fused is None else fused
            )
        return losses

    def _divergence(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Return the batch mean of the divergence from a teacher's logits."""
        target_probs = (at_least_float32(teacher.detach()) / self.temperature).softmax(dim=1)
        log_probs = soft_log_probs(logits, self.temperature)
        return mean_kl(log_probs, target_probs, self.temperature**2)

    def _guidance(self, name: str, attention: list[Tensor], source: Tensor) -> Tensor:
        """Return G(R, F, X): what the neck makes of a map guides the stages' attention."""
        targets = self.self_distillation[name].predict(source)
        stages = zip(attention[:-1], targets, strict=True)
        return sum(attention_distance(own, attention_map(target)) for own, target in stages)

    def _neck_losses(
        self,
        maps: dict[str, tuple[Tensor, ...]],
        deepest: dict[str, Tensor],
        attention: dict[str, list[Tensor]],
    ) -> dict[str, Tensor]:
        """Return what each self-distillation neck learns from its own network."""
        losses = {}
        for name in self.taught:
            rebuilt = self.self_distillation[name](deepest[name].detach())
            stages = zip(rebuilt, maps[name][:-1], attention[name][:-1], strict=True)
            feature, attended = zip(*(rebuilding_distances(*s) for s in stages), strict=True)
            for term, values in (('feature', feature), ('attention', attended)):
                losses[f'{name}/loss_neck_{term}'] = self.self_distillation_weight * sum(values)
        return losses

    def logits_beside(self, maps: dict[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """Return the logits of the fusion classifier as ``fusion``; see the base class."""
        if self.fusion is None:
            return {}
        return {'fusion': self.fusion([maps[name][-1] for name in self.common])[1]}


def _check_roles(students: Mapping, leader: str | None, common: tuple[str, ...]) -> None:
    """Raise ValueError unless there are common students and the leader."""
    if leader is not None and (not isinstance(leader, str) or leader not in students):
        raise ValueError(
            f'leader must name one of the students {", ".join(students)}, but got {leader!r}; add '
            'it to model.students, or set leader=None to train without one'
        )
    if len(common) < 2:
        raise ValueError(
            'common students learn from each other, so there must be at least two beside the '
            f'leader, but got {", ".join(common) or "none"}; add one to model.students'
        )


def _check_choice(key: str, value: str | None, choices: tuple) -> None:
    """Raise ValueError for an ablation that does not exist."""
    if value not in choices:
        listed = ', '.join(map(repr, choices))
        raise ValueError(f'{key} must be one of {listed}, but got {value!r}')


def deepest_only(cfg: ConfigDict) -> ConfigDict:
    """Return a student's config whose backbone gives its deepest map alone.

    So is a student built whose other maps nothing reads, and deployed: a backbone that normalises
    each output has parameters for it.

    Args:
        cfg: Config of a classifier, left as it is.

    Examples:
        >>> deepest_only(ConfigDict(backbone=dict(type='ResNet', out_indices=(2, 3))))
        {'backbone': {'type': 'ResNet', 'out_indices': (3,)}}
    """
    out_indices = cfg.get('backbone', {}).get('out_indices')
    if isinstance(out_indices, (list, tuple)) and len(out_indices) > 1:
        cfg = ConfigDict({**cfg, 'backbone': {**cfg.backbone, 'out_indices': out_indices[-1:]}})
    return cfg


@torch.no_grad()
def _map_shapes(student: nn.Module, img_size: int) -> list[tuple[int, int, int]]:
    """Return (C, H, W) of each map, of an image of zeros."""
    stem = next(module for module in student.modules() if isinstance(module, nn.Conv2d))
    modes = {module: module.training for module in student.modules()}
    student.eval()
    image = stem.weight.new_zeros(1, stem.in_channels, img_size, img_size)
    try:
        maps = student.extract_feat(image, stage='backbone')
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f'students must take an image of img_size x img_size pixels, but with {img_size} one '
            f'fails: {error}; set model.img_size to the size that they train on'
        ) from error
    for module, training in modes.items():
        module.training = training
    return [tuple(level.shape[1:]) for level in maps]


def _check_deepest(shapes: Mapping[str, list]) -> None:
    """Raise ValueError unless all students' deepest maps have one size."""
    for name, (*_, deepest) in shapes.items():
        if len(deepest) != 3:
            raise ValueError(
                f'the outputs of a backbone must be maps (C, H, W), but those of student {name} '
                f'have shape {deepest}; use a hierarchical backbone (a ConvNeXt with '
                'gap_before_final_norm=False and a GlobalAveragePooling neck)'
            )
    if len({deepest[1:] for *_, deepest in shapes.values()}) > 1:
        listed = ', '.join(f'{name}: {deepest}' for name, (*_, deepest) in shapes.items())
        raise ValueError(
            "the students' deepest maps must have one height and width, but their shapes are "
            f'{listed}; use backbones of one family, or other out_indices'
        )


def _check_stages(name: str, shapes: list[tuple[int, int, int]]) -> None:
    """Raise ValueError unless there are several maps, each half as large as the one before."""
    if len(shapes) < 2:
        raise ValueError(
            f'self-distillation needs the maps of several stages, but student {name} gives one; '
            f'set model.students.{name}.backbone.out_indices, such as (0, 1, 2, 3) of a ResNet, '
            'or self_distillation=None'
        )
    sizes = [shape[1:] for shape in shapes]
    if any(a != (2 * b[0], 2 * b[1]) for a, b in pairwise(sizes)):
        listed = ', '.join(f'{h} x {w}' for h, w in sizes)
        raise ValueError(
            f'the maps of a student must halve in size from one to the next, but those of {name} '
            f'are {listed}; choose other out_indices'
        )
