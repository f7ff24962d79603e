"""Predicted against measured: networks compressed and measured on validation images, for the scale of `ranks.prediction`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import nn

from lowrank_utils import compression, paths
from lowrank_utils.factors import replace
from lowrank_utils.lab import data, language, text, training
from lowrank_utils.network.inputs import divergence, logits
from lowrank_utils.network.profile import profile
from lowrank_utils.ranks import prediction
from lowrank_utils.workbook import plots, rivals
from lowrank_utils.workbook.tables import thousands

NAME = "prediction"  # of the rows and the picture in the gallery
KEPT = (0.9, 0.75, 0.5, 0.35, 0.25, 0.15)
NETWORKS = (  # data set, network, checkpoint
    ("fashion-mnist", "lenet300", ""),
    ("mnist", "lenet300", ""),
    ("digits", "lenet300", ""),
    ("fashion-mnist", "lenet5", ""),
    ("fashion-mnist", "vgg_small", ""),
    ("cifar10", "mlp", ""),
    ("cifar10", "resnet20", "public"),
    ("cifar10", "resnet56", "public"),
)
TEXTS = ("wikitext-2", "python-topics")
KEPT_TOKENS = (0.95, 0.9, 0.8, 0.7, 0.6)  # of all parameters of a language model


def measure(
    networks: Sequence[tuple[str, str, str]] = NETWORKS,
    kept: Sequence[float] = KEPT,
    *,
    calibration_images: int = 1000,
    images: int = 2000,
) -> pd.DataFrame:
    """Return one row a network and budget: what was predicted, and the divergence measured after the plain sweep.

    `networks`: (data set, network, checkpoint) as `training.trained` takes them; `kept`: shares of the MACs; those out of
    reach are left out. The first `images` validation images are measured, never test images. Columns: dataset, network, kept,
    rise, positions, entropy, divergence and its standard error (nats), dense_accuracy, accuracy (shares), images, seen
    (whether the network was trained on the validation images, as the public ResNets were), answers (of an input: 1).
    """
    rows = []
    for name, network, checkpoint in networks:
        held = data.load(name)
        model, _ = training.trained(held, network, checkpoint=checkpoint, device="cpu")
        calibration = held.tensors("train", calibration_images)[0]
        inputs, labels = held.tensors("valid", images)
        how: dict[str, Any] = {"samples": compression.SAMPLES, "estimator": "signs", "draws": 1, "spectra": False}
        expected = compression.predict(profile(model, calibration, **how), kept)
        dense = training.evaluate(model, inputs, labels).accuracy
        for budget in expected.plans:
            small = _swept(model, calibration, budget)
            apart = divergences(model, small, inputs)
            told: Any = expected.table.set_index("kept").loc[budget]
            rows.append(
                {"dataset": name, "network": network, "kept": budget}
                | {column: float(told[column]) for column in ("rise", "positions", "entropy")}
                | {"divergence": float(apart.mean()), "standard_error": float(apart.std() / len(apart) ** 0.5)}
                | {"dense_accuracy": dense, "accuracy": training.evaluate(small, inputs, labels).accuracy}
                | {"images": len(inputs), "seen": checkpoint == "public", "answers": 1}
            )
    return pd.DataFrame(rows)


def measure_tokens(
    texts: Sequence[str] = TEXTS,
    kept: Sequence[float] = KEPT_TOKENS,
    *,
    name: str = "smollm2-135m",
    length: int = 512,
    calibration_windows: int = 16,
    windows: int = 8,
) -> pd.DataFrame:
    """Return the same rows for a language model `name`: one a text and share of all its parameters.

    The windows of `length` tokens come from the text to calibrate on (`text.Text.calibration`); those that are measured
    were not calibrated on. Factors are Fisher-weighted layer by layer. The column answers says how many tokens an input
    has; accuracies are NaN. Five minutes a text.
    """
    model, rows = language.load(name), []
    for each in texts:
        corpus = text.load(each)
        drawn = text.windows(corpus.calibration, model.tokenizer, length, calibration_windows + windows, seed=0).ids
        calibration, unseen = drawn[:calibration_windows], drawn[calibration_windows:]
        read = profile(model.model, calibration, samples=compression.SAMPLES, estimator="signs", draws=1, spectra=False)
        expected = compression.predict(read, kept, resource="parameters")
        for budget, plan in expected.plans.items():
            small = replace.apply_plan(read, plan, factors=replace.LAYERWISE, resource=None)
            apart = divergences(model.model, small, unseen, batch=1)
            told: Any = expected.table.set_index("kept").loc[budget]
            rows.append(
                {"dataset": each, "network": name, "kept": budget}
                | {column: float(told[column]) for column in ("rise", "positions", "entropy")}
                | {"divergence": float(apart.mean()), "standard_error": float(apart.std() / len(apart) ** 0.5)}
                | {"images": len(unseen), "seen": False, "answers": length}
            )
    return pd.DataFrame(rows)


def _swept(model, calibration, kept):
    return compression.compress(model, calibration, kept=kept, refine=False).model  # the plain sweep


def divergences(dense: nn.Module, small: nn.Module, images: torch.Tensor, batch: int = 100) -> torch.Tensor:
    """Return the Kullback-Leibler divergence (nats) of the answers of `small` from those of `dense`, one number an answer.

    `images`: inputs of both, N first, images or token ids; `batch` of them pass at once.
    """
    found = []
    with torch.inference_mode():
        for some in images.split(batch):
            wanted, answers = (logits(net(some)).double() for net in (dense, small))
            found.append(divergence(wanted, answers).flatten())
    return torch.cat(found)


published = partial(rivals.published, NAME)


def parts(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (rows of networks with one answer an input, rows of networks that answer every token)."""
    tokens = prediction.of_tokens(rows)
    return rows[~tokens], rows[tokens]


def figure(rows: pd.DataFrame) -> Figure:
    """Return predicted against measured divergence, each network predicted by a fit to the others; two panels.

    The left one holds the raw rise of the loss, the right one the calibrated prediction with its 90 % interval. Of a language
    model it is the text that is left out.
    """
    names = rows["dataset"] + " " + rows["network"]
    images, tokens = parts(rows)
    factor = float(prediction.errors(images).quantile(0.9))
    apart = pd.concat([prediction.left_out(part) for part in (images, tokens) if len(part)]).loc[rows.index]
    drawn, axes = plots.canvas(2, width=4.8, height=4.2, sharey=True)
    panels = (
        (rows["rise"], "raw predicted rise of the loss"),
        (apart, "calibrated, network left out"),
    )
    shown = rows["divergence"] >= prediction.LEAST
    markers = "osD^vPX*h<"
    for axis, (predicted, title) in zip(axes, panels):
        for i, name in enumerate(names.unique()):
            mine = (names == name) & shown
            axis.plot(
                predicted[mine], rows["divergence"][mine], marker=markers[i % len(markers)], linestyle="none",
                color=sns.color_palette("colorblind")[i % 10], label=name, markersize=6, alpha=0.85,
            )  # fmt: skip
        ends = np.array([3e-5, 5.0])
        axis.plot(ends, ends, color="black", linewidth=1, label="equal")
        axis.set(xscale="log", yscale="log", xlim=ends, ylim=(prediction.LEAST / 1.5, 3.0), title=title)
        axis.set_xlabel("predicted (nats)")
    axes[1].fill_between(ends, ends / factor, ends * factor, color="gray", alpha=0.2, label=f"factor {factor:.1f}")
    axes[0].set_ylabel("measured divergence (nats)")
    axes[1].legend(**plots.BESIDE)
    return drawn


def section(rows: pd.DataFrame) -> str:
    """Return the part of the gallery's page that shows the picture, with its numbers computed from `rows`."""
    images, tokens = parts(rows)
    missed, inside = prediction.errors(images), prediction.covered(images)
    return f"""## Predicted before cutting

![Predicted against measured divergence of compressed networks, each predicted from the others](prediction.png)

Divergence of the compressed network's answers from the dense ones, predicted by `lowrank_utils.predict` and measured on validation
images after the plain sweep; {images[["dataset", "network"]].drop_duplicates().shape[0]} networks. On the left is the rise of the loss as the search adds it up; it is too small for most networks, by
factors that differ. On the right each network is predicted from the others: half of the predictions miss by less than a factor of
{missed.median():.1f}, and 90 % by less than {missed.quantile(0.9):.1f} ({len(missed)} rows from {prediction.LEAST} nats on). The public ResNets were trained on these
validation images. Their deep cuts, above about 0.1 nat, come out too low, and nothing above 1 nat is to be trusted. {_of_tokens(tokens).strip()}

The accuracy lost has a range that allows for the error of the prediction and for the chance of the images. Computed for each network from the others, it holds {int(inside.sum())} of {len(inside)} measured losses, on {thousands(images["images"].min())} to {thousands(images["images"].max())} validation images. For more images it was not measured. The rows are `prediction.csv`.
"""


def _of_tokens(rows):
    if not len(rows):
        return ""
    raw = rows["divergence"] / rows["rise"]
    return (
        f"A language model answers every token, and has a scale of its own: SmolLM2-135M, {rows['dataset'].nunique()} texts, factors "
        f"layer by layer. The measured divergence is {raw.min():.1f} to {raw.max():.1f} times the rise that the search adds up. A text is "
        f"predicted from the other within a factor of {prediction.errors(rows).max():.1f}; for another language model nothing was measured. "
    )


def renew(path: str | Path | None = None) -> pd.DataFrame:
    """Return the rows of the gallery, every network measured anew (about twenty minutes), and write them to `path`.

    Raises OSError where CIFAR-10, the public ResNets, WikiText-2 or the language model cannot be had.
    """
    rows = pd.concat([measure(), measure_tokens()], ignore_index=True)
    with paths.atomic_write(path or paths.GALLERY / f"{NAME}.csv") as temporary:
        rows.to_csv(temporary, index=False, float_format="%.6g")
    return rows
