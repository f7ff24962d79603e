"""Milliseconds as a budget: what every option of every layer takes, measured in the runtime that will run the network.

A share of the MACs is not a share of the time: small convolutions wait for memory, runtimes like some numbers of channels
better than others, and pooling, norms and activations take what they took before. So each layer is timed by itself, dense
and as pairs of stock layers at a few ranks in each scheme, on inputs of its real shape. The times are a table for
`search.rank_options`; the search then finds the best plan for a time.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import nn

from lowrank_utils.checks import check_count, check_share
from lowrank_utils.lab import export, score
from lowrank_utils.network import inputs, unfold
from lowrank_utils.network.hooks import hooked
from lowrank_utils.network.inputs import Batch
from lowrank_utils.network.modules import copied, evaluating, replaced
from lowrank_utils.network.profile import LayerProfile, Plan, Profile
from lowrank_utils.network.unfold import Entry, parse_entry
from lowrank_utils.progress import track

RUNTIMES = ("torch", "torch-channels-last", "onnxruntime")
POINTS = 6  # measured ranks above `SMALL` a layer and scheme; those between are interpolated
SMALL = 32  # ranks that are all measured: here times go in steps, and a step is large
REPEATS = 15
ROUNDS = 4  # plans that are timed as a whole, each with a budget corrected by the one before

Times = Mapping[str, Mapping[Entry | None, float]]  # {layer: {entry, None for dense: milliseconds}}


class _Found(Protocol):
    @property
    def plan(self) -> Plan: ...


Found = TypeVar("Found", bound=_Found)


@dataclass(frozen=True)
class Clock:
    """How time is measured: in ``runtime`` ("torch", eager; the same with images and kernels
    in the memory format "torch-channels-last"; or "onnxruntime"), ``batch`` inputs
    a pass, on ``threads`` CPU threads.

    On one thread of the CPU the clock is processor time, which other programs on the machine disturb little; else time
    on the wall. Raises ValueError for another runtime, one that is not installed, and counts below 1.

    >>> clock = Clock(repeats=3)
    >>> calls = clock.calls([nn.Linear(4, 3), nn.Linear(4, 2)], torch.zeros(64, 4))
    >>> [len(readings) for readings in clock.time(calls)]
    [3, 3]
    """

    runtime: str = "torch"
    batch: int = 64
    threads: int = 1
    repeats: int = REPEATS

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ValueError(f"unknown runtime {self.runtime!r}; known: {', '.join(RUNTIMES)}")
        check_count(batch=self.batch, threads=self.threads)
        check_count(2, repeats=self.repeats)
        needed = ("onnxruntime", "onnx", "onnxscript") if self.runtime == "onnxruntime" else ()
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(
                f"runtime='onnxruntime' needs {' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} "
                f"not installed; pip install {' '.join(missing)}, or take runtime='torch'"
            )

    def calls(self, layers: Sequence[nn.Module], x: torch.Tensor) -> list[Callable[[], Any]]:
        """Return, for each of `layers`, a function that runs it once on the one tensor `x`."""
        if self.runtime != "onnxruntime":
            return [self._in_torch(layer, x) for layer in layers]
        return _sessions(layers, x, self.threads)

    def network(self, model: nn.Module, batch: Batch) -> Callable[[], Any]:
        """Return a function that runs the whole network `model` once on `batch`; in onnxruntime from a file of `export.to_onnx`."""
        if self.runtime != "onnxruntime":
            return self._in_torch(model, batch)
        if not torch.is_tensor(batch):
            raise ValueError("runtime='onnxruntime' times networks that take one tensor; this one takes several")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            export.to_onnx(model, path, batch[:2], tolerance=1e-2)  # only its time counts
            session = export.onnx_session(path, self.threads)
        return lambda: session(batch)

    def time(self, calls: Sequence[Callable[[], Any]]) -> list[list[float]]:
        """Return a list of milliseconds for each of `calls`, `repeats` of them, taken in turn (`score.alternately`)."""
        clock = time.process_time if self.threads == 1 and not torch.cuda.is_initialized() else time.perf_counter
        return score.alternately(calls, self.threads, self.repeats, 2, clock)

    def _in_torch(self, module, batch):
        network = copied(module).eval()
        if self.runtime == "torch-channels-last":
            network = network.to(memory_format=torch.channels_last)
            batch = _channels_last(batch) if torch.is_tensor(batch) else batch.map(_channels_last)
        part = batch if torch.is_tensor(batch) else batch.tensors[0]

        def run():
            inputs.call(network, batch)
            if part.is_cuda:
                torch.cuda.synchronize(part.device)

        return run


def _channels_last(x):
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


class _Several(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


def _sessions(layers, x, threads):
    # one export for all, which takes seconds, then cut into one network each
    import onnx
    import onnxruntime

    names = [f"y{place}" for place in range(len(layers))]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.onnx"
        program = copied(_Several(layers)).eval().cpu()
        with export._quietly(), torch.inference_mode(False):
            zeros = (torch.zeros_like(x, device="cpu"),)
            kept: dict[str, Any] = {"input_names": ["x"], "output_names": names, "external_data": False}
            torch.onnx.export(program, zeros, path, dynamo=True, verbose=False, **kept)
        whole = onnx.utils.Extractor(onnx.load(path))
        cut = [whole.extract_model(["x"], [name]).SerializeToString() for name in names]

    def ready(content):
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return partial(session.run, None, {"x": x.cpu().numpy()})

    return [ready(content) for content in cut]


# Tables ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A median in milliseconds, and its ``spread``: half of the interquartile range of the readings, as a share of it."""

    ms: float
    spread: float


@dataclass(frozen=True)
class LayerTimes:
    """What the options of every layer take, and the dense network around them, in milliseconds a pass of a batch.

    ``layers``: {layer: {entry: ms}}, None for the dense layer, as `search.rank_options` takes it in ``tables``;
    ``readings``: the same with what was measured and nothing interpolated; ``whole``: the dense `Reading`; ``clock``.
    Layers by themselves read their inputs from other caches than in the network, so that their sum may be more or less
    than they take there; what counts are differences between options of a layer.
    """

    layers: dict[str, dict[Entry | None, float]]
    readings: dict[str, dict[Entry | None, Reading]] = field(repr=False)
    whole: Reading
    clock: Clock

    @property
    def tables(self) -> dict[str, Times]:
        """{"latency": ``layers``}, for `search.rank_options`."""
        return {"latency": self.layers}

    @property
    def outside(self) -> float:
        """Milliseconds that lie outside the layers with options: the whole dense network less the sum of these."""
        return self.whole.ms - sum(own[None] for own in self.layers.values())

    @property
    def spread(self) -> float:
        """The median spread of all readings, a share."""
        return statistics.median(
            [self.whole.spread, *(r.spread for own in self.readings.values() for r in own.values())]
        )

    def share(self, plan: Plan) -> float:
        """Return the share of the dense time that `plan` takes by the table; NaN for an entry that is not in it."""
        cut = sum(own[None] - own.get(plan.get(name), math.nan) for name, own in self.layers.items())
        return 1 - cut / self.whole.ms

    def least(self) -> float:
        """Return the smallest sum of the layers' milliseconds that any plan takes."""
        return sum(min(own.values()) for own in self.layers.values())

    def budget(self, kept: float) -> float:
        """Return the milliseconds that the layers may take together so that the network takes a share `kept` of its time.

        Raises ValueError where the fastest plan takes longer, with the smallest share possible.
        """
        check_share(kept=kept)
        budget = kept * self.whole.ms - self.outside
        if budget < self.least() * (1 - 1e-12):
            smallest = math.ceil(1e4 * (self.outside + self.least()) / self.whole.ms) / 1e4
            advice = (
                "ask for more" if smallest < 1 else "low rank gains no time here; set a budget of MACs or parameters"
            )
            raise ValueError(
                f"kept={kept} of the latency cannot be reached: the fastest plan takes {smallest:.4f} of the dense network's "
                f"time, {max(self.outside, 0) / self.whole.ms:.1%} of which lies outside the layers that can be cut; {advice}"
            )
        return max(budget, self.least())

    def columns(self, plan: Plan, names: Sequence[str]) -> dict[str, list[float]]:
        """Return the milliseconds of the named layers by themselves, dense and as planned; NaN where a layer has no options."""
        own = [self.layers.get(name, {}) for name in names]
        planned = [times.get(plan.get(name), math.nan) for name, times in zip(names, own)]
        return {"ms_dense": [times.get(None, math.nan) for times in own], "ms": planned}

    def note(self) -> str:
        """Return in words where the readings say less than they scatter; empty where they are sharp enough."""
        unsure = [name for name, own in self.readings.items() if _drowned(own)]
        if 2 * len(unsure) <= len(self.readings):
            return ""
        return (
            f"In {len(unsure)} of {len(self.readings)} layers the times of all options differ by less than their spread "
            f"(median {self.spread:.0%}), so the plan is partly chance; measure on a quiet machine or with a larger batch."
        )


def _drowned(readings):
    times = [each.ms for each in readings.values()]
    return max(times) - min(times) < 2 * statistics.median(each.ms * each.spread for each in readings.values())


def measure(
    profile: Profile,
    clock: Clock | None = None,
    *,
    floor: float = 0.1,
    multiple: int | None = None,
    points: int = POINTS,
) -> LayerTimes:
    """Return the `LayerTimes` of the layers of `profile` that can be factored.

    Each layer is timed dense and at some ranks in each scheme, with random numbers, on random inputs of the
    shape it has for ``clock.batch`` inputs of the network. Layers of equal shape are timed once. All options of a layer
    and the dense network take turns; a reading counts as a share of the network's own in the same turn, so that a machine
    that slows down slows both. Ranks between measured ones get their time by PCHIP interpolation.

    Parameters
    ----------
    profile : with the shape of an input, or calibration inputs.
    clock : runtime, batch, threads (default: eager torch, 64, 1).
    floor : no rank below this share of the break-even rank, as in `search.rank_options`.
    multiple : ranks are multiples of it (None: of 16, below 32 of 8, below 16 of 4, and 1 to 3).
    points : measured ranks a scheme above `SMALL`, at least 2; those up to it are all measured.

    Raises ValueError where no layer has a rank that costs fewer MACs.

    >>> from lowrank_utils import profile
    >>> times = measure(profile(nn.Sequential(nn.Linear(64, 64)), input_shape=(64,)), Clock(batch=8, repeats=2), multiple=16)
    >>> list(times.layers["0"])
    [None, 16]
    """
    clock = clock or Clock()
    check_count(2, points=points)
    check_count(multiple=1 if multiple is None else multiple)
    if floor != 0:
        check_share(floor=floor)
    offered = {card.name: ranks for card in profile if (ranks := _ranks(card, floor, multiple))}
    if not offered:
        raise ValueError("no layer can be factored at less than its dense cost, so there is nothing to time")
    model, batch = profile.model, batch_of(profile, clock.batch)
    shapes = _input_shapes(model, offered, batch)
    groups: dict[Any, list[str]] = {}
    for name in offered:
        groups.setdefault((_like(model.get_submodule(name)), shapes[name], str(offered[name])), []).append(name)
    network, layers, readings, whole = clock.network(model, batch), {}, {}, []
    for (_, shape, _), names in track(groups.items(), "layers timed", len(groups)):
        layer, ranks = model.get_submodule(names[0]), offered[names[0]]
        entries = [None, *(unfold.plan_entry(s, r) for s, own in ranks.items() for r in _spaced(own, points))]
        modules = [layer if entry is None else pair(layer, entry) for entry in entries]
        own_weight: Any = layer.weight
        x = torch.randn(shape, dtype=own_weight.dtype, device=own_weight.device)
        turns = np.array(clock.time([network, *clock.calls(modules, x)]))
        whole.append(turns[0])
        for name in names:
            readings[name] = dict(zip(entries, turns[1:] / turns[0]))
    dense = _reading(np.concatenate(whole))
    for name in offered:
        own = {entry: _reading(shares * dense.ms) for entry, shares in readings[name].items()}
        readings[name], layers[name] = own, _filled(own, offered[name])
    return LayerTimes(layers, readings, dense, clock)


def _reading(values):
    low, middle, high = np.percentile(values, [25, 50, 75])
    return Reading(float(middle), float((high - low) / 2 / middle) if middle else math.inf)


def _ranks(card: LayerProfile, floor, multiple):
    # {scheme: ranks that cost less}; {} where the layer stays dense
    found = {}
    for scheme in () if card.reason else card.costs or [card.scheme]:
        most = card.break_even("macs", scheme)
        least = max(1, math.ceil(floor * most))
        ranks = [rank for rank in range(least, most + 1) if (rank % multiple == 0 if multiple else _liked(rank))]
        if ranks:
            found[scheme] = ranks
    return found


def _liked(rank):
    # CPUs work on 8 or 16 channels at once, so that rank 17 takes as long as 24 or 32
    return rank % 16 == 0 or (rank < 32 and rank % 8 == 0) or (rank < 16 and rank % 4 == 0) or rank < 4


def _spaced(ranks, points):
    # the small ranks, and some of the others, evenly in log rank, both ends among them
    small, large = [rank for rank in ranks if rank <= SMALL], [rank for rank in ranks if rank > SMALL]
    if len(large) > points:
        large = sorted({min(large, key=lambda r: abs(r - at)) for at in np.geomspace(large[0], large[-1], points)})
    return small + large


def _filled(readings, ranks):
    # {entry: ms} with the ranks between
    found: dict[Entry | None, float] = {None: readings[None].ms}
    for scheme, own in ranks.items():
        known = sorted(
            (parse_entry(entry)[1], reading.ms)
            for entry, reading in readings.items()
            if entry is not None and parse_entry(entry)[0] == scheme
        )
        at, ms = zip(*known)
        curve = PchipInterpolator(at, ms)(own) if len(at) > 1 else np.full(len(own), ms[0])
        found |= {unfold.plan_entry(scheme, rank): float(each) for rank, each in zip(own, curve)}
    return found


def _like(layer):
    # what layers that take the same time have in common, beside the shape of the input
    kernel = () if isinstance(layer, nn.Linear) else (layer.stride, layer.padding, layer.dilation, layer.groups)
    more = getattr(layer, "padding_mode", None)
    return type(layer), tuple(layer.weight.shape), layer.weight.dtype, layer.bias is not None, *kernel, more


def pair(layer: nn.Module, entry: Entry) -> nn.Sequential:
    """Return the two stock layers that `layer` becomes at `entry` of a plan, with random numbers: right in shape and time only."""
    scheme, rank = parse_entry(entry)
    bias = getattr(layer, "bias", None) is not None
    thin = nn.Sequential(*unfold.unfolding(scheme).empty_pair(layer, rank, bias))
    with torch.no_grad():
        for value in thin.parameters():
            value.normal_(std=1 / math.sqrt(max(value[0].numel(), 1)))
    return thin


def batch_of(profile: Profile, size: int) -> Batch:
    """Return `size` inputs of the profiled network: calibration inputs, some of them repeatedly where they are few, or random ones."""
    given = profile.calibration
    if given is None:
        return inputs.random_batch(profile.model, profile.input_shape or (), size)
    return inputs.fed(given[torch.arange(size) % len(given)], next(profile.model.parameters()))


def _input_shapes(model, names, batch):
    shapes = {}

    def watch(name):
        def hook(module, args, kwargs, output):
            shapes[name] = tuple(unfold.call_input(args, kwargs).shape)

        return hook

    with evaluating(model), hooked(model, {name: watch(name) for name in names}):
        inputs.call(model, batch)
    return shapes


# Plans ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latency:
    """A network before and after, timed in turn: medians in milliseconds, and what the table had said.

    ``kept``: the median of after / before, each in one turn, with quartiles ``low`` and ``high``; ``predicted``: the same
    by the table; ``outside``: the share of the dense time that lies outside the layers that can be cut. Its text is one
    sentence.
    """

    before: float
    after: float
    kept: float
    low: float
    high: float
    predicted: float
    outside: float
    clock: Clock

    def __str__(self) -> str:
        clock, threads = self.clock, f"{self.clock.threads} thread{'s' * (self.clock.threads > 1)}"
        return (
            f"Measured: {self.before:.3g} ms before, {self.after:.3g} ms after, {self.kept:.1%} "
            f"(quartiles {self.low:.1%} to {self.high:.1%}; {clock.runtime}, batch {clock.batch}, {threads}); "
            f"{self.outside:.0%} of the time before lay outside the layers that can be cut."
        )


def missed(seen: Latency, kept: float) -> str:
    """Return in words that the network takes longer than a share `kept`; empty where it does not, beyond what readings scatter."""
    if seen.low <= kept or seen.kept <= 1.02 * kept:
        return ""
    return f"By the clock {seen.kept:.1%} of the time stay, more than asked for ({kept:.1%})."


def compare(times: LayerTimes, profile: Profile, small: nn.Module, plan: Plan) -> Latency:
    """Return the `Latency` of the profiled network and of `small`, which was made of it by `plan`."""
    batch, clock = batch_of(profile, times.clock.batch), times.clock
    turns = np.array(clock.time([clock.network(model, batch) for model in (profile.model, small)]))
    low, middle, high = map(float, np.percentile(turns[1] / turns[0], [25, 50, 75]))
    before, after = map(float, np.median(turns, 1))
    outside = max(times.outside, 0.0) / times.whole.ms
    return Latency(before, after, middle, low, high, times.share(plan), outside, clock)


def plan_within(times: LayerTimes, profile: Profile, kept: float, find: Callable[[float], Found]) -> Found:
    """Return what `find` finds for the time that the layers may take, so that the network takes a share `kept` as measured.

    The sum of layers is only nearly the time of the network. So the network of each plan is timed too, with random numbers
    in its factors, and the budget of `find` corrected by the difference, up to `ROUNDS` times. Of the plans within `kept`
    (or within the spread of it) the slowest is taken, of others the fastest.

    Parameters: `find`, a function of a budget in milliseconds that returns an object with a ``plan``, such as
    `search.SearchResult`.
    Raises ValueError where the table says that `kept` cannot be reached.
    """
    budget, tried = times.budget(kept), []
    most = sum(own[None] for own in times.layers.values())
    for _ in range(ROUNDS):
        found = find(budget)
        thin: dict[str, nn.Module] = {
            name: pair(profile.model.get_submodule(name), entry) for name, entry in found.plan.items()
        }
        seen = compare(times, profile, replaced(profile.model, thin), found.plan) if thin else None
        share, spread = (1.0, 0.0) if seen is None else (seen.kept, (seen.high - seen.low) / 2)
        tried.append((share, found))
        # the spread of a median is about a quarter of that of its readings
        if abs(share - kept) <= max(0.01 * kept, spread / 4):
            return found
        better = min(max(budget + (kept - share) * times.whole.ms, times.least()), most)
        if better == budget:
            break
        budget = better
    within = [each for each in tried if each[0] <= 1.01 * kept]
    return max(within, key=lambda each: each[0])[1] if within else min(tried, key=lambda each: each[0])[1]
