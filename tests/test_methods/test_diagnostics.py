"""The numbers to watch, against loops over images in plain Python."""

import math

import numpy as np
import pytest
import torch

from kd_mm.methods import diagnostics

M, N, K = 3, 7, 4


@pytest.fixture(scope='module')
def probs():
    return np.random.default_rng(0).dirichlet(np.full(K, 0.5), size=(M, N))


def entropy(p):
    return -sum(x * math.log(x) for x in p if x > 0)


def test_diversity_by_loop(probs):
    total = 0
    for n in range(N):
        mean = [sum(probs[i][n][k] for i in range(M)) / M for k in range(K)]
        total += entropy(mean) - sum(entropy(probs[i][n]) for i in range(M)) / M
    assert diagnostics.diversity(torch.tensor(probs)).item() == pytest.approx(total / N, rel=1e-10)
    alike = torch.tensor(probs[:1]).expand(M, N, K)
    assert diagnostics.diversity(alike).item() == pytest.approx(0, abs=1e-12)


def test_agreement_by_loop(probs):
    same = sum(probs[0][n].argmax() == probs[1][n].argmax() for n in range(N))
    assert 0 < same < N
    found = diagnostics.agreement(*torch.tensor(probs[:2]))
    assert found.item() == pytest.approx(same / N)


def test_gap_of_the_ensemble_by_loop(probs):
    classes = [n % K for n in range(N)]
    rows = [*probs, sum(probs) / M]
    *students, ensemble = (
        100 * sum(row[n].argmax() == classes[n] for n in range(N)) / N for row in rows
    )
    assert min(students) < max(students)
    gap = diagnostics.ensemble_gap(torch.tensor(probs), torch.tensor(classes))
    assert gap.mean.item() == pytest.approx(ensemble - sum(students) / M, rel=1e-5)
    assert gap.best.item() == pytest.approx(ensemble - max(students), rel=1e-5)


def test_gradients_that_vanish_are_compared_without_nan():
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    for first in (zero, one):
        compared = diagnostics.compare_gradients(first, zero)
        assert compared.cosine == 0
        assert torch.isfinite(compared.ratio)
    assert diagnostics.compare_gradients(zero, one) == (0, 0)
    assert diagnostics.compare_gradients(-2 * one, one).ratio.item() == pytest.approx(2)
    assert diagnostics.compare_gradients(-2 * one, one).cosine.item() == pytest.approx(-1)


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
