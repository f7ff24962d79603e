"""The networks of the papers, by name, and trained networks as files that say how they were made."""

import contextlib
import copy
import hashlib
import http.client
import json
import math
import urllib.request
from collections import OrderedDict
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from . import paths


def _dense(input_shape, classes, hidden):
    sizes = (math.prod(input_shape), *hidden, classes)
    steps = OrderedDict(flatten=nn.Flatten())
    for i, (d_in, d_out) in enumerate(zip(sizes, sizes[1:]), start=1):
        steps[f"fc{i}"] = nn.Linear(d_in, d_out)
        if i < len(sizes) - 1:
            steps[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(steps)


def _check_sides(name, input_shape, least):
    if len(input_shape) != 3 or min(input_shape[1:]) < least:
        raise ValueError(f"{name} needs images of at least {least} x {least} pixels, not {tuple(input_shape)}")


def _lenet5(input_shape, classes):
    _check_sides("lenet5", input_shape, 12)
    channels, *sides = input_shape
    # two rounds of a 5 x 5 convolution and pooling by 2; the first is padded so that 28 x 28 stays 28 x 28
    after = [((side // 2) - 4) // 2 for side in sides]
    steps = OrderedDict(conv1=nn.Conv2d(channels, 6, 5, padding=2), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2))
    steps |= OrderedDict(conv2=nn.Conv2d(6, 16, 5), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2), flatten=nn.Flatten())
    steps |= OrderedDict(fc1=nn.Linear(16 * math.prod(after), 120), relu3=nn.ReLU())
    steps |= OrderedDict(fc2=nn.Linear(120, 84), relu4=nn.ReLU(), fc3=nn.Linear(84, classes))
    return nn.Sequential(steps)


def _conv(channels, filters, stride=1):
    return nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)  # the batch norm behind it has the bias


def _stages(channels, *stages):
    """Stages of 3 x 3 convolutions with batch norm and ReLU; max pooling by 2 ends each."""
    steps, i = OrderedDict(), 0
    for number, widths in enumerate(stages, start=1):
        for width in widths:
            i += 1
            steps |= {f"conv{i}": _conv(channels, width), f"bn{i}": nn.BatchNorm2d(width), f"relu{i}": nn.ReLU()}
            channels = width
        steps[f"pool{number}"] = nn.MaxPool2d(2)
    return steps | {"flatten": nn.Flatten()}


def _vgg_small(input_shape, classes):
    _check_sides("vgg_small", input_shape, 8)
    channels, height, width = input_shape
    steps = _stages(channels, (16, 16), (32, 32), (128, 128))
    steps |= {"fc1": nn.Linear(128 * (height // 8) * (width // 8), 128), "relu7": nn.ReLU()}
    return nn.Sequential(steps | {"fc2": nn.Linear(128, classes)})


def _vgg16(input_shape, classes):
    _check_sides("vgg16", input_shape, 32)
    channels, height, width = input_shape
    steps = _stages(channels, 2 * (64,), 2 * (128,), 3 * (256,), 3 * (512,), 3 * (512,))
    return nn.Sequential(steps | {"fc1": nn.Linear(512 * (height // 32) * (width // 32), classes)})


class _Subsample(nn.Module):
    """Every second pixel, and channels of zeros on both sides up to `filters` (He et al. 2016, option A)."""

    def __init__(self, channels, filters):
        super().__init__()
        self.zeros = (filters - channels) // 2

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.zeros, self.zeros))


class _Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut without weights."""

    def __init__(self, channels, filters):
        super().__init__()
        wider = filters != channels
        self.conv1 = _conv(channels, filters, stride=2 if wider else 1)
        self.bn1, self.relu1 = nn.BatchNorm2d(filters), nn.ReLU()
        self.conv2 = _conv(filters, filters)
        self.bn2, self.relu2 = nn.BatchNorm2d(filters), nn.ReLU()
        self.shortcut = _Subsample(channels, filters) if wider else nn.Identity()

    def forward(self, x):
        inner = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(x))


class _Rescale(nn.Module):
    """scale x + shift, one fixed number a channel; not a layer, so that no survey, count or training meets it."""

    def __init__(self, scale, shift):
        super().__init__()
        for name, values in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x):
        return self.scale * x + self.shift


class _ResNet(nn.Module):
    """Residual network for small images: three stages of `blocks` blocks of 16, 32, 64 filters (He et al. 2016)."""

    def __init__(self, input_shape, classes, blocks):
        _check_sides(f"resnet{6 * blocks + 2}", input_shape, 4)
        super().__init__()
        self.normalise = nn.Identity()  # `load_public` puts the scale here that its weights know
        self.conv1, self.bn1, self.relu1 = _conv(input_shape[0], 16), nn.BatchNorm2d(16), nn.ReLU()
        sizes = ((16, 16), (16, 32), (32, 64))
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(_Block(before, width), *(_Block(width, width) for _ in range(blocks - 1)))
            for before, width in sizes
        )
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(self.normalise(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.flatten(self.pool(x)))


def _torchvision(input_shape, classes, name):
    from torchvision.models import get_model

    channels, *sides = input_shape
    if len(sides) != 2 or channels != 3:
        raise ValueError(f"torchvision/{name} needs colour images, (3, height, width), not {tuple(input_shape)}")
    try:
        with torch.device("meta"):  # shapes alone, no numbers
            shadow = get_model(name, num_classes=classes).eval()
            shadow(torch.empty(1, *input_shape))
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(
            f"torchvision/{name} cannot take images of {sides[0]} x {sides[1]} pixels ({said}); 224 x 224 suits all"
        ) from error
    return get_model(name, num_classes=classes)


# Name to a function of (input_shape, classes): a new network is one line here.
NETWORKS = {
    "lenet300": partial(_dense, hidden=(300, 100)),
    "mlp": partial(_dense, hidden=(1024, 512)),
    "lenet5": _lenet5,
    "vgg_small": _vgg_small,
    "vgg16": _vgg16,
    **{f"resnet{6 * n + 2}": partial(_ResNet, blocks=n) for n in (3, 5, 7, 9, 18)},
    **{f"torchvision/{name}": partial(_torchvision, name=name) for name in ("vgg16", "alexnet", "resnet18")},
}
NAMES = tuple(NETWORKS)


def check_name(name):
    """Raise ValueError for a name that is no network's.

    >>> check_name("resnet20")
    """
    _builder(name)


def _builder(name):
    if name in NETWORKS:
        return NETWORKS[name]
    if isinstance(name, str) and name.startswith("torchvision/"):
        from torchvision import models as theirs

        inner = name.partition("/")[2]
        # those two give several outputs in training
        if inner in set(theirs.list_models(module=theirs)) - {"googlenet", "inception_v3"}:
            return partial(_torchvision, name=inner)
    raise ValueError(f"unknown network {name!r}; known: {', '.join(NAMES)}, and others of torchvision")


def build(name, input_shape, classes, seed=0):
    """Return the untrained network `name` (float32, CPU), its first weights drawn from `seed`.

    `input_shape` is (channels, height, width), `classes` the number of outputs.

    ``"lenet300"``: dense layers of 300 and 100 units (LeCun et al. 1998); ``"mlp"``: 1024 and 512. Layers are named
    flatten, fc1, relu1, fc2, relu2, fc3. ``"lenet5"``: convolutions of 6 and 16 filters of 5 x 5 with ReLU and max
    pooling, then 120, 84 units (LeCun et al. 1998, with today's activation): conv1, conv2, fc1, fc2, fc3.
    ``"vgg_small"``: 3 x 3 convolutions of 16, 16, 32, 32, 128, 128 filters with batch norm, pooled after each pair,
    then 128 units: conv1, bn1, relu1 ... conv6, fc1, fc2. ``"vgg16"``: the 13 convolutions of configuration D
    (Simonyan & Zisserman 2015) with batch norm, and one dense layer. ``"resnet20"``, 32, 44, 56, 110: for CIFAR,
    shortcuts without weights (He et al. 2016, section 4.2, option A): conv1, layer1.0.conv1 ... linear.
    ``"torchvision/vgg16"``, alexnet, resnet18 and torchvision's other classifiers: with random weights here,
    with published ones from `pretrained`.

    PyTorch's global random state is left as it was. Raises ValueError for an unknown name, a shape that is not of
    whole positive numbers or that the network cannot take, and fewer than 2 classes.

    >>> network = build("lenet300", (1, 28, 28), 10)
    >>> network(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    builder = _builder(name)
    numbers = isinstance(input_shape, (tuple, list)) and all(isinstance(n, int) for n in input_shape)
    if not numbers or min(input_shape, default=0) < 1:
        raise ValueError(f"input_shape={input_shape!r} is not (channels, height, width)")
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise ValueError(f"classes={classes!r} is not a whole number of at least 2")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA's generators too
        return builder(input_shape, classes)


def published(dataset, network, seed=0):
    """Return where the published checkpoint of this network lies, whether or not there is one."""
    return paths.CHECKPOINTS / f"{dataset}-{network.replace('/', '-')}-seed{seed}.safetensors"


def check_there(model):
    """Raise ValueError for a `model` on the meta device, which has shapes and no numbers."""
    if any(value.is_meta for value in (*model.parameters(), *model.buffers())):
        raise ValueError("the network is on the meta device, where there are no numbers; build it on the CPU")


def check_finite(model):
    """Raise ValueError naming the first parameter or buffer of `model` that holds NaN or infinity."""
    check_there(model)
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
    return copied(model, {id(model.get_submodule(name)): new for name, new in replacements.items()})


def copied(model, memo=None):
    """Return a deep copy of `model`, without the history of activations that a module keeps; `memo` as `copy.deepcopy` takes it.

    Raises ValueError for a network that cannot be copied.
    """
    kept = [value for module in model.modules() for value in vars(module).values() if torch.is_tensor(value)]
    memo = {id(value): value.detach().clone() for value in kept if not value.is_leaf} | (memo or {})
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"the network cannot be copied, for a module of it keeps what cannot: {error}") from error


def linear(weight, bias, like):
    """Return an ``nn.Linear`` of `weight` (d_out x d_in) and `bias` (d_out, or None), with the type and device of the layer `like`."""
    layer = nn.utils.skip_init(
        nn.Linear, weight.shape[1], weight.shape[0], bias is not None, device=like.weight.device, dtype=like.weight.dtype
    )
    return _holding(layer, weight, bias)


def conv2d(weight, bias, like):
    """Return an ``nn.Conv2d`` of `weight` (d_out x d_in x height x width) and `bias` (d_out, or None), else as the layer `like`.

    Of a convolution with groups, which has to be depthwise, the group of each row goes with it.
    """
    groups = weight.shape[0] if like.groups > 1 else 1
    layer = nn.utils.skip_init(
        nn.Conv2d, weight.shape[1] * groups, weight.shape[0], like.kernel_size, stride=like.stride,
        padding=like.padding, dilation=like.dilation, groups=groups, bias=bias is not None,
        padding_mode=like.padding_mode, device=like.weight.device, dtype=like.weight.dtype,
    )  # fmt: skip
    return _holding(layer, weight, bias)


def _holding(layer, weight, bias):
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
    _check_asked(checkpoint, metadata, input_shape, classes)
    try:
        model = build(metadata["network"], metadata["input_shape"], metadata["classes"])
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint}: {error}") from error
    if "normalise.scale" in tensors and isinstance(model, _ResNet):
        model.normalise = _Rescale(*2 * [[1.0] * metadata["input_shape"][0]])
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


def fetch_public(network, folder=None):
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
            with urllib.request.urlopen(address, timeout=20) as answer:
                content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            said = getattr(error, "reason", error)
            raise OSError(f"{name} cannot be downloaded ({said}): put the file from {address} at {path}") from error
        _check_digest(content, network, address)
        with paths.whole(path) as temporary:
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


def load_public(path, mean=None, std=None, input_shape=None, classes=None):
    """Return (CIFAR ResNet in eval mode, its metadata) from a ``.th`` file of akamaster/pytorch_resnet_cifar10.

    The file says how deep the network is. Its weights know images with `IMAGENET`'s mean and standard deviation; where
    the images come with another `mean` and `std` (a number a channel, those of a `data.Dataset`), a first stage
    ``normalise`` turns the one scale into the other: exact, which the first convolution could not be, since it pads
    with zeros, another colour on each scale. The stage has no parameters and stays as it is in training.

    These networks were trained on all training images, our valid images among them: their accuracy on valid
    images is that of training. `input_shape` and `classes`, where given, must be those of the file. Raises
    FileNotFoundError for a missing file, ValueError for a damaged one, other content, and NaN or infinite weights.
    """
    try:
        content = Path(path).read_bytes()
        held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no checkpoint {path}; `models.fetch_public` downloads the public ones"
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
    if mean is not None or std is not None:
        # pixel = std x + mean, and theirs is (pixel - m) / s
        each = list(zip(mean, std, *IMAGENET.values(), strict=True))
        model.normalise = _Rescale([b / s for _, b, _, s in each], [(a - m) / s for a, _, m, s in each])
    return model.eval(), metadata


def pretrained(name, weights="DEFAULT"):
    """Return (torchvision's network in eval mode with published weights, its metadata).

    `name` as in `build`, e.g. ``"torchvision/resnet18"``; `weights` is one of torchvision's names, such as
    ``"IMAGENET1K_V1"``. Metadata: network, input_shape, classes, weights, and the `mean` and `std` of the images that
    it knows; ``dataclasses.replace(data, mean=..., std=...)`` is a data set on that scale. Raises ValueError for an
    unknown name, OSError where the weights cannot be downloaded.
    """
    from torchvision.models import get_model, get_model_weights

    _builder(name)
    inner = name.partition("/")[2]
    if not inner:
        raise ValueError(f"{name} is no network of torchvision, whose names begin like torchvision/vgg16")
    kinds = get_model_weights(inner)
    try:
        chosen = kinds[weights]
    except KeyError:
        raise ValueError(f"{name} has no weights {weights!r}; known: {', '.join(kinds.__members__)}") from None
    try:
        model = get_model(inner, weights=chosen, progress=False)
    except (OSError, RuntimeError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rpartition("/")[2]
        raise OSError(
            f"the weights of {name} cannot be fetched ({getattr(error, 'reason', error)}): "
            f"put the file from {chosen.url} at {place}"
        ) from error
    seen = chosen.transforms()
    shape, classes = [3, *2 * seen.crop_size], len(chosen.meta["categories"])
    metadata = {"network": name, "input_shape": shape, "classes": classes, "weights": chosen.name}
    return model.eval(), metadata | {"mean": list(seen.mean), "std": list(seen.std)}
