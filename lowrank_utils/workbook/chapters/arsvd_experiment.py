"""The experiment of chapter 02: every rank rule at every size, with plain and data-aware factors, and its controls."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from torch import nn

from lowrank_utils import checks
from lowrank_utils.factors import replace, svd
from lowrank_utils.lab import columns, finetuning
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network.profile import Profile
from lowrank_utils.ranks import rules as rank_rules
from lowrank_utils.workbook import contest, laboratory

NOTEBOOK = "02_arsvd"
SHARES = (0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6)  # sizes at which the rules are compared
TRAINED = (0.1, 0.2)  # those of networks that are fine-tuned, or trained from scratch
CHOSEN = ("energy", "fixed", "random")  # whose networks are fine-tuned


@dataclass(frozen=True)
class Laboratory(contest.Tested):
    """The network of this chapter, which layers may be cut, and factors of every rank."""

    @cached_property
    def scopes(self) -> dict[str, Profile]:
        """A profile for each scope: every fully connected layer, and those but the last one."""
        last = self.profile[-1].name
        return {"every layer": self.profile, "hidden layers": self.profile.but(dense=(*self.profile.dense, last))}

    @cached_property
    def bases(self) -> dict[str, dict[str, svd.Factors]]:
        """Plain and data-aware factors of all layers: one decomposition serves every rank."""
        return {m: replace.decompose_layers(self.profile, self.profile.factorable, m) for m in svd.METHODS}

    def small(self, plan: dict, factors: str) -> nn.Module:
        """Return the network under a plan, with the named factors."""
        return replace.apply_plan(self.profile, plan, factors=self.bases[factors], resource="parameters")

    def dense_row(self, **columns) -> dict:
        """Return the row of the dense network, with its times and its accuracy on validation images."""
        return super().dense_row(**{"valid_accuracy": self.valid(self.model)} | columns)

    def measured(self, plan: dict, factors: str, **columns) -> dict:
        """Return the row of the network under a plan, with its accuracy on validation images."""
        net = self.small(plan, factors)
        more = {"valid_accuracy": self.valid(net), "plan": json.dumps(plan), "stored_as": "low rank"}
        return self.row(net, factors=factors, **more, **columns)


def prepared(
    images: Dataset, model: nn.Module, *, calibration_images: int, controls: bool = False, **about
) -> Laboratory:
    """Return the `Laboratory` of a trained network; `about` is what every row says: dataset, network, seed.

    Convolutions stay dense: ARSVD is about fully connected layers. With `controls` it has corrupted test images.
    """
    made = laboratory.laboratory(images, model, calibration_images=calibration_images, notebook=NOTEBOOK, **about)
    kernels = [layer.name for layer in made.profile if layer.positions > 1]
    read = made.profile.but(dense=kernels) if kernels else made.profile
    return Laboratory(made.images, read, made.about, sets=contest.corrupted(images) if controls else {})


def at_all_sizes(lab: Laboratory, scope: str, shares: tuple = SHARES) -> pd.DataFrame:
    """Return rows of each rule and of random ranks at each share of the parameters that can be reached, and of EVBMF at its own size.

    Parameters: `scope`, "every layer" or "hidden layers"; every plan is written with plain and with data-aware factors.
    """
    own = rank_rules.threshold_plan(lab.scopes[scope], rule="evbmf", resource="parameters")
    plans: list[tuple[str, dict, dict]] = [("evbmf", {"budget_kind": "own"}, own)]
    for rule in (*rank_rules.RULES, "random"):
        for share in reachable(lab, scope, shares):
            plans.append((rule, {"budget_kind": "kept", "budget": share}, plan_of(lab, scope, rule, share)))
    return columns.table(
        [
            lab.measured(plan, factors, chooser=rule, scope=scope, **budget)
            for rule, budget, plan in plans
            for factors in svd.METHODS
        ]
    )


def reachable(lab: Laboratory, scope: str, shares: Sequence[float]) -> list[float]:
    """Return those of `shares` of the parameters that rank 1 in every layer of a scope allows."""
    least = rank_rules.least_kept(lab.scopes[scope], "parameters")
    return [share for share in shares if share >= least]


def plan_of(lab: Laboratory, scope: str, rule: str, kept: float) -> dict:
    """Return the plan of a rank rule, or of "random" ranks, at a share `kept` of the parameters."""
    read = lab.scopes[scope]
    if rule == "random":
        return lab.random_plan(read, kept, scope)
    return rank_rules.plan_at_size(read, kept, rule=rule, resource="parameters")


def within_drop(lab: Laboratory, drop: float) -> tuple[pd.DataFrame, list[rank_rules.AdaptiveSearch]]:
    """Return (rows, searches) of the smallest threshold that loses at most `drop` on validation images, timed.

    One search for each scope, rule and kind of factors, in the order of the rows. `drop` is a share: 0.01 is one point.
    """
    rows, searches = [], []
    for scope, read in lab.scopes.items():
        for rule in rank_rules.RULES:
            for factors in svd.METHODS:
                began = time.perf_counter()
                found = rank_rules.adaptive_threshold(
                    read, measure=lambda plan, factors=factors: lab.valid(lab.small(plan, factors)), drop=drop, rule=rule, resource="parameters"
                )  # fmt: skip
                about = {"seconds_to_find": time.perf_counter() - began, "evaluations": len(found.evaluations) + 1}
                about |= {"chooser": rule, "scope": scope, "budget_kind": "drop", "budget": drop}
                rows.append(lab.measured(found.plan, factors, threshold=found.threshold, timed=True, **about))
                searches.append(found)
    return columns.table(rows), searches


def at_threshold(lab: Laboratory, threshold: float) -> pd.DataFrame:
    """Return rows of the plans that keep a share `threshold` of the energy, or of the entropy, of every layer."""
    about = {"budget_kind": "threshold", "budget": threshold, "threshold": threshold}
    rows = []
    for scope, read in lab.scopes.items():
        for rule in ("energy", "entropy"):
            plan = rank_rules.threshold_plan(read, threshold=threshold, rule=rule, resource="parameters")
            rows += [lab.measured(plan, factors, chooser=rule, scope=scope, **about) for factors in svd.METHODS]
    return columns.table(rows)


def trained_on(lab: Laboratory, shares: Sequence[float] = TRAINED, steps: int = finetuning.STEPS) -> pd.DataFrame:
    """Return rows of networks that were trained after the cut, with the classifier dense, at each share of the parameters.

    Plain factors of the plans of `CHOSEN`, fine-tuned for `steps` steps, with and without distillation from the dense network; and the
    thin layers of energy's plan with fresh weights, trained as the dense network was. All see the labels of all training images; rates
    are chosen on validation images.
    """
    scope, rows = "hidden layers", []
    for share in reachable(lab, scope, shares):
        about: dict = {"scope": scope, "budget_kind": "kept", "budget": share, "stored_as": "low rank"}
        for rule in CHOSEN:
            plan = plan_of(lab, scope, rule, share)
            about_plan: dict = {"chooser": rule, "factors": "svd", "plan": json.dumps(plan)}
            small = lab.small(plan, "svd")
            rows.append(lab.fine_tuned(small, steps, **about, **about_plan))
            rows.append(_distilled(lab, small, steps, **about, **about_plan))
        rows.append(lab.from_scratch(plan_of(lab, scope, "energy", share), chooser="energy", **about))
    return columns.table(rows)


def _distilled(lab: Laboratory, net: nn.Module, steps: int, **columns) -> dict:
    # the row of a network that was fine-tuned towards the dense network's answers too
    device = next(lab.model.parameters()).device
    found = contest.fine_tuned(lab, net, steps=steps, teacher=lab.model, device=device)
    more = {"tuned": "distilled", "steps": steps, "rate": found.rate, "tuned_seconds": found.seconds}
    more |= {"valid_accuracy": lab.valid(found.model), "needs": "labels", "note": found.note or None}
    return lab.row(found.model, **columns, **more)


def experiment(
    images: Dataset,
    model: nn.Module,
    *,
    threshold: float = 0.9,
    drop: float = 0.01,
    calibration_images: int = 5000,
    shares: tuple = SHARES,
    controls: bool = False,
    steps: int = finetuning.STEPS,
    **about,
) -> pd.DataFrame:
    """Return all rows of the notebook: the dense network, every rule at every size, at `drop`, and at `threshold`.

    With `controls` also networks that were trained after the cut (`trained_on`, `steps` steps); all rows are then measured on corrupted
    test images too, and timed.

    Parameters
    ----------
    images, model : a data set and a network that was trained on it.
    threshold : share of energy or entropy that every layer keeps, in (0, 1].
    drop : accuracy that may be lost on validation images, a share in [0, 1).
    calibration_images : training images that data-aware factors see.
    shares : shares of the parameters, each in (0, 1].
    controls, steps : whether networks are trained after the cut, and for how many steps.
    about : columns of every row: dataset, network, seed.

    Raises ValueError for a number outside its range.
    """
    checks.check_share(threshold=threshold)
    for share in shares:
        checks.check_share(share=share)
    checks.check_count(steps=steps)
    lab = prepared(images, model, calibration_images=calibration_images, controls=controls, **about)
    tables = [at_all_sizes(lab, scope, shares) for scope in lab.scopes]
    tables += [within_drop(lab, drop)[0], at_threshold(lab, threshold)]
    return together(lab.dense_row(), *tables, *([trained_on(lab, steps=steps)] if controls else []))


def together(dense: dict, *tables: pd.DataFrame) -> pd.DataFrame:
    """Return the row of the dense network and tables of rows as one table."""
    return columns.table([dense, *(row for table in tables for row in table.to_dict("records"))])
