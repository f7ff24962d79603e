"""The experiment of chapter 04: DDLR and Net-Trim over a network, what may follow them, and what competes with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from torch import nn

from lowrank_utils.factors import ddlr_network, replace
from lowrank_utils.factors.ddlr import Solution
from lowrank_utils.factors.program import RANK_TOLERANCE
from lowrank_utils.lab import columns, finetuning, score
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network.profile import Profile, plan_cost
from lowrank_utils.network.statistics import collect_activations
from lowrank_utils.ranks import components, rules, units
from lowrank_utils.ranks import epsilons as epsilons_of
from lowrank_utils.workbook import contest
from lowrank_utils.workbook import laboratory as laboratories

OWNER = "04_ddlr"  # the notebook of the rows
SHARES = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.6)  # sizes at which all methods are compared
CUT = {"DDLR": 0.05, "Net-Trim": 0.01}  # share of the largest value below which a fixed cut sets to zero
TRAINED = (0.1, 0.2)  # those of networks that are fine-tuned, or trained from scratch
UNITS_FIRST = (0.7, 0.5, 0.35)  # shares of the parameters that the removal of units leaves


@dataclass(frozen=True)
class Laboratory(contest.Tested):
    """What the networks of this chapter are made from and measured with.

    ``profile`` has the calibration images of refits and data-aware factors, ``samples`` those of the convex program;
    ``layers`` are the linear layers, the last of them the ``classifier``; ``convolutions`` stay dense; ``options`` go to the solver.
    """

    samples: Profile
    layers: list[str]
    convolutions: list[str]
    options: dict

    @property
    def classifier(self) -> str:
        return self.layers[-1]

    def row(self, net: nn.Module, **columns) -> dict:
        """Return a result row of a network, on test images, with its accuracy on validation images beside it."""
        known = {} if "valid_accuracy" in columns else {"valid_accuracy": self.valid(net)}
        return super().row(net, **known | columns)

    def hidden(self, solutions: dict[str, Solution]) -> dict:
        """Return the solutions without the classifier's, which then stays dense."""
        return {name: found for name, found in solutions.items() if name != self.classifier}


def laboratory(
    images: Dataset,
    model: nn.Module,
    *,
    samples: int,
    calibration_images: int,
    options: dict,
    controls: bool = False,
    **about,
) -> Laboratory:
    """Return the `Laboratory` of a trained network: `samples` and `calibration_images` of its training images, solver `options`.

    `about` says what every row is about: dataset, network, seed. With `controls` it has corrupted test images.
    """
    base = laboratories.laboratory(images, model, calibration_images=calibration_images, notebook=OWNER, **about)
    read = base.profile
    linear = [name for name in read.factorable if isinstance(model.get_submodule(name), nn.Linear)]
    convolutions = [name for name in read.factorable if name not in linear]
    solving = read.but(calibration=images.tensors("train", samples)[0])
    sets = contest.corrupted(images) if controls else {}
    return Laboratory(images, read, base.about, solving, linear, convolutions, options, sets=sets)


def steps(lab: Laboratory, answers: dict, epsilon: float) -> tuple[list[dict], pd.DataFrame]:
    """Return (result rows, what they keep of the constraints) of what may follow the program: cut, refit, reweight, cascade.

    `answers`, ``{layer: Solution}`` at this `epsilon`. The second table has one row a variant: ranks, percent kept,
    accuracy on validation images, whether the constraints hold on the samples, and by how much they fail.
    """
    posed = lab.hidden(answers)
    cascade = lab.hidden(ddlr_network.solve_network(lab.samples, epsilon, cascade=True, **lab.options))
    free = lab.hidden(ddlr_network.solve_network(lab.samples, epsilon, free_bias=True, **lab.options))
    lighter = {name: reweighted(lab, name, found, epsilon) for name, found in posed.items()}
    cut, refit = {"cut": CUT["DDLR"]}, {"cut": CUT["DDLR"], "refit": True}
    variants = {
        "as posed": (posed, {}, {}),
        "cascade": (cascade, {}, {"program": "cascade"}),
        "free bias": (free, {}, {"program": "free bias"}),
        "cut 5 %": (posed, cut, {}),
        "cut 5 %, refit": (posed, refit, {"refit": "least squares"}),
        "cut 5 %, refit after the ReLU": (posed, refit | {"relu": True}, {"refit": "relu-aware"}),
        "reweighted": (lighter, {}, {"program": "reweighted"}),
        "reweighted, cut 5 %, refit": (lighter, refit, {"program": "reweighted", "refit": "least squares"}),
    }
    rows, told = [], []
    for name, (solutions, how, about) in variants.items():
        net, plan = ddlr_network.low_rank(lab.profile, solutions, **how)
        about = {"program": "as posed"} | about
        if "cut" in how:
            about |= {"cut": "fixed", "cut_below": how["cut"]}
        rows.append(lab.row(net, **_ddlr(budget_kind="epsilon", budget=epsilon, epsilon=epsilon, **about)))
        line = {
            "variant": name,
            "ranks": " ".join(str(plan.get(layer, "-")) for layer in lab.layers),
            "kept %": 100 * rows[-1]["parameters_kept"],
            "valid accuracy %": 100 * rows[-1]["valid_accuracy"],
        }
        told.append(line | _constraints_kept(lab, net, dict.fromkeys(solutions, epsilon)))
    return rows, pd.DataFrame(told).set_index("variant")


def reweighted(lab: Laboratory, name: str, start: Solution, epsilon: float) -> Solution:
    """Return the solution of one layer after one round of reweighting, from its plain solution `start`."""
    x, y, relu = ddlr_network.layer_data(lab.samples, name)
    return ddlr_network.reweighted(x, y, epsilon, relu, start=start, rounds=1, **lab.options)


def _ddlr(**columns):
    return {"chooser": "DDLR", "factors": "convex", "scope": "hidden layers", "stored_as": "low rank"} | columns


def _constraints_kept(lab, net, asked):
    on_samples = ddlr_network.constraints(lab.samples, net, asked, tolerance=1e-5)
    own_inputs = ddlr_network.constraints(lab.profile, net, asked, inputs_of=net)
    return {
        "feasible": bool(on_samples["feasible"].all()),
        "error": on_samples["error"].max(),
        "sign": on_samples["sign"].max(),
        "error, compressed inputs": own_inputs["error"].max(),
    }


def solve_all(lab: Laboratory, epsilons: Sequence[float], answers: dict, trimmed: dict) -> None:
    """Solve both programs, DDLR and Net-Trim, at every epsilon that `answers` and `trimmed` do not have; they take them in."""
    for epsilon in epsilons:
        if epsilon not in answers:
            answers[epsilon] = ddlr_network.solve_network(lab.samples, epsilon, **lab.options)
            trimmed[epsilon] = ddlr_network.solve_network(lab.samples, epsilon, penalty="l1", **lab.options)


def at_epsilons(lab: Laboratory, answers: dict, trimmed: dict, besides: Sequence[float] = ()) -> list[dict]:
    """Return the rows of both programs as posed at each epsilon: every layer under the program, and the classifier dense.

    `answers` and `trimmed`, {epsilon: {layer: Solution}} of DDLR and Net-Trim, whose non-zeros are counted with and without indices;
    `besides`, epsilons of which `steps` has written DDLR with the classifier dense.
    """
    rows = []
    for epsilon, solutions in answers.items():
        about = {"program": "as posed", "budget_kind": "epsilon", "budget": epsilon, "epsilon": epsilon}
        for scope, found in (("every layer", solutions), ("hidden layers", lab.hidden(solutions))):
            if scope == "every layer" or epsilon not in besides:
                net, _ = ddlr_network.low_rank(lab.profile, found)
                rows.append(lab.row(net, **_ddlr(scope=scope, **about)))
        for scope, found in (("every layer", trimmed[epsilon]), ("hidden layers", lab.hidden(trimmed[epsilon]))):
            net = ddlr_network.sparse(lab.profile, found)
            counts = ddlr_network.stored(net)
            for stored_as, kind in (("non-zeros", "non-zeros"), ("sparse", "with indices")):
                size = dict.fromkeys(("stored", "parameters_kept"), counts[kind] / lab.size)
                more = {"chooser": "Net-Trim", "factors": "none", "scope": scope, "stored_as": stored_as}
                rows.append(lab.row(net, **about, **more, **size))
    return rows


def by_layer(lab: Laboratory, answers: dict) -> list[dict]:
    """Return the rows of DDLR with an epsilon for each layer, as many parameters as one epsilon for all takes at most.

    The choice is that of `epsilons.choose`, on unlabelled calibration images, once with every layer under the program and once with
    the classifier dense. The column plan holds the epsilons.
    """
    rows = []
    for scope, names in (("every layer", lab.layers), ("hidden layers", lab.layers[:-1])):
        options = epsilons_of.layer_options(lab.profile, answers, names)
        for epsilon, solutions in answers.items():
            alike, _ = ddlr_network.low_rank(lab.profile, {name: solutions[name] for name in names})
            found = epsilons_of.choose(lab.profile, answers, options, score.parameters(alike))
            net, _ = ddlr_network.low_rank(lab.profile, found.solutions)
            about = _ddlr(scope=scope, program="epsilon by layer", budget_kind="epsilon", budget=epsilon)
            about |= {"plan": json.dumps(found.epsilons), "predicted_rise": found.damage, "gap": found.gap}
            rows.append(lab.row(net, **about))
    return rows


def cut_to(lab: Laboratory, answers: dict, kept: float, kind: str, refit: bool) -> list[tuple]:
    """Return (network, epsilon, parameters) of every epsilon whose answer, classifier dense, can be cut to a share `kept`.

    `kind` as in `ddlr_network.cut_for`: "low_rank", "non-zeros" or "indices". An answer that is smaller without a cut is left out.
    """
    made = []
    for epsilon, solutions in answers.items():
        found = lab.hidden(solutions)
        try:
            cut = ddlr_network.cut_for(lab.profile, found, kept, kind=kind)
        except ValueError:  # no cut is enough
            continue
        if cut <= RANK_TOLERANCE:  # smaller than this size as it is
            continue
        if kind == "low_rank":
            net, _ = ddlr_network.low_rank(lab.profile, found, cut=cut, refit=refit)
            made.append((net, epsilon, score.parameters(net)))
        else:
            net = ddlr_network.sparse(lab.profile, found, cut=cut, refit=refit)
            counts = ddlr_network.stored(net)
            made.append((net, epsilon, counts["non-zeros" if kind == "non-zeros" else "with indices"]))
    return made


CONVEX = (("DDLR", "low_rank", "low rank"), ("Net-Trim", "non-zeros", "non-zeros"), ("Net-Trim", "indices", "sparse"))


def convex_rows(lab: Laboratory, answers: dict, trimmed: dict, kept: float) -> list[dict]:
    """Return the rows of DDLR and Net-Trim cut to a share `kept`, with and without a refit; epsilon is the best on validation images."""
    ways = [(*program, refit) for program in CONVEX for refit in (False, True)]
    found = [best_cut(lab, answers, trimmed, kept, *way) for way in ways]
    return [lab.row(net, **about) for net, about in filter(None, found)]


def best_cut(
    lab: Laboratory, answers: dict, trimmed: dict, kept: float, chooser: str, kind: str, stored_as: str, refit: bool
) -> tuple[nn.Module, dict] | None:
    """Return (network, columns of its row) of a program cut to a share `kept`, its epsilon the best on validation images; None where no cut is enough."""
    made = cut_to(lab, answers if chooser == "DDLR" else trimmed, kept, kind, refit)
    if not made:
        return None
    net, epsilon, count = max(made, key=lambda one: lab.valid(one[0]))
    about = _ddlr(chooser=chooser, factors="convex" if chooser == "DDLR" else "none", stored_as=stored_as)
    about |= {"program": "as posed", "cut": "to budget", "refit": "least squares" if refit else "none"}
    about |= {"budget_kind": "kept", "budget": kept, "epsilon": epsilon}
    # a sparse network is stored densely here; what counts is what its rows of non-zeros would need
    return net, about | {"stored": count / lab.size, "parameters_kept": count / lab.size}


@dataclass(frozen=True)
class Rivals:
    """What takes a size as given: a profile with classifier and convolutions dense, and networks with units removed."""

    whole: Profile
    plain: dict
    bases: dict
    fewer: dict


def rivals(lab: Laboratory) -> Rivals:
    """Return what the rivals of the convex programs share over all sizes."""
    read, dense = lab.profile, (lab.classifier, *lab.convolutions)
    calibration = read.needed_calibration("the activations of units need")
    order = units.rank_units(read, collect_activations(lab.model, calibration), "output")
    # channels go last
    order = order.sort_values("layer", key=lambda of: of.isin(lab.convolutions), kind="stable")
    fewer = {}
    for way in UNITS_FIRST:
        stay = units.units_that_stay(read, order, way, resource="parameters")
        net = units.remove_units(read, stay, moments=read.moments)
        less = Profile(net, read.calibration, dense=dense)
        fewer[way] = less, replace.decompose_layers(less, less.factorable, "data-aware")
    return Rivals(
        read.but(dense=dense),
        replace.decompose_layers(read, lab.layers),
        replace.decompose_layers(read, lab.layers, "data-aware"),
        fewer,
    )


def rival_rows(lab: Laboratory, others: Rivals, kept: float) -> list[dict]:
    """Return the rows of ARSVD, and of data-aware, ReLU-aware and Fisher-weighted factors, at a share `kept`; none where it is out of reach."""
    read = others.whole
    if kept < rules.least_kept(read, "parameters"):
        return []
    about = {"scope": "hidden layers", "budget_kind": "kept", "budget": kept, "stored_as": "low rank"}

    def row(net: nn.Module, chooser, factors, **more):
        return lab.row(net, chooser=chooser, factors=factors, **about | more)

    plan = rules.plan_at_size(read, kept, rule="energy", resource="parameters")
    rows = [row(replace.apply_plan(read, plan, factors=others.plain, resource="parameters"), "energy", "svd")]
    plan = _by_output(read, kept, others.bases)
    for method in ("data-aware", "relu-aware", "fisher-weighted"):
        factors = others.bases if method == "data-aware" else method
        net = replace.apply_plan(read, plan, factors=factors, resource="parameters")
        rows.append(row(net, "component output", method))
    tries = _units_first(lab, others, kept)
    if tries:
        best = max(tries, key=lab.valid)
        rows.append(row(best, "both output", "fisher-weighted", stored_as="both", refit="least squares"))
    return rows


def _by_output(read, kept, bases):
    moments = read.moments_of(bases)
    return components.components_plan(read, kept, rule="output", resource="parameters", factors=bases, moments=moments)


def _units_first(lab, others, kept):
    tries = []
    for way, (read, bases) in others.fewer.items():
        share = kept * lab.size / plan_cost(read, {}, "parameters")
        if rules.least_kept(read, "parameters") <= share and kept < way:
            plan = _by_output(read, min(share, 1.0), bases)
            tries.append(replace.apply_plan(read, plan, factors="fisher-weighted", resource="parameters"))
    return tries


def control_rows(
    lab: Laboratory,
    others: Rivals,
    answers: dict,
    trimmed: dict,
    shares: Sequence[float] = SHARES,
    steps: int = finetuning.STEPS,
) -> list[dict]:
    """Return the rows of the controls, the classifier dense: what is simpler, and what training after the cut gives.

    Random ranks in Fisher-weighted factors at each of `shares`. At those of them in `TRAINED` also both programs cut and refitted, our factors and
    random ranks, all fine-tuned for `steps` steps, and the thin layers of our plan trained from scratch.
    """
    read, rows = others.whole, []
    least = rules.least_kept(read, "parameters")
    for kept in [share for share in shares if share >= least]:
        about: dict = {"scope": "hidden layers", "budget_kind": "kept", "budget": kept, "stored_as": "low rank"}
        plans = {
            "component output": _by_output(read, kept, others.bases),
            "random": lab.random_plan(read, kept, "hidden layers"),
        }
        nets = {
            chooser: replace.apply_plan(read, plan, factors="fisher-weighted", resource="parameters")
            for chooser, plan in plans.items()
        }
        ours: dict[str, dict] = {
            chooser: about | {"chooser": chooser, "factors": "fisher-weighted"} for chooser in nets
        }
        rows.append(lab.row(nets["random"], **ours["random"]))
        if kept not in TRAINED:
            continue
        rows += [lab.fine_tuned(nets[chooser], steps, **ours[chooser]) for chooser in nets]
        for program in (CONVEX[0], CONVEX[2]):  # the indices of sparse layers are counted
            found = best_cut(lab, answers, trimmed, kept, *program, refit=True)
            if found is not None:
                rows.append(lab.fine_tuned(found[0], steps, keep_zeros=program[0] == "Net-Trim", **found[1]))
        rows.append(lab.from_scratch(plans["component output"], **about | {"chooser": "component output"}))
    return rows


def at_sizes(
    lab: Laboratory, answers: dict, trimmed: dict, shares: Sequence[float] = SHARES, others: Rivals | None = None
) -> list[dict]:
    """Return the rows of every method at every share of the parameters; what cannot be made so small is left out."""
    others = others or rivals(lab)
    return [
        row for kept in shares for row in (*convex_rows(lab, answers, trimmed, kept), *rival_rows(lab, others, kept))
    ]


def experiment(
    images: Dataset,
    model: nn.Module,
    *,
    epsilon: float = 0.1,
    epsilons: Sequence[float] = (0.05, 0.1, 0.2, 0.3),
    samples: int = 500,
    calibration_images: int = 500,
    options: dict | None = None,
    shares: Sequence[float] = SHARES,
    controls: bool = False,
    training_steps: int = finetuning.STEPS,
    **about,
) -> pd.DataFrame:
    """Return all result rows of the notebook: the steps after the program, both programs as posed, and every method at equal size.

    Parameters
    ----------
    images, model : a data set and a network trained on it.
    epsilon : relative error of each layer's outputs for the steps; `epsilons`, those among which each size chooses.
    samples, calibration_images : training images that the program, and that refits and data-aware factors see.
    options : of `ddlr.solve`; shares : sizes, as shares of the parameters; about : dataset, network, seed.
    controls, training_steps : whether `control_rows` are there, and for how many steps these are fine-tuned.
    """
    seen = {"samples": samples, "calibration_images": calibration_images, "options": options or {}}
    lab = laboratory(images, model, controls=controls, **seen, **about)
    answers = {epsilon: ddlr_network.solve_network(lab.samples, epsilon, **lab.options)}
    trimmed = {epsilon: ddlr_network.solve_network(lab.samples, epsilon, penalty="l1", **lab.options)}
    return compared(lab, answers, trimmed, epsilons, steps(lab, answers[epsilon], epsilon)[0], shares, training_steps)


def compared(
    lab: Laboratory,
    answers: dict,
    trimmed: dict,
    epsilons: Sequence[float],
    step_rows: list[dict],
    shares: Sequence[float] = SHARES,
    training_steps: int = finetuning.STEPS,
) -> pd.DataFrame:
    """Return all result rows, from answers at one epsilon and the rows of its `steps`; solves both programs at the other `epsilons`.

    `answers` and `trimmed`, {epsilon: {layer: Solution}} of DDLR and Net-Trim, take in what is solved. A laboratory with corrupted test images
    has `control_rows`, too.
    """
    known = list(answers)
    solve_all(lab, epsilons, answers, trimmed)
    rows = [lab.dense_row(), *step_rows, *at_epsilons(lab, answers, trimmed, besides=known), *by_layer(lab, answers)]
    others = rivals(lab)
    rows += at_sizes(lab, answers, trimmed, shares, others)
    rows += control_rows(lab, others, answers, trimmed, shares, training_steps) if lab.sets else []
    return columns.table(rows)
