"""Ways in which others choose the ranks of a language model's matrices, as choosers: one share, SVD-LLM V2's, ASVD's.

Each takes a profile and a budget and returns a plan. `names` are the layers that share the budget (default: all that can be
factored); the others stay dense and are counted in `kept`, a share of what all layers cost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from torch import nn

from lowrank_utils import checks
from lowrank_utils.network.profile import Profile, plan_cost
from lowrank_utils.network.unfold import Entry
from lowrank_utils.ranks import search
from lowrank_utils.ranks.search import Options

MOST = 0.9  # of a matrix that SVD-LLM V2's rule may take here
RATIOS = (0.9, 0.7, 0.5)  # shares of a matrix at which ASVD's search measures here; the paper takes 0.9, 0.8, ..., 0.1


def one_share(
    profile: Profile, kept: float, *, resource: str = "macs", names: Collection[str] | None = None
) -> dict[str, Entry]:
    """Return the plan that keeps one share of the cost of every named matrix: the baseline of the literature.

    The rank is the largest whose cost is at most that share of the matrix's. Raises ValueError where rank 1 costs more.

    >>> from lowrank_utils import profile
    >>> one_share(profile(nn.Sequential(nn.Linear(20, 20, bias=False)), input_shape=(20,)), 0.5)
    {'0': 5}
    """
    names = profile.factorable if names is None else list(names)
    share, _ = _inner_share(profile, kept, resource, names)
    return {name: profile[name].entry(_rank_at(profile[name], share, resource)) for name in names}


def truncation_losses(
    profile: Profile, kept: float, *, resource: str = "macs", names: Collection[str] | None = None
) -> dict[str, float]:
    """Return ``{layer: loss}``: the Frobenius norm of what the best factors at one share lose of W X, X all calibration inputs.

    Source: Wang et al. 2025 (SVD-LLM V2), its theoretical truncation loss. Needs the moments of the profile.
    """
    names = profile.factorable if names is None else list(names)
    plan = one_share(profile, kept, resource=resource, names=names)
    # one option a layer beside the dense one, whose error is what is asked for
    options = [
        Options(name, (plan[name], None), np.zeros((2, 1)), {None: profile[name].full_rank}, (resource,))
        for name in names
    ]
    errors = search.output_error(profile, options, points=None)
    energies = search.output_energies(profile, names)
    return {name: float(np.sqrt(errors[name][0] * energies[name])) for name in names}


def svd_llm_v2(
    profile: Profile,
    kept: float,
    *,
    resource: str = "macs",
    names: Collection[str] | None = None,
    losses: Mapping[str, float] | None = None,
) -> dict[str, Entry]:
    """Return the plan of SVD-LLM V2: within each kind of matrix, more is cut where the truncation loss is smaller.

    With R the share to remove and L_i the `losses` (default: `truncation_losses`) of the n matrices of one kind (query, key,
    ...: those whose names differ in their numbers only), matrix i loses the share n R l_i / sum(l), l_i = 1 / log(L_i).
    The rule makes sense for losses above 1 only. Where a kind has a smaller one, which the paper does not treat, its losses
    are divided by the smallest above zero, raised to 1 and multiplied by e first. Shares are held between 0 and 0.9, so that
    rank 1 fits, and the rest of the kind takes what that leaves.

    Raises ValueError where the budget cannot be met. Source: Wang et al. 2025 (SVD-LLM V2, arXiv 2503.12340), algorithm 1.
    """
    names = profile.factorable if names is None else list(names)
    share, least_share = _inner_share(profile, kept, resource, names, 1 - MOST)
    found = truncation_losses(profile, kept, resource=resource, names=names) if losses is None else losses
    plan: dict[str, Entry] = {}
    for kind in dict.fromkeys(_kind(name) for name in names):
        group = [name for name in names if _kind(name) == kind]
        values = np.array([found[name] for name in group])
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"the losses of {kind!r} must be finite numbers, none below zero")
        for name, removed in zip(group, _spread(_v2_weights(values), 1 - share, 1 - least_share)):
            rank = _rank_at(profile[name], 1 - removed, resource)
            if rank <= profile[name].break_even(resource):
                plan[name] = profile[name].entry(rank)
    return plan


def _v2_weights(losses):
    # 1 / log(L), as in the paper where all losses are above 1
    if (losses > 1).all():
        return 1 / np.log(losses)
    least = losses[losses > 0].min(initial=1.0)
    return 1 / np.log(np.maximum(losses / least, 1.0) * np.e)


def _spread(weights, removed, most):
    # shares proportional to the weights, their mean as asked for, none above `most`
    shares = removed * weights / weights.mean()
    for _ in range(len(weights)):
        over = shares > most
        if not over.any() or over.all():
            break
        free = ~over
        missing = removed * len(weights) - most * over.sum()
        shares = np.where(over, most, missing * weights / weights[free].sum())
    return np.clip(shares, 0, most)


def asvd_search(
    profile: Profile,
    kept: float,
    *,
    measure: Callable[[nn.Module], float],
    resource: str = "macs",
    names: Collection[str] | None = None,
    ratios: Sequence[float] = RATIOS,
    factors: str = "asvd",
    values: Mapping[str, np.ndarray] | None = None,
) -> search.SearchResult:
    """Return ASVD's plan: each matrix at the smallest of a few sizes whose loss, with it alone cut, is within one threshold.

    The threshold is the smallest that meets the budget (bisection). `measure` returns the loss of a network on calibration
    inputs and is asked once for each matrix and ratio; `values` of `sensitivities` spare that. Dense is allowed.

    Source: Yuan et al. 2023 (ASVD, arXiv 2312.05821), sensitivity-based truncation rank searching.
    """
    names = profile.factorable if names is None else list(names)
    options = ratio_options(profile, names, ratios, resource)
    losses = sensitivities(profile, options, measure=measure, factors=factors) if values is None else values
    budget, total = search.budget_of(profile, options, kept, resource)

    def at(threshold):
        choice = [int(np.flatnonzero(losses[own.name] <= threshold)[0]) for own in options]
        return choice, sum(own.costs[j, 0] for own, j in zip(options, choice))

    levels = np.unique(np.concatenate([losses[own.name] for own in options]))
    levels = levels[levels >= max(losses[own.name].min() for own in options)]
    fitting = [level for level in levels if at(level)[1] <= budget]
    if not fitting:
        smallest = (at(levels[-1])[1] + search.fixed_cost(profile, options, resource)) / total
        raise ValueError(
            f"kept={kept} of {resource} cannot be reached: the smallest possible is {search.rounded_up(smallest)}"
        )
    choice, _ = at(fitting[0])
    measured = 0 if values is not None else 1 + sum(len(own.entries) - 1 for own in options)
    return search.SearchResult(search.plan_of(options, choice), float(-fitting[0]), evaluations=measured)


def ratio_options(profile: Profile, names: Collection[str], ratios: Sequence[float], resource: str) -> list[Options]:
    """Return the `Options` of a few sizes, each a share of the matrix's cost, by rising cost, and dense."""
    for ratio in ratios:
        checks.check_share(ratio=ratio)
    found = []
    for name in names:
        card = profile[name]
        ranks = sorted({_rank_at(card, ratio, resource) for ratio in ratios})
        entries = [card.entry(rank) for rank in ranks if rank <= card.break_even(resource)] + [None]
        costs = np.array([[card.cost(entry, resource)] for entry in entries], dtype=float)
        found.append(Options(name, tuple(entries), costs, {card.scheme: card.break_even(resource)}, (resource,)))
    return found


def sensitivities(
    profile: Profile, options: Sequence[Options], *, measure: Callable[[nn.Module], float], factors: str = "asvd"
) -> dict[str, np.ndarray]:
    """Return ``{layer: losses}`` of each option, with this layer alone cut; that of the dense network for dense."""
    return search.measured(
        profile, options, measure=measure, factors=factors, points=max(len(o.entries) for o in options)
    )


def _kind(name):
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _rank_at(card, share, resource):
    # the largest rank that costs at most this share of the dense layer, at least 1
    fixed = card.cost(1, resource) - (card.cost(2, resource) - card.cost(1, resource)) if card.full_rank > 1 else 0
    each = card.cost(1, resource) - fixed
    return int(np.clip((share * card.cost(None, resource) - fixed) // each, 1, card.full_rank))


def _inner_share(profile, kept, resource, names, floor=0.0):
    # (the share of the named layers' cost that is left to them, the least: `floor`, or rank 1 in the smallest matrix)
    checks.check_share(kept=kept)
    if not names:
        raise ValueError("names= holds no layer, so there is nothing to share the budget")
    total = plan_cost(profile, {}, resource)
    inside = sum(profile[name].cost(None, resource) for name in names)
    least = max(floor, *(profile[name].cost(1, resource) / profile[name].cost(None, resource) for name in names))
    share = (kept * total - (total - inside)) / inside
    if share < least:
        smallest = (total - inside + least * inside) / total
        raise ValueError(
            f"kept={kept} of {resource} cannot be reached: the smallest possible is {search.rounded_up(smallest)}"
        )
    return share, least
