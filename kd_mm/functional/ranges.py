"""Ranges that several methods share."""

import math
from numbers import Real


def is_number(value: object) -> bool:
    """Tell whether a value is a real number; a bool is none.

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


def check_flag(name: str, value: bool) -> None:
    """Raise ValueError unless a value is True or False.

    Args:
        name: What the config calls it.
        value: What it holds; text such as ``'False'`` would else count as true.

    Examples:
        >>> check_flag('fusion', 'False')
        Traceback (most recent call last):
        ValueError: fusion must be True or False, but got 'False'; write it without quotes
    """
    if not isinstance(value, bool):
        raise ValueError(
            f'{name} must be True or False, but got {value!r}; write it without quotes'
        )
