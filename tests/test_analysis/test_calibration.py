"""Calibration against loops written from the definitions."""

import math

import numpy as np
import pytest

from kd_mm.analysis.calibration import (
    Predictions,
    expected_calibration_error,
    negative_log_likelihood,
    per_class_accuracy,
    reliability,
)


@pytest.fixture(scope='module')
def predictions():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    confidence = rng.uniform(1 / 3, 1, 200)
    confidence[:3] = 1.0, 0.4, 0.0  # the ends, and the edge of a bin of five
    return Predictions(labels, predicted, confidence, rng.uniform(0.01, 1, 200))


def bins_by_hand(predictions, num_bins):
    """(confidence, accuracy, share) of each bin ((b - 1) / B, b / B]; the first holds 0, too."""
    rows = []
    for b in range(1, num_bins + 1):
        held = [
            i for i, c in enumerate(predictions.confidence)
            if (b - 1) / num_bins < c <= b / num_bins or (b == 1 and c == 0)
        ]  # fmt: skip
        if held:
            rows.append(
                (
                    sum(predictions.confidence[i] for i in held) / len(held),
                    sum(predictions.predicted[i] == predictions.labels[i] for i in held)
                    / len(held),
                    len(held) / len(predictions.labels),
                )
            )
    return list(zip(*rows, strict=True))


def test_reliability_diagram_by_hand(predictions):
    diagram = reliability(predictions, 5)
    expected = bins_by_hand(predictions, 5)
    assert len(diagram.share) == 5
    for ours, theirs in zip(diagram, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize('num_bins', [5, 15])
def test_calibration_error_by_hand(predictions, num_bins):
    confidence, accuracy, share = bins_by_hand(predictions, num_bins)
    expected = sum(s * abs(a - c) for c, a, s in zip(confidence, accuracy, share, strict=True))
    assert expected_calibration_error(predictions, num_bins) == pytest.approx(expected, rel=1e-12)


def test_likelihood_of_an_impossible_class_is_finite():
    one = np.zeros(2, dtype=int), np.array([0, 1]), np.ones(2)
    halves = Predictions(*one, np.array([0.5, 0.25], dtype=np.float32))
    assert negative_log_likelihood(halves) == pytest.approx(1.5 * math.log(2))
    impossible = Predictions(*one, np.zeros(2, dtype=np.float32))
    assert negative_log_likelihood(impossible) == pytest.approx(126 * math.log(2))


def test_accuracy_of_each_class():
    labels, predicted = np.array([0, 0, 0, 2]), np.array([0, 0, 1, 1])
    found = per_class_accuracy(Predictions(labels, predicted, labels, labels), 3)
    np.testing.assert_allclose(found, [2 / 3, np.nan, 0])
