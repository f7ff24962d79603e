"""The gallery's section on controls and rivals: every method on the same weights, images and fine-tuning, and what beats ours."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lowrank_utils.lab import corruptions, finetuning
from lowrank_utils.workbook import contest, plots, rivals, stability
from lowrank_utils.workbook.benchmark import REFINED
from lowrank_utils.workbook.contest import OURS
from lowrank_utils.workbook.control_rows import CASES, NAME
from lowrank_utils.workbook.paired_tests import LEVEL, holm, mcnemar_of_counts
from lowrank_utils.workbook.tables import markdown

WORDS = {
    "none": "factors",
    "fisher-weighted": "our factors",
    "svd": "plain factors",
    "data-aware": "data-aware factors",
}
WORDS |= {"whitened": "whitened factors"}
THREE = (3e-4, 1e-3, 3e-3)  # rates of fine-tuning in older rows, which could not leave a network as it was either
STATES = {"none": "cut", "recalibrated": "recalibrated", "fine-tuned": "fine-tuned", "distilled": "distilled"}
PANELS = {state: words for state, words in STATES.items() if state != "recalibrated"}  # of the figure

_PUBLIC = {
    3: "The others are there. From scratch, one network of this size takes eight hours or more.",
    4: "Paired by test images within the run; a public network is one training, and it gets one draw.",
    6: "One draw: fine-tuning alone takes minutes a network.",
}
UNMET = {  # rules of fair comparison that the rows of a network do not keep, and why; see `audit`
    "*": {
        4: "The first draw is paired by test images. The others show the spread over draws.",
        5: "Measured in the first draw, but for the memory of an answer in older rows. The other draws show the spread.",
    },
    "resnet20": _PUBLIC,
    "resnet56": _PUBLIC,
}

published = partial(rivals.published, NAME)
SHORT = 0.01  # of the MACs: a network that is so much smaller than asked for is not called behind
BESIDE = {  # control -> its rows: what was trained, what chose what stays
    "random": ("none", "random"),
    "from scratch": ("from scratch", OURS[0]),
    "magnitude": ("fine-tuned", "magnitude"),
}


def of_network(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the gallery's rows of the dense network in `rows`, which has one: of the same name, data set, seed and accuracy; none where there is no such network."""
    cut_only = rows["tuned"] == "none" if "tuned" in rows else True
    (dense,) = rows[(rows["chooser"] == "dense") & cut_only].to_dict("records")
    table = published()
    if table is None:
        return pd.DataFrame(columns=["chooser", "tuned", "bits", "draw", "budget", "accuracy"])
    for name in ("dataset", "network", "seed"):
        table = table[table[name] == dense[name]]
    known = table.loc[(table["chooser"] == "dense") & (table["bits"] == 32), "accuracy"]
    return table if len(known) and abs(known.iloc[0] - dense["accuracy"]) <= 0.002 else table[:0]


def beside(rows: pd.DataFrame, methods: Sequence[str] = tuple(BESIDE)) -> pd.DataFrame:
    """Return the gallery's controls of the dense network in `rows`, for a notebook: one row a method and budget.

    Columns method, budget, parameters_kept, accuracy, and low and high of the accuracy over draws. The methods: "random", the mean over draws of
    random ranks in Fisher-weighted factors, nothing trained; "from scratch", thin layers of about the same size with fresh weights, trained as
    the dense network was; "magnitude", the smallest weights at zero, counted with their indices, and fine-tuned. Empty where the gallery has no
    controls of this network.
    """
    mine, parts = of_network(rows), []
    for name in methods:
        tuned, chooser = BESIDE[name]
        one = mine[(mine["tuned"] == tuned) & (mine["chooser"] == chooser) & (mine["bits"] == 32)]
        found = one.groupby("budget")["accuracy"].agg(["mean", "min", "max"])
        found.columns = ["accuracy", "low", "high"]
        sizes = one.groupby("budget")["parameters_kept"].mean() if len(one) else found["accuracy"]
        parts.append(found.assign(parameters_kept=sizes, method=name).reset_index())
    wanted = ["method", "budget", "parameters_kept", "accuracy", "low", "high"]
    return pd.concat(parts)[wanted].sort_values(["method", "budget"], ignore_index=True)


def method_of(rows: pd.DataFrame) -> pd.Series:
    """Return each row's method in words: its ranks with its factors, or what made it sparse."""
    low = rows["stored_as"] == "low rank"
    factors = rows["factors"].map(WORDS)
    named = rows["chooser"].where(~low | (rows["factors"] == "none"), rows["chooser"] + ", " + factors)
    ours = (rows["chooser"] == OURS[0]) & (rows["factors"] == OURS[1])
    plan = rows["chooser"].map({OURS[0]: "our plan", "fixed": "one share of the rank"})
    return named.where(~ours, "ours").where(rows["tuned"] != "from scratch", plan + ", from scratch")


def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that have an accuracy, with the column method."""
    rows = rows[rows["accuracy"].notna()]
    return rows.assign(method=method_of(rows))


def _first(rows):
    return rows[(rows["draw"] == 0) & (rows["bits"] == 32)]


def figure(rows: pd.DataFrame) -> Figure:
    """Draw accuracy against the share kept: a row of panels a network, a panel for nothing trained, fine-tuned and distilled."""
    rows = _first(shown(rows))
    cases = list(rows[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    drawn, axes = plots.canvas(len(PANELS), len(cases), width=4.4, height=3.8, sharey="row")
    methods = [m for m in rows.loc[rows["tuned"] == "none", "method"].unique() if m != "dense"]
    palette = dict(zip(methods, itertools.cycle(sns.color_palette("colorblind"))))
    markers = dict(zip(methods, itertools.cycle("osD^vPX*p")))
    for i, (dataset, network) in enumerate(cases):
        mine = rows[(rows["dataset"] == dataset) & (rows["network"] == network)]
        dense = mine.loc[mine["chooser"] == "dense", "accuracy"].mean()
        for axis, (state, words) in zip(axes[i * len(PANELS) :], PANELS.items()):
            low, lower = dense - 0.1, 0
            for method in methods:
                part = mine[(mine["method"] == method) & (mine["tuned"] == state)].sort_values("budget")
                lower += int((part["accuracy"] < low).sum())
                width = 3.0 if method == "ours" else 1.2
                axis.plot(
                    part["budget"], part["accuracy"], color=palette[method], marker=markers[method], markersize=5,
                    linewidth=width, label=method, alpha=0.85,
                )  # fmt: skip
            scratch = mine[(mine["tuned"] == "from scratch") & (mine["chooser"] == OURS[0])].sort_values("budget")
            axis.plot(scratch["budget"], scratch["accuracy"], color="black", linestyle="--", label="from scratch")
            axis.axhline(dense, color="black", linestyle=":", label="dense")
            axis.set(xscale="log", xlabel="share kept", ylim=(low, dense + 0.01))
            axis.set_title(f"{network}, {words}")
            ticks = sorted(mine["budget"].dropna().unique())
            axis.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
            axis.minorticks_off()
            if not (mine["tuned"] == state).any():
                axis.set_xlim(0.9 * ticks[0], 1.1 * ticks[-1])
                axis.text(0.5, 0.5, "not measured yet", transform=axis.transAxes, ha="center")
            axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            if lower:
                place = {"xycoords": "axes fraction", "ha": "right", "fontsize": "small"}
                axis.annotate(f"{lower} lower down", (0.98, 0.03), **place)
        axes[i * len(PANELS)].set_ylabel("accuracy")
    axes[len(PANELS) - 1].legend(**plots.BESIDE)
    return drawn


def pictures(rows: pd.DataFrame) -> dict[str, Figure]:
    """Return {name: figure} of what the page shows beside `figure`."""
    return {f"{NAME}-predicted": stability.predicted_against_measured(rows)}


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy in percent of one network's first draw: a row a method, a column a share kept and state of training."""
    mine = _first(shown(rows))
    found = {}
    for share in sorted(mine["budget"].dropna().unique(), reverse=True):
        for state, words in STATES.items():
            at = mine[(mine["budget"] == share) & (mine["tuned"] == state)]
            found[f"{100 * share:g} %, {words}"] = 100 * at.set_index("method")["accuracy"]
    order = [m for m in mine["method"].unique() if m in set(mine.loc[mine["tuned"] == "none", "method"]) - {"dense"}]
    return pd.DataFrame(found).reindex(order)


def beside_ours(rows: pd.DataFrame) -> pd.DataFrame:
    """Return every control and rival of one network beside ours at the same budget and state of training, on the same test images.

    Columns: budget, state, method, accuracy, macs_kept (where it is `SHORT` of the budget, else NaN), ours, gain (points), clear (whether McNemar's exact test sees a difference at 5 %,
    Holm's correction over all of these comparisons). Networks trained from scratch are compared with ours fine-tuned: both take
    the labels of all training images; recalibrated ones with ours as cut, which needs no recalibration; ours refined without labels is left out.
    """
    mine, found = _first(shown(rows)), []
    own = mine[mine["method"] == "ours"].set_index(["budget", "tuned"])["accuracy"]
    for each in mine[(mine["method"] != "ours") & mine["budget"].notna()].to_dict("records"):
        scratch = each["tuned"] == "from scratch"
        state = "fine-tuned" if scratch else each["tuned"]
        # the counts of `contest` hold a recalibrated network against ours as it was cut
        ours = own.get((each["budget"], "none" if state == "recalibrated" else state))
        if ours is None or state not in STATES:
            continue
        told = {"budget": each["budget"], "state": state, "method": each["method"], "accuracy": each["accuracy"]}
        low = each["stored_as"] == "low rank"
        told["macs_kept"] = each["macs_kept"] if low and each["budget"] - each["macs_kept"] > SHORT else np.nan
        p = mcnemar_of_counts(each["right_alone"], each["wrong_alone"])
        found.append(told | {"ours": ours, "gain": 100 * (each["accuracy"] - ours), "p": p})
    table = pd.DataFrame(found, columns=["budget", "state", "method", "accuracy", "macs_kept", "ours", "gain", "p"])
    return table.assign(clear=holm(table["p"]) < LEVEL).drop(columns="p")


def verdicts(rows: pd.DataFrame) -> list[str]:
    """Return Markdown list items that say, for each budget and state of training, what is ahead of ours, and by how much."""
    table, lines = beside_ours(rows), []
    for state, words in STATES.items():
        for share in sorted(table["budget"].unique(), reverse=True):
            there = table[(table["budget"] == share) & (table["state"] == state)]
            if not len(there):
                continue
            part = there[there["gain"] > 0].sort_values("gain", ascending=False)
            told = [
                f"{m} ({100 * a:.1f} %{', clearly' if c else ''})"
                for m, a, c in zip(part["method"], part["accuracy"], part["clear"])
            ]
            said = f"**ahead of ours: {'; '.join(told)}**" if told else "no control or rival is ahead of ours"
            smaller = there[there["macs_kept"].notna() & (there["gain"] < 0)]
            equal = there.drop(smaller.index)
            behind = int(((equal["gain"] < 0) & equal["clear"]).sum())
            left = "; ".join(
                f"{m} ({100 * kept:.1f} % of the MACs)" for m, kept in zip(smaller["method"], smaller["macs_kept"])
            )
            mended = " as cut" * (state == "recalibrated")
            lines.append(
                f"- {100 * share:g} % kept, {words}: ours{mended} {100 * there['ours'].iloc[0]:.1f} %; {said}. "
                f"Clearly behind: {behind} of {len(equal)}." + f" Behind, but smaller: {left}." * bool(left)
            )
    return lines


def spread_over_draws(rows: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy over draws in percent: a row a method, and for each share its mean, lowest and highest in words (of one draw the number)."""
    mine = shown(rows)
    mine = mine[(mine["tuned"] == "none") & (mine["bits"] == 32) & (mine["chooser"] != "dense")]
    found = {}
    for share in sorted(mine["budget"].unique(), reverse=True):
        accuracy = 100 * mine[mine["budget"] == share].set_index("method")["accuracy"]
        each = accuracy.groupby(level=0, sort=False).agg(["mean", "min", "max", "count"])
        found[f"{100 * share:g} %"] = each.apply(
            lambda r: f"{r['mean']:.1f}" + f" ({r['min']:.1f} to {r['max']:.1f})" * bool(r["count"] > 1), axis=1
        )
    return pd.DataFrame(found).reindex(mine["method"].unique()).fillna("-")


def about_random(rows: pd.DataFrame) -> str:
    """Return a Markdown table of what the choice of ranks is worth for the dense network in `rows`: ours, random ranks and one share, over draws.

    Accuracy in percent, mean (lowest to highest) over the draws of calibration images, Fisher-weighted factors, nothing trained after the cut; then, of
    the first draw, ours and random ranks before and after fine-tuning, and our plan trained from scratch, where the gallery has them. (No rank of ours is below
    `contest.FLOOR` of its break-even rank; random ranks may be.) Where the gallery has no such rows, one sentence says so.
    """
    mine = of_network(rows)
    if not (mine["chooser"] == "random").any():
        return "The gallery has no controls of this network."
    found = spread_over_draws(mine[mine["factors"].isin(["fisher-weighted", "none"])])
    found = found.reindex(
        [name for name in ("ours", "random, our factors", "fixed, our factors") if name in found.index]
    )
    lines = [[name, *row] for name, row in zip(found.index, found.to_numpy())]
    shares = sorted(mine.loc[mine["chooser"] == "random", "budget"].unique(), reverse=True)
    lines += [[name, *cells] for name, cells in _with_labels(mine, shares).items()]
    told = f"Test accuracy in percent, {_draws(mine[mine['chooser'] == 'random'])} of ranks and calibration images; the dense network has {100 * _first(mine).loc[mine['chooser'] == 'dense', 'accuracy'].iloc[0]:.1f}."
    if len(lines) > len(found):
        told += f" The last lines show what labels add, for the first draw alone: the network as it was cut, and after {_steps(mine)} steps of training."
        if (mine["tuned"] == "from scratch").any():
            told += " Thin layers from scratch were trained as the dense network was."
        told += _place(mine, shares)
    return f"{told}\n\n{markdown(['method', *(f'{share:.0%} of the MACs' for share in shares)], lines)}"


def _place(rows, shares):
    # of the random draws, how many the first one is ahead of; nothing where there is one
    random = shown(rows)
    random = random[(random["chooser"] == "random") & (random["tuned"] == "none")]
    told = []
    for share in shares:
        by = random[random["budget"] == share].set_index("draw")["accuracy"]
        if len(by) > 1:
            told.append(f"{int((by.drop(0) < by[0]).sum())} of {len(by) - 1} others at {share:.0%}")
    return f" The first draw of random ranks is better than {' and '.join(told)}." if told else ""


def _with_labels(rows, shares):
    # {method: accuracy before and after training at each share} of the first draw; {} where nothing was trained
    first, found = _first(shown(rows)), {}
    for chooser, words in ((OURS[0], "ours"), ("random", "random, our factors")):
        mine = first[(first["chooser"] == chooser) & (first["factors"] == OURS[1])].pivot_table(
            "accuracy", "budget", "tuned"
        )
        if "fine-tuned" in mine:
            cells = mine.reindex(shares)[["none", "fine-tuned"]].to_numpy()
            found[f"{words}, first draw, fine-tuned"] = [
                f"{_percent(cut)}, then {_percent(after)}" for cut, after in cells
            ]
    scratch = first[(first["chooser"] == OURS[0]) & (first["tuned"] == "from scratch")].set_index("budget")["accuracy"]
    if len(scratch):
        found["our plan, first draw, from scratch"] = [_percent(value) for value in scratch.reindex(shares)]
    return found


def _percent(value):
    return "-" if value != value else f"{100 * value:.1f}"


def corrupted_table(rows: pd.DataFrame, share: float) -> str:
    """Return a Markdown table of accuracy under each corruption at one share kept: dense, ours cut, and all that saw labels."""
    mine = _first(shown(rows))
    at = mine[(mine["budget"] == share)]
    cut = at[(at["method"] == "ours") & (at["tuned"] == "none")]
    parts = [mine[mine["chooser"] == "dense"], cut, at[at["tuned"].isin(["fine-tuned", "from scratch"])]]
    names = [f"accuracy_{name}" for name in corruptions.NAMES]
    lines = [
        [r["method"], STATES[r["tuned"]] if r["chooser"] != "dense" and r["tuned"] in STATES else "-"]
        + [_percent(r[name]) for name in ("accuracy", *names, "accuracy_corrupted")]
        for part in parts
        for r in part.to_dict("records")
    ]
    return markdown(["method", "state", "clean", *corruptions.NAMES, "mean of the five"], lines)


def cost_table(rows: pd.DataFrame, share: float) -> str:
    """Return a Markdown table of what the cut networks of one share cost: MACs, parameters, kilobytes, time and memory of 64 inputs."""
    mine = _first(shown(rows))
    mine = mine[(mine["tuned"] == "none") & ((mine["budget"] == share) | (mine["chooser"] == "dense"))]
    lines = [
        [
            r["method"],
            *(f"{100 * r[name]:.0f}" for name in ("macs_kept", "parameters_kept")),
            f"{r['bytes'] / 1000:.0f}",
            *(_cell(r.get(name, float("nan"))) for name in ("faster_64", "memory_64")),
        ]
        for r in mine.to_dict("records")
    ]
    return markdown(["method", "MACs %", "parameters %", "kB", "times less processor time", "MiB of an answer"], lines)


def eight_bits_table(rows: pd.DataFrame) -> str:
    """Return a Markdown table of the networks in 8 bits beside 32: accuracy, kilobytes, time of 64 inputs beside the dense network."""
    mine = shown(rows)
    mine = mine[(mine["draw"] == 0) & (mine["tuned"] == "none") & mine["method"].isin(["dense", "ours"])]
    lines = []
    for r in mine.sort_values(["method", "budget", "bits"], ascending=[True, False, False]).to_dict("records"):
        kept = "-" if r["budget"] != r["budget"] else f"{100 * r['budget']:g}"
        scaled = r.get("activations")
        kind = "32 bits" if r["bits"] == 32 else f"8 bits, {scaled}"
        numbers = [
            _percent(r["accuracy"]),
            _percent(r["accuracy_corrupted"]),
            f"{r['bytes'] / 1000:.0f}",
            _cell(r.get("faster_64", float("nan"))),
        ]
        lines.append([r["method"], kept, kind, *numbers])
    return markdown(
        ["network", "MACs %", "stored as", "accuracy", "corrupted", "kB", "times less processor time, 64 inputs"], lines
    )


def notes(rows: pd.DataFrame) -> list[str]:
    """Return Markdown list items: every row with a note, such as training that diverged or a budget out of reach."""
    held = rows[rows["note"].notna() & (rows["note"] != "")] if "note" in rows else rows[:0]
    held = held.assign(method=method_of(held))
    each = held.groupby(["network", "method", "budget", "tuned", "note"], sort=False, dropna=False).size()
    return [f"- {network}, {m}, {100 * b:g} %, {t}: {note}" for network, m, b, t, note in each.index]


def section(rows: pd.DataFrame) -> str:
    """Return the part of the gallery's page: figure, tables, what is ahead of ours, stability, and what was left out."""
    parts = [_case_section(name, mine) for name, mine in rows.groupby(["dataset", "network"], sort=False)]
    cut = rows[(rows["tuned"] == "none") & (rows["bits"] == 32) & (rows["chooser"] != "dense")]
    said = "\n".join([*notes(rows), *_harmed(rows), *_odd_first_draws(rows), *_only_cut(rows)]) or "- None."
    missing = [case.network for case in CASES if case.network not in set(rows["network"])]
    waiting = f" Not measured yet: {', '.join(missing)}." if missing else ""
    return f"""## Controls and rivals

![Accuracy against the share kept of the MACs (of sparse networks, the parameters), for ours, controls and rivals, cut, fine-tuned and distilled](controls.png)

{_words(rows)}{waiting}

{chr(10).join(parts)}
### Predicted and measured rises of the loss

![Predicted against measured rise of the loss, a point for each network that was cut](controls-predicted.png)

{stability.prediction_in_words(cut)}

### What went otherwise

{said}

The rows are `controls.csv`; times, rates and plans stand there, and the most memory that the process had held by then.
"""


def about_sizes(rows: pd.DataFrame) -> list[str]:
    """Return a Markdown list item where sparse networks of a network keep another share of the parameters than ours; else nothing."""
    mine = _first(shown(rows))
    mine = mine[mine["tuned"] == "none"]
    sizes = {name: part.set_index("budget")["parameters_kept"] for name, part in mine.groupby("method")}
    if not {"ours", "magnitude"} <= set(sizes) or (sizes["ours"] - sizes["magnitude"]).abs().max() < SHORT:
        return []
    told = [
        f"{100 * sizes['magnitude'][b]:.0f} % against {100 * sizes['ours'][b]:.0f} %"
        for b in sorted(sizes["ours"].index, reverse=True)
    ]
    return [
        f"- Shares count the MACs of low-rank networks and the parameters of sparse ones. Of the parameters magnitude keeps more than ours: {', '.join(told)}."
    ]


def _odd_first_draws(rows):
    # methods that were trained from a first draw far from all others
    for network, mine in shown(rows).groupby("network", sort=False):
        trained = set(mine.loc[mine["tuned"] == "fine-tuned", "method"])
        cut = mine[(mine["tuned"] == "none") & (mine["bits"] == 32) & mine["method"].isin(trained)]
        for (method, budget), part in cut.groupby(["method", "budget"], sort=False):
            first, others = (100 * part.loc[(part["draw"] == 0) == here, "accuracy"] for here in (True, False))
            if len(first) and len(others) > 1 and max(first.min() - others.max(), others.min() - first.min()) > 5:
                yield f"- {network}, {method}, {100 * float(str(budget)):g} %: the first draw, the only one that is trained and corrupted, has {first.min():.1f} % when cut, the others {others.min():.1f} to {others.max():.1f} %."


def _harmed(rows):
    # networks that fine-tuning left worse than it found them; validation images choose the rate, but not whether to train at all
    for r in shown(rows).to_dict("records"):
        before = r.get("untuned_accuracy", np.nan)
        if r["tuned"] in contest.TRAINED and before - r["accuracy"] > 0.001:
            yield f"- {r['network']}, {r['method']}, {100 * r['budget']:g} %, {r['tuned']}: {_percent(before)} % before, {_percent(r['accuracy'])} % after; the rate was {r['rate']:g}."


def _only_cut(rows):
    # the methods of a network that were not fine-tuned, or not recalibrated, where others were
    reasons = {"fine-tuned": "for each takes minutes", "recalibrated": "in older rows"}
    for network, mine in shown(rows).groupby("network", sort=False):
        cut = mine[(mine["stored_as"] != "dense") & (mine["bits"] == 32)]
        for state, why in reasons.items():
            names = {each: cut.loc[cut["tuned"] == each, "method"].unique() for each in ("none", state)}
            left = [name for name in names["none"] if name not in names[state]]
            if left and len(names[state]):
                yield f"- {network}: cut, but not {state}, {why}: {'; '.join(left)}."


def _words(rows):
    rows = rows.reindex(columns=list(dict.fromkeys([*rows.columns, "steps", "rate"])))
    rates = ", ".join(f"{rate:g}" for rate in finetuning.RATES)
    older = _of_three_rates(rows)
    rates += ", or no step at all"
    if older:
        rates += f" ({' and '.join(older)}: one of {', '.join(f'{rate:g}' for rate in THREE)})"
    counts = ", ".join(map(str, rows["calibration_images"].dropna().astype(int).unique()))
    return f"""*Ours* is `compress` without refinement. All low-rank methods leave the same layers dense and have the same {counts} calibration images,
drawn at random from the training images: {_draws(rows)} for networks that are only cut, the first one for all else. *Random* ranks, and one share of
the rank (*fixed*), in our factors show what the choice of ranks is worth; of a convolution ours also chooses how the kernel is unfolded, and they
unfold every kernel in space. BALF and ZS-SVD are written from their papers, AIMET's greedy search from
its published code; ZS-SVD is without its optional gradient step, and AIMET's search looks at {contest.JUDGES} validation images. Sparse networks
are counted with 16 bits an index; SparseGPT takes one density for all layers, as published, or the densities that magnitude chooses.

*Recalibrated*: the batch norms' means and variances are taken anew from the calibration images, under the augmentation of the training; no label is used and no
weight is changed. *Fine-tuned*: {_steps(rows)} steps on all training images with labels, the peak rate chosen among {rates}, on {contest.JUDGES} validation images, the same
for all ({_ends(rows)}). *Distilled*: the mean of that loss and of the divergence from the dense network at temperature {finetuning.TEMPERATURE:g}, times its square. *From
scratch*: the shapes of our plan, or of one share of the rank, with fresh weights, trained by the recipe of the dense network. Nothing is chosen on test images.
*Clearly* is a difference that McNemar's exact test sees on the same test images at 5 %, after Holm's correction for all comparisons
of a network. One seed of the dense network.{_seen(rows)}"""


def _of_three_rates(rows):
    # the networks whose rows are older than the choice of five rates; the memory of an answer came with it
    known = rows.groupby("network", sort=False)["memory_64"].count() if "memory_64" in rows else pd.Series(dtype=int)
    tuned = rows.loc[rows["rate"].notna(), "network"].unique()
    return [network for network in tuned if not known.get(network, 0)]


def _each(words):
    # words by network: once where they are the same for all, else with the networks that they are about
    alike = words.groupby(words, sort=False).groups
    return " or ".join(each if len(alike) == 1 else f"{each} ({', '.join(names)})" for each, names in alike.items())


def _steps(rows):
    # of fine-tuning
    tuned = rows[rows["steps"].notna()].astype({"steps": int})
    return _each(tuned.drop_duplicates(["network", "steps"]).set_index("network")["steps"].astype(str))


def _ends(rows):
    # how often the lowest and the highest rate were best; what lies at an end may lie beyond it
    told, tuned, older = [], rows[rows["rate"].notna()], _of_three_rates(rows)
    for network, mine in tuned.groupby("network", sort=False):
        tried = THREE if network in older else finetuning.RATES
        none, low, high = (int((mine["rate"] == rate).sum()) for rate in (0, min(tried), max(tried)))
        told.append(
            f"of {len(mine)} networks of {network}, no step was best for {none}, the lowest rate for {low}, the highest for {high}"
        )
        if max(low, high) > len(mine) / 2:
            told[-1] += ", so that a wider range may gain more"
    return "; ".join(told)


def _seen(rows):
    public = [case.network for case in CASES if case.checkpoint and case.network in set(rows["network"])]
    if not public:
        return ""
    return f" The public {', '.join(public)} saw all training images when it was trained, the validation images too; so its rates are chosen on images that the dense network knows, for all methods alike."


def _draws(rows):
    # of calibration images
    return _each(rows.groupby("network", sort=False)["draw"].nunique().map(lambda n: f"{n} draw{'s' * (n > 1)}"))


def _beside(mine):
    # what is trained otherwise, beside ours, in Markdown list items
    def ours(share, tuned):
        return _percent(contest.number(mine, method="ours", budget=share, tuned=tuned))

    lines = []
    for r in mine[mine["tuned"] == "from scratch"].to_dict("records"):
        share, beside = (
            r["budget"],
            f"ours cut {ours(r['budget'], 'none')} %, fine-tuned {ours(r['budget'], 'fine-tuned')} %",
        )
        epochs = int(r["finetuned_epochs"])
        lines.append(
            f"- {100 * share:g} % kept, {r['method']} ({epochs} epochs): {_percent(r['accuracy'])} %; {beside}."
        )
    for r in mine[mine["tuned"] == REFINED].to_dict("records"):
        before = _percent(contest.number(mine, method=r["method"], budget=r["budget"], tuned="none"))
        lines.append(
            f"- {100 * r['budget']:g} % kept, {r['method']}, {REFINED}: {_percent(r['accuracy'])} %; {before} % without it, where the sweep sees all images."
        )
    if not mine["tuned"].isin(contest.TRAINED).any():
        lines.append("- Nothing was fine-tuned or trained from scratch yet.")
    if not (mine["tuned"] == "recalibrated").any():
        lines.append("- No rows with batch norms recalibrated, as a network without batch norms cannot have.")
    return lines


def same_plans(rows: pd.DataFrame) -> list[str]:
    """Return Markdown list items: choosers that came to the very same plan at one budget, in the first draw."""
    mine = _first(rows)
    mine = mine[(mine["tuned"] == "none") & (mine["stored_as"] == "low rank")]
    lines = []
    for _, part in mine.groupby(["budget", "plan"], sort=False):
        alike = list(dict.fromkeys(part["chooser"]))
        if len(alike) > 1:
            lines.append(f"- {100 * float(part['budget'].iloc[0]):g} % kept: {', '.join(alike)} chose the same plan.")
    return lines


def _case_section(name, rows):
    dataset, network = name
    dense = contest.number(rows, chooser="dense", bits=32)
    table = accuracies(rows).dropna(axis=1, how="all")
    lines = [[method, *map(_cell, table.loc[method])] for method in table.index]
    why = contest.why_not_scratch(network)
    others = [*about_sizes(rows), *_beside(_first(shown(rows))), *([f"- {why}"] if why else []), *same_plans(rows)]
    shares = sorted(rows["budget"].dropna().unique(), reverse=True)
    middle = shares[len(shares) // 2]
    return f"""### {network} on {dataset}

Accuracy in percent; the dense network has {100 * dense:.1f}. *-*: not measured; *What went otherwise* names what was left out.

{markdown(["method", *table.columns], lines)}

{chr(10).join(others)}

What is ahead of ours at the same budget and state of training:

{chr(10).join(verdicts(rows))}

{_over_draws(rows)}

Five seeded corruptions of the first {contest.CORRUPTED} test images (severity {corruptions.SEVERITY} of 5), at {100 * middle:g} % kept; *clean* is of all test images:

{corrupted_table(rows, middle)}

What the cut networks cost at {100 * middle:g} % kept; time and memory are those of 64 inputs, on one thread, the time beside the dense network in turn. Zeros are computed
and held like other weights:

{cost_table(rows, middle)}

In 8 bits, by onnxruntime on one thread, beside the dense network in torch; *static* is calibrated on the calibration images:

{eight_bits_table(rows)}
"""


def _over_draws(rows):
    cut = rows[(rows["tuned"] == "none") & (rows["bits"] == 32) & ~rows["chooser"].isin(["dense", "random"])]
    taus = stability.kendall_tau(cut)
    if (taus["draws"] < 2).all():
        return "One draw of calibration images only, so nothing can be said of how stable the order is."
    spread = spread_over_draws(rows)
    each = "; ".join(
        f"{r['tau_mean']:.2f} (least {r['tau_least']:.2f}) at {100 * r['budget']:g} % over {r['draws']} draws of {r['methods']} methods, random ranks left out"
        for r in taus.to_dict("records")
    )
    return f"""Cut networks over the draws of calibration images, mean (lowest to highest); random ranks have another seed in each:

{markdown(["method", *spread.columns], [[m, *map(str, spread.loc[m])] for m in spread.index])}

Kendall's tau between the orders of the methods in two draws, mean over all pairs: {each}. What rests on the weights alone has the same accuracy in every draw."""


def _cell(value):
    return "-" if value != value else f"{value:.1f}"
