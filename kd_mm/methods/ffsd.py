"""Feature fusion and self-distillation."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import ModuleDict
from torch import Tensor, nn

from kd_mm.checks import check_choice, check_dict, check_flag, check_temperature
from kd_mm.functional import ffsd
from kd_mm.functional.dml import mutual_kl
from kd_mm.functional.kl import at_least_float32, mean_logit_kl
from kd_mm.registry import METHODS, MODELS

from .base import Method, Networks, Roles, Step
from .maps import check_halving, check_same_size, fastest_layout, shapes_of
from .schedules import schedule

DIVERSITIES = ('attention', 'l2', None)
SELF_DISTILLATIONS = ('both', 'common', 'leader', None)


class Looks(NamedTuple):
    """Where a network looks: its deepest map, laid out for the necks, and att(F) of each stage."""

    deepest: Tensor
    attention: list[Tensor]


def _common_students(students: tuple[str, ...], leader: str | None) -> tuple[str, ...]:
    """Return the names of the common students."""
    if leader is not None and leader not in students:
        raise ValueError(
            f'leader must name one of the students {", ".join(students)}, but got {leader!r}; add '
            'it to model.students, or set leader=None to train without one'
        )
    common = tuple(name for name in students if name != leader)
    if len(common) < 2:
        raise ValueError(
            'common students learn from each other, so there must be at least two next to the '
            f'leader, but got {", ".join(common) or "none"}; add one to model.students'
        )
    return common


@METHODS.register_module()
class FFSD(Method):
    r"""Common students learn from each other, and a leader from the fusion of their features.

    Source: Li et al., "Distilling a Powerful Student Model via Online Knowledge Distillation",
    arXiv:2103.14473, section III, and the released code; all terms of the loss are in
    :mod:`kd_mm.functional.ffsd`. The common students are those that are not the leader, in
    alphabetical order. Stage maps are the outputs of the backbone: set its ``out_indices``.

    Args:
        leader (str, optional): The student that learns from the fusion, and is deployed. None:
            there is none. Defaults to ``'leader'``.
        temperature (float): T > 0. Defaults to 2.
        diversity (str, optional): ``'attention'``: D and F*. ``'l2'``: attention maps are pushed
            apart by :math:`-\lambda_{div} d(att(F_i^s), att(F_{i-1}^s))`. None: no such term. In
            the latter two, G takes the student's own deepest map. Defaults to ``'attention'``.
        self_distillation (str, optional): Who has a neck R: ``'common'`` (students but the
            first), ``'leader'``, ``'both'`` or None. Defaults to ``'both'``.
        fusion (bool): False: no fusion. The leader learns from the mean logits of the common
            students alone, and G takes its own deepest map. Defaults to True.
        diversity_weight (float | dict): :math:`\lambda_{div}` >= 0, or its schedule. Defaults to
            1e-5.
        fusion_weight (float | dict): :math:`\lambda_{fus}`, likewise. Defaults to 10.
        self_distillation_weight (float | dict): :math:`\lambda_{sd}`, likewise. Defaults to 1000.
        norm_cfg (dict): Normalisation of the necks. Defaults to ``dict(type='BN')``.

    Raises:
        ValueError: If students or their maps do not fit, or a value is out of range.
    """

    needs = frozenset({'maps'})

    def __init__(
        self,
        leader: str | None = 'leader',
        temperature: float = 2.0,
        diversity: str | None = 'attention',
        self_distillation: str | None = 'both',
        fusion: bool = True,
        diversity_weight: float | dict = 1e-5,
        fusion_weight: float | dict = 10.0,
        self_distillation_weight: float | dict = 1000.0,
        norm_cfg: dict = {'type': 'BN'},  # noqa: B006, read only
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_flag('fusion', fusion)
        check_choice('diversity', diversity, DIVERSITIES)
        choices = [c for c in SELF_DISTILLATIONS if leader is not None or c != 'leader']
        check_choice('self_distillation', self_distillation, choices)
        check_dict('norm_cfg', norm_cfg, {'type': 'BN'})
        self.leader, self.temperature, self.diversity = leader, temperature, diversity
        self.has_neck, self.has_fusion, self.norm_cfg = self_distillation, fusion, norm_cfg
        self.diversity_weight = schedule('diversity_weight', diversity_weight)
        self.fusion_weight = schedule('fusion_weight', fusion_weight)
        self.neck_weight = schedule('self_distillation_weight', self_distillation_weight)

    def roles(self, students: tuple[str, ...], teachers: tuple[str, ...]) -> Roles:
        """Deploy and export the leader, which is no part of the ensemble."""
        self.common = _common_students(students, self.leader)
        leaders = () if self.leader is None else (self.leader,)
        self.taught = self.common[1:] if self.has_neck in ('both', 'common') else ()
        self.taught += leaders if self.has_neck in ('both', 'leader') else ()
        return Roles(self.leader, leaders or None, leaders, self.taught)

    def setup(self, networks: Networks) -> None:
        """Build the necks, as wide as the students' maps."""
        shapes = {name: shapes_of(networks.probe(name).maps) for name in networks.students}
        check_same_size(shapes)
        for name in self.taught:
            check_halving(name, shapes[name])
        widths = [shapes[name][-1][0] for name in self.common]
        width = shapes[self.leader or self.common[0]][-1][0]
        k = networks.num_classes

        def neck(kind: str, *args, wanted: bool = True) -> nn.Module | None:
            cls = MODELS.get(f'kd_mm.{kind}')
            return cls(*args, norm_cfg=self.norm_cfg) if wanted else None

        channels = {name: [shape[0] for shape in shapes[name]] for name in self.taught}
        necks = {name: neck('SelfDistillationNeck', channels[name]) for name in self.taught}
        decodes = self.has_fusion and self.leader is not None
        parts = {
            'self_distillation': ModuleDict(necks) if necks else None,
            'fusion': neck('FeatureFusionNeck', widths, width, k, wanted=self.has_fusion),
            'decoder': neck('FusionDecoder', width, sum(widths), wanted=decodes),
        }
        for name, part in parts.items():
            self.register_module(name, part)  # None, too: optimizer settings may name it

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Return all terms; see :mod:`kd_mm.functional.ffsd`."""
        logits, temperature = step.logits(), self.temperature
        maps = {name: seen.maps for name, (seen, *_) in step.students.items()}
        attention = {name: [ffsd.attention_map(m) for m in maps[name]] for name in maps}
        looks = {n: Looks(fastest_layout(m[-1]), attention[n]) for n, m in maps.items()}
        common = torch.stack([logits[name].detach() for name in self.common])
        fused, teacher = None, at_least_float32(common).mean(dim=0)
        losses = self._common_losses(step, looks)
        if self.fusion is not None:
            ensemble = teacher
            fused, teacher = self.fusion([looks[name].deepest.detach() for name in self.common])
            losses['fusion/loss'] = F.cross_entropy(at_least_float32(teacher), step.labels)
            losses['fusion/loss_ensemble'] = mean_logit_kl(teacher, ensemble, temperature)
        if self.leader is not None:
            own = mean_logit_kl(logits[self.leader], teacher, temperature)
            losses[f'{self.leader}/loss_kd'] = own
            losses.update(self._leader_losses(self.fusion_weight(step.clock), looks, fused))
        # Last: the necks' statistics change here, and guidance comes from those before. Their
        # backward pass, then the first, frees what they keep before other gradients need room.
        for name in self.taught:
            rebuilt = self.self_distillation[name](looks[name].deepest.detach())
            stages = zip(rebuilt, maps[name][:-1], attention[name][:-1], strict=True)
            parts = zip(*(ffsd.rebuilding_distances(*s) for s in stages), strict=True)
            for term, values in zip(('feature', 'attention'), parts, strict=True):
                losses[f'{name}/loss_neck_{term}'] = self.neck_weight(step.clock) * sum(values)
        return losses

    def _common_losses(self, step: Step, looks: dict[str, Looks]) -> dict[str, Tensor]:
        """Return what the common students learn from each other."""
        logits, weight = step.logits(self.common), self.diversity_weight(step.clock)
        divergences = mutual_kl(list(logits.values()), self.temperature)
        losses = {f'{n}/loss_mutual': v.mean() for n, v in zip(logits, divergences, strict=True)}
        for before, name in zip(self.common[:-1], self.common[1:], strict=True):
            source, own, others = looks[name].deepest, looks[name], looks[before]
            if self.diversity == 'attention':
                distance = ffsd.diversity_distance(own.attention[-1], others.attention[-1])
                source = ffsd.diverse_feature_map(others.deepest, others.attention[-1])
            elif self.diversity == 'l2':
                distance = -ffsd.attention_distance(own.attention[-1], others.attention[-1])
            if self.diversity is not None:
                losses[f'{name}/loss_diversity'] = weight * distance
            if name in self.taught:
                losses[f'{name}/loss_self_distillation'] = weight * self._guide(name, own, source)
        return losses

    def _leader_losses(
        self, weight: float, looks: dict[str, Looks], fused: Tensor | None
    ) -> dict[str, Tensor]:
        """Return what the leader learns from the fused map."""
        name, own, losses = self.leader, looks[self.leader], {}
        if fused is not None:
            together = ffsd.joint_attention_map(
                [looks[common].attention[-1].detach() for common in self.common],
                [looks[common].deepest.shape[1] for common in self.common],
            )
            target = ffsd.attention_map(fused.detach())
            distance = ffsd.attention_distance(own.attention[-1], target)
            losses[f'{name}/loss_fusion'] = weight * distance
            decoded = ffsd.attention_map(self.decoder(own.deepest))
            losses[f'{name}/loss_decoder'] = weight * ffsd.attention_distance(decoded, together)
        if name in self.taught:
            source = own.deepest if fused is None else fused
            losses[f'{name}/loss_self_distillation'] = weight * self._guide(name, own, source)
        return losses

    def _guide(self, name: str, own: Looks, source: Tensor) -> Tensor:
        return ffsd.guidance(own.attention[:-1], self.self_distillation[name].predict(source))

    def extra_logits(self, step: Step) -> dict[str, Tensor]:
        """Return the logits of the fusion classifier as ``fusion``."""
        return {} if self.fusion is None else {'fusion': self._fuse(step)[1]}

    def extra_maps(self, step: Step) -> dict[str, Tensor]:
        """Return the fused map as ``fusion``."""
        return {} if self.fusion is None else {'fusion': self._fuse(step)[0]}

    def _fuse(self, step: Step) -> tuple[Tensor, Tensor]:
        return self.fusion([step.students[name][0].maps[-1] for name in self.common])
