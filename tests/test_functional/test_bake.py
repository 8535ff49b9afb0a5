"""BAKE's equations against the released code's numbers, a NumPy loop and cases by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kd_mm.functional.bake import affinity, ensemble_knowledge, propagate
from kd_mm.functional.kl import soft_target_kl
from tests.references import bake as reference

DATA = Path(__file__).parents[1] / 'data'


def draw(seed=0, num_images=9, dim=4, num_classes=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_images, dim, generator=generator, dtype=torch.float64)
    logits = 3 * torch.randn(num_images, num_classes, generator=generator, dtype=torch.float64)
    return features.to(dtype), logits.to(dtype)


@pytest.mark.parametrize('number', range(3))
def test_targets_loss_and_gradient_equal_the_released_code(number):
    golden = np.load(DATA / f'bake_{number}.npz').items()
    golden = {name: torch.tensor(value) for name, value in golden}
    temperature, omega = golden['temperature'].item(), golden['omega'].item()
    logits = golden['logits'].requires_grad_()

    target = ensemble_knowledge(golden['features'], logits, temperature, omega)
    loss = golden['loss_weight'] * soft_target_kl(logits, target, temperature).mean()
    loss.backward()

    close = {'rtol': 1e-6, 'atol': 1e-12}
    torch.testing.assert_close(target, golden['soft_targets'], **close)
    torch.testing.assert_close(loss.detach(), golden['loss'], **close)
    torch.testing.assert_close(logits.grad, golden['grad_logits'], **close)


@pytest.mark.parametrize('omega', [0.0, 0.3, 0.99])
@pytest.mark.parametrize('num_classes', [3, 40], ids=['few classes', 'more classes than images'])
def test_solution_is_the_limit_of_the_propagation(omega, num_classes):
    features, logits = draw(num_classes=num_classes)
    expected = reference.ensemble_knowledge(features.numpy(), logits.numpy(), 4.0, omega)
    ours = ensemble_knowledge(features, logits, 4.0, omega)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    np.testing.assert_allclose(ours.sum(1), 1, rtol=1e-12)


def test_affinity_equals_the_numpy_loop():
    features, _ = draw()
    np.testing.assert_allclose(affinity(features), reference.affinity(features.numpy()), 1e-12)


def test_two_images_by_hand():
    """A swaps the two rows, so that Q = ([1, w; w, 1] / (1 + w)) P."""
    features, logits = draw(num_images=2)
    probs = (logits / 2).softmax(1)
    expected = torch.stack([probs[0] + 0.5 * probs[1], 0.5 * probs[0] + probs[1]]) / 1.5
    torch.testing.assert_close(ensemble_knowledge(features, logits, 2.0, 0.5), expected)


def test_predictions_that_are_given_are_propagated_without_gradient():
    features, logits = (x.requires_grad_() for x in draw())
    before = features.clone(), logits.clone()
    for kwargs in ({}, {'rows': slice(2, 5)}, {'valid': (torch.arange(9) < 7).double()}):
        expected = ensemble_knowledge(features, logits, 2.0, 0.5, **kwargs)
        ours = propagate(features, (logits / 2).softmax(1), 0.5, **kwargs)
        assert torch.equal(ours, expected)
        assert not expected.requires_grad
        assert not ours.requires_grad
    assert not affinity(features).requires_grad
    assert torch.equal(features, before[0])
    assert torch.equal(logits, before[1])


def test_one_image_keeps_its_own_prediction():
    features, logits = draw(num_images=1)
    target = ensemble_knowledge(features, logits, 4.0, 0.5)
    torch.testing.assert_close(target, (logits / 4).softmax(1))


@pytest.mark.parametrize('num_classes', [3, 40])
@pytest.mark.parametrize('rows', [slice(0, 2), slice(4, 9), slice(3, 4)])
def test_rows_are_rows_of_the_whole(rows, num_classes):
    features, logits = draw(num_classes=num_classes)
    whole = ensemble_knowledge(features, logits, 4.0, 0.5)
    torch.testing.assert_close(
        ensemble_knowledge(features, logits, 4.0, 0.5, rows=rows), whole[rows]
    )


@pytest.mark.parametrize('num_classes', [3, 40])
def test_a_large_batch_is_solved_as_a_small_one(num_classes, monkeypatch):
    """They take different routines of the linear algebra library."""
    features, logits = draw(num_classes=num_classes)
    for rows in (None, slice(2, 5)):
        small = ensemble_knowledge(features, logits, 4.0, 0.5, rows=rows)
        with monkeypatch.context() as patch:
            patch.setattr('kd_mm.functional.bake._LARGE', 2)
            patch.setattr(torch, 'cholesky_solve', None)
            large = ensemble_knowledge(features, logits, 4.0, 0.5, rows=rows)
        torch.testing.assert_close(large, small, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('num_classes', [3, 40])
def test_padding_neither_gives_nor_takes(num_classes):
    features, logits = draw(num_classes=num_classes)
    expected = ensemble_knowledge(features, logits, 4.0, 0.5)
    valid = torch.tensor([1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0], dtype=torch.float64)
    padded_features = torch.zeros(12, features.shape[1], dtype=torch.float64)
    padded_logits = torch.zeros(12, num_classes, dtype=torch.float64)
    padded_features[valid == 1], padded_logits[valid == 1] = features, logits
    ours = ensemble_knowledge(padded_features, padded_logits, 4.0, 0.5, valid=valid)
    torch.testing.assert_close(ours[valid == 1], expected)
    assert ours.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
def test_half_precision_and_autocast_compute_in_float32(dtype):
    features, logits = draw(dtype=dtype, num_images=64, dim=32)
    exact = ensemble_knowledge(features.double(), logits.double(), 4.0, 0.9)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        target = ensemble_knowledge(features, logits, 4.0, 0.9)
    assert target.dtype == torch.float32
    torch.testing.assert_close(target.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('omega', [-0.1, 1, float('nan')])
def test_refuses_omega_outside_its_range(omega):
    with pytest.raises(ValueError, match=r'omega must lie in \[0, 1\)'):
        ensemble_knowledge(*draw(), 4.0, omega)


def test_refuses_features_and_logits_of_different_images():
    features, logits = draw()
    with pytest.raises(ValueError, match='9 and 8 rows'):
        ensemble_knowledge(features, logits[:8], 4.0, 0.5)
