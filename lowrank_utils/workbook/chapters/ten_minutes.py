"""Chapter 00, low rank in ten minutes: one trained layer, its components as images, and one call of `compress`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from torch import nn

from lowrank_utils import checks
from lowrank_utils.compression import Compressed
from lowrank_utils.factors import replace, svd
from lowrank_utils.lab import columns, models, score, training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network.profile import LayerProfile, Profile
from lowrank_utils.ranks import rules
from lowrank_utils.workbook.plots import canvas, colour_of, draw_signed, name_lines, tiles, upright
from lowrank_utils.workbook.tables import markdown

NOTEBOOK = "00_low_rank_in_ten_minutes"
CAPTIONS = {  # of its tables
    "One call": "The dense network and what one call of `compress` made of it. Percent of the test images and of the dense network's parameters.",
}
STRIP = (1, 2, 5, 10, 20, 50)  # ranks of the strip of pictures, before the full rank
SHOWN = (1, 2, 3, 4, 5, 10, 20, 50, 100, 300)  # components that are drawn
NEURONS = 4  # rows of the strip
NAMES = {"svd": "plain", "data-aware": "data-aware"}  # of the two kinds of factors in figures


# ---- the layer and its components -------------------------------------------------------------------------------------


def first_layer(model: nn.Module, input_shape: Sequence[int], rank: int = 1) -> tuple[str, nn.Linear]:
    """Return (name, layer) of the fully connected layer that sees the pixels of an image.

    `input_shape`: (channels, height, width) of an image. Raises ValueError where the first layer with weights is another kind,
    as its rows could not be drawn as images, and where `rank` is outside 1 to its full rank.

    >>> first_layer(models.build("lenet300", (1, 28, 28), 10), (1, 28, 28))
    ('fc1', Linear(in_features=784, out_features=300, bias=True))
    """
    weighted = ((name, module) for name, module in model.named_modules() if getattr(module, "weight", None) is not None)
    name, layer = next(weighted, ("", model))
    if not isinstance(layer, nn.Linear) or layer.in_features != math.prod(input_shape):
        raise ValueError(
            f"the first layer is a {type(layer).__name__}, and this notebook needs a fully connected one, "
            "whose rows can be drawn as images: choose network lenet300 or mlp"
        )
    checks.check_count(rank=rank)
    full = min(layer.weight.shape)
    if rank > full:
        raise ValueError(f"rank={rank} is above the full rank of {name}: choose one from 1 to {full}")
    return name, layer


def random_start(network: str, images: Dataset, seed: int) -> torch.Tensor:
    """Return the weights (d_out x d_in, float64) of the first layer before training."""
    model = models.build(network, images.input_shape, len(images.classes), seed=seed)
    return first_layer(model, images.input_shape)[1].weight.detach().double()


def energy(singular_values: torch.Tensor, rank: int) -> float:
    """Return the share of the energy of a matrix, the sum of its squared entries, that the best matrix of `rank` holds.

    sum_{i <= rank} s_i^2 / sum_i s_i^2, with the `singular_values` falling. Raises ValueError for a rank below 0.

    >>> round(energy(torch.tensor([3.0, 2.0, 1.0]), 2), 3)
    0.929
    """
    checks.check_count(least=0, rank=rank)
    squares = singular_values.double().square()
    return float(squares[:rank].sum() / squares.sum())


def smoothness(pattern: torch.Tensor, shape: Sequence[int]) -> float:
    """Return the correlation of neighbouring pixels of a pattern: near 1 for a smooth shape, near 0 for noise.

    `pattern`: a vector of channels x height x width numbers, as `shape` has them. Of a pattern that is the same everywhere it is 0.
    """
    image = pattern.detach().double().reshape(*shape)
    across = (image[:, :, :-1].flatten(), image[:, :, 1:].flatten())
    down = (image[:, :-1].flatten(), image[:, 1:].flatten())
    left, right = (torch.cat(parts) for parts in zip(across, down))
    left, right = left - left.mean(), right - right.mean()
    size = float(left.norm() * right.norm())
    return float(left @ right) / size if size > 0 else 0.0


def in_range(wanted: Sequence[int], full: int) -> list[int]:
    """Return the numbers of `wanted` that are below `full`, and `full`.

    >>> in_range((1, 5, 10, 300), 64)
    [1, 5, 10, 64]
    """
    return [number for number in wanted if number < full] + [full]


# ---- the experiment ---------------------------------------------------------------------------------------------------


def by_rank(read: Profile, images: Dataset, name: str, rank: int = 1) -> pd.DataFrame:
    """Return what one layer loses at each rank, in plain and in data-aware factors, on validation images.

    Parameters
    ----------
    read : of the trained network, with calibration images that the data-aware factors see.
    images : the data set; its validation images are measured on.
    name : of the first layer of the network, which sees the pixels.
    rank : one that is measured beside the usual ones.

    One row a kind of factors and rank: columns factors, rank, lost (share of the energy of the layer's centred outputs),
    accuracy (of the whole network with only this layer cut).
    """
    x, y = images.tensors("valid")
    layer, card = read.model.get_submodule(name), read[name]
    ranks = in_range(sorted({*STRIP, 100, 200, rank}), card.full_rank)
    dense = _centred(layer, x)
    rows = []
    for factors in svd.METHODS:
        found = replace.decompose_layers(read, [name], factors)
        for r in ranks:
            small = replace.apply_plan(read, {name: r}, factors=found, resource=None)
            gone = float((dense - _centred(small.get_submodule(name), x)).square().sum() / dense.square().sum())
            accuracy = training.evaluate(small, x, y).accuracy
            rows.append({"factors": factors, "rank": r, "lost": gone, "accuracy": accuracy})
    return pd.DataFrame(rows)


def _centred(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        outputs = layer(x.flatten(1)).double()
    return outputs - outputs.mean(0)


def experiment(images: Dataset, model: nn.Module, small: Compressed, *, kept: float, **about: Any) -> pd.DataFrame:
    """Return two rows, measured on test images: the dense network, and what `compress` made of it.

    Parameters
    ----------
    images, model : a data set and the network that was trained on it.
    small : what `lowrank_utils.compress` returned for `model` with ``resource="parameters"``.
    kept : the share of the parameters that was asked for, in (0, 1].
    about : columns of both rows: dataset, network, seed, calibration_images.

    Raises ValueError for a share outside its range.
    """
    checks.check_share(kept=kept)
    test = images.tensors("test")
    about |= {"notebook": NOTEBOOK}
    dense: dict[str, Any] = {"chooser": "dense", "scope": "none", "budget_kind": "dense", "stored_as": "dense"}
    cut: dict[str, Any] = {"chooser": "exact-Fisher", "factors": "fisher-weighted", "scope": "hidden layers"}
    cut |= {"budget_kind": "kept", "budget": kept, "stored_as": "low rank", "tuned": small.tuned}
    cut |= {"plan": json.dumps(small.plan), "seconds_to_find": small.seconds}
    return columns.table(
        [score.row(model, model, test, **about, **dense), score.row(small.model, model, test, **about, **cut)]
    )


# ---- figures ----------------------------------------------------------------------------------------------------------


def _leading_rows(weight: torch.Tensor, count: int) -> list[int]:
    """Return the numbers of the longest rows of a matrix, longest first."""
    return weight.norm(dim=1).argsort(descending=True)[:count].tolist()


def weights(images: Dataset, weight: torch.Tensor) -> Figure:
    """Return a picture of a layer: an image of each class that it sees, and the weights of twenty of its outputs as images.

    `weight`: d_out x d_in, where d_in are the pixels of an image. The outputs with the largest weights are drawn.
    """
    labels = images.train.labels
    classes = [c for c in range(len(images.classes)) if (labels == c).any()][:10]
    figure, axes = tiles(3, 10)
    for axis, c in zip(axes[0], classes):
        axis.imshow(images.train.images[np.flatnonzero(labels == c)[0]], cmap="gray_r")
        axis.set_title(images.classes[c], fontsize=8)
    for axis, row in zip(axes[1:].ravel(), _leading_rows(weight, 20)):
        draw_signed(axis, weight[row], images.input_shape)
        axis.set_title(f"output {row}", fontsize=8)
    axes[0, 0].set_ylabel("images", fontsize=9)
    axes[1, 0].set_ylabel("weights", fontsize=9)
    axes[2, 0].set_ylabel("weights", fontsize=9)
    return figure


def components(singular_values: torch.Tensor, vt: torch.Tensor, start: torch.Tensor, shape: Sequence[int]) -> Figure:
    """Return input patterns as images, and below them the singular values of the layer, trained and before training.

    Parameters
    ----------
    singular_values : falling (k).
    vt : input patterns (k x d_in), one row a component.
    start : singular values of the random weights (k).
    shape : (channels, height, width) of a pattern.
    """
    shown = in_range(SHOWN, len(singular_values))
    figure, axes = tiles(2, len(shown), height_ratios=[1, 2.2])
    figure.set_size_inches(10, 4.2)
    for axis, number in zip(axes[0], shown):
        draw_signed(axis, upright(vt[number - 1]), shape)
        axis.set_title(f"component {number}" if number == 1 else f"{number}", fontsize=9)
    for axis in axes[1]:
        axis.remove()
    below = figure.add_subplot(axes[1, 0].get_gridspec()[1, :])
    index = np.arange(1, len(singular_values) + 1)
    below.plot(index, start, "--", color="dimgray")
    below.plot(index, singular_values, color="black")
    places = [number - 1 for number in shown]
    below.plot(index[places], np.asarray(singular_values)[places], "o", color="black", markersize=5)
    below.set(
        xscale="log",
        xlabel="component",
        ylabel="singular value",
        ylim=(0, 1.12 * float(max(singular_values[0], start[0]))),
    )
    below.xaxis.set_major_locator(FixedLocator(shown))
    below.xaxis.set_minor_locator(NullLocator())
    below.set_xticklabels(map(str, shown))
    below.grid(alpha=0.4)
    below.annotate("trained", (1, float(singular_values[0])), (10, 2), textcoords="offset points")
    below.annotate("before training", (1, float(start[0])), (0, 5), textcoords="offset points", color="dimgray")
    return figure


def strip(
    weight: torch.Tensor, u: torch.Tensor, singular_values: torch.Tensor, vt: torch.Tensor, shape: Sequence[int]
) -> Figure:
    """Return the weights of four outputs as images, rebuilt from more and more components.

    `weight` = u diag(singular_values) vt, d_out x d_in. Each picture has its own scale of colours. Above each column stand the
    rank and the share of the energy that it holds.
    """
    ranks = in_range(STRIP, len(singular_values))
    chosen = _leading_rows(weight, NEURONS)
    figure, axes = tiles(len(chosen), len(ranks), 1.25)
    for column, rank in enumerate(ranks):
        rebuilt = (u[:, :rank] * singular_values[:rank]) @ vt[:rank]
        title = f"rank {rank}" if rank < len(singular_values) else f"rank {rank} (full)"
        axes[0, column].set_title(f"{title}\n{energy(singular_values, rank):.0%} of energy", fontsize=9)
        for axis, row in zip(axes[:, column], chosen):
            draw_signed(axis, rebuilt[row], shape)
    for axis, row in zip(axes[:, 0], chosen):
        axis.set_ylabel(f"output {row}", fontsize=9)
    return figure


def break_even(card: LayerProfile, rank: int) -> Figure:
    """Return a drawing of a layer and its factors, areas to scale: dense, at `rank`, and at the largest rank that pays."""
    d_out, d_in = card.shape
    most = card.break_even("parameters")
    gap, colour = 0.03 * d_in, colour_of("data-aware")
    width, height = max(most, rank) + gap + d_in, d_out
    figure, axes = canvas(3, width=3.4, height=min(3.4 * height / width, 3.0) + 0.9)
    cases: list[tuple[str, int | None]] = [
        ("the layer", None),
        (f"rank {rank}", rank),
        (f"rank {most}: the largest that pays", most),
    ]
    for axis, (title, r) in zip(axes, cases):
        held = d_out * d_in if r is None else r * (d_out + d_in)
        axis.set_title(f"{title}\n{held:,} weights, {held / (d_out * d_in):.1%}", fontsize=10, loc="left")
        if r is None:
            axis.add_patch(Rectangle((0, -d_out), d_in, d_out, facecolor="silver"))
            told = f"{d_out} x {d_in}"
        else:
            axis.add_patch(Rectangle((0, -d_out), r, d_out, facecolor=colour))
            axis.add_patch(Rectangle((r + gap, -r), d_in, r, facecolor=colour))
            told = f"{d_out} x {r} times {r} x {d_in}"
        axis.text(0, -1.04 * max(d_out, r or 0), told, va="top", fontsize=10)
        axis.set_axis_off()
        axis.set(aspect="equal", anchor="NW", xlim=(0, width), ylim=(-1.2 * max(d_out, most, rank), 0))
    return figure


def directions(
    patterns: Mapping[str, torch.Tensor], shares: Mapping[str, torch.Tensor], shape: Sequence[int], count: int = 10
) -> Figure:
    """Return the leading input patterns of several kinds of factors as images, with what each is worth on data.

    Parameters
    ----------
    patterns : {kind of factors ("svd", "data-aware"): k x d_in, the leading pattern first}.
    shares : {kind of factors: k shares of the energy of the outputs}, which stand above the images.
    shape : (channels, height, width) of a pattern.
    count : how many patterns of each kind are drawn, at most.
    """
    count = min(count, *(len(rows) for rows in patterns.values()))
    figure, axes = tiles(len(patterns), count)
    figure.set_size_inches(count, 1.3 * len(patterns))
    for line, (kind, rows) in zip(axes, patterns.items()):
        for axis, pattern, share in zip(line, rows, shares[kind]):
            draw_signed(axis, upright(pattern), shape)
            axis.set_title(f"{float(share):.0%}", fontsize=9)
        line[0].set_ylabel(NAMES.get(kind, kind), fontsize=10, color=colour_of(kind))
    return figure


def curves(table: pd.DataFrame, card: LayerProfile, dense: float) -> Figure:
    """Return what a layer loses against its rank, two panels: energy of its outputs, accuracy of the network.

    Parameters: `table` of `by_rank`; `card` of the layer, for its break-even rank, right of which nothing is saved; `dense`,
    the accuracy of the dense network on the same images.
    """
    figure, (left, right) = canvas(2, width=5.0)
    end = 1.3 * card.full_rank
    for kind, line in table.groupby("factors", sort=False):
        style = {"marker": "o", "markersize": 4, "color": colour_of(str(kind))}
        cut = line[line["rank"] < card.full_rank]
        left.plot(cut["rank"], cut["lost"], label=NAMES.get(str(kind), str(kind)), **style)
        right.plot(line["rank"], line["accuracy"], **style)
    name_lines(left)
    for axis in (left, right):
        axis.axvspan(card.break_even("parameters"), end, color="gray", alpha=0.2, linewidth=0)
        axis.set(xscale="log", xlabel=f"rank of {card.name}", xlim=(0.9, end))
        axis.xaxis.set_major_locator(FixedLocator(in_range((*STRIP, 100), card.full_rank)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:.0f}")
    left.set(yscale="log", ylabel="share of the outputs' energy", title="what the layer loses")
    left.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    right.axhline(dense, color="black", linestyle=":")
    right.annotate("dense network", (0.95, dense), (0, 3), textcoords="offset points", fontsize=9)
    right.set(ylim=(0, 1.12 * max(dense, 0.9)), ylabel="accuracy", title=f"the network with only {card.name} cut")
    right.annotate(
        "saves nothing",
        (end, 0),
        (-3, 6),
        textcoords="offset points",
        fontsize=9,
        rotation=90,
        ha="right",
        va="bottom",
        bbox={"facecolor": "0.9", "edgecolor": "none", "pad": 1},
    )
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def ledger(small: Compressed, read: Profile) -> Figure:
    """Return the parameters of each layer before (grey) and after (coloured) `compress`, as bars with the new rank.

    `read`: the profile of the dense network.
    """
    figure, (axis,) = canvas(width=10, height=0.7 + 0.45 * len(small.layers))
    sizes = {card.name: card.parameters for card in read}
    widest = max(sizes.values())
    for place, row in enumerate(small.layers.to_dict("records")):
        size = sizes[row["layer"]]
        axis.barh(place, size, color="silver", height=0.7)
        axis.barh(place, size * row["parameters"], color=colour_of("exact, Fisher"), height=0.7)
        axis.text(
            size + 0.01 * widest,
            place,
            f"{row['planned']}: {row['parameters']:.0%} of {size:,}",
            va="center",
            fontsize=9,
        )
    axis.set(yticks=range(len(small.layers)), yticklabels=small.layers["layer"], xlim=(0, 1.3 * widest))
    axis.set(xlabel="parameters")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.invert_yaxis()
    axis.grid(False)
    return figure


def two_spectra(trained: torch.Tensor, shuffled: Any) -> Figure:
    """Return the singular values of a trained layer, and beside them those that a learner found for its shuffled weights.

    Where `shuffled` is not as many numbers as `trained`, as when the exercise is not answered yet, the figure says so.
    """
    figure, (axis,) = canvas(width=7)
    index = np.arange(1, len(trained) + 1)
    axis.plot(index, trained, color="black")
    axis.annotate("trained", (1, float(trained[0])), (8, 0), textcoords="offset points")
    axis.set(xscale="log", xlabel="component", ylabel="singular value", ylim=(0, 1.1 * float(trained[0])))
    axis.xaxis.set_major_formatter("{x:.0f}")
    found = as_numbers(shuffled)
    if found is None or found.shape != index.shape:
        axis.text(0.97, 0.9, f"shuffled: no answer of {len(index)} numbers yet", transform=axis.transAxes, ha="right")
        return figure
    colour = colour_of("entropy")
    axis.plot(index, found, color=colour)
    axis.annotate("shuffled", (1, float(found[0])), (0, 6), textcoords="offset points", color=colour)
    return figure


def as_numbers(values: Any) -> np.ndarray | None:
    """Return values as an array of numbers, or None where they are none."""
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        return None


def plain_directions_needed(shares: Mapping[str, torch.Tensor], rank: int) -> int:
    """Return how many plain directions hold as much energy of the outputs as the first `rank` data-aware ones.

    `shares`: {"svd": k shares, "data-aware": k shares}, as `directions` takes them.

    >>> plain_directions_needed({"svd": torch.tensor([0.3, 0.5, 0.2]), "data-aware": torch.tensor([0.7, 0.2, 0.1])}, 1)
    2
    """
    wanted = shares["data-aware"][:rank].sum() - 1e-9  # so that equal sums count as enough
    return int((shares["svd"].cumsum(0) < wanted).sum()) + 1


def shuffled_spectrum(weight: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Return the singular values (falling) of a matrix of the same entries in a random order."""
    order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(seed))
    return torch.linalg.svdvals(weight.flatten()[order].reshape(weight.shape))


# ---- sentences, from the numbers --------------------------------------------------------------------------------------


def about_layer(model: nn.Module, name: str) -> str:
    """Return in a sentence how large a fully connected layer of a network is."""
    layer: Any = model.get_submodule(name)
    d_out, d_in = layer.weight.shape
    whole = score.parameters(model)
    return (
        f"The layer `{name}` turns the {d_in:,} numbers of an image into {d_out:,} outputs. Its matrix holds {d_out * d_in:,} weights, which are "
        f"{d_out * d_in / whole:.0%} of the {whole:,} parameters of the network."
    )


def about_components(singular_values: torch.Tensor, vt: torch.Tensor, start: torch.Tensor, shape: Sequence[int]) -> str:
    """Return in sentences how the first components differ from the last, and the trained matrix from its random start.

    Parameters as of `components`.
    """
    count, few = len(singular_values), min(10, len(singular_values))
    first, last = smoothness(vt[0], shape), smoothness(vt[-1], shape)
    shapes = (
        "So the first pattern is smooth, and the last is close to noise."
        if first > last + 0.2
        else "So the first pattern is hardly smoother than the last."
    )
    held, before = energy(singular_values, few), energy(start, few)
    learned = (
        "Training has gathered the energy in few components."
        if held > 1.5 * before
        else "Training has hardly gathered it."
    )
    return (
        f"In the input pattern of component 1, neighbouring pixels correlate by {first:.2f}. In that of component {count}, they "
        f"correlate by {last:.2f}. {shapes} "
        f"The first {few} of {count} components hold {held:.1%} of the energy. Before training they held {before:.1%}. {learned}"
    )


def about_strip(singular_values: torch.Tensor) -> str:
    """Return in a sentence at which ranks half and nine tenths of the energy are back."""
    half, most = (rules.rank(singular_values.numpy(), share) for share in (0.5, 0.9))
    return f"Half of the energy is back at rank {half}, and 90% of it at rank {most} of {len(singular_values)}."


def about_break_even(card: LayerProfile, rank: int) -> str:
    """Return in sentences what a rank saves, and up to which rank anything is saved."""
    d_out, d_in = card.shape
    dense, held = d_out * d_in, rank * (d_out + d_in)
    most = card.break_even("parameters")
    what = "less" if held < dense else "not less"
    return (
        f"At rank {rank} the two factors hold {rank} x ({d_out} + {d_in}) = {held:,} weights. That is {what} than the "
        f"{d_out} x {d_in} = {dense:,} of the layer. The largest rank that saves anything is {most}, and the full rank is {card.full_rank}."
    )


def about_curves(table: pd.DataFrame, rank: int) -> str:
    """Return in sentences what plain and data-aware factors lose at `rank`; `table` is that of `by_rank`.

    Raises ValueError for a rank that was not measured.
    """
    at = {row["factors"]: row for row in table[table["rank"] == rank].to_dict("records")}
    if not {"svd", "data-aware"} <= at.keys():
        raise ValueError(f"rank={rank} was not measured: choose one of {sorted(set(table['rank']))}")
    plain, aware = at["svd"], at["data-aware"]
    ahead = _points(aware["accuracy"], plain["accuracy"])
    verdict = f"Data-aware factors are {abs(ahead):.1f} points {'ahead' if ahead > 0 else 'behind'}."
    return (
        f"At rank {rank}, plain factors lose {plain['lost']:.0%} of the energy of the outputs, and the network is right on "
        f"{plain['accuracy']:.1%} of the validation images. Data-aware factors lose {aware['lost']:.0%}, and it is right on "
        f"{aware['accuracy']:.1%}. {verdict if ahead else 'They are level.'}"
    )


def _points(accuracy: float, other: float) -> float:
    """Return by how many points one accuracy is above another, as the two are printed: with one decimal."""
    return round(round(100 * accuracy, 1) - round(100 * other, 1), 1)


def about_call(rows: pd.DataFrame, images: int) -> str:
    """Return in sentences what `compress` kept and lost; `rows` are those of `experiment`, `images` how many were tested."""
    (before,) = rows[rows["chooser"] == "dense"].to_dict("records")
    (after,) = rows[rows["chooser"] != "dense"].to_dict("records")
    change = _points(after["accuracy"], before["accuracy"])
    way = "no change" if not change else f"{abs(change):.1f} points {'more' if change > 0 else 'less'}"
    error = 100 * math.sqrt(before["accuracy"] * (1 - before["accuracy"]) / images)
    return (
        f"**Before:** {before['parameters']:,} parameters, {before['accuracy']:.1%} of the test images right. "
        f"**After:** {after['parameters_kept']:.1%} of the parameters, {after['accuracy']:.1%} right: {way}. "
        f"One accuracy on {images:,} images has a standard error of {error:.1f} points."
    )


def about_shuffled(trained: torch.Tensor, shuffled: torch.Tensor, rank: int) -> str:
    """Return in sentences how much energy `rank` components hold in a trained and in a shuffled matrix, and what that says."""
    held, before = energy(trained, rank), energy(shuffled, rank)
    places = held > 1.5 * before
    return (
        f"At rank {rank} the trained matrix holds {held:.0%} of its energy, the shuffled one {before:.0%}. "
        f"So {'the places of the weights make' if places else 'it is not the places of the weights that make'} the spectrum fall."
    )


def tables(rows: pd.DataFrame) -> dict[str, str]:
    """Return {heading: Markdown table} of the rows: parameters kept and accuracy of the dense and the compressed network."""
    lines = [
        [
            row["dataset"],
            row["network"],
            str(row["seed"]),
            "dense" if row["chooser"] == "dense" else "compressed",
            f"{row['parameters']:,}",
            f"{100 * row['parameters_kept']:.1f}",
            f"{100 * row['accuracy']:.1f}",
        ]
        for row in rows.to_dict("records")
    ]
    header = ["data set", "network", "seed", "as", "parameters", "kept %", "accuracy %"]
    return {next(iter(CAPTIONS)): markdown(header, lines)}
