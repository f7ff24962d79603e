"""Test images made worse in five ways, by a seed: noise, blur, contrast, rotation, occlusion.

The kinds and five severities follow Hendrycks & Dietterich 2019 (ImageNet-C), on small images: every transformation is one of
torchvision's, on pixels in [0, 1]. They are for measuring only; nothing is chosen or trained on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from lowrank_utils.checks import check_count, is_whole
from lowrank_utils.lab import training

if TYPE_CHECKING:
    from torch import nn

    from lowrank_utils.lab.data import Dataset

SEVERITY = 3  # of rows
NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)  # standard deviation; pixels are in [0, 1]
BLUR = (0.015, 0.025, 0.035, 0.05, 0.07)  # standard deviation, as a share of the shorter side
CONTRAST = (0.7, 0.5, 0.35, 0.25, 0.15)  # share of the contrast that stays
ROTATION = (5.0, 10.0, 15.0, 22.0, 30.0)  # degrees, to either side
OCCLUSION = (0.15, 0.22, 0.3, 0.38, 0.46)  # side of a black square, as a share of the shorter side


def corrupted(
    images: torch.Tensor,
    name: str,
    severity: int = SEVERITY,
    seed: int = 0,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> torch.Tensor:
    """Return `images` (N x C x H x W) with one of `NAMES` done to each, as float32 on the scale that they came in.

    *noise*: Gaussian, each pixel on its own. *blur*: Gaussian. *contrast*: towards the mean grey of the image.
    *rotation*: by a fixed angle, to the left or right at random, black corners. *occlusion*: a black square at a random
    place. Of one seed the answer is the same, whatever torch's global random state, which is left as it was.

    Parameters
    ----------
    images : uint8 pixels, or float pixels in [0, 1]; with `mean` and `std`, one number a channel, standardised ones as
        `Dataset.tensors` returns them, which are standardised again afterwards.
    severity : 1 (mild) to 5.
    seed : of noise, directions and places.

    Raises ValueError for an unknown name, a severity that is none, images of another form, and pixels outside [0, 1].

    >>> grey = torch.full((2, 1, 8, 8), 0.5)
    >>> corrupted(grey, "occlusion", severity=5).eq(0).sum().item()  # two squares of 4 x 4
    32
    """
    if name not in _KINDS:
        raise ValueError(f"unknown corruption {name!r}; known: {', '.join(_KINDS)}")
    if not is_whole(severity) or not 1 <= severity <= 5:
        raise ValueError(f"severity={severity!r} is not a whole number from 1 to 5")
    check_count(0, seed=seed)
    if not torch.is_tensor(images) or images.ndim != 4:
        raise ValueError("images must be a tensor of N x channels x height x width")
    if (mean is None) != (std is None):
        raise ValueError("mean= and std= go together: standardised images have both")
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    scale, shift = 1.0, 0.0
    if mean is not None and std is not None:
        scale, shift = (torch.tensor(values).view(1, -1, 1, 1) for values in (std, mean))
    pixels = pixels * scale + shift
    if len(pixels) and (not torch.isfinite(pixels).all() or pixels.min() < -1e-4 or pixels.max() > 1 + 1e-4):
        raise ValueError("pixels lie outside [0, 1]; pass the mean= and std= that the images were standardised with")
    generator = torch.Generator().manual_seed(seed)
    found = _KINDS[name](pixels.clamp(0, 1), severity - 1, generator).clamp(0, 1)
    if images.dtype == torch.uint8:
        return found * 255
    return (found - shift) / scale


def _noise(pixels, level, generator):
    # torchvision's takes torch's global random state
    from torchvision.transforms.v2 import functional as tv

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        return tv.gaussian_noise(pixels, sigma=NOISE[level])


def _blur(pixels, level, generator):
    from torchvision.transforms.v2 import functional as tv

    sigma = BLUR[level] * min(pixels.shape[-2:])
    side = 2 * math.ceil(3 * sigma) + 1
    most = min(pixels.shape[-2:]) // 2 * 2 - 1  # the borders are mirrored, so the kernel has to fit in
    return tv.gaussian_blur(pixels, [max(1, min(side, most))] * 2, [sigma, sigma])


def _contrast(pixels, level, generator):
    from torchvision.transforms.v2 import functional as tv

    return tv.adjust_contrast(pixels, CONTRAST[level])


def _rotation(pixels, level, generator):
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    left, found = torch.rand(len(pixels), generator=generator) < 0.5, pixels.clone()
    for mine, angle in ((left, ROTATION[level]), (~left, -ROTATION[level])):
        if mine.any():
            found[mine] = tv.rotate(pixels[mine], angle, interpolation=InterpolationMode.BILINEAR)
    return found


def _occlusion(pixels, level, generator):
    from torchvision.transforms.v2 import functional as tv

    height, width = pixels.shape[-2:]
    side = max(1, round(OCCLUSION[level] * min(height, width)))
    top = torch.randint(height - side + 1, (len(pixels),), generator=generator).tolist()
    left = torch.randint(width - side + 1, (len(pixels),), generator=generator).tolist()
    black = torch.zeros(pixels.shape[1], 1, 1)
    covered = [tv.erase(image, i, j, side, side, black) for image, i, j in zip(pixels, top, left)]
    return torch.stack(covered) if covered else pixels


_KINDS: dict[str, Callable[[torch.Tensor, int, torch.Generator], torch.Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "rotation": _rotation,
    "occlusion": _occlusion,
}
NAMES = tuple(_KINDS)


def corrupted_sets(
    data: Dataset,
    names: Sequence[str] = NAMES,
    severity: int = SEVERITY,
    seed: int = 0,
    limit: int | None = None,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return ``{corruption: (standardised test images, labels)}`` of a data set, made once for all networks of a table.

    `limit`: so many test images, the first ones (None: all).
    """
    images, labels = data.tensors("test", limit)
    scale = {"mean": data.mean, "std": data.std}
    return {name: (corrupted(images, name, severity, seed, **scale), labels) for name in names}


def accuracy_under(
    model: nn.Module, sets: Mapping[str, tuple[torch.Tensor, torch.Tensor]], batch_size: int = 50
) -> dict[str, float]:
    """Return the columns of a result row that say what a network gets right of `corrupted_sets`, as shares.

    ``accuracy_NAME`` for each corruption, and ``accuracy_corrupted``, their mean. Raises ValueError where there is no set.

    >>> from torch import nn
    >>> sets = {"noise": (torch.eye(2), torch.tensor([0, 1])), "blur": (torch.eye(2), torch.tensor([0, 0]))}
    >>> accuracy_under(nn.Identity(), sets)
    {'accuracy_noise': 1.0, 'accuracy_blur': 0.5, 'accuracy_corrupted': 0.75}
    """
    if not sets:
        raise ValueError("there are no corrupted images; make them with corrupted_sets")
    found = {f"accuracy_{name}": _accuracy(model, *given, batch_size) for name, given in sets.items()}
    return found | {"accuracy_corrupted": sum(found.values()) / len(found)}


def _accuracy(model, images, labels, batch_size):
    return training.evaluate(model, images, labels, batch_size).accuracy
