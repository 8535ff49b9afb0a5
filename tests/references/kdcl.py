"""KDCL's targets in NumPy loops, from the paper. Labels are classes or distributions."""

import numpy as np


def distribution(label, num_classes):
    """A class as a one-hot row; a soft label as it is."""
    return np.eye(num_classes)[label] if np.ndim(label) == 0 else np.asarray(label)


def cross_entropy(row, label):
    """- sum_j y_j log softmax(z)_j of one image."""
    log_sum = row.max() + np.log(np.exp(row - row.max()).sum())
    return sum(y * (log_sum - z) for y, z in zip(distribution(label, len(row)), row, strict=True))


def softmax(row):
    shifted = np.exp(row - row.max())
    return shifted / shifted.sum()


def naive_target(logits, labels):
    result = []
    for n, label in enumerate(labels):
        best = 0
        for i in range(1, len(logits)):
            if cross_entropy(logits[i, n], label) < cross_entropy(logits[best, n], label):
                best = i
        result.append(logits[best, n])
    return np.array(result)


def min_logit_target(logits, labels):
    num_students, num_images, num_classes = logits.shape
    result = np.zeros((num_images, num_classes))
    for n, label in enumerate(labels):
        y = distribution(label, num_classes)
        for j in range(num_classes):
            result[n, j] = min(
                logits[i, n, j] - sum(y[k] * logits[i, n, k] for k in range(num_classes))
                for i in range(num_students)
            )
    return result


def general_target(logits, weights, temperature):
    num_students, num_images, num_classes = logits.shape
    result = np.zeros((num_images, num_classes))
    for n in range(num_images):
        for i in range(num_students):
            result[n] += weights[i] * softmax(logits[i, n] / temperature)
    return result


def second_moment(true_class_probs):
    m, num_images = true_class_probs.shape
    result = np.zeros((m, m))
    for i in range(m):
        for j in range(m):
            for n in range(num_images):
                error = (true_class_probs[i, n] - 1) * (true_class_probs[j, n] - 1)
                result[i, j] += error / num_images
    return result


def generalization_weights(true_class_probs):
    """The formula of the paper; no ridge and no clipping."""
    ones = np.ones(len(true_class_probs))
    inverse = np.linalg.inv(second_moment(true_class_probs))
    return inverse @ ones / (ones @ inverse @ ones)


def duality_gap(rows, label, target):
    """An upper bound of CE(target) - min CE over convex combinations, for one image.

    For every distribution p, min CE >= min_i sum_j (p_j - y_j) z_ij + entropy(p): weak duality.
    Here p is the target's own prediction.
    """
    y = distribution(label, len(target))
    p = softmax(target)
    entropy = -sum(value * np.log(value) for value in p if value > 0)
    bound = min((p - y) @ row for row in rows) + entropy
    return cross_entropy(target, label) - bound
