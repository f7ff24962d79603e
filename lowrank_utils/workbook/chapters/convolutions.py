"""Chapter 02b, convolutions: three unfoldings and five kinds of factors."""

import seaborn as sns
from matplotlib.ticker import PercentFormatter

from lowrank_utils.workbook.plots import canvas
from lowrank_utils.workbook.tables import at_sizes, markdown, mean_and_spread, mean_in_words

NOTEBOOK = "02b_convolutions"
CAPTIONS = {  # of its tables
    "Convolutions: accuracy with 75 / 50 / 35 / 25 % of the MACs": "Spatial scheme, first and last layer dense, one run each. The public ResNets were trained on all training images, calibration images among them.",
}
FIGURE_CAPTION = "First and last layer dense. Whole lines: ranks by energy; dashed: one fixed share."

def by_work(table):
    """Return accuracy against the share of MACs kept, one panel for each network, one line for each kind of factors.

    `table`: result rows with columns dataset, network, seed, chooser, factors, macs_kept, accuracy; rows of the chooser "dense" give the
    dotted line. Lines of ranks by energy are whole, others dashed; bands run from the lowest to the highest seed.
    """
    cases = list(table[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    columns = min(3, len(cases))
    figure, axes = canvas(columns, -(-len(cases) // columns), width=4.6)
    kinds = ["svd", "data-aware", "sequential", "relu-aware", "fisher-weighted"]
    colours = dict(zip(kinds, sns.color_palette("colorblind")))
    markers = dict(zip(kinds, "osD^v"))
    for axis, (dataset, network) in zip(axes, cases):
        mine = table[(table["dataset"] == dataset) & (table["network"] == network)]
        dense = mine.loc[mine["chooser"] == "dense", "accuracy"].mean()
        axis.axhline(dense, color="black", linestyle=":", label="dense")
        for kind in [k for k in kinds if k in set(mine["factors"])]:
            for chooser in [c for c in ("energy", "fixed") if c in set(mine["chooser"])]:
                line = mine[(mine["factors"] == kind) & (mine["chooser"] == chooser)].groupby("target", sort=False)
                kept = line["macs_kept"].mean().sort_values()
                value = line["accuracy"].agg(["mean", "min", "max"]).reindex(kept.index)
                style = {"color": colours[kind], "marker": markers[kind], "markersize": 4}
                label = kind if chooser == "energy" else None
                axis.plot(kept, value["mean"], "-" if chooser == "energy" else "--", label=label, **style)
                axis.fill_between(kept, value["min"], value["max"], color=colours[kind], alpha=0.15)
        axis.set(xlabel="MACs kept (share of dense)", title=f"{network} on {dataset}")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].set_ylabel("accuracy")
    if {"energy", "fixed"} <= set(table["chooser"]):
        for name, dash in (("ranks by energy", "-"), ("one fixed share", "--")):
            axes[0].plot([], [], dash, color="gray", label=name)
    axes[0].legend(fontsize="small")
    return figure


def tables(table):
    """Return {heading: Markdown table} of the published rows, as the gallery shows them."""
    table = table.assign(accuracy=100 * table["accuracy"])
    kinds, rows = ["svd", "data-aware", "sequential", "relu-aware", "fisher-weighted"], []
    for key, part in table.groupby(["dataset", "network"]):
        dense = mean_and_spread(part.loc[part["chooser"] == "dense", "accuracy"])
        for chooser, ranks in {"fixed": "one fixed share", "energy": "energy"}.items():
            mine = part[part["chooser"] == chooser]
            rows.append([*key, dense, ranks, *(at_sizes(mine[mine["factors"] == kind], mean_in_words) for kind in kinds)])
    header = ["data set", "network", "dense", "ranks", *kinds]
    return {"Convolutions: accuracy with 75 / 50 / 35 / 25 % of the MACs": markdown(header, rows)}

ONE_EACH = False  # a figure for each data set and network


def usable(table):
    """Return which rows (a boolean Series) `figure` can draw."""
    return table["target"].astype(str).str.match("macs")


figure = by_work
