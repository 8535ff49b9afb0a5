"""The softened divergence against a NumPy loop and by its gradient."""

import numpy as np
import pytest
import torch

from kd_mm.functional.kl import mean_kl, soft_log_probs, soft_target_kl
from tests.references import bake as reference


def draw(seed=0, num_images=5, num_classes=7):
    rng = np.random.default_rng(seed)
    logits = 5 * rng.normal(size=(num_images, num_classes))
    target = rng.dirichlet(np.full(num_classes, 0.3), size=num_images)
    target[0] = np.eye(num_classes)[2]  # zeros in the target must cost nothing
    return logits, target


@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
def test_equals_the_numpy_loop(temperature):
    logits, target = draw()
    ours = soft_target_kl(torch.tensor(logits), torch.tensor(target), temperature)
    expected = reference.soft_target_kl(logits, target, temperature)
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_the_weighted_mean_equals_the_numpy_loop_and_its_gradient_the_one_by_sample():
    logits, target = draw()
    expected = 0.7 * reference.soft_target_kl(logits, target, 4.0).mean()
    grads = []
    for mean in (
        lambda z, q: mean_kl(soft_log_probs(z, 4.0), q, 0.7 * 4.0**2),
        lambda z, q: 0.7 * soft_target_kl(z, q, 4.0).mean(),
    ):
        z, q = (torch.tensor(x, requires_grad=True) for x in (logits, target))
        value = mean(z, q)
        np.testing.assert_allclose(value.item(), expected, rtol=1e-10)
        value.backward()
        assert q.grad is None
        grads.append(z.grad)
    torch.testing.assert_close(*grads)


def test_gradient_is_temperature_times_the_gap_and_stops_at_the_target():
    """By hand: d/dz T^2 KL(q || softmax(z / T)) = T (softmax(z / T) - q)."""
    logits, target = (torch.tensor(x, requires_grad=True) for x in draw())
    soft_target_kl(logits, target, 4.0).sum().backward()
    gap = (logits.detach() / 4).softmax(1) - target.detach()
    torch.testing.assert_close(logits.grad, 4 * gap)
    assert target.grad is None


def test_half_precision_is_computed_in_float32():
    logits, target = (torch.tensor(x).half() for x in draw())
    value = soft_target_kl(logits, target, 4.0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, soft_target_kl(logits.float(), target.float(), 4.0))


def test_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r'\(2, 3\) and \(2, 4\)'):
        soft_target_kl(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)
    with pytest.raises(ValueError, match=r'\(2, 3\) and \(1, 3\)'):  # they would broadcast
        mean_kl(torch.zeros(2, 3), torch.zeros(1, 3), 1.0)
