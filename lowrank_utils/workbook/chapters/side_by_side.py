"""Chapter 06, side by side: every chooser and every kind of factors in one table."""

import copy
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter
from torch import nn
from torch.nn.utils import prune

from lowrank_utils.compression import compress
from lowrank_utils.factors import ddlr_network, replace
from lowrank_utils.lab import columns, export, score, training
from lowrank_utils.lab.data import Dataset, Split
from lowrank_utils.network import graph, statistics
from lowrank_utils.network.profile import Profile, profile
from lowrank_utils.ranks import components, rules, search
from lowrank_utils.ranks.units import rank_units, remove_units, units_that_stay
from lowrank_utils.workbook.chapters.rank_search import Goodness, Values, check_asked, layer_values
from lowrank_utils.workbook.plots import BESIDE, COLOURS, canvas
from lowrank_utils.workbook.tables import markdown, mean_and_spread

NOTEBOOK = "06_side_by_side"
CAPTIONS = {  # of its tables
    "Side by side: choosers times factors, accuracy with 50 / 25 / 15 % of the MACs": "Means over three seeds, on ResNet-20 of one. *-*: not asked for.",
    "Side by side: every other way": "Beside dense and exact search on predicted losses; means over seeds. Percent of the dense network's parameters and MACs; times faster than the dense network in torch, timed beside it, with one thread; *fine-tuned* is the accuracy after one pass over 2 000 images, the same for all. *Size asked for*: a share of the MACs, *kept* of the parameters, an error (epsilon) or none (*own size*). *Refitted*: what reads the removed units, by least squares; *refit*: a cut layer of DDLR or Net-Trim. Zeros are counted with 16 bits an index, and run like the dense network. *-*: not fine-tuned.",
}
FIGURE_CAPTION = "What loses more than ten points is counted in the corner."


# ---- the experiment --------------------------------------------------------------------------------------------------

# What each chooser must be told beside the weights, and which of the statistics it takes, whose seconds it is charged.
NEEDS = {
    "fixed": "nothing",
    "energy": "nothing",
    "entropy": "nothing",
    "component output": "images",
    "ENC-Map": "nothing",
}
NEEDS |= {"ENC-Model": "labels", "ENC-Inf": "labels", "exact": "labels", "exact-Fisher": "images"}
TAKES = {"component output": ["moments"], "exact-Fisher": ["moments", "fisher", "losses"]}
TAKES |= {chooser: ["measured"] for chooser, needs in NEEDS.items() if needs == "labels"}
ORDERS = ("output", "magnitude", "entropy")  # of the removal of units, all tried
EPSILON = 0.1  # of the convex programs
CUT = {"DDLR": 0.05, "Net-Trim": 0.01}  # share of the largest value below which a fixed cut sets to zero


@dataclass(frozen=True)
class Subject:
    """A trained network with all that choosers and factorisers ask of it, collected once."""

    name: str
    profile: Profile
    goodness: Goodness
    values: Values

    @property
    def model(self) -> nn.Module:
        return self.profile.model

    @property
    def scope(self) -> str:
        """What may be cut: a first convolution stays dense, as the last layer does."""
        return "inner layers" if len(self.profile.dense) > 1 else "hidden layers"

    @property
    def plain(self) -> dict[str, str]:
        """One scheme for each layer that has options."""
        return {own.name: next(iter(own.full)) for own in self.values.options}

    def network(self, plan: dict, factors: str) -> nn.Module:
        """Return the network of a plan in one kind of factors."""
        return replace.apply_plan(self.profile, plan, factors=factors)


def subject(
    images: Dataset,
    name: str,
    model: nn.Module,
    *,
    floor: float = 0.02,
    curve: str = "accuracy",
    measure_images: int = 500,
    calibration_images: int = 300,
) -> Subject:
    """Return the `Subject` of a trained network: curves from so many validation images, the rest from so many training images."""
    first, *_, last = [layer.name for layer in profile(model, input_shape=images.input_shape, spectra=False)]
    dense = (first, last) if isinstance(model.get_submodule(first), nn.Conv2d) else (last,)
    read = profile(model, images.tensors("train", limit=calibration_images)[0], dense=dense)
    goodness = Goodness(model, *images.tensors("valid", limit=measure_images), curve)
    return Subject(name, read, goodness, layer_values(read, goodness, floor=floor))


@dataclass(frozen=True)
class Found:
    """A plan, the seconds that it took to find, and the networks that were measured on the way."""

    plan: dict
    seconds: float
    evaluations: int


def timed(call: Callable):
    """Return (what `call` returns, its seconds)."""
    began = time.perf_counter()
    found = call()
    return found, time.perf_counter() - began


def choosers(one: Subject, share: float, evaluations: int = 10) -> dict[str, Callable]:
    """Return {chooser: function without arguments that returns its plan or SearchResult} for a `share` of the MACs."""
    read, values = one.profile, one.values
    enc = {"options": values.options, "curves": values.energy}
    both = search.logarithms(values.energy, values.measured)

    def by_output():
        aware = replace.decompose_layers(read, one.plain, "data-aware")
        moments = read.moments_of(one.plain)
        return components.components_plan(read, share, rule="output", factors=aware, moments=moments)

    def enc_model():
        return search.enc_model(read, share, **enc, accuracy=values.measured)

    def enc_inf():
        bases = replace.decompose_layers(read, one.plain)
        measure = lambda plan: one.goodness(replace.apply_plan(read, plan, factors=bases))  # noqa: E731
        return search.enc_inf(enc_model(), measure=measure, count=evaluations)

    found = {rule: partial(rules.plan_at_size, read, share, rule=rule) for rule in ("fixed", "energy", "entropy")}
    found |= {"component output": by_output, "ENC-Map": partial(search.enc_map, read, share, **enc)}
    found |= {"ENC-Model": enc_model, "ENC-Inf": enc_inf}
    found["exact"] = partial(search.exact_search, read, share, options=values.options, values=both)
    found["exact-Fisher"] = partial(search.exact_search, read, share, options=values.mixed, values=values.damage)
    return found


def searched(one: Subject, share: float, evaluations: int = 10) -> dict[str, Found]:
    """Return {chooser: Found} for one network at one share of its MACs; what a chooser takes of the curves is counted."""
    found = {}
    for chooser, ask in choosers(one, share, evaluations).items():
        answer, seconds = timed(ask)
        plan, tried = (answer, 0) if isinstance(answer, dict) else (answer.plan, answer.evaluations)
        seconds += sum(one.values.seconds[what] for what in TAKES.get(chooser, []))
        found[chooser] = Found(plan, seconds, tried + one.values.evaluations * (NEEDS[chooser] == "labels"))
    return found


@dataclass
class Bench:
    """The table as it grows: every network is scored, timed and kept with its row.

    ``threads`` of the CPU run while latency is measured; ``about`` says what every row is about: dataset and seed.
    """

    images: Dataset
    threads: int
    about: dict
    entries: list[tuple[dict, object]] = field(default_factory=list)

    def enter(self, one: Subject, net, times: dict | None = None, **more) -> dict:
        """Add a network to the table and return its row; `times`: milliseconds that are known, None to measure them."""
        about = {"notebook": NOTEBOOK, **self.about, "network": one.name, "source": "here"}
        about |= dict.fromkeys(("tuned_accuracy", "tuned_f1", "tuned_seconds"), np.nan) | more
        row = score.row(net, one.model, self.images.tensors("test"), **about)
        row |= clock(net, one.model, self.images.input_shape, self.threads) if times is None else times
        self.entries.append((row | {"threads": self.threads}, net))
        return self.entries[-1][0]

    def entry(
        self,
        network: str,
        chooser: str,
        factors: str | None = None,
        budget: float | None = None,
        bits: int = 32,
        runtime: str = "torch",
    ):
        """Return (row, network) of the last entry that fits; factors and budget where they are given."""
        for row, net in reversed(self.entries):
            fits = (row["network"], row["chooser"], row.get("bits", 32), row.get("runtime", "torch")) == (
                network,
                chooser,
                bits,
                runtime,
            )
            if fits and factors in (None, row.get("factors")) and budget in (None, row.get("budget")):
                return row, net
        raise ValueError(
            f"the table has no {chooser!r} of {network!r} in {factors} factors at {budget} in {runtime}, {bits} bit"
        )

    def table(self) -> pd.DataFrame:
        """Return the rows so far."""
        return columns.table([row for row, _ in self.entries])


def clock(net, dense: nn.Module, shape: Sequence[int], threads: int) -> dict[str, float]:
    """Return milliseconds for 1 and 64 inputs on the CPU, and how many times faster than the `dense` network in torch."""
    whole, found = copy.deepcopy(dense).cpu(), {}
    for batch in (1, 64):
        if isinstance(net, export.Session):  # threads of two runtimes in turn would be in each other's way
            before, own, after = (score.latency(n, shape, batch, threads) for n in (whole, net, whole))
            faster = (before + after) / (2 * own)
        else:
            mine, other = score.latencies([copy.deepcopy(net).cpu(), whole], shape, batch, threads)
            own, faster = np.median(mine), np.median(np.divide(other, mine))
        found |= {f"latency_ms_{batch}": float(own), f"faster_{batch}": float(faster)}
    return found


def low_rank_rows(bench: Bench, one: Subject, plans: dict[float, dict[str, Found]], factorisers: Sequence[str]) -> None:
    """Enter the dense network, and every plan of `plans` ({share: what `searched` found}) in every kind of factors.

    Time depends on the plan alone, so each plan is timed once.
    """
    dense = {"scope": "none", "budget_kind": "dense", "stored_as": "dense", "needs": "nothing"}
    bench.enter(one, one.model, chooser="dense", seconds_to_find=0.0, **dense)
    for share, chooser in itertools.product(plans, NEEDS):
        found, times = plans[share][chooser], None
        about = {"scope": one.scope, "budget_kind": "macs", "budget": share, "stored_as": "low rank"}
        about |= {"plan": json.dumps(found.plan), "evaluations": found.evaluations}
        for method in factorisers:
            net, seconds = timed(lambda plan=found.plan, method=method: one.network(plan, method))
            seconds += found.seconds + one.values.seconds["moments"] * (method == "data-aware")
            told = NEEDS[chooser] == "labels" or method == "svd"
            needs = NEEDS[chooser] if told else "images"
            new = bench.enter(
                one, net, times, chooser=chooser, factors=method, needs=needs, seconds_to_find=seconds, **about
            )
            times = {name: new[name] for name in new if name.startswith(("latency", "faster"))}


def fewer_units(one: Subject, share: float) -> tuple[nn.Module, dict[str, float]]:
    """Return (network with a `share` of its MACs, what each order left of the goodness): units removed in the best of three orders.

    What reads the units is refitted.
    """
    read, model = one.profile, one.model
    seen = statistics.collect_activations(model, read.calibration)
    readers = [hidden.reader for hidden in graph.hidden_layers(model) if hidden.reader]
    moments, tries = statistics.collect_moments(model, readers, read.calibration), {}
    for rule in ORDERS:
        staying = units_that_stay(read, rank_units(read, seen, rule), share)
        tries[rule] = remove_units(read, staying, moments=moments)
    left = {rule: one.goodness(net) for rule, net in tries.items()}
    return tries[max(left, key=left.get)], left


def units_then_ranks(one: Subject, share: float) -> tuple[nn.Module, dict[float, dict[str, float]]]:
    """Return (network with a `share` of its MACs, what each order left): as large a step by units as by ranks."""
    half, left = fewer_units(one, share**0.5)  # two equal steps make the whole
    shape = one.profile.input_shape
    rest = share * score.macs(one.model, shape) / score.macs(half, shape)
    return compress(half, one.profile.calibration, kept=rest).model, left


def zeroed(one: Subject, share: float) -> nn.Module:
    """Return a copy with its smallest weights at zero, the others with 16-bit indices a `share` of the parameters."""
    net = replace.apply_plan(one.profile, {})
    weights = [(m, "weight") for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    every = sum(module.weight.numel() for module, _ in weights)
    rest = score.parameters(net) - every
    stays = (share * score.parameters(net) - rest) / 1.5  # an index is half a parameter
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=round(every - stays))
    for module, name in weights:
        prune.remove(module, name)
    return net


def stored_sparse(net: nn.Module, dense: nn.Module) -> dict[str, float]:
    """Return parameters (an index half a one, a pointer a row), their share of the `dense` network's, and bytes of the non-zeros alone."""
    weights = [m.weight for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    filled = sum(int(w.count_nonzero()) for w in weights)
    gone = sum(w.numel() for w in weights) - filled
    extra = filled / 2 + sum(len(w) + 1 for w in weights)
    count = round(score.parameters(net) + extra - gone)
    size = score.bytes_on_disk(net) + round(4 * (extra - gone))
    return {"parameters": count, "parameters_kept": count / score.parameters(dense), "bytes": size}


def other_rows(bench: Bench, one: Subject, shares: Sequence[float], factors: str) -> dict[tuple, dict[str, float]]:
    """Enter EVBMF at its own size in `factors`, units removed, units then ranks, and zeros by magnitude, at every share.

    Returns {(network, share of the MACs): what each order of removal left of the goodness}.
    """
    net, seconds = timed(lambda: one.network(rules.threshold_plan(one.profile, rule="evbmf"), factors))
    about = {"scope": one.scope, "budget_kind": "own", "stored_as": "low rank", "needs": "images"}
    bench.enter(one, net, chooser="evbmf", factors=factors, seconds_to_find=seconds, evaluations=0, **about)
    orders, about = {}, {"refit": "least squares", "needs": "labels", "evaluations": len(ORDERS)}
    for share in shares:
        asked = about | {"budget_kind": "macs", "budget": share}
        (net, orders[one.name, share]), seconds = timed(lambda share=share: fewer_units(one, share))
        own = {"chooser": "units", "scope": "hidden layers", "stored_as": "units"}
        bench.enter(one, net, seconds_to_find=seconds, **asked | own)
        (net, orders[one.name, share**0.5]), seconds = timed(lambda share=share: units_then_ranks(one, share))
        own = {"chooser": "units then ranks", "factors": "fisher-weighted", "scope": one.scope, "stored_as": "both"}
        bench.enter(one, net, seconds_to_find=seconds, **asked | own)
    for share in shares:
        net, seconds = timed(lambda share=share: zeroed(one, share))
        about = {
            "chooser": "magnitude",
            "scope": "every layer",
            "budget_kind": "kept",
            "budget": share,
            "stored_as": "sparse",
        }
        counts = stored_sparse(net, one.model) | {"seconds_to_find": seconds, "evaluations": 0}
        bench.enter(one, net, needs="nothing", **about, **counts)
    return orders


def convex_rows(bench: Bench, one: Subject, max_seconds: float = 60.0) -> dict[str, dict[str, float]]:
    """Enter DDLR and Net-Trim, cut and refitted, of the linear layers but the last; return {chooser: {layer: relative gap}}.

    A network without such layers has no row and no gap.
    """
    read, gaps = one.profile, {}
    linear = [layer.name for layer in read if layer.kind == "linear" and layer.name not in read.dense]
    asked = dict.fromkeys(linear, EPSILON)
    about = {
        "scope": "hidden layers",
        "budget_kind": "epsilon",
        "budget": EPSILON,
        "refit": "least squares",
        "needs": "images",
    }
    for chooser, penalty in (("DDLR", "nuclear"), ("Net-Trim", "l1")) if linear else ():
        options = {"penalty": penalty, "max_seconds": max_seconds, "tolerance": 1e-2}
        found, seconds = timed(lambda options=options: ddlr_network.solve_network(read, asked, **options))
        gaps[chooser] = {layer: answer.relative_gap for layer, answer in found.items()}
        cut = {"cut": CUT[chooser], "refit": True}
        if chooser == "DDLR":
            net, own = ddlr_network.low_rank(read, found, **cut)[0], {"factors": "convex", "stored_as": "low rank"}
        else:
            net = ddlr_network.sparse(read, found, **cut)
            own = {"stored_as": "sparse"} | stored_sparse(net, one.model)
        program = {"chooser": chooser, "program": "as posed", "cut": "fixed", "cut_below": CUT[chooser]}
        bench.enter(one, net, seconds_to_find=seconds, **about | program | own)
    return gaps


def onnx_rows(bench: Bench, one: Subject, share: float, factors: str, folder: Path) -> list[float]:
    """Enter what onnxruntime makes of four networks: dense, exact-Fisher at `share` in `factors`, both with units removed.

    The first two run in 8 bit, too. Files are written into `folder`. Returns how far each answer is from torch's (relative, in norm).
    """
    asked = [
        ("dense", None, None),
        ("exact-Fisher", factors, share),
        ("units", None, share),
        ("units then ranks", None, share),
    ]
    apart, test = [], bench.images.tensors("test")[0]
    for chooser, method, budget in asked:
        row, net = bench.entry(one.name, chooser, method, budget)
        net = copy.deepcopy(net).cpu()
        whole, rounded = (folder / f"{one.name}-{chooser.replace(' ', '-')}{end}.onnx" for end in ("", "-8-bit"))
        apart.append(export.to_onnx(net, whole, test[:8]))
        export.to_int8(whole, rounded)
        about = {name: row[name] for name in (*columns.KEY, "needs") if name in row}
        for file, bits in [(whole, 32), (rounded, 8)][: 1 if "units" in chooser else 2]:
            session = export.onnx_session(file, bench.threads)
            size = {"counted": net, "bytes": file.stat().st_size}
            bench.enter(one, session, **about | {"runtime": "onnxruntime", "bits": bits}, **size)
    return apart


def fine_tune(
    bench: Bench,
    finetuned: Sequence[str],
    *,
    images: int = 2000,
    valid: int = 500,
    epochs: int = 1,
    rate: float = 1e-4,
    device: str = "auto",
) -> None:
    """Fine-tune a copy of every network of the table whose chooser is named, all alike, and write what it gave into its row.

    So many training `images`, `epochs` over them, peak learning `rate`; `valid` images are looked at after each. Networks in
    onnxruntime are left out, zeros stay zeros. Raises ValueError for a name that is no method of the table.
    """
    strangers = sorted(set(finetuned) - {row["chooser"] for row, _ in bench.entries})
    if strangers:
        raise ValueError(f"finetuned names {strangers[0]!r}, which is no method of the table")
    whole = bench.images
    splits = {"train": _first(whole.train, images), "valid": _first(whole.valid, valid)}
    few, (test, labels) = dataclasses.replace(whole, **splits), whole.tensors("test")
    for row, net in bench.entries:
        if row["chooser"] not in finetuned or isinstance(net, export.Session):
            continue
        augment = training.recipe_for(row["network"], row["dataset"]).augment
        recipe = training.Recipe(epochs, 64, rate, augment=augment)
        zeros = row["stored_as"] == "sparse"
        net, seconds = timed(lambda: _tuned(net, few, recipe, zeros, row["seed"], device))  # noqa: B023
        after = training.evaluate(net, test, labels)
        row |= {"tuned_accuracy": after.accuracy, "tuned_f1": after.f1, "tuned_seconds": seconds}


def _first(split, count):
    return Split(split.images[:count], split.labels[:count])


def _tuned(net, few, recipe, zeros, seed, device):
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        if zeros and isinstance(module, (nn.Linear, nn.Conv2d)):
            prune.custom_from_mask(module, "weight", module.weight != 0)
    training.fit(net, few, recipe, seed, device, progress=False)
    return net


def experiment(
    images: Dataset,
    networks: dict[str, nn.Module],
    *,
    dataset: str,
    seed: int = 0,
    shares: Sequence[float] = (0.25,),
    factorisers: Sequence[str] = ("svd", "data-aware", "sequential"),
    evaluations: int = 10,
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
    finetuned : choosers whose networks are fine-tuned; `finetuning` : the options of `fine_tune`.
    convex, max_seconds : whether DDLR and Net-Trim are solved, and the time that each layer has at most.
    threads : of the CPU, while latency is measured.
    options : those of `subject`: floor, curve, measure_images, calibration_images.

    Raises ValueError for no network, shares and a curve that are none, and a size that no plan reaches.
    """
    check_asked(shares, options.get("curve", "accuracy"))
    if not networks:
        raise ValueError("networks=[] names no network")
    bench = Bench(images, min(threads, torch.get_num_threads()), {"dataset": dataset, "seed": seed})
    for name, model in networks.items():
        one = subject(images, name, model, **options)
        low_rank_rows(bench, one, {share: searched(one, share, evaluations) for share in shares}, factorisers)
        other_rows(bench, one, shares, factorisers[-1])
        if convex:
            convex_rows(bench, one, max_seconds)
        with TemporaryDirectory() as folder:
            onnx_rows(bench, one, shares[-1], factorisers[-1], Path(folder))
    fine_tune(bench, finetuned, **finetuning or {})
    return bench.table()


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
    return way.where(table["bits"] != 8, "8 bit")


WAYS = {"dense": (7, "*"), "low rank": (0, "o"), "units": (1, "s"), "zeros": (2, "X"), "8 bit": (3, "D")}


def trade_off(table, floor=0.1):
    """Return accuracy against bytes on disk and against the time of a batch of 64, one row of panels for each network.

    `table`: result rows, with columns dataset, network, those of `columns.KEY`, accuracy, bytes, faster_64 (how many times
    faster than the dense network in torch); of several seeds (column
    seed) the means are drawn. The steps join what nothing smaller (or faster) beats; what loses more than `floor` is below
    the panel and is counted in its corner. Where the column tuned_accuracy has a value, a hollow marker stands at it; what
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
        front = pd.DataFrame({"cost": mine[column], "best": mine["accuracy"]})
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


def explorer(card, rank, shares, points):
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
    shares.plot.bar(ax=middle, color=colours, width=0.8, legend=len(shares.columns) > 1)
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


def ledger(table):
    """Return the rows of notebook 06 as a table for readers: by network, size and accuracy, percent, kilobytes, milliseconds.

    A pandas Styler without its index; empty where nothing was measured.
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
    shown = named(table).assign(**{name: 100 * table[name] for name in percent}, bytes=table["bytes"] / 1000)
    shown = shown.sort_values(["network", "size", "accuracy"], ascending=[True, True, False])
    shown = shown[["network", "size", "method", "written as", *order.split()]].rename(columns=percent | words)
    shown = Styler(shown, cell_ids=False).hide()  # an id for each cell would double the file
    digits = {
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


def tables(table):
    """Return {heading: Markdown table} of the published rows, as the gallery shows them."""
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
    }


ONE_EACH = False  # a figure for each data set and network


def usable(table):
    """Return which rows (a boolean Series) `figure` can draw."""
    return table["bytes"].notna() & table["stored_as"].notna()


figure = trade_off


def pictures(table):
    """Return {name: figure} of what the README shows."""
    shown = table[usable(table) | (table["chooser"] == "dense")]
    return {"side-by-side": trade_off(shown)} if len(shown) else {}
