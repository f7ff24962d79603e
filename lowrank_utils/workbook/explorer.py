"""The explorer: for each network, the plans of every chooser at a hundred budgets, with what they cost and lose.

`renew` computes them once and keeps them in outputs/gallery/explorer.json; `explorer_page` shows them without Python.
`answer` reads the same file, so that page and package can be compared.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lowrank_utils import compression, paths
from lowrank_utils.factors import replace
from lowrank_utils.lab import data, score, training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network import unfold
from lowrank_utils.network.modules import evaluating
from lowrank_utils.network.profile import Plan, Profile, plan_cost, profile
from lowrank_utils.ranks import components, enc, prediction, rules, search
from lowrank_utils.workbook import digests, runs

SCHEMA = 2  # of explorer.json; raised when a page written before could not read it
NAME = "explorer"
CHOOSERS = ("exact", "component output", "ENC-Map", "energy", "fixed")
KEPT = tuple(round(k / 100, 2) for k in range(2, 101))
BATCH = 64  # images at once, of the timing
SHORT = {**{name: name[0] for name in unfold.NAMES}, None: ""}  # of schemes, as the page reads them
MORE = {"exact": "exact-Fisher"}  # what published rows call a chooser


@dataclass(frozen=True)
class Subject:
    """A network of the explorer. `measured`: how many budgets are measured with every chooser (0: published rows are shown);
    `timed`: how many are timed where none is measured."""

    title: str
    dataset: str
    network: str
    checkpoint: str = ""
    measured: int = 20
    timed: int = 0
    calibration_images: int = 1000

    @property
    def name(self) -> str:
        """What the page's address calls it, such as lenet300-digits."""
        return f"{self.network}-{self.dataset}"


SUBJECTS = (
    Subject("LeNet-300-100 on Fashion-MNIST", "fashion-mnist", "lenet300"),
    Subject("LeNet-300-100 on MNIST", "mnist", "lenet300"),
    Subject("LeNet-300-100 on digits", "digits", "lenet300"),
    Subject("LeNet-5 on Fashion-MNIST", "fashion-mnist", "lenet5"),
    Subject("small VGG on Fashion-MNIST", "fashion-mnist", "vgg_small", measured=0, timed=3),
    Subject("ResNet-20 on CIFAR-10", "cifar10", "resnet20", "public", measured=0, timed=2),
    Subject("ResNet-56 on CIFAR-10", "cifar10", "resnet56", "public", measured=0, timed=2, calibration_images=500),
)


# ---- what is computed ------------------------------------------------------------------------------------------------


def written(plan: Plan, layers: Sequence[str]) -> str:
    """Return a plan as the page reads it: one word a layer, its scheme's first letter and its rank, "-" where it stays dense.

    >>> written({"conv2": ("spatial", 12), "fc1": 83}, ["conv1", "conv2", "fc1"])
    '- s12 83'
    """
    words = []
    for name in layers:
        if (entry := plan.get(name)) is None:
            words.append("-")
        else:
            scheme, rank = unfold.parse_entry(entry)
            words.append(f"{SHORT[scheme]}{rank}")
    return " ".join(words)


def parsed(text: str, layers: Sequence[str]) -> Plan:
    """Return the plan that `written` wrote.

    >>> parsed("- s12 83", ["conv1", "conv2", "fc1"])
    {'conv2': ('spatial', 12), 'fc1': 83}
    """
    schemes, plan = {short: scheme for scheme, short in SHORT.items() if short}, {}
    for name, word in zip(layers, text.split(" "), strict=True):
        if word != "-":
            scheme = schemes.get(word[0])
            plan[name] = unfold.plan_entry(scheme, int(word[1:] if scheme else word))
    return plan


def planners(read: Profile) -> dict[str, Callable[[float], Plan]]:
    """Return {chooser: function of a share of the MACs that returns its plan}, of all but the exact search."""
    options = search.rank_options(read)
    aware = replace.decompose_layers(read, {card.name: card.scheme for card in read if not card.reason}, "data-aware")
    seen: dict[str, Any] = {"factors": aware, "moments": read.moments_of(list(aware))}
    curves = search.energy(read, options)
    return {
        "component output": partial(components.components_plan, read, rule="output", **seen),
        "ENC-Map": lambda kept: enc.enc_map(read, kept, options=options, curves=curves).plan,
        "energy": partial(rules.plan_at_size, read, rule="energy"),
        "fixed": partial(rules.plan_at_size, read, rule="fixed"),
    }


def all_plans(read: Profile, kept: Sequence[float]) -> dict[str, dict[float, Plan]]:
    """Return {chooser: {share of the MACs: plan}} of every chooser; budgets that one cannot reach are left out."""
    found: dict[str, dict[float, Plan]] = {"exact": dict(compression.predict(read, kept).plans)}
    for chooser, plan in planners(read).items():
        found[chooser] = {}
        for share in kept:
            try:
                found[chooser][share] = plan(share)
            except ValueError as error:  # a budget below the chooser's smallest plan
                if "cannot be reached" not in str(error):
                    raise
    return {chooser: found[chooser] for chooser in CHOOSERS}


def losses(read: Profile, plans: Mapping[str, Mapping[float, Plan]]) -> dict[str, dict[float, float]]:
    """Return {chooser: {share of the MACs: points of accuracy that are expected to be lost}} (`prediction.lost`)."""
    options = search.rank_options(read, mixed=True, floor=0)  # a threshold may go below the floor of the exact search
    values, note = search.predicted_values(read, options, prediction.FISHER_IMAGES, points=None)
    if note:
        raise ValueError(f"nothing can be predicted for this network: {note}")
    unsure = prediction.entropy(read)[0]

    def lost(plan):
        rise, positions = prediction.rise_of(read, options, values, plan)
        return float(prediction.lost(prediction.divergence(rise, positions, unsure))) if rise else 0.0

    return {chooser: {share: lost(plan) for share, plan in own.items()} for chooser, own in plans.items()}


def spread_out(shares: Sequence[float], count: int) -> list[float]:
    """Return `count` of the `shares` below 1, the smallest and the largest among them, nearly evenly in their logarithm.

    >>> spread_out([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0], 3)
    [0.1, 0.3, 0.8]
    """
    held = [share for share in shares if share < 1]
    if not count or not held:
        return []
    wanted = np.geomspace(min(held), max(held), count)
    return sorted({min(held, key=lambda share: abs(share - at)) for at in wanted})


def faster(small: nn.Module, dense: nn.Module, shape: Sequence[int], repeats: int) -> float:
    """Return how many times less processor time `small` takes than `dense`, both in turn, for 64 images on one thread."""
    images = torch.zeros(BATCH, *shape)
    with evaluating(small), evaluating(dense):
        calls = [partial(small, images), partial(dense, images)]
        mine, theirs = score.alternately(calls, repeats=repeats, warmup=1, clock=time.process_time)
    return float(np.median(theirs) / np.median(mine))


def measurements(
    read: Profile, plans: Mapping[str, Mapping[float, Plan]], images: Dataset, subject: Subject
) -> dict[str, list[list[float | None]]]:
    """Return {chooser: list of [share of the MACs, test accuracy or None, times faster]} at some of the budgets.

    All plans get the same factors, those of `compress` without refinement, so that the choosers of ranks are compared.
    """
    test = images.tensors("test")
    wide = any(layer.positions > 1 for layer in read)
    how: dict[str, Any] = {"factors": "fisher-weighted", "fisher_images": compression.FISHER_IMAGES, "resource": None}
    how["images"] = compression.SWEEP_IMAGES if wide else None
    if not subject.measured:
        how = {"factors": "svd", "resource": None}  # time does not ask what the numbers are
    repeats = 25 if subject.measured >= 20 else 3  # of networks that take long
    found: dict[str, list[list[float | None]]] = {}
    for chooser, own in plans.items():
        found[chooser] = []
        for share in spread_out(_round(own, subject), subject.measured or subject.timed):
            small = replace.apply_plan(read, own[share], **how)
            right = round(training.evaluate(small, *test).accuracy, 5) if subject.measured else None
            times = faster(small, read.model, images.input_shape, repeats)
            found[chooser].append([share, right, round(times, 3)])
    return found


def _round(plans, subject):
    # where none is measured, budgets that published rows have are timed
    return [share for share in plans if subject.measured or share in (0.75, 0.5, 0.35, 0.25)]


def published(subject: Subject, folder: str | Path | None = None) -> dict[str, list[list[float]]]:
    """Return {chooser: list of [share of the MACs, mean test accuracy, rows]} of published rows, factors in sequence, seed 0.

    Of notebook 05, with several draws of calibration images; of 06 where 05 has not asked a chooser.
    """
    from lowrank_utils.workbook.gallery import published_rows

    rows = published_rows(subject.dataset, None, subject.network, folder)
    rows = rows[(rows["factors"] == "sequential") & (rows["tuned"] == "none") & (rows["budget_kind"] == "macs")]
    rows = rows[rows["seed"] == 0]
    found = {}
    for chooser in CHOOSERS:
        own = rows[rows["chooser"] == MORE.get(chooser, chooser)]
        for notebook in ("05_rank_search", "06_side_by_side"):
            mine = own[own["notebook"] == notebook].groupby("budget")["accuracy"].agg(["mean", "size"])
            if len(mine):
                found[chooser] = [[float(b), round(float(m), 5), int(n)] for b, m, n in mine.itertuples()]
                break
    return found


def compute(subject: Subject, kept: Sequence[float] = KEPT) -> dict[str, Any]:
    """Return what the explorer shows of one network, as `explorer.json` holds it. Raises OSError where data cannot be had."""
    began = time.process_time()
    images, read = _profiled(subject)
    model, plans = read.model, all_plans(read, kept)
    lost, names = losses(read, plans), [card.name for card in read]
    whole = {what: plan_cost(read, {}, what) for what in ("macs", "parameters")}
    outside = score.parameters(model) - whole["parameters"]  # batch norms: they stay
    shown = [share for share in kept if any(share in own for own in plans.values())]
    table = {}
    for chooser, own in plans.items():
        costs = {what: [plan_cost(read, own[s], what) if s in own else None for s in shown] for what in whole}
        table[chooser] = {
            "plans": [written(own[s], names) if s in own else None for s in shown],
            "macs": costs["macs"],
            "parameters": [None if c is None else c + outside for c in costs["parameters"]],
            "lost": [_digits(lost[chooser].get(s)) for s in shown],
        }
    test = images.tensors("test")
    return {
        "name": subject.name,
        "title": subject.title,
        "dataset": subject.dataset,
        "network": subject.network,
        "layers": [_layer(card) for card in read],
        "dense": {
            "accuracy": round(training.evaluate(model, *test).accuracy, 5),
            "macs": whole["macs"],
            "parameters": score.parameters(model),
        },
        "images": len(test[1]),
        "kept": shown,
        "choosers": table,
        "measured": measurements(read, plans, images, subject),
        "published": published(subject) if not subject.measured else {},
        "provenance": _provenance(subject, images, time.process_time() - began),
    }


def foretold_anew(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network of explorer.json with its plans as they are and their losses predicted by `prediction.MEASURED` (seconds).

    Raises OSError where data cannot be had.
    """
    subject = next(each for each in SUBJECTS if each.name == own["name"])
    names = [layer["name"] for layer in own["layers"]]
    held = {
        chooser: {share: parsed(text, names) for share, text in zip(own["kept"], table["plans"]) if text is not None}
        for chooser, table in own["choosers"].items()
    }
    lost = losses(_profiled(subject)[1], held)
    tables = {
        chooser: table | {"lost": [_digits(lost[chooser].get(share)) for share in own["kept"]]}
        for chooser, table in own["choosers"].items()
    }
    return {**own, "choosers": tables, "provenance": {**own["provenance"], "constants": _constants()}}


def _profiled(subject):
    images = data.load(subject.dataset)
    model, _ = training.trained(images, subject.network, checkpoint=subject.checkpoint, device="cpu")
    calibration = images.tensors("train", subject.calibration_images)[0]
    how: dict[str, Any] = {"samples": compression.SAMPLES, "estimator": "signs", "draws": 1}
    return images, profile(model, calibration, dense=_ends(model, images), **how)


def _constants():
    # what a rise of the loss becomes points with
    return [*prediction.MEASURED.scale, *prediction.MEASURED.accuracy]


def _ends(model, images):
    # what `compress` leaves dense: the last layer, and the first where it is a convolution
    first, *_, last = [layer.name for layer in profile(model, input_shape=images.input_shape, spectra=False)]
    return (first, last) if isinstance(model.get_submodule(first), nn.Conv2d) else (last,)


def _layer(card):
    # macs of the dense layer, and what one rank costs in each scheme
    schemes = list(card.costs) if card.costs else [None]
    each = {SHORT[scheme]: card.cost(unfold.plan_entry(scheme, 1)) for scheme in schemes} if not card.reason else {}
    shape = "x".join(map(str, card.shape))
    return {"name": card.name, "shape": shape, "kind": card.kind, "macs": card.macs, "rank": each}


def _digits(number):
    return None if number is None else float(f"{number:.3g}")


def _provenance(subject, images, seconds):
    made = runs.provenance()
    return {
        "parameters": asdict(subject) | {"samples": compression.SAMPLES},
        "data_fingerprint": images.fingerprint,
        "versions": made["versions"],
        "commit": made["commit"],
        "code": digests.of_code(NAME),
        "constants": _constants(),
        "finished": runs.now(),
        "processor_seconds": round(seconds),
    }


def renew(
    subjects: Sequence[Subject] = SUBJECTS,
    path: str | Path | None = None,
    *,
    kept: Sequence[float] = KEPT,
    again: bool = False,
) -> dict[str, Any]:
    """Return what explorer.json holds; networks that it lacks (or all, with `again`) are computed now, each written at once.

    Where `prediction.MEASURED` has changed since, the losses of the others are predicted anew (`foretold_anew`). Published rows that are
    shown are read again, for all.

    About twenty minutes on one core, more than half of them for the two ResNets. Raises ValueError where the file is damaged.
    """
    path = Path(path or paths.GALLERY / f"{NAME}.json")
    held = {own["name"]: own for own in read(path)["networks"]} if path.is_file() else {}
    asked = {subject.name: subject for subject in subjects if again or subject.name not in held}
    # the header holds the constants of all tables, so no table may be of others
    stale = [name for name, own in held.items() if own["provenance"].get("constants") != _constants()]
    if stale:
        held |= {name: foretold_anew(held[name]) for name in stale}
        _write(path, list(held.values()))
    shown = {subject.name: published(subject) for subject in SUBJECTS if subject.name in held and not subject.measured}
    if any(held[name]["published"] != rows for name, rows in shown.items()):
        held |= {name: {**held[name], "published": rows} for name, rows in shown.items()}
        _write(path, list(held.values()))
    for subject in asked.values():
        held[subject.name] = compute(subject, kept)
        names = [each.name for each in SUBJECTS if each.name in held]
        _write(path, [held[name] for name in [*names, *(n for n in held if n not in names)]])
    return read(path)


def _write(path, networks):
    from lowrank_utils.workbook import prediction as measured

    known = prediction.MEASURED
    rows = measured.published()
    if rows is None:
        raise FileNotFoundError(f"{paths.GALLERY / 'prediction.csv'} is not there; take it from the repository again")
    inside = prediction.covered(measured.parts(rows)[0])
    trusted = prediction.lost(prediction.TRUSTED)  # points; more than these are not to be trusted
    content = {"schema": SCHEMA, "choosers": list(CHOOSERS), "trusted": float(trusted)}
    # of the range of a predicted accuracy (`prediction.lost_range`)
    content |= {"spread": known.spread, "accuracy": list(known.accuracy)}
    content |= {"covered": [int(inside.sum()), len(inside)]}  # of the measured losses of networks left out
    content |= {"deviations": round(prediction.DEVIATIONS, 6), "networks": networks}
    with paths.atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n")


# ---- what is read ----------------------------------------------------------------------------------------------------


def read(path: str | Path | None = None) -> dict[str, Any]:
    """Return what explorer.json holds. Raises ValueError, in a sentence, where it is cut short or of another version."""
    path = Path(path or paths.GALLERY / f"{NAME}.json")
    try:
        held = json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path.name} is cut short or damaged; take it from the repository again") from None
    if not isinstance(held, dict) or held.get("schema") != SCHEMA:
        found = held.get("schema") if isinstance(held, dict) else None
        raise ValueError(
            f"{path.name} is of version {found}, this package reads {SCHEMA}; make it anew with: gallery --only {NAME}"
        )
    return held


def answer(held: Mapping[str, Any], network: str, chooser: str, kept: float) -> dict[str, Any]:
    """Return what the page shows of one network, chooser and budget.

    Keys: plan ({layer: word}), macs and parameters (shares of the dense network), predicted, low and high (accuracy and its range
    for as many images as the network has test images, `prediction.lost_range`, which was measured on no more than 2 000; None where
    the prediction is not to be trusted), measured (accuracy, or None) and faster (or None), each with how it is known: "measured",
    "published", "interpolated" or "none". Between two measured budgets numbers are interpolated linearly; outside of them there is none. Raises ValueError for a network, chooser or
    budget that the file does not have.
    """
    own = next((each for each in held["networks"] if each["name"] == network), None)
    if own is None:
        raise ValueError(f"unknown network {network!r}; known: {', '.join(n['name'] for n in held['networks'])}")
    if chooser not in own["choosers"] or kept not in own["kept"]:
        raise ValueError(f"{network} has no plan of {chooser!r} at {kept}")
    at, table, dense = own["kept"].index(kept), own["choosers"][chooser], own["dense"]
    if table["plans"][at] is None:
        raise ValueError(f"{chooser} cannot reach {kept} of the MACs of {network}")
    names = [layer["name"] for layer in own["layers"]]
    known = dataclasses.replace(prediction.MEASURED, accuracy=tuple(held["accuracy"]), spread=held["spread"])
    lost = table["lost"][at]
    expected = (lost / known.accuracy[0]) ** (1 / known.accuracy[1])  # nats
    least, most = map(float, prediction.lost_range(expected, own["images"], known))
    if lost > held["trusted"]:
        lost = least = most = None
    accuracy, how = _between(own, chooser, kept, 1)
    times, timed = _between(own, chooser, kept, 2)
    return {
        "plan": dict(zip(names, table["plans"][at].split(" "))),
        "macs": table["macs"][at] / dense["macs"],
        "parameters": table["parameters"][at] / dense["parameters"],
        "predicted": _less(dense, lost),
        "high": _less(dense, least),
        "low": _less(dense, most),
        "measured": accuracy,
        "known": how,
        "faster": times,
        "timed": timed,
    }


def _less(dense, points):
    return None if points is None else min(max(dense["accuracy"] - points / 100, 0.0), 1.0)


def _between(own, chooser, kept, column):
    # (number or None, how it is known)
    rows = [row for row in own["measured"].get(chooser, []) if row[column] is not None]
    word = "measured"
    if not rows and column == 1:
        rows, word = own["published"].get(chooser, []), "published"
    below, above = ([r for r in rows if r[0] <= kept][-1:], [r for r in rows if r[0] >= kept][:1])
    if not below or not above:
        return None, "none"
    (a, b) = below[0], above[0]
    if a[0] == b[0]:
        return a[column], word
    share = (kept - a[0]) / (b[0] - a[0])
    return a[column] + share * (b[column] - a[column]), "interpolated"
