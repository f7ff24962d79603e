"""Chapter 05, rank search: ENC's three searches and the exact one."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import nn

from lowrank_utils import checks
from lowrank_utils.factors import replace
from lowrank_utils.lab import columns, score, training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network import unfold
from lowrank_utils.network.profile import Plan, Profile, plan_cost, profile
from lowrank_utils.ranks import enc, rules, search
from lowrank_utils.ranks.search import SearchResult
from lowrank_utils.workbook import batch_norm, verdicts
from lowrank_utils.workbook import laboratory as laboratories
from lowrank_utils.workbook.plots import COLOURS, canvas, colour_of, in_order, line_style
from lowrank_utils.workbook.tables import (
    RUN,
    SIZES,
    at_share,
    at_sizes,
    markdown,
    mean_and_spread,
    mean_in_words,
    range_in_words,
    verdict_of,
)
from lowrank_utils.workbook.verdicts import Claim, Verdict

Answer = TypeVar("Answer")

NOTEBOOK = "05_rank_search"
CAPTIONS = {  # of its tables
    "Rank search: accuracy with 75 / 50 / 35 / 25 % of the MACs": "Means over draws of the calibration and measuring images. *fixed* is one share of the rank for all layers; *exact* has the best product of ENC's curves, proved; *exact, Fisher* the least predicted loss over ranks and schemes, proved.",
    "Rank search: predicted value (log A_p + log A_m) and its proved bound": "What the searches maximise or come near: the logarithm of ENC's predicted share of the accuracy, from energy curves (A_p) and measured curves (A_m); 0 is dense, higher is better. Means over draws; *bound*: no plan has more.",
    "Rank search: accuracy, with spread from the lowest to the highest draw": "With 75 / 50 / 35 / 25 % of the MACs.",
}
UNMET = {  # rules of fair comparison that tables and claims do not keep, and why; see `audit`
    "*": {
        3: "Not run yet: training from scratch (a ResNet-20 takes hours on two cores), random ranks, batch norm recalibrated. The preset of VGG-16 fine-tunes, and needs ImageNet.",
        4: "Older rows of plain factors get their test images from their plans where that was measured again; other rows are paired by draws alone, and a public ResNet is one training.",
        5: "Not measured yet: corrupted images, memory. Times stand in *Side by side*.",
        6: "Three draws. Five are not run yet.",
    },
}
FIGURE_CAPTION = "Bands run over draws of calibration and measuring images."
SHOWN = {"exact-Fisher": "exact, Fisher"}  # choosers under another name in figures and tables
CURVES = ("accuracy", "likelihood")


# ---- the experiment --------------------------------------------------------------------------------------------------


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
        """Return the result row of a low-rank network, on test images."""
        return super().row(net, **{"scope": self.scope, "stored_as": "low rank", "keep_correct": True} | columns)


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


def option_curves(values: Values, curve: str = "accuracy", panels: int = 8) -> pd.DataFrame:
    """Return what each option of a layer is worth, as `curves` draws it: one row an option, of `panels` layers at most.

    Columns: layer; macs, a share of the dense layer's; energy and measured `curve`, as -log y; the predicted loss (nats); and
    tried, whether the curve was measured at this rank or interpolated.
    """
    predicted = values_where_known(values.options, values.mixed, values.damage)
    rows = []
    for own in values.options[:: -(-len(values.options) // panels)]:
        tried, name = search.measured_ranks(own), own.name
        for i, entry in enumerate(own.entries):
            scheme, rank = unfold.parse_entry(entry) if entry else (None, None)
            row = {"layer": name, "macs": own.costs[i, 0] / own.costs[-1, 0]}
            with np.errstate(divide="ignore", invalid="ignore"):
                row["energy: -log y_p"] = -np.log(values.energy[name][i])
                row[f"measured {curve}: -log y_m"] = -np.log(values.measured[name][i])
            row["predicted loss"] = -predicted[name][i]
            rows.append(row | {"tried": rank in tried.get(scheme, [])})
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
    predicted, rows = told.set_index(["kept", "chooser"])["predicted"], []
    for ((share, chooser), one), method in itertools.product(found.items(), methods):
        began = time.perf_counter()
        net = lab.network(one.plan, method)
        seconds = one.seconds + time.perf_counter() - began
        about = {"chooser": chooser, "factors": method, "budget_kind": "macs", "budget": share}
        about |= {"plan": json.dumps(one.plan), "predicted": predicted[share, chooser], "seconds_to_find": seconds}
        about |= {"value": one.value, "bound": one.bound, "gap": one.gap, "evaluations": one.evaluations}
        rows.append(lab.row(net, **about))
    return rows


def without_loss(lab: Laboratory, values: Values, factors: str, low: float) -> dict:
    """Return the row of the smallest network that loses nothing on the fresh validation images, from a share `low` of the MACs.

    Bisection over sizes to 0.03, exact search on predicted losses at each.
    """
    dense = training.evaluate(lab.profile.model, *lab.fresh).accuracy

    def build(share) -> nn.Module:
        one = search.exact_search(lab.profile, share, options=values.mixed, values=values.damage)
        return lab.network(one.plan, factors)

    def good(net: nn.Module):
        return training.evaluate(net, *lab.fresh).accuracy >= dense

    _, net, tried = score.smallest(build, good, low=low, tolerance=0.03)
    return lab.row(net, chooser="exact-Fisher", factors=factors, budget_kind="lossless", evaluations=tried)


def fine_tuned(lab: Laboratory, rows: pd.DataFrame, recipe: training.Recipe, device: str = "auto") -> list[dict]:
    """Return a second row for every network that `searched_rows` made, trained on by `recipe`; seconds are not counted."""
    found = []
    for _, one in rows[(rows["budget_kind"] == "macs") & (rows["tuned"] == "none")].iterrows():
        net = lab.network(json.loads(one["plan"]), one["factors"])
        training.fit(net, lab.images, recipe, int(one["seed"]), device)
        about = {name: one[name] for name in ("chooser", "factors", "budget_kind", "budget")}
        found.append(lab.row(net, **about, tuned="fine-tuned", finetuned_epochs=recipe.epochs))
    return found


def experiment(
    images: Dataset,
    model: nn.Module,
    *,
    shares: Sequence[float] = (0.5, 0.25),
    methods: Sequence[str] = ("svd", "sequential"),
    evaluations: int = 20,
    recipe: training.Recipe | None = None,
    device: str = "auto",
    **options,
) -> pd.DataFrame:
    """Return all rows of this chapter: the dense network, every search at every share in every kind of factors, the lossless one.

    Parameters
    ----------
    images, model : a data set and a network trained on it.
    shares : shares of the MACs kept, each in (0, 1].
    methods : kinds of factors; the last one writes the network without loss.
    evaluations : plans that ENC-Inf measures at each share.
    recipe : of the fine-tuning that gives every network a second row; None: no such rows.
    options : those of `laboratory`: dense, floor, curve, measure_images, calibration_images, draw, and dataset, network, seed.

    Raises ValueError for shares and a curve that are none, and a size that no plan reaches.
    """
    check_asked(shares, options.get("curve", "accuracy"))
    lab = laboratory(images, model, **options)
    values = layer_values(lab.profile, lab.goodness, floor=lab.floor, factors=loss_factors(methods))
    found = searches(lab, values, shares, evaluations)
    rows = columns.table([dense_row(lab), *searched_rows(lab, found, promises(lab, values, found), methods)])
    more = fine_tuned(lab, rows, recipe, device) if recipe else []
    return joined(rows, *more, without_loss(lab, values, methods[-1], min(shares)))


def loss_factors(methods: Sequence[str]) -> str:
    """Return the factors whose loss is predicted: plain ones where nothing else is asked for, else data-aware.

    >>> loss_factors(["svd"]), loss_factors(["svd", "sequential"])
    ('svd', 'data-aware')
    """
    return "svd" if list(methods) == ["svd"] else "data-aware"


def joined(rows: pd.DataFrame, *more: dict) -> pd.DataFrame:
    """Return a table of rows with more of them below."""
    return columns.table([*rows.to_dict("records"), *more])


# ---- figures, tables and claims --------------------------------------------------------------------------------------


def curves(table: pd.DataFrame, least: float = 1e-4, points: pd.DataFrame | None = None) -> Figure:
    """Return one panel a layer: each column of damages against the share of the layer's own MACs kept.

    `table` has the columns layer and macs; every other one is a curve, drawn on a logarithmic axis down to `least`.
    `points`: a table of the same kind, of those curves that went through given points, which are marked.
    """
    names, kinds = list(table["layer"].unique()), [c for c in table if c not in ("layer", "macs")]
    across = min(4, len(names))
    figure, axes = canvas(across, -(-len(names) // across), width=3.3, height=2.7, sharey=True)
    styles = [("energy", "-"), ("entropy", "--"), ("fixed", ":")]
    for axis, name in zip(axes, names):
        mine = table[table["layer"] == name].sort_values("macs")
        for kind, (chooser, dash) in zip(kinds, itertools.cycle(styles)):
            shown = mine[kind].where(mine[kind] >= least)
            axis.plot(mine["macs"], shown, dash, color=COLOURS[chooser], linewidth=2, label=kind)
            if points is not None and kind in points:
                given = points[(points["layer"] == name) & (points[kind] >= least)]
                axis.plot(given["macs"], given[kind], "o", color=COLOURS[chooser])
        axis.set(xlim=(0, 1.02), yscale="log")
        axis.set_title(name, fontsize="small")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].set_ylim(bottom=least)  # the panels share it
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for axis in axes[max(len(names) - across, 0) : len(names)]:
        axis.set_xlabel("MACs of the layer kept")
    for axis in axes[::across]:
        axis.set_ylabel("damage")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(kinds), fontsize="small")
    return figure


def choosers(table: pd.DataFrame) -> Figure:
    """Return accuracy against the share of MACs kept: a row of panels for each network, a panel for each kind of factors, a line a chooser.

    `table`: result rows with columns dataset, network, chooser, factors, budget_kind ("macs"), budget, tuned, macs_kept, accuracy; rows of
    the chooser "dense" give the dotted line. Lines are means over seeds and draws, bands run from the lowest to the highest.
    """
    table = table.assign(chooser=table["chooser"].replace(SHOWN))
    cut = table[(table["budget_kind"] == "macs") & (table["tuned"] == "none")]
    cases = list(cut[["dataset", "network"]].drop_duplicates().itertuples(index=False, name=None))
    kinds = list(dict.fromkeys(cut["factors"]))
    figure, axes = canvas(
        len(kinds), len(cases), width=4.2, height=3.2, sharex=True
    )  # each its own height: what differs is small
    for axis, ((dataset, network), kind) in zip(axes, [(case, kind) for case in cases for kind in kinds]):
        mine = table[(table["dataset"] == dataset) & (table["network"] == network)]
        axis.axhline(
            mine.loc[mine["chooser"] == "dense", "accuracy"].mean(), color="black", linestyle=":", label="dense"
        )
        mine = cut[(cut["dataset"] == dataset) & (cut["network"] == network) & (cut["factors"] == kind)]
        for chooser in in_order(mine["chooser"]):
            line = mine[mine["chooser"] == chooser].groupby("budget", sort=False)
            kept = line["macs_kept"].mean().sort_values()
            value = line["accuracy"].agg(["mean", "min", "max"]).reindex(kept.index)
            axis.plot(kept, value["mean"], label=chooser, **line_style(chooser, alone=len(kept) == 1))
            axis.fill_between(kept, value["min"], value["max"], color=colour_of(chooser), alpha=0.15)
        axis.set_title(f"{network} on {dataset}, {kind} factors", fontsize="small")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    for axis in axes[-len(kinds) :]:
        axis.set_xlabel("MACs kept (share of dense)")
    for axis in axes[:: len(kinds)]:
        axis.set_ylabel("accuracy")
    axes[0].legend(fontsize="small")
    return figure


SEARCHES = ("ENC-Map", "ENC-Model", "ENC-Inf")
SETTING = ["dataset", "network", "budget"]
DRAW = ["dataset", "network", "draw"]


def _plain(table: pd.DataFrame, chooser: str) -> pd.DataFrame:
    """Return the rows of one chooser in plain factors, at all sizes and draws.

    Layer-wise energy stands in notebook 02b, once: plain factors see no images, so it is the same for every draw.
    """
    sized = (table["factors"] == "svd") & at_share(table, *SIZES)
    mine = table[sized & (table["notebook"] == NOTEBOOK)]
    if chooser != "energy":
        return mine[mine["chooser"] == chooser]
    energy = table[sized & (table["notebook"] == "02b_convolutions") & (table["chooser"] == "energy")]
    draws = mine[["dataset", "network", "seed", "draw"]].drop_duplicates()
    return energy.drop(columns="draw").merge(draws, on=["dataset", "network", "seed"])


def _settings(table: pd.DataFrame, keys: Sequence[str]) -> list[tuple]:
    mine = table[(table["notebook"] == NOTEBOOK) & at_share(table, *SIZES)]
    return sorted(mine[[*keys]].drop_duplicates().itertuples(index=False, name=None))


def enc_ahead(ours: str, theirs: str) -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that judges whether a search is ahead of "fixed" or "energy" at equal MACs."""

    def measure(table: pd.DataFrame) -> Verdict | None:
        settings, sides = _settings(table, SETTING), [_plain(table, chooser) for chooser in (ours, theirs)]
        if not settings or not all(map(len, sides)):
            return None
        than = {"fixed": "one fixed share", "energy": "layer-wise energy"}[theirs]
        return verdicts.ahead_verdict(*sides, over="draw", settings=settings, absent=f"no row of {than}", than=than)

    return measure


def small_on_test(chooser: str) -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that judges the smallest size of a chooser, read off the test curve."""

    def measure(table: pd.DataFrame) -> Verdict | None:
        curve = _plain(table, chooser)
        if not len(curve):
            return None
        dense = verdicts.dense_rows(table, NOTEBOOK, DRAW)
        how = {"chosen_on": "accuracy", "size": "macs_kept", "on": DRAW, "unit": "MACs"}
        return verdicts.size_verdict(curve, dense, settings=_settings(table, DRAW), **how)

    return measure


def lossless(chooser: str) -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that judges at which sizes a search loses nothing, by the mean over draws."""

    def measure(table: pd.DataFrame) -> Verdict | None:
        curve = _plain(table, chooser)
        if not len(curve):
            return None
        lost = _lost(table, curve).groupby(SETTING)[["lost", "noise"]].mean().reset_index()
        good, told = lost["lost"] <= lost["noise"], []
        for network, part in lost.groupby("network"):
            free = part[good[part.index]]
            told.append(f"{network} " + (f"{100 * free['budget'].min():.0f} %" if len(free) else "none"))
        least = f"{lost['lost'].min():.1f}".replace("-0.0", "0.0")
        said = f"smallest share of the MACs without loss: {', '.join(told)}; {least} to {lost['lost'].max():.1f} points lost"
        return Verdict(said, verdict_of(good.mean()), len(lost), {}, ("nothing",) * len(lost))

    return measure


def _lost(table: pd.DataFrame, cut: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the points that they lose on test, and two standard errors of the dense accuracy, in points."""
    dense = verdicts.dense_rows(table, NOTEBOOK, DRAW)
    found = cut.merge(dense[[*DRAW, "accuracy"]], on=DRAW, suffixes=("", "_dense"))
    before = found["accuracy_dense"]
    noise = 200 * (before * (1 - before) / verdicts.TEST_IMAGES) ** 0.5
    return found.assign(lost=100 * (before - found["accuracy"]), noise=noise)


def lossless_by_our_search(table: pd.DataFrame) -> Verdict | None:
    """Return the verdict on the networks that our search found to lose nothing, each of a size of its own."""
    mine = table[(table["notebook"] == NOTEBOOK) & (table["budget_kind"] == "lossless")]
    mine = mine[mine["chooser"] == "exact-Fisher"]
    if not len(mine):
        return None
    found = _lost(table, mine)
    sizes = {
        name: dict.fromkeys(f"{100 * v:.0f}" for v in (part.min(), part.max()))
        for name, part in mine.groupby("network")["macs_kept"]
    }
    told = ", ".join(f"{network} {' to '.join(ends)} %" for network, ends in sizes.items())
    said = f"MACs kept: {told}; at most {max(found['lost'].max(), 0):.1f} points lost on test"
    good = found["lost"] <= found["noise"]
    return Verdict(said, verdict_of(good.mean()), len(found), {}, ("nothing",) * len(found))


def as_the_paper(chooser: str) -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that puts a search on ResNet-56 at half of the MACs beside the paper's number."""

    def measure(table: pd.DataFrame) -> Verdict | None:
        mine = _plain(table, chooser)
        mine = mine[(mine["network"] == "resnet56") & (mine["budget"] == 0.5)]
        if not len(mine):
            return None
        accuracy, theirs = 100 * mine["accuracy"].mean(), float(_ENC_TABLE["cifar10", "resnet56"][chooser])
        dense = 100 * verdicts.dense_rows(table, NOTEBOOK, DRAW).query("network == 'resnet56'")["accuracy"].mean()
        again = batch_norm.published()
        told = again[(again["network"] == "resnet56") & (again["chooser"] == chooser)] if again is not None else None
        why = (
            "unexplained"
            if told is None or told.empty
            else f"{100 * told['recalibrated'].mean():.1f} % with batch norms recalibrated"
        )
        said = f"{accuracy:.1f} %, {dense - accuracy:.1f} points below our dense network and {theirs - accuracy:.1f} below the paper; {why}"
        return Verdict(said, "yes" if accuracy >= theirs else "no", 1)

    return measure


RERUN = f"for p in rank-search-vgg-small rank-search-resnet20 rank-search-resnet56; do for d in 0 1 2; do {RUN} $p --set draw=$d --seeds 0 --only 05; done; done"


# Kim, Khan & Kyung 2019: accuracy at half of the FLOPs, plain factors, no fine-tuning, another training of the network
_ENC_TABLE: dict[tuple[Hashable, ...], dict[str, str]] = {
    ("cifar10", "resnet56"): {"ENC-Map": "89.8", "ENC-Model": "89.6", "ENC-Inf": "90.2"}
}


def tables(table: pd.DataFrame) -> dict[str, str]:
    """Return {heading: Markdown table} of the published rows, as the gallery shows them."""
    table = table.assign(accuracy=100 * table["accuracy"], chooser=table["chooser"].replace(SHOWN))
    choosers = ["fixed", "ENC-Map", "ENC-Model", "ENC-Inf", "exact", "exact, Fisher"]
    equal, spread, left = [], [], []
    for key, part in table[table["chooser"] != "dense"].groupby(["dataset", "network"]):
        dense = table[(table["dataset"] == key[0]) & (table["network"] == key[1]) & (table["chooser"] == "dense")]
        draws = str(part["draw"].nunique())
        for factors in ("svd", "data-aware", "sequential"):
            mine = part[part["factors"] == factors]
            by = {name: mine[mine["chooser"] == name] for name in choosers}
            equal.append(
                [
                    *key,
                    mean_and_spread(dense["accuracy"].drop_duplicates()),
                    factors,
                    draws,
                    *(at_sizes(by[c], mean_in_words) for c in choosers),
                ]
            )
            spread.append([*key, factors, *(at_sizes(by[c], range_in_words) for c in choosers)])
        if key in _ENC_TABLE:
            lines = (_ENC_TABLE[key].get(name) for name in choosers)
            equal.append(
                [*key, "-", "svd, in the paper", "1", *(f"- / {line} / - / -" if line else "-" for line in lines)]
            )
        for size in SIZES:
            mine = part[at_share(part, size) & (part["factors"] == "svd")]
            worth = {name: mine.loc[mine["chooser"] == name, "predicted"].mean() for name in choosers[1:5]}
            bound = mine.loc[mine["chooser"] == "exact", "bound"].mean()
            if len(mine):
                left.append([*key, f"{100 * size:.0f} %", *(f"{v:.3f}" for v in worth.values()), f"{bound:.3f}"])
    where = ["data set", "network"]
    return {
        "Rank search: accuracy with 75 / 50 / 35 / 25 % of the MACs": markdown(
            [*where, "dense", "factors", "draws", *choosers], equal
        ),
        "Rank search: predicted value (log A_p + log A_m) and its proved bound": markdown(
            [*where, "MACs kept", *choosers[1:5], "bound"], left
        ),
        "Rank search: accuracy, with spread from the lowest to the highest draw": markdown(
            [*where, "factors", *choosers], spread
        ),
    }


ONE_EACH = False  # a figure for each data set and network


def usable(table: pd.DataFrame) -> pd.Series:
    """Return which rows (a boolean Series) `figure` can draw."""
    return table["budget_kind"] == "macs"


figure = choosers


def _claims() -> tuple[Claim, ...]:
    three = "vgg_small, ResNet-20, ResNet-56, 75 to 25 % of the MACs, plain factors"
    ahead = [
        Claim("ENC", "ranks of the whole network at once are the better compromise", f"{chooser} against {words}; {three}", "ahead", "-", enc_ahead(chooser, theirs), RERUN, posed=True)
        for theirs, words in (("fixed", "one fixed share"), ("energy", "layer-wise energy")) for chooser in SEARCHES
    ]  # fmt: skip
    small = [
        Claim("ENC", "compression at little loss, no fine-tuning", f"{chooser}; {three}", "size, test curve", "-", small_on_test(chooser), RERUN, posed=True)
        for chooser in SEARCHES
    ]  # fmt: skip
    ours = [
        Claim("ENC", f"the same, improved: {words}", three, "size, test curve", "-", small_on_test(chooser), RERUN)
        for chooser, words in (("exact", "exact search on its curves"), ("exact-Fisher", "exact search on predicted losses"))
    ]  # fmt: skip
    free = [
        Claim("ENC", "lossless compression", f"{chooser}, its own search; {three}", "no loss", "-", lossless(chooser), RERUN, posed=True, unmet={4: _UNPAIRED})
        for chooser in SEARCHES
    ]  # fmt: skip
    free.append(Claim("ENC", "the same, improved: exact search on predicted losses", "no loss on images held out of training (the public ResNets were trained on them), sequential factors", "no loss", "-", lossless_by_our_search, RERUN, unmet={4: _UNPAIRED}))  # fmt: skip
    paper = [
        Claim("ENC", "accuracy of ResNet-56 at half of the FLOPs, no fine-tuning", f"{chooser}, plain factors; the paper has another training of the network", "as in the paper", f"{number} %", as_the_paper(chooser), RERUN, posed=True, unmet={1: _BESIDE})
        for chooser, number in _ENC_TABLE["cifar10", "resnet56"].items()
    ]  # fmt: skip
    rows = "the rows of VGG-16 need ImageNet"
    seconds = "the seconds of the rows do not count the curves that the searches read"
    unmet = {1: _BESIDE, 2: "ImageNet is not at hand; the preset runs it for whoever has the images."}
    more = (
        Claim("ENC", "VGG-16 with fewer FLOPs more accurate than the baseline", "ImageNet, fine-tuned", "as in the paper", "25 % of FLOPs, +0.7 points", lambda table: verdicts.not_measured(rows, _VGG), IMAGENET, posed=True, unmet=unmet),
        Claim("ENC", "its ranks found on a CPU", "VGG-16, statistics included", "as in the paper", "about 5 seconds (Map), 3 minutes (Model)", lambda table: verdicts.not_measured(seconds, _VGG), IMAGENET, posed=True, unmet=unmet),
    )  # fmt: skip
    return (*ahead, *small, *ours, *free, *paper, *more)


_UNPAIRED = "A test in pairs shows a loss, not that there is none: where it settles nothing, as with three draws, much may be lost. So the points lost are held against their standard error."
_BESIDE = "The paper's number can stand beside the paper's own measure alone."
_VGG = ["imagenet, vgg16"]
IMAGENET = f"{RUN} rank-search-imagenet --only 05 --set dataset=folder:PATH"
CLAIMS = _claims()
