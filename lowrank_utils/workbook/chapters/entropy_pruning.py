"""Chapter 03, entropy pruning: of singular components and of hidden units."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from lowrank_utils import checks
from lowrank_utils.factors import replace, svd
from lowrank_utils.lab import columns, score, training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network.profile import Profile
from lowrank_utils.network.statistics import collect_activations
from lowrank_utils.ranks import components, rules, units
from lowrank_utils.workbook import laboratory
from lowrank_utils.workbook.plots import COLOURS, canvas, frontier
from lowrank_utils.workbook.tables import in_points, markdown, mean_and_spread

NOTEBOOK = "03_entropy_pruning"
CAPTIONS = {  # of its tables
    "Entropy pruning: parameters kept at no more than one point lost": "Percent of the parameters; in brackets the change on test images, in points. Singular *components* (data-aware factors) or hidden *units* (the next layer refitted) are dropped over the whole network, or units first and components second (*both*).",
    "Entropy pruning: accuracy with 10 / 20 / 30 % kept": "The same rankings at equal sizes.",
    "Entropy pruning: accuracy of every ranking, with spread": "*Written as*: for components the factors; for units what the next layer does about those removed: *nothing*, their means *folded* into its bias, or *refitted* by least squares. *One range*: histograms of all units of a layer share their range.",
}
FIGURE_CAPTION = "What loses more than 40 points is cut off."

# ---- the experiment --------------------------------------------------------------------------------------------------

SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6)  # sizes at which all rankings are compared
HALFWAY = (0.9, 0.7, 0.5)  # shares of the parameters that the removal of units may leave before components go
FILLS = ("none", "folded", "least squares")  # what the next layer does about units that are gone
ONE_RANGE = "unit entropy one range"


class Way(NamedTuple):
    """One way to make the network smaller, in the columns of its rows."""

    chooser: str
    factors: str
    scope: str
    stored_as: str
    refit: str


CONTROL = Way("dense control", "none", "none", "dense", "none")  # the whole network, fine-tuned as the others are


@dataclasses.dataclass(frozen=True)
class Laboratory(laboratory.Laboratory):
    """The network of this chapter, the rankings of its units, and factors of its components."""

    bins: int = 32
    seed: int = 0

    @cached_property
    def activations(self):
        """What every hidden unit answers to the calibration images, in histograms of its own range."""
        return collect_activations(self.model, self.profile.calibration, self.bins)

    @cached_property
    def orders(self) -> dict[str, pd.DataFrame]:
        """The units in the order in which they go, by the name of each ranking."""
        found = {
            f"unit {rule}": units.rank_units(self.profile, self.activations, rule, self.seed) for rule in units.UNIT_RULES
        }
        one_range = collect_activations(self.model, self.profile.calibration, self.bins, span="layer")
        return found | {ONE_RANGE: units.rank_units(self.profile, one_range, "entropy")}

    @cached_property
    def hidden(self) -> Profile:
        """The profile with the classifier dense."""
        return self.profile.but(dense=(self.profile[-1].name,))

    @cached_property
    def bases(self) -> dict:
        """Plain and data-aware factors of the whole network."""
        return {method: factors_of(self.profile, method) for method in svd.METHODS}

    @cached_property
    def halfway(self) -> dict:
        """Networks from which units are gone, by rule and share left: their profile and data-aware factors."""
        found = {}
        for rule in ("entropy", "output"):
            for share in HALFWAY:
                net = fewer_units(self, f"unit {rule}", share)
                read = Profile(net, self.profile.calibration)
                found[rule, share] = read, factors_of(read, "data-aware")
        return found


def factors_of(read: Profile, method: str) -> dict[str, svd.Factors]:
    """Return factors of every layer of a network, of all ranks."""
    return replace.decompose_layers(read, read.factorable, method)


def prepared(
    images: Dataset, model: nn.Module, *, calibration_images: int, bins: int = 32, seed: int = 0, **about
) -> Laboratory:
    """Return the `Laboratory` of a trained network; `about` is what every row says beside the seed: dataset, network.

    `seed` also orders what is ranked at random. Raises ValueError for fewer than 2 calibration images or bins.
    """
    checks.check_count(2, calibration_images=calibration_images, bins=bins)
    about = {"notebook": NOTEBOOK, "seed": seed, **about}
    made = laboratory.laboratory(images, model, calibration_images=calibration_images, **about)
    return Laboratory(made.images, made.profile, made.about, bins, seed)


def fewer_units(lab: Laboratory, order: str, share: float, refit: str = "least squares") -> nn.Module:
    """Return the network with `share` of its parameters, units dropped in the order of that name."""
    stay = units.units_that_stay(lab.profile, lab.orders[order], share, resource="parameters")
    if refit == "none":
        return units.remove_units(lab.profile, stay)
    if refit == "folded":
        return units.remove_units(lab.profile, stay, activations=lab.activations)
    return units.remove_units(lab.profile, stay, moments=lab.profile.moments)


def fewer_components(lab: Laboratory, rule: str, share: float, factors: str, start: tuple | None = None) -> nn.Module:
    """Return the network (or the one of `halfway` that is the `start`) with `share` of the original parameters, components dropped."""
    read, bases = start or (lab.profile, lab.bases[factors])
    share = min(1.0, share * lab.size / score.parameters(read.model))
    moments = read.moments if rule == "output" else None
    plan = components.components_plan(
        read, share, rule=rule, resource="parameters", factors=bases, moments=moments, seed=lab.seed
    )
    return replace.apply_plan(read, plan, factors=bases, resource="parameters")


def by_energy(lab: Laboratory, scope: str, share: float, factors: str) -> nn.Module:
    """Return the network with `share` of its parameters and ranks as ARSVD has them, layer by layer."""
    read = lab.profile if scope == "every layer" else lab.hidden
    plan = rules.plan_at_size(read, share, rule="energy", resource="parameters")
    return replace.apply_plan(lab.profile, plan, factors=lab.bases[factors], resource="parameters")


def both(lab: Laboratory, rule: str, share: float) -> nn.Module:
    """Return units first, components second, at the halfway point that is best on validation images."""
    tries = [
        fewer_components(lab, rule, share, "data-aware", lab.halfway[rule, way]) for way in HALFWAY if way >= share
    ]
    return max(tries, key=lab.valid) if tries else fewer_components(lab, rule, share, "data-aware")


def competitors(lab: Laboratory) -> dict[Way, Callable[[float], nn.Module]]:
    """Return {way: function from a share of the parameters to a network}."""
    ways: dict[Way, Callable[[float], nn.Module]] = {}
    for rule in components.COMPONENT_RULES:
        for factors in svd.METHODS:
            way = Way(f"component {rule}", factors, "every layer", "low rank", "none")
            ways[way] = lambda share, r=rule, f=factors: fewer_components(lab, r, share, f)
    for scope in ("every layer", "hidden layers"):
        for factors in svd.METHODS:
            way = Way("energy", factors, scope, "low rank", "none")
            ways[way] = lambda share, s=scope, f=factors: by_energy(lab, s, share, f)
    for order in lab.orders:
        for refit in FILLS:
            way = Way(order, "none", "hidden layers", "units", refit)
            ways[way] = lambda share, o=order, r=refit: fewer_units(lab, o, share, r)
    for rule in ("entropy", "output"):
        way = Way(f"both {rule}", "data-aware", "every layer", "both", "least squares")
        ways[way] = lambda share, r=rule: both(lab, r, share)
    return ways


def at_all_sizes(lab: Laboratory, ways: dict, shares: Sequence[float] = SHARES) -> pd.DataFrame:
    """Return the rows of every way at every share of the parameters."""
    return columns.table(
        [
            lab.row(build(share), **way._asdict(), budget_kind="kept", budget=share)
            for way, build in ways.items()
            for share in shares
        ]
    )


def within_drop(lab: Laboratory, ways: dict, drop: float) -> pd.DataFrame:
    """Return the rows of the smallest network that each way finds to lose at most `drop` on validation images, timed.

    `drop` is a share: 0.01 is one point. Units that are gone without anything done about them are left out.
    """
    floor = lab.valid(lab.model) - drop - 1e-9
    least = {"low rank": rules.least_kept(lab.profile, "parameters"), "both": 0.05, "units": 0.02}
    rows = []
    for way in [way for way in ways if (way.stored_as, way.refit) != ("units", "none")]:
        began = time.perf_counter()
        _, net, evaluations = score.smallest(ways[way], lambda net: lab.valid(net) >= floor, least[way.stored_as])
        about = {"seconds_to_find": time.perf_counter() - began, "evaluations": evaluations}
        about |= {"budget_kind": "drop", "budget": drop, "valid_accuracy": lab.valid(net)}
        rows.append(lab.row(net, **way._asdict(), **about, timed=True))
    return columns.table(rows)


def to_tune(ways: Iterable[Way]) -> list[Way]:
    """Return the ways whose networks are fine-tuned: the best and a random one of each kind, and the control."""
    asked = {("component entropy", "svd", "none"), ("component output", "data-aware", "none")}
    asked |= {("unit entropy", "none", "folded"), ("both output", "data-aware", "least squares")}
    asked |= {(f"unit {rule}", "none", "least squares") for rule in ("entropy", "output", "random")}
    found = [way for way in ways if (way.chooser, way.factors, way.refit) in asked]
    return [*found, CONTROL]


def fine_tuned(lab: Laboratory, ways: dict, kept: float, epochs: int, device: str = "auto") -> tuple[pd.DataFrame, list[float]]:
    """Return (rows, accuracies before) of networks with a share `kept` of the parameters, fine-tuned on training images.

    A third of the usual learning rate, for the networks are near a good point already. The accuracies are of test images, in the order of the rows.
    """
    usual = training.recipe_for(lab.about["network"], lab.about["dataset"])
    recipe = dataclasses.replace(usual, epochs=epochs, learning_rate=usual.learning_rate / 3)
    rows, before = [], []
    for way in to_tune(ways):
        net = replace.apply_plan(lab.profile, {}) if way == CONTROL else ways[way](kept)
        before.append(training.evaluate(net, *lab.images.tensors("test")).accuracy)
        training.fit(net, lab.images, recipe, lab.seed, device, progress=False)
        # no budget was asked of the control
        budget = {"budget_kind": "dense"} if way == CONTROL else {"budget_kind": "kept", "budget": kept}
        rows.append(lab.row(net, **way._asdict(), **budget, tuned="fine-tuned", finetuned_epochs=epochs))
    return columns.table(rows), before


def experiment(
    images: Dataset,
    model: nn.Module,
    *,
    bins: int = 32,
    kept: float = 0.2,
    drop: float = 0.01,
    calibration_images: int = 5000,
    finetune_epochs: int = 1,
    shares: Sequence[float] = SHARES,
    device: str = "auto",
    seed: int = 0,
    **about,
) -> pd.DataFrame:
    """Return all rows of the notebook: the dense network, every way at every size, at `drop`, and fine-tuned at `kept`.

    Parameters
    ----------
    images, model : a data set and a network that was trained on it.
    bins : bins of the activation histograms, at least 2.
    kept : share of the parameters of the networks that are fine-tuned, in (0, 1].
    drop : accuracy that may be lost on validation images, a share in [0, 1).
    calibration_images : training images over which activations and moments are collected, at least 2.
    finetune_epochs : passes over the training images, at least 1.
    shares : shares of the parameters, each in (0, 1].
    device : where fine-tuning runs.
    seed : of the row, of random rankings and of fine-tuning.
    about : columns of every row: dataset, network.

    Raises ValueError for a number outside its range.
    """
    checks.check_share(kept=kept)
    for share in shares:
        checks.check_share(share=share)
    checks.check_number(lambda value: 0 <= value < 1, "a share in [0, 1)", drop=drop)
    checks.check_count(finetune_epochs=finetune_epochs)
    lab = prepared(images, model, calibration_images=calibration_images, bins=bins, seed=seed, **about)
    ways = competitors(lab)
    tables = [at_all_sizes(lab, ways, shares), within_drop(lab, ways, drop)]
    tables.append(fine_tuned(lab, ways, kept, finetune_epochs, device)[0])
    return together(lab.dense_row(), *tables)


def together(dense: dict, *tables: pd.DataFrame) -> pd.DataFrame:
    """Return the row of the dense network and tables of rows as one table."""
    return columns.table([dense, *(row for table in tables for row in table.to_dict("records"))])


# ---- its figures and tables ------------------------------------------------------------------------------------------

EQUAL = (0.1, 0.2, 0.3)  # sizes of the tables
WRITTEN = {"none": "nothing", "folded": "folded", "least squares": "refitted"}
ENERGY = {"every layer": "arsvd, every layer", "hidden layers": "arsvd, classifier dense"}
FORMS = {"svd": "components, plain factors", "data-aware": "components, data-aware factors"}
FORMS |= {"folded": "units, mean folded", "refitted": "units, next layer refitted"}


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with what readers see: the ranking as `chooser`, and `written`, the factors or what was done about units."""
    chooser = table["chooser"].where(table["chooser"] != "energy", table["scope"].map(ENERGY))
    chooser = chooser.replace({ONE_RANGE: "unit entropy, one range"})
    units_alone = table["stored_as"] == "units"
    return table.assign(chooser=chooser, written=table["factors"].where(~units_alone, table["refit"].map(WRITTEN)))


def rankings(table, title="test images"):
    """Return accuracy against parameters kept for what notebook 03 prunes: components above, units below.

    `table`: result rows as for `frontier`; rows of the chooser "dense" give the dotted line. What loses more than 40 points is cut off.
    """
    drawn = named(table[(table["budget_kind"] == "kept") & (table["tuned"] == "none")])
    drawn = drawn[drawn["written"].isin(FORMS)]
    panel = pd.Categorical(drawn["written"].map(FORMS), list(FORMS.values()))
    drawn = drawn.assign(panel=panel).sort_values("panel", kind="stable")
    baseline = table.loc[table["chooser"] == "dense", "accuracy"].mean()
    return frontier(drawn, "accuracy", baseline, title, max(baseline - 0.4, 0), panels="panel", columns=2)


def histograms(values, bins):
    """Return the histogram of each entry of `values`, {title: 1-D numbers}, in `bins` bins between its own bounds."""
    figure, axes = canvas(len(values), width=2.9, height=2.6)
    for axis, (title, numbers) in zip(axes, values.items()):
        axis.hist(np.asarray(numbers), bins=bins, color=COLOURS["energy"])
        axis.set(xlabel="activation", yscale="log", ylim=(0.7, 1.5 * len(numbers)))
        axis.set_title(title, fontsize="small")
    axes[0].set_ylabel("images")
    return figure


def ranking(table, stays):
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
            axis.plot(part["component"], part["key"], "o", color=COLOURS["entropy"], ms=3.5, mew=0.8, label=label, **style)
        axis.set(xlabel="component", yscale="log", title=f"{name}: {min(rank, len(mine))} of {len(mine)} stay")
    axes[0].set_ylabel("score (nats)")
    axes[-1].legend()
    return figure


def at(table: pd.DataFrame, kind: str, budget: float) -> pd.DataFrame:
    """Return the rows of one budget that were not fine-tuned."""
    return table[(table["budget_kind"] == kind) & (table["budget"] == budget) & (table["tuned"] == "none")]


def tables(table):
    """Return {heading: Markdown table} of the published rows, as the gallery shows them."""
    table = named(in_points(table))
    best = {"low rank": "data-aware", "both": "data-aware", "units": "refitted"}
    choosers = ["component entropy", "component output", "arsvd, classifier dense"]
    choosers += ["unit entropy", "unit random", "unit output"]
    choosers += ["both entropy", "both output"]
    mine = table[table["written"] == table["stored_as"].map(best)]
    small, equal, spread = [], [], []
    for key, part in mine.groupby(["dataset", "network"]):
        by = {name: part[part["chooser"] == name] for name in choosers}
        drop = [at(by[name], "drop", 0.01) for name in choosers]
        small.append([*key, *(f"{mean_and_spread(rows['parameters_kept'])} ({-rows['lost'].mean():+.1f})" for rows in drop)])
        cells = []
        for name in choosers:
            sizes = [at(by[name], "kept", kept)["accuracy"].mean() for kept in EQUAL]
            cells.append(" / ".join(f"{value:.1f}" for value in sizes))
        equal.append([*key, *cells])
    for key, part in table.groupby(["dataset", "network", "chooser", "written"]):
        sizes = [at(part, "kept", kept)["accuracy"] for kept in EQUAL]
        if all(len(values) for values in sizes):
            spread.append([*key, *(mean_and_spread(values) for values in sizes)])
    where = ["data set", "network"]
    return {
        "Entropy pruning: parameters kept at no more than one point lost": markdown([*where, *choosers], small),
        "Entropy pruning: accuracy with 10 / 20 / 30 % kept": markdown([*where, *choosers], equal),
        "Entropy pruning: accuracy of every ranking, with spread": markdown(
            [*where, "ranking", "written as", "10 % kept", "20 % kept", "30 % kept"], spread
        ),
    }

ONE_EACH = True  # a figure for each data set and network


def usable(table):
    """Return which rows (a boolean Series) `figure` can draw."""
    return (table["budget_kind"] == "kept") & (table["tuned"] == "none") & named(table)["written"].isin(FORMS)


figure = rankings
