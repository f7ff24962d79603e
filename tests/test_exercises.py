"""Check cells of exercises: right, not yet with a hint, not answered, and never a traceback for a learner."""

import numpy as np
import pandas as pd
import pytest
import torch

from lowrank_utils.workbook.exercises import check

PLAN = {"fc1": 83, "conv2": ("spatial", 12)}
TABLE = pd.DataFrame({"layer": ["fc1", "fc2"], "kept": [0.5, np.nan], "rank": [83, 40]})
ARRAY = np.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("answer", "expected", "options"),
    [
        (0.1 + 0.2, 0.3, {}),
        (5.0, 5, {}),
        (np.float32(0.3), 0.3, {}),
        (torch.tensor(0.3), 0.3, {}),
        (np.array(5), 5, {}),
        (float("inf"), float("inf"), {}),
        (85, 83, {"tolerance": 2}),
        (85, 83, {"tolerance": {"rel": 0.05}}),
        (np.True_, True, {}),
        (" FC1 ", "fc1", {}),
        ([1, 2.0], (1, 2), {}),
        (np.array([1, 2]), [1, 2], {}),
        ({"a", "b"}, {"b", "a"}, {}),
        ({"conv2": ["spatial", 12], "fc1": 83}, PLAN, {}),
        (torch.arange(6.0, requires_grad=True).reshape(2, 3), ARRAY, {}),
        (ARRAY.tolist(), torch.tensor(ARRAY), {}),
        ([torch.tensor(1.0), torch.tensor(2.0)], np.array([1.0, 2.0]), {}),
        (ARRAY.astype("float32") + 0.01, ARRAY, {"tolerance": 0.1}),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2), {}),
        (np.array(["a", "b"]), np.array(["a", "b"]), {}),
        (TABLE[["rank", "layer", "kept"]], TABLE, {}),
        (TABLE.assign(rank=[84, 40]), TABLE, {"tolerance": 1}),
        (TABLE["rank"].rename("other"), TABLE["rank"], {}),
    ],
)
def test_right(answer, expected, options, capsys):
    result = check(answer, expected, hint="think", **options)
    assert capsys.readouterr().out == "right\n"
    assert result
    assert result.right
    assert result.text == "right"


class Odd:
    """An answer that raises whatever is done with it."""

    def __eq__(self, other):
        raise RuntimeError("no")

    __hash__ = None


@pytest.mark.parametrize(
    ("answer", "expected", "says"),
    [
        (0.31, 0.3, "think"),
        (235147, 235146, "think"),  # whole numbers are exact
        (10**17 + 1, 10**17, "think"),
        (-5, 5, "think"),
        (float("nan"), 0.3, "think"),
        ("0.3", 0.3, "a number is asked for, and this is a text; think"),
        (None, 0.3, "a number is asked for, and this is None; think"),
        (True, 1, "a number is asked for, and this is True; think"),
        (1, True, "True or False is asked for, and this is a number; think"),
        (len, 0.3, "a number is asked for, and this is a function; think"),
        (np.ones(1), 1, "a number is asked for, and this is an array of shape (1,); think"),
        (Odd(), 1, "a number is asked for, and this is of type Odd; think"),
        (False, True, "think"),
        ("fc2", "fc1", "think"),
        (1, "fc1", "a text is asked for, and this is a number; think"),
        ([1], {1}, "a set is asked for, and this is a list; think"),
        ({1}, {1, 2}, "think"),
        ([1, 2], [1, 2, 3], "it has 2 entries, and 3 are asked for; think"),
        ([1, 3], [1, 2], "entry 1 is not right; think"),
        (3, [1, 2], "a list is asked for, and this is a number; think"),
        ([("fc1", 83)], PLAN, "a dictionary is asked for, and this is a list; think"),
        ({"fc1": 83}, PLAN, "missing: 'conv2'; think"),
        ({**PLAN, "fc9": 1}, PLAN, "not asked for: 'fc9'; think"),
        ({**PLAN, "fc1": 84}, PLAN, "'fc1' is not right; think"),
        ({**PLAN, "conv2": ("spatial", 13)}, PLAN, "'conv2': entry 1 is not right; think"),
        ({**PLAN, "conv2": Odd()}, PLAN, "'conv2': a tuple is asked for, and this is of type Odd; think"),
        (ARRAY.T, ARRAY, "its shape is (3, 2), and (2, 3) is asked for; think"),
        (5.0, ARRAY, "an array of shape (2, 3) is asked for, and this is a number; think"),
        (ARRAY + np.array([0, 0, 1]), ARRAY, "2 of 6 entries differ; think"),
        (ARRAY + 1, ARRAY, "think"),
        (ARRAY * np.nan, ARRAY, "think"),
        ([1.0, 5.0], np.array([1.0, np.inf]), "1 of 2 entries differ; think"),
        ([1, 1_000_001], np.array([1, 1_000_000]), "1 of 2 entries differ; think"),
        ([True, True], np.array([1, 1]), "think"),
        (["a", "b"], np.array([1, 2]), "think"),
        (ARRAY, TABLE, "a DataFrame is asked for, and this is an array of shape (2, 3); think"),
        (TABLE.drop(columns="rank"), TABLE, "missing columns: rank; think"),
        (TABLE.assign(more=1), TABLE, "columns not asked for: more; think"),
        (TABLE[:1], TABLE, "it has 1 rows, and 2 are asked for; think"),
        (TABLE[::-1], TABLE, "its rows have other labels, or another order; think"),
        (TABLE.assign(kept=[0.5, 0.5]), TABLE, "column kept: 1 of 2 entries differ; think"),
        (TABLE.assign(layer="x"), TABLE, "column layer is not right; think"),
        (TABLE["rank"].tolist(), TABLE["rank"], "a Series is asked for, and this is a list; think"),
    ],
)
def test_not_yet(answer, expected, says, capsys):
    result = check(answer, expected, hint="think")
    assert capsys.readouterr().out == f"not yet: {says}\n"
    assert not result
    assert not result.right


def test_a_ragged_list_is_no_array(capsys):
    assert not check([[1, 2], [3]], ARRAY, hint="think")
    out = capsys.readouterr().out
    assert out.startswith("not yet: this is a list, and cannot be compared (ValueError: ")
    assert out.endswith("; think\n")
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize("answer", [..., {"fc1": 83, "fc2": ...}, [1, ...], {"fc1": ("spatial", ...)}])
def test_not_answered(answer, capsys):
    assert not check(answer, PLAN, hint="think")
    assert not check(answer, test=lambda given: True)
    assert capsys.readouterr().out == "not answered\n" * 2


def asserts(answer):
    assert answer > 2, "it must be more than 2"
    return True


@pytest.mark.parametrize(
    ("answer", "test", "says"),
    [
        (3, lambda rank: rank == 3, "right"),
        (3, lambda rank: np.True_, "right"),
        (3, asserts, "right"),
        (2, lambda rank: rank == 3, "not yet: think"),
        (2, asserts, "not yet: it must be more than 2; think"),
        ("a", lambda rank: rank + 1 == 3, "not yet: the check stopped at TypeError: can only concatenate str"),
        (ARRAY, lambda given: given > 0, "not yet: the check stopped at ValueError: The truth value of an array"),
        (lambda x: 1 / x, lambda function: function(0) == 1, "not yet: the check stopped at ZeroDivisionError: "),
    ],
)
def test_a_test_decides_and_its_errors_are_words(answer, test, says, capsys):
    assert bool(check(answer, test=test, hint="think")) == (says == "right")
    out = capsys.readouterr().out
    assert out.startswith(says)
    assert len(out.splitlines()) == 1
    assert says == "right" or out.endswith("think\n")


def test_without_a_hint_it_still_says_something(capsys):
    assert not check(1, 2)
    assert capsys.readouterr().out == "not yet: this is not right\n"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({}, TypeError, "what is expected or a test"),
        ({"expected": 1, "test": callable}, TypeError, "not both"),
        ({"test": 3}, TypeError, "test is not a function but a number"),
        ({"test": callable, "tolerance": 1}, TypeError, "a tolerance goes with what is expected"),
        ({"expected": 1, "tolerance": -1}, ValueError, "abs is below 0"),
        ({"expected": 1, "tolerance": {"rel": 2}}, ValueError, "rel is a share"),
        ({"expected": 1, "tolerance": "a"}, ValueError, "abs is not a finite number"),
        ({"expected": ...}, ValueError, "holds ..."),
        ({"expected": float("nan")}, ValueError, "not equal to itself"),
        ({"expected": {"fc1": float("nan")}}, ValueError, "not equal to itself: 'fc1' is not right"),
        ({"expected": np.array([1, np.nan])}, ValueError, "not equal to itself: 1 of 2 entries differ"),
        ({"expected": len}, TypeError, "cannot compare a function; give a test"),
        ({"expected": {"fc1": None}}, TypeError, "cannot compare None; give a test"),
    ],
)
@pytest.mark.parametrize("answer", [1, ...])
def test_a_wrong_check_raises_whatever_the_answer(answer, options, error, says, capsys):
    with pytest.raises(error, match=says):
        check(answer, **options)
    assert capsys.readouterr().out == ""


def test_an_interrupt_is_not_swallowed():
    def test(answer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(1, test=test)
