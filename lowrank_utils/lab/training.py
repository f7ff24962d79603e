"""Fit, fine-tune and evaluate; trained networks by name: published, kept from before, or trained now."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from lowrank_utils import __version__, paths
from lowrank_utils.checks import check_count, is_whole
from lowrank_utils.lab import checkpoints, models
from lowrank_utils.network import modules
from lowrank_utils.network.inputs import about_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lowrank_utils.lab.data import Dataset

LOCAL = paths.CHECKPOINTS / "local"
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW under a one-cycle learning rate (Smith & Topin 2019).

    `epochs` passes in batches of `batch_size`; `learning_rate` at its peak; decoupled `weight_decay`; `augment`,
    whether each batch is cropped and mirrored at random (`crop_flip`).
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    augment: bool = False

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not is_whole(value) or value < 1:
                raise ValueError(f"{name}={value!r} is not a whole number of at least 1")
        for name, allowed in (("learning_rate", "more than"), ("weight_decay", "at least")):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value < float("inf") or (value == 0 and allowed == "more than"):
                raise ValueError(f"{name}={value!r} is not a number of {allowed} 0")
        if not isinstance(self.augment, bool):
            raise ValueError(f"augment={self.augment!r} is neither True nor False")


# Chosen by accuracy on valid images.
RECIPES = {
    "lenet300": Recipe(epochs=12, batch_size=256, learning_rate=3e-3, weight_decay=5e-2),
    "mlp": Recipe(epochs=12, batch_size=256, learning_rate=1e-3, weight_decay=1e-1),
    "lenet5": Recipe(epochs=12, batch_size=128, learning_rate=6e-3, weight_decay=5e-2),
    "vgg_small": Recipe(epochs=12, batch_size=128, learning_rate=6e-3, weight_decay=3e-1),
}
# Networks without a published checkpoint: usual values, which nobody has chosen by valid accuracy.
RECIPES |= dict.fromkeys(
    ("vgg16", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    Recipe(epochs=60, batch_size=128, learning_rate=5e-3, weight_decay=5e-2, augment=True),
)
SMALL = Recipe(epochs=60, batch_size=32)
OTHERS = Recipe(epochs=60, batch_size=128, learning_rate=5e-4, weight_decay=5e-2, augment=True)


def recipe_for(network: str, dataset: str = "") -> Recipe:
    """Return the published `Recipe` of a network; `digits`, a small set, takes more and smaller batches.

    >>> recipe_for("mlp").epochs
    12
    """
    models.check_name(network)
    return SMALL if dataset == "digits" else RECIPES.get(network, OTHERS)


def device_for(device: str | torch.device = "auto") -> torch.device:
    """Return the torch.device for "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1" ...

    >>> device_for("cpu")
    device(type='cpu')
    """
    try:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used ({reason}); known: auto, cpu, cuda") from error


@dataclass(frozen=True)
class Scores:
    """`accuracy` and macro `f1` as shares in [0, 1], `loss` the mean cross-entropy in nats."""

    accuracy: float
    f1: float
    loss: float


def outputs(model: nn.Module, images: torch.Tensor, batch_size: int = 50) -> torch.Tensor:
    """Return the outputs of `model` for `images` (float32, N first) on the CPU: float32, N x classes.

    The model runs where its parameters are, in eval mode, and is put back as it was. Raises ValueError where the outputs
    are not finite.
    """
    device = next(model.parameters(), images).device  # a network in onnxruntime has no parameters
    with modules.evaluating(model):
        found = torch.cat([one.float().cpu() for one in _answers(model, images.split(batch_size), device)])
    if not torch.isfinite(found).all():
        raise ValueError("the network's outputs are NaN or infinite; check its weights and the images")
    return found


def _answers(model, batches, device):
    # Small batches stay in the caches. oneDNN's convolutions and torch's pooling are fastest with the channels last; networks
    # that flatten with view() cannot take it.
    layout = torch.channels_last
    for batch in batches:
        try:
            answer = model(_laid_out(batch, device, layout))
        except RuntimeError as error:
            if layout is torch.contiguous_format or not about_layout(error):
                raise
            layout = torch.contiguous_format
            answer = model(_laid_out(batch, device, layout))
        yield answer


def _laid_out(batch, device, layout):
    # a batch with one channel lies in both orders, but its strides say that the channels are first: so it is written anew
    if batch.dim() != 4 or layout is torch.contiguous_format:
        return batch.to(device).contiguous()
    return torch.empty(batch.shape, dtype=batch.dtype, device=device, memory_format=layout).copy_(batch)


def scores_of(outputs: torch.Tensor, labels: torch.Tensor) -> Scores:
    """Return the `Scores` of `outputs` (N x classes) for `labels` (int64, N). Macro F1 is scikit-learn's.

    Raises ValueError where there are no images, or not one label an image.

    >>> scores_of(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0])).accuracy
    0.5
    """
    if len(labels) == 0 or len(outputs) != len(labels):
        raise ValueError(f"{len(outputs)} images and {len(labels)} labels cannot be evaluated")
    predicted = outputs.argmax(1)
    return Scores(
        accuracy=float((predicted == labels).double().mean()),
        # the stubs of scikit-learn have no zero_division=0
        f1=float(
            f1_score(labels.numpy(), predicted.numpy(), average="macro", zero_division=0)  # pyright: ignore[reportArgumentType]
        ),
        loss=float(F.cross_entropy(outputs.double(), labels)),
    )


def evaluate(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int = 50) -> Scores:
    """Return the `Scores` of `model` on `images` (float32, N first) and `labels` (int64, N).

    It runs as in `outputs`. Raises ValueError where the outputs are not finite or there are no images.
    """
    return scores_of(outputs(model, images, batch_size), labels)


def crop_flip(
    images: torch.Tensor,
    generator: torch.Generator,
    padding: int = 4,
    border: float | Sequence[float] | torch.Tensor = 0.0,
) -> torch.Tensor:
    """Return `images` (N x C x H x W), each moved by up to `padding` pixels and mirrored left to right half the time.

    What comes into view at the sides has the value `border`, a number or one a channel. `generator`, a
    torch.Generator on the CPU, makes all choices. Lee et al. 2015, used for CIFAR by He et al. 2016, section 4.2.

    >>> moved = crop_flip(torch.ones(2, 1, 8, 8), torch.Generator().manual_seed(0), padding=2)
    >>> moved.shape, moved.mean() < 1
    (torch.Size([2, 1, 8, 8]), tensor(True))
    """
    count, channels, height, width = images.shape
    border = torch.as_tensor(border, dtype=images.dtype, device=images.device).expand(channels)
    padded = border.view(-1, 1, 1).repeat(count, 1, height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = images
    top, left = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    n, c = torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(-1, 1, 1)
    return padded[n, c, rows[:, None, :, None].to(images.device), columns[:, None, None, :].to(images.device)]


def augmentation(data: Dataset) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]:
    """Return the function of (images, generator) that `fit` applies to each batch: `crop_flip` with black borders."""
    black = [-mean / std for mean, std in zip(data.mean, data.std)]
    return partial(crop_flip, border=black)


def layout_for(model: nn.Module, images: torch.Tensor) -> torch.memory_format:
    """Return the order of the weights in memory with which a step of training is fastest and works.

    With the channels last a step of a convolutional network takes a fifth to a third less time; a network that flattens with ``view()`` cannot
    take it. Found by one step of a copy on `images` (at least two, N x C x H x W). `model` is left as it was.
    """
    tried = modules.copied(model).to(images.device).to(memory_format=torch.channels_last).train()
    try:
        with torch.random.fork_rng(devices=[]):  # dropout draws from the global state
            tried(images).sum().backward()
    except RuntimeError as error:
        if not about_layout(error):
            raise
        return torch.contiguous_format
    return torch.channels_last


def fit(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Train `model` in place and return a DataFrame with one row an epoch.

    Columns: epoch, train_loss (mean over the epoch's batches), valid_loss, valid_accuracy, valid_f1, seconds.
    `data` is a `data.Dataset`, `recipe` a `Recipe`; `seed` orders the batches and decides how images are augmented,
    PyTorch's global random state is left as it was. The model ends on the device, in eval mode. Raises ValueError
    where the loss becomes NaN or infinite.
    """
    device = device_for(device)
    images, labels = (tensor.to(device) for tensor in data.tensors("train"))
    valid = data.tensors("valid")
    model.to(device).train()
    rate, decay = recipe.learning_rate, recipe.weight_decay
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    batches = -(-len(images) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=max(recipe.epochs * batches, 2))
    shuffle = torch.Generator().manual_seed(seed)
    augment = augmentation(data) if recipe.augment else None
    rows = []
    bar = tqdm(range(1, recipe.epochs + 1), desc="epochs", disable=not progress)
    for epoch in bar:
        began, total = time.perf_counter(), torch.zeros((), device=device)
        for index in torch.randperm(len(images), generator=shuffle).to(device).split(recipe.batch_size):
            batch = images[index] if augment is None else augment(images[index], shuffle)
            loss = F.cross_entropy(model(batch), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach() * len(index)
        if not torch.isfinite(total):
            raise ValueError(
                f"the training loss is NaN or infinite in epoch {epoch}; try a learning_rate below "
                f"{recipe.learning_rate}"
            )
        scores = evaluate(model, *valid)
        rows.append(
            {
                "epoch": epoch,
                "train_loss": float(total) / len(images),
                "valid_loss": scores.loss,
                "valid_accuracy": scores.accuracy,
                "valid_f1": scores.f1,
                "seconds": time.perf_counter() - began,
            }
        )
        bar.set_postfix(valid=f"{scores.accuracy:.1%}")
    model.eval()
    return pd.DataFrame(rows)


def recalibrate(
    model: nn.Module,
    images: torch.Tensor,
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> nn.Module:
    """Return a new model whose batch norms hold the means and variances of `images`; all else is as it was.

    After weights have changed (thin layers, removed units), the statistics of each batch norm are those of a network
    that is gone. Here they are averaged anew over batches of at least `batch_size` images (float32, N x C x H x W),
    every other layer in eval mode, no weight trained (Li et al. 2020, EagleEye).

    The trap: the images must look as in training. Plain images damage a network that was trained with augmentation
    (the public ResNet-20 on CIFAR-10, uncompressed, 5000 training images: 91.7 % of test right before, 88.9 % after),
    and so does augmentation with borders of another colour (88.6 %). Pass the one of its training (91.7 %) as
    `augment`, a function of (images, generator) such as ``augmentation(data)``; `seed` makes its choices.

    Raises ValueError for a model without batch norms, fewer than 2 images, and NaN or infinite values.
    """
    check_count(2, batch_size=batch_size)
    if len(images) < 2:
        raise ValueError(f"{len(images)} images have no variance; batch norms need at least 2, better 1000")
    if not torch.isfinite(images).all():
        raise ValueError("the images hold NaN or infinite values; batch norms cannot be set from them")
    modules.check_finite(model)
    new = modules.copied(model)
    norms = [m for m in new.modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None]
    if not norms:
        raise ValueError("the model has no batch norms with running statistics; there is nothing to recalibrate")
    new.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches
        norm.train()
    device, generator = next(new.parameters()).device, torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # parts of nearly one size, so that no image counts for much more than another and no part is a single one
        for batch in images.tensor_split(max(1, len(images) // batch_size)):
            new(batch.to(device) if augment is None else augment(batch.to(device), generator))
    for mine, theirs in zip(new.modules(), model.modules(), strict=True):
        mine.training = theirs.training
        if isinstance(mine, BATCH_NORMS) and isinstance(theirs, BATCH_NORMS):
            mine.momentum = theirs.momentum
    modules.check_finite(new)
    return new


def story(data: Dataset, network: str, seed: int, recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """Return the metadata of a trained network: what made it (data, seed, recipe, versions), what it scores.

    `model` is evaluated on valid and test images as it is, so pass it as it will be stored.
    """
    versions = {"python": platform.python_version(), "torch": torch.__version__, "lowrank_utils": __version__}
    scores = {split: dataclasses.asdict(evaluate(model, *data.tensors(split))) for split in ("valid", "test")}
    return {
        "dataset": data.name,
        "data_fingerprint": data.fingerprint,
        "network": network,
        "input_shape": list(data.input_shape),
        "classes": len(data.classes),
        "seed": seed,
        "split": _split(data),
        "recipe": dataclasses.asdict(recipe),
        "scores": scores,
        "versions": versions,
        "threads": torch.get_num_threads(),
    }


def _split(data):
    return {"seed": data.seed, "train": len(data.train), "valid": len(data.valid), "test": len(data.test)}


def local_path(data: Dataset, network: str, seed: int, recipe: Recipe) -> Path:
    """Return where a network trained here is kept, by data, split, network, seed and recipe."""
    steps = dataclasses.asdict(recipe)
    if not recipe.augment:
        del steps["augment"]  # as files were named before there was a choice
    made_by = json.dumps([steps, data.fingerprint, _split(data)], sort_keys=True)
    digest = hashlib.sha256(made_by.encode()).hexdigest()[:8]
    return LOCAL / f"{data.name.split(':')[0]}-{network.replace('/', '-')}-seed{seed}-{digest}.safetensors"


def trained(
    data: Dataset,
    network: str,
    seed: int = 0,
    recipe: Recipe | None = None,
    checkpoint: str | Path = "",
    device: str | torch.device = "auto",
) -> tuple[nn.Module, dict[str, Any]]:
    """Return (trained network in eval mode on `device`, its metadata).

    It comes from the file `checkpoint` where one is named: one of ours, or a ``.th`` file of a public CIFAR ResNet
    (`checkpoints.load_public`); ``"public"`` is the public one of this name, downloaded if need be. Else it comes from
    the published checkpoint of this data set, network and seed, where `recipe` is None or the published one and
    the split is the same; else from ``data/checkpoints/local/``, where networks trained before are kept by recipe,
    data and split (a network must not have seen the valid images of `data`); else it is trained now and kept there,
    which a line on stderr says. The public ones alone have seen our valid images. Raises ValueError for a checkpoint
    that does not fit the data, OSError where one cannot be downloaded.
    """
    device = device_for(device)
    usual = recipe_for(network, data.name)
    wanted = recipe or usual
    shape, classes = data.input_shape, len(data.classes)
    if checkpoint == "public":
        checkpoint = checkpoints.fetch_public(network, LOCAL)
    if str(checkpoint).endswith(".th"):
        model, told = checkpoints.load_public(checkpoint, data.mean, data.std, shape, classes)
        if told["network"] != network:
            raise ValueError(f"checkpoint {checkpoint} holds a {told['network']}, but network is {network!r}")
        return model.to(device), told
    if checkpoint:
        model, told = checkpoints.load(checkpoint, shape, classes)
        return model.to(device), told
    path = checkpoints.published_path(data.name, network, seed)
    if wanted == usual and ":" not in data.name and path.exists():
        model, told = checkpoints.load(path, shape, classes)
        if told.get("data_fingerprint") != data.fingerprint:
            raise ValueError(f"checkpoint {path} is of other data than {data.name} now is; publish it anew")
        if told.get("split") == _split(data):
            return model.to(device), told
    path = local_path(data, network, seed, wanted)
    if not path.exists():
        print(f"training {network} on {data.name}, seed {seed}: {wanted}", file=sys.stderr)
        model = models.build(network, shape, classes, seed)
        fit(model, data, wanted, seed, device)
        checkpoints.save(model, path, story(data, network, seed, wanted, model))
    model, told = checkpoints.load(path, shape, classes)
    return model.to(device), told


def publish(
    data: Dataset,
    network: str,
    seed: int = 0,
    same: Callable[[nn.Module, nn.Module], bool] | None = None,
    device: str | torch.device = "auto",
) -> Path:
    """Train by the published recipe, write the published checkpoint, and return its path.

    `same(a, b)`, a function of two networks, says whether the one rounded to float16 is as good as the other;
    where it does, the file holds float16. The scores in the file are those of the network as it is stored.
    """
    recipe = recipe_for(network, data.name)
    model = models.build(network, data.input_shape, len(data.classes), seed)
    fit(model, data, recipe, seed, device)
    model.cpu()
    rounded = models.build(network, data.input_shape, len(data.classes), seed)
    held = model.state_dict()
    rounded.load_state_dict({name: v.half().float() if v.is_floating_point() else v for name, v in held.items()})
    half = same is not None and same(model, rounded)
    path = checkpoints.published_path(data.name, network, seed)
    kept = rounded if half else model
    checkpoints.save(kept, path, story(data, network, seed, recipe, kept.eval()), "float16" if half else None)
    return path
