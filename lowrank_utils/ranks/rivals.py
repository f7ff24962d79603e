"""Ways in which others choose the ranks of any network, and a control: BALF, AIMET's greedy search, zero-sum SVD, random ranks.

Each takes a profile and a budget and returns a plan, or a result with `.plan`, of at most the budget. BALF and zero-sum SVD
think in one matrix a layer, so convolutions have to be seen in the channel scheme: ``read.but(scheme="channel")``. Their
factors are `whitened_factors`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lowrank_utils import checks
from lowrank_utils.factors import replace, svd
from lowrank_utils.network import inputs, unfold
from lowrank_utils.network.modules import evaluating, requiring_grad
from lowrank_utils.network.profile import Plan, Profile, if_cheaper, plan_cost
from lowrank_utils.network.unfold import Entry
from lowrank_utils.ranks import published, rules, search

CANDIDATES = 10  # AIMET's default number of compression ratios: 0.1, 0.2, ..., 0.9


def random_plan(profile: Profile, kept: float, *, seed: int = 0, resource: str = "macs") -> dict[str, Entry]:
    """Return a plan of random ranks within the budget, the control for every rule that chooses them.

    Each layer draws a number u in (0, 1]; ranks grow together so that rank / break-even rank is u times one common level,
    and the budget decides the level (`rules.greedy_plan`, as for every rule at a size). A layer whose ranks pass its
    break-even rank is dense.

    Raises ValueError where rank 1 everywhere is above the budget.

    >>> from lowrank_utils import profile
    >>> read = profile(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 16)), input_shape=(64,))
    >>> random_plan(read, 0.4, seed=0) == random_plan(read, 0.4, seed=1)
    False
    """
    checks.check_count(0, seed=seed)
    generator, steps = np.random.default_rng(seed), []
    for card in profile:
        if card.reason:
            continue
        share, most = 1 - generator.random(), card.break_even(resource)
        steps += [(rank / (most * share), card.name, rank) for rank in range(2, min(most + 1, card.full_rank + 1) + 1)]
    return rules.greedy_plan(profile, [(name, rank) for _, name, rank in sorted(steps)], kept, resource)


# Whitened factors -----------------------------------------------------------------------------------------------------


def whitened_factors(profile: Profile, names: Collection[str]) -> dict[str, svd.Factors]:
    """Return ``{layer: Factors}`` of the singular value decomposition of W S, S S^T the second moment of the inputs.

    They are the best for E|(W - W_r) x|^2; no mean is taken out and biases stay, as in BALF, SVD-LLM and zero-sum SVD
    (`svd.decompose_layer` takes the mean where a bias can hold it). Components come in falling order of their singular
    values, each as ``left[:, i]`` times ``right[i]``.

    Raises ValueError for a convolution that the profile sees in a scheme of several offsets.
    """
    moments, found = profile.moments_of(names), {}
    for name in names:
        layer: Any = profile.model.get_submodule(name)
        scheme = _one_offset(profile, name)
        found[name] = svd.decompose_layer(layer, "data-aware", moments[name], scheme, centred=False)
    return found


def _one_offset(profile, name):
    # the scheme in which the profile sees a layer, where that has one matrix and a closed form
    scheme = profile[name].scheme
    if unfold.shared(profile.model.get_submodule(name), scheme) > 1:
        raise ValueError(
            f"layer {name!r} is seen in the {scheme} scheme, in which whitening has no closed form; "
            'read it with profile.but(scheme="channel")'
        )
    return scheme


def whitened_energies(profile: Profile, names: Collection[str]) -> dict[str, np.ndarray]:
    """Return ``{layer: E}``, the share of output energy of ranks 0 to full: sum of the first r squared singular values of W S, over all."""
    moments, found = profile.moments_of(names), {}
    for name in names:
        layer: Any = profile.model.get_submodule(name)
        matrices = unfold.to_matrix(layer, _one_offset(profile, name))
        spread = moments[name].second_moment.to(matrices)
        spread = spread.reshape(len(matrices), *spread.shape[-2:])
        each = [svd.errors_by_rank(matrix, own, 1) for matrix, own in zip(matrices, spread)]
        errors = torch.stack(each).sum(0).cpu().numpy()
        found[name] = 1 - errors / errors[0] if errors[0] > 0 else np.ones(len(errors))
    return found


# BALF -----------------------------------------------------------------------------------------------------------------


def balf(profile: Profile, kept: float, *, resource: str = "macs") -> search.SearchResult:
    """Return BALF's plan: the most energy of whitened layers, summed over all layers, within one budget.

    Each layer's energy is normalised, E_l(r) = sum_{i<=r} s_i^2 / sum s_i^2 with s the singular values of W S
    (`whitened_energies`); a dense layer has 1. The paper solves the multiple-choice knapsack by Lagrangian relaxation;
    here the same problem is solved exactly (`search.exact_search`), so that its value is at least as high. Costs are those
    of the whole network, as for every chooser.

    Raises ValueError where rank 1 everywhere is above the budget, and as `whitened_factors`.
    Source: BALF, budgeted activation-aware low-rank factorization (2025, arXiv 2509.25136), and its public code.
    """
    options = search.rank_options(profile, resource, floor=0)
    energies = whitened_energies(profile, [own.name for own in options])
    values = {
        own.name: np.array([1.0 if entry is None else energies[own.name][_rank(entry)] for entry in own.entries])
        for own in options
    }
    return search.exact_search(profile, kept, resource=resource, options=options, values=values)


def _rank(entry):
    return unfold.parse_entry(entry)[1]


# AIMET ----------------------------------------------------------------------------------------------------------------


def aimet_greedy(
    profile: Profile,
    kept: float,
    *,
    measure: Callable[[nn.Module], float],
    candidates: int = CANDIDATES,
    resource: str = "macs",
    scores: Mapping[str, np.ndarray] | None = None,
) -> search.SearchResult:
    """Return the plan of AIMET's greedy selection of compression ratios, in plain singular value decompositions.

    Every layer is cut alone to each of the ratios 1/n, 2/n, ... (n - 1)/n of its cost, n = `candidates`, and the network is
    scored by `measure` (higher is better), such as its accuracy on validation images. At one threshold for all layers,
    each layer takes the smallest ratio reached before, from the largest ratio down, a score falls below the threshold;
    dense, where the largest one does; the smallest ratio, where even that has a score above. The threshold is the highest
    whose plan meets the budget.

    AIMET bisects the threshold to within 0.1 % of the budget, on either side; here all distinct thresholds are tried and
    none above the budget is taken. Its optional monotone fit of the scores is off, as by default. `scores` of
    `published.sensitivities` for `published.ratio_options` spare the measuring. The plan of a convolution is in the scheme
    of the profile (AIMET: spatial); linear layers, which its spatial SVD leaves alone, are cut by the same search.

    Raises ValueError where the smallest ratio everywhere is above the budget.
    Source: AIMET (Qualcomm), ``GreedyCompRatioSelectAlgo``.
    """
    checks.check_count(2, candidates=candidates)
    ratios = [i / candidates for i in range(1, candidates)]
    options = published.ratio_options(profile, profile.factorable, ratios, resource)
    options = [own for own in options if len(own.entries) > 1]
    found = published.sensitivities(profile, options, measure=measure, factors="svd") if scores is None else scores
    budget, total = search.budget_of(profile, options, kept, resource)
    levels = np.unique(np.concatenate([found[own.name][:-1] for own in options]))
    thresholds = np.concatenate([[levels[-1] + 1], levels, (levels[1:] + levels[:-1]) / 2, [levels[0] - 1]])
    tried = []
    for threshold in np.sort(thresholds)[::-1]:
        choice = [_at_threshold(found[own.name], threshold) for own in options]
        cost = sum(own.costs[j, 0] for own, j in zip(options, choice))
        tried.append(cost)
        if cost <= budget:
            measured = 0 if scores is not None else 1 + sum(len(own.entries) - 1 for own in options)
            return search.SearchResult(search.plan_of(options, choice), float(threshold), evaluations=measured)
    smallest = (min(tried) + search.fixed_cost(profile, options, resource)) / total
    raise ValueError(
        f"kept={kept} of {resource} cannot be reached: the smallest possible is {search.rounded_up(smallest)}"
    )


def _at_threshold(scores, threshold):
    # place of the option that one layer takes; `scores` by rising size, the dense network's last
    cut = scores[:-1]
    if threshold > cut[-1]:
        return len(cut)  # dense
    if threshold < cut[0]:
        return 0
    below = np.flatnonzero(cut < threshold)
    return int(below[-1]) + 1 if len(below) else 0


# Zero-sum SVD ---------------------------------------------------------------------------------------------------------


def loss_gradients(
    profile: Profile, names: Collection[str], labels: torch.Tensor, batch_size: int = 500
) -> dict[str, torch.Tensor]:
    """Return ``{layer: d loss / d weights}`` (float64), the mean cross-entropy of the calibration inputs with their `labels`.

    Raises ValueError where there is not one label an input, and for a gradient that is not finite.
    """
    calibration = profile.needed_calibration("gradients of the loss need")
    if len(labels) != len(calibration):
        raise ValueError(f"{len(labels)} labels do not go with {len(calibration)} calibration inputs")
    model = profile.model
    weights: dict[str, Any] = {name: model.get_submodule(name).weight for name in names}
    found = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
    with evaluating(model), torch.inference_mode(False), torch.enable_grad(), requiring_grad(model, True):
        for batch, wanted in zip(calibration.split(batch_size), labels.split(batch_size)):
            given = inputs.fed(batch, next(model.parameters()))
            logits = inputs.logits(inputs.call(model, given))
            loss = F.cross_entropy(logits, wanted.to(logits.device), reduction="sum") / len(labels)
            for name, slope in zip(weights, torch.autograd.grad(loss, list(weights.values()))):
                found[name] += slope.double()
    bad = next((name for name, slope in found.items() if not torch.isfinite(slope).all()), None)
    if bad is not None:
        raise ValueError(f"the gradient of the loss at layer {bad!r} holds NaN or infinity")
    return found


def first_order_effects(
    profile: Profile, factors: Mapping[str, svd.Factors], gradients: Mapping[str, torch.Tensor]
) -> dict[str, np.ndarray]:
    """Return ``{layer: d}``: by what the loss changes, to first order and with its sign, when component i of a layer is dropped.

    d_i = -left_i^T G right_i with G the gradient in the layout of the factors: -s_i u_i^T G S^-T v_i in whitened coordinates.
    """
    found = {}
    for name, own in factors.items():
        layer: Any = profile.model.get_submodule(name)
        slopes = unfold.to_matrix(layer, own.scheme, gradients[name])
        left, right = (part.reshape(len(slopes), *part.shape[-2:]) for part in (own.left, own.right))
        found[name] = -torch.einsum("gor,gon,grn->r", left, slopes.to(left), right).cpu().numpy()
    return found


def zero_sum(
    profile: Profile, kept: float, *, effects: Mapping[str, np.ndarray], resource: str = "macs"
) -> dict[str, Entry]:
    """Return the plan of zero-sum SVD: components of all layers go one by one, so that the predicted loss stays where it is.

    `effects` of `first_order_effects` for `whitened_factors`. Within a layer the smallest singular value goes first. Of the
    candidates, one a layer, the next to go is that of the smallest absolute effect among those whose sign brings the running
    sum of effects back towards zero; among all, where none has that sign. It ends as soon as the budget is met; each layer
    keeps rank 1. As everywhere here, a component saves nothing until its layer's rank is below break-even.

    The paper's two heaps are read so; its optional gradient step after the truncation is left out.
    Raises ValueError where rank 1 everywhere is above the budget.
    Source: Abbasi et al. 2026 (ZS-SVD, arXiv 2602.02848).
    """
    checks.check_share(kept=kept)
    budget, least = kept * plan_cost(profile, {}, resource), rules.least_plan(profile, resource)
    if plan_cost(profile, least, resource) > budget:
        share = plan_cost(profile, least, resource) / plan_cost(profile, {}, resource)
        raise ValueError(f"kept={kept} of {resource} cannot be reached: rank 1 in every layer keeps {share:.4f}")
    free = {card.name: card for card in profile if card.name in least}
    lacking = [name for name in free if len(effects.get(name, ())) != free[name].full_rank]
    if lacking:
        raise ValueError(f"the effects of layer {lacking[0]!r} are not one a component")
    ranks = {name: card.full_rank for name, card in free.items()}
    size, total = plan_cost(profile, {}, resource), 0.0
    while size > budget:
        heads = {name: float(effects[name][rank - 1]) for name, rank in ranks.items() if rank > 1}
        back = {name: effect for name, effect in heads.items() if effect * total < 0}
        name = min(back or heads, key=lambda one: abs(heads[one]))
        before = _cost(free[name], ranks[name], resource)
        ranks[name] -= 1
        total += heads[name]
        size += _cost(free[name], ranks[name], resource) - before
    return {name: free[name].entry(rank) for name, rank in ranks.items() if if_cheaper(free[name], rank, resource)}


def _cost(card, rank, resource):
    return card.cost(if_cheaper(card, rank, resource), resource)


def whitened_network(profile: Profile, plan: Plan) -> nn.Module:
    """Return the network of a plan of `balf` or `zero_sum`, in `whitened_factors`."""
    return replace.apply_plan(profile, plan, factors=whitened_factors(profile, list(plan)))
