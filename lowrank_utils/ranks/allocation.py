"""One option for each layer, the most value under budgets: a multiple-choice knapsack, solved with a certificate.

With a multiplier for each budget (what a unit of it is worth) every layer can choose on its own, and the sum of these
choices is an upper bound on all plans within the budgets (Lagrangian relaxation; Sinha & Zoltners 1979). The bound tells
for each option how much value taking it must cost; what costs more than the distance between the bound and the best
plan known can be left out for good, and the few options that stay are searched completely.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

ULPS = 1e-12  # budgets are met to this share, for sums of costs that are no whole numbers
ROUNDING = 1e-14  # a gap of this share of the values' spread counts as none
TOLERANCE = 1e-6  # what HiGHS leaves open
SHARP = 1e3  # budgets and values are this large for HiGHS, whose tolerances are absolute
STATES = 300_000  # partial plans held at once; beyond, the integer program takes over


@dataclass(frozen=True)
class Allocation:
    """The chosen option of every layer, with its certificate.

    ``choice``: the index of each layer's option; ``value``: the sum of their values; ``bound``: no plan within the
    budgets has a greater value; ``gap`` = bound - value, in the unit of the values: where the plan is proved optimal, 0 with one budget (up to 1e-14
    of the values' spread) and with several what HiGHS's tolerance leaves (1e-9 of the spread that matters);
    ``cost``: what the plan costs, one number a budget; ``note``: what the reader should know, or empty.
    """

    choice: tuple[int, ...]
    value: float
    bound: float
    gap: float
    cost: tuple[float, ...]
    note: str = ""


def allocate(
    values: Sequence[ArrayLike],
    costs: Sequence[ArrayLike],
    budgets: ArrayLike,
    exact: bool = True,
    max_seconds: float = 60.0,
) -> Allocation:
    """Return the `Allocation` of most value: max sum_l values[l][j_l] with sum_l costs[l][j_l] <= budgets.

    ``exact=True``: one budget by dynamic programming over the options that the bound leaves, so that the gap is 0 to
    rounding; several budgets by HiGHS (`scipy.optimize.milp`) on those options, with its bound, for at most
    `max_seconds`. ``exact=False``: a greedy plan and the Lagrangian bound, in milliseconds (where greedy steps find no plan
    for several budgets, HiGHS is asked for one).

    Parameters: `values`, a list of 1-D arrays, one a layer, one entry an option; -inf forbids an option; `costs`, a list of
    arrays, options x budgets (or 1-D for one budget), not negative; `budgets`, one number for each. Curves that fall as
    the cost rises are accepted, and noted. Among plans of equal value a cheaper one is not preferred.

    Raises ValueError for no layers, empty or misshapen curves, NaN, budgets that are not positive, and budgets that
    no plan meets (with the smallest that can be met). Source: Kellerer, Pferschy & Pisinger 2004, chapter 11.

    >>> found = allocate([[0.0, 3.0, 4.0], [0.0, 2.0]], [[1, 2, 5], [1, 3]], 5)
    >>> found.choice, found.value, found.gap
    ((1, 1), 5.0, 0.0)
    """
    values, costs, budgets = _checked(values, costs, budgets)
    if isinstance(max_seconds, bool) or not isinstance(max_seconds, Real) or not max_seconds > 0:
        raise ValueError(f"max_seconds={max_seconds!r} is not a positive number")
    note = falling(values, costs)
    limits = budgets * (1 + ULPS)
    kept = [np.flatnonzero(np.isfinite(v)) for v in values]
    for place, own in enumerate(kept):
        if not len(own):
            raise ValueError(f"every option of layer {place} has the value -inf, so no plan is allowed")
    _check_reach([costs[l][own] for l, own in enumerate(kept)], budgets, limits)
    # costs above each layer's least, values below its greatest, in units of the largest possible difference
    least = [costs[l][own].min(0) for l, own in enumerate(kept)]
    room = np.maximum(limits - sum(least), 0.0)
    finite, kept = kept, [own[(costs[l][own] - least[l] <= room).all(1)] for l, own in enumerate(kept)]
    if not all(map(len, kept)):
        raise ValueError(_together([costs[l][own] for l, own in enumerate(finite)], budgets))
    unit = sum(np.ptp(values[l][own]) for l, own in enumerate(kept)) or 1.0
    v = [(values[l][own] - values[l][own].max()) / unit for l, own in enumerate(kept)]
    c = [costs[l][own] - least[l] for l, own in enumerate(kept)]

    def fits(inner):
        return bool((sum(costs[l][own[j]] for l, (own, j) in enumerate(zip(kept, inner))) <= limits).all())

    solve = _one_budget if len(budgets) == 1 else _several_budgets
    inner, bound, more = solve(v, c, room, exact, max_seconds, fits)
    if inner is None:
        raise ValueError(_together([costs[l][own] for l, own in enumerate(finite)], budgets))
    choice = tuple(int(own[j]) for own, j in zip(kept, inner))
    value = float(sum(values[l][j] for l, j in enumerate(choice)))
    gap = float(unit * max(0.0, bound - sum(x[j] for x, j in zip(v, inner))))
    spent: Any = sum(costs[l][j] for l, j in enumerate(choice))
    return Allocation(choice, value, value + gap, gap, tuple(map(float, spent)), "; ".join(filter(None, (note, more))))


def _checked(values, costs, budgets):
    try:
        budgets = np.atleast_1d(np.asarray(budgets, dtype=np.float64))
        values = [np.asarray(value, dtype=np.float64) for value in values]
        costs = [np.asarray(cost, dtype=np.float64) for cost in costs]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"values and costs are lists of arrays of numbers, one a layer, and budgets are numbers: {error}"
        ) from None
    if budgets.ndim != 1 or not len(budgets):
        raise ValueError(f"budgets must be one number for each resource, not an array of shape {budgets.shape}")
    for budget in budgets:
        if not 0 < budget < np.inf:
            raise ValueError(f"budget {budget:g} is not a positive, finite number")
    if not values:
        raise ValueError("there is no layer to choose for: values is empty")
    if len(values) != len(costs):
        raise ValueError(f"values are given for {len(values)} layers and costs for {len(costs)}")
    for place, (value, cost) in enumerate(zip(values, costs)):
        if value.ndim != 1 or not len(value):
            raise ValueError(
                f"the values of layer {place} have shape {value.shape}; one number for each option is needed"
            )
        cost = cost[:, None] if cost.ndim == 1 else cost
        if cost.shape != (len(value), len(budgets)):
            raise ValueError(
                f"the costs of layer {place} have shape {cost.shape}; {len(value)} options under {len(budgets)} "
                f"{'budget' if len(budgets) == 1 else 'budgets'} need {(len(value), len(budgets))}"
            )
        if np.isnan(value).any() or np.isposinf(value).any():
            raise ValueError(f"the values of layer {place} hold NaN or +inf")
        if (np.abs(value[np.isfinite(value)]) > 1e300).any():
            raise ValueError(f"the values of layer {place} are beyond 1e300; forbid an option with -inf")
        if not np.isfinite(cost).all() or (cost < 0).any():
            raise ValueError(f"the costs of layer {place} hold NaN, infinite or negative numbers")
        values[place], costs[place] = value, cost
    return values, costs, budgets


def falling(values: Sequence[np.ndarray], costs: Sequence[np.ndarray]) -> str:
    """Return in words how many layers have an option that costs more of everything and is worth less; empty where none has.

    `values` and `costs` are lists of float arrays, options and options x budgets.

    >>> falling([np.array([0.0, 2.0, 1.0])], [np.array([[1.0], [2.0], [3.0]])])
    'values fall somewhere as costs rise in 1 of 1 layers'
    """
    fall = 0
    for value, cost in zip(values, costs):
        value, cost = value[np.isfinite(value)], cost[np.isfinite(value)]
        if cost.shape[1] == 1:
            order = np.lexsort((value, cost[:, 0]))
            fall += bool((np.diff(value[order]) < 0).any())
        else:
            dearer = np.all([np.less_equal.outer(each, each) for each in cost.T], axis=0)
            fall += bool((dearer & np.greater.outer(value, value)).any())
    return f"values fall somewhere as costs rise in {fall} of {len(values)} layers" if fall else ""


def _check_reach(costs, budgets, limits):
    least: Any = sum(cost.min(0) for cost in costs)
    for place in np.flatnonzero(least > limits):
        which = f"budget {place}" if len(budgets) > 1 else "the budget"
        raise ValueError(
            f"{which} of {budgets[place]:.17g} cannot be met: the smallest possible is {least[place]:.17g}"
        )


# One budget -----------------------------------------------------------------------------------------------------------


def _frontier(value, cost):
    # options that no cheaper or equal one matches, by rising cost
    order = np.lexsort((-value, cost))
    best = np.maximum.accumulate(value[order])
    stays = np.ones(len(order), bool)
    stays[1:] = best[1:] > best[:-1]
    return order[stays]


def _hull(value, cost):
    # the upper concave hull of a frontier: indices along it
    found = []
    for j in range(len(value)):
        while len(found) > 1:
            a, b = found[-2], found[-1]
            if (value[b] - value[a]) * (cost[j] - cost[a]) > (value[j] - value[a]) * (cost[b] - cost[a]):
                break
            found.pop()
        found.append(j)
    return np.array(found)


def _one_budget(values, costs, room, exact, max_seconds, fits):
    budget = room[0]
    fronts = [_frontier(v, c[:, 0]) for v, c in zip(values, costs)]
    v = [value[f] for value, f in zip(values, fronts)]
    c = [cost[f, 0] for cost, f in zip(costs, fronts)]
    choice, price = _greedy(v, c, budget)
    reduced = [x - price * y for x, y in zip(v, c)]
    bound = sum(r.max() for r in reduced) + price * budget
    value = sum(x[j] for x, j in zip(v, choice))
    note = ""
    if exact:
        gap = bound - value
        found = _search(reduced, c, budget, price, gap) if gap > ROUNDING else []
        if found is None:  # too many partial plans

            def back(inner):
                return [int(f[j]) for f, j in zip(fronts, inner)]

            columns = [x[:, None] for x in c]
            better, bound, note = _integer(
                columns, v, room, np.array([price]), choice, max_seconds, lambda inner: fits(back(inner))
            )
            choice = choice if better is None else better  # with a choice to start from there always is one
        else:
            choice = found if len(found) else choice
            bound = sum(x[j] for x, j in zip(v, choice))
    return [int(f[j]) for f, j in zip(fronts, choice)], bound, note


def _greedy(values, costs, budget):
    # steps along the concave hulls by falling slope, until one does not fit; then whatever still fits
    steps = []
    choice = np.zeros(len(values), int)
    for layer, (v, c) in enumerate(zip(values, costs)):
        hull = _hull(v, c)
        slopes = np.diff(v[hull]) / np.diff(c[hull])
        steps += zip(-slopes, [layer] * len(slopes), hull[1:].tolist())
    left = budget - sum(c[0] for c in costs)
    price, blocked = 0.0, np.zeros(len(values), bool)
    for slope, layer, j in sorted(steps):
        change = costs[layer][j] - costs[layer][choice[layer]]
        if blocked[layer]:
            continue
        if change <= left:
            choice[layer], left = j, left - change
        else:
            price = price or -slope  # of the first step that does not fit
            blocked[layer] = True
    if not blocked.any():
        return choice, 0.0
    while True:  # options off the hulls that still fit
        gains = []
        for layer, (v, c) in enumerate(zip(values, costs)):
            last = int(np.searchsorted(c, c[choice[layer]] + left, "right")) - 1
            if last > choice[layer]:
                gains.append((v[last] - v[choice[layer]], layer, last))
        if not gains:
            return choice, price
        _, layer, j = max(gains)
        left -= costs[layer][j] - costs[layer][choice[layer]]
        choice[layer] = j


def _search(reduced, costs, budget, price, gap):
    # Any plan has the value bound - sum of losses - price (budget - cost), so one better than the best known has all of
    # these below the gap. A smaller allowance first: what it finds within itself is the best there is.
    losses = [r.max() - r for r in reduced]
    allowance = gap / 256
    while True:
        found, size = _within(losses, costs, budget, price, min(allowance, gap))
        if found is not None or size is None:
            return None if size is None else found
        if allowance >= gap:
            return []  # nothing beats what is known
        allowance *= 4


def _within(losses, costs, budget, price, allowance):
    allowed = [np.flatnonzero(loss <= allowance) for loss in losses]
    order = np.argsort([len(own) for own in allowed])
    most = np.array([costs[l][allowed[l]].max() for l in order])
    least = np.array([costs[l][allowed[l]].min() for l in order])
    most_after = np.append(np.cumsum(most[::-1])[::-1][1:], 0.0)
    least_after = np.append(np.cumsum(least[::-1])[::-1][1:], 0.0)
    spent, lost, trail = np.zeros(1), np.zeros(1), []
    for step, layer in enumerate(order):
        own = allowed[layer]
        if len(spent) * len(own) > 10 * STATES:
            return None, None
        cost = (spent[:, None] + costs[layer][own]).ravel()
        loss = (lost[:, None] + losses[layer][own]).ravel()
        slack = budget - cost - most_after[step]
        good = np.flatnonzero(
            (cost + least_after[step] <= budget) & (loss + price * np.maximum(slack, 0.0) <= allowance)
        )
        worth = price * cost[good] - loss[good]
        good = good[_frontier(worth, cost[good])]
        if not len(good):
            return None, 0
        if len(good) > STATES:
            return None, None
        spent, lost = cost[good], loss[good]
        trail.append((layer, good // len(own), own[good % len(own)]))
    at = int(np.argmin(lost + price * (budget - spent)))
    choice = np.zeros(len(losses), int)
    for layer, parent, option in reversed(trail):
        choice[layer] = option[at]
        at = parent[at]
    return choice, len(spent)


# Several budgets ------------------------------------------------------------------------------------------------------


def _several_budgets(values, costs, room, exact, max_seconds, fits):
    scaled = [np.divide(cost, room, out=np.zeros_like(cost), where=room > 0) for cost in costs]  # every budget is 1
    one = np.ones(len(room))
    prices = _prices(values, scaled)
    choice = _repair(values, scaled, prices, fits)

    def among_the_near(choice):
        # The answer among the options that a better plan than `choice` can have, where these lie much closer together:
        # far outliers would hide them from absolute tolerances. None where nothing is gained.
        tops = [v.max() for v in values]
        lost = sum(top - v[j] for top, v, j in zip(tops, values, choice))
        if not lost:
            return choice, sum(tops), ""
        stays = [np.flatnonzero(top - v <= lost) for top, v in zip(tops, values)]
        widest = max(np.ptp(v[own]) for v, own in zip(values, stays))
        if widest >= 0.1 * max(map(np.ptp, values)):
            return None

        def back(inner):
            return [int(own[j]) for own, j in zip(stays, inner)]

        near = [(v[own] - top) / widest for v, own, top in zip(values, stays, tops)]
        cheap = [cost[own] for cost, own in zip(costs, stays)]
        found, bound, note = _several_budgets(near, cheap, room, exact, max_seconds, lambda inner: fits(back(inner)))
        return back(found), sum(tops) + widest * bound, note

    if choice is not None:
        nearer = among_the_near(choice)
        if nearer:
            return nearer
        if not exact:
            reduced = [v - c @ prices for v, c in zip(values, scaled)]
            return choice, sum(r.max() for r in reduced) + prices.sum(), ""
    found, bound, note = _integer(scaled, values, one, prices, choice, max_seconds, fits)
    nearer = among_the_near(found) if found is not None and not note else None  # found, and within the time
    return nearer or (found, bound, note)


def _incidence(costs):
    # which variables belong to which layer: one of each is taken
    layer = np.repeat(np.arange(len(costs)), [len(c) for c in costs])
    return layer, csr_array((np.ones(len(layer)), (layer, np.arange(len(layer)))), shape=(len(costs), len(layer)))


def _prices(values, costs):
    # the multipliers of the linear relaxation; any that are not negative give a valid bound
    _layer, one = _incidence(costs)
    rows = np.concatenate(costs).T
    found = linprog(
        -np.concatenate(values),
        A_ub=rows,
        b_ub=np.ones(len(rows)),
        A_eq=one,
        b_eq=np.ones(len(values)),
        bounds=(0, None),
    )
    if found.status != 0:
        return np.zeros(len(rows))
    return np.maximum(-found.ineqlin.marginals, 0.0)


def _repair(values, costs, prices, fits):
    # the choice at these prices, at higher ones until it fits; then single steps up that still fit
    choice = None
    for factor in np.concatenate([[1.0], 1 + np.geomspace(1e-4, 1e4, 60)]):
        tried = [
            int(np.argmax(v - c @ (prices * factor + (factor - 1) * prices.mean()))) for v, c in zip(values, costs)
        ]
        if fits(tried):
            choice = tried
            break
    if choice is None:
        return None
    while True:
        left = 1 - sum(c[j] for c, j in zip(costs, choice))
        gains = []
        for layer, (v, c) in enumerate(zip(values, costs)):
            gain = np.where((c - c[choice[layer]] <= left).all(1), v - v[choice[layer]], 0.0)
            gains.append((gain.max(), layer, int(gain.argmax())))
        gain, layer, j = max(gains)
        step = choice[:layer] + [j] + choice[layer + 1 :]
        if gain <= 0 or not fits(step):
            return choice
        choice = step


def _integer(costs, values, budgets, prices, choice, max_seconds, fits):
    # HiGHS on the options that can be part of a better plan than `choice`
    began = time.perf_counter()
    reduced = [v - c @ prices for v, c in zip(values, costs)]
    bound = sum(r.max() for r in reduced) + (prices * budgets).sum()
    value = -np.inf if choice is None else sum(v[j] for v, j in zip(values, choice))
    gap, note = max(bound - value, 0.0) + ROUNDING, ""
    allowed = [np.flatnonzero(r.max() - r <= gap) for r in reduced]
    parts = [(cost[own], v[own]) for cost, v, own in zip(costs, values, allowed)]
    left = max_seconds - (time.perf_counter() - began)
    found, dual, status = _highs(
        parts, budgets, left, lambda inner: fits([int(own[j]) for own, j in zip(allowed, inner)])
    )
    bound = min(bound, value if status == 2 else dual)  # 2: with the options left nothing fits
    if found is not None:
        found = [int(own[j]) for own, j in zip(allowed, found)]
        if sum(v[j] for v, j in zip(values, found)) > value:
            choice = found
    if status not in (0, 2):
        note = f"not proved optimal within {max_seconds:g} seconds"
        if choice is None:
            raise ValueError(f"no plan was found within {max_seconds:g} seconds; give more with max_seconds=")
    return choice, bound, note


def _highs(parts, budgets, seconds, fits):
    # (choice or None, upper bound, status) of HiGHS for [(costs, values) of each layer]
    began = time.perf_counter()
    layer, one = _incidence([own for _, own in parts])
    starts = np.searchsorted(layer, np.arange(len(parts)))
    most = sum(own.max() for _, own in parts)
    inner = np.concatenate([own - own.max() for _, own in parts])  # one of each is taken, so the rest is a constant
    rows = np.concatenate([cost for cost, _ in parts])
    rows = SHARP * np.divide(rows, budgets, out=np.zeros_like(rows), where=budgets > 0)
    scale = SHARP / (np.ptp(inner) or 1.0)
    bound, forbidden = np.inf, []
    while True:
        left = seconds - (time.perf_counter() - began)
        answer = milp(
            -scale * inner,
            integrality=np.ones(len(layer)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one, 1, 1), LinearConstraint(rows.T, -np.inf, SHARP), *forbidden],
            options={"mip_rel_gap": 0.0, "time_limit": max(left, 0.01)},
        )
        dual = answer.mip_dual_bound
        if answer.status == 2:
            return None, bound, 2
        if dual is not None and np.isfinite(dual) and (not forbidden or answer.status == 0):
            bound = min(bound, most + (TOLERANCE - dual) / scale)
        if answer.x is None:
            return None, bound, answer.status
        picked = np.flatnonzero(answer.x > 0.5)
        found = [int(p - starts[l]) for l, p in zip(layer[picked], picked)]
        if fits(found):
            return found, bound, answer.status
        # HiGHS meets a budget to its tolerance, ours are strict: this plan is out
        cut = np.zeros(len(layer))
        cut[picked] = 1
        forbidden.append(LinearConstraint(cut, -np.inf, len(parts) - 1))


def _together(costs, budgets):
    # the smallest first budget with the others held
    layer, one = _incidence(costs)
    rows = np.concatenate(costs) / budgets
    answer = milp(
        rows[:, 0],
        integrality=np.ones(len(layer)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(rows[:, 1:].T, -np.inf, 1.0)],
        options={"time_limit": 10.0},
    )
    held = "with the others held, " + (
        "nothing is possible"
        if answer.x is None
        else f"the smallest possible for budget 0 is {answer.fun * budgets[0]:.10g}"
    )
    return f"these budgets cannot be met together: {held}"
