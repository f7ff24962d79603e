"""Chapter 03, entropy pruning: of singular components and of hidden units."""

import numpy as np
import pandas as pd

from lowrank_utils.workbook.plots import COLOURS, canvas, frontier
from lowrank_utils.workbook.tables import in_points, markdown, mean_and_spread

NOTEBOOK = "03_entropy_pruning"
CAPTIONS = {  # of its tables
    "Entropy pruning: parameters kept at no more than one point lost": "Percent of the parameters; in brackets the change on test images, in points. Singular *components* (data-aware factors) or hidden *units* (the next layer refitted) are dropped over the whole network, or units first and components second (*both*).",
    "Entropy pruning: accuracy with 10 / 20 / 30 % kept": "The same rankings at equal sizes.",
    "Entropy pruning: accuracy of every ranking, with spread": "*Written as*: for components the factors; for units what the next layer does about those removed: *nothing*, their means *folded* into its bias, or *refitted* by least squares. *One range*: histograms of all units of a layer share their range.",
}
FIGURE_CAPTION = "What loses more than 40 points is cut off."

FORMS = {"svd": "components, plain factors", "data-aware": "components, data-aware factors"}
FORMS |= {"folded": "units, mean folded", "refitted": "units, next layer refitted"}


def rankings(table, title="test images"):
    """Return accuracy against parameters kept for what notebook 03 prunes: components above, units below.

    `table`: result rows as for `frontier`; rows of the chooser "dense" give the dotted line. What loses more than 40 points is cut off.
    """
    drawn = table[table["target"].str.match(r"kept \S+$") & table["factors"].isin(FORMS)]
    panel = pd.Categorical(drawn["factors"].map(FORMS), list(FORMS.values()))
    drawn = drawn.assign(panel=panel).sort_values("panel", kind="stable")
    baseline = table.loc[table["chooser"] == "dense", "accuracy"].mean()
    return frontier(drawn, "accuracy", baseline, title, max(baseline - 0.4, 0), panels="panel", columns=2)


def histograms(values, bins):
    """Return the histogram of each entry of `values`, {title: 1-D numbers}, in `bins` bins between its own bounds."""
    figure, axes = canvas(len(values), width=2.9, height=2.6)
    for axis, (title, numbers) in zip(axes, values.items()):
        axis.hist(np.asarray(numbers), bins=bins, color=COLOURS["energy"])
        axis.set(xlabel="activation", yscale="log", ylim=(0.7, 1.5 * len(numbers)))
        axis.set_title(title, fontsize="small")
    axes[0].set_ylabel("images")
    return figure


def ranking(table, stays):
    """Return the score of every component, one panel a layer: the columns of `components.rank_components`.

    The grey dashed line is the score itself, the other one what counts once a larger component must not go before a
    smaller one. `stays`: {layer: rank}, drawn as full dots; a layer that is absent stays whole.
    """
    names = list(dict.fromkeys(table.sort_values("component", kind="stable")["layer"]))
    figure, axes = canvas(len(names), width=3.6, sharey=True)
    for axis, name in zip(axes, names):
        mine = table[table["layer"] == name].sort_values("component")
        axis.plot(mine["component"], mine["score"], "--", color="gray", label="score")
        rank = stays.get(name, len(mine))
        for part, style, label in ((mine[:rank], {}, "stays"), (mine[rank:], {"mfc": "white"}, "dropped")):
            axis.plot(part["component"], part["key"], "o", color=COLOURS["entropy"], ms=3.5, mew=0.8, label=label, **style)
        axis.set(xlabel="component", yscale="log", title=f"{name}: {min(rank, len(mine))} of {len(mine)} stay")
    axes[0].set_ylabel("score (nats)")
    axes[-1].legend()
    return figure


def tables(table):
    """Return {heading: Markdown table} of the published rows, as the gallery shows them."""
    table = in_points(table)
    best = {"component": "data-aware", "arsvd,": "data-aware", "both": "data-aware", "unit": "refitted"}
    choosers = ["component entropy", "component output", "arsvd, classifier dense"]
    choosers += ["unit entropy", "unit random", "unit output"]
    choosers += ["both entropy", "both output"]
    mine = table[table["factors"] == table["chooser"].str.split().str[0].map(best)]
    small, equal, spread = [], [], []
    for key, part in mine.groupby(["dataset", "network"]):
        by = {name: part[part["chooser"] == name] for name in choosers}
        drop = [by[name][by[name]["target"] == "drop 0.010"] for name in choosers]
        small.append([*key, *(f"{mean_and_spread(rows['parameters_kept'])} ({-rows['lost'].mean():+.1f})" for rows in drop)])
        cells = []
        for name in choosers:
            sizes = [by[name].loc[by[name]["target"] == f"kept 0.{kept}0", "accuracy"].mean() for kept in (1, 2, 3)]
            cells.append(" / ".join(f"{value:.1f}" for value in sizes))
        equal.append([*key, *cells])
    for key, part in table.groupby(["dataset", "network", "chooser", "factors"]):
        sizes = [part.loc[part["target"] == f"kept 0.{kept}0", "accuracy"] for kept in (1, 2, 3)]
        if all(len(values) for values in sizes):
            spread.append([*key, *(mean_and_spread(values) for values in sizes)])
    where = ["data set", "network"]
    return {
        "Entropy pruning: parameters kept at no more than one point lost": markdown([*where, *choosers], small),
        "Entropy pruning: accuracy with 10 / 20 / 30 % kept": markdown([*where, *choosers], equal),
        "Entropy pruning: accuracy of every ranking, with spread": markdown(
            [*where, "ranking", "written as", "10 % kept", "20 % kept", "30 % kept"], spread
        ),
    }

ONE_EACH = True  # a figure for each data set and network


def usable(table):
    """Return which rows (a boolean Series) `figure` can draw."""
    return table["target"].astype(str).str.match("kept|own|epsilon") & table["factors"].isin(FORMS)


figure = rankings
