"""Chapter 02b, convolutions: three unfoldings and five kinds of factors."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from torch import nn

from lowrank_utils.factors import replace
from lowrank_utils.lab import score, training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network.profile import Plan, Profile
from lowrank_utils.workbook.chapters.arsvd_lesson import calibration_of
from lowrank_utils.workbook.chapters.convolutions_experiment import CHOOSERS as CHOOSERS
from lowrank_utils.workbook.chapters.convolutions_experiment import KINDS as KINDS
from lowrank_utils.workbook.chapters.convolutions_experiment import NOTEBOOK as NOTEBOOK
from lowrank_utils.workbook.chapters.convolutions_experiment import experiment as experiment
from lowrank_utils.workbook.chapters.convolutions_experiment import prepared as prepared
from lowrank_utils.workbook.chapters.kernels import NAMES
from lowrank_utils.workbook.laboratory import Laboratory
from lowrank_utils.workbook.plots import MARKERS, canvas, colour_of, name_ends
from lowrank_utils.workbook.tables import at_sizes, markdown, mean_and_spread, mean_in_words

CAPTIONS = {  # of its tables
    "Convolutions: accuracy with 75 / 50 / 35 / 25 % of the MACs": "Spatial scheme, first and last layer dense, one run each. The public ResNets were trained on all training images, calibration images among them.",
}
UNMET = {  # rules of fair comparison that tables do not keep, and why; see `audit`
    "*": {
        2: "Here ranks by energy are a way to compare factors at one size. Energy at its own threshold is judged in notebook 02.",
        3: "Batch norms are recalibrated after plain factors: in this notebook, and for the ResNets on the gallery's page. Random ranks, some fine-tuned networks and networks trained from scratch stand there under *Controls and rivals*, for vgg_small, and, but for training from scratch, which takes about eight hours, for ResNet-20 at a quarter and ResNet-56 at half of the MACs.",
        4: "One run of each network: the ResNets are public weights, of which there is one training.",
        5: "Corrupted images, memory and processor time stand under *Controls and rivals*, for vgg_small and for one draw of ResNet-20 at a quarter and of ResNet-56 at half of the MACs.",
        6: "One draw; notebook 05 has three draws of the same networks.",
    },
}
FIGURE_CAPTION = "First and last layer dense. Losses under 0.1 points are drawn at 0.1."
RANKS = {"energy": "ranks by energy", "fixed": "one fixed share"}  # in figures and sentences
LEAST = 0.1  # points lost where the log scale ends


# ---- figures and sentences of the rows -------------------------------------------------------------------------------


def _lost(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of compressed networks with a column lost: points of accuracy under the dense network of their run."""
    keys = ["dataset", "network", "seed"]
    dense = rows[rows["chooser"] == "dense"].groupby(keys)["accuracy"].mean().rename("dense")
    cut = rows[(rows["chooser"] != "dense") & rows["chooser"].isin(CHOOSERS)].join(dense, on=keys)
    return cut.assign(lost=100 * (cut["dense"] - cut["accuracy"]))


def _lost_axis(axis: Axes, most: float) -> None:
    axis.set(yscale="log", ylim=(0.8 * LEAST, max(1.6 * most, 10)))
    axis.yaxis.set_major_locator(FixedLocator([0.1, 0.3, 1, 3, 10, 30, 100]))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value > LEAST else f"{value:g} or less")
    axis.yaxis.set_minor_locator(NullLocator())


def by_work(rows: pd.DataFrame) -> Figure:
    """Return points of accuracy lost against MACs kept: a column a network, a row a way to choose ranks, a line a kind of factors.

    `rows`: result rows with columns dataset, network, seed, chooser, factors, budget, macs_kept, accuracy, the dense network among
    them. Of several seeds the mean is drawn. The vertical axis is logarithmic; losses under 0.1 points are drawn at 0.1.
    """
    lost = _lost(rows)
    cases = list(rows[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    choosers = [chooser for chooser in RANKS if chooser in set(lost["chooser"])] or ["energy"]
    one = len(cases) == 1
    shape = (len(choosers), 1) if one else (len(cases), len(choosers))
    figure, axes = canvas(*shape, width=10 / max(2, shape[0]), height=3.6, sharey=True)
    panels = [(case, chooser) for chooser in choosers for case in cases]
    for axis, ((dataset, network), chooser) in zip(axes, panels):
        mine = lost[(lost["dataset"] == dataset) & (lost["network"] == network) & (lost["chooser"] == chooser)]
        _factor_lines(axis, mine, lost["lost"].max(), room=0.36 if one else 0.7)
        axis.set(title=f"{network}, {RANKS[chooser]}", xlabel="MACs kept (share of dense)")
    for axis in axes[:: shape[0]]:
        axis.set_ylabel("points lost, test images")
    return figure


def _factor_lines(axis: Axes, lost: pd.DataFrame, most: float, room: float) -> None:
    """Draw points lost against MACs kept, a line a kind of factors with its name at its left end.

    `most`: the largest loss of all panels; `room` for the names, as a share of the range of the lines.
    """
    ends = {}
    for kind in [kind for kind in KINDS if kind in set(lost["factors"])]:
        by = lost[lost["factors"] == kind].groupby("budget")
        kept, points = by["macs_kept"].mean(), by["lost"].mean().clip(lower=LEAST)
        style = {"color": colour_of(kind), "marker": MARKERS.get(kind, "o"), "markersize": 5}
        axis.plot(kept, points, label=NAMES[kind], **style)
        ends[kind] = (float(kept.iloc[0]), float(points.iloc[0]))
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _lost_axis(axis, most if most > 0 else 10)
    if not ends:
        axis.text(0.5, 0.5, "no network of this kind in these rows", transform=axis.transAxes, ha="center")
        return
    left = min(x for x, _ in ends.values())
    axis.set_xlim(left - room * (0.8 - left), 0.8)
    axis.xaxis.set_major_locator(FixedLocator(sorted({*lost["budget"].round(2)})))
    name_ends(axis, ends, names=NAMES, side="left")


def about_factors(rows: pd.DataFrame) -> str:
    """Return in sentences what the kinds of factors lose at each size, and whether factors or ranks decide more; rows of one network."""
    lost = _lost(rows)
    told = []
    for share, part in lost.groupby("budget", sort=False):
        by = part.pivot_table("lost", "factors", "chooser", sort=False)
        for chooser in [chooser for chooser in RANKS if chooser in by]:
            each = ", ".join(f"{NAMES[str(kind)]} {value:.1f}" for kind, value in by[chooser].items())
            told.append(f"- {share:.0%} of the MACs, {RANKS[chooser]}: {each}")
    by = lost.pivot_table("lost", ["budget", "factors"], "chooser")
    ranks = (by["energy"] - by["fixed"]).abs() if set(CHOOSERS) <= set(by) else pd.Series([0.0])
    spread = lost.groupby(["budget", "chooser"])["lost"].agg(np.ptp)
    which = "factors" if spread.max() > ranks.max() else "ranks"
    ahead = int((by["energy"] < by["fixed"]).sum()) if set(CHOOSERS) <= set(by) else 0
    return (
        "Points lost on test images:\n\n" + "\n".join(told) + "\n\n"
        f"With the same ranks, the choice of factors changes the loss by up to {spread.max():.1f} points. With the same factors, the choice of ranks "
        f"changes it by up to {ranks.max():.1f}. So here the {which} matter more. Ranks by energy lose less than one fixed share in {ahead} of {len(by)} cases."
    )  # fmt: skip


def about_published(rows: pd.DataFrame, share: float = 0.5) -> str:
    """Return in sentences, a line a network, what the published rows say at one size with ranks by energy, and of both ways to choose ranks."""
    lost = _lost(rows)
    told = []
    for key, part in lost.groupby(["dataset", "network"], sort=False):
        at = part[(part["budget"] == share) & (part["chooser"] == "energy")].set_index("factors")["lost"]
        if not len(at):
            continue
        each = ", ".join(f"{NAMES[kind]} {at[kind]:.1f}" for kind in KINDS if kind in at)
        told.append(f"- {key[1]} on {key[0]}: {each}")
    by = lost.pivot_table("lost", ["network", "budget", "factors"], "chooser").dropna()
    ahead = {
        name: (int((part["energy"] < part["fixed"]).sum()), len(part))
        for name, part in by.groupby("network", sort=False)
    }
    counts = ", ".join(f"on {name} in {n} of {count} cases" for name, (n, count) in ahead.items())
    shares = [n / count for n, count in ahead.values()]
    verdict = "So neither rule is the better one on every network." if min(shares) < 0.5 < max(shares) else ""
    return (
        f"With {share:.0%} of the MACs and ranks by energy, these points are lost on test images:\n\n" + "\n".join(told) + "\n\n"
        f"A case is a size and a kind of factors. Ranks by energy lose less than one fixed share {counts}. {verdict}"
    )  # fmt: skip


# ---- is it faster? ---------------------------------------------------------------------------------------------------


def times_faster(read: Profile, plans: Iterable[Plan], repeats: int = 15) -> pd.DataFrame:
    """Return how many times faster the networks of some plans are than the dense one, on paper and measured, one row a plan.

    Columns: MACs kept (a share); on paper, its inverse; batch 1 and batch 64, the median of `repeats` latency ratios for so many
    inputs, on one thread. The factors are plain ones, as the numbers in the layers do not change the time.
    """
    shape = read.input_shape or ()
    rows, dense = [], score.macs(read.model, shape)
    for plan in plans:
        net = replace.apply_plan(read, plan)
        macs = score.macs(net, shape)
        row = {"MACs kept": macs / dense, "on paper": dense / macs}
        for batch in (1, 64):
            row[f"batch {batch}"] = score.latency_ratio(net, read.model, shape, batch, repeats=repeats)[0]
        rows.append(row)
    return pd.DataFrame(rows)


def speed(table: pd.DataFrame) -> Figure:
    """Return bars of how many times faster each network is, on paper and measured; `table` is that of `times_faster`."""
    figure, axes = canvas(len(table), width=10 / max(2, len(table)), height=2.3, sharex=True, sharey=True)
    columns = ["on paper", "batch 1", "batch 64"]
    for axis, row in zip(axes, table.to_dict("records")):
        for place, name in enumerate(columns):
            axis.barh(place, row[name], color="silver" if name == "on paper" else "dimgray", height=0.7)
            axis.text(row[name], place, f" {row[name]:.1f}", va="center", fontsize=9)
        axis.axvline(1, color="black", linestyle=":")
        axis.set(title=f"{row['MACs kept']:.0%} of the MACs", xlabel="times faster than dense")
        axis.set(yticks=range(3), yticklabels=columns, xlim=(0, 1.15 * table[columns].max().max()))
        axis.grid(False, axis="y")
    axes[0].invert_yaxis()
    return figure


def about_speed(table: pd.DataFrame) -> str:
    """Return in sentences what of the saving on paper arrives; `table` is that of `times_faster`."""
    row = table.to_dict("records")[-1]
    less = sum(min(r["batch 1"], r["batch 64"]) < r["on paper"] for r in table.to_dict("records"))
    return (
        f"With {row['MACs kept']:.0%} of the MACs, the network should be {row['on paper']:.1f} times faster. It is {row['batch 1']:.1f} times faster for "
        f"one image and {row['batch 64']:.1f} times for 64. At {less} of {len(table)} sizes the network gained less speed than the MACs promise."
    )


# ---- where it fails --------------------------------------------------------------------------------------------------


def twice_the_stride(pair: nn.Sequential) -> nn.Sequential:
    """Return a spatial pair that takes both strides in its first layer, and none in its second: not the same convolution."""
    wrong = copy.deepcopy(pair)
    first: Any = wrong.get_submodule("first")
    second: Any = wrong.get_submodule("second")
    first.stride, second.stride = (first.stride[0], second.stride[1]), (1, 1)
    return wrong


def as_in_training(images: Dataset, checkpoint: str) -> Callable | None:
    """Return how the training images of a network were augmented: the public ResNets' were shifted and mirrored, ours were not."""
    return training.augmentation(images) if checkpoint == "public" else None


def recalibrated(lab: Laboratory, rows: pd.DataFrame, augment: Callable | None = None) -> pd.DataFrame:
    """Return the accuracy of plain factors as cut and with batch norms recalibrated on the calibration images, one row a plan.

    Parameters
    ----------
    lab : of `prepared`.
    rows : of `experiment`, of the same network; other kinds of factors that they hold are columns of the answer.
    augment : a function of (images, generator), as `training.recalibrate` takes it.

    Columns: budget, chooser, svd (as cut), again (recalibrated), and other kinds of factors; all on test images. The first row is
    the dense network. Empty where the network has no batch norms, or `rows` no plain factors.
    """
    by = rows.dropna(subset=["budget"]).pivot_table("accuracy", ["budget", "chooser", "plan"], "factors", sort=False)
    if "svd" not in by or not any(isinstance(m, training.BATCH_NORMS) for m in lab.model.modules()):
        return pd.DataFrame(columns=["budget", "chooser", "svd", "again"])
    test, images = lab.images.tensors("test"), calibration_of(lab.profile)

    def again(net: nn.Module) -> float:
        return training.evaluate(training.recalibrate(net, images, augment), *test).accuracy

    dense = float(rows.loc[rows["chooser"] == "dense", "accuracy"].iloc[0])
    found: list[dict[str, Any]] = [{"budget": 1.0, "chooser": "dense", "svd": dense, "again": again(lab.model)}]
    for (budget, chooser, plan), accuracies in by.iterrows():  # pyright: ignore[reportGeneralTypeIssues]
        net = replace.apply_plan(lab.profile, json.loads(plan))
        found.append({"budget": budget, "chooser": chooser, **accuracies, "again": again(net)})
    return pd.DataFrame(found)


def norms(table: pd.DataFrame) -> Figure:
    """Return points lost by plain factors as cut and recalibrated, beside other factors, a line a plan; `table` of `recalibrated`.

    Losses under 0.1 points are drawn at 0.1. Where the table is empty, the figure says so.
    """
    cut = table.iloc[1:]
    figure, (axis,) = canvas(width=10, height=0.9 + 0.45 * max(3, len(cut)))
    axis.set(xlabel="points lost, test images")
    if not len(cut):
        words = "no batch norm, or no plain factors: nothing to recalibrate"
        axis.text(0.5, 0.5, words, transform=axis.transAxes, ha="center")
        axis.set(yticks=[], xticks=[])
        return figure
    lost = {name: (100 * (table["svd"].iloc[0] - cut[name])).clip(lower=LEAST) for name in cut.columns[2:]}
    places, marks = np.arange(len(cut)), {"svd": ("as cut", "white"), "again": ("recalibrated", "dimgray")}
    axis.hlines(places, lost["svd"], lost["again"], color="0.75", linewidth=2, zorder=1)
    for name, (label, face) in marks.items():
        axis.plot(lost[name], places, "o", color="dimgray", markerfacecolor=face, markersize=8, label=f"plain, {label}")
    for kind in [kind for kind in KINDS[1:] if kind in lost]:
        axis.plot(lost[kind], places, MARKERS[kind], color=colour_of(kind), markersize=6, label=NAMES[kind])
    labels = [f"{row['budget']:.0%} of MACs, {RANKS[row['chooser']]}" for row in cut.to_dict("records")]
    axis.set(yticks=places, yticklabels=labels, ylim=(len(cut) - 0.5, -0.5), xscale="log")
    axis.xaxis.set_major_locator(FixedLocator([0.1, 0.3, 1, 3, 10, 30, 100]))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value > LEAST else f"{value:g} or less")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(False, axis="y")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize="small")
    return figure


def about_norms(table: pd.DataFrame) -> str:
    """Return in sentences how much of the loss of plain factors recalibrated batch norms explain; `table` of `recalibrated`."""
    if not len(table):
        return "This network has no batch norms, or the run no plain factors. So nothing was recalibrated."
    dense, cut = table.iloc[0], table.iloc[1:]
    lost, left = 100 * (dense["svd"] - cut["svd"]), 100 * (dense["svd"] - cut["again"])
    told = [
        f"- {row['budget']:.0%} of the MACs, {RANKS[row['chooser']]}: {a:.1f} points lost as cut, {b:.1f} when recalibrated"
        for row, a, b in zip(cut.to_dict("records"), lost, left)
    ]
    worst = int(np.argmax(lost))
    share = 1 - left.iloc[worst] / lost.iloc[worst] if lost.iloc[worst] > 0 else 0.0
    others = [kind for kind in KINDS[1:] if kind in cut]
    ahead = {NAMES[kind]: int((cut[kind] > cut["again"]).sum()) for kind in others}
    still = "; ".join(
        f"{name} factors are ahead of recalibrated plain ones in {n} of {len(cut)} cases" for name, n in ahead.items()
    )
    return (
        "Plain factors:\n\n" + "\n".join(told) + "\n\n"
        f"Where plain factors lose most, the old statistics of the batch norms cause {share:.0%} of the loss. {still[:1].upper() + still[1:]}{'. ' if still else ''}"
        f"Recalibrated, the dense network itself changes by {100 * (dense['again'] - dense['svd']):+.1f} points."
    )  # fmt: skip


def about_gallery_norms(rows: pd.DataFrame) -> str:
    """Return in sentences what recalibration gained on the published plans of the residual networks; rows of `batch_norm.published`."""
    if not len(rows):
        return "The gallery holds no rows of recalibrated networks."
    told = []
    for network, part in rows.groupby("network", sort=False):
        lost, left = (100 * (part["dense"] - part[name]) for name in ("accuracy", "recalibrated"))
        told.append(
            f"On {network}, plain factors lose {lost.min():.1f} to {lost.max():.1f} points as cut, and {left.min():.1f} to {left.max():.1f} when recalibrated."
        )
    return (
        "The gallery has the same comparison for public residual networks on CIFAR-10, with half of the MACs and five ways to choose ranks. "
        + " ".join(told)
    )


def few_images(lab: Laboratory, plan: Plan, counts: Sequence[int]) -> pd.DataFrame:
    """Return the accuracy on validation images of sequential factors from the first so many calibration images, and of plain ones.

    One row a count: columns images (0 for plain factors, which see none) and accuracy.
    """
    rows = [{"images": 0, "accuracy": lab.valid(replace.apply_plan(lab.profile, plan))}]
    for count in counts:
        few = lab.profile.but(calibration=calibration_of(lab.profile)[:count])
        rows.append({"images": count, "accuracy": lab.valid(replace.apply_plan(few, plan, factors="sequential"))})
    return pd.DataFrame(rows)


def image_curve(table: pd.DataFrame, dense: float) -> Figure:
    """Return accuracy against the number of calibration images; `table` of `few_images`, `dense` the dense network's accuracy."""
    figure, (axis,) = canvas(width=7, height=3)
    plain, swept = table[table["images"] == 0]["accuracy"].iloc[0], table[table["images"] > 0]
    last = int(swept["images"].max())
    axis.set(xscale="log", xlabel="calibration images", ylabel="accuracy, validation images", ylim=(0, 1.05))
    axis.set_xlim(0.7 * swept["images"].min(), 2.2 * last)
    for level, words, colour, shift in ((dense, "dense network", "black", 4), (plain, "plain", colour_of("svd"), -13)):
        axis.axhline(level, color=colour, linestyle=":")
        start = 0.75 * swept["images"].min()
        axis.annotate(words, (start, level), (0, shift), textcoords="offset points", color=colour, fontsize=9)
    axis.plot(swept["images"], swept["accuracy"], "D-", markersize=5, color=colour_of("sequential"), label="sequential")
    axis.xaxis.set_major_locator(FixedLocator(list(swept["images"])))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    name_ends(axis, {"sequential": (last, float(swept["accuracy"].iloc[-1]))})
    return figure


def about_images(table: pd.DataFrame) -> str:
    """Return in sentences what few calibration images do to sequential factors; `table` of `few_images`."""
    plain, swept = table["accuracy"].iloc[0], table[table["images"] > 0].to_dict("records")
    told = ", ".join(f"{row['accuracy']:.1%} with {row['images']}" for row in swept)
    behind = [str(row["images"]) for row in swept if row["accuracy"] < plain]
    end = (
        f"With {', '.join(behind)} images they are behind plain factors."
        if behind
        else "None of them is behind plain factors."
    )
    return f"With plain factors the network is right on {plain:.1%} of the validation images. With sequential factors it is right on {told} calibration images. {end}"


# ---- tables and pictures of the gallery ------------------------------------------------------------------------------


def tables(table: pd.DataFrame) -> dict[str, str]:
    """Return {heading: Markdown table} of the published rows, as the gallery shows them."""
    table = table.assign(accuracy=100 * table["accuracy"])
    kinds, rows = list(KINDS), []
    for key, part in table.groupby(["dataset", "network"]):
        dense = mean_and_spread(part.loc[part["chooser"] == "dense", "accuracy"])
        for chooser, ranks in {"fixed": "one fixed share", "energy": "energy"}.items():
            mine = part[part["chooser"] == chooser]
            rows.append(
                [*key, dense, ranks, *(at_sizes(mine[mine["factors"] == kind], mean_in_words) for kind in kinds)]
            )
    header = ["data set", "network", "dense", "ranks", *kinds]
    return {"Convolutions: accuracy with 75 / 50 / 35 / 25 % of the MACs": markdown(header, rows)}


ONE_EACH = False  # a figure for each data set and network


def usable(table: pd.DataFrame) -> pd.Series:
    """Return which rows (a boolean Series) `figure` can draw."""
    return table["budget_kind"] == "macs"


figure = by_work
