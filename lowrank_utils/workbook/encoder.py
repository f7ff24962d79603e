"""A sentence encoder compressed beside its rivals: all-MiniLM-L6-v2 on the STS benchmark."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lowrank_utils import paths
from lowrank_utils.lab import encoder, score, sentences
from lowrank_utils.network.profile import profile
from lowrank_utils.workbook import results, rivals

NAME = "encoder"  # of the rows and the picture in the gallery
KEPT = (0.75, 0.5)  # shares of the parameters of the six layers
WITHIN = ("transformer.encoder.*",)  # the embeddings stay outside of the budget
COUNT, LENGTH = 1000, 16  # calibration sentences, and tokens of each
SHOWN = {"correlation": "correlation with people's scores", "agreement": "correlation with the dense network"}
CAPTION = (
    "The sentence encoder all-MiniLM-L6-v2 on the 1 379 test pairs of the STS benchmark: rank correlation (Spearman) of its "
    "similarities with the scores that people gave, and with the similarities of the dense network. The budget is a share of "
    "the parameters of its six layers; the embeddings, half of the network, stay as they are. Calibration: 1 000 sentences of the "
    "training pairs, cut to 16 tokens, without scores. *One share* is one share of the rank for all matrices."
)

published = partial(rivals.published, NAME)


def calibration(dense: encoder.Encoder, pairs: sentences.Pairs, count: int = COUNT, seed: int = 0) -> dict:
    """Return token ids and mask of `count` sentences of `pairs`, drawn without replacement, `LENGTH` tokens each."""
    drawn = pairs.sentences
    order = np.random.default_rng(seed).permutation(len(drawn))
    return dense.unpadded([drawn[i] for i in order], LENGTH, count)


def measure(
    dense: encoder.Encoder,
    seen: Mapping[str, Any],
    pairs: sentences.Pairs,
    path: str | Path,
    *,
    kept: Sequence[float] = KEPT,
    methods: Sequence[str] = rivals.METHODS,
    within: Sequence[str] = WITHIN,
    **about: Any,
) -> pd.DataFrame:
    """Return one row a method and share kept, after the dense encoder's; each is written to the CSV `path` at once.

    `seen` are calibration inputs (`calibration`), `pairs` what is scored, `kept` shares of the parameters of the layers
    that `within` names. Rows that stand in the file are not measured again. Columns: `about`, method, kept,
    parameters_kept (of the whole network), correlation, agreement, pairs, calibration_sentences, seconds of processor time.
    """
    read = profile(dense.model, seen, samples=20_000)
    wanted = dense.similarities(pairs)

    def row(asked: Mapping[str, Any]) -> dict[str, Any]:
        began, small = time.process_time(), dense.model
        if asked["method"] != "dense":
            small = rivals.compressed(read, asked["method"], asked["kept"], resource="parameters", within=within)
        seconds = time.process_time() - began
        found = dataclasses.replace(dense, model=small).similarities(pairs)
        told = {"parameters_kept": score.parameters(small) / score.parameters(dense.model)}
        told |= {"correlation": encoder.correlation(found, pairs.scores)}
        told |= {"agreement": encoder.correlation(found, wanted), "pairs": len(pairs)}
        return {**about, **asked, **told, "calibration_sentences": len(seen["input_ids"]), "seconds": seconds}

    return results.completed(path, rivals.asked(kept, methods), row)


def figure(rows: pd.DataFrame) -> Figure:
    """Draw both correlations against the share of the layers' parameters kept: a line a method."""
    return rivals.figure(rows, SHOWN, "kept", "parameters of the six layers kept")


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return both correlations times 100: a row a method, a column a share kept."""
    return rivals.table(rows, {"correlation": "people's scores", "agreement": "dense network"})


def section(rows: pd.DataFrame) -> str:
    """Return the part of the gallery's page that shows the picture and its numbers."""
    dense = rows[rows["method"] == "dense"].iloc[0]
    return f"""## A sentence encoder: all-MiniLM-L6-v2

![Two rank correlations against the share of the layers' parameters kept, a line for each method](encoder.png)

{CAPTION} Times 100; the dense network has {100 * dense["correlation"]:.1f}.

{rivals.in_markdown(table(rows))}

The encoder compresses well where the language model of notebook 07 does not. The section on spectra shows one reason: the matrices that are dear in the
language model (`down`, `value` and `up`) lose less in the encoder. Two other differences remain, and none was tested alone: the encoder has 36 matrices one behind the other where the language model has 210, and a rank correlation asks less than the probability of every next token.
The rows are `encoder.csv`.
"""


def renew(path: str | Path | None = None, kept: Sequence[float] = KEPT) -> pd.DataFrame:
    """Return the rows of the gallery; those that its file lacks are measured now, some minutes each.

    Delete the file to measure all of them anew. Raises OSError where the encoder or the sentences cannot be had.
    """
    dense, test = encoder.load(), sentences.load("test")
    seen = calibration(dense, sentences.load("train"))
    path, about = path or paths.GALLERY / f"{NAME}.csv", {"dataset": "stsbenchmark", "network": dense.name}
    return measure(dense, seen, test, path, kept=kept, **about)
