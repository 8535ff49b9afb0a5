"""FFSD's attention terms against NumPy loops and by hand; golden numbers in test_ffsd.py."""

import numpy as np
import pytest
import torch

from kd_mm.functional.ffsd import (
    attention_distance,
    attention_map,
    diverse_feature_map,
    diversity_distance,
    joint_attention_map,
    rebuilding_distances,
)
from tests.references import ffsd as reference

CLOSE = {'rtol': 1e-10, 'atol': 1e-12}


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize('size', [(2, 5), (3, 4), (4, 4)])
def test_maps_and_distances_equal_the_loops(size):
    x, y = draw(0, 3, 5, *size), draw(1, 3, 5, *size)
    ax, ay = attention_map(x), attention_map(y)
    np.testing.assert_allclose(ax, reference.attention_map(x.numpy()), **CLOSE)
    for ours, theirs in (
        (attention_distance(x, y), reference.attention_distance(x.numpy(), y.numpy())),
        (attention_distance(ax, ay), reference.attention_distance(ax.numpy(), ay.numpy())),
        (diversity_distance(ax, ay), reference.diversity_distance(ax.numpy(), ay.numpy())),
        (diverse_feature_map(x), reference.diverse_feature_map(x.numpy())),
        # What is added depends on the attention alone.
        (diverse_feature_map(x, ay) - x, reference.diverse_feature_map(y.numpy()) - y.numpy()),
    ):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_attention_is_the_same_in_any_layout():
    """Channels last take another way to it, also where a layer is dead; the gradient is one."""
    x, weights = draw(0, 3, 5, 4, 6), draw(1, 3, 1, 4, 6)
    x[:, :, 1:3] = 0
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        laid_out = x.contiguous(memory_format=layout).requires_grad_()
        attention = attention_map(laid_out)
        results.append((attention, *torch.autograd.grad((weights * attention).sum(), laid_out)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-15)
    expected = reference.attention_map(x.detach().numpy())
    np.testing.assert_allclose(results[0][0].detach(), expected, **CLOSE)


def test_joint_attention_is_that_of_the_concatenated_maps():
    maps = [draw(seed, 3, width, 4, 6) for seed, width in enumerate((2, 5, 1))]
    joint = joint_attention_map([attention_map(m) for m in maps], [m.shape[1] for m in maps])
    torch.testing.assert_close(joint, attention_map(torch.cat(maps, dim=1)), **CLOSE)


def test_a_map_of_zeros_has_length_zero():
    """A dead map is not normalised: only the other's length counts, and no gradient is NaN."""
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    y = torch.ones(1, 1, 2, 2)
    for first, second, value in ((x, y, 1 / 4), (y, x, 1 / 4), (x, x, 0.0)):
        assert attention_distance(first, second).item() == pytest.approx(value)
    attention_distance(attention_map(x), y).backward()
    assert torch.isfinite(x.grad).all()
    diverse = diverse_feature_map(x)
    assert torch.isfinite(diverse).all()
    assert not diverse.requires_grad


@pytest.mark.parametrize('distance', [attention_distance, diversity_distance])
def test_gradient_reaches_the_learner_alone(distance):
    x, y = draw(0, 2, 1, 3, 3).requires_grad_(), draw(1, 2, 1, 3, 3).requires_grad_()
    distance(x, y).backward()
    assert y.grad is None
    torch.autograd.gradcheck(lambda z: distance(z, y.detach()), (x.detach().requires_grad_(),))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_rebuilding_distances_are_the_two_distances(layout):
    """In one pass, whose gradient is that of both terms with a weight each, in any layout."""
    x, y = draw(0, 3, 5, 4, 6).contiguous(memory_format=layout), draw(1, 3, 5, 4, 6)
    x[2], y[1] = 0, 0  # dead maps
    x, y = x.requires_grad_(), y.requires_grad_()

    together = rebuilding_distances(x, y, attention_map(y))
    apart = attention_distance(x, y), attention_distance(attention_map(x), attention_map(y))
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-15)
    gradients = [torch.autograd.grad(3 * a + 5 * b, x)[0] for a, b in (together, apart)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)
    assert gradients[0].abs().sum() > 0
    torch.autograd.backward(rebuilding_distances(x, y, attention_map(y)))
    assert y.grad is None


def test_half_precision_and_autocast_compute_in_float32():
    def results(x, y):
        return [
            attention_map(x),
            attention_distance(x, y),
            *rebuilding_distances(x, y, attention_map(y)),
            diversity_distance(attention_map(x), attention_map(y)),
            diverse_feature_map(x),
        ]

    x, y = draw(0, 2, 3, 4, 4).half(), draw(1, 2, 3, 4, 4).half()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        ours = results(x, y)
    assert {value.dtype for value in ours} == {torch.float32}
    exact = [value.float() for value in results(x.double(), y.double())]
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: attention_map(torch.ones(2, 3)), r'must be \(B, C, H, W\), but got shape \(2, 3'),
        (lambda: attention_distance(torch.ones(1, 4), torch.ones(1, 2)), 'must halve in size'),
        (
            lambda: rebuilding_distances(*torch.ones(2, 1, 2, 3, 3), torch.ones(1, 1, 3, 4)),
            r'but got \(1, 1, 3, 3\) and \(1, 1, 3, 4\)',
        ),
        (lambda: diversity_distance(torch.ones(1, 4), torch.ones(1, 5)), 'deepest maps of two'),
        (lambda: diverse_feature_map(torch.ones(1, 3, 1, 2)), 'at least 3, but got 2'),
    ],
)
def test_bad_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
