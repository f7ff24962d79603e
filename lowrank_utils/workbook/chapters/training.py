"""Chapter 01, training: figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from sklearn.metrics import ConfusionMatrixDisplay
from torch import nn

from lowrank_utils.lab import columns, score
from lowrank_utils.lab.data import Dataset
from lowrank_utils.workbook.plots import canvas
from lowrank_utils.workbook.tables import markdown, mean_and_spread

NOTEBOOK = "01_training"
CAPTIONS = {  # of its tables
    "Dense networks": "Before anything is cut, as trained by our recipes.",
}


def experiment(images: Dataset, model: nn.Module, history: pd.DataFrame, **about) -> pd.DataFrame:
    """Return the one row of a network that was trained: what it costs, and how good it is on test images.

    Parameters
    ----------
    images, model : the data set, and the network after training.
    history : the DataFrame of `training.fit`; its last accuracy on validation images and its seconds go into the row.
    about : columns of the row: dataset, network, seed.

    Raises ValueError where the history has no epoch.
    """
    if not len(history):
        raise ValueError("the history has no epoch: the network was not trained")
    told = {"valid_accuracy": history["valid_accuracy"].iloc[-1], "train_seconds": history["seconds"].sum()}
    about |= {"notebook": NOTEBOOK, "chooser": "dense", "scope": "none", "budget_kind": "dense", "stored_as": "dense"}
    return columns.table([score.row(model, model, images.tensors("test"), **about, **told)])


def history(table: pd.DataFrame) -> Figure:
    """Return loss and valid accuracy against epochs for the DataFrame of `training.fit`."""
    figure, (left, right) = canvas(2)
    for column, name, dash in (("train_loss", "train", "--"), ("valid_loss", "valid", "-")):
        left.plot(table["epoch"], table[column], dash, marker=".", label=name)
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="Loss")
    left.legend()
    right.plot(table["epoch"], table["valid_accuracy"], marker=".", label="accuracy")
    right.plot(table["epoch"], table["valid_f1"], "--", marker=".", label="macro F1")
    right.set(xlabel="epoch", ylabel="share of valid images", title="Valid images")
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.legend()
    return figure


def confusion(matrix: Any, classes: Sequence[str]) -> Figure:
    """Return a heat map of a confusion matrix (classes x classes, rows true, counts) as shares of each row, in percent."""
    shares = 100 * np.asarray(matrix) / np.maximum(np.asarray(matrix).sum(1, keepdims=True), 1)
    few = len(classes) <= 20
    figure, (axis,) = canvas(width=6.2, height=5.2)
    shown = ConfusionMatrixDisplay(shares, display_labels=classes if few else None)
    shown.plot(
        ax=axis,
        cmap="rocket_r",
        include_values=few,
        values_format=".0f",
        xticks_rotation="vertical",
        text_kw={"size": 7},
    )
    axis.grid(False)
    axis.set(xlabel="predicted class", ylabel="true class")
    if not few:
        axis.set(xticks=[], yticks=[])
    figure.axes[-1].set_ylabel("% of the true class")
    return figure


def tables(rows: pd.DataFrame) -> dict[str, str]:
    """Return {heading: Markdown table} of the dense networks: parameters, accuracy and macro F1 over seeds."""
    rows = rows.assign(accuracy=100 * rows["accuracy"], f1=100 * rows["f1"])
    lines = [
        [
            *key,
            f"{int(part['parameters'].iloc[0]):,}",
            mean_and_spread(part["accuracy"]),
            mean_and_spread(part["f1"]),
            str(part["seed"].nunique()),
        ]
        for key, part in rows.groupby(["dataset", "network"])
    ]
    return {
        "Dense networks": markdown(["data set", "network", "parameters", "accuracy %", "macro F1 %", "seeds"], lines)
    }
