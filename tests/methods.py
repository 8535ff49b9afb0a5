"""Small methods of a project of its own: one for each thing that a method may ask for."""

import torch
import torch.nn.functional as F
from torch import nn

from kd_mm.functional.kl import mean_logit_kl
from kd_mm.methods import Method, Roles, schedule
from kd_mm.methods.memory import SampleMemory
from tests.registry import METHODS


@METHODS.register_module()
class Imitate(Method):
    """Each student learns from one teacher's softened prediction of its own view."""

    needs = frozenset({'teacher'})

    def __init__(self, teacher=None, loss_weight=1.0):
        super().__init__()
        self.teacher = teacher
        self.loss_weight = schedule('loss_weight', loss_weight)

    def roles(self, students, teachers):
        self.teacher = self.teacher or teachers[0]
        return Roles()

    def losses(self, step):
        seen = step.teachers[self.teacher][0]
        assert not seen.logits.requires_grad
        return {
            f'{name}/loss_kd': self.loss_weight(step.clock) * mean_logit_kl(z, seen.logits, 2.0)
            for name, z in step.logits().items()
        }


@METHODS.register_module()
class Snapshot(Imitate):
    """The teacher is a copy of the student as it was after the last epoch."""

    needs = frozenset({'teacher', 'clock'})

    def after_epoch(self, end):
        teacher, student = end.teachers[self.teacher], next(iter(end.students.values()))
        teacher.load_state_dict(student.state_dict())
        end.log('snapshot/epoch', end.clock.epoch)


@METHODS.register_module()
class PastLabels(Method):
    """The labels of the own losses are mixed with the last prediction of the same image."""

    needs = frozenset({'index', 'clock'})

    def setup(self, networks):
        self.memory = SampleMemory(networks.num_classes)

    def before(self, step):
        past, filled = self.memory.read(step.index)
        k = past.shape[1]
        labels = F.one_hot(step.labels, k).float()
        share = 0.5 * (step.clock.epoch + 1) / step.clock.max_epochs
        mixed = (1 - share) * labels + share * past
        return step._replace(labels=torch.where(filled[:, None], mixed, labels))

    def losses(self, step):
        (views,) = step.students.values()
        self.memory.write(step.index, views[0].logits.softmax(dim=1))
        return {}


@METHODS.register_module()
class TwoViews(Method):
    """Predictions of two views of an image come near; the second view may need no gradient."""

    needs = frozenset({'views'})

    def __init__(self, frozen=False):
        super().__init__()
        self.frozen = frozen

    def roles(self, students, teachers):
        return Roles(views_without_gradient=(1,) if self.frozen else ())

    def losses(self, step):
        return {
            f'{name}/loss_views': mean_logit_kl(first.logits, second.logits, 1.0)
            for name, (first, second) in step.students.items()
        }


@METHODS.register_module()
class Gate(Method):
    """Branches learn from their gated mean, which is measured, and never exported."""

    needs = frozenset({'peers'})

    def setup(self, networks):
        names = list(networks.students)
        self.gate = nn.Linear(networks.probe(names[0]).embedding.shape[1], len(names))

    def gated(self, step):
        logits = torch.stack(list(step.logits().values()))
        seen = next(iter(step.students.values()))[0]
        weights = self.gate(seen.embedding.detach()).softmax(dim=1)
        return torch.einsum('nm,mnk->nk', weights, logits.detach())

    def losses(self, step):
        gated = self.gated(step)
        losses = {
            f'{name}/loss_gate': mean_logit_kl(z, gated, 3.0) for name, z in step.logits().items()
        }
        return losses | {'gate/loss': F.cross_entropy(gated, step.labels)}

    def extra_logits(self, step):
        return {'gate': self.gated(step)}


@METHODS.register_module()
class Weighed(Method):
    """Every second image has no part in the own losses."""

    def before(self, step):
        weight = torch.ones_like(step.labels, dtype=torch.float32)
        weight[1::2] = 0
        return step._replace(weight=weight)

    def losses(self, step):
        return {}
