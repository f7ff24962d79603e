"""What a network is made of: one card a layer with its costs and spectrum, and layers replaced by thin ones.

A *plan* is a plain dict from layer name to rank; a layer that is absent stays dense. Costs are those of the
project's one ledger: multiply-accumulates (MACs) for one input, and parameters with biases counted.
"""

import logging
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import nn

from . import factors as factors_room
from . import models
from .sequential import sweep

log = logging.getLogger(__name__)

RESOURCES = ("parameters", "macs")
SWEEPS = ("sequential", "relu-aware", "fisher-weighted")  # factors that depend on the whole plan: see `sequential.sweep`


@dataclass(frozen=True)
class Card:
    """One layer with weights, as `survey` saw it.

    ``shape`` of the weight matrix (d_out, d_in); ``positions``: how often the matrix is applied for one input
    (1 for an MLP); ``parameters`` with the bias; ``macs`` for one input; ``singular_values`` (float64, falling)
    or None; ``reason`` says why the layer cannot be factored, and is empty where it can.
    """

    name: str
    kind: str
    shape: tuple
    bias: bool
    positions: int
    parameters: int
    macs: int
    singular_values: np.ndarray | None = None
    reason: str = ""

    @property
    def full_rank(self):
        """min(d_out, d_in)."""
        return min(self.shape)

    def cost(self, rank=None, resource="parameters"):
        """Return the cost of the layer at `rank`, or dense where `rank` is None.

        rank (d_in + d_out) weights, times positions for MACs, plus the bias for parameters.

        >>> Card("fc", "linear", (300, 784), True, 1, 235500, 235200).cost(10)
        11140
        """
        _check_resource(resource)
        rows, columns = self.shape
        if rank is None:
            return self.parameters if resource == "parameters" else self.macs
        # a zero matrix has rank 0 and is written as one component of zeros
        weights = max(rank, 1) * (rows + columns)
        if resource == "macs":
            return weights * self.positions
        return weights + (rows if self.bias else 0)

    def break_even(self, resource="parameters"):
        """Return the largest rank that costs less than the dense layer; 0 where none does.

        Largest whole r < d_in d_out / (d_in + d_out); the same for MACs and parameters in a linear layer.

        >>> Card("fc", "linear", (300, 784), True, 1, 235500, 235200).break_even()
        216
        """
        _check_resource(resource)
        rows, columns = self.shape
        return (rows * columns - 1) // (rows + columns)


def check_share(**shares):
    """Raise ValueError for the first keyword whose value is no number in (0, 1].

    >>> check_share(threshold=0.9, kept=1)
    >>> check_share(threshold=1.5)
    Traceback (most recent call last):
    ValueError: threshold=1.5 is not a share in (0, 1]
    """
    for name, value in shares.items():
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real) or not 0 < value <= 1:
            raise ValueError(f"{name}={value!r} is not a share in (0, 1]")


def _check_resource(resource):
    if resource not in RESOURCES:
        raise ValueError(f"unknown resource {resource!r}; known: {', '.join(RESOURCES)}")


def survey(model, input_shape, spectra=True, dense=()):
    """Return a list of `Card`, one for every layer with weights, in the order of ``model.named_modules()``.

    Parameters: `model`, any ``nn.Module``; `input_shape`, the shape of one input without the batch axis, e.g.
    (1, 28, 28); `spectra`, whether to compute singular values (float64); `dense`, names of layers to leave dense,
    such as the classifier: they are counted, and no plan touches them.

    The model sees one input of zeros in eval mode, which counts how often each layer is used. Linear layers can
    be factored; every other layer with a weight matrix or kernel is listed with the reason why it is left alone.
    Raises ValueError where the weights are not finite, the network cannot take `input_shape`, or `dense` names a
    layer that is not there.

    >>> cards = survey(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8))
    >>> cards[0].name, cards[0].macs, cards[0].break_even()
    ('1', 640, 8)
    """
    absent = set(dense) - {name for name, _ in model.named_modules()}
    if absent:
        raise ValueError(f"dense= names a layer that the model does not have: {', '.join(sorted(absent))}")
    uses = _count_uses(model, input_shape)
    owners = _owners(model)
    counted = set()
    cards = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not torch.is_tensor(weight) or weight.ndim < 2:
            continue
        positions = uses.get(name, 0)
        linear = type(module) is nn.Linear  # a subclass may compute something else
        reason = ""
        if "weight" not in module._parameters:
            reason = "its weight is computed from other parameters"
        elif not linear:
            reason = f"a layer of type {type(module).__name__} is not factored"
        elif len(owners.get(id(weight), ())) > 1:
            reason = "its weight is shared with " + ", ".join(n for n in owners[id(weight)] if n != name)
        elif name in dense:
            reason = "left dense on request"
        elif not positions:
            reason = "no input reaches it in a forward pass"
        if not torch.isfinite(weight).all():
            raise ValueError(f"layer {name!r} holds NaN or infinite weights; a spectrum needs finite ones")
        values = None
        if spectra and linear:
            values = torch.linalg.svdvals(weight.detach().double()).cpu().numpy()
        bias = torch.is_tensor(getattr(module, "bias", None))
        cards.append(
            Card(
                name=name,
                kind=type(module).__name__.lower(),
                shape=(weight.shape[0], weight[0].numel()),
                bias=bias,
                positions=positions,
                parameters=weight.numel() * (id(weight) not in counted) + (module.bias.numel() if bias else 0),
                macs=weight.numel() * positions,
                singular_values=values,
                reason=reason,
            )
        )
        counted.add(id(weight))  # a shared weight is stored once, and counts where it is met first
    return cards


def _owners(model):
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight")
        if weight is not None:
            found.setdefault(id(weight), []).append(name)
    return found


def _count_uses(model, input_shape):
    uses, hooks = {}, []

    def watch(name):
        def hook(module, inputs, output):
            # every output number of a channel is one application of that channel's row of the weight matrix
            channels = module.weight.shape[0]
            uses[name] = uses.get(name, 0) + output.numel() // channels

        return hook

    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            hooks.append(module.register_forward_hook(watch(name)))
    first = next(model.parameters(), None)
    device, dtype = (first.device, first.dtype) if first is not None else ("cpu", torch.float32)
    try:
        with models.evaluating(model):
            model(torch.zeros(1, *input_shape, device=device, dtype=dtype))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the network cannot take one input of shape {tuple(input_shape)}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return uses


def plan_cost(cards, plan, resource="parameters"):
    """Return the cost of the carded layers under `plan` (int); layers that do not pay count as dense.

    Batch norms and other layers without a weight matrix are in no card; `score.parameters` counts them too.
    """
    return sum(card.cost(settle(card, plan.get(card.name), resource), resource) for card in cards)


def settle(card, rank, resource="parameters"):
    """Return `rank` where it is cheaper than the dense layer in `resource`, else None: the layer stays dense.

    >>> card = Card("fc", "linear", (300, 784), True, 1, 235500, 235200)
    >>> settle(card, 216), settle(card, 217)
    (216, None)
    """
    return None if rank is None or max(rank, 1) > card.break_even(resource) else rank


def least_plan(cards, resource="parameters"):
    """Return the smallest plan: rank 1 wherever it pays, rank 0 for a layer of zeros."""
    ones = {card.name: int(np.any(card.singular_values)) for card in cards if not card.reason}
    return {card.name: ones[card.name] for card in cards if settle(card, ones.get(card.name), resource) is not None}


def grow(cards, steps, kept, resource="parameters"):
    """Return the plan with at most a share `kept` of the carded layers' cost, grown from rank 1 everywhere.

    `steps` is a list of (layer name, rank), for each layer with rising ranks: components enter in this order, until
    the next one does not fit; then, while the size is more than half a percent under the budget, later ones of other
    layers that still fit. A rank past the break-even rank stands for the dense layer.

    Raises ValueError where `kept` is no share, or the smallest plan is above the budget.

    >>> cards = survey(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 16)), (64,))
    >>> grow(cards, [("0", 2), ("1", 2), ("1", 3)], 0.12)
    {'0': 2, '1': 1}
    """
    check_share(kept=kept)
    total = plan_cost(cards, {}, resource)
    budget = kept * total
    free = {card.name: card for card in cards if not card.reason}
    found = least_plan(cards, resource)
    size = plan_cost(cards, found, resource)
    if size > budget:
        raise ValueError(f"kept={kept} of {resource} cannot be reached: rank 1 in every layer keeps {size / total:.4f}")
    blocked = False
    for name, step in steps:
        if blocked and size >= 0.995 * budget:
            break
        if name not in found:
            continue
        card = free[name]
        before = card.cost(settle(card, found[name], resource), resource)
        change = card.cost(settle(card, step, resource), resource) - before
        if size + change > budget:
            blocked = True  # and later steps of this layer cost more still
            continue
        found[name] = step
        size += change
    return {name: r for name, r in found.items() if settle(free[name], r, resource) is not None}


def apply(model, plan, factors="svd", calibration=None, resource="parameters"):
    """Return a new model with the planned layers replaced by stock thin ones; `model` is left as it was.

    Parameters: `plan`, ``{layer name: rank}``; `factors`, a method of `factors.METHODS`, one of `SWEEPS`, or the factors themselves,
    ``{layer name: factors.Factors}`` as `decompose` returns them; `calibration`, network inputs (N first) for
    methods that need data. A rank that would not be cheaper in `resource` than the layer leaves the layer dense,
    and says so in the log.

    Raises ValueError for a layer that is not there or cannot be factored, and for a rank outside 1..full.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> apply(model, {"1": 4})[1]
    Sequential(
      (first): Linear(in_features=64, out_features=4, bias=False)
      (second): Linear(in_features=4, out_features=10, bias=True)
    )
    """
    _check_resource(resource)
    modules, owners = dict(model.named_modules()), _owners(model)
    chosen = {}
    for name, rank in plan.items():
        if name not in modules:
            raise ValueError(f"the plan names a layer {name!r} that the model does not have")
        layer = modules[name]
        if type(layer) is not nn.Linear:
            raise ValueError(f"layer {name!r} of type {type(layer).__name__} cannot be factored")
        if len(owners.get(id(layer._parameters.get("weight")), ())) > 1:
            raise ValueError(f"layer {name!r} shares its weight with another, so it cannot be factored alone")
        rows, columns = layer.weight.shape
        if not isinstance(rank, (int, np.integer)) or isinstance(rank, bool) or not 0 <= rank <= min(rows, columns):
            raise ValueError(f"rank {rank!r} of layer {name!r} is not a whole number from 1 to {min(rows, columns)}")
        if max(int(rank), 1) * (rows + columns) >= rows * columns:
            log.info("%s stays dense: rank %d costs no less than its %d weights", name, rank, rows * columns)
            continue
        chosen[name] = int(rank)
    if isinstance(factors, str) and factors in SWEEPS:
        if calibration is None:
            raise ValueError(f"factors={factors!r} need calibration images; pass calibration=")
        options = {"relu-aware": {"relu": True}, "fisher-weighted": {"weighted": True}}.get(factors, {})
        return sweep(model, {name: max(rank, 1) for name, rank in chosen.items()}, calibration, **options)
    if isinstance(factors, str):
        factors = decompose(model, list(chosen), factors, calibration)
    missing = [name for name in chosen if name not in factors]
    if missing:
        raise ValueError(f"no factors were given for the planned layers {', '.join(missing)}")
    for name in chosen:
        wanted, held = tuple(modules[name].weight.shape), (factors[name].left.shape[0], factors[name].right.shape[1])
        if wanted != held:
            raise ValueError(f"layer {name!r} has weights of shape {wanted}, its factors make {held}")
    return models.replaced(model, {name: factors[name].layers(rank) for name, rank in chosen.items()})


def decompose(model, names, method="svd", calibration=None):
    """Return ``{name: factors.Factors}`` for the named layers of `model`, good for every rank.

    One decomposition serves a whole sweep of plans. See `factors.decompose` and `factors.collect`.
    """
    moments = {}
    if method != "svd" and names:
        if calibration is None:
            raise ValueError(f"factors={method!r} need calibration images; pass calibration=")
        if method in factors_room.METHODS:
            moments = factors_room.collect(model, names, calibration)
    found = {}
    for name in names:
        try:
            found[name] = factors_room.decompose(model.get_submodule(name), method, moments.get(name))
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
    if not names and method not in factors_room.METHODS:
        raise ValueError(f"unknown factors {method!r}; known: {', '.join(factors_room.METHODS + SWEEPS)}")
    return found
