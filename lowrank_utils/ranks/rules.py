"""Adaptive ranks from the spectrum (ARSVD, Cherukuri & Lala 2025), with fixed rank and EVBMF beside them.

Every threshold rule gives each rank r of a layer a *level* in (0, 1]: the share of energy, of spectral entropy,
or of the full rank that the first r components hold. The rank at threshold t is the smallest whose level
reaches t; one threshold serves all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import entr
from torch import nn

from lowrank_utils.checks import check_share, is_number
from lowrank_utils.network.profile import LayerProfile, if_cheaper, plan_cost, read_layers
from lowrank_utils.network.unfold import Entry, parse_entry


def least_plan(profile: Sequence[LayerProfile], resource: str = "macs") -> dict[str, Entry]:
    """Return the smallest plan: rank 1 wherever it pays, rank 0 for a layer of zeros."""
    ones = {card.name: int(np.any(_spectrum(card.singular_values))) for card in profile if not card.reason}
    return {c.name: c.entry(ones[c.name]) for c in profile if if_cheaper(c, ones.get(c.name), resource) is not None}


def greedy_plan(
    profile: Sequence[LayerProfile], steps: Iterable[tuple[str, int]], kept: float, resource: str = "macs"
) -> dict[str, Entry]:
    """Return the plan with at most a share `kept` of the carded layers' cost, grown from rank 1 everywhere.

    `steps` is a list of (layer name, rank), for each layer with rising ranks: components enter in this order, until
    the next one does not fit; then, while the size is more than half a percent under the budget, later ones of other
    layers that still fit. A rank past the break-even rank stands for the dense layer.

    Raises ValueError where `kept` is no share, or the smallest plan is above the budget.

    >>> from torch import nn
    >>> profile = read_layers(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 16)), (64,))
    >>> greedy_plan(profile, [("0", 2), ("1", 2), ("1", 3)], 0.12, "parameters")
    {'0': 2, '1': 1}
    """
    check_share(kept=kept)
    total = plan_cost(profile, {}, resource)
    budget = kept * total
    free = {card.name: card for card in profile if not card.reason}
    found = {name: parse_entry(planned)[1] for name, planned in least_plan(profile, resource).items()}
    size = plan_cost(profile, found, resource)
    if size > budget:
        raise ValueError(f"kept={kept} of {resource} cannot be reached: rank 1 in every layer keeps {size / total:.4f}")
    blocked = False
    for name, step in steps:
        if blocked and size >= 0.995 * budget:
            break
        if name not in found:
            continue
        card = free[name]
        before = card.cost(if_cheaper(card, found[name], resource), resource)
        change = card.cost(if_cheaper(card, step, resource), resource) - before
        if size + change > budget:
            blocked = True  # and later steps of this layer cost more still
            continue
        found[name] = step
        size += change
    return {name: free[name].entry(r) for name, r in found.items() if if_cheaper(free[name], r, resource) is not None}


RULES = ("energy", "entropy", "fixed")


def _spectrum(singular_values):
    if singular_values is None:
        raise ValueError("this profile has no spectra; make it with spectra=True")
    s = np.asarray(singular_values, dtype=np.float64)
    if s.ndim != 1 or len(s) == 0:
        raise ValueError(f"singular values must be a list of at least one number, not shape {s.shape}")
    if not np.isfinite(s).all() or (s < 0).any():
        raise ValueError("singular values must be finite and not negative; these hold NaN, infinity or a minus")
    return np.sort(s)[::-1]


def energy_shares(singular_values: ArrayLike) -> np.ndarray:
    """Return p_i = s_i^2 / sum s^2 (length n, falling, sums to 1; all zero for a zero matrix).

    >>> energy_shares([2.0, 1.0, 1.0]).round(3).tolist()
    [0.667, 0.167, 0.167]
    """
    s = _spectrum(singular_values)
    if not s[0]:
        return s
    p = (s / s[0]) ** 2
    return p / p.sum()


def spectral_entropy(singular_values: ArrayLike) -> float:
    """Return H = -sum p_i log p_i in nats, p the energy shares; from 0 (one component) to log n (all equal).

    >>> round(float(spectral_entropy([1.0, 1.0])), 4)
    0.6931
    """
    return entr(energy_shares(singular_values)).sum()


def effective_rank(singular_values: ArrayLike) -> float:
    """Return exp(H), a real number from 1 to n (Roy & Vetterli 2007, on energy shares); 0 for a zero matrix.

    >>> round(float(effective_rank([3.0, 3.0, 3.0])), 6)
    3.0
    """
    return np.exp(spectral_entropy(singular_values)) if np.any(singular_values) else 0.0


def levels(singular_values: ArrayLike, rule: str) -> np.ndarray:
    """Return the level of every rank 1..n (length n, not falling, last entry 1); zeros for a zero matrix.

    ``"energy"``: sum of the first r energy shares p. ``"entropy"``: sum of the first r terms -p log p, over H.
    ``"fixed"``: r / n, one share of the rank for every layer. Raises ValueError for another rule.

    >>> levels([2.0, 1.0, 1.0], "energy").round(3).tolist()
    [0.667, 0.833, 1.0]
    """
    if rule not in RULES:
        raise ValueError(f'unknown rule {rule!r}; known: {", ".join(RULES)}, and "evbmf" which takes no threshold')
    p = energy_shares(singular_values)
    if not p[0]:
        return p
    if rule == "fixed":
        return np.arange(1, len(p) + 1) / len(p)
    terms = np.cumsum(p if rule == "energy" else entr(p))
    if not terms[-1]:  # a single component: its entropy is zero, and it holds everything
        return np.ones(len(p))
    return terms / terms[-1]


def rank(singular_values: ArrayLike, threshold: float, rule: str = "energy") -> int:
    """Return the smallest rank whose level reaches `threshold`, an int from 1 to n; 0 for a zero matrix.

    energy: min r with sum_{i<=r} p_i >= t;  entropy: min r with -sum_{i<=r} p_i log p_i >= t H;  fixed: ceil(t n).
    Differences under 1e-12 count as reached. A zero matrix has nothing to keep: rank 0, and the layer that is
    built from it outputs its bias.

    Parameters: `singular_values`, 1-D, any order; `threshold` in (0, 1]; `rule`, one of `RULES`.
    Raises ValueError for anything else. Source: Cherukuri & Lala 2025 (v1 energy, v2 entropy).

    >>> rank([2.0, 1.0, 1.0], 0.8, "energy"), rank([2.0, 1.0, 1.0], 0.5, "entropy")
    (2, 2)
    """
    check_share(threshold=threshold)
    reached = levels(singular_values, rule)
    if not reached[-1]:
        return 0
    return int(np.argmax(reached >= threshold - 1e-12)) + 1


def evbmf_rank(singular_values: ArrayLike, shape: tuple[int, int]) -> int:
    """Return the rank of empirical variational Bayesian matrix factorization (Nakajima et al. 2013), an int >= 0.

    Components above sqrt(M sigma^2 x_bar) are kept, with L <= M the sides of `shape`, alpha = L / M,
    tau_bar = 2.5129 sqrt(alpha), x_bar = (1 + tau_bar)(1 + alpha / tau_bar); the noise variance sigma^2 minimises
    the free energy sum_h psi_0(x_h) + [x_h > x_bar] psi_1(x_h), x_h = s_h^2 / (M sigma^2),
    psi_0 = x - log x, psi_1 = log(tau + 1) + alpha log(tau / alpha + 1) - tau. It has no parameter to set.

    Parameters: `singular_values`, all min(shape) of them; `shape`, (rows, columns).
    Source: Nakajima, Sugiyama, Babacan & Tomioka 2013, JMLR 14, theorem 2 and corollary 2.

    >>> evbmf_rank([50.0, 1.0, 0.9, 0.8], (4, 6))
    1
    """
    s = _spectrum(singular_values)
    small, large = sorted(int(side) for side in shape)
    if len(s) != small:
        raise ValueError(f"a {shape[0]} x {shape[1]} matrix has {small} singular values, not {len(s)}")
    if not s[0]:
        return 0
    alpha = small / large
    tau_bar = 2.5129 * np.sqrt(alpha)
    x_bar = (1 + tau_bar) * (1 + alpha / tau_bar)
    squares = (s / s[0]) ** 2

    def free_energy(log_variance):
        x = squares / (large * np.exp(log_variance))
        big = x[x > x_bar]
        half = big - (1 + alpha)
        tau = (half + np.sqrt(half**2 - 4 * alpha)) / 2
        # psi_0 without its constants log s^2, so that zero singular values are normal input
        plain = x.sum() + small * log_variance
        return plain + (np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau).sum()

    mean_square = squares.sum() / (small * large)  # the variance if everything were noise: an upper bound
    tail = max(min(int(np.ceil(small / (1 + alpha))) - 1, small) - 1, 0)
    lower = max(squares[min(tail + 1, small - 1)] / (large * x_bar), squares[min(tail + 1, small - 1) :].mean() / large)
    low, high = np.log(max(lower, 1e-16 * mean_square)), np.log(mean_square)
    if not low < high:
        best = high
    else:  # the free energy has kinks where a component enters: a grid first, then the best cell refined
        grid = np.linspace(low, high, 200)
        at = int(np.argmin([free_energy(v) for v in grid]))
        cell = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
        refined = minimize_scalar(free_energy, bounds=cell, method="bounded")
        best = refined.x if refined.fun < free_energy(grid[at]) else grid[at]
    return int((squares > large * np.exp(best) * x_bar).sum())


def threshold_plan(
    profile: Sequence[LayerProfile], *, threshold: float | None = None, rule: str = "energy", resource: str = "macs"
) -> dict[str, Entry]:
    """Return ``{layer name: rank}`` at one threshold for all layers; layers whose factors do not pay are absent.

    Parameters: `profile`, of `lowrank_utils.profile`; `threshold` in (0, 1], None for ``rule="evbmf"``; `rule`, one of `RULES`
    or ``"evbmf"``. `rank_table` tells the same with what stayed dense and why.
    """
    table = rank_table(profile, threshold=threshold, rule=rule, resource=resource)
    paying = table[table["kept_as"] == "factors"]
    named = {card.name: card for card in profile}
    return {name: named[name].entry(int(value)) for name, value in zip(paying["layer"], paying["rank"])}


def rank_table(
    profile: Sequence[LayerProfile], *, threshold: float | None = None, rule: str = "energy", resource: str = "macs"
) -> pd.DataFrame:
    """Return a DataFrame with one row a layer: layer, shape, full_rank, break_even, rank, kept_as, why."""
    rows = []
    for card in profile:
        found, why = None, card.reason
        if not why:
            if rule == "evbmf":
                found = max(
                    evbmf_rank(card.singular_values, card.matrix_shape), int(np.any(_spectrum(card.singular_values)))
                )
            elif threshold is None:
                raise ValueError(f"threshold=None is not a share in (0, 1], which rule {rule!r} needs")
            else:
                found = rank(card.singular_values, threshold, rule)
            if if_cheaper(card, found, resource) is None:
                why = f"rank {found} costs no less than the dense layer (break-even {card.break_even(resource)})"
        rows.append(
            {
                "layer": card.name,
                "shape": f"{card.matrix_shape[0]} x {card.matrix_shape[1]}",
                "full_rank": card.full_rank,
                "break_even": card.break_even(resource),
                "rank": found,
                "kept_as": "dense" if why else "factors",
                "why": why,
            }
        )
    columns = ["layer", "shape", "full_rank", "break_even", "rank", "kept_as", "why"]
    return pd.DataFrame(rows, columns=columns).astype({"rank": "Int64"})


def _events(profile, rule, resource):
    # One entry for every step up from rank 1: the level that must be passed, the layer, and what it becomes.
    # Past the break-even rank the next step is the dense layer, and the last.
    steps = []
    for card in profile:
        if card.reason:
            continue
        level = levels(card.singular_values, rule)
        if not level[-1]:
            continue
        # components of zero would be bought for nothing
        real = int(
            (card.singular_values > card.singular_values.max() * max(card.shape) * np.finfo(np.float32).eps).sum()
        )
        for r in range(1, min(card.break_even(resource) + 1, real)):
            steps.append((level[r - 1], card.name, r + 1))
    return sorted(steps)


def least_kept(profile: Sequence[LayerProfile], resource: str = "macs") -> float:
    """Return the smallest share of the carded layers' cost that a plan can reach: rank 1 wherever it pays."""
    total = plan_cost(profile, {}, resource)
    if not total:
        raise ValueError(f"these {len(profile)} layers hold no {resource}, so there is no share of them")
    return plan_cost(profile, least_plan(profile, resource), resource) / total


def plan_at_size(
    profile: Sequence[LayerProfile], kept: float, *, rule: str = "energy", resource: str = "macs"
) -> dict[str, Entry]:
    """Return the plan with at most a share `kept` of the carded layers' cost: the rule's threshold turned into a size.

    Components enter in the order of the threshold at which `rule` would take them (see `rules.greedy_plan`). So plans of
    different rules can be compared at equal size. Raises ValueError where the smallest plan (rank 1 everywhere) is
    above the budget.

    Parameters: `profile`, of `lowrank_utils.profile`; `kept` in (0, 1]; `rule`, one of `RULES`; `resource`, "parameters" or "macs".
    """
    return greedy_plan(profile, [(name, step) for _, name, step in _events(profile, rule, resource)], kept, resource)


@dataclass(frozen=True)
class AdaptiveSearch:
    """What `adaptive_threshold` found: the threshold, its plan and valid accuracy, and every evaluation on record.

    ``evaluations`` is a DataFrame with columns threshold, accuracy, cost, within (drop met or not), in order.
    """

    threshold: float
    plan: dict[str, Entry]
    accuracy: float
    dense_accuracy: float
    evaluations: pd.DataFrame


def adaptive_threshold(
    profile: Sequence[LayerProfile],
    *,
    measure: Callable[[dict[str, Entry]], float],
    drop: float = 0.01,
    rule: str = "energy",
    resource: str = "macs",
) -> AdaptiveSearch:
    """Return the `AdaptiveSearch` for the smallest threshold whose accuracy stays within `drop` of the dense network.

    Bisection over the distinct levels of all layers, about log2(levels) evaluations. Accuracy is nearly but not
    always monotone in the threshold: the answer is a threshold that was measured to be within the drop, and whose
    next lower measured one was not.

    Parameters: `measure`, a function from a plan to accuracy (a share) on **valid** images, called with ``{}`` for
    the dense network first; `drop` as a share, 0.01 is one point; `rule`, one of `RULES`.
    Raises ValueError for a negative drop.
    """
    if not is_number(drop) or not 0 <= drop < 1:
        raise ValueError(f"drop {drop!r} is not a share in [0, 1); 0.01 is one point")
    candidates = sorted(
        {float(v) for card in profile if not card.reason for v in levels(card.singular_values, rule) if v > 0} | {1.0}
    )
    dense = measure({})
    rows = []

    def tried(threshold):
        found = threshold_plan(profile, threshold=threshold, rule=rule, resource=resource)
        value = measure(found)
        if not np.isfinite(value):
            raise ValueError(
                f"the accuracy of the plan at threshold {threshold:.4g} is {value}, not a number to compare by"
            )
        within = bool(value >= dense - drop - 1e-9)
        rows.append(
            {"threshold": threshold, "accuracy": value, "cost": plan_cost(profile, found, resource), "within": within}
        )
        return within, found, value

    low, high = -1, len(candidates) - 1
    best = (1.0, {}, dense)  # where no plan passes, the dense network is the answer
    while high - low > 1:
        middle = (low + high) // 2
        within, found, value = tried(candidates[middle])
        if within:
            high, best = middle, (candidates[middle], found, value)
        else:
            low = middle
    return AdaptiveSearch(*best, dense, pd.DataFrame(rows, columns=["threshold", "accuracy", "cost", "within"]))


def same_ranks(
    model: nn.Module,
    other: nn.Module,
    input_shape: Sequence[int],
    thresholds: Sequence[float] = tuple(t / 100 for t in range(50, 100, 5)) + (0.99,),
) -> bool:
    """Return whether two networks of one shape get the same rank in every layer, by every rule at every threshold.

    Used before weights are stored in half precision: `model` as trained, `other` as rounded.
    """
    for mine, theirs in zip(read_layers(model, input_shape), read_layers(other, input_shape), strict=True):
        a, b = mine.singular_values, theirs.singular_values
        if a is None:
            continue
        if any(rank(a, t, rule) != rank(b, t, rule) for rule in RULES for t in thresholds):
            return False
        if evbmf_rank(a, mine.matrix_shape) != evbmf_rank(b, theirs.matrix_shape):
            return False
    return True
