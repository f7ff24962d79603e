"""The original network and its compressed copy side by side over calibration inputs, from layer to layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from lowrank_utils.network import inputs, unfold
from lowrank_utils.network.hooks import hooked
from lowrank_utils.network.inputs import Batch


class _Reached(Exception):
    """Ends a forward pass at the layer that was wanted."""


class _Interpreter(fx.Interpreter):
    # runs nodes one at a time, with some modules in place of others
    def __init__(self, module, instead):
        super().__init__(module)
        self.instead = instead

    def call_module(self, target, args, kwargs):
        if target in self.instead:
            return self.instead[target](*args, **kwargs)
        return super().call_module(target, args, kwargs)


class Walk:
    """The original network and the one compressed so far, side by side over the calibration images, from layer to layer.

    A traced network goes on from where it stood: what is alive there is kept for as many batches as `memory` bytes
    hold at any time, and computed again from the images for the others. A network that cannot be traced is run from the start each
    time.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph | None,
        instead: Mapping[str, nn.Module],
        images: Batch,
        batch_size: int,
        memory: float,
    ) -> None:
        self.model, self.instead, self.memory = model, instead, memory
        first = next(model.parameters())
        self.like = first
        self.batches = images.split(batch_size)
        self.graph = graph
        if graph is not None:
            self.nodes = [node for node in graph.nodes if node.op != "output"]
            self.place = {node: i for i, node in enumerate(self.nodes)}
            self.layer = {node.target: node for node in self.nodes if node.op == "call_module"}
            module = fx.GraphModule(model, graph)
            self.runs = _Interpreter(module, {}), _Interpreter(module, instead)
            last = {source: self.place[node] for node in self.nodes for source in node.all_input_nodes}
            self.dies = {}
            for node, at in last.items():
                self.dies.setdefault(at, []).append(node)
            self.kept = {}

    def _batch(self, index):
        batch = self.batches[index]
        inputs.check_finite(batch)
        return batch

    def _start(self, index):
        batch = self._batch(index)
        places = [node for node in self.nodes if node.op == "placeholder"]
        defaults = {node: node.args[0] if node.args else None for node in places}

        def given():
            some = inputs.fed(batch, self.like)  # a copy for each, for networks that write into their input
            by_place, by_name = ((some,), {}) if torch.is_tensor(some) else (some.args, some.kwargs)
            named = {node: by_name[node.target] for node in places if node.target in by_name}
            return defaults | dict(zip(places, by_place)) | named

        return 0, *(given() for _ in self.runs)

    def _advance(self, state, upto):
        at, *both = state
        for i in range(at, upto):
            node = self.nodes[i]
            for run, env in zip(self.runs, both):
                if node.op != "placeholder":
                    run.env = env
                    env[node] = run.run_node(node)
                for dead in self.dies.get(i, ()):
                    env.pop(dead, None)
        return upto, *both

    def _value(self, run, env, node):
        # of a node that may stand later than where the walk is; nothing is kept of it
        needed, ahead = set(), [node]
        while ahead:
            some = ahead.pop()
            if some not in env and some not in needed:
                needed.add(some)
                ahead += some.all_input_nodes
        live = {source for some in needed for source in some.all_input_nodes if source in env}
        run.env = {
            **env,
            **{source: _copied(env[source]) for source in live},
        }  # operations in place must not reach these
        for some in sorted(needed, key=self.place.__getitem__):
            run.env[some] = run.run_node(some)
        return run.env[node]

    def at(self, name: str, other: fx.Node | None = None) -> Iterator[tuple[Any, Any, tuple[Any, Any] | None]]:
        """Yield, batch by batch, (inputs now, inputs in the original, what `other` lost or None) of the named layer."""
        for index in range(len(self.batches)):
            if self.graph is None:
                batch = inputs.fed(self._batch(index), self.like)
                yield _inputs(self.model, self.instead, name, batch), _inputs(self.model, {}, name, batch), None
                continue
            node = self.layer[name]
            state = self.kept.pop(index)[1] if index in self.kept else self._start(index)
            state = self._advance(state, self.place[node])
            _, original, now = state
            lost = None
            if other is not None:
                other_now = self._value(self.runs[1], now, other)
                lost = self._value(self.runs[0], original, other) - other_now, other_now
            source = unfold.call_input(node.args, node.kwargs)
            yield now[source], original[source], lost
            size = _held([list(env.values()) for env in state[1:]])
            if sum(kept for kept, _ in self.kept.values()) + size <= self.memory:
                self.kept[index] = size, state


def _held(value):
    # bytes that `value` keeps alive: parts of one tensor, such as those of chunk, share its memory
    stores = {}

    def note(part):
        if torch.is_tensor(part):
            stores[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()

    map_aggregate(value, note)
    return sum(stores.values())


def _copied(value):
    return map_aggregate(value, lambda part: part.clone() if torch.is_tensor(part) else part)


def _inputs(model, instead, name, batch):
    # what the named layer sees of a batch; the rest of the network is not run
    caught = []

    def catch(module, args, kwargs):
        caught.append(unfold.call_input(args, kwargs))
        raise _Reached

    def swap(new):
        return lambda module, args, kwargs, out: new(*args, **kwargs)

    replaced = {other: swap(new) for other, new in instead.items()}
    with hooked(model, {name: catch}, before=True), hooked(model, replaced), contextlib.suppress(_Reached):
        inputs.call(model, inputs.fed(batch, next(model.parameters())))
    if not caught:
        raise ValueError(
            f"some calibration images do not reach layer {name!r}; give it images that do, or leave it out"
        )
    return caught[0]
