"""What a network is made of: one card a layer with its costs and spectrum, and layers replaced by thin ones.

A *plan* is a plain dict from layer name to rank, or to (scheme, rank) for a convolution (see `schemes`); a layer that
is absent stays dense. Costs are those of the project's one ledger: multiply-accumulates (MACs) for one input, and
parameters with biases counted.
"""

import contextlib
import logging
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from . import factors as factors_room
from . import models, schemes
from .schemes import parse
from .sequential import followed_by, into_norm, owners, sweep

log = logging.getLogger(__name__)

RESOURCES = ("parameters", "macs")
GRAM_FROM = 1024  # rows and columns from which singular values come from W W^T, ten times faster; good to about 1e-7 of the largest
SWEEPS = (
    "sequential",
    "relu-aware",
    "fisher-weighted",
)  # factors that depend on the whole plan: see `sequential.sweep`


@dataclass(frozen=True)
class Card:
    """One layer with weights, as `survey` saw it.

    ``shape`` of the weights as a matrix (d_out, d_in), for a convolution (O, I kh kw); ``positions``: how often this
    matrix is applied for one input (1 for an MLP); ``parameters`` with the bias; ``macs`` for one input;
    ``singular_values`` (float64, falling) or None; ``reason`` says why the layer cannot be factored, and is empty where
    it can. Of a convolution ``scheme`` is the one that ranks and spectrum are about, and ``costs`` has those of all its
    schemes; the spectrum of a grouped one is the root mean square over its groups.
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
    scheme: str | None = None
    costs: dict | None = None

    def _cost(self, scheme):
        if not self.costs:
            rows, columns = self.shape
            return schemes.Cost(min(self.shape), rows + columns, (rows + columns) * self.positions, self.shape)
        scheme = self.scheme if scheme is None else scheme
        if scheme not in self.costs:
            raise ValueError(
                f"layer {self.name!r} has no scheme {scheme!r}; it has {', '.join(map(str, self.costs)) or 'none'}"
            )
        return self.costs[scheme]

    @property
    def full_rank(self):
        """The full rank of the matrix in the card's scheme: min(rows, columns)."""
        return self._cost(None).full_rank

    @property
    def matrix_shape(self):
        """(rows, columns) of the matrix in the card's scheme: `shape` for a linear layer."""
        return self._cost(None).shape

    def entry(self, rank):
        """Return what a plan says of this layer at `rank`: the rank, or (scheme, rank) for a convolution."""
        return rank if self.scheme is None else (self.scheme, rank)

    def cost(self, rank=None, resource="parameters"):
        """Return the cost of the layer at `rank` (or at an entry of a plan), or dense where `rank` is None.

        For a linear layer rank (d_in + d_out) weights, times positions for MACs, plus the bias for parameters.

        >>> Card("fc", "linear", (300, 784), True, 1, 235500, 235200).cost(10)
        11140
        """
        _check_resource(resource)
        if rank is None:
            return self.parameters if resource == "parameters" else self.macs
        scheme, rank = parse(rank)
        each = self._cost(scheme)
        # a zero matrix has rank 0 and is written as one component of zeros
        if resource == "macs":
            return max(rank, 1) * each.macs
        return max(rank, 1) * each.parameters + (self.shape[0] if self.bias else 0)

    def break_even(self, resource="parameters", scheme=None):
        """Return the largest rank that costs less than the dense layer; 0 where none does.

        Largest whole r < d_in d_out / (d_in + d_out); the same for MACs and parameters in a linear layer, not in a
        strided convolution.

        >>> Card("fc", "linear", (300, 784), True, 1, 235500, 235200).break_even()
        216
        """
        _check_resource(resource)
        each = self._cost(scheme)
        if resource == "macs" and self.macs:
            return min((self.macs - 1) // each.macs, each.full_rank)
        weights = self.parameters - (self.shape[0] if self.bias else 0)
        return min((weights - 1) // each.parameters, each.full_rank)


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


def survey(model, input_shape, spectra=True, dense=(), scheme=None):
    """Return a list of `Card`, one for every layer with weights, in the order of ``model.named_modules()``.

    Parameters: `model`, any ``nn.Module``; `input_shape`, the shape of one input without the batch axis, e.g.
    (1, 28, 28); `spectra`, whether to compute singular values (float64); `dense`, names of layers to leave dense,
    such as the classifier or the first layer: they are counted, and no plan touches them; `scheme`, the one of
    `schemes.NAMES` that convolutions are seen in, or ``{layer: scheme}`` (default: spatial). A layer that does not have
    it, such as a 1 x 1 convolution, takes its usual one.

    The model sees one input of zeros in eval mode, which counts how often each layer is used. Linear layers and 2-D
    convolutions can be factored; every other layer with a weight matrix or kernel is listed with the reason why it is
    left alone, its MACs counted by torch. Raises ValueError where the weights are not finite, the network cannot take
    `input_shape`, or `dense` names a layer that is not there.

    >>> cards = survey(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8))
    >>> cards[0].name, cards[0].macs, cards[0].break_even()
    ('1', 640, 8)
    """
    asked = scheme if isinstance(scheme, dict) else {}
    absent = (set(dense) | set(asked)) - {name for name, _ in model.named_modules()}
    if absent:
        what = "dense=" if absent & set(dense) else "scheme="
        raise ValueError(f"{what} names a layer that the model does not have: {', '.join(sorted(absent))}")
    for wanted in asked.values() if asked else [scheme]:
        if wanted not in (None, *schemes.NAMES):
            raise ValueError(f"unknown scheme {wanted!r}; known: {', '.join(schemes.NAMES)}")
    models.check_there(model)
    uses, calls, counted_macs = _count_uses(model, input_shape)
    own_path = {id(part) for block in model.modules() if isinstance(block, nn.TransformerEncoderLayer) for part in (block.linear1, block.linear2)}
    holders = owners(model)
    counted = set()
    cards = []
    for name, module in model.named_modules():
        computed = isinstance(getattr(module, "weight", None), torch.Tensor) and "weight" not in module._parameters
        if isinstance(module, parametrize.ParametrizationList):
            continue  # counted with the weight that it computes
        weight = module.weight if computed else module._parameters.get("weight")
        if weight is None or weight.ndim < 2:
            weight = next((p for p in module._parameters.values() if p is not None and p.ndim > 1), None)
            if weight is None:
                continue
        used = uses.get(name, {"inputs": 0, "outputs": 0, "between": 0})
        known = schemes.allowed(module)
        reason = ""
        if computed:
            reason = "its weight is computed from other parameters"
        elif not known:
            reason = schemes.reason(module)
        elif id(module) in own_path:
            reason = "nn.TransformerEncoderLayer reads its weight past the layer"
        elif len(holders.get(id(weight), ())) > 1:
            reason = "its weight is shared with " + ", ".join(n for n in holders[id(weight)] if n != name)
        elif calls.get(name, 0) > 1:
            reason = f"it is used {calls[name]} times in one pass"
        elif name in dense:
            reason = "left dense on request"
        elif not used["outputs"]:
            reason = "no input reaches it in a forward pass"
        if not torch.isfinite(weight).all():
            raise ValueError(f"layer {name!r} holds NaN or infinite weights; a spectrum needs finite ones")
        own = asked.get(name) if isinstance(scheme, dict) else scheme
        own = own if own in known else (known or (None,))[0]
        values = None
        if spectra and known:
            values = _singular_values(module, own).square().mean(0).sqrt().cpu().numpy()
        bias = torch.is_tensor(getattr(module, "bias", None))
        if name in uses:
            macs = weight.numel() * used["outputs"]
        else:
            macs = counted_macs.get(name, 0)
        cards.append(
            Card(
                name=name,
                kind=type(module).__name__.lower(),
                shape=(weight.shape[0], weight[0].numel()),
                bias=bias,
                positions=used["outputs"],
                parameters=_own_parameters(module, counted) + (weight.numel() if computed else 0),
                macs=macs,
                singular_values=values,
                reason=reason,
                scheme=own,
                costs=schemes.costs(module, **used) if known else {},
            )
        )
    return cards


def _singular_values(layer, scheme):
    # groups x full rank, float64
    if min(schemes.costs(layer)[scheme].shape) < GRAM_FROM:
        return torch.linalg.svdvals(schemes.to_matrix(layer, scheme))
    matrix = schemes.to_matrix(layer, scheme, dtype=layer.weight.dtype)
    matrix = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.mT
    gram = 0.0
    for part in matrix.split(4096, dim=2):  # a double copy of the whole would be the largest thing in memory
        gram = gram + part.double() @ part.double().mT
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(1)


def _own_parameters(module, counted):
    # a shared parameter is stored once, and counts where it is met first
    total = 0
    for value in module._parameters.values():
        if value is not None and id(value) not in counted:
            counted.add(id(value))
            total += value.numel()
    return total


def _count_uses(model, input_shape):
    # positions at which each layer is applied for one input, how often it is called, and the MACs of the other modules by
    # torch's own counter
    uses, calls, hooks = {}, {}, []

    def watch(name):
        def hook(module, args, kwargs, output):
            seen = uses.setdefault(name, {"inputs": 0, "outputs": 0, "between": 0})
            calls[name] = calls.get(name, 0) + 1
            x = schemes.given(args, kwargs)
            if isinstance(module, nn.Linear):
                seen["outputs"] += output.numel() // output.shape[-1]
                return
            seen["outputs"] += output[0, 0].numel()
            seen["inputs"] += x[0, 0].numel()
            seen["between"] += output.shape[-2] * x.shape[-1] if x.ndim == 4 else 0

        return hook

    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            hooks.append(module.register_forward_hook(watch(name), with_kwargs=True))
    first = next(model.parameters(), None)
    device, dtype = (first.device, first.dtype) if first is not None else ("cpu", torch.float32)
    try:
        known = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, parametrize.ParametrizationList)
        others = [module for module in model.modules() if not isinstance(module, known)]
        others = any(p.ndim > 1 for m in others for p in m._parameters.values() if p is not None)
        counter = FlopCounterMode(display=False)
        with models.evaluating(model), counter if others else contextlib.nullcontext():
            model(torch.zeros(1, *input_shape, device=device, dtype=dtype))
    except Exception as error:  # a reader's own network fails in errors of many kinds
        raise ValueError(f"the network cannot take one input of shape {tuple(input_shape)}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not others:
        return uses, calls, {}
    root = type(model).__name__
    found = {
        key.removeprefix(root).lstrip("."): sum(ops.values()) // 2 for key, ops in counter.get_flop_counts().items()
    }
    inner = {
        name: found.get(name, 0) - sum(found.get(f"{name}.{child}", 0) for child, _ in module.named_children())
        for name, module in model.named_modules()
    }
    return uses, calls, inner


def plan_cost(cards, plan, resource="parameters"):
    """Return the cost of the carded layers under `plan` (int); layers that do not pay count as dense.

    Batch norms and other layers without a weight matrix are in no card; `score.parameters` counts them too.
    """
    return sum(card.cost(settle(card, plan.get(card.name), resource), resource) for card in cards)


def settle(card, rank, resource="parameters"):
    """Return `rank` (or the entry of a plan) where it is cheaper than the dense layer in `resource`, else None: the layer stays dense.

    >>> card = Card("fc", "linear", (300, 784), True, 1, 235500, 235200)
    >>> settle(card, 216), settle(card, 217)
    (216, None)
    """
    if rank is None or card.reason:
        return None
    scheme, number = parse(rank)
    return None if max(number, 1) > card.break_even(resource, scheme) else rank


def least_plan(cards, resource="parameters"):
    """Return the smallest plan: rank 1 wherever it pays, rank 0 for a layer of zeros."""
    ones = {card.name: int(np.any(card.singular_values)) for card in cards if not card.reason}
    return {c.name: c.entry(ones[c.name]) for c in cards if settle(c, ones.get(c.name), resource) is not None}


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
    found = {name: parse(planned)[1] for name, planned in least_plan(cards, resource).items()}
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
    return {name: free[name].entry(r) for name, r in found.items() if settle(free[name], r, resource) is not None}


def apply(model, plan, factors="svd", calibration=None, resource="parameters", input_shape=None, **options):
    """Return a new model with the planned layers replaced by stock thin ones; `model` is left as it was.

    Parameters: `plan`, ``{layer name: rank}``, or ``(scheme, rank)`` for a convolution; `factors`, a method of
    `factors.METHODS`, one of `SWEEPS`, or the factors themselves, ``{layer name: factors.Factors}`` as `decompose`
    returns them; `calibration`, network inputs (N first) for methods that need data; `options` of `sequential.sweep`. A
    rank that would not be cheaper in `resource` than the layer leaves the layer dense, and says so in the log; with
    `resource` None every rank is built. MACs are those on inputs of `input_shape` (default: the shape of the
    `calibration`), as on the cards of `survey`; without either those of a large image, which are not the cards' on
    small or odd maps. Where factors need a bias and the layer has none, the batch norm that follows takes it into its
    running mean.

    Raises ValueError for a layer that is not there or cannot be factored, a scheme that it does not have, and a rank
    outside 1..full.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> apply(model, {"1": 4})[1]
    Sequential(
      (first): Linear(in_features=64, out_features=4, bias=False)
      (second): Linear(in_features=4, out_features=10, bias=True)
    )
    """
    models.check_there(model)
    if resource is not None:
        _check_resource(resource)
    if input_shape is None and torch.is_tensor(calibration) and calibration.ndim > 1:
        input_shape = calibration.shape[1:]
    uses = _count_uses(model, input_shape)[0] if plan and resource == "macs" and input_shape is not None else {}
    modules, holders = dict(model.named_modules()), owners(model)
    chosen = {}
    for name, planned in plan.items():
        if name not in modules:
            raise ValueError(f"the plan names a layer {name!r} that the model does not have")
        layer = modules[name]
        if not schemes.allowed(layer):
            raise ValueError(
                f"layer {name!r} of type {type(layer).__name__} cannot be factored: {schemes.reason(layer)}"
            )
        if "weight" not in layer._parameters:
            raise ValueError(f"layer {name!r} has a weight computed from other parameters, so it cannot be factored")
        if len(holders.get(id(layer.weight), ())) > 1:
            raise ValueError(f"layer {name!r} shares its weight with another, so it cannot be factored alone")
        scheme, rank = parse(planned)
        try:
            scheme = schemes.check(layer, scheme)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
        each = schemes.costs(layer)[scheme]
        if not isinstance(rank, (int, np.integer)) or isinstance(rank, bool) or not 0 <= rank <= each.full_rank:
            raise ValueError(f"rank {rank!r} of layer {name!r} is not a whole number from 1 to {each.full_rank}")
        whole, per_rank = layer.weight.numel(), each.parameters
        if resource == "macs" and scheme is not None:
            # where the positions are not known, those of one output far from the borders
            seen = uses.get(name, {"inputs": layer.stride[0] * layer.stride[1], "outputs": 1})
            whole, per_rank = whole * seen["outputs"], schemes.costs(layer, **seen)[scheme].macs
        if resource is not None and max(int(rank), 1) * per_rank >= whole:
            log.info("%s stays dense: rank %d costs no less than the whole layer in %s", name, rank, resource)
            continue
        chosen[name] = (scheme, int(rank))
    if isinstance(factors, str) and factors in SWEEPS:
        if calibration is None:
            raise ValueError(f"factors={factors!r} need calibration images; pass calibration=")
        options = {"relu-aware": {"relu": True}, "fisher-weighted": {"weighted": True}}.get(factors, {}) | options
        return sweep(
            model, {name: (scheme, max(rank, 1)) for name, (scheme, rank) in chosen.items()}, calibration, **options
        )
    if options:
        raise ValueError(f"factors={factors!r} take no option {', '.join(options)}; those of a sweep do")
    if isinstance(factors, str):
        factors = decompose(model, {name: scheme for name, (scheme, _) in chosen.items()}, factors, calibration)
    missing = [name for name in chosen if name not in factors]
    if missing:
        raise ValueError(f"no factors were given for the planned layers {', '.join(missing)}")
    thin = {}
    for name, (scheme, rank) in chosen.items():
        layer, found = modules[name], factors[name]
        if found.scheme != scheme:
            raise ValueError(f"the plan wants layer {name!r} in scheme {scheme!r}, its factors are in {found.scheme!r}")
        wanted, held = schemes.costs(layer)[scheme].shape, (found.left.shape[-2], found.right.shape[-1])
        if wanted != held:
            what = tuple(layer.weight.shape) if scheme is None else f"{wanted} in scheme {scheme!r}"
            raise ValueError(f"layer {name!r} has weights of shape {what}, its factors make {held}")
        thin[name] = found.layers(rank)
    norms = (
        followed_by(model, None, calibration)
        if any(modules[name].bias is None and thin[name].second.bias is not None for name in thin)
        else {}
    )
    for name in list(thin):
        if modules[name].bias is None and thin[name].second.bias is not None:
            thin[norms[name].norm] = into_norm(model.get_submodule(norms[name].norm), thin[name].second)
    return models.replaced(model, thin)


def decompose(model, names, method="svd", calibration=None, moments=None):
    """Return ``{name: factors.Factors}`` for the named layers of `model`, good for every rank.

    `names` is a list, or ``{name: scheme}``. One decomposition serves a whole sweep of plans. `moments`, ``{name:
    Moments}`` of `factors.collect`, take the place of `calibration` where they are at hand. See `factors.decompose`.
    """
    models.check_there(model)
    moments, norms = moments or {}, {}
    if method != "svd" and names:
        missing = [name for name in names if name not in moments]
        if missing and calibration is None:
            raise ValueError(f"factors={method!r} need calibration images; pass calibration=")
        if method in factors_room.METHODS:
            if missing:
                moments = moments | factors_room.collect(model, missing, calibration)
            norms = followed_by(model, None, calibration)
    found = {}
    for name in names:
        layer, scheme = model.get_submodule(name), names[name] if isinstance(names, dict) else None
        centred = layer.bias is not None or (name in norms and norms[name].norm is not None)
        try:
            found[name] = factors_room.decompose(layer, method, moments.get(name), scheme, centred)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
    if not names and method not in factors_room.METHODS:
        raise ValueError(f"unknown factors {method!r}; known: {', '.join(factors_room.METHODS + SWEEPS)}")
    return found
