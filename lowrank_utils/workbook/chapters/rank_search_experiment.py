"""The experiment of chapter 05: every search at every size in every kind of factors, and the smallest network without loss."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from torch import nn

from lowrank_utils.lab import columns, training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.workbook.search_lab import (
    check_asked,
    dense_row,
    fine_tuned,
    joined,
    laboratory,
    layer_values,
    loss_factors,
    promises,
    searched_rows,
    searches,
    without_loss,
)

SEARCHES = ("ENC-Map", "ENC-Model", "ENC-Inf")  # of ENC's paper


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
    rows = columns.table([dense_row(lab), *searched_rows(lab, found, promises(lab, values, found), methods)])
    more = fine_tuned(lab, rows, recipe, device) if recipe else []
    free = [without_loss(lab, values, methods[-1], min(shares))]
    if "svd" in methods:  # the factors of ENC's paper
        free += [without_loss(lab, values, "svd", min(shares), chooser, evaluations) for chooser in SEARCHES]
    return joined(rows, *more, *free)
