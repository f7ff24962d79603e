"""What the chapters' tables share: numbers in words, verdicts, Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pandas as pd


def verdict_of(share: float) -> str:
    if share != share:  # of no setting at all
        return "-"
    return "yes" if share == 1 else "no" if share == 0 else "in part"


def clearly_ahead(gain: pd.Series, level: float | pd.Series) -> pd.Series:
    # by more than two standard errors of an accuracy of `level` percent on 10 000 images
    return gain > 2 * (level * (100 - level) / 1e4) ** 0.5


def span(gain: pd.Series) -> str:
    return f"{gain.min():+.1f} to {gain.max():+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0")


def dense_accuracy(table: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    # accuracy of the dense network of each run
    return table[table["chooser"] == "dense"].groupby([*keys])["accuracy"].mean()


RUN = "python -m lowrank_utils run --preset"


def in_points(table: pd.DataFrame) -> pd.DataFrame:
    # percent, and what was lost against the dense network of the same run
    names = ("accuracy", "f1", "parameters_kept")
    table = table.assign(**{name: 100 * table[name] for name in names})
    dense = table[table["chooser"] == "dense"].set_index(["dataset", "network", "seed"])["accuracy"]
    lost = dense.reindex(table.set_index(dense.index.names).index).to_numpy() - table["accuracy"]
    return table.assign(lost=lost)


def thousands(number: float) -> str:
    """Return a whole number with its thousands set apart.

    >>> thousands(5000)
    '5 000'
    """
    return f"{int(number):,}".replace(",", " ")


SIZES = (0.75, 0.5, 0.35, 0.25)  # shares of the MACs


def at_share(table: pd.DataFrame, *shares: float) -> pd.Series:
    """Return which rows (a boolean Series) were asked for one of these shares of the MACs, and not fine-tuned.

    >>> import pandas as pd
    >>> rows = pd.DataFrame({"budget_kind": ["macs", "macs", "kept"], "budget": [0.5, 0.25, 0.5], "tuned": "none"})
    >>> at_share(rows, 0.5).tolist()
    [True, False, False]
    """
    return (table["budget_kind"] == "macs") & table["budget"].isin(shares) & (table["tuned"] == "none")


def at_sizes(part: pd.DataFrame, tell: Callable[[pd.Series], str]) -> str:
    # one cell of a table: what `tell` says of the accuracies at each size
    each = [part.loc[at_share(part, size), "accuracy"] for size in SIZES]
    return " / ".join(tell(values) if len(values) else "-" for values in each)


def mean_in_words(values: pd.Series) -> str:
    return f"{values.mean():.1f}"


def range_in_words(values: pd.Series) -> str:
    return f"{values.min():.1f}-{values.max():.1f}" if len(values) > 1 else f"{values.mean():.1f}"


def mean_and_spread(values: pd.Series) -> str:
    """Return mean and standard deviation (n - 1) of the values of a Series in words, one value alone as it is.

    >>> import pandas as pd
    >>> mean_and_spread(pd.Series([90.0, 92.0])), mean_and_spread(pd.Series([90.0]))
    ('91.0 ± 1.4', '90.0')
    """
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" if len(values) > 1 else f"{values.mean():.1f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
