"""Chapter 06, side by side: every chooser and every kind of factors in one table."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter
from pandas.io.formats.style import Styler
from torch import nn

from lowrank_utils import checks
from lowrank_utils.factors import replace
from lowrank_utils.factors.refine import STEPS
from lowrank_utils.lab import columns, score, training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network import unfold
from lowrank_utils.network.profile import LayerProfile, plan_cost
from lowrank_utils.ranks import rules, search
from lowrank_utils.workbook.benchmark import (
    REFINED,
    Bench,
    Subject,
    convex_rows,
    fine_tune,
    low_rank_rows,
    onnx_rows,
    other_rows,
    refined_rows,
    searched,
    subject,
)
from lowrank_utils.workbook.chapters.rank_search import check_asked, kept_by_layer, values_where_known
from lowrank_utils.workbook.plots import BESIDE, COLOURS, canvas
from lowrank_utils.workbook.tables import markdown, mean_and_spread

if TYPE_CHECKING:
    import ipywidgets

NOTEBOOK = "06_side_by_side"
CAPTIONS = {  # of its tables
    "Side by side: choosers times factors, accuracy with 50 / 25 / 15 % of the MACs": "Means over three seeds, on ResNet-20 of one. *-*: not asked for.",
    "Side by side: every other way": "Beside dense and exact search on predicted losses; means over seeds. Percent of the dense network's parameters and MACs; times faster than the dense network in torch, timed beside it, with one thread; *fine-tuned* is the accuracy after one pass over 2 000 images, the same for all. *Size asked for*: a share of the MACs, *kept* of the parameters, an error (epsilon) or none (*own size*). *Refitted*: what reads the removed units, by least squares; *refit*: a cut layer of DDLR or Net-Trim. Zeros are counted with 16 bits an index, and run like the dense network. *-*: not fine-tuned.",
    "Side by side: refined without labels": "Apart from the tables above, whose networks no step has trained: all weights tuned towards the dense network's answers to the calibration inputs. The same inputs, steps and held-out inputs for all. Accuracy in percent; *gained* in points; seconds to find, refinement included.",
}
UNMET = {  # rules of fair comparison that tables do not keep, and why; see `audit`
    "*": {
        1: "Magnitude pruning leaves the MACs as they are, so that its size can be counted in parameters alone.",
        2: "At one size for all. As posed, ARSVD is judged in notebook 02, DDLR and Net-Trim in notebook 04.",
        3: "Fine-tuning is there. Not run yet: the small network trained from scratch, a random choice, batch norm recalibrated.",
        4: "The published rows do not record test images, and the public ResNet is one training. The tables show means and spread, and no claim is judged by them.",
        5: "Time is there. Not measured yet: corrupted images, memory.",
        6: "One draw a seed; each seed has a split of its own.",
        7: "The first table shows the sizes of its heading; the second has every row.",
    },
}
FIGURE_CAPTION = (
    "What loses more than ten points is counted in the corner. The steps pass over what was refined or fine-tuned."
)


# ---- the experiment --------------------------------------------------------------------------------------------------


def experiment(
    images: Dataset,
    networks: dict[str, nn.Module],
    *,
    dataset: str,
    seed: int = 0,
    shares: Sequence[float] = (0.25,),
    factorisers: Sequence[str] = ("svd", "data-aware", "sequential"),
    evaluations: int = 10,
    refine_steps: int = STEPS,
    finetuned: Sequence[str] = (),
    finetuning: dict | None = None,
    convex: bool = False,
    max_seconds: float = 60.0,
    threads: int = 1,
    **options,
) -> pd.DataFrame:
    """Return all rows of this chapter: every chooser in every kind of factors, what is not low rank, and files in onnxruntime.

    Parameters
    ----------
    images, networks : a data set and {name: network trained on it}.
    shares : shares of the MACs kept, each in (0, 1]; the last one is run in onnxruntime.
    factorisers : kinds of factors; the last one writes EVBMF's ranks and the file for onnxruntime.
    evaluations : plans that ENC-Inf measures at each share.
    refine_steps : steps of the refinement without labels, for the networks that `refined_rows` enters; 0: none of them.
    finetuned : choosers whose networks are fine-tuned; `finetuning` : the options of `fine_tune`.
    convex, max_seconds : whether DDLR and Net-Trim are solved, and the time that each layer has at most.
    threads : of the CPU, while latency is measured.
    options : those of `subject`: floor, curve, measure_images, calibration_images.

    Raises ValueError for no network, shares and a curve that are none, and a size that no plan reaches.
    """
    check_asked(shares, options.get("curve", "accuracy"))
    checks.check_count(0, refine_steps=refine_steps)
    if not networks:
        raise ValueError("networks=[] names no network")
    bench = Bench(images, min(threads, torch.get_num_threads()))
    for name, model in networks.items():
        one = subject(images, model, dataset=dataset, network=name, seed=seed, **options)
        low_rank_rows(bench, one, {share: searched(one, share, evaluations) for share in shares}, factorisers)
        other_rows(bench, one, shares, factorisers[-1])
        if convex:
            convex_rows(bench, one, max_seconds)
        with TemporaryDirectory() as folder:
            onnx_rows(bench, one, shares[-1], factorisers[-1], Path(folder))
        for share in shares if refine_steps else ():
            refined_rows(bench, one, share, refine_steps)
    fine_tune(bench, finetuned, **finetuning or {})
    return bench.table()


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


# ---- what the text says, checked ---------------------------------------------------------------------------------------


def statements(bench: Bench, network: str, factors: str) -> dict[str, bool]:
    """Return {statement: whether it holds} for what the notebook says of its table, for one network.

    Low rank is exact-Fisher in `factors`. Raises ValueError where the table lacks an entry that a statement needs.
    """

    def number(chooser, column="accuracy", factors=None, **what):
        return float(bench.entry(network, chooser, factors, **what)[0][column])

    rounded = {"runtime": "onnxruntime", "bits": 8}
    whole, size = (number("dense", column) for column in ("accuracy", "bytes"))
    eight = number("dense", **rounded)
    both, file = (number("exact-Fisher", column, factors, **rounded) for column in ("accuracy", "bytes"))
    low, tuned = (number("exact-Fisher", column, factors) for column in ("accuracy", "tuned_accuracy"))
    zeros, tuned_zeros = (number("magnitude", column) for column in ("accuracy", "tuned_accuracy"))
    return {
        "8 bit loses less than half a point": whole - eight < 0.005,
        "low rank and 8 bit: a twelfth of the file, less than 2 points lost": file < size / 12 and whole - both < 0.02,
        "low rank more than a point ahead of units": low - number("units") > 0.01,
        "low rank more than a point ahead of zeros by magnitude": low - zeros > 0.01,
        "the same, both fine-tuned": tuned - tuned_zeros > 0.01,
    }


def right_answers(net: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, batch: int = 50) -> torch.Tensor:
    """Return, for each input, whether the network's largest output is the label's (n, bool); run on the CPU."""
    net = copy.deepcopy(net).cpu().eval()
    with torch.no_grad():
        return torch.cat([net(x).argmax(1) for x in inputs.split(batch)]) == labels


def mcnemar(answers: Sequence[torch.Tensor]) -> np.ndarray:
    """Return z of the network with the most right answers against each network, 0 against itself.

    z = (b - c) / sqrt(b + c), where the best alone is right b times and the other alone c times (McNemar 1947).
    `answers` : for each network, whether it is right on the same inputs (n, bool).

    >>> best, other = torch.tensor([True, True, True, True]), torch.tensor([True, False, False, False])
    >>> mcnemar([other, best]).round(3).tolist()
    [1.732, 0.0]
    """
    best = max(answers, key=lambda right: int(right.sum()))  # the first of several
    alone = [(int((best & ~right).sum()), int((right & ~best).sum())) for right in answers]
    return np.array([(b - c) / max(b + c, 1) ** 0.5 for b, c in alone])


# ---- networks that leave the notebook ----------------------------------------------------------------------------------


def in_new_process(code: str, folder: str | Path) -> str:
    """Return what Python `code` prints in a new process whose working directory is `folder`.

    Raises RuntimeError with the last line of its error stream where it fails.
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the new process failed: {(done.stderr.strip() or 'without a word').splitlines()[-1]}")
    return done.stdout.strip()


def relative_difference(outputs: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of what two tensors of one shape differ by, as a share of the norm of `expected`."""
    return float((outputs - expected).detach().norm() / expected.detach().norm())


def even_plan(one: Subject, share: float, multiple: int, floor: float = 0.02) -> tuple[dict, int]:
    """Return (plan, multiple) of the exact search on predicted losses, its ranks multiples of `multiple`.

    Thin layers may have no such rank within the budget: then `multiple` is halved until a plan fits, and the one that did is
    returned. `share` of the MACs is kept; `floor` as in `search.rank_options`. Raises ValueError where no plan fits at all.
    """
    while True:
        try:  # a multiple may leave no layer an option, or too few for the budget
            options = search.rank_options(one.profile, mixed=True, floor=floor, multiple=multiple)
            values = values_where_known(options, one.values.mixed, one.values.damage)
            return search.exact_search(one.profile, share, options=options, values=values).plan, multiple
        except ValueError:
            if multiple == 1:
                raise
            multiple //= 2


def faster_than_dense(
    pairs: Mapping[tuple[str, str], tuple[nn.Module, nn.Module]],
    test: tuple[torch.Tensor, torch.Tensor],
    threads: int = 1,
) -> pd.DataFrame:
    """Return how many times faster each network is than the dense one that runs beside it, for 1 and 64 inputs.

    `pairs` : {(ranks in words, runtime): (network, dense network in the same runtime)}; one row each, with its accuracy on
    the `test` inputs and labels in percent. `threads` of the CPU.
    """
    faster, shape = {}, test[0].shape[1:]
    for (ranks, runtime), (net, dense) in pairs.items():
        name = f"{ranks}, {100 * training.evaluate(net, *test).accuracy:.1f} %"
        ratios = {f"batch {n}": score.latency_ratio(net, dense, shape, n, threads)[0] for n in (1, 64)}
        faster[name, runtime] = ratios
    return pd.DataFrame(faster).T


def time_by_operation(net: nn.Module, inputs: torch.Tensor, repeats: int = 20) -> pd.Series:
    """Return {operation: share of the CPU time} of `repeats` passes of a network in torch, the largest first."""
    with torch.inference_mode(), torch.profiler.profile() as seen:
        for _ in range(repeats):
            net(inputs)
    times = pd.Series({event.key: float(event.self_cpu_time_total) for event in seen.key_averages()}, dtype=float)
    return (times / times.sum()).sort_values(ascending=False)


class PlanExplorer:
    """One threshold of energy for all layers beside the exact search at one share of the MACs, for a reader who moves sliders.

    Networks are in data-aware factors and measured on the measuring images, each once. `one` is the network; `kept` the share
    at which the exact search begins.
    """

    def __init__(self, one: Subject, kept: float):
        self.one, self.kept = one, kept
        self.layers = [own.name for own in one.values.options]
        self._factors = replace.decompose_layers(one.profile, one.plain, "data-aware")
        self._curves = search.logarithms(one.values.energy, one.values.measured)
        self._points: dict[str, tuple[float, float]] = {"dense": (1.0, one.goodness.dense().accuracy)}

    def plans(self, threshold: float, kept: float) -> dict[str, dict]:
        """Return {label: plan} of both choosers."""
        options = self.one.values.options
        least = search.exact_search(self.one.profile, kept, options=options, values=self._curves)
        by_energy = rules.threshold_plan(self.one.profile, threshold=threshold)
        return {f"energy {threshold:.2f}": by_energy, f"exact, {kept:.0%} of MACs": least.plan}

    def point(self, label: str, plan: dict) -> tuple[float, float]:
        """Return (share of the MACs, accuracy) of a plan, measured when its label is first asked for."""
        if label not in self._points:
            read = self.one.profile
            net = replace.apply_plan(read, plan, factors=self._factors)
            share = plan_cost(read, plan) / plan_cost(read, {})
            self._points[label] = share, self.one.goodness.scores(net).accuracy
        return self._points[label]

    def figure(self, threshold: float = 0.9, kept: float | None = None, layer: str | None = None) -> Figure:
        """Return `explorer` for one threshold, one share of the MACs and the spectrum of one layer, by default a middle one."""
        read, layer = self.one.profile, layer or self.layers[len(self.layers) // 2]
        plans = self.plans(threshold, self.kept if kept is None else kept)
        stays = {label: kept_by_layer(read, plan) for label, plan in plans.items()}
        points = {"dense": self._points["dense"]} | {label: self.point(label, plan) for label, plan in plans.items()}
        entry = next(iter(plans.values())).get(layer)  # of the threshold
        return explorer(read[layer], unfold.parse_entry(entry)[1] if entry else None, pd.DataFrame(stays), points)

    def sliders(self) -> ipywidgets.VBox:
        """Return two sliders and a menu above the figure, which is drawn again whenever one of them is moved."""
        import ipywidgets as widgets

        controls: dict[str, Any] = {
            "threshold": widgets.FloatSlider(0.9, min=0.5, max=0.99, step=0.01),
            "kept": widgets.FloatSlider(self.kept, min=min(0.15, self.kept), max=max(0.9, self.kept), step=0.05),
            "layer": widgets.Dropdown(options=self.layers),
        }
        picture = widgets.Image(format="png")

        def redraw(_=None):
            drawn = io.BytesIO()
            self.figure(**{name: control.value for name, control in controls.items()}).savefig(drawn, format="png")
            picture.value = drawn.getvalue()

        for name, control in controls.items():
            control.description, control.continuous_update = name, False
            control.observe(redraw, "value")
        redraw()
        return widgets.VBox([*controls.values(), picture])


# ---- names in words, figures, tables ---------------------------------------------------------------------------------

SHOWN = {"exact-Fisher": "exact, Fisher", "units then ranks": "units, then ranks"}
SHOWN |= {"DDLR": "DDLR, cut, refit", "Net-Trim": "Net-Trim, cut, refit"}
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


def way_of(table: pd.DataFrame) -> pd.Series:
    """Return for each row how the network is made smaller, as the figure tells them apart: a key of `WAYS`."""
    way = table["stored_as"].astype(object).replace({"both": "units", "sparse": "zeros"})
    return way.where(table["bits"] != 8, "8 bit").where(table["tuned"] != REFINED, "refined")


WAYS = {"dense": (7, "*"), "low rank": (0, "o"), "units": (1, "s"), "zeros": (2, "X"), "8 bit": (3, "D")}
WAYS |= {"refined": (4, "P")}


def trade_off(table: pd.DataFrame, floor: float = 0.1) -> Figure:
    """Return accuracy against bytes on disk and against the time of a batch of 64, one row of panels for each network.

    `table`: result rows, with columns dataset, network, those of `columns.KEY`, accuracy, bytes, faster_64 (how many times
    faster than the dense network in torch); of several seeds (column
    seed) the means are drawn. The steps join what nothing smaller (or faster) beats of all that was not trained after the
    cut; what loses more than `floor` is below the panel and is counted in its corner. Where the column tuned_accuracy has a value, a hollow marker stands at it; what
    runs in onnxruntime has a black ring.
    """
    table = table.assign(way=way_of(table))
    if "seed" in table and table["seed"].nunique() > 1:
        same = ["dataset", "network", "way", *columns.KEY]
        values = [name for name in ("accuracy", "bytes", "faster_64", "tuned_accuracy") if name in table]
        table = table.groupby(same, sort=False, dropna=False)[values].mean().reset_index()
    cases = list(table[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    table = table.assign(kilobytes=table["bytes"] / 1000, time=1 / table["faster_64"])
    costs = {"kilobytes": "kB on disk", "time": "time for 64 inputs (dense network in torch: 1)"}
    figure, axes = canvas(2, len(cases), width=4.8, height=3.4, sharey="row")
    colours = sns.color_palette("colorblind")
    for place, axis in enumerate(axes):
        (dataset, network), (column, label) = cases[place // 2], list(costs.items())[place % 2]
        case = table[(table["dataset"] == dataset) & (table["network"] == network)]
        mine = case[case[column].notna()]
        dense = mine.loc[mine["way"] == "dense", "accuracy"].max()
        axis.axhline(dense, color="black", linestyle=":", linewidth=1)
        for way in [w for w in WAYS if w in set(mine["way"])]:
            part, (colour, marker) = mine[mine["way"] == way], WAYS[way]
            style = {
                "linestyle": "none",
                "color": colours[colour],
                "marker": marker,
                "markersize": 10 if way == "dense" else 6,
            }
            axis.plot(part[column], part["accuracy"], label=way, **style, alpha=0.8)
            if "tuned_accuracy" in part:
                axis.plot(part[column], part["tuned_accuracy"], markerfacecolor="none", **style)
        part = mine[mine["runtime"] == "onnxruntime"]
        style = {"linestyle": "none", "marker": "o", "color": "black", "markersize": 12, "markerfacecolor": "none"}
        if len(part):
            axis.plot(part[column], part["accuracy"], label="in onnxruntime", **style)
        untrained = mine[mine["way"] != "refined"]
        front = pd.DataFrame({"cost": untrained[column], "best": untrained["accuracy"]})
        front = front.sort_values(["cost", "best"], ascending=[True, False])
        front = front[front["best"] > front["best"].cummax().shift(fill_value=-np.inf)]
        axis.step(front["cost"], front["best"], where="post", color="gray", linewidth=1, zorder=0)
        low = dense - floor
        below = int((mine["accuracy"] < low).sum())
        shown = case[[name for name in ("accuracy", "tuned_accuracy") if name in case]].stack()
        bottom = max(low, shown[shown >= low].min() - 0.1 * floor)
        if below:
            axis.annotate(f"{below} lower down", (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize="small")
        axis.set(
            xscale="log",
            xlabel=label,
            title=f"{network} on {dataset}",
            ylim=(bottom, min(1.0, mine["accuracy"].max() + 0.1 * floor)),
        )
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    for axis in axes[::2]:
        axis.set_ylabel("accuracy")
    title = "hollow: fine-tuned" if "tuned_accuracy" in table else None
    axes[1].legend(**BESIDE, title=title)
    return figure


def explorer(
    card: LayerProfile, rank: int | None, shares: pd.DataFrame, points: Mapping[str, tuple[float, float]]
) -> Figure:
    """Return three panels: one layer's spectrum with what a rank keeps, the work that each layer keeps, accuracy against size.

    Parameters: `card`, a `profile.LayerProfile` with singular values; `rank` that stays of it (None: dense); `shares`, DataFrame of layers x
    choosers with the share of each layer's MACs that stays; `points`, {label: (share of MACs, accuracy)}, "dense" among them.
    """
    figure, (left, middle, right) = canvas(3, width=4.2)
    values = card.singular_values
    index, stays = np.arange(1, len(values) + 1), len(values) if rank is None else rank
    left.bar(index[:stays], values[:stays], width=1.0, color=COLOURS["energy"], label="stays")
    left.bar(index[stays:], values[stays:], width=1.0, color="lightgray", label="goes")
    left.set(
        xlabel="component",
        ylabel="singular value",
        title=f"{card.name}: {'dense' if rank is None else f'rank {rank}'} of {len(values)}",
    )
    left.legend(fontsize="small")
    colours = dict(zip(shares.columns, sns.color_palette("colorblind")))
    shares.plot.bar(ax=middle, color=[*colours.values()], width=0.8, legend=len(shares.columns) > 1)
    middle.set(
        xlabel="", ylabel="MACs of the layer kept", title="which layers pay", ylim=(0, 1.3), yticks=np.linspace(0, 1, 6)
    )
    for label, (kept, accuracy) in points.items():
        style = {"color": colours.get(label, "black"), "marker": "*" if label == "dense" else "o"}
        right.plot(kept, accuracy, linestyle="none", markersize=9, label=label, **style)
    reached = [accuracy for _, accuracy in points.values()]
    right.set(
        xlabel="MACs kept (share of dense)",
        ylabel="accuracy",
        title="what it costs",
        xlim=(0, 1.05),
        ylim=(max(0, min(reached) - 0.05), max(reached) + 0.02),
    )
    for axis in (right.xaxis, middle.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.legend(fontsize="small")
    return figure


def ledger(table: pd.DataFrame) -> Styler:
    """Return the rows of notebook 06 as a table for readers: by network, size and accuracy, percent, kilobytes, milliseconds.

    Refined rows are left out (`refined_beside`). A pandas Styler without its index; empty where nothing was measured.
    """
    from pandas.io.formats.style import Styler

    percent = {"parameters_kept": "parameters %", "macs_kept": "MACs %", "accuracy": "accuracy %", "f1": "F1 %"}
    percent |= {"tuned_accuracy": "tuned %", "tuned_f1": "tuned F1 %"}
    words = {"bytes": "kB", "latency_ms_1": "ms, 1"}
    words |= {
        "latency_ms_64": "ms, 64",
        "faster_1": "faster, 1",
        "faster_64": "faster, 64",
        "seconds_to_find": "seconds",
        "evaluations": "tried",
        "source": "from",
    }
    order = "needs parameters_kept macs_kept bytes latency_ms_1 faster_1 latency_ms_64 faster_64"
    order += " accuracy f1 tuned_accuracy tuned_f1 seconds_to_find evaluations source"
    table = table[table["tuned"] != REFINED]
    shown = named(table).assign(**{name: 100 * table[name] for name in percent}, bytes=table["bytes"] / 1000)
    shown = shown.sort_values(["network", "size", "accuracy"], ascending=[True, True, False])
    shown = shown[["network", "size", "method", "written as", *order.split()]].rename(columns=percent | words)
    shown = Styler(shown, cell_ids=False).hide()  # an id for each cell would double the file
    digits: dict[Any, str | Callable[[object], str] | None] = {
        "kB": "{:.0f}",
        "ms, 1": "{:.2f}",
        "ms, 64": "{:.2f}",
        "faster, 1": "{:.1f}",
        "faster, 64": "{:.1f}",
        "seconds": "{:.2f}",
        "tried": "{:.0f}",
    }
    digits |= dict.fromkeys(percent.values(), "{:.1f}")
    return shown.format(digits, na_rep="").set_table_attributes('style="font-size: 75%"').set_sticky(axis="columns")


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


def refined_in_words(table: pd.DataFrame) -> str:
    """Return in Markdown what refinement gained for ours and for its rivals, a line for each network and size."""
    lines = []
    for (network, share), part in refined_beside(table).groupby(["network", "MACs %"], sort=False):
        gains = [f"{r['gained']:.1f} points for *{r['ranks']}* ({r['factors']})" for _, r in part.iterrows()]
        ours, best = part["refined"].iloc[0], part["refined"].iloc[1:].max()
        lines.append(
            f"- `{network}` at {share:.0f} % of the MACs: refinement gains {', '.join(gains)}. Then *{part['ranks'].iloc[0]}* "
            f"has {ours:.1f} %, the better of the other two {best:.1f} %."
        )
    return "\n".join(lines)


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
