"""The networks of the papers, by name, and trained networks as files that say how they were made."""

import contextlib
import copy
import json
import math
from collections import OrderedDict
from functools import partial

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from . import paths


def _dense(input_shape, classes, hidden):
    sizes = (math.prod(input_shape), *hidden, classes)
    steps = OrderedDict(flatten=nn.Flatten())
    for i, (d_in, d_out) in enumerate(zip(sizes, sizes[1:]), start=1):
        steps[f"fc{i}"] = nn.Linear(d_in, d_out)
        if i < len(sizes) - 1:
            steps[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(steps)


def _lenet5(input_shape, classes):
    channels, *sides = input_shape
    # two rounds of a 5 x 5 convolution and pooling by 2; the first is padded so that 28 x 28 stays 28 x 28
    after = [((side // 2) - 4) // 2 for side in sides]
    if len(sides) != 2 or min(after) < 1:
        raise ValueError(f"lenet5 needs images of at least 12 x 12 pixels, not {tuple(input_shape)}")
    steps = OrderedDict(conv1=nn.Conv2d(channels, 6, 5, padding=2), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2))
    steps |= OrderedDict(conv2=nn.Conv2d(6, 16, 5), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2), flatten=nn.Flatten())
    steps |= OrderedDict(fc1=nn.Linear(16 * math.prod(after), 120), relu3=nn.ReLU())
    steps |= OrderedDict(fc2=nn.Linear(120, 84), relu4=nn.ReLU(), fc3=nn.Linear(84, classes))
    return nn.Sequential(steps)


# Name to a function of (input_shape, classes): a new network is one line here.
NETWORKS = {"lenet300": partial(_dense, hidden=(300, 100)), "mlp": partial(_dense, hidden=(1024, 512)), "lenet5": _lenet5}
NAMES = tuple(NETWORKS)


def build(name, input_shape, classes, seed=0):
    """Return the untrained network `name` (float32, CPU), its first weights drawn from `seed`.

    ``"lenet300"``: hidden layers of 300 and 100 units (LeCun et al. 1998). ``"mlp"``: 1024 and 512. Layers
    are named flatten, fc1, relu1, fc2, relu2, fc3. ``"lenet5"``: convolutions of 6 and 16 filters of 5 x 5 with ReLU and max
    pooling, then 120, 84 units (LeCun et al. 1998, with today's activation): conv1, conv2, fc1, fc2, fc3. `input_shape` is (channels, height, width), `classes` the
    number of outputs. PyTorch's global random state is left as it was. Raises ValueError for an unknown name,
    a shape that is not of whole positive numbers, and fewer than 2 classes.

    >>> network = build("lenet300", (1, 28, 28), 10)
    >>> network(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(NAMES)}")
    numbers = isinstance(input_shape, (tuple, list)) and all(isinstance(n, int) for n in input_shape)
    if not numbers or min(input_shape, default=0) < 1:
        raise ValueError(f"input_shape={input_shape!r} is not (channels, height, width)")
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise ValueError(f"classes={classes!r} is not a whole number of at least 2")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA's generators too
        return NETWORKS[name](input_shape, classes)


def published(dataset, network, seed=0):
    """Return where the published checkpoint of this network lies, whether or not there is one."""
    return paths.CHECKPOINTS / f"{dataset}-{network}-seed{seed}.safetensors"


def check_finite(model):
    """Raise ValueError naming the first parameter or buffer of `model` that holds NaN or infinity."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or infinite values; train it again or load another network")


@contextlib.contextmanager
def evaluating(model):
    """Hold `model` in eval mode without gradients, then put each of its modules back as it was found.

    >>> layer = nn.Dropout()
    >>> with evaluating(layer):
    ...     layer.training
    False
    >>> layer.training
    True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        for module, training in modes:
            module.training = training


def replaced(model, replacements):
    """Return a new model with the named modules replaced, ``{name: module}``; `model` is left as it was.

    What is replaced is never copied, and each new module takes the train or eval mode of the old one.

    >>> replaced(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), {"0": nn.Linear(4, 2)})
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
      (1): ReLU()
    )
    """
    for name, new in replacements.items():
        new.train(model.get_submodule(name).training)
    if "" in replacements:
        return replacements[""]
    # deepcopy takes these for copied already
    return copy.deepcopy(model, {id(model.get_submodule(name)): new for name, new in replacements.items()})


def linear(weight, bias, like):
    """Return an ``nn.Linear`` of `weight` (d_out x d_in) and `bias` (d_out, or None), with the type and device of the layer `like`."""
    layer = nn.utils.skip_init(
        nn.Linear, weight.shape[1], weight.shape[0], bias is not None, device=like.weight.device, dtype=like.weight.dtype
    )
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def save(model, path, metadata, dtype=None):
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
    with paths.whole(path) as temporary:
        save_file(tensors, temporary, header)


def load(checkpoint, input_shape=None, classes=None):
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
    for name, wanted in (("input_shape", input_shape), ("classes", classes)):
        held = metadata[name]
        if wanted is not None and held != (list(wanted) if name == "input_shape" else wanted):
            raise ValueError(f"checkpoint {checkpoint} is for {name} {held}, not {wanted}")
    try:
        model = build(metadata["network"], metadata["input_shape"], metadata["classes"])
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint}: {error}") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    held = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in sorted(expected.keys() | held.keys()):
        if expected.get(name) != held.get(name):
            raise ValueError(
                f"checkpoint {checkpoint} is no {metadata['network']}: {name} has shape {held.get(name)} "
                f"where {expected.get(name)} belongs"
            )
    model.load_state_dict(tensors)  # copies into float32
    try:
        check_finite(model)
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint}: {error}") from error
    return model.eval(), metadata
