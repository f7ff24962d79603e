"""The verdict on one method against another where rows may be missing, and where training may have diverged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from lowrank_utils.workbook import contest, verdicts
from lowrank_utils.workbook.verdicts import Verdict

SETTING = ("dataset", "network", "budget")
DIVERGED = "training diverged"


def no_row(names: Sequence[str]) -> str:
    """Return why a setting is left out of which some methods have no row.

    >>> no_row(["random ranks", "training from scratch"])
    'no row of random ranks and of training from scratch'
    """
    return "no row of " + " and of ".join(names)


def verdict(
    sides: Mapping[str, pd.DataFrame],
    settings: Sequence[tuple],
    why: Callable[[list[str]], str] = no_row,
    *,
    reasons: Mapping[tuple, str] | None = None,
    consistently: bool = False,
) -> Verdict:
    """Return the verdict on the first of two methods, {name: rows}, against the second, at equal size.

    Parameters
    ----------
    sides : result rows of both; those whose training diverged (`contest.undiverged`) are not compared, and the verdict names them.
    settings : every (data set, network, budget) that is asked for.
    why : function of the names of the methods that have no row of a setting, which returns why it is left out.
    reasons : {setting: why it is left out where it has no pair}, in place of what `why` says.
    consistently : as in `verdicts.ahead_verdict`.
    """
    trained = {name: rows[contest.undiverged(rows)] for name, rows in sides.items()}
    lost = {name: rows[~contest.undiverged(rows)] for name, rows in sides.items()}
    have, gone = ({name: _settings_of(rows) for name, rows in each.items()} for each in (trained, lost))
    if absent := [name for name in have if not have[name] and not gone[name]]:
        every = [f"{dataset}, {network}, budget {budget:g}" for dataset, network, budget in settings]
        return verdicts.not_measured(no_row(absent), every)

    def told(setting: tuple) -> str:
        lacking = [name for name in have if setting not in have[name]]
        diverged = [name for name in lacking if setting in gone[name]]
        others = [name for name in lacking if name not in diverged]
        said = [why(others)] * bool(others) + [f"{DIVERGED}: {' and '.join(diverged)}"] * bool(diverged)
        return "; ".join(said) or "no seed that both have"

    left_out = {setting: told(setting) for setting in settings} | dict(reasons or {})
    found = verdicts.ahead_verdict(
        *trained.values(), settings=settings, absent=left_out, than=list(sides)[1], consistently=consistently
    )
    seeds = [
        f"{row.dataset}, {row.network}, budget {row.budget:g}, seed {row.seed}: {DIVERGED} ({name})"
        for name, rows in lost.items()
        for row in rows.itertuples()
        if (row.dataset, row.network, row.budget) in have[name]
    ]
    return replace(found, said="; ".join([found.said, *seeds])) if found.holds != "-" else found


def _settings_of(rows: pd.DataFrame) -> set[tuple]:
    return set(rows[[*SETTING]].itertuples(index=False, name=None))
