"""Pruning of feed-forward neurons in transformers: thinner matrices of stock layers, by the rankings of hidden units."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn

from lowrank_utils.network.feedforward import feed_forward_layers
from lowrank_utils.network.graph import HiddenLayer
from lowrank_utils.network.modules import with_linear_layers
from lowrank_utils.network.profile import Profile
from lowrank_utils.network.statistics import Activations, collect_activations
from lowrank_utils.ranks.units import UNIT_RULES, rank_units, remove_units, units_that_stay

RULES = UNIT_RULES


def neuron_layers(profile: Profile, within: Sequence[str] | None = None) -> list[HiddenLayer]:
    """Return the feed-forward layers of the profile's network (`feedforward.feed_forward_layers`), those wholly `within` the named layers.

    Raises ValueError where there is none, and for a profile without calibration inputs.
    """
    example = profile.needed_calibration("finding feed-forward layers needs")[:1]
    found = feed_forward_layers(profile.model, example)
    if within is not None:
        names = set(profile.within(within))
        found = [h for h in found if names.issuperset({h.name, h.reader, *h.beside})]
    if not found:
        where = "" if within is None else f" within {', '.join(within)}"
        raise ValueError(
            f"there is no feed-forward layer{where} whose neurons could be removed: no linear layer reads what others give it "
            "neuron by neuron; of a network with Conv1D layers take modules.with_linear_layers first"
        )
    return found


def prune_neurons(
    profile: Profile,
    kept: float,
    *,
    rule: str = "output",
    within: Sequence[str] | None = None,
    even: bool = False,
    resource: str = "parameters",
    floor: int = 1,
    fold: bool = True,
    refit: bool = False,
    seed: int = 0,
    activations: Mapping[str, Activations] | None = None,
) -> nn.Module:
    """Return a new model with fewer feed-forward neurons, the lowest of the whole network removed until a share `kept` is left.

    A neuron takes its row of W_gate and W_up (or of W_1) and its column of W_down (W_2) along. Layers stay stock layers.

    Parameters
    ----------
    profile : of the network, with at least two calibration inputs.
    kept : share in (0, 1] of the `resource` ("parameters", "macs") of the named layers, whatever is not feed-forward
        among them included.
    rule : "entropy" of the histogram of a neuron's values over data (Luo & Wu 2017); "output", the mean square of what it
        adds to the next layer's outputs, E[a^2] |w_down|^2, as a share of its layer (the variance where a bias takes the
        mean); "magnitude" of its incoming weights over the layer's mean; "random". See `units.rank_units`.
    within : layers that share the budget, by name or pattern, such as ``["model.layers.*"]``; all layers by default.
    even : whether every layer keeps the same share of its neurons, the highest in the rank order of the layer. Of layers
        equally wide all keep the same number, and the size may come out below the budget by one neuron a layer. Without it
        a layer in which a few neurons give nearly everything, as in many language models, may lose nearly all others.
    floor : neurons that every layer keeps at least.
    fold : whether the mean of a removed neuron goes into the next layer's bias, where there is one.
    refit : whether the next layer is refitted by least squares to what it gave before (`units.remove_units`); that takes
        many more tokens than a layer has neurons, or it fits noise.
    seed : of the rule "random".
    activations : of `collect_activations` with ``hidden=neuron_layers(profile)``, where they are at hand.

    Where all layers of a transformers model end at one width its ``config`` says so, and ``save_pretrained`` and
    ``from_pretrained`` work; other networks are saved by `checkpoints.save_compressed`. Raises ValueError for a network
    without feed-forward layers, an unknown rule, and a budget that cannot be reached.

    >>> from lowrank_utils import profile
    >>> mlp = nn.Sequential(nn.Linear(4, 10), nn.GELU(), nn.Linear(10, 4))
    >>> prune_neurons(profile(mlp, torch.randn(20, 4)), 0.51)  # of 94: 4, and 9 a neuron
    Sequential(
      (0): Linear(in_features=4, out_features=4, bias=True)
      (1): GELU(approximate='none')
      (2): Linear(in_features=4, out_features=4, bias=True)
    )
    """
    hidden = neuron_layers(profile, within)
    if not fold:
        hidden = [dataclasses.replace(h, folds=False) for h in hidden]
    if activations is None:
        calibration = profile.needed_calibration("the activations of neurons need")
        activations = collect_activations(profile.model, calibration, hidden=hidden)
    order = rank_units(profile, activations, rule, seed, hidden=hidden)
    order = _in_turns(order) if even else order
    how: dict[str, Any] = {"resource": resource, "floor": floor, "within": within}
    staying = units_that_stay(profile, order, kept, hidden=hidden, **how)
    if even and len({h.units for h in hidden}) == 1:
        staying = _levelled(staying, order)
    moments = profile.moments_of([h.reader for h in hidden]) if refit else None
    small = remove_units(profile, staying, activations=activations, moments=moments, hidden=hidden)
    _state_width(small, {h.units for h in hidden}, {len(units) for units in staying.values()})
    return small


def _in_turns(order: pd.DataFrame) -> pd.DataFrame:
    # each layer loses its lowest neuron, then each its second lowest; wider layers more often
    by_layer = order.groupby("layer", sort=False)["unit"]
    place = (by_layer.cumcount() + 1) / by_layer.transform("size")
    return order.iloc[place.argsort(kind="stable")].reset_index(drop=True)


def _levelled(staying, order):
    # the last round of removals, which the budget may have cut short, taken to its end
    least = min(map(len, staying.values()))
    last = order.groupby("layer", sort=False)["unit"]
    return {name: sorted(last.get_group(name).tail(least).tolist()) for name in staying}


def _state_width(model: Any, before: set[int], after: set[int]) -> None:
    """Let the ``config`` of a transformers model, `model`, name its new width, where one entry of it can.

    No entry is known by a name of a model family: one that held the old width, or none (``n_inner``), is the right one if
    the network that the config then describes has the shapes of `model`.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict") or len(before) > 1 or len(after) > 1 or before == after:
        return
    (old,), (new,) = before, after
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    for name, value in config.to_dict().items():
        if value is not None and (isinstance(value, bool) or value != old):
            continue
        trial = copy.deepcopy(config)
        try:
            setattr(trial, name, new)
            with torch.device("meta"):  # shapes alone, no numbers
                described = with_linear_layers(type(model)(trial))
        except Exception:  # what another entry at this number makes of a network is an error of any kind
            continue
        if {key: held.shape for key, held in described.state_dict().items()} == shapes:
            setattr(config, name, new)
            return
