"""The pictures of the front page: each a function of its rows, small, with its parts named where they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MultipleLocator, NullFormatter, NullLocator, PercentFormatter

from lowrank_utils.workbook.plots import SIGNED, canvas

RANK = 20  # of the picture of the idea
PALETTE = sns.color_palette("colorblind")
KINDS = {  # factors, in the order in which the picture lists them
    "svd": "plain SVD",
    "svd recalibrated": "plain SVD,\nbatch norms anew",
    "data-aware": "data-aware",
    "sequential": "front to back",
    "relu-aware": "ReLU-aware",
    "fisher-weighted": "Fisher-weighted",
}
TITLES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}
LINES = {  # (chooser, factors) of a language model: name at the end of its line, colour, style
    ("one share", "data-aware"): ("neither", 7, ":"),
    ("one share", "fisher-layerwise"): ("better factors", 1, "--"),
    ("exact", "data-aware"): ("better ranks", 0, "-."),
    ("exact", "fisher-layerwise"): ("both", 2, "-"),
}
VERDICTS = {"yes": (2, "yes"), "in part": (1, "part"), "no": (3, "no"), "not settled": (7, "open"), "-": (7, "?")}


def idea(weights: pd.DataFrame) -> Figure:
    """Draw the weights of a layer, its singular values, and its two low-rank factors at `RANK`; all matrices to one scale."""
    matrix = weights.to_numpy(float)
    rows, columns = matrix.shape
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    gap = 0.08 * columns
    figure, axes = canvas(3, width=2.9, height=2.1, width_ratios=[columns, 0.55 * columns, columns + RANK + gap])
    limit = float(np.quantile(np.abs(matrix), 0.99))
    _image(axes[0], matrix, (0, columns, rows, 0), limit)
    axes[0].set_title(f"1. a layer: {rows} x {columns} weights", fontsize=9)
    _spectrum(axes[1], s)
    signs = np.sign(u[np.abs(u[:, :RANK]).argmax(axis=0), range(RANK)])
    left, right = u[:, :RANK] * signs, (s[:RANK] * signs)[:, None] * v[:RANK]
    _image(axes[2], left, (0, RANK, rows, 0), float(np.quantile(np.abs(left), 0.99)))
    _image(axes[2], right, (RANK + gap, RANK + gap + columns, RANK, 0), float(np.quantile(np.abs(right), 0.99)))
    axes[2].set(xlim=(0, RANK + gap + columns), ylim=(rows, 0))
    kept = RANK * (rows + columns)
    axes[2].set_title(f"3. two thin layers: {kept / matrix.size:.0%} of the weights", fontsize=9)
    axes[2].text(RANK + gap, rows / 2, f"{rows} x {RANK} and {RANK} x {columns}", fontsize=9, va="center")
    for axis in axes[::2]:
        axis.set_aspect("equal")
        axis.set_axis_off()
    return figure


def _image(axis: Axes, matrix: np.ndarray, place: tuple[float, float, float, float], limit: float) -> None:
    axis.imshow(matrix, cmap=SIGNED, vmin=-limit, vmax=limit, extent=place, interpolation="antialiased")


def _spectrum(axis: Axes, values: np.ndarray) -> None:
    """Draw singular values, those that are kept shaded, with the share of the energy that they hold."""
    places = np.arange(1, len(values) + 1)
    held = (values[:RANK] ** 2).sum() / (values**2).sum()
    axis.plot(places, values, color="0.4")
    axis.fill_between(places[:RANK], values[:RANK], color=PALETTE[0], alpha=0.6)
    axis.set(ylim=0, xlim=(0, len(values)), xlabel="component", ylabel="singular value")
    axis.set_title("2. keep the largest", fontsize=9)
    axis.annotate(
        f"{RANK} of {len(values)},\n{held:.0%} of the energy",
        (RANK, values[RANK]),
        (18, 22),
        textcoords="offset points",
        fontsize=9,
    )
    axis.tick_params(labelsize=8)
    axis.xaxis.label.set_fontsize(9)
    axis.yaxis.label.set_fontsize(9)


def factors(rows: pd.DataFrame) -> Figure:
    """Draw accuracy at half of the MACs: a panel a network, a point a kind of factors, the dense network as a line."""
    networks = list(rows["network"].unique())
    figure, axes = canvas(len(networks), width=4.1, height=2.5, sharey=True)
    for axis, network in zip(axes, networks):
        of = rows[rows["network"] == network].set_index("factors")["accuracy"]
        kinds = [kind for kind in KINDS if kind in of]
        colours = ["0.35", PALETTE[1], *[PALETTE[0]] * 4]
        for place, (kind, colour) in enumerate(zip(kinds, colours)):
            axis.plot(of[kind], place, "o", color=colour)
            left = of[kind] > of[kinds].min() + 0.5 * (of["dense"] - of[kinds].min())
            side = (-8, 0, "right") if left else (8, 0, "left")
            text = f"{of[kind]:.1%}".replace("%", " %")
            axis.annotate(
                text, (of[kind], place), side[:2], textcoords="offset points", ha=side[2], va="center", fontsize=9
            )
        axis.axvline(of["dense"], color="black", linestyle=":")
        axis.set(yticks=range(len(kinds)), yticklabels=[KINDS[kind] for kind in kinds], xlabel="test accuracy")
        axis.set_title(
            f"{TITLES.get(network, network)} (dotted: dense, {of['dense']:.1%})".replace("%", " %"), fontsize=10
        )
        axis.set_ylim(len(kinds) - 0.5, -0.5)
        axis.xaxis.set_major_locator(MultipleLocator(0.1 if np.ptp(of) > 0.2 else 0.05))
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def ranks(rows: pd.DataFrame) -> Figure:
    """Draw perplexity against the share of the blocks kept: with better factors, better ranks, both and neither."""
    figure, (axis,) = canvas(width=6.4, height=2.9)
    dense = float(rows.loc[rows["chooser"] == "dense", "perplexity"].iloc[0])
    ends: dict[str, tuple[float, float]] = {}
    for (chooser, kind), (name, colour, style) in LINES.items():
        mine = rows[(rows["chooser"] == chooser) & (rows["factors"] == kind)].sort_values("budget")
        axis.plot(mine["budget"], mine["perplexity"], style, marker="o", color=PALETTE[colour], label=name)
        ends[name] = (float(mine["budget"].iloc[-1]), float(mine["perplexity"].iloc[-1]))
    shares = sorted(set(rows["budget"]) - {1.0})
    axis.plot([shares[0], shares[-1]], [dense, dense], color="black", linestyle=":")  # it ends where the names begin
    axis.annotate(f"dense ({dense:.0f})", (shares[0], dense), (0, 4), textcoords="offset points", fontsize=9)
    top = 10 ** np.ceil(np.log10(rows["perplexity"].max()))
    levels = [level for level in (20, 50, 100, 200, 500, 1000, 2000, 5000) if level < top]
    axis.set(yscale="log", xlabel="parameters of the blocks kept", ylabel="perplexity (lower is better)")
    axis.set_xlim(shares[0] - 0.02, shares[-1] + 0.35 * (shares[-1] - shares[0]))
    axis.xaxis.set_major_locator(FixedLocator(shares))
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.yaxis.set_major_locator(FixedLocator(levels))
    axis.yaxis.set_major_formatter("{x:.0f}")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_formatter(NullFormatter())
    _name_ends(axis, ends)
    return figure


def _name_ends(axis: Axes, ends: dict[str, tuple[float, float]], gap: float = 12) -> None:
    """Write names and values right of the ends of lines, at least `gap` points apart, from the lowest up."""
    axis.figure.canvas.draw()
    colours, below = {name: PALETTE[colour] for name, colour, _ in LINES.values()}, -np.inf
    for name, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        at = axis.transData.transform((x, y))[1] * 72 / axis.figure.dpi
        below = place = max(at, below + gap)
        where = {"textcoords": "offset points", "va": "center", "fontsize": 9, "color": colours[name]}
        axis.annotate(f"{name} ({y:.0f})", (x, y), (9, place - at), **where)


def claims(rows: pd.DataFrame) -> Figure:
    """Draw the verdicts on the papers' own claims: a line a claim, a tile a setting; two verdicts stand for one and two points."""
    asked = list(dict.fromkeys(zip(rows["paper"], rows["claim"])))
    figure, (axis,) = canvas(width=8.2, height=0.26 * len(asked) + 0.3)
    widest = int(rows.groupby(["paper", "claim"]).size().max())
    for place, (paper, claim) in enumerate(asked):
        told = rows.loc[(rows["paper"] == paper) & (rows["claim"] == claim), "holds"]
        for column, verdict in enumerate(told):
            halves = verdict.split(" / ")
            for half, word in enumerate(halves):
                colour, short = VERDICTS.get(word, (7, word))
                left, wide = column + half / len(halves), 0.94 / len(halves)
                axis.barh(place, wide, left=left, height=0.86, color=PALETTE[colour], alpha=0.55)
                axis.text(
                    left + wide / 2, place, short, ha="center", va="center", fontsize=8 if len(halves) == 1 else 7
                )
    names = [f"{paper}: {claim}" for paper, claim in asked]
    axis.set(yticks=range(len(asked)), yticklabels=names, xticks=[], xlim=(0, widest), ylim=(len(asked) - 0.5, -0.5))
    axis.tick_params(labelsize=8)
    axis.grid(False)
    for side in axis.spines.values():
        side.set_visible(False)
    return figure


DRAWN: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "idea": idea,
    "factors": factors,
    "ranks": ranks,
    "claims": claims,
}
