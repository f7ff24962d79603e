"""What a network is made of: one profile a layer, with its costs and spectrum.

A *plan* is a plain dict from layer name to rank, or to (scheme, rank) for a convolution (see `unfold`); a layer that
is absent stays dense. Costs are those of the project's one ledger: multiply-accumulates (MACs) for one input, and
parameters with biases counted."""

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from lowrank_utils.network import modules, unfold
from lowrank_utils.network.graph import owners
from lowrank_utils.network.unfold import parse_entry

RESOURCES = ("parameters", "macs")
GRAM_FROM = 1024  # rows and columns from which singular values come from W W^T, ten times faster; good to about 1e-7 of the largest


@dataclass(frozen=True)
class LayerProfile:
    """One layer with weights, as `read_layers` saw it.

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
            return unfold.Cost(min(self.shape), rows + columns, (rows + columns) * self.positions, self.shape)
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

        >>> LayerProfile("fc", "linear", (300, 784), True, 1, 235500, 235200).cost(10)
        11140
        """
        check_resource(resource)
        if rank is None:
            return self.parameters if resource == "parameters" else self.macs
        scheme, rank = parse_entry(rank)
        each = self._cost(scheme)
        # a zero matrix has rank 0 and is written as one component of zeros
        if resource == "macs":
            return max(rank, 1) * each.macs
        return max(rank, 1) * each.parameters + (self.shape[0] if self.bias else 0)

    def break_even(self, resource="parameters", scheme=None):
        """Return the largest rank that costs less than the dense layer; 0 where none does.

        Largest whole r < d_in d_out / (d_in + d_out); the same for MACs and parameters in a linear layer, not in a
        strided convolution.

        >>> LayerProfile("fc", "linear", (300, 784), True, 1, 235500, 235200).break_even()
        216
        """
        check_resource(resource)
        each = self._cost(scheme)
        if resource == "macs" and self.macs:
            return min((self.macs - 1) // each.macs, each.full_rank)
        weights = self.parameters - (self.shape[0] if self.bias else 0)
        return min((weights - 1) // each.parameters, each.full_rank)


def check_resource(resource):
    if resource not in RESOURCES:
        raise ValueError(f"unknown resource {resource!r}; known: {', '.join(RESOURCES)}")


def read_layers(model, input_shape, spectra=True, dense=(), scheme=None):
    """Return a list of `LayerProfile`, one for every layer with weights, in the order of ``model.named_modules()``.

    Parameters: `model`, any ``nn.Module``; `input_shape`, the shape of one input without the batch axis, e.g.
    (1, 28, 28); `spectra`, whether to compute singular values (float64); `dense`, names of layers to leave dense,
    such as the classifier or the first layer: they are counted, and no plan touches them; `scheme`, the one of
    `unfold.NAMES` that convolutions are seen in, or ``{layer: scheme}`` (default: spatial). A layer that does not have
    it, such as a 1 x 1 convolution, takes its usual one.

    The model sees one input of zeros in eval mode, which counts how often each layer is used. Linear layers and 2-D
    convolutions can be factored; every other layer with a weight matrix or kernel is listed with the reason why it is
    left alone, its MACs counted by torch. Raises ValueError where the weights are not finite, the network cannot take
    `input_shape`, or `dense` names a layer that is not there.

    >>> cards = read_layers(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8))
    >>> cards[0].name, cards[0].macs, cards[0].break_even()
    ('1', 640, 8)
    """
    asked = scheme if isinstance(scheme, dict) else {}
    absent = (set(dense) | set(asked)) - {name for name, _ in model.named_modules()}
    if absent:
        what = "dense=" if absent & set(dense) else "scheme="
        raise ValueError(f"{what} names a layer that the model does not have: {', '.join(sorted(absent))}")
    for wanted in asked.values() if asked else [scheme]:
        if wanted not in (None, *unfold.NAMES):
            raise ValueError(f"unknown scheme {wanted!r}; known: {', '.join(unfold.NAMES)}")
    modules.check_there(model)
    uses, calls, counted_macs = count_uses(model, input_shape)
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
        known = unfold.schemes_of(module)
        reason = ""
        if computed:
            reason = "its weight is computed from other parameters"
        elif not known:
            reason = unfold.why_not(module)
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
            LayerProfile(
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
                costs=unfold.rank_costs(module, **used) if known else {},
            )
        )
    return cards


def _singular_values(layer, scheme):
    # groups x full rank, float64
    if min(unfold.rank_costs(layer)[scheme].shape) < GRAM_FROM:
        return torch.linalg.svdvals(unfold.to_matrix(layer, scheme))
    matrix = unfold.to_matrix(layer, scheme, dtype=layer.weight.dtype)
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


def count_uses(model, input_shape):
    # positions at which each layer is applied for one input, how often it is called, and the MACs of the other modules by
    # torch's own counter
    uses, calls, hooks = {}, {}, []

    def watch(name):
        def hook(module, args, kwargs, output):
            seen = uses.setdefault(name, {"inputs": 0, "outputs": 0, "between": 0})
            calls[name] = calls.get(name, 0) + 1
            x = unfold.call_input(args, kwargs)
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
        with modules.evaluating(model), counter if others else contextlib.nullcontext():
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
    return sum(card.cost(if_cheaper(card, plan.get(card.name), resource), resource) for card in cards)


def if_cheaper(card, rank, resource="parameters"):
    """Return `rank` (or the entry of a plan) where it is cheaper than the dense layer in `resource`, else None: the layer stays dense.

    >>> card = LayerProfile("fc", "linear", (300, 784), True, 1, 235500, 235200)
    >>> if_cheaper(card, 216), if_cheaper(card, 217)
    (216, None)
    """
    if rank is None or card.reason:
        return None
    scheme, number = parse_entry(rank)
    return None if max(number, 1) > card.break_even(resource, scheme) else rank
