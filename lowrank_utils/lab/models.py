"""Networks by name: multilayer perceptrons, LeNet-5, VGG, CIFAR ResNets, EfficientNet-Lite0, and torchvision's."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from lowrank_utils.checks import check_count
from lowrank_utils.lab import efficientnet

if TYPE_CHECKING:
    from collections.abc import Sequence


def _dense(input_shape, classes, hidden):
    sizes = (math.prod(input_shape), *hidden, classes)
    steps: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
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
    steps: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, 6, 5, padding=2), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2)
    )
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


class Rescale(nn.Module):
    """scale x + shift, one fixed number a channel; not a layer, so that no profile, count or training meets it."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, scale: Sequence[float], shift: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x + self.shift


class CifarResNet(nn.Module):
    """Residual network for small images: three stages of `blocks` blocks of 16, 32, 64 filters (He et al. 2016)."""

    def __init__(self, input_shape: Sequence[int], classes: int, blocks: int) -> None:
        _check_sides(f"resnet{6 * blocks + 2}", input_shape, 4)
        super().__init__()
        self.normalise: nn.Module = nn.Identity()  # `load_public` puts the scale here that its weights know
        self.conv1, self.bn1, self.relu1 = _conv(input_shape[0], 16), nn.BatchNorm2d(16), nn.ReLU()
        sizes = ((16, 16), (16, 32), (32, 64))
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(_Block(before, width), *(_Block(width, width) for _ in range(blocks - 1)))
            for before, width in sizes
        )
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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
    **{f"resnet{6 * n + 2}": partial(CifarResNet, blocks=n) for n in (3, 5, 7, 9, 18)},
    efficientnet.NAME: efficientnet.build,
    **{f"torchvision/{name}": partial(_torchvision, name=name) for name in ("vgg16", "alexnet", "resnet18")},
}
NAMES = tuple(NETWORKS)


def check_name(name: str) -> None:
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


def build(name: str, input_shape: Sequence[int], classes: int, seed: int = 0) -> nn.Module:
    """Return the untrained network `name` (float32, CPU), its first weights drawn from `seed`.

    `input_shape` is (channels, height, width), `classes` the number of outputs.

    ``"lenet300"``: dense layers of 300 and 100 units (LeCun et al. 1998); ``"mlp"``: 1024 and 512. Layers are named
    flatten, fc1, relu1, fc2, relu2, fc3. ``"lenet5"``: convolutions of 6 and 16 filters of 5 x 5 with ReLU and max
    pooling, then 120, 84 units (LeCun et al. 1998, with today's activation): conv1, conv2, fc1, fc2, fc3.
    ``"vgg_small"``: 3 x 3 convolutions of 16, 16, 32, 32, 128, 128 filters with batch norm, pooled after each pair,
    then 128 units: conv1, bn1, relu1 ... conv6, fc1, fc2. ``"vgg16"``: the 13 convolutions of configuration D
    (Simonyan & Zisserman 2015) with batch norm, and one dense layer. ``"resnet20"``, 32, 44, 56, 110: for CIFAR,
    shortcuts without weights (He et al. 2016, section 4.2, option A): conv1, layer1.0.conv1 ... linear.
    ``"efficientnet-lite0"``: 49 convolutions, most of them 1 x 1 (Tan & Le 2019): conv1, stage1.0.depthwise ... fc.
    ``"torchvision/vgg16"``, alexnet, resnet18 and torchvision's other classifiers: with random weights here,
    with published ones from `pretrained`, as EfficientNet-Lite0.

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
    check_count(2, classes=classes)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA's generators too
        return builder(input_shape, classes)


def pretrained(name: str, weights: str = "DEFAULT") -> tuple[nn.Module, dict[str, Any]]:
    """Return (ImageNet network in eval mode with published weights, its metadata).

    `name` is ``"efficientnet-lite0"`` (`efficientnet.load`), or one of torchvision's as in `build`, e.g.
    ``"torchvision/resnet18"``; `weights` is one of torchvision's names, such as ``"IMAGENET1K_V1"``. Metadata: network, input_shape, classes, weights, and the `mean` and `std` of the images that
    it knows; ``dataclasses.replace(data, mean=..., std=...)`` is a data set on that scale. Raises ValueError for an
    unknown name, OSError where the weights cannot be downloaded.
    """
    from torchvision.models import get_model, get_model_weights

    _builder(name)
    if name == efficientnet.NAME:
        if weights != "DEFAULT":
            raise ValueError(f"{name} has no weights {weights!r}; known: DEFAULT")
        return efficientnet.load()
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
