"""Why one network compresses and another does not: what each matrix loses at half of its parameters, in two transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lowrank_utils import paths
from lowrank_utils.factors import svd
from lowrank_utils.lab import encoder, language, sentences, text
from lowrank_utils.network.profile import LayerProfile, Profile, profile
from lowrank_utils.ranks import rules
from lowrank_utils.workbook import encoder as sentence_encoder
from lowrank_utils.workbook import rivals
from lowrank_utils.workbook.plots import canvas

NAME = "spectra"  # of the rows and the picture in the gallery
WINDOWS, LENGTH = 16, 256  # of the language model's calibration text
KINDS = {  # the last parts of a matrix' name -> what it does
    "query": "query", "q_proj": "query", "key": "key", "k_proj": "key", "value": "value", "v_proj": "value",
    "attention.output.dense": "attention output", "o_proj": "attention output", "gate_proj": "gate",
    "intermediate.dense": "up", "up_proj": "up", "output.dense": "down", "down_proj": "down",
}  # fmt: skip
PANELS = {
    "effective_rank": "effective rank of the weights (share of full rank)",
    "effective_rank_outputs": "effective rank of the outputs (share of full rank)",
    "lost_plain": "output energy lost at half the parameters, plain SVD",
    "lost": "output energy lost at half the parameters, data-aware",
}

published = partial(rivals.published, NAME)


def kind_of(name: str) -> str:
    """Return what a matrix of a transformer does, by the end of its name.

    >>> kind_of("transformer.encoder.layer.3.attention.output.dense"), kind_of("model.layers.0.mlp.down_proj")
    ('attention output', 'down')
    """
    return next((kind for end, kind in KINDS.items() if name.endswith(end)), name.rpartition(".")[2])


def of_layer(read: Profile, card: LayerProfile, share: float = 0.5) -> dict[str, float]:
    """Return how flat one matrix is, and what it loses at a share of its parameters.

    With W its weights, C the second moments of its inputs (about their mean where the layer has a bias to take that) and r the
    largest rank whose factors have at most `share` of the parameters:

    - ``effective_rank``, of W, and ``effective_rank_outputs``, of W C^(1/2), both as shares of the full rank
      (the exponential of the entropy of the energies, `rules.effective_rank`);
    - ``lost_plain``, E|(W - W_r) x|^2 / E|W x|^2 with W_r the nearest matrix of rank r, and ``lost``, the same with the
      best factors for these inputs.
    """
    layer: Any = read.model.get_submodule(card.name)
    moments = read.moments_of([card.name])[card.name]
    spread = moments.covariance if read.takes_mean(card.name) else moments.second_moment
    weight = layer.weight.detach().double().cpu()
    rank = next(
        r for r in range(card.full_rank, -1, -1) if card.cost(r, "parameters") <= share * card.parameters or not r
    )
    errors = svd.errors_by_rank(weight, spread.cpu(), 1)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    rest = (u[:, rank:] * s[rank:]) @ vt[rank:]
    outputs = (errors[:-1] - errors[1:]).clamp(min=0).sqrt().numpy()  # singular values of W C^(1/2)
    return {
        "effective_rank": rules.effective_rank(s.numpy()) / card.full_rank,
        "effective_rank_outputs": rules.effective_rank(outputs) / card.full_rank,
        "lost_plain": float(((rest @ spread.cpu()) * rest).sum() / errors[0]),
        "lost": float(errors[rank] / errors[0]),
    }


def measure(read: Profile, within: Sequence[str], **about: Any) -> pd.DataFrame:
    """Return one row a matrix of the layers that `within` names: `about`, layer, kind, block, and what `of_layer` says."""
    names = read.within(within)
    read.moments_of(names)  # in one pass
    rows = []
    for name in names:
        block = next(int(part) for part in name.split(".") if part.isdigit())
        rows.append({**about, "layer": name, "kind": kind_of(name), "block": block, **of_layer(read, read[name])})
    return pd.DataFrame(rows)


def renew(path: str | Path | None = None) -> pd.DataFrame:
    """Return the rows of the gallery, measured now on both networks (a few minutes), and write them to its file.

    Raises OSError where a network or its text cannot be had.
    """
    small, model = encoder.load(), language.load()
    seen = sentence_encoder.calibration(small, sentences.load("train"))
    read = profile(small.model, seen, samples=20_000, batch_size=50)
    found = [measure(read, sentence_encoder.WITHIN, network=small.name)]
    ids = text.windows(text.load("python-topics").train, model.tokenizer, LENGTH, WINDOWS, seed=0).ids
    read = profile(model.model, ids, samples=20_000, batch_size=4)
    found.append(measure(read, ["model.layers.*"], network=model.name))
    rows = pd.concat(found, ignore_index=True)
    with paths.atomic_write(path or paths.GALLERY / f"{NAME}.csv") as temporary:
        rows.to_csv(temporary, index=False, float_format="%.6g")
    return rows


def figure(rows: pd.DataFrame) -> Figure:
    """Draw each measure of `PANELS`: the matrices of each network as points, kind by kind, with their medians."""
    drawn, axes = canvas(2, 2, width=5.4, height=3.0, sharex=True)
    networks, palette = list(rows["network"].unique()), sns.color_palette("colorblind")
    kinds = [kind for kind in dict.fromkeys(KINDS.values()) if kind in set(rows["kind"])]
    for axis, (column, title) in zip(axes, PANELS.items()):
        for i, network in enumerate(networks):
            mine = rows[rows["network"] == network]
            places = mine["kind"].map(kinds.index) + 0.3 * (i - (len(networks) - 1) / 2)
            axis.scatter(places, mine[column], s=10, alpha=0.5, color=palette[i], label=network)
            middle = mine.groupby("kind")[column].median()
            at = [kinds.index(kind) + 0.3 * (i - (len(networks) - 1) / 2) for kind in middle.index]
            axis.scatter(at, middle, marker="_", s=260, color=palette[i], linewidth=2.5)
        axis.set(ylim=(0, None), xticks=range(len(kinds)))
        axis.set_title(title, fontsize="small")
        axis.set_xticklabels(kinds, rotation=30, ha="right")
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles, names = axes[0].get_legend_handles_labels()
    drawn.legend(handles, names, loc="outside upper center", ncols=2, fontsize="small")
    return drawn


def medians(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the medians over all matrices of each network, in percent: a row a network, a column a measure."""
    return 100 * rows.groupby("network", sort=False)[list(PANELS)].median()


def section(rows: pd.DataFrame) -> str:
    """Return the part of the gallery's page that shows the picture and its medians."""
    shown = medians(rows).rename(columns=PANELS).T.round(1)
    by_kind = 100 * rows.pivot_table("lost_plain", "kind", "network", aggfunc="median").dropna()
    return f"""## Spectra of two transformers

![Effective rank and energy lost at half of the parameters, matrix by matrix, of an encoder and of a language model](spectra.png)

All {len(rows)} matrices in the layers of the sentence encoder and of the language model, each at half of its parameters alone. A point is a matrix, a bar the median. Medians in percent:

{rivals.in_markdown(shown, "measure")}

The medians of plain SVD, kind by kind:

{rivals.in_markdown(by_kind, "kind of matrix")}

The two networks are not measured quite alike: the layers of the encoder have biases, which keep the mean of the outputs, so their energy is counted about the mean. The language model has no biases, and the mean of its outputs counts as energy. The rows are `spectra.csv`.
"""
