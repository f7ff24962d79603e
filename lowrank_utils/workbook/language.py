"""The published rows of a language model: all pairs of chooser and factors on fixed test windows of WikiText-2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lowrank_utils import paths
from lowrank_utils.lab import language, text
from lowrank_utils.workbook import results, rivals
from lowrank_utils.workbook.chapters import language_model as chapter

Part = tuple[Sequence[float], Sequence[tuple[str, str]], Sequence[int]]  # of the grid of rows

NAME = "language"  # of the rows and the picture in the gallery
PAIRS_PICTURE = "language-pairs"
KEY = ("chooser", "factors", "budget", "draw")
CORPUS = "wikitext-2"
WINDOW, CALIBRATION, TEST = 512, 16, 40  # tokens a window, windows of the validation text, windows of the test text
TEST_SEED = 1000
SIX = (  # the pairs that are followed over all sizes
    ("one share", "svd"),
    ("one share", "asvd"),
    ("one share", "data-aware"),
    ("one share", "fisher-layerwise"),
    ("exact", "data-aware"),
    ("exact", "fisher-layerwise"),
)
CHOOSERS = ("one share", "energy", "entropy", "components", "ENC-Map", "SVD-LLM V2", "exact")
PAIRS = (  # every chooser with whitening and with our factors; the other factors with one share and with exact ranks
    *dict.fromkeys(
        [
            *SIX,
            *((chooser, "data-aware") for chooser in CHOOSERS),
            *((chooser, "fisher-layerwise") for chooser in CHOOSERS),
            *((chooser, factors) for factors in ("svd", "asvd", "fwsvd") for chooser in ("one share", "exact")),
        ]
    ),
)
GRID = (  # (shares of the parameters of the blocks, pairs of chooser and factors, draws of the calibration windows)
    ((0.9, 0.8), PAIRS, (0,)),
    ((0.7, 0.6, 0.95), SIX, (0,)),
    ((0.9, 0.8), SIX, (1, 2)),
)
COLUMNS = (
    *("chooser", "factors", "budget", "draw", "blocks_kept", "parameters_kept", "loss", "rise", "perplexity"),
    *("bits_per_byte", "statistics_seconds", "plan_seconds", "factor_seconds", "calibration_tokens", "peak_memory"),
)
CAPTION = (
    "SmolLM2-135M (weights of four bits, dequantised), WikiText-2. Ranks and factors rest on windows of 512 tokens of the "
    "validation text; the score is on windows of the test text drawn once. Vertical: rise of the loss over the dense "
    "network's (nats a token), on a logarithmic axis. Horizontal: share of the parameters of the blocks that stays; the "
    "embedding, a fifth of the network, is not counted and not cut."
)


published = partial(rivals.published, NAME)


def figure(rows: pd.DataFrame) -> Figure:
    """Draw the rise of the loss against the share of the blocks kept: a line a method."""
    return chapter.figure(rows)


def pictures(rows: pd.DataFrame) -> dict[str, Figure]:
    """Return {name: figure} of what stands beside `figure`: all pairs at one size, the one with most of them."""
    size = _crowded(rows)
    if size is None:
        return {}
    return {
        PAIRS_PICTURE: chapter.points(
            rows[rows["budget"] == size], f"all measured pairs, {size:.0%} of the blocks kept"
        )
    }


def _crowded(rows):
    # the size at which most pairs are measured, the largest of several; None where there is none
    counts = rows[rows["chooser"] != "dense"].groupby("budget").size()
    return None if counts.empty else float(counts[counts == counts.max()].index.max())


def section(rows: pd.DataFrame) -> str:
    """Return the part of the gallery's page that shows the pictures and their numbers."""
    dense = rows[rows["chooser"] == "dense"]["perplexity"].mean()
    table = "\n".join(chapter.tables(rows).values())
    size = _crowded(rows)
    pairs = "" if size is None else f"""
![Rise of the loss of every pair of chooser and factors where {size:.0%} of the blocks' parameters stay]({PAIRS_PICTURE}.png)
"""  # fmt: skip
    return f"""## A language model

![Rise of the loss against the share of the blocks' parameters kept, a line for each method]({NAME}.png)

{CAPTION} The dense network's perplexity is {dense:.1f}. In the table: rise of the loss, and perplexity in brackets.

{table}
{pairs}
{chapter.reading(rows)} {chapter.aims(rows)}

{_what_was_measured(rows)} The score rests on {TEST} test windows; the calibration text is the tokenised form of WikiText-2's validation split without its `<unk>`, the test text is raw. The rows are `{NAME}.csv`.
"""


def _what_was_measured(rows):
    # in sentences: how many of the planned rows there are, of which draws, and what is missing
    there = {(row["chooser"], row["factors"], row["budget"], row["draw"]) for row in rows.to_dict("records")}
    missing = [one for one in asked() if tuple(one[name] for name in KEY) not in there]
    draws = rows["draw"].nunique()
    told = [f"{len(asked()) - len(missing)} of {len(asked())} planned rows are measured so far."]
    told.append(f"Of {CALIBRATION} calibration windows there {'is one draw' if draws == 1 else f'are {draws} draws'}.")
    if missing:
        counts = pd.Series([f"draw {one['draw']} at {one['budget']:.0%}" for one in missing]).value_counts(sort=False)
        told.append("Missing: " + ", ".join(f"{count} of {name}" for name, count in counts.items()) + ".")
    return " ".join(told)


def asked(grid: Sequence[Part] = GRID) -> list[dict[str, Any]]:
    """Return what each row is about: the dense network first, then every pair at every size, for each draw of calibration windows.

    >>> asked([((0.9,), [("exact", "svd")], (0,))])[1]
    {'chooser': 'exact', 'factors': 'svd', 'budget': 0.9, 'draw': 0}
    """
    found = [{"chooser": "dense", "factors": "none", "budget": 1.0, "draw": 0}]
    for kept, pairs, draws in grid:
        found += [
            {"chooser": chooser, "factors": factors, "budget": share, "draw": draw}
            for draw in draws
            for share in kept
            for chooser, factors in pairs
        ]
    return found


def renew(path: str | Path | None = None, grid: Sequence[Part] = GRID) -> pd.DataFrame:
    """Return the rows of the gallery; those that its file lacks are measured now, a minute each on an idle core.

    Delete the file to measure all of them anew. Raises OSError where the model or the text cannot be had.
    """
    model, corpus = language.load(), text.load(CORPUS)
    test = text.windows(corpus.test, model.tokenizer, WINDOW, TEST, seed=TEST_SEED)
    benches: dict[int, chapter.Bench] = {}

    def row(one: Mapping[str, Any]) -> dict[str, Any]:
        draw = int(one["draw"])
        if draw not in benches:
            benches.clear()  # the statistics of one draw fill memory
            calibration = text.windows(corpus.valid, model.tokenizer, WINDOW, CALIBRATION, seed=draw)
            benches[draw] = chapter.Bench(model, calibration, test, dataset=CORPUS, draw=draw)
        bench = benches[draw]
        dense = one["chooser"] == "dense"
        found = bench.dense_row() if dense else bench.measured(one["chooser"], one["factors"], one["budget"])
        return {name: found.get(name) for name in COLUMNS} | dict(one)

    return results.completed(path or paths.GALLERY / f"{NAME}.csv", asked(grid), row)
