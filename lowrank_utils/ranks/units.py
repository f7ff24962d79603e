"""Entropy pruning of hidden units: neurons of linear layers and channels of convolutions, removed with all that reads them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import nn

from lowrank_utils import checks
from lowrank_utils.checks import is_whole
from lowrank_utils.factors import replace, svd
from lowrank_utils.network.graph import NORMS, HiddenLayer, hidden_layers
from lowrank_utils.network.modules import conv2d, linear, replaced
from lowrank_utils.network.profile import Profile, plan_cost
from lowrank_utils.network.statistics import Activations, Moments, collect_activations, removable_layers
from lowrank_utils.ranks.components import components_plan

log = logging.getLogger(__name__)
UNIT_RULES = ("entropy", "output", "magnitude", "random")


def rank_units(
    profile: Profile,
    activations: Mapping[str, Activations],
    rule: str = "entropy",
    seed: int = 0,
    *,
    hidden: Sequence[HiddenLayer] | None = None,
) -> pd.DataFrame:
    """Return a DataFrame of all hidden units that can go, the first to be dropped first: layer, unit (from 0), score.

    `rule`: ``"entropy"`` of the activation histogram; ``"output"`` the variance that the unit gives the next layer,
    var |w_out|^2, as a share of its layer (w_out: all weights that read it; the positions of a channel count as if they
    did not depend on each other, though neighbours do); ``"magnitude"`` the norm of its incoming weights over the
    layer's mean norm (Li et al. 2017, with the Euclidean norm; a batch norm behind them is not looked at);
    ``"random"`` uniform numbers from `seed`. Ties keep the order of the network. `hidden`, the layers whose units can go, as for
    `collect_activations`; where no bias may take the mean (``folds``), "output" counts the mean square for the variance.
    Raises ValueError for an unknown rule, and for activations that are not of this network.
    """
    if rule not in UNIT_RULES:
        raise ValueError(f"unknown rule {rule!r} for units; known: {', '.join(UNIT_RULES)}")
    model, generator = profile.model, np.random.default_rng(seed)
    tables = []
    for h in removable_layers(model) if hidden is None else hidden:
        if h.name not in activations or len(activations[h.name].mean) != h.units:
            raise ValueError(f"the activations are not of this network: layer {h.name!r} has {h.units} units")
        seen = activations[h.name]
        with torch.no_grad():
            if rule == "entropy":
                score = seen.entropy
            elif rule == "output":
                gains = (
                    cast(torch.Tensor, model.get_submodule(h.reader).weight)
                    .double()
                    .flatten(1)
                    .square()
                    .sum(0)
                    .view(h.units, h.span)
                )
                given = seen.column_variance + (0 if h.folds else seen.column_mean.square())
                score = (given.to(gains.device) * gains).sum(1)
                score = score / score.sum().clamp(min=torch.finfo(torch.float64).tiny)
            elif rule == "magnitude":
                incoming = [cast(torch.Tensor, model.get_submodule(n).weight) for n in (h.name, *h.beside)]
                score = torch.cat([weight.double().flatten(1) for weight in incoming], 1).norm(dim=1)
                score = score / score.mean().clamp(min=torch.finfo(torch.float64).tiny)
            else:
                score = torch.from_numpy(generator.random(h.units))
        tables.append(pd.DataFrame({"layer": h.name, "unit": np.arange(h.units), "score": score.cpu().numpy()}))
    table = pd.concat(tables, ignore_index=True)
    return table.sort_values("score", kind="stable").reset_index(drop=True)


def units_that_stay(
    profile: Profile,
    order: pd.DataFrame,
    kept: float,
    *,
    resource: str = "macs",
    floor: int = 1,
    hidden: Sequence[HiddenLayer] | None = None,
    within: Sequence[str] | None = None,
) -> dict[str, list[int]]:
    """Return ``{layer: sorted list of the units that stay}``: units are dropped in `order` until the budget is met.

    Each unit takes its row of one layer and its columns of the next along (kh kw of a convolution, one a position of a
    linear layer after a flatten), and its row of a depthwise convolution between; what is saved is counted as it then
    is. Costs are those of the cards, in which no batch norm stands. The size comes out less than one unit below the
    budget, unless the floor holds it up. The order alone decides, whatever a unit costs.

    Parameters: `order`, the DataFrame of `rank_units`; `kept`, share of the cost of the profile's layers in (0, 1], or of those that
    `within` names (`Profile.within`); `floor`, units that every layer keeps at least; `hidden`, the layers that `order` is of.
    Raises ValueError where the budget is below what `floor` units a layer cost, and says what can be reached.
    """
    checks.check_share(kept=kept)
    if not is_whole(floor) or floor < 1:
        raise ValueError(
            f"floor={floor!r} is not a whole number of at least 1: a layer without units passes nothing on"
        )
    named = {h.name: h for h in (removable_layers(profile.model) if hidden is None else hidden)}
    every = [(h.name, unit) for h in named.values() for unit in range(h.units)]
    if sorted(zip(order["layer"], order["unit"])) != sorted(every):
        raise ValueError("the order does not name every hidden unit of this network once; make it with rank_units")
    cards = {layer.name: layer for layer in profile}
    sizes = {name: list(card.shape) for name, card in cards.items()}  # rows, columns as units go
    inside = cards if within is None else profile.within(within)
    total = sum(cards[name].cost(None, resource) for name in inside)

    def drop(name, count=1):
        # what it saves to take `count` units more from a layer
        h = named[name]
        touched = [name, h.reader, *h.beside, *(n for n in h.along if n in cards)]
        before = sum(_dense_cost(cards[n], sizes[n], resource) for n in touched)
        sizes[h.reader][1] -= count * h.span
        for n in touched:
            sizes[n][0] -= count * (n != h.reader)
        return before - sum(_dense_cost(cards[n], sizes[n], resource) for n in touched)

    above = {name: max(h.units - floor, 0) for name, h in named.items()}
    least = (total - sum(drop(name, count) for name, count in above.items())) / total
    if least > kept:
        raise ValueError(
            f"kept={kept} of {resource} cannot be reached by removing units: "
            f"{floor} unit{'s' * (floor > 1)} in every hidden layer keep{'s' * (floor == 1)} {least:.4f}"
        )
    for name, count in above.items():
        drop(name, -count)
    staying = {name: set(range(h.units)) for name, h in named.items()}
    at_floor = set()
    size = total
    for name, unit in zip(order["layer"], order["unit"]):
        if size <= kept * total:
            break
        if len(staying[name]) <= floor:
            if name not in at_floor:
                log.warning("every unit of %s would go: it keeps its last %d", name, floor)
            at_floor.add(name)
            continue
        staying[name].discard(int(unit))
        size -= drop(name)
    return {name: sorted(units) for name, units in staying.items()}


def _dense_cost(card, shape, resource):
    rows, columns = shape
    return rows * columns * card.positions if resource == "macs" else rows * columns + (rows if card.bias else 0)


def remove_units(
    profile: Profile,
    staying: Mapping[str, Collection[int]],
    *,
    activations: Mapping[str, Activations] | None = None,
    moments: Mapping[str, Moments] | None = None,
    hidden: Sequence[HiddenLayer] | None = None,
) -> nn.Module:
    """Return a new model with only the `staying` units of each hidden layer; the profile's model is left as it was.

    A removed unit takes its row of the layer and its columns of the next one along, and its entries of the batch norms
    and depthwise convolutions between. What it gave the next layer is made up for in one of two ways. By `activations`,
    its mean over data is folded into the next bias, b + sum over removed j of w_j mean_j, which keeps the mean output
    where no zeros pad. By `moments`, the next layer is refitted by least squares: with K the columns that stay, G those
    that go, C the covariance of all, W_K + W_G C_GK C_KK^+ and the bias that keeps the mean output. A layer without a
    bias gets one where the fold is not zero, and is refitted to second moments without one; but where a convolution has
    a batch norm right behind it, that takes the bias off its running mean (in train mode it would remove it anyhow).

    A unit that is constant over the data goes without any change of the outputs there, with one exception: a
    convolution that pads with zeros sees the constant break off at the border. There the fold is exact in the interior
    only, the refit the best compromise. A channel that is zero goes without a trace everywhere.

    Parameters: `staying`, ``{layer: units that stay, from 0}`` of `units_that_stay`; `hidden`, the layers whose units can go, as
    for `collect_activations` (one that does not ``fold`` gives its reader no bias); `activations` of `collect_activations`; `moments`,
    ``{reader: Moments}`` of `statistics.collect_moments` for the layers that read them, which takes the place of folding: for a
    convolution those of its patches, I kh kw numbers in the order of ``weight[0].flatten()``.
    Raises ValueError for a layer whose units cannot go, an empty list, and units that are not there.

    >>> from lowrank_utils import profile
    >>> model = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> remove_units(profile(model), {"0": [0, 3]})
    Sequential(
      (0): Linear(in_features=9, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=2, bias=True)
    )
    """
    profile.check_unchanged()
    model = profile.model
    every = {h.name: h for h in (hidden_layers(model) if hidden is None else hidden)}
    rows, inputs, shifts = {}, {}, {}
    for name, units in staying.items():
        if name not in every or every[name].reason:
            why = every[name].reason if name in every else "there is no linear layer or convolution of this name"
            raise ValueError(f"no unit of layer {name!r} can be removed: {why}")
        if any(not is_whole(u) for u in units):
            raise ValueError(f"the units of layer {name!r} that stay must be whole numbers, counted from 0")
        h, units = every[name], sorted({int(u) for u in units})
        if not units:
            raise ValueError(f"every unit of layer {name!r} would go; a layer keeps at least one")
        if units[0] < 0 or units[-1] >= h.units:
            raise ValueError(f"layer {name!r} has units 0 to {h.units - 1}, the plan names {units[0]} to {units[-1]}")
        gone = sorted(set(range(h.units)) - set(units))
        rows |= {n: _columns(units, _entries(model.get_submodule(n)) // h.units) for n in (name, *h.along, *h.beside)}
        mean = _fitting(activations if h.folds else None, name, h.units, 1, "activations")
        about = _fitting(moments, h.reader, h.units, h.span, "moments")
        mean = None if mean is None else mean.flatten()
        reader, stay, gone = model.get_submodule(h.reader), _columns(units, h.span), _columns(gone, h.span)
        inputs[h.reader], shift = _without(reader, stay, gone, mean, about, bool(h.absorber))
        if shift is not None:
            shifts[h.absorber] = shift
    thin = {}
    for name in rows.keys() | inputs.keys() | shifts.keys():
        layer: Any = model.get_submodule(name)
        if isinstance(layer, NORMS):
            thin[name] = _batch_norm(layer, rows.get(name), shifts.get(name))
            continue
        weight, bias = inputs.get(name, (layer.weight.detach(), None if layer.bias is None else layer.bias.detach()))
        if name in rows:
            weight, bias = weight[rows[name]], None if bias is None else bias[rows[name]]
        thin[name] = linear(weight, bias, layer) if isinstance(layer, nn.Linear) else conv2d(weight, bias, layer)
    return replaced(model, thin)


def _entries(module):
    return module.num_features if isinstance(module, NORMS) else module.weight.shape[0]


def _columns(units, span):
    return [unit * span + i for unit in units for i in range(span)]


def _fitting(found, name, units, span, what) -> Any:
    if found is None:
        return None
    if name not in found or len(found[name].mean) != units * span:
        of = f" of {span} columns each" if span > 1 else ""
        raise ValueError(f"the {what} do not fit this network: layer {name!r} needs those of {units} units{of}")
    return found[name].column_mean if what == "activations" else found[name]


def _without(reader, stay, gone, mean, moments, absorbed):
    # weight and bias (float64) of the layer that reads the units, when the columns `gone` are no longer there, and what
    # its outputs rise by, where a batch norm behind it takes that
    weight = reader.weight.detach().double().flatten(1)
    bias = None if reader.bias is None else reader.bias.detach().double()
    kept, rise = weight[:, stay], None
    if moments is not None and gone:
        centred = bias is not None or absorbed
        spread = (moments.covariance if centred else moments.second_moment).to(weight.device)
        inverse = torch.linalg.pinv(spread[stay][:, stay], rtol=1e-10, hermitian=True)
        kept = kept + weight[:, gone] @ spread[gone][:, stay] @ inverse
        if centred:
            about = moments.mean.to(weight.device)
            rise = weight @ about - kept @ about[stay]
    elif mean is not None and gone:
        rise = weight[:, gone] @ mean.to(weight.device)[gone]
    kept = kept.unflatten(1, (-1, *reader.weight.shape[2:])) if isinstance(reader, nn.Conv2d) else kept
    if rise is None or bias is not None:
        return (kept, bias if rise is None else bias + rise), None
    if absorbed:
        return (kept, None), rise
    return (kept, rise if rise.count_nonzero() else None), None


def _batch_norm(like, stay, rise):
    # `like` with the entries `stay` alone, after a rise that its inputs no longer have
    state = like.state_dict()
    if rise is not None and like.running_mean is not None:
        state["running_mean"] = state["running_mean"] - rise.to(state["running_mean"])
    stay = range(like.num_features) if stay is None else stay
    kind = next((value for value in state.values() if value.ndim), torch.empty(0))
    layer = type(like)(
        len(stay), like.eps, like.momentum, like.affine, like.track_running_stats, device=kind.device, dtype=kind.dtype
    )
    layer.load_state_dict({name: value[list(stay)] if value.ndim else value for name, value in state.items()})
    return layer


def units_then_components(
    profile: Profile,
    kept: float,
    *,
    units: float,
    rules: tuple[str, str] = ("output", "output"),
    factors: str = "data-aware",
) -> nn.Module:
    """Return a new model with at most a share `kept` of the layers' parameters: units first, components of the rest second.

    `units` is the share of parameters, from `kept` to 1, that the removal of units leaves (the next layer refitted);
    the rest of the way is gone by dropping singular components. `rules`: one of `UNIT_RULES`, one of
    `components.COMPONENT_RULES`; `factors`, a method of `svd.METHODS`. Layers that the profile holds dense stay
    unfactored. Raises ValueError as the two steps do.
    """
    checks.check_share(kept=kept, units=units)
    if kept > units:
        raise ValueError(f"kept={kept} is more than the share {units} that the removal of units leaves")
    calibration = profile.needed_calibration("the activations of units need")
    seen = collect_activations(profile.model, calibration)
    order = rank_units(profile, seen, rules[0])
    moments = profile.moments_of([h.reader for h in removable_layers(profile.model)])
    stay = units_that_stay(profile, order, units, resource="parameters")
    fewer = Profile(remove_units(profile, stay, moments=moments), calibration, dense=profile.dense)
    names = fewer.factorable
    inputs = fewer.moments_of(names)
    # nothing else can be factored
    layers = {name: cast(nn.Linear | nn.Conv2d, fewer.model.get_submodule(name)) for name in names}
    bases = {name: svd.decompose_layer(layer, factors, inputs[name]) for name, layer in layers.items()}
    share = min(1.0, kept * plan_cost(profile, {}, "parameters") / plan_cost(fewer, {}, "parameters"))
    found = components_plan(fewer, share, rule=rules[1], resource="parameters", factors=bases, moments=inputs)
    return replace.apply_plan(fewer, found, factors=bases, resource="parameters")
