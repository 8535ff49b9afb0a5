"""KDCL beyond the contract: its options, labels, General's weights, refusals."""

import numpy as np
import pytest
import torch

from kd_mm.methods.kdcl import LOGIT_TARGETS
from kd_mm.registry import MODELS
from tests import contract
from tests.references import bake as reference
from tests.references import kdcl

TARGETS = (*LOGIT_TARGETS, 'general')


def build(students=('a', 'b', 'c'), **options):
    return contract.build(contract.Row({'type': 'kd_mm.KDCL', **options}, students=students))


def mixed_batch():
    images, samples = contract.batch()
    for sample in samples:
        label = torch.nn.functional.one_hot(sample.gt_label[0], contract.NUM_CLASSES)
        sample.set_gt_score(0.7 * label + 0.03)
    return images, samples


@pytest.mark.parametrize(('temperature', 'loss_weight'), [(1.0, 1.0), (2.0, 0.3)])
def test_temperature_and_weight(temperature, loss_weight):
    model = build(target='min_logit', temperature=temperature, loss_weight=loss_weight)
    images, samples = contract.batch()
    losses = model(images, samples, mode='loss')
    logits = {n: s(images).detach().double().numpy() for n, s in model.students.items()}
    labels = [int(sample.gt_label) for sample in samples]
    target = kdcl.min_logit_target(np.stack(list(logits.values())), labels)
    probs = np.stack([reference.softmax(row / temperature) for row in target])
    for name, z in logits.items():
        wanted = loss_weight * reference.soft_target_kl(z, probs, temperature).mean()
        np.testing.assert_allclose(losses[f'{name}/loss_kdcl'].item(), wanted, rtol=2e-4)


@pytest.mark.parametrize('target', TARGETS)
def test_mixed_labels_train_every_student(target):
    model = build(target=target)
    hard, mixed = (model(*inputs, mode='loss') for inputs in (contract.batch(), mixed_batch()))
    # What General makes of the logits does not depend on labels.
    assert (mixed['a/loss_kdcl'] == hard['a/loss_kdcl']) == (target in ('naive', 'general'))
    sum(mixed.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('target', TARGETS)
def test_one_student_is_plain_training(target):
    model = build(('a',), target=target)
    images, samples = contract.batch()
    losses = model(images, samples, mode='loss')
    plain = model.students['a'](images, samples, mode='loss')
    assert torch.equal(losses['a/loss'], plain['loss'])
    losses['a/loss_kdcl'].backward()
    assert all(parameter.grad.abs().max() < 1e-6 for parameter in model.parameters())


def test_weights_of_general_live_in_the_state_and_enter_the_target():
    model = build(target='general')
    weights = model.state_dict()['methods.kdcl.weights']
    torch.testing.assert_close(weights, torch.full((3,), 1 / 3))
    assert not any('methods' in key for key in build(target='naive').state_dict())
    weights.copy_(torch.tensor([1.0, 0.0, 0.0]))
    losses = model(*contract.batch(), mode='loss')
    assert losses['a/loss_kdcl'].item() == pytest.approx(0, abs=1e-5)
    assert losses['b/loss_kdcl'].item() > 1e-3


def test_weights_of_general_stay_with_their_students_when_a_dump_sorts_them():
    model, turned = build(('b', 'c', 'a'), target='general'), build(target='general')
    model.methods.kdcl.weights.copy_(torch.tensor([0.6, 0.3, 0.1]))  # a, b, c
    turned.load_state_dict(model.state_dict())
    first, second = (m(*contract.batch(), mode='loss') for m in (model, turned))
    torch.testing.assert_close(dict(second), dict(first))


def test_bad_input_is_refused():
    match = "'naive', 'linear', 'min_logit', 'general', but got 'mean'"
    with pytest.raises(ValueError, match=match):
        build(target='mean')
    images, samples = mixed_batch()
    samples[1].set_gt_score(samples[1].gt_score * 2)
    with pytest.raises(ValueError, match='row 1 sums to 2'):
        build().data_preprocessor({'inputs': images, 'data_samples': samples})


def test_general_trains_with_the_hook_alone():
    model = MODELS.build(
        contract.model_cfg(contract.Row({'type': 'kd_mm.KDCL', 'target': 'general'}))
    )
    with pytest.raises(RuntimeError, match=r'KDCL needs images .* add default_hooks='):
        model.train()(*contract.batch(), mode='loss')
    model.eval()(*contract.batch(), mode='loss')
