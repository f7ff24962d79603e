"""Check cells of exercises: a learner fills in an answer, and the notebook says whether it is right.

An exercise is two cells. The first is a stub::

    answer = ...

and the second shows what is asked of the answer, and prints "right", "not yet" with a hint, or "not answered"::

    check(answer, 300 * 784 / (300 + 784), tolerance=1, hint="a pair of rank r keeps r (m + n) parameters")
    check(answer, test=lambda plan: cost(plan) <= budget, hint="the plan is too large")

A notebook of solutions writes ``assert`` in front of the same line.
"""

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from .checked import Tolerance, read

EXACT, NEAR = Tolerance(), Tolerance(abs=1e-8, rel=1e-5)  # the latter as numpy.allclose has it
WRONG = "this is not right"


@dataclass(frozen=True)
class Result:
    """What a check found, true if the answer is right. It shows nothing in a notebook, as its text has been printed."""

    right: bool
    text: str

    def __bool__(self) -> bool:
        return self.right

    def _ipython_display_(self) -> None:
        """Show nothing."""


def check(
    answer: Any,
    expected: Any = None,
    *,
    test: Callable[[Any], Any] | None = None,
    tolerance: float | Mapping[str, float] | None = None,
    hint: str = "",
) -> Result:
    """Print whether an answer is right, and return a result that is true if it is.

    Parameters
    ----------
    answer : object
        What the learner filled in. ``...``, alone or inside a list or dictionary, counts as not answered. An answer of
        a wrong type or shape is told so, and never raises.
    expected : number, bool, str, list, tuple, set, dict, numpy.ndarray, torch.Tensor, pandas.Series or DataFrame
        What is right. Lists equal tuples, also as arrays; of text, case and outer blanks do not count; of a dictionary,
        such as a plan, the order does not count; of a table, the order of the columns does not count.
    test : callable
        Instead of `expected`: takes the answer, and returns whether it is right. If it raises, the answer is not right
        yet, and the error is said in words: of an ``assert``, only its message.
    tolerance : float or dict
        By how much numbers may differ: absolutely, or ``{"abs": ..., "rel": ...}``, where either will do. Without it,
        integers must be equal, and others agree to ``1e-5`` of their size or ``1e-8``.
    hint : str
        What helps a learner whose answer is not right yet.

    Raises
    ------
    TypeError, ValueError
        If the check itself is wrong: no `expected` and no `test`, or both; a tolerance that is none; an expected value
        that is of another type, or that is not equal to itself, such as NaN.

    Examples
    --------
    >>> answer = ...
    >>> result = check(answer, 0.25, hint="two of eight")
    not answered
    >>> result = check(0.5, 0.25, hint="two of eight")
    not yet: two of eight
    >>> result = check({"fc1": 80, "fc2": 30}, {"fc1": 83, "fc2": 30}, tolerance={"rel": 0.01}, hint="solve for r")
    not yet: 'fc1' is not right; solve for r
    >>> assert check(83, test=lambda rank: rank * (300 + 784) < 300 * 784)
    right
    """
    if (expected is None) == (test is None):
        raise TypeError("check takes what is expected or a test, and not both")
    if test is None:
        allowed = _tolerance(tolerance)
        _check_expected(expected, allowed)
        reason = "" if _unanswered(answer) else _compared(expected, answer, allowed)
    elif tolerance is not None:
        raise TypeError("a tolerance goes with what is expected, not with a test")
    elif not callable(test):
        raise TypeError(f"test is not a function but {_kind(test)}")
    else:
        reason = "" if _unanswered(answer) else _tried(test, answer)

    if _unanswered(answer):
        return _say(False, "not answered")
    if not reason:
        return _say(True, "right")
    parts = [hint] if hint and reason == WRONG else [reason, hint]
    return _say(False, "not yet: " + "; ".join(filter(None, parts)))


def _say(right: bool, text: str) -> Result:
    print(text)
    return Result(right, text)


def _tolerance(tolerance: Any) -> Tolerance | None:
    if tolerance is None:
        return None
    return read(tolerance if isinstance(tolerance, Mapping) else {"abs": tolerance})


def _check_expected(expected: Any, tolerance: Tolerance | None) -> None:
    """Raise if what is expected cannot be compared, which must not pass for a wrong answer."""
    if _unanswered(expected):
        raise ValueError("what is expected holds ...")
    reason = _difference(expected, expected, tolerance)
    if reason:
        raise ValueError(f"what is expected is not equal to itself: {reason}")


def _unanswered(answer: Any) -> bool:
    if isinstance(answer, Mapping):
        return any(_unanswered(value) for value in answer.values())
    if isinstance(answer, list | tuple):
        return any(_unanswered(value) for value in answer)
    return answer is ...


def _in_words(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _tried(test: Callable[[Any], Any], answer: Any) -> str:
    """Return why a test does not pass, in words; nothing if it does."""
    try:
        return "" if bool(test(answer)) else WRONG
    except AssertionError as error:
        return str(error).partition("\n")[0] or WRONG
    except Exception as error:  # of whatever kind: the learner's answer led to it
        return f"the check stopped at {_in_words(error)}"


def _compared(expected: Any, answer: Any, tolerance: Tolerance | None) -> str:
    """Return how an answer differs, in words; nothing if it does not. What is expected has been compared with itself."""
    try:
        return _difference(expected, answer, tolerance)
    except Exception as error:
        return f"this is {_kind(answer)}, and cannot be compared ({_in_words(error)})"


# ---- one function for each kind of expected value; each returns how the answer differs, and "" if it does not


def _difference(expected: Any, answer: Any, tolerance: Tolerance | None) -> str:
    expected, answer = _plain(expected), _plain(answer)
    if isinstance(expected, bool):
        return _asked("True or False", answer) if not isinstance(answer, bool) else _unlike(expected != answer)
    if isinstance(expected, numbers.Real):
        return _number(expected, answer, tolerance)
    if isinstance(expected, str):
        if not isinstance(answer, str):
            return _asked("a text", answer)
        return _unlike(expected.strip().casefold() != answer.strip().casefold())
    if isinstance(expected, Mapping):
        return _mapping(expected, answer, tolerance)
    if isinstance(expected, set | frozenset):
        return _asked("a set", answer) if not isinstance(answer, set | frozenset) else _unlike(expected != answer)
    if isinstance(expected, list | tuple):
        return _sequence(expected, answer, tolerance)
    if isinstance(expected, np.ndarray):
        return _array(expected, answer, tolerance)
    if isinstance(expected, pd.Series):
        if not isinstance(answer, pd.Series):
            return _asked("a Series", answer)
        return _table(expected.to_frame("its values"), answer.to_frame("its values"), tolerance)
    if isinstance(expected, pd.DataFrame):
        return _table(expected, answer, tolerance)
    raise TypeError(f"check cannot compare {_kind(expected)}; give a test instead")


def _plain(value: Any) -> Any:
    """Return a tensor as an array, and an array without axes as a number; others as they are."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    return value


def _kind(value: Any) -> str:
    """Return what a value is, in words."""
    value = _plain(value)
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, numbers.Number):
        return "a number"
    names = {str: "a text", dict: "a dictionary", list: "a list", tuple: "a tuple", set: "a set"}
    return names.get(type(value)) or ("a function" if callable(value) else f"of type {type(value).__name__}")


def _asked(what: str, answer: Any) -> str:
    return f"{what} is asked for, and this is {_kind(answer)}"


def _unlike(differs: bool) -> str:
    return WRONG if differs else ""


def _within(place: str, reason: str) -> str:
    """Return the reason with the place it speaks of."""
    if reason == WRONG:
        return f"{place} is not right"
    return f"{place}: {reason}" if reason else ""


def _number(expected: Any, answer: Any, tolerance: Tolerance | None) -> str:
    if isinstance(answer, bool) or not isinstance(answer, numbers.Real):
        return _asked("a number", answer)
    if isinstance(expected, numbers.Integral):
        tolerance = tolerance or EXACT
    tolerance = tolerance or NEAR
    near = tolerance != EXACT and math.isclose(expected, answer, abs_tol=tolerance.abs, rel_tol=tolerance.rel)
    return _unlike(not near and expected != answer)


def _mapping(expected: Mapping[Any, Any], answer: Any, tolerance: Tolerance | None) -> str:
    if not isinstance(answer, Mapping):
        return _asked("a dictionary", answer)
    for complaint, names in (
        ("missing", [key for key in expected if key not in answer]),
        ("not asked for", [key for key in answer if key not in expected]),
    ):
        if names:
            return f"{complaint}: {', '.join(map(repr, names))}"
    reasons = (_within(repr(key), _difference(value, answer[key], tolerance)) for key, value in expected.items())
    return next(filter(None, reasons), "")


def _sequence(expected: Any, answer: Any, tolerance: Tolerance | None) -> str:
    if isinstance(answer, np.ndarray | pd.Series):
        answer = answer.tolist()
    if not isinstance(answer, list | tuple):
        return _asked(_kind(expected), answer)
    if len(answer) != len(expected):
        return f"it has {len(answer)} entries, and {len(expected)} are asked for"
    reasons = (
        _within(f"entry {i}", _difference(value, own, tolerance))
        for i, (value, own) in enumerate(zip(expected, answer, strict=True))
    )
    return next(filter(None, reasons), "")


def _array(expected: np.ndarray, answer: Any, tolerance: Tolerance | None) -> str:
    if isinstance(answer, list | tuple | pd.Series | pd.DataFrame):
        answer = np.asarray([_plain(row) for row in answer] if isinstance(answer, list | tuple) else answer)
    if not isinstance(answer, np.ndarray):
        return _asked(_kind(expected), answer)
    if answer.shape != expected.shape:
        return f"its shape is {answer.shape}, and {expected.shape} is asked for"
    return _entries(_differing(expected, answer, tolerance, nan=False))


def _differing(expected: Any, answer: Any, tolerance: Tolerance | None, nan: bool) -> np.ndarray:
    """Return where the entries of two arrays of one shape differ; if `nan`, a NaN equals a NaN."""
    expected, answer = np.asarray(expected), np.asarray(answer)
    if expected.dtype.kind not in "iufc" or answer.dtype.kind not in "iufc":
        missing = nan & pd.isna(expected) & pd.isna(answer)
        return ~((expected == answer) & ((expected.dtype.kind == "b") == (answer.dtype.kind == "b")) | missing)
    allowed = tolerance or (EXACT if expected.dtype.kind in "iu" else NEAR)
    with np.errstate(invalid="ignore"):
        largest = np.maximum(np.abs(expected), np.abs(answer))
        gap = np.abs(np.subtract(expected, answer, dtype=np.result_type(expected, answer, np.float64)))
        near = (gap <= np.maximum(allowed.abs, allowed.rel * largest)) & np.isfinite(expected) & np.isfinite(answer)
    return ~(near | (expected == answer) | (nan & np.isnan(expected) & np.isnan(answer)))


def _entries(differing: np.ndarray) -> str:
    count = int(np.count_nonzero(differing))
    if not count:
        return ""
    return WRONG if count == differing.size else f"{count} of {differing.size} entries differ"


def _table(expected: pd.DataFrame, answer: Any, tolerance: Tolerance | None) -> str:
    if not isinstance(answer, pd.DataFrame):
        return _asked("a DataFrame", answer)
    missing = [name for name in expected if name not in answer]
    if missing:
        return f"missing columns: {', '.join(map(str, missing))}"
    if len(answer.columns) > len(expected.columns):
        extra = dict.fromkeys(name for name in answer if name not in expected)
        return f"columns not asked for: {', '.join(map(str, extra)) or 'some stand twice'}"
    if len(answer) != len(expected):
        return f"it has {len(answer)} rows, and {len(expected)} are asked for"
    if not expected.index.equals(answer.index):
        return "its rows have other labels, or another order"
    reasons = (
        _within(f"column {name}", _entries(_differing(expected[name], answer[name], tolerance, nan=True)))
        for name in expected
    )
    return next(filter(None, reasons), "")
