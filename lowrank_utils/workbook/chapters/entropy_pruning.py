"""Chapter 03, entropy pruning: of singular components and of hidden units."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from lowrank_utils.factors import replace, svd
from lowrank_utils.lab import columns, score, training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network.modules import copied
from lowrank_utils.network.profile import Profile
from lowrank_utils.network.statistics import Activations, collect_activations
from lowrank_utils.ranks import components, rules, units
from lowrank_utils.workbook import laboratory as laboratories
from lowrank_utils.workbook.plots import COLOURS, canvas, frontier, scatter
from lowrank_utils.workbook.tables import in_points, markdown, mean_and_spread

NOTEBOOK = "03_entropy_pruning"
CAPTIONS = {  # of its tables
    "Entropy pruning: parameters kept at no more than one point lost": "Percent of the parameters; in brackets the change on test images, in points. Singular *components* (data-aware factors) or hidden *units* (the next layer refitted) are dropped over the whole network, or units first and components second (*both*).",
    "Entropy pruning: accuracy with 10 / 20 / 30 % kept": "The same rankings at equal sizes.",
    "Entropy pruning: accuracy of every ranking, with spread": "*Written as*: for components the factors; for units what the next layer does about those removed: *nothing*, their means *folded* into its bias, or *refitted* by least squares. *One range*: histograms of all units of a layer share their range.",
}
UNMET = {  # rules of fair comparison that tables do not keep, and why; see `audit`
    "*": {
        3: "Random choice and fine-tuning are there; the small network trained from scratch is not run yet.",
        4: "The published rows do not record test images. The tables show means and spread, and no claim is judged by them.",
        5: "Not measured yet on corrupted images. Time and memory belong to *Side by side*.",
        6: "Each seed has a split of its own, so the three seeds are three draws of the calibration images. Five draws are not run yet.",
        7: "The figures show every size.",
    },
}
FIGURE_CAPTION = "What loses more than 40 points is cut off."


# ---- the experiment --------------------------------------------------------------------------------------------------

SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6)  # sizes at which all rankings are compared
HALFWAY = (0.9, 0.7, 0.5)  # shares that the removal of units may leave before components go
REFITS = ("none", "folded", "least squares")


@dataclass(frozen=True)
class Way:
    """One way to make a network smaller: what ranks the candidates, and how what stays is written down.

    The fields but ``rule``, by which candidates are ranked, are columns of a result row. ``stored_as``: "low rank" (components dropped), "units", or "both".
    """

    chooser: str
    factors: str = "none"
    scope: str = "every layer"
    stored_as: str = "low rank"
    refit: str = "none"
    rule: str = ""

    @property
    def columns(self) -> dict:
        """The columns of a result row that this way fills."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "rule"}

    @property
    def method(self) -> str:
        """What tables call the ranking."""
        return _method(self)

    @property
    def written_as(self) -> str:
        """What tables call the way in which it is written down."""
        return _written_as(self)


def ways() -> list[Way]:
    """Return all ways that the chapter compares."""
    found = [
        Way(f"component {rule}", method, rule=rule) for rule in components.COMPONENT_RULES for method in svd.METHODS
    ]
    found += [Way("energy", method, scope) for scope in ("every layer", "hidden layers") for method in svd.METHODS]
    rankings = [*(f"unit {rule}" for rule in units.UNIT_RULES), "unit entropy one range"]
    found += [Way(name, "none", "hidden layers", "units", refit) for name in rankings for refit in REFITS]
    found += [
        Way(f"both {rule}", "data-aware", "every layer", "both", "least squares", rule)
        for rule in ("entropy", "output")
    ]
    return found


@dataclass(frozen=True)
class Laboratory(laboratories.Laboratory):
    """What the networks of this chapter are made from and measured with.

    ``hidden`` is the profile with the classifier dense; ``orders`` of hidden units by name; ``bases`` the factors of each
    layer by method; ``halfway``, {(rule, share): (profile, bases)} of networks with units removed.
    """

    hidden: Profile
    activations: dict[str, Activations]
    orders: dict[str, pd.DataFrame]
    bases: dict[str, dict]
    halfway: dict
    seed: int

    def measured(self, net: nn.Module, way: Way, **more) -> dict:
        """Return the result row of a network that was made in some way, on test images."""
        return self.row(net, **way.columns, **more)


CONTROL = Way("dense control", scope="none", stored_as="dense")


def laboratory(
    images: Dataset, model: nn.Module, *, calibration_images: int, bins: int = 32, seed: int = 0, **about
) -> Laboratory:
    """Return the `Laboratory` of a trained network, from `calibration_images` of its training images.

    `bins` of the histograms of activations; `seed` of the random rankings; `about`: dataset, network.
    """
    about = {"notebook": NOTEBOOK, "seed": seed, **about}
    base = laboratories.laboratory(images, model, calibration_images=calibration_images, **about)
    read = base.profile
    calibration = read.needed_calibration("the activations of units need")
    activations = collect_activations(model, calibration, bins)
    orders = {f"unit {rule}": units.rank_units(read, activations, rule, seed) for rule in units.UNIT_RULES}
    one_range = collect_activations(model, calibration, bins, span="layer")
    orders["unit entropy one range"] = units.rank_units(read, one_range, "entropy")
    hidden = read.but(dense=(read.order[-1],))
    lab = Laboratory(images, read, base.about, hidden, activations, orders, _bases(read), {}, seed)
    for rule in ("entropy", "output"):
        for share in HALFWAY:
            fewer = Profile(fewer_units(lab, f"unit {rule}", share), read.calibration)
            lab.halfway[rule, share] = fewer, _bases(fewer)
    return lab


def _bases(read):
    return {method: replace.decompose_layers(read, read.factorable, method) for method in svd.METHODS}


def fewer_units(lab: Laboratory, order: str, share: float, refit: str = "least squares") -> nn.Module:
    """Return the network with a share of its parameters, hidden units dropped in the order of that name."""
    stay = units.units_that_stay(lab.profile, lab.orders[order], share, resource="parameters")
    fill = {"folded": {"activations": lab.activations}, "least squares": {"moments": lab.profile.moments}}
    return units.remove_units(lab.profile, stay, **fill.get(refit, {}))


def fewer_components(lab: Laboratory, way: Way, share: float, start: tuple[Profile, dict] | None = None) -> nn.Module:
    """Return the network with a share of its parameters, singular components dropped.

    `start`, (profile, factors by method) of a network with units removed; by default the whole network.
    """
    read, bases = start or (lab.profile, lab.bases)
    share = min(1.0, share * lab.size / score.parameters(read.model))
    if way.chooser == "energy":
        chosen = lab.hidden if way.scope == "hidden layers" else read
        plan = rules.plan_at_size(chosen, share, rule="energy", resource="parameters")
    else:
        plan = components.components_plan(
            read, share, rule=way.rule, resource="parameters", factors=bases[way.factors], moments=read.moments, seed=lab.seed
        )  # fmt: skip
    return replace.apply_plan(read, plan, factors=bases[way.factors], resource="parameters")


def build(lab: Laboratory, way: Way, share: float) -> nn.Module:
    """Return the network with a share of the dense network's parameters, made in one of the `ways`."""
    if way.chooser in ("dense", "dense control"):
        return copied(lab.model)
    if way.stored_as == "units":
        return fewer_units(lab, way.chooser, share, way.refit)
    if way.stored_as == "low rank":
        return fewer_components(lab, way, share)
    # units first, components second, at the halfway point that is best on validation images
    rule = way.rule
    tries = [fewer_components(lab, way, share, lab.halfway[rule, half]) for half in HALFWAY if half >= share]
    return max(tries, key=lab.valid) if tries else fewer_components(lab, way, share)


def at_sizes(lab: Laboratory, chosen: Sequence[Way] | None = None, shares: Sequence[float] = SHARES) -> list[dict]:
    """Return the rows of the chosen ways (default: all) at every share of the parameters."""
    return [
        lab.measured(build(lab, way, share), way, budget_kind="kept", budget=share) for way in chosen or ways() for share in shares
    ]  # fmt: skip


def smallest(lab: Laboratory, drop: float, chosen: Sequence[Way] | None = None) -> list[dict]:
    """Return the rows of the smallest network of each way that loses at most `drop` on validation images, with times.

    `chosen`: the ways, by default all but those that remove units and make up for nothing.
    """
    allowed = lab.valid(lab.model) - drop - 1e-9
    rows = []
    for way in chosen or [way for way in ways() if (way.stored_as, way.refit) != ("units", "none")]:
        began = time.perf_counter()
        low = {"units": 0.02, "both": 0.05}.get(way.stored_as) or rules.least_kept(lab.profile, "parameters")
        _, net, evaluations = score.smallest(
            lambda share, way=way: build(lab, way, share), lambda net: lab.valid(net) >= allowed, low
        )
        seconds = time.perf_counter() - began
        more = {"valid_accuracy": lab.valid(net), "seconds_to_find": seconds, "evaluations": evaluations}
        rows.append(lab.measured(net, way, budget_kind="drop", budget=drop, timed=True, **more))
    return rows


TUNED = (
    Way("component entropy", "svd", rule="entropy"),
    Way("component output", "data-aware", rule="output"),
    Way("unit entropy", "none", "hidden layers", "units", "folded"),
    Way("unit entropy", "none", "hidden layers", "units", "least squares"),
    Way("unit output", "none", "hidden layers", "units", "least squares"),
    Way("unit random", "none", "hidden layers", "units", "least squares"),
    Way("both output", "data-aware", "every layer", "both", "least squares", "output"),
    CONTROL,
)


def fine_tuned(
    lab: Laboratory, kept: float, epochs: int, device: str = "auto", chosen: Sequence[Way] = TUNED
) -> tuple[list[dict], pd.DataFrame]:
    """Return (rows, test accuracy in percent before and after) of networks trained on after they were cut to a share `kept`.

    The usual recipe at a third of its rate, the same for all; among them the dense network, trained on as long.
    """
    usual = training.recipe_for(lab.about["network"], lab.about["dataset"])
    recipe = dataclasses.replace(usual, epochs=epochs, learning_rate=usual.learning_rate / 3)
    rows, told = [], {}
    for way in chosen:
        net = build(lab, way, kept)
        told[way.method, way.written_as] = {"pruned": 100 * lab.measured(net, way)["accuracy"]}
        training.fit(net, lab.images, recipe, lab.seed, device, progress=False)
        size = {"budget_kind": "dense"} if way is CONTROL else {"budget_kind": "kept", "budget": kept}
        rows.append(lab.measured(net, way, **size, tuned="fine-tuned", finetuned_epochs=epochs))
        told[way.method, way.written_as]["fine-tuned"] = 100 * rows[-1]["accuracy"]
    return rows, pd.DataFrame(told).T.rename_axis(["chooser", "factors"])


def unit_damage(lab: Laboratory, layer: str) -> pd.DataFrame:
    """Return what the loss of each hidden unit of a layer does, beside what ranks it.

    One row a unit: column ``loss``, the rise of the loss on validation images (nats) where this unit alone is removed and its
    mean folded into the next layer; columns ``entropy`` and ``output``, its scores by these rules. Raises ValueError for a
    layer without hidden units that can be removed.
    """
    scores = {}
    for rule in ("entropy", "output"):
        order = lab.orders[f"unit {rule}"]
        scores[rule] = order[order["layer"] == layer].set_index("unit")["score"].sort_index()
    if scores["entropy"].empty:
        raise ValueError(f"layer {layer!r} has no hidden units that can be removed")
    valid = lab.images.tensors("valid")
    dense, every = training.evaluate(lab.model, *valid).loss, scores["entropy"].index
    loss = []
    for unit in every:
        stay = {layer: [other for other in every if other != unit]}
        net = units.remove_units(lab.profile, stay, activations=lab.activations)
        loss.append(training.evaluate(net, *valid).loss - dense)
    return pd.DataFrame(scores).assign(loss=loss).reset_index()


def without_component(net: nn.Module, layer: str, component: int) -> nn.Module:
    """Return a copy of a network whose linear `layer` lacks one singular component, counted from 1 for the largest.

    Raises ValueError where the layer has no such component.
    """
    rest = copied(net)
    weight = rest.get_parameter(f"{layer}.weight")
    u, s, vt = torch.linalg.svd(weight.detach(), full_matrices=False)
    if not 1 <= component <= len(s):
        raise ValueError(f"component={component} is not one of the {len(s)} components of layer {layer!r}")
    s[component - 1] = 0
    weight.data = u @ torch.diag(s) @ vt
    return rest


def experiment(
    images: Dataset,
    model: nn.Module,
    *,
    drop: float = 0.01,
    kept: float = 0.2,
    calibration_images: int = 5000,
    finetune_epochs: int = 1,
    bins: int = 32,
    seed: int = 0,
    shares: Sequence[float] = SHARES,
    **about,
) -> pd.DataFrame:
    """Return all result rows of the notebook: every way at every size, at a drop of accuracy, and fine-tuned.

    Parameters: a data set and a network trained on it; `drop` of accuracy on validation images, as a share; `kept`, the
    share at which networks are fine-tuned for `finetune_epochs`; `calibration_images` for statistics; `bins` of
    histograms; `seed`; `shares`, the sizes; `about`: dataset, network.
    """
    lab = laboratory(images, model, calibration_images=calibration_images, bins=bins, seed=seed, **about)
    rows = [lab.dense_row(), *at_sizes(lab, shares=shares), *smallest(lab, drop)]
    return columns.table(rows + fine_tuned(lab, kept, finetune_epochs)[0])


# ---- names, figures, tables ------------------------------------------------------------------------------------------

FORMS = {"svd": "components, plain factors", "data-aware": "components, data-aware factors"}
FORMS |= {"folded": "units, mean folded", "refitted": "units, next layer refitted"}


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with columns ``method`` and ``written_as``: what figures and tables call them."""
    rows = list(table.itertuples())
    return table.assign(method=[_method(row) for row in rows], written_as=[_written_as(row) for row in rows])


def _method(row) -> str:
    if row.chooser == "energy":
        return "arsvd, every layer" if row.scope == "every layer" else "arsvd, classifier dense"
    return "unit entropy, one range" if row.chooser == "unit entropy one range" else row.chooser


def _written_as(row) -> str:
    if row.stored_as == "units":
        return {"none": "nothing", "least squares": "refitted"}.get(row.refit) or row.refit
    return row.factors


def at_equal_size(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at a share of the parameters that were not fine-tuned."""
    return table[(table["budget_kind"] == "kept") & (table["tuned"] == "none")]


def rankings(table: pd.DataFrame, title: str = "test images") -> Figure:
    """Return accuracy against parameters kept for what notebook 03 prunes: components above, units below.

    `table`: result rows; the dense network gives the dotted line. What loses more than 40 points is cut off.
    """
    drawn = named(at_equal_size(table))
    drawn = drawn[drawn["written_as"].isin(FORMS)]
    panel = pd.Categorical(drawn["written_as"].map(FORMS), list(FORMS.values()))
    drawn = drawn.assign(panel=panel, chooser=drawn["method"]).sort_values("panel", kind="stable")
    baseline = table.loc[table["chooser"] == "dense", "accuracy"].mean()
    return frontier(drawn, "accuracy", baseline, title, max(baseline - 0.4, 0), panels="panel", columns=2)


def histograms(values: dict[str, Any], bins: int) -> Figure:
    """Return the histogram of each entry of `values`, {title: 1-D numbers}, in `bins` bins between its own bounds."""
    figure, axes = canvas(len(values), width=2.9, height=2.6)
    for axis, (title, numbers) in zip(axes, values.items()):
        axis.hist(np.asarray(numbers), bins=bins, color=COLOURS["energy"])
        axis.set(xlabel="activation", yscale="log", ylim=(0.7, 1.5 * len(numbers)))
        axis.set_title(title, fontsize="small")
    axes[0].set_ylabel("images")
    return figure


def ranking(table: pd.DataFrame, stays: dict[str, int]) -> Figure:
    """Return the score of every component, one panel a layer: the columns of `components.rank_components`.

    The grey dashed line is the score itself, the other one what counts once a larger component must not go before a
    smaller one. `stays`: {layer: rank}, drawn as full dots; a layer that is absent stays whole.
    """
    names = list(dict.fromkeys(table.sort_values("component", kind="stable")["layer"]))
    figure, axes = canvas(len(names), width=3.6, sharey=True)
    for axis, name in zip(axes, names):
        mine = table[table["layer"] == name].sort_values("component")
        axis.plot(mine["component"], mine["score"], "--", color="gray", label="score")
        rank = stays.get(name, len(mine))
        for part, style, label in ((mine[:rank], {}, "stays"), (mine[rank:], {"mfc": "white"}, "dropped")):
            axis.plot(
                part["component"], part["key"], "o", color=COLOURS["entropy"], ms=3.5, mew=0.8, label=label, **style
            )
        axis.set(xlabel="component", yscale="log", title=f"{name}: {min(rank, len(mine))} of {len(mine)} stay")
    axes[0].set_ylabel("score (nats)")
    axes[-1].legend()
    return figure


def damage(table: pd.DataFrame) -> Figure:
    """Return the rise of the loss without a unit against what ranks it, one dot a unit; `table` of `unit_damage`."""
    labels = {
        "entropy": "entropy (nats)",
        "output": "share of the output variance",
        "loss": "rise of valid loss (nats)",
    }
    return scatter(table, "loss", ["entropy", "output"], labels)


BEST = {
    "low rank": "data-aware",
    "both": "data-aware",
    "units": "refitted",
}  # how tables have each ranking written down
SHOWN = [
    "component entropy",
    "component output",
    "arsvd, classifier dense",
    "unit entropy",
    "unit random",
    "unit output",
]
SHOWN += ["both entropy", "both output"]
THREE = (0.1, 0.2, 0.3)


def tables(table: pd.DataFrame) -> dict[str, str]:
    """Return {heading: Markdown table} of the published rows, as the gallery shows them."""
    table = named(in_points(table))
    mine = table[table["written_as"] == table["stored_as"].map(BEST)]
    small, equal, spread = [], [], []
    for key, part in mine.groupby(["dataset", "network"]):
        by = {name: part[part["method"] == name] for name in SHOWN}
        drop = [rows[(rows["budget_kind"] == "drop") & (rows["budget"] == 0.01)] for rows in by.values()]
        small.append(
            [*key, *(f"{mean_and_spread(rows['parameters_kept'])} ({-rows['lost'].mean():+.1f})" for rows in drop)]
        )
        sizes = [at_equal_size(rows).groupby("budget")["accuracy"].mean() for rows in by.values()]
        equal.append([*key, *(" / ".join(f"{size.get(kept, np.nan):.1f}" for kept in THREE) for size in sizes)])
    for key, part in at_equal_size(table).groupby(["dataset", "network", "method", "written_as"]):
        sizes = [part.loc[part["budget"] == kept, "accuracy"] for kept in THREE]
        if all(len(values) for values in sizes):
            spread.append([*key, *(mean_and_spread(values) for values in sizes)])
    where = ["data set", "network"]
    return {
        "Entropy pruning: parameters kept at no more than one point lost": markdown([*where, *SHOWN], small),
        "Entropy pruning: accuracy with 10 / 20 / 30 % kept": markdown([*where, *SHOWN], equal),
        "Entropy pruning: accuracy of every ranking, with spread": markdown(
            [*where, "ranking", "written as", "10 % kept", "20 % kept", "30 % kept"], spread
        ),
    }


ONE_EACH = True  # a figure for each data set and network


def usable(table: pd.DataFrame) -> pd.Series:
    """Return which rows (a boolean Series) `figure` can draw."""
    shown = named(at_equal_size(table))
    return pd.Series(table.index.isin(shown[shown["written_as"].isin(FORMS)].index), index=table.index)


figure = rankings
