"""Pictures of notebook 03, and sentences that are written from its rows; what it measures is in `entropy_pruning`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from scipy.special import entr

from lowrank_utils.network.profile import LayerProfile
from lowrank_utils.ranks.rules import energy_shares
from lowrank_utils.workbook.chapters.entropy_pruning import TAUGHT
from lowrank_utils.workbook.chapters.ten_minutes import as_numbers
from lowrank_utils.workbook.plots import COLOURS, canvas, colour_of, draw_signed, line_style, name_ends, name_lines
from lowrank_utils.workbook.tables import markdown

KINDS = {"components": "components, data-aware factors", "units": "units, next layer refitted"}
RULES = ("entropy", "output", "random")
LEAST = 0.1  # points lost where the log scale of the figures ends
EQUAL = (0.1, 0.2, 0.3)  # sizes in the middle, of which sentences speak
LEVEL = 0.5  # points; what differs by less is called level
PEAK = float(1 / np.e)  # where -p log p is largest
LOUD = {"linewidth": 2.5}
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}


def colour(rule: str) -> Any:
    """Return the colour of a ranking, the same for components and units."""
    return colour_of(f"unit {rule}")


# ---- what the sentences and figures read -----------------------------------------------------------------------------


def taught(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the six rankings without fine-tuning: columns kind, rule, and lost, in points under the dense network of the seed."""
    six = {(way.chooser, way.factors, way.refit) for way in TAUGHT}
    mine = [key in six for key in zip(rows["chooser"], rows["factors"], rows["refit"])]
    return lost(rows[pd.Series(mine, index=rows.index) & (rows["tuned"] == "none")], rows)


def lost(some: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return `some` of the rows with columns kind ("components", "units"), rule, and lost (points of test accuracy, of the same seed)."""
    dense = rows[rows["chooser"] == "dense"].set_index("seed")["accuracy"]
    kind = some["stored_as"].map({"low rank": "components", "units": "units"})
    points = 100 * (some["seed"].map(dense) - some["accuracy"])
    return some.assign(kind=kind, rule=some["chooser"].str.split().str[-1], lost=points)


def sized(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what `taught` does, of the rows at a share of the parameters."""
    found = taught(rows)
    return found[found["budget_kind"] == "kept"]


def gains(rows: pd.DataFrame, rule: str, over: str) -> pd.DataFrame:
    """Return by how many points one ranking is ahead of another at equal size: columns kind, budget, seed, gain."""
    by = sized(rows).set_index(["kind", "budget", "seed", "rule"])["accuracy"].unstack("rule")
    return (100 * (by[rule] - by[over])).rename("gain").dropna().reset_index()


def nearest(rows: pd.DataFrame, kept: float) -> float:
    """Return the measured size that is nearest to `kept`."""
    return min(sorted(rows.loc[rows["budget_kind"] == "kept", "budget"].unique()), key=lambda share: abs(share - kept))


# ---- units -----------------------------------------------------------------------------------------------------------


def units(
    weight: torch.Tensor, answers: torch.Tensor, entropy: Sequence[float], chosen: Sequence[int], bins: int, shape: Sequence[int]
) -> Figure:  # fmt: skip
    """Return hidden units of the first layer: incoming weights as an image, and below it the histogram of the answers.

    Parameters
    ----------
    weight : units x pixels; `answers`: images x units; `entropy`: of each unit, in nats.
    chosen : the units that are drawn. `bins` of the histograms; `shape`: (channels, height, width) of an image.
    """
    figure, axes = canvas(len(chosen), 2, width=10 / len(chosen), height=2.0)
    for unit, above, below in zip(chosen, axes, axes[len(chosen) :]):
        draw_signed(above, weight[unit], shape)
        above.set(xticks=[], yticks=[], title=f"unit {unit}: H = {entropy[unit]:.2f}")
        above.grid(False)
        mine = answers[:, unit].numpy()
        below.hist(mine, bins=bins, color=COLOURS["unit entropy"])
        below.set(yscale="log", ylim=(0.7, 3 * len(mine)), xlabel="answer")
        below.set_title(f"0 for {_percent((mine == 0).mean())} of the images", fontsize=9)
        below.tick_params(labelsize=8, labelleft=unit == chosen[0])
    axes[0].set_ylabel("weights")
    axes[len(chosen)].set_ylabel("images")
    return figure


def _percent(share: float) -> str:
    """Return a share as text, which is 100% only for all of it.

    >>> _percent(0.5), _percent(0.9996), _percent(1.0)
    ('50%', '99.96%', '100%')
    """
    return f"{share:.0%}" if share < 0.995 or share > 1 - 1e-6 else f"{share:.2%}"


def about_units(entropy: Mapping[str, np.ndarray], bins: int) -> str:
    """Return in a list how entropies of units are spread in each layer; `entropy`: {layer: nats of each unit}."""
    most = np.log(bins)
    return "\n".join(
        f"- `{name}`: entropies from {values.min():.2f} to {values.max():.2f} nats, where log({bins}) = {most:.2f} is the most that is possible. "
        f"{(values < 0.1 * most).mean():.0%} of the {len(values)} units lie below a tenth of that."
        for name, values in entropy.items()
    )


def fills(table: pd.DataFrame) -> Figure:
    """Return points lost against the size for the three things that can be done about units removed; `table` of `by_fill`."""
    figure, (axis,) = canvas(width=7)
    for fill, style in (("nothing", ":"), ("folded", "--"), ("refitted", "-")):
        mine = table[table["fill"] == fill]
        axis.plot(mine["share"], mine["lost"], style, marker="s", color=COLOURS["unit entropy"], label=fill, **LOUD)
    _shares(axis, table["share"])
    axis.set(ylabel="points lost, validation images", ylim=(min(0, 1.1 * table["lost"].min()), None))
    name_lines(axis)
    return figure


def about_fills(table: pd.DataFrame, kept: float) -> str:
    """Return in sentences what each way to make up for units costs at the size nearest to `kept`, and at how many sizes it is ahead."""
    by = table.pivot(index="share", columns="fill", values="lost")
    share = min(by.index, key=lambda value: abs(value - kept))
    at = by.loc[share]
    fold, refit = (by["folded"] < by["nothing"]).sum(), (by["refitted"] < by[["nothing", "folded"]].min(axis=1)).sum()
    return (
        f"With {share:.0%} of the parameters kept, {at['nothing']:.1f} points are lost if nothing is done, {at['folded']:.1f} if the means are folded "
        f"and {at['refitted']:.1f} if the next layer is refitted. Folding is ahead of doing nothing at {fold} of {len(by)} sizes. "
        f"Refitting is ahead of both at {refit} of {len(by)}."
    )


# ---- components ------------------------------------------------------------------------------------------------------


def entropy_terms(shares: Sequence[float], largest: Mapping[str, float]) -> Figure:
    """Return the curve -p log p with the components of a small layer on it, and the largest component of each real layer.

    `shares`: p of the small layer, falling; `largest`: {layer: p of its first component}.
    """
    figure, (axis,) = canvas(width=8)
    p = np.linspace(0, 1, 500)
    axis.plot(p, entr(p), color=COLOURS["component entropy"], **LOUD)
    axis.axvline(PEAK, color="black", linestyle=":")
    axis.annotate("p = 1/e", (PEAK, 0.02), (5, 0), textcoords="offset points")
    axis.plot(shares, entr(np.asarray(shares)), "o", color="black", zorder=3)
    first, last = float(shares[0]), float(shares[-1])
    axis.annotate(
        "component 1 of the small layer", (first, entr(first)), (-12, 4), textcoords="offset points", ha="right"
    )
    axis.annotate(f"components 2 to {len(shares)}", (last, entr(last)), (12, -4), textcoords="offset points")
    for name, share in largest.items():
        axis.plot(share, entr(share), "v", color=COLOURS["component entropy"], markersize=9, zorder=3)
        axis.annotate(f"{name}, its largest", (share, entr(share)), (9, -9), textcoords="offset points", bbox=WHITE)
    axis.set(xlabel="share p of the layer's energy", ylabel="entropy term -p log p (nats)", ylim=(0, 0.44))
    return figure


def ranking(table: pd.DataFrame, stays: Mapping[str, int]) -> Figure:
    """Return the score of every component, one panel a layer: the columns of `components.rank_components`.

    The dots are what counts once a larger component must not go before a smaller one; where the score itself differs, it is a dashed line.
    `stays`: {layer: rank}, drawn as full dots; a layer that is absent stays whole.
    """
    names = list(dict.fromkeys(table.sort_values("component", kind="stable")["layer"]))
    figure, axes = canvas(len(names), width=10 / max(3, len(names)), sharey=True)
    for axis, name in zip(axes, names):
        mine = table[table["layer"] == name].sort_values("component")
        if (mine["score"] != mine["key"]).any():
            axis.plot(mine["component"], mine["score"], "--", color="gray")
        rank = stays.get(name, len(mine))
        for part, style in ((mine[:rank], {}), (mine[rank:], {"mfc": "white"})):
            axis.plot(part["component"], part["key"], "o", color=COLOURS["component entropy"], ms=3.5, mew=0.8, **style)
        axis.set(xlabel="component", yscale="log", title=f"{name}: {min(rank, len(mine))} of {len(mine)} stay")
    axes[0].set_ylabel("entropy term (nats)")
    axes[0].text(0.97, 0.95, "full dots stay,\nhollow ones go", transform=axes[0].transAxes, ha="right", va="top")
    return figure


def about_ranking(read: Sequence[LayerProfile], entropy: Mapping[str, Any], energy: Mapping[str, Any]) -> str:
    """Return in sentences which layer stays dense under a plan by entropy, and whether energy gives another plan."""
    largest = {card.name: float(energy_shares(card.singular_values)[0]) for card in read if not card.reason}
    name = max(largest, key=lambda layer: largest[layer])
    whole = [f"`{card.name}`" for card in read if card.name not in entropy]
    told = (
        f"{' and '.join(whole)} {'stays' if len(whole) == 1 else 'stay'} dense. " if whole else "No layer stays dense. "
    )
    told += f"The largest share of all is that of component 1 of `{name}`, {largest[name]:.0%} of its layer, "
    if largest[name] <= PEAK:
        told += f"which is below 1/e = {PEAK:.0%}. Up to there $-p \\log p$ rises with $p$, so entropy and energy order all components alike. "
    else:
        told += f"which is above 1/e = {PEAK:.0%}. Entropy and energy need not order the components alike. "
    same = "is the same" if dict(entropy) == dict(energy) else f"is another one: {dict(energy)}"
    return f"{told}The plan by energy {same}."


# ---- the six rankings ------------------------------------------------------------------------------------------------


def points_lost(rows: pd.DataFrame) -> Figure:
    """Return points of test accuracy lost against parameters kept, on log scales: components left, units right.

    `rows`: result rows of one seed, with the dense network. Losses under 0.1 points are drawn at 0.1.
    """
    found = sized(rows)
    figure, axes = canvas(2, width=5.0, sharex=True, sharey=True)
    for axis, (kind, title) in zip(axes, KINDS.items()):
        _shares(axis, found["parameters_kept"], room=2.2)
        _points(axis, found["lost"].max(), title)
        ends = {}
        for rule in RULES:
            line = found[(found["kind"] == kind) & (found["rule"] == rule)].sort_values("parameters_kept")
            x, y = line["parameters_kept"], line["lost"].clip(lower=LEAST)
            wide = {"linewidth": 4, "markersize": 9} if rule == "entropy" else {}  # others may lie on top of it
            axis.plot(x, y, label=rule, **line_style(f"unit {rule}", alone=len(line) == 1) | wide)
            if len(line):
                ends[f"unit {rule}"] = (float(x.iloc[-1]), float(y.iloc[-1]))
        name_ends(axis, ends, names={f"unit {rule}": rule for rule in RULES})
    axes[0].set_ylabel("points lost, test images")
    return figure


def about_sizes(rows: pd.DataFrame, kept: float) -> str:
    """Return in sentences what each ranking loses at the size nearest to `kept`, and at how many sizes which is ahead."""
    share, found = nearest(rows, kept), sized(rows)
    told = []
    for kind in KINDS:
        at = found[(found["kind"] == kind) & (found["budget"] == share)].set_index("rule")["lost"]
        over = {pair: gains(rows, *pair) for pair in (("entropy", "random"), ("output", "entropy"))}
        ahead = {pair: table.loc[table["kind"] == kind, "gain"] for pair, table in over.items()}
        sizes = {pair: f"{(gain > 0).sum()} of {len(gain)} sizes" for pair, gain in ahead.items()}
        told.append(
            f"- **{kind.capitalize()}**: {', '.join(f'{rule} {at[rule]:.1f}' for rule in RULES)}. Entropy is ahead of random at {sizes['entropy', 'random']}, "
            f"and output is ahead of entropy at {sizes['output', 'entropy']}."
        )
    return f"With {share:.0%} of the parameters kept, these points are lost on test images.\n\n" + "\n".join(told)


def about_random(read: Sequence[LayerProfile], plans: Mapping[str, Mapping[str, Any]], lost_by: Mapping[str, Sequence[float]]) -> str:  # fmt: skip
    """Return in sentences what a random order does to the last layer, and what it loses once that layer is left dense.

    `plans`: {"entropy", "random": a plan}; `lost_by`: {"entropy": [points], "random": [points, one a draw with the last layer dense]}.
    """
    last = read[-1]
    ranks = {rule: f"rank {plan[last.name]}" if last.name in plan else "dense" for rule, plan in plans.items()}
    worst, best, mine = max(lost_by["random"]), min(lost_by["random"]), lost_by["entropy"][0]
    what = "ahead of every draw" if mine < best else "behind every draw" if mine > worst else "within these draws"
    return (
        f"The classifier `{last.name}` has {last.full_rank} components. Entropy leaves it {ranks['entropy']}, the random order leaves it {ranks['random']}. "
        f"With the classifier dense, {len(lost_by['random'])} random orders lose {best:.1f} to {worst:.1f} points. Entropy, with {mine:.1f}, is {what}."
    )  # fmt: skip


def smallest(rows: pd.DataFrame) -> Figure:
    """Return the parameters kept by the smallest networks that lose no more than was allowed, as bars, each with its loss on test images."""
    found = taught(rows)
    found = found[found["budget_kind"] == "drop"]
    figure, (axis,) = canvas(width=8)
    order = [(kind, rule) for kind in KINDS for rule in RULES]
    by = found.set_index(["kind", "rule"])
    for place, key in enumerate(order):
        row: Any = by.loc[key]
        kept, inside = float(row["parameters_kept"]), float(row["parameters_kept"]) > 0.6
        axis.barh(place, kept, color=colour(key[1]), height=0.75)
        axis.text(
            kept + (-0.01 if inside else 0.01), place, f"{kept:.1%}; test {round(-row['lost'], 1) + 0.0:+.1f}", va="center", fontsize=9,
            ha="right" if inside else "left", color="white" if inside else "black",
        )  # fmt: skip
    axis.set(xlabel="parameters kept (share of dense)", xlim=(0, 1.02), yticks=range(len(order)))
    axis.set_yticklabels([f"{kind}, {rule}" for kind, rule in order])
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.grid(False, axis="y")
    axis.invert_yaxis()
    return figure


def about_drop(rows: pd.DataFrame, drop: float) -> str:
    """Return in sentences what each ranking needs to lose at most `drop` on validation images, and how many lose more on test images."""
    found = taught(rows)
    found = found[found["budget_kind"] == "drop"]
    told = []
    for kind in KINDS:
        kept = found[found["kind"] == kind].set_index("rule")["parameters_kept"]
        told.append(f"{kind.capitalize()} by entropy need {kept['entropy']:.1%} of the parameters, by output {kept['output']:.1%}, and in a random order {kept['random']:.1%}.")  # fmt: skip
    over = int((found["lost"] > 100 * drop + 1e-9).sum())
    points = "point" if drop == 0.01 else "points"
    told.append(f"On test images, {over} of the {len(found)} networks lose more than the {100 * drop:g} {points} that validation images allowed.")  # fmt: skip
    return " ".join(told)


# ---- three seeds -----------------------------------------------------------------------------------------------------


def advantage(rows: pd.DataFrame) -> Figure:
    """Return by how many points entropy and output are ahead of a random order at equal size: a dot a seed, a line their mean."""
    figure, axes = canvas(2, width=5.0)
    for axis, (kind, title) in zip(axes, KINDS.items()):
        axis.axhline(0, color="black", linestyle=":")
        budgets, ends = sized(rows)["budget"], {}
        _shares(axis, budgets, room=2.4)
        for rule, shift, wide in (("entropy", 0.97, 4), ("output", 1.03, 1.5)):
            mine = gains(rows, rule, "random")
            mine = mine[mine["kind"] == kind]
            mean = mine.groupby("budget")["gain"].mean()
            axis.plot(mine["budget"] * shift, mine["gain"], "o", markersize=4, alpha=0.6, color=colour(rule))
            axis.plot(mean.index, mean, color=colour(rule), label=rule, linewidth=wide)
            if len(mean):
                ends[f"unit {rule}"] = (float(mean.index[-1]), float(mean.iloc[-1]))
        axis.set_title(title)
        axis.set_ylim(axis.get_ylim())  # names are placed by the limits as they are
        name_ends(axis, ends, names={f"unit {rule}": rule for rule in RULES}, gap=15)
    axes[0].set_ylabel("points ahead of random")
    return figure


def _counts(gain: pd.Series) -> tuple[int, int, int]:
    """Return in how many comparisons a ranking is ahead, level and behind."""
    ahead, behind = int((gain >= LEVEL).sum()), int((gain <= -LEVEL).sum())
    return ahead, len(gain) - ahead - behind, behind


def _told(gain: pd.Series) -> str:
    """Return gains as the cell of a table: mean, lowest and highest, and how many are ahead, level and behind."""
    gain = gain.round(1) + 0.0  # no -0.0
    if not len(gain):
        return "not reached"
    mean = round(float(gain.mean()), 1) + 0.0
    return f"{mean:+.1f} ({gain.min():+.1f} to {gain.max():+.1f}); {' / '.join(map(str, _counts(gain)))}"


COMPARED = (("entropy", "random"), ("output", "random"), ("output", "entropy"))


def about_seeds(rows: pd.DataFrame) -> str:
    """Return a Markdown table of how the rankings compare at equal size: a comparison is one seed and size.

    A cell has the mean, the lowest and the highest gain in points, and how many comparisons are ahead, level and behind.
    """
    lines = []
    for kind in KINDS:
        for pair in COMPARED:
            mine = gains(rows, *pair)
            mine = mine[mine["kind"] == kind]
            parts = [mine["budget"] < min(EQUAL), mine["budget"].isin(EQUAL), mine["budget"] > max(EQUAL)]
            lines.append([kind, f"{pair[0]} minus {pair[1]}", *(_told(mine.loc[part, "gain"]) for part in parts)])
    return markdown(["ranked", "points of", "below 10 % kept", "10 to 30 % kept", "above 30 % kept"], lines)


def about_answer(rows: pd.DataFrame) -> str:
    """Return in sentences, for components and for units, how often entropy is ahead of a random order and of output, and the sizes at one drop."""
    found, told = taught(rows), []
    found = found[found["budget_kind"] == "drop"]
    seeds = sorted(int(seed) for seed in rows["seed"].unique())
    for kind in KINDS:
        parts = []
        for over, words in (("random", "a random order"), ("output", "the ranking by output")):
            mine = gains(rows, "entropy", over)
            gain = mine.loc[(mine["kind"] == kind) & mine["budget"].isin(EQUAL), "gain"].round(1)
            ahead, level, behind = _counts(gain)
            parts.append(
                f"Against {words} ({len(gain)} comparisons) entropy is ahead in {ahead}, level in {level} and behind in {behind}."
            )
        kept = found[found["kind"] == kind].groupby("rule")["parameters_kept"].mean()
        sizes = ", ".join(f"{rule} {kept[rule]:.0%}" for rule in RULES if rule in kept)
        told.append(f"**Does entropy find the {kind} that say little?** {' '.join(parts)} At the allowed loss they keep, on average: {sizes}.")  # fmt: skip
    which = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return (
        f"We count {which} and the sizes from 10 to 30 % kept. A difference of less than {LEVEL:g} points is called level.\n\n"
        + "\n\n".join(told)
    )


# ---- where it fails --------------------------------------------------------------------------------------------------


def damage(table: pd.DataFrame) -> Figure:
    """Return the rise of the loss without a unit against what ranks it, one dot a unit; `table` of `unit_damage`."""
    figure, axes = canvas(2, width=4.6, sharey=True)
    for axis, rule, label in zip(axes, RULES, ("entropy (nats)", "share of the output variance")):
        axis.axhline(0, color="black", linestyle=":")
        axis.plot(table[rule], table["loss"], "o", color=colour(rule), markersize=5, alpha=0.7)
        axis.set(xlabel=label, title=f"rank correlation {_correlation(table, rule):.2f}")
    axes[0].set_ylabel("rise of the loss without it (nats)")
    return figure


def _correlation(table: pd.DataFrame, rule: str) -> float:
    return round(table[rule].corr(table["loss"], method="spearman"), 2) + 0.0  # no -0.0


def about_damage(table: pd.DataFrame, layer: str) -> str:
    """Return in sentences how well entropy and output tell what a single unit is worth; `table` of `unit_damage`."""
    by = {rule: _correlation(table, rule) for rule in ("entropy", "output")}
    unhurt = int((table["loss"] <= 0).sum())
    return (
        f"The rank correlation with the damage is {by['entropy']:.2f} for entropy and {by['output']:.2f} for output (1 would be the same order, 0 is no "
        f"relation). A dot is one unit of `{layer}`. For {unhurt} of the {len(table)} the loss does not rise."
    )  # fmt: skip


CONTROLS = {"from scratch": "trained from scratch", "magnitude": "magnitude, fine-tuned"}


def controls(rows: pd.DataFrame, beside: pd.DataFrame) -> Figure:
    """Return points of test accuracy lost by entropy pruning, cut and fine-tuned, and by controls: components left, units right.

    `beside`: rows of `entropy_pruning.beside`; where it is empty the figure says so.
    """
    after = _fine_tuned(rows)
    before = sized(rows)[sized(rows)["budget"].isin(after["budget"])]
    beside = beside.assign(lost=100 * (_dense(rows) - beside["accuracy"].astype(float)))
    most = max(before["lost"].max(), after["lost"].max())
    figure, axes = canvas(2, width=5.0, sharey=True)
    for axis, (kind, title) in zip(axes, KINDS.items()):
        _shares(axis, after["parameters_kept"], room=3.2)
        _points(axis, most, title)
        ours = [table[(table["kind"] == kind) & (table["rule"] == "entropy")] for table in (before, after)]
        theirs = [beside[beside["method"] == method] for method in CONTROLS]
        drawn = zip(("component entropy", "unit entropy", "from scratch", "unit magnitude"), (*ours, *theirs), ("s--", "s-", "D-", "P-"))  # fmt: skip
        ends = {}
        for name, table, style in drawn:
            line = table.sort_values("parameters_kept")
            x, y = line["parameters_kept"], line["lost"].clip(lower=LEAST)
            axis.plot(
                x, y, style, color=colour_of(name), label=name, linewidth=2.5 if name.endswith("entropy") else 1.5
            )
            if len(line):
                ends[name] = (float(x.iloc[-1]), float(y.iloc[-1]))
        names = ("entropy, cut", "entropy, fine-tuned", *CONTROLS.values())
        name_ends(axis, ends, names=dict(zip(("component entropy", "unit entropy", "from scratch", "unit magnitude"), names)), gap=13)  # fmt: skip
    axes[0].set_ylabel("points lost, test images")
    if not len(beside):
        axes[0].text(
            0.97, 0.95, "no controls of this network in the gallery", transform=axes[0].transAxes, ha="right", va="top"
        )
    return figure


def _dense(rows: pd.DataFrame, chooser: str = "dense") -> float:
    return float(rows.loc[rows["chooser"] == chooser, "accuracy"].iloc[0])


def _fine_tuned(rows: pd.DataFrame) -> pd.DataFrame:
    return lost(rows[(rows["tuned"] == "fine-tuned") & (rows["budget_kind"] == "kept")], rows)


def about_controls(rows: pd.DataFrame, beside: pd.DataFrame) -> str:
    """Return a Markdown table of entropy pruning beside its controls, and sentences that say which control is ahead where."""
    before, after = (table[table["rule"] == "entropy"] for table in (sized(rows), _fine_tuned(rows)))
    at: dict[str, pd.Series] = {}
    for kind in KINDS:
        for table, words in ((before, "cut"), (after, "fine-tuned")):
            at[f"{kind}, {words}"] = 100 * table[table["kind"] == kind].set_index("budget")["accuracy"]
    at |= {
        words: 100 * beside[beside["method"] == name].set_index("budget")["accuracy"]
        for name, words in CONTROLS.items()
    }
    table = pd.DataFrame(at).reindex(sorted(after["budget"].unique()))
    lines = [[f"{share:.0%}", *("-" if v != v else f"{v:.1f}" for v in table.loc[share])] for share in table.index]
    told = [markdown(["kept", *table.columns], lines)]
    if not len(beside):
        return told[0] + "\n\nThe gallery has no controls of this network."
    for kind in KINDS:
        ours, parts = table[f"{kind}, fine-tuned"], []
        for words in CONTROLS.values():
            gain = (table[words] - ours).dropna().round(1) + 0.0  # no -0.0
            each = ", ".join(f"{value:+.1f} at {share:.0%}" for share, value in gain.items())
            parts.append(
                f"- *{words}*: {each} kept. It is ahead by {LEVEL:g} points or more at {_counts(gain)[0]} of {len(gain)} sizes."
            )
        told.append(f"Points of the controls over {kind} by entropy, fine-tuned:\n\n" + "\n".join(parts))
    return "\n\n".join(told)


def about_fine_tuning(rows: pd.DataFrame) -> str:
    """Return in a sentence what the same fine-tuning gives the dense network."""
    dense, tuned = 100 * _dense(rows), 100 * _dense(rows, "dense control")
    return f"The dense network, trained on in the same way, goes from {dense:.1f} to {tuned:.1f}% of the test images."


# ---- an exercise -----------------------------------------------------------------------------------------------------


def bins_curve(bins: Sequence[int], others: Mapping[str, float], answer: Any) -> Figure:
    """Return accuracy against the number of bins, as a learner found it; `others`: {ranking: accuracy}, as lines.

    Where `answer` is not one number for each of `bins`, as when the exercise is not answered yet, the figure says so.
    """
    figure, (axis,) = canvas(width=7)
    axis.set(xscale="log", xlabel="bins", ylabel="accuracy, validation images", xlim=(0.8 * bins[0], 2 * bins[-1]))
    axis.xaxis.set_major_locator(FixedLocator(list(bins)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    found = as_numbers(answer)
    known = found is not None and found.shape == (len(bins),)
    heights = [*others.values(), *(found if known and found is not None else [])]
    axis.set_ylim(min(heights) - 0.03, max(heights) + 0.03)
    ends = {}
    for rule, height in others.items():
        axis.axhline(height, color=colour(rule), linestyle=":")
        ends[f"unit {rule}"] = (float(bins[-1]), height)
    if known and found is not None:
        axis.plot(bins, found, "s-", color=colour("entropy"))
        ends["unit entropy"] = (float(bins[-1]), float(found[-1]))
    else:
        axis.text(0.03, 0.5, f"entropy: no answer of {len(bins)} numbers yet", transform=axis.transAxes)
    name_ends(axis, ends, names={f"unit {rule}": rule for rule in RULES})
    return figure


def about_bins(bins: Sequence[int], others: Mapping[str, float], accuracies: Sequence[float]) -> str:
    """Return in sentences which number of bins serves entropy best, and whether it then reaches the other rankings."""
    best = int(np.argmax(accuracies))
    beside = " and ".join(f"{rule} {height:.1%}" for rule, height in others.items())
    return (
        f"With {bins[best]} bins entropy is best, with {accuracies[best]:.1%} of the validation images right. The worst number of bins gives "
        f"{min(accuracies):.1%}. At the same size the other rankings have: {beside}."
    )  # fmt: skip


# ---- axes ------------------------------------------------------------------------------------------------------------


def _shares(axis: Axes, values: pd.Series, room: float = 1.1) -> None:
    """Set the horizontal axis to shares of the parameters on a log scale, with room for names at the right."""
    axis.set(xscale="log", xlabel="parameters kept (share of dense)", xlim=(0.9 * values.min(), room * values.max()))
    axis.xaxis.set_major_locator(FixedLocator([0.03, 0.05, 0.1, 0.2, 0.3, 0.6]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _points(axis: Axes, most: float, title: str) -> None:
    axis.set(yscale="log", ylim=(0.8 * LEAST, max(1.5 * most, 10)), title=title)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value > LEAST else f"{value:g} or less")
    axis.yaxis.set_minor_locator(NullLocator())
