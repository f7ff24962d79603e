"""The figures of chapter 06: ledgers, accuracies and what is ahead of what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from lowrank_utils.lab import columns
from lowrank_utils.workbook import controls as control
from lowrank_utils.workbook.benchmark import NEEDS, REFINED
from lowrank_utils.workbook.chapters.ten_minutes import NAMES, as_numbers
from lowrank_utils.workbook.plots import canvas, colour_of, heat_map
from lowrank_utils.workbook.tables import at_share

LEAST = 0.1  # points lost where the log scale of the figures ends
SHOWN = {"exact-Fisher": "exact, Fisher", "units then ranks": "units, then ranks"}
SHOWN |= {"DDLR": "DDLR, cut, refit", "Net-Trim": "Net-Trim, cut, refit"}

WAYS = {"dense": (7, "*"), "low rank": (0, "o"), "units": (1, "s"), "zeros": (2, "X"), "8 bit": (3, "D")}
WAYS |= {"refined": (4, "P")}
COSTS = {"kilobytes": "kB on disk", "time": "time for 64 inputs (dense network in torch: 1)"}


def way_of(table: pd.DataFrame) -> pd.Series:
    """Return for each row how the network is made smaller, as the figure tells them apart: a key of `WAYS`."""
    way = table["stored_as"].astype(object).replace({"both": "units", "sparse": "zeros"})
    return way.where(table["bits"] != 8, "8 bit").where(table["tuned"] != REFINED, "refined")


def ledger_bars(table: pd.DataFrame) -> Figure:
    """Return numbers held, multiplications and kilobytes of one layer in several forms, as bars; `table` is that of `ledger`."""
    words = {"numbers": "numbers held (thousands)", "macs": "multiplications (thousands)", "bytes": "kB"}
    figure, axes = canvas(len(words), width=3.6, height=2.6, sharey=True)
    ways = ["dense", "8 bit", "low rank", "8 bit", "zeros", "zeros"]
    colours = [sns.color_palette("colorblind")[WAYS[way][0]] for way in ways]
    for axis, (column, label) in zip(axes, words.items()):
        values = table[column] / 1000
        axis.barh(range(len(table)), values, color=colours, height=0.7)
        for place, value in enumerate(values):
            axis.text(value + 0.01 * values.max(), place, f"{value:.0f}", va="center", fontsize=9)
        axis.set(xlabel=label, xlim=(0, 1.18 * values.max()))
        axis.grid(False, axis="y")
    axes[0].set(yticks=range(len(table)), yticklabels=table.index)
    axes[0].invert_yaxis()
    return figure


def crossed(table: pd.DataFrame, share: float) -> Figure:
    """Return test accuracy of every chooser in every kind of factors as a heat map, a panel a network; colours are points lost.

    `table`: result rows; shown are low-rank networks that nothing has trained, at one `share` of the MACs. Behind each chooser stands what it
    must be told beside the weights.
    """
    low = table[(table["stored_as"] == "low rank") & (table["runtime"] == "torch") & (table["tuned"] == "none")]
    low = low[(low["budget_kind"] == "macs") & (low["budget"] == share)]
    networks = list(low["network"].unique())
    figure, axes = canvas(max(len(networks), 1), width=4.9, height=4.2, sharey=True)
    for axis, network in zip(axes, networks):
        mine = low[low["network"] == network]
        cells = 100 * mine.pivot_table("accuracy", "chooser", "factors", sort=False)
        dense = 100 * table.loc[(table["network"] == network) & (table["chooser"] == "dense"), "accuracy"].iloc[0]
        cells.index = [f"{SHOWN.get(name, name)} ({NEEDS[name]})" for name in cells.index]
        cells.columns = [NAMES.get(name, name) for name in cells.columns]
        heat_map(axis, (dense - cells).clip(lower=LEAST), LogNorm(LEAST, 40), cells.map("{:.1f}".format))
        axis.set_title(f"{network}, dense {dense:.1f}")
    figure.suptitle(f"accuracy on test images (%), {share:.0%} of the MACs kept", fontsize="medium")
    return figure


def label_of(row: Mapping[Any, Any]) -> str:
    """Return a short name of a row for a figure: what chose the ranks and wrote the factors, bits and runtime where they are not the usual ones."""
    name, factors = str(SHOWN.get(row["chooser"], row["chooser"])), row.get("factors", "none")
    if row["stored_as"] == "low rank" and factors != "none" and row["bits"] == 32:
        name += f", {NAMES.get(factors, factors)}"
    name += ", 8 bit" * (row["bits"] == 8) + " (onnx)" * (row["runtime"] == "onnxruntime" and row["bits"] == 32)
    return name + ", refined" * (row["tuned"] == REFINED)


def pareto(table: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return the rows that no other one beats in both the column `cost` and accuracy, the cheapest first.

    Networks that were refined or fine-tuned after the cut take no part.
    """
    mine = table[(table["tuned"] == "none") & table[cost].notna()]
    mine = mine.sort_values([cost, "accuracy"], ascending=[True, False], kind="stable")
    return mine[mine["accuracy"] > mine["accuracy"].cummax().shift(fill_value=-np.inf)]


def trade_off(table: pd.DataFrame, floor: float = 0.1) -> Figure:
    """Return points lost against bytes on disk and against the time of a batch of 64, one row of panels for each network.

    `table`: result rows, with columns dataset, network, those of `columns.KEY`, accuracy, bytes, faster_64 (how many times
    faster than the dense network in torch); of several seeds (column seed) the means are drawn. The staircase is the Pareto
    front of what was not trained after the cut, and its points are named. What loses more than `floor` is counted in the
    corner; losses under 0.1 points are drawn at 0.1. Where tuned_accuracy has a value, a hollow marker stands at it.
    """
    table = table.assign(way=way_of(table), kilobytes=table["bytes"] / 1000, time=1 / table["faster_64"])
    if "seed" in table and table["seed"].nunique() > 1:
        same = ["dataset", "network", "way", *columns.KEY]
        values = [name for name in ("accuracy", "kilobytes", "time", "tuned_accuracy") if name in table]
        table = table.groupby(same, sort=False, dropna=False)[values].mean().reset_index()
    cases = list(table[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    figure, axes = canvas(2, len(cases), width=5.0, height=3.9, sharey="row")
    for place, axis in enumerate(axes):
        (dataset, network), (column, label) = cases[place // 2], list(COSTS.items())[place % 2]
        case = table[(table["dataset"] == dataset) & (table["network"] == network)]
        dense = float(case.loc[case["way"] == "dense", "accuracy"].max())
        _points(axis, case, dense, column, floor)
        axis.set(xlabel=label, title=f"{network} on {dataset}")
    for axis in axes[::2]:
        axis.set_ylabel("points lost, test images")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=7, fontsize="small")
    return figure


def _points(axis: Axes, case: pd.DataFrame, dense: float, column: str, floor: float) -> None:
    """Draw the networks of one panel: a marker a way, hollow where fine-tuned, and the Pareto front with its names."""
    mine = case[case[column].notna()]
    if column == "kilobytes":  # a file is as large in either runtime
        mine = mine[(mine["runtime"] == "torch") | (mine["bits"] == 8)]

    def lost(accuracy: pd.Series) -> pd.Series:
        points = 100 * (dense - accuracy)
        return points.where(points <= 100 * floor).clip(lower=LEAST)

    for way in [w for w in WAYS if w in set(mine["way"])]:
        part, (colour, marker) = mine[mine["way"] == way], WAYS[way]
        style: dict[str, Any] = {
            "linestyle": "none",
            "color": sns.color_palette("colorblind")[colour],
            "marker": marker,
        }
        style |= {"markersize": 10 if way == "dense" else 6}
        axis.plot(part[column], lost(part["accuracy"]), label=way, **style, alpha=0.8)
        if "tuned_accuracy" in part:
            axis.plot(part[column], lost(part["tuned_accuracy"]), markerfacecolor="none", **style)
    front = pareto(mine, column)
    front = front[lost(front["accuracy"]).notna()]
    axis.step(
        front[column], lost(front["accuracy"]), where="post", color="gray", linewidth=1, zorder=0, label="Pareto front"
    )
    below = int((100 * (dense - mine["accuracy"]) > 100 * floor).sum())
    if below:
        axis.annotate(
            f"{below} lose more", (0.98, 0.97), xycoords="axes fraction", ha="right", va="top", fontsize="small"
        )
    reach = mine[column]
    axis.set(xscale="log", yscale="log", ylim=(0.35 * LEAST, 130 * floor), xlim=(0.13 * reach.min(), 1.3 * reach.max()))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_yticks([0.1, 0.3, 1, 3, 10], ["0.1 or less", "0.3", "1", "3", "10"])
    axis.yaxis.set_minor_locator(NullLocator())
    front = front[
        front[column].shift(-1, fill_value=np.inf) > 1.05 * front[column]
    ]  # of points as cheap, the best is named
    _name_front(axis, front[column], lost(front["accuracy"]), [label_of(row) for row in front.to_dict("records")])


def _name_front(axis: Axes, x: pd.Series, y: pd.Series, names: Sequence[str], gap: float = 11) -> None:
    """Write the names of the points of a falling staircase left below them, where no point can be, at least `gap` points apart."""
    axis.figure.canvas.draw()
    above = np.inf
    for place, (left, height) in enumerate(zip(x, y)):
        at = axis.transData.transform((left, height))[1] * 72 / axis.figure.dpi
        where = min(at - 8, above - gap)
        above = where
        line = {"arrowstyle": "-", "color": "gray", "linewidth": 0.6, "shrinkB": 3}
        axis.annotate(
            names[place], (left, height), (-8, where - at), textcoords="offset points", ha="right", va="center",
            fontsize=8, arrowprops=line,
        )  # fmt: skip


def tuned(table: pd.DataFrame) -> Figure:
    """Return accuracy before and after the weights were tuned: a panel a network, refined without labels above, fine-tuned below.

    `table`: result rows; a row with untuned_accuracy was refined, one with tuned_accuracy fine-tuned.
    """
    networks = list(table["network"].unique())
    figure, axes = canvas(max(len(networks), 1), width=5.6, height=4.2)
    for axis, network in zip(axes, networks):
        mine = table[(table["network"] == network) & (table["runtime"] == "torch")]
        refined = mine[mine["tuned"] == REFINED]
        learned = mine[mine["tuned_accuracy"].notna()].sort_values("tuned_accuracy", ascending=False)
        learned = learned.drop_duplicates("chooser")  # of each chooser its best kind of factors
        rows = [(r["untuned_accuracy"], r["accuracy"], label_of(r), 4) for r in refined.to_dict("records")]
        rows += [
            (r["accuracy"], r["tuned_accuracy"], f"{label_of(r)}, fine-tuned", 1) for r in learned.to_dict("records")
        ]
        for place, (before, after, _, colour) in enumerate(rows):
            shade = sns.color_palette("colorblind")[colour]
            axis.annotate(
                "",
                (100 * after, place),
                (100 * before, place),
                arrowprops={"arrowstyle": "-", "color": "silver", "lw": 2},
            )
            axis.plot(100 * before, place, "o", color="dimgray", markersize=5)
            axis.plot(100 * after, place, "D", color=shade, markersize=6)
        axis.axhline(len(refined) - 0.5, color="black", linewidth=0.8)
        axis.set(title=network, xlabel="accuracy, test images (%); grey: before", yticks=range(len(rows)))
        axis.set_yticklabels([label for *_, label, _ in rows], fontsize=8)
        axis.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def speed(table: pd.DataFrame) -> Figure:
    """Return how many times faster than the dense network in torch some networks are, for 1 and for 64 inputs, a panel a network."""
    shown = table[(table["tuned"] == "none") & table["faster_1"].notna()]
    shown = shown[shown["chooser"].isin(["dense", "exact-Fisher", "units", "magnitude"])]
    shown = shown.assign(label=[label_of({**row, "factors": "none"}) for row in shown.to_dict("records")])
    shown = shown.drop_duplicates(["network", "label"], keep="last").query("label != 'dense'")
    networks = list(shown["network"].unique())
    figure, axes = canvas(max(len(networks), 1), width=4.9, height=3.0, sharey=True)
    order = list(shown["label"].unique())
    for axis, network in zip(axes, networks):
        mine = shown[shown["network"] == network]
        places = [order.index(label) for label in mine["label"]]
        axis.axvline(1, color="black", linestyle=":")
        axis.hlines(places, mine["faster_1"], mine["faster_64"], color="silver", linewidth=2)
        for column, words, colour in (("faster_1", "1 input", 3), ("faster_64", "64 inputs", 0)):
            axis.plot(mine[column], places, "o", color=sns.color_palette("colorblind")[colour], label=words)
        axis.set(title=network, xscale="log", xlabel="times faster than dense in torch", ylim=(len(order) - 0.5, -0.5))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
    axes[0].set(yticks=range(len(order)), yticklabels=order)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize="small")
    return figure


def over_seeds(rows: pd.DataFrame, share: float, factors: Sequence[str]) -> Figure:
    """Return points lost on test images over seeds, a panel a network: a dot is a mean, a line runs from the lowest to the highest."""
    kept = lost_by_seed(rows, share, factors)
    networks = list(kept["network"].unique())
    figure, axes = canvas(max(len(networks), 1), width=4.9, height=3.6, sharey=True)
    names = [name for name in NEEDS if name in set(kept["chooser"])]
    for axis, network in zip(axes, networks):
        for kind, shift in zip(factors, np.linspace(-0.24, 0.24, len(factors))):
            mine = kept[(kept["network"] == network) & (kept["factors"] == kind)]
            each = mine.groupby("chooser")["lost"].agg(["mean", "min", "max"]).clip(lower=LEAST)
            places = [names.index(str(name)) + shift for name in each.index]
            axis.hlines(places, each["min"], each["max"], color=colour_of(kind), linewidth=2)
            axis.plot(
                each["mean"], places, "o", color=colour_of(kind), markersize=5, label=f"{NAMES.get(kind, kind)} factors"
            )
        for place in range(0, len(names), 2):
            axis.axhspan(place - 0.5, place + 0.5, color="0.95", zorder=0)
        axis.set(title=network, xscale="log", xlabel="points lost, test images", ylim=(len(names) - 0.5, -0.5))
        axis.set_xticks([0.1, 0.3, 1, 3, 10, 30], ["0.1", "0.3", "1", "3", "10", "30"])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(False, axis="y")
    axes[0].set(yticks=range(len(names)), yticklabels=[SHOWN.get(name, name) for name in names])
    if not networks:
        axes[0].text(0.5, 0.5, "the gallery has no rows of these networks", transform=axes[0].transAxes, ha="center")
    else:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize="small")
    return figure


def lost_by_seed(rows: pd.DataFrame, share: float, factors: Sequence[str]) -> pd.DataFrame:
    """Return the low-rank rows at one share of the MACs with their points lost against the dense network of their seed."""
    dense = rows[(rows["chooser"] == "dense") & (rows["bits"] == 32) & (rows["runtime"] == "torch")]
    dense = dense.drop_duplicates(["network", "seed"])[["network", "seed", "accuracy"]]
    cut = rows[at_share(rows, share) & (rows["runtime"] == "torch") & rows["chooser"].isin(list(NEEDS))]
    cut = cut[cut["factors"].isin([*factors]) & (cut["bits"] == 32)]
    both = cut.merge(dense, on=["network", "seed"], suffixes=("", "_dense"))
    return both.assign(lost=100 * (both["accuracy_dense"] - both["accuracy"]))


def beaten(rows: pd.DataFrame) -> Figure:
    """Return by how many points each control and rival is ahead of ours in the same state of training: a row a network, a panel a size.

    `rows`: those of `controls.published`. Filled markers: McNemar's exact test sees a difference, after Holm's correction.
    """
    cases = [(name, part) for name, part in rows.groupby(["dataset", "network"], sort=False)]
    tables = {name: control.beside_ours(part) for name, part in cases}
    sizes = {name: sorted(table["budget"].unique(), reverse=True) for name, table in tables.items()}
    wide = max(map(len, sizes.values()))
    figure, axes = canvas(wide, len(cases), width=3.5, height=4.3)
    for axis in axes:
        axis.set_axis_off()
    states = dict(zip(control.STATES, ("dimgray", *(sns.color_palette("colorblind")[i] for i in (1, 4)))))
    for row, (name, table) in enumerate(tables.items()):
        methods = list(dict.fromkeys(table["method"]))
        for column, size in enumerate(sizes[name]):
            axis = axes[row * wide + column]
            axis.set_axis_on()
            for state, colour in states.items():
                mine = table[(table["budget"] == size) & (table["state"] == state)]
                for clear, fill in ((True, colour), (False, "white")):
                    some = mine[mine["clear"] == clear]
                    places = [methods.index(method) for method in some["method"]]
                    axis.plot(
                        some["gain"].clip(lower=-10), places, "o", color=colour, markerfacecolor=fill, markersize=6
                    )
            axis.axvline(0, color="black", linestyle=":")
            axis.set(
                title=f"{name[1]}, {size:.0%} kept", xlabel="points ahead of ours", ylim=(len(methods) - 0.5, -0.5)
            )
            axis.set(yticks=range(len(methods)), yticklabels=methods if column == 0 else [], xlim=(-10.5, None))
            axis.margins(x=0.1)
            axis.set_xlim(right=max(axis.get_xlim()[1], 0.6))  # room for what is level with ours
    marks = [
        axes[0].plot([], [], "o", color=colour, label=control.STATES[state])[0] for state, colour in states.items()
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=3, fontsize="small")
    return figure


def foretold(smaller: Mapping[float, Any], answer: Any) -> Figure:
    """Return points lost, as a learner measured them, against the predicted rise of the loss of some compressed networks.

    `smaller`: {share kept: what `lowrank_utils.compress` returned}. An `answer` that is not one number for each of them is
    not drawn, and the figure says so.
    """
    figure, (axis,) = canvas(width=7)
    rises = [-one.found.value for one in smaller.values()]
    axis.set(xscale="log", xlabel="predicted rise of the loss (nats)", ylabel="points lost, validation images")
    axis.set_xlim(0.5 * min(rises), 3 * max(rises))
    found = as_numbers(answer)
    if found is None or found.shape != (len(rises),):
        axis.text(0.5, 0.5, f"no answer of {len(rises)} numbers yet", transform=axis.transAxes, ha="center")
        return figure
    axis.plot(rises, found, "o-", color=colour_of("exact, Fisher"))
    for kept, x, y in zip(smaller, rises, found):
        axis.annotate(f"{kept:.0%} kept", (x, y), (0, 8), textcoords="offset points", fontsize=9, ha="center")
    return figure
