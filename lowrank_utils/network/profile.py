"""A network read once: its layers with costs and spectra, its graph, and statistics of data, cached on first use.

A *plan* is a plain dict from layer name to rank, or to (scheme, rank) for a convolution (see `unfold`); a layer that
is absent stays dense. Costs are those of the project's one ledger: multiply-accumulates (MACs) for one input, and
parameters with biases counted.
"""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import torch
from torch import fx, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from lowrank_utils import checks
from lowrank_utils.network import graph, inputs, modules, statistics, unfold
from lowrank_utils.network.graph import owners
from lowrank_utils.network.hooks import hooked
from lowrank_utils.network.inputs import Batch
from lowrank_utils.network.unfold import Entry, parse_entry

Plan: TypeAlias = Mapping[str, Entry]  # {layer: entry}; a layer that is absent stays dense
RESOURCES = ("parameters", "macs")
STATISTICS = ("samples", "estimator", "draws", "seed", "batch_size")  # options that layers and graph do not depend on
CHANGEABLE = ("calibration", "input_shape", "dense", "scheme", *STATISTICS)
ON_REQUEST, UNREACHED = "left dense on request", "no input reaches it in a forward pass"
GRAM_FROM = 1024  # rows and columns from which singular values come from W W^T, ten times faster; good to about 1e-7 of the largest


class _Lazy:
    """A field of a dataclass that may be given as a function, which is called once, when the value is first read."""

    def __set_name__(self, owner, name):
        self.name = "_" + name

    def __get__(self, instance, owner=None):
        if instance is None:
            return None  # the default
        value = vars(instance)[self.name]
        if callable(value):
            value = vars(instance)[self.name] = value()
        return value

    def __set__(self, instance, value):
        vars(instance)[self.name] = value


class Lazily(Mapping[str, Any]):
    """``{name: function(name)}``, each computed when it is read and not kept: matrices of all layers would fill the memory.

    >>> squares = Lazily(["2", "3"], lambda name: int(name) ** 2)
    >>> squares["3"], list(squares), len(squares)
    (9, ['2', '3'], 2)
    """

    def __init__(self, names: Collection[str], function: Callable[[str], Any]) -> None:
        self.names, self.function = dict.fromkeys(names), function

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        return self.function(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


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
    shape: tuple[int, int]
    bias: bool
    positions: int
    parameters: int
    macs: int
    singular_values: np.ndarray | Any = _Lazy()
    reason: str = ""
    scheme: str | None = None
    costs: dict[str | None, unfold.Cost] | None = None

    def _cost(self, scheme):
        if not self.costs:
            rows, columns = self.shape
            return unfold.Cost(min(self.shape), rows + columns, (rows + columns) * self.positions, self.shape)
        scheme = scheme or self.scheme
        if scheme not in self.costs:
            raise ValueError(
                f"layer {self.name!r} has no scheme {scheme!r}; it has {', '.join(map(str, self.costs)) or 'none'}"
            )
        return self.costs[scheme]

    @property
    def full_rank(self) -> int:
        """The full rank of the matrix in the layer's scheme: min(rows, columns)."""
        return self._cost(None).full_rank

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns) of the matrix in the layer's scheme: `shape` for a linear layer."""
        return self._cost(None).shape

    def entry(self, rank: int) -> Entry:
        """Return what a plan says of this layer at `rank`: the rank, or (scheme, rank) for a convolution."""
        return unfold.plan_entry(self.scheme, rank)

    def cost(self, rank: Entry | None = None, resource: str = "macs") -> int:
        """Return the cost of the layer at `rank` (or at an entry of a plan), or dense where `rank` is None.

        For a linear layer rank (d_in + d_out) weights, times positions for MACs, plus the bias for parameters.

        >>> LayerProfile("fc", "linear", (300, 784), True, 1, 235500, 235200).cost(10, "parameters")
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

    def break_even(self, resource: str = "macs", scheme: str | None = None) -> int:
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


def check_resource(resource: str) -> None:
    if resource not in RESOURCES:
        raise ValueError(f"unknown resource {resource!r}; known: {', '.join(RESOURCES)}")


def read_layers(
    model: nn.Module,
    input_shape: Sequence[int],
    spectra: bool = True,
    dense: Sequence[str] = (),
    scheme: str | Mapping[str, str] | None = None,
    guard: Callable[[str], None] | None = None,
    example: Batch | None = None,
) -> list[LayerProfile]:
    """Return a list of `LayerProfile`, one for every layer with weights, in the order of ``model.named_modules()``.

    Parameters: `model`, any ``nn.Module``; `input_shape`, the shape of one input without the batch axis, e.g.
    (1, 28, 28); `spectra`, whether to compute singular values (float64); `dense`, names of layers to leave dense,
    such as the classifier or the first layer: they are counted, and no plan touches them; `scheme`, the one of
    `unfold.NAMES` that convolutions are seen in, or ``{layer: scheme}`` (default: spatial). A layer that does not have
    it, such as a 1 x 1 convolution, takes its usual one. With a `guard`, a function, spectra are computed when they are first
    read, after a call of it.

    The model sees one input of zeros (or the one input `example`) in eval mode, which counts how often each layer is used. Linear layers and 2-D
    convolutions can be factored; every other layer with a weight matrix or kernel is listed with the reason why it is
    left alone, its MACs counted by torch. Raises ValueError where the weights are not finite, the network cannot take
    `input_shape`, or `dense` names a layer that is not there.

    >>> cards = read_layers(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8))
    >>> cards[0].name, cards[0].macs, cards[0].break_even()
    ('1', 640, 8)
    """
    asked = scheme if isinstance(scheme, dict) else {}
    _check_names(model, dense=dense, scheme=asked)
    for wanted in asked.values() if asked else [scheme]:
        if wanted not in (None, *unfold.NAMES):
            raise ValueError(f"unknown scheme {wanted!r}; known: {', '.join(unfold.NAMES)}")
    modules.check_there(model)
    uses, calls, counted_macs = count_uses(model, input_shape, example)
    own_path = {
        id(part)
        for block in model.modules()
        if isinstance(block, nn.TransformerEncoderLayer)
        for part in (block.linear1, block.linear2)
    }
    holders = owners(model)
    counted = set()
    cards = []
    for name, module in model.named_modules():
        computed = isinstance(getattr(module, "weight", None), torch.Tensor) and "weight" not in module._parameters
        if isinstance(module, parametrize.ParametrizationList):
            continue  # counted with the weight that it computes
        weight: Any = module.weight if computed else module._parameters.get("weight")
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
        elif not used["outputs"]:
            reason = UNREACHED
        if not torch.isfinite(weight).all():
            raise ValueError(f"layer {name!r} holds NaN or infinite weights; a spectrum needs finite ones")
        own = asked.get(name) if isinstance(scheme, dict) else scheme
        own = own if own in known else (known or (None,))[0]
        values: Any = None
        if spectra and known:
            values = cache(partial(_spectrum, module, own, guard and partial(guard, name)))
            values = values if guard else values()
        bias = torch.is_tensor(getattr(module, "bias", None))
        macs = weight.numel() * used["outputs"] if name in uses else counted_macs.get(name, 0)
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
    return _left_dense(cards, dense)


def _check_names(model, **named):
    known = {name for name, _ in model.named_modules()}
    for what, names in named.items():
        if absent := sorted(set(names) - known):
            raise ValueError(f"{what}= names a layer that the model does not have: {', '.join(absent)}")


def _left_dense(cards, names):
    # the cards, those of `names` that could be factored marked as left dense; spectra are shared, not computed
    found = [copy.copy(card) if card.name in names and card.reason in ("", UNREACHED) else card for card in cards]
    for card, before in zip(found, cards):
        if card is not before:
            vars(card)["reason"] = ON_REQUEST
    return found


def _spectrum(layer, scheme, guard=None):
    if guard is not None:
        guard()
    return _singular_values(layer, scheme).square().mean(0).sqrt().cpu().numpy()


def _singular_values(layer, scheme):
    # groups x full rank, float64
    if min(unfold.rank_costs(layer)[scheme].shape) < GRAM_FROM:
        matrix = unfold.to_matrix(layer, scheme)
        # LAPACK is three times faster on a tall matrix than on a wide one
        return torch.linalg.svdvals(matrix if matrix.shape[1] >= matrix.shape[2] else matrix.mT.contiguous())
    matrix = unfold.to_matrix(layer, scheme, dtype=layer.weight.dtype)
    matrix = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.mT
    return torch.stack([torch.linalg.eigvalsh(_gram(one), UPLO="U").clamp(min=0).sqrt().flip(0) for one in matrix])


def _gram(matrix, block=512):
    # the upper triangle of W W^T in blocks, half of the products; in double, a few columns at a time, for a double copy
    # of the whole would be the largest thing in memory
    rows = len(matrix)
    gram = torch.zeros(rows, rows, dtype=torch.float64, device=matrix.device)
    for part in matrix.split(4096, dim=1):
        wide = part.double()
        for at in range(0, rows, block):
            gram[at : at + block, at:] += wide[at : at + block] @ wide[at:].T
    return gram


def _own_parameters(module, counted):
    # a shared parameter is stored once, and counts where it is met first
    total = 0
    for value in module._parameters.values():
        if value is not None and id(value) not in counted:
            counted.add(id(value))
            total += value.numel()
    return total


def count_uses(
    model: nn.Module, input_shape: Sequence[int], example: Batch | None = None
) -> tuple[dict[str, dict[str, int]], dict[str, int], dict[str, int]]:
    # positions at which each layer is applied for one input, how often it is called, and the MACs of the other modules by
    # torch's own counter
    uses, calls = {}, {}

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

    counted = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooks = {name: watch(name) for name, module in model.named_modules() if isinstance(module, counted)}
    first = next(model.parameters(), None)
    device, dtype = (first.device, first.dtype) if first is not None else ("cpu", torch.float32)
    try:
        known = (*counted, parametrize.ParametrizationList)
        others = [module for module in model.modules() if not isinstance(module, known)]
        others = any(p.ndim > 1 for m in others for p in m._parameters.values() if p is not None)
        counter = FlopCounterMode(display=False)
        with modules.evaluating(model), hooked(model, hooks), counter if others else contextlib.nullcontext():
            if example is None:
                example = torch.zeros(1, *input_shape, device=device, dtype=dtype)
            inputs.call(model, inputs.fed(example, torch.empty(0, device=device, dtype=dtype)))
    except Exception as error:  # a reader's own network fails in errors of many kinds
        shape = tuple(input_shape) if example is None else inputs.in_words(example)
        raise ValueError(f"the network cannot take one input of shape {shape}: {error}") from error
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


def plan_cost(cards: Sequence[LayerProfile], plan: Plan, resource: str = "macs") -> int:
    """Return the cost of the carded layers under `plan` (int); layers that do not pay count as dense.

    Batch norms and other layers without a weight matrix are in no card; `score.parameters` counts them too.
    """
    cards = tuple(cards)  # a profile looks at all weights whenever it is asked
    known = {card.name for card in cards}
    unknown = [name for name in plan if name not in known]
    if unknown:
        raise ValueError(f"the plan names a layer {unknown[0]!r} that the profile does not have")
    return sum(card.cost(if_cheaper(card, plan.get(card.name), resource), resource) for card in cards)


def if_cheaper(card: LayerProfile, rank: Entry | None, resource: str = "macs") -> Entry | None:
    """Return `rank` (or the entry of a plan) where it is cheaper than the dense layer in `resource`, else None: the layer stays dense.

    >>> card = LayerProfile("fc", "linear", (300, 784), True, 1, 235500, 235200)
    >>> if_cheaper(card, 216), if_cheaper(card, 217)
    (216, None)
    """
    if rank is None or card.reason:
        return None
    scheme, number = parse_entry(rank)
    return None if max(number, 1) > card.break_even(resource, scheme) else rank


class Profile(Sequence[LayerProfile]):
    """A network, read once: its layers and costs, its graph, and statistics of calibration data, cached on first use.

    What choosers of ranks and factorisers need to know about a network. `lowrank_utils.profile` is this class by the name of
    what it does. It is a sequence of its layers, so ``for layer in profile`` and ``profile["fc1"]`` work.

    Parameters
    ----------
    model : any ``nn.Module``. It is never changed.
    calibration : inputs of the network (N first), for moments and Fisher information: a tensor, of real numbers or of token
        ids; a tuple or dict of tensors, for a network that takes several; or a ``DataLoader`` (`inputs.as_inputs`).
    input_shape : shape of one input without N, e.g. (1, 28, 28); taken from `calibration` where that is given.
    dense, scheme, spectra : as in `read_layers`.
    samples : the most patches of a convolution, or tokens of a sequence, that moments and the sweep look at in one
        layer: each input gives equally many, at random positions (None: all in the moments, about 256 an input in the sweep).
    estimator, draws : of the Fisher information, as in `statistics.fisher`.
    seed : of both.
    batch_size : how many inputs pass at once (None: 500 for moments, 50 for Fisher information, 100 in the sweep).

    Attributes
    ----------
    calibration : a tensor or `inputs.Inputs`, or None.
    input_shape : a tuple, or None where it is not known.
    digest : {parameter or buffer: checksum}, when they were read.

    Raises ValueError for a network without parameters or on the meta device, NaN weights, and inputs that it cannot
    take. Asked for statistics without calibration, or after the weights have changed, it says so.

    >>> mine = profile(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), input_shape=(1, 8, 8))
    >>> mine["1"].macs, mine["1"].break_even(), mine.factorable
    (640, 8, ['1'])
    """

    def __init__(
        self,
        model: nn.Module,
        calibration: Any = None,
        *,
        input_shape: Sequence[int] | None = None,
        dense: Sequence[str] = (),
        scheme: str | dict[str, str] | None = None,
        spectra: bool = True,
        samples: int | None = None,
        estimator: str = "exact",
        draws: int = 10,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"a profile is of an nn.Module, not of a {type(model).__name__}")
        modules.check_there(model)
        if calibration is not None:
            calibration = inputs.as_inputs(calibration)
        self.dense, self.scheme, self._spectra = _listed(dense), scheme, spectra
        if next(model.parameters(), None) is None:
            raise ValueError("this network has no parameters, so it has no layer to read")
        told = "one input"
        if input_shape is None and torch.is_tensor(calibration) and calibration.ndim > 1:
            input_shape, told = tuple(calibration.shape[1:]), "calibration images"
        elif isinstance(calibration, inputs.Inputs) and len(calibration):
            input_shape = tuple(calibration.tensors[0].shape[1:])
        self.model, self.calibration = model, calibration
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.samples, self.estimator, self.draws, self.seed = samples, estimator, draws, seed
        self.batch_size = batch_size
        self._layers: tuple[LayerProfile, ...] | None = None
        self._uses, self._order, self._followers = None, None, None
        self._graph: fx.Graph | Literal[False] | None = False  # False: not traced yet
        self._seen = versions(model)
        self._moments: dict[str, statistics.Moments] = {}
        self._fisher: dict[tuple[str, int], torch.Tensor] = {}
        self._rows: dict[str, torch.Tensor] = {}
        self.digest = _digest(model)
        if self.input_shape is None:
            modules.check_finite(model)
            return
        try:
            _check_names(model, dense=self.dense)
            cards = read_layers(model, self.input_shape, spectra, (), scheme, self._check_layer, self.example)
        except ValueError as error:
            raise ValueError(str(error).replace("take one input of shape", f"take {told} of shape")) from error
        if not cards:
            raise ValueError("this network has no layer with a weight matrix or kernel, so there is nothing to read")
        bad = next((name for name, value in model.named_parameters() if not torch.isfinite(value).all()), None)
        if bad is not None:
            raise ValueError(f"{bad} holds NaN or infinite values; a profile needs finite ones")
        self._cards, self._layers = cards, tuple(_left_dense(cards, self.dense))

    @property
    def example(self) -> Batch | None:
        """One input, where a tensor of zeros of `input_shape` would not do: of token ids, or of several tensors; else None."""
        given = self.calibration
        return None if given is None or inputs.is_plain(given) or not len(given) else given[:1]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerProfile]:
        return iter(self.layers)  # that of Sequence would check all weights for each layer

    @overload
    def __getitem__(self, key: int | str) -> LayerProfile: ...

    @overload
    def __getitem__(self, key: slice) -> tuple[LayerProfile, ...]: ...

    def __getitem__(self, key: int | str | slice) -> LayerProfile | tuple[LayerProfile, ...]:
        if not isinstance(key, str):
            return self.layers[key]
        for layer in self.layers:
            if layer.name == key:
                return layer
        raise KeyError(f"there is no layer {key!r} in this profile; it has {', '.join(layer.name for layer in self)}")

    def __repr__(self) -> str:
        read = "not counted" if self._layers is None else f"{len(self._layers)} layers"
        seen = "no calibration" if self.calibration is None else f"{len(self.calibration)} calibration inputs"
        return f"Profile({type(self.model).__name__}: {read}, {seen})"

    def _check_layer(self, name: str) -> None:
        # of a spectrum the weights of its layer alone are read: a checksum of all takes longer than a small spectrum
        layer = self.model.get_submodule(name)
        own = {f"{name}.{k}" if name else k: value for k, value in layer.named_parameters(recurse=False)}
        if any(_checksum(value) != self.digest.get(key) for key, value in own.items() if key in self.digest):
            self.check_unchanged()

    def check_unchanged(self) -> None:
        """Raise ValueError where the weights of the model are no longer those that were read."""
        if _digest(self.model) != self.digest:
            raise ValueError(
                "the model has changed since its profile was made; make a new one with lowrank_utils.profile"
            )

    def _glance(self):
        # the digest reads every number, so it is asked only where autograd's counters say that something was written
        if versions(self.model) != self._seen:
            self.check_unchanged()
            self._seen = versions(self.model)

    @property
    def layers(self) -> tuple[LayerProfile, ...]:
        """One `LayerProfile` for each layer with weights, in the order of ``model.named_modules()``."""
        self._glance()
        if self._layers is None:
            raise ValueError("costs need the shape of an input: make the profile with input_shape= or calibration=")
        return self._layers

    @property
    def factorable(self) -> list[str]:
        """The names of the layers that a plan may cut."""
        return [layer.name for layer in self.layers if not layer.reason]

    @property
    def uses(self) -> dict[str, dict[str, int]]:
        """How many positions each layer reads and writes for one input; {} where the input's shape is not known."""
        if self._uses is None:
            known = self.input_shape is not None
            self._uses = count_uses(self.model, self.input_shape or (), self.example)[0] if known else {}
        return self._uses

    @property
    def graph(self) -> fx.Graph | None:
        """The network as torch.fx traces it, its layers with weights as leaves; None where it cannot be traced, or is one layer."""
        self._glance()
        if self._graph is False:
            absent = inputs.not_given(self.model, self.example)
            self._graph = graph.trace(self.model, graph.weight_layers(self.model), absent)
        return self._graph

    @property
    def order(self) -> list[str]:
        """The names of the layers with weights as a forward pass meets them, each time that it does."""
        self._glance()
        if self._order is None:
            first = next(self.model.parameters())
            names = [layer.name for layer in self.layers if layer.positions]
            zeros = torch.zeros(1, *(self.input_shape or ()), dtype=first.dtype, device=first.device)
            image = zeros if self.example is None else inputs.fed(self.example, first)
            self._order = graph.execution_order(self.model, names, image)
        return self._order

    @property
    def followers(self) -> dict[str, graph.Followers]:
        """What becomes of each layer's output (`graph.followed_by`), shapes checked where calibration is at hand."""
        self._glance()
        if self._followers is None:
            held = self.graph
            self._followers = {} if held is None else graph.followed_by(self.model, held, self.calibration)
        return self._followers

    def takes_mean(self, name: str) -> bool:
        """Whether a bias can take the mean of a layer's error: its own, or that of the batch norm right behind it."""
        if self.model.get_submodule(name).bias is not None:
            return True
        return name in self.followers and self.followers[name].norm is not None

    @property
    def moments(self) -> dict[str, statistics.Moments]:
        """Mean and covariance of the inputs of every layer that can be factored (`statistics.collect_moments`)."""
        return self.moments_of(self.factorable)

    @property
    def fisher(self) -> dict[str, torch.Tensor]:
        """Fisher information of the outputs of every layer that can be factored (`statistics.fisher`)."""
        return self.fisher_of(self.factorable)

    def moments_of(self, names: Collection[str]) -> dict[str, statistics.Moments]:
        """Return {layer: Moments} of the named layers; what was collected before is not collected again."""
        calibration = self.needed_calibration("the moments of layer inputs need")
        missing = [name for name in names if name not in self._moments]
        if missing:
            self._moments |= statistics.collect_moments(
                self.model,
                missing,
                calibration,
                self.batch_size or inputs.at_once(calibration, 500),
                self.samples,
                self.seed,
            )
        return {name: self._moments[name] for name in names}

    def fisher_of(self, names: Collection[str], images: int | None = None) -> dict[str, torch.Tensor]:
        """Return {layer: Fisher information, d_out x d_out} of the named layers, from the first `images` calibration inputs (None: all)."""
        calibration = self.needed_calibration("the Fisher information needs")
        count = len(calibration) if images is None else min(images, len(calibration))
        missing = [name for name in names if (name, count) not in self._fisher]
        how: dict[str, Any] = {"draws": self.draws, "seed": self.seed, "estimator": self.estimator}
        how["batch_size"] = self.batch_size or inputs.at_once(calibration, 50)
        if missing and self.estimator != "exact" and count == len(calibration) and not self._moments.keys() & missing:
            # one pass for both: the network is not run again for the moments
            moments, found = statistics.moments_and_fisher(
                self.model, missing, calibration, samples=self.samples, **how
            )
            self._moments |= moments
        elif missing:
            found = statistics.fisher(self.model, missing, calibration[:count], **how)
        if missing:
            self._fisher |= {(name, count): value for name, value in found.items()}
        return {name: self._fisher[name, count] for name in names}

    def metric_of(self, names: Collection[str], images: int | None = None) -> Mapping[str, torch.Tensor]:
        """Return {layer: positive metric of its outputs, d_out x d_out}: the Fisher information F mixed with its mean.

        It is 0.7 F / f + 0.3 I with f the mean of F's diagonal. Of a language model it is (1 - a) F + a f I with a = 440 / (440 +
        tokens), in nats, so that directions that few tokens never took count too.
        """
        calibration = self.needed_calibration("the Fisher information needs")
        found = self.fisher_of(names, images)
        if inputs.is_plain(calibration):
            return Lazily(found, lambda name: _mixed(found[name], 0.3, relative=True))
        some = calibration if images is None else calibration[:images]
        tokens = inputs.tokens_of(some)
        share = statistics.FISHER_PRIOR / (statistics.FISHER_PRIOR + tokens)
        return Lazily(found, lambda name: _mixed(found[name], share))

    def has_statistics(self, names: Collection[str], fisher: bool = True) -> bool:
        """Whether moments, and with `fisher` the information from all calibration inputs, of all the named layers are at hand."""
        count = 0 if self.calibration is None else len(self.calibration)
        return all(name in self._moments and (not fisher or (name, count) in self._fisher) for name in names)

    def rows_of(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Return {layer: Fisher information of the weights of each row, d_out} of the named layers (`statistics.row_information`)."""
        calibration = self.needed_calibration("the information of rows needs")
        missing = [name for name in names if name not in self._rows]
        if missing:
            estimator = "signs" if self.estimator == "exact" else self.estimator
            self._rows |= statistics.row_information(
                self.model, missing, calibration, self.draws, self.seed, 1, estimator
            )
        return {name: self._rows[name] for name in names}

    def forget(self, keep: Collection[str] = ()) -> None:
        """Let go of the statistics of all layers but those that `keep` names; they are collected again when they are asked for.

        A profile that shares them (`but`) keeps its own.
        """
        self._moments = {name: value for name, value in self._moments.items() if name in keep}
        self._rows = {name: value for name, value in self._rows.items() if name in keep}
        self._fisher = {key: value for key, value in self._fisher.items() if key[0] in keep}

    def within(self, patterns: Sequence[str]) -> list[str]:
        """Return the names of the layers that `patterns` name: names, or patterns such as ``"model.layers.*"``.

        Raises ValueError for no pattern, and for one that names no layer with weights.
        """
        if isinstance(patterns, str):
            raise ValueError(f"within={patterns!r} must be a list of layer names or patterns, such as [{patterns!r}]")
        if not patterns:
            raise ValueError("within= is empty; name layers or patterns, such as ['model.layers.*']")
        names = [layer.name for layer in self.layers]
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise ValueError(f"within={pattern!r} names no layer; there are {', '.join(names[:5])} and so on")
        return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]

    def whole_share(self, kept: float, resource: str, names: Collection[str]) -> float:
        """Return the share of what all layers cost that leaves a share `kept` to the named ones and everything to the others.

        >>> mine = profile(nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)), input_shape=(4,))
        >>> round(mine.whole_share(0.5, "parameters", ["0"]), 4)  # 6 + 6 of 18
        0.6667
        """
        checks.check_share(kept=kept)
        total = plan_cost(self, {}, resource)
        inside = sum(self[name].cost(None, resource) for name in names)
        return (kept * inside + total - inside) / total

    def but(self, **changes: Any) -> Profile:
        """Return a profile of the same model with other options (`CHANGEABLE`); what does not depend on them is shared.

        The network is read again for another scheme, input shape, or form of calibration inputs only.

        >>> mine = profile(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), input_shape=(4,))
        >>> mine.but(dense=["1"]).factorable
        ['0']
        """
        self.check_unchanged()
        unknown = changes.keys() - set(CHANGEABLE)
        if unknown:
            raise ValueError(f"a profile has no {', '.join(sorted(unknown))} to change; it has {', '.join(CHANGEABLE)}")
        if changes.get("calibration") is not None:
            changes["calibration"] = inputs.as_inputs(changes["calibration"])
        if self._reads_alike(changes):
            new = self._with(changes)
        else:
            new = Profile(
                self.model, **{name: getattr(self, name) for name in CHANGEABLE} | changes, spectra=self._spectra
            )
        if changes.keys() <= {"dense", "scheme", "input_shape"}:
            new._moments, new._fisher, new._rows = self._moments, self._fisher, self._rows
        return new

    def _reads_alike(self, changes):
        # whether the layers would be the same: those of plain inputs do not depend on them, only on their shape
        plain = self.example is None and (changes.get("calibration") is None or inputs.is_plain(changes["calibration"]))
        own = changes.keys() <= {"dense", "calibration", *STATISTICS}
        return self._layers is not None and own and (plain or "calibration" not in changes)

    def _with(self, changes):
        # a copy that shares layers and graph
        new = copy.copy(self)
        vars(new).update(changes, _moments={}, _fisher={}, _rows={})
        if "dense" in changes:
            new.dense = _listed(changes["dense"])
            _check_names(self.model, dense=new.dense)
            new._layers = tuple(_left_dense(self._cards, new.dense))
        if "calibration" in changes:
            new._followers = None
        return new

    def needed_calibration(self, what: str) -> Any:
        """Return the calibration inputs; raise ValueError where there are none, or the model has changed since.

        `what` begins the sentence of the error: who needs them, with its verb.
        """
        self.check_unchanged()
        if self.calibration is None:
            raise ValueError(f"{what} calibration inputs: make the profile with calibration=")
        return self.calibration


profile = Profile


def _listed(dense):
    if isinstance(dense, str):
        raise ValueError(f"dense={dense!r} must be a list of layer names, such as [{dense!r}]")
    return tuple(dense)


def _mixed(matrix, share, relative=False):
    # (1 - share) F + share f I with f the mean of the diagonal, or that divided by f
    scale, even = matrix.diagonal().mean(), torch.eye(len(matrix)).to(matrix)
    if relative:
        return ((1 - share) / scale if scale else 0.0) * matrix + share * even
    return (1 - share) * matrix + share * (scale if scale > 0 else 1.0) * even


def versions(model: nn.Module) -> list[tuple[int, int]]:
    """Return (place, how often written to) of every parameter and buffer; a change through ``.data`` does not count as one."""
    held = (*model.parameters(), *model.buffers())
    return [(value.data_ptr(), 0 if value.is_inference() else value._version) for value in held]


def _digest(model):
    return {name: _checksum(value) for name, value in (*model.named_parameters(), *model.named_buffers())}


def _checksum(value):
    # of all numbers: a gigabyte a second, and it sees changes through .data
    plain = value.detach().cpu().contiguous()
    return zlib.crc32(plain.reshape(-1).view(torch.uint8).numpy()) if plain.numel() else 0
