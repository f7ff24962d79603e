"""Further rows of the language model: more calibration text, factors in sequence, text of the same articles, whole test text, speed.

Each answers a question of its own, so they stand apart from the grid of `workbook.language`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import statistics
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from lowrank_utils import paths
from lowrank_utils.lab import language, perplexity, score, text
from lowrank_utils.lab.text import Windows
from lowrank_utils.network.modules import evaluating
from lowrank_utils.network.statistics import TOKEN_PRIOR
from lowrank_utils.workbook import language as grid
from lowrank_utils.workbook import results, rivals
from lowrank_utils.workbook.chapters import language_model as chapter
from lowrank_utils.workbook.plots import canvas, name_ends
from lowrank_utils.workbook.tables import markdown

NAME = "language-more"  # of the rows in the gallery
FORTY, WHOLE, OTHER = "40 windows", "whole test text", "40 windows of other test articles"
VALID, IN_DOMAIN = "validation text", "test articles (in-domain)"
MANY, ALL = 64, 195  # calibration windows of 512 tokens; 195 hold 99 840 tokens
PRIORS = (1.0, 10.0, 100.0, 1000.0, 10_000.0)  # samples; ridges that whitening is tuned over
JUDGES = 8  # windows of the validation text, not among the calibration windows, that decide on a ridge
QUESTIONS = {  # question -> what the page says of it
    "more text": "Four times the calibration text: 64 windows, 32 768 tokens.",
    "sequence": "Do factors in sequence beat factors layer by layer? Exact ranks, few tokens to many.",
    "100 000 tokens": "Whitening as its authors use it: a hundred thousand tokens of calibration text, the ridge chosen on 8 "
    "other windows of the validation text.",
    "in-domain": "In-domain: calibration on test articles, the score on windows of other test articles. Compare these rows "
    "with each other only.",
    "whole text": "The whole test text instead of 40 windows.",
    "speed": "Tokens a second of a pass over one window. The small and the dense network are timed alternately; medians of 5.",
}
COLUMNS = (
    *("rise", "loss", "perplexity", "bits_per_byte", "blocks_kept", "parameters_kept", "calibration_tokens"),
    *("prior", "statistics_seconds", "factor_seconds", "peak_memory", "tokens_per_second", "dense_tokens_per_second"),
)

published = partial(rivals.published, NAME)
CAPTION = (
    "Rise of the loss against the number of calibration tokens, on the same 40 test windows, both axes logarithmic. Where only one number of tokens "
    "was measured, a method is a point."
)


def asked(questions: Sequence[str] = tuple(QUESTIONS)) -> list[dict[str, Any]]:
    """Return what each row is about: its question, chooser, factors, budget, calibration windows, texts and threads.

    >>> asked(["100 000 tokens"])[0]["calibration_windows"]
    195
    """
    share, exact, ours = ("one share", "data-aware"), ("exact", "data-aware"), ("exact", "fisher-layerwise")
    sequence = ("exact", "fisher-weighted")
    dense = ("dense", "none")
    many = [(pair, kept, MANY) for kept in (0.8, 0.9) for pair in (share, exact, ours, sequence)]
    parts = {
        "more text": _rows(many),
        "sequence": _rows([(pair, 0.9, count) for count in (4, 8, 16) for pair in (ours, sequence)]),
        "100 000 tokens": _rows([(share, kept, ALL) for kept in (0.9, 0.8)]),
        "in-domain": _rows([(dense, 1.0, 16), (share, 0.9, 16), (ours, 0.9, 16)], IN_DOMAIN, OTHER),
        "whole text": _rows([(dense, 1.0, 16), (ours, 0.9, 16), (share, 0.9, 16)], VALID, WHOLE),
        "speed": [row | {"threads": n} for n in (1, 2) for row in _rows([(ours, kept, 16) for kept in (0.9, 0.8)])],
    }
    return [{"question": name, "threads": 0} | row for name in questions for row in parts[name]]


def _rows(settings, calibration=VALID, scored=FORTY):
    return [
        {"chooser": chooser, "factors": factors, "budget": kept, "calibration_windows": count}
        | {"calibration_text": calibration, "scored_on": scored}
        for (chooser, factors), kept, count in settings
    ]


class Desk:
    """The model, its texts, and the bench (`chapter.Bench`) that was used last: statistics fill memory, so one is held."""

    def __init__(self) -> None:
        self.model, self.corpus = language.load(), text.load(grid.CORPUS)
        self.held: tuple[tuple[str, int], chapter.Bench] | None = None
        self.dense_whole: dict[str, Any] | None = None  # of the dense network on the whole test text, which takes long

    def cut(self, words: str, count: int | None, seed: int | None) -> Windows:
        """Return windows of `words`, `grid.WINDOW` tokens each."""
        return text.windows(words, self.model.tokenizer, grid.WINDOW, count, seed=seed)

    @cached_property
    def test(self) -> Windows:
        """The test windows of the grid."""
        return self.cut(self.corpus.test, grid.TEST, grid.TEST_SEED)

    def bench(self, calibration: str, count: int) -> chapter.Bench:
        """Return the bench with `count` calibration windows of `VALID` or `IN_DOMAIN` text; the test windows fit it."""
        if self.held is None or self.held[0] != (calibration, count):
            self.held = None
            if calibration == IN_DOMAIN:
                first, second = halves(self.corpus.test)
                seen, test = self.cut(first, count, 0), self.cut(second, grid.TEST, grid.TEST_SEED)
            else:
                seen, test = self.cut(self.corpus.valid, count, 0), self.test
            self.held = (calibration, count), chapter.Bench(self.model, seen, test, dataset=grid.CORPUS)
        return self.held[1]

    def row(self, one: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row that `one` of `asked` is about."""
        bench = self.bench(one["calibration_text"], one["calibration_windows"])
        if one["scored_on"] == WHOLE:
            bench = scored_on(bench, self.cut(self.corpus.test, None, None))
            self.dense_whole = self.dense_whole or bench.dense_scored
            vars(bench)["dense_scored"] = self.dense_whole
        if one["question"] == "100 000 tokens":
            found = self._tuned(bench, one["budget"])
        elif one["threads"]:
            found = speed(bench, one["chooser"], one["factors"], one["budget"], one["threads"])
        elif one["chooser"] == "dense":
            found = bench.dense_row()
        else:
            found = bench.measured(one["chooser"], one["factors"], one["budget"]) | {"prior": TOKEN_PRIOR}
        return dict(one) | {name: found.get(name, math.nan) for name in COLUMNS}

    def _tuned(self, bench: chapter.Bench, kept: float) -> dict[str, Any]:
        # whitening with the ridge that is best on validation windows which did not calibrate; the bench needs moments alone
        bench.wants_fisher = False
        bench.collect()
        judges = self.cut(self.corpus.valid, ALL + JUDGES, 0)
        judges = dataclasses.replace(judges, ids=judges.ids[ALL:], tokens=JUDGES * (grid.WINDOW - 1))
        plan, _ = bench.plan("one share", kept)
        losses = {}
        for prior in PRIORS:
            set_prior(bench, prior)
            losses[prior] = perplexity.perplexity(bench.small(plan, "data-aware"), judges).loss
        best = min(losses, key=losses.__getitem__)
        set_prior(bench, best)
        return bench.measured("one share", "data-aware", kept) | {"prior": best}


def set_prior(bench: chapter.Bench, prior: float) -> None:
    """Set how many samples' worth of a multiple of the identity stands beside the moments (`statistics.TOKEN_PRIOR`)."""
    for moments in bench.profile.moments_of(bench.names).values():
        moments.prior = prior


def scored_on(bench: chapter.Bench, test: Windows) -> chapter.Bench:
    """Return the same bench, statistics and plans included, with other test windows."""
    new = copy.copy(bench)
    new.test, new.known = test, weakref.WeakKeyDictionary()
    vars(new).pop("dense_scored", None)
    return new


def halves(words: str) -> tuple[str, str]:
    """Return the articles of a text of WikiText in two halves, of about the same size; none stands in both.

    An article begins with a line such as ``= Title =``.

    >>> halves(" = A = \\n one \\n = = part = = \\n = B = \\n two \\n")
    (' = A = \\n one \\n = = part = = \\n', ' = B = \\n two \\n')
    """
    begins = [found.start() for found in re.finditer(r"^ = [^=].*[^=] = $|^ = [^=\s] = $", words, re.MULTILINE)]
    middle = min(begins[1:], key=lambda at: abs(at - len(words) / 2))
    return words[:middle], words[middle:]


def speed(
    bench: chapter.Bench, chooser: str, factors: str, kept: float, threads: int, repeats: int = 5
) -> dict[str, Any]:
    """Return tokens a second of the network of a pair and of the dense one, measured in turns on one test window."""
    small = bench.small(bench.plan(chooser, kept)[0], factors)
    ids = bench.test.ids[:1]
    with evaluating(small), evaluating(bench.language.model):
        times = score.alternately([lambda: small(ids), lambda: bench.language.model(ids)], threads, repeats, warmup=1)
    rates = [1000 * ids.numel() / statistics.median(one) for one in times]
    return {"tokens_per_second": rates[0], "dense_tokens_per_second": rates[1]}


def figure(rows: pd.DataFrame, others: pd.DataFrame | None = None) -> Figure:
    """Draw the rise of the loss against the calibration tokens: a panel a size, a line a method.

    `others`: rows of the grid, whose first draw is drawn too (default: those of the gallery).
    """
    held = grid.published() if others is None else others
    mine = rows[rows["question"].isin(["more text", "100 000 tokens"])]
    both = mine if held is None else pd.concat([held[(held["draw"] == 0) & (held["chooser"] != "dense")], mine])
    both, shown = both.assign(method=chapter.titled(both)), set(chapter.titled(mine))
    sizes = sorted(mine["budget"].unique(), reverse=True)
    drawn, axes = canvas(max(len(sizes), 1), width=5.4, height=3.6, sharey=True)
    for axis, size in zip(axes, sizes):
        here, ends = both[(both["budget"] == size) & both["method"].isin(shown)], {}
        for method, line in here.groupby("method"):
            line = line.sort_values("calibration_tokens")
            axis.plot(line["calibration_tokens"], line["rise"], marker="o", color=_colour(method))
            ends[str(method)] = tuple(line[["calibration_tokens", "rise"]].iloc[-1])
        axis.set(xscale="log", yscale="log", xlabel="calibration tokens", title=f"{size:.0%} of the blocks kept")
        axis.xaxis.set_major_locator(FixedLocator(sorted(here["calibration_tokens"].unique())))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        for formatted in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatted("{x:g}")
        low, high = here["calibration_tokens"].min(), here["calibration_tokens"].max()
        axis.set_xlim(low / 1.3, high * (high / low) ** 0.9 * 1.5)  # room for the names
        name_ends(axis, ends, colours={name: _colour(name) for name in ends})
    axes[0].set_ylabel("rise of the loss (nats a token)")
    return drawn


def _colour(method):
    return chapter.LOOKS.get(str(method), "dimgray")


def section(rows: pd.DataFrame) -> str:
    """Return the part of the gallery's page that shows the picture and a table for each question."""
    parts = []
    for question, words in QUESTIONS.items():
        mine = rows[rows["question"] == question]
        if len(mine):
            told = in_sequence(rows) if question == "sequence" else ratios(mine)
            parts.append(f"**{words}**\n\n{_table(mine)}\n" + (f"\n{told}\n" if told else ""))
    missing = len(asked()) - sum(len(rows[rows["question"] == question]) for question in QUESTIONS)
    told = (
        "All planned rows are measured."
        if missing <= 0
        else f"{missing} of {len(asked())} planned rows are not measured yet."
    )
    return f"""## A language model: further questions

![Rise of the loss against the calibration tokens, a line for each method]({NAME}.png)

{CAPTION}

One draw of calibration windows throughout; the section above has means of three draws where it can.

{chr(10).join(parts)}
{told} The rows are `{NAME}.csv`.
"""


def ratios(rows: pd.DataFrame) -> str:
    """Return in sentences what our best rise is as a share of that of whitening with one share, at each size of these rows."""
    told = []
    for size in sorted(rows["budget"].unique(), reverse=True):
        here = rows[(rows["budget"] == size) & (rows["calibration_windows"] == rows["calibration_windows"].max())]
        published_one = here[(here["chooser"] == "one share") & (here["factors"] == "data-aware")]["rise"]
        ours = here[here["chooser"] == "exact"]["rise"]
        if len(published_one) and len(ours):
            share = ours.min() / published_one.min()
            told.append(f"At {size:.0%} the smallest rise of ours is {share:.0%} of that of whitening with one share.")
    return " ".join(told)


def in_sequence(rows: pd.DataFrame) -> str:
    """Return a Markdown table of factors in sequence beside those layer by layer, at each size and count of tokens that has both; "" for none."""
    mine = rows[rows["question"].isin(["sequence", "more text"]) & (rows["chooser"] == "exact")]
    lines = []
    for (size, tokens), part in mine.groupby(["budget", "calibration_tokens"]):
        part = part.drop_duplicates("factors").set_index("factors")
        if {"fisher-layerwise", "fisher-weighted"} <= set(part.index):
            one, other = (part.loc[name] for name in ("fisher-layerwise", "fisher-weighted"))
            rises = [f"{row['rise']:.4f}" for row in (one, other)]
            seconds = [f"{row['factor_seconds']:.0f}" for row in (one, other)]
            change = 100 * (other["rise"] / one["rise"] - 1)
            lines.append([f"{size:.0%}", f"{tokens:,.0f}", *rises, f"{change:+.0f} %", *seconds])
    head = ["kept", "tokens", "rise, layer by layer", "in sequence", "change", "seconds, layer by layer", "in sequence"]
    return markdown(head, lines) if lines else ""


def _table(rows):
    lines = []
    for row in rows.assign(method=chapter.titled(rows)).to_dict("records"):
        name = "dense" if row["chooser"] == "dense" else row["method"]
        lines.append([name, f"{row['budget']:.0%}", f"{row['calibration_tokens']:.0f}", *_numbers(row)])
    if rows["threads"].max() > 0:
        return markdown(["method", "kept", "threads", "tokens a second", "dense network"], _speed_lines(rows))
    return markdown(["method", "kept", "calibration tokens", "rise of the loss", "perplexity"], lines)


def _numbers(row):
    return [f"{row['rise']:.3f}", f"{row['perplexity']:.1f}"]


def _speed_lines(rows):
    return [
        [
            *(row["method"], f"{row['budget']:.0%}", str(row["threads"])),
            *(f"{row['tokens_per_second']:.0f}", f"{row['dense_tokens_per_second']:.0f}"),
        ]
        for row in rows.assign(method=chapter.titled(rows)).to_dict("records")
    ]


def renew(path: str | Path | None = None, questions: Sequence[str] = tuple(QUESTIONS)) -> pd.DataFrame:
    """Return the rows of these questions; those that the gallery's file lacks are measured now.

    Raises OSError where the model or the text cannot be had.
    """
    desk: list[Desk] = []

    def row(one: Mapping[str, Any]) -> dict[str, Any]:
        desk.extend([] if desk else [Desk()])
        return desk[0].row(one)

    return results.completed(path or paths.GALLERY / f"{NAME}.csv", asked(questions), row)
