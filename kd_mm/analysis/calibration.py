"""How far a classifier's confidence can be trusted, and which classes it knows."""

from typing import NamedTuple

import numpy as np

NUM_BINS = 15


class Predictions(NamedTuple):
    """What one network says of n images, as little as the measures need.

    Attributes:
        labels: (n,) true classes.
        predicted: (n,) most probable classes.
        confidence: (n,) their probabilities.
        true_prob: (n,) probabilities of the true classes.
    """

    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    true_prob: np.ndarray

    @property
    def hits(self) -> np.ndarray:
        """(n,) whether the prediction is right."""
        return self.predicted == self.labels


class Reliability(NamedTuple):
    """A reliability diagram: bins of equal width over the confidence; empty ones are left out.

    Attributes:
        confidence: (b,) mean confidence in each bin.
        accuracy: (b,) share of right predictions in each bin.
        share: (b,) share of the images in each bin.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray


def reliability(predictions: Predictions, num_bins: int = NUM_BINS) -> Reliability:
    """Sort predictions into bins by confidence.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2; a bin
    holds its upper end.

    Args:
        predictions: Of n images, n >= 1.
        num_bins: Bins over [0, 1].

    Returns:
        The diagram.

    Examples:
        >>> import numpy as np
        >>> of_two = Predictions(*np.array([[0, 1], [0, 0], [0.8, 0.6], [0.8, 0.4]]))
        >>> reliability(of_two, num_bins=2).accuracy
        array([0.5])
    """
    confidence = np.asarray(predictions.confidence, dtype=np.float64)
    bins = np.clip(np.ceil(confidence * num_bins) - 1, 0, num_bins - 1).astype(int)
    count = np.bincount(bins, minlength=num_bins)
    held = count > 0
    means = (
        np.bincount(bins, weights=values, minlength=num_bins)[held] / count[held]
        for values in (confidence, predictions.hits)
    )
    return Reliability(*means, count[held] / count.sum())


def expected_calibration_error(predictions: Predictions, num_bins: int = NUM_BINS) -> float:
    r"""Mean distance of accuracy from confidence over the bins.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} \, |\mathrm{acc}_b - \mathrm{conf}_b|

    Source: as of :func:`reliability`, equation 3.

    Args:
        predictions: Of n images, n >= 1.
        num_bins: Bins over [0, 1].

    Returns:
        A number in [0, 1].
    """
    diagram = reliability(predictions, num_bins)
    return float(diagram.share @ np.abs(diagram.accuracy - diagram.confidence))


def negative_log_likelihood(predictions: Predictions) -> float:
    """Return the mean of -log of the true class's probability, in nats.

    A probability that is 0 in float32 counts as the smallest that is not, about 1e-38.

    Args:
        predictions: Of n images, n >= 1.
    """
    tiny = np.finfo(np.float32).tiny
    return float(-np.log(np.maximum(predictions.true_prob, tiny, dtype=np.float64)).mean())


def per_class_accuracy(predictions: Predictions, num_classes: int) -> np.ndarray:
    """Return the share of right predictions of each class, (K,); NaN for one without images.

    Args:
        predictions: Of n images.
        num_classes: K.
    """
    labels = predictions.labels.astype(int)
    count = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels, weights=predictions.hits, minlength=num_classes)
    return np.divide(right, count, out=np.full(num_classes, np.nan), where=count > 0)
