"""The comparison card: every published table and claim, judged by seven rules of fair comparison.

The rules are what reviewers of pruning papers ask for (Blalock et al. 2020; Liu et al. 2019, *Rethinking the value of network
pruning*; Gale et al. 2019, *The state of sparsity*). What the rows show decides whether a rule is kept. A rule that is not kept
needs a reason, in the chapter's ``UNMET``, {heading of a table, or "*" for all: {number of the rule: reason}}, or in `Claim.unmet`.
Rule 7 is about a table itself and not about rows, so it needs a reason for each heading.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pandas as pd

from lowrank_utils.workbook import chapters, gallery
from lowrank_utils.workbook.tables import markdown
from lowrank_utils.workbook.verdicts import Claim, Verdict

RULES = {
    1: "one rule for all: size, drop, calibration images, fine-tuning",
    2: "every method also as its authors pose it",
    3: "controls: trained from scratch, random choice, batch norm recalibrated, fine-tuned",
    4: "compared in pairs: by test images within a run, over several runs",
    5: "more than test accuracy: corrupted images, memory, time",
    6: "the order of the methods over five draws of calibration images",
    7: "every setting that was run is shown or named",
}
UNPAIRED = ("size", "size, test curve", "no loss", "as in the paper")  # rules of claims that compare no two methods
DRAWS = 5  # of calibration images, that rule 6 asks for
WITH_BATCH_NORM = ("resnet20", "resnet56", "vgg_small")
NO_METHODS = {  # tables that compare no methods with each other, so that the rules do not apply
    "prediction": "It compares what is predicted with what is measured for the same networks.",
    "shortcuts": "It compares settings of one method, by the divergence from the dense answers and by processor time.",
    "batch_norm": "It compares cut networks with themselves, before and after their batch norms are recalibrated.",
    "enc_gap": "It compares one network with itself under changes that a paper leaves open.",
    "search_times": "It measures seconds and compares no accuracies.",
    "spectra": "It describes the spectra of dense networks.",
}
_WINDOWS = "The same calibration windows for all rows of a table and draw; nothing is trained after the cut. Ours reads gradients of the loss too, which whitening does not."
_BESIDE_TIME = "Tokens a second and the peak of memory were measured for ours and the dense network, not for each rival. No text was corrupted."
# tables of rows of their own that compare methods, and how they stand to each rule
PAGES: dict[str, dict[int, str]] = {
    "imagenet": {
        1: "The same calibration images and sizes for all; nothing is trained after the cut.",
        2: "ENC-Map and one fixed share stand in plain factors, as posed; ENC-Model and ENC-Inf are not run, for there are few images to measure curves on.",
        3: "No control: 455 images are too few to train on.",
        4: "Not tested in pairs: one image is 0.2 points, and the lines are far apart.",
        5: "Agreement with the dense network stands beside accuracy; images were not corrupted.",
        6: "One draw: half of the images calibrate, and half are scored.",
        7: "Every row is shown.",
    },
    "language": {
        1: _WINDOWS,
        2: "Whitening with one share, as SVD-LLM poses it; its authors use more text, which the next section measures.",
        3: "No random ranks, no fine-tuning, no network trained from scratch: hours a network on two cores.",
        4: "Means over the same 40 windows, not tested in pairs.",
        5: _BESIDE_TIME,
        6: "Three draws at most, one at some sizes; the table says which.",
        7: "Every row is shown.",
    },
    "language_more": {
        1: _WINDOWS,
        2: "Whitening with a hundred thousand tokens and a tuned ridge, as its authors use it.",
        3: "No random ranks, no fine-tuning, no network trained from scratch: hours a network on two cores.",
        4: "Means over the same windows, not tested in pairs.",
        5: _BESIDE_TIME,
        6: "One draw throughout.",
        7: "Every row is shown.",
    },
    "encoder": {
        1: "The same sentences for all; nothing is trained after the cut.",
        2: "Whitening and plain factors with one share, as posed.",
        3: "No random ranks, no fine-tuning, no network trained from scratch.",
        4: "Not tested in pairs: a rank correlation over 1 379 pairs is one number a network.",
        5: "Two correlations, with the scores of people and of the dense network; no corrupted sentences, no memory.",
        6: "One draw.",
        7: "Every row is shown.",
    },
}


@dataclass(frozen=True)
class Finding:
    """What one rule says of one table or claim: the `problem`, "" where the rule is kept, and the `reason` that stands beside it.

    A rule `applies`, or has nothing to say of such a table or claim.
    """

    subject: str
    rule: int
    problem: str
    reason: str
    applies: bool = True

    @property
    def broken(self) -> bool:
        """Whether the rule is not kept and no reason says why."""
        return self.applies and bool(self.problem) and not self.reason.strip()


# ---- what the rows show ----------------------------------------------------------------------------------------------


def _parameters(rows: pd.DataFrame) -> list[dict]:
    texts = rows["run_parameters"].dropna().unique() if "run_parameters" in rows else []
    return [json.loads(text) for text in texts]


def _cut(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["chooser"] != "dense"]


def _has(rows: pd.DataFrame, column: str) -> pd.Series:
    return rows[column].notna() if column in rows else pd.Series(False, index=rows.index)


def one_rule(rows: pd.DataFrame) -> str:
    """Return how the methods of some rows are not treated alike; "" where they are."""
    told = []
    seen = {
        (p["samples"], p["calibration_images"])
        for p in _parameters(rows)
        if {"samples", "calibration_images"} <= set(p)
    }
    if apart := sorted(pair for pair in seen if pair[0] != pair[1]):
        told.append(
            "the convex programs see fewer images than the others: " + ", ".join(f"{a} of {b}" for a, b in apart)
        )
    if "calibration_images" in rows:
        counts = _cut(rows).groupby(["dataset", "network"])["calibration_images"].nunique()
        told += [
            f"{network} on {dataset} has several counts of calibration images"
            for dataset, network in counts[counts > 1].index
        ]
    sized = set(_cut(rows)["budget_kind"]) & {"kept", "macs"}
    if len(sized) > 1:
        told.append("sizes count parameters in some rows and MACs in others")
    if "finetuned_epochs" in rows:
        # a network from scratch takes the epochs of its dense network
        after = rows[rows["tuned"] != "from scratch"] if "tuned" in rows else rows
        if after["finetuned_epochs"].nunique() > 1:
            told.append("fine-tuning takes different numbers of epochs")
    return "; ".join(told)


def as_posed(rows: pd.DataFrame) -> str:
    """Return which of the papers' methods no row has as its authors pose it; "" where all have."""
    cut, lacking = _cut(rows), []
    own = {"energy": ("threshold", "drop"), "entropy": ("threshold", "drop")}
    for chooser, kinds in own.items():
        mine = cut[cut["chooser"] == chooser]
        if len(mine) and not (mine["budget_kind"].isin(kinds) & (mine["factors"] == "svd")).any():
            lacking.append(f"{chooser} at its own threshold")
    for chooser in ("DDLR", "Net-Trim"):
        mine = cut[cut["chooser"] == chooser]
        curve = mine[(mine["budget_kind"] == "epsilon") & (mine["cut"] == "none") & (mine["scope"] == "every layer")]
        if len(mine) and curve["budget"].nunique() < 2:
            lacking.append(f"{chooser} on its own curve over epsilon")
    for chooser in ("ENC-Map", "ENC-Model", "ENC-Inf"):
        mine = cut[cut["chooser"] == chooser]
        if len(mine) and not (mine["factors"] == "svd").any():
            lacking.append(f"{chooser} in plain factors")
    return "no row has " + ", ".join(lacking) if lacking else ""


def controls(rows: pd.DataFrame) -> str:
    """Return which controls the rows of a network lack; "" where every network has all of them."""
    lacking: dict[str, list[str]] = {}
    for (dataset, network), mine in rows.groupby(["dataset", "network"]):
        for control in _absent(mine, network):
            lacking.setdefault(control, []).append(f"{network} on {dataset}")
    told = [f"{control} ({', '.join(where)})" for control, where in lacking.items()]
    return "no row is a control: " + ", ".join(told) if told else ""


def _absent(rows, network):
    names = [name for name in ("chooser", "refit", "tuned") if name in rows]
    words = {str(word) for name in names for word in rows[name].dropna().unique()}
    asked = {"from scratch": "from scratch", "random": "random"}
    asked |= {"recalibrated": "batch norm recalibrated"} if network in WITH_BATCH_NORM else {}
    for word, control in asked.items():
        if not any(word in each for each in words):
            yield control
    if not ((rows["tuned"] == "fine-tuned").any() or _has(rows, "tuned_accuracy").any()):
        yield "fine-tuned"


def in_pairs(rows: pd.DataFrame) -> str:
    """Return why rows cannot be compared in pairs, by test images and over several runs; "" where they can."""
    told = []
    silent = (~_has(_cut(rows), "correct")).sum()
    if silent:
        told.append(f"{silent} of {len(_cut(rows))} rows do not record which test images are right")
    runs = rows.assign(draw=rows.get("draw")).groupby(["dataset", "network"])[["seed", "draw"]]
    few = [f"{network} on {dataset}" for (dataset, network), part in runs if len(part.drop_duplicates()) < 2]
    if few:
        told.append("one run alone: " + ", ".join(few))
    return "; ".join(told)


def more_than_accuracy(rows: pd.DataFrame) -> str:
    """Return what was not measured beside test accuracy; "" where all of it was."""
    cut = _cut(rows)
    measures = {"accuracy_corrupted": "corrupted test images", "memory_64": "memory", "latency_ms_1": "time"}
    # torch cannot tell what onnxruntime holds
    asked = {
        name: cut[cut["runtime"] == "torch"] if name == "memory_64" and "runtime" in cut else cut for name in measures
    }
    lacking = [word for name, word in measures.items() if not _has(asked[name], name).all()]
    return f"not measured in every row: {', '.join(lacking)}" if lacking else ""


def stable_order(rows: pd.DataFrame) -> str:
    """Return how many draws of calibration images there are, where they are fewer than rule 6 asks for; else ""."""
    draws = int(rows["draw"].nunique()) if "draw" in rows and rows["draw"].notna().any() else 1
    return f"{draws} draw{'s' * (draws > 1)} of calibration images, not {DRAWS}" if draws < DRAWS else ""


def shown(rows: pd.DataFrame, text: str) -> str:
    """Return which sizes of the rows do not stand in the `text` of a table (heading, caption and cells); "" where all do."""
    sized = _cut(rows)
    sized = sized[sized["budget_kind"].isin(["kept", "macs"])]
    said = set(re.findall(r"\d+(?:\.\d+)?", text))
    sizes = sorted(
        size for size in sized["budget"].dropna().unique() if f"{100 * size:g}" not in said and f"{size:g}" not in said
    )
    return (
        "sizes of the rows that it does not show: " + ", ".join(f"{100 * size:g} %" for size in sizes) if sizes else ""
    )


BY_ROWS: dict[int, Callable[[pd.DataFrame], str]] = {
    1: one_rule,
    2: as_posed,
    3: controls,
    4: in_pairs,
    5: more_than_accuracy,
    6: stable_order,
}


def by_rows(rows: pd.DataFrame) -> dict[int, str]:
    """Return {rule: problem} of rules 1 to 6, as far as rows show it; no problem where no network was cut."""
    compared = bool(len(rows)) and bool(len(_cut(rows)))
    return {rule: check(rows) if compared else "" for rule, check in BY_ROWS.items()}


# ---- tables and claims -----------------------------------------------------------------------------------------------


def _reason(chapter: ModuleType, heading: str, rule: int) -> str:
    # what a table leaves out is its own doing, so no reason for all of them excuses it
    unmet: Mapping[str, Mapping[int, str]] = getattr(chapter, "UNMET", {})
    whole = unmet.get("*", {}).get(rule, "") if rule != 7 else ""
    return unmet.get(heading, {}).get(rule) or whole


def judge_table(
    chapter: ModuleType, rows: pd.DataFrame, heading: str, table: str, problems: Mapping[int, str]
) -> list[Finding]:
    """Return what the seven rules say of one table (Markdown) of a chapter, drawn from the chapter's `rows`; `problems` of `by_rows`."""
    header, *lines = table.splitlines()
    cells = [
        cell
        for line in lines
        for cell in line.split("|")
        if re.fullmatch(r"\s*[\d.]+ %\s*|.*(?:macs|kept) [\d.]+\s*", cell)
    ]
    problems = {**problems, 7: shown(rows, " ".join((heading, chapter.CAPTIONS.get(heading, ""), header, *cells)))}
    return [Finding(heading, rule, problem, _reason(chapter, heading, rule)) for rule, problem in problems.items()]


def judge_claim(chapter: ModuleType, claim: Claim, found: Verdict, problems: Mapping[int, str]) -> list[Finding]:
    """Return what the seven rules say of a claim of a chapter, given its verdict and the `problems` of the chapter's rows."""
    problems = dict(problems)
    if claim.rule == "as in the paper":
        problems[1] = "; ".join(filter(None, ("the rule is the paper's own, not that of the others", problems[1])))
    problems[2] = found.said if claim.posed and found.holds == "-" else ""
    apart = sorted({way for way in found.paired_by if not way.startswith("images")})
    told = [f"paired by {', '.join(apart)}, not by test images"] * bool(apart)
    told += ["sizes are compared run by run, without a test"] * (claim.rule == "smaller")
    told += [f"one run alone in {found.paired_by.count('images')} settings"] * ("images" in found.paired_by)
    problems[4] = "; ".join(told)
    silent = {2: not claim.posed, 4: claim.rule in UNPAIRED}
    unnamed = [setting for setting, reason in found.left_out.items() if not reason.strip()]
    problems[7] = f"left out without a reason: {', '.join(unnamed)}" if unnamed else ""
    if not found.settings:
        problems[7] = "no setting is counted or named"
    subject = f"{claim.paper}: {claim.claim} ({claim.setting}; {claim.rule})"
    return [
        Finding(
            subject,
            rule,
            problem,
            claim.unmet.get(rule, "") or _reason(chapter, gallery.CLAIMS, rule),
            not silent.get(rule, False),
        )
        for rule, problem in problems.items()
    ]


def findings(folder: str | Path | None = None) -> list[Finding]:
    """Return what the seven rules say of every published table and claim. `folder` defaults to outputs/gallery."""
    everything, found = gallery.published_rows(folder=folder), []
    verdicts = gallery.judged(folder)
    for notebook, chapter in chapters.every().items():
        rows = everything[everything["notebook"] == notebook]
        if not len(rows):
            continue
        problems = by_rows(rows)
        for heading, table in chapter.tables(rows).items():
            found += judge_table(chapter, rows, heading, table, problems)
        mine = {id(claim) for claim in getattr(chapter, "CLAIMS", ())}
        for claim, verdict in verdicts:
            if id(claim) in mine:
                found += judge_claim(chapter, claim, verdict, problems)
    return found + list(_controls(folder)) + list(_pages(folder))


def _controls(folder: str | Path | None) -> Iterator[Finding]:
    from lowrank_utils.workbook import controls as page

    table = page.published(folder or gallery.paths.GALLERY)
    if table is None:
        return
    for (dataset, network), mine in page.shown(table).groupby(["dataset", "network"], sort=False):
        # ours is what the others are paired with
        first = mine["right_alone"].where(mine["method"] != "ours", 0).where(mine["draw"] == 0)
        problems = by_rows(mine.assign(cut="none", budget_kind="macs", correct=first))
        text = " ".join(page.accuracies(mine).columns)
        problems[7] = shown(mine.assign(budget_kind="macs"), text)
        for rule, problem in problems.items():
            reason = page.UNMET.get(str(network), {}).get(rule) or page.UNMET["*"].get(rule, "")
            yield Finding(f"controls: {network} on {dataset}", rule, problem, reason)


def _pages(folder: str | Path | None) -> Iterator[Finding]:
    for name in (*NO_METHODS, *PAGES):
        page = importlib.import_module(f"lowrank_utils.workbook.{name}")
        if page.published(folder or gallery.paths.GALLERY) is not None:
            for rule in RULES:
                reason = NO_METHODS.get(name) or PAGES[name].get(rule, "")
                yield Finding(f"page: {name}", rule, "not judged from rows", reason, name not in NO_METHODS)


def card(found: Sequence[Finding]) -> str:
    """Return the findings as a Markdown table: one line a table or claim, kept, a reason (numbered below it), - where the rule does not apply, or **broken**."""
    reasons: dict[str, int] = {}
    lines: dict[str, list[str]] = {}
    for one in found:
        mark = "kept"
        if not one.applies:
            mark = "-"
        elif one.broken:
            mark = "**broken**"
        elif one.problem:
            mark = f"no ({reasons.setdefault(one.reason, len(reasons) + 1)})"
        lines.setdefault(one.subject, []).append(mark)
    table = markdown(["table or claim", *map(str, RULES)], ([subject, *marks] for subject, marks in lines.items()))
    notes = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    return f"{table}\n\n{notes}" if notes else table


def summary(found: Sequence[Finding]) -> str:
    """Return how often each rule is kept, not kept (or not judged from rows) with a reason, does not apply, and is broken, as a Markdown table."""
    lines = []
    for rule, text in RULES.items():
        mine = [one for one in found if one.rule == rule and one.applies]
        silent = sum(one.rule == rule and not one.applies for one in found)
        broken = sum(one.broken for one in mine)
        kept = sum(not one.problem for one in mine)
        lines.append([str(rule), text, str(kept), str(len(mine) - kept - broken), str(silent), str(broken)])
    return markdown(["rule", "", "kept", "not kept, with a reason", "does not apply", "broken"], lines)


def section(folder: str | Path | None = None) -> str:
    """Return the part of the gallery's page that shows the comparison card."""
    found = findings(folder)
    return f"""## Comparison card

Every table and claim of this page under seven rules of fair comparison, as `python -m lowrank_utils audit` judges them. A number in brackets is the reason, below, for a rule that
is not kept, or that rows cannot judge; "-" stands where a rule does not apply.

{summary(found)}

{card(found)}
"""
