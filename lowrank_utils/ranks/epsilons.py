"""One epsilon for each layer, chosen for the whole network: DDLR's answers as options of a multiple-choice knapsack.

DDLR takes one epsilon for all layers. A layer with an answer at several epsilons has as many options, and staying dense is one more. An
option costs the parameters of its rank, and its damage is how far the network's answers move where only this layer is replaced. Damages
are taken to add up over layers, so that the exact search (`allocation.allocate`) finds the choice of least damage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lowrank_utils.factors import ddlr, ddlr_network
from lowrank_utils.network import inputs
from lowrank_utils.network.modules import evaluating
from lowrank_utils.network.profile import Profile, plan_cost
from lowrank_utils.ranks.allocation import allocate

Answers = Mapping[float, Mapping[str, ddlr.Solution]]  # {epsilon: {layer: answer}}


@dataclass(frozen=True)
class LayerOptions:
    """What one layer may become.

    ``epsilons``, by rising cost: the epsilon of each answer, None for the dense layer; ``ranks``: None where two thin layers would
    not be smaller; ``costs``: parameters of the layer; ``damages``: nats an input.
    """

    name: str
    epsilons: tuple[float | None, ...]
    ranks: tuple[int | None, ...]
    costs: np.ndarray
    damages: np.ndarray


@dataclass(frozen=True)
class EpsilonChoice:
    """The choice of least damage: ``epsilons`` and ``solutions`` by layer (a layer that stays dense is absent), predicted
    ``damage`` (nats an input, no choice of this size has less than ``damage - gap``), and ``parameters`` of the network."""

    epsilons: dict[str, float]
    solutions: dict[str, ddlr.Solution]
    damage: float
    gap: float
    parameters: int


def divergence(profile: Profile, small: nn.Module) -> float:
    """Return the mean Kullback-Leibler divergence, nats an input, of a network's answers from the profile's, over calibration inputs.

    Raises ValueError where the profile has no calibration inputs, or the divergence is no finite number.
    """
    given, apart = profile.needed_calibration("the damage of an answer needs"), []
    device = next(profile.model.parameters()).device
    with torch.inference_mode(), evaluating(profile.model), evaluating(small):
        for batch in given.split(1000):
            whole, cut = (net(batch.to(device)).double() for net in (profile.model, small))
            apart.append(inputs.divergence(whole, cut).flatten())
    found = float(torch.cat(apart).mean())
    if not np.isfinite(found):
        raise ValueError(f"the divergence from the network is {found}, which is no finite number")
    return max(found, 0.0)


def layer_options(profile: Profile, answers: Answers, layers: Sequence[str] | None = None) -> list[LayerOptions]:
    """Return the options of each layer: its answers at every epsilon, and dense.

    Parameters
    ----------
    profile : of the network, with the calibration inputs that damages are measured on (no labels). On inputs that DDLR's program
        saw, an answer looks better than it is: other inputs tell more of its damage.
    answers : DDLR's answers, ``{epsilon: {layer: Solution}}``.
    layers : those to choose for; None: all that the answers hold.

    Raises ValueError where there is no answer, and for a layer that an answer lacks.
    """
    if not answers:
        raise ValueError("there is no answer to choose from: answers is empty")
    names = list(layers if layers is not None else next(iter(answers.values())))
    if not names:
        raise ValueError("there is no layer to choose an epsilon for")
    for epsilon, found in answers.items():
        for name in names:
            if name not in found:
                raise ValueError(f"the answers at epsilon {epsilon:g} have none for layer {name!r}")
    return [_options_of(profile, answers, name) for name in names]


def _options_of(profile: Profile, answers: Answers, name: str) -> LayerOptions:
    card = profile[name]
    lines: list[tuple] = [(card.cost(None, "parameters"), 0.0, None, None)]
    for epsilon, found in answers.items():
        net, plan = ddlr_network.low_rank(profile, {name: found[name]})
        if name in plan:  # where two thin layers would not be smaller, the layer stays as it is
            cost = card.cost(plan[name], "parameters")
            lines.append((cost, divergence(profile, net), epsilon, plan[name]))
    lines.sort(key=lambda line: line[:2])
    costs, damages, epsilons, ranks = zip(*lines, strict=True)
    return LayerOptions(name, epsilons, ranks, np.array(costs, float), np.array(damages))


def choose(profile: Profile, answers: Answers, options: Sequence[LayerOptions], parameters: int) -> EpsilonChoice:
    """Return the `EpsilonChoice` of least damage among networks of at most so many parameters.

    Parameters
    ----------
    profile, answers : as in `layer_options`.
    options : of the layers to choose for.
    parameters : what the whole network may have, biases included; all other layers stay as they are.

    Raises ValueError for a size that no choice reaches, with the smallest that can be reached.
    """
    rest = plan_cost(profile, {}, "parameters") - sum(float(own.costs.max()) for own in options)
    least = rest + sum(float(own.costs.min()) for own in options)
    if least > parameters:
        raise ValueError(f"no choice of epsilons has {parameters:,} parameters: the smallest network has {least:,.0f}")
    best = allocate([-own.damages for own in options], [own.costs for own in options], parameters - rest)
    chosen = {own.name: own.epsilons[place] for own, place in zip(options, best.choice, strict=True)}
    epsilons = {name: epsilon for name, epsilon in chosen.items() if epsilon is not None}
    return EpsilonChoice(
        epsilons=epsilons,
        solutions={name: answers[epsilon][name] for name, epsilon in epsilons.items()},
        damage=-best.value,
        gap=best.gap,
        parameters=int(rest + best.cost[0]),
    )
