"""What batch norms do to a network that was cut: the published plans of notebook 05, with statistics taken anew after the cut."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lowrank_utils import paths
from lowrank_utils.lab import training
from lowrank_utils.workbook import answers, results, rivals
from lowrank_utils.workbook.plots import canvas
from lowrank_utils.workbook.tables import markdown

NAME = "batch-norm"  # of the rows and the picture in the gallery
NOTEBOOK, DRAW, BUDGET = "05_rank_search", 0, 0.5
NETWORKS = ("resnet20", "resnet56")
CHOOSERS = ("fixed", "ENC-Map", "ENC-Model", "ENC-Inf", "exact")
IMAGES = 2000  # training images for the statistics
KEYS = ("network", "chooser")

published = partial(rivals.published, NAME)


def renew(path: str | Path | None = None, folder: str | Path | None = None) -> pd.DataFrame:
    """Return the rows of the gallery; those that its file lacks are measured now, half a minute each on an idle core.

    Each row is a published network of notebook 05 (plain factors, half of the MACs, first draw), built again from its plan, and the
    same with its batch norms recalibrated (`training.recalibrate`) on training images under the augmentation of the training:
    no label, no weight. Columns: network, chooser, dense, accuracy (the published one) and recalibrated, all as shares of the test
    images; images. `folder` is that of the published rows. Raises OSError where network or images cannot be had.
    """
    from lowrank_utils.workbook.gallery import published_rows

    table = published_rows(notebook=NOTEBOOK, folder=folder)
    plain = table[(table["factors"] == "svd") & (table["tuned"] == "none") & (table["budget"] == BUDGET)]
    plain = plain[(plain["draw"] == DRAW) & plain["chooser"].isin(CHOOSERS) & plain["network"].isin(NETWORKS)]
    found: dict[tuple, dict] = {tuple(row[name] for name in KEYS): row for row in plain.to_dict("records")}
    dense = table[table["chooser"] == "dense"].groupby("network")["accuracy"].mean()

    def row(asked: Mapping[str, Any]) -> dict[str, Any]:
        mine = found[asked["network"], asked["chooser"]]
        net, images = answers.rebuilt(mine)
        some = images.tensors("train", IMAGES)[0]
        again = training.recalibrate(net, some, training.augmentation(images))
        accuracy = training.evaluate(again, *images.tensors("test")).accuracy
        told = {"dense": dense[asked["network"]], "accuracy": mine["accuracy"], "recalibrated": accuracy}
        return {**asked, **told, "images": IMAGES}

    asked: list[dict[str, Any]] = [
        dict(zip(KEYS, key)) for key in sorted(found, key=lambda key: (key[0], CHOOSERS.index(key[1])))
    ]
    return results.completed(path or paths.GALLERY / f"{NAME}.csv", asked, row)


def figure(rows: pd.DataFrame) -> Figure:
    """Draw accuracy as cut and with batch norms recalibrated: a panel a network, a line a chooser; the dense network dotted."""
    networks, palette = list(rows["network"].unique()), sns.color_palette("colorblind")
    drawn, axes = canvas(len(networks), width=4.6, height=3.0, sharey=True)
    for axis, network in zip(axes, networks):
        mine = rows[rows["network"] == network]
        places = range(len(mine))
        axis.hlines(places, mine["accuracy"], mine["recalibrated"], color="0.7", linewidth=2, zorder=1)
        for column, label, color in (("accuracy", "as cut", palette[3]), ("recalibrated", "recalibrated", palette[0])):
            axis.scatter(mine[column], places, color=color, label=label, zorder=2)
        axis.axvline(mine["dense"].iloc[0], color="black", linestyle=":", label="dense")
        axis.set(title=network, xlabel="accuracy", yticks=places, yticklabels=mine["chooser"])
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].invert_yaxis()
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
    return drawn


def section(rows: pd.DataFrame) -> str:
    """Return the part of the gallery's page that shows the picture and its numbers."""
    lines = [
        [row["network"], row["chooser"], *(f"{100 * row[name]:.1f}" for name in ("dense", "accuracy", "recalibrated"))]
        for row in rows.to_dict("records")
    ]
    gained = 100 * (rows["recalibrated"] - rows["accuracy"])
    return f"""## Batch norms after the cut

![Accuracy as cut and with batch norms recalibrated, for each chooser of ranks](batch-norm.png)

Plain factors at half of the MACs, the published plans of notebook 05 (first draw). A batch norm holds the mean and the variance of the network that was
trained; after a cut they belong to a network that is gone. Here they are taken anew from {rows["images"].iloc[0]} training images under the augmentation of
the training: no label is used and no weight is changed. That gains {gained.min():.1f} to {gained.max():.1f} points. Percent of the test images:

{markdown(["network", "chooser", "dense", "as cut", "recalibrated"], lines)}

The rows are `{NAME}.csv`.
"""
