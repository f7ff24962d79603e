"""A network of ImageNet with its trained weights, compressed and scored on real images: EfficientNet-Lite0."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from lowrank_utils import checks, paths
from lowrank_utils.lab import data, efficientnet, imagenet_sample, models, score
from lowrank_utils.network import inputs
from lowrank_utils.network.profile import profile
from lowrank_utils.workbook import results, rivals

NAME = "imagenet"  # of the rows and the picture in the gallery
KEPT = (0.9, 0.75, 0.5)  # shares of the MACs
METHODS = rivals.METHODS[
    :-1
]  # refinement, 480 steps of 25 images of 224 x 224 pixels, was still under way after twenty minutes
BATCH = 25  # images at once: activations of 96 x 112 x 112 numbers fill the memory
DENSE = ("conv1", "fc")  # what `compress` leaves dense, for the others too
SHOWN = {"accuracy": "accuracy", "agreement": "same class as the dense network"}
CAPTION = (
    "EfficientNet-Lite0 with its published weights, on 456 freely licensed images of ImageNet classes (no official validation "
    "images); 455 others served for calibration, without labels. Left: accuracy. Right: share of images with the dense network's "
    "class. *One share* is one share of the rank for all layers; no plan touches the first convolution and the classifier."
)

published = partial(rivals.published, NAME)


def halves() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (calibration images, scored images, their labels) of `imagenet_sample`, as EfficientNet-Lite0 takes them.

    The two halves are parted by content digest, whatever the seed. Raises `data.DataUnavailable` where no source has them.
    """
    held = data.load(imagenet_sample.NAME)
    held = dataclasses.replace(held, mean=efficientnet.MEAN, std=efficientnet.STD)
    return torch.cat([held.tensors("train")[0], held.tensors("valid")[0]]), *held.tensors("test")


def answers(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the logits of a network, N x classes."""
    with torch.inference_mode():
        return torch.cat([net(batch) for batch in images.split(BATCH)])


def compared(found: torch.Tensor, dense: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return what two networks' logits on the same images say: accuracy of the first, agreement, and divergence (nats).

    *Agreement* is the share of images to which both give the same class; the divergence (Kullback-Leibler) is that of the
    first network's answers from the second's, a mean over images.

    >>> logits = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    >>> compared(logits, logits, torch.tensor([1, 1]))
    {'accuracy': 0.5, 'agreement': 1.0, 'divergence': 0.0}
    """
    classes = found.argmax(1)
    shares = {"accuracy": classes == labels, "agreement": classes == dense.argmax(1)}
    means = {name: float(hits.double().mean()) for name, hits in shares.items()}
    return means | {"divergence": float(inputs.divergence(dense.double(), found.double()).mean())}


def measure(
    model: nn.Module,
    calibration: torch.Tensor,
    images: torch.Tensor,
    labels: torch.Tensor,
    path: str | Path,
    *,
    kept: Sequence[float] = KEPT,
    methods: Sequence[str] = rivals.METHODS,
    dense: Sequence[str] = DENSE,
    **about: Any,
) -> pd.DataFrame:
    """Return one row a method and share of the MACs, after the dense network's; each is written to the CSV `path` at once.

    Rows that stand there are not measured again. Columns: `about`, method, kept, macs_kept, parameters_kept, accuracy,
    agreement, divergence (nats an image), images, calibration_images, seconds of processor time.
    """
    read = profile(model, calibration, dense=dense, samples=20_000, batch_size=BATCH)
    shape, wanted = tuple(images.shape[1:]), answers(model, images)

    def row(asked: Mapping[str, Any]) -> dict[str, Any]:
        began = time.process_time()
        small = model if asked["method"] == "dense" else rivals.compressed(read, asked["method"], asked["kept"])
        seconds = time.process_time() - began
        counted = {"macs_kept": score.macs(small, shape) / score.macs(model, shape)}
        counted["parameters_kept"] = score.parameters(small) / score.parameters(model)
        told = compared(answers(small, images), wanted, labels)
        seen = {"images": len(images), "calibration_images": len(calibration)}
        return {**about, **asked, **counted, **told, **seen, "seconds": seconds}

    return results.completed(path, rivals.asked(kept, methods), row)


def rows(kept: Sequence[float] = (), output_folder: str | Path = "") -> pd.DataFrame:
    """Return the rows of the gallery, or, where shares of the MACs are named, those measured now.

    They are written to NAME.csv in `output_folder` ("": nothing is kept). Raises ValueError for a share outside (0, 1],
    OSError where the weights or the images cannot be had, or the gallery has no rows.
    """
    if not kept:
        found = published()
        if found is None:
            raise FileNotFoundError(f"the gallery has no {NAME}.csv: name the shares of the MACs to be measured")
        return found
    for share in kept:
        checks.check_share(kept=share)
    with tempfile.TemporaryDirectory() as scratch:
        return renew((paths.ROOT / output_folder if output_folder else Path(scratch)) / f"{NAME}.csv", kept)


def figure(rows: pd.DataFrame) -> Figure:
    """Draw accuracy, and agreement with the dense network, against the share of MACs kept: a line a method."""
    return rivals.figure(rows, SHOWN, "macs_kept", "MACs kept (share of dense)")


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy and agreement in percent: a row a method, a column a share of the MACs."""
    return rivals.table(rows, {"accuracy": "accuracy", "agreement": "agreement"})


def section(rows: pd.DataFrame) -> str:
    """Return the part of the gallery's page that shows the picture and its numbers."""
    dense = rows[rows["method"] == "dense"].iloc[0]
    return f"""## ImageNet: EfficientNet-Lite0 with its trained weights

![Accuracy and agreement with the dense network against the share of MACs kept, a line for each method](imagenet.png)

{CAPTION} Percent; the dense network has {100 * dense["accuracy"]:.1f}, and one image is {100 / dense["images"]:.1f} points.

{rivals.in_markdown(table(rows))}

Refined networks are not among them: refinement at this size was still under way after twenty minutes. Almost all of its work is in 1 x 1 convolutions, which have neither a kernel to take apart nor ranks to spare. The rows are `imagenet.csv`.
"""


def renew(path: str | Path | None = None, kept: Sequence[float] = KEPT) -> pd.DataFrame:
    """Return the rows of the gallery; those that its file lacks are measured now, up to half an hour each.

    Delete the file to measure all of them anew. Raises OSError where weights or images cannot be had.
    """
    model, _ = models.pretrained(efficientnet.NAME)
    path, about = path or paths.GALLERY / f"{NAME}.csv", {"dataset": imagenet_sample.NAME, "network": efficientnet.NAME}
    return measure(model, *halves(), path, kept=kept, methods=METHODS, **about)
