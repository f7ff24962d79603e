"""Chapter 02, ARSVD: adaptive ranks by energy or spectral entropy against one fixed share."""

import numpy as np

from lowrank_utils.workbook.plots import COLOURS, canvas, frontier
from lowrank_utils.workbook.tables import (
    RUN,
    clearly_ahead,
    dense_accuracy,
    in_points,
    markdown,
    mean_and_spread,
    span,
    verdict_of,
)

NOTEBOOK = "02_arsvd"
CAPTIONS = {  # of its tables
    "Parameters kept at no more than one point lost": "Percent. The threshold was chosen on valid images so that at most one point is lost there; in brackets, what then happened on test images (points). EVBMF has no threshold: its size is its own.",
    "Accuracy at equal size, energy / entropy / fixed": "Sizes agree within half a percent of the network (digits: one component). In brackets, energy minus fixed: the lowest and the highest seed, in points.",
    "Accuracy at equal size, with spread": "The table above, mean ± standard deviation over seeds.",
}
FIGURE_CAPTION = "Plain and data-aware factors; EVBMF at its own size. Vertical axes are not cut off."

def spectra(before, after):
    """Return singular values against their index, one panel a layer, before (dashed) and after training.

    `before` and `after`: ``{layer name: singular values}`` with the same names.
    """
    figure, axes = canvas(len(after), width=3.6)
    for axis, name in zip(axes, after):
        index = np.arange(1, len(after[name]) + 1)
        axis.plot(index, before[name], "--", color="gray", label="random start")
        axis.plot(index, after[name], color=COLOURS["energy"], label="trained")
        axis.set(xlabel="component", title=f"{name}: {len(index)} components")
    axes[0].set_ylabel("singular value")
    axes[0].legend()
    return figure


def rank_curves(table):
    """Return rank per layer against threshold: columns layer, rule, threshold, rank, full_rank, break_even.

    The dotted line is the break-even rank, above which the dense layer is cheaper.
    """
    layers = table["layer"].unique()
    figure, axes = canvas(len(layers), width=3.6)
    for axis, name in zip(axes, layers):
        mine = table[table["layer"] == name]
        for rule, line in mine.groupby("rule", sort=False):
            axis.plot(line["threshold"], line["rank"], color=COLOURS[rule], label=rule)
        axis.axhline(mine["break_even"].iloc[0], color="black", linestyle=":", label="break-even")
        axis.set(xlabel="threshold (share kept)", title=f"{name}: full rank {mine['full_rank'].iloc[0]}")
    axes[0].set_ylabel("rank")
    axes[0].legend()
    return figure


def rules(table, title="test images"):
    """Return accuracy against parameters kept for the rank rules of notebook 02, a panel for each scope and kind of factors.

    `table`: result rows as for `frontier` with column scope; rows of the chooser "dense" give the dotted line.
    """
    titles = {"every layer": "every layer cut", "hidden layers": "classifier left dense"}
    drawn = table[table["target"].str.match("kept|own") & table["scope"].isin(titles)]
    baseline = table.loc[table["chooser"] == "dense", "accuracy"].mean()
    several = drawn["factors"].nunique() > 1
    panel = drawn["scope"].map(titles) + (", " + drawn["factors"] if several else "")
    drawn = drawn.assign(panel=panel).sort_values(["factors", "scope"], ascending=[False, True], kind="stable")
    return frontier(drawn, "accuracy", baseline, title, panels="panel", columns=drawn["scope"].nunique())


def adaptive_ahead(scope):
    def measure(table):
        import pandas as pd

        mine = table[(table["notebook"] == "02_arsvd") & (table["factors"] == "svd") & (table["scope"] == scope)]
        mine = mine[mine["dataset"].isin(["mnist", "cifar10", "cifar100"]) & (mine["target"] == "kept 0.20")]
        by = mine.pivot_table("accuracy", ["dataset", "seed"], "chooser")
        rules = [rule for rule in ("energy", "entropy") if {rule, "fixed"} <= set(by)]
        if not rules:
            return None
        gains = {rule: by[rule] - by["fixed"] for rule in rules}
        said = ", ".join(f"{rule} {span(gain)}" for rule, gain in gains.items())
        ahead = pd.concat([clearly_ahead(gain, by["fixed"]) for gain in gains.values()])
        return f"points ahead of the fixed rank: {said}", verdict_of(ahead.mean())

    return measure


def small_without_loss(scope):
    def measure(table):
        ours = table[(table["notebook"] == "02_arsvd") & table["dataset"].isin(["mnist", "cifar10", "cifar100"])]
        cut = ours[(ours["chooser"] == "energy") & (ours["target"] == "drop 0.010")]
        cut = cut[(cut["factors"] == "svd") & (cut["scope"] == scope)]
        if not len(cut):
            return None
        keys = ["dataset", "network", "seed"]
        dense = dense_accuracy(ours, keys)
        lost = dense.reindex(cut.set_index(keys).index).to_numpy() - cut["accuracy"].to_numpy()
        kept = 100 * cut["parameters_kept"]
        said = f"{kept.min():.0f} to {kept.max():.0f} % of the parameters stay, {lost.min():.1f} to {lost.max():.1f} points lost on test"
        return said, verdict_of(((kept < 50) & (lost < 2)).mean())

    return measure


MLPS = "MLPs on MNIST, CIFAR-10, CIFAR-100, three seeds"
RERUN = f"for p in mnist cifar10 cifar100; do {RUN} $p --seeds 0,1,2 --only 02; done"


def tables(table):
    """Return {heading: Markdown table} of the published rows: sizes at one point lost, accuracy at equal size."""
    table = in_points(table)
    by = ["dataset", "network", "scope", "factors"]
    rules = ("energy", "entropy", "fixed")
    drop = table[table["target"] == "drop 0.010"]
    second = []
    for key, part in drop.groupby(by):
        cells = [
            f"{mean_and_spread(mine['parameters_kept'])} ({-mine['lost'].mean():+.1f})"
            for mine in (part[part["chooser"] == rule] for rule in rules)
        ]
        own = table[(table[by] == list(key)).all(axis=1) & (table["chooser"] == "evbmf")]
        second.append([*key, *cells, f"{mean_and_spread(own['parameters_kept'])} ({-own['lost'].mean():+.1f})"])
    third = []
    equal = table[table["target"].isin(["kept 0.10", "kept 0.20", "kept 0.30"])]
    for key, part in equal.groupby([*by, "target"]):
        scores = part.pivot(index="seed", columns="chooser", values="accuracy")
        gain = scores["energy"] - scores["fixed"]
        gains = f"{gain.mean():+.1f} ({gain.min():+.1f} to {gain.max():+.1f})"
        kept = f"{100 * float(key[-1].split()[1]):.0f} %"
        third.append([*key[:-1], kept, *(mean_and_spread(scores[rule]) for rule in rules), gains])
    wide = []
    for key, part in equal.groupby(by):
        cells = []
        for _, size in part.groupby("target"):
            scores = size.pivot(index="seed", columns="chooser", values="accuracy")
            gain = scores["energy"] - scores["fixed"]
            means = " / ".join(f"{scores[rule].mean():.1f}" for rule in rules)
            cells.append(f"{means} ({gain.min():+.1f} to {gain.max():+.1f})")
        wide.append([*key, *cells])
    where = ["data set", "network", "factored", "factors"]
    return {
        "Parameters kept at no more than one point lost": markdown([*where, *rules, "EVBMF, own size"], second),
        "Accuracy at equal size, energy / entropy / fixed": markdown([*where, "10 % kept", "20 % kept", "30 % kept"], wide),
        "Accuracy at equal size, with spread": markdown([*where, "kept", *rules, "energy - fixed, lowest to highest seed"], third),
    }

ONE_EACH = True  # a figure for each data set and network


def usable(table):
    """Return which rows (a boolean Series) `figure` can draw."""
    return table["target"].astype(str).str.match("kept|own|epsilon") & table["scope"].notna()


figure = rules


def pictures(table):
    """Return {name: figure} of what the README shows."""
    shown = table[(table["dataset"] == "fashion-mnist") & (table["network"] == "lenet300")]
    if not len(shown):
        return {}
    plain = shown[shown["factors"].isin(["svd", "none"])]
    return {"arsvd": rules(plain, f"{shown['seed'].nunique()} seeds")}



CLAIMS = (  # paper, claim, setting, theirs, measure, rerun
    ("ARSVD", "adaptive ranks (energy; spectral entropy) beat a fixed rank", f"{MLPS}, 20 % of the parameters, every layer cut, as published", "-", adaptive_ahead("every layer"), RERUN),
    ("ARSVD", "the same", f"{MLPS}, 20 % of the parameters, classifier dense", "-", adaptive_ahead("hidden layers"), RERUN),
    ("ARSVD", "substantial compression without losing accuracy", "every layer cut, ranks by energy, plain factors; holds: under half of the parameters, under 2 points lost, one allowed on valid", "-", small_without_loss("every layer"), RERUN),
    ("ARSVD", "the same", "the same, classifier dense", "-", small_without_loss("hidden layers"), RERUN),
)  # fmt: skip
