"""Chapter 06, side by side: every chooser and every kind of factors in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter
from pandas.io.formats.style import Styler
from torch import nn

from lowrank_utils.lab import columns
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network.profile import LayerProfile
from lowrank_utils.workbook.benchmark import (
    Bench,
    convex_rows,
    fine_tune,
    low_rank_rows,
    onnx_rows,
    other_rows,
    searched,
    subject,
)
from lowrank_utils.workbook.chapters.rank_search import check_asked
from lowrank_utils.workbook.plots import BESIDE, COLOURS, canvas
from lowrank_utils.workbook.tables import markdown, mean_and_spread

NOTEBOOK = "06_side_by_side"
CAPTIONS = {  # of its tables
    "Side by side: choosers times factors, accuracy with 50 / 25 / 15 % of the MACs": "Means over three seeds, on ResNet-20 of one. *-*: not asked for.",
    "Side by side: every other way": "Beside dense and exact search on predicted losses; means over seeds. Percent of the dense network's parameters and MACs; times faster than the dense network in torch, timed beside it, with one thread; *fine-tuned* is the accuracy after one pass over 2 000 images, the same for all. *Size asked for*: a share of the MACs, *kept* of the parameters, an error (epsilon) or none (*own size*). *Refitted*: what reads the removed units, by least squares; *refit*: a cut layer of DDLR or Net-Trim. Zeros are counted with 16 bits an index, and run like the dense network. *-*: not fine-tuned.",
}
FIGURE_CAPTION = "What loses more than ten points is counted in the corner."


# ---- the experiment --------------------------------------------------------------------------------------------------


def experiment(
    images: Dataset,
    networks: dict[str, nn.Module],
    *,
    dataset: str,
    seed: int = 0,
    shares: Sequence[float] = (0.25,),
    factorisers: Sequence[str] = ("svd", "data-aware", "sequential"),
    evaluations: int = 10,
    finetuned: Sequence[str] = (),
    finetuning: dict | None = None,
    convex: bool = False,
    max_seconds: float = 60.0,
    threads: int = 1,
    **options,
) -> pd.DataFrame:
    """Return all rows of this chapter: every chooser in every kind of factors, what is not low rank, and files in onnxruntime.

    Parameters
    ----------
    images, networks : a data set and {name: network trained on it}.
    shares : shares of the MACs kept, each in (0, 1]; the last one is run in onnxruntime.
    factorisers : kinds of factors; the last one writes EVBMF's ranks and the file for onnxruntime.
    evaluations : plans that ENC-Inf measures at each share.
    finetuned : choosers whose networks are fine-tuned; `finetuning` : the options of `fine_tune`.
    convex, max_seconds : whether DDLR and Net-Trim are solved, and the time that each layer has at most.
    threads : of the CPU, while latency is measured.
    options : those of `subject`: floor, curve, measure_images, calibration_images.

    Raises ValueError for no network, shares and a curve that are none, and a size that no plan reaches.
    """
    check_asked(shares, options.get("curve", "accuracy"))
    if not networks:
        raise ValueError("networks=[] names no network")
    bench = Bench(images, min(threads, torch.get_num_threads()), {"dataset": dataset, "seed": seed})
    for name, model in networks.items():
        one = subject(images, name, model, **options)
        low_rank_rows(bench, one, {share: searched(one, share, evaluations) for share in shares}, factorisers)
        other_rows(bench, one, shares, factorisers[-1])
        if convex:
            convex_rows(bench, one, max_seconds)
        with TemporaryDirectory() as folder:
            onnx_rows(bench, one, shares[-1], factorisers[-1], Path(folder))
    fine_tune(bench, finetuned, **finetuning or {})
    return bench.table()


# ---- names in words, figures, tables ---------------------------------------------------------------------------------

SHOWN = {"exact-Fisher": "exact, Fisher", "units then ranks": "units, then ranks"}
SHOWN |= {"DDLR": "DDLR, cut, refit", "Net-Trim": "Net-Trim, cut, refit"}
WRITTEN = {"units": "refitted", "magnitude": "zeros", "DDLR": "refit", "Net-Trim": "refit", "dense": "dense"}
SIZE = {"macs": "macs {:.2f}", "kept": "kept {:.2f}", "epsilon": "epsilon {:g}", "own": "own size", "dense": "dense"}


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with what a reader is shown: method, written as (factors, or what else was done), size asked for, way."""
    written = table["chooser"].map(WRITTEN).fillna(table["factors"]).astype(str)
    written += table["runtime"].eq("onnxruntime").map({True: " in onnxruntime", False: ""})
    written += table["bits"].eq(8).map({True: ", 8 bit", False: ""})
    sizes = [
        SIZE.get(kind, f"{kind} {{}}").format(budget) for kind, budget in zip(table["budget_kind"], table["budget"])
    ]
    method = table["chooser"].replace(SHOWN).astype(str)
    return table.assign(**{"method": method, "written as": written, "size": sizes, "way": way_of(table)})


def way_of(table: pd.DataFrame) -> pd.Series:
    """Return for each row how the network is made smaller, as the figure tells them apart: a key of `WAYS`."""
    way = table["stored_as"].astype(object).replace({"both": "units", "sparse": "zeros"})
    return way.where(table["bits"] != 8, "8 bit")


WAYS = {"dense": (7, "*"), "low rank": (0, "o"), "units": (1, "s"), "zeros": (2, "X"), "8 bit": (3, "D")}


def trade_off(table: pd.DataFrame, floor: float = 0.1) -> Figure:
    """Return accuracy against bytes on disk and against the time of a batch of 64, one row of panels for each network.

    `table`: result rows, with columns dataset, network, those of `columns.KEY`, accuracy, bytes, faster_64 (how many times
    faster than the dense network in torch); of several seeds (column
    seed) the means are drawn. The steps join what nothing smaller (or faster) beats; what loses more than `floor` is below
    the panel and is counted in its corner. Where the column tuned_accuracy has a value, a hollow marker stands at it; what
    runs in onnxruntime has a black ring.
    """
    table = table.assign(way=way_of(table))
    if "seed" in table and table["seed"].nunique() > 1:
        same = ["dataset", "network", "way", *columns.KEY]
        values = [name for name in ("accuracy", "bytes", "faster_64", "tuned_accuracy") if name in table]
        table = table.groupby(same, sort=False, dropna=False)[values].mean().reset_index()
    cases = list(table[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    table = table.assign(kilobytes=table["bytes"] / 1000, time=1 / table["faster_64"])
    costs = {"kilobytes": "kB on disk", "time": "time for 64 inputs (dense network in torch: 1)"}
    figure, axes = canvas(2, len(cases), width=4.8, height=3.4, sharey="row")
    colours = sns.color_palette("colorblind")
    for place, axis in enumerate(axes):
        (dataset, network), (column, label) = cases[place // 2], list(costs.items())[place % 2]
        case = table[(table["dataset"] == dataset) & (table["network"] == network)]
        mine = case[case[column].notna()]
        dense = mine.loc[mine["way"] == "dense", "accuracy"].max()
        axis.axhline(dense, color="black", linestyle=":", linewidth=1)
        for way in [w for w in WAYS if w in set(mine["way"])]:
            part, (colour, marker) = mine[mine["way"] == way], WAYS[way]
            style = {
                "linestyle": "none",
                "color": colours[colour],
                "marker": marker,
                "markersize": 10 if way == "dense" else 6,
            }
            axis.plot(part[column], part["accuracy"], label=way, **style, alpha=0.8)
            if "tuned_accuracy" in part:
                axis.plot(part[column], part["tuned_accuracy"], markerfacecolor="none", **style)
        part = mine[mine["runtime"] == "onnxruntime"]
        style = {"linestyle": "none", "marker": "o", "color": "black", "markersize": 12, "markerfacecolor": "none"}
        if len(part):
            axis.plot(part[column], part["accuracy"], label="in onnxruntime", **style)
        front = pd.DataFrame({"cost": mine[column], "best": mine["accuracy"]})
        front = front.sort_values(["cost", "best"], ascending=[True, False])
        front = front[front["best"] > front["best"].cummax().shift(fill_value=-np.inf)]
        axis.step(front["cost"], front["best"], where="post", color="gray", linewidth=1, zorder=0)
        low = dense - floor
        below = int((mine["accuracy"] < low).sum())
        shown = case[[name for name in ("accuracy", "tuned_accuracy") if name in case]].stack()
        bottom = max(low, shown[shown >= low].min() - 0.1 * floor)
        if below:
            axis.annotate(f"{below} lower down", (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize="small")
        axis.set(
            xscale="log",
            xlabel=label,
            title=f"{network} on {dataset}",
            ylim=(bottom, min(1.0, mine["accuracy"].max() + 0.1 * floor)),
        )
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    for axis in axes[::2]:
        axis.set_ylabel("accuracy")
    title = "hollow: fine-tuned" if "tuned_accuracy" in table else None
    axes[1].legend(**BESIDE, title=title)
    return figure


def explorer(
    card: LayerProfile, rank: int | None, shares: pd.DataFrame, points: Mapping[str, tuple[float, float]]
) -> Figure:
    """Return three panels: one layer's spectrum with what a rank keeps, the work that each layer keeps, accuracy against size.

    Parameters: `card`, a `profile.LayerProfile` with singular values; `rank` that stays of it (None: dense); `shares`, DataFrame of layers x
    choosers with the share of each layer's MACs that stays; `points`, {label: (share of MACs, accuracy)}, "dense" among them.
    """
    figure, (left, middle, right) = canvas(3, width=4.2)
    values = card.singular_values
    index, stays = np.arange(1, len(values) + 1), len(values) if rank is None else rank
    left.bar(index[:stays], values[:stays], width=1.0, color=COLOURS["energy"], label="stays")
    left.bar(index[stays:], values[stays:], width=1.0, color="lightgray", label="goes")
    left.set(
        xlabel="component",
        ylabel="singular value",
        title=f"{card.name}: {'dense' if rank is None else f'rank {rank}'} of {len(values)}",
    )
    left.legend(fontsize="small")
    colours = dict(zip(shares.columns, sns.color_palette("colorblind")))
    shares.plot.bar(ax=middle, color=[*colours.values()], width=0.8, legend=len(shares.columns) > 1)
    middle.set(
        xlabel="", ylabel="MACs of the layer kept", title="which layers pay", ylim=(0, 1.3), yticks=np.linspace(0, 1, 6)
    )
    for label, (kept, accuracy) in points.items():
        style = {"color": colours.get(label, "black"), "marker": "*" if label == "dense" else "o"}
        right.plot(kept, accuracy, linestyle="none", markersize=9, label=label, **style)
    reached = [accuracy for _, accuracy in points.values()]
    right.set(
        xlabel="MACs kept (share of dense)",
        ylabel="accuracy",
        title="what it costs",
        xlim=(0, 1.05),
        ylim=(max(0, min(reached) - 0.05), max(reached) + 0.02),
    )
    for axis in (right.xaxis, middle.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.legend(fontsize="small")
    return figure


def ledger(table: pd.DataFrame) -> Styler:
    """Return the rows of notebook 06 as a table for readers: by network, size and accuracy, percent, kilobytes, milliseconds.

    A pandas Styler without its index; empty where nothing was measured.
    """
    from pandas.io.formats.style import Styler

    percent = {"parameters_kept": "parameters %", "macs_kept": "MACs %", "accuracy": "accuracy %", "f1": "F1 %"}
    percent |= {"tuned_accuracy": "tuned %", "tuned_f1": "tuned F1 %"}
    words = {"bytes": "kB", "latency_ms_1": "ms, 1"}
    words |= {
        "latency_ms_64": "ms, 64",
        "faster_1": "faster, 1",
        "faster_64": "faster, 64",
        "seconds_to_find": "seconds",
        "evaluations": "tried",
        "source": "from",
    }
    order = "needs parameters_kept macs_kept bytes latency_ms_1 faster_1 latency_ms_64 faster_64"
    order += " accuracy f1 tuned_accuracy tuned_f1 seconds_to_find evaluations source"
    shown = named(table).assign(**{name: 100 * table[name] for name in percent}, bytes=table["bytes"] / 1000)
    shown = shown.sort_values(["network", "size", "accuracy"], ascending=[True, True, False])
    shown = shown[["network", "size", "method", "written as", *order.split()]].rename(columns=percent | words)
    shown = Styler(shown, cell_ids=False).hide()  # an id for each cell would double the file
    digits: dict[Any, str | Callable[[object], str] | None] = {
        "kB": "{:.0f}",
        "ms, 1": "{:.2f}",
        "ms, 64": "{:.2f}",
        "faster, 1": "{:.1f}",
        "faster, 64": "{:.1f}",
        "seconds": "{:.2f}",
        "tried": "{:.0f}",
    }
    digits |= dict.fromkeys(percent.values(), "{:.1f}")
    return shown.format(digits, na_rep="").set_table_attributes('style="font-size: 75%"').set_sticky(axis="columns")


def tables(table: pd.DataFrame) -> dict[str, str]:
    """Return {heading: Markdown table} of the published rows, as the gallery shows them."""
    table = named(table).assign(accuracy=100 * table["accuracy"])
    crossed, ways = [], []
    shares = sorted(table.loc[table["budget_kind"] == "macs", "budget"].unique(), reverse=True)
    kinds = [k for k in ("svd", "data-aware", "sequential", "relu-aware") if k in set(table["written as"])]
    keys = ["dataset", "network"]
    for key, part in table.groupby(keys):
        sized = part[part["written as"].isin(kinds) & (part["budget_kind"] == "macs")]
        for chooser in sized["method"].unique():
            mine = sized[sized["method"] == chooser]
            cells = [
                [mine.loc[(mine["written as"] == k) & (mine["budget"] == t), "accuracy"].mean() for t in shares]
                for k in kinds
            ]
            crossed.append(
                [*key, chooser, *(" / ".join("-" if v != v else f"{v:.1f}" for v in cell) for cell in cells)]
            )
        shown = part[~part["written as"].isin(kinds) | part["method"].isin(["evbmf", "exact, Fisher"])]
        method = shown.groupby(["method", "written as", "size"], sort=False)
        mean = method[["parameters_kept", "macs_kept", "bytes", "faster_64", "accuracy"]].mean()
        for name in mean.sort_values("accuracy", ascending=False).index:
            row, rows = mean.loc[name], method.get_group(name)
            tuned = 100 * rows["tuned_accuracy"].dropna()
            ways.append(
                [
                    *key,
                    *name,
                    f"{100 * row['parameters_kept']:.0f}",
                    f"{100 * row['macs_kept']:.0f}",
                    f"{row['bytes'] / 1000:.0f}",
                ]
                + [
                    f"{row['faster_64']:.1f}",
                    mean_and_spread(rows["accuracy"]),
                    mean_and_spread(100 * rows["f1"]),
                    mean_and_spread(tuned) if len(tuned) else "-",
                    str(rows["seed"].nunique()),
                ]
            )
    sizes = " / ".join(f"{100 * t:.0f}" for t in shares)
    where = ["data set", "network"]
    header = [
        *where,
        "method",
        "written as",
        "size asked for",
        "parameters %",
        "MACs %",
        "kB",
        "times faster, 64 inputs",
        "accuracy",
        "macro F1",
        "fine-tuned",
        "seeds",
    ]
    return {
        f"Side by side: choosers times factors, accuracy with {sizes} % of the MACs": markdown(
            [*where, "ranks", *kinds], crossed
        ),
        "Side by side: every other way": markdown(header, ways),
    }


ONE_EACH = False  # a figure for each data set and network


def usable(table: pd.DataFrame) -> pd.Series:
    """Return which rows (a boolean Series) `figure` can draw."""
    return table["bytes"].notna() & table["stored_as"].notna()


figure = trade_off


def pictures(table: pd.DataFrame) -> dict[str, Figure]:
    """Return {name: figure} of what the README shows."""
    shown = table[usable(table) | (table["chooser"] == "dense")]
    return {"side-by-side": trade_off(shown)} if len(shown) else {}
