"""Which test images the network of an older result row gets right: the network is built again from the plan of the row.

Rows that were measured before the column correct existed have a plan of ranks, and plain factors follow from the plan and the
trained network alone. What is measured anew counts only where it has the accuracy of the row to the last image. It is kept
beside the rows, in answers.parquet of the gallery, so that the rows stay as they were measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from lowrank_utils import paths
from lowrank_utils.factors import replace
from lowrank_utils.lab import data, training
from lowrank_utils.lab.columns import KEY, RUN
from lowrank_utils.lab.data import Dataset
from lowrank_utils.lab.score import packed
from lowrank_utils.network.profile import profile
from lowrank_utils.workbook.laboratory import trained_or_public

FILE = "answers.parquet"
_KEYS = [*RUN, *KEY, "accuracy"]  # a row with another accuracy is another network


def known(rows: pd.DataFrame, folder: str | Path | None = None) -> pd.DataFrame:
    """Return the rows with the column correct filled in from the answers that a gallery keeps (default: outputs/gallery)."""
    path = Path(folder or paths.GALLERY) / FILE
    if not path.is_file() or not len(rows):
        return rows
    missing = [name for name in _KEYS if name not in rows]
    kept = pd.read_parquet(path)
    asked = rows.assign(**dict.fromkeys(missing, None))[_KEYS].astype(kept[_KEYS].dtypes.to_dict())
    found = asked.merge(kept, on=_KEYS, how="left", validate="many_to_one")["correct"].to_numpy()
    correct = pd.Series(found, index=rows.index, dtype="string")
    return rows.assign(correct=rows["correct"].fillna(correct) if "correct" in rows else correct)


def keep(rows: pd.DataFrame, folder: str | Path | None = None) -> Path:
    """Write the answers of `rows` to the file that `known` reads, in place of those that it had; return its path."""
    path = Path(folder or paths.GALLERY) / FILE
    answered = rows.loc[rows["correct"].notna(), [*_KEYS, "correct"]].drop_duplicates(_KEYS)
    with paths.atomic_write(path) as temporary:
        answered.to_parquet(temporary, index=False)
    return path


@lru_cache(maxsize=1)
def _network(dataset: str, network: str, seed: int, checkpoint: str) -> tuple[nn.Module, Dataset]:
    return trained_or_public(data.load(dataset, seed=seed), network, seed, checkpoint=checkpoint, device="cpu")


def can_be_rebuilt(rows: pd.DataFrame) -> pd.Series:
    """Return which rows (a boolean Series) say all that it takes to build their network again from the trained one."""
    plain = (rows["factors"] == "svd") & (rows["stored_as"] == "low rank") & rows["plan"].notna()
    known = (
        (rows["tuned"] == "none") & rows["run_parameters"].notna() & (rows["runtime"] == "torch") & (rows["bits"] == 32)
    )
    return known & (plain | (rows["chooser"] == "dense"))


def rebuilt(row: Mapping[Any, Any]) -> tuple[nn.Module, Dataset]:
    """Return (network, data set) of a row whose network is a trained network, or plain factors of it under a plan.

    `row`: dataset, network, seed, scope, plan and run_parameters. Raises ValueError and OSError where the trained network or the
    images cannot be had.
    """
    asked = json.loads(row["run_parameters"])
    model, images = _network(row["dataset"], row["network"], int(row["seed"]), asked.get("checkpoint", ""))
    if row["chooser"] == "dense":
        return model, images
    names = [layer.name for layer in profile(model, input_shape=images.input_shape, spectra=False)]
    ends = {"inner layers": (names[0], names[-1]), "hidden layers": (names[-1],)}
    dense = (*ends.get(row["scope"], ()), *asked.get("dense", ()))
    scheme = {"scheme": asked["scheme"]} if "scheme" in asked else {}
    read = profile(model, input_shape=images.input_shape, dense=dense, **scheme)
    resource = "parameters" if row["notebook"] == "02_arsvd" else "macs"
    return replace.apply_plan(read, json.loads(row["plan"]), factors="svd", resource=resource), images


def answers(row: Mapping[Any, Any]) -> str | None:
    """Return which test images the network of a row gets right, as `score.packed` writes it; None where its accuracy is another.

    Raises as `rebuilt`.
    """
    net, images = rebuilt(row)
    test, labels = images.tensors("test")
    right = (training.outputs(net, test).argmax(1) == labels).numpy()
    return packed(right) if abs(right.mean() - row["accuracy"]) < 1e-9 else None


def recorded(
    rows: pd.DataFrame, wanted: pd.Series, seconds: float, tell: Callable[[str], None] = lambda line: None
) -> tuple[pd.DataFrame, int]:
    """Return (rows, how many of the wanted ones are left) with the column correct filled in for `wanted`, a boolean Series.

    Rows of equal plans of one network share an answer. It stops, after at least one network, once `seconds` of processor time
    are spent; `tell` hears of each network that was built. A network whose accuracy is not that of its row records nothing.
    """
    rows = rows.assign(correct=rows["correct"] if "correct" in rows else pd.Series(pd.NA, rows.index, dtype="string"))
    lacking = rows[wanted & can_be_rebuilt(rows) & rows["correct"].isna()]
    began, left = time.process_time(), len(lacking)
    same = ["dataset", "network", "seed", "scope", "plan", "accuracy"]
    for _, part in lacking.groupby(same, sort=False, dropna=False):
        one = part.iloc[0].to_dict()
        found = answers(one)
        tell(f"{one['network']} {one['chooser']} {one['budget']}: {'agrees' if found else 'differs'}")
        rows.loc[part.index, "correct"] = pd.NA if found is None else found
        left -= len(part)
        if time.process_time() - began > seconds:
            break
    return rows, left
