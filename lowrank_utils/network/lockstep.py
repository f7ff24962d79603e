"""Two passes over all calibration inputs side by side, of a network and of its compressed copy, each waiting at every layer.

What `walk.Walk` does for a network that torch.fx traces, this does for one that it does not, such as a transformer: each pass
is a thread that waits where it meets the next layer, so the whole sweep costs two forward passes.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from lowrank_utils.network import inputs, unfold
from lowrank_utils.network.hooks import hooked, watch
from lowrank_utils.network.inputs import Batch
from lowrank_utils.network.modules import evaluating


class _Left(BaseException):
    """Ends a pass that nobody waits for any more; no network catches it by mistake."""


class _Pass(threading.Thread):
    """One forward pass in a thread of its own, which waits at the layers in `stops`."""

    def __init__(self, model, batch, stops, norms, instead):
        super().__init__(daemon=True)
        # a twin with the same tensors: what watches it is neither on the network itself nor on copies of its layers
        held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model = copy.deepcopy(model, held)
        self.batch, self.stops, self.norms, self.instead = batch, stops, norms, instead
        self.there, self.resume = threading.Semaphore(0), threading.Semaphore(0)
        self.at: str | None = None
        self.input: Any = None
        self.streams: dict[str, torch.Tensor] = {}
        self.error: BaseException | None = None
        self.left = False

    def run(self):
        before = {name: self._arrive(name) for name in self.stops} | {name: self._note(name) for name in self.norms}
        swaps = {name: self._swap(name) for name in self.stops}
        try:
            with evaluating(self.model), hooked(self.model, before, before=True), hooked(self.model, swaps):
                inputs.call(self.model, self.batch)
        except _Left:
            pass
        except BaseException as error:  # it is raised again where the pass is waited for
            self.error = error
        self.at = None
        self.there.release()

    def _arrive(self, name):
        def hook(module, args, kwargs):
            self.at, self.input = name, unfold.call_input(args, kwargs)
            self.there.release()
            self.resume.acquire()
            self.input = None
            if self.left:
                raise _Left

        return hook

    def _note(self, name):
        def hook(module, args, kwargs):
            self.streams[name] = unfold.call_input(args, kwargs)

        return hook

    def _swap(self, name):
        return lambda module, args, kwargs, output: (
            self.instead[name](*args, **kwargs) if name in self.instead else None
        )

    def go_on(self, name, first):
        """Start, or go on, wait until this pass stands before layer `name`, and return what the layer will read."""
        if first:
            self.start()
        else:
            self.resume.release()
        self.there.acquire()
        if self.error is not None:
            raise self.error
        if self.at != name:
            raise ValueError(
                f"the pass met layer {self.at!r} where {name!r} was expected; its order depends on the inputs"
            )
        return self.input

    def leave(self):
        self.left = True
        self.resume.release()
        if self.is_alive():
            self.join()


class Lockstep:
    """The original network and the one compressed so far, side by side over all calibration inputs, batch by batch.

    Parameters: `model`; `names`, the layers in the order in which a pass meets them, each once; `instead`, ``{layer: its
    replacement}``, which the caller fills as he goes on; `calibration`; `repair`; `batch_size`, inputs in one pass (None: all
    of them). Each batch has two passes of its own, and of all passes one works at a time, so that what a layer needs while it
    works stands in memory for one batch only. Use it as a context manager, and ask `at` for one layer after the other. Where
    a layer adds to a residual stream (`residual_streams`), `at` says what the stream lost so far, unless `repair` is false.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        instead: Mapping[str, nn.Module],
        calibration: Batch,
        repair: bool = True,
        batch_size: int | None = None,
    ) -> None:
        like = next(model.parameters())
        inputs.check_finite(calibration)
        self.streams = residual_streams(model, names, calibration[:1]) if repair else {}
        self.last = {self.streams[name]: name for name in names if name in self.streams}  # that asks for a stream
        self.passes = []
        for some in calibration.split(batch_size or len(calibration)):
            then, now = (_Pass(model, inputs.fed(some, like), names, [*self.last], swaps) for swaps in ({}, instead))
            self.passes.append((then, now))
        self.waiting = False

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (one for pair in self.passes for one in pair):
            each.leave()

    def at(self, name: str, other: object = None) -> Iterator[tuple[Any, Any, tuple[Any, Any] | None]]:
        """Yield (inputs now, inputs in the original, what the residual stream lost or None) of the named layer, for each batch.

        Run through all of them before you ask for the next layer.
        """
        first, self.waiting = not self.waiting, True
        norm = self.streams.get(name)
        for then, now in self.passes:
            x_then, x_now = then.go_on(name, first), now.go_on(name, first)
            _trim()
            lost = None
            if norm is not None:
                before, here = then.streams[norm], now.streams[norm]
                lost = before - here, here
                if self.last[norm] == name:
                    del then.streams[norm], now.streams[norm], before
            yield x_now, x_then, lost


@functools.cache
def _allocator() -> Any:
    with contextlib.suppress(OSError, AttributeError, TypeError):
        return ctypes.CDLL(None).malloc_trim  # of glibc
    return None


def _trim():
    # each thread has a heap of its own, which would keep what its pass has freed: of 16 windows of 512 tokens in two blocks of
    # SmolLM2-135M's size two passes took 0.75 GiB at most, 0.36 with this
    trim = _allocator()
    if trim is not None:
        trim(0)


def residual_streams(model: nn.Module, names: Sequence[str], example: Batch) -> dict[str, str]:
    """Return ``{layer: norm}`` of the layers whose output is added to a residual stream; the norm reads the stream before.

    In a transformer with norms before attention and feed-forward (as Llama's) these are the output matrices of both: what
    the next norm reads is what the last one read plus their output. This is looked for in the numbers of one input
    `example`, so no names of a model family are needed. Networks that add in other ways give {}.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.norm, self.a, self.b, self.end = nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4), nn.LayerNorm(4)
    ...     def forward(self, x):
    ...         return self.end(x + self.b(self.a(self.norm(x)).relu()))
    >>> residual_streams(Block(), ["a", "b"], torch.randn(1, 4))
    {'b': 'norm'}
    """
    norms = [name for name, module in model.named_modules() if type(module).__name__.endswith("Norm")]
    met: list[tuple[str, torch.Tensor]] = []  # copies, since some networks add in place

    def read(name):
        return lambda module, args, kwargs: met.append((name, unfold.call_input(args, kwargs).clone()))

    def wrote(name):
        return lambda module, args, kwargs, output: met.append((name, output.clone()))

    with hooked(model, {name: read(name) for name in norms}, before=True):
        watch(model, [example], {name: wrote(name) for name in names})
    found, last, between = {}, None, []
    for name, tensor in met:
        if name not in norms:
            between.append((name, tensor))
            continue
        if last is not None and last[1].shape == tensor.shape:
            step = tensor - last[1]
            for layer, output in between:
                near = output.shape == step.shape and (output - step).abs().max() <= 1e-3 * output.abs().max()
                if near and output.abs().max() > 0:
                    found[layer] = last[0]
        last, between = (name, tensor), []
    return found
