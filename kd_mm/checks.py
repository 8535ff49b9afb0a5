"""Checks of arguments, and the wording that all errors share."""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real

SHOWN = 3  # names of many


def is_number(value: object) -> bool:
    """Return whether a value is a real number. A bool is not.

    Examples:
        >>> is_number(0.5), is_number('0.5'), is_number(True)
        (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def check_weight(name: str, weight: float) -> None:
    """Raise ValueError unless the weight of a loss is a finite number of at least 0.

    Args:
        name: What the config calls it.
        weight: Factor of a loss.

    Examples:
        >>> check_weight('loss_weight', 1)
        >>> check_weight('loss_weight', '1')
        Traceback (most recent call last):
        ValueError: loss_weight must be finite and at least 0, but got '1'; 0 leaves the loss out
    """
    if not (is_number(weight) and 0 <= weight < math.inf):
        raise ValueError(
            f'{name} must be finite and at least 0, but got {weight!r}; 0 leaves the loss out'
        )


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless ``temperature`` is positive and finite.

    Args:
        temperature: The divisor of the logits.

    Examples:
        >>> check_temperature(4.0)
        >>> check_temperature(0)
        Traceback (most recent call last):
        ValueError: temperature must be positive and finite, but got 0; 1 leaves logits as they \
are, larger values soften them
    """
    if not (is_number(temperature) and 0 < temperature < math.inf):
        raise ValueError(
            f'temperature must be positive and finite, but got {temperature!r}; 1 leaves logits '
            'as they are, larger values soften them'
        )


def check_flag(name: str, value: bool) -> None:
    """Raise ValueError unless a value is True or False.

    Args:
        name: What the config calls it.
        value: What it holds. Text such as ``'False'`` would count as true.

    Examples:
        >>> check_flag('fusion', 'False')
        Traceback (most recent call last):
        ValueError: fusion must be True or False, but got 'False'; write it without quotes
    """
    if not isinstance(value, bool):
        raise ValueError(
            f'{name} must be True or False, but got {value!r}; write it without quotes'
        )


def is_int(value: object, least: int = 1) -> bool:
    """Return whether a value is an integer of at least ``least``. A bool is not.

    Examples:
        >>> is_int(1), is_int(0), is_int(True), is_int(1.0)
        (True, False, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def check_int(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless a value is an integer of at least ``least``.

    Args:
        name: What the config calls it.
        value: What it holds.
        least: The smallest value that makes sense.

    Examples:
        >>> check_int('train_dataloader.batch_size', '32')
        Traceback (most recent call last):
        ValueError: train_dataloader.batch_size must be an integer of at least 1, but got '32'
    """
    if not is_int(value, least):
        raise ValueError(f'{name} must be an integer of at least {least}, but got {value!r}')


def check_dict(name: str, value: object, example: Mapping) -> None:
    """Raise ValueError unless a value is a dict.

    Args:
        name: What the config calls it.
        value: What it holds.
        example: A dict that would do.

    Examples:
        >>> check_dict('norm_cfg', 'BN', {'type': 'BN'})
        Traceback (most recent call last):
        ValueError: norm_cfg must be a dict such as dict(type='BN'), but got 'BN'
    """
    if not isinstance(value, Mapping):
        shown = ', '.join(f'{key}={part!r}' for key, part in example.items())
        raise ValueError(f'{name} must be a dict such as dict({shown}), but got {value!r}')


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless a value is one of several.

    Args:
        name: What the config calls it.
        value: What it holds.
        choices: What it may be.

    Examples:
        >>> check_choice('target', 'mean', ('naive', None))
        Traceback (most recent call last):
        ValueError: target must be one of 'naive', None, but got 'mean'
    """
    if not any(value is choice or value == choice for choice in choices):
        listed = ', '.join(map(repr, choices))
        raise ValueError(f'{name} must be one of {listed}, but got {value!r}')


def nearest(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the known name that is most like an unknown one, or None.

    Args:
        name: The unknown name.
        known: The names that exist.
        likeness: How like it must be, from 0 (anything) to 1 (the same).

    Examples:
        >>> nearest('omga', ['omega', 'gather'])
        'omega'
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the hint that follows an unknown name: the nearest known one, or all of them.

    Examples:
        >>> did_you_mean('omga', ['omega', 'gather'])
        'did you mean omega?'
        >>> did_you_mean('x', ['omega', 'gather'])
        'there are omega, gather'
    """
    known = list(known)
    near = nearest(name, known)
    return f'did you mean {near}?' if near else f'there are {", ".join(known) or "none"}'


def few(names: Collection[str]) -> str:
    """Return the first three of many names.

    Examples:
        >>> few(['a', 'b', 'c', 'd', 'e'])
        'a, b, c and 2 more'
    """
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return ', '.join(list(names)[:SHOWN]) + more
