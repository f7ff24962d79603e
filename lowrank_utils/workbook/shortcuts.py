"""What the shortcuts of `compress` cost and what they save: divergence from the dense answers against processor time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import nn

from lowrank_utils import paths
from lowrank_utils.compression import compress
from lowrank_utils.lab import data, training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.workbook import results, rivals
from lowrank_utils.workbook.plots import canvas
from lowrank_utils.workbook.prediction import divergences

NAME = "shortcuts"
KEPT = (0.5, 0.25)  # shares of the MACs
DEFAULT = "20 000 positions, signs"
SETTINGS: Mapping[str, dict[str, Any]] = {  # options of `compress`
    "everything, six ranks fitted": {"samples": None, "estimator": "exact", "draws": 10, "points": 6},
    "everything": {"samples": None, "estimator": "exact", "draws": 10},
    "40 000 positions, signs twice": {"samples": 40_000, "estimator": "signs", "draws": 2},
    DEFAULT: {"samples": 20_000, "estimator": "signs", "draws": 1},
    "10 000 positions, signs": {"samples": 10_000, "estimator": "signs", "draws": 1},
    "10 000 positions, drawn classes": {"samples": 10_000, "estimator": "draws", "draws": 1},
    "5 000 positions, signs": {"samples": 5_000, "estimator": "signs", "draws": 1},
}
CAPTION = (
    "Divergence of the compressed network from the dense one on 2 000 augmented training images that were not used for calibration "
    "(nats an image, lower is better), against the processor seconds of `compress(refine=False)` on one thread. Means over "
    "draws of the calibration images. The star is the default of `compress`; the first setting is what it was before."
)


published = partial(rivals.published, NAME)


def section(rows: pd.DataFrame) -> str:
    """Return the part of the gallery's page that shows the picture."""
    told = ", ".join(
        f"{network} ({own['draw'].nunique()} draw{'s' * (own['draw'].nunique() > 1)})"
        for network, own in rows.groupby("network")
    )
    return f"""## What the shortcuts of compress cost

![Divergence from the dense answers against processor seconds, for each way to collect statistics](shortcuts.png)

{CAPTION} Networks: {told}. The rows are `shortcuts.csv`.
"""


def unseen_images(data: Dataset, count: int = 2000, seed: int = 0) -> torch.Tensor:
    """Return the last `count` training images of a data set, moved and mirrored as in training (`training.augmentation`)."""
    images = data.tensors("train")[0][-count:]
    return training.augmentation(data)(images, torch.Generator().manual_seed(seed))


def measure(
    model: nn.Module,
    calibration: torch.Tensor,
    unseen: torch.Tensor,
    kept: Sequence[float] = KEPT,
    settings: Mapping[str, dict[str, Any]] = SETTINGS,
    **about: Any,
) -> pd.DataFrame:
    """Return one row for each budget and way to collect statistics: setting, kept, processor seconds, divergence on `unseen`.

    `about` is said in every row, such as network and draw.
    """
    rows = []
    for share in kept:
        for name, options in settings.items():
            began = time.process_time()
            found = compress(model, calibration, kept=share, refine=False, **options)
            seconds = time.process_time() - began
            row = {**about, "setting": name, "kept": share, "seconds": seconds}
            rows.append(row | {"divergence": float(divergences(model, found.model, unseen).mean())})
    return pd.DataFrame(rows)


def renew(path: str | Path | None = None, dataset: str = "cifar10", network: str = "resnet20") -> pd.DataFrame:
    """Return the rows of the gallery; those that its file lacks are measured now, half a minute each on an idle core.

    The public `network` with 1 000 calibration images, its first draw. Raises OSError where network or images cannot be had.
    """
    images = data.load(dataset)
    model, _ = training.trained(images, network, checkpoint="public", device="cpu")
    calibration, unseen = images.tensors("train", 1000)[0], unseen_images(images)

    def row(asked: Mapping[str, Any]) -> Mapping[Any, Any]:
        settings = {asked["setting"]: SETTINGS[asked["setting"]]}
        found = measure(model, calibration, unseen, (asked["kept"],), settings, network=network, draw=0)
        return found.iloc[0].to_dict()

    wanted = [{"network": network, "draw": 0, "setting": name, "kept": kept} for kept in KEPT for name in SETTINGS]
    return results.completed(path or paths.GALLERY / f"{NAME}.csv", wanted, row)


def figure(rows: pd.DataFrame) -> Figure:
    """Draw `rows` of `measure`: a panel for each budget, a point for each setting, its draws as small marks."""
    shares = sorted(rows["kept"].unique(), reverse=True)
    drawing, axes = canvas(columns=len(shares), width=4.8, height=3.6)
    palette = dict(zip(SETTINGS, sns.color_palette("colorblind")))
    for panel, share in zip(axes, shares):
        mine = rows[rows["kept"] == share]
        means = mine.groupby("setting", sort=False)[["seconds", "divergence"]].mean()
        for name, point in means.iterrows():
            draws = mine[mine["setting"] == name]
            panel.scatter(draws["seconds"], draws["divergence"], s=12, color=palette[name], alpha=0.5)
            marker = "*" if name == DEFAULT else "o"
            panel.scatter(*point, s=180 if name == DEFAULT else 60, marker=marker, color=palette[name], label=name)
        panel.set(title=f"{share:.0%} of the MACs kept", xlabel="processor seconds, one thread", xlim=(0, None))
        panel.set(ylabel="divergence (nats an image)", ylim=(0, None))
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small", title="statistics")
    return drawing
