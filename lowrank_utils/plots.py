"""The figures of the workbook, one style: colour-blind-safe, axes with units, the dense network as a line.

Every function returns a closed matplotlib Figure, which a notebook shows once when it is the last line of a cell.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

# One colour and one marker for a chooser, the same in every notebook.
CHOOSERS = ("energy", "entropy", "fixed", "evbmf")
_COLOURS = dict(zip(CHOOSERS, sns.color_palette("colorblind")))
_MARKERS = dict(zip(CHOOSERS, ("o", "s", "^", "D")))
_STYLE = {"axes.grid": True, "grid.alpha": 0.4, "figure.dpi": 100, "savefig.dpi": 100, "savefig.bbox": "tight"}


def _canvas(columns=1, rows=1, width=4.6, height=3.4, **options):
    with sns.axes_style("whitegrid", rc=_STYLE), sns.plotting_context("notebook", font_scale=0.85):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False, **options
        )
    plt.close(figure)
    return figure, axes.ravel()


def image_grid(images, labels, classes, columns=10):
    """Return a grid of uint8 `images` (n x H x W or n x H x W x 3) under their class names."""
    rows = int(np.ceil(len(images) / columns))
    with sns.axes_style("white"):
        figure, axes = plt.subplots(rows, columns, figsize=(1.1 * columns, 1.35 * rows), layout="constrained", squeeze=False)
    plt.close(figure)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, image, label in zip(axes.ravel(), images, labels):
        axis.imshow(image, cmap="gray_r" if image.ndim == 2 else None)
        axis.set_title(classes[int(label)], fontsize=8)
    return figure


def history(table):
    """Return loss and valid accuracy against epochs for the DataFrame of `training.fit`."""
    figure, (left, right) = _canvas(2)
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


def confusion(matrix, classes):
    """Return a heat map of a confusion matrix (classes x classes, rows true, counts) as shares of each row."""
    shares = np.asarray(matrix) / np.maximum(np.asarray(matrix).sum(1, keepdims=True), 1)
    few = len(classes) <= 20
    figure, (axis,) = _canvas(width=6.2, height=5.2)
    sns.heatmap(
        100 * shares, ax=axis, cmap="rocket_r", vmin=0, vmax=100, square=True, annot=few, fmt=".0f",
        annot_kws={"size": 7}, xticklabels=classes if few else False, yticklabels=classes if few else False,
        cbar_kws={"label": "% of the true class"},
    )  # fmt: skip
    axis.set(xlabel="predicted class", ylabel="true class")
    return figure


def spectra(before, after):
    """Return singular values against their index, one panel a layer, before (dashed) and after training.

    `before` and `after`: ``{layer name: singular values}`` with the same names.
    """
    figure, axes = _canvas(len(after), width=3.6)
    for axis, name in zip(axes, after):
        index = np.arange(1, len(after[name]) + 1)
        axis.plot(index, before[name], "--", color="gray", label="random start")
        axis.plot(index, after[name], color=_COLOURS["energy"], label="trained")
        axis.set(xlabel="component", title=f"{name}: {len(index)} components")
    axes[0].set_ylabel("singular value")
    axes[0].legend()
    return figure


def rank_curves(table):
    """Return rank per layer against threshold: columns layer, rule, threshold, rank, full_rank, break_even.

    The dotted line is the break-even rank, above which the dense layer is cheaper.
    """
    layers = table["layer"].unique()
    figure, axes = _canvas(len(layers), width=3.6)
    for axis, name in zip(axes, layers):
        mine = table[table["layer"] == name]
        for rule, line in mine.groupby("rule", sort=False):
            axis.plot(line["threshold"], line["rank"], color=_COLOURS[rule], label=rule)
        axis.axhline(mine["break_even"].iloc[0], color="black", linestyle=":", label="break-even")
        axis.set(xlabel="threshold (share kept)", title=f"{name}: full rank {mine['full_rank'].iloc[0]}")
    axes[0].set_ylabel("rank")
    axes[0].legend()
    return figure


def frontier(table, metric="accuracy", baseline=None, title="test images", floor=None, panels="factors"):
    """Return `metric` against the share of parameters kept: one panel for each value of a column, one line a chooser.

    `table` has the result columns chooser, parameters_kept, target, `metric` and `panels` ("factors" or "scope"). Rows
    of several seeds that aim at one size (column target) are drawn as their mean with a band from the lowest to the
    highest. `baseline`: the dense network's value, drawn as a line. `floor`: where the vertical axis starts; what lies
    below is cut off.
    """
    names = list(table[panels].unique())
    figure, axes = _canvas(len(names), width=4.6, sharey=True)
    for axis, name in zip(axes, names):
        mine = table[table[panels] == name]
        for chooser in [c for c in CHOOSERS if c in set(mine["chooser"])]:
            line = mine[mine["chooser"] == chooser].groupby("target", sort=False)
            points = pd.DataFrame({"kept": line["parameters_kept"].mean()} | {w: line[metric].agg(w) for w in ("mean", "min", "max")})
            points = points.sort_values("kept")
            axis.plot(points["kept"], points["mean"], label=chooser, **_line(chooser, alone=len(points) == 1))
            axis.fill_between(points["kept"], points["min"], points["max"], color=_COLOURS[chooser], alpha=0.2)
        if baseline is not None:
            axis.axhline(baseline, color="black", linestyle=":", label="dense")
        axis.set(xscale="log", xlabel="parameters kept (share of dense)", title=f"{name}{' factors' * (panels == 'factors')}, {title}")
        axis.xaxis.set_major_locator(FixedLocator([0.03, 0.05, 0.1, 0.2, 0.3, 0.6, 1.0]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if floor is not None:
            axis.set_ylim(bottom=floor)
    axes[0].set_ylabel({"accuracy": "accuracy", "f1": "macro F1"}.get(metric, metric))
    axes[0].legend()
    return figure


def _line(chooser, alone):
    # energy and entropy often coincide: the one is drawn wide, the other dashed on top of it
    style = {"color": _COLOURS[chooser], "marker": _MARKERS[chooser], "markersize": 5}
    if chooser == "energy":
        style |= {"linewidth": 3.5, "markersize": 8, "alpha": 0.7}
    return style | {"linestyle": "none" if alone else {"entropy": "--"}.get(chooser, "-")}
