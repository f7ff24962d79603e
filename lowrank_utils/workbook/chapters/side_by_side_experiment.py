"""The experiment of chapter 06: every way to make a network smaller, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from torch import nn

from lowrank_utils import checks
from lowrank_utils.factors.refine import STEPS
from lowrank_utils.lab.data import Dataset
from lowrank_utils.workbook.benchmark import (
    Bench,
    Subject,
    convex_rows,
    fine_tune,
    low_rank_rows,
    onnx_rows,
    other_rows,
    refined_rows,
    searched,
    subject,
)
from lowrank_utils.workbook.search_lab import check_asked


def measured(
    images: Dataset,
    networks: Mapping[str, nn.Module],
    *,
    dataset: str,
    seed: int = 0,
    shares: Sequence[float] = (0.25,),
    factorisers: Sequence[str] = ("svd", "data-aware", "sequential"),
    evaluations: int = 10,
    refine_steps: int = STEPS,
    finetuned: Sequence[str] = (),
    finetuning: Mapping[str, Any] | None = None,
    convex: bool = False,
    max_seconds: float = 60.0,
    threads: int = 1,
    repeats: int = 30,
    **options,
) -> tuple[Bench, dict[str, Subject]]:
    """Return (a bench with every network of this chapter and its row, {name: what was asked of each dense network}).

    Parameters
    ----------
    images, networks : a data set and {name: network trained on it}.
    shares : shares of the MACs kept, each in (0, 1]; the last one is run in onnxruntime.
    factorisers : kinds of factors; the last one writes EVBMF's ranks and the file for onnxruntime.
    evaluations : plans that ENC-Inf measures at each share.
    refine_steps : steps of the refinement without labels, for the networks that `refined_rows` enters; 0: none of them.
    finetuned : choosers whose networks are fine-tuned; `finetuning` : the options of `fine_tune`.
    convex, max_seconds : whether DDLR and Net-Trim are solved, and the time that each layer has at most.
    threads, repeats : of the CPU while latency is measured, and readings of which the median counts.
    options : those of `subject`: floor, curve, measure_images, calibration_images.

    Raises ValueError for no network, shares and a curve that are none, and a size that no plan reaches.
    """
    check_asked(shares, options.get("curve", "accuracy"))
    checks.check_count(0, refine_steps=refine_steps)
    if not networks:
        raise ValueError("networks=[] names no network")
    bench, subjects = Bench(images, min(threads, torch.get_num_threads()), repeats), {}
    for name, model in networks.items():
        one = subjects[name] = subject(images, model, dataset=dataset, network=name, seed=seed, **options)
        low_rank_rows(bench, one, {share: searched(one, share, evaluations) for share in shares}, factorisers)
        other_rows(bench, one, shares, factorisers[-1])
        if convex:
            convex_rows(bench, one, max_seconds)
        with TemporaryDirectory() as folder:
            onnx_rows(bench, one, shares[-1], factorisers[-1], Path(folder))
        for share in shares if refine_steps else ():
            refined_rows(bench, one, share, refine_steps)
    fine_tune(bench, finetuned, **finetuning or {})
    return bench, subjects


def experiment(images: Dataset, networks: Mapping[str, nn.Module], **options) -> pd.DataFrame:
    """Return all rows of this chapter: those of `measured`, with the same options and errors."""
    return measured(images, networks, **options)[0].table()
