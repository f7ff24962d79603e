"""Ranks under a budget, measured: what each option of each layer is worth, every search, and the networks that come of it."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from torch import nn

from lowrank_utils import checks
from lowrank_utils.factors import replace
from lowrank_utils.lab import checkpoints, columns, score, training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network import unfold
from lowrank_utils.network.profile import Plan, Profile, plan_cost, profile
from lowrank_utils.ranks import enc, rules, search
from lowrank_utils.ranks.search import SearchResult
from lowrank_utils.workbook import laboratory as laboratories
from lowrank_utils.workbook import prediction

Answer = TypeVar("Answer")

NOTEBOOK = "05_rank_search"
CURVES = ("accuracy", "likelihood")
LEVELS = (0.1, 0.2, 0.3, 0.5, 0.7)  # shares of a layer's own MACs at which it is cut alone
BLOCK = 8  # ranks are computed in blocks of so many, in the exercise


def check_asked(shares: Sequence[float], curve: str) -> None:
    """Raise ValueError for a share outside (0, 1] and a curve that is neither accuracy nor likelihood."""
    for share in shares:
        checks.check_share(share=share)
    if curve not in CURVES:
        raise ValueError(f"curve={curve!r} is neither accuracy nor likelihood")


@dataclass(frozen=True)
class Goodness:
    """How good a network is on measuring images: its accuracy, or likelihood (exp of minus the loss), as a share of the dense one's.

    Call it with a network, and with ``few`` to see the first so many images only. Raises ValueError for a `curve` that
    is neither, and where the dense network is never right, so that accuracy has no curve.
    """

    model: nn.Module
    images: torch.Tensor
    labels: torch.Tensor
    curve: str = "accuracy"
    _dense: dict = field(default_factory=dict, repr=False)

    def __post_init__(self):
        check_asked((), self.curve)
        if self.curve == "accuracy" and self.dense().accuracy == 0:
            raise ValueError("no measuring image is classified rightly, so accuracy has no curve; take likelihood")

    def scores(self, net: nn.Module, few: int | None = None) -> training.Scores:
        """Return the scores of a network on the measuring images."""
        return training.evaluate(net, self.images[:few], self.labels[:few])

    def dense(self, few: int | None = None) -> training.Scores:
        """Return the scores of the dense network, measured once."""
        if few not in self._dense:
            self._dense[few] = self.scores(self.model, few)
        return self._dense[few]

    def __call__(self, net, few: int | None = None) -> float:
        mine, dense = self.scores(net, few), self.dense(few)
        return mine.accuracy / dense.accuracy if self.curve == "accuracy" else float(np.exp(dense.loss - mine.loss))


@dataclass(frozen=True)
class Laboratory(laboratories.Laboratory):
    """What the networks of this chapter are made from and measured with.

    ``profile`` has the calibration images of this draw, first and last layer dense; ``goodness`` the measuring images;
    ``fresh`` (images, labels) of the validation split that no curve sees, unless there are too few; ``floor`` as in
    `search.rank_options`.
    """

    goodness: Goodness
    fresh: tuple[torch.Tensor, torch.Tensor]
    floor: float

    def row(self, net: nn.Module, **columns) -> dict:
        """Return the result row of a low-rank network, on test images; on fresh validation images too, unless the network is a public one, which was trained on them."""
        told = {"scope": self.scope, "stored_as": "low rank", "keep_correct": True}
        if self.about.get("network") not in checkpoints.PUBLIC:
            told["valid_accuracy"] = training.evaluate(net, *self.fresh).accuracy
        return super().row(net, **told | columns)


def laboratory(
    images: Dataset,
    model: nn.Module,
    *,
    dense: Sequence[str] = (),
    floor: float = 0.1,
    curve: str = "accuracy",
    measure_images: int = 1000,
    calibration_images: int = 500,
    draw: int = 0,
    **about,
) -> Laboratory:
    """Return the `Laboratory` of a trained network, whose first and last layer stay dense, and `dense` beside them.

    `draw` says which images measure and calibrate: the first so many, the second, ... `about` says what every row is
    about: dataset, network, seed. Raises ValueError where `draw` lies beyond the images.
    """
    train = images.tensors("train", limit=(draw + 1) * calibration_images)[0][draw * calibration_images :]
    valid, labels = images.tensors("valid")
    asked = slice(draw * measure_images, (draw + 1) * measure_images)
    if not len(valid[asked]) or not len(train):
        raise ValueError(f"draw={draw} lies beyond the {len(valid)} valid or the {len(images.train)} training images")
    first, *_, last = [layer.name for layer in profile(model, input_shape=images.input_shape, spectra=False)]
    fresh = np.ones(len(valid), bool)
    fresh[asked] = len(valid[asked]) > len(valid) / 2  # unless there are too few
    about = {"notebook": NOTEBOOK, **about, "draw": draw, "calibration_images": calibration_images}
    read = profile(model, train, dense=(first, last, *dense))
    goodness = Goodness(model, valid[asked], labels[asked], curve)
    return Laboratory(images, read, about, goodness, (valid[fresh], labels[fresh]), floor)


@dataclass(frozen=True)
class Values:
    """What every option of every layer is worth, and the seconds that it took to find out.

    ``options`` have one scheme a layer, with ENC's curves ``energy`` and ``measured`` ({layer: one number an option});
    ``mixed`` have every scheme, with ``damage``, minus the predicted loss in nats.
    """

    options: list
    energy: dict
    measured: dict
    mixed: list
    damage: dict
    seconds: dict

    @property
    def evaluations(self) -> int:
        """Networks that were measured for the curve ``measured``, each with one layer cut to one rank."""
        return sum(len(ranks) for own in self.options for ranks in search.measured_ranks(own).values())


def layer_values(read: Profile, goodness: Callable, *, floor: float = 0.1, factors: str = "data-aware") -> Values:
    """Return the `Values` of the layers of a profile: ENC's curves in plain factors, and the loss predicted for `factors`.

    `goodness`, a function of a network; `floor` as in `search.rank_options`.
    """
    options, mixed = (search.rank_options(read, mixed=every, floor=floor) for every in (False, True))
    names, seconds = [own.name for own in options], {}

    def timed(name: str, call: Callable[[], Answer]) -> Answer:
        began = time.perf_counter()
        found = call()
        seconds[name] = time.perf_counter() - began
        return found

    measured = timed("measured", lambda: search.measured(read, options, measure=goodness, factors="svd"))
    timed("moments", lambda: read.moments_of(names))
    metric = timed("fisher", lambda: read.fisher_of(names))
    losses = timed("losses", lambda: search.output_error(read, mixed, factors=factors, metric=metric))
    damage = {name: -loss for name, loss in losses.items()}
    return Values(options, search.energy(read, options), measured, mixed, damage, seconds)


def values_where_known(
    options: Sequence[search.Options], known: Sequence[search.Options], values: dict
) -> dict[str, np.ndarray]:
    """Return {layer: one value an option} of `options`, read off the `values` of the `known` options of the same layers.

    An option that is not among those known has -inf, so that no search chooses it.
    """
    worth = {own.name: dict(zip(own.entries, values[own.name])) for own in known}
    return {own.name: np.array([worth[own.name].get(e, -np.inf) for e in own.entries]) for own in options}


def some_layers(options: Sequence[search.Options], most: int = 8) -> list[search.Options]:
    """Return the options of at most `most` layers, evenly spaced."""
    return list(options[:: -(-len(options) // most)])


def damage(
    lab: Laboratory,
    values: Values,
    factors: str,
    *,
    levels: Sequence[float] = LEVELS,
    images: int = 300,
    layers: int = 8,
) -> pd.DataFrame:
    """Return what cutting one layer alone does: what each curve foretells, and what is measured; one row a layer and level.

    Parameters
    ----------
    values : of the layers; `factors` are those that its predicted loss is for.
    levels : shares of the layer's own MACs; of its options in one scheme the nearest to each is taken.
    images : so many measuring images are looked at; layers : so many layers at most, evenly spaced.

    Columns: layer, level, macs (the share of the layer's MACs that stays), energy (-log y_p), measured curve (-log y_m), predicted loss
    and divergence: the mean Kullback-Leibler divergence of the answers from the dense network's. The last two are in nats.
    """
    predicted, rows = values_where_known(values.options, values.mixed, values.damage), []
    inputs, model = lab.goodness.images[:images], lab.model
    inputs = inputs.to(next(model.parameters()).device)
    for own in some_layers(values.options, layers):
        shares = own.costs[:-1, 0] / own.costs[-1, 0]
        bases = replace.decompose_layers(lab.profile, {own.name: next(iter(own.full))}, factors)
        for level in levels:
            at = int(np.abs(shares - level).argmin())
            entry = own.entries[at]
            assert entry is not None, "dense is the last option, which is no cut"
            net = replace.apply_plan(lab.profile, {own.name: entry}, factors=bases)
            with np.errstate(divide="ignore"):
                told = [-float(np.log(curve[own.name][at])) for curve in (values.energy, values.measured)]
            row = {"layer": own.name, "level": level, "macs": float(shares[at])}
            row |= {"energy": told[0], "measured curve": told[1], "predicted loss": -float(predicted[own.name][at])}
            rows.append(row | {"divergence": float(prediction.divergences(model, net, inputs).mean())})
    return pd.DataFrame(rows)


def plan_goodness(read: Profile, values: Values, goodness: Callable) -> Callable[[Plan], float]:
    """Return the function that ENC-Inf measures by: the goodness of a plan, all layers cut, in plain factors."""
    bases = replace.decompose_layers(read, {own.name: next(iter(own.full)) for own in values.options}, "svd")
    return lambda plan: goodness(replace.apply_plan(read, plan, factors=bases))


def searches(
    lab: Laboratory, values: Values, shares: Sequence[float], evaluations: int = 20
) -> dict[tuple, SearchResult]:
    """Return {(share, chooser): SearchResult} of one fixed share of the rank, ENC's three searches and both exact ones.

    `shares` of the MACs are kept; ENC-Inf measures `evaluations` plans at each.
    """
    read, tried, found = lab.profile, plan_goodness(lab.profile, values, lab.goodness), {}
    given = {"options": values.options, "curves": values.energy}
    both = search.logarithms(values.energy, values.measured)
    for share in shares:
        began = time.perf_counter()
        fixed = rules.plan_at_size(read, share, rule="fixed")
        found[share, "fixed"] = SearchResult(fixed, np.nan, seconds=time.perf_counter() - began)
        found[share, "ENC-Map"] = enc.enc_map(read, share, **given)
        box = enc.enc_model(read, share, **given, accuracy=values.measured)
        found[share, "ENC-Model"] = box
        found[share, "ENC-Inf"] = enc.enc_inf(box, measure=tried, count=evaluations)
        found[share, "exact"] = search.exact_search(read, share, options=values.options, values=both)
        found[share, "exact-Fisher"] = search.exact_search(read, share, options=values.mixed, values=values.damage)
    return found


def search_times(
    lab: Laboratory, values: Values, share: float, evaluations: int = 20, repeats: int = 7
) -> pd.DataFrame:
    """Return how long each search takes once the values are known: one row a chooser, medians of `repeats` timings by the processor's clock.

    Columns: chooser; networks, those measured on images; seconds. ENC-Inf is ENC-Model and `evaluations` measured networks, of which one is
    timed.
    """
    read, given = lab.profile, {"options": values.options, "curves": values.energy}
    both = search.logarithms(values.energy, values.measured)
    measure = plan_goodness(read, values, lab.goodness)
    plan = enc.enc_map(read, share, **given).plan
    calls = {
        "fixed": lambda: rules.plan_at_size(read, share, rule="fixed"),
        "ENC-Map": lambda: enc.enc_map(read, share, **given),
        "ENC-Model": lambda: enc.enc_model(read, share, **given, accuracy=values.measured),
        "exact": lambda: search.exact_search(read, share, options=values.options, values=both),
        "exact-Fisher": lambda: search.exact_search(read, share, options=values.mixed, values=values.damage),
    }
    readings = score.alternately([*calls.values()], repeats=repeats, warmup=1, clock=time.process_time)
    seconds = {name: float(np.median(each)) / 1000 for name, each in zip(calls, readings)}
    (each,) = score.alternately([lambda: measure(plan)], repeats=3, warmup=1, clock=time.process_time)
    seconds["ENC-Inf"] = seconds["ENC-Model"] + evaluations * float(np.median(each)) / 1000
    order = ["fixed", *(name for name in ("ENC-Map", "ENC-Model", "ENC-Inf")), "exact", "exact-Fisher"]
    counts = {"ENC-Inf": evaluations}
    return pd.DataFrame([{"chooser": n, "networks": counts.get(n, 0), "seconds": seconds[n]} for n in order])


def within_budgets(
    lab: Laboratory, values: Values, budgets: Sequence[tuple[float, float]] = ((0.5, 1.0), (0.5, 0.25))
) -> pd.DataFrame:
    """Return the exact plan of least predicted loss under each pair of budgets, (share of MACs, share of parameters).

    One row a pair: MACs asked, parameters asked, MACs kept, parameters kept (shares), predicted loss (nats), gap, and note: why there is no plan.
    """
    resources, rows = ("macs", "parameters"), []
    options = search.rank_options(lab.profile, resources, mixed=True, floor=lab.floor)
    worth = values_where_known(options, values.mixed, values.damage)
    for pair in budgets:
        row: dict = {"MACs asked": pair[0], "parameters asked": pair[1]}
        try:
            one = search.exact_search(lab.profile, list(pair), resource=resources, options=options, values=worth)
        except ValueError as error:  # the layers that stay dense may hold too much
            rows.append(row | {"note": str(error)})
            continue
        kept = [plan_cost(lab.profile, one.plan, what) / plan_cost(lab.profile, {}, what) for what in resources]
        row |= {"MACs kept": kept[0], "parameters kept": kept[1], "predicted loss": -one.value, "gap": one.gap}
        rows.append(row | {"note": ""})
    return pd.DataFrame(rows)


def from_few_images(lab: Laboratory, values: Values, share: float, few: int = 50) -> tuple[float, float]:
    """Return the goodness of two plans of exact search on the measured curve alone: measured on `few` images, and on all."""
    noisy = search.measured(lab.profile, values.options, measure=lambda net: lab.goodness(net, few), factors="svd")
    tried = plan_goodness(lab.profile, values, lab.goodness)
    found = []
    for curves in (noisy, values.measured):
        logs = search.logarithms(curves)
        found.append(tried(search.exact_search(lab.profile, share, options=values.options, values=logs).plan))
    return found[0], found[1]


def one_scheme(lab: Laboratory, values: Values, share: float) -> SearchResult:
    """Return the exact plan of least predicted loss where each layer has one scheme; what a learner is asked for."""
    worth = values_where_known(values.options, values.mixed, values.damage)
    return search.exact_search(lab.profile, share, options=values.options, values=worth)


def block_costs(values: Values, block: int = BLOCK) -> dict[str, dict]:
    """Return {layer: {entry: MACs}} of a device that computes ranks in blocks: a rank costs as much as the next multiple of `block`."""
    found = {}
    for own in values.mixed:
        known = dict(zip(own.entries, own.costs[:, 0]))
        each: dict = {None: known[None]}
        for entry in own.entries[:-1]:
            _, rank = unfold.parse_entry(entry)
            each[entry] = known[entry] / rank * (-(-rank // block) * block)
        found[own.name] = each
    return found


def in_blocks(lab: Laboratory, values: Values, share: float, block: int = BLOCK) -> SearchResult:
    """Return the exact plan of least predicted loss that costs a `share` of the layers' MACs on the device of `block_costs`."""
    table = block_costs(values, block)
    options = search.rank_options(lab.profile, ("blocks",), mixed=True, floor=lab.floor, tables={"blocks": table})
    worth = values_where_known(options, values.mixed, values.damage)
    budget = share * sum(each[None] for each in table.values())
    return search.exact_search(lab.profile, [budget], resource=("blocks",), options=options, values=worth)


def promises(lab: Laboratory, values: Values, found: dict[tuple, SearchResult]) -> pd.DataFrame:
    """Return what each search promises: one row a plan, with its MACs, its A_c and predicted value, and the proved bound.

    A fixed share may have ranks under the floor, and exact-Fisher other schemes, which ENC's curves do not cover: theirs are NaN.
    """
    told, whole = [], plan_cost(lab.profile, {})
    logs = [search.logarithms(curve) for curve in (values.energy, values.measured)]
    for (share, chooser), one in found.items():
        macs = plan_cost(lab.profile, one.plan) / whole
        compared = "all, by bound" if np.isfinite(one.gap) else one.candidates
        line = {"kept": share, "chooser": chooser, "MACs": macs, "plans compared": compared}
        if chooser not in ("fixed", "exact-Fisher"):
            a_p, a_m = (np.exp(search.worth(values.options, log, one.plan)) for log in logs)
            predicted, bound = np.log(a_p) + np.log(a_m), found[share, "exact"].bound
            line |= {"A_c": a_p * macs + a_m, "predicted": predicted, "bound": bound}
        told.append(line)
    told = pd.DataFrame(told)
    return told.assign(**{"left on the table": told["bound"] - told["predicted"]})


def kept_by_layer(read: Profile, plan: dict) -> dict[str, float]:
    """Return {layer: share of its MACs that a plan keeps} of the layers that may be cut."""
    return {layer.name: layer.cost(plan.get(layer.name), "macs") / layer.macs for layer in read if not layer.reason}


def promised_and_measured(
    values: Values, found: dict[tuple, SearchResult], measure: Callable[[dict], float]
) -> pd.DataFrame:
    """Return the goodness that single layers promise, A_m, beside that of the whole network: one row a plan.

    `found`, {(share, chooser): SearchResult} with the options of one scheme; `measure`, a function of a plan (`plan_goodness`).
    """
    alone = search.logarithms(values.measured)
    return pd.DataFrame(
        {
            "kept": share,
            "chooser": chooser,
            "A_m": float(np.exp(search.worth(values.options, alone, one.plan))),
            "measured": measure(one.plan),
        }
        for (share, chooser), one in found.items()
    )


def dense_row(lab: Laboratory) -> dict:
    """Return the row of the dense network."""
    about = {"scope": "none", "budget_kind": "dense", "stored_as": "dense"}
    return lab.row(lab.profile.model, chooser="dense", **about)


def searched_rows(
    lab: Laboratory, found: dict[tuple, SearchResult], told: pd.DataFrame, methods: Sequence[str]
) -> list[dict]:
    """Return the rows of every plan of `searches` in every kind of factors of `methods`; `told` is what `promises` says."""
    predicted, rows, known = told.set_index(["kept", "chooser"])["predicted"], [], {}
    for ((share, chooser), one), method in itertools.product(found.items(), methods):
        began = time.perf_counter()
        net = lab.network(one.plan, method)
        seconds = one.seconds + time.perf_counter() - began
        about = {"chooser": chooser, "factors": method, "budget_kind": "macs", "budget": share}
        about |= {"plan": json.dumps(one.plan), "predicted": predicted[share, chooser], "seconds_to_find": seconds}
        about |= {"value": one.value, "bound": one.bound, "gap": one.gap, "evaluations": one.evaluations}
        same = known.get((about["plan"], method))  # another chooser's plan may be the very same
        rows.append(lab.row(net, **about) if same is None else same | about)
        known.setdefault((about["plan"], method), rows[-1])
    return rows


def without_loss(
    lab: Laboratory,
    values: Values,
    factors: str,
    low: float,
    chooser: str = "exact-Fisher",
    evaluations: int = 20,
) -> dict:
    """Return the row of the smallest network that loses nothing on the fresh validation images, from a share `low` of the MACs.

    Bisection over sizes to 0.03. At each the plan is that of `chooser`, the exact search on predicted losses or one of ENC's three
    searches, of which ENC-Inf measures `evaluations` plans.
    """
    dense = training.evaluate(lab.profile.model, *lab.fresh).accuracy
    enc_given = {"options": values.options, "curves": values.energy}
    measure = plan_goodness(lab.profile, values, lab.goodness) if chooser == "ENC-Inf" else None

    def plan(share) -> Plan:
        if chooser == "exact-Fisher":
            return search.exact_search(lab.profile, share, options=values.mixed, values=values.damage).plan
        if chooser == "ENC-Map":
            return enc.enc_map(lab.profile, share, **enc_given).plan
        box = enc.enc_model(lab.profile, share, **enc_given, accuracy=values.measured)
        return box.plan if measure is None else enc.enc_inf(box, measure=measure, count=evaluations).plan

    def build(share) -> nn.Module:
        return lab.network(plan(share), factors)  # pyright: ignore[reportArgumentType]

    def good(net: nn.Module):
        return training.evaluate(net, *lab.fresh).accuracy >= dense

    _, net, tried = score.smallest(build, good, low=low, tolerance=0.03)
    return lab.row(net, chooser=chooser, factors=factors, budget_kind="lossless", evaluations=tried)


def fine_tuned(lab: Laboratory, rows: pd.DataFrame, recipe: training.Recipe, device: str = "auto") -> list[dict]:
    """Return a second row for every network that `searched_rows` made, trained on by `recipe`; seconds are not counted."""
    found = []
    for _, one in rows[(rows["budget_kind"] == "macs") & (rows["tuned"] == "none")].iterrows():
        net = lab.network(json.loads(one["plan"]), one["factors"])
        training.fit(net, lab.images, recipe, int(one["seed"]), device)
        about = {name: one[name] for name in ("chooser", "factors", "budget_kind", "budget")}
        found.append(lab.row(net, **about, tuned="fine-tuned", finetuned_epochs=recipe.epochs))
    return found


def loss_factors(methods: Sequence[str]) -> str:
    """Return the factors whose loss is predicted: plain ones where nothing else is asked for, else data-aware.

    >>> loss_factors(["svd"]), loss_factors(["svd", "sequential"])
    ('svd', 'data-aware')
    """
    return "svd" if list(methods) == ["svd"] else "data-aware"


def joined(rows: pd.DataFrame, *more: dict) -> pd.DataFrame:
    """Return a table of rows with more of them below."""
    return columns.table([*rows.to_dict("records"), *more])
