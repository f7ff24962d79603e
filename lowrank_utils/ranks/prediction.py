"""What a budget will cost, before anything is cut: predicted rises of the loss, calibrated on measured divergences.

The search adds up predicted rises of the loss, one layer at a time and to second order, on images that the network may have
learnt by heart. Their order is right and their scale is not. `fit` finds the scale from networks that were compressed and
measured; its constants stand here, and outputs/gallery/prediction.csv holds the rows that they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import torch

from lowrank_utils.checks import check_count, check_share
from lowrank_utils.network import inputs
from lowrank_utils.network.modules import evaluating
from lowrank_utils.network.profile import Plan, Profile
from lowrank_utils.network.unfold import Entry
from lowrank_utils.ranks import search

FISHER_IMAGES = 1000
ENTROPY_IMAGES = 500
LEAST = 1e-3  # nats; smaller divergences cost no accuracy that could be measured, and are left out of the fit
FELT = 0.02  # nats; from here on the accuracy lost stands out from the noise of 2000 images
MOST_OF_TOKENS = 1.3  # nats a token; no larger divergence of a language model was measured
TRUSTED = 1.0  # nats; no more than two networks were measured near or above it
SHARE = 0.9  # of the measured losses of networks left out should lie in `lost_range`; `covered` tells how many do
DEVIATIONS = NormalDist().inv_cdf((1 + SHARE) / 2)  # the same share of a normal distribution lies within so many
IMAGES = 2000  # validation images; `lost_range` was measured on no more

COLUMNS = ["kept", "rise", "positions", "entropy", "divergence", "low", "high", "lost", "lost_low", "lost_high", "note"]
ONE_MODEL = (
    "The scale for networks that answer every token comes from one language model, SmolLM2-135M, on two texts. For another "
    "model measure one budget before you trust it. Divergences are nats a token."
)


@dataclass(frozen=True)
class Calibration:
    """``scale``: a, b, c, d of log divergence = a + b log rise + c log positions + d log entropy; ``factor``: 90 % of the
    rows of networks left out of the fit lie within it, all rows together; ``accuracy``: k, p of points lost = k divergence^p;
    ``spread``: the factor of the divergence in `lost_range`, fitted together with the chance of the images of each row."""

    scale: tuple[float, float, float, float]
    factor: float
    accuracy: tuple[float, float]
    spread: float = float("nan")


# `fit` of the rows of outputs/gallery/prediction.csv: LeNet-300-100 on Fashion-MNIST, MNIST and digits, LeNet-5 and
# vgg_small on Fashion-MNIST, the MLP of CIFAR-10, ResNet-20 and -56 on CIFAR-10; tests/test_prediction.py refits them.
MEASURED = Calibration((1.429, 1.114, -0.362, -0.660), 3.54, (22.8, 0.906), 2.12)

# The same for networks that answer every token: SmolLM2-135M, calibrated on two texts. One network tells nothing of what
# positions and entropy do, and a perplexity has no points of accuracy. ``factor`` is the largest error of a text left out.
TOKENS = Calibration((0.7792, 1.0460, 0.0, 0.0), 1.289, (float("nan"), 1.0))


@dataclass(frozen=True)
class Prediction:
    """What to expect at each budget: a ``table`` with one row a budget, and the ``plans`` by share kept.

    Columns: kept; rise (predicted rise of the loss, nats, as the search adds it up), positions and entropy (of the answers, nats),
    from which the rest is made (see `divergence`); divergence (expected
    Kullback-Leibler divergence of the compressed network's answers from the dense ones, nats an answer); low, high (90 % of
    the rows of networks left out of the calibration lay between them; of a language model all rows of the text left out); lost
    (expected points of accuracy lost; NaN of a language model); lost_low, lost_high (`lost_range`: 42 of 45 measured losses of
    networks left out lay between them, on 143 to 2 000 validation images); note.
    """

    table: pd.DataFrame = field(repr=False)
    plans: dict[float, dict[str, Entry]] = field(repr=False)
    resource: str = "macs"
    note: str = ""

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format="{:.3g}".format) + f"<p>{self.note}</p>" * bool(self.note)

    def __str__(self) -> str:
        return "\n".join(
            [self.table.to_string(index=False, float_format="{:.3g}".format)] + [self.note] * bool(self.note)
        )


def divergence(rise: Any, positions: Any, entropy: Any, scale: Sequence[float] | None = None) -> np.ndarray:
    """Return the expected divergence (nats): exp(a) rise^b positions^c entropy^d, elementwise.

    `rise`: predicted rise of the loss (nats); `positions`: geometric mean of the positions of the cut layers, weighted by
    their shares of the rise; `entropy`: of the dense network's answers on calibration inputs (nats). `scale`: (a, b, c, d),
    those of `MEASURED` by default. Positions alone do not explain the scale: raw rises are also too small where the network is
    sure of its training images (small entropy). Deep cuts of ResNets, above about 0.1 nat, are predicted two to three times too low.
    """
    a, b, c, d = MEASURED.scale if scale is None else scale
    with np.errstate(divide="ignore"):
        return np.exp(a + b * np.log(rise) + c * np.log(positions) + d * np.log(entropy))


def lost(divergences: Any, accuracy: Sequence[float] | None = None) -> np.ndarray:
    """Return the expected points of accuracy lost at `divergences` (nats): k divergence^p, at most 100."""
    k, p = MEASURED.accuracy if accuracy is None else accuracy
    return np.minimum(k * np.asarray(divergences, dtype=float) ** p, 100.0)


def lost_range(divergences: Any, images: Any, known: Calibration | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (least, most) points of accuracy lost that `images` images can be expected to show: k (d/s)^p - z e, k (d s)^p + z e.

    The factor s, the ``spread`` of `known` (default: `MEASURED`), allows for the error of the predicted `divergences` d (nats).
    The other term is the chance of the images: e = 100 sqrt(c / images), where c = min(1, sqrt(d s / 2)) is taken for the share
    of changed answers, and z = 1.64. By Pinsker's inequality c is a bound only for answers drawn from the probabilities, not for
    the likeliest class. A least loss below 0 says that the compressed network may measure better.

    `fit` chooses s so that `SHARE` of the losses should lie between the two numbers. 42 of 45 rows of eight networks did, each
    network left out of the fit, on 143 to 2 000 validation images (`covered`). For more images it was not measured. ResNet-20
    and -56 had been trained on these images.

    >>> least, most = lost_range([0.0, 0.01], 2000)
    >>> least.round(2).tolist(), most.round(2).tolist()
    ([0.0, -1.0], [0.0, 1.87])
    """
    known = MEASURED if known is None else known
    return _range(divergences, images, known.accuracy, known.spread)


def _range(divergences, images, accuracy, spread):
    far = np.asarray(divergences, dtype=float) * spread
    chance = DEVIATIONS * 100 * np.sqrt(np.minimum(np.sqrt(far / 2), 1) / np.asarray(images, dtype=float))
    return lost(far / spread**2, accuracy) - chance, np.minimum(lost(far, accuracy) + chance, 100.0)


def _scale(rows):
    kept = rows[rows["divergence"] >= LEAST]
    logs = [np.log(kept[name]) for name in ("rise", "positions", "entropy")]
    return np.linalg.lstsq(np.stack([np.ones(len(kept)), *logs], 1), np.log(kept["divergence"]), rcond=None)[0]


def _line(rows):
    # the scale of networks that answer every token: log divergence = a + b log rise
    b, a = np.polyfit(np.log(rows["rise"]), np.log(rows["divergence"]), 1)
    return float(a), float(b), 0.0, 0.0


def left_out(rows: pd.DataFrame) -> pd.Series:
    """Return the predicted divergence of each row by a fit to all other networks (leave one network out).

    `rows` have the columns dataset, network, rise, positions, entropy (nats) and divergence (nats, measured), all of networks
    with one answer an input or all of networks that answer every token. Of the latter there is one; a data set (text) is left out.
    """
    fitted = _line if of_tokens(rows).any() else _scale
    name, found = rows["dataset"] + " " + rows["network"], pd.Series(np.nan, rows.index)
    for each in name.unique():
        mine = rows[name == each]
        found[mine.index] = divergence(mine["rise"], mine["positions"], mine["entropy"], fitted(rows[name != each]))
    return found


def of_tokens(rows: pd.DataFrame) -> pd.Series:
    """Return which measured `rows` are of a network that answers every token (column answers above 1; one answer without it)."""
    return rows.get("answers", pd.Series(1, rows.index)) > 1


def errors(rows: pd.DataFrame) -> pd.Series:
    """Return by what factor (at least 1) each prediction of `left_out` misses, of rows from `LEAST` nats on."""
    kept = rows["divergence"] >= LEAST
    missed = left_out(rows)[kept] / rows["divergence"][kept]
    return missed.where(missed >= 1, 1 / missed)


def fit(rows: pd.DataFrame) -> Calibration:
    """Return the `Calibration` that least squares of logarithms finds in measured `rows` (see `left_out`).

    The points lost come from the columns dense_accuracy and accuracy (shares), where the divergence is at least `FELT`.
    Rows of networks that answer every token (column answers above 1) are fitted by themselves, by the rise alone.
    Raises ValueError for rows of fewer than three networks, or two texts.
    """
    if of_tokens(rows).any():
        return _fit_tokens(rows)
    if (rows["dataset"] + rows["network"]).nunique() < 3:
        raise ValueError("a calibration needs measured rows of at least three networks")
    a, b, c, d = map(float, _scale(rows))
    return Calibration((a, b, c, d), float(errors(rows).quantile(0.9)), _accuracy(rows), _spread(rows))


def _points(rows):
    return 100 * (rows["dense_accuracy"] - rows["accuracy"])


def _accuracy(rows):
    points = _points(rows)
    felt = (rows["divergence"] >= FELT) & (points > 0)
    p, log_k = np.polyfit(np.log(rows["divergence"][felt]), np.log(points[felt]), 1)
    return float(np.exp(log_k)), float(p)


def _spread(rows):
    # the factor with which `SHARE` of the rows that are predicted to be felt lie in their range, as for one row more (conformal)
    name, needed = rows["dataset"] + " " + rows["network"], []
    for each in name.unique():
        mine, others = rows[name == each], rows[name != each]
        expected = divergence(mine["rise"], mine["positions"], mine["entropy"], _scale(others))
        accuracy, low, high = _accuracy(others), np.zeros(len(mine)), np.full(len(mine), np.log(1000.0))
        for _ in range(30):  # by bisection: a larger factor gives a wider range
            middle = (low + high) / 2
            least, most = _range(expected, mine["images"], accuracy, np.exp(middle))
            inside = (least <= _points(mine)) & (_points(mine) <= most)
            low, high = np.where(inside, low, middle), np.where(inside, middle, high)
        needed += list(high[expected >= LEAST])
    rank = min(int(np.ceil(SHARE * (len(needed) + 1))), len(needed))
    return float(np.exp(np.sort(needed)[rank - 1]))


def covered(rows: pd.DataFrame) -> pd.Series:
    """Return whether the measured loss of each row lies in its `lost_range`, by constants that `fit` finds in all other networks.

    `rows` are those of `left_out`, of networks with one answer an input, with dense_accuracy, accuracy (shares) and images.
    """
    name, found = rows["dataset"] + " " + rows["network"], pd.Series(False, rows.index)
    for each in name.unique():
        mine, known = rows[name == each], fit(rows[name != each])
        expected = divergence(mine["rise"], mine["positions"], mine["entropy"], known.scale)
        least, most = lost_range(expected, mine["images"], known)
        found[mine.index] = (least <= _points(mine)) & (_points(mine) <= most)
    return found


def _fit_tokens(rows):
    if rows["dataset"].nunique() < 2 or not of_tokens(rows).all():
        raise ValueError("a calibration for tokens needs measured rows of at least two texts, and of nothing else")
    return Calibration(_line(rows), float(errors(rows).max()), TOKENS.accuracy)


def entropy(profile: Profile, images: int = ENTROPY_IMAGES) -> tuple[float, int]:
    """Return the mean entropy (nats) of the network's answers on the first `images` calibration inputs, and answers an input."""
    first, found, answers = next(profile.model.parameters()), [], 1
    given = profile.needed_calibration("the entropy of the answers needs")
    batch = profile.batch_size or inputs.at_once(given, 100)
    with evaluating(profile.model):
        for start in range(0, min(images, len(given)), batch):
            part = given[start : min(start + batch, images)]
            logits = inputs.logits(inputs.call(profile.model, inputs.fed(part, first)))
            logs = logits.double().log_softmax(-1)
            answers = logits.shape[1] if logits.ndim == 3 else 1
            found.append(-(logs.exp() * logs).sum(-1).flatten())
    return float(torch.cat(found).mean()), answers


def curve(
    profile: Profile,
    kept: Sequence[float],
    share: Callable[[list[search.Options], float], float],
    *,
    resource: str = "macs",
    floor: float = 0.1,
    images: int = IMAGES,
) -> Prediction:
    """Return the `Prediction` for each budget of `kept`; nothing is cut. `images`: how many the accuracy will be measured on
    (`lost_range`; not measured for more than 2 000).

    `share` turns a share of the whole network into that of the layers in the profile, and raises ValueError where it cannot be reached,
    which the note of that row then says. Raises ValueError for a `kept` that is no share, or none at all.
    """
    asked = [kept] if isinstance(kept, (int, float)) else list(kept)
    if not asked:
        raise ValueError("kept is empty; give at least one share, such as 0.5")
    for each in asked:
        check_share(kept=each)
    check_count(images=images)
    options = search.rank_options(profile, (resource,), mixed=True, floor=floor)
    values, note = search.predicted_values(profile, options, FISHER_IMAGES, points=None)
    unsure, answers = (np.nan, 1) if note else entropy(profile)
    rows, plans = [], {}
    for each in asked:
        try:
            within = share(options, each)
        except ValueError as error:
            rows.append({"kept": each, "note": str(error)})
            continue
        plan = search.exact_search(profile, within, resource=resource, options=options, values=values).plan
        plans[each] = plan
        rise, positions = (np.nan, np.nan) if note else rise_of(profile, options, values, plan, answers)
        rows.append({"kept": each, "rise": rise, "positions": positions, "entropy": unsure, "note": ""})
    told = f"{note} Nothing can be said of the loss." if note else ""
    if answers > 1:
        told = ONE_MODEL
    return Prediction(_told(rows, TOKENS if answers > 1 else MEASURED, images), plans, resource, told)


def rise_of(
    profile: Profile, options: Sequence[search.Options], values: search.Values, plan: Plan, answers: int = 1
) -> tuple[float, float]:
    """Return (predicted rise of the loss of any `plan`, nats an answer; positions of the cut layers, 1 where nothing is cut).

    `values` are minus the predicted losses of `options` (`search.predicted_values`); `answers` of the network for an input. Raises
    ValueError for a rank that is none of the options.
    """
    search.worth(options, values, plan)  # refuses what is no option
    each = {own.name: -float(values[own.name][own.entries.index(plan.get(own.name))]) for own in options}
    total = sum(each.values())
    if total <= 0:
        return 0.0, 1.0
    logs = sum(part * np.log(max(profile[name].positions, 1)) for name, part in each.items())
    return total / answers, float(np.exp(logs / total))


def _told(rows, known, images):
    table = pd.DataFrame(rows).reindex(columns=["kept", "rise", "positions", "entropy", "note"])
    rise, positions, unsure = (table[name].to_numpy(float) for name in ("rise", "positions", "entropy"))
    expected = divergence(rise, positions, unsure, known.scale)
    expected = np.where(table["rise"] == 0, 0.0, expected)
    table = table.assign(divergence=expected, low=expected / known.factor, high=expected * known.factor)
    table["lost"] = lost(table["divergence"], known.accuracy)
    table["lost_low"], table["lost_high"] = lost_range(table["divergence"], images, known)
    if known is TOKENS:
        table.loc[table["divergence"] > MOST_OF_TOKENS, "note"] = "Larger than any divergence that was measured."
        return table[COLUMNS]
    few = (
        f"Below {LEAST} nats. Networks that moved so little lost no accuracy that could be measured; take lost as zero."
    )
    far = f"Above {TRUSTED:g} nat the prediction is not to be trusted."
    table.loc[table["divergence"] < LEAST, "note"] = few
    table.loc[table["high"] > TRUSTED, "note"] = "The interval reaches above 1 nat, where few networks were measured."
    table.loc[table["divergence"] > TRUSTED, "note"] = far
    return table[COLUMNS]
