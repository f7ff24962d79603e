"""How long ENC's searches take in a network of ImageNet's size, with the statistics that they read, as their paper times them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import nn

from lowrank_utils import paths
from lowrank_utils.lab import models, score
from lowrank_utils.network.modules import evaluating
from lowrank_utils.network.profile import profile
from lowrank_utils.ranks import enc, search
from lowrank_utils.workbook import results, rivals
from lowrank_utils.workbook.plots import canvas
from lowrank_utils.workbook.tables import markdown

Answer = TypeVar("Answer")

NAME = "search-times"  # of the rows and the picture in the gallery
NETWORKS = {  # {network: layers that stay dense}
    "torchvision/vgg16": ("classifier.0", "classifier.3", "classifier.6"),
    "torchvision/resnet50": ("fc",),
}
SHAPE, CLASSES, BUDGET = (3, 224, 224), 1000, 0.5  # share of the MACs
IMAGES, REPEATS = 4, 3
THEIRS = {"ENC-Map": 5, "ENC-Model": 180}  # seconds of Kim, Khan & Kyung 2019, VGG-16 on a CPU
STAGES = {  # columns of the rows, in seconds
    "spectra": "spectra and energy curves",
    "ENC-Map": "ENC-Map's search",
    "ENC-Model": "ENC-Model's search",
    "exact": "exact search",
}

published = partial(rivals.published, NAME)


def measure(model: nn.Module, input_shape: Sequence[int], dense: Sequence[str] = (), kept: float = BUDGET) -> dict:
    """Return how long it takes to find ranks at a share `kept` of the MACs, in processor seconds.

    Only the weights are looked at. ENC-Model asks for measured curves too; the energy curves stand in for them, which changes what
    it finds and not what it does. Keys: layers that may be cut; options, of all of them; those of `STAGES`, of a search the median of
    `REPEATS` runs; networks, which the measured curves of ENC-Model would ask for; image, what one image takes in the dense network.
    Raises ValueError as `lowrank_utils.profile` and the searches do.
    """
    read = profile(model, input_shape=input_shape, dense=dense)
    options = search.rank_options(read)
    curves, spectra = _timed(lambda: search.energy(read, options))
    logs = search.logarithms(curves, curves)
    calls = {
        "ENC-Map": partial(enc.enc_map, read, kept, options=options, curves=curves),
        "ENC-Model": partial(enc.enc_model, read, kept, options=options, curves=curves, accuracy=curves),
        "exact": partial(search.exact_search, read, kept, options=options, values=logs),
    }
    batch = torch.zeros(IMAGES, *input_shape)
    with evaluating(model):
        each = [*calls.values(), partial(model, batch)]
        *searched, answered = score.alternately(each, repeats=REPEATS, warmup=1, clock=time.process_time)
    seconds = {name: float(np.median(readings)) / 1000 for name, readings in zip(calls, searched)}
    networks = sum(len(ranks) for own in options for ranks in search.measured_ranks(own).values())
    counts = {"layers": len(options), "options": sum(len(own.entries) for own in options)}
    image = float(np.median(answered)) / 1000 / IMAGES
    return {**counts, "spectra": spectra, **seconds, "networks": networks, "image": image}


def _timed(call: Callable[[], Answer]) -> tuple[Answer, float]:
    began, threads = time.process_time(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call(), time.process_time() - began
    finally:
        torch.set_num_threads(threads)


def renew(path: str | Path | None = None) -> pd.DataFrame:
    """Return the rows of the gallery; those that its file lacks are measured now, about a minute each on an idle core.

    One row a network, with random weights, which take as long as others: its name, kept, and what `measure` returns. Convolutions are
    cut, classifiers stay dense, as in the paper.
    """

    def row(asked: Mapping[str, Any]) -> dict[str, Any]:
        torch.manual_seed(0)
        model = models.build(asked["network"], SHAPE, CLASSES).eval()
        return {**asked, **measure(model, SHAPE, NETWORKS[asked["network"]])}

    wanted = [{"network": network, "kept": BUDGET} for network in NETWORKS]
    return results.completed(path or paths.GALLERY / f"{NAME}.csv", wanted, row)


def figure(rows: pd.DataFrame) -> Figure:
    """Draw the seconds of each stage on a logarithmic axis, a colour a network; ENC-Map's time in the paper is dotted."""
    drawn, (axis,) = canvas(width=7.0, height=2.6)
    palette = sns.color_palette("colorblind")
    for row, color in zip(rows.to_dict("records"), palette):
        axis.scatter([row[name] for name in STAGES], [*STAGES.values()], color=color, label=_short(row["network"]))
    axis.axvline(THEIRS["ENC-Map"], color="black", linestyle=":", label="ENC-Map in the paper, VGG-16")
    axis.set(xscale="log", xlabel="processor seconds, one thread")
    axis.invert_yaxis()
    drawn.legend(loc="outside upper center", ncols=3, fontsize="small")
    return drawn


def _short(network: str) -> str:
    return network.rpartition("/")[2]


def in_words(row: Mapping[Any, Any]) -> str:
    """Return in sentences what a search takes with its statistics: ENC-Map in seconds, ENC-Model in seconds an image."""
    of_map = row["spectra"] + row["ENC-Map"]
    curve = row["networks"] * row["image"]
    return (
        f"ENC-Map takes {of_map:.1f} s, {row['spectra'] / of_map:.1%} of it for the spectra. The curves of ENC-Model ask for {row['networks']:.0f} networks, "
        f"{curve:.0f} s for each image that they answer."
    )


def section(rows: pd.DataFrame) -> str:
    """Return the part of the gallery's page that shows the picture, its numbers and what they say."""
    lines = [
        [
            _short(row["network"]),
            f"{row['layers']:.0f}",
            f"{row['options']:,.0f}",
            *(f"{row[name]:.3g}" for name in STAGES),
        ]
        for row in rows.to_dict("records")
    ]
    told = "\n".join(f"- {_short(row['network'])}: {in_words(row)}" for row in rows.to_dict("records"))
    return f"""## How long a search takes, statistics included

![Processor seconds of each stage of the search for ranks, for two networks of torchvision](search-times.png)

ENC's paper gives about {THEIRS["ENC-Map"]} seconds for ENC-Map and {THEIRS["ENC-Model"] // 60} minutes for ENC-Model, for VGG-16 on a CPU. Here two networks of
torchvision are searched at half of their MACs. Their weights are random: it takes no longer to decompose others. Convolutions are cut and classifiers stay dense.
Processor seconds of one thread; the computers differ, so only their order of magnitude can be compared:

{markdown(["network", "layers", "options", *STAGES.values()], lines)}

{told}

The rows are `{NAME}.csv`.
"""
