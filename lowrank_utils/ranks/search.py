"""The ranks of all layers at once, under a budget: what each option costs and is worth, and the exact answer.

Each layer has *options*: dense, or a rank in a scheme that costs less. A *curve* says what an option is worth, from the
spectrum, from errors on data, or from accuracy measured with only this layer cut. The logarithms of the curves add up over
layers, so that the best plan can be had exactly (`allocate`). ENC's own searches are in `enc`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import nn

from lowrank_utils.checks import check_count, check_share
from lowrank_utils.factors import svd
from lowrank_utils.factors.replace import apply_plan, decompose_layers
from lowrank_utils.network import inputs, unfold
from lowrank_utils.network.modules import evaluating
from lowrank_utils.network.profile import RESOURCES, LayerProfile, Plan, Profile, plan_cost
from lowrank_utils.network.unfold import Entry, parse_entry
from lowrank_utils.ranks.allocation import allocate

Values: TypeAlias = Mapping[str, np.ndarray]  # {layer: one number an option}
Tables: TypeAlias = Mapping[str, Mapping[str, Mapping[Entry | None, float]]]  # {resource: {layer: {entry: cost}}}


@dataclass(frozen=True)
class Options:
    """What one layer may become: ``entries`` of a plan (a rank, (scheme, rank), or None for dense), by rising cost in the
    first resource, and their ``costs`` (options x ``resources``). ``full``: break-even rank of each scheme."""

    name: str
    entries: tuple[Entry | None, ...]
    costs: np.ndarray
    full: dict[str | None, int]
    resources: tuple[str, ...]


@dataclass(frozen=True)
class SearchResult:
    """A plan with how it was found: predicted ``value`` (sum of log curves), ``bound`` (no plan within the budget is worth
    more; NaN where the search proves none), ``gap``, ``seconds`` of the search, ``evaluations`` (networks measured by the
    search itself), ``candidates`` (plans compared) and a ``note``."""

    plan: dict[str, Entry]
    value: float
    bound: float = np.nan
    gap: float = np.nan
    seconds: float = 0.0
    evaluations: int = 0
    candidates: int = 1
    note: str = ""
    ranked: tuple[dict[str, Entry], ...] = field(default=(), repr=False)


def rank_options(
    profile: Sequence[LayerProfile],
    resources: str | Sequence[str] = ("macs",),
    *,
    mixed: bool = False,
    floor: float = 0.1,
    multiple: int = 1,
    tables: Tables | None = None,
) -> list[Options]:
    """Return a list of `Options`, one for each layer that can be factored at less than its dense cost.

    Parameters: `profile`, of `lowrank_utils.profile`; `resources`, those that will have a budget, of ``"parameters"``, ``"macs"``
    and names of `tables`; `mixed`, whether convolutions may use every scheme or only that of their card; `floor`,
    no rank below this share of the break-even rank (single layers mislead badly at the lowest ranks; ENC takes 0.1);
    `multiple`, ranks are multiples of it (8 where latency is the goal); `tables`, ``{resource: {layer: {entry: cost}}}``
    for what must be measured, such as milliseconds: an option without an entry is left out, and None is the dense layer.

    Raises ValueError for unknown resources, a floor that is no share, and a profile without a layer to choose for.

    >>> from torch import nn
    >>> from lowrank_utils import profile
    >>> found = rank_options(profile(nn.Sequential(nn.Linear(20, 20)), input_shape=(20,)), floor=0.5)
    >>> found[0].entries, found[0].costs.ravel().tolist()
    ((5, 6, 7, 8, 9, None), [200.0, 240.0, 280.0, 320.0, 360.0, 400.0])
    """
    tables, resources = tables or {}, (resources,) if isinstance(resources, str) else tuple(resources)
    for resource in resources:
        if resource not in (*RESOURCES, *tables):
            raise ValueError(f"unknown resource {resource!r}; known: {', '.join((*RESOURCES, *tables))}")
    if floor != 0:
        check_share(floor=floor)
    check_count(multiple=multiple)
    found = []
    counted = [r for r in resources if r in RESOURCES] or ["macs"]
    for card in (card for card in profile if not card.reason):
        full, entries, costs = {}, [], []
        dense = _price(card, None, resources, tables)
        for scheme in card.costs if mixed and card.costs else [card.scheme]:
            most = min(card.break_even(r, scheme) for r in counted)
            if not most:
                continue
            full[scheme] = most
            least = max(1, int(np.ceil(floor * most)))
            for rank in range(least + -least % multiple, most + 1, multiple):
                entry = unfold.plan_entry(scheme, rank)
                cost = _price(card, entry, resources, tables)
                if np.isfinite(cost).all():
                    entries.append(entry)
                    costs.append(cost)
        if not entries:
            continue
        if not np.isfinite(dense).all():
            raise ValueError(f"the table has no cost of the dense layer {card.name!r} (entry None)")
        order = sorted(range(len(entries)), key=lambda i: costs[i])
        entries, costs = [entries[i] for i in order] + [None], [costs[i] for i in order] + [dense]
        found.append(Options(card.name, tuple(entries), np.array(costs, dtype=np.float64), full, resources))
    if not found:
        raise ValueError("no layer can be factored at less than its dense cost: " + _reasons(profile))
    return found


def _price(card, entry, resources, tables):
    # one number a resource, infinite where a table has none
    return [tables[r].get(card.name, {}).get(entry, np.inf) if r in tables else card.cost(entry, r) for r in resources]


def _reasons(profile):
    return "; ".join(f"{card.name}: {card.reason or 'no rank pays'}" for card in profile)


# Curves ---------------------------------------------------------------------------------------------------------------


def energy(profile: Sequence[LayerProfile], options: Sequence[Options]) -> dict[str, np.ndarray]:
    """Return ``{layer: y}``, ENC's energy curve of each option: y(r) = (S(r) - S(1)) / (S(r_max) - S(1)).

    S(r) is the sum of the first r singular values (not squared), r_max the break-even rank: y is 0 at rank 1 and 1 at
    r_max. The dense layer, which ENC does not consider, counts 1 as well and costs a little more. The curve compares
    ranks of one scheme only. Raises ValueError for options of several schemes and a profile without spectra. Source:
    Kim, Khan & Kyung 2019.
    """
    named, found = {card.name: card for card in profile}, {}
    for own in options:
        if len(own.full) > 1:
            raise ValueError(
                f"the energy curve cannot compare the schemes of layer {own.name!r}: {', '.join(map(str, own.full))}"
            )
        if named[own.name].singular_values is None:
            raise ValueError("this profile has no spectra; make it with spectra=True")
        sums = np.cumsum(np.sort(named[own.name].singular_values)[::-1])
        (most,) = own.full.values()
        span = sums[most - 1] - sums[0]
        ranks = np.array([parse_entry(entry)[1] for entry in own.entries if entry is not None])
        y = (sums[ranks - 1] - sums[0]) / span if span > 0 else np.ones(len(ranks))
        found[own.name] = np.append(y, 1.0)
    return found


def measured_ranks(own: Options, points: int = 6) -> dict[str | None, list[int]]:
    """Return ``{scheme: ranks}`` at which the curve of `Options` is measured: `points` of them, evenly in log rank."""
    check_count(2, points=points)
    held = {}
    for entry in own.entries:
        if entry is None:
            continue  # the dense layer
        scheme, rank = parse_entry(entry)
        held.setdefault(scheme, []).append(rank)
    return {
        scheme: sorted({min(ranks, key=lambda r: abs(r - at)) for at in np.geomspace(min(ranks), max(ranks), points)})
        for scheme, ranks in held.items()
    }


def _between(own, found):
    # {(scheme, rank): number} -> one number an option, PCHIP between measured ranks
    curves = {}
    for scheme in own.full:
        ranks = sorted(rank for known, rank in found if known == scheme)
        if ranks:
            y = [found[scheme, rank] for rank in ranks]
            curves[scheme] = (
                PchipInterpolator(ranks, y) if len(ranks) > 1 else lambda r, y=y: np.full(np.shape(r), y[0])
            )
    parsed = [parse_entry(entry) for entry in own.entries[:-1]]
    return np.array([float(curves[scheme](rank)) for scheme, rank in parsed])


def measured(
    profile: Profile,
    options: Sequence[Options],
    *,
    measure: Callable[[nn.Module], float],
    factors: str = "data-aware",
    points: int = 6,
) -> dict[str, np.ndarray]:
    """Return ``{layer: numbers}``: what `measure` says of the network with only this layer cut, for each option.

    `measure` is a function of a network, such as its accuracy or its loss on images that it was not trained on; it is
    called with the dense network first, which is the value of the dense option. Ranks between the `points` measured ones get it by
    PCHIP (monotone cubic) interpolation. Every measurement builds the network with one layer in thin `factors` (a method
    of `svd.METHODS`). ENC's accuracy curve is the accuracy over that of the dense network.

    Raises ValueError where a measurement is not finite.
    """
    dense, found = measure(profile.model), {}
    for own in options:
        numbers = {}
        for scheme, ranks in measured_ranks(own, points).items():
            base = decompose_layers(profile, {own.name: scheme}, factors)
            for rank in ranks:
                entry = unfold.plan_entry(scheme, rank)
                numbers[scheme, rank] = measure(apply_plan(profile, {own.name: entry}, factors=base, resource=None))
        if not np.isfinite([dense, *numbers.values()]).all():
            raise ValueError(f"the measurements of layer {own.name!r} hold NaN or infinity")
        found[own.name] = np.append(_between(own, numbers), dense)
    return found


def output_error(
    profile: Profile,
    options: Sequence[Options],
    *,
    factors: str = "data-aware",
    points: int | None = 6,
    metric: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, np.ndarray]:
    """Return ``{layer: e}``: each option's relative squared error of the layer's outputs on data, dense 0.

    e(r) = E|(W - W_r)(x - mean)|^2 / E|W (x - mean)|^2 over the layer's inputs x (patches of a convolution) while the
    dense network sees the calibration inputs of the profile, W_r the best of rank r by `factors`, alone and with its original inputs; PCHIP
    between `points` ranks. No accuracy is evaluated, and every scheme is measured in one unit. ``metric``: ``{layer: F}`` (d_out x
    d_out) of `statistics.fisher` gives tr(F E[error error^T]) / 2 instead, not divided: the loss per image (nats) that the
    error adds to second order. Errors at different positions of a convolution are taken as independent; where they go
    together, as they do in smooth images, the true loss is several times larger, in all ranks alike.
    """
    names = [own.name for own in options]
    absent = [name for name in names if metric is not None and name not in metric]
    if absent:
        raise ValueError(f"the metric has nothing for layer {absent[0]!r}")
    moments, found = profile.moments_of(names), {}
    for own in options:
        layer: Any = profile.model.get_submodule(own.name)
        centred = profile.takes_mean(own.name)
        weight, spread = _weight_and_spread(profile, own.name, moments[own.name])
        own_metric = None if metric is None else metric[own.name].to(weight)
        whole = _output_energy(weight, spread) if own_metric is None else 1.0
        if points is None:
            found[own.name] = _every_rank(own, layer, weight, spread, own_metric) / (whole or 1.0)
            continue
        numbers = {}
        for scheme, ranks in measured_ranks(own, points).items():
            base = svd.decompose_layer(layer, factors, moments[own.name], scheme, centred)
            for rank in ranks:
                left, right, _ = base.truncate(rank)
                thin = (left @ right).reshape(len(weight), left.shape[-2], right.shape[-1])
                lost = weight - unfold.from_matrix(layer, scheme, thin)
                numbers[scheme, rank] = _output_energy(lost, spread, own_metric) / whole if whole else 0.0
        found[own.name] = np.append(np.maximum(_between(own, numbers), 0.0), 0.0)
    return found


def output_energies(profile: Profile, names: Sequence[str]) -> dict[str, float]:
    """Return ``{layer: E}``: the energy of each layer's outputs over all calibration inputs, summed, mean removed where a bias takes it.

    Needs the moments of the profile; what relative errors of `output_error` are shares of.
    """
    found = {}
    for name, moments in profile.moments_of(names).items():
        weight, spread = _weight_and_spread(profile, name, moments)
        found[name] = _output_energy(weight, spread) * moments.count
    return found


def _weight_and_spread(profile, name, moments):
    # (weights, groups x rows x columns; covariance or second moment of the inputs, groups x columns x columns)
    layer: Any = profile.model.get_submodule(name)
    spread = (moments.covariance if profile.takes_mean(name) else moments.second_moment).to(layer.weight.device)
    spread = spread.reshape(unfold.groups(layer), *spread.shape[-2:])
    return layer.weight.detach().double().reshape(len(spread), -1, spread.shape[-1]), spread


def _every_rank(own, layer, weight, spread, metric):
    # the error of each option, dense last, from one eigenproblem a scheme; half of it in a metric
    rows, curves = weight.shape[1], {}
    for scheme in own.full:
        spreads, offsets = unfold.by_offset(layer, scheme, spread), unfold.shared(layer, scheme)
        targets = unfold.to_matrix(layer, scheme, weight).reshape(len(weight), rows, -1)  # one row an output
        metrics = [svd.metric_block(metric, g, rows) for g in range(len(weight))]
        each = [svd.errors_by_rank(t, c, offsets, m) for t, c, m in zip(targets, spreads, metrics)]
        curves[scheme] = (torch.stack(each).sum(0) * (1.0 if metric is None else 0.5)).cpu().numpy()
    parsed = [parse_entry(entry) for entry in own.entries[:-1]]
    return np.array([*(curves[scheme][rank] for scheme, rank in parsed), 0.0])


def _output_energy(weight, spread, metric=None):
    # tr(W C W^T) summed over groups; in a metric M half of tr(M W C W^T)
    if metric is None:
        return float(torch.einsum("gij,gjk,gik->", weight, spread, weight))
    blocks: list[Any] = [svd.metric_block(metric, g, weight.shape[1]) for g in range(len(weight))]
    return 0.5 * sum(float((m @ (w @ c @ w.T)).trace()) for m, w, c in zip(blocks, weight, spread))


def from_error(errors: Values) -> dict[str, np.ndarray]:
    """Return ``{layer: log(1 - e)}``, the values of relative errors e; -inf where nothing of the output is left.

    >>> from_error({"a": np.array([1.0, 0.5, 0.0])})["a"].round(3).tolist()
    [-inf, -0.693, 0.0]
    """
    with np.errstate(divide="ignore"):
        return {name: np.log(np.clip(1 - np.asarray(e), 0.0, 1.0)) for name, e in errors.items()}


def logarithms(*curves: Values) -> dict[str, np.ndarray]:
    """Return ``{layer: sum of log y}`` over the given curves, the values that add up to log A_p, log A_m or both.

    >>> logarithms({"a": np.array([0.5, 1.0])}, {"a": np.array([0.8, 1.0])})["a"].round(3).tolist()
    [-0.916, 0.0]
    """
    with np.errstate(divide="ignore"):
        sums: dict[str, Any] = {
            name: sum(np.log(np.maximum(curve[name], 0.0)) for curve in curves) for name in curves[0]
        }
        return sums


def predicted_values(
    profile: Profile, options: Sequence[Options], images: int | None = 1000, points: int | None = 6
) -> tuple[dict[str, np.ndarray], str]:
    """Return ({layer: values}, note) for `exact_search`: minus the predicted rise of the loss of each option (nats).

    Data-aware factors, errors weighted by the Fisher information of the first `images` calibration inputs. Where the
    answers are not N x classes, or do not tell what they feel of a layer (as one logit alone), each layer's own relative
    error takes its place (`from_error`), which the note says.
    """
    names = [own.name for own in options]
    why = _unfelt(profile, names, images)
    if why:
        return from_error(
            output_error(profile, options, points=points)
        ), f"{why}, so ranks are by each layer's own error."
    plain = inputs.is_plain(profile.calibration)
    metric = profile.fisher_of(names, images) if plain else profile.metric_of(names, images)
    losses = output_error(profile, options, metric=metric, points=points)
    return {name: -loss for name, loss in losses.items()}, ""


def _unfelt(profile, names, images):
    # why the answers do not tell what errors in these layers do, or nothing
    with evaluating(profile.model):
        first = next(profile.model.parameters())
        answers = inputs.logits(inputs.call(profile.model, inputs.fed(profile.calibration[:1], first)))
    if not torch.is_tensor(answers) or answers.ndim not in (2, 3):
        return "The answers are not N x classes"
    if answers.shape[-1] == 1:
        return "The answers are one number each, which has no alternative"
    try:
        metric = profile.fisher_of(names, images)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        metric = dict.fromkeys(names, torch.zeros(1))
    without = [name for name, own in metric.items() if not own.any()]
    more = " and others" * (len(without) > 3)
    return f"No gradient of the answers reaches {', '.join(without[:3])}{more}" if without else ""


# Searches -------------------------------------------------------------------------------------------------------------


def fixed_cost(profile: Sequence[LayerProfile], options: Sequence[Options], resource: str) -> int:
    """Return what the layers cost that have no options."""
    free = {own.name for own in options}
    return sum(card.cost(None, resource) for card in profile if card.name not in free)


def budget_of(
    profile: Sequence[LayerProfile], options: Sequence[Options], kept: float, resource: str
) -> tuple[float, int]:
    """Return (what a share `kept` leaves to the layers with options, the cost of all layers)."""
    check_share(kept=kept)
    total = plan_cost(profile, {}, resource)
    return kept * total - fixed_cost(profile, options, resource), total


def rounded_up(share: float) -> str:
    """Return `share` in words, four digits, rounded up, so that what is named can be asked for.

    >>> rounded_up(0.112038)
    '0.1121'
    """
    return f"{math.ceil(1e4 * share) / 1e4:.4f}"


def exact_search(
    profile: Profile,
    kept: float | Sequence[float],
    *,
    resource: str | Sequence[str] = "macs",
    options: Sequence[Options] | None = None,
    values: Values | None = None,
    exact: bool = True,
    max_seconds: float = 60.0,
) -> SearchResult:
    """Return the `SearchResult` plan of greatest total value within a share `kept` of each resource, with its certificate.

    Parameters: `resource`, one or a tuple of them; `options` of `rank_options` for the same resources (default: every scheme);
    `values`, ``{layer: one number an option}``, to be added up:
    logarithms of curves, `from_error`, or losses with a minus (default: `predicted_values`); `kept`, one share, or one for each resource; a resource of a table
    has its budget in its own unit, over the layers that have options. See `allocate`.

    Raises ValueError where no plan meets the budget, with the smallest share possible.
    """
    resources, told = (resource,) if isinstance(resource, str) else tuple(resource), ""
    if options is None:
        options = rank_options(profile, resources, mixed=True)
    if values is None:
        values, told = predicted_values(profile, options)
    shares: list[Any] = (
        [kept] * len(resources) if np.isscalar(kept) or kept is None else list(cast(Sequence[float], kept))
    )
    if len(shares) != len(resources):
        raise ValueError(f"{len(shares)} budgets are given for {len(resources)} resources")
    check_resources(options, resources)
    budgets = []
    for place, (share, counted) in enumerate(zip(shares, resources)):
        if counted not in RESOURCES:
            budgets.append(share)
            continue
        budget, total = budget_of(profile, options, share, counted)
        least: Any = sum(own.costs[:, place].min() for own in options)
        if budget < least:
            smallest = (least + fixed_cost(profile, options, counted)) / total
            raise ValueError(
                f"kept={share} of {counted} cannot be reached: the smallest possible is {rounded_up(smallest)}"
            )
        budgets.append(budget)
    check_curves(options, values)
    began = time.perf_counter()
    found = allocate([values[own.name] for own in options], [own.costs for own in options], budgets, exact, max_seconds)
    seconds = time.perf_counter() - began
    plan = plan_of(options, found.choice)
    return SearchResult(
        plan, found.value, found.bound, found.gap, seconds, note=" ".join(filter(None, [told, found.note]))
    )


def plan_of(options: Sequence[Options], choice: Sequence[int] | np.ndarray) -> dict[str, Entry]:
    """Return the plan of a choice, one option a layer by its place."""
    chosen = {own.name: own.entries[j] for own, j in zip(options, choice)}
    return {name: entry for name, entry in chosen.items() if entry is not None}


def worth(options: Sequence[Options], values: Values, plan: Plan) -> float:
    """Return the total value of `plan`, so that plans of any origin can be compared under one set of curves.

    Raises ValueError for an entry that is none of the layer's options, such as a rank under the floor.
    """
    total = 0.0
    strange = set(plan) - {own.name for own in options}
    if strange:
        raise ValueError(f"the plan names a layer without options: {', '.join(sorted(strange))}")
    for own in options:
        entry = plan.get(own.name)
        entry = entry if entry is None or isinstance(entry, int) else tuple(entry)
        if entry not in own.entries:
            raise ValueError(f"{entry!r} is none of the options of layer {own.name!r}")
        total += float(values[own.name][own.entries.index(entry)])
    return total


def check_resources(options: Sequence[Options], resources: tuple[str, ...]) -> None:
    """Raise ValueError where the options are not for these resources."""
    for own in options:
        if own.resources != resources:
            raise ValueError(
                f"the options of layer {own.name!r} are for {', '.join(own.resources)}, the budget for {', '.join(resources)}"
            )


def check_curves(options: Sequence[Options], *curves: Values) -> None:
    """Raise ValueError where a curve has not one number, or -inf, for each option."""
    for own in options:
        for curve in curves:
            if own.name not in curve:
                raise ValueError(f"there are no values for layer {own.name!r}")
            own_values = np.asarray(curve[own.name])
            if own_values.shape != (len(own.entries),) or np.isnan(own_values).any() or np.isposinf(own_values).any():
                raise ValueError(
                    f"layer {own.name!r} needs {len(own.entries)} values, one an option, and no NaN or +inf"
                )
