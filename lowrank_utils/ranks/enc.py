"""ENC's three searches for the ranks of all layers at once (Kim, Khan & Kyung 2019): Map, Model and Inf."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lowrank_utils.checks import check_count, check_share
from lowrank_utils.network.profile import LayerProfile, Plan
from lowrank_utils.network.unfold import Entry
from lowrank_utils.ranks.allocation import falling
from lowrank_utils.ranks.search import (
    Options,
    SearchResult,
    Values,
    budget_of,
    check_curves,
    check_resources,
    energy,
    fixed_cost,
    logarithms,
    plan_of,
    rank_options,
    rounded_up,
    worth,
)


def _reaching(curve, level):
    # the first option whose curve reaches the level, or the last one
    reached = np.flatnonzero(np.maximum.accumulate(curve) >= level)
    return int(reached[0]) if len(reached) else len(curve) - 1


def _check_enc(options, resource, *curves):
    if any(len(own.full) > 1 for own in options):
        raise ValueError("ENC's searches are for one scheme a layer; make rank_options(..., mixed=False) for these")
    check_resources(options, (resource,))
    check_curves(options, *curves)


def _fall(options, curves):
    return falling([np.asarray(curves[own.name]) for own in options], [own.costs for own in options])


def _map(options, curves, budget):
    # the highest common level within the budget: bisection over the levels that occur
    levels = np.unique(np.concatenate([np.maximum.accumulate(curves[own.name]) for own in options]))

    def at(level):
        choice = [_reaching(curves[own.name], level) for own in options]
        return choice, sum(own.costs[j, 0] for own, j in zip(options, choice))

    low, high = 0, len(levels)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(levels[middle])[1] <= budget else (low, middle)
    return at(levels[low])


def _enc_defaults(profile, resource, options, curves):
    options = rank_options(profile, (resource,)) if options is None else options
    return options, energy(profile, options) if curves is None else curves


def enc_map(
    profile: Sequence[LayerProfile],
    kept: float,
    *,
    resource: str = "macs",
    options: Sequence[Options] | None = None,
    curves: Values | None = None,
) -> SearchResult:
    """Return ENC-Map's `SearchResult`: every layer at the lowest rank whose curve reaches one common level, the highest level
    that fits into a share `kept` of `resource`.

    Parameters: `options` and `curves`, those of `rank_options` and `energy` by default.

    Raises ValueError where the lowest level does not fit. Source: Kim, Khan & Kyung 2019, ENC-Map.
    """
    options, curves = _enc_defaults(profile, resource, options, curves)
    _check_enc(options, resource, curves)
    budget, total = budget_of(profile, options, kept, resource)
    began = time.perf_counter()
    choice, cost = _map(options, curves, budget)
    if cost > budget:
        smallest = (cost + fixed_cost(profile, options, resource)) / total
        raise ValueError(
            f"kept={kept} of {resource} cannot be reached: the smallest possible is {rounded_up(smallest)}"
        )
    seconds = time.perf_counter() - began
    plan = plan_of(options, choice)
    return SearchResult(plan, worth(options, logarithms(curves), plan), seconds=seconds, note=_fall(options, curves))


def enc_model(
    profile: Sequence[LayerProfile],
    kept: float,
    *,
    resource: str = "macs",
    options: Sequence[Options] | None = None,
    curves: Values | None = None,
    accuracy: Values | None = None,
    space: float = 0.1,
    margin: float = 0.005,
    density: int = 1_000_000,
    top: int = 30,
) -> SearchResult:
    """Return ENC-Model's `SearchResult`: the best predicted plan of a box of plans around ENC-Map, and the best `top` in ``ranked``.

    The box lies between the maps of (1 - `space`) and (1 + `space`) times the budget. Layers of equal costs form a group that
    shares one level, so the box has one axis a group (our reading of the paper's grouping); ranks along an axis are a step
    apart, about 1 % of the break-even rank, the step scaled up until the box holds at most `density` plans; the map's own
    place on each axis always stays. Where three places an axis are too many still, the groups that cost least stay at the map, which
    the note says. Of those within `margin` under the budget (the paper
    takes both sides; we never exceed it) the one with the greatest A_c = A_p C / C_orig + A_m wins, with A_p the product of
    `curves` (energy), A_m that of `accuracy`, C the cost; without `accuracy`, A_p. Where the steps leave none within the
    margin it is doubled, and the note says so.

    Raises ValueError where the budget cannot be reached. Source: Kim, Khan & Kyung 2019, ENC-Model.
    """
    options, curves = _enc_defaults(profile, resource, options, curves)
    _check_enc(options, resource, curves, *([accuracy] if accuracy else []))
    check_share(space=space, margin=margin)
    check_count(density=density, top=top)
    budget, total = budget_of(profile, options, kept, resource)
    start = enc_map(profile, kept, resource=resource, options=options, curves=curves)
    began = time.perf_counter()
    fixed = fixed_cost(profile, options, resource)
    whole = budget + fixed
    low, high = (_map(options, curves, share * whole - fixed)[0] for share in (1 - space, 1 + space))
    middle = [own.entries.index(start.plan.get(own.name)) for own in options]
    box = _box(options, curves, middle, low, high, density)
    cost = box.sums(float(fixed), lambda own, j: own.costs[j, 0])
    near, widened = _within(cost, whole, margin)
    notes = [start.note, _fall(options, accuracy) if accuracy else "", box.note, widened]
    if not len(near):
        note = "; ".join(filter(None, [*notes, "the box holds no plan"]))
        seconds = time.perf_counter() - began
        return SearchResult(start.plan, start.value, seconds=seconds, note=note, ranked=(start.plan,))
    predicted = box.products(curves)[near]
    if accuracy:
        predicted = predicted * cost[near] / total + box.products(accuracy)[near]
    ranked = tuple(box.plan(place) for place in near[np.argsort(-predicted, kind="stable")[:top]])
    seconds = time.perf_counter() - began
    value = worth(options, logarithms(curves, *([accuracy] if accuracy else [])), ranked[0])
    note = "; ".join(dict.fromkeys(filter(None, notes)))
    return SearchResult(ranked[0], value, seconds=seconds, candidates=len(near), note=note, ranked=ranked)


@dataclass(frozen=True)
class _Box:
    # All plans around a map. Each group of layers (their places in `options`) has an axis; a place on it is a choice for all
    # of its members. Plans are numbered with the last axis running fastest.
    options: Sequence[Options]
    groups: list[list[int]]
    axes: list[list[list[int]]]
    note: str

    def sums(self, start: float, value: Callable[[Options, int], float]) -> np.ndarray:
        # for each plan: `start` and the `value` of each layer at its choice
        found = np.full(1, start)
        for members, axis in zip(self.groups, self.axes):
            each = [sum(value(self.options[p], j) for p, j in zip(members, at)) for at in axis]
            found = (found[:, None] + each).ravel()
        return found

    def products(self, curves: Values) -> np.ndarray:
        logs = logarithms(curves)
        return np.exp(self.sums(0.0, lambda own, j: logs[own.name][j]))

    def plan(self, place: int) -> dict[str, Entry]:
        choice = np.zeros(len(self.options), int)
        for members, axis in reversed(list(zip(self.groups, self.axes))):
            place, at = divmod(place, len(axis))
            choice[members] = axis[at]
        return plan_of(self.options, choice)


def _box(options, curves, middle, low, high, density) -> _Box:
    # the plans between the maps `low` and `high` around the map `middle`, at most `density` of them
    together = {}
    for place, own in enumerate(options):
        together.setdefault(own.costs.tobytes(), []).append(place)
    groups = list(together.values())
    axes = [_axis(members, options, curves, low, high) for members in groups]
    step = 1.0
    while step < 1e6 and math.prod(_size(axis, step) for axis in axes) > density:
        step *= 1.1
    spans = [sum(options[p].costs[high[p], 0] - options[p].costs[low[p], 0] for p in members) for members in groups]
    at_map = _staying(spans, [_size(axis, step) for axis in axes], density)
    middles = [[middle[p] for p in members] for members in groups]
    thinned = [
        [own] if place in at_map else _thinned(axis, own, step) for place, (axis, own) in enumerate(zip(axes, middles))
    ]
    note = (
        f"{len(at_map)} of {len(axes)} groups of layers stay as ENC-Map has them, or the box would hold too many plans"
    )
    return _Box(options, groups, thinned, note if at_map else "")


def _staying(spans, sizes, density) -> set[int]:
    # the groups that stay at the map, those of the smallest spans of cost first, until no more than `density` plans are left
    found = set()
    for place in np.argsort(spans, kind="stable"):
        if math.prod(sizes) <= density:
            break
        found.add(place)
        sizes[place] = 1
    return found


def _within(cost, whole, margin) -> tuple[np.ndarray, str]:
    # the plans at most a share `margin` under the budget, doubled until there are some, and what is to be said of that
    asked = margin
    near = np.flatnonzero((cost <= whole) & (cost >= (1 - margin) * whole))
    while not len(near) and margin < 1:
        margin = min(2 * margin, 1.0)
        near = np.flatnonzero((cost <= whole) & (cost >= (1 - margin) * whole))
    return near, f"no plan of the box within the margin: widened to {margin:.3g}" if margin > asked else ""


def _axis(members, options, curves, low, high):
    # the joint choices of a group from its lowest to its highest: all members at one level, levels a step apart
    levels = np.unique(
        np.concatenate([np.maximum.accumulate(curves[options[p].name])[low[p] : high[p] + 1] for p in members])
    )
    found = []
    for level in levels:
        at = [min(max(_reaching(curves[options[p].name], level), low[p]), high[p]) for p in members]
        (most,) = options[members[0]].full.values()
        apart = sum(at) - sum(found[-1]) if found else np.inf
        if apart >= max(1.0, 0.01 * most * len(members)) or (level == levels[-1] and at != found[-1]):
            found.append(at)
    return found


def _size(axis, step):
    return 1 if len(axis) == 1 else max(2, int(np.ceil(len(axis) / step))) + 1


def _thinned(axis, middle, step):
    # evenly spaced, both ends and the map's own place
    if len(axis) == 1:
        return axis if axis[0] == middle else sorted([*axis, middle], key=sum)
    chosen = [axis[i] for i in np.unique(np.linspace(0, len(axis) - 1, _size(axis, step) - 1).round().astype(int))]
    return chosen if middle in chosen else sorted([*chosen, middle], key=sum)


def enc_inf(found: SearchResult, *, measure: Callable[[Plan], float], count: int = 30) -> SearchResult:
    """Return ENC-Inf's `SearchResult`: the best of the `count` plans that `enc_model` ranked first, by `measure` of each plan.

    `measure` is a function of a plan, such as the accuracy on valid images of the network that it makes.
    """
    check_count(count=count)
    if not found.ranked:
        raise ValueError("there are no plans to measure; pass what enc_model returned")
    began = time.perf_counter()
    tried = found.ranked[:count]
    scores = [measure(plan) for plan in tried]
    if not np.isfinite(scores).all():
        raise ValueError("a measurement of a plan is not a finite number")
    winner = tried[int(np.argmax(scores))]
    seconds = found.seconds + time.perf_counter() - began
    return SearchResult(
        winner, np.nan, seconds=seconds, evaluations=len(tried), candidates=found.candidates, ranked=tried
    )
