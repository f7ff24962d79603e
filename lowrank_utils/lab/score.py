"""The one ledger for every method: parameters, MACs, bytes on disk, measured latency, accuracy and F1."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
import zlib
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch.utils.flop_counter import FlopCounterMode

from lowrank_utils import __version__
from lowrank_utils.checks import check_count
from lowrank_utils.lab import training
from lowrank_utils.lab.columns import RESULT_COLUMNS
from lowrank_utils.network.inputs import Batch, call, fed, random_batch
from lowrank_utils.network.modules import check_finite, evaluating

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

Built = TypeVar("Built")


def parameters(model: nn.Module) -> int:
    """Return the number of parameters, biases counted, shared ones once.

    >>> parameters(torch.nn.Linear(4, 3))
    15
    """
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, input_shape: Sequence[int], example: Batch | None = None) -> int:
    """Return the multiply-accumulates for one input of `input_shape` (or for `example`), by torch's own operation counter.

    It counts matrix products and convolutions (two operations a multiply-accumulate); activations are free.

    >>> macs(torch.nn.Linear(4, 3), (4,))
    12
    """
    # without inference mode, in which the counter cannot see through weights that are computed (parametrizations)
    with evaluating(model), torch.inference_mode(False), torch.no_grad(), FlopCounterMode(display=False) as counter:
        one = random_batch(model, input_shape)
        call(model, one if example is None else fed(example, one))
    return counter.get_total_flops() // 2


def bytes_on_disk(model: nn.Module) -> int:
    """Return the size in bytes of the model's safetensors file, shared tensors written once.

    >>> bytes_on_disk(torch.nn.Linear(4, 3)) - 4 * 15 < 200  # 4 bytes a parameter, and a header
    True
    """
    unique = {_place(value): (name, value.detach()) for name, value in model.state_dict(keep_vars=True).items()}
    held = dict(unique.values())
    if any(value.dtype not in _DTYPES for value in held.values()):
        return len(to_safetensors({name: value.contiguous() for name, value in held.items()}))
    # counted, not written: the bytes of a language model would fill memory twice over
    header, at = {}, 0
    for name in sorted(held, key=lambda name: (-_DTYPES[held[name].dtype][0], name)):
        end = at + held[name].nbytes
        about = {"dtype": _DTYPES[held[name].dtype][1], "shape": list(held[name].shape), "data_offsets": [at, end]}
        header[name], at = about, end
    size = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-size // 8) * 8 + at


def _place(value):
    # the same for tensors that are one and the same, whatever objects hold them; without numbers they have no place
    at = value.data_ptr()
    return (at, value.device, value.shape, value.stride(), value.dtype) if at else id(value)


_DTYPES = {  # the order in which a safetensors file holds them, the last one first, and its words for them
    torch.bool: (0, "BOOL"),
    torch.uint8: (1, "U8"),
    torch.int8: (2, "I8"),
    torch.int16: (3, "I16"),
    torch.float16: (4, "F16"),
    torch.bfloat16: (5, "BF16"),
    torch.int32: (6, "I32"),
    torch.float32: (7, "F32"),
    torch.float64: (8, "F64"),
    torch.int64: (9, "I64"),
}


@contextlib.contextmanager
def _threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def alternately(
    calls: Sequence[Callable[[], Any]],
    threads: int = 1,
    repeats: int = 30,
    warmup: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Return, for each of `calls`, a list of milliseconds a call, by `clock` (a function that gives seconds).

    They are timed in turn, so that drift of the machine hits all alike. Each of `repeats` readings is the mean over as
    many calls as fill about 2 ms. `threads` CPU threads of torch while it lasts, `warmup` calls before.
    Raises ValueError where a count is not a whole number of at least 1.

    >>> [len(readings) for readings in alternately([lambda: None, lambda: None], repeats=3)]
    [3, 3]
    """
    check_count(threads=threads, repeats=repeats, warmup=warmup)

    def seconds(call, runs):
        began = clock()
        for _ in range(runs):
            call()
        return (clock() - began) / runs

    readings: list[list[float]] = [[] for _ in calls]
    with _threads(threads), torch.inference_mode():
        once = [min(seconds(call, 1) for _ in range(warmup)) for call in calls]
        runs = [max(1, math.ceil(0.002 / max(each, 1e-6))) for each in once]
        for _ in range(repeats):
            for call, count, mine in zip(calls, runs, readings):
                mine.append(1000 * seconds(call, count))
    return readings


def _pass(model, inputs):
    def call():
        model(inputs)
        if inputs.is_cuda:
            torch.cuda.synchronize(inputs.device)

    return call


def latencies(
    models: Sequence[nn.Module],
    input_shape: Sequence[int],
    batch: int = 1,
    threads: int = 1,
    repeats: int = 30,
    warmup: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Return, for each of `models`, a list of milliseconds a forward pass in eval mode, timed by `clock` as in `alternately`.

    Raises ValueError where a count is not a whole number of at least 1.
    """
    check_count(batch=batch, threads=threads, repeats=repeats, warmup=warmup)
    calls = [_pass(model, random_batch(model, input_shape, batch)) for model in models]
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        return alternately(calls, threads, repeats, warmup, clock)


def latency(
    model: nn.Module, input_shape: Sequence[int], batch: int = 1, threads: int = 1, repeats: int = 30, warmup: int = 5
) -> float:
    """Return the median milliseconds of one forward pass of `batch` inputs on `threads` CPU threads."""
    return statistics.median(latencies([model], input_shape, batch, threads, repeats, warmup)[0])


def latency_ratio(
    model: nn.Module,
    other: nn.Module,
    input_shape: Sequence[int],
    batch: int = 1,
    threads: int = 1,
    repeats: int = 30,
    warmup: int = 5,
) -> tuple[float, float, float]:
    """Return (median, lower quartile, upper quartile) of latency(other) / latency(model), timed alternately.

    2.0 says that `model` takes half the time of `other`.
    """
    if repeats == 1:
        raise ValueError("repeats=1 has no quartiles; take at least 2")
    mine, theirs = latencies([model, other], input_shape, batch, threads, repeats, warmup)
    low, middle, high = statistics.quantiles([b / a for a, b in zip(mine, theirs)], n=4)
    return middle, low, high


def smallest(
    build: Callable[[float], Built],
    good: Callable[[Built], bool],
    low: float,
    high: float = 1.0,
    tolerance: float = 0.005,
) -> tuple[float, Built, int]:
    """Return (share kept, what `build` made of it, evaluations) for the smallest share that was measured to be good.

    Bisection between `low` and `high` until they are within `tolerance`: the answer was measured to be good, and a share
    at most `tolerance` below was measured not to be (or is `low`, which is not tried). Where nothing below `high` is
    good the answer is `high`, unmeasured. Accuracy is not always monotone in size, so a smaller share may be good too.

    Parameters: `build`, a function of a share in (0, 1]; `good`, a function of what it returns, such as "loses at most
    one point on valid images".

    >>> smallest(lambda share: share, lambda share: share >= 0.3, low=0.0)[0]
    0.30078125
    """
    best, evaluations = None, 0
    while high - low > tolerance:
        middle = (low + high) / 2
        built = build(middle)
        evaluations += 1
        if good(built):
            high, best = middle, built
        else:
            low = middle
    return high, build(high) if best is None else best, evaluations


def packed(correct: Sequence[bool] | np.ndarray) -> str:
    """Return which of N images a network gets right (N booleans, in the order of the images) as a short text.

    "N:" and the base64 of the compressed bits; `unpacked` reads it. About 0.8 kB for 10 000 images of which a tenth is wrong.
    Raises ValueError for anything but a row of booleans.

    >>> unpacked(packed([True, False, True])).tolist()
    [True, False, True]
    """
    bits = np.asarray(correct)
    if bits.ndim != 1 or bits.dtype != bool:
        raise ValueError(f"which images are right is a row of booleans, not {bits.ndim} dimensions of {bits.dtype}")
    return f"{len(bits)}:{base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode()}"


def unpacked(text: str) -> np.ndarray:
    """Return the booleans that `packed` made a text of. Raises ValueError for a text that it did not make."""
    count, _, rest = text.partition(":")
    try:
        bits = np.frombuffer(zlib.decompress(base64.b64decode(rest, validate=True)), np.uint8)
        if len(bits) != -(-int(count) // 8):
            raise ValueError(count)
        return np.unpackbits(bits, count=int(count)).astype(bool)
    except (ValueError, zlib.error):
        raise ValueError(
            f"{text[:20]!r} does not say which test images are right; score.packed makes such a text"
        ) from None


def row(
    model: nn.Module,
    original: nn.Module,
    test: tuple[torch.Tensor, torch.Tensor],
    threads: int = 1,
    timed: bool = False,
    counted: nn.Module | None = None,
    keep_correct: bool = False,
    **columns: Any,
) -> dict[str, Any]:
    """Return one row of the results table (dict): `model` beside the `original` network it came from.

    `test` is (images, labels); `columns` are what the caller knows (notebook, dataset, chooser, ...), added
    as they are, in place of what is measured where they have the same name. `counted` is the network whose parameters,
    MACs and bytes count, where `model` runs it in a form that has none, such as an ONNX file in onnxruntime. Latency at
    batch 1 and 64 is measured where `timed` is true and NaN otherwise. With `keep_correct` the row says which test images
    are right (column correct, as in `packed`), so that it can be compared in pairs. Raises ValueError for NaN weights.
    """
    counted = model if counted is None else counted
    check_finite(counted)
    images, labels = test
    shape = tuple(images.shape[1:])
    outputs = training.outputs(model, images)
    scores = training.scores_of(outputs, labels)
    found = dict.fromkeys(RESULT_COLUMNS, math.nan) | sizes(counted, original, shape)
    if timed:
        found |= {f"latency_ms_{batch}": latency(model, shape, batch, threads) for batch in (1, 64)}
    found |= {"accuracy": scores.accuracy, "f1": scores.f1, "loss": scores.loss}
    if keep_correct:
        found["correct"] = packed((outputs.argmax(1) == labels).numpy())
    return found | columns | made_with(threads if timed else math.nan)


def sizes(
    model: nn.Module,
    original: nn.Module,
    input_shape: Sequence[int] = (),
    example: Batch | None = None,
    original_macs: float | None = None,
) -> dict[str, Any]:
    """Return the columns of a row that are counted: parameters, MACs (as in `macs`), bytes on disk, and shares of the original.

    `original_macs`: MACs of the original network, where they are known.
    """
    found: dict[str, Any] = {"parameters": parameters(model), "macs": macs(model, input_shape, example)}
    found["bytes"] = bytes_on_disk(model)
    found["parameters_kept"] = found["parameters"] / parameters(original)
    found["macs_kept"] = found["macs"] / (original_macs or macs(original, input_shape, example))
    return found


def made_with(threads: float) -> dict[str, Any]:
    """Return the columns of a row that say what it was measured with; `threads` is NaN where nothing was timed."""
    return {"torch": torch.__version__, "lowrank_utils": __version__, "threads": threads}


def answer_memory(model: nn.Module, input_shape: Sequence[int], batch: int = 64) -> float:
    """Return how many MiB it takes to answer `batch` inputs: weights and buffers, and the tensors held at once on the way.

    The inputs are not counted, nor what a library holds inside of one operation without asking torch for it. NaN for a network
    without parameters, such as an `export.Session`, and on another device than the CPU. The measure is torch's own
    (``torch.profiler``, ``profile_memory``), and the same in every run.

    >>> layer = torch.nn.Linear(1000, 500, bias=False)
    >>> round(answer_memory(layer, (1000,), batch=64) * 2**20 / 4) == 1000 * 500 + 64 * 500
    True
    """
    from torch.profiler import ProfilerActivity, profile

    check_count(batch=batch)
    held = [*model.parameters(), *model.buffers()]
    if next(model.parameters(), None) is None or any(value.device.type != "cpu" for value in held):
        return float("nan")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes lines of its own to stderr
    given = random_batch(model, input_shape, batch)
    with evaluating(model):
        model(given)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            answer = model(given)  # held to the end, as the caller of a network holds it
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        seen.export_chrome_trace(path)
        with open(path) as file:
            events = [event for event in json.load(file)["traceEvents"] if event.get("name") == "[memory]"]
    del answer
    events.sort(key=lambda event: event["ts"])
    at = [event["args"]["Total Allocated"] for event in events]
    before = at[0] - events[0]["args"]["Bytes"] if at else 0
    weights = sum(value.numel() * value.element_size() for value in held)
    return (weights + max([level - before for level in at], default=0)) / 2**20


def peak_memory() -> float:
    """Return the most memory that this process has held, in GiB; NaN where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return float("nan")
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
