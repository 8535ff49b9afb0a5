"""Numbers about networks that teach each other, to log and not to train by."""

import torch
from torch import Tensor

_EPS = 1e-12  # smallest norm that is divided by


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """Share of the images that two networks give the same class.

    Args:
        first: Scores or logits, (N, K).
        second: Those of the other, (N, K).

    Returns:
        A scalar in [0, 1].

    Examples:
        >>> first = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
        >>> agreement(first, torch.tensor([[9.0, 1.0], [0.0, 1.0]]))
        tensor(0.5000)
    """
    return (first.argmax(dim=1) == second.argmax(dim=1)).float().mean()


def diversity(probs: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence of predictions, averaged over the images.

    .. math:: H\Big(\frac{1}{m} \sum_i p_i\Big) - \frac{1}{m} \sum_i H(p_i)

    Source: Lin, "Divergence measures based on the Shannon entropy" (1991), section IV, with equal
    weights.

    Args:
        probs: Predictions of m students, (m, N, K).

    Returns:
        A scalar in [0, log m], in nats.

    Examples:
        >>> diversity(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        tensor(0.6931)
    """
    entropy = -torch.xlogy(probs, probs).sum(dim=-1)
    mean = probs.mean(dim=0)
    return (-torch.xlogy(mean, mean).sum(dim=-1) - entropy.mean(dim=0)).mean()


def ensemble_gap(probs: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy of the students' mean prediction above theirs, in percentage points.

    Args:
        probs: Predictions of m students, (m, N, K).
        classes: True classes, (N,).

    Returns:
        Scalars: above the mean of the students, and above the best of them; may be negative.

    Examples:
        >>> probs = torch.tensor([[[0.9, 0.1], [0.6, 0.4]], [[0.4, 0.6], [0.1, 0.9]]])
        >>> ensemble_gap(probs, torch.tensor([0, 1]))
        (tensor(50.), tensor(50.))
    """
    everyone = torch.cat([probs, probs.mean(dim=0, keepdim=True)])
    accuracy = 100 * (everyone.argmax(dim=-1) == classes).float().mean(dim=1)
    students, ensemble = accuracy[:-1], accuracy[-1]
    return ensemble - students.mean(), ensemble - students.amax()


def compare_gradients(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Compare two gradients of one shape, each as one vector.

    Args:
        first: A gradient of any shape.
        second: Another of the same shape.

    Returns:
        Scalars: the length of the first over that of the second, and the cosine between them,
        0 where one of them is zero.

    Examples:
        >>> compare_gradients(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        (tensor(0.4000), tensor(0.8000))
    """
    first, second = first.flatten(), second.flatten()
    lengths = [gradient.norm().clamp_min(_EPS) for gradient in (first, second)]
    # No matrix product, which autocast would compute in half precision.
    cosine = (first / lengths[0] * (second / lengths[1])).sum()
    return first.norm() / lengths[1], cosine


def affinity_entropy(affinities: Tensor) -> Tensor:
    r"""Entropy of BAKE's affinities, over its largest value.

    .. math:: -\frac{1}{N \log (N - 1)} \sum_{ij} A_{ij} \log A_{ij}

    Args:
        affinities: A of :func:`kd_mm.functional.bake.affinity`, (N, N) with N > 2.

    Returns:
        A scalar in [0, 1]: 1 where each image weighs all others alike, 0 where it weighs one.

    Examples:
        >>> affinity_entropy(torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
        tensor(0.3333)
    """
    entropy = -torch.xlogy(affinities, affinities).sum(dim=1).mean()
    return entropy / torch.tensor(len(affinities) - 1.0).log().to(entropy.device)


def own_class_mass(affinities: Tensor, labels: Tensor) -> Tensor:
    r"""Share of BAKE's affinities between images of the same class.

    .. math:: \frac{1}{N} \sum_{ij} A_{ij} \, y_i \cdot y_j

    Args:
        affinities: A of :func:`kd_mm.functional.bake.affinity`, (N, N).
        labels: Distributions over the classes, one-hot or mixed, (N, K).

    Returns:
        A scalar in [0, 1].

    Examples:
        >>> affinities = torch.tensor([[0.0, 0.7, 0.3], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
        >>> own_class_mass(affinities, torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        tensor(0.4000)
    """
    return (affinities * (labels @ labels.T)).sum(dim=1).mean()
