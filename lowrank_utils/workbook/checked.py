"""Stored outputs of notebooks, compared number by number within the tolerance that a cell states.

A cell whose numbers depend on the machine says in its metadata by how much they may differ, in the units that it prints:
``"tolerance": {"abs": 0.5}``, ``{"rel": 0.05}``, or both, and then either will do. The project's ``conftest.py`` hands such
cells to `attach`, and nbval compares all others exactly.

What counts as a number: ``-0.5``, ``1,234``, ``3.2e-05``, ``12.5%``, ``3ms``, ``nan`` and ``inf``. What does not, and is
compared exactly: names such as ``fc1``, ``conv2d``, ``ResNet-56`` or ``layer1.0.bn2``, shapes such as ``28x28``, versions,
dates, digits behind a zero such as ``02``, and whatever stands inside an HTML tag. A minus sign directly behind a word
or a number is a hyphen. Only white space may differ otherwise, as columns of a table get wider with their numbers.
"""

import copy
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

TEXTS = ("text/plain", "text/html", "text/markdown")  # with the streams, what a tolerance speaks of
WITH_TAGS = ("text/html", "text/markdown")

_TAG = r"<style\b.*?</style>|<!--.*?-->|</?[A-Za-z][^<>]*>|&\#?\w+;"
_NUMBER = r"""
    (?P<number>
        (?<![\w.])
        (?P<sign>(?<![\w.)\]%])[-+\u2212])?               # behind a word, a number or a bracket it is a hyphen
        (?:
            (?:nan|NaN|NAN|inf|Inf|INF)(?![-.]?\w)
          | (?!0[0-9])(?![0-9]+(?:-[0-9]+){2})            # neither 02 nor a date
            (?:(?<!,)[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9]) | [0-9]++ | (?=\.[0-9]))
            (?P<fraction>\.(?:[0-9]+|(?=[eE][-+]?[0-9])))?
            (?:[eE][-+]?[0-9]{1,3})?
            (?!\.\w|\w*[0-9])                             # neither a version, a module's path, a shape nor a hash
            (?P<point>\.(?![\w.]))?
        )
    )"""
_NAME = r"\w+(?:[-.]\w+)*"
_PLAIN = re.compile(rf"{_NUMBER}|{_NAME}", re.VERBOSE)
_TAGGED = re.compile(rf"{_TAG}|{_NUMBER}|{_NAME}", re.VERBOSE | re.DOTALL)


@dataclass(frozen=True)
class Tolerance:
    """By how much two numbers may differ: by `abs`, or by `rel` times the larger of both, whichever is more.

    >>> Tolerance(abs=0.3).holds(Decimal("0.1"), Decimal("0.4")), Tolerance(rel=0.05).holds(Decimal(100), Decimal(106))
    (True, False)
    """

    abs: float = 0.0
    rel: float = 0.0

    def holds(self, one: Decimal, other: Decimal) -> bool:
        """Return whether two numbers agree; ``nan`` agrees with ``nan``, and an infinity with itself."""
        if not (one.is_finite() and other.is_finite()):
            return str(one) == str(other)
        # in decimals, as printed: in binary 0.4 - 0.1 is more than 0.3
        largest = max(abs(one), abs(other))
        return abs(one - other) <= max(Decimal(str(self.abs)), Decimal(str(self.rel)) * largest)

    def __str__(self) -> str:
        return " or ".join(f"{key} {value:g}" for key, value in vars(self).items() if value) or "0"


def read(entry: Any) -> Tolerance:
    """Return the tolerance that an entry of a cell's metadata states.

    Parameters
    ----------
    entry : mapping
        With ``abs``, ``rel`` or both: ``abs`` finite and at least 0, ``rel`` at least 0 and below 1.

    Raises
    ------
    ValueError
        If the entry is anything else.

    Examples
    --------
    >>> read({"abs": 0.5})
    Tolerance(abs=0.5, rel=0.0)
    >>> read({"rel": 5})
    Traceback (most recent call last):
    ValueError: tolerance {'rel': 5}: rel is a share, at least 0 and below 1
    """
    if not isinstance(entry, Mapping) or not entry or not set(entry) <= {"abs", "rel"}:
        raise ValueError(f'tolerance {entry!r}: write {{"abs": 0.5}}, {{"rel": 0.05}} or both')
    shown: dict[str, Any] = dict(entry)
    for key, value in shown.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"tolerance {shown!r}: {key} is not a finite number")
    if not 0 <= shown.get("rel", 0) < 1:
        raise ValueError(f"tolerance {shown!r}: rel is a share, at least 0 and below 1")
    if shown.get("abs", 0) < 0:
        raise ValueError(f"tolerance {shown!r}: abs is below 0")
    return Tolerance(**shown)


@dataclass(frozen=True)
class _Number:
    text: str
    value: Decimal
    whole: bool  # printed without decimals
    point: bool  # with a point behind it: the end of a sentence, or a whole number as numpy prints it


def _number(found: re.Match[str]) -> _Number:
    text, point = found["number"], bool(found["point"])
    plain = text.removesuffix("." if point else "").replace(",", "").replace("\u2212", "-")
    return _Number(text, Decimal(plain), not found["fraction"], point)


def _words(text: str) -> str:
    """Return text between numbers with white space and the rules of tables cut short, as both follow the numbers' width."""
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text).strip(" ")
    return re.sub(r"([-=\u2500\u2501\u2550])\1+", r"\1\1", text)


def split(text: str, tags: bool = False) -> tuple[list[str], list[_Number]]:
    """Return the words and the numbers of a text: a piece of words before each number, and one behind the last.

    >>> words, numbers = split("fc1  83 of 1,234 ranks (-3.5%)")
    >>> words, [str(number.value) for number in numbers]
    (['fc1', 'of', 'ranks (', '%)'], ['83', '1234', '-3.5'])
    """
    words, numbers, end = [], [], 0
    for found in (_TAGGED if tags else _PLAIN).finditer(text):
        if found["number"]:
            words.append(_words(text[end : found.start()]))
            numbers.append(_number(found))
            end = found.end()
    return [*words, _words(text[end:])], numbers


def difference(stored: str, computed: str, tolerance: Tolerance, tags: bool = False) -> str:
    """Return what differs first between a stored and a computed text, in words; nothing if they agree.

    Parameters
    ----------
    stored, computed : str
        What the notebook has, and what the cell prints now.
    tolerance : Tolerance
        For numbers, in the units in which they are printed. Words, and the lines they stand on, must be equal.
    tags : bool
        Whether the text may have HTML tags, inside which everything is compared exactly.

    Examples
    --------
    >>> difference("fc1  9.9 %", "fc1 10.2 %", Tolerance(abs=0.5))
    ''
    >>> difference("fc1  9.9 %", "fc1 11.0 %", Tolerance(abs=0.5))
    '9.9 is stored, 11.0 was computed: not within abs 0.5'
    >>> difference("fc1  9.9 %", "fc2  9.9 %", Tolerance(abs=0.5))
    "'fc1' is stored, 'fc2' was computed"
    """
    if stored == computed:
        return ""
    (words, numbers), (new_words, new_numbers) = split(stored, tags), split(computed, tags)
    for i, (old, new) in enumerate(zip(words, new_words, strict=False)):
        if old != new:
            return f"{old!r} is stored, {new!r} was computed"
        if i < min(len(numbers), len(new_numbers)):
            one, other = numbers[i], new_numbers[i]
            if not tolerance.holds(one.value, other.value):
                return f"{one.text} is stored, {other.text} was computed: not within {tolerance}"
            if one.whole == other.whole and one.point != other.point:  # else the point may be numpy's: 2. beside 2.5
                return f"{one.text!r} is stored, {other.text!r} was computed"
    if len(numbers) != len(new_numbers):
        return f"{len(numbers)} numbers are stored, {len(new_numbers)} were computed"
    return ""


def _texts(outputs: Iterable[Any]) -> dict[str, list[tuple[Any, str]]]:
    """Return where the texts of outputs stand (a mapping and its key), by kind, in order, as nbval groups them."""
    found = defaultdict(list)
    for output in outputs:
        if output["output_type"] == "stream":
            found[output["name"]].append((output, "text"))
        for kind in TEXTS:
            if isinstance(output.get("data", {}).get(kind), str):
                found[kind].append((output["data"], kind))
    return found


def settle(
    computed: list[Any], stored: list[Any], tolerance: Tolerance, clean: Callable[[str], str] = str
) -> tuple[list[Any], list[str]]:
    """Return the computed outputs with stored texts wherever both agree, and what differs elsewhere, in words.

    Parameters
    ----------
    computed, stored : list
        Outputs of one cell, as the notebook format has them. They are left as they are.
    tolerance : Tolerance
        For the numbers in streams, plain text, HTML and Markdown.
    clean : callable
        What is done to each text before the comparison.

    Examples
    --------
    >>> stored = [{"output_type": "stream", "name": "stdout", "text": "loss 0.31"}]
    >>> computed = [{"output_type": "stream", "name": "stdout", "text": "loss 0.33"}]
    >>> settle(computed, stored, Tolerance(rel=0.1))[0] == stored
    True
    >>> settle(computed, stored, Tolerance(rel=0.01))[1]
    ['stdout: 0.31 is stored, 0.33 was computed: not within rel 0.01']
    """
    computed, sentences = copy.deepcopy(computed), []
    news, olds = _texts(computed), _texts(stored)
    for kind in news:
        if len(news[kind]) != len(olds[kind]):
            continue  # nbval says so itself
        for (new, key), (old, _) in zip(news[kind], olds[kind], strict=True):
            differs = difference(clean(old[key]), clean(new[key]), tolerance, kind in WITH_TAGS)
            if differs:
                sentences.append(f"{kind}: {differs}")
            else:
                new[key] = old[key]
    return computed, sentences


def attach(item: Any) -> None:
    """Make nbval compare one cell within the tolerance of its metadata; a cell with an ill-formed one runs and fails.

    Parameters
    ----------
    item : nbval.plugin.IPyNbCell
        The test of a cell whose metadata has a ``tolerance``. Only this item is changed.
    """
    try:
        tolerance = read(item.cell.metadata["tolerance"])
    except ValueError as error:
        sentence, run = f"Cell {item.cell_num} of {item.parent.path.name}: {error}", item.runtest

        def runtest() -> None:
            run()  # the cells behind it need what it sets
            item.raise_cell_error(sentence)

        item.runtest = runtest
        return
    compare = item.compare_outputs

    def compare_outputs(test: list[Any], ref: list[Any], skip_compare: Any = None) -> bool:
        settled, sentences = settle(test, ref, tolerance, item.sanitize)
        same = compare(settled, ref, skip_compare)
        item.comparison_traceback[:0] = [] if same else sentences
        return same

    item.compare_outputs = compare_outputs
