"""Chapter 06, side by side: every chooser and every kind of factors in one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from lowrank_utils.lab import training
from lowrank_utils.lab.data import Dataset, Split
from lowrank_utils.ranks import search
from lowrank_utils.workbook import contest
from lowrank_utils.workbook import controls as control
from lowrank_utils.workbook.bench_figures import SHOWN, lost_by_seed, trade_off, way_of
from lowrank_utils.workbook.benchmark import (
    REFINED,
    Bench,
    Subject,
    searched,
)
from lowrank_utils.workbook.chapters.side_by_side_experiment import experiment as experiment
from lowrank_utils.workbook.chapters.side_by_side_experiment import measured as measured
from lowrank_utils.workbook.chapters.ten_minutes import NAMES
from lowrank_utils.workbook.paired_tests import LEVEL, holm, mcnemar
from lowrank_utils.workbook.search_lab import values_where_known
from lowrank_utils.workbook.tables import at_share, markdown, mean_and_spread, span

NOTEBOOK = "06_side_by_side"
CAPTIONS = {  # of its tables
    "Side by side: choosers times factors, accuracy with 50 / 25 / 15 % of the MACs": "Means over three seeds, on ResNet-20 of one. *-*: not asked for.",
    "Side by side: every other way": "Beside dense and exact search on predicted losses; means over seeds. Percent of the dense network's parameters and MACs; times faster than the dense network in torch, timed beside it, with one thread; *fine-tuned* is the accuracy after one short pass over 2 000 images at one rate, the same for all; nobody tuned that rate, and *Controls and rivals* has more. *Size asked for*: a share of the MACs, *kept* of the parameters, an error (epsilon) or none (*own size*). *Refitted*: what reads the removed units, by least squares; *refit*: a cut layer of DDLR or Net-Trim. Zeros are counted with 16 bits an index, and run like the dense network. *-*: not fine-tuned.",
    "Side by side: refined without labels": "Apart from the tables above, whose networks no step has trained: all weights tuned towards the dense network's answers to the calibration inputs. The same inputs, steps and held-out inputs for all. Accuracy in percent; *gained* in points; seconds to find, refinement included.",
}
UNMET = {  # rules of fair comparison that tables do not keep, and why; see `audit`
    "*": {
        1: "Magnitude pruning leaves the MACs as they are, so that its size can be counted in parameters alone.",
        2: "At one size for all. As posed, ARSVD is judged in notebook 02, DDLR and Net-Trim in notebook 04.",
        3: "Fine-tuning is there. Networks trained from scratch and random ranks stand under *Controls and rivals*, for one seed of LeNet-300-100 and of vgg_small, recalibrated batch norms for vgg_small, and all but training from scratch for ResNet-20 at a quarter of the MACs.",
        4: "The published rows do not record test images, and the public ResNet is one training. The tables show means and spread, and no claim is judged by them.",
        5: "Time is there. Corrupted images and memory stand under *Controls and rivals*, for one seed of LeNet-300-100 and of vgg_small, and for one draw of ResNet-20 at a quarter of the MACs.",
        6: "One draw a seed; each seed has a split of its own.",
    },
    "Side by side: every other way": {
        7: "It shows what has no size of its own in the first table, which has every size."
    },
}
FIGURE_CAPTION = "What loses more than ten points is counted in the corner. The Pareto front passes over what was refined or fine-tuned."


TIGHT = (0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5)  # shares of the MACs, for the first exercise
HALVINGS = 200  # of the test images, which say what a choice on one half is worth on the other


def published_convex_rows(published: pd.DataFrame, sizes: Mapping[str, int], seed: int) -> pd.DataFrame:
    """Return the rows of DDLR and Net-Trim, cut to a fifth of the parameters and refitted, as notebook 04 published them.

    `published` : rows of that notebook; `sizes` : {network: parameters of the dense one}, which are the networks wanted.
    The bytes of sparse rows, published as those of a dense file, become those of what is stored.
    """
    there = published.query("seed == @seed and budget_kind == 'kept' and budget == 0.2")
    there = there[
        there["refit"].eq("least squares") & there["cut"].eq("to budget") & there["network"].isin(list(sizes))
    ]
    there = there[there["stored_as"].isin(["low rank", "sparse"])].assign(source="gallery", needs="images")
    for at, row in there[there["stored_as"] == "sparse"].iterrows():
        there.loc[at, "bytes"] = round(4 * row["parameters_kept"] * sizes[row["network"]])
    return there


def few(images: Dataset, count: int) -> Dataset:
    """Return a data set with its first `count` training images alone; its other splits are the same."""
    some = Split(images.train.images[:count], images.train.labels[:count])
    return dataclasses.replace(images, train=some)


# ---- the ledger by hand ----------------------------------------------------------------------------------------------


def ledger(d_out: int, d_in: int, rank: int, filled: float) -> pd.DataFrame:
    """Return what one layer costs in six forms: columns numbers (held), macs and bytes, a row a form.

    Parameters: the shape of the layer; `rank` of its factors; `filled`, the share of its weights that is not zero. A number takes
    4 bytes, or 1 in 8 bits, and the index of a non-zero 2; biases, scales and headers are left out.

    >>> ledger(300, 784, 20, 0.1).loc["rank 20"].astype(int).tolist()
    [21680, 21680, 86720]
    """
    whole, thin, some = d_out * d_in, rank * (d_out + d_in), round(filled * d_out * d_in)
    zeros = f"{1 - filled:.0%} zeros"
    rows = {
        "dense": (whole, whole, 4 * whole),
        "dense, 8 bits": (whole, whole, whole),
        f"rank {rank}": (thin, thin, 4 * thin),
        f"rank {rank}, 8 bits": (thin, thin, thin),
        f"{zeros}, stored dense": (whole, whole, 4 * whole),
        f"{zeros}, with indices": (round(1.5 * some), some, 6 * some),
    }
    return pd.DataFrame(rows, index=["numbers", "macs", "bytes"]).T


# ---- what the text says ---------------------------------------------------------------------------------------------


def about_crossed(table: pd.DataFrame, share: float) -> str:
    """Return in sentences, for each network and kind of factors, what the best and the worst ranks reach at one share of the MACs."""
    low = table[(table["stored_as"] == "low rank") & (table["runtime"] == "torch") & (table["tuned"] == "none")]
    low, lines = low[(low["budget_kind"] == "macs") & (low["budget"] == share)], []
    for network, part in low.groupby("network", sort=False):
        told = []
        for kind, column in part.groupby("factors", sort=False):
            scores = 100 * column.set_index("chooser")["accuracy"]
            worst, best = str(scores.idxmin()), str(scores.idxmax())
            told.append(
                f"{NAMES.get(str(kind), kind)} {scores.min():.1f} % ({SHOWN.get(worst, worst)}) to {scores.max():.1f} % ({SHOWN.get(best, best)})"
            )
        lines.append(f"- `{network}`: {'; '.join(told)}.")
    return "From the worst ranks to the best, in each kind of factors:\n\n" + "\n".join(lines)


def about_speed(table: pd.DataFrame) -> str:
    """Return in sentences how fast low rank is beside the dense network in torch, and where it gains nothing."""
    lines = []
    low = table[(table["chooser"] == "exact-Fisher") & (table["bits"] == 32) & (table["tuned"] == "none")]
    for network, part in low.groupby("network", sort=False):
        torch_row, onnx = (part[part["runtime"] == name].iloc[-1] for name in ("torch", "onnxruntime"))
        dense = table[(table["network"] == network) & (table["chooser"] == "dense") & (table["bits"] == 32)]
        dense = dense[dense["runtime"] == "onnxruntime"].iloc[-1]
        one, many = float(torch_row["faster_1"]), float(torch_row["faster_64"])
        change = [float(dense[name]) for name in ("faster_1", "faster_64")]
        there = [float(onnx[name]) / own for name, own in zip(("faster_1", "faster_64"), change)]
        little = (
            " **For one input low rank gains next to nothing here, and can be slower:** to call two small layers takes as long as to call a large one."
            * (one < 1.2)
        )
        lines.append(
            f"- `{network}`, low rank beside dense: in torch {one:.1f} times as fast for one input and {many:.1f} times for 64, in onnxruntime "
            f"{there[0]:.1f} and {there[1]:.1f} times. The dense network itself is {change[0]:.1f} and {change[1]:.1f} times as fast in onnxruntime as in torch.{little}"
        )
    return "\n".join(lines)


def about_tuned(table: pd.DataFrame) -> str:
    """Return in sentences what refinement gained ours and its two rivals, and what fine-tuning gained, for each network."""
    lines = []
    for (network, share), part in refined_beside(table).groupby(["network", "MACs %"], sort=False):
        gains = [
            f"{r['gained']:+.1f} ({r['ranks']}, {NAMES.get(r['factors'], r['factors'])})"
            for r in part.to_dict("records")
        ]
        lines.append(
            f"- `{network}` at {float(str(share)):.0f} % of the MACs, refined without labels: {', '.join(gains)} points."
        )
    gained = 100 * (table["tuned_accuracy"] - table["accuracy"])
    for network, part in gained[gained.notna()].groupby(table["network"], sort=False):
        lines.append(
            f"- `{network}`, fine-tuned with labels: {part.min():+.1f} to {part.max():+.1f} points; {int((part < 0).sum())} of {len(part)} networks "
            "became worse."
        )
    return "\n".join(lines)


CASES: tuple[tuple[str, str, dict[str, Any], str], ...] = (  # situation, what to take, which row, whether something was trained
    ("The weights may not change", "another runtime (onnxruntime)", {"chooser": "dense", "runtime": "onnxruntime", "bits": 32}, "no"),
    ("Only the file matters", "8 bits", {"chooser": "dense", "bits": 8}, "no"),
    ("The smallest file", "low rank, then 8 bits", {"chooser": "exact-Fisher", "bits": 8}, "no"),
    ("Fewer MACs, no data", "ENC-Map, plain factors", {"chooser": "ENC-Map", "factors": "svd", "tuned": "none"}, "no"),
    ("Fewer MACs, unlabelled inputs", "exact search, sequential factors", {"chooser": "exact-Fisher", "factors": "sequential", "bits": 32, "runtime": "torch"}, "no"),
    ("The same, and a minute to spare", "`compress`, which refines", {"chooser": "exact-Fisher", "tuned": REFINED}, "without labels"),
    ("Layers of ordinary shape", "units removed", {"chooser": "units", "runtime": "torch"}, "no"),
    ("A sparse runtime", "small weights set to zero", {"chooser": "magnitude"}, "no"),
)  # fmt: skip


def decision(table: pd.DataFrame, share: float) -> str:
    """Return a Markdown table: what to take in which situation, and what that costs each network of this run.

    `share` of the MACs is what low rank and units keep, and zeros of the parameters. A cell says by how many points the accuracy on test images changes,
    and kilobytes; "-" where no network was measured. The column *trained* says whether weights were tuned after the cut.
    """
    networks = list(table["network"].unique())
    lines = []
    for situation, choice, asked, trained in CASES:
        cells = []
        for network in networks:
            mine = table[(table["network"] == network) & (table["budget"].isna() | (table["budget"] == share))]
            here = (mine["chooser"] == "dense") & (mine["runtime"] == "torch")
            dense = float(mine.loc[here, "accuracy"].iloc[0])
            for column, value in asked.items():
                mine = mine[mine[column] == value]
            if not len(mine):
                cells.append("-")
                continue
            change = 100 * (float(mine["accuracy"].iloc[-1]) - dense)
            cells.append(f"{round(change, 1) + 0.0:+.1f} points, {mine['bytes'].iloc[-1] / 1000:.0f} kB")
        lines.append([situation, choice, trained, *cells])
    return markdown(["situation", "take", "trained", *networks], lines)


def answers(bench: Bench, network: str, share: float) -> np.ndarray:
    """Return which test images each low-rank network at one share of the MACs gets right (networks x images, bool)."""
    table = bench.table()
    low = table[at_share(table, share) & (table["stored_as"] == "low rank") & (table["runtime"] == "torch")]
    low = low[low["network"] == network].drop_duplicates(["plan", "factors"])
    return np.stack([bench.right[at] for at in low.index])  # the rows of the table are in the order of the entries


def about_best(right: Mapping[str, np.ndarray], share: float) -> str:
    """Return in Markdown the accuracy of the best low-rank network of each architecture; `right` holds its `answers`."""
    lines = [f"The best low-rank network at {share:.0%} of the MACs, on the test images:"]
    for network, each in right.items():
        best = each.mean(1).max()
        error = (best * (1 - best) / each.shape[1]) ** 0.5
        lines.append(f"- `{network}`: {best:.1%} right, with a standard error of {100 * error:.2f} points.")
    return "\n".join(lines).replace(":\n", ":\n\n", 1)


def about_ties(right: Mapping[str, np.ndarray]) -> str:
    """Return in sentences how many networks cannot be told from the best one, and what a choice on half of the images is worth.

    Two networks are compared by McNemar's exact test on the same images, with Holm's correction over all comparisons.
    """
    told = []
    for network, each in right.items():
        first = int(each.mean(1).argmax())
        others = np.delete(each, first, 0)
        level = int((holm([mcnemar(each[first], other) for other in others]) >= LEVEL).sum())
        told.append(
            f"`{network}`: of the other {len(others)} networks, {level} cannot be told from the best one. The network that is best on one half of the "
            f"test images is, on average over {HALVINGS} random halvings, number {place_elsewhere(each):.1f} of {len(each)} on the other half. "
            f"Among networks that are all equally good it would be about number {(len(each) + 1) / 2:.1f}."
        )
    told.append(
        "On one set of test images the number for equal networks can be several places lower or higher. Only a number far below it says that the choice holds."
    )
    return "\n\n".join(told)


def place_elsewhere(right: np.ndarray, halvings: int = HALVINGS, seed: int = 0) -> float:
    """Return the mean place, from 1, on one half of the images of the network that is best on the other half.

    `right` is networks x images, bool. The halves are drawn at random, `halvings` times. Of equals, the first is taken for
    the best, and a network shares the place of those that it equals.
    """
    draw, places = np.random.default_rng(seed), []
    for _ in range(halvings):
        order = draw.permutation(right.shape[1])
        chosen, rest = np.array_split(order, 2)
        elsewhere = right[:, rest].mean(1)
        places.append(1 + (elsewhere > elsewhere[right[:, chosen].mean(1).argmax()]).sum())
    return float(np.mean(places))


def about_seeds(rows: pd.DataFrame, share: float, factors: Sequence[str]) -> str:
    """Return in sentences how far the choosers lie apart on average, and how much a seed moves one of them."""
    kept, lines = lost_by_seed(rows, share, factors), []
    if not len(kept):
        return "The gallery has no rows of these networks at this size."
    for network, part in kept.groupby("network", sort=False):
        told = []
        for kind in factors:
            each = part[part["factors"] == kind].groupby("chooser")["lost"].agg(["mean", "std"])
            if len(each):
                told.append(
                    f"{NAMES.get(kind, kind)} {each['mean'].max() - each['mean'].min():.1f} (seeds {each['std'].median():.1f})"
                )
        lines.append(f"- `{network}`: {', '.join(told)}.")
    return (
        "Points between the best and the worst chooser, means over seeds. In brackets, the typical standard deviation over seeds:\n\n"
        + "\n".join(lines)
    )


def _span(change):
    low, to, high = span(change).partition(" to ")
    return low if low == high else low + to + high


def about_controls(rows: pd.DataFrame) -> str:
    """Return in Markdown where a control or a rival is ahead of ours, and what recalibration and 8 bits do, for each network."""
    parts = []
    for (_, network), mine in rows.groupby(["dataset", "network"], sort=False):
        lines = [*control.verdicts(mine), *control.about_sizes(mine)]
        first = control.shown(mine[(mine["draw"] == 0) & (mine["chooser"].isin(["dense", "exact-Fisher"]))])
        wide, narrow = (first[(first["bits"] == bits) & (first["tuned"] == "none")] for bits in (32, 8))
        both = narrow.merge(wide, on=["method", "budget"], suffixes=("_8", ""))
        both = both.assign(change=100 * (both["accuracy_8"] - both["accuracy"]))
        for how, part in both.groupby("activations_8", sort=False):
            told = [
                f"{words} {_span(one['change'])}"
                for words, one in (("dense", part[part["method"] == "dense"]), ("ours", part[part["method"] == "ours"]))
                if len(one)
            ]
            lines.append(f"- 8 bits, {how}, points against 32 bits: {', '.join(told)}.")
        every = control.shown(mine[(mine["draw"] == 0) & (mine["bits"] == 32)])
        before, again = (every[every["tuned"] == state] for state in ("none", "recalibrated"))
        both = again.merge(before, on=["method", "budget"], suffixes=("_again", ""))
        if len(both):
            change = 100 * (both["accuracy_again"] - both["accuracy"])
            lines.append(
                f"- batch norms recalibrated, of all networks that were: {change.min():+.1f} to {change.max():+.1f} points."
            )
        else:
            lines.append(
                "- batch norms recalibrated: this network has none; notebook 05 has them for the residual networks."
            )
        if not mine["tuned"].isin(contest.TRAINED).any():
            lines.append("- fine-tuned, distilled, from scratch: not measured yet.")
        parts.append(f"**`{network}`**\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def about_own(before: float, after: float, small: Any) -> str:
    """Return in a sentence what compression did to a network: accuracies as shares, and `small`, what `compress` returned."""
    return (
        f"{small.kept['macs']:.1%} of the MACs and {small.kept['parameters']:.1%} of the parameters stay. On the test images the network had "
        f"{before:.1%}, and it now has {after:.1%}."
    )


def about_rises(smaller: Mapping[float, Any], measured_rises: Sequence[float]) -> str:
    """Return in a sentence how the measured rise of the loss compares with the predicted one, over some compressed networks."""
    ratios = [rise / -one.found.value for one, rise in zip(smaller.values(), measured_rises) if one.found.value]
    return (
        f"The measured rise of the loss is {min(ratios):.1f} to {max(ratios):.1f} times the predicted one. It is larger in "
        f"{sum(ratio > 1 for ratio in ratios)} of {len(ratios)} networks."
    )


# ---- what learners are asked for -------------------------------------------------------------------------------------


def at_tight_budget(one: Subject, factorisers: Sequence[str], evaluations: int = 10) -> tuple[float, pd.DataFrame]:
    """Return (a small share of the MACs, accuracy on measuring images in percent: choosers x kinds of factors).

    The share is the smallest of `TIGHT` that every chooser can reach.
    """
    for share in TIGHT:
        try:
            plans = searched(one, share, evaluations)
        except ValueError:  # what stays dense holds too much
            continue
        cells = {
            method: {
                name: one.goodness.scores(one.network(found.plan, method)).accuracy for name, found in plans.items()
            }
            for method in factorisers
        }
        return share, 100 * pd.DataFrame(cells)
    raise ValueError(f"no chooser reaches {max(TIGHT):.0%} of the MACs of {one.name}")


def plan_by_parameters(one: Subject, share: float) -> dict:
    """Return the exact plan of least predicted loss that keeps a `share` of the parameters in place of the MACs."""
    options = search.rank_options(one.profile, "parameters", mixed=True, floor=one.floor)
    values = values_where_known(options, one.values.mixed, one.values.damage)
    return search.exact_search(one.profile, share, resource="parameters", options=options, values=values).plan


def points_lost(model: nn.Module, smaller: Mapping[float, Any], images: Dataset) -> list[float]:
    """Return the points of accuracy on validation images that each of some compressed networks loses."""
    valid = images.tensors("valid")
    dense = training.evaluate(model, *valid).accuracy
    return [100 * (dense - training.evaluate(one.model, *valid).accuracy) for one in smaller.values()]


# ---- names in words --------------------------------------------------------------------------------------------------

WRITTEN = {"units": "refitted", "magnitude": "zeros", "DDLR": "refit", "Net-Trim": "refit", "dense": "dense"}
SIZE = {"macs": "macs {:.2f}", "kept": "kept {:.2f}", "epsilon": "epsilon {:g}", "own": "own size", "dense": "dense"}


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with what a reader is shown: method, written as (factors, or what else was done), size asked for, way."""
    written = table["chooser"].map(WRITTEN).fillna(table["factors"]).astype(str)
    written += table["runtime"].eq("onnxruntime").map({True: " in onnxruntime", False: ""})
    written += table["bits"].eq(8).map({True: ", 8 bit", False: ""})
    sizes = [
        SIZE.get(kind, f"{kind} {{}}").format(budget) for kind, budget in zip(table["budget_kind"], table["budget"])
    ]
    method = table["chooser"].replace(SHOWN).astype(str)
    return table.assign(**{"method": method, "written as": written, "size": sizes, "way": way_of(table)})


def refined_beside(table: pd.DataFrame) -> pd.DataFrame:
    """Return one line a refined row, in the order of the rows: network, MACs asked for, ranks, factors, accuracy, gain.

    MACs and accuracy (before refinement, and refined) in percent, what was gained in points.
    """
    needed = ["network", "budget", "chooser", "factors", "untuned_accuracy", "accuracy"]
    mine = table[table["tuned"] == REFINED].reindex(columns=needed).reset_index(drop=True)
    before, after = 100 * mine["untuned_accuracy"], 100 * mine["accuracy"]
    shown = {"network": mine["network"], "MACs %": 100 * mine["budget"], "ranks": mine["chooser"].replace(SHOWN)}
    shown |= {"factors": mine["factors"], "before": before, "refined": after, "gained": after - before}
    return pd.DataFrame(shown)


# ---- tables of the gallery -------------------------------------------------------------------------------------------


def tables(table: pd.DataFrame) -> dict[str, str]:
    """Return {heading: Markdown table} of the published rows, as the gallery shows them; refined ones in a table of their own."""
    refined = _refined_table(table[table["tuned"] == REFINED])
    table = table[table["tuned"] != REFINED]
    table = named(table).assign(accuracy=100 * table["accuracy"])
    crossed, ways = [], []
    shares = sorted(table.loc[table["budget_kind"] == "macs", "budget"].unique(), reverse=True)
    kinds = [k for k in ("svd", "data-aware", "sequential", "relu-aware") if k in set(table["written as"])]
    keys = ["dataset", "network"]
    for key, part in table.groupby(keys):
        sized = part[part["written as"].isin(kinds) & (part["budget_kind"] == "macs")]
        for chooser in sized["method"].unique():
            mine = sized[sized["method"] == chooser]
            cells = [
                [mine.loc[(mine["written as"] == k) & (mine["budget"] == t), "accuracy"].mean() for t in shares]
                for k in kinds
            ]
            crossed.append(
                [*key, chooser, *(" / ".join("-" if v != v else f"{v:.1f}" for v in cell) for cell in cells)]
            )
        shown = part[~part["written as"].isin(kinds) | part["method"].isin(["evbmf", "exact, Fisher"])]
        method = shown.groupby(["method", "written as", "size"], sort=False)
        mean = method[["parameters_kept", "macs_kept", "bytes", "faster_64", "accuracy"]].mean()
        for name in mean.sort_values("accuracy", ascending=False).index:
            row, rows = mean.loc[name], method.get_group(name)
            tuned = 100 * rows["tuned_accuracy"].dropna()
            ways.append(
                [
                    *key,
                    *name,
                    f"{100 * row['parameters_kept']:.0f}",
                    f"{100 * row['macs_kept']:.0f}",
                    f"{row['bytes'] / 1000:.0f}",
                ]
                + [
                    f"{row['faster_64']:.1f}",
                    mean_and_spread(rows["accuracy"]),
                    mean_and_spread(100 * rows["f1"]),
                    mean_and_spread(tuned) if len(tuned) else "-",
                    str(rows["seed"].nunique()),
                ]
            )
    sizes = " / ".join(f"{100 * t:.0f}" for t in shares)
    where = ["data set", "network"]
    header = [
        *where,
        "method",
        "written as",
        "size asked for",
        "parameters %",
        "MACs %",
        "kB",
        "times faster, 64 inputs",
        "accuracy",
        "macro F1",
        "fine-tuned",
        "seeds",
    ]
    return {
        f"Side by side: choosers times factors, accuracy with {sizes} % of the MACs": markdown(
            [*where, "ranks", *kinds], crossed
        ),
        "Side by side: every other way": markdown(header, ways),
    } | refined


def _refined_table(rows):
    # {heading: table}; {} where nothing was refined
    lines, keys = [], ["dataset", "network", "budget", "chooser", "factors"]
    for key, part in rows.groupby(keys, sort=False):
        dataset, network, budget, chooser, factors = key
        before, after = 100 * part["untuned_accuracy"], 100 * part["accuracy"]
        numbers = [*map(mean_and_spread, (before, after, after - before, part["seconds_to_find"]))]
        about = [dataset, network, f"{100 * budget:.0f}", SHOWN.get(chooser, chooser), factors]
        lines.append([*about, *numbers, str(part["seed"].nunique())])
    header = ["data set", "network", "MACs %", "ranks", "factors", "before", "refined", "gained", "seconds", "seeds"]
    return {"Side by side: refined without labels": markdown(header, lines)} if lines else {}


ONE_EACH = False  # a figure for each data set and network


def usable(table: pd.DataFrame) -> pd.Series:
    """Return which rows (a boolean Series) `figure` can draw."""
    return table["bytes"].notna() & table["stored_as"].notna()


figure = trade_off


def pictures(table: pd.DataFrame) -> dict[str, Figure]:
    """Return {name: figure} of what docs/results.md shows."""
    shown = table[usable(table) | (table["chooser"] == "dense")]
    return {"side-by-side": trade_off(shown)} if len(shown) else {}
