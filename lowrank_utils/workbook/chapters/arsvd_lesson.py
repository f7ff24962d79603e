"""Pictures of notebook 02, its toy, and sentences that are written from its rows; what it measures is in `arsvd`."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from torch import nn

from lowrank_utils.factors import replace, svd
from lowrank_utils.lab import corruptions
from lowrank_utils.network.profile import Profile, profile
from lowrank_utils.ranks import rules as rank_rules
from lowrank_utils.workbook import contest
from lowrank_utils.workbook.chapters.arsvd import EQUAL, Laboratory
from lowrank_utils.workbook.chapters.ten_minutes import NAMES, as_numbers, in_range
from lowrank_utils.workbook.plots import (
    COLOURS,
    canvas,
    colour_of,
    count_ticks,
    draw_signed,
    in_order,
    line_style,
    name_ends,
    tiles,
    upright,
)
from lowrank_utils.workbook.tables import markdown

GRID = tuple(np.linspace(0.3, 1.0, 71))  # thresholds of the rank curves
ALONE = (0.1, 0.2, 0.3, 0.5, 0.7)  # shares of its full rank to which each layer is cut alone
DRAWN = (1, 2, 3, 5, 10, 20, 50, 100)  # ranks whose directions are drawn
LEAST = 0.1  # points lost where the log scale of the figures ends
WITH = {"every layer": "every layer cut", "hidden layers": "the classifier dense"}
SCOPES = {"every layer": "every layer cut", "hidden layers": "classifier dense"}
OTHERS = {"fixed": "one fixed share", "random": "random ranks"}


# ---- a toy, and networks for the lesson's questions ------------------------------------------------------------------


def toy(seed: int = 0) -> nn.Sequential:
    """Return two layers of random directions and known spectra: ``first`` (20 x 30) falls as i^-1.5, ``second`` (10 x 20) as 1 / i.

    >>> [round(float(s), 3) for s in torch.linalg.svdvals(toy().first.weight.detach())[:3]]
    [1.0, 0.354, 0.192]
    """
    draw = torch.Generator().manual_seed(seed)
    layers = {"first": nn.Linear(30, 20), "relu": nn.ReLU(), "second": nn.Linear(20, 10)}
    for name, power in (("first", 1.5), ("second", 1.0)):
        weight = layers[name].weight
        u, _, vt = torch.linalg.svd(torch.randn(weight.shape, generator=draw), full_matrices=False)
        weight.data = u * torch.arange(1.0, len(vt) + 1) ** -power @ vt
        layers[name].bias.data.zero_()
    return nn.Sequential(OrderedDict(layers))


def agreement(model: nn.Module, inputs: torch.Tensor) -> Callable[[dict], float]:
    """Return a function of a plan: for which share of `inputs` the network under it has the same largest output as `model`."""
    read = profile(model, inputs)
    with torch.inference_mode():
        dense = model(inputs).argmax(1)

    def measure(plan: dict) -> float:
        small = replace.apply_plan(read, plan, resource="parameters")
        with torch.inference_mode():
            return float((small(inputs).argmax(1) == dense).double().mean())

    return measure


def calibration_of(read: Profile) -> torch.Tensor:
    """Return the calibration images of a profile; raises TypeError where they are no single tensor."""
    if not isinstance(read.calibration, torch.Tensor):
        raise TypeError(f"calibration images are {type(read.calibration).__name__}, not one tensor")
    return read.calibration


def spoiled(read: Profile) -> nn.Module:
    """Return a copy of a network whose first layer has one large component more, which listens to what images never do.

    The component is twenty times as large as the layer. Its input pattern is the direction of least variance over the
    calibration images of `read`, and the bias takes its mean, so that the network computes nearly the same as before.
    """
    net = replace.apply_plan(read, {})
    layer: Any = net.get_submodule(read[0].name)
    inputs = calibration_of(read).flatten(1).double().cpu()
    quiet = torch.linalg.eigh(torch.cov(inputs.T, correction=0))[1][:, 0]
    weight = layer.weight.detach().double().cpu()
    loudest = torch.linalg.svd(weight, full_matrices=False)[0][:, 0]
    loud = 20 * weight.norm() * torch.outer(loudest, quiet)
    layer.weight.data += loud.to(layer.weight)
    layer.bias.data -= (loud @ inputs.mean(0)).to(layer.bias)
    return net


def alone(lab: Laboratory, shares: Sequence[float] = ALONE) -> pd.DataFrame:
    """Return what each layer loses when it alone is cut, to each share of its full rank, on validation images.

    One row a layer, kind of factors and share: columns layer, of_parameters, factors, share, rank, lost (points).
    """
    dense = lab.valid(lab.model)
    return pd.DataFrame(
        {
            "layer": card.name,
            "of_parameters": card.parameters / lab.size,
            "factors": factors,
            "share": share,
            "rank": (r := max(1, round(share * card.full_rank))),
            "lost": 100 * (dense - lab.valid(replace.apply_plan(lab.profile, {card.name: r}, factors=lab.bases[factors], resource=None))),
        }
        for card in lab.profile if not card.reason
        for factors in svd.METHODS
        for share in shares
    )  # fmt: skip


def by_calibration(lab: Laboratory, counts: Sequence[int], kept: float) -> list[float]:
    """Return the accuracy on validation images with data-aware factors from the first `counts` calibration images.

    The plan is that of the energy rule at a share `kept` of the parameters, the last layer dense.
    """
    read = lab.scopes["hidden layers"]
    plan = rank_rules.plan_at_size(read, kept, resource="parameters")
    found = []
    for count in counts:
        few = read.but(calibration=calibration_of(read)[:count])
        found.append(lab.valid(replace.apply_plan(few, plan, factors="data-aware", resource="parameters")))
    return found


def unsquared_plan(read: Profile, kept: float) -> dict:
    """Return the plan at a share `kept` of the parameters of an energy rule whose shares are s_i / sum s, without squares."""
    roots = [dataclasses.replace(c, singular_values=np.sqrt(np.asarray(c.singular_values))) for c in read]
    return rank_rules.plan_at_size(roots, kept, resource="parameters")


def small_share(read: Profile) -> float:
    """Return 5 % of the parameters, or a little more than what a plan can reach at least, whichever is more."""
    return max(0.05, round(1.1 * rank_rules.least_kept(read, "parameters"), 3))


def ranks_by_threshold(read: Profile, thresholds: Sequence[float] = GRID) -> pd.DataFrame:
    """Return the rank of each layer by energy and by entropy at each threshold, in (0, 1], as `rank_curves` takes it.

    One row a layer, rule and threshold: columns layer, rule, threshold, full_rank, break_even, rank.
    """
    return pd.DataFrame(
        {
            "layer": layer.name,
            "rule": rule,
            "threshold": float(threshold),
            "full_rank": layer.full_rank,
            "break_even": layer.break_even(),
            "rank": rank_rules.rank(layer.singular_values, float(threshold), rule),
        }
        for layer in read
        for rule in ("energy", "entropy")
        for threshold in thresholds
    )


# ---- pictures ---------------------------------------------------------------------------------------------------------


def spectra(before: dict[str, Any], after: dict[str, Any]) -> Figure:
    """Return singular values against their index, one panel a layer, before (dashed) and after training, all on the same log axes.

    `before` and `after`: ``{layer name: singular values}`` with the same names. Values under a ten-thousandth of the largest are left out.
    """
    figure, axes = canvas(len(after), width=10 / max(3, len(after)), sharex=True, sharey=True)
    most = max(float(np.max(values)) for values in (*before.values(), *after.values()))
    for axis, name in zip(axes, after):
        index = np.arange(1, len(after[name]) + 1)
        axis.plot(index, before[name], "--", color="dimgray")
        axis.plot(index, after[name], color="black")
        axis.set(xlabel="component", title=f"{name}: {len(index)} components", xscale="log", yscale="log")
        axis.xaxis.set_major_formatter("{x:.0f}")
    least = min(
        float(np.min(values[values > 1e-4 * most])) for values in map(np.asarray, (*before.values(), *after.values()))
    )
    axes[0].set(ylabel="singular value", ylim=(0.7 * least, 2 * most))
    name = next(iter(after))
    for words, values, colour in (("trained", after[name], "black"), ("random start", before[name], "dimgray")):
        axes[0].annotate(words, (1, float(values[0])), (4, 5), textcoords="offset points", color=colour, fontsize=9)
    return figure


def rank_curves(table: pd.DataFrame) -> Figure:
    """Return rank per layer against threshold: columns layer, rule, threshold, rank, full_rank, break_even.

    The dotted line is the break-even rank, above which the dense layer is cheaper.
    """
    layers = table["layer"].unique()
    figure, axes = canvas(len(layers), width=10 / max(3, len(layers)))
    for axis, name in zip(axes, layers):
        mine = table[table["layer"] == name]
        for rule, line in mine.groupby("rule", sort=False):
            axis.plot(line["threshold"], line["rank"], color=COLOURS[rule], label=rule, drawstyle="steps-post")
        level = mine["break_even"].iloc[0]
        axis.axhline(level, color="black", linestyle=":", label="break-even")
        axis.annotate("break-even", (mine["threshold"].min(), level), (0, 3), textcoords="offset points", fontsize=9)
        axis.set(xlabel="threshold (share kept)", title=f"{name}: full rank {mine['full_rank'].iloc[0]}")
        axis.set_ylim(0, 1.1 * mine["full_rank"].iloc[0])
    axes[0].set_ylabel("rank")
    first = table[table["layer"] == layers[0]]
    for rule, share, x, y, ha in (("entropy", 0.75, -6, 6, "right"), ("energy", 0.8, 8, -14, "left")):
        line = first[first["rule"] == rule]
        at = line.iloc[[(line["threshold"] - share).abs().argmin()]].to_dict("records")[0]
        axes[0].annotate(
            rule, (at["threshold"], at["rank"]), (x, y), textcoords="offset points", ha=ha, color=COLOURS[rule]
        )
    return figure


def directions(
    patterns: Mapping[str, torch.Tensor],
    shares: Mapping[str, torch.Tensor],
    shape: Sequence[int],
    more: Sequence[int] = (),
) -> Figure:
    """Return input patterns of a layer as images, in the order in which a growing rank takes them in, a row a kind of factors.

    Parameters
    ----------
    patterns : {kind of factors ("svd", "data-aware"): k x d_in, the first taken in first}.
    shares : {kind of factors: k shares of the energy of the outputs}; above each image stands the sum up to it.
    shape : (channels, height, width) of a pattern.
    more : ranks that are drawn beside the usual ones.
    """  # fmt: skip
    full = min(len(rows) for rows in patterns.values())
    ranks = in_range(sorted({*DRAWN, *more}), full)
    figure, axes = tiles(len(patterns), len(ranks))
    figure.set_size_inches(10, 1.5 * len(patterns) * 10 / max(10, len(ranks)))
    for line, (kind, rows) in zip(axes, patterns.items()):
        held = shares[kind].cumsum(0)
        for axis, rank in zip(line, ranks):
            draw_signed(axis, upright(rows[rank - 1]), shape)
            axis.set_title(f"rank {rank}\n{_percent(float(held[rank - 1]))}", fontsize=9)
        line[0].set_ylabel(NAMES[kind], fontsize=10, color=colour_of(kind))
    return figure


def _percent(share: float) -> str:
    """Return a share as text, which is 100% only for all of it.

    >>> _percent(0.5), _percent(0.9991), _percent(1.0)
    ('50%', '99.9%', '100%')
    """
    return f"{share:.0%}" if share < 0.995 or share > 1 - 1e-6 else f"{min(share, 0.999):.1%}"


def bisection(curve: pd.DataFrame, tried: pd.DataFrame, least: float) -> Figure:
    """Return accuracy at every threshold in grey, and at those that a bisection tried, numbered in their order.

    Parameters
    ----------
    curve, tried : columns threshold and accuracy; the horizontal axis is the place of a threshold in `curve`.
    least : the accuracy that is still allowed.
    """
    figure, (axis,) = canvas(width=8)
    axis.plot(range(1, len(curve) + 1), curve["accuracy"], "-", marker=".", color="darkgray")
    axis.axhline(least, color="black", linestyle=":")
    axis.annotate("allowed", (1, least), (0, 4), textcoords="offset points", fontsize=9)
    for number, (threshold, accuracy) in enumerate(zip(tried["threshold"], tried["accuracy"]), 1):
        place = int(np.abs(curve["threshold"].to_numpy() - threshold).argmin()) + 1
        within = accuracy >= least - 1e-9
        axis.plot(place, accuracy, "o", color=colour_of("energy"), markerfacecolor=None if within else "white")
        axis.annotate(str(number), (place, accuracy), (0, -16), textcoords="offset points", ha="center")
    axis.set(xlabel="threshold, by its place in the list", ylabel="same answer as dense", ylim=(0, 1.08))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def _lost_axis(axis: Axes, most: float) -> None:
    axis.set(yscale="log", ylim=(0.8 * LEAST, max(1.5 * most, 10)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value > LEAST else f"{value:g} or less")
    axis.yaxis.set_minor_locator(NullLocator())


def _lost(rows: pd.DataFrame) -> pd.DataFrame:
    """Return result rows of networks that were only cut, with a column lost: points of test accuracy under the dense network of their seed."""
    dense = rows[rows["chooser"] == "dense"].set_index("seed")["accuracy"]
    cut = rows[(rows["chooser"] != "dense") & (rows["tuned"] == "none")]
    return cut.assign(lost=100 * (cut["seed"].map(dense) - cut["accuracy"]))


def points_lost(rows: pd.DataFrame) -> Figure:
    """Return points of test accuracy lost against parameters kept, on log scales: a column a scope, a row a kind of factors.

    `rows`: result rows of one seed, with the dense network. Losses under 0.1 points are drawn at 0.1.
    """
    lost = _lost(rows)
    lost = lost[lost["budget_kind"].isin(["kept", "own"])]
    figure, axes = canvas(2, 2, width=5.0, sharex=True, sharey=True)
    panels = [(factors, scope) for factors in NAMES for scope in SCOPES]
    for axis, (factors, scope) in zip(axes, panels):
        mine = lost[(lost["factors"] == factors) & (lost["scope"] == scope)]
        axis.set(xscale="log", title=f"{SCOPES[scope]}, {NAMES[factors]} factors")
        ends = {}
        for rule in in_order(mine["chooser"]):
            line = mine[mine["chooser"] == rule].sort_values("parameters_kept")
            x, y = line["parameters_kept"], line["lost"].clip(lower=LEAST)
            axis.plot(x, y, label=rule, **line_style(rule, alone=len(line) == 1 or rule == "random"))
            ends[rule] = (float(x.iloc[-1]), float(y.iloc[-1]))
        axis.xaxis.set_major_locator(FixedLocator([0.03, 0.05, 0.1, 0.2, 0.3, 0.6]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set_xlim(0.9 * lost["parameters_kept"].min(), 2.1 * max(0.6, lost["parameters_kept"].max()))
        _lost_axis(axis, lost["lost"].max())
        alone_at = {rule: ends.pop(rule) for rule in ("evbmf",) if rule in ends}
        name_ends(axis, alone_at, names={"evbmf": "EVBMF"})
        name_ends(axis, ends)
    for axis in axes[2:]:
        axis.set_xlabel("parameters kept (share of dense)")
    for axis in axes[::2]:
        axis.set_ylabel("points lost, test images")
    return figure


def layers_alone(table: pd.DataFrame) -> Figure:
    """Return the points lost by cutting one layer alone against its rank; `table` is that of `alone`, a panel a layer."""
    names = list(table["layer"].unique())
    figure, axes = canvas(len(names), width=10 / max(3, len(names)), sharey=True)
    for axis, name in zip(axes, names):
        mine = table[table["layer"] == name]
        for factors, line in mine.groupby("factors", sort=False):
            wide = {"linewidth": 3.5, "markersize": 8, "alpha": 0.7} if factors == "svd" else {"markersize": 5}
            axis.plot(
                line["share"], line["lost"].clip(lower=LEAST), "o-", color=colour_of(str(factors)), label=NAMES[str(factors)], **wide
            )  # fmt: skip
        axis.set(xlabel="rank (share of full rank)", title=f"{name}: {mine['of_parameters'].iloc[0]:.1%} of parameters")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _lost_axis(axis, table["lost"].max())
    axes[0].set_ylabel("points lost, validation images")
    plain, aware = axes[0].lines[:2]
    for line, place, (x, y) in ((plain, "bottom", (0.97, 0.9)), (aware, "bottom", (0.97, 0.8))):
        axes[0].text(x, y, line.get_label(), color=line.get_color(), transform=axes[0].transAxes, ha="right", va=place)
    return figure


def smallest(rows: pd.DataFrame) -> Figure:
    """Return the parameters kept by the plans of `within_drop` as bars, each with what it loses on test images."""
    lost = _lost(rows[rows["budget_kind"].isin(["drop", "dense"])])
    figure, axes = canvas(2, width=5.0, sharey=True)
    order = [(rule, factors) for rule in rank_rules.RULES for factors in NAMES]
    for axis, (scope, words) in zip(axes, SCOPES.items()):
        mine = lost[lost["scope"] == scope].set_index(["chooser", "factors"])
        for place, key in enumerate(order):
            row: Any = mine.loc[key]
            kept = float(row["parameters_kept"])
            axis.barh(place, kept, color=colour_of(key[1]), height=0.75)
            inside = kept > 0.6
            axis.text(
                kept + (-0.01 if inside else 0.01), place, f"{kept:.1%}; test {-row['lost']:+.1f}", va="center", fontsize=9,
                ha="right" if inside else "left", color="white" if inside else "black",
            )  # fmt: skip
        axis.set(title=words, xlabel="parameters kept (share of dense)", xlim=(0, 1.02))
        axis.set(yticks=range(len(order)), yticklabels=[f"{rule}, {NAMES[factors]}" for rule, factors in order])
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.grid(False, axis="y")
    axes[0].invert_yaxis()
    return figure


def _gains(rows: pd.DataFrame, rule: str, over: str = "fixed") -> pd.DataFrame:
    """Return one row a scope, kind of factors, size and seed: column gain, points of one rule over another."""
    sized = rows[(rows["budget_kind"] == "kept") & (rows["tuned"] == "none")]
    by = ["scope", "factors", "budget", "seed"]
    points = (100 * sized.set_index([*by, "chooser"])["accuracy"]).unstack("chooser")
    return (points[rule] - points[over]).rename("gain").reset_index()


def advantage(rows: pd.DataFrame) -> Figure:
    """Return by how many points energy is ahead of one fixed share at equal size: a dot a seed, a line their mean."""
    gains = _gains(rows, "energy")
    figure, axes = canvas(2, width=5.0)
    for axis, (scope, words) in zip(axes, SCOPES.items()):
        axis.axhline(0, color="black", linestyle=":")
        ends = {}
        for factors, shift in (("svd", 0.98), ("data-aware", 1.02)):
            mine = gains[(gains["scope"] == scope) & (gains["factors"] == factors)]
            mean = mine.groupby("budget")["gain"].mean()
            axis.plot(mine["budget"] * shift, mine["gain"], "o", markersize=4, alpha=0.6, color=colour_of(factors))
            axis.plot(mean.index * shift, mean, color=colour_of(factors))
            ends[factors] = (mean.index[-1] * shift, float(mean.iloc[-1]))
        axis.set(xscale="log", title=words, xlabel="parameters kept (share of dense)")
        axis.xaxis.set_major_locator(FixedLocator([0.03, 0.05, 0.1, 0.2, 0.3, 0.6]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set_xlim(0.9 * gains["budget"].min(), 2.6 * gains["budget"].max())
        name_ends(axis, ends, names=NAMES)
    axes[0].set_ylabel("points, energy minus fixed")
    return figure


def calibration_curve(counts: Sequence[int], plain: float, answer: Any) -> Figure:
    """Return accuracy against the number of calibration images, as a learner found it, and that of plain factors as a line.

    Where `answer` is not one number for each of `counts`, as when the exercise is not answered yet, the figure says so.
    """
    figure, (axis,) = canvas(width=7)
    axis.axhline(plain, color=colour_of("svd"), linestyle=":")
    axis.annotate(
        "plain, no images",
        (counts[-1], plain),
        (0, -14),
        textcoords="offset points",
        color=colour_of("svd"),
        ha="right",
    )
    axis.set(xscale="log", xlabel="calibration images", ylabel="accuracy, validation images", ylim=(0, 1))
    axis.set_xlim(0.8 * counts[0], 1.8 * counts[-1])
    count_ticks(axis, counts)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    found = as_numbers(answer)
    if found is None or found.shape != (len(counts),):
        axis.text(
            0.97, 0.9, f"data-aware: no answer of {len(counts)} numbers yet", transform=axis.transAxes, ha="right"
        )
        return figure
    axis.plot(counts, found, "o-", color=colour_of("data-aware"))
    name_ends(axis, {"data-aware": (counts[-1], float(found[-1]))})
    return figure


# ---- sentences --------------------------------------------------------------------------------------------------------


def about_calibration(counts: Sequence[int], plain: float, accuracies: Sequence[float]) -> str:
    """Return in sentences from how many images on data-aware factors are ahead of plain ones, and how many bring most of the gain."""
    ahead = [count for i, count in enumerate(counts) if min(accuracies[i:]) > plain]
    ends = f"with {counts[0]:,} images data-aware factors reach {accuracies[0]:.1%}, with {counts[-1]:,} images {accuracies[-1]:.1%}"
    if not ahead:
        return f"Plain factors reach {plain:.1%}; {ends}. At the largest number, data-aware factors are not ahead."
    most = next(c for c, value in zip(counts, accuracies) if value >= plain + 0.9 * (max(accuracies) - plain))
    return (
        f"Plain factors reach {plain:.1%}; {ends}. From {ahead[0]:,} images on they are ahead, and {most:,} images bring at least nine tenths of the "
        "largest gain."
    )


def about_spectra(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return in sentences the effective rank of each layer before and after training, and how far its first component stands out."""
    told, lowered = [], []
    for name, values in after.items():
        was, now = rank_rules.effective_rank(before[name]), rank_rules.effective_rank(values)
        first = float(values[0] / np.median(values))
        told.append(
            f"- `{name}`: effective rank {was:.1f} before and {now:.1f} after training, of {len(values)}; "
            f"the first singular value is {first:.1f} times the median one"
        )
        lowered.append(now < was)
    end = {True: "Training lowered the effective rank of every layer.", False: "Training lowered it in no layer."}
    some = ", ".join(f"`{name}`" for name, down in zip(after, lowered) if down)
    verdict = end[lowered[0]] if len(set(lowered)) == 1 else f"Training lowered the effective rank of {some} only."
    return "\n".join(told) + f"\n\n{verdict}"


def about_ranks(table: pd.DataFrame) -> str:
    """Return in sentences how the ranks of the two rules compare over all thresholds; `table` is that of `ranks_by_threshold`."""
    by = table.pivot(index=["layer", "threshold"], columns="rule", values="rank")
    more, fewer = int((by["entropy"] > by["energy"]).sum()), int((by["entropy"] < by["energy"]).sum())
    return (
        f"A case is one layer at one threshold. In {more} of {len(by)} cases entropy asks for more components than energy, "
        f"and in {fewer} for fewer."
    )


def about_directions(shares: Mapping[str, torch.Tensor], share: float = 0.9) -> str:
    """Return in a sentence how many directions of each kind hold `share` of the energy of the outputs."""
    plain, aware = (int((shares[kind].cumsum(0) < share - 1e-9).sum()) + 1 for kind in NAMES)
    return (
        f"To hold {share:.0%} of the energy of the outputs takes {plain} plain directions, or {aware} data-aware ones."
    )


def about_alone(table: pd.DataFrame, share: float = 0.3) -> str:
    """Return in sentences what each layer loses alone at a share of its rank, and which layer bears it least; `table` of `alone`."""
    at = table[np.isclose(table["share"], share) & (table["factors"] == "data-aware")].reset_index(drop=True)
    told = [f"`{row['layer']}` loses {row['lost']:.1f}" for row in at.to_dict("records")]
    worst = at.to_dict("records")[int(at["lost"].argmax())]
    last = worst["layer"] == at["layer"].iloc[-1]
    who = "It is the classifier" if last else "It is not the classifier"
    return (
        f"At {share:.0%} of its full rank, with data-aware factors and the other layers dense, {', '.join(told)} points. "
        f"The layer that bears the cut least is `{worst['layer']}`, with {worst['of_parameters']:.1%} of the parameters. {who}."
    )


def _nearest(rows: pd.DataFrame, kept: float) -> float:
    """Return the size nearest to `kept` that was measured in every scope."""
    sized = rows[rows["budget_kind"] == "kept"]
    shared = set.intersection(*(set(part["budget"]) for _, part in sized.groupby("scope")))
    return min(sorted(shared), key=lambda share: abs(share - kept))


def about_sizes(rows: pd.DataFrame, kept: float) -> str:
    """Return in sentences what the rules lose with plain factors at the measured size nearest to `kept`, and where the lead is from."""
    share = _nearest(rows, kept)
    lost = _lost(rows)
    at = lost[(lost["budget_kind"] == "kept") & (lost["budget"] == share) & (lost["factors"] == "svd")]
    told, leads = [], {}
    for scope, words in SCOPES.items():
        mine = at[at["scope"] == scope].set_index("chooser")["lost"]
        lost_by = ", ".join(f"{rule} {mine[rule]:.1f}" for rule in rank_rules.RULES)
        told.append(f"{words.capitalize()}: {lost_by}.")
        leads[scope] = round(mine["fixed"], 1) - round(mine["energy"], 1)  # of the numbers as they are printed
    every, hidden = leads.values()
    end = (
        "Most of that lead came from the classifier."
        if every > max(2 * hidden, 1)
        else "The classifier explains no lead here."
    )
    return (
        f"With plain factors and {share:.0%} of the parameters kept, these points are lost. {' '.join(told)} Energy leads the fixed share by "
        f"{every:.1f} points with every layer cut, and by {hidden:.1f} with the classifier dense. {end}"
    )  # fmt: skip


def about_drop(rows: pd.DataFrame, drop: float) -> str:
    """Return in sentences the smallest network of `within_drop`, and how many lose more than was allowed on test images."""
    lost = _lost(rows)
    found = lost[lost["budget_kind"] == "drop"]
    best = found.to_dict("records")[int(found["parameters_kept"].argmin())]
    over = int((found["lost"] > 100 * drop + 1e-9).sum())
    return (
        f"The smallest network keeps {best['parameters_kept']:.1%} of the parameters ({best['chooser']}, {NAMES[best['factors']]} factors, "
        f"{SCOPES[best['scope']]}) and loses {best['lost']:.1f} points on test images. On these, {over} of the {len(found)} networks lose more than the "
        f"{100 * drop:g} {'point' if drop == 0.01 else 'points'} that validation images allowed."
    )


def _told(gains: pd.DataFrame) -> str:
    """Return gains as the cell of a table: their mean, lowest and highest, and how many of them are above zero."""
    if not len(gains):
        return "not reached"
    gain = gains["gain"].round(1) + 0.0  # no -0.0
    mean, ahead = round(float(gain.mean()), 1) + 0.0, int((gain > 0).sum())
    return f"{mean:+.1f} ({gain.min():+.1f} to {gain.max():+.1f}), ahead in {ahead} of {len(gain)}"


COMPARED = (("energy", "fixed"), ("entropy", "fixed"), ("entropy", "energy"))


def about_seeds(rows: pd.DataFrame) -> str:
    """Return a Markdown table of how the rules compare at equal size: a comparison is one seed, size and kind of factors."""
    lines = []
    for scope, words in SCOPES.items():
        for rule, over in COMPARED:
            gains = _gains(rows[rows["scope"] == scope], rule, over).dropna()
            middle, small = gains[gains["budget"].isin(EQUAL)], gains[gains["budget"] < min(EQUAL)]
            lines.append([words, f"{rule} minus {over}", _told(middle), _told(small)])
    return markdown(["network", "difference", "10, 20 and 30 % kept", "below 10 % kept"], lines)


def about_questions(rows: pd.DataFrame) -> str:
    """Return in sentences whether energy beats one fixed share at 10, 20 and 30 % kept, and whether entropy beats energy."""
    seeds = sorted(int(seed) for seed in rows["seed"].unique())
    told = {}
    for rule, over in (("energy", "fixed"), ("entropy", "energy")):
        parts = []
        for scope, words in WITH.items():
            gains = _gains(rows[rows["scope"] == scope], rule, over)
            gain = gains.loc[gains["budget"].isin(EQUAL), "gain"].dropna().round(1)
            ahead, level, behind = (int(found.sum()) for found in (gain > 0, gain == 0, gain < 0))
            where = f"With {words} it is ahead in {ahead} of {len(gain)} comparisons"
            parts.append(f"{where}, level in {level} and behind in {behind}.")
        told[rule] = " ".join(parts)
    which = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return (
        f"We count the sizes 10, 20 and 30 % kept, both kinds of factors, and {which}.\n\n"
        f"**Does energy beat one fixed share at equal size, as the paper claims?** {told['energy']}\n\n"
        f"**Does entropy beat energy?** {told['entropy']}"
    )


def about_controls(rows: pd.DataFrame) -> str:
    """Return as list items what the rows say of the controls: random ranks, training from scratch, corrupted test images.

    Where the rows hold no control, one sentence says so.
    """
    told = []
    if (rows["chooser"] == "random").any():
        for scope, words in WITH.items():
            gains = _gains(rows[rows["scope"] == scope], "energy", "random").dropna()
            told.append(
                f"**Random ranks**, {words}. Energy minus random at 10, 20 and 30 % kept, points, mean (lowest to highest) over seeds, sizes and both kinds of factors: {_told(gains[gains['budget'].isin(EQUAL)])}."
            )
    told += [_trained(rows, share) for share in sorted(set(rows.loc[rows["tuned"] == "from scratch", "budget"]))]
    if "accuracy_corrupted" in rows and rows["accuracy_corrupted"].notna().any():
        told.append(_corrupted(rows))
    if not told:
        return "These rows hold no control."
    return "\n".join(f"- {each}" for each in told)


def _at(rows, share, rule, column="accuracy", tuned="none"):
    # mean over seeds, of plain factors with the classifier dense; of networks trained from scratch, whose factors are nobody's
    factors = "none" if tuned == "from scratch" else "svd"
    what = {
        "scope": "hidden layers",
        "budget_kind": "kept",
        "budget": share,
        "chooser": rule,
        "factors": factors,
        "tuned": tuned,
    }
    return contest.number(rows, column, **what)


def _trained(rows, share):
    cut, tuned, scratch = (_at(rows, share, "energy", tuned=how) for how in ("none", "fine-tuned", "from scratch"))
    others = ", ".join(f"{words} {_at(rows, share, rule, tuned='fine-tuned'):.1%}" for rule, words in OTHERS.items())
    mine = rows[(rows["budget"] == share) & (rows["chooser"] == "energy") & (rows["tuned"] != "none")]
    by = mine.pivot_table("accuracy", "seed", "tuned")
    taught = f", and {by['distilled'].mean():.1%} with distillation too" if "distilled" in by else ""
    ahead = int((by["fine-tuned"] > by["from scratch"]).sum())
    steps, epochs = (int(mine[name].dropna().iloc[0]) for name in ("steps", "finetuned_epochs"))
    return (
        f"**Trained after the cut**, {share:.0%} kept, plain factors, the classifier dense. Energy's ranks: {cut:.1%} cut, {tuned:.1%} fine-tuned for {steps} steps{taught}. The "
        f"same thin layers trained from scratch for {epochs} epochs: {scratch:.1%}. Fine-tuning is ahead in {ahead} of {len(by)} seeds. Fine-tuned "
        f"with other ranks: {others}."
    )


def _corrupted(rows, share=0.2):
    dense = {name: contest.number(rows, name, chooser="dense") for name in ("accuracy", "accuracy_corrupted")}
    told = []
    for rule, words in {"energy": "energy", "entropy": "entropy", **OTHERS}.items():
        clean, poor = (100 * (value - _at(rows, share, rule, name)) for name, value in dense.items())
        told.append(f"{words} {clean:.1f} and {poor:.1f}")
    return (
        f"**Poor images**: the first {contest.CORRUPTED:,} test images with noise, blur, less contrast, rotated, and partly covered (severity "
        f"{corruptions.SEVERITY} of 5). The dense network is right about {dense['accuracy_corrupted']:.1%} of them, and about {dense['accuracy']:.1%} of "
        f"all clean test images. Points lost at {share:.0%} kept, plain factors, the classifier dense, on clean and on poor images: {'; '.join(told)}."
    )
