"""The experiment of chapter 03: units and components removed in every order, at every size."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from lowrank_utils.factors import replace, svd
from lowrank_utils.lab import columns, finetuning, score
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network.modules import copied
from lowrank_utils.network.profile import Profile
from lowrank_utils.network.statistics import Activations, collect_activations
from lowrank_utils.ranks import components, rules, units
from lowrank_utils.workbook import contest
from lowrank_utils.workbook import laboratory as laboratories
from lowrank_utils.workbook.plots import frontier

NOTEBOOK = "03_entropy_pruning"
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
    found += [
        Way(name, "none", "hidden layers", "units", refit, name.removeprefix("unit "))
        for name in rankings
        for refit in REFITS
    ]
    found += [
        Way(f"both {rule}", "data-aware", "every layer", "both", "least squares", rule)
        for rule in ("entropy", "output")
    ]
    return found


TAUGHT = (
    *(Way(f"component {rule}", "data-aware", rule=rule) for rule in ("entropy", "output", "random")),
    *(Way(f"unit {rule}", "none", "hidden layers", "units", "least squares", rule) for rule in ("entropy", "output", "random")),
)  # fmt: skip


def ways_of(rankings: str) -> tuple[Way, ...]:
    """Return the ways that a run compares: "six", those of the lesson, or "all", those of the gallery.

    >>> len(ways_of("six")), len(ways_of("all"))
    (6, 31)

    Raises ValueError for another word.
    """
    if rankings not in ("six", "all"):
        raise ValueError(f'rankings={rankings!r} is unknown; give "six" or "all"')
    return TAUGHT if rankings == "six" else tuple(ways())


@dataclass(frozen=True)
class Laboratory(laboratories.Laboratory):
    """What the networks of this chapter are made from and measured with.

    ``activations`` of the hidden units, by layer, over the calibration images; ``orders`` of hidden units by name; ``seed``
    of random orders and of fine-tuning.
    """

    activations: dict[str, Activations]
    orders: dict[str, pd.DataFrame]
    seed: int

    @cached_property
    def hidden(self) -> Profile:
        """The profile with the classifier dense."""
        return self.profile.but(dense=(self.profile.order[-1],))

    @cached_property
    def bases(self) -> dict[str, dict[str, svd.Factors]]:
        """Plain and data-aware factors of all layers: one decomposition serves every rank."""
        return _bases(self.profile)

    @cached_property
    def halfway(self) -> dict[tuple[str, float], tuple[Profile, dict]]:
        """(profile, factors) of networks from which units were removed, by the rule and the share of the parameters left."""
        found = {}
        for rule in ("entropy", "output"):
            for share in HALFWAY:
                fewer = Profile(fewer_units(self, f"unit {rule}", share), self.profile.calibration)
                found[rule, share] = fewer, _bases(fewer)
        return found

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
    return Laboratory(images, read, base.about, activations, orders, seed)


def _bases(read):
    return {method: replace.decompose_layers(read, read.factorable, method) for method in svd.METHODS}


def fewer_units(lab: Laboratory, order: str, share: float, refit: str = "least squares") -> nn.Module:
    """Return the network with a share of its parameters, hidden units dropped in the order of that name."""
    stay = units.units_that_stay(lab.profile, lab.orders[order], share, resource="parameters")
    fill = {"folded": {"activations": lab.activations}, "least squares": {"moments": lab.profile.moments}}
    return units.remove_units(lab.profile, stay, **fill.get(refit, {}))


def plan_of(lab: Laboratory, way: Way, share: float, start: tuple[Profile, dict] | None = None) -> dict:
    """Return the plan of a way that drops components, at a share of the dense network's parameters.

    `start`, (profile, factors by method) of a network with units removed; by default the whole network.
    """
    read, bases = start or (lab.profile, lab.bases)
    share = min(1.0, share * lab.size / score.parameters(read.model))
    if way.chooser == "energy":
        chosen = lab.hidden if way.scope == "hidden layers" else read
        return rules.plan_at_size(chosen, share, rule="energy", resource="parameters")
    more = {"factors": bases[way.factors], "moments": read.moments, "seed": lab.seed}
    return components.components_plan(read, share, rule=way.rule, resource="parameters", **more)


def fewer_components(lab: Laboratory, way: Way, share: float, start: tuple[Profile, dict] | None = None) -> nn.Module:
    """Return the network with a share of its parameters, singular components dropped; `start` as for `plan_of`."""
    read, bases = start or (lab.profile, lab.bases)
    return replace.apply_plan(read, plan_of(lab, way, share, start), factors=bases[way.factors], resource="parameters")


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


TUNED = (TAUGHT[0], TAUGHT[3])  # entropy of components, entropy of units
TUNED_SHARES = (0.05, 0.1, 0.2)  # sizes for which the gallery has controls
RATES = (1e-3, 3e-3)  # two of the gallery's rates, for the lesson trains seven networks


def fine_tuned(
    lab: Laboratory,
    steps: int = finetuning.STEPS,
    chosen: Sequence[Way] = TUNED,
    shares: Sequence[float] = TUNED_SHARES,
    device: str = "auto",
    rates: Sequence[float] = RATES,
    distilled: bool = False,
) -> list[dict]:
    """Return the rows of networks that were trained on for `steps` steps after they were cut, and of the dense one, trained on alike.

    One row a way and share of the parameters, and with `distilled` another one, trained towards the dense network's answers too. The
    rate is chosen from `rates` on validation images.
    """
    sized = [(way, {"budget_kind": "kept", "budget": share}) for way in chosen for share in shares]
    rows = []
    for way, size in [*sized, (CONTROL, {"budget_kind": "dense"})]:
        small = build(lab, way, size.get("budget", 1.0))
        how: dict = {"steps": steps, "rates": rates, "valid_images": contest.JUDGES, "seed": lab.seed, "device": device}
        for tuned in contest.TRAINED if distilled else contest.TRAINED[:1]:
            teacher = lab.model if tuned == "distilled" else None
            found = finetuning.fine_tune(small, lab.images, teacher=teacher, **how)
            more = {"tuned": tuned, "steps": steps, "rate": found.rate, "tuned_seconds": found.seconds}
            rows.append(lab.measured(found.model, way, **size, **more, note=found.note or None))
    return rows


def experiment(
    lab: Laboratory,
    *,
    rankings: str = "six",
    drop: float = 0.01,
    shares: Sequence[float] = SHARES,
    finetune_steps: int = finetuning.STEPS,
    device: str = "auto",
) -> pd.DataFrame:
    """Return all result rows of the notebook: the dense network, every way at every size and at a drop of accuracy, and fine-tuned.

    Parameters
    ----------
    lab : of `laboratory`.
    rankings : "six" or "all", as for `ways_of`.
    drop : accuracy that may be lost on validation images, a share in [0, 1).
    shares : sizes, as shares of the parameters in (0, 1].
    finetune_steps : training steps at each rate for the networks of `fine_tuned`, at least 1; their sizes are those of
        `TUNED_SHARES` that are among `shares`. With all rankings they have the rates of the gallery's controls, and are distilled too.
    """
    chosen = ways_of(rankings)
    searched = [way for way in chosen if (way.stored_as, way.refit) != ("units", "none")]
    rows = [lab.dense_row(), *at_sizes(lab, chosen, shares), *smallest(lab, drop, searched)]
    tuned = [share for share in TUNED_SHARES if share in shares]
    more: dict = {"rates": finetuning.RATES, "distilled": True} if rankings == "all" else {}
    return columns.table(rows + fine_tuned(lab, finetune_steps, shares=tuned, device=device, **more))


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
