"""The rules by which every claim is judged, those of the papers and our own: functions of result rows.

Three rules, the same for all (Blalock et al. 2020, *What is the state of neural network pruning?*, ask for sizes and for accuracies):

- `smallest_size`: the smallest network at no more than so many points lost;
- `smaller_at_equal_loss`: which of two methods has the smaller one, each on its own curve;
- `ahead_at_equal_size`: which of two methods is right more often at equal size, compared in pairs.

Accuracies of rows are shares in [0, 1], as everywhere; what these functions return is in points of percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from lowrank_utils.lab.columns import KEY
from lowrank_utils.lab.score import unpacked
from lowrank_utils.workbook.paired_tests import (
    LEVEL,
    RESAMPLES,
    TEST_IMAGES,
    holm,
    mcnemar,
    mcnemar_at_worst,
    paired_bootstrap,
    paired_error,
    students_t,
)
from lowrank_utils.workbook.tables import span, verdict_of

POINTS = (1, 2)  # points that may be lost: the two drops by which all methods are judged
HALF = 0.5  # a network is small where less than this share stays
SAVED = 0.9  # at least a tenth is saved by a compression that loses nothing
OF_THOUSANDS = ("mnist", "fashion-mnist", "cifar10", "cifar100")  # data sets of `TEST_IMAGES`
RUN_OF = ("dataset", "network", "seed")

RULES = {  # what the claim table calls them, and what they ask
    "size": "the smallest network that loses at most 1 (then 2) points on validation images, or no point where the claim says so, reported on test. It holds where less than half of the "
    "parameters stay and the points lost on test are no more than allowed, two standard errors of the paired difference aside (where rows do not record which images are right, of the least error that a pair can have)",
    "size, test curve": "the same in MACs. The public networks were trained on their validation images, so their sizes are read off the test curve, for all methods alike",
    "smaller": "which of two methods has the smaller network that loses at most 1 (then 2) points on validation images, each on its own curve. A run counts where "
    "both have one. It holds where that of the first is smaller; equal sizes are not smaller",
    "ahead": "the mean paired difference at equal size, at 5 % after Holm's correction over the settings of the row. Pairs are test images (McNemar within a "
    "seed, a bootstrap over images and seeds or draws) where the rows record which are right, else seeds alone (Student's t); of one seed without that record, the counts of right images and the largest p-value that they allow. "
    "*Not settled*: behind nowhere, and ahead in fewer settings than the claim needs. Three seeds say that these three networks are apart, and little of further seeds",
    "no loss": f"no loss is shown: no more points lost on test, against the dense network, than two standard errors of the paired difference, and at most {SAVED:.0%} of the MACs stay",
    "as in the paper": "the paper's own measure at the paper's own setting, theirs beside ours. *Theirs* is the paper's own number; *not at hand*: nobody here has found the number of that setting "
    "in what can be read of the paper; *-*: no number is quoted, and our own versions and controls have none",
}
UNSETTLED = "not settled"  # where a comparison in pairs finds neither method ahead of the other, anywhere
NOT_AT_HAND = "not at hand"  # where a claim tells the number of its paper


# ---- claims and verdicts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What the rows say about a claim.

    Attributes
    ----------
    said : what was measured, in words.
    holds : yes, no or in part, `UNSETTLED`, or "-" where nothing was measured; two words with " / " for one and for two points.
    counted : how many settings the verdict counts.
    left_out : {setting: the reason why it does not count}.
    paired_by : the pairs of each setting counted, such as images or seeds; empty where nothing was paired.
    p : the p-value of each setting counted, before any correction; empty where nothing was tested.
    settled : how many of them Holm's correction over this row alone leaves below `paired_tests.LEVEL`.
    """

    said: str
    holds: str = "-"
    counted: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    paired_by: tuple[str, ...] = ()
    p: tuple[float, ...] = ()
    settled: int = 0

    @property
    def settings(self) -> int:
        """How many settings there are, those left out among them."""
        return self.counted + len(self.left_out)

    @property
    def counts(self) -> str:
        """The settings counted and left out, in words; those that differ in their last number alone are put together.

        >>> Verdict("", "yes", 2, {"mnist, seed 0": "too small", "mnist, seed 1": "too small"}).counts
        '2 of 4; left out: mnist, seed 0, 1 (too small)'
        """
        reasons: dict[str, list[str]] = {}
        for setting, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(setting)
        told = [f"{'; '.join(_together(settings))} ({reason})" for reason, settings in reasons.items()]
        return f"{self.counted} of {self.settings}" + ("; left out: " + "; ".join(told) if told else "")


def _together(settings: Sequence[str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for setting in settings:
        start, _, end = setting.rpartition(" ")
        groups.setdefault(start, []).append(end)
    return [f"{start} {', '.join(ends)}".strip() for start, ends in groups.items()]


@dataclass(frozen=True)
class Claim:
    """One row of the claim table.

    Attributes
    ----------
    paper, claim, setting : whose claim, in the paper's words or "the same", and where it is judged.
    rule : the rule that gives the verdict, one of `RULES`.
    theirs : the number that the paper gives, `NOT_AT_HAND` where nobody has looked it up, or "-".
    measure : function of the published rows that returns a `Verdict`, or None where no row is about the claim.
    rerun : the command that makes the rows again.
    posed : whether the method is judged as its authors pose it.
    unmet : {number of a rule of fair comparison: why this claim does not keep it}, beside those of its chapter; `audit` asks for them.
    """

    paper: str
    claim: str
    setting: str
    rule: str
    theirs: str
    measure: Callable[[pd.DataFrame], Verdict | None]
    rerun: str
    posed: bool = False
    unmet: Mapping[int, str] = field(default_factory=dict)


def not_measured(reason: str, left_out: Sequence[str] = ()) -> Verdict:
    """Return the verdict on settings of which no row says anything, all for one reason.

    >>> not_measured("no row", ["mnist"]).said
    'not measured: no row'
    """
    return Verdict(f"not measured: {reason}", "-", 0, dict.fromkeys(left_out, reason))


# ---- what rows must have ---------------------------------------------------------------------------------------------


def _named(keys: Sequence[str], values: object) -> str:
    """Return a setting in words: its values, those of numbers by their column.

    >>> _named(("dataset", "seed"), ("mnist", 0))
    'mnist, seed 0'
    """
    each = values if isinstance(values, tuple) else (values,)
    words = [value if isinstance(value, str) else f"{key} {value:g}" for key, value in zip(keys, each, strict=True)]
    return ", ".join(words)


def _left_out(
    keys: Sequence[str], settings: Sequence[tuple], have: set[tuple], absent: Mapping[tuple, str] | str
) -> dict[str, str]:
    reasons = absent if isinstance(absent, Mapping) else dict.fromkeys(settings, absent)
    return {_named(keys, values): reasons.get(values, "no row") for values in settings if values not in have}


def _check_columns(rows: pd.DataFrame, needed: Sequence[str], rule: str) -> None:
    for name in needed:
        if name not in rows:
            raise ValueError(f"the rows lack the column {name}, which the rule {rule!r} needs")
        if rows[name].isna().any():
            raise ValueError(
                f"{rows[name].isna().sum()} of {len(rows)} rows have no {name}, which the rule {rule!r} needs"
            )


def _check_one_each(rows: pd.DataFrame, keys: Sequence[str]) -> None:
    twice = rows[rows.duplicated([*keys], keep=False)]
    if len(twice):
        first = tuple(twice.iloc[0][[*keys]])
        raise ValueError(f"{len(twice)} rows claim one setting: {_told(keys, first)}; keep one of them")


def _told(keys: Sequence[str], values: tuple) -> str:
    return ", ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True) if not pd.isna(value))


def _check_same_images(rows: pd.DataFrame, keys: Sequence[str]) -> None:
    """Raise ValueError where the rows of one setting were measured on different test images."""
    if "data_fingerprint" not in rows:
        return
    for values, part in rows.groupby([*keys]):
        if part["data_fingerprint"].dropna().nunique() > 1:
            raise ValueError(
                f"the rows of {_named(keys, values)} differ in their test images, so they cannot be paired"
            )


# ---- the smallest size -----------------------------------------------------------------------------------------------


def smallest_size(
    rows: pd.DataFrame,
    dense: pd.DataFrame,
    points_lost: float,
    *,
    chosen_on: str = "valid_accuracy",
    size: str = "parameters_kept",
    on: Sequence[str] = RUN_OF,
) -> pd.DataFrame:
    """Return the smallest network of one method that loses at most `points_lost`, one row a setting.

    Parameters
    ----------
    rows : result rows of one method, its whole curve.
    dense : rows of the dense networks, one a setting.
    points_lost : points of percent that may be lost against the dense network, at least 0.
    chosen_on : the column of accuracy by which a network is chosen; "accuracy" reads the size off the test curve.
    size : the column of the share kept, such as parameters_kept or macs_kept.
    on : the columns that make a setting.

    Returns columns `on`; kept, the share of the smallest network (NaN where every network loses more); lost_chosen and
    lost, its points lost on the images that chose it and on test images; allowed, `points_lost` and `allowance`; networks, how many
    the curve has.
    Raises ValueError, naming it, for a column that is missing or has gaps, for two rows that claim one setting, and for a
    setting without a dense network.

    >>> dense = pd.DataFrame({"seed": [0], "valid_accuracy": [0.90], "accuracy": [0.89], "parameters_kept": [1.0]})
    >>> rows = pd.DataFrame({"seed": 0, "budget": [0.3, 0.2], "parameters_kept": [0.3, 0.2], "valid_accuracy": [0.895, 0.88], "accuracy": [0.88, 0.86]})
    >>> smallest_size(rows, dense, 1, on=["seed"])[["kept", "lost"]].round(2).to_dict("records")
    [{'kept': 0.3, 'lost': 1.0}]
    """
    if not points_lost >= 0:
        raise ValueError(f"points_lost={points_lost} is below 0")
    needed = [*on, size, "accuracy", chosen_on]
    _check_columns(rows, needed, "smallest size")
    _check_columns(dense, needed, "smallest size")
    _check_one_each(rows, list(dict.fromkeys([*on, *(name for name in KEY if name in rows)])))
    _check_one_each(dense, on)
    whole: dict[tuple, dict] = {tuple(row[name] for name in on): row for row in dense.to_dict("records")}
    found = []
    for values, curve in rows.groupby([*on]):
        if values not in whole:
            raise ValueError(
                f"no row is the dense network of {_named(on, values)}, which the rule 'smallest size' needs"
            )
        before = {name: float(whole[values][name]) for name in (chosen_on, "accuracy")}
        lost = 100 * (before[chosen_on] - curve[chosen_on])
        good = curve[lost <= points_lost + 1e-9]
        line = dict(zip(on, values, strict=True)) | {"kept": math.nan, "lost_chosen": math.nan, "lost": math.nan}
        aside = allowance(whole[values])
        if len(good):
            best = good.sort_values([size, chosen_on], ascending=[True, False], kind="stable").iloc[0]
            line["kept"], aside = best[size], allowance(whole[values], best)
            line |= {
                f"lost{end}": 100 * (before[name] - best[name])
                for end, name in (("_chosen", chosen_on), ("", "accuracy"))
            }
        found.append(line | {"allowed": points_lost + aside, "networks": len(curve)})
    return pd.DataFrame(found, columns=[*on, "kept", "lost_chosen", "lost", "allowed", "networks"])


def allowance(dense: Mapping, cut: Mapping | pd.Series | None = None) -> float:
    """Return the points that a cut network may lose beyond what is asked: two standard errors of what it loses on the test images.

    The error is that of the paired difference where both rows say which images are right (column correct). Else it is the least that a pair
    with these accuracies can have, on `paired_tests.TEST_IMAGES`: sqrt(d (1 - d) / N), d the share that is lost.
    """
    texts = [row.get("correct") for row in (dense, cut) if row is not None]
    if len(texts) == 2 and all(isinstance(text, str) for text in texts):
        ours, theirs = (unpacked(str(text)) for text in texts)
        if len(ours) != len(theirs):
            raise ValueError("a cut network and its dense network were measured on different test images")
        return 200 * paired_error(ours, theirs)
    lost = 0.0 if cut is None else max(float(dense["accuracy"] - cut["accuracy"]), 0.0)
    return 200 * (lost * (1 - lost) / TEST_IMAGES) ** 0.5


def size_verdict(
    rows: pd.DataFrame,
    dense: pd.DataFrame,
    *,
    points: Sequence[float] = POINTS,
    settings: Sequence[tuple] = (),
    absent: Mapping[tuple, str] | str = "no row",
    unit: str = "parameters",
    **how,
) -> Verdict:
    """Return the verdict of `smallest_size` at each of `points` lost: does less than half stay, within what may be lost on test?

    Parameters: `rows` and `dense` as there, and `how`, its options; `settings`, all that the claim is about, of which those without a row
    are left out for the reason `absent` (one for all, or {setting: reason}); `unit`, what the share counts.
    """
    on, chosen_on = how.get("on", RUN_OF), how.get("chosen_on", "valid_accuracy")
    gaps = _incomplete(rows, dense, on, chosen_on)
    rows = rows[~_among(rows, on, gaps)]
    dense = dense[~_among(dense, on, gaps) & dense[chosen_on].notna()]
    each = {most: smallest_size(rows, dense, most, **how) for most in points} if len(rows) else {}
    short = {
        most: _too_short(rows, found, on, how.get("size", "parameters_kept"), unit) for most, found in each.items()
    }
    first, *others = short.values() or [{}]
    never = {values: reason for values, reason in first.items() if all(values in other for other in others)}
    have = set(rows[[*on]].itertuples(index=False, name=None)) - set(never)
    left_out = _left_out(on, settings, have, absent)
    left_out |= {_named(on, values): reason for values, reason in (gaps | never).items()}
    if not have:
        return Verdict(f"not measured: {next(iter(left_out.values()), 'no row')}", "-", 0, left_out)
    told, verdicts = [], []
    for most, found in each.items():
        found = found[_among(found, on, have - set(short[most]))]
        small, counted = found[found["kept"].notna()], len(found)
        good = (found["kept"] < HALF) & (found["lost"] <= found["allowed"])
        words = f"{_range(100 * small['kept'])} % of the {unit}" if len(small) else "no size"
        if len(small) and chosen_on != "accuracy":
            words += f", {_range(small['lost'], 1)} points lost on test (no more than {most:g} in {(small['lost'] <= most).sum()})"
        words += f", out of reach in {counted - len(small)}" * (0 < len(small) < counted)
        words += f", holds in {good.sum()} of {counted}"
        apart = [f"{_named(on, values)} ({reason})" for values, reason in short[most].items() if values not in never]
        told.append(
            f"{most:g} point{'s' * (most != 1)}: {words}" + f", not counted {' and '.join(apart)}" * bool(apart)
        )
        verdicts.append(verdict_of(good.mean()))
    holds = verdicts[0] if len(set(verdicts)) == 1 else " / ".join(verdicts)
    return Verdict("; ".join(told), holds, len(have), left_out)


def _among(table: pd.DataFrame, on: Sequence[str], settings: Container[tuple]) -> np.ndarray:
    """Return which rows (booleans) belong to one of the settings."""
    return np.array([values in settings for values in table[[*on]].itertuples(index=False, name=None)], bool)


def _incomplete(rows: pd.DataFrame, dense: pd.DataFrame, on: Sequence[str], chosen_on: str) -> dict[tuple, str]:
    """Return {setting: reason} of curves that cannot be judged: one of their networks, or the dense one, has no such accuracy."""

    def settings(table: pd.DataFrame) -> set[tuple]:
        return set(table[[*on]].itertuples(index=False, name=None))

    have = settings(rows)
    found = dict.fromkeys(sorted(have - settings(dense), key=str), "no row of its dense network")
    found |= dict.fromkeys(settings(dense[dense[chosen_on].isna()]) & have, f"its dense network has no {chosen_on}")
    return found | dict.fromkeys(settings(rows[rows[chosen_on].isna()]), f"a row has no {chosen_on}")


def _too_short(rows: pd.DataFrame, found: pd.DataFrame, on: Sequence[str], size: str, unit: str) -> dict[tuple, str]:
    """Return {setting: reason} of curves that end below half of the network before they lose so little: they settle nothing."""
    lost = set(found.loc[found["kept"].isna(), [*on]].itertuples(index=False, name=None))
    ends = {values: curve[size].max() for values, curve in rows.groupby([*on]) if values in lost}
    reason = f"its curve ends at {{:.0%}} of the {unit} and still loses more"
    return {values: reason.format(end) for values, end in ends.items() if end < HALF}


def _range(values: pd.Series, digits: int = 0) -> str:
    low, high = (f"{value:.{digits}f}".replace("-0.0", "0.0") for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


# ---- the smaller of two ----------------------------------------------------------------------------------------------


def smaller_at_equal_loss(
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    dense: pd.DataFrame,
    points_lost: float,
    *,
    on: Sequence[str] = RUN_OF,
    **how,
) -> pd.DataFrame:
    """Return the smallest networks of two methods at no more than `points_lost`, each on its own curve: one row a setting that both curves have.

    Parameters as of `smallest_size`, whose options `how` are. Returns columns `on`; kept_ours, kept_theirs, lost_ours and lost_theirs as there (NaN where
    every network of that method loses more); end_ours, end_theirs, the sizes of the largest networks; and verdict: smaller, larger, level, or not measured where one of the two has none.

    >>> dense = pd.DataFrame({"seed": [0], "valid_accuracy": [0.90], "accuracy": [0.89], "parameters_kept": [1.0]})
    >>> rows = pd.DataFrame({"seed": 0, "budget": [0.1, 0.2], "parameters_kept": [0.5, 0.2], "valid_accuracy": [0.90, 0.88], "accuracy": [0.89, 0.86]})
    >>> found = smaller_at_equal_loss(rows.assign(parameters_kept=[0.4, 0.3]), rows, dense, 1, on=["seed"])
    >>> found[["kept_ours", "kept_theirs", "verdict"]].to_dict("records")
    [{'kept_ours': 0.4, 'kept_theirs': 0.5, 'verdict': 'smaller'}]
    """
    size = how.get("size", "parameters_kept")
    lines: dict[tuple, dict[str, float]] = {}
    for side, rows in (("ours", ours), ("theirs", theirs)):
        ends = {values: curve[size].max() for values, curve in rows.groupby([*on])}
        for found in smallest_size(rows, dense, points_lost, on=on, **how).to_dict("records"):
            setting = tuple(found[name] for name in on)
            mine = {"kept": found["kept"], "lost": found["lost"], "end": ends[setting]}
            lines.setdefault(setting, {}).update({f"{name}_{side}": value for name, value in mine.items()})
    whole = [
        dict(zip(on, setting, strict=True)) | line | {"verdict": _smaller(line["kept_ours"], line["kept_theirs"])}
        for setting, line in lines.items()
        if {"end_ours", "end_theirs"} <= line.keys()
    ]
    names = [f"{name}_{side}" for name in ("kept", "lost", "end") for side in ("ours", "theirs")]
    return pd.DataFrame(whole, columns=[*on, *names, "verdict"])


def _smaller(ours: float, theirs: float) -> str:
    if math.isnan(ours) or math.isnan(theirs):
        return "not measured"
    if math.isclose(ours, theirs, rel_tol=0, abs_tol=1e-9):
        return "level"
    return "smaller" if ours < theirs else "larger"


def smaller_verdict(
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    dense: pd.DataFrame,
    *,
    names: tuple[str, str],
    points: Sequence[float] = POINTS,
    settings: Sequence[tuple] = (),
    absent: Mapping[tuple, str] | str = "no row",
    consistently: bool = False,
    on: Sequence[str] = RUN_OF,
    **how,
) -> Verdict:
    """Return the verdict of `smaller_at_equal_loss` at each of `points` lost: is the network of the first method the smaller one?

    Each loss and setting counts by itself, so that a run may be left out at one loss and counted at the other. Left out are settings without a curve
    of both methods, for the reason `absent` (one for all, or {setting: reason}), and those in which a method has no network that loses so little.

    Parameters: rows and `how` as there; `names` of the two methods; `settings`, all that the claim is about; `consistently`: the claim
    holds in all runs or not at all.
    """
    chosen_on = how.get("chosen_on", "valid_accuracy")
    short = _incomplete(theirs, dense, on, chosen_on) | _incomplete(ours, dense, on, chosen_on)
    ours, theirs = (rows[~_among(rows, on, short)] for rows in (ours, theirs))
    dense = dense[~_among(dense, on, short) & dense[chosen_on].notna()]
    told, verdicts, counted = [], [], 0
    left_out: dict[str, str] = {}
    for most in points:
        loss = f"{most:g} point{'s' * (most != 1)}"
        found = smaller_at_equal_loss(ours, theirs, dense, most, on=on, **how)
        have = set(found[[*on]].itertuples(index=False, name=None))
        gone = _left_out(on, settings, have | set(short), absent)
        gone |= {_named(on, values): reason for values, reason in short.items()}
        silent = found["verdict"] == "not measured"
        for line in found[silent].to_dict("records"):
            gone[_named(on, tuple(line[name] for name in on))] = _without_size(line, names)
        left_out |= {f"{loss}, {setting}": reason for setting, reason in gone.items()}
        told.append(f"{loss}: {_smaller_in_words(found[~silent])}")
        share = float((found.loc[~silent, "verdict"] == "smaller").mean())
        verdicts.append(verdict_of(float(share == 1) if consistently and share == share else share))
        counted += int((~silent).sum())
    if not counted:
        return Verdict(f"not measured: {next(iter(left_out.values()), 'no row')}", "-", 0, left_out)
    holds = verdicts[0] if len(set(verdicts)) == 1 else " / ".join(verdicts)
    return Verdict("; ".join(told), holds, counted, left_out)


def _smaller_in_words(found: pd.DataFrame) -> str:
    if not len(found):
        return "no run in which both have a size"
    sizes = " against ".join(f"{_range(100 * found[f'kept_{side}'])} %" for side in ("ours", "theirs"))
    lost = " against ".join(_range(found[f"lost_{side}"], 1) for side in ("ours", "theirs"))
    counts = {word: int((found["verdict"] == word).sum()) for word in ("smaller", "larger", "level")}
    level = f", level in {counts['level']}" if counts["level"] else ""
    return f"{sizes} of the parameters, {lost} points lost on test, smaller in {counts['smaller']} of {len(found)}, larger in {counts['larger']}{level}"


def _without_size(line: Mapping, names: tuple[str, str]) -> str:
    """Return why a setting has no pair of sizes: which curve ends before it loses so little, and whether the other has a size."""
    sides = dict(zip(names, ("ours", "theirs"), strict=True))
    lacking = [name for name, side in sides.items() if math.isnan(line[f"kept_{side}"])]
    ends = " and ".join(f"that of {name} ends at {line[f'end_{sides[name]}']:.0%}" for name in lacking)
    if len(lacking) == len(names):
        return f"neither curve loses so little: {ends} of the parameters"
    (other,) = set(names) - set(lacking)
    return f"only the curve of {other} loses so little: {ends} of the parameters"


# ---- ahead at equal size ---------------------------------------------------------------------------------------------


def ahead_at_equal_size(
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    *,
    on: Sequence[str] = ("dataset", "network", "budget"),
    over: str = "seed",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return by how many points one method is ahead of another in each setting that both have, and whether that is settled.

    Parameters
    ----------
    ours, theirs : rows of two methods, at most one for each setting and value of `over`.
    on : the columns that make a setting, its size among them; over : the column of what is repeated, such as seed or draw.
    level : of tests and intervals; resamples, seed : of the bootstrap.

    Where every row of a setting says which test images are right (column correct), the difference is paired by images:
    McNemar's exact test where there is one seed, a bootstrap over images and seeds where there are more. Otherwise it is
    paired by seeds alone, by Student's t, because a bootstrap of three seeds never leaves the range of the three. That says
    how sure the difference is for other seeds on the same test images. One seed alone, or draws that are one network, then have the
    counts of right images alone: p is the largest that these allow (`paired_tests.mcnemar_at_worst`), on data sets of 10 000 test images.

    Returns columns `on`; pairs, the number of seeds; gain, low, high, in points; p, and p_holm after `holm` over all
    settings; mcnemar, the p-values within each seed (an empty tuple without images); paired_by: images, images and seeds, seeds (or
    what `over` names), counts of images, or nothing; verdict: ahead, behind, not settled, or not measured.
    Raises ValueError, naming it, for a column that is missing, two rows that claim one setting, and seeds that differ in
    their test images.

    >>> rows = pd.DataFrame({"budget": 0.2, "seed": [0, 1, 2], "accuracy": [0.90, 0.91, 0.92]})
    >>> found = ahead_at_equal_size(rows, rows.assign(accuracy=[0.80, 0.80, 0.83]), on=["budget"])
    >>> found[["gain", "paired_by", "verdict"]].round(1).to_dict("records")
    [{'gain': 10.0, 'paired_by': 'seeds', 'verdict': 'ahead'}]
    """
    keys = [*on, over]
    for rows in (ours, theirs):
        _check_columns(rows, [*keys, "accuracy"], "ahead at equal size")
        _check_one_each(rows, keys)
    _check_same_images(pd.concat([ours, theirs]), on)
    both = pd.merge(_answers(ours, keys), _answers(theirs, keys), on=keys, suffixes=("_ours", "_theirs"))
    found = []
    for values, part in both.groupby([*on]):
        known = part[["correct_ours", "correct_theirs"]].notna().all(axis=None)
        if over == "draw" and known:  # draws that are the same pair of networks count once
            part = part.drop_duplicates(["correct_ours", "correct_theirs"])
        line = dict(zip(on, values, strict=True)) | {"pairs": len(part)}
        gains = 100 * (part["accuracy_ours"] - part["accuracy_theirs"]).to_numpy(float)
        images = _differences(part, _named(on, values))
        tests: tuple[float, ...] = ()
        if images is None:
            low, high, p = students_t(gains, level)
            by = "nothing" if math.isnan(p) else f"{over}s"
            if math.isnan(p) and (counts := _counts(part)):
                p, by = mcnemar_at_worst(*counts, TEST_IMAGES), "counts of images"
        else:
            tests = tuple(mcnemar(row > 0, row < 0) for row in images)
            _, low, high, p = paired_bootstrap(images, resamples=resamples, level=level, seed=seed)
            low, high = 100 * low, 100 * high
            by = f"images and {over}s" if len(images) > 1 else "images"
            p = p if len(images) > 1 else tests[0]
        found.append(line | {"gain": gains.mean(), "low": low, "high": high, "p": p, "mcnemar": tests, "paired_by": by})
    names = [*on, "pairs", "gain", "low", "high", "p", "mcnemar", "paired_by"]
    table = pd.DataFrame(found, columns=names)
    corrected = holm(table["p"].to_numpy(float))
    verdict = np.where(table["gain"] > 0, "ahead", "behind").astype(object)
    verdict[~(corrected < level)] = "not settled"
    verdict[np.isnan(corrected)] = "not measured"
    return table.assign(p_holm=corrected, verdict=verdict)


def _counts(part: pd.DataFrame) -> tuple[int, int] | None:
    # (images that ours gets right, theirs) of one setting, where its pairs are one pair of networks on `TEST_IMAGES`
    both = part[["accuracy_ours", "accuracy_theirs"]].drop_duplicates()
    if len(both) != 1 or "dataset" not in part or part["dataset"].iloc[0] not in OF_THOUSANDS:
        return None
    ours, theirs = (TEST_IMAGES * float(value) for value in both.iloc[0])
    whole = all(abs(count - round(count)) < 1e-3 for count in (ours, theirs))  # else other images were scored
    return (round(ours), round(theirs)) if whole else None


def _answers(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    return rows.reindex(columns=[*keys, "accuracy", "correct"])


def _differences(part: pd.DataFrame, setting: str) -> np.ndarray | None:
    """Return the differences of the answers, pairs x images, of one setting; None where a row does not say which are right."""
    texts = part[["correct_ours", "correct_theirs"]]
    if texts.isna().any(axis=None):
        return None
    each = [[unpacked(text) for text in texts[name]] for name in texts]
    if len({len(right) for side in each for right in side}) > 1:
        raise ValueError(f"the rows of {setting} differ in their test images, so they cannot be paired")
    return np.array(each[0], float) - np.array(each[1], float)


SILENT = "one pair, or one difference in all pairs, and no record of which test images are right, nor 10 000 of them"


def ahead_verdict(
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    *,
    settings: Sequence[tuple] = (),
    absent: Mapping[tuple, str] | str = "no row",
    consistently: bool = False,
    than: str = "",
    **how,
) -> Verdict:
    """Return the verdict of `ahead_at_equal_size` over all settings.

    Parameters: `ours`, `theirs` and `how` as there; `settings`, all that the claim is about, of which those without a pair are left out for
    the reason `absent` (one for all, or {setting: reason}); `consistently`: the claim holds in all settings or not at all; `than`, the name of the other method.
    """
    on: Sequence[str] = how.get("on", ("dataset", "network", "budget"))
    found = ahead_at_equal_size(ours, theirs, **how)
    have = set(found[[*on]].itertuples(index=False, name=None))
    left_out = _left_out(on, settings, have, absent)
    silent = found[found["verdict"] == "not measured"]
    gaps = dict.fromkeys([_named(on, tuple(values)) for values in silent[[*on]].to_numpy(object)], SILENT)
    found = found[found["verdict"] != "not measured"]
    if not len(found):
        reason = SILENT if len(silent) else next(iter(left_out.values()), "no row")
        said = f"not measured: {reason}"
        if len(silent):
            said += f" ({span(silent['gain'])} points over {len(silent)} settings)"
        return Verdict(said, "-", 0, left_out | gaps)
    ahead, behind = ((found["verdict"] == word).sum() for word in ("ahead", "behind"))
    by = ", ".join(f"{way} in {count}" for way, count in found["paired_by"].value_counts(sort=False).items())
    equal = int((found["gain"] == 0).sum())
    level = f", equal in {equal}" * bool(equal)
    said = f"{span(found['gain'])} points{f' against {than}' if than else ''}; ahead in {ahead} of {len(found)}, behind in {behind}{level}; paired by {by}"
    if len(silent):
        said += f"; {span(silent['gain'])} points in the {len(silent)} left out"
    holds = verdict_of(float(ahead == len(found)) if consistently else ahead / len(found))
    if holds == "no" and not behind:
        holds = UNSETTLED
    tested = {"p": tuple(found["p"]), "settled": int(ahead + behind)}
    return Verdict(said, holds, len(found), left_out | gaps, tuple(found["paired_by"]), **tested)


# ---- the dense network of a run --------------------------------------------------------------------------------------


def dense_rows(table: pd.DataFrame, notebook: str, keys: Sequence[Hashable] = RUN_OF) -> pd.DataFrame:
    """Return the rows of a notebook's dense networks, one for each of `keys`, with their accuracy on validation images.

    An older dense row does not have it. Then it is read off another row of the same dense network on the same split: same data set, network and
    seed, all parameters kept, nothing trained after, and the same accuracy and loss on test images to the last bit. Where there is none it stays missing.
    """
    mine = table[(table["notebook"] == notebook) & (table["chooser"] == "dense") & (table["tuned"] == "none")]
    mine = mine.drop_duplicates([*keys])
    names = [*RUN_OF, "accuracy", "loss"]
    if not {"loss", "parameters_kept", "valid_accuracy"} <= set(table) or not len(mine):
        return mine
    whole = table[(table["parameters_kept"] == 1) & (table["tuned"] == "none") & table["valid_accuracy"].notna()]
    known = whole.drop_duplicates(names).set_index(names)["valid_accuracy"]
    found = known.reindex(pd.MultiIndex.from_frame(mine[names])).to_numpy()
    return mine.assign(valid_accuracy=mine["valid_accuracy"].fillna(pd.Series(found, index=mine.index)))
