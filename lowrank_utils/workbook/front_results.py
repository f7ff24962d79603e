"""What docs/results.md says above its tables: sentences written from these very tables, so that the two cannot disagree."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lowrank_utils.workbook import controls
from lowrank_utils.workbook.tables import span

Tables = Mapping[str, str]  # {heading: Markdown table}

EQUAL = "Accuracy at equal size, energy / entropy / fixed"
ONE_POINT = "Parameters kept at no more than one point lost"
PRUNED = "Entropy pruning: parameters kept at no more than one point lost"
CONVEX = "DDLR and Net-Trim: accuracy with 5 / 10 / 20 % kept"
CONVOLVED = "Convolutions: accuracy with 75 / 50 / 35 / 25 % of the MACs"
SEARCHED = "Rank search: accuracy with 75 / 50 / 35 / 25 % of the MACs"
CROSSED = "Side by side: choosers times factors, accuracy with 50 / 25 / 15 % of the MACs"
OTHERS = "Side by side: every other way"
ENC = ("ENC-Map", "ENC-Model", "ENC-Inf")
SETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "fashion-mnist": "Fashion-MNIST", "mnist": "MNIST"}
NETWORKS = {"resnet20": "ResNet-20", "resnet56": "ResNet-56", "vgg_small": "`vgg_small`", "lenet300": "`lenet300`"}


class Grid:
    """A Markdown table that is read again: its rows as texts by column.

    >>> Grid.read("| a | b |\\n| --- | --- |\\n| x | 81.5 ± 0.2 (-1.3) / 80.0 / - |").cell("b", a="x")
    '81.5 ± 0.2 (-1.3) / 80.0 / -'
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
        self.columns, self.rows = list(columns), list(rows)

    @classmethod
    def read(cls, table: str) -> Grid:
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
        return cls(head, [dict(zip(head, row)) for row in rows])

    def where(self, **wanted: str) -> Grid:
        """Return the rows in which columns hold the given texts; "_" stands for a space in a column's name."""
        asked = {name.replace("_", " "): text for name, text in wanted.items()}
        return Grid(self.columns, [row for row in self.rows if all(row[name] == text for name, text in asked.items())])

    def but(self, **wanted: str) -> Grid:
        """Return the rows that `where` leaves out."""
        held = self.where(**wanted).rows
        return Grid(self.columns, [row for row in self.rows if row not in held])

    def cell(self, column: str, **wanted: str) -> str:
        """Return one cell; raises ValueError where no row, or more than one, is meant."""
        (row,) = self.where(**wanted).rows
        return row[column]

    def texts(self, column: str) -> list[str]:
        return [row[column] for row in self.rows]

    def values(self, column: str, position: int = 0) -> np.ndarray:
        """Return the numbers of a column, those at one position of cells with several."""
        return np.array([numbers(text)[position] for text in self.texts(column)])


def numbers(cell: str) -> list[float]:
    """Return the first number of each part of a cell, NaN where there is none.

    >>> numbers("81.5 ± 0.2 (-1.3) / 80.0 / -")
    [81.5, 80.0, nan]
    """
    found = [re.search(r"-?\d+(?:\.\d+)?", part) for part in cell.split(" / ")]
    return [float(one[0]) if one else float("nan") for one in found]


def between(values: ArrayLike, unit: str = " %") -> str:
    """Return the lowest and the highest of some values, in words.

    >>> between([2.0, 1.0]), between([1.0])
    ('1.0 to 2.0 %', '1.0 %')
    """
    low, high = f"{np.nanmin(values):.1f}", f"{np.nanmax(values):.1f}"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _span(*gains: ArrayLike) -> str:
    return span(pd.Series(np.concatenate([np.atleast_1d(gain) for gain in gains])))


def _mean(cell: str) -> str:
    return cell.split()[0]  # without its standard deviation


def arsvd(tables: Tables) -> str:
    """Return the paragraph on adaptive ranks beside one fixed share."""
    sizes = Grid.read(tables[EQUAL])
    shares = sizes.columns[4:]
    plain = sizes.where(factors="svd")
    parts = {"cut": plain.where(factored="every layer"), "dense": plain.but(factored="every layer")}

    def gain(part: str, ours: int, theirs: int) -> str:
        return _span(*(parts[part].values(share, ours) - parts[part].values(share, theirs) for share in shares))

    aware = sizes.but(factored="every layer").where(factors="data-aware").values(shares[0])
    more = aware - parts["dense"].values(shares[0])
    own = Grid.read(tables[ONE_POINT])
    hidden, every = own.where(factored="hidden layers"), own.where(factored="every layer")

    def lost(rows: Grid) -> str:
        changes = [numbers(text.partition("(")[2])[0] for text in rows.texts(own.columns[-1])]
        return between(-np.array(changes), " points")

    return (
        f"With every layer cut, as the method is published, ranks by energy are {gain('cut', 0, 2)} points ahead of one fixed share at equal size, in plain factors, means over seeds of "
        f"{len(set(sizes.texts('data set')))} data sets. Much of that is the classifier, a small layer that a fixed share cuts to a few directions: with the classifier dense the difference is "
        f"{gain('dense', 0, 2)} points. The claim table tells how many of these differences are settled by paired seeds. Entropy against energy gives {gain('cut', 1, 0)} points with "
        f"every layer cut, and {gain('dense', 1, 0)} with the classifier dense.\n\n"
        f"Factors from data help most where little is kept: with {shares[0].split()[0]} % of the parameters and the classifier dense, they bring plans by energy {between(more, ' points')} "
        f"({len(more)} networks). EVBMF has no threshold. On the hidden layers it keeps {between(hidden.values(own.columns[-1]))} and loses {lost(hidden)}; with every layer cut it loses {lost(every)}."
    )


def _fewer(ours: np.ndarray, theirs: np.ndarray, names: Sequence[str]) -> str:
    # on how many data sets ours keeps fewer parameters, and on which
    won = [SETS.get(name, name) for name, less in zip(names, ours < theirs) if less]
    return f"{len(won)} of {len(names)} data sets" + (f" ({', '.join(won)})" if 0 < len(won) < len(names) else "")


def pruning(tables: Tables) -> str:
    """Return the paragraph on entropy of components and of units."""
    table = Grid.read(tables[PRUNED])
    of = {name: table.values(name) for name in table.columns[2:]}
    names = table.texts("data set")
    single = np.min([kept for name, kept in of.items() if not name.startswith("both")], axis=0)
    return (
        f"At no more than one point lost on validation images, singular *components* by their entropy keep {between(of['component entropy'])} of the parameters, and by what they add to the outputs "
        f"{between(of['component output'])}. ARSVD keeps {between(of['arsvd, classifier dense'])} if it is told to leave the classifier dense; one list over the whole network needs no such hint.\n\n"
        f"Hidden *units* by the entropy of their activations keep {between(of['unit entropy'])}: fewer parameters than units chosen at random on {_fewer(of['unit entropy'], of['unit random'], names)}. "
        f"Units by what they give the next layer keep {between(of['unit output'])}: fewer than at random on {_fewer(of['unit output'], of['unit random'], names)}. Units by output first and components second "
        f"keep {between(of['both output'])}, fewer than every single list and than ARSVD on {_fewer(of['both output'], single, names)}."
    )


def convex(tables: Tables) -> str:
    """Return the paragraph on DDLR beside Net-Trim and beside fits at a given rank."""
    table = Grid.read(tables[CONVEX])
    shown = {"DDLR": "DDLR, cut, refit", "Net-Trim with its indices counted": "Net-Trim, cut, refit, with indices"}
    shown |= {
        "Net-Trim with its non-zeros counted alone": "Net-Trim, cut, refit, non-zeros",
        "units first (in Fisher-weighted factors)": "units first",
    }
    parts = []
    for row in table.where(network="lenet300").rows:
        told = [f"{row[column]} % for {name}" for name, column in shown.items()]
        parts.append(f"On {SETS[row['data set']]} it is {', '.join(told[:-1])}, and {told[-1]}.")
    (mlp,) = table.where(network="mlp", data_set="cifar10").rows
    return (
        f"As posed, with every layer under the program, DDLR cuts the classifier too. So the next numbers leave the classifier dense, cut both programs to the same size, and refit both by least squares on the same images. "
        f"They are the accuracy with 5, 10 and 20 % of the parameters of LeNet-300-100. {' '.join(parts)} On the CIFAR-10 MLP, one seed, it is {mlp['DDLR, cut, refit']} % for DDLR, "
        f"{mlp['Net-Trim, cut, refit, with indices']} % for Net-Trim with its indices counted ({mlp['Net-Trim, with indices']} % before its refit), and {mlp['data-aware']} % for data-aware factors. "
        f"{_unequal(table)}\n\n"
        "A fit at a given rank needs no epsilon. What only the convex programs have is a proof: a certified gap for every answer as posed. Cutting and refitting give it up."
    )


def _unequal(table):
    # which runs are not on equal terms, by the images that the methods saw
    runs: dict[str, list[str]] = {}
    for row in table.rows:
        network = (NETWORKS | {"mlp": "the MLP", "lenet5": "`lenet5`"}).get(row["network"], row["network"])
        for images in row["images"].split("; "):
            runs.setdefault(images, []).append(f"{network} on {SETS[row['data set']]}")
    unknown = runs.pop("-", [])
    seen = {images.partition(", others "): names for images, names in runs.items()}
    told = [
        f"The convex programs saw {own} images, and the refits and the other methods that need images saw {others} ({', '.join(names)})."
        for (own, unlike, others), names in seen.items()
        if unlike
    ]
    if told:
        told = ["These rows are not on equal terms.", *told]
    elif runs and not unknown:
        told = ["All methods that need images saw the same ones."]
    if unknown:
        told.append(f"How many images each method saw is unknown for {', '.join(unknown)}.")
    return " ".join(told)


def convolutions(tables: Tables) -> str:
    """Return the paragraph on the factors of convolutions."""
    table = Grid.read(tables[CONVOLVED])
    half, third, quarter = 1, 2, 3

    def at(network: str, factors: str, size: int, ranks: str = "energy") -> float:
        return numbers(table.cell(factors, network=network, ranks=ranks))[size]

    told = []
    for network in ("resnet20", "resnet56"):
        good = [at(network, kind, half) for kind in ("sequential", "relu-aware", "fisher-weighted")]
        dense = table.cell("dense", network=network, ranks="energy")
        told.append(
            f"plain SVD leaves {NETWORKS[network]} at {at(network, 'svd', half):.1f} %, and the three kinds of front-to-back factors keep {between(good)} (dense {dense} %)"
        )
    paper = Grid.read(tables[SEARCHED]).where(factors="svd, in the paper")
    theirs = [paper.values(name, half) for name in ENC]
    return (
        f"With half of the MACs and ranks by energy, {'; '.join(told)}. At 35 % ResNet-56 keeps {at('resnet56', 'relu-aware', third):.1f} % in ReLU-aware factors and "
        f"{at('resnet56', 'sequential', third):.1f} % in sequential ones. The images need no labels.\n\n"
        f"Ranks by energy are no sure gain. On `vgg_small` at a quarter, plain factors keep {at('vgg_small', 'svd', quarter):.1f} % with them and {at('vgg_small', 'svd', quarter, 'one fixed share'):.1f} % with one "
        f"fixed share. For scale, ENC's own table has {between(theirs)} for ResNet-56 at half of the FLOPs before fine-tuning (Kim et al. 2019, another training of the network). "
        "Batch norms that no longer fit are much of what plain factors lose; the gallery has them [recalibrated](../outputs/gallery/README.md#batch-norms-after-the-cut)."
    )


def search(tables: Tables) -> str:
    """Return the paragraph on ranks for the whole network."""
    table = Grid.read(tables[SEARCHED])
    half, third, quarter = 1, 2, 3
    best = "exact, Fisher"

    def at(network: str, factors: str, size: int, *names: str) -> np.ndarray:
        return np.array([numbers(table.cell(name, network=network, factors=factors))[size] for name in names])

    def four(network: str, size: int) -> list[str]:
        (fixed,), (exact,), (fisher,) = (at(network, "svd", size, name) for name in ("fixed", "exact", best))
        return [f"{fixed:.1f} %", between(at(network, "svd", size, *ENC)), f"{exact:.1f} %", f"{fisher:.1f} %"]

    plain, deep = four("vgg_small", quarter), four("resnet56", half)
    networks = ("vgg_small", "resnet20", "resnet56")
    kept = [
        f"{table.cell(best, network=network, factors='sequential')} % on {NETWORKS[network]}" for network in networks
    ]
    ahead = [
        at(network, "sequential", size, best) - at(network, "sequential", size, "fixed", *ENC, "exact").max()
        for network in networks
        for size in range(4)
    ]
    guide = [
        at(network, "svd", size, "exact") - at(network, "svd", size, best)
        for network in ("resnet20", "resnet56")
        for size in (half, third)
    ]
    return (
        f"Plain factors, `vgg_small`, a quarter of the MACs: one fixed share keeps {plain[0]}, ENC's three searches {plain[1]}, the plan that is proved best for ENC's own curves {plain[2]}, and exact "
        f"search on predicted losses {plain[3]}. Plain factors, ResNet-56, half of the MACs: {deep[0]}, {deep[1]}, {deep[2]} and {deep[3]}.\n\n"
        f"With sequential factors the six lie closer together. Exact search on predicted losses keeps {'; '.join(kept)}, at the four sizes of the table. Against the best of the other five that is {_span(*ahead)} points.\n\n"
        f"Plain factors on the residual networks, half and 35 % of the MACs: the best plan for ENC's own curves is {_span(*guide)} points ahead of exact search on predicted losses. There the predicted loss is no safe "
        "guide, because it is predicted for data-aware factors. The certificate is about the prediction, never about accuracy."
    )


def which(tables: Tables) -> str:
    """Return the list of advice on which method to use, from the tables of notebook 06."""
    other, crossed = Grid.read(tables[OTHERS]), Grid.read(tables[CROSSED])
    return "\n".join(
        f"- {line}"
        for line in [*_which_runtime(other), *_which_ranks(other, crossed), *_which_else(other), *_which_labels()]
    )


def _which_runtime(other: Grid) -> list[str]:
    dense, small = other.where(written_as="dense"), other.where(written_as="dense in onnxruntime, 8 bit")
    networks = dense.texts("network")
    quick = other.where(written_as="dense in onnxruntime").values("times faster, 64 inputs")

    def of(column: str, name: str) -> np.ndarray:
        return np.array([numbers(other.cell(column, written_as=name, network=network))[0] for network in networks])

    files = 100 * of("kB", "dense in onnxruntime, 8 bit") / of("kB", "dense")
    change = small.values("accuracy") - np.array(
        [numbers(dense.cell("accuracy", network=n))[0] for n in small.texts("network")]
    )
    paces = of("times faster, 64 inputs", "dense in onnxruntime, 8 bit")
    slow = [NETWORKS[name] for name, times in zip(networks, paces) if times < 1]
    pace = (
        f"Eight bits that scale the activations as they come are slower than dense on {' and '.join(slow)}."
        if slow
        else "It is faster than dense on all of them."
    )
    return [
        f"**Before any rank, change the runtime and use eight bits.** The dense network in onnxruntime is {between(quick, ' times')} faster for 64 inputs. With eight bits its file has "
        f"{files.min():.0f} to {files.max():.0f} % of the bytes, and the accuracy changes by {_span(change)} points. {pace}"
    ]


def _which_ranks(other: Grid, crossed: Grid) -> list[str]:
    def at(network: str, factors: str) -> np.ndarray:
        return crossed.where(network=network).values(factors, 1)  # a quarter of the MACs

    def apart(network: str) -> str:
        return ", ".join(f"{np.ptp(at(network, kind)):.1f} in {kind}" for kind in ("svd", "data-aware", "sequential"))

    def best(network: str) -> str:
        kept = numbers(crossed.cell("relu-aware", network=network, ranks="exact, Fisher"))[1]
        return f"{kept:.1f} % on {NETWORKS[network]} (dense {_mean(other.cell('accuracy', written_as='dense', network=network))})"

    worst, plain = ([at(name, kind) for name in ("vgg_small", "resnet20")] for kind in ("sequential", "svd"))
    return [
        f"**Then use exact search on predicted losses**, in ReLU-aware or sequential factors. At a quarter of the MACs, ReLU-aware factors keep {best('vgg_small')} and {best('resnet20')}. It needs no labels and no training.",
        f"**Factors decide more than ranks**, before fine-tuning. At a quarter the worst ranks in sequential factors keep {worst[0].min():.1f} % on `vgg_small` and {worst[1].min():.1f} % on ResNet-20; "
        f"the best in plain ones keep {plain[0].max():.1f} and {plain[1].max():.1f} %.",
        f"**Ranks still matter.** At a quarter the accuracies of the nine choosers are so many points apart: on `vgg_small` {apart('vgg_small')} factors; on ResNet-20 {apart('resnet20')} factors; "
        f"on `lenet300` {apart('lenet300')} factors.",
    ]


def _which_else(other: Grid) -> list[str]:
    faster = "times faster, 64 inputs"

    def row(how: str, size: str, network: str = "vgg_small") -> Mapping[str, str]:
        (found,) = other.where(network=network, written_as=how, size_asked_for=size).rows
        return {column: _mean(text) for column, text in found.items()}

    units, thin, fast = (
        row("refitted", "macs 0.25"),
        row("relu-aware", "macs 0.25"),
        row("relu-aware in onnxruntime", "macs 0.15"),
    )
    zeros, plain, deep = row("zeros", "kept 0.25"), row("svd", "macs 0.25"), row("relu-aware", "macs 0.25", "resnet20")
    tiny, dense = row("relu-aware in onnxruntime, 8 bit", "macs 0.15"), row("dense", "dense")
    return [
        f"**Time**, for 64 inputs and one thread, `vgg_small`: at a quarter of the MACs, removing units makes torch {units[faster]} times faster and keeps {units['accuracy']} %; ranks in ReLU-aware factors make it "
        f"{thin[faster]} times faster and keep {thin['accuracy']} %. At 15 % ranks in onnxruntime reach {fast[faster]} times, with {fast['accuracy']} %.",
        f"**The smallest files** have eight bits on top of ranks: {tiny['kB']} kB in place of {dense['kB']} for `vgg_small` at 15 %, with {tiny['accuracy']} %.",
        f"**Fine-tuning**, one pass over 2 000 images, on `vgg_small` at a quarter: plain factors go from {plain['accuracy']} to {plain['fine-tuned']} %, and zeros from {zeros['accuracy']} to {zeros['fine-tuned']} %. "
        f"On ResNet-20, ReLU-aware factors go from {deep['accuracy']} to {deep['fine-tuned']} %.",
    ]


def _which_labels() -> list[str]:
    # what is ahead of ours once all may train, from the gallery's controls; nothing where it has none
    rows, told = controls.published(), []
    for network, mine in rows.groupby("network", sort=False) if rows is not None else ():
        trained = controls.beside_ours(mine).query("state == 'fine-tuned'")
        share = trained["budget"].min()
        names = {"magnitude": "small weights set to zero", "our plan, from scratch": "our plan from scratch"}
        part = trained[(trained["budget"] == share) & trained["method"].isin(names)]
        each = [f"{names[r['method']]} {100 * r['accuracy']:.1f} %" for r in part.to_dict("records")]
        if each:
            own = 100 * part["ours"].iloc[0]
            told.append(
                f"on {NETWORKS.get(str(network), f'`{network}`')} at {100 * share:g} %, ours {own:.1f} %, {', '.join(each)}"
            )
    if not told:
        return []
    return [
        f"**With labels and training the order can change.** All fine-tuned alike, or trained from scratch: {'; '.join(told)}. Zeros save no multiplication and need indices. "
        "[All controls](../outputs/gallery/README.md#controls-and-rivals)."
    ]


PARAGRAPHS: dict[str, Callable[[Tables], str]] = {
    "which": which,
    "arsvd": arsvd,
    "pruning": pruning,
    "convex": convex,
    "convolutions": convolutions,
    "search": search,
}
