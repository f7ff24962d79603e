"""The lesson of chapter 04: certificates and the speed of a layer, pictures, and sentences from the numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import PercentFormatter
from torch import nn

from lowrank_utils.factors import ddlr as layer_ddlr
from lowrank_utils.factors import ddlr_network, replace
from lowrank_utils.factors.ddlr import Solution
from lowrank_utils.lab import finetuning, score
from lowrank_utils.workbook import controls, verdicts
from lowrank_utils.workbook.chapters.ddlr import (
    as_posed,
    by_layer_rows,
    in_every_seed,
    mean_lost,
    named,
    of_control,
    size_axis,
)
from lowrank_utils.workbook.chapters.ddlr_experiment import Laboratory
from lowrank_utils.workbook.chapters.ten_minutes import as_numbers
from lowrank_utils.workbook.plots import canvas, colour_of, count_ticks, draw_signed, name_ends, tiles
from lowrank_utils.workbook.tables import markdown

DRAWN = 6  # units whose weights are drawn
SAMPLED = 4000  # outputs of a layer that are drawn
WHERE = {"every layer": "every layer", "hidden layers": "classifier dense"}
LEVEL_POINTS = 0.5  # what differs by less is called level, as in notebook 03


# ---- certificates, and the speed of one layer ------------------------------------------------------------------------


def certificates(lab: Laboratory, solutions: dict[str, Solution]) -> pd.DataFrame:
    """Return what the program found in each layer and what it proved, one row a layer.

    Columns: full rank, rank, norm (of the weights found), bound (no weights within the constraints have a smaller norm),
    relative gap, violation of the constraints, seconds.
    """
    found = {
        name: {
            "full rank": lab.profile[name].full_rank,
            "rank": one.rank,
            "norm": one.objective,
            "bound": one.bound,
            "relative gap": one.relative_gap,
            "violation": one.violation,
            "seconds": one.seconds,
        }
        for name, one in solutions.items()
    }
    return pd.DataFrame(found).T.astype({"full rank": int, "rank": int})


class SparseRows(nn.Module):
    """A linear layer whose weights are stored in compressed sparse rows: the non-zeros, a column each, and a pointer a row."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch calls its sparse rows a beta feature
            self.weight = layer.weight.detach().to_sparse_csr()
        self.bias = layer.bias.detach()
        self.used = nn.Parameter(torch.zeros(1))  # tells the timer where the layer lives

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias[:, None], self.weight, x.T).T


def as_stored(lab: Laboratory, answers: dict, trimmed: dict, name: str, share: float = 0.1) -> dict[str, nn.Module]:
    """Return {how it is stored: layer `name` on the CPU}: dense, Net-Trim's in sparse rows, DDLR's as two thin layers.

    Parameters: `answers` and `trimmed`, ``{layer: Solution}`` of the two programs; both networks are cut until a `share` of
    the parameters is left, the classifier dense. Raises ValueError where the programs leave more than that at any cut.
    """
    sparse, low = lab.hidden(trimmed), lab.hidden(answers)
    cut = ddlr_network.cut_for(lab.profile, sparse, share, kind="non-zeros")
    zeros = ddlr_network.sparse(lab.profile, sparse, cut=cut)
    cut = ddlr_network.cut_for(lab.profile, low, share, kind="low_rank")
    thin, _ = ddlr_network.low_rank(lab.profile, low, cut=cut)
    dense = replace.apply_plan(lab.profile, {})
    whole: Any
    trim: Any
    whole, trim, pair = (net.cpu().get_submodule(name) for net in (dense, zeros, thin))
    return {"dense": whole, "Net-Trim, sparse rows": SparseRows(trim), "DDLR, two thin layers": pair}


def milliseconds(layers: dict[str, nn.Module], inputs: int) -> pd.DataFrame:
    """Return the median milliseconds of each layer on one thread, timed in turn: one row a layer, columns batch 1 and batch 64.

    `inputs` : how many numbers one input of the layers has.
    """
    times = {f"batch {n}": score.latencies(list(layers.values()), (inputs,), n) for n in (1, 64)}
    return pd.DataFrame({batch: [np.median(t) for t in found] for batch, found in times.items()}, index=list(layers))


def richer(published: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Return the published rows of a network if they hold the curves of both programs, else those of the run at hand.

    Older published rows lack the curves of Net-Trim, and in them some methods saw more images than others.
    """
    curves = [as_posed(published, chooser, scope) for chooser in ("DDLR", "Net-Trim") for scope in WHERE]
    whole = all(curve.loc[curve["budget_kind"] == "epsilon", "budget"].nunique() > 1 for curve in curves)
    return published if whole else measured


def about_source(shown: pd.DataFrame, published: pd.DataFrame) -> str:
    """Return where rows come from, their seeds and their values of epsilon."""
    seeds = ", ".join(f"{seed}" for seed in sorted(shown["seed"].unique()))
    epsilons = shown.loc[shown["budget_kind"] == "epsilon", "budget"].nunique()
    return f"{'the gallery' if shown is published else 'this run'}: seed {seeds}, {epsilons} values of epsilon"


# ---- pictures --------------------------------------------------------------------------------------------------------


def touching() -> Figure:
    """Return where balls of the nuclear norm first touch what is allowed around diag(3, 4), among diagonal matrices diag(a, c).

    There the norm is |a| + |c|. The small disc (epsilon 0.2, radius 1) is touched inside an edge, the large one (0.9, radius 4.5) at a
    corner, where a = 0 and the rank is 1.
    """
    figure, (axis,) = canvas(width=6.8, height=6.8)
    axis.set(xlabel="a", ylabel="c", aspect="equal", xlim=(-6.4, 9.4), ylim=(-6.4, 9.4))
    for line in (axis.axhline, axis.axvline):
        line(0, color="black", linewidth=1)
    axis.annotate("rank 1: a = 0", (0, -6.3), (5, 0), textcoords="offset points", fontsize=9)
    axis.annotate("rank 1: c = 0", (9.3, 0), (0, 4), textcoords="offset points", fontsize=9, ha="right")
    for epsilon, name, words, at in (
        (0.2, "DDLR, cut, refit", "inside an edge:\nrank 2", (4.2, -2.6)),
        (0.9, "data-aware", "at a corner:\nrank 1", (-6.1, 7.0)),
    ):
        colour, radius = colour_of(name), 5 * epsilon
        shrunk = radius / np.sqrt(2)
        touch = (3 - shrunk, 4 - shrunk) if shrunk < 3 else (0.0, 4 - np.sqrt(radius**2 - 9))
        size = sum(touch)
        axis.add_patch(Circle((3, 4), radius, facecolor=colour, alpha=0.13, edgecolor=colour))
        axis.plot([size, 0, -size, 0, size], [0, size, 0, -size, 0], color=colour, linewidth=2)
        axis.plot(*touch, "*", color=colour, mec="black", ms=14, zorder=5)
        arrow = {"arrowstyle": "-", "color": colour}
        axis.annotate(f"first touch {words}", touch, at, color=colour, arrowprops=arrow, va="center", fontsize=9)
        axis.annotate(
            f"allowed at {epsilon}", (3, 4 + radius), (0, 3), textcoords="offset points", color=colour, ha="center", fontsize=9
        )  # fmt: skip
        axis.annotate(
            f"norm {size:.2f}", (-size / 2, -size / 2), (-4, -4), textcoords="offset points", color=colour, fontsize=9, va="top", ha="right"
        )  # fmt: skip
    axis.plot(3, 4, "k+", markersize=10)
    axis.annotate("diag(3, 4)", (3, 4), (6, 4), textcoords="offset points", fontsize=9)
    return figure


def gap(history: pd.DataFrame, title: str = "") -> Figure:
    """Return certified objective and bound against iterations, and the relative gap on a logarithmic axis.

    `history`: of a `Solution`; columns iteration, objective, bound.
    """
    figure, (left, right) = canvas(2, width=5.0)
    # the first point stands far above the rest
    ends, top = {}, 1.6 * history["objective"].iloc[-1]
    for name, label, way in (("objective", "feasible weights", "-"), ("bound", "lower bound", "--")):
        colour = colour_of("DDLR") if name == "objective" else "black"
        left.plot(history["iteration"], history[name], way, marker=".", color=colour, label=label)
        ends[label] = (float(history["iteration"].iloc[-1]), float(history[name].iloc[-1]), colour)
    last = float(history["iteration"].iloc[-1]) or 1.0
    left.set(xlabel="iteration", ylabel="nuclear norm", title=title, ylim=(0, top), xlim=(0, 1.45 * last))
    _name_points(left, ends)
    rest = 1 - history["bound"] / history["objective"]
    right.plot(history["iteration"], rest, marker=".", color=colour_of("DDLR"))
    right.set(xlabel="iteration", ylabel="relative gap", yscale="log", title="what is not yet proved")
    right.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    return figure


def _name_points(axis: Axes, ends: Mapping[str, tuple[float, float, Any]]) -> None:
    # names right of points, each in the colour beside it
    places = {name: (x, y) for name, (x, y, _) in ends.items()}
    name_ends(axis, places, colours={name: colour for name, (_, _, colour) in ends.items()})
    for text in axis.texts:  # no name covers a line
        text.set_zorder(1)


def spectra(lab: Laboratory, solutions: Mapping[str, Solution], cut: float) -> Figure:
    """Return the singular values of each layer's weights before (grey) and after DDLR, without biases, one panel a layer.

    What lies under the line is dropped where values below a share `cut` of the largest are cut. Values under 1e-6 of the largest are left out.
    """
    figure, axes = canvas(len(solutions), width=10 / max(2, len(solutions)))
    for axis, (name, found) in zip(axes, solutions.items()):
        before = np.asarray(lab.profile[name].singular_values)
        after = torch.linalg.svdvals(found.weights[: lab.model.get_submodule(name).in_features]).cpu().numpy()
        after = after[after > 1e-6 * after[0]]
        axis.plot(range(1, len(before) + 1), before, color="dimgray")
        axis.plot(range(1, len(after) + 1), after, color=colour_of("DDLR"), linewidth=2.5)
        axis.axhline(cut * after[0], color="black", linestyle=":", linewidth=1)
        axis.annotate(f"{cut:.0%} of the largest", (len(before), cut * after[0]), (0, -11), textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
        axis.annotate("original", (0.6 * len(before), before[int(0.6 * len(before)) - 1]), (0, 6), textcoords="offset points", color="dimgray", ha="right", fontsize=9)  # fmt: skip
        axis.annotate(f"DDLR: {len(after)} left", (len(after), after[-1]), (7, 0), textcoords="offset points", color=colour_of("DDLR"), fontsize=9)  # fmt: skip
        least = min(float(after[-1]), float(before[before > 1e-4 * before[0]].min()))
        axis.set(xlabel="component", yscale="log", title=name, ylim=(0.6 * least, 2 * max(before[0], after[0])))
    axes[0].set_ylabel("singular value")
    return figure


def kept_outputs(inputs: torch.Tensor, original: torch.Tensor, others: Mapping[str, torch.Tensor]) -> Figure:
    """Return outputs of a layer before the ReLU, original against new, one panel for each of `others`.

    Parameters: `inputs` N x d_in; `original` and the `others`, {title: weights}, d_in x d_out. Some outputs are drawn, the same in all panels.
    """
    figure, axes = canvas(len(others), width=5.0, height=4.4, sharex=True, sharey=True)
    before = (inputs @ original).flatten()
    drawn = torch.linspace(0, len(before) - 1, min(SAMPLED, len(before))).long()
    low, high = (
        float(before.quantile(q)) if len(before) < 10**7 else float(before[drawn].quantile(q)) for q in (0.01, 0.995)
    )
    for axis, (title, weights) in zip(axes, others.items()):
        after = (inputs @ weights).flatten()
        for on, colour in ((True, colour_of("DDLR")), (False, "dimgray")):
            mine = drawn[(before[drawn] > 0) == on]
            axis.plot(before[mine], after[mine], ".", color=colour, markersize=2, alpha=0.5)
        axis.plot([0, high], [0, high], "k-", linewidth=1)
        axis.axhline(0, color="black", linewidth=1)
        axis.set(xlabel="original output before the ReLU", title=title, xlim=(low, high), ylim=(low, high))
    axes[0].set_ylabel("new output before the ReLU")
    words = (("where it is positive: near the diagonal", "DDLR", 0.97), ("elsewhere: zero or below", "", 0.91))
    for text, name, y in words:
        axes[0].text(0.03, y, text, color=colour_of(name), transform=axes[0].transAxes, va="top", fontsize=9)
    return figure


def units_as_images(weights: Mapping[str, torch.Tensor], shape: Sequence[int]) -> Figure:
    """Return the weights of some units as images, one row for each of `weights`, {title: d_in x d_out}, one column a unit.

    `shape`: (channels, height, width) of an image. A layer that does not see pixels is drawn as a block of its weights. The units
    are those of the largest weights in the first row; one scale a unit.
    """
    first = next(iter(weights.values()))
    if first.shape[0] != math.prod(shape):
        side = math.ceil(math.sqrt(first.shape[0]))
        shape = (1, side, side)
    count = min(DRAWN, first.shape[1])
    units = first.norm(dim=0).argsort(descending=True)[:count]
    figure, axes = tiles(len(weights), count, size=1.3)
    for line, (title, each) in zip(axes, weights.items()):
        for axis, unit in zip(line, units):
            column = each[:, unit].double().cpu()
            blank = math.prod(shape) - len(column)
            limit = float(first[:, unit].abs().quantile(0.99)) or 1.0
            draw_signed(axis, torch.cat([column, torch.zeros(blank).double()]), shape, limit)
        line[0].set_ylabel(title, fontsize=10)
    for axis, unit in zip(axes[0], units):
        axis.set_title(f"unit {int(unit)}", fontsize=9)
    return figure


def step_bars(told: pd.DataFrame, dense: float) -> Figure:
    """Return what each step after the program keeps and loses, as bars: parameters kept, and points lost on validation images.

    `told`: the table of `steps`; `dense`: accuracy of the dense network on validation images, a share.
    """
    figure, (left, right) = canvas(2, width=5.0, height=3.6, sharey=True)
    lost = 100 * dense - told["valid accuracy %"]
    for axis, values, unit in ((left, told["kept %"], "%"), (right, lost, "")):
        bars = axis.barh(range(len(told)), values, color=colour_of("DDLR"), height=0.75)
        for bar, name in zip(bars, told.index):
            bar.set_alpha(1 if "refit" in name else 0.55)
        for place, value in enumerate(values):
            words = f"{value:.1f}{unit}"
            axis.annotate(words, (max(value, 0), place), (3, 0), textcoords="offset points", va="center", fontsize=9)
        axis.set_xlim(min(0, 1.2 * float(values.min())), 1.25 * max(float(values.max()), 0.1))
        axis.grid(False, axis="y")
    left.set(xlabel="parameters kept (%)", yticks=range(len(told)), yticklabels=list(told.index))
    right.set_xlabel("points lost, validation images")
    left.invert_yaxis()
    return figure


def own_curves(rows: pd.DataFrame) -> Figure:
    """Return points lost against parameters kept of both programs as posed, one point an epsilon: every layer under them, or the classifier dense.

    `rows`: result rows of any number of seeds, with the dense networks; bands go from the lowest to the highest seed.
    """
    figure, (axis,) = canvas(width=9.2, height=4.6)
    axis.set(xscale="log", yscale="log", xlabel="parameters kept (share of dense)", ylabel="points lost, test images")
    lines = {}
    for chooser, name in (("DDLR", "DDLR"), ("Net-Trim", "Net-Trim, with indices")):
        for scope, words in WHERE.items():
            mine = as_posed(rows, chooser, scope)
            line = mean_lost(rows, mine[mine["budget_kind"] == "epsilon"])
            if len(line) > 1:
                way = "--" if scope == "every layer" else "-"
                axis.plot(line["kept"], line["mean"], way, marker="o", markersize=4, color=colour_of(name))
                axis.fill_between(line["kept"], line["min"], line["max"], color=colour_of(name), alpha=0.15)
                lines[f"{chooser}, {words}"] = (*line[["kept", "mean"]].iloc[0], colour_of(name))
    if not lines:
        return _without(axis, "no program has answers at two values of epsilon")
    drawn = pd.concat([as_posed(rows, chooser, "hidden layers") for chooser in ("DDLR", "Net-Trim")])
    size_axis(axis, drawn["parameters_kept"], max(lost for _, lost, _ in lines.values()))
    _name_points(axis, lines)
    return figure


def _without(axis: Axes, why: str) -> Figure:
    axis.text(0.5, 0.5, why, transform=axis.transAxes, ha="center")
    found: Any = axis.figure
    return found


def one_or_each(rows: pd.DataFrame) -> Figure:
    """Return points lost against parameters kept of DDLR as posed: one epsilon for all layers, and one for each layer. A panel a scope."""
    figure, axes = canvas(2, width=5.0)
    for axis, (scope, words) in zip(axes, WHERE.items()):
        one = as_posed(rows, "DDLR", scope)
        each = by_layer_rows(rows, scope)
        lines = {
            "one for all": (one[one["budget_kind"] == "epsilon"], colour_of("DDLR")),
            "one a layer": (each, "black"),
        }
        axis.set(xscale="log", yscale="log", title=words, xlabel="parameters kept (share of dense)")
        ends = {}
        for label, (mine, colour) in lines.items():
            line = mean_lost(rows, mine)
            if len(line):
                axis.plot(line["kept"], line["mean"], marker="o", markersize=4, color=colour)
                axis.fill_between(line["kept"], line["min"], line["max"], color=colour, alpha=0.12)
                ends[label] = (*line[["kept", "mean"]].iloc[0], colour)
        if not ends:
            _without(axis, "no answers at these layers")
            continue
        size_axis(
            axis, one.loc[one["budget_kind"] == "epsilon", "parameters_kept"], max(lost for _, lost, _ in ends.values())
        )
        _name_points(axis, ends)
    axes[0].set_ylabel("points lost, test images")
    return figure


# ---- exercises -------------------------------------------------------------------------------------------------------


def rank_falls(values: Sequence[float]) -> dict[str, float]:
    """Return at which epsilon the rank of the answer falls to each lower one, for inputs I, outputs diag(values) and no ReLU.

    All values shrink by the same t, and those under t are gone: epsilon^2 = sum min(s, t)^2 / sum s^2, with t the value that goes next.

    >>> {rank: round(epsilon, 3) for rank, epsilon in rank_falls([3.0, 4.0]).items()}
    {'to 1': 0.849}
    """
    s = np.sort(np.asarray(values, float))
    found = {
        f"to {len(s) - 1 - i}": np.sqrt((np.minimum(s, s[i]) ** 2).sum() / (s**2).sum()) for i in range(len(s) - 1)
    }
    return {rank: float(epsilon) for rank, epsilon in found.items()}


def l1_bound(inputs: torch.Tensor, outputs: torch.Tensor, multiplier: torch.Tensor, epsilon: float) -> float:
    """Return the lower bound on the sum of absolute weights that a multiplier proves; it is not positive where `outputs` are zero."""
    on = torch.where(outputs > 0, multiplier, 0)
    value = (on * outputs).sum() - epsilon * outputs.norm() * on.norm()
    return float(value / (inputs.T @ multiplier).abs().max())


def errors_elsewhere(lab: Laboratory, name: str, counts: Sequence[int], epsilon: float) -> list[float]:
    """Return the relative error of one layer's answer on 2000 validation images, solved on so many training images, for each of `counts`."""
    fresh = lab.samples.but(calibration=lab.images.tensors("valid", 2000)[0])
    x, y, relu = ddlr_network.layer_data(fresh, name)
    original = ddlr_network.matrix(linear_layer(lab, name))
    found = []
    for count in counts:
        seen = ddlr_network.layer_data(lab.samples.but(calibration=lab.images.tensors("train", count)[0]), name)
        answer = layer_ddlr.solve(*seen[:2], epsilon, relu, original=original, **lab.options)
        found.append(layer_ddlr.check(answer.weights, x, y, epsilon, relu).error)
    return found


def linear_layer(lab: Laboratory, name: str) -> nn.Linear:
    """Return a linear layer of the network; raises TypeError where it is another kind."""
    layer = lab.model.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"layer {name!r} is a {type(layer).__name__}, not linear")
    return layer


def error_curve(counts: Sequence[int], epsilon: float, answer: Any) -> Figure:
    """Return the error on other images against the number of samples, as a learner found it, and epsilon as a line.

    Where `answer` is not one number for each of `counts`, as when the exercise is not answered yet, the figure says so.
    """
    figure, (axis,) = canvas(width=7)
    axis.axhline(epsilon, color="black", linestyle=":")
    axis.annotate("allowed on the samples", (counts[0], epsilon), (0, 4), textcoords="offset points", fontsize=9)
    axis.set(xscale="log", xlabel="samples in the program", ylabel="relative error, validation images")
    axis.set(xlim=(0.9 * counts[0], 1.5 * counts[-1]), ylim=(0, 3 * epsilon))
    count_ticks(axis, counts)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    found = as_numbers(answer)
    if found is None or found.shape != (len(counts),):
        axis.text(0.97, 0.9, f"no answer of {len(counts)} numbers yet", transform=axis.transAxes, ha="right")
        return figure
    axis.set_ylim(0, max(3 * epsilon, 1.1 * float(found.max())))
    axis.plot(counts, found, "o-", color=colour_of("DDLR"))
    return figure


# ---- sentences from the numbers --------------------------------------------------------------------------------------


def about_spectra(lab: Laboratory, solutions: Mapping[str, Solution]) -> str:
    """Return in sentences how the sum of the singular values and their number changed in each layer."""
    told = []
    for name, found in solutions.items():
        before = np.asarray(lab.profile[name].singular_values)
        after = torch.linalg.svdvals(found.weights[: linear_layer(lab, name).in_features])
        left = int((after > 1e-6 * after[0]).sum())
        told.append(
            f"In {name} the sum of the singular values falls from {before.sum():.0f} to {float(after.sum()):.0f}, "
            f"and {left} of {len(before)} values are left. With the bias row, which the table above counts too, there are {found.rank}."
        )
    return " ".join(told)


def about_relaxation(kept: float, program: float, fit: float, images: int) -> str:
    """Return in sentences what the directions of the program are worth at given ranks.

    `kept`: share of the parameters; `program`, `fit`: accuracies (shares) with the directions of DDLR, cut and refitted, and
    with those of a fit, on so many validation `images`. Less than `LEVEL_POINTS` points apart count as level.
    """
    apart = 100 * (program - fit)
    if abs(apart) < LEVEL_POINTS:
        meaning = "So at these ranks the directions of the program and those of the fit cannot be told apart on so many images. What the program surely adds is the certificate."
    elif apart < 0:
        meaning = "So at these ranks the relaxation costs accuracy: the fit finds better directions."
    else:
        meaning = "So at these ranks the program finds the better directions."
    return (
        f"With {kept:.1%} of the parameters, on {images:,} validation images: directions by DDLR, cut and refitted {program:.1%}; ReLU-aware {fit:.1%}. "
        f"The difference is {_signed(apart)} points. Less than {LEVEL_POINTS:g} points count as level. {meaning}"
    )


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0")


def about_steps(told: pd.DataFrame, dense: float, epsilon: float) -> str:
    """Return in sentences what each step after the program did; `told` is the table of `steps`, `dense` a share."""
    kept, accuracy, error = told["kept %"], told["valid accuracy %"], told["error"]
    gains = {name: accuracy[name] - accuracy["as posed"] for name in told.index}
    refit = accuracy["cut 5 %, refit"] - accuracy["cut 5 %"]
    return "\n".join(
        [
            f"- **As posed**, at an epsilon of {epsilon:g}, {kept['as posed']:.1f} % of the parameters stay and {100 * dense - accuracy['as posed']:.1f} points are lost.",
            f"- **Cascade** and **free bias** change the accuracy by {_signed(gains['cascade'])} and {_signed(gains['free bias'])} points, with {kept['cascade']:.1f} % and {kept['free bias']:.1f} % of the parameters.",
            f"- The **cut** leaves {kept['cut 5 %']:.1f} %, and the accuracy moves by {_signed(gains['cut 5 %'])} points. The worst error is then {error['cut 5 %']:.3f}, where the program allowed {epsilon:g}.",
            f"- The **refit** of the cut answer brings {_signed(refit)} points, and its worst error on the program's terms is {error['cut 5 %, refit']:.3f}. It fits the outputs on both sides of zero, and it sees what the layers before it now give.",
            f"- **Reweighting** keeps the constraints with {100 * (1 - kept['reweighted'] / kept['as posed']):.0f} % fewer parameters than the program as posed. With cut and refit it ends at {kept['reweighted, cut 5 %, refit']:.1f} % and {100 * dense - accuracy['reweighted, cut 5 %, refit']:.1f} points lost.",
        ]
    )


def about_speed(times: pd.DataFrame) -> str:
    """Return in a sentence how the three ways to store a layer compare, from the table of `milliseconds`."""
    dense, sparse, thin = (times.loc[name] for name in times.index)
    parts = [
        f"{n} image{'s' * (n > 1)}: sparse rows take {sparse[f'batch {n}'] / dense[f'batch {n}']:.2f} times as long as the dense layer, thin layers {thin[f'batch {n}'] / dense[f'batch {n}']:.2f} times"
        for n in (1, 64)
    ]
    return f"For {parts[0]}. For {parts[1]}. Times of a single image are short, and easily mistimed."


def own_sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the smallest network of each program on its own curve that loses at most 1, and 2, points on validation images.

    One row a program and scope; columns say the share kept in percent, the mean over seeds and, of several, the range, or "-" where
    no epsilon is within.
    """
    dense = rows[rows["chooser"] == "dense"]
    cells = {}
    for chooser in ("DDLR", "Net-Trim"):
        for scope, words in WHERE.items():
            curve = as_posed(rows, chooser, scope)
            curve = curve[(curve["budget_kind"] == "epsilon") & curve["valid_accuracy"].notna()]
            for points in verdicts.POINTS:
                if not len(curve) or dense["valid_accuracy"].isna().any():
                    continue
                found = verdicts.smallest_size(curve, dense, points)["kept"]
                cells[f"{chooser}, {words}", f"at most {points} point{'s' * (points != 1)} lost"] = _sizes_in_words(
                    found
                )
    return pd.Series(cells, dtype=object).unstack().fillna("-") if cells else pd.DataFrame()


def _sizes_in_words(kept: pd.Series) -> str:
    if kept.isna().any():
        return "-" if kept.isna().all() else f"out of reach in {kept.isna().sum()} of {len(kept)}"
    spread = f" ({kept.min():.1%} to {kept.max():.1%})" if len(kept) > 1 else ""
    return f"{kept.mean():.1%}{spread}"


def about_layers(rows: pd.DataFrame) -> str:
    """Return in sentences where an epsilon for each layer is ahead of one for all, at no more parameters, on test images."""
    told = []
    for scope, words in WHERE.items():
        one = as_posed(rows, "DDLR", scope)
        keys = ["dataset", "network", "seed", "budget"]
        both = by_layer_rows(rows, scope).merge(one[one["budget_kind"] == "epsilon"], on=keys, suffixes=("", "_one"))
        if not len(both):
            continue
        gain = 100 * (both["accuracy"] - both["accuracy_one"])
        other = gain[(both["parameters_kept"] != both["parameters_kept_one"]) | (gain != 0)]
        start = f"With {words.replace('every layer', 'every layer under the program').replace('classifier dense', 'the classifier dense')}, the search finds another choice than one epsilon for all in {len(other)} of {len(both)} cases, one for each epsilon and seed."
        if len(other) == 1:
            start += f" There it changes the accuracy by {_signed(other.iloc[0])} points."
        elif len(other):
            start += f" There it changes the accuracy by {_signed(other.min())} to {_signed(other.max())} points, {_signed(other.mean())} in the mean."
        told.append(start)
    return " ".join(told) or "These rows hold no epsilon for each layer."


def about_errors(counts: Sequence[int], epsilon: float, errors: Sequence[float], inputs: int) -> str:
    """Return in a sentence how the error elsewhere falls with the samples; `inputs` of the layer, the bias among them."""
    ends = f"The error on validation images falls from {errors[0]:.3f} with {counts[0]:,} samples to {errors[-1]:.3f} with {counts[-1]:,}."
    place = int(np.abs(np.log(np.asarray(counts) / inputs)).argmin())
    return f"{ends} The layer has {inputs:,} inputs; with {counts[place]:,} samples the error is {errors[place]:.3f}, where epsilon is {epsilon:g}."


def _at(rows: pd.DataFrame, budget: float) -> pd.Series:
    """Return the mean test accuracy of each method at one size, in percent, best first, where every seed has a network."""
    some = in_every_seed(named(rows), rows["seed"].nunique())
    return (100 * some[some["budget"] == budget].groupby("method")["accuracy"].mean()).sort_values(ascending=False)


def about_equal_size(rows: pd.DataFrame, shares: Sequence[float] = (0.05, 0.1, 0.2)) -> str:
    """Return in sentences who is ahead at each size, and how refitted DDLR and refitted Net-Trim compare."""
    told, ours, sparse = [], "DDLR, cut, refit", "Net-Trim, cut, refit"
    for share in shares:
        means = _at(rows, share)
        if ours not in means or len(means) < 2:
            told.append(f"- At {share:.0%} no network of DDLR with cut and refit was made in every seed.")
            continue
        line = f"- At {share:.0%}: best is {means.index[0]} with {means.iloc[0]:.1f} %; {ours} has {means[ours]:.1f} %"
        others = [f"{means[name]:.1f} % {words}" for name, words in ((f"{sparse}, with indices", "with its indices counted"), (f"{sparse}, non-zeros", "with non-zeros counted alone")) if name in means]  # fmt: skip
        told.append(line + (f", and refitted Net-Trim {' and '.join(others)}." if others else "."))
    return "\n".join(told)


def about_verdict(rows: pd.DataFrame) -> str:
    """Return in sentences how often refitted DDLR is ahead of refitted Net-Trim, indices counted, and of each fit at a given rank."""
    some = in_every_seed(named(rows), rows["seed"].nunique())
    by = some.pivot_table("accuracy", ["seed", "budget"], "method")
    if "DDLR, cut, refit" not in by:
        return "No network of DDLR with cut and refit was made in every seed."
    told = []
    for name in (
        "Net-Trim, cut, refit, with indices",
        "ARSVD",
        "data-aware",
        "ReLU-aware",
        "Fisher-weighted",
        "units first",
    ):
        gain = 100 * (by["DDLR, cut, refit"] - by[name]).dropna() if name in by else pd.Series(dtype=float)
        if len(gain):
            told.append(
                f"| {name} | {int((gain > 0).sum())} of {len(gain)} | {_signed(gain.mean())} | {_signed(gain.min())} to {_signed(gain.max())} |"
            )
    head = ["| DDLR, cut, refit against | ahead | mean, points | range, points |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *told])


BESIDE = ("DDLR, cut, refit", "Net-Trim, cut, refit, with indices", "Fisher-weighted")
TUNED = {  # whose networks are fine-tuned: what chose what stays -> in words
    "DDLR": "DDLR, cut, refit",
    "Net-Trim": "Net-Trim, cut, refit, with indices",
    "component output": "Fisher-weighted",
    "random": "random ranks",
}


def about_controls(rows: pd.DataFrame, shares: Sequence[float] = (0.2, 0.1, 0.05)) -> str:
    """Return a Markdown table of test accuracy at equal size, and sentences: the programs and our fit beside what is simpler, and beside what was trained.

    Means over seeds, with the lowest and the highest; "-" where not every seed has such a network. Where `rows` hold no control
    (`ddlr_experiment.control_rows`), one sentence says so.
    """
    kept = rows[rows["budget"].isin(shares)]
    random, tuned, scratch = (of_control(kept, which) for which in ("random", "fine-tuned", "from scratch"))
    if not len(random):
        return "These rows hold no control. A run with `controls` set to `True` writes them."
    cut, seeds = named(kept), sorted(rows["seed"].unique())
    lines = {(name, "no"): cut[cut["method"] == name] for name in BESIDE} | {("random ranks", "no"): random}
    told = [_choice_of_ranks(lines["Fisher-weighted", "no"], random)]
    if len(tuned):
        steps = " or ".join(f"{count:.0f} steps" for count in sorted(tuned["steps"].unique()))
        after = {words: tuned[tuned["chooser"] == chooser] for chooser, words in TUNED.items()}
        told.append(_closer({words: lines[words, "no"] for words in after}, after, steps))
        lines |= {(words, steps): mine for words, mine in after.items()}
        if len(scratch):
            epochs = f"{scratch['finetuned_epochs'].max():.0f} epochs"
            lines["fresh weights, the ranks of Fisher-weighted", epochs] = scratch
            told.append(_fresh(scratch, cut[cut["method"] == "DDLR, cut, refit"], after))
    dense = rows.loc[rows["chooser"] == "dense", "accuracy"]
    number = f"{len(seeds)} seeds, with the lowest and the highest" if len(seeds) > 1 else f"seed {seeds[0]}"
    head = f"Test accuracy in percent; the dense network has {100 * dense.mean():.1f}. {'Means over' if len(seeds) > 1 else 'For'} {number}. A dash: not every seed has such a network, or it was not trained at this size."
    cells = [[*name, *(_over_seeds(mine, share, len(seeds)) for share in shares)] for name, mine in lines.items()]
    table = markdown(["method", "trained further", *(f"{share:.0%} kept" for share in shares)], cells)
    bullets = "\n".join(f"- {one}" for one in [*told, *_magnitude(rows, shares)])
    return f"{head}\n\n{table}\n\n{bullets}"


def _over_seeds(rows, share, seeds):
    found = rows.loc[rows["budget"] == share, "accuracy"]
    return _with_range(found.mean(), found.min(), found.max()) if len(found) == seeds else "-"


def _together(one, other):
    return one.merge(other, on=["seed", "budget"], suffixes=("", "_other"))


def _ahead_in(one, other):
    both = _together(one, other)
    return f"{int((both['accuracy'] > both['accuracy_other']).sum())} of {len(both)}"


def _choice_of_ranks(chosen, random):
    both = _together(chosen, random)
    gain = (
        (100 * (both["accuracy"] - both["accuracy_other"])).groupby(both["budget"]).mean().sort_index(ascending=False)
    )
    points = ", ".join(f"{_signed(value)} at {share:.0%} kept" for share, value in gain.items())
    same = int(((both["loss"] == both["loss_other"]) & (both["parameters"] == both["parameters_other"])).sum())
    alike = f", and chance drew the very same network in {same}" if same else ""
    return f"**The choice of ranks.** Fisher-weighted minus random ranks, points, mean over seeds: {points}. Random ranks are ahead in {_ahead_in(random, chosen)} networks of this table{alike}. There is one draw a seed and size, so another draw may change this much."


def _closer(before, after, steps):
    size = min(size for mine in after.values() for size in mine["budget"])
    apart = []
    for lines in (before, after):
        means = [mine.loc[mine["budget"] == size, "accuracy"].mean() for mine in lines.values()]
        apart.append(100 * (np.nanmax(means) - np.nanmin(means)))
    return f"**Fine-tuning.** The best and the worst of the {len(after)} fine-tuned methods lie {apart[0]:.1f} points apart at {size:.0%} kept as they are, and {apart[1]:.1f} points after {steps} on {finetuning.BATCH} images each."


def _fresh(scratch, ddlr, after):
    return (
        f"**Fresh weights.** They are ahead of DDLR with cut and refit, not trained further, in {_ahead_in(scratch, ddlr)} networks; of the same network fine-tuned in "
        f"{_ahead_in(scratch, after['DDLR, cut, refit'])}; and of fine-tuned Fisher-weighted factors of the same ranks in {_ahead_in(scratch, after['Fisher-weighted'])}. "
        "What is fine-tuned started from weights that had been trained as long already."
    )


def _magnitude(rows, shares):
    seed = rows["seed"].min()
    beside = controls.beside(rows[rows["seed"] == seed], ["magnitude"])
    sizes = [f"{one.accuracy:.1%} at {one.budget:.0%} kept" for one in beside.itertuples() if one.budget in shares]
    if sizes:
        yield f"**Small weights set to zero**, the rest fine-tuned (in the gallery, for seed {seed} alone; the size includes the indices): {', '.join(sizes)}."


def _with_range(mean, low, high):
    if mean != mean:
        return "-"
    return f"{100 * mean:.1f}" + (f" ({100 * low:.1f} to {100 * high:.1f})" if high > low else "")
