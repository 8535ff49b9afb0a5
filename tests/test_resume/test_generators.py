"""Generators that start from what is drawn."""

import random

import numpy as np
import pytest
import torch

from kd_mm.resume.generators import kept_generators, seed_generators


def draw():
    return random.random(), np.random.random(), torch.rand(()).item()


def drawn(*key):
    seed_generators(*key)
    return draw()


def test_each_generator_follows_from_seed_and_key_alone():
    first = drawn(7, 1, 2)
    draw()
    assert drawn(7, 1, 2) == first
    for other in ((8, 1, 2), (7, 2, 1), (7, 1), (7, 1, 2, 0), (7, 0, 1, 2)):
        # Each of the three differs.
        assert all(a != b for a, b in zip(first, drawn(*other), strict=True)), other


def test_neighbouring_keys_give_unrelated_numbers():
    """Uniform, and uncorrelated from epoch to epoch, image to image, generator to generator."""
    numbers = np.array([[drawn(0, epoch, i) for i in range(400)] for epoch in range(5)])
    assert len(np.unique(numbers)) == numbers.size
    count, _ = np.histogram(numbers, bins=10, range=(0, 1))
    assert abs(count - 600).max() < 5 * np.sqrt(600)
    # 400 unrelated pairs correlate by 0.05 at a time.
    columns = numbers.transpose(0, 2, 1).reshape(-1, 400)
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert abs(correlation).max() < 0.25
    assert max(abs(np.corrcoef(c[1:], c[:-1])[0, 1]) for c in columns) < 0.25


def draw_and_fail():
    with kept_generators():
        drawn(1)
        raise KeyError


def test_generators_go_on_as_if_nothing_was_drawn():
    drawn(0)
    expected = draw()
    drawn(0)
    with pytest.raises(KeyError):
        draw_and_fail()
    assert draw() == expected


def test_gpus_that_are_in_use_are_seeded_where_asked(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeds.append)
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    seed_generators(0, 1)
    assert seeds == []
    seed_generators(0, 1, devices=True)
    assert seeds == [torch.initial_seed()]
