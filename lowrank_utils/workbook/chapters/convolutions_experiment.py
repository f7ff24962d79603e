"""The experiment of chapter 02b: every kind of factors at every size, with ranks by energy or one fixed share."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence

import pandas as pd
from torch import nn

from lowrank_utils import checks
from lowrank_utils.factors import replace, svd
from lowrank_utils.lab import columns as result_columns
from lowrank_utils.lab.data import Dataset
from lowrank_utils.ranks import rules
from lowrank_utils.workbook.laboratory import Laboratory, laboratory

NOTEBOOK = "02b_convolutions"
CHOOSERS = ("fixed", "energy")
KINDS = (*svd.METHODS, *replace.SWEEPS)


def prepared(
    images: Dataset, model: nn.Module, *, scheme: str = "spatial", calibration_images: int = 500, **about
) -> Laboratory:
    """Return the `Laboratory` of a trained network, with its first and last layer left dense.

    Parameters as of `experiment`. Raises ValueError for an unknown scheme, and where there is no calibration image.
    """
    lab = laboratory(images, model, calibration_images=calibration_images, notebook=NOTEBOOK, scheme=scheme, **about)
    first, *_, last = [layer.name for layer in lab.profile]
    return dataclasses.replace(lab, profile=lab.profile.but(dense=(first, last), scheme=scheme))


def experiment(
    images: Dataset,
    model: nn.Module,
    *,
    shares: Sequence[float] = (0.5, 0.25),
    methods: Sequence[str] = KINDS,
    scheme: str = "spatial",
    calibration_images: int = 500,
    **about,
) -> pd.DataFrame:
    """Return rows of the dense network and of each kind of factors, with ranks by one fixed share and by energy, at each size.

    Parameters
    ----------
    images, model : a data set and a network with convolutions that was trained on it; first and last layer stay dense.
    shares : shares of the MACs, each in (0, 1].
    methods : kinds of factors, of `KINDS`.
    scheme : how convolutions are unfolded: spatial, channel or input.
    calibration_images : training images that factors see, all but the plain ones.
    about : columns of every row: dataset, network, seed.

    Raises ValueError for a share outside (0, 1], an unknown kind of factors, and as `lowrank_utils.profile` does.
    """
    for share in shares:
        checks.check_share(share=share)
    unknown = [method for method in methods if method not in KINDS]
    if unknown:
        raise ValueError(f"unknown factors {unknown[0]!r}; known: {', '.join(KINDS)}")
    lab = prepared(images, model, scheme=scheme, calibration_images=calibration_images, **about)
    read = lab.profile
    free = {layer.name: layer.scheme for layer in read if not layer.reason}
    bases = {method: replace.decompose_layers(read, free, method) for method in methods if method in svd.METHODS}
    rows = [lab.dense_row(keep_correct=True)]
    about = {"scope": "inner layers", "stored_as": "low rank", "calibration_images": calibration_images}
    about["keep_correct"] = True  # which test images are right, for comparisons in pairs
    for share in shares:
        for chooser in CHOOSERS:
            plan = rules.plan_at_size(read, share, rule=chooser)
            more = about | {"chooser": chooser, "budget_kind": "macs", "budget": share, "plan": json.dumps(plan)}
            for method in methods:
                began = time.perf_counter()
                net = replace.apply_plan(read, plan, factors=bases.get(method, method))
                rows.append(lab.row(net, factors=method, seconds_to_find=time.perf_counter() - began, **more))
    return result_columns.table(rows)
