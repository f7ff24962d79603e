"""Measuring the gallery's controls and rivals: every method on the same weights, images and fine-tuning; `controls` shows the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from lowrank_utils import paths
from lowrank_utils.lab import data, finetuning, training
from lowrank_utils.lab.data import Dataset
from lowrank_utils.workbook import contest, results
from lowrank_utils.workbook.contest import OURS, Asked, Contest

NAME = "controls"  # of the rows in the gallery
DRAWS = 5  # of calibration images
CALIBRATION = 1000  # training images of a draw
ABOUT = ("dataset", "network", "seed", "draw")


@dataclass(frozen=True)
class Case:
    """A network of the section: its shares kept, the candidates of AIMET's search, its checkpoint, its low-rank methods, those
    of them that are fine-tuned (None: all), the sparse ones that are, for how many steps, and at most how many draws it gets."""

    dataset: str
    network: str
    kept: tuple[float, ...]
    candidates: int
    checkpoint: str = ""
    pairs: tuple[tuple[str, str], ...] = contest.PAIRS
    trained: tuple[tuple[str, str], ...] | None = None
    zeros: tuple[str, ...] = contest.SPARSE
    steps: int = finetuning.STEPS
    draws: int = DRAWS

    @property
    def recalibrated(self) -> bool:
        """Whether the network has batch norms, whose statistics can be taken anew."""
        return not self.network.startswith("lenet")


FEW = (OURS, ("random", "fisher-weighted"), ("fixed", "svd"), ("BALF", "whitened"), ("ZS-SVD", "whitened"))
RESNET_STEPS = 100  # of fine-tuning a public network, which nobody trains from scratch on two cores
RESNET: dict[str, Any] = {
    "checkpoint": "public",
    "trained": FEW[:2],
    "zeros": ("magnitude",),
    "steps": RESNET_STEPS,
    "draws": 1,
}
CASES = (
    Case("fashion-mnist", "lenet300", (0.2, 0.1, 0.05), 40),
    Case("fashion-mnist", "vgg_small", (0.5, 0.25), 10, trained=FEW),  # each network takes three minutes
    # at one size, and not from scratch: on one core a network takes minutes to tune, and hours from scratch
    Case("cifar10", "resnet20", (0.25,), 10, pairs=(*FEW, ("AIMET greedy", "svd")), **RESNET),
    Case("cifar10", "resnet56", (0.5,), 10, pairs=FEW, **RESNET),  # AIMET's search would take half an hour
)


def asked(case: Case, one: Contest, trained: bool = True) -> list[Asked]:
    """Return what the rows of one network and draw are about: in the first draw every control, later the cut networks alone.

    Without `trained`, what takes training is left out.
    """
    kept = case.kept
    wanted = contest.asked_ranks(kept, case.pairs) + contest.asked_sparse(kept)
    if one.draw == 0:
        wanted = contest.asked_dense() + wanted + contest.asked_eight_bits(kept)
        wanted += asked_recalibrated(case, one.model)
    if one.draw == 0 and trained:
        wanted += contest.asked_scratch(kept, case.network) + contest.asked_tuned(
            kept, case.trained or case.pairs, case.zeros
        )
    about = {"dataset": case.dataset, "network": case.network, "seed": one.about["seed"], "draw": one.draw}
    return [about | each for each in wanted]


def asked_recalibrated(case: Case, model: nn.Module) -> list[Asked]:
    """Return every method of a case with the batch norms recalibrated after the cut, low-rank and sparse; none for a network without batch norms."""
    if not contest.asked_recalibrated(case.kept, model):
        return []
    cut = contest.asked_ranks(case.kept, case.pairs) + contest.asked_sparse(case.kept)
    return [one | {"tuned": "recalibrated"} for one in cut]


def measure(case: Case, images: Dataset, one: Contest, path: str | Path, trained: bool = True) -> pd.DataFrame:
    """Return the rows of one network and draw, each written to the CSV `path` at once; those that stand there are kept.

    A budget that a method cannot reach is a row with a note and no accuracy.
    """

    def make(each: Mapping[str, Any]) -> Mapping[str, Any]:
        setting = {name: value for name, value in each.items() if name not in ABOUT}
        try:
            return contest.row(one, setting) | dict(each)
        except ValueError as error:
            return {**one.about, **contest.unreachable(error, dict(each))}

    return results.completed(path, asked(case, one, trained), make)


def renew(
    path: str | Path | None = None,
    cases: Sequence[Case] = CASES,
    draws: int = DRAWS,
    *,
    seed: int = 0,
    calibration_images: int = CALIBRATION,
    trained: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Return the rows of the gallery; those that its file lacks are measured now, on one thread.

    The first network takes about half an hour on a busy core, the second several hours, the third two, most of it training: ``trained=False``
    leaves that out. `options`: those of `contest.contest`, such as ``fine={"steps": 100}``. Delete the file to measure all rows anew. Raises OSError where
    the data cannot be had.
    """
    path = Path(path or paths.GALLERY / f"{NAME}.csv")
    for case in cases:
        images = data.load(case.dataset, seed=seed)
        model, _ = training.trained(images, case.network, seed, checkpoint=case.checkpoint, device="cpu")
        first = None
        for draw in range(min(draws, case.draws)):
            about = {"dataset": case.dataset, "network": case.network, "seed": seed, "candidates": case.candidates}
            quick: dict[str, Any] = {} if draw == 0 else {"severity": None, "timed": False, "paired": False}
            fine = {"steps": case.steps, **options.get("fine", {})}
            how = {"calibration_images": calibration_images, "shared": first, **options, **quick, "fine": fine}
            one = contest.contest(images, model, draw=draw, **about, **how)
            first = first or one
            measure(case, images, one, path, trained)
    return pd.read_csv(path)


def is_complete(rows: pd.DataFrame, network: str) -> bool:
    """Return whether the gallery's rows of a network hold all draws and all that is trained; hours may lie between the first row and the last."""
    (case,) = [case for case in CASES if case.network == network]
    mine = rows[rows["network"] == network]
    mended = len(case.kept) * (len(case.pairs) + len(contest.SPARSE)) if case.recalibrated else 0
    trained = (len(case.trained or case.pairs) + len(case.zeros)) * len(case.kept)
    told = mine["tuned"].value_counts()
    enough = told.get(contest.TRAINED[-1], 0) >= trained and told.get("recalibrated", 0) >= mended
    return mine["draw"].nunique() >= case.draws and enough
