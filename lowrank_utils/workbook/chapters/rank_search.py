"""Chapter 05, rank search: ENC's three searches and the exact one.

What is measured stands in `search_lab`, and ENC's claims in `search_claims`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from lowrank_utils.network import unfold
from lowrank_utils.network.profile import Profile, plan_cost
from lowrank_utils.ranks import allocation, search
from lowrank_utils.ranks.search import SearchResult
from lowrank_utils.workbook.chapters.rank_search_experiment import experiment as experiment
from lowrank_utils.workbook.chapters.rank_search_experiment import layer_values as layer_values
from lowrank_utils.workbook.chapters.rank_search_experiment import searched_rows as searched_rows
from lowrank_utils.workbook.chapters.rank_search_experiment import statistics_seconds
from lowrank_utils.workbook.chapters.ten_minutes import NAMES
from lowrank_utils.workbook.plots import canvas, colour_of, heat_map, in_order, line_style, name_ends
from lowrank_utils.workbook.search_claims import CLAIMS as CLAIMS
from lowrank_utils.workbook.search_claims import PAPER
from lowrank_utils.workbook.search_lab import (
    BLOCK,
    Values,
    kept_by_layer,
    values_where_known,
)
from lowrank_utils.workbook.search_lab import NOTEBOOK as NOTEBOOK
from lowrank_utils.workbook.search_lab import dense_row as dense_row
from lowrank_utils.workbook.search_lab import fine_tuned as fine_tuned
from lowrank_utils.workbook.search_lab import joined as joined
from lowrank_utils.workbook.search_lab import laboratory as laboratory
from lowrank_utils.workbook.search_lab import loss_factors as loss_factors
from lowrank_utils.workbook.search_lab import promises as promises
from lowrank_utils.workbook.search_lab import searches as searches
from lowrank_utils.workbook.search_lab import without_loss as without_loss
from lowrank_utils.workbook.tables import (
    SIZES,
    at_share,
    at_sizes,
    markdown,
    mean_and_spread,
    mean_in_words,
    range_in_words,
)

CAPTIONS = {  # of its tables
    "Rank search: accuracy with 75 / 50 / 35 / 25 % of the MACs": "Means over draws of the calibration and measuring images. *fixed* is one share of the rank for all layers; *exact* has the best product of ENC's curves, proved; *exact, Fisher* the least predicted loss over ranks and schemes, proved.",
    "Rank search: predicted value (log A_p + log A_m) and its proved bound": "The logarithm of ENC's predicted share of the accuracy, from energy curves (A_p) and measured curves (A_m); 0 is dense, higher is better. *exact* maximises it, the others come near. ENC-Model maximises another score, so it is judged by that one, in notebook 05, and not here. Means over draws; *bound*: no plan has more.",
    "Rank search: accuracy, with spread from the lowest to the highest draw": "With 75 / 50 / 35 / 25 % of the MACs.",
}
UNMET = {  # rules of fair comparison that tables and claims do not keep, and why; see `audit`
    "*": {
        3: "Random ranks, some fine-tuned networks (none of ENC's), networks trained from scratch and recalibrated batch norms stand under *Controls and rivals*, for vgg_small, and, but for training from scratch, which takes about eight hours, for ResNet-20 at a quarter and ResNet-56 at half of the MACs. The preset of VGG-16 fine-tunes, and needs ImageNet.",
        4: "Older rows of plain factors get their test images from their plans where that was measured again; other rows are paired by draws alone, and a public ResNet is one training.",
        5: "Corrupted images, memory and processor time stand under *Controls and rivals*, for vgg_small and for one draw of ResNet-20 at a quarter and of ResNet-56 at half of the MACs.",
        6: "Three draws. Five are not run yet.",
    },
}
FIGURE_CAPTION = "Bands run over draws of calibration and measuring images. Losses under 0.1 points are drawn at 0.1."
SHOWN = {"exact-Fisher": "exact, Fisher"}  # choosers under another name in figures and tables


VALUED = ("ENC-Map", "ENC-Inf", "exact")  # choosers whose plans are judged by the product of both curves
LEAST = 0.1  # points lost where the log scale of the figures ends

# ---- figures --------------------------------------------------------------------------------------------------------


def work(read: Profile, most: int = 16) -> Figure:
    """Return what each layer holds, as bars: its share of the network's MACs, and of its parameters; `most` layers at most."""
    layers = list(read)[:: -(-len(read) // most)]
    figure, axes = canvas(2, width=4.6, height=0.8 + 0.3 * len(layers), sharey=True)
    for axis, what, words in zip(axes, ("macs", "parameters"), ("MACs", "parameters")):
        total = plan_cost(read, {}, what)
        for place, layer in enumerate(layers):
            share = getattr(layer, what) / total
            axis.barh(place, share, color="silver" if layer.reason else colour_of("exact, Fisher"), height=0.7)
            axis.text(share + 0.008, place, f"{share:.1%}", va="center", fontsize=9)
        axis.set(xlabel=f"share of the {words}", xlim=(0, 1.15 * axis.get_xlim()[1]), yticks=range(len(layers)))
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.grid(False, axis="y")
    axes[0].set_yticklabels([layer.name + ", stays dense" * bool(layer.reason) for layer in layers])
    axes[0].invert_yaxis()
    return figure


def knapsack(values: Sequence[np.ndarray], costs: Sequence[np.ndarray], budget: float) -> Figure:
    """Return two panels: value against cost for the options of each layer, and the Lagrangian bound against the price.

    `values` and `costs` of two layers, one array a layer, the cheapest option first. The dotted line is the best plan within `budget`.
    """
    figure, (left, right) = canvas(2, width=5.0)
    for name, value, cost, colour in zip(
        ("first layer", "second layer"), values, costs, sns.color_palette("colorblind")
    ):
        left.plot(cost, value, "o-", color=colour)
        left.annotate(name, (cost[-1], value[-1]), (8, 3), textcoords="offset points", color=colour)
        for rank, (x, y) in enumerate(zip(cost, value), 1):
            left.annotate(f"rank {rank}", (x, y), (7, -10), textcoords="offset points", fontsize=8, color=colour)
    ends = max(float(cost.max()) for cost in costs)
    left.set(
        xlabel="cost", ylabel="value", xlim=(0, 1.5 * ends), ylim=(-0.5, 1.15 * max(float(v.max()) for v in values))
    )
    prices = np.linspace(0, 3, 301)
    bounds = [sum(float((v - t * c).max()) for v, c in zip(values, costs)) + t * budget for t in prices]
    best = allocation.allocate(list(values), list(costs), budget).value
    lowest = int(np.argmin(bounds))
    right.plot(prices, bounds, color="black")
    right.axhline(best, color="black", linestyle=":")
    right.annotate("the best plan", (prices[-1], best), (0, 4), textcoords="offset points", ha="right")
    right.annotate(
        "no plan is above this line", (prices[-1], bounds[-1]), (-8, 6), textcoords="offset points", ha="right"
    )
    right.annotate("", (prices[lowest], bounds[lowest]), (prices[lowest], best), arrowprops={"arrowstyle": "<->"})
    right.annotate(
        "gap", (prices[lowest], (bounds[lowest] + best) / 2), (6, 0), textcoords="offset points", va="center"
    )
    right.set(
        xlabel="price of a unit of cost", ylabel=f"bound for a budget of {budget:g}", ylim=(best - 1.5, max(bounds) + 1)
    )
    return figure


def one_layer(values: Values, name: str, curve: str = "accuracy") -> Figure:
    """Return what each rank of one layer is worth: ENC's two curves, with the measured ranks as dots, and the predicted loss."""
    own = next(own for own in values.options if own.name == name)
    ranks = [unfold.parse_entry(entry)[1] for entry in own.entries[:-1] if entry is not None]
    tried = {rank for each in search.measured_ranks(own).values() for rank in each}
    predicted = values_where_known(values.options, values.mixed, values.damage)[name][:-1]
    figure, (left, right) = canvas(2, width=4.8)
    energy, measured = (np.asarray(curves[name][:-1], float) for curves in (values.energy, values.measured))
    left.plot(ranks, energy, color=colour_of("energy"))
    left.plot(ranks, measured, color=colour_of("component magnitude"))
    at = [i for i, rank in enumerate(ranks) if rank in tried]
    left.plot(np.array(ranks)[at], measured[at], "o", color=colour_of("component magnitude"))
    middle = len(ranks) // 2
    left.annotate(
        "energy, $y_p$",
        (ranks[middle], energy[middle]),
        (8, -10),
        textcoords="offset points",
        color=colour_of("energy"),
    )
    where = {"textcoords": "offset points", "color": colour_of("component magnitude"), "ha": "center"}
    left.annotate(f"measured {curve}, $y_m$", (ranks[middle], measured[middle]), (0, 8), **where)
    left.set(title=f"{name}: share that is left", xlabel="rank", ylim=(0, 1.15 * max(1.0, float(measured.max()))))
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.plot(ranks, -predicted, color=colour_of("exact, Fisher"))
    right.set(title=f"{name}: predicted loss", xlabel="rank", ylabel="nats an image", yscale="log")
    return figure


def damage_maps(table: pd.DataFrame, curve: str = "accuracy", least: float = 1e-4) -> Figure:
    """Return four heat maps of what cutting one layer alone does: three forecasts, and the divergence that was measured.

    `table` is that of `search_lab.damage`. All maps share their colours, on a log scale that begins at `least`.
    """
    titles = {
        "energy": r"energy curve, $-\log\, y_p$",
        "measured curve": rf"measured {curve}, $-\log\, y_m$",
        "predicted loss": "predicted loss (nats)",
        "divergence": "measured divergence (nats)",
    }
    layers = table["layer"].nunique()
    figure, axes = canvas(2, 2, width=4.8, height=1.0 + 0.3 * layers, sharex=True, sharey=True)
    for axis, (column, title) in zip(axes, titles.items()):
        cells = table.pivot(index="layer", columns="level", values=column).reindex(table["layer"].unique())
        norm = LogNorm(least, max(1.0, float(table[[*titles]].replace(np.inf, 0).max().max())))
        texts = cells.map(lambda v: "0" if v < least else f"{v:.1g}" if v < 0.1 else f"{v:.1f}")
        heat_map(axis, cells.clip(lower=least), norm, texts)
        axis.set_title(title)
    for axis in axes[2:]:
        axis.set_xticks(range(cells.shape[1]), [f"{100 * level:.0f} %" for level in cells.columns])
        axis.set_xlabel("MACs of the layer kept")
    return figure


def where_it_goes(read: Profile, found: Mapping[tuple, SearchResult]) -> Figure:
    """Return which share of each layer's own MACs every plan keeps, as a heat map for each size.

    `found`: {(share, chooser): SearchResult} of `search_lab.searches`. Under the name of a layer stands its part of the network's MACs.
    """
    shares = list(dict.fromkeys(share for share, _ in found))
    total = plan_cost(read, {})
    layers = [own for own in read if not own.reason]
    layers = layers[:: -(-len(layers) // 10)]
    figure, axes = canvas(1, len(shares), width=max(7.0, 1.0 * len(layers) + 2.5), height=2.9)
    for axis, share in zip(axes, shares):
        plans = {SHOWN.get(chooser, chooser): one.plan for (asked, chooser), one in found.items() if asked == share}
        cells = pd.DataFrame({name: kept_by_layer(read, plan) for name, plan in plans.items()}).T
        cells = cells[[layer.name for layer in layers]]
        heat_map(axis, cells, LogNorm(0.05, 1), cells.map(lambda v: f"{v:.0%}"), cmap="YlGnBu")
        axis.set_title(f"{share:.0%} of the network's MACs kept")
        axis.set_xticks(range(len(layers)), [f"{own.name}\n({own.macs / total:.0%})" for own in layers])
    return figure


def _gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the points that each chooser gains over one fixed share: one row a chooser, network, factors, size, seed and draw."""
    keys = ["dataset", "network", "factors", "budget", "seed", "draw"]
    cut = rows[(rows["budget_kind"] == "macs") & (rows["tuned"] == "none")]
    fixed = cut[cut["chooser"] == "fixed"][[*keys, "accuracy"]]
    both = cut[cut["chooser"] != "fixed"].merge(fixed, on=keys, suffixes=("", "_fixed"))
    return both.assign(gain=100 * (both["accuracy"] - both["accuracy_fixed"]))


def gained(rows: pd.DataFrame, factors: Sequence[str] = ("svd", "sequential")) -> Figure:
    """Return the points of test accuracy that each chooser gains over one fixed share of the rank at equal MACs.

    A row of panels for each network, one panel a kind of `factors`; a dot a size. Where there are several draws the dot is
    their mean, and a line runs from the lowest to the highest.
    """
    gains = _gains(rows)
    gains = gains[gains["factors"].isin(factors)]
    cases = list(gains[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    kinds = [kind for kind in factors if kind in set(gains["factors"])]
    names = in_order(gains["chooser"].replace(SHOWN))
    sizes = sorted(gains["budget"].unique(), reverse=True)
    tints = dict(zip(sizes, sns.color_palette("viridis_r", len(sizes) + 1)[1:]))
    figure, axes = canvas(max(len(kinds), 1), max(len(cases), 1), width=5.0, height=2.9, sharey=True)
    for axis, ((dataset, network), kind) in zip(axes, itertools.product(cases, kinds)):
        mine = gains[(gains["dataset"] == dataset) & (gains["network"] == network) & (gains["factors"] == kind)]
        axis.axvline(0, color="black", linestyle=":", label="one fixed share")
        for size, shift in zip(sizes, np.linspace(-0.24, 0.24, len(sizes))):
            each = mine[mine["budget"] == size].groupby("chooser")["gain"].agg(["mean", "min", "max"])
            places = [names.index(SHOWN.get(str(chooser), str(chooser))) + shift for chooser in each.index]
            axis.hlines(places, each["min"], each["max"], color=tints[size], linewidth=2)
            axis.plot(each["mean"], places, "o", color=tints[size], label=f"{size:.0%} of the MACs")
        axis.set(xlabel="points gained over one fixed share", yticks=range(len(names)), yticklabels=names)
        axis.set_title(f"{network} on {dataset}, {NAMES.get(kind, kind)} factors", fontsize="medium")
        for place in range(0, len(names), 2):
            axis.axhspan(place - 0.5, place + 0.5, color="0.95", zorder=0)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.grid(False, axis="y")
        axis.margins(x=0.08)
    if len(cases):
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize="small")
    return figure


def choosers(table: pd.DataFrame) -> Figure:
    """Return points lost against the share of MACs kept: a row of panels for each network, a panel for each kind of factors, a line a chooser.

    `table`: result rows with columns dataset, network, chooser, factors, budget_kind ("macs"), budget, tuned, macs_kept, accuracy; the
    accuracy of the dense network is that of its rows. Lines are means over seeds and draws, bands run from the lowest to the
    highest. Losses under 0.1 points are drawn at 0.1.
    """
    table = table.assign(chooser=table["chooser"].replace(SHOWN))
    cut = table[(table["budget_kind"] == "macs") & (table["tuned"] == "none")]
    cases = list(cut[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    kinds = list(dict.fromkeys(cut["factors"]))
    figure, axes = canvas(len(kinds), len(cases), width=4.4, height=3.4, sharex=True, sharey=True)
    for axis, ((dataset, network), kind) in zip(axes, itertools.product(cases, kinds)):
        here = (table["dataset"] == dataset) & (table["network"] == network)
        dense = table.loc[here & (table["chooser"] == "dense"), "accuracy"].mean()
        mine = cut[(cut["dataset"] == dataset) & (cut["network"] == network) & (cut["factors"] == kind)]
        _lines(axis, mine.assign(lost=(100 * (dense - mine["accuracy"])).clip(lower=LEAST)))
        axis.set_title(f"{network} on {dataset}, {NAMES.get(kind, kind)} factors", fontsize="small")
    for axis in axes[-len(kinds) :]:
        axis.set_xlabel("MACs kept (share of dense)")
    for axis in axes[:: len(kinds)]:
        axis.set_ylabel("points lost, test images")
    return figure


def _lines(axis: Axes, rows: pd.DataFrame) -> None:
    """Draw points lost against MACs kept, a line a chooser, named at its end; small networks are on the right."""
    ends = {}
    for chooser in in_order(rows["chooser"]):
        line = rows[rows["chooser"] == chooser].groupby("budget", sort=False)
        kept = line["macs_kept"].mean().sort_values(ascending=False)
        lost = line["lost"].agg(["mean", "min", "max"]).reindex(kept.index)
        axis.plot(kept, lost["mean"], label=chooser, **line_style(chooser, alone=len(kept) == 1))
        axis.fill_between(kept, lost["min"], lost["max"], color=colour_of(chooser), alpha=0.15)
        ends[chooser] = (float(kept.iloc[-1]), float(lost["mean"].iloc[-1]))
    axis.set(yscale="log", ylim=(0.8 * LEAST, 110), xlim=(0.8, 0.02))
    axis.xaxis.set_major_locator(FixedLocator([0.75, 0.5, 0.35, 0.25]))
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.yaxis.set_major_locator(FixedLocator([0.1, 1, 10, 100]))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value > LEAST else f"{value:g} or less")
    axis.yaxis.set_minor_locator(NullLocator())
    name_ends(axis, ends, gap=9)


def promised(table: pd.DataFrame, curve: str = "accuracy") -> Figure:
    """Return what single layers promise of a whole plan beside what was measured of it; `table` of `promised_and_measured`."""
    figure, (axis,) = canvas(width=7.5, height=0.9 + 0.3 * len(table))
    places = range(len(table))
    axis.hlines(places, table["measured"], table["A_m"], color="silver", linewidth=2, zorder=1)
    for column, words, colour in (
        ("measured", "measured", "black"),
        ("A_m", "promised", colour_of("component magnitude")),
    ):
        axis.plot(table[column], places, "o", color=colour)
        axis.annotate(
            words,
            (table[column].iloc[-1], len(table) - 1),
            (0, -15),
            textcoords="offset points",
            color=colour,
            ha="center",
        )
    names = [f"{SHOWN.get(name, name)}, {kept:.0%} kept" for name, kept in zip(table["chooser"], table["kept"])]
    axis.set(yticks=places, yticklabels=names, xlabel=f"{curve} (share of the dense network's)")
    axis.set_ylim(len(table), -0.6)
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def ranks_in_blocks(plans: Mapping[str, Any], block: int = BLOCK) -> Figure:
    """Return the rank of each layer in some plans, {words: plan}, with lines at the multiples of `block`.

    A plan that is none, as when an exercise is not answered yet, is left out, and the figure says so.
    """
    known = {words: plan for words, plan in plans.items() if isinstance(plan, Mapping)}
    layers = list(dict.fromkeys(name for plan in known.values() for name in plan))
    figure, (axis,) = canvas(width=8)
    highest = 0
    for shift, (words, plan) in zip((-0.15, 0.15), known.items()):
        ranks = {layers.index(name): unfold.parse_entry(entry)[1] for name, entry in plan.items()}
        colour = sns.color_palette("colorblind")[0 if shift < 0 else 1]
        axis.bar([place + shift for place in ranks], list(ranks.values()), 0.28, color=colour, label=words)
        for place, rank in ranks.items():
            axis.text(place + shift, rank + 0.3, str(rank), ha="center", fontsize=9)
        highest = max([highest, *ranks.values()])
    axis.set(xticks=range(len(layers)), xticklabels=layers, ylabel="rank", ylim=(0, 1.25 * highest + 1))
    axis.yaxis.set_major_locator(FixedLocator(range(0, highest + 2 * block, block * max(1, highest // (6 * block)))))
    for words in plans.keys() - known.keys():
        axis.text(0.98, 0.9, f"{words}: no answer yet", transform=axis.transAxes, ha="right")
    axis.legend(loc="upper left", ncols=2, fontsize="small")
    return figure


# ---- what the text says ---------------------------------------------------------------------------------------------


def about_work(read: Profile) -> str:
    """Return in sentences which layer does most of the work, and which holds most parameters for its work."""
    macs, parameters = (
        {own.name: getattr(own, what) / plan_cost(read, {}, what) for own in read} for what in ("macs", "parameters")
    )
    most = max(macs, key=macs.__getitem__)
    cut = [own.name for own in read if not own.reason]
    heavy = max(cut, key=lambda name: parameters[name] / macs[name])
    return (
        f"`{most}` does {macs[most]:.0%} of the work. `{heavy}` does {macs[heavy]:.1%} of the work, but it holds {parameters[heavy]:.0%} of the "
        "parameters. So a budget of MACs and a budget of parameters are two different things."
    )


def about_damage(table: pd.DataFrame, curve: str = "accuracy") -> str:
    """Return in sentences how well each forecast orders the cuts, and how far the predicted loss is from the divergence."""
    names = {
        "energy": "the energy curve",
        "measured curve": f"the measured {curve}",
        "predicted loss": "the predicted loss",
    }
    each = {
        name: [part[name].corr(part["divergence"], "spearman") for _, part in table.groupby("level")] for name in names
    }
    told = ", ".join(
        f"{np.nanmean(values):.2f} for {names[name]}" for name, values in each.items() if not np.isnan(values).all()
    )
    ratio = (table["divergence"] / table["predicted loss"]).replace([np.inf, -np.inf], np.nan).dropna()
    low, middle, high = ratio.quantile([0.1, 0.5, 0.9])
    none = int((table["measured curve"] <= 0).sum())
    return (
        f"How well does each forecast order the layers, when all are cut to the same share? Spearman's rank correlation with the measured divergence, a mean over "
        f"the {table['level'].nunique()} shares, is {told}. "
        f"In {none} of the {len(table)} cuts the measured {curve} did not fall at all, and such a curve says nothing there. "
        f"The measured divergence is typically {middle:.1f} times the predicted loss ({low:.1f} to {high:.1f} times in the middle 80 % of the cuts)."
    )


def about_box(told: pd.DataFrame, found: Mapping[tuple, SearchResult]) -> str:
    """Return in sentences how many plans the box of ENC-Model holds, and its own score beside that of the exact plan."""
    lines = []
    for share, part in told.groupby("kept", sort=False):
        score_of = part.set_index("chooser")["A_c"]
        box, exact = score_of["ENC-Model"], score_of["exact"]
        count = found[share, "ENC-Model"].candidates
        than = "higher" if exact > box + 5e-4 else "lower" if exact < box - 5e-4 else "equal"
        lines.append(
            f"- {float(str(share)):.0%} of the MACs: ENC-Model compares {count:,} plan{'s' * (count != 1)}. Its best $A_c$ is {box:.3f}. The exact plan has an $A_c$ "
            f"of {exact:.3f}, which is {than}."
        )
    return "\n".join(lines)


def about_gains(rows: pd.DataFrame) -> str:
    """Return in sentences what the best chooser gains over one fixed share, for each network, kind of factors and size."""
    gains, lines = _gains(rows), []
    for (network, kind), part in gains.groupby(["network", "factors"], sort=False):
        each = part.groupby(["budget", "chooser"])["gain"].mean()
        right = part.groupby("budget")[["accuracy", "accuracy_fixed"]].max().max(axis=1)
        told = []
        for size in sorted(part["budget"].unique(), reverse=True):
            best = str(each[size].idxmax())
            broken = f", but no network is right about more than {right[size]:.0%}" * bool(right[size] < 0.5)
            told.append(f"{each[size].max():+.1f} points at {size:.0%} ({SHOWN.get(best, best)}{broken})")
        lines.append(f"- `{network}`, {NAMES.get(str(kind), str(kind))} factors: {', '.join(told)}.")
    return (
        "What the best of the searches gains over one fixed share, at each share of the MACs (a minus: one fixed share is ahead of all of them):\n\n"
        + "\n".join(lines)
    )


def about_batch_norms(rows: pd.DataFrame) -> str:
    """Return in sentences what ENC's searches reach on ResNet-56, as cut and recalibrated, beside the numbers of the paper."""
    theirs = PAPER["cifar10", "resnet56"]
    resnet = rows[rows["network"] == "resnet56"]
    mine = resnet[resnet["chooser"].isin([*theirs])]
    lines = [
        f"- {row['chooser']}: {100 * row['accuracy']:.1f} % as cut, {100 * row['recalibrated']:.1f} % recalibrated; {theirs[row['chooser']]} % in the paper."
        for row in mine.to_dict("records")
    ]
    lines += [
        f"- one fixed share: {100 * row['accuracy']:.1f} % as cut, {100 * row['recalibrated']:.1f} % recalibrated."
        for row in resnet[resnet["chooser"] == "fixed"].to_dict("records")
    ]
    return (
        "ResNet-56 with half of the MACs, plain factors, no fine-tuning, one draw of the images (the figure of other networks has means of three):\n\n"
        + "\n".join(lines)
    )


def about_lossless(row: Mapping[str, Any], dense: Mapping[str, Any]) -> str:
    """Return in sentences the network that loses nothing on fresh validation images, and what it does on test images."""
    return (
        f"The smallest network without loss keeps {row['macs_kept']:.1%} of the MACs. {row['evaluations']:.0f} networks were tried. On the "
        f"test images it has {row['accuracy']:.2%}, and the dense network {dense['accuracy']:.2%}."
    )


def about_times(times: pd.DataFrame, values: Values) -> str:
    """Return in sentences how long the searches take, and how long it takes to find out what a rank is worth."""
    per = {row["chooser"]: row["seconds"] for row in times.to_dict("records")}
    read = {name: statistics_seconds(values, name) for name in per}
    return (
        f"ENC-Map takes {1000 * per['ENC-Map']:.1f} ms, ENC-Model {1000 * per['ENC-Model']:.1f} ms and the exact search {1000 * per['exact']:.1f} ms, each a "
        f"median of several runs. ENC-Inf measures {int(times['networks'].max())} networks and takes {per['ENC-Inf']:.1f} s. What takes time is the values. The "
        f"spectra took {read['ENC-Map']:.1f} s, the measured curves {values.seconds['measured']:.0f} s for {values.evaluations} networks, and the predicted losses "
        f"{read['exact-Fisher']:.0f} s. So all in all ENC-Map takes {read['ENC-Map'] + per['ENC-Map']:.1f} s and ENC-Model {read['ENC-Model'] + per['ENC-Model']:.0f} s."
    )


def about_blocks(plain: Mapping[str, Any], blocks: Mapping[str, Any], block: int = BLOCK) -> str:
    """Return in a sentence how many ranks of two plans are multiples of `block`: of a budget of MACs, and of one of blocks."""
    told = []
    for words, plan in (("the budget of MACs", plain), ("the budget of blocks", blocks)):
        ranks = [unfold.parse_entry(entry)[1] for entry in plan.values()]
        told.append(f"{sum(rank % block == 0 for rank in ranks)} of {len(ranks)} ranks under {words}")
    return f"Multiples of {block}: {' and '.join(told)}."


def spent_exactly(values: Sequence[np.ndarray], costs: Sequence[np.ndarray]) -> set[int]:
    """Return the costs of the plans that layers choose on their own at some price; what a learner is asked for.

    >>> sorted(spent_exactly([np.array([0.0, 5.0])], [np.array([1, 4])]))
    [1, 4]
    """
    prices = np.linspace(1e-6, 10, 20_001)
    return {int(sum(c[int(np.argmax(v - price * c))] for v, c in zip(values, costs))) for price in prices}


# ---- tables and figure of the gallery -------------------------------------------------------------------------------


def tables(table: pd.DataFrame) -> dict[str, str]:
    """Return {heading: Markdown table} of the published rows, as the gallery shows them."""
    table = table.assign(accuracy=100 * table["accuracy"], chooser=table["chooser"].replace(SHOWN))
    choosers = ["fixed", "ENC-Map", "ENC-Model", "ENC-Inf", "exact", "exact, Fisher"]
    equal, spread, left = [], [], []
    for key, part in table[table["chooser"] != "dense"].groupby(["dataset", "network"]):
        dense = table[(table["dataset"] == key[0]) & (table["network"] == key[1]) & (table["chooser"] == "dense")]
        draws = str(part["draw"].nunique())
        for factors in ("svd", "data-aware", "sequential"):
            mine = part[part["factors"] == factors]
            by = {name: mine[mine["chooser"] == name] for name in choosers}
            equal.append(
                [
                    *key,
                    mean_and_spread(dense["accuracy"].drop_duplicates()),
                    factors,
                    draws,
                    *(at_sizes(by[c], mean_in_words) for c in choosers),
                ]
            )
            spread.append([*key, factors, *(at_sizes(by[c], range_in_words) for c in choosers)])
        if key in PAPER:
            lines = (PAPER[key].get(name) for name in choosers)
            equal.append(
                [*key, "-", "svd, in the paper", "1", *(f"- / {line} / - / -" if line else "-" for line in lines)]
            )
        for size in SIZES:
            mine = part[at_share(part, size) & (part["factors"] == "svd")]
            worth = {name: mine.loc[mine["chooser"] == name, "predicted"].mean() for name in VALUED}
            bound = mine.loc[mine["chooser"] == "exact", "bound"].mean()
            if len(mine):
                left.append([*key, f"{100 * size:.0f} %", *(f"{v:.3f}" for v in worth.values()), f"{bound:.3f}"])
    where = ["data set", "network"]
    return {
        "Rank search: accuracy with 75 / 50 / 35 / 25 % of the MACs": markdown(
            [*where, "dense", "factors", "draws", *choosers], equal
        ),
        "Rank search: predicted value (log A_p + log A_m) and its proved bound": markdown(
            [*where, "MACs kept", *VALUED, "bound"], left
        ),
        "Rank search: accuracy, with spread from the lowest to the highest draw": markdown(
            [*where, "factors", *choosers], spread
        ),
    }


ONE_EACH = False  # a figure for each data set and network


def usable(table: pd.DataFrame) -> pd.Series:
    """Return which rows (a boolean Series) `figure` can draw."""
    return table["budget_kind"] == "macs"


figure = choosers
