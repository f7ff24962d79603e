"""The bench of chapter 06: networks made smaller in many ways, each timed beside the dense one it came from."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn
from torch.nn.utils import prune

from lowrank_utils.compression import compress, held_apart
from lowrank_utils.factors import ddlr_network, replace
from lowrank_utils.factors.refine import STEPS, refine
from lowrank_utils.lab import columns, export, score, training
from lowrank_utils.lab.data import Dataset, Split
from lowrank_utils.network import graph, statistics
from lowrank_utils.network.profile import profile
from lowrank_utils.ranks import components, enc, rules, search
from lowrank_utils.ranks.units import rank_units, remove_units, units_that_stay
from lowrank_utils.workbook import laboratory as laboratories
from lowrank_utils.workbook.search_lab import Goodness, Values, layer_values

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
REFINED = "refined without labels"
RIVALS = {"ENC-Map": "svd", "fixed": "data-aware"}  # {chooser: its factors}, refined beside ours


@dataclass(frozen=True)
class Subject(laboratories.Laboratory):
    """A trained network with all that choosers and factorisers ask of it, collected once; ``floor`` as in `search.rank_options`."""

    goodness: Goodness
    values: Values
    floor: float

    @property
    def name(self) -> str:
        return self.about["network"]

    @property
    def plain(self) -> dict[str, str]:
        """One scheme for each layer that has options."""
        return {own.name: next(iter(own.full)) for own in self.values.options}


def subject(
    images: Dataset,
    model: nn.Module,
    *,
    floor: float = 0.02,
    curve: str = "accuracy",
    measure_images: int = 500,
    calibration_images: int = 300,
    **about,
) -> Subject:
    """Return the `Subject` of a trained network: curves from so many validation images, the rest from so many training images.

    The last layer stays dense, and the first where it is a convolution. `about` is what every row is about: dataset,
    network, seed.
    """
    first, *_, last = [layer.name for layer in profile(model, input_shape=images.input_shape, spectra=False)]
    dense = (first, last) if isinstance(model.get_submodule(first), nn.Conv2d) else (last,)
    read = profile(model, images.tensors("train", limit=calibration_images)[0], dense=dense)
    goodness = Goodness(model, *images.tensors("valid", limit=measure_images), curve)
    about = {"notebook": "06_side_by_side", **about}
    return Subject(images, read, about, goodness, layer_values(read, goodness, floor=floor), floor)


@dataclass(frozen=True)
class TimedPlan:
    """A plan, the seconds that it took to find, and the networks that were measured on the way."""

    plan: dict
    seconds: float
    evaluations: int


def timed(call: Callable) -> tuple[Any, float]:
    """Return (what `call` returns, its seconds)."""
    began = time.perf_counter()
    found = call()
    return found, time.perf_counter() - began


def choosers(one: Subject, share: float, evaluations: int = 10) -> dict[str, Callable]:
    """Return {chooser: function without arguments that returns its plan or SearchResult} for a `share` of the MACs."""
    read, values = one.profile, one.values
    given = {"options": values.options, "curves": values.energy}
    both = search.logarithms(values.energy, values.measured)

    def by_output():
        aware = replace.decompose_layers(read, one.plain, "data-aware")
        moments = read.moments_of(one.plain)
        return components.components_plan(read, share, rule="output", factors=aware, moments=moments)

    def enc_model():
        return enc.enc_model(read, share, **given, accuracy=values.measured)

    def enc_inf():
        bases = replace.decompose_layers(read, one.plain)
        measure = lambda plan: one.goodness(replace.apply_plan(read, plan, factors=bases))  # noqa: E731
        return enc.enc_inf(enc_model(), measure=measure, count=evaluations)

    found = {rule: partial(rules.plan_at_size, read, share, rule=rule) for rule in ("fixed", "energy", "entropy")}
    found |= {"component output": by_output, "ENC-Map": partial(enc.enc_map, read, share, **given)}
    found |= {"ENC-Model": enc_model, "ENC-Inf": enc_inf}
    found["exact"] = partial(search.exact_search, read, share, options=values.options, values=both)
    found["exact-Fisher"] = partial(search.exact_search, read, share, options=values.mixed, values=values.damage)
    return found


def searched(one: Subject, share: float, evaluations: int = 10) -> dict[str, TimedPlan]:
    """Return {chooser: TimedPlan} for one network at one share of its MACs; what a chooser takes of the curves is counted."""
    found = {}
    for chooser, ask in choosers(one, share, evaluations).items():
        answer, seconds = timed(ask)
        plan, tried = (answer, 0) if isinstance(answer, dict) else (answer.plan, answer.evaluations)
        seconds += sum(one.values.seconds[what] for what in TAKES.get(chooser, []))
        found[chooser] = TimedPlan(plan, seconds, tried + one.values.evaluations * (NEEDS[chooser] == "labels"))
    return found


@dataclass
class Bench:
    """The table as it grows: every network is scored, timed and kept with its row.

    ``threads`` of the CPU run while latency is measured, which is a median of ``repeats`` readings. ``right`` says of each
    entry which test images its network gets right.
    """

    images: Dataset
    threads: int
    repeats: int = 30
    entries: list[tuple[dict, nn.Module]] = field(default_factory=list)
    right: list[np.ndarray] = field(default_factory=list)

    def enter(self, one: Subject, net: nn.Module, times: dict | None = None, **more) -> dict:
        """Add a network to the table and return its row; `times`: milliseconds that are known, None to measure them."""
        nothing = dict.fromkeys(("tuned_accuracy", "tuned_f1", "tuned_seconds"), np.nan)
        row = one.row(net, source="here", keep_correct=True, **nothing | more)
        right = score.unpacked(row.pop("correct"))
        row |= clock(net, one.model, self.images.input_shape, self.threads, self.repeats) if times is None else times
        self.entries.append((row | {"threads": self.threads}, net))
        self.right.append(right)
        return self.entries[-1][0]

    def entry(
        self,
        network: str,
        chooser: str,
        factors: str | None = None,
        budget: float | None = None,
        bits: int = 32,
        runtime: str = "torch",
        tuned: str = "none",
    ) -> tuple[dict, nn.Module]:
        """Return (row, network) of the last entry that fits; factors and budget where they are given."""
        asked = {"network": network, "chooser": chooser, "bits": bits, "runtime": runtime, "tuned": tuned}
        usual = {"bits": 32, "runtime": "torch", "tuned": "none"}
        for row, net in reversed(self.entries):
            fits = asked.items() <= (usual | row).items()
            if fits and factors in (None, row.get("factors")) and budget in (None, row.get("budget")):
                return row, net
        raise ValueError(
            f"the table has no {chooser!r} of {network!r} in {factors} factors at {budget} in {runtime}, {bits} bit"
        )

    def times(self, network: str, plan: str) -> dict[str, float] | None:
        """Return the milliseconds and ratios that were measured in torch for a plan (as JSON); None where none were."""
        for row, net in self.entries:
            if (row["network"], row.get("plan")) == (network, plan) and not isinstance(net, export.Session):
                return {name: row[name] for name in row if name.startswith(("latency", "faster"))}
        return None

    def table(self) -> pd.DataFrame:
        """Return the rows so far."""
        return columns.table([row for row, _ in self.entries])


def clock(net: nn.Module, dense: nn.Module, shape: Sequence[int], threads: int, repeats: int = 30) -> dict[str, float]:
    """Return milliseconds for 1 and 64 inputs on the CPU, and how many times faster than the `dense` network in torch.

    Medians of `repeats` readings. On one thread it is the time of the processor that counts, which other programs do not disturb.
    """
    whole, found = copy.deepcopy(dense).cpu(), {}
    how: dict[str, Any] = {"threads": threads, "repeats": repeats, "warmup": 2}
    how["clock"] = time.process_time if threads == 1 else time.perf_counter
    for batch in (1, 64):
        if isinstance(net, export.Session):  # threads of two runtimes in turn would be in each other's way
            each = (score.latencies([n], shape, batch, **how)[0] for n in (whole, net, whole))
            before, own, after = (float(np.median(readings)) for readings in each)
            faster = (before + after) / (2 * own)
        else:
            mine, other = score.latencies([copy.deepcopy(net).cpu(), whole], shape, batch, **how)
            own, faster = np.median(mine), np.median(np.divide(other, mine))
        found |= {f"latency_ms_{batch}": float(own), f"faster_{batch}": float(faster)}
    return found


def low_rank_rows(
    bench: Bench, one: Subject, plans: dict[float, dict[str, TimedPlan]], factorisers: Sequence[str]
) -> None:
    """Enter the dense network, and every plan of `plans` ({share: what `searched` found}) in every kind of factors.

    Time depends on the plan alone, so each plan is timed once.
    """
    dense: dict[str, Any] = {"scope": "none", "budget_kind": "dense", "stored_as": "dense", "needs": "nothing"}
    bench.enter(one, one.model, chooser="dense", seconds_to_find=0.0, **dense)
    for share, chooser in itertools.product(plans, NEEDS):
        found = plans[share][chooser]
        about = {"scope": one.scope, "budget_kind": "macs", "budget": share, "stored_as": "low rank"}
        about |= {"plan": json.dumps(found.plan), "evaluations": found.evaluations}
        for method in factorisers:
            net, seconds = timed(lambda plan=found.plan, method=method: one.network(plan, method))
            seconds += found.seconds + one.values.seconds["moments"] * (method == "data-aware")
            told = NEEDS[chooser] == "labels" or method == "svd"
            needs = NEEDS[chooser] if told else "images"
            times = bench.times(one.name, about["plan"])
            bench.enter(one, net, times, chooser=chooser, factors=method, needs=needs, seconds_to_find=seconds, **about)


def fewer_units(one: Subject, share: float) -> tuple[nn.Module, dict[str, float]]:
    """Return (network with a `share` of its MACs, what each order left of the goodness): units removed in the best of three orders.

    What reads the units is refitted.
    """
    read, model = one.profile, one.model
    calibration = read.needed_calibration("the activations of units need")
    seen = statistics.collect_activations(model, calibration)
    readers = [hidden.reader for hidden in graph.hidden_layers(model) if hidden.reader]
    moments, tries = statistics.collect_moments(model, readers, calibration), {}
    for rule in ORDERS:
        staying = units_that_stay(read, rank_units(read, seen, rule), share)
        tries[rule] = remove_units(read, staying, moments=moments)
    left = {rule: one.goodness(net) for rule, net in tries.items()}
    return tries[max(left, key=left.__getitem__)], left


def units_then_ranks(one: Subject, share: float) -> tuple[nn.Module, dict[str, float]]:
    """Return (network with a `share` of its MACs, what each order left): as large a step by units as by ranks."""
    half, left = fewer_units(one, share**0.5)  # two equal steps make the whole
    calibration = one.profile.needed_calibration("the ranks of what is left need")
    shape = calibration.shape[1:]
    rest = share * score.macs(one.model, shape) / score.macs(half, shape)
    return compress(half, calibration, kept=rest, refine=False).model, left


def non_zeros(net: nn.Module, share: float) -> tuple[float, int]:
    """Return (weights that with 16-bit indices are a `share` of the parameters, weights of all linear layers and convolutions)."""
    every = sum(m.weight.numel() for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    rest = score.parameters(net) - every
    return (share * score.parameters(net) - rest) / 1.5, every  # an index is half a parameter


def zeroed(one: laboratories.Laboratory, share: float) -> nn.Module:
    """Return a copy with its smallest weights at zero, the others with 16-bit indices a `share` of the parameters."""
    net = replace.apply_plan(one.profile, {})
    weights = [(m, "weight") for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    stays, every = non_zeros(net, share)
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
    about: dict[str, Any] = {"scope": one.scope, "budget_kind": "own", "stored_as": "low rank", "needs": "images"}
    bench.enter(one, net, chooser="evbmf", factors=factors, seconds_to_find=seconds, evaluations=0, **about)
    orders = {}
    about = {"refit": "least squares", "needs": "labels", "evaluations": len(ORDERS)}
    for share in shares:
        asked = about | {"budget_kind": "macs", "budget": share}
        (net, orders[one.name, share]), seconds = timed(lambda share=share: fewer_units(one, share))
        own: dict[str, Any] = {"chooser": "units", "scope": "hidden layers", "stored_as": "units"}
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
        counts: dict[str, Any] = stored_sparse(net, one.model) | {"seconds_to_find": seconds, "evaluations": 0}
        bench.enter(one, net, needs="nothing", **about, **counts)
    return orders


def convex_rows(bench: Bench, one: Subject, max_seconds: float = 60.0) -> dict[str, dict[str, float]]:
    """Enter DDLR and Net-Trim, cut and refitted, of the linear layers but the last; return {chooser: {layer: relative gap}}.

    A network without such layers has no row and no gap.
    """
    read, gaps = one.profile, {}
    linear = [layer.name for layer in read if layer.kind == "linear" and layer.name not in read.dense]
    asked = dict.fromkeys(linear, EPSILON)
    about: dict[str, Any] = {
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
        own: dict[str, Any] = {"factors": "convex", "stored_as": "low rank"}
        if chooser == "DDLR":
            net = ddlr_network.low_rank(read, found, **cut)[0]
        else:
            net = ddlr_network.sparse(read, found, **cut)
            own = {"stored_as": "sparse", **stored_sparse(net, one.model)}
        program: dict[str, Any] = {"chooser": chooser, "program": "as posed", "cut": "fixed", "cut_below": CUT[chooser]}
        bench.enter(one, net, seconds_to_find=seconds, **about | program | own)
    return gaps


def refined_rows(bench: Bench, one: Subject, share: float, steps: int = STEPS) -> dict[str, str]:
    """Enter `compress` and the two `RIVALS` with a `share` of the MACs, all refined alike; return {chooser: note}.

    `compress` has its defaults, but for the ranks it may choose from, which are those of the other plans. Refinement is distillation without labels, so these rows say it in the column tuned, with the accuracy before in
    untuned_accuracy. All three have the same calibration inputs, of which neither factors nor steps see the last ones
    (`compression.held_apart`), the same number of `steps` and the same seed. A note is what `refine` says of how it
    went, or empty.
    """
    seed = one.about["seed"]
    calibration = one.profile.needed_calibration("refinement needs")
    options: dict[str, Any] = {"dense": one.profile.dense, "floor": one.floor, "refine_steps": steps, "seed": seed}
    ours, seconds = timed(lambda: compress(one.model, calibration, kept=share, **options))
    notes = {"exact-Fisher": ours.refined.note if ours.refined else "Nothing was cut."}
    before = ours.swept or ours.model
    _enter_refined(bench, one, share, ours.model, before, "exact-Fisher", "fisher-weighted", ours.plan, seconds)
    seen, unseen = held_apart(calibration, seed)
    judged: dict[str, Any] = {"held_out": unseen} if len(unseen) else {}
    read = one.profile.but(calibration=seen)
    for chooser, factors in RIVALS.items():
        began = time.perf_counter()
        answer = choosers(one, share)[chooser]()
        plan = answer if isinstance(answer, dict) else answer.plan
        before = replace.apply_plan(read, plan, factors=factors)
        found = refine(one.model, before, seen, steps=steps, seed=seed, **judged)
        notes[chooser] = found.note
        seconds = time.perf_counter() - began
        _enter_refined(bench, one, share, found.model, before, chooser, factors, plan, seconds)
    return notes


def _enter_refined(bench, one, share, net, before, chooser, factors, plan, seconds):
    about: dict[str, Any] = {"scope": one.scope, "budget_kind": "macs", "budget": share, "stored_as": "low rank"}
    about |= {"tuned": REFINED, "needs": "images", "evaluations": 0, "plan": json.dumps(plan)}
    about["untuned_accuracy"] = training.evaluate(before, *bench.images.tensors("test")).accuracy
    times = bench.times(one.name, json.dumps(plan))
    bench.enter(one, net, times, chooser=chooser, factors=factors, seconds_to_find=seconds, **about)


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
    onnxruntime and refined ones are left out, zeros stay zeros. Raises ValueError for a name that is no method of the table.
    """
    strangers = sorted(set(finetuned) - {row["chooser"] for row, _ in bench.entries})
    if strangers:
        raise ValueError(f"finetuned names {strangers[0]!r}, which is no method of the table")
    whole = bench.images
    splits = {"train": _first(whole.train, images), "valid": _first(whole.valid, valid)}
    few, (test, labels) = dataclasses.replace(whole, **splits), whole.tensors("test")
    for row, net in bench.entries:
        apart = isinstance(net, export.Session) or row.get("tuned") == REFINED
        if row["chooser"] not in finetuned or apart:
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
