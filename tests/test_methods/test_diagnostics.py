"""The numbers to log, against loops over images in plain Python."""

import math

import numpy as np
import pytest
import torch

from kd_mm.methods import diagnostics

M, N, K = 3, 7, 4
PROBS = np.random.default_rng(0).dirichlet(np.full(K, 0.5), size=(M, N))


def entropy(p):
    return -sum(x * math.log(x) for x in p if x > 0)


def test_diversity_by_loop():
    total = 0
    for n in range(N):
        mean = [sum(PROBS[i][n][k] for i in range(M)) / M for k in range(K)]
        total += entropy(mean) - sum(entropy(PROBS[i][n]) for i in range(M)) / M
    assert diagnostics.diversity(torch.tensor(PROBS)).item() == pytest.approx(total / N, rel=1e-10)
    alike = torch.tensor(PROBS[:1]).expand(M, N, K)
    assert diagnostics.diversity(alike).item() == pytest.approx(0, abs=1e-12)


def test_agreement_and_gap_of_the_ensemble_by_loop():
    same = sum(PROBS[0][n].argmax() == PROBS[1][n].argmax() for n in range(N))
    assert 0 < same < N
    found = diagnostics.agreement(*torch.tensor(PROBS[:2]))
    assert found.item() == pytest.approx(same / N)
    classes = [n % K for n in range(N)]
    *students, ensemble = (
        100 * sum(row[n].argmax() == classes[n] for n in range(N)) / N
        for row in (*PROBS, sum(PROBS) / M)
    )
    assert min(students) < max(students)
    mean, best = diagnostics.ensemble_gap(torch.tensor(PROBS), torch.tensor(classes))
    assert mean.item() == pytest.approx(ensemble - sum(students) / M, rel=1e-5)
    assert best.item() == pytest.approx(ensemble - max(students), rel=1e-5)


def test_gradients_that_vanish_are_compared_without_nan():
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    for first in (zero, one):
        ratio, cosine = diagnostics.compare_gradients(first, zero)
        assert cosine == 0
        assert torch.isfinite(ratio)
    assert diagnostics.compare_gradients(zero, one) == (0, 0)
    ratio, cosine = diagnostics.compare_gradients(-2 * one, one)
    assert (ratio.item(), cosine.item()) == pytest.approx((2, -1))


def test_gradients_are_compared_in_their_own_precision_under_autocast():
    first, second = torch.tensor([[0.3, 2.0]]), torch.tensor([[3.0, 4.1]])
    expected = diagnostics.compare_gradients(first, second)
    with torch.autocast('cpu', torch.bfloat16):
        assert diagnostics.compare_gradients(first, second) == expected


def test_affinities_by_loop():
    rng = np.random.default_rng(1)
    a = rng.random((N, N)) * (1 - np.eye(N))
    a /= a.sum(axis=1, keepdims=True)
    y = rng.dirichlet(np.ones(K), size=N)
    mass = sum(a[i][j] * y[i][k] * y[j][k] for i in range(N) for j in range(N) for k in range(K))
    found = diagnostics.own_class_mass(torch.tensor(a), torch.tensor(y))
    assert found.item() == pytest.approx(mass / N, rel=1e-10)
    expected = sum(entropy(row) for row in a) / N / math.log(N - 1)
    found = diagnostics.affinity_entropy(torch.tensor(a))
    assert found.item() == pytest.approx(expected, rel=1e-6)
    even = (1 - np.eye(N)) / (N - 1)
    assert diagnostics.affinity_entropy(torch.tensor(even)).item() == pytest.approx(1, rel=1e-6)
