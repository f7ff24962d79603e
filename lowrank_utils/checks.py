"""Arguments checked in words: each check raises ValueError with one sentence that names the value."""

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    """Return whether `value` is a real number that is finite, and not a bool.

    >>> is_number(0.5), is_number(True), is_number(float("nan")), is_number("1")
    (True, False, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Return whether `value` is a whole number, and not a bool.

    >>> is_whole(3), is_whole(3.0), is_whole(False)
    (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool | np.bool_)


def check_number(allowed: Callable[[Any], bool], words: str, **values: Any) -> None:
    """Raise ValueError for the first keyword whose value is no finite number, or one that `allowed` refuses.

    >>> check_number(lambda value: value > 0, "a number above 0", damping=0.1)
    >>> check_number(lambda value: value > 0, "a number above 0", damping=0)
    Traceback (most recent call last):
    ValueError: damping=0 is not a number above 0
    """
    for name, value in values.items():
        if not is_number(value) or not allowed(value):
            raise ValueError(f"{name}={value!r} is not {words}")


def check_share(**shares: Any) -> None:
    """Raise ValueError for the first keyword whose value is no number in (0, 1].

    >>> check_share(threshold=0.9, kept=1)
    >>> check_share(threshold=1.5)
    Traceback (most recent call last):
    ValueError: threshold=1.5 is not a share in (0, 1]
    """
    check_number(lambda value: 0 < value <= 1, "a share in (0, 1]", **shares)


def check_count(least: int = 1, **counts: Any) -> None:
    """Raise ValueError for the first keyword whose value is no whole number of at least `least`.

    >>> check_count(batch_size=500)
    >>> check_count(2, bins=1)
    Traceback (most recent call last):
    ValueError: bins=1 is not a whole number of at least 2
    """
    for name, value in counts.items():
        if not is_whole(value) or value < least:
            raise ValueError(f"{name}={value!r} is not a whole number of at least {least}")
