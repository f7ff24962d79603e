"""Arguments checked in words: each check raises ValueError with one sentence that names the value."""

from numbers import Real

import numpy as np


def check_share(**shares):
    """Raise ValueError for the first keyword whose value is no number in (0, 1].

    >>> check_share(threshold=0.9, kept=1)
    >>> check_share(threshold=1.5)
    Traceback (most recent call last):
    ValueError: threshold=1.5 is not a share in (0, 1]
    """
    for name, value in shares.items():
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real) or not 0 < float(value) <= 1:
            raise ValueError(f"{name}={value!r} is not a share in (0, 1]")
