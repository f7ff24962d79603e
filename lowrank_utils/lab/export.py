"""A compressed network on its way out: an ONNX file, 8-bit weights, a program of `torch.export`."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowrank_utils import paths
from lowrank_utils.checks import check_count, is_number
from lowrank_utils.lab import score
from lowrank_utils.lab.checkpoints import _state
from lowrank_utils.network import modules

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def to_onnx(model: nn.Module, path: str | Path, example: torch.Tensor, tolerance: float = 1e-5) -> float:
    """Write `model` as an ONNX file for any number of inputs; return how far onnxruntime's outputs are from torch's.

    That is |y' - y| / |y|, the larger one of two batches: `example`, and another size. The file holds the weights
    (2 GB at most), no stack traces and no data. The network is written as it answers in eval mode.

    Parameters: `model`, on the CPU in float32 (float64 where onnxruntime has the operations), with one tensor in and
    one out; `example`, inputs that it takes (N first); `tolerance` of the relative difference. `model` is left as it
    was, and `path` too unless all went well.

    Raises ValueError for a network on another device or in half precision, NaN, inputs that it cannot take, control
    flow that depends on data, a fixed batch size, operations that ONNX or onnxruntime does not have, and outputs that
    differ by more than `tolerance`; OSError where the file cannot be written.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/net.onnx"
    >>> to_onnx(nn.Linear(6, 2), path, torch.randn(4, 6)) < 1e-5
    True
    """
    _check_tolerance(tolerance)
    network, seen = _frozen(model, example)
    program = _traced(network, seen[0][0])
    with paths.atomic_write(path) as temporary:
        try:
            with _quietly():
                batch = ({0: torch.export.Dim("batch")},)
                names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"], "dynamic_shapes": batch}
                torch.onnx.export(program, (), temporary, external_data=False, dynamo=True, verbose=False, **names)
        except OSError:
            raise
        except Exception as error:  # exporters fail in errors of many kinds
            absent = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(error))
            said = f"ONNX has no form of its operation {absent[1]}" if absent else _said(error)
            raise ValueError(f"the network cannot be written as ONNX: {said}") from error
        try:
            session = Session(temporary)
        except Exception as error:
            raise ValueError(f"onnxruntime cannot run the network: {_said(error)}") from error
        return _difference("onnxruntime", session, seen, tolerance)


class Session(nn.Module):
    """An ONNX file as a network without parameters: tensor in, tensor out, onnxruntime on `threads` CPU threads between.

    `session` is the ``onnxruntime.InferenceSession``. `onnx_session` says in words why a file cannot be read.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
        # else its threads go on waiting busily while another network is timed
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        taken = self.session.get_inputs()[0]
        self.input = taken.name
        kinds = {"tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(int64)": torch.int64}
        self.dtype = kinds.get(taken.type)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            return torch.from_numpy(self.session.run(None, {self.input: x.detach().to("cpu", self.dtype).numpy()})[0])
        except Exception as error:  # of onnxruntime's own kinds
            raise ValueError(
                f"the ONNX network cannot take inputs of shape {tuple(x.shape)}: {_said(error)}"
            ) from error


def onnx_session(path: str | Path, threads: int = 1) -> Session:
    """Return the ONNX file `path` as a `Session`, which `score.latency` and `score.latencies` time like any network.

    Raises FileNotFoundError for a missing file, ValueError for one that onnxruntime cannot run and for `threads` that
    are not a whole number of at least 1.

    >>> import tempfile
    >>> path, layer, x = tempfile.mkdtemp() + "/net.onnx", nn.Linear(6, 2), torch.randn(3, 6)
    >>> _ = to_onnx(layer, path, x)
    >>> torch.allclose(onnx_session(path)(x), layer(x), atol=1e-5)
    True
    """
    check_count(threads=threads)
    try:
        with open(path, "rb"):
            pass
        return Session(path, threads)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no ONNX file {path}; `export.to_onnx` writes one") from None
    except Exception as error:  # of onnxruntime's own kinds
        raise ValueError(f"onnxruntime cannot run {path}: {_said(error)}") from error


def onnx_latency_ratio(
    path: str | Path,
    model: nn.Module,
    input_shape: Sequence[int],
    batch: int = 1,
    threads: int = 1,
    repeats: int = 30,
    warmup: int = 5,
) -> tuple[float, float, float]:
    """Return (median, lower quartile, upper quartile) of latency(`model`) / latency(ONNX file), timed alternately.

    2.0 says that the file in onnxruntime takes half the time. Both run `batch` inputs on `threads` CPU threads; see
    `score.latencies` and `onnx_session`, also for what is raised.

    >>> import tempfile
    >>> path, layer = tempfile.mkdtemp() + "/net.onnx", nn.Linear(6, 2)
    >>> _ = to_onnx(layer, path, torch.randn(3, 6))
    >>> middle, low, high = onnx_latency_ratio(path, layer, (6,), batch=64, repeats=3)
    >>> 0 < low <= middle <= high
    True
    """
    return score.latency_ratio(onnx_session(path, threads), model, input_shape, batch, threads, repeats, warmup)


def to_int8(
    path: str | Path, target: str | Path, calibration: torch.Tensor | None = None, batch_size: int = 100
) -> None:
    """Write the ONNX network at `path` to `target` with weights in 8-bit integers, whole or not at all.

    Without `calibration` the quantization of onnxruntime is dynamic: weights are rounded now, one scale a matrix, and activations
    as they come, so no data are needed. Linear layers run faster so, convolutions of many small images often slower: measure.
    With `calibration`, inputs of the network (N first), it is static: the range of each activation is the smallest and largest
    value on these inputs, weights have one scale an output channel, and all of it runs in integers (`quantize_static`).
    Weights and activations are unsigned. With signed weights, x86 processors without VNNI clip sums of two products at 16 bits,
    and the answers go wrong (onnxruntime, "Quantize ONNX models": U8S8 against U8U8).
    Raises FileNotFoundError for a missing file, ValueError for one that cannot be read or quantized, and for no inputs.

    >>> import tempfile
    >>> folder, layer = tempfile.mkdtemp(), nn.Linear(200, 100)
    >>> _ = to_onnx(layer, folder + "/net.onnx", torch.randn(3, 200))
    >>> to_int8(folder + "/net.onnx", folder + "/net8.onnx")
    >>> onnx_session(folder + "/net8.onnx")(torch.randn(5, 200)).shape
    torch.Size([5, 100])
    """
    import onnx
    from onnxruntime import quantization

    if calibration is not None and (not torch.is_tensor(calibration) or len(calibration) == 0):
        raise ValueError("calibration must be a tensor of at least one input, with the inputs along its first axis")
    try:
        network = onnx.load(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no ONNX file {path}; `export.to_onnx` writes one") from None
    except Exception as error:  # protobuf's own kinds
        raise ValueError(f"{path} is damaged or no ONNX file: {_said(error)}") from error
    del network.graph.value_info[:]  # shapes of before, which quantization changes and then stumbles over
    rounded = quantization.QuantType.QUInt8
    with paths.atomic_write(target) as temporary:
        try:
            with _quietly():
                if calibration is None:
                    quantization.quantize_dynamic(network, temporary, weight_type=rounded)
                else:
                    reader = _reader(network.graph.input[0].name, calibration, batch_size)
                    types = {"weight_type": rounded, "activation_type": rounded, "per_channel": True}
                    quantization.quantize_static(network, temporary, reader, **types)
        except OSError:
            raise
        except Exception as error:  # quantizers fail in errors of many kinds
            raise ValueError(f"{path} cannot be quantized: {_said(error)}") from error


def _reader(name, calibration, batch_size):
    # onnxruntime asks for one batch after the other, then for None
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(calibration.detach().cpu().float().split(batch_size))

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.numpy()}

    return Reader()


def exported(
    model: nn.Module, example: torch.Tensor, path: str | Path | None = None, tolerance: float = 1e-5
) -> torch.export.ExportedProgram:
    """Return `model` as a ``torch.export.ExportedProgram`` that takes any number of inputs and gives the same outputs.

    With `path` it is written there, whole or not at all, and what comes back was read from the file (``.pt2``), as
    ``torch.export.load(path).module()`` reads it anywhere. The file holds no stack traces and no data. Parameters, and
    what is raised, as in `to_onnx`.

    >>> layer, x = nn.Linear(6, 2), torch.randn(3, 6)
    >>> torch.allclose(exported(layer, x).module()(x), layer(x))
    True
    """
    _check_tolerance(tolerance)
    network, seen = _frozen(model, example)
    program = _traced(network, seen[0][0])
    if path is None:
        _difference("torch.export", program.module(), seen, tolerance)
        return program
    written = io.BytesIO()  # in a file, the archive would take the temporary name for its own
    with paths.atomic_write(path) as temporary:
        try:
            with _quietly():
                torch.export.save(program, written)
                program = torch.export.load(io.BytesIO(written.getvalue()))
        except Exception as error:  # exporters fail in errors of many kinds
            raise ValueError(f"torch.export cannot write the network: {_said(error)}") from error
        temporary.write_bytes(written.getvalue())
        _difference("torch.export", program.module(), seen, tolerance)
    return program


def _check_tolerance(tolerance):
    if not is_number(tolerance) or not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance!r} is not a positive number")


def _frozen(model, example):
    """Return (a copy of `model` in eval mode, its (inputs, outputs) at two batch sizes)."""
    if not torch.is_tensor(example) or example.ndim < 2 or len(example) == 0:
        raise ValueError("example must be a tensor of at least one input, with the inputs along its first axis")
    kind = None
    for name, value in _state(model).items():
        if value.device.type != "cpu":
            raise ValueError(f"{name} is on {value.device}; export a copy on the CPU, copy.deepcopy(model).cpu()")
        if value.is_floating_point():
            kind = kind or value.dtype
            if value.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{name} is {value.dtype}; export a copy in float32, copy.deepcopy(model).float()")
    modules.check_finite(model)
    inputs = example.detach().to("cpu", kind if example.is_floating_point() else None)
    if inputs.is_floating_point() and not torch.isfinite(inputs).all():
        raise ValueError("the example holds NaN or infinite values")
    network, seen = modules.copied(model).eval(), []
    for x in (inputs, inputs[:1] if len(inputs) > 1 else inputs[[0, 0, 0]]):
        try:
            with torch.no_grad():
                y = network(x)
        except Exception as error:  # a reader's own network fails in errors of many kinds
            raise ValueError(
                f"the network cannot take a batch of {len(x)} inputs of shape {tuple(x.shape[1:])}: {_said(error)}"
            ) from error
        if not torch.is_tensor(y) or y.ndim == 0 or len(y) != len(x):
            what = tuple(y.shape) if torch.is_tensor(y) else f"type {type(y).__name__}"
            raise ValueError(
                f"for {len(x)} inputs the network gives {what}; it must be a tensor with them along its first axis"
            )
        if not torch.isfinite(y).all():
            raise ValueError("the network's outputs are NaN or infinite; check its weights and the example")
        seen.append((x, y))
    return network, seen


def _traced(network, inputs):
    # of two zeros, since the file keeps what it was traced with, and a batch of one would fix the batch size
    zeros = torch.zeros(2, *inputs.shape[1:], dtype=inputs.dtype)
    try:
        with _quietly():
            program = torch.export.export(network, (zeros,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # exporters fail in errors of many kinds
        said = _said(error)
        if "data-dependent" in str(error):
            said = f"its control flow depends on the values of its inputs ({said})"
        elif "Constraints violated (batch)" in str(error):
            said = "it does not treat all batch sizes alike"
        raise ValueError(f"torch.export cannot follow the network: {said}") from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


def _difference(where, run, seen, tolerance):
    worst = 0.0
    for x, wanted in seen:
        with torch.no_grad():
            y = run(x)
        if y.shape != wanted.shape:
            raise ValueError(f"{where} gives outputs of shape {tuple(y.shape)}, not {tuple(wanted.shape)}")
        difference = float((y - wanted).double().norm() / (wanted.double().norm() or 1.0))
        if not difference <= tolerance:  # NaN too
            raise ValueError(
                f"{where}'s outputs for {len(x)} inputs differ by {difference:.1e} in relative norm, "
                f"more than tolerance={tolerance:.1e}"
            )
        worst = max(worst, difference)
    return worst


def _said(error):
    # the first line that says something, without colours
    lines = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__


@contextlib.contextmanager
def _quietly():
    # exporters warn of their own insides, and log or print whole graphs before they raise
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
