"""One option for each layer, the most value under budgets: a multiple-choice knapsack, solved with a certificate.

With a multiplier for each budget (what a unit of it is worth) every layer can choose on its own, and the sum of these
choices is an upper bound on all plans within the budgets (Lagrangian relaxation; Sinha & Zoltners 1979). The bound tells
for each option how much value taking it must cost; what costs more than the distance between the bound and the best
plan known can be left out for good, and the few options that stay are searched completely.
"""

import time
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

STATES = 300_000  # partial plans held at once; beyond, the integer program takes over


@dataclass(frozen=True)
class Allocation:
    """The chosen option of every layer, with its certificate.

    ``choice``: the index of each layer's option; ``value``: the sum of their values; ``bound``: no plan within the
    budgets has a greater value; ``gap`` = bound - value (0 where the plan is optimal), in the unit of the values;
    ``cost``: what the plan costs, one number a budget; ``note``: what the reader should know, or empty.
    """

    choice: tuple
    value: float
    bound: float
    gap: float
    cost: tuple
    note: str = ""


def allocate(values, costs, budgets, exact=True, max_seconds=60.0):
    """Return the `Allocation` of most value: max sum_l values[l][j_l] with sum_l costs[l][j_l] <= budgets.

    ``exact=True``: one budget by dynamic programming over the options that the bound leaves, so that the gap is 0 to
    rounding; several budgets by HiGHS (`scipy.optimize.milp`) on those options, with its bound, for at most
    `max_seconds`. ``exact=False``: a greedy plan and the Lagrangian bound, in milliseconds.

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
    note = _falling(values, costs)
    kept = [np.flatnonzero(np.isfinite(v)) for v in values]
    for place, own in enumerate(kept):
        if not len(own):
            raise ValueError(f"every option of layer {place} has the value -inf, so no plan is allowed")
    v = [values[l][own] for l, own in enumerate(kept)]
    c = [costs[l][own] for l, own in enumerate(kept)]
    _check_reach(c, budgets)
    solve = _one_budget if len(budgets) == 1 else _several_budgets
    inner, bound, more = solve(v, c, budgets, exact, max_seconds)
    choice = tuple(int(own[j]) for own, j in zip(kept, inner))
    value = float(sum(values[l][j] for l, j in enumerate(choice)))
    spent = sum(costs[l][j] for l, j in enumerate(choice))
    bound = max(bound, value)
    if bound - value <= 1e-12 * max(1.0, abs(value)):
        bound = value  # rounding
    return Allocation(
        choice,
        value,
        float(bound),
        float(bound - value),
        tuple(map(float, spent)),
        "; ".join(filter(None, (note, more))),
    )


def _checked(values, costs, budgets):
    budgets = np.atleast_1d(np.asarray(budgets, dtype=np.float64))
    if budgets.ndim != 1 or not len(budgets):
        raise ValueError(f"budgets must be one number for each resource, not an array of shape {budgets.shape}")
    for budget in budgets:
        if not budget > 0 or np.isinf(budget):
            raise ValueError(f"budget {budget:g} is not a positive number")
    values, costs = list(values), list(costs)
    if not values:
        raise ValueError("there is no layer to choose for: values is empty")
    if len(values) != len(costs):
        raise ValueError(f"values are given for {len(values)} layers and costs for {len(costs)}")
    for place, (value, cost) in enumerate(zip(values, costs)):
        value, cost = np.asarray(value, dtype=np.float64), np.asarray(cost, dtype=np.float64)
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
        if not np.isfinite(cost).all() or (cost < 0).any():
            raise ValueError(f"the costs of layer {place} hold NaN, infinite or negative numbers")
        values[place], costs[place] = value, cost
    return values, costs, budgets


def _falling(values, costs):
    fall = []
    for place, (value, cost) in enumerate(zip(values, costs)):
        order = np.lexsort((value, *cost.T[::-1]))
        if (np.diff(value[order]) < 0).any():
            fall.append(place)
    return f"values fall somewhere as costs rise in {len(fall)} of {len(values)} layers" if fall else ""


def _check_reach(costs, budgets):
    least = sum(cost.min(0) for cost in costs)
    for place in np.flatnonzero(least > budgets):
        which = f"budget {place}" if len(budgets) > 1 else "the budget"
        raise ValueError(
            f"{which} of {budgets[place]:.10g} cannot be met: the smallest possible is {least[place]:.10g}"
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


def _one_budget(values, costs, budgets, exact, max_seconds):
    budget = budgets[0]
    fronts = [_frontier(v, c[:, 0]) for v, c in zip(values, costs)]
    v = [value[f] for value, f in zip(values, fronts)]
    c = [cost[f, 0] for cost, f in zip(costs, fronts)]
    choice, price = _greedy(v, c, budget)
    reduced = [x - price * y for x, y in zip(v, c)]
    bound = sum(r.max() for r in reduced) + price * budget
    value = sum(x[j] for x, j in zip(v, choice))
    note = ""
    if exact and bound - value > 1e-13 * max(1.0, abs(bound)):
        found = _search(reduced, c, budget, price, bound - value)
        if found is None:  # too many partial plans
            columns, prices = [x[:, None] for x in c], np.array([price])
            choice, bound, note = _integer(columns, v, budgets, reduced, prices, bound, choice, max_seconds)
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
        rank = np.lexsort((-worth, cost[good]))
        best = np.maximum.accumulate(worth[rank])
        stays = np.ones(len(rank), bool)
        stays[1:] = best[1:] > best[:-1]
        good = good[rank[stays]]
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


def _several_budgets(values, costs, budgets, exact, max_seconds):
    scaled = [cost / budgets for cost in costs]  # every budget is 1
    prices = _prices(values, scaled)
    reduced = [v - c @ prices for v, c in zip(values, scaled)]
    bound = sum(r.max() for r in reduced) + prices.sum()
    choice = _repair(values, scaled, costs, budgets, prices)
    if not exact and choice is not None:
        return choice, bound, ""
    return _integer(costs, values, budgets, reduced, prices / budgets, bound, choice, max_seconds)


def _prices(values, costs):
    # the multipliers of the linear relaxation; any that are not negative give a valid bound
    layer = np.repeat(np.arange(len(values)), [len(v) for v in values])
    rows, columns = np.concatenate(costs).T, np.arange(len(layer))
    one = csr_array((np.ones(len(layer)), (layer, columns)), shape=(len(values), len(layer)))
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


def _repair(values, scaled, costs, budgets, prices):
    # the choice at these prices, at higher ones until it fits; then single steps up that still fit
    def fits(choice):
        return (sum(c[j] for c, j in zip(costs, choice)) <= budgets).all()

    choice = None
    for factor in np.concatenate([[1.0], 1 + np.geomspace(1e-4, 1e4, 60)]):
        tried = [
            int(np.argmax(v - c @ (prices * factor + (factor - 1) * prices.mean()))) for v, c in zip(values, scaled)
        ]
        if fits(tried):
            choice = tried
            break
    if choice is None:
        return None
    while True:
        left = budgets - sum(c[j] for c, j in zip(costs, choice))
        gains = []
        for layer, (v, c) in enumerate(zip(values, costs)):
            gain = np.where((c - c[choice[layer]] <= left).all(1), v - v[choice[layer]], -np.inf)
            gains.append((gain.max(), layer, int(gain.argmax())))
        gain, layer, j = max(gains)
        if gain <= 0:
            return choice
        choice[layer] = j


def _integer(costs, values, budgets, reduced, prices, bound, choice, max_seconds):
    # HiGHS on the options that can be part of a better plan than `choice`
    began = time.perf_counter()
    value = -np.inf if choice is None else sum(v[j] for v, j in zip(values, choice))
    gap = max(bound - value, 0.0) + 1e-12 * max(1.0, abs(bound))  # and rounding
    losses = [r.max() - r for r in reduced]
    allowed = [np.flatnonzero(loss <= gap) for loss in losses]
    layer = np.repeat(np.arange(len(values)), [len(own) for own in allowed])
    loss = np.concatenate([own_loss[own] for own_loss, own in zip(losses, allowed)])
    rows = np.concatenate([cost[own] for cost, own in zip(costs, allowed)]) / budgets
    one = csr_array((np.ones(len(layer)), (layer, np.arange(len(layer)))), shape=(len(values), len(layer)))
    # the loss of a plan is that of its options and what it leaves unspent, at the prices
    price = prices * budgets
    target = loss - rows @ price
    scale = 1e3 / max(np.ptp(target), 1e-300)
    proved, tight, note = None, 1.0, ""
    while True:
        left = max_seconds - (time.perf_counter() - began)
        answer = milp(
            scale * target,
            integrality=np.ones(len(layer)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one, 1, 1), LinearConstraint(rows.T, -np.inf, tight)],
            options={"mip_rel_gap": 0.0, "time_limit": max(left, 0.01)},
        )
        if answer.status == 2:  # infeasible
            if choice is None:
                raise ValueError("these budgets cannot be met together: " + _together(costs, budgets))
            break
        if proved is None:
            dual = answer.mip_dual_bound
            proved = bound if dual is None else min(bound, bound - (dual / scale + price.sum()))
        if answer.x is None:
            if choice is None:
                raise ValueError(f"no plan was found within {max_seconds:g} seconds; give more with max_seconds=")
            break
        picked = np.flatnonzero(answer.x > 0.5)
        found = [int(allowed[l][0]) for l in range(len(values))]
        for p in picked:
            start = np.searchsorted(layer, layer[p])
            found[layer[p]] = int(allowed[layer[p]][p - start])
        if (sum(c[j] for c, j in zip(costs, found)) <= budgets).all():
            if sum(v[j] for v, j in zip(values, found)) > value:
                choice = found
            break
        tight -= 1e-7  # HiGHS meets a budget to its tolerance; ours are strict
    if answer.status == 1:
        note = f"not proved optimal within {max_seconds:g} seconds"
    return choice, bound if proved is None else proved, note


def _together(costs, budgets):
    # the smallest first budget with the others held
    layer = np.repeat(np.arange(len(costs)), [len(c) for c in costs])
    rows = np.concatenate(costs) / budgets
    one = csr_array((np.ones(len(layer)), (layer, np.arange(len(layer)))), shape=(len(costs), len(layer)))
    answer = milp(
        rows[:, 0],
        integrality=np.ones(len(layer)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(rows[:, 1:].T, -np.inf, 1.0)],
        options={"time_limit": 10.0},
    )
    if answer.x is None:
        return "the others alone leave no plan"
    return f"with the others held, the smallest possible for budget 0 is {answer.fun * budgets[0]:.10g}"
