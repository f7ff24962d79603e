"""ENC's claims (Kim, Khan & Kyung 2019), judged by the published rows of notebook 05."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import pandas as pd

from lowrank_utils.lab import checkpoints
from lowrank_utils.workbook import batch_norm, enc_gap, search_times, verdicts
from lowrank_utils.workbook.chapters.rank_search_experiment import SEARCHES
from lowrank_utils.workbook.search_lab import NOTEBOOK
from lowrank_utils.workbook.tables import RUN, SIZES, at_share, verdict_of
from lowrank_utils.workbook.verdicts import Claim, Verdict

# Kim, Khan & Kyung 2019: accuracy at half of the FLOPs, plain factors, no fine-tuning, another training of the network
PAPER: dict[tuple[Hashable, ...], dict[str, str]] = {
    ("cifar10", "resnet56"): {"ENC-Map": "89.8", "ENC-Model": "89.6", "ENC-Inf": "90.2"}
}


SETTING = ["dataset", "network", "budget"]
DRAW = ["dataset", "network", "draw"]


def _plain(table: pd.DataFrame, chooser: str) -> pd.DataFrame:
    """Return the rows of one chooser in plain factors, at all sizes and draws.

    Layer-wise energy stands in notebook 02b, once: plain factors see no images, so it is the same for every draw.
    """
    sized = (table["factors"] == "svd") & at_share(table, *SIZES)
    mine = table[sized & (table["notebook"] == NOTEBOOK)]
    if chooser != "energy":
        return mine[mine["chooser"] == chooser]
    energy = table[sized & (table["notebook"] == "02b_convolutions") & (table["chooser"] == "energy")]
    draws = mine[["dataset", "network", "seed", "draw"]].drop_duplicates()
    return energy.drop(columns="draw").merge(draws, on=["dataset", "network", "seed"])


def _settings(table: pd.DataFrame, keys: Sequence[str]) -> list[tuple]:
    mine = table[(table["notebook"] == NOTEBOOK) & at_share(table, *SIZES)]
    return sorted(mine[[*keys]].drop_duplicates().itertuples(index=False, name=None))


THAN = {"fixed": "one fixed share", "energy": "layer-wise energy", "ENC-Map": "ENC-Map"}


def judged(chooser: str, than: str = "") -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that judges a search in plain factors.

    With `than`, a key of `THAN`: whether it is ahead of that at equal MACs. Without: its smallest size, read off the test curve.
    """

    def measure(table: pd.DataFrame) -> Verdict | None:
        ours, theirs = _plain(table, chooser), _plain(table, than) if than else None
        if not len(ours) or (theirs is not None and not len(theirs)):
            return None
        if theirs is not None:
            how = {"settings": _settings(table, SETTING), "absent": f"no row of {THAN[than]}", "than": THAN[than]}
            return verdicts.ahead_verdict(ours, theirs, over="draw", **how)
        every = set(ours[DRAW].itertuples(index=False, name=None))
        blind, ours = _blind(ours), _once(ours)
        same = every - set(ours[DRAW].itertuples(index=False, name=None))
        how = {
            "chosen_on": "judged_on",
            "size": "macs_kept",
            "on": DRAW,
            "unit": "MACs",
            "absent": dict.fromkeys(same, SAME),
        }
        ours, dense = (_judged_on(rows, blind) for rows in (ours, verdicts.dense_rows(table, NOTEBOOK, DRAW)))
        return verdicts.size_verdict(ours, dense, settings=_settings(table, DRAW), **how)

    return measure


SAME = "draws that are the same networks as the first count once"


def _once(rows: pd.DataFrame) -> pd.DataFrame:
    # without the draws whose networks are those of the first one, such as plans that see no images
    kept = []
    for _, mine in rows.groupby(["dataset", "network", "seed"]):
        curves = mine.pivot_table(index="draw", columns="budget", values="accuracy")
        kept.append(mine[mine["draw"].isin(curves.drop_duplicates().index)])
    return pd.concat(kept)


def lossless(chooser: str, factors: str = "svd") -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that judges the smallest networks without loss on validation images, each of a size of its own.

    Without such rows of a search, its four sizes are judged: a network is counted once, by the mean over draws, and has none where no size is free of loss.
    """

    def measure(table: pd.DataFrame) -> Verdict | None:
        mine = table[(table["notebook"] == NOTEBOOK) & (table["budget_kind"] == "lossless")]
        mine = mine[(mine["chooser"] == chooser) & (mine["factors"] == factors)]
        return _at_its_own_sizes(table, mine) if len(mine) else _at_four_sizes(table, chooser, factors)

    return measure


def _at_four_sizes(table, chooser, factors):
    curve = _plain(table, chooser)
    if factors != "svd" or not len(curve):
        return None
    lost = _lost(table, curve).groupby(SETTING)[["lost", "noise", "macs_kept"]].mean().reset_index()
    found = {name: part.loc[part["lost"] <= part["noise"], "budget"] for name, part in lost.groupby("network")}
    told = [f"{name} {100 * free.min():.0f} %" if len(free) else f"{name} none" for name, free in found.items()]
    tried = sorted(lost["budget"].unique(), reverse=True)
    sizes = f"{100 * tried[0]:.0f} to {100 * tried[-1]:.0f} %" if len(tried) > 1 else f"{100 * tried[0]:.0f} %"
    said = f"not searched for without loss yet; of the four sizes, {sizes}, the smallest that loses nothing on test: {', '.join(told)}"
    good = [len(free) > 0 for free in found.values()]
    return Verdict(said, verdict_of(sum(good) / len(good)), len(good), {}, ("nothing",) * len(good))


def _judged_on(rows: pd.DataFrame, blind: set[str]) -> pd.DataFrame:
    # the accuracy that a size is chosen on: of validation images; of test images for the networks in `blind`
    valid = rows.get("valid_accuracy", np.nan)
    return rows.assign(judged_on=rows["accuracy"].where(rows["network"].isin(blind), valid))


def _blind(rows: pd.DataFrame) -> set[str]:
    # networks whose validation images cannot choose: they were trained on them, or older rows do not have their accuracy
    known = rows["valid_accuracy"].notna() if "valid_accuracy" in rows else pd.Series(False, rows.index)
    return {*checkpoints.PUBLIC, *rows.loc[~known, "network"]}


def _lost(table: pd.DataFrame, cut: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the points that they lose on test, and the noise of that (`verdicts.allowance`), in points."""
    dense = verdicts.dense_rows(table, NOTEBOOK, DRAW).reindex(columns=[*DRAW, "accuracy", "correct"])
    found = cut.assign(correct=cut.get("correct")).merge(dense, on=DRAW, suffixes=("", "_dense"))
    both = found.to_dict("records")
    noise = [verdicts.allowance({name: row[f"{name}_dense"] for name in ("accuracy", "correct")}, row) for row in both]
    return found.assign(lost=100 * (found["accuracy_dense"] - found["accuracy"]), noise=noise)


def _at_its_own_sizes(table, mine):
    found = _lost(table, mine)
    sizes = {
        name: dict.fromkeys(f"{100 * v:.0f}" for v in (part.min(), part.max()))
        for name, part in mine.groupby("network")["macs_kept"]
    }
    told = ", ".join(f"{network} {' to '.join(ends)} %" for network, ends in sizes.items())
    good = (found["lost"] <= found["noise"]) & (found["macs_kept"] <= verdicts.SAVED)
    said = f"MACs kept: {told}; at most {max(found['lost'].max(), 0):.1f} points lost on test, holds in {good.sum()} of {len(found)}"
    have = set(found[DRAW].itertuples(index=False, name=None))
    lacking = {
        f"{dataset}, {network}, draw {draw:g}": "no search without loss was run with today's code yet"
        for dataset, network, draw in _settings(table, DRAW)
        if (dataset, network, draw) not in have
    }
    return Verdict(said, verdict_of(good.mean()), len(found), lacking, ("nothing",) * len(found))


TRIED = ("channel scheme", "first layer cut", "first layer at break-even", "squares in ENC-Map's curve")


def as_the_paper(chooser: str) -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that puts a search on ResNet-56 at half of the MACs beside the paper's number."""

    def measure(table: pd.DataFrame) -> Verdict | None:
        mine = _plain(table, chooser)
        mine = mine[(mine["network"] == "resnet56") & (mine["budget"] == 0.5)]
        if not len(mine):
            return None
        accuracy, theirs = 100 * mine["accuracy"].mean(), float(PAPER["cifar10", "resnet56"][chooser])
        dense = 100 * verdicts.dense_rows(table, NOTEBOOK, DRAW).query("network == 'resnet56'")["accuracy"].mean()
        said = f"{accuracy:.1f} %, {dense - accuracy:.1f} points below our dense network and {theirs - accuracy:.1f} below the paper, whose dense accuracy is not at hand"
        again, gap = batch_norm.published(), enc_gap.published()
        known = pd.DataFrame(columns=["network", "chooser"]) if again is None else again
        told = known[(known["network"] == "resnet56") & (known["chooser"] == chooser)]
        if len(told):
            cut, mended = (100 * told[name].iloc[0] for name in ("accuracy", "recalibrated"))
            said += f"; the first draw goes from {cut:.1f} to {mended:.1f} % with batch norms recalibrated, of which the paper says nothing"
        if gap is not None:
            tried = [
                f"{words} {low:+.1f} to {high:+.1f} points"
                for words, (low, high) in enc_gap.effects(gap).items()
                if words in TRIED
            ]
            said += f"; tried with ENC-Map and one fixed share: {', '.join(tried)}" * bool(tried)
        if accuracy < theirs:
            said += "; the rest of the distance is unexplained"
        return Verdict(said, "yes" if accuracy >= theirs else "no", 1)

    return measure


def search_time(chooser: str) -> Callable[[pd.DataFrame], Verdict | None]:
    """Return the function of result rows that puts the seconds of ENC-Map or ENC-Model on VGG-16 beside the paper's (`search_times`)."""

    def measure(table: pd.DataFrame) -> Verdict | None:
        if not (table["notebook"] == NOTEBOOK).any():  # other rows than those of the gallery
            return None
        rows = search_times.published()
        mine = [] if rows is None else rows[rows["network"] == "torchvision/vgg16"].to_dict("records")
        if not mine:
            return verdicts.not_measured("no row of VGG-16's searches", _VGG)
        told = search_times.in_words(mine[0])
        if chooser == "ENC-Map":
            seconds = mine[0]["spectra"] + mine[0]["ENC-Map"]
            said = f"{told} The computers differ, so within ten times the paper's seconds counts as yes"
            return Verdict(said, "yes" if seconds <= 10 * search_times.THEIRS[chooser] else "no", 1)
        unknown = "how many images the paper measures its curves on is not at hand"
        return Verdict(f"not measured: {unknown}. {told}", "-", 0, dict.fromkeys(_VGG, unknown))

    return measure


RERUN = f"for p in rank-search-vgg-small rank-search-resnet20 rank-search-resnet56; do for d in 0 1 2; do {RUN} $p --set draw=$d --seeds 0 --only 05; done; done"


BISECTED = "the smallest size that loses nothing on validation images, by bisection (the public ResNets were trained on these images), or of four sizes where that was not run"
_OF_LIKELIHOOD = " (its measured curves are of likelihood, as accuracy on training images is nearly flat)"
ON_RESNETS: dict[str, str] = dict.fromkeys(("ENC-Model", "ENC-Inf"), "; measured curves of likelihood on the ResNets")
READS_LIKELIHOOD: dict[str, str] = dict.fromkeys(("ENC-Model", "ENC-Inf"), _OF_LIKELIHOOD)


def _claims() -> tuple[Claim, ...]:
    three = "vgg_small, ResNet-20, ResNet-56, 75 to 25 % of the MACs, plain factors"
    ahead = [
        Claim("ENC", "ranks of the whole network at once are the better compromise", f"{chooser} against {words}; {three}{ON_RESNETS.get(chooser, '')}", "ahead", verdicts.NOT_AT_HAND, judged(chooser, theirs), RERUN, posed=True)
        for theirs, words in THAN.items() if theirs != "ENC-Map" for chooser in SEARCHES
    ]  # fmt: skip
    ahead.append(
        Claim(
            "ENC",
            "the same, improved: exact search on its curves",
            f"exact against ENC-Map; {three}",
            "ahead",
            "-",
            judged("exact", "ENC-Map"),
            RERUN,
        )
    )
    small = [
        Claim("ENC", "compression at little loss, no fine-tuning", f"{chooser}; {three}{ON_RESNETS.get(chooser, '')}; vgg_small chosen on validation images", "size, test curve", verdicts.NOT_AT_HAND, judged(chooser), RERUN, posed=True)
        for chooser in SEARCHES
    ]  # fmt: skip
    ours = [
        Claim("ENC", f"little loss, improved: {words}", f"{three}; vgg_small chosen on validation images", "size, test curve", "-", judged(chooser), RERUN)
        for chooser, words in (("exact", "exact search on its curves"), ("exact-Fisher", "exact search on predicted losses"))
    ]  # fmt: skip
    free = [
        Claim("ENC", "lossless compression", f"{chooser}, {BISECTED}, plain factors", "no loss", verdicts.NOT_AT_HAND, lossless(chooser), RERUN, posed=True)
        for chooser in SEARCHES
    ]  # fmt: skip
    free.append(Claim("ENC", "lossless compression, improved: exact search on predicted losses", f"{BISECTED}, sequential factors", "no loss", "-", lossless("exact-Fisher", "sequential"), RERUN))  # fmt: skip
    paper = [
        Claim("ENC", "accuracy of ResNet-56 at half of the FLOPs, no fine-tuning", f"{chooser}, plain factors{READS_LIKELIHOOD.get(chooser, '')}; the paper has another training of the network", "as in the paper", f"{number} %", as_the_paper(chooser), RERUN, posed=True, unmet={1: _BESIDE})
        for chooser, number in PAPER["cifar10", "resnet56"].items()
    ]  # fmt: skip
    rows = "the rows of VGG-16 need ImageNet"
    unmet = {1: _BESIDE, 2: "ImageNet is not at hand; the preset runs it for whoever has the images."}
    cut_only = "no plan of ENC is fine-tuned on ResNet-56 here: it takes minutes a network, and the paper's recipe is not at hand"
    more = (
        Claim("ENC", "accuracy of ResNet-56 at half of the FLOPs, fine-tuned", "plain factors; the paper has another training of the network", "as in the paper", "93.0 %", lambda table: verdicts.not_measured(cut_only, ["cifar10, resnet56"]), RERUN, posed=True, unmet={1: _BESIDE, 2: "Fine-tuning takes minutes a network, and the paper's recipe is not at hand."}),
        Claim("ENC", "VGG-16 with fewer FLOPs more accurate than the baseline", "ImageNet, fine-tuned", "as in the paper", "FLOPs reduced by 25 % (its abstract), +0.7 points", lambda table: verdicts.not_measured(rows, _VGG), IMAGENET, posed=True, unmet=unmet),
        *(Claim("ENC", f"its ranks found on a CPU ({chooser})", "VGG-16, statistics included", "as in the paper", f"about {told}", search_time(chooser), "python -m lowrank_utils gallery --renew --only search-times", posed=True, unmet={1: _BESIDE, 2: _CURVES}) for chooser, told in (("ENC-Map", "5 seconds"), ("ENC-Model", "3 minutes"))),
    )  # fmt: skip
    return (*ahead, *small, *ours, *free, *paper, *more)


_BESIDE = "The paper's number can stand beside the paper's own measure alone."
_CURVES = "The time of ENC-Model is that of its measured curves, and how many images the paper measures them on is not at hand."
_VGG = ["imagenet, vgg16"]
IMAGENET = f"{RUN} rank-search-imagenet --only 05 --set dataset=folder:PATH"
CLAIMS = _claims()
