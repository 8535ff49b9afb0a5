"""FFSD's attention terms in NumPy loops."""

import numpy as np


def attention_map(feature_map):
    batch, channels, height, width = feature_map.shape
    result = np.zeros((batch, 1, height, width))
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                result[b, 0, i, j] = sum(feature_map[b, c, i, j] ** 2 for c in range(channels))
    return result / channels


def normalised(sample):
    length = np.sqrt((sample**2).sum())
    return sample / length if length else sample


def attention_distance(x, y):
    total = sum(((normalised(a) - normalised(b)) ** 2).sum() for a, b in zip(x, y, strict=True))
    return total / x.size


def diverse(sample):
    """y* of one map: its bright places dark and its dark places kept, at the map's own scale."""
    scale = np.sqrt((sample**2).sum())
    unit = normalised(sample).ravel()
    threshold = sorted(unit)[len(unit) // 3 - 1]
    result = []
    for value in unit:
        if value > threshold:
            result.append(scale - value)
        elif value < threshold:
            result.append(value)
        else:
            result.append(scale / 2)
    return np.array(result).reshape(sample.shape)


def diversity_distance(x, y):
    total = sum(((normalised(a) - diverse(b)) ** 2).sum() for a, b in zip(x, y, strict=True))
    return total / x.size


def diverse_feature_map(feature_map):
    result = feature_map.copy()
    channels = feature_map.shape[1]
    for b, a in enumerate(attention_map(feature_map)):
        scale = np.sqrt((a**2).sum())
        for c in range(channels):
            result[b, c] += (diverse(a) - normalised(a))[0] * scale / channels
    return result
