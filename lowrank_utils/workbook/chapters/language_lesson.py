"""What notebook 07 says of its numbers, in sentences, and what its exercises ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from lowrank_utils.factors import replace, svd
from lowrank_utils.lab import language, perplexity
from lowrank_utils.network.profile import Plan
from lowrank_utils.workbook.chapters import language_model as chapter
from lowrank_utils.workbook.plots import COLOURS, canvas


def about_spectra(energy: pd.Series) -> str:
    """Return in a sentence what a cut at the break-even rank costs; `energy` is that of `language_model.energy_at_break_even`."""
    lost = 1 - energy
    return (
        f"At the dotted line, where the first parameter is saved, a matrix has already lost {lost.min():.1%} (`{lost.idxmin()}`) to "
        f"{lost.max():.1%} (`{lost.idxmax()}`) of its energy on average."
    )


def about_worth(bench: chapter.Bench, kept: float = 0.9) -> str:
    """Return in sentences which kinds of matrices are cheap and which are dear, where each matrix alone is cut to a share `kept`."""
    alone = chapter.damage(bench, kept)
    means = chapter.by_block(alone).mean(axis=1)
    # of each two in the order of the network, so that words keep their places where two kinds cost about the same
    least, most = ([kind for kind in means.index if kind in two(2).index] for two in (means.nsmallest, means.nlargest))
    dearest, middle = max(alone, key=lambda name: alone[name]), float(np.median([*alone.values()]))
    return (
        f"On average `{least[0]}` and `{least[1]}` cost least, `{most[0]}` and `{most[1]}` most. The dearest "
        f"matrix is `{chapter.kind_of(dearest)}` of block {chapter.depth_of(dearest)}. It costs {alone[dearest] / middle:.0f} times as much as the median."
    )


def about_plan(bench: chapter.Bench, plan: Plan) -> str:
    """Return in sentences how many matrices of each kind a plan cuts, in the order of the network."""
    of, cut = ([chapter.kind_of(name) for name in names] for names in (bench.names, plan))
    told = ", ".join(f"{cut.count(kind)} of {of.count(kind)} `{kind}`" for kind in dict.fromkeys(of))
    return f"The plan cuts {len(cut)} of {len(of)} matrices: {told}."


def in_words(perplexity: float) -> str:
    """Return a perplexity as a table shows it: above 1 000 the text is lost, and small causes change the number a lot.

    >>> in_words(14.76), in_words(2108272.3)
    ('14.8', '> 1 000')
    """
    return "> 1 000" if perplexity > 1000 else f"{perplexity:.1f}"


def about_eight_bits(eight: float, ours: float, kept: float) -> str:
    """Return in sentences by how much 8 bits and our factors change the loss (nats a token)."""
    cheaper = "Eight bits are the better deal here." if eight < ours else "Here low rank costs less."
    return (
        f"With weights of 8 bits the loss changes by {eight:+.4f} nats a token, at a quarter of the bytes. With low-rank factors it "
        f"changes by {ours:+.3f}, at {kept:.0%} of the blocks' parameters. {cheaper}"
    )


def about_elsewhere(table: pd.DataFrame) -> str:
    """Return in sentences on which text a cut costs more; `table` is that of `language_model.elsewhere`."""
    dearer = table["other sentences"] > table["test text"]
    what = {True: "more", False: "less"}
    told = [
        f"On the other sentences {name} costs {what[bool(more)]} than on the test text."
        for name, more in dearer.items()
    ]
    return " ".join(told)


# ---- what its exercises ask for ---------------------------------------------------------------------------------------


def largest_ranks(bench: chapter.Bench, kinds_asked: Sequence[str] = ("gate_proj", "q_proj")) -> dict[str, int]:
    """Return the largest rank that saves parameters, for each of some kinds of matrices."""
    first = {kind: next(name for name in bench.names if chapter.kind_of(name) == kind) for kind in kinds_asked}
    return {kind: bench.profile[name].break_even("parameters") for kind, name in first.items()}


def cut_counts(bench: chapter.Bench, shares: Sequence[float] = (0.95, 0.8)) -> dict[float, int]:
    """Return how many matrices the exact search cuts where these shares stay."""
    return {share: len(bench.plan("exact", share)[0]) for share in shares}


def weighted_spectrum(bench: chapter.Bench, name: str) -> torch.Tensor:
    """Return the singular values of F^(1/2) W S^(1/2) of a matrix, largest first, from Cholesky factors of F and S.

    With F = A A^T and S = B B^T, those of A^T W B are the same.
    """
    weight: Any = bench.profile.model.get_submodule(name).weight
    metric = bench.profile.metric_of([name])[name].double()
    second = bench.profile.moments_of([name])[name].second_moment
    return torch.linalg.svdvals(svd.cholesky_root(metric).T @ weight.detach().double() @ svd.cholesky_root(second))


def spectra_by_weight(plain: torch.Tensor, weighted: Any, name: str) -> Figure:
    """Return the singular values of W beside those that a learner found for F^(1/2) W S^(1/2), each relative to its largest.

    Where `weighted` is not as many numbers as `plain`, as when the exercise is not answered yet, the figure says so.
    """
    drawn, (axis,) = canvas(width=6.4)
    index = np.arange(1, len(plain) + 1)
    axis.plot(index, plain / plain[0], color="black")
    axis.annotate("W", (index[-1] / 2, float(plain[len(plain) // 2] / plain[0])), (0, 5), textcoords="offset points")
    axis.set(yscale="log", xlabel="component", ylabel="singular value / largest", title=name)
    try:
        found = np.asarray(weighted, dtype=float)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != index.shape:
        axis.text(0.03, 0.06, f"weighted: no answer of {len(index)} numbers yet", transform=axis.transAxes)
        return drawn
    shares, colour = np.maximum(found / found[0], 1e-9), COLOURS["exact, Fisher"]
    axis.plot(index, shares, color=colour)
    where = (index[-1] / 2, float(shares[len(shares) // 2]))
    axis.annotate(
        "weighted by inputs and by the prediction", where, (0, 8), textcoords="offset points", color=colour, ha="center"
    )
    return drawn


def rise_from(bench: chapter.Bench, plan: Plan, seen: int, within: float = 0.2) -> Callable[[Any], bool]:
    """Return a test for the rise of the loss under `plan` with whitened factors from the first `seen` calibration windows alone.

    `within`: by how much an answer may be off, as a share. The network is built when an answer comes.
    """

    def right(answer):
        few = bench.profile.but(calibration=bench.calibration.ids[:seen])
        small = replace.apply_plan(few, plan, factors="data-aware", resource=None)
        rise = perplexity.perplexity(small, bench.test).loss - bench.dense
        return abs(float(answer) - rise) <= within * abs(rise)

    return right


def continued(model: language.Language, net: nn.Module, beginning: str, tokens: int = 20) -> str:
    """Return how the network `net`, in place of the model's own, goes on after `beginning`."""
    return language.complete(dataclasses.replace(model, model=net), beginning, tokens)
