"""Fit, fine-tune and evaluate; trained networks by name: published, kept from before, or trained now."""

import dataclasses
import hashlib
import json
import platform
import sys
import time
from dataclasses import dataclass

import pandas as pd
import torch
from sklearn.metrics import f1_score
from torch.nn import functional as F
from tqdm import tqdm

from . import __version__, models, paths

LOCAL = paths.CHECKPOINTS / "local"


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW under a one-cycle learning rate (Smith & Topin 2019).

    `epochs` passes in batches of `batch_size`; `learning_rate` at its peak; decoupled `weight_decay`.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not a whole number of at least 1")
        for name, allowed in (("learning_rate", "more than"), ("weight_decay", "at least")):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value < float("inf") or (value == 0 and allowed == "more than"):
                raise ValueError(f"{name}={value!r} is not a number of {allowed} 0")


# Chosen by accuracy on valid images.
RECIPES = {
    "lenet300": Recipe(epochs=12, batch_size=256, learning_rate=3e-3, weight_decay=5e-2),
    "mlp": Recipe(epochs=12, batch_size=256, learning_rate=1e-3, weight_decay=1e-1),
    "lenet5": Recipe(epochs=12, batch_size=128, learning_rate=6e-3, weight_decay=5e-2),
}
SMALL = Recipe(epochs=60, batch_size=32)


def recipe_for(network, dataset=""):
    """Return the published `Recipe` of a network; `digits`, a small set, takes more and smaller batches.

    >>> recipe_for("mlp").epochs
    12
    """
    if network not in RECIPES:
        raise ValueError(f"unknown network {network!r}; known: {', '.join(RECIPES)}")
    return SMALL if dataset == "digits" else RECIPES[network]


def device_for(device="auto"):
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


def evaluate(model, images, labels, batch_size=1000):
    """Return the `Scores` of `model` on `images` (float32, N first) and `labels` (int64, N).

    The model runs where its parameters are, in eval mode, and is put back as it was. Macro F1 is
    scikit-learn's. Raises ValueError where the outputs are not finite or there are no images.
    """
    if len(labels) == 0 or len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels cannot be evaluated")
    device = next(model.parameters()).device
    with models.evaluating(model):
        outputs = torch.cat([model(batch.to(device)).float().cpu() for batch in images.split(batch_size)])
    if not torch.isfinite(outputs).all():
        raise ValueError("the network's outputs are NaN or infinite; check its weights and the images")
    predicted = outputs.argmax(1)
    return Scores(
        accuracy=float((predicted == labels).double().mean()),
        f1=float(f1_score(labels.numpy(), predicted.numpy(), average="macro", zero_division=0)),
        loss=float(F.cross_entropy(outputs.double(), labels)),
    )


def fit(model, data, recipe, seed=0, device="auto", progress=True):
    """Train `model` in place and return a DataFrame with one row an epoch.

    Columns: epoch, train_loss (mean over the epoch's batches), valid_loss, valid_accuracy, valid_f1, seconds.
    `data` is a `data.Dataset`, `recipe` a `Recipe`; `seed` orders the batches, PyTorch's global random state
    is left as it was. The model ends on the device, in eval mode. Raises ValueError where the loss becomes
    NaN or infinite.
    """
    device = device_for(device)
    images, labels = (tensor.to(device) for tensor in data.tensors("train"))
    valid = data.tensors("valid")
    model.to(device).train()
    rate, decay = recipe.learning_rate, recipe.weight_decay
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    batches = -(-len(images) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=max(recipe.epochs * batches, 2)
    )
    shuffle = torch.Generator().manual_seed(seed)
    rows = []
    bar = tqdm(range(1, recipe.epochs + 1), desc="epochs", disable=not progress)
    for epoch in bar:
        began, total = time.perf_counter(), torch.zeros((), device=device)
        for index in torch.randperm(len(images), generator=shuffle).to(device).split(recipe.batch_size):
            loss = F.cross_entropy(model(images[index]), labels[index])
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


def story(data, network, seed, recipe, model):
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


def local_path(data, network, seed, recipe):
    """Return where a network trained here is kept, by data, split, network, seed and recipe."""
    made_by = json.dumps([dataclasses.asdict(recipe), data.fingerprint, _split(data)], sort_keys=True)
    digest = hashlib.sha256(made_by.encode()).hexdigest()[:8]
    return LOCAL / f"{data.name.split(':')[0]}-{network}-seed{seed}-{digest}.safetensors"


def trained(data, network, seed=0, recipe=None, checkpoint="", device="auto"):
    """Return (trained network in eval mode on `device`, its metadata).

    It comes from the file `checkpoint` where one is named; else from the published checkpoint of this data
    set, network and seed, where `recipe` is None or the published one and the split is the same; else from
    ``data/checkpoints/local/``, where networks trained before are kept by recipe, data and split (a network
    must not have seen the valid images of `data`); else it is trained now and kept there, which a line on
    stderr says. Raises ValueError for a checkpoint that does not fit the data.
    """
    device = device_for(device)
    usual = recipe_for(network, data.name)
    wanted = recipe or usual
    shape, classes = data.input_shape, len(data.classes)
    if checkpoint:
        model, told = models.load(checkpoint, shape, classes)
        return model.to(device), told
    path = models.published(data.name, network, seed)
    if wanted == usual and ":" not in data.name and path.exists():
        model, told = models.load(path, shape, classes)
        if told.get("data_fingerprint") != data.fingerprint:
            raise ValueError(f"checkpoint {path} is of other data than {data.name} now is; publish it anew")
        if told.get("split") == _split(data):
            return model.to(device), told
    path = local_path(data, network, seed, wanted)
    if not path.exists():
        print(f"training {network} on {data.name}, seed {seed}: {wanted}", file=sys.stderr)
        model = models.build(network, shape, classes, seed)
        fit(model, data, wanted, seed, device)
        models.save(model, path, story(data, network, seed, wanted, model))
    model, told = models.load(path, shape, classes)
    return model.to(device), told


def publish(data, network, seed=0, same=None, device="auto"):
    """Train by the published recipe, write the published checkpoint, and return its path.

    `same(a, b)`, a function of two networks, says whether the one rounded to float16 is as good as the other;
    where it does, the file holds float16. The scores in the file are those of the network as it is stored.
    """
    recipe = recipe_for(network, data.name)
    model = models.build(network, data.input_shape, len(data.classes), seed)
    fit(model, data, recipe, seed, device)
    model.cpu()
    rounded = models.build(network, data.input_shape, len(data.classes), seed)
    rounded.load_state_dict({name: value.half().float() for name, value in model.state_dict().items()})
    half = same is not None and same(model, rounded)
    path = models.published(data.name, network, seed)
    kept = rounded if half else model
    models.save(kept, path, story(data, network, seed, recipe, kept.eval()), "float16" if half else None)
    return path
