"""The same few ways to compress beside each other on a network of the reader's world: rows, a figure and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import nn

from lowrank_utils import paths
from lowrank_utils.compression import compress
from lowrank_utils.factors import replace
from lowrank_utils.network.profile import Profile
from lowrank_utils.ranks import enc, rules
from lowrank_utils.workbook.plots import canvas
from lowrank_utils.workbook.tables import markdown

METHODS = (
    "plain SVD, one share",
    "plain SVD, ENC-Map",
    "data-aware, one share",
    "compress, not refined",
    "compress",
)
MARKERS = "s^oDP"


def compressed(
    read: Profile, method: str, kept: float, *, resource: str = "macs", within: Sequence[str] | None = None
) -> nn.Module:
    """Return the network of one of `METHODS`; `read` is the dense network's profile with calibration inputs.

    *One share* is one share of the rank for all layers. `kept` is a share of the network's `resource`, or of what the
    layers named by `within` hold, as in `compress`, which leaves the same layers dense as the profile does. Raises
    ValueError for another method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    if method.startswith("compress"):
        how: dict[str, Any] = {"dense": read.dense, "batch_size": read.batch_size, "resource": resource}
        refine = method == "compress"
        return compress(read.model, read.calibration, kept=kept, within=within, refine=refine, **how).model
    if within is not None:
        inside = read.within(within)
        kept = read.whole_share(kept, resource, inside)
        read = read.but(dense=[*read.dense, *(layer.name for layer in read if layer.name not in inside)])
    if method.endswith("ENC-Map"):
        plan = enc.enc_map(read, kept, resource=resource).plan
    else:
        plan = rules.plan_at_size(read, kept, rule="fixed", resource=resource)
    factors = "svd" if method.startswith("plain") else "data-aware"
    return replace.apply_plan(read, plan, factors=factors, resource=resource)


def asked(kept: Sequence[float], methods: Sequence[str] = METHODS) -> list[dict]:
    """Return the networks that a comparison is made of, the dense one first: ``{"method", "kept"}`` of each."""
    return [{"method": "dense", "kept": 1.0}, *({"method": name, "kept": share} for share in kept for name in methods)]


def published(name: str, folder: str | Path | None = None) -> pd.DataFrame | None:
    """Return the rows NAME.csv of a gallery (default: outputs/gallery), or None where it has none."""
    place = Path(folder or paths.GALLERY) / f"{name}.csv"
    return pd.read_csv(place) if place.is_file() else None


def figure(rows: pd.DataFrame, panels: Mapping[str, str], across: str, words: str) -> Figure:
    """Draw each column of `panels` ({column: title}) against the column `across`, which `words` describe: a line a method.

    The dense network is a dotted line.
    """
    drawn, axes = canvas(len(panels), width=4.6, height=3.6, sharex=True, sharey=True)
    palette, dense = sns.color_palette("colorblind"), rows[rows["method"] == "dense"]
    for axis, (column, title) in zip(axes, panels.items()):
        for i, method in enumerate(METHODS):
            mine = rows[rows["method"] == method].sort_values(across)
            if len(mine):
                axis.plot(mine[across], mine[column], marker=MARKERS[i], color=palette[i], label=method)
        axis.axhline(dense[column].mean(), color="black", linestyle=":", label="dense")
        axis.set(xlabel=words, ylim=(min(-0.02, rows[column].min() - 0.02), 1.02), title=title)
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles, names = axes[0].get_legend_handles_labels()
    drawn.legend(handles, names, loc="outside upper center", ncols=3, fontsize="small")
    return drawn


def table(rows: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Return `columns` ({column: heading}) times 100: a row a method, a column for each of them and each share kept."""
    cut = rows[rows["method"] != "dense"]
    order = [method for method in METHODS if method in set(cut["method"])]
    found = {}
    for column, heading in columns.items():
        by = cut.pivot_table(column, "method", "kept").reindex(order).sort_index(axis=1, ascending=False)
        found |= {f"{heading}, {share:.0%} kept": 100 * by[share] for share in by}
    return pd.DataFrame(found)


def in_markdown(table: pd.DataFrame, rows: str = "method") -> str:
    """Return `table` as Markdown, with one decimal; `rows` heads the column of row names."""
    lines = [[method, *(f"{value:.1f}" for value in table.loc[method])] for method in table.index]
    return markdown([rows, *table.columns], lines)
