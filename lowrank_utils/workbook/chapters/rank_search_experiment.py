"""The experiment of chapter 05: every search at every size in every kind of factors, and the smallest network without loss."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import pandas as pd
from torch import nn

from lowrank_utils.lab import columns, training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.network.profile import Profile, profile
from lowrank_utils.ranks import search
from lowrank_utils.ranks.search import SearchResult
from lowrank_utils.workbook import search_lab
from lowrank_utils.workbook.search_lab import (
    Laboratory,
    Values,
    check_asked,
    dense_row,
    fine_tuned,
    joined,
    laboratory,
    loss_factors,
    promises,
    searches,
    without_loss,
)

SEARCHES = ("ENC-Map", "ENC-Model", "ENC-Inf")  # of ENC's paper
READS = {
    "ENC-Map": ("energy",),
    "exact-Fisher": ("moments", "fisher", "losses"),
}  # what a chooser asks of `layer_values`
READS |= dict.fromkeys(("ENC-Model", "ENC-Inf", "exact"), ("energy", "measured"))


def layer_values(read: Profile, goodness: Callable, *, floor: float = 0.1, factors: str = "data-aware") -> Values:
    """Return what `search_lab.layer_values` returns, its ``seconds`` with those of all spectra and energy curves, as "energy"."""
    again = profile(read.model, input_shape=read.input_shape, dense=read.dense, scheme=read.scheme)
    began = time.perf_counter()
    search.energy(
        again, search.rank_options(again, floor=floor)
    )  # computes the spectra, which `again` does not know yet
    seconds = time.perf_counter() - began
    values = search_lab.layer_values(read, goodness, floor=floor, factors=factors)
    return dataclasses.replace(values, seconds=values.seconds | {"energy": seconds})


def statistics_seconds(values: Values, chooser: str) -> float:
    """Return how long it took to compute the statistics that a chooser reads: 0 for one fixed share of the rank.

    ENC-Map reads spectra; ENC-Model, ENC-Inf and the exact search read measured curves too; exact-Fisher reads predicted losses.
    """
    return sum(values.seconds[stage] for stage in READS.get(chooser, ()))


def searched_rows(
    lab: Laboratory, values: Values, found: dict[tuple, SearchResult], told: pd.DataFrame, methods: Sequence[str]
) -> list[dict]:
    """Return the rows of `search_lab.searched_rows`; their ``seconds_to_find`` are of statistics, search and factors together."""
    rows = search_lab.searched_rows(lab, found, told, methods)
    return [
        row | {"seconds_to_find": row["seconds_to_find"] + statistics_seconds(values, row["chooser"])} for row in rows
    ]


def experiment(
    images: Dataset,
    model: nn.Module,
    *,
    shares: Sequence[float] = (0.5, 0.25),
    methods: Sequence[str] = ("svd", "sequential"),
    evaluations: int = 20,
    recipe: training.Recipe | None = None,
    device: str = "auto",
    **options,
) -> pd.DataFrame:
    """Return all rows of this chapter: the dense network, every search at every share in every kind of factors, and the
    smallest networks without loss: of the exact search, and of ENC's searches in plain factors.

    Parameters
    ----------
    images, model : a data set and a network trained on it.
    shares : shares of the MACs kept, each in (0, 1].
    methods : kinds of factors; the last one writes the network without loss.
    evaluations : plans that ENC-Inf measures at each share.
    recipe : of the fine-tuning that gives every network a second row; None: no such rows.
    options : those of `laboratory`: dense, floor, curve, measure_images, calibration_images, draw, and dataset, network, seed.

    Raises ValueError for shares and a curve that are none, and a size that no plan reaches.
    """
    check_asked(shares, options.get("curve", "accuracy"))
    lab = laboratory(images, model, **options)
    values = layer_values(lab.profile, lab.goodness, floor=lab.floor, factors=loss_factors(methods))
    found = searches(lab, values, shares, evaluations)
    rows = columns.table([dense_row(lab), *searched_rows(lab, values, found, promises(lab, values, found), methods)])
    more = fine_tuned(lab, rows, recipe, device) if recipe else []
    free = [without_loss(lab, values, methods[-1], min(shares))]
    if "svd" in methods:  # the factors of ENC's paper
        free += [without_loss(lab, values, "svd", min(shares), chooser, evaluations) for chooser in SEARCHES]
    return joined(rows, *more, *free)
