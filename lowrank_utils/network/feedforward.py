"""The feed-forward layers of a transformer, found by how their numbers depend on each other, whatever the model family calls them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lowrank_utils.network import inputs, unfold
from lowrank_utils.network.graph import HiddenLayer, owners
from lowrank_utils.network.hooks import hooked
from lowrank_utils.network.inputs import Batch
from lowrank_utils.network.modules import check_there, evaluating, requiring_grad


def feed_forward_layers(model: nn.Module, example: Batch) -> list[HiddenLayer]:
    """Return a `HiddenLayer` for every feed-forward layer of `model`, in the order in which a pass meets them.

    Gated ones are W_down (act(W_gate x) * W_up x), plain ones W_2 act(W_1 x). Neuron j is what column j of the `reader`
    (W_down, W_2) reads. It is a function of output j of the layers `name` and `beside` (W_gate and W_up), at the same
    token, of nothing else, and nothing else reads those outputs.

    One pass over the input `example` shows this. Every linear layer answers with random numbers in it, so that a dead
    neuron does not hide. What reached the reader is then differentiated at a random half of columns and tokens: the
    slopes of the outputs that it depends on must be zero at all others. So there is no need to trace the network, nor
    for the names of a model family. `folds` is true where the reader has a bias. A layer whose weight is shared or
    computed, or that is called twice, is left out. ``Conv1D`` layers of transformers have to be linear ones first
    (`modules.with_linear_layers`). Two linear layers with nothing between them are no feed-forward layer.

    Raises ValueError where the network cannot take `example`.

    >>> class Gated(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
    ...     def forward(self, x):
    ...         return x + self.down(self.gate(x).sigmoid() * self.up(x))
    >>> [(h.name, h.beside, h.reader, h.units) for h in feed_forward_layers(Gated(), torch.zeros(1, 4))]
    [('gate', ('up',), 'down', 6)]
    """
    check_there(model)
    holders = owners(model)
    linear = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear}
    # every parameter counts as something that a number depends on, a frozen one too
    with evaluating(model), torch.inference_mode(False), torch.enable_grad(), requiring_grad(model, True):
        read, written, answer = _pass(model, linear, example)
        once = {name for name, calls in read.items() if len(calls) == 1 and _own_weight(linear[name], holders)}
        whose = {id(written[name][0]): name for name in once}
        reached = {(name, at): _leaves([x]) for name, calls in read.items() for at, x in enumerate(calls)}
        uses = Counter(leaf for leaves in (*reached.values(), _leaves(_tensors(answer))) for leaf in leaves)
        found = []
        for reader in (name for name in read if name in once):
            x, leaves = read[reader][0], reached[reader, 0]
            if x.grad_fn is None or not leaves or any(leaf not in whose or uses[leaf] > 1 for leaf in leaves):
                continue
            sources = [name for name in written if name in once and id(written[name][0]) in leaves]
            if _unit_by_unit(x, [written[name][0] for name in sources]):
                folds = linear[reader].bias is not None
                first, *beside = sources
                found.append(HiddenLayer(first, reader, x.shape[-1], beside=tuple(beside), folds=folds))
    return found


def _pass(model, linear, example):
    # what each linear layer read, the random leaves that it answered with, and the network's answer
    read: dict[str, list[torch.Tensor]] = {}
    written: dict[str, list[torch.Tensor]] = {}
    generator = torch.Generator().manual_seed(0)

    def hook(name):
        def seen(module, args, kwargs, output):
            leaf = torch.randn(output.shape, generator=generator).to(output).requires_grad_()
            read.setdefault(name, []).append(unfold.call_input(args, kwargs))
            written.setdefault(name, []).append(leaf)
            # a function in place must not overwrite the leaf, and each reader is to find it behind a node of the graph
            return leaf + 0

        return seen

    with hooked(model, {name: hook(name) for name in linear}):
        try:
            answer = inputs.call(model, inputs.fed(example, next(model.parameters())))
        except Exception as error:  # a reader's own network fails in errors of many kinds
            shape = inputs.in_words(example)
            raise ValueError(f"the network cannot take an input of shape {shape}: {error}") from error
    return read, written, answer


def _own_weight(layer, holders):
    # stored in the layer, read by it alone
    return "weight" in layer._parameters and len(holders[id(layer.weight)]) == 1


def _tensors(answer: Any) -> list[torch.Tensor]:
    # all that stand in an answer, which may be an object that holds others, as a cache of keys and values
    found, ahead, seen = [], [answer], set()
    while ahead:
        value = ahead.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if torch.is_tensor(value):
            found.append(value)
        elif isinstance(value, Mapping):
            ahead += value.values()
        elif isinstance(value, (list, tuple)):
            ahead += value
        elif hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
            ahead += vars(value).values()
    return found


def _leaves(tensors: Iterable[torch.Tensor]) -> Collection[int]:
    # ids of the leaves of autograd's graph that these tensors depend on
    found, seen = set(), set()
    ahead = [value.grad_fn for value in tensors if value.grad_fn is not None]
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf: Any = getattr(node, "variable", None)
        if leaf is not None:
            found.add(id(leaf))
        ahead += [after for after, _ in node.next_functions if after is not None]
    return found


def _unit_by_unit(x, sources):
    # whether each entry of x depends on the same entry of every source, and on no other
    if x.shape[-1] < 2 or any(source.shape != x.shape for source in sources):
        return False
    generator = torch.Generator().manual_seed(0)
    rows = x.shape[:-1].numel()
    some = torch.zeros(rows, dtype=torch.bool)
    some[torch.randperm(rows, generator=generator)[: (rows + 1) // 2]] = True
    units = torch.zeros(x.shape[-1], dtype=torch.bool)
    units[torch.randperm(len(units), generator=generator)[: len(units) // 2]] = True
    inside = (some[:, None] & units).view(x.shape).to(x.device)
    weights = torch.randn(x.shape, generator=generator).to(x) * inside
    slopes = torch.autograd.grad(x, sources, weights, retain_graph=True, allow_unused=True)
    if len(slopes) == 1 and slopes[0] is not None and torch.equal(slopes[0], weights):
        return False  # two linear layers with nothing between, such as a pair of low-rank factors
    return all(
        slope is not None and not slope[~inside].count_nonzero() and bool(slope[inside].count_nonzero())
        for slope in slopes
    )
