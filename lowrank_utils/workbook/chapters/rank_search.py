"""Chapter 05, rank search: ENC's three searches and the exact one."""

import itertools

from matplotlib.ticker import PercentFormatter

from lowrank_utils.workbook.plots import COLOURS, canvas, colour_of, in_order, line_style
from lowrank_utils.workbook.tables import (
    RUN,
    SIZES,
    at_sizes,
    clearly_ahead,
    dense_accuracy,
    markdown,
    mean_and_spread,
    mean_in_words,
    range_in_words,
    span,
    verdict_of,
)

NOTEBOOK = "05_rank_search"
CAPTIONS = {  # of its tables
    "Rank search: accuracy with 75 / 50 / 35 / 25 % of the MACs": "Means over draws of the calibration and measuring images. *fixed* is one share of the rank for all layers; *exact* has the best product of ENC's curves, proved; *exact, Fisher* the least predicted loss over ranks and schemes, proved.",
    "Rank search: predicted value (log A_p + log A_m) and its proved bound": "What the searches maximise or come near: the logarithm of ENC's predicted share of the accuracy, from energy curves (A_p) and measured curves (A_m); 0 is dense, higher is better. Means over draws; *bound*: no plan has more.",
    "Rank search: accuracy, with spread from the lowest to the highest draw": "With 75 / 50 / 35 / 25 % of the MACs.",
}
FIGURE_CAPTION = "Bands run over draws of calibration and measuring images."

def curves(table, least=1e-4, points=None):
    """Return one panel a layer: each column of damages against the share of the layer's own MACs kept.

    `table` has the columns layer and macs; every other one is a curve, drawn on a logarithmic axis down to `least`.
    `points`: a table of the same kind, of those curves that went through given points, which are marked.
    """
    names, kinds = list(table["layer"].unique()), [c for c in table if c not in ("layer", "macs")]
    across = min(4, len(names))
    figure, axes = canvas(across, -(-len(names) // across), width=3.3, height=2.7, sharey=True)
    styles = [("energy", "-"), ("entropy", "--"), ("fixed", ":")]
    for axis, name in zip(axes, names):
        mine = table[table["layer"] == name].sort_values("macs")
        for kind, (chooser, dash) in zip(kinds, itertools.cycle(styles)):
            shown = mine[kind].where(mine[kind] >= least)
            axis.plot(mine["macs"], shown, dash, color=COLOURS[chooser], linewidth=2, label=kind)
            if points is not None and kind in points:
                given = points[(points["layer"] == name) & (points[kind] >= least)]
                axis.plot(given["macs"], given[kind], "o", color=COLOURS[chooser])
        axis.set(xlim=(0, 1.02), yscale="log")
        axis.set_title(name, fontsize="small")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].set_ylim(bottom=least)  # the panels share it
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for axis in axes[max(len(names) - across, 0) : len(names)]:
        axis.set_xlabel("MACs of the layer kept")
    for axis in axes[:: across]:
        axis.set_ylabel("damage")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(kinds), fontsize="small")
    return figure


def choosers(table):
    """Return accuracy against the share of MACs kept: a row of panels for each network, a panel for each kind of factors, a line a chooser.

    `table`: result rows with columns dataset, network, chooser, factors, target ("macs 0.50"), macs_kept, accuracy; rows of the
    chooser "dense" give the dotted line. Lines are means over seeds and draws, bands run from the lowest to the highest.
    """
    cut = table[table["target"].str.fullmatch(r"macs \d\.\d+")]
    cases = list(cut[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    kinds = list(dict.fromkeys(cut["factors"]))
    figure, axes = canvas(len(kinds), len(cases), width=4.2, height=3.2, sharex=True)  # each its own height: what differs is small
    for axis, ((dataset, network), kind) in zip(axes, [(case, kind) for case in cases for kind in kinds]):
        mine = table[(table["dataset"] == dataset) & (table["network"] == network)]
        axis.axhline(mine.loc[mine["chooser"] == "dense", "accuracy"].mean(), color="black", linestyle=":", label="dense")
        mine = cut[(cut["dataset"] == dataset) & (cut["network"] == network) & (cut["factors"] == kind)]
        for chooser in in_order(mine["chooser"]):
            line = mine[mine["chooser"] == chooser].groupby("target", sort=False)
            kept = line["macs_kept"].mean().sort_values()
            value = line["accuracy"].agg(["mean", "min", "max"]).reindex(kept.index)
            axis.plot(kept, value["mean"], label=chooser, **line_style(chooser, alone=len(kept) == 1))
            axis.fill_between(kept, value["min"], value["max"], color=colour_of(chooser), alpha=0.15)
        axis.set_title(f"{network} on {dataset}, {kind} factors", fontsize="small")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    for axis in axes[-len(kinds) :]:
        axis.set_xlabel("MACs kept (share of dense)")
    for axis in axes[:: len(kinds)]:
        axis.set_ylabel("accuracy")
    axes[0].legend(fontsize="small")
    return figure


def enc_ahead(table):
    mine = table[(table["notebook"] == "05_rank_search") & (table["factors"] == "svd") & table["target"].isin(SIZES)]
    keys = ["dataset", "network", "target"]
    by = mine.pivot_table("accuracy", keys, "chooser")
    names = ["ENC-Map", "ENC-Model", "ENC-Inf"]
    if not {*names, "fixed"} <= set(by):
        return None
    dense = dense_accuracy(table[table["notebook"] == "05_rank_search"], keys[:2])
    whole = dense.reindex(by.index.droplevel("target")).to_numpy()
    by = by[by[[*names, "fixed"]].max(axis=1) > whole - 20]
    gain, settings = by[names].mean(axis=1) - by["fixed"], len(whole)
    ahead = clearly_ahead(gain, by["fixed"])
    said = f"mean of Map, Model, Inf, points ahead: {span(gain)}; ahead in {ahead.sum()} of {len(gain)}"
    return said + f", {settings - len(gain)} left out" * (settings > len(gain)), verdict_of(ahead.mean())


def lossless(table):
    mine = table[(table["notebook"] == "05_rank_search") & (table["target"] == "lossless")]
    if not len(mine):
        return None
    keys = ["dataset", "network", "seed", "draw"]
    dense = dense_accuracy(table[table["notebook"] == "05_rank_search"], keys)
    dense = dense.reindex(mine.set_index(keys).index).to_numpy()
    lost = dense - mine["accuracy"].to_numpy()
    spans = {name: dict.fromkeys(f"{100 * v:.0f}" for v in (part.min(), part.max())) for name, part in mine.groupby("network")["macs_kept"]}
    said = ", ".join(f"{network} {' to '.join(ends)} %" for network, ends in spans.items())
    verdict = verdict_of((~clearly_ahead(lost, dense)).mean())
    return f"MACs kept: {said}; at most {max(lost.max(), 0):.1f} points lost on test", f"{verdict}, by our search"
RERUN = f"for p in rank-search-vgg-small rank-search-resnet20 rank-search-resnet56; do for d in 0 1 2; do {RUN} $p --set draw=$d --seeds 0 --only 05; done; done"


# Kim, Khan & Kyung 2019: accuracy at half of the FLOPs, plain factors, no fine-tuning, another training of the network
_ENC_TABLE = {("cifar10", "resnet56"): {"ENC-Map": "89.8", "ENC-Model": "89.6", "ENC-Inf": "90.2"}}


def tables(table):
    """Return {heading: Markdown table} of the published rows, as the gallery shows them."""
    table = table.assign(accuracy=100 * table["accuracy"])
    choosers = ["fixed", "ENC-Map", "ENC-Model", "ENC-Inf", "exact", "exact, Fisher"]
    equal, spread, left = [], [], []
    for key, part in table[table["chooser"] != "dense"].groupby(["dataset", "network"]):
        dense = table[(table["dataset"] == key[0]) & (table["network"] == key[1]) & (table["chooser"] == "dense")]
        draws = str(part["draw"].nunique())
        for factors in ("svd", "data-aware", "sequential"):
            mine = part[part["factors"] == factors]
            by = {name: mine[mine["chooser"] == name] for name in choosers}
            equal.append(
                [*key, mean_and_spread(dense["accuracy"].drop_duplicates()), factors, draws, *(at_sizes(by[c], mean_in_words) for c in choosers)]
            )
            spread.append([*key, factors, *(at_sizes(by[c], range_in_words) for c in choosers)])
        if key in _ENC_TABLE:
            lines = (_ENC_TABLE[key].get(name) for name in choosers)
            equal.append([*key, "-", "svd, in the paper", "1", *(f"- / {line} / - / -" if line else "-" for line in lines)])
        for size in SIZES:
            mine = part[(part["target"] == size) & (part["factors"] == "svd")]
            worth = {name: mine.loc[mine["chooser"] == name, "predicted"].mean() for name in choosers[1:5]}
            bound = mine.loc[mine["chooser"] == "exact", "bound"].mean()
            if len(mine):
                left.append([*key, f"{100 * float(size.split()[1]):.0f} %", *(f"{v:.3f}" for v in worth.values()), f"{bound:.3f}"])
    where = ["data set", "network"]
    return {
        "Rank search: accuracy with 75 / 50 / 35 / 25 % of the MACs": markdown([*where, "dense", "factors", "draws", *choosers], equal),
        "Rank search: predicted value (log A_p + log A_m) and its proved bound": markdown([*where, "MACs kept", *choosers[1:5], "bound"], left),
        "Rank search: accuracy, with spread from the lowest to the highest draw": markdown([*where, "factors", *choosers], spread),
    }

ONE_EACH = False  # a figure for each data set and network


def usable(table):
    """Return which rows (a boolean Series) `figure` can draw."""
    return table["target"].astype(str).str.match("macs")


figure = choosers



CLAIMS = (  # paper, claim, setting, theirs, measure, rerun
    ("ENC", "ranks of the whole network at once are the better compromise", "against one fixed share, 75 to 25 % of the MACs, plain factors; left out where it and all three of ENC's lose 20 points", "-", enc_ahead, RERUN),
    ("ENC", "lossless compression", "no loss on valid images (the public ResNets were trained on them); exact search on predicted losses, sequential factors", "-", lossless, RERUN),
    ("ENC", "VGG-16 with fewer FLOPs more accurate than the baseline, its ranks found on a CPU", "ImageNet, fine-tuned", "25 % of FLOPs, +0.7 points, 3 minutes", lambda table: None, f"{RUN} rank-search-imagenet --only 05 --set dataset=folder:PATH"),
)  # fmt: skip
