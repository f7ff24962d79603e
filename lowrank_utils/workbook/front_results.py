"""What docs/results.md says above its tables: sentences written from these very tables, so that the two cannot disagree."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

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


def grid(table: str) -> pd.DataFrame:
    """Return a Markdown table as a DataFrame of texts.

    >>> grid("| a | b |\\n| --- | --- |\\n| x | 1.5 ± 0.1 |")["b"].tolist()
    ['1.5 ± 0.1']
    """
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    return pd.DataFrame(rows, columns=head)


def numbers(cell: str) -> list[float]:
    """Return the first number of each part of a cell of a table, NaN where there is none.

    >>> numbers("81.5 ± 0.2 (-1.3) / 80.0 / -")
    [81.5, 80.0, nan]
    """
    found = [re.search(r"-?\d+(?:\.\d+)?", part) for part in cell.split(" / ")]
    return [float(one[0]) if one else np.nan for one in found]


def place(column: pd.Series, position: int = 0) -> pd.Series:
    """Return the numbers of a column, those at one position of cells with several."""
    return column.map(lambda cell: numbers(cell)[position])


def between(values: pd.Series, unit: str = " %") -> str:
    """Return the lowest and the highest of some values, in words.

    >>> between(pd.Series([2.0, 1.0])), between(pd.Series([1.0]))
    ('1.0 to 2.0 %', '1.0 %')
    """
    low, high = f"{values.min():.1f}", f"{values.max():.1f}"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def arsvd(tables: Tables) -> str:
    """Return the paragraph on adaptive ranks beside one fixed share."""
    sizes = grid(tables[EQUAL])
    every = sizes["factored"] == "every layer"
    shares = list(sizes.columns[4:])
    first = {share: place(sizes[share], 0) for share in shares}
    gains = pd.DataFrame({share: first[share] - place(sizes[share], 2) for share in shares})
    rules = pd.DataFrame({share: place(sizes[share], 1) - first[share] for share in shares})
    energy = pd.DataFrame(first)[shares[0]]
    dense, aware = sizes[~every], sizes["factors"] == "data-aware"
    keys = ["data set", "network"]
    by = {
        flag: energy[~every & (aware == flag)].set_axis(pd.MultiIndex.from_frame(sizes[~every & (aware == flag)][keys]))
        for flag in (True, False)
    }
    more = (by[True] - by[False]).dropna()
    own = grid(tables[ONE_POINT])
    column = own.columns[-1]
    left, lost = place(own[column]), own[column].str.extract(r"\((-?[\d.]+)\)")[0].astype(float).mul(-1)
    hidden = own["factored"] == "hidden layers"
    return (
        f"With every layer cut, as the method is published, ranks by energy are {span(gains[every].stack())} points ahead of one fixed share at equal size, "
        f"means over seeds of {sizes['data set'].nunique()} data sets. Much of that is the classifier, a small layer that a fixed share cuts to a few directions: with the classifier "
        f"dense the difference is {span(gains[~every].stack())} points. The claim table tells how many of these differences are settled by paired seeds. "
        f"Entropy against energy gives {span(rules[every].stack())} points with every layer cut and {span(rules[~every].stack())} with the classifier dense.\n\n"
        f"Factors from data help most where little is kept: with {shares[0].split()[0]} % of the parameters and the classifier dense, they bring plans by energy {between(more, ' points')} "
        f"({len(dense) // 2} networks). EVBMF has no threshold. On the hidden layers it keeps {between(left[hidden])} and loses {between(lost[hidden], ' points')}; with every layer cut "
        f"it loses {between(lost[~hidden], ' points')}."
    )


def _fewer(ours: pd.Series, theirs: pd.Series, names: pd.Series) -> str:
    # on how many data sets ours keeps fewer parameters, and on which
    won = [SETS.get(name, name) for name in names[ours < theirs]]
    return f"{len(won)} of {len(names)} data sets" + (f" ({', '.join(won)})" if 0 < len(won) < len(names) else "")


def pruning(tables: Tables) -> str:
    """Return the paragraph on entropy of components and of units."""
    table = grid(tables[PRUNED])
    of = {name: place(table[name]) for name in table.columns[2:]}
    names, beside = table["data set"], pd.DataFrame(of).drop(columns=["both output", "both entropy"]).min(axis=1)
    return (
        f"Entropy is a good guide to singular *components*, and a poor one to hidden *units*. At no more than one point lost on validation images, components by their entropy keep "
        f"{between(of['component entropy'])} of the parameters, and by what they add to the outputs {between(of['component output'])}. ARSVD keeps {between(of['arsvd, classifier dense'])} if it is "
        f"told to leave the classifier dense; one list over the whole network needs no such hint.\n\n"
        f"Units by the entropy of their activations keep {between(of['unit entropy'])}: fewer parameters than units chosen at random on {_fewer(of['unit entropy'], of['unit random'], names)}. "
        f"Units by what they give the next layer keep {between(of['unit output'])}: fewer than at random on {_fewer(of['unit output'], of['unit random'], names)}. Units by output first and components second "
        f"keep {between(of['both output'])}, fewer than every single list and than ARSVD on {_fewer(of['both output'], beside, names)}."
    )


def convex(tables: Tables) -> str:
    """Return the paragraph on DDLR beside Net-Trim and beside fits at a given rank."""
    table = grid(tables[CONVEX]).set_index(["data set", "network"])
    shown = {"DDLR": "DDLR, cut, refit", "Net-Trim with its indices counted": "Net-Trim, cut, refit, with indices"}
    shown |= {
        "Net-Trim with its non-zeros counted alone": "Net-Trim, cut, refit, non-zeros",
        "units first (in Fisher-weighted factors)": "units first",
    }
    parts = []
    for key, row in table[table.index.get_level_values(1) == "lenet300"].iterrows():
        told = [f"{row[column]} % for {name}" for name, column in shown.items()]
        parts.append(
            f"On {SETS[key[0]]}, at 5, 10 and 20 % of the parameters of LeNet-300-100, the accuracy is {', '.join(told[:-1])}, and {told[-1]}."
        )
    mlp = table.loc[("cifar10", "mlp")]
    posed = [
        f"{numbers(row['DDLR'])[2]:.1f} % on {SETS[key[0]]}"
        for key, row in table[table.index.get_level_values(1) == "lenet300"].iterrows()
    ]
    return (
        f"As posed, with every layer under the program and pressed to a fifth of the parameters of LeNet-300-100, DDLR has an accuracy of {' and '.join(posed)}: it cuts the classifier. "
        f"So the next numbers leave the classifier dense, cut both programs to the same size, and refit both by least squares on the same images. {' '.join(parts)} "
        f"On the CIFAR-10 MLP, one seed, it is {mlp['DDLR, cut, refit']} % for DDLR, {mlp['Net-Trim, cut, refit, with indices']} % for Net-Trim with its indices counted, and {mlp['data-aware']} % for data-aware factors.\n\n"
        "A fit at a given rank needs no epsilon. What only the convex programs have is a proof: a certified gap for every answer as posed. Cutting and refitting give it up."
    )


def convolutions(tables: Tables) -> str:
    """Return the paragraph on the factors of convolutions."""
    table = grid(tables[CONVOLVED]).set_index(["network", "ranks"])
    half, third, quarter = 1, 2, 3

    def at(network: str, ranks: str, factors: str, size: int) -> float:
        return numbers(table.loc[(network, ranks), factors])[size]

    told = []
    for network in ("resnet20", "resnet56"):
        good = pd.Series(
            [at(network, "energy", kind, half) for kind in ("sequential", "relu-aware", "fisher-weighted")]
        )
        dense = table.loc[(network, "energy"), "dense"]
        told.append(
            f"plain SVD leaves {NETWORKS[network]} at {at(network, 'energy', 'svd', half):.1f} %, and the three kinds of front-to-back factors keep {between(good)} (dense {dense} %)"
        )
    theirs = [
        one
        for cell in grid(tables[SEARCHED]).query("factors == 'svd, in the paper'")[list(ENC)].iloc[0]
        for one in numbers(cell)
    ]
    return (
        f"With half of the MACs and ranks by energy, {'; '.join(told)}. At 35 % ResNet-56 keeps {at('resnet56', 'energy', 'relu-aware', third):.1f} % in ReLU-aware factors and "
        f"{at('resnet56', 'energy', 'sequential', third):.1f} % in sequential ones. The images need no labels.\n\n"
        f"Ranks by energy are no sure gain. On `vgg_small` at a quarter, plain factors keep {at('vgg_small', 'energy', 'svd', quarter):.1f} % with them and {at('vgg_small', 'one fixed share', 'svd', quarter):.1f} % with one "
        f"fixed share. For scale, ENC's own table has {np.nanmin(theirs):.1f} to {np.nanmax(theirs):.1f} % for ResNet-56 at half of the FLOPs before fine-tuning (Kim et al. 2019, another training of the network). "
        "Batch norms that no longer fit are much of what plain factors lose: [recalibrated](../outputs/gallery/README.md#batch-norms-after-the-cut), they come close to it."
    )


def search(tables: Tables) -> str:
    """Return the paragraph on ranks for the whole network."""
    table = grid(tables[SEARCHED]).set_index(["network", "factors"])
    half, third, quarter = 1, 2, 3

    def at(network: str, factors: str, size: int) -> pd.Series:
        return pd.Series(
            {
                name: numbers(table.loc[(network, factors), name])[size]
                for name in ("fixed", *ENC, "exact", "exact, Fisher")
            }
        )

    plain, deep = at("vgg_small", "svd", quarter), at("resnet56", "svd", half)
    rest, ahead = [], []
    for network in ("vgg_small", "resnet20", "resnet56"):
        rest.append(f"{table.loc[(network, 'sequential'), 'exact, Fisher']} % on {NETWORKS[network]}")
        for size in range(4):
            of = at(network, "sequential", size)
            ahead.append(of["exact, Fisher"] - of.drop("exact, Fisher").max())
    guide = pd.Series(
        [
            at(network, "svd", size)["exact"] - at(network, "svd", size)["exact, Fisher"]
            for network in ("resnet20", "resnet56")
            for size in (half, third)
        ]
    )
    return (
        f"Plain factors, `vgg_small`, a quarter of the MACs: one fixed share keeps {plain['fixed']:.1f} %, ENC's three searches {between(plain[list(ENC)])}, the plan that is proved best for ENC's own "
        f"curves {plain['exact']:.1f} %, and exact search on predicted losses {plain['exact, Fisher']:.1f} %. Plain factors, ResNet-56, half: {deep['fixed']:.1f} %, {between(deep[list(ENC)])}, "
        f"{deep['exact']:.1f} % and {deep['exact, Fisher']:.1f} %.\n\n"
        f"With sequential factors the six lie close together. Exact search on predicted losses keeps {'; '.join(rest)}, at the four sizes of the table. Against the best of the other five that is {span(pd.Series(ahead))} points.\n\n"
        f"With plain factors the predicted loss is no safe guide on the residual networks, because it is predicted for data-aware factors: at half and 35 % of the MACs the best plan for ENC's own curves is "
        f"{span(guide)} points ahead of it. The certificate is about the prediction, never about accuracy."
    )


def which(tables: Tables) -> str:
    """Return the list of advice on which method to use, from the tables of notebook 06."""
    other, crossed = grid(tables[OTHERS]), grid(tables[CROSSED]).set_index("network")
    written = other["written as"]
    quick = other[written == "dense in onnxruntime"]["times faster, 64 inputs"].astype(float)
    dense = other[written == "dense"].set_index("network")
    small = other[written == "dense in onnxruntime, 8 bit"].set_index("network")
    files = 100 * small["kB"].astype(float) / dense["kB"].astype(float)
    lost = place(dense["accuracy"]) - place(small["accuracy"])
    vgg, deep = crossed.loc["vgg_small"], crossed.loc["resnet20"]

    def at(table: pd.DataFrame, factors: str) -> pd.Series:
        return place(table[factors], 1)  # a quarter of the MACs

    def apart(table: pd.DataFrame) -> str:
        return ", ".join(
            f"{at(table, kind).max() - at(table, kind).min():.1f} in {kind}"
            for kind in ("svd", "data-aware", "sequential")
        )

    def row(how: str, size: str, network: str = "vgg_small") -> pd.Series:
        return other[(other["network"] == network) & (written == how) & (other["size asked for"] == size)].iloc[0]

    units, thin, fast = (
        row("refitted", "macs 0.25"),
        row("relu-aware", "macs 0.25"),
        row("relu-aware in onnxruntime", "macs 0.15"),
    )
    zeros, plain = row("zeros", "kept 0.25"), row("svd", "macs 0.25")
    tiny = row("relu-aware in onnxruntime, 8 bit", "macs 0.15")
    lines = [
        f"**Before any rank, change the runtime and use eight bits.** The dense network in onnxruntime is {between(quick, ' times')} faster for 64 inputs. With eight bits its file has {files.min():.0f} to {files.max():.0f} % "
        f"of the bytes, and the accuracy changes by {span(-lost)} points. Where layers are convolutions, eight bits are slower than dense.",
        f"**Then use exact search on predicted losses**, in ReLU-aware or sequential factors. At a quarter of the MACs it keeps {numbers(vgg.set_index('ranks').loc['exact, Fisher', 'relu-aware'])[1]:.1f} % on `vgg_small` (dense {dense.loc['vgg_small', 'accuracy'].split()[0]}) "
        f"and {numbers(deep.set_index('ranks').loc['exact, Fisher', 'relu-aware'])[1]:.1f} % on ResNet-20 (dense {dense.loc['resnet20', 'accuracy'].split()[0]}). It needs no labels and no training.",
        f"**Factors decide more than ranks**, before fine-tuning. At a quarter the worst ranks in sequential factors keep {at(vgg, 'sequential').min():.1f} % on `vgg_small` and {at(deep, 'sequential').min():.1f} % on ResNet-20; "
        f"the best in plain ones keep {at(vgg, 'svd').max():.1f} and {at(deep, 'svd').max():.1f} %.",
        f"**Ranks still matter.** At a quarter the accuracies of the nine choosers are so many points apart: on `vgg_small` {apart(vgg)} factors; on ResNet-20 {apart(deep)} factors. On `lenet300` "
        f"any chooser will do: {apart(crossed.loc['lenet300'])}.",
        f"**Time**, for 64 inputs and one thread, `vgg_small`: at a quarter of the MACs, removing units makes torch {units['times faster, 64 inputs']} times faster and keeps {units['accuracy'].split()[0]} %; ranks in ReLU-aware factors make it "
        f"{thin['times faster, 64 inputs']} times faster and keep {thin['accuracy'].split()[0]} %. At 15 % ranks in onnxruntime reach {fast['times faster, 64 inputs']} times, with {fast['accuracy'].split()[0]} %.",
        f"**The smallest files** have eight bits on top of ranks: {tiny['kB']} kB in place of {dense.loc['vgg_small', 'kB']} for `vgg_small` at 15 %, with {tiny['accuracy'].split()[0]} %.",
        f"**Fine-tuning**, one pass over 2 000 images, repairs much of what plain factors and zeros broke: on `vgg_small` at a quarter from {plain['accuracy'].split()[0]} to {plain['fine-tuned'].split()[0]} %, and from "
        f"{zeros['accuracy'].split()[0]} to {zeros['fine-tuned'].split()[0]} %. On ResNet-20 it takes ReLU-aware factors from {row('relu-aware', 'macs 0.25', 'resnet20')['accuracy']} to {row('relu-aware', 'macs 0.25', 'resnet20')['fine-tuned']} %.",
    ]
    return "\n".join(f"- {line}" for line in lines)


PARAGRAPHS: dict[str, Callable[[Tables], str]] = {
    "which": which,
    "arsvd": arsvd,
    "pruning": pruning,
    "convex": convex,
    "convolutions": convolutions,
    "search": search,
}
