"""Networks on disk: dense and compressed safetensors files, and weights that others published."""

from __future__ import annotations

import hashlib
import http.client
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from lowrank_utils import paths
from lowrank_utils.lab import models
from lowrank_utils.lab.fetch import patience
from lowrank_utils.lab.models import NAMES, NETWORKS, CifarResNet, Rescale, build
from lowrank_utils.network import unfold
from lowrank_utils.network.modules import check_finite, check_there, linear, replaced, with_linear_layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def published_path(dataset: str, network: str, seed: int = 0) -> Path:
    """Return where the published checkpoint of this network lies, whether or not there is one."""
    return paths.CHECKPOINTS / f"{dataset}-{network.replace('/', '-')}-seed{seed}.safetensors"


def save(model: nn.Module, path: str | Path, metadata: Mapping[str, Any], dtype: str | None = None) -> None:
    """Write `model` to `path` as safetensors, whole or not at all, `metadata` (JSON values) in its header.

    `metadata` must name the network, input_shape and classes, from which `load` builds it again;
    `dtype="float16"` halves the file. Raises ValueError for NaN weights, weights that float16 cannot hold
    (above 65504) or missing metadata, OSError where the file cannot be written.
    """
    if dtype not in (None, "float32", "float16"):
        raise ValueError(f"dtype={dtype!r} is not one that checkpoints are stored in: float32 or float16")
    check_finite(model)
    missing = {"network", "input_shape", "classes"} - metadata.keys()
    if missing:
        raise ValueError(f"the metadata of a checkpoint must name {', '.join(sorted(missing))}")
    kind = getattr(torch, dtype or "float32")
    tensors = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        tensors[name] = value.to(kind if value.is_floating_point() else value.dtype).contiguous()
        if value.is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise ValueError(f"{name} holds weights above 65504, the largest of float16; keep float32")
    header = {name: json.dumps(value) for name, value in {**metadata, "dtype": dtype or "float32"}.items()}
    with paths.atomic_write(path) as temporary:
        save_file(tensors, temporary, header)


def load(
    checkpoint: str | Path, input_shape: Sequence[int] | None = None, classes: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Return (network in eval mode, float32, on the CPU; its metadata) from a file that `save` wrote.

    `input_shape` and `classes`, where given, must be those of the checkpoint. Raises FileNotFoundError for a
    missing file and ValueError for a damaged one, for other shapes, an unknown network, and NaN or infinite
    weights.
    """
    try:
        with safe_open(checkpoint, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no checkpoint {checkpoint}; "
            "notebook 01 or `python -m lowrank_utils publish-checkpoint` makes one"
        ) from None
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"checkpoint {checkpoint} is damaged or no safetensors file: {error}") from error
    missing = {"network", "input_shape", "classes"} - metadata.keys()
    if missing:
        raise ValueError(f"checkpoint {checkpoint} does not say its {', '.join(sorted(missing))}")
    _check_asked(checkpoint, metadata, input_shape, classes)
    try:
        model = build(metadata["network"], metadata["input_shape"], metadata["classes"])
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint}: {error}") from error
    if "normalise.scale" in tensors and isinstance(model, CifarResNet):
        model.normalise = Rescale(*2 * [[1.0] * metadata["input_shape"][0]])
    return _filled(model, tensors, checkpoint, metadata["network"]), metadata


def _check_asked(checkpoint, metadata, input_shape, classes):
    for name, wanted in (("input_shape", input_shape), ("classes", classes)):
        held = metadata[name]
        if wanted is not None and held != (list(wanted) if name == "input_shape" else wanted):
            raise ValueError(f"checkpoint {checkpoint} is for {name} {held}, not {wanted}")


def _filled(model, tensors, checkpoint, network, optional=()):
    """Return `model` in eval mode with exactly these tensors in it."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    held = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in sorted(expected.keys() | held.keys()):
        if expected.get(name) != held.get(name) and not (name in optional and name not in held):
            raise ValueError(
                f"checkpoint {checkpoint} is no {network}: {name} has shape {held.get(name)} "
                f"where {expected.get(name)} belongs"
            )
    model.load_state_dict(tensors)  # copies into float32
    try:
        check_finite(model)
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint}: {error}") from error
    return model.eval()


# Networks that others published: their weights are fetched, never shipped.

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of channels on the scale [0, 1]
PUBLIC = {  # SHA-256 of the files of github.com/akamaster/pytorch_resnet_cifar10; their names hold its first digits
    "resnet20": "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
    "resnet32": "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850",
    "resnet44": "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4",
    "resnet56": "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367",
}
PUBLIC_ADDRESS = (
    "https://github.com/akamaster/pytorch_resnet_cifar10/raw/d5489e8995e81e91ce6b1d69dcc98ad579b0b153/pretrained_models"
)


def fetch_public(network: str, folder: str | Path | None = None) -> Path:
    """Return the path of the public CIFAR-10 weights of `network`, downloaded first where they are not on disk.

    ``"resnet20"``, 32, 44 and 56 by Idelbayev (2018, github.com/akamaster/pytorch_resnet_cifar10), 1 to 3.5 MB.
    `folder` is where they lie (default: data/checkpoints/local, which git ignores). Raises ValueError for another
    network and for a file with other content than was published, OSError where it cannot be fetched.
    """
    if network not in PUBLIC:
        raise ValueError(f"there are no public weights for {network!r}; there are for {', '.join(PUBLIC)}")
    name = f"{network}-{PUBLIC[network][:8]}.th"
    path = Path(folder or paths.CHECKPOINTS / "local") / name
    address = f"{PUBLIC_ADDRESS}/{name}"
    if not path.exists():
        try:
            with tempfile.TemporaryDirectory() as scratch, patience(20):
                torch.hub.download_url_to_file(address, f"{scratch}/{name}", progress=False)
                content = Path(scratch, name).read_bytes()
        except (OSError, http.client.HTTPException) as error:
            said = getattr(error, "reason", error)
            raise OSError(f"{name} cannot be downloaded ({said}): put the file from {address} at {path}") from error
        _check_digest(content, network, address)
        with paths.atomic_write(path) as temporary:
            temporary.write_bytes(content)
    _check_digest(path.read_bytes(), network, path)
    return path


def _check_digest(content, network, source):
    found = hashlib.sha256(content).hexdigest()
    if found != PUBLIC[network]:
        raise ValueError(
            f"{source} is not the published {network}: its SHA-256 starts with {found[:8]}, not "
            f"{PUBLIC[network][:8]}; delete it and fetch it again"
        )


def load_public(
    path: str | Path,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_shape: Sequence[int] | None = None,
    classes: int | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return (CIFAR ResNet in eval mode, its metadata) from a ``.th`` file of akamaster/pytorch_resnet_cifar10.

    The file says how deep the network is. Its weights know images with `IMAGENET`'s mean and standard deviation; where
    the images come with another `mean` and `std` (a number a channel, those of a `data.Dataset`), a first stage
    ``normalise`` turns the one scale into the other: exact, which the first convolution could not be, since it pads
    with zeros, another colour on each scale. The stage has no parameters and stays as it is in training.

    These networks were trained on all training images, our valid images among them: their accuracy on valid
    images is that of training. `input_shape` and `classes`, where given, must be those of the file. Raises
    FileNotFoundError for a missing file, ValueError for a damaged one, other content, NaN or infinite weights, and
    `mean` without `std` or the other way round.
    """
    if (mean is None) != (std is None):
        raise ValueError("mean and std of the images belong together; give both, or neither")
    try:
        content = Path(path).read_bytes()
        held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no checkpoint {path}; `checkpoints.fetch_public` downloads the public ones"
        ) from None
    except Exception as error:  # a damaged pickle raises errors of many kinds
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"checkpoint {path} is damaged or no file of PyTorch weights: {said}") from error
    tensors = held.get("state_dict", held) if isinstance(held, dict) else {}
    usable = isinstance(tensors, dict) and all(isinstance(k, str) and torch.is_tensor(v) for k, v in tensors.items())
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()} if usable else {}
    blocks = sum(name.startswith("layer1.") and name.endswith(".conv1.weight") for name in tensors)
    network = f"resnet{6 * blocks + 2}"
    if network not in NETWORKS or not {"conv1.weight", "linear.weight"} <= tensors.keys():
        known = ", ".join(name for name in NAMES if name.startswith("resnet"))
        raise ValueError(f"checkpoint {path} holds no CIFAR ResNet with its first and last layer; known: {known}")
    metadata = {
        "network": network,
        "input_shape": [3, 32, 32],
        "classes": len(tensors["linear.weight"]),
        "source": Path(path).name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "trained_on": "all training images, valid among them",
    }
    _check_asked(path, metadata, input_shape, classes)
    model = build(network, metadata["input_shape"], metadata["classes"])
    # files of PyTorch before 0.4.1 do not count the batches
    _filled(model, tensors, path, network, [name for name in model.state_dict() if name.endswith("batches_tracked")])
    if mean is not None and std is not None:
        # pixel = std x + mean, and theirs is (pixel - m) / s
        each = list(zip(mean, std, IMAGENET["mean"], IMAGENET["std"], strict=True))
        model.normalise = Rescale([b / s for _, b, _, s in each], [(a - m) / s for a, _, m, s in each])
    return model.eval(), metadata


NEEDED = ("network", "input_shape", "classes")  # what `models.build` makes a network from


def save_compressed(
    model: nn.Module,
    path: str | Path,
    plan: Mapping[str, int | tuple[str, int]],
    original: nn.Module | None = None,
    **metadata: Any,
) -> None:
    """Write the compressed `model` to `path` as safetensors, whole or not at all, plan and `metadata` in its header.

    What is written is what `model` holds: the rank and scheme of each planned layer that is a pair of thin layers; one
    that `replace.apply_plan` left dense is no part of the plan in the file. Weights keep their type, half precision too. A linear
    layer with fewer units than in the original, as `neurons.prune_neurons` leaves them, is written with its shape (give `original`). ``Conv1D`` layers
    of transformers are written, and loaded, as linear ones.

    Parameters: `plan`, ``{layer name: rank}``, or ``(scheme, rank)``; `original`, the network that `model` was made
    from; `metadata`, JSON values. With ``network``, ``input_shape`` and ``classes`` of `models.build` among them `load_compressed`
    needs nothing else; without, its reader brings the original architecture. By either one it is checked that the file
    will load.

    Raises ValueError for a plan that is not the network's, a network that the plan does not make of the original, NaN
    weights, and metadata that are not JSON; OSError where the file cannot be written.

    >>> import tempfile
    >>> from lowrank_utils import profile
    >>> from lowrank_utils.factors.replace import apply_plan
    >>> network = models.build("lenet300", (1, 8, 8), 10)
    >>> small = apply_plan(profile(network), {"fc1": 4, "fc2": 90})  # rank 90 would not pay
    >>> path = tempfile.mkdtemp() + "/small.safetensors"
    >>> save_compressed(small, path, {"fc1": 4, "fc2": 90}, network="lenet300", input_shape=(1, 8, 8), classes=10)
    >>> load_compressed(path)[1]
    {'classes': 10, 'input_shape': [1, 8, 8], 'network': 'lenet300', 'plan': {'fc1': 4}}
    """
    _check_numbers(model)
    model = with_linear_layers(model)
    # clones, since weights that layers share are refused by safetensors
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in _state(model).items()
    }
    held = _held(model, plan)
    named = [name for name in NEEDED if name in metadata]
    if original is None and named:
        if len(named) < len(NEEDED):
            missing = ", ".join(name for name in NEEDED if name not in metadata)
            raise ValueError(f"the metadata name {', '.join(named)} but not {missing}; give all, or pass original=")
        with torch.device("meta"):  # shapes alone, no numbers
            original = _built(metadata, tensors)
    if "shapes" in metadata:
        raise ValueError("the metadata name shapes, which the file says by itself; choose another name")
    shapes = {}
    if original is not None:
        original = with_linear_layers(original)
        first = dict(original.named_modules())
        shapes = _thinner(model, first, held)
        for name, module in model.named_modules():
            if name not in held and unfold.recognise(module) and isinstance(first.get(name), (nn.Linear, nn.Conv2d)):
                raise ValueError(f"layer {name!r} is a pair of thin layers, and the plan does not name it")
        try:
            unlike = _unlike(_skeleton(original, held, tensors, shapes), tensors)
        except ValueError as error:
            unlike = error
        if unlike:
            raise ValueError(f"the original and the plan do not make this network: {unlike}")
    header = {}
    for name, value in {**metadata, "plan": held, **({"shapes": shapes} if shapes else {})}.items():
        try:
            header[name] = json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata {name}={value!r} cannot be written as JSON: {error}") from error
    with paths.atomic_write(path) as temporary:
        save_file(tensors, temporary, header)


def load_compressed(path: str | Path, model: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Return (compressed network in eval mode, on the CPU; its metadata with ``plan``) from a file that `save_compressed` wrote.

    The architecture is what the metadata name, or `model`, the reader's own original network, whose weights do not
    matter and which is left as it was. Its planned layers become stock layers, and the weights of the file, in their
    type, fill it without one missing or left over.

    Raises FileNotFoundError for a missing file, ValueError for a damaged one, one without a plan, one of another
    network, and NaN or infinite weights.

    >>> import tempfile
    >>> from lowrank_utils import profile
    >>> from lowrank_utils.factors.replace import apply_plan
    >>> mine, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(5, 8)
    >>> small, path = apply_plan(profile(mine), {"0": 2}), tempfile.mkdtemp() + "/mine.safetensors"
    >>> save_compressed(small, path, {"0": 2}, original=mine, note="as an example")
    >>> again, metadata = load_compressed(path, mine)
    >>> torch.equal(again(x), small(x)), metadata
    (True, {'note': 'as an example', 'plan': {'0': 2}})
    """
    tensors, metadata = _read(path)
    shapes = metadata.pop("shapes", {})
    if model is None:
        missing = [name for name in NEEDED if name not in metadata]
        if missing:
            raise ValueError(f"{path} does not say its {', '.join(missing)}; pass the original network as model=")
    else:
        check_there(model)
    try:
        first = _built(metadata, tensors) if model is None else with_linear_layers(model)
        network = _skeleton(first, metadata["plan"], tensors, shapes)
    except ValueError as error:
        told = "cannot be loaded" if model is None else "does not fit the network given as model="
        raise ValueError(f"{path} {told}: {error}") from error
    unlike = _unlike(network, tensors)
    if unlike:
        raise ValueError(f"{path} is of another network: {unlike}")
    network = network.cpu()
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if name in tensors and value.is_floating_point() and tensors[name].is_floating_point():
            value.data = value.data.to(tensors[name].dtype)  # not assign=True, which would part shared weights
    network.load_state_dict(tensors)
    try:
        check_finite(network)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return network.eval(), metadata


def _state(model):
    state = model.state_dict()
    for name, value in state.items():
        if not torch.is_tensor(value):
            raise ValueError(f"{name} is a {type(value).__name__}, no tensor; layers of 8 bit cannot be shipped so")
    return state


def _check_numbers(model):
    meta = [name for name, value in _state(model).items() if value.is_meta]
    if meta:
        raise ValueError(f"{meta[0]} is on the meta device, where there are no numbers to write")
    check_finite(model)


def _read(path):
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if "plan" not in header:
                raise ValueError(f"{path} holds no plan, so no compressed network; `checkpoints.load` reads dense ones")
            metadata = {name: json.loads(header[name]) for name in sorted(header)}  # the file keeps no order
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no compressed network {path}; `checkpoints.save_compressed` writes one"
        ) from None
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    if not isinstance(metadata["plan"], dict):
        raise ValueError(f"{path} is damaged: its plan is {metadata['plan']!r}, not ranks by layer")
    shapes = metadata.get("shapes", {})
    if not isinstance(shapes, dict) or not all(_is_shape(shape) for shape in shapes.values()):
        raise ValueError(f"{path} is damaged: its shapes are {shapes!r}, not two numbers a layer")
    metadata["plan"] = {
        name: tuple(planned) if isinstance(planned, list) else planned for name, planned in metadata["plan"].items()
    }
    return tensors, metadata


def _is_shape(value):
    return isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value)


def _built(metadata, tensors):
    network = models.build(*(metadata[name] for name in NEEDED))
    if "normalise.scale" in tensors and hasattr(network, "normalise"):
        # as `checkpoints.load_public` puts it before weights that know images on another scale
        network.normalise = models.Rescale(*2 * [[1.0] * metadata["input_shape"][0]])
    return network


def _held(model, plan):
    # the plan, with ranks and schemes as they stand in the network
    if not isinstance(plan, dict):
        raise ValueError(f"plan={plan!r} is no plan, which is a dict from layer name to rank, or (scheme, rank)")
    modules, held = dict(model.named_modules()), {}
    for name, planned in plan.items():
        if name not in modules:
            raise ValueError(f"the plan names a layer {name!r} that the network does not have")
        wanted, rank = unfold.parse_entry(planned)
        if type(modules[name]) in (nn.Linear, nn.Conv2d):
            continue  # it did not pay
        found = unfold.recognise(modules[name])
        if found is None:
            kind = type(modules[name]).__name__
            raise ValueError(f"planned layer {name!r} is a {kind}, neither dense nor a pair of thin layers")
        # a layer of zeros is planned at rank 0 and written as one component of zeros
        if wanted not in (None, found[0]) or (rank != found[1] and (rank, found[1]) != (0, 1)):
            raise ValueError(f"the plan has {planned!r} for layer {name!r}, the network (scheme, rank) {found}")
        held[name] = unfold.plan_entry(*found)
    return held


def _thinner(model, first, held):
    # {layer: shape} of the linear layers, in pairs or not, that lost hidden units: rows of some, columns of those that read
    # them. Where rows and columns do not match, nothing: that is another network.
    shapes, rows, columns = {}, set(), set()
    for name, layer in model.named_modules():
        if type(first.get(name)) is not nn.Linear or (type(layer) is not nn.Linear and name not in held):
            continue
        ends = (layer, layer) if type(layer) is nn.Linear else tuple(layer.children())
        shape, old = [ends[1].out_features, ends[0].in_features], list(first[name].weight.shape)
        if shape != old:
            shapes[name] = shape
            rows |= {(old[0], shape[0])} if old[0] != shape[0] else set()
            columns |= {(old[1], shape[1])} if old[1] != shape[1] else set()
    return shapes if rows == columns and all(new < old for old, new in rows) else {}


def _skeleton(original, plan, tensors, shapes):
    # a copy of `original` with thinner layers, and pairs of layers of the planned shapes, whatever their numbers
    modules, pairs = dict(original.named_modules()), {}
    for name, (rows, columns) in shapes.items():
        layer = modules.get(name)
        if type(layer) is not nn.Linear:
            raise ValueError(f"it has no linear layer {name!r}, which the file has at another width")
        bias = torch.zeros(rows) if f"{name}.bias" in tensors else None
        pairs[name] = linear(torch.zeros(rows, columns), bias, layer)
    for name, entry in plan.items():
        if name not in modules:
            raise ValueError(f"it has no layer {name!r}, which the plan names")
        layer = pairs.get(name, modules[name])
        scheme, rank = unfold.planned_entry(layer, name, entry)
        count, (rows, columns) = unfold.groups(layer), unfold.rank_costs(layer)[scheme].shape
        parts = torch.zeros(count, rows, rank), torch.zeros(count, rank, columns)
        bias = torch.zeros(layer.weight.shape[0]) if f"{name}.second.bias" in tensors else None
        pairs[name] = unfold.thin_layers(layer, scheme, *parts, bias)
    return replaced(original, pairs)


def _unlike(network, tensors):
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    held = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in sorted(expected.keys() | held.keys()):
        if name not in expected:
            return f"it has no {name}, of shape {held[name]}"
        if name not in held:
            return f"{name}, of shape {expected[name]}, is missing"
        if expected[name] != held[name]:
            return f"{name} has shape {held[name]} where {expected[name]} belongs"
    return ""
