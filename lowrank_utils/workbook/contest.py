"""Controls and rivals beside our own method, on the same weights, calibration inputs and fine-tuning: one function a control.

Each control is a list of what its rows are about (`asked_ranks`, `asked_sparse`, ...), and `row` measures one of them, in the
columns of `lab.columns`. `rows` is both together, for notebooks.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from lowrank_utils.compression import SAMPLES, compress
from lowrank_utils.factors import replace, sparse
from lowrank_utils.lab import columns, corruptions, export, finetuning, models, score, training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network.inputs import random_batch
from lowrank_utils.network.modules import evaluating
from lowrank_utils.network.profile import Profile, profile
from lowrank_utils.ranks import enc, published, rivals, rules, search
from lowrank_utils.workbook.benchmark import REFINED, non_zeros, stored_sparse, timed, zeroed
from lowrank_utils.workbook.laboratory import Laboratory

OURS = ("exact-Fisher", "fisher-weighted")
PAIRS = (  # chooser of the ranks, factors
    OURS,
    *(("random", "fisher-weighted"), ("fixed", "fisher-weighted"), ("fixed", "data-aware"), ("fixed", "svd")),
    *(("ENC-Map", "svd"), ("AIMET greedy", "svd"), ("BALF", "whitened"), ("ZS-SVD", "whitened")),
)
MATCHED = "SparseGPT at magnitude's sizes"
SPARSE = ("magnitude", "SparseGPT", MATCHED)
NEEDS = {"AIMET greedy": "labels", "ZS-SVD": "labels"}
TRAINED = ("fine-tuned", "distilled")
FLOOR = 0.02  # no rank of ours and of ENC-Map below this share of break-even, or the smallest budgets are out of reach
CORRUPTED = 2000  # test images of each corruption
JUDGES = 2000  # validation images that AIMET's search and the rates of fine-tuning are judged by
FRESH = 1000  # is added to the seed of the dense network, whose first weights another network must not have
Asked = dict[str, Any]


@dataclass(frozen=True)
class Tested(Laboratory):
    """A `Laboratory` whose rows say which test images are right, and more than that where it has corrupted ones.

    ``sets``: corrupted test images by name (`corrupted`). Where there are some, every row is also measured on them, timed in processor
    time beside the dense network, and says how much memory its answers take.
    """

    sets: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False, kw_only=True)

    def row(self, net: nn.Module, **columns) -> dict:
        """Return the result row of a network."""
        found = super().row(net, **{"keep_correct": True} | columns | ({"timed": False} if self.sets else {}))
        if not self.sets:
            return found
        found |= corruptions.accuracy_under(net, self.sets)
        found["memory_64"] = score.answer_memory(net, self.images.input_shape)
        if next(net.parameters()).device.type == "cpu":  # processor time says nothing of another device
            found |= processor_times(net, self.model, self.images.input_shape) | {"threads": 1}
        return found

    def random_plan(self, read: Profile, kept: float, scope: str) -> dict[str, Any]:
        """Return a plan of random ranks at a share `kept` of the parameters.

        Each run, scope and size has a draw of its own, so that one unlucky draw does not count more than once.
        """
        words = f"{self.about['dataset']} {self.about['network']} {self.about['seed']} {scope} {kept:g}"
        return rivals.random_plan(read, kept, seed=zlib.crc32(words.encode()), resource="parameters")

    def fine_tuned(self, net: nn.Module, steps: int, keep_zeros: bool = False, **columns: Any) -> dict:
        """Return the row of `net` after `steps` steps on all labelled training images; the rate is chosen on validation images."""
        found = fine_tuned(self, net, steps=steps, keep_zeros=keep_zeros, device=self._device)
        more = {"tuned": "fine-tuned", "steps": steps, "rate": found.rate, "tuned_seconds": found.seconds}
        return self._trained(found.model, found.note, **columns, **more)

    def from_scratch(self, plan: Mapping[str, Any], **columns) -> dict:
        """Return the row of the thin layers of a plan with fresh weights, trained as the dense network was (`trained_anew`)."""
        began = time.perf_counter()
        name, seed = self.about["network"], self.about["seed"]
        net, note = trained_anew(self.images, name, plan, self.recipe, seed, self._device)
        more = {"tuned": "from scratch", "tuned_seconds": time.perf_counter() - began, "factors": "none"}
        more |= {"finetuned_epochs": self.recipe.epochs, "plan": json.dumps(plan)}
        return self._trained(net, note, **columns, **more)

    def _trained(self, net, note, **columns):
        valid = self.valid(net)
        return self.row(net, **{"valid_accuracy": valid, "needs": "labels", "note": note or None} | columns)

    @property
    def _device(self):
        return next(self.model.parameters()).device


def fine_tuned(lab: Tested | Contest, net: nn.Module, **options: Any) -> finetuning.Tuned:
    """Return a network of a laboratory after fine-tuning, the same for every method: by the dense network's recipe, the rate chosen on
    `JUDGES` validation images. `options`: further ones of `finetuning.fine_tune`, or other values."""
    same: dict[str, Any] = {"weight_decay": lab.recipe.weight_decay, "augment": lab.recipe.augment}
    same |= {"valid_images": JUDGES, "seed": lab.about["seed"], "device": "cpu"}
    return finetuning.fine_tune(net, lab.images, **same | options)


def undiverged(rows: pd.DataFrame) -> pd.Series:
    """Return which rows (a boolean Series) hold the network that training made: where every rate diverged they hold the network before it.

    A fine-tuned row then has no rate; its note may name single rates that diverged. A row trained from scratch has one rate, and a note.
    """
    tuned = rows["tuned"] == "fine-tuned"
    rate, note = (rows[name] if name in rows else pd.Series(pd.NA, index=rows.index) for name in ("rate", "note"))
    return ~(tuned & rate.isna()) & ~((rows["tuned"] == "from scratch") & note.notna())


def corrupted(images: Dataset) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the corrupted test images of a `Tested` laboratory: the first `CORRUPTED` under each corruption."""
    return corruptions.corrupted_sets(images, limit=CORRUPTED)


@dataclass(frozen=True)
class Contest(Laboratory):
    """A trained network with one draw of calibration images, and what every row needs of it, collected once.

    ``labels`` of the calibration images; ``sets``: corrupted test images, or {} where rows go without; ``candidates`` of AIMET's
    search; ``fine``: options of `finetuning.fine_tune`; ``threads`` of the CPU while time is measured; ``timed``, ``paired``: whether it is,
    and whether each row counts the test images that it alone, or ours alone, gets right;
    ``statistics_seconds``: of moments and Fisher information. ``held``: networks and numbers kept between rows.
    """

    labels: torch.Tensor
    draw: int
    sets: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    candidates: int = rivals.CANDIDATES
    fine: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    timed: bool = True
    paired: bool = True
    statistics_seconds: float = 0.0
    held: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.about["network"]

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what `make` returned when `key` was first asked for."""
        if key not in self.held:
            self.held[key] = make()
        return self.held[key]


def contest(
    images: Dataset,
    model: nn.Module,
    *,
    draw: int = 0,
    calibration_images: int = 1000,
    severity: int | None = corruptions.SEVERITY,
    shared: Contest | None = None,
    **options: Any,
) -> Contest:
    """Return the `Contest` of a trained network for one draw: `calibration_images` training images, drawn at random by `draw`.

    The last layer stays dense, and the first where it is a convolution, for every method. `severity` of the corruptions of the first
    `CORRUPTED` test images, None for none. `options`: those of `Contest`, and what every row is about: dataset, network, seed. What does not depend on
    the draw is taken from the contest `shared`, if one is given.
    """
    own = {name: options.pop(name) for name in ("candidates", "fine", "threads", "timed", "paired") if name in options}
    everything, labels = images.tensors("train")
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(draw))[:calibration_images]
    first, *_, last = [layer.name for layer in profile(model, input_shape=images.input_shape, spectra=False)]
    dense = (first, last) if isinstance(model.get_submodule(first), nn.Conv2d) else (last,)
    how: dict[str, Any] = {"samples": SAMPLES, "estimator": "signs", "draws": 1}
    read = profile(model, everything[drawn], dense=dense, **how)
    # the classifier's moments are the sparse networks' alone
    seconds = timed(lambda: (read.fisher, read.moments_of([layer.name for layer in read])))[1]
    sets = {} if severity is None else corruptions.corrupted_sets(images, severity=severity, limit=CORRUPTED)
    about = {"notebook": "06_side_by_side", **options}
    held = (
        {} if shared is None else {key: value for key, value in shared.held.items() if key in ("AIMET", "dense loss")}
    )
    return Contest(images, read, about, labels[drawn], draw, sets, statistics_seconds=seconds, held=held, **own)


# What is asked for -----------------------------------------------------------------------------------------------------


def _low(pair, kept, tuned="none"):
    return {"chooser": pair[0], "factors": pair[1], "stored_as": "low rank", "budget": kept, "tuned": tuned, "bits": 32}


def _sparse(chooser, kept, tuned="none"):
    return {"chooser": chooser, "factors": "none", "stored_as": "sparse", "budget": kept, "tuned": tuned, "bits": 32}


def asked_dense() -> list[Asked]:
    """Return what the dense network's row is about."""
    return [{"chooser": "dense", "factors": "none", "stored_as": "dense", "tuned": "none", "bits": 32}]


def asked_ranks(kept: Sequence[float], pairs: Sequence[tuple[str, str]] = PAIRS) -> list[Asked]:
    """Return ours, random ranks and the rivals at each share of the MACs, nothing trained after the cut."""
    return [_low(pair, share) for share in kept for pair in pairs]


def asked_sparse(kept: Sequence[float]) -> list[Asked]:
    """Return the sparse networks at each share of the parameters, 16-bit indices counted."""
    return [_sparse(chooser, share) for share in kept for chooser in SPARSE]


def asked_tuned(
    kept: Sequence[float], pairs: Sequence[tuple[str, str]] = PAIRS, zeros: Sequence[str] = SPARSE
) -> list[Asked]:
    """Return every method fine-tuned, with and without distillation; ours also refined without labels. `zeros`: the sparse ones."""
    found = [_low(OURS, share, REFINED) for share in kept]
    for share in kept:
        found += [_low(pair, share, tuned) for pair in pairs for tuned in TRAINED]
        found += [_sparse(chooser, share, tuned) for chooser in zeros for tuned in TRAINED]
    return found


def asked_scratch(kept: Sequence[float], network: str) -> list[Asked]:
    """Return the networks of our plan and of one share of the rank, trained from fresh weights; none where `why_not_scratch`."""
    if why_not_scratch(network):
        return []
    return [_low((chooser, "none"), share, "from scratch") for share in kept for chooser in (OURS[0], "fixed")]


def why_not_scratch(network: str) -> str:
    """Return why a network has no row trained from scratch, or nothing.

    >>> why_not_scratch("lenet300")
    ''
    """
    if "net" in network and any(network.endswith(str(count)) for count in (20, 32, 44, 56, 110)):
        return f"Training a {network} from scratch takes about eight hours on two cores, so it has rows fine-tuned for a stated number of steps instead."
    return ""


def asked_recalibrated(kept: Sequence[float], model: nn.Module) -> list[Asked]:
    """Return ours and plain factors at one share with batch norms recalibrated; none for a network without batch norms."""
    if not any(isinstance(module, training.BATCH_NORMS) for module in model.modules()):
        return []
    return [_low(pair, share, "recalibrated") for share in kept for pair in (OURS, ("fixed", "svd"))]


def asked_eight_bits(kept: Sequence[float]) -> list[Asked]:
    """Return the dense network and ours in 8 bits, activations scaled as they come, and by the calibration images."""
    which = [asked_dense()[0], *(_low(OURS, share) for share in kept)]
    return [one | {"bits": 8, "activations": how} for one in which for how in ("dynamic", "static")]


def rows(one: Contest, asked: Sequence[Asked]) -> pd.DataFrame:
    """Return the rows of one control, in the columns of `lab.columns`.

    Raises ValueError for a budget that a method cannot reach.
    """
    return columns.table([row(one, each) for each in asked])


# Networks --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    # a network with what its row says of how it was found
    net: nn.Module
    seconds: float
    plan: Any = None
    evaluations: int = 0
    more: dict[str, Any] = field(default_factory=dict)


def _ours(one: Contest, kept: float, refine: bool) -> _Entry:
    read = one.profile
    found = compress(
        read.model, read.calibration, kept=kept, dense=read.dense, floor=FLOOR, refine=refine, seed=one.about["seed"],
        progress=False,
    )  # fmt: skip
    return _Entry(found.model, found.seconds, found.plan, more={"note": found.note} if found.note else {})


def _planned(one: Contest, chooser: str, kept: float) -> tuple[Any, int]:
    # (plan, networks measured)
    read, channel = one.profile, one.once("channel", lambda: one.profile.but(scheme="channel"))
    if chooser == "random":
        return rivals.random_plan(read, kept, seed=one.draw), 0
    if chooser == "fixed":
        return rules.plan_at_size(read, kept, rule="fixed"), 0
    if chooser == "ENC-Map":
        options = search.rank_options(read, floor=FLOOR)
        return enc.enc_map(read, kept, options=options, curves=search.energy(read, options)).plan, 0
    if chooser == "BALF":
        return rivals.balf(channel, kept).plan, 0
    if chooser == "ZS-SVD":
        return rivals.zero_sum(channel, kept, effects=one.once("effects", lambda: _effects(one, channel))), 0
    if chooser == "AIMET greedy":
        scores, measured = one.once("AIMET", lambda: _aimet_scores(one))[:2]
        found = rivals.aimet_greedy(read, kept, measure=one.valid, candidates=one.candidates, scores=scores)
        return found.plan, measured
    raise ValueError(f"unknown chooser {chooser!r}; known: {', '.join(dict.fromkeys(name for name, _ in PAIRS))}")


def _effects(one, channel):
    gradients = rivals.loss_gradients(channel, channel.factorable, one.labels)
    return rivals.first_order_effects(channel, rivals.whitened_factors(channel, channel.factorable), gradients)


def _aimet_scores(one):
    # (scores, networks measured, seconds): of the weights alone, so the same for all draws and budgets
    read, valid = one.profile, one.images.tensors("valid", JUDGES)
    ratios = [i / one.candidates for i in range(1, one.candidates)]
    options = [o for o in published.ratio_options(read, read.factorable, ratios, "macs") if len(o.entries) > 1]
    measured: list[float] = []

    def measure(net):
        measured.append(training.evaluate(net, *valid).accuracy)
        return measured[-1]

    scores, seconds = timed(lambda: published.sensitivities(read, options, measure=measure, factors="svd"))
    return scores, len(measured), seconds


def _cut(one: Contest, chooser: str, factors: str, kept: float) -> _Entry:
    # the network of one pair, nothing trained
    if (chooser, factors) == OURS:
        return _ours(one, kept, refine=False)
    began = time.perf_counter()
    plan, measured = _planned(one, chooser, kept)
    if factors == "whitened":
        net = rivals.whitened_network(one.once("channel", lambda: one.profile.but(scheme="channel")), plan)
    else:
        net = replace.apply_plan(one.profile, plan, factors=factors)
    seconds = time.perf_counter() - began
    if factors != "svd":
        seconds += one.statistics_seconds
    if chooser == "AIMET greedy" and measured:
        seconds += one.held["AIMET"][2]
    return _Entry(net, seconds, plan, measured)


def _zeros(one: Contest, chooser: str, kept: float) -> _Entry:
    if chooser == "magnitude":
        net, seconds = timed(lambda: zeroed(one, kept))
        return _Entry(net, seconds, more=stored_sparse(net, one.model))

    def build():
        stays, every = non_zeros(one.model, kept)
        if chooser == "SparseGPT":
            return sparse.pruned(one.profile, stays / every)
        like = zeroed(one, kept)
        shares = {}
        for layer in one.profile:
            weight: Any = like.get_submodule(layer.name).weight
            shares[layer.name] = max(int(weight.count_nonzero()), 1) / weight.numel()
        return sparse.pruned(one.profile, shares)

    net, seconds = timed(build)
    return _Entry(net, seconds + one.statistics_seconds, more=stored_sparse(net, one.model))


def cut_network(one: Contest, chooser: str, factors: str, kept: float) -> _Entry:
    """Return the network of a method at a budget before anything is trained, with how it was found; each is made once."""
    make = (lambda: _zeros(one, chooser, kept)) if chooser in SPARSE else (lambda: _cut(one, chooser, factors, kept))
    return one.once((chooser, factors, kept), make)


def trained_anew(
    images: Dataset,
    network: str,
    plan: Mapping[str, Any],
    recipe: training.Recipe,
    seed: int,
    device: str | torch.device = "cpu",
) -> tuple[nn.Module, str]:
    """Return (the thin layers of a plan with fresh weights, trained by `recipe`; a note where training diverged, else "").

    Fresh weights are the plain factors of a freshly initialised dense network (spectral initialisation, Khodak et al. 2021),
    which starts thin pairs at the scale of the layers that they stand for. The first weights are not those of the dense network of `seed`.
    """
    shape, classes = images.input_shape, len(images.classes)

    def fresh():
        whole = profile(models.build(network, shape, classes, seed + FRESH), input_shape=shape, spectra=False)
        thin = replace.apply_plan(whole, plan, factors="svd", resource=None)
        return thin.to(device).to(memory_format=training.layout_for(thin, images.tensors("train", 2)[0]))

    net, note = fresh(), ""
    try:
        training.fit(net, images, recipe, seed + FRESH, device, progress=False)
    except ValueError as error:
        if "NaN or infinite" not in str(error):
            raise
        net = fresh().eval()
        note = f"Training diverged ({error}); the accuracy is that of the network before it."
    return net.to(memory_format=torch.contiguous_format), note


def _from_scratch(one: Contest, chooser: str, kept: float) -> _Entry:
    plan, began = cut_network(one, *(OURS if chooser == OURS[0] else ("fixed", "svd")), kept).plan, time.perf_counter()
    net, note = trained_anew(one.images, one.name, plan, one.recipe, one.about["seed"])
    more = {"note": note, "needs": "labels", "finetuned_epochs": one.recipe.epochs}
    return _Entry(net, time.perf_counter() - began, plan, more=more)


def _tuned(one: Contest, asked: Asked) -> _Entry:
    before = cut_network(one, asked["chooser"], asked["factors"], asked["budget"])
    teacher = one.model if asked["tuned"] == "distilled" else None
    found = fine_tuned(one, before.net, teacher=teacher, keep_zeros=asked["stored_as"] == "sparse", **one.fine)
    more = before.more | {"rate": found.rate, "steps": one.fine.get("steps", finetuning.STEPS), "needs": "labels"}
    note = " ".join(filter(None, [before.more.get("note", ""), found.note]))
    more |= {"note": note, "tuned_seconds": found.seconds}
    more["untuned_accuracy"] = training.evaluate(before.net, *one.images.tensors("test")).accuracy
    return _Entry(found.model, before.seconds + found.seconds, before.plan, before.evaluations, more)


def _recalibrated(one: Contest, asked: Asked) -> _Entry:
    before = cut_network(one, asked["chooser"], asked["factors"], asked["budget"])
    augment = training.augmentation(one.images) if one.recipe.augment else None
    given = one.profile.needed_calibration("recalibration needs")
    net, seconds = timed(lambda: training.recalibrate(before.net, given, augment, seed=one.about["seed"]))
    more = before.more | {"needs": NEEDS.get(asked["chooser"], "images")}
    return _Entry(net, before.seconds + seconds, before.plan, before.evaluations, more)


def _entry(one: Contest, asked: Asked) -> _Entry:
    if asked["chooser"] == "dense":
        return _Entry(one.model, 0.0)
    tuned = asked["tuned"]
    if tuned in TRAINED:
        return _tuned(one, asked)
    if tuned == "recalibrated":
        return _recalibrated(one, asked)
    if tuned == "from scratch":
        return _from_scratch(one, asked["chooser"], asked["budget"])
    if tuned == REFINED:
        return _ours(one, asked["budget"], refine=True)
    return cut_network(one, asked["chooser"], asked["factors"], asked["budget"])


# Rows ------------------------------------------------------------------------------------------------------------------


def row(one: Contest, asked: Asked) -> dict[str, Any]:
    """Return the result row of one thing asked for.

    Beside what `score.row` measures: validation accuracy, rise of the loss, accuracy on corrupted images, time beside the dense
    network, the memory that its answers take, what was trained and at what rate. Training that diverged is a row with a note, and the accuracy
    of the network before it. Raises ValueError for a budget that a method cannot reach.
    """
    found, dense = _entry(one, asked), asked["chooser"] == "dense"
    told: dict[str, Any] = {"draw": one.draw, "seconds_to_find": found.seconds, "evaluations": found.evaluations}
    told |= {"scope": "none" if dense else "every layer" if asked["stored_as"] == "sparse" else one.scope}
    told["budget_kind"] = "dense" if dense else "kept" if asked["stored_as"] == "sparse" else "macs"
    told["needs"] = _needs(asked)
    told["calibration_images"] = len(one.labels)
    told |= {"plan": json.dumps(found.plan)} if found.plan is not None else {}
    told |= asked | found.more
    net = found.net
    with tempfile.TemporaryDirectory() as folder:
        if asked["bits"] == 8:
            told |= {"runtime": "onnxruntime", "counted": net}
            net, told["bytes"] = _eight_bits(one, net, asked["activations"], Path(folder))
        pairing = one.paired and not dense and asked["bits"] == 32
        result = one.row(net, **told, keep_correct=pairing)
        result["rise"] = result["loss"] - one.once("dense loss", lambda: _dense_loss(one))
        result["valid_accuracy"] = one.valid(net)
        expected = _expected(one, asked, found.plan)
        result |= {} if expected is None else {"predicted_rise": expected}
        result |= corruptions.accuracy_under(net, one.sets) if one.sets else {}
        if one.timed:
            form = (asked["stored_as"], asked["bits"], asked.get("activations"), told.get("plan"))
            times = one.once(
                ("time", *form), lambda: processor_times(net, one.model, one.images.input_shape, one.threads)
            )
            result |= times | {"threads": one.threads}
            result["memory_64"] = one.once(("memory", *form), lambda: score.answer_memory(net, one.images.input_shape))
        if pairing:
            result |= _beside_ours(one, asked, score.unpacked(result.pop("correct")))
    return result


def processor_times(net: nn.Module, dense: nn.Module, shape: Sequence[int], threads: int = 1) -> dict[str, float]:
    """Return milliseconds of processor time for 1 and 64 inputs, and how many times less than the `dense` network in torch.

    Both are timed in turn (`score.alternately`). Processor time is what a busy machine still tells: wall-clock time would
    count the other programs, too.
    """
    found = {}
    for batch in (1, 64):
        given = random_batch(dense, shape, batch)
        with evaluating(net), evaluating(dense):
            calls = [partial(run, given) for run in (net, dense)]
            mine, other = score.alternately(calls, threads, clock=time.process_time)
        found |= {f"latency_ms_{batch}": float(np.median(mine))}
        found |= {f"faster_{batch}": float(np.median(np.divide(other, mine)))}
    return found


def _beside_ours(one, asked, mine):
    # of the test images that a network gets right: how many it alone does, and how many ours alone does, at the same budget and state of training
    state = {"from scratch": "fine-tuned", "recalibrated": "none", REFINED: "none"}.get(asked["tuned"], asked["tuned"])
    key = ("right", asked["budget"], asked["tuned"])
    if (asked["chooser"], asked.get("factors"), state) == (*OURS, asked["tuned"]):
        one.held[key] = mine
        return {}
    ours = one.once(("right", asked["budget"], state), lambda: _right_of_ours(one, asked["budget"], state))
    return {"right_alone": int((mine & ~ours).sum()), "wrong_alone": int((ours & ~mine).sum())}


def _right_of_ours(one, kept, state):
    images, labels = one.images.tensors("test")
    return (training.outputs(_entry(one, _low(OURS, kept, state)).net, images).argmax(1) == labels).numpy()


def _needs(asked):
    if asked["chooser"] in NEEDS:
        return NEEDS[asked["chooser"]]
    blind = asked["chooser"] in ("dense", "magnitude") or asked.get("factors") == "svd"
    return "images" if not blind or asked.get("activations") == "static" else "nothing"


def _dense_loss(one):
    return training.evaluate(one.model, *one.images.tensors("test")).loss


def _expected(one, asked, plan):
    # the rise of the loss that the search on predicted losses expects of a plan in factors that rest on data
    if plan is None or asked["tuned"] != "none" or asked["bits"] == 8 or asked["factors"] == "svd":
        return None
    options, values = one.once("losses", lambda: _losses(one.profile))
    return -search.worth(options, values, plan)


def _losses(read):
    options = search.rank_options(read, mixed=True, floor=0)
    values, note = search.predicted_values(read, options, points=None)
    if note:
        raise ValueError(note)
    return options, values


def _eight_bits(one, net, how, folder):
    # (network in onnxruntime, its bytes)
    given = one.profile.needed_calibration("static quantization needs")
    whole, rounded = folder / "net.onnx", folder / "net8.onnx"
    export.to_onnx(net, whole, given[:8])
    export.to_int8(whole, rounded, given if how == "static" else None)
    return export.onnx_session(rounded, one.threads), rounded.stat().st_size


def unreachable(error: ValueError, asked: Asked) -> dict[str, Any]:
    """Return the row of a budget that a method cannot reach: its setting with a note, no accuracy.

    Raises the error again where it says something else.
    """
    if "cannot be reached" not in str(error):
        raise error
    return {**asked, "accuracy": math.nan, "note": f"Out of reach: {error}."}


def number(rows: pd.DataFrame, column: str = "accuracy", **what: Any) -> float:
    """Return a column's mean over the rows that have these values; NaN where there are none.

    >>> number(pd.DataFrame({"chooser": ["a", "b"], "accuracy": [0.5, 0.7]}), chooser="b")
    0.7
    """
    mine = rows
    for name, value in what.items():
        mine = mine[mine[name] == value]
    return float(mine[column].mean()) if len(mine) else float(np.nan)
