"""Chapter 01, training: the network that the others compress, its history, its mistakes, and a paired comparison."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import ConfusionMatrixDisplay
from torch import nn

from lowrank_utils.lab import columns, score
from lowrank_utils.lab import training as lab_training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.workbook.plots import canvas, image_grid, tiles
from lowrank_utils.workbook.tables import markdown, mean_and_spread

NOTEBOOK = "01_training"
CAPTIONS = {  # of its tables
    "Dense networks": "Before anything is cut, as trained by our recipes.",
}
FEW = 1000  # training images of exercise 2
FEW_EPOCHS = 40


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


# ---- the images and the network ---------------------------------------------------------------------------------------


def examples(images: Dataset) -> Figure:
    """Return two training images of each of the first ten classes, under the names of the classes."""
    labels = images.train.labels
    first = [np.flatnonzero(labels == c)[:2] for c in range(min(10, len(images.classes)))]
    chosen = np.concatenate([[two[place] for two in first if place < len(two)] for place in (0, 1)])
    return image_grid(images.train.images[chosen], labels[chosen], images.classes)


def digest(word: str) -> str:
    """Return the SHA-256 digest of a text, by which things are put into an order that nobody chose.

    >>> digest("boot")[:8]
    '4509beb0'
    """
    return hashlib.sha256(word.encode()).hexdigest()


def layers(model: nn.Module) -> pd.DataFrame:
    """Return weights and biases of each linear layer, one row a layer: columns layer, d_in, d_out, weights, biases."""
    return pd.DataFrame(
        {
            "layer": name,
            "d_in": layer.in_features,
            "d_out": layer.out_features,
            "weights": layer.in_features * layer.out_features,
            "biases": layer.out_features,
        }
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    )


def sizes(table: pd.DataFrame) -> Figure:
    """Return the weights of each layer as bars with their share of the network; `table` is that of `layers`."""
    figure, (axis,) = canvas(width=10, height=0.8 + 0.45 * len(table))
    whole, most = int(table["weights"].sum() + table["biases"].sum()), int(table["weights"].max())
    for place, row in enumerate(table.to_dict("records")):
        axis.barh(place, row["weights"], color="silver", height=0.7)
        words = f"{row['d_in']:,} x {row['d_out']:,} weights, {row['weights'] / whole:.1%} of the parameters"
        inside = row["weights"] > 0.5 * most
        axis.text(row["weights"] + (-0.01 if inside else 0.01) * most, place, words, va="center", fontsize=9, ha="right" if inside else "left")  # fmt: skip
    axis.set(yticks=range(len(table)), yticklabels=table["layer"], xlabel="weights")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.invert_yaxis()
    axis.grid(False)
    return figure


# ---- training ---------------------------------------------------------------------------------------------------------


def history(table: pd.DataFrame) -> Figure:
    """Return loss, and accuracy and macro F1 on validation images, against epochs, for the DataFrame of `training.fit`."""
    figure, (left, right) = canvas(2, width=5.0)
    for column, name, dash, colour in (
        ("train_loss", "training images", "--", "dimgray"),
        ("valid_loss", "validation images", "-", "black"),
    ):
        left.plot(table["epoch"], table[column], dash, marker=".", label=name, color=colour)
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="loss")
    right.plot(table["epoch"], table["valid_accuracy"], marker=".", label="accuracy", color="black")
    right.plot(table["epoch"], table["valid_f1"], "--", marker=".", label="macro F1", color="dimgray")
    right.set(xlabel="epoch", ylabel="score", title="validation images")
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(loc="upper right")
    right.legend(loc="lower right")
    return figure


def about_losses(table: pd.DataFrame) -> str:
    """Return in a sentence where the losses end; `table` of `training.fit`."""
    last = table.iloc[-1]
    return f"At the end the loss is {last['train_loss']:.2f} on training images and {last['valid_loss']:.2f} on validation images."


def about_epochs(table: pd.DataFrame) -> str:
    """Return in a sentence how far the accuracy of the last epoch is from that of the best one; `table` of `training.fit`."""
    last, best = table["valid_accuracy"].iloc[-1], table["valid_accuracy"].max()
    return f"The accuracy on validation images is {last:.1%} at the end, and was {best:.1%} in the best epoch."


# ---- the result -------------------------------------------------------------------------------------------------------


def near_gallery(accuracy: float, rows: pd.DataFrame, images: int) -> bool:
    """Return whether an accuracy on so many test images is close to the mean of the gallery's rows; true where there are none.

    Close is one point, or four on fewer than 5,000 images, of which one is a larger share.
    """
    return not len(rows) or abs(accuracy - rows["accuracy"].mean()) < (0.01 if images >= 5000 else 0.04)


def about_gallery(accuracy: float, rows: pd.DataFrame, same_recipe: bool) -> str:
    """Return in sentences how an accuracy compares with the gallery's rows, if these were trained by the same recipe."""
    if not len(rows):
        return "The gallery has no rows for this network on this data set."
    values = 100 * rows["accuracy"]
    other = "" if same_recipe else " They were trained by another recipe."
    return (
        f"This network: {accuracy:.2%}. The gallery's {len(rows)} seeds: {values.min():.2f}% to {values.max():.2f}%, "
        f"with a mean of {values.mean():.2f}%.{other}"
    )


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


def about_confusion(matrix: Any, classes: Sequence[str]) -> str:
    """Return in sentences the two classes confused most, and the classes with the fewest and most images right.

    Mistakes are counted in both directions: which of the two is more frequent hangs on the draw of a training.
    """
    counts = np.asarray(matrix)
    wrong = np.triu(counts + counts.T, 1)
    one, other = (int(place) for place in np.unravel_index(wrong.argmax(), wrong.shape))
    right = np.diag(counts) / np.maximum(counts.sum(1), 1)
    hard, easy = int(right.argmin()), int(right.argmax())
    share = wrong[one, other] / counts[[one, other]].sum()
    return (
        f"The network confuses {classes[one]} and {classes[other]} most: {share:.1%} of the images of these two are taken for the other. "
        f"The hardest class is {classes[hard]} with {right[hard]:.1%} right, and the easiest is {classes[easy]} with {right[easy]:.1%}."
    )


def mistakes(images: Dataset, outputs: torch.Tensor, count: int = 10) -> Figure:
    """Return the test images that a network gets wrong and is most certain of, with the true class and its answer.

    `outputs`: logits (N x classes) on the test images.
    """
    chances = outputs.softmax(1)
    labels = torch.as_tensor(images.test.labels)
    certain, answer = chances.max(1)
    order = torch.where(answer == labels, -1.0, certain).argsort(descending=True)
    chosen = [int(i) for i in order[:count] if answer[i] != labels[i]]
    figure, axes = tiles(1, max(1, len(chosen)), 1.0)
    figure.set_size_inches(10, 1.7)
    for axis, i in zip(axes[0], chosen):
        picture = images.test.images[i]
        axis.imshow(picture, cmap="gray_r" if picture.ndim == 2 else None)
        axis.set_title(f"{images.classes[int(labels[i])]}\n{certain[i]:.0%}", fontsize=8)
        axis.set_xlabel(f"{images.classes[int(answer[i])]}?", fontsize=8)
    if not chosen:
        axes[0, 0].set_xlabel("no image is wrong")
    return figure


# ---- exercises --------------------------------------------------------------------------------------------------------


def is_history_of_few(answer: Any) -> bool:
    """Return whether an answer is the history of a long training on few images: for a check cell, which says what is amiss."""
    assert isinstance(answer, pd.DataFrame), "the DataFrame that training.fit returns is asked for"
    missing = [name for name in ("train_loss", "valid_loss") if name not in answer]
    assert not missing, f"the column {missing[0] if missing else ''} is missing"
    assert len(answer) == FEW_EPOCHS, f"it has {len(answer)} epochs, and {FEW_EPOCHS} are asked for"
    last = answer.iloc[-1]
    assert last["train_loss"] < 0.2 * last["valid_loss"], "so many images are not learnt by heart: take fewer"
    return True


def overfitting(table: pd.DataFrame, answer: Any) -> Figure:
    """Return the losses of a training on all images and of one on few, two panels; `answer` is the history that a learner made.

    Where `answer` is no history, as when the exercise is not answered yet, the figure says so.
    """
    figure, axes = canvas(2, width=5.0, sharey=True)
    few = answer if isinstance(answer, pd.DataFrame) and {"epoch", "train_loss", "valid_loss"} <= set(answer) else None
    for axis, title, rows in zip(axes, ("all training images", f"{FEW:,} training images"), (table, few)):
        axis.set(xlabel="epoch", title=title)
        if rows is None:
            axis.text(0.5, 0.5, "no history yet", transform=axis.transAxes, ha="center")
            continue
        for column, name, dash, colour in (
            ("train_loss", "training images", "--", "dimgray"),
            ("valid_loss", "validation images", "-", "black"),
        ):
            axis.plot(rows["epoch"], rows[column], dash, label=name, color=colour)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set(ylabel="cross-entropy (nats)")
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
    return figure


def paired(first: nn.Module, second: nn.Module, images: Dataset) -> dict[str, float]:
    """Return the comparison of two networks on the same test images.

    Entries: ``first alone`` and ``second alone``, the numbers of images that only one of them has right; ``points`` by which the
    second is ahead; ``error``, the standard error of these points. With b and c the two numbers of n images, the points are
    100 (c - b) / n, and their error is 100 sqrt(b + c - (c - b)^2 / n) / n (McNemar 1947).
    """
    right = [lab_training.outputs(net, images.tensors("test")[0]).argmax(1) == images.tensors("test")[1] for net in (first, second)]  # fmt: skip
    return compared(int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()), len(images.test))


def compared(first_alone: int, second_alone: int, images: int) -> dict[str, float]:
    """Return the comparison of `paired` from its two counts of so many images.

    >>> {name: round(value, 2) for name, value in compared(30, 50, 1000).items()}
    {'first alone': 30, 'second alone': 50, 'points': 2.0, 'error': 0.89}
    """
    gap = second_alone - first_alone
    error = 100 * math.sqrt(first_alone + second_alone - gap**2 / images) / images
    return {"first alone": first_alone, "second alone": second_alone, "points": 100 * gap / images, "error": error}


def is_paired(first: nn.Module, second: Any, images: Dataset) -> Callable[[Any], bool]:
    """Return the test of an answer: the comparison of `paired` of two networks, the second of which a learner has trained."""

    def test(answer: Any) -> bool:
        assert isinstance(second, nn.Module), "train `second` first"
        wanted = paired(first, second, images)
        assert isinstance(answer, Mapping), "a dictionary is asked for"
        assert wanted.keys() == answer.keys(), f"its entries should be {', '.join(wanted)}"
        return all(math.isclose(answer[name], value, rel_tol=0.01, abs_tol=0.005) for name, value in wanted.items())

    return test


def difference(answer: Any, accuracy: float, images: int) -> Figure:
    """Return a difference of two accuracies with two error bars: as of one set of images, and as of two independent ones.

    Parameters: `answer`, the comparison of `paired` as a learner made it; `accuracy` of the first network, a share; `images`, how
    many both were tested on. Where `answer` is no comparison, the figure says so.
    """
    figure, (axis,) = canvas(width=8, height=1.9)
    axis.axvline(0, color="black", linestyle=":")
    axis.set(xlabel="points by which the second network is ahead", yticks=[0, 1], ylim=(1.6, -0.6))
    axis.set_yticklabels(["the same images", "if they were other images"])
    points, paired_error = (_number(answer, name) for name in ("points", "error"))
    if points is None or paired_error is None:
        axis.text(0.5, 0.5, "no comparison yet", transform=axis.transAxes, ha="center")
        axis.set_xlim(-1, 1)
        return figure
    alone = 100 * math.sqrt(2 * accuracy * (1 - accuracy) / images)
    for place, error in enumerate((paired_error, alone)):
        axis.errorbar(points, place, xerr=2 * error, fmt="o", color="black" if place == 0 else "dimgray", capsize=4)
    return figure


def _number(answer: Any, name: str) -> float | None:
    value = answer.get(name) if isinstance(answer, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def about_paired(found: Mapping[str, float]) -> str:
    """Return in sentences what a comparison of `paired` says."""
    differ = found["first alone"] + found["second alone"]
    errors = abs(found["points"]) / found["error"] if found["error"] else 0.0
    return (
        f"The two networks disagree on {differ:.0f} images: the first alone is right on {found['first alone']:.0f}, and the second alone on "
        f"{found['second alone']:.0f}. So the second is ahead by {found['points']:+.2f} points, with a standard error of {found['error']:.2f}. "
        f"The difference is {errors:.1f} standard errors. Below two, it may well be luck."
    )


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
