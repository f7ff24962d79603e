"""Entropy pruning of singular components: one list over the whole network, dropped from the bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.special import entr

from lowrank_utils import checks
from lowrank_utils.factors import svd
from lowrank_utils.network import unfold
from lowrank_utils.network.profile import LayerProfile
from lowrank_utils.network.statistics import Moments
from lowrank_utils.network.unfold import Entry
from lowrank_utils.ranks import rules
from lowrank_utils.ranks.rules import energy_shares

COMPONENT_RULES = ("entropy", "energy", "output", "magnitude", "random")


# Components -----------------------------------------------------------------------------------------------------------


def output_shares(factors: svd.Factors, moments: Moments) -> np.ndarray:
    """Return each component's share of the layer's output energy on data (length k, sums to 1; zeros for no output).

    Component i of W = left @ right gives outputs of mean square |left_i|^2 right_i C right_i^T, with C the covariance
    of the layer's inputs (second moment without a bias). As the left columns are orthogonal, these add up to the whole
    output: for plain factors they are s_i^2 v_i^T C v_i, for data-aware factors the eigenvalues of W C W^T. In the
    spatial and input schemes of a convolution a component is left_i at every offset of the second layer, and components
    overlap: the shares are of the sum of their own energies.

    Parameters: `factors`, a `svd.Factors` of full rank; `moments`, the `statistics.Moments` of the inputs (patches).
    """
    count, offsets = (
        (1, 1)
        if factors.layer is None
        else (unfold.groups(factors.layer), unfold.shared(factors.layer, factors.scheme))
    )
    left, right = (part.reshape(count, *part.shape[-2:]) for part in (factors.left, factors.right))
    if offsets * right.shape[2] != moments.mean.shape[-1]:
        raise ValueError(f"moments of {moments.mean.shape[-1]} inputs do not fit factors of {offsets * right.shape[2]}")
    centred = factors.bias is not None or factors.mean is not None
    spread = (moments.covariance if centred else moments.second_moment).to(right.device)
    spread = spread.reshape(count, *spread.shape[-2:])
    if offsets > 1:
        spread = unfold.by_offset(factors.layer, factors.scheme, spread)
    spread = spread.reshape(count, offsets, right.shape[2], offsets, right.shape[2])
    own = left.reshape(count, -1, offsets, left.shape[2])
    own = torch.einsum("gobr,gocr->grbc", own, own)
    energy = torch.einsum("grbc,grn,gbncm,grm->r", own, right, spread, right)
    energy = energy.clamp(min=0).cpu().numpy()
    return energy / energy.sum() if energy.sum() else energy


def rank_components(
    profile: Sequence[LayerProfile],
    rule: str = "entropy",
    factors: Mapping[str, svd.Factors] | None = None,
    moments: Mapping[str, Moments] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return a DataFrame of all components of the layers that can be factored, the first to be dropped first.

    Columns: layer, component (1 is the largest), share (of the layer's energy, p_i), score (what `rule` gives it) and
    key (the highest score among it and the smaller ones of its layer). Components are sorted by key, so that within a
    layer a larger one never goes before a smaller one. Components whose singular value is zero in float32 come first
    (score and key 0).

    `rule`: ``"entropy"`` -p_i log p_i; ``"energy"`` p_i; ``"output"`` the share of output energy on data
    (`output_shares`); ``"magnitude"`` s_i, not normalised by layer; ``"random"`` uniform numbers from `seed`, the
    largest of a layer for its first component. Parameters: `profile`, of `lowrank_utils.profile`; `factors`, ``{name: Factors}``
    of `replace.decompose_layers`, and `moments`, ``{name: Moments}`` of `statistics.collect_moments`, both for ``"output"`` only.

    Raises ValueError for an unknown rule, for "output" without factors and moments of every layer, and where no
    layer can be factored. Source: Cherukuri & Lala 2025 (entropy); within a layer the order of the values is kept.

    >>> from torch import nn
    >>> from lowrank_utils.network.profile import plan_cost, read_layers
    >>> layer = nn.Linear(3, 3)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0, 1.0])))
    >>> found = rank_components(read_layers(nn.Sequential(layer), (3,)))
    >>> found[["component", "score", "key"]].round(3).values.tolist()
    [[3.0, 0.218, 0.218], [2.0, 0.218, 0.218], [1.0, 0.164, 0.218]]
    """
    if rule not in COMPONENT_RULES:
        raise ValueError(f"unknown rule {rule!r} for components; known: {', '.join(COMPONENT_RULES)}")
    free = [card for card in profile if not card.reason]
    if any(card.singular_values is None for card in free):
        raise ValueError("this profile has no spectra; make it with spectra=True")
    if not free:
        raise ValueError(
            "no layer of this network can be factored: " + "; ".join(f"{c.name}: {c.reason}" for c in profile)
        )
    lacking = [card.name for card in free if card.name not in (factors or {}) or card.name not in (moments or {})]
    if rule == "output" and lacking:
        raise ValueError(f"rule 'output' needs factors and moments of every layer; missing: {', '.join(lacking)}")
    generator = np.random.default_rng(seed)
    tables = []
    for card in free:
        s = np.sort(np.asarray(card.singular_values))[::-1]
        p = energy_shares(s)
        if rule == "output":
            score = output_shares((factors or {})[card.name], (moments or {})[card.name])
            if len(score) != len(s):
                raise ValueError(f"the factors of layer {card.name!r} hold {len(score)} of its {len(s)} components")
        elif rule == "magnitude":
            score = s.copy()
        elif rule == "random":
            score = np.sort(generator.random(len(s)))[::-1]  # sorted: else a long layer would protect itself by chance
        else:
            score = entr(p) if rule == "entropy" else p.copy()
        score[_zero(s, card.shape)] = 0.0
        key = np.maximum.accumulate(score[::-1])[::-1]
        tables.append(
            pd.DataFrame(
                {"layer": card.name, "component": np.arange(1, len(s) + 1), "share": p, "score": score, "key": key}
            )
        )
    table = pd.concat(tables, ignore_index=True)
    place = {card.name: i for i, card in enumerate(free)}
    table = table.assign(place=table["layer"].map(place))
    table = table.sort_values(["key", "place", "component"], ascending=[True, True, False], kind="stable")
    return table.drop(columns="place").reset_index(drop=True)


def _zero(s, shape):
    # weights are float32: what lies below its rounding is no component
    return s <= s[0] * max(shape) * torch.finfo(torch.float32).eps if s[0] else np.ones(len(s), bool)


def components_plan(
    profile: Sequence[LayerProfile],
    kept: float,
    *,
    rule: str = "entropy",
    resource: str = "macs",
    factors: Mapping[str, svd.Factors] | None = None,
    moments: Mapping[str, Moments] | None = None,
    seed: int = 0,
) -> dict[str, Entry]:
    """Return the plan ``{layer: rank}`` left when components are dropped over the whole network until the budget is met.

    Components go in the order of `rank_components`; each layer keeps at least one. Above a layer's break-even
    rank a dropped component saves nothing: the layer stays dense, and is counted so, until its rank is below.
    Components of zero are dropped whatever the budget.

    Parameters: `kept`, share of the carded layers' cost in (0, 1]; `resource`, "parameters" or "macs"; the others as in
    `rank_components`. Raises ValueError where rank 1 in every layer is above the budget.

    >>> from torch import nn
    >>> from lowrank_utils.network.profile import plan_cost, read_layers
    >>> profile = read_layers(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 16)), (64,))
    >>> found = components_plan(profile, 0.3)
    >>> 0.28 < plan_cost(profile, found) / plan_cost(profile, {}) <= 0.3
    True
    """
    checks.check_share(kept=kept)
    order = rank_components(profile, rule, factors, moments, seed)
    order = order[(order["key"] > 0) & (order["component"] > 1)][::-1]
    steps = [(name, int(component)) for name, component in zip(order["layer"], order["component"])]
    return rules.greedy_plan(profile, steps, kept, resource)
