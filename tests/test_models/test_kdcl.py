"""KDCL: the paper's loss with each of the four targets."""

import numpy as np
import pytest
import torch

from kd_mm.methods import Clock
from kd_mm.methods.kdcl import LOGIT_TARGETS
from tests.references import bake as reference
from tests.test_models.test_distiller import batch, student
from tests.test_models.test_distiller import build as build_distiller

NAMES = ('a', 'b', 'c')
TARGETS = (*LOGIT_TARGETS, 'general')


def build(names=NAMES, **kwargs):
    model = build_distiller({name: student() for name in names}, type='kd_mm.KDCL', **kwargs)
    model.clock = Clock(0, 1, 0, 1, num_images=6)  # as in a run with kd_mm.DistillerHook
    return model


def logits_of(model, images):
    return {n: s(images).detach().double().numpy() for n, s in model.students.items()}


def naive(logits, labels, temperature):
    """Row by row, the student that gives the true class the highest probability."""
    rows = []
    for n, label in enumerate(labels):
        best = max(logits, key=lambda name, n=n, y=label: reference.softmax(logits[name][n])[y])
        rows.append(reference.softmax(logits[best][n] / temperature))
    return np.stack(rows)


def min_logit(logits, labels, temperature):
    """Row by row and class by class, the least gap to the true class."""
    rows = []
    for n, label in enumerate(labels):
        gaps = [logits[name][n] - logits[name][n][label] for name in logits]
        rows.append(reference.softmax(np.min(gaps, axis=0) / temperature))
    return np.stack(rows)


def general(logits, labels, temperature):
    """Equal weights of the probabilities."""
    probs = [[reference.softmax(row / temperature) for row in z] for z in logits.values()]
    return np.mean(probs, axis=0)


@pytest.mark.parametrize(
    ('target', 'expected'), [('naive', naive), ('min_logit', min_logit), ('general', general)]
)
@pytest.mark.parametrize(('temperature', 'loss_weight'), [(2.0, 1.0), (1.0, 0.3)])
def test_loss_equals_the_papers(target, expected, temperature, loss_weight):
    model = build(target=target, temperature=temperature, loss_weight=loss_weight)
    images, samples = batch(num_images=6)
    losses = model(images, samples, mode='loss')
    logits = logits_of(model, images)
    labels = [int(sample.gt_label) for sample in samples]
    soft = expected(logits, labels, temperature)
    for name in NAMES:
        wanted = loss_weight * reference.soft_target_kl(logits[name], soft, temperature).mean()
        np.testing.assert_allclose(losses[f'{name}/loss_kdcl'].item(), wanted, rtol=2e-4)


def test_loss_of_the_linear_target_is_that_of_the_best_mixture_on_a_grid():
    model = build(('a', 'b'), target='linear')
    images, samples = batch(num_images=6)
    losses = model(images, samples, mode='loss')
    logits = logits_of(model, images)
    soft = []
    for n, sample in enumerate(samples):
        label = int(sample.gt_label)
        grid = np.linspace(0, 1, 100001)[:, None]
        mixed = grid * logits['a'][n] + (1 - grid) * logits['b'][n]
        cross_entropy = np.log(np.exp(mixed).sum(1)) - mixed[:, label]
        soft.append(reference.softmax(mixed[cross_entropy.argmin()] / 2))  # at temperature 2
    for name in 'ab':
        wanted = reference.soft_target_kl(logits[name], np.stack(soft), 2.0).mean()
        assert wanted > 0.01
        np.testing.assert_allclose(losses[f'{name}/loss_kdcl'].item(), wanted, rtol=1e-3)


def test_the_four_targets_differ():
    images, samples = batch(num_images=6)
    values = {
        target: build(target=target)(images, samples, mode='loss')['a/loss_kdcl'].item()
        for target in TARGETS
    }
    assert len({round(value, 4) for value in values.values()}) == 4


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('soft', [False, True], ids=['hard labels', 'mixed labels'])
def test_gradient_reaches_each_student_through_its_own_output_only(target, soft):
    model = build(target=target)
    images, samples = batch(soft=soft)
    losses = model(images, samples, mode='loss')
    assert all(value.isfinite() for value in losses.values())
    losses['a/loss_kdcl'].backward(retain_graph=True)
    assert all(p.grad is None for n in 'bc' for p in model.students[n].parameters())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('target', TARGETS)
def test_one_student_is_plain_training(target):
    model = build(('a',), target=target)
    images, samples = batch()
    losses = model(images, samples, mode='loss')
    plain = model.students['a'](images, samples, mode='loss')
    assert torch.equal(losses['a/loss'], plain['loss'])
    losses['a/loss_kdcl'].backward()
    for parameter in model.parameters():
        assert parameter.grad.abs().max() < 1e-6


@pytest.mark.parametrize('target', TARGETS)
def test_permuting_students_permutes_nothing_else(target):
    model, turned = build(target=target), build(('c', 'a', 'b'), target=target)
    turned.load_state_dict(model.state_dict())
    first, second = (m(*batch(), mode='loss') for m in (model, turned))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value)


def test_weights_of_general_live_in_the_state_and_enter_the_target():
    model = build(target='general')
    torch.testing.assert_close(model.state_dict()['methods.kdcl.weights'], torch.full((3,), 1 / 3))
    assert not any('methods' in key for key in build(target='naive').state_dict())
    model.methods.kdcl.weights.copy_(torch.tensor([1.0, 0.0, 0.0]))
    images, samples = batch()
    losses = model(images, samples, mode='loss')
    assert losses['a/loss_kdcl'].item() == pytest.approx(0, abs=1e-5)
    assert losses['b/loss_kdcl'].item() > 1e-3


def test_weights_of_general_stay_with_their_students_when_a_dump_sorts_them():
    model, turned = build(('b', 'c', 'a'), target='general'), build(target='general')
    model.methods.kdcl.weights.copy_(torch.tensor([0.6, 0.3, 0.1]))  # a, b, c
    turned.load_state_dict(model.state_dict())
    first, second = (m(*batch(), mode='loss') for m in (model, turned))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value)


def test_a_student_with_bake_keeps_both_losses():
    students = {'a': student(head='kd_mm.BAKEHead'), 'b': student()}
    losses = build_distiller(students, type='kd_mm.KDCL')(*batch(), mode='loss')
    assert {'a/loss', 'a/loss_bake', 'a/loss_kdcl', 'b/loss', 'b/loss_kdcl'} == losses.keys()


def test_an_unknown_target_lists_the_four():
    with pytest.raises(
        ValueError, match="'naive', 'linear', 'min_logit', 'general', but got 'mean'"
    ):
        build(target='mean')
    with pytest.raises(ValueError, match='temperature must be positive'):
        build(temperature=-1.0)


def test_soft_labels_of_a_data_set_must_sum_to_one():
    model = build()
    images, samples = batch(soft=True)
    samples[1].set_gt_score(samples[1].gt_score * 2)
    with pytest.raises(ValueError, match='row 1 sums to 2'):
        model.data_preprocessor({'inputs': images, 'data_samples': samples})


def test_general_trains_with_the_hook_alone():
    model = build(target='general')
    model.clock = None
    with pytest.raises(RuntimeError, match=r'KDCL needs images .* add default_hooks='):
        model(*batch(), mode='loss')
    model.eval()(*batch(), mode='loss')
