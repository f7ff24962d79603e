"""A network of ImageNet with its trained weights, compressed and scored on real images: EfficientNet-Lite0."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import nn

from lowrank_utils import paths
from lowrank_utils.compression import compress
from lowrank_utils.factors import replace
from lowrank_utils.lab import data, efficientnet, imagenet_sample, models, score, training
from lowrank_utils.network.profile import Plan, Profile, profile
from lowrank_utils.ranks import enc, rules
from lowrank_utils.workbook import results
from lowrank_utils.workbook.plots import canvas
from lowrank_utils.workbook.prediction import divergences
from lowrank_utils.workbook.tables import markdown

NAME = "imagenet"  # of the rows and the picture in the gallery
KEPT = (0.9, 0.75, 0.5)  # shares of the MACs
BATCH = 25  # images at once: activations of 96 x 112 x 112 numbers fill the memory
DENSE = ("conv1", "fc")  # what `compress` leaves dense, for the others too
METHODS = (
    "plain SVD, one share",
    "plain SVD, ENC-Map",
    "data-aware, one share",
    "compress, not refined",
    "compress",
)
CAPTION = (
    "EfficientNet-Lite0 with its published weights, on 456 freely licensed images of ImageNet classes (no official validation "
    "images); 455 others served for calibration, without labels. Left: accuracy. Right: share of images with the dense network's "
    "class. *One share* is one share of the rank for all layers; no plan touches the first convolution and the classifier."
)


def halves() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (calibration images, scored images, their labels) of `imagenet_sample`, as EfficientNet-Lite0 takes them.

    The two halves are parted by content digest, whatever the seed. Raises `data.DataUnavailable` where no source has them.
    """
    held = data.load(imagenet_sample.NAME)
    held = dataclasses.replace(held, mean=efficientnet.MEAN, std=efficientnet.STD)
    return torch.cat([held.tensors("train")[0], held.tensors("valid")[0]]), *held.tensors("test")


def ranks_of(read: Profile, method: str, kept: float) -> Plan:
    """Return the plan of a method that cuts by spectra alone."""
    if method.endswith("ENC-Map"):
        return enc.enc_map(read, kept).plan
    return rules.plan_at_size(read, kept, rule="fixed")


def compressed(read: Profile, method: str, kept: float) -> nn.Module:
    """Return the network of one of `METHODS` with a share `kept` of the MACs; `read`, the dense network's profile."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    if method.startswith("compress"):
        refine = method == "compress"
        return compress(read.model, read.calibration, kept=kept, batch_size=read.batch_size, refine=refine).model
    factors = "svd" if method.startswith("plain") else "data-aware"
    return replace.apply_plan(read, ranks_of(read, method, kept), factors=factors)


def agreement(model: nn.Module, small: nn.Module, images: torch.Tensor) -> float:
    """Return the share of images to which two networks give the same class."""
    classes = []
    with torch.inference_mode():
        for net in (model, small):
            classes.append(torch.cat([net(batch).argmax(1) for batch in images.split(BATCH)]))
    return float((classes[0] == classes[1]).double().mean())


def scored(model: nn.Module, small: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Return what a row says of a compressed network: shares kept, accuracy, agreement and divergence (nats) on `images`."""
    shape = tuple(images.shape[1:])
    return {
        "macs_kept": score.macs(small, shape) / score.macs(model, shape),
        "parameters_kept": score.parameters(small) / score.parameters(model),
        "accuracy": training.evaluate(small, images, labels).accuracy,
        "agreement": agreement(model, small, images),
        "divergence": float(divergences(model, small, images).mean()),
        "images": len(images),
    }


def measure(
    model: nn.Module,
    calibration: torch.Tensor,
    images: torch.Tensor,
    labels: torch.Tensor,
    path: str | Path,
    *,
    kept: Sequence[float] = KEPT,
    methods: Sequence[str] = METHODS,
    dense: Sequence[str] = DENSE,
    **about: Any,
) -> pd.DataFrame:
    """Return one row a method and share of the MACs, after the dense network's; each is written to the CSV `path` at once.

    Rows that stand there are not measured again. Columns: `about`, method, kept, macs_kept, parameters_kept, accuracy,
    agreement, divergence (nats an image), images, calibration_images, seconds of processor time.
    """
    read = profile(model, calibration, dense=dense, samples=20_000, batch_size=BATCH)

    def row(asked: Mapping[str, Any]) -> dict[str, Any]:
        began = time.process_time()
        small = model if asked["method"] == "dense" else compressed(read, asked["method"], asked["kept"])
        seconds = time.process_time() - began
        told = scored(model, small, images, labels)
        return {**about, **asked, **told, "calibration_images": len(calibration), "seconds": seconds}

    wanted = [{"method": method, "kept": share} for share in kept for method in methods]
    return results.completed(path, [{"method": "dense", "kept": 1.0}, *wanted], row)


def published(folder: str | Path | None = None) -> pd.DataFrame | None:
    """Return the rows of a gallery (default: outputs/gallery), or None where there are none."""
    place = Path(folder or paths.GALLERY) / f"{NAME}.csv"
    return pd.read_csv(place) if place.is_file() else None


def figure(rows: pd.DataFrame) -> Figure:
    """Draw accuracy, and agreement with the dense network, against the share of MACs kept: a line a method."""
    drawn, axes = canvas(2, width=4.6, height=3.6, sharex=True, sharey=True)
    dense = rows[rows["method"] == "dense"]
    palette, markers = sns.color_palette("colorblind"), "s^oDP"
    for axis, column in zip(axes, ("accuracy", "agreement")):
        for i, method in enumerate(METHODS):
            mine = rows[rows["method"] == method].sort_values("macs_kept")
            axis.plot(mine["macs_kept"], mine[column], marker=markers[i], color=palette[i], label=method)
        if column == "accuracy" and len(dense):
            axis.axhline(dense["accuracy"].mean(), color="black", linestyle=":", label="dense")
        axis.set(xlabel="MACs kept (share of dense)", ylim=(-0.02, 1), title=column)
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles, names = axes[0].get_legend_handles_labels()
    drawn.legend(handles, names, loc="outside upper center", ncols=3, fontsize="small")
    return drawn


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy and agreement in percent: a row a method, a column a share of the MACs."""
    cut = rows[rows["method"] != "dense"]
    both = {}
    for column in ("accuracy", "agreement"):
        by = cut.pivot_table(column, "method", "kept").reindex([m for m in METHODS if m in set(cut["method"])])
        both[column] = (100 * by.sort_index(axis=1, ascending=False)).round(1)
    found = pd.concat(both, axis=1)
    found.columns = [f"{column}, {share:.0%} kept" for column, share in found.columns]
    return found


def section(rows: pd.DataFrame) -> str:
    """Return the part of the gallery's page that shows the picture and its numbers."""
    told = table(rows)
    lines = [[method, *(f"{value:.1f}" for value in told.loc[method])] for method in told.index]
    dense = rows[rows["method"] == "dense"].iloc[0]
    return f"""## ImageNet: EfficientNet-Lite0 with its trained weights

![Accuracy and agreement with the dense network against the share of MACs kept, a line for each method](imagenet.png)

{CAPTION} Percent; the dense network has {100 * dense["accuracy"]:.1f}, and one image is {100 / dense["images"]:.1f} points.

{markdown(["method", *told.columns], lines)}

Almost all of its work is in 1 x 1 convolutions, which have neither a kernel to take apart nor ranks to spare. The rows are `imagenet.csv`.
"""


def renew(path: str | Path | None = None) -> pd.DataFrame:
    """Return the rows of the gallery; those that its file lacks are measured now, up to half an hour each.

    Delete the file to measure all of them anew. Raises OSError where weights or images cannot be had.
    """
    model, _ = models.pretrained(efficientnet.NAME)
    path = path or paths.GALLERY / f"{NAME}.csv"
    return measure(model, *halves(), path, dataset=imagenet_sample.NAME, network=efficientnet.NAME)
