"""The figures of the workbook, one style: colour-blind-safe, axes with units, the dense network as a line.

Every function returns a closed matplotlib Figure, which a notebook shows once when it is the last line of a cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

# One colour and one marker for a chooser, the same in every notebook; what rank by the same score share a colour.
_LOOKS = {
    "energy": (0, "o"),
    "entropy": (1, "s"),
    "fixed": (2, "^"),
    "evbmf": (3, "D"),
    "random": (7, "X"),
    "component energy": (0, "o"),
    "component entropy": (1, "s"),
    "component output": (4, "v"),
    "component magnitude": (5, "P"),
    "component random": (7, "X"),
    "arsvd, every layer": (2, "^"),
    "arsvd, classifier dense": (3, "D"),
    "unit entropy": (1, "s"),
    "unit entropy, one range": (8, "p"),
    "unit output": (4, "v"),
    "unit magnitude": (5, "P"),
    "unit random": (7, "X"),
    "both entropy": (8, "p"),
    "both output": (9, "*"),
    "DDLR": (3, "D"),
    "DDLR, cut": (3, "P"),
    "DDLR, cut, refit": (3, "D"),
    "Net-Trim, non-zeros": (9, "X"),
    "Net-Trim, with indices": (9, "X"),
    "Net-Trim, cut, refit, non-zeros": (9, "o"),
    "Net-Trim, cut, refit, with indices": (9, "o"),
    "ARSVD": (2, "^"),
    "data-aware": (0, "o"),
    "ReLU-aware": (4, "v"),
    "Fisher-weighted": (8, "p"),
    "sequential": (2, "D"),
    "relu-aware": (4, "v"),
    "fisher-weighted": (8, "p"),
    "units first": (1, "s"),
    "ENC-Map": (1, "s"),
    "ENC-Model": (9, "p"),
    "ENC-Inf": (4, "v"),
    "exact": (3, "D"),
    "exact, Fisher": (0, "o"),
}
CHOOSERS = tuple(_LOOKS)
# What often lies on the line of another rule, and the convex programs without a refit, of the colour of those with one.
DASHED = ("entropy", "component entropy", "DDLR, cut", "Net-Trim, non-zeros", "Net-Trim, with indices")
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "fontsize": "small"}  # a legend right of its panel
PALETTE = sns.color_palette("colorblind")
COLOURS = {name: PALETTE[colour] for name, (colour, _) in _LOOKS.items()}
COLOURS |= dict.fromkeys(
    ("Fisher-weighted", "fisher-weighted"), (0.65, 0.53, 0.0)
)  # the palette's yellow, dark enough to read
MARKERS = {name: marker for name, (_, marker) in _LOOKS.items()}
SIGNED = "RdBu_r"  # the colours of signed images: blue below zero, white at zero, red above
_STYLE = {"axes.grid": True, "grid.alpha": 0.4, "figure.dpi": 100, "savefig.dpi": 100, "savefig.bbox": "tight"}


def colour_of(chooser: str) -> tuple[float, float, float] | str:
    return COLOURS.get(chooser, "dimgray")  # of one that is not ours


def in_order(choosers: Iterable[str]) -> list[str]:
    # ours in our order, then any others; the dense network is a line of its own
    there = set(choosers) - {"dense"}
    return [c for c in CHOOSERS if c in there] + sorted(there - set(CHOOSERS))


def canvas(
    columns: int = 1, rows: int = 1, width: float = 4.6, height: float = 3.4, **options: Any
) -> tuple[Figure, np.ndarray]:
    with sns.axes_style("whitegrid", rc=_STYLE), sns.plotting_context("notebook", font_scale=0.85):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False, **options
        )
    plt.close(figure)
    return figure, axes.ravel()


def tiles(rows: int, columns: int, size: float = 1.0, **options: Any) -> tuple[Figure, np.ndarray]:
    """Return a closed figure and its rows x columns axes without ticks, for small images."""
    with sns.axes_style("white"), sns.plotting_context("notebook", font_scale=0.85):
        figure, axes = plt.subplots(
            rows, columns, figsize=(size * columns, size * rows), layout="constrained", squeeze=False, **options
        )
    plt.close(figure)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        for side in axis.spines.values():
            side.set_color("lightgray")
    return figure, axes


def draw_signed(axis: Axes, pattern: torch.Tensor, shape: Sequence[int], limit: float | None = None) -> None:
    """Draw a vector of signed numbers as an image; colour images as tints of grey, which is then zero."""
    image = pattern.detach().double().reshape(*shape).numpy()
    limit = limit or float(np.abs(image).max()) or 1.0
    if len(image) == 1:
        axis.imshow(image[0], cmap=SIGNED, vmin=-limit, vmax=limit)
    else:
        axis.imshow((0.5 + 0.5 * image / limit).clip(0, 1).transpose(1, 2, 0))


def upright(pattern: torch.Tensor) -> torch.Tensor:
    """Return a pattern with the sign that makes its largest entry positive: a singular vector has either sign."""
    return pattern * pattern[pattern.abs().argmax()].sign()


def name_lines(axis: Axes) -> None:
    """Write the name of each line of an axis at its middle, in its colour, the upper line's above it, the others' below."""
    lines = sorted(axis.lines, key=_height, reverse=True)
    for place, line in enumerate(lines):
        x, y = (np.asarray(values) for values in line.get_data())
        middle = len(x) // 2
        where: dict[str, Any] = {"xytext": (6, 6), "ha": "left", "va": "bottom"}
        if place:
            where = {"xytext": (-6, -6), "ha": "right", "va": "top"}
        axis.annotate(
            str(line.get_label()), (x[middle], y[middle]), textcoords="offset points", color=line.get_color(), **where
        )


def _height(line: Any) -> float:
    return float(np.mean(line.get_ydata()))


def count_ticks(axis: Axes, counts: Sequence[int]) -> None:
    """Put the ticks of a logarithmic horizontal axis at `counts`, as whole numbers. Set its scale first."""
    axis.xaxis.set_major_locator(FixedLocator(counts))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:,.0f}")


def name_ends(
    axis: Axes,
    ends: Mapping[str, tuple[float, float]],
    names: Mapping[str, str] | None = None,
    gap: float = 11,
    colours: Mapping[str, Any] | None = None,
    side: str = "right",
) -> None:
    """Write the names of methods beside the ends of their lines, in their colours, at least `gap` points apart.

    `ends`: {method: (x, y) of the end of its line}; `names`: {method: what is written}; `colours`: {method: colour} of those that have
    none of their own; `side`, "right" or "left" of the ends. Set limits and scales of the axis first.
    """
    axis.figure.canvas.draw()
    below = -np.inf
    for name, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        at = axis.transData.transform((x, y))[1] * 72 / axis.figure.dpi
        place = max(at, below + gap)
        below = place
        axis.annotate(
            (names or {}).get(name, name),
            (x, y),
            (7 if side == "right" else -7, place - at),
            textcoords="offset points",
            ha="left" if side == "right" else "right",
            color=(colours or {}).get(name) or colour_of(name),
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            va="center",
            fontsize=9,
        )


def heat_map(axis: Axes, cells: pd.DataFrame, norm: Normalize, texts: pd.DataFrame, cmap: str = "YlOrRd") -> None:
    """Draw a table as coloured squares, each with its text; rows and columns are named as in `cells`.

    Parameters: `cells`, numbers; `norm`, from numbers to colours, of matplotlib; `texts`, a table of the same shape. NaN stays white.
    """
    image = axis.imshow(cells.to_numpy(float), norm=norm, cmap=cmap, aspect="auto")
    axis.set_xticks(range(cells.shape[1]), [str(name) for name in cells.columns])
    axis.set_yticks(range(cells.shape[0]), [str(name) for name in cells.index])
    axis.grid(False)
    for (row, column), value in np.ndenumerate(cells.to_numpy(float)):
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 and value == value
        colour = "white" if dark else "black"
        axis.text(column, row, str(texts.iat[row, column]), ha="center", va="center", color=colour, fontsize=9)


def image_grid(images: np.ndarray, labels: Iterable[int], classes: Sequence[str], columns: int = 10) -> Figure:
    """Return a grid of uint8 `images` (n x H x W or n x H x W x 3) under their class names."""
    rows = int(np.ceil(len(images) / columns))
    with sns.axes_style("white"):
        figure, axes = plt.subplots(
            rows, columns, figsize=(1.1 * columns, 1.35 * rows), layout="constrained", squeeze=False
        )
    plt.close(figure)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, image, label in zip(axes.ravel(), images, labels):
        axis.imshow(image, cmap="gray_r" if image.ndim == 2 else None)
        axis.set_title(classes[int(label)], fontsize=8)
    return figure


def frontier(
    table: pd.DataFrame,
    metric: str = "accuracy",
    baseline: float | None = None,
    title: str = "test images",
    floor: float | None = None,
    panels: str = "factors",
    columns: int | None = None,
) -> Figure:
    """Return `metric` against the share of parameters kept: one panel for each value of a column, one line a chooser.

    `table` has the result columns chooser, parameters_kept, budget_kind, budget, `metric` and `panels` ("factors", "scope" ...). Rows
    of several seeds that aim at one size are drawn as their mean with a band from the lowest to the
    highest. `baseline`: the dense network's value, drawn as a line. `floor`: where the vertical axis starts; what lies
    below is cut off. `columns`: panels in a row, all by default.
    """
    names = list(table[panels].unique())
    columns = columns or len(names)
    shown = [set(table.loc[table[panels] == name, "chooser"]) for name in names]
    long = max(map(len, shown), default=0) > 4  # such a legend would cover lines, so it stands beside its panel
    figure, axes = canvas(columns, -(-len(names) // columns), width=6.2 if long else 4.6, sharey=True, sharex="col")
    for axis, name in zip(axes, names):
        mine = table[table[panels] == name]
        for chooser in in_order(mine["chooser"]):
            these = mine[mine["chooser"] == chooser]
            line = these.groupby(["budget_kind", "budget"], sort=False, dropna=False)
            points = pd.DataFrame(
                {"kept": line["parameters_kept"].mean()} | {w: line[metric].agg(w) for w in ("mean", "min", "max")}
            )
            points = points.sort_values("kept")
            axis.plot(points["kept"], points["mean"], label=chooser, **line_style(chooser, alone=len(points) == 1))
            axis.fill_between(points["kept"], points["min"], points["max"], color=colour_of(chooser), alpha=0.2)
        if baseline is not None and baseline == baseline:
            axis.axhline(baseline, color="black", linestyle=":", label="dense")
        axis.set(
            xscale="log",
            xlabel="parameters kept (share of dense)",
            title=f"{name}{' factors' * (panels == 'factors')}, {title}",
        )
        axis.xaxis.set_major_locator(FixedLocator([0.03, 0.05, 0.1, 0.2, 0.3, 0.6, 1.0]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        if floor is not None and floor == floor:
            axis.set_ylim(bottom=floor)
    for axis in axes[::columns]:
        axis.set_ylabel({"accuracy": "accuracy", "f1": "macro F1"}.get(metric, metric))
    for axis in axes[:-columns]:
        axis.set_xlabel("")
    beside = BESIDE if long else {}
    for axis, mine in zip(axes, shown):
        if axis is axes[0] or mine != shown[0]:
            axis.legend(**beside)
    return figure


def described(figure: Figure) -> str:
    """Return a figure in words: what its panels show against what, and which lines or points they hold.

    >>> from lowrank_utils.workbook.chapters.ddlr_lesson import gap
    >>> figure = gap(pd.DataFrame({"iteration": [1, 2], "objective": [3.0, 2.5], "bound": [1.0, 2.0]}), "fc1")
    >>> described(figure)
    'fc1: nuclear norm against iteration; what is not yet proved: relative gap against iteration. Lines: feasible weights; lower bound.'
    """
    panels, lines = [], []
    for axis in [a for a in figure.axes if a.axison]:
        what = " against ".join(t for t in (axis.get_ylabel(), axis.get_xlabel()) if t)
        panels.append(": ".join(t for t in (axis.get_title(), what) if t))
        lines += [t for t in axis.get_legend_handles_labels()[1] if not t.startswith("_")]
    said = "; ".join(p for p in dict.fromkeys([figure.get_suptitle(), *panels]) if p)
    return f"{said}. Lines: {'; '.join(dict.fromkeys(lines))}." if lines else f"{said}."


def line_style(chooser: str, alone: bool) -> dict[str, Any]:
    # energy and entropy often coincide: the one is drawn wide, the other dashed on top of it
    style = {"color": colour_of(chooser), "marker": MARKERS.get(chooser, "."), "markersize": 5}
    if chooser.endswith("energy"):
        style |= {"linewidth": 3.5, "markersize": 8, "alpha": 0.7}
    return style | {"linestyle": "none" if alone else "--" if chooser in DASHED else "-"}
