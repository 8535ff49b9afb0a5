"""BAKE in NumPy loops, from the paper: the propagation is iterated instead of solved."""

import numpy as np


def softmax(row):
    shifted = np.exp(row - row.max())
    return shifted / shifted.sum()


def affinity(features):
    """Row i: softmax over the cosines with the images other than i."""
    num_images = len(features)
    result = np.zeros((num_images, num_images))
    for i in range(num_images):
        others = [j for j in range(num_images) if j != i]
        cosines = [
            features[i] @ features[j] / np.linalg.norm(features[i]) / np.linalg.norm(features[j])
            for j in others
        ]
        result[i, others] = softmax(np.array(cosines))
    return result


def ensemble_knowledge(features, logits, temperature, omega, steps=2000):
    """The limit of Q <- omega A Q + (1 - omega) P, by iterating it."""
    weights = affinity(features)
    probs = np.stack([softmax(row / temperature) for row in logits])
    knowledge = probs.copy()
    for _ in range(steps):
        knowledge = omega * weights @ knowledge + (1 - omega) * probs
    return knowledge


def soft_target_kl(logits, target_probs, temperature):
    """T^2 sum_k q_k (log q_k - log p_k), an empty term where q_k = 0."""
    result = []
    for row, target in zip(logits, target_probs, strict=True):
        probs = softmax(row / temperature)
        result.append(
            temperature**2
            * sum(q * (np.log(q) - np.log(p)) for p, q in zip(probs, target, strict=True) if q > 0)
        )
    return np.array(result)
