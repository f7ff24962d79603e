"""One call for a reader's own network: the ranks and schemes by exact search, the factors from front to back on data."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from lowrank_utils import checks
from lowrank_utils.factors import refine as refinement
from lowrank_utils.factors import replace
from lowrank_utils.lab import latency as timing
from lowrank_utils.lab import score
from lowrank_utils.network import profile, unfold
from lowrank_utils.network.inputs import Batch, Inputs, as_inputs, id_range, is_plain, tokens_of
from lowrank_utils.network.modules import with_linear_layers
from lowrank_utils.progress import shown
from lowrank_utils.ranks import prediction, search

FISHER_IMAGES = 1000
FEW = 50
SWEEP_IMAGES = 1000
MANY = 50  # layers
FEW_TOKENS = 4096
SAMPLES = 20_000  # positions a layer
HELD_OUT, MOST_HELD_OUT = 0.15, 250  # share and number of the inputs that refinement is judged by


@dataclass(frozen=True)
class Compressed:
    """What `compress` made: the new ``model`` of stock layers, its ``plan``, and how it came about.

    ``layers``: DataFrame with one row a layer (layer, dense, planned, parameters, macs, why); ``kept``: shares of
    parameters and MACs that stay (and of the time, where that was the budget); ``found``: the `search.SearchResult` of
    the plan, with its certificate; ``seconds``; ``note``: what the reader should know, or empty; ``latency``: measured
    milliseconds before and after (`latency.Latency`), or None where time was not the budget; ``swept``: the network before
    refinement, and ``refined``: how that went (`refine.Refined`), both None where there was none. Its text is a summary.
    """

    model: nn.Module = field(repr=False)
    plan: dict[str, unfold.Entry]
    kept: dict[str, float]
    found: search.SearchResult = field(repr=False)
    layers: pd.DataFrame = field(repr=False)
    seconds: float
    note: str = ""
    latency: timing.Latency | None = None
    swept: nn.Module | None = field(default=None, repr=False)
    refined: refinement.Refined | None = None

    @property
    def tuned(self) -> str:
        """What the column of this name says of the network: "none" or "refined without labels".

        It is "none", too, where refinement kept the network that it began with.
        """
        return "refined without labels" if self.refined is not None and self.refined.changed else "none"

    def __str__(self) -> str:
        cut = int((self.layers["planned"] != "dense").sum())
        lines = [
            f"{cut} of {len(self.layers)} layers are cut; {self.kept['macs']:.1%} of the MACs and "
            f"{self.kept['parameters']:.1%} of the parameters stay; {self.seconds:.0f} s.",
            *(
                f"Of the layers that share the budget, {share:.1%} of the {what.removesuffix(' within')} stay."
                for what, share in self.kept.items()
                if what.endswith(" within")
            ),
            *([str(self.refined)] if self.refined is not None else []),
            f"Ranks: no other plan within the budget promises less damage (gap {self.found.gap:.1e}).",
        ]
        return "\n".join(lines + [str(self.latency)] * (self.latency is not None) + [self.note] * bool(self.note))


def compress(
    model: nn.Module,
    calibration: Any,
    *,
    kept: float = 0.5,
    resource: str = "macs",
    factors: str | None = None,
    dense: Sequence[str] | None = None,
    within: Sequence[str] | None = None,
    floor: float = 0.1,
    runtime: str = "torch",
    batch: int = 64,
    threads: int = 1,
    multiple: int | None = None,
    samples: int | None = SAMPLES,
    estimator: str = "signs",
    draws: int = 1,
    points: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    refine: bool | None = None,
    refine_steps: int | None = None,
    refine_seconds: float | None = None,
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    progress: bool | None = None,
) -> Compressed:
    """Return `model` with at most a share `kept` of its `resource`, as `Compressed`; no labels.

    Ranks and schemes of all layers at once by exact search (`search.exact_search`), for the least predicted rise of the
    loss (Fisher information of the answers, `search.output_error`; where the answers are not N x classes or N x T x
    classes, or do not tell what they feel of a layer, as one logit alone, the relative error of each layer's outputs
    instead, which the note says). Factors by the sweep from front to back (`sequential.sweep`), in the same metric. Then
    all weights together are tuned towards the dense network's answers to the calibration inputs (`refine.refine`:
    distillation without labels); with ``refine=False`` the answer is the plain sweep. `model` is left as it was.

    Parameters
    ----------
    model : any ``nn.Module`` in float32 or float64 whose answers are logits (a softmax at its end hides half of what
        the Fisher information needs), or an object that has them as ``logits``.
    calibration : a few hundred of its inputs, without labels: a tensor (N first) of real numbers or token ids, a tuple
        or dict of tensors, or a ``DataLoader`` (`inputs.as_inputs`).
    kept, resource : the share in (0, 1] that may stay of "macs" or "parameters", counted over the whole network, or of
        "latency": the time that the dense network takes here and now, measured before the search (`latency.measure`).
    factors : one of `replace.KNOWN` (default: the Fisher-weighted sweep; relu-aware where the answers are no logits;
        Fisher-weighted layer by layer where torch.fx cannot trace the network and it has more than 50 layers. There, on
        SmolLM2-135M with 90 % kept, factors in sequence took 5 to 42 times as long. The rise of the loss was 3 % smaller
        with 2 048 or 4 096 tokens, and 9 to 12 % larger with 8 192 or 32 768).
    dense : layers to leave as they are (default: the last one, and the first where it is a convolution).
    within : layers that share the budget, by name or pattern: ``within=["model.layers.*"]`` keeps a share `kept` of the blocks
        of a transformer, as the literature on language models counts. All other layers stay dense. Default: all.
    floor : as in `search.rank_options`.
    runtime, batch, threads : in what time is measured, for a budget of it: "torch" (eager) or "onnxruntime", so many inputs
        a pass, on so many CPU threads. `multiple` : ranks are multiples of it (None: of 8 where a layer has room);
        only with a budget of time.
    samples, estimator, draws, seed : how many positions a layer looks at, and how the Fisher information is estimated,
        as in `profile`; `points`, as in `search.output_error`. ``samples=None, estimator="exact", draws=10`` looks at
        everything, in three times the time; the gallery's figure of shortcuts shows what each costs.
    batch_size : how many inputs pass at once, as in `profile`.
    refine, refine_steps, refine_seconds, augment : whether to refine, for how long, and how inputs are varied meanwhile, as in
        `refine.refine`. Then 15 % of the inputs, 250 at most, drawn with `seed`, are seen neither by the sweep nor by the
        steps, and decide which state is kept. None: refined, unless the inputs are token ids and no budget is given. (On SmolLM2-135M with 16 windows of 512
        tokens no state was better on two held-out windows, and 40 steps took 12 minutes.) For images pass the augmentation that the network was trained with, such as
        `lab.training.crop_flip`.
    progress : whether bars show the time left (None: in a terminal only).

    Raises ValueError for a budget out of reach (with the smallest share possible), a network without a layer to factor,
    half precision, NaN, and calibration data that the network cannot take.

    >>> network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 5))
    >>> small = compress(network, torch.randn(64, 20), kept=0.6)
    >>> small.kept["macs"] <= 0.6, small.model(torch.randn(2, 20)).shape
    (True, torch.Size([2, 5]))
    """
    began = time.perf_counter()
    clock = timing.Clock(runtime, batch, threads)
    _check(model, kept, resource, factors, dense)
    if multiple is not None and resource != "latency":
        raise ValueError(f"multiple={multiple} needs resource='latency'; under other budgets a rank may be any number")
    model, calibration = with_linear_layers(model), as_inputs(calibration)
    if torch.is_tensor(calibration) and (calibration.ndim < 2 or len(calibration) == 0):
        raise ValueError("calibration must be a tensor of at least one input, with the inputs along its first axis")
    given = len(calibration)
    if refine is None:
        refine = not tokens_of(calibration) or refine_steps is not None or refine_seconds is not None
    calibration, unseen = held_apart(calibration, seed) if refine else (calibration, calibration[:0])
    how = {"samples": samples, "estimator": estimator, "draws": draws, "seed": seed, "batch_size": batch_size}
    with shown(progress):
        read, inside = _within(_read(model, calibration, dense, how), within)
        times = timing.measure(read, clock, floor=floor, multiple=multiple) if resource == "latency" else None
        tables = times.tables if times else None
        options = search.rank_options(read, (resource,), mixed=True, floor=floor, tables=tables)
        share = times.budget(kept) if times else _share(read, options, kept, resource, inside)
        values, note = search.predicted_values(read, options, FISHER_IMAGES, points)
        chosen = factors or _factors(read, note)
        find = partial(search.exact_search, read, resource=resource, options=options, values=values)
        found = timing.plan_within(times, read, kept, find) if times else find(share)
        wide = any(layer.positions > 1 for layer in read)  # activations of many inputs would not fit
        images = {"fisher_images": FISHER_IMAGES, "images": SWEEP_IMAGES if wide else None}
        more: dict[str, Any] = images if chosen in replace.SWEEPS else {}
        small = replace.apply_plan(read, found.plan, factors=chosen, resource=None, **more)
        swept, refined = small, None
        if refine and found.plan:
            size = {} if batch_size is None else {"batch_size": batch_size}
            budget: dict[str, Any] = {"steps": refine_steps, "seconds": refine_seconds, "seed": seed, **size}
            judged: dict[str, Any] = {"held_out": unseen} if len(unseen) else {}
            refined = refinement.refine(model, small, calibration, augment=augment, **budget, **judged)
            small = refined.model
    notes = [note, refined.note if refined else ""]
    tokens = tokens_of(calibration)
    if 0 < tokens < FEW_TOKENS:
        notes.append(f"Ranks and factors rest on {tokens} tokens only; ten thousand are wanted.")
    elif given < FEW and not tokens:
        count = f"{given} input{'s' * (given > 1)}"
        notes.append(f"Ranks and factors rest on {count} only; a few hundred are wanted.")
    alone = is_plain(calibration) and not read.followers
    if chosen in replace.SWEEPS and len(list(model.children())) and alone:
        notes.append(
            "torch.fx cannot trace the network, so each layer repairs itself alone, not what a shortcut lets through."
        )
    counted = {
        "parameters": score.parameters(small) / score.parameters(model),
        "macs": _macs(small, read) / _macs(model, read),
    }
    asked = counted
    if inside is not None:
        asked = {what: _kept_inside(read, found.plan, inside, what) for what in profile.RESOURCES}
        counted |= {f"{what} within": asked[what] for what in profile.RESOURCES}
    seen = timing.compare(times, read, small, found.plan) if times else None
    if times and seen:
        counted["latency"] = seen.kept
        notes += [times.note(), timing.missed(seen, kept)]
    elif asked[resource] > kept * (1 + 1e-9):
        notes.append(f"By torch's own count {asked[resource]:.1%} of the {resource} stay, more than asked for.")
    table = _table(read, found.plan, options)
    if times:
        table = table.assign(**times.columns(found.plan, list(table["layer"])))
    if dense is None:
        table["why"] = table["why"].replace("left dense on request", "left dense by default")
    told = " ".join(filter(None, notes))
    seconds = time.perf_counter() - began
    before = None if refined is None else swept
    return Compressed(small, found.plan, counted, found, table, seconds, told, seen, before, refined)


def held_apart(calibration: Batch, seed: int = 0) -> tuple[Batch, Batch]:
    """Return (inputs that the sweep and the steps of a refinement see, inputs that judge it): 15 % for these, 250 at most.

    What the sweep has seen tells nothing of how far it is off. Both parts are drawn with `seed`, so that inputs may come
    sorted by class, and keep their order. Of fewer than 50 inputs none is kept apart.

    >>> [len(part) for part in held_apart(torch.zeros(300, 4))], [len(part) for part in held_apart(torch.zeros(40, 4))]
    ([255, 45], [40, 0])
    """
    held = min(round(HELD_OUT * len(calibration)), MOST_HELD_OUT) if len(calibration) >= FEW else 0
    if not held:
        return calibration, calibration[:0]
    order = torch.randperm(len(calibration), generator=torch.Generator().manual_seed(seed))
    return calibration[order[held:].sort().values], calibration[order[:held].sort().values]


def predict(
    profile: profile.Profile,
    kept: float | Sequence[float] = (0.9, 0.75, 0.5, 0.35, 0.25, 0.15),
    *,
    resource: str = "macs",
    floor: float = 0.1,
    images: int = prediction.IMAGES,
) -> prediction.Prediction:
    """Return what `compress` without refinement can be expected to cost at each budget, before anything is cut.

    `profile`: of `lowrank_utils.profile`, with calibration inputs; ``samples=20_000, estimator="signs", draws=1`` is what
    `compress` takes. Where it names no dense layers, those of `compress` stay dense. Budgets out of reach become rows
    with a note. See `prediction.Prediction` for the columns; raises ValueError as `compress` does.

    The columns lost_low and lost_high are a range for the points of accuracy lost, as `images` images would show them. It allows
    for the error of the prediction and for the chance of the images. Inside lay 42 of 45 measured losses of eight networks, each
    left out of the fit, on 143 to 2 000 validation images. For more images it was not measured.

    >>> network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 5))
    >>> found = predict(profile.profile(network, torch.randn(64, 20)), (0.6, 0.01))
    >>> found.table["rise"].notna().tolist()
    [True, False]
    """
    if not hasattr(profile, "needed_calibration"):
        raise TypeError("predict reads a profile, not a network: pass lowrank_utils.profile(model, calibration)")
    profile.needed_calibration("a prediction needs")
    read = profile if profile.dense else _by_default(profile)
    kept = [kept] if isinstance(kept, (int, float)) else kept
    return prediction.curve(
        read,
        kept,
        lambda options, share: _share(read, options, share, resource),
        resource=resource,
        floor=floor,
        images=images,
    )


def _check(model, kept, resource, factors, dense):
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(f"model is {what}; pass a network, an object of torch.nn.Module")
    checks.check_share(kept=kept)
    if resource not in (*profile.RESOURCES, "latency"):
        raise ValueError(f"unknown resource {resource!r}; known: {', '.join(profile.RESOURCES)}, latency")
    if factors not in (None, *replace.KNOWN):
        raise ValueError(f"unknown factors {factors!r}; known: {', '.join(replace.KNOWN)}")
    if isinstance(dense, str):
        raise ValueError(f"dense={dense!r} must be a list of layer names, such as [{dense!r}]")
    if torch.is_inference_mode_enabled():
        raise ValueError("compress follows gradients, which torch.inference_mode() forbids; call it outside")
    first = next(model.parameters(), None)
    if first is None:
        raise ValueError("this network has no parameters, so there is nothing to compress")
    if first.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the network's weights are {first.dtype}; compress it in float32 (model.float()) and convert after"
        )


def _factors(read, note):
    if note:
        return "relu-aware"
    return "fisher-weighted" if read.followers or len(read.order) <= MANY else replace.LAYERWISE


def _macs(model, read):
    return score.macs(model, read.input_shape, read.example)


def _read(model, calibration, dense, how):
    try:
        shape = calibration.shape[1:] if torch.is_tensor(calibration) else None
        read = profile.Profile(model, calibration, input_shape=shape, dense=dense or (), **how)
    except ValueError as error:
        ids = tokens_of(calibration)
        if ids and "index out of range" in str(error):
            raise ValueError(_outside(model, calibration)) from error
        if "cannot take" in str(error) and (said := _about_labels(model, calibration, error)):
            raise ValueError(said) from error
        if not ids or "cannot take" not in str(error):
            raise
        raise ValueError(
            f"calibration is {_kind(calibration)}; pass floating-point inputs, scaled as the network takes them ({error})"
        ) from error
    return read if dense is not None else _by_default(read)


def _about_labels(model, calibration, error):
    # a sentence where the last tensor of several looks like labels, one whole number an input, and the network takes none; or ""
    if not isinstance(calibration, Inputs) or len(calibration.tensors) < 2:
        return ""
    if not re.search("unexpected keyword argument|positional arguments? but", str(error)):
        return ""  # it takes them, and something else is wrong
    if calibration.kwargs and list(calibration.kwargs)[-1] in inspect.signature(model.forward).parameters:
        return ""
    last = calibration.tensors[-1]
    if last.is_floating_point() or last[0].numel() != 1:
        return ""
    name = f'"{list(calibration.kwargs)[-1]}"' if calibration.kwargs else "the last tensor"
    instead = "pass the inputs alone, as one tensor" if len(calibration.tensors) == 2 else "leave it out"
    return f"{name} of calibration holds labels, it seems, and the network does not take them: {instead} ({error})"


def _kind(calibration):
    return calibration.dtype if torch.is_tensor(calibration) else "of whole numbers"


def _outside(model, calibration):
    # what is wrong with token ids that an embedding does not have
    known = min((part.num_embeddings for part in model.modules() if isinstance(part, nn.Embedding)), default=0)
    low, high = id_range(calibration)
    return f"token id {low if low < 0 else high} is outside the vocabulary of {known} tokens: cut the text with the tokenizer of this model"


def _by_default(read):
    # by default the last layer that a pass meets stays dense, and the first where it is a convolution
    if len(set(read.order)) < 2:
        return read
    first, last = read.order[0], read.order[-1]
    starts = isinstance(read.model.get_submodule(first), nn.Conv2d) and len(read.order) > 2
    return read.but(dense=(first, last) if starts else (last,))


def _within(read, patterns):
    # (profile in which all other layers stay dense, names of the layers that share the budget or None for all)
    if patterns is None:
        return read, None
    inside = read.within(patterns)
    others = [layer.name for layer in read if layer.name not in inside]
    return read.but(dense=tuple(dict.fromkeys((*read.dense, *others)))), inside


def _kept_inside(read, plan, inside, resource):
    whole = sum(read[name].cost(None, resource) for name in inside)
    return sum(read[name].cost(plan.get(name), resource) for name in inside) / whole


def _share(read, options, kept, resource, inside=None):
    # The share of what the cards hold that keeps a share `kept` of the whole network: what is in no card stays, and counts
    # (batch norms; products that belong to no layer, as in attention).
    # Where only the layers `inside` count, the others are less than nothing outside.
    carded = profile.plan_cost(read, {}, resource)
    if inside is not None:
        outside = sum(read[name].cost(None, resource) for name in inside) - carded
    else:
        outside = max((_macs(read.model, read) if resource == "macs" else score.parameters(read.model)) - carded, 0)
    least = {own.name: own.entries[int(own.costs[:, 0].argmin())] for own in options}
    least = {name: entry for name, entry in least.items() if entry is not None}
    smallest = (profile.plan_cost(read, least, resource) + outside) / (carded + outside)
    if kept < smallest:
        raise ValueError(
            f"kept={kept} of {resource} cannot be reached: the smallest possible is {search.rounded_up(smallest)}"
        )
    return (kept * (carded + outside) - outside) / carded if outside else kept


def _table(read, plan, options):
    offered, rows = {own.name for own in options}, []
    for card in read:
        entry = plan.get(card.name)
        scheme, rank = unfold.parse_entry(entry) if entry is not None else (None, None)
        why = card.reason or ("" if card.name in offered else "no rank costs less")
        rows.append(
            {
                "layer": card.name,
                "dense": "x".join(map(str, card.shape)),
                "planned": "dense" if entry is None else f"rank {rank}" + (f", {scheme}" if scheme else ""),
                "parameters": card.cost(entry, "parameters") / max(card.parameters, 1),
                "macs": card.cost(entry, "macs") / max(card.macs, 1),
                "why": why or ("the search keeps it" if entry is None else ""),
            }
        )
    return pd.DataFrame(rows)
