"""The front page: what the README and the pages in docs say in numbers, written from the published rows.

A page marks what is written for it: ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` around a block of `BLOCKS`. Tables
under the headings of the gallery are renewed as well. A finding whose numbers no longer support its words is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lowrank_utils import paths
from lowrank_utils.workbook import batch_norm, chapters, explorer, explorer_page, gallery, jobs, language
from lowrank_utils.workbook.front_figures import DRAWN
from lowrank_utils.workbook.front_results import PARAGRAPHS
from lowrank_utils.workbook.runs import RunError
from lowrank_utils.workbook.tables import markdown, thousands

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTIONS = {
    "00_low_rank_in_ten_minutes": "What does low rank save in one layer, and what does it cost?",
    "01_training": "How is a network trained and kept so that anyone can check it?",
    "02_arsvd": "Can the spectrum of each layer say how many components to keep?",
    "02b_convolutions": "A convolution is a matrix in three ways: which one keeps the accuracy?",
    "03_entropy_pruning": "Can entropy point at the parameters that say little?",
    "04_ddlr": "Which weights of the lowest rank keep a layer's outputs, and can we prove it?",
    "05_rank_search": "Which ranks are best for all layers under one budget?",
    "06_side_by_side": "Which method should I use?",
    "07_language_model": "Do ranks or factors decide in a language model?",
}
HEADLINES = (  # (paper, claim as in the claim table, the same in a reader's words)
    ("ARSVD", "adaptive ranks (energy) beat a fixed rank", "adaptive ranks beat one fixed rank"),
    ("ARSVD", "substantial compression without losing accuracy", "much smaller without losing accuracy"),
    ("DDLR", "far fewer parameters, little accuracy lost, no retraining", "far fewer parameters, no retraining"),
    ("DDLR", "consistently ahead of Net-Trim", "always ahead of sparse weights (Net-Trim)"),
    ("ENC", "ranks of the whole network at once are the better compromise", "ranks of all layers at once are better"),
    ("ENC", "accuracy of ResNet-56 at half of the FLOPs, no fine-tuning", "ResNet-56 at half of the FLOPs keeps 90 %"),
)
PLAIN = {  # what the claim table says in short, and a reader of the README in words
    r" \(no more than \d+ in \d+\)": "",
    r", not counted .*": "",
    r", whose dense accuracy is not at hand": "",
    r"(ahead in \d+ of \d+)": r"\1 comparisons",
    r"((?:holds|smaller) in \d+ of \d+)": r"\1 networks",
    r", [\d.]+ to [\d.]+ against [\d.]+ to [\d.]+ points lost on test": "",
    r"the first draw goes from [\d.]+ to ([\d.]+ % with batch norms recalibrated).*": r"\1",
    r"Net-Trim, non-zeros": "Net-Trim with as many non-zero weights",
    r"Net-Trim, with indices": "Net-Trim with its indices counted",
}
OURS = (
    "the same, improved",
    "little loss, improved",
    "lossless compression, improved",
    "one epsilon a layer",
    "control",
)  # how claims begin that no paper makes
HALF, MOST, LESS = 0.5, 0.9, 0.6  # of the MACs; of the parameters of the blocks
RESNETS = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}
BLOCK = re.compile(r"(<!-- begin ([\w-]+) -->\n)(.*?)(<!-- end \2 -->)", re.S)
EXPLORER = "docs/explore.html"
PICTURE = re.compile(r"figures/([\w-]+)\.png")
SAME = 5e-5  # shares that print alike


# ---- what the findings rest on -----------------------------------------------------------------------------------


class Source:
    """The published rows below `folder` (default: outputs/gallery), each part computed once, when it is first asked for."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder or paths.GALLERY)

    @cached_property
    def idea(self) -> pd.DataFrame:
        return idea_rows()

    @cached_property
    def factors(self) -> pd.DataFrame:
        return factors_rows(self.folder)

    @cached_property
    def ranks(self) -> pd.DataFrame:
        return ranks_rows(self.folder)

    @cached_property
    def judged(self) -> pd.DataFrame:
        return gallery.claims(self.folder)

    @cached_property
    def claims(self) -> pd.DataFrame:
        return own_claims(self.judged)

    @cached_property
    def tables(self) -> dict[str, str]:
        """The tables of the gallery by their headings, the claims in short."""
        short = gallery.claims_in_short(self.folder, self.judged)
        return gallery.published_tables(self.folder, self.judged) | {gallery.CLAIMS: short}


def factors_rows(folder: str | Path | None = None) -> pd.DataFrame:
    """Return one row a network and kind of factors: accuracy at half of the MACs, one share of the rank for every layer.

    Columns: network, factors (dense, svd, svd recalibrated, data-aware, sequential, relu-aware, fisher-weighted), accuracy.
    Rows of notebook 02b, and those of `batch_norm` for plain factors with recalibrated batch norms.
    """
    table = gallery.published_rows(notebook="02b_convolutions", folder=folder)
    again, found = _there(batch_norm, folder), []
    for network in RESNETS:
        mine = table[table["network"] == network]
        found.append((network, "dense", mine.loc[mine["chooser"] == "dense", "accuracy"].mean()))
        cut = mine[(mine["chooser"] == "fixed") & (mine["budget_kind"] == "macs") & (mine["tuned"] == "none")]
        means = cut[cut["budget"] == HALF].groupby("factors")["accuracy"].mean()
        found += [(network, kind, accuracy) for kind, accuracy in means.items()]
        one = again[(again["network"] == network) & (again["chooser"] == "fixed")].iloc[0]
        if abs(one["accuracy"] - means["svd"]) > SAME:
            raise RunError(f"{network}: notebook 02b and the rows of batch norms disagree on plain factors")
        found.append((network, "svd recalibrated", one["recalibrated"]))
    return pd.DataFrame(found, columns=["network", "factors", "accuracy"])


def ranks_rows(folder: str | Path | None = None) -> pd.DataFrame:
    """Return perplexity of the language model, one row a chooser, factors and share of the blocks' parameters: a mean over draws.

    Columns: chooser, factors, budget, perplexity (exp of the mean loss), draws.
    """
    table = _there(language, folder)
    shown = table["chooser"].isin(["dense", "one share", "exact"])
    shown &= table["factors"].isin(["none", "data-aware", "fisher-layerwise"])
    by = table[shown].groupby(["chooser", "factors", "budget"])["loss"]
    return by.agg(perplexity="mean", draws="count").reset_index().assign(perplexity=lambda t: np.exp(t["perplexity"]))


def _there(measured: ModuleType, folder: str | Path | None) -> pd.DataFrame:
    rows = measured.published(folder)
    if rows is None:
        raise RunError(f"{measured.NAME}.csv is missing from the gallery, and the README quotes it")
    return rows


def own_claims(table: pd.DataFrame) -> pd.DataFrame:
    """Return the papers' own claims of a claim table, one row a setting: paper, claim, setting, ours, holds; our versions are left out."""
    table = table[~table["claim"].str.startswith(OURS)]
    return table[["paper", "claim", "setting", "ours", "holds"]].reset_index(drop=True)


def idea_rows() -> pd.DataFrame:
    """Return the first layer of the shipped LeNet-300-100 as a table, outputs x inputs."""
    from safetensors.torch import load_file

    from lowrank_utils.lab import checkpoints

    stored = load_file(checkpoints.published_path("fashion-mnist", "lenet300"))
    first = next(tensor for tensor in stored.values() if tensor.ndim == 2)
    return pd.DataFrame(first.float().numpy())


# ---- blocks ------------------------------------------------------------------------------------------------------


def notebooks_block(source: Source) -> str:
    """Return the table of notebooks: its name, the question it answers, and how long it says it runs."""
    import nbformat

    lines = []
    for name, path in jobs.notebooks(paths.NOTEBOOKS).items():
        if name not in QUESTIONS:
            raise RunError(f"notebook {name} has no question: add one to QUESTIONS in workbook/front.py")
        first = nbformat.read(path, as_version=4).cells[0].source
        runs_in = re.search(r"\*\*Runs in\*\* (?:about )?(.*?) on ", first)
        if not runs_in:
            raise RunError(f"notebook {name} does not say **Runs in** ... in its first cell")
        lines.append([f"[{name}](notebooks/{name}.ipynb)", QUESTIONS[name], runs_in[1]])
    return markdown(["notebook", "question", "runs in (two cores)"], lines)


def factors_block(source: Source) -> str:
    """Return the first finding in words. Raises RunError where the rows no longer support it."""
    table = source.factors
    by = {network: mine.set_index("factors")["accuracy"] for network, mine in table.groupby("network")}
    for network, of in by.items():
        rising = of[["svd", "svd recalibrated", "sequential", "dense"]]
        _supported(bool((rising.diff().iloc[1:] > 0).all()), f"factors decide on {network}", rising)
    of, deep = by["resnet20"] * 100, by["resnet56"] * 100
    images = _there(batch_norm, source.folder)["images"].iloc[0]
    return (
        f"With half of the multiply-accumulates, and the same share of the rank in every layer, plain SVD factors leave ResNet-20 at {of['svd']:.1f} % "
        f"on CIFAR-10 (dense {of['dense']:.1f} %). With the same ranks, factors fitted from front to back keep {of['sequential']:.1f} %.\n\n"
        f"Much of this gap comes from outdated statistics of batch norms. Measured again on {thousands(images)} training images, they bring plain "
        f"factors to {of['svd recalibrated']:.1f} %. On ResNet-56 (dense {deep['dense']:.1f} %) plain factors keep {deep['svd']:.1f} %, "
        f"fitted ones {deep['sequential']:.1f} %, and plain ones with new statistics {deep['svd recalibrated']:.1f} %."
    )


def ranks_block(source: Source) -> str:
    """Return the second finding in words. Raises RunError where the rows no longer support it."""
    table = source.ranks.set_index(["chooser", "factors", "budget"])
    of = table["perplexity"]
    dense = of["dense"].iloc[0]

    def four(budget: float) -> tuple[float, float, float, float]:
        pairs = [(c, f) for f in ("data-aware", "fisher-layerwise") for c in ("one share", "exact")]
        plain, ranks, factors, both = (float(of[chooser, factors, budget]) for chooser, factors in pairs)
        return plain, ranks, factors, both

    plain, ranks, factors, both = four(MOST)
    _supported(dense < both < ranks < factors < plain, "ranks decide in the language model", of)
    less = four(LESS)
    _supported(less[3] < less[2] < less[1] < less[0], "factors decide where less is kept", of)
    draws = {share: int(table["draws"].xs(share, level="budget").min()) for share in (MOST, LESS)}
    told = f"{draws[MOST]} draw{'s' * (draws[MOST] > 1)} of the calibration text"
    if draws[LESS] != draws[MOST]:
        told += f" at {100 * MOST:.0f} %, {draws[LESS]} at {100 * LESS:.0f} %"
    return (
        f"SmolLM2-135M keeps {100 * MOST:.0f} % of the parameters of its blocks. With SVD-LLM's factors and one share for all matrices, its perplexity on "
        f"WikiText-2 rises from {dense:.1f} to {plain:.1f}. Better factors alone (Fisher-weighted) give {factors:.1f}, better ranks alone "
        f"(exact search) {ranks:.1f}, both {both:.1f}. At {100 * LESS:.0f} % the factors matter more: {less[0]:.1f} with neither, {less[2]:.1f} with better "
        f"factors, {less[1]:.1f} with better ranks, {less[3]:.1f} with both ({told})."
    )


def papers_block(source: Source) -> str:
    """Return six lines: what a paper claims, the verdict and numbers of its first setting, which is the one closest to the paper, and
    the verdicts of its other settings where they differ."""
    table, lines = source.claims, []
    for paper, claim, words in HEADLINES:
        mine = table[(table["paper"] == paper) & (table["claim"] == claim)]
        if mine.empty:
            raise RunError(f"the claim table has no line {paper}: {claim}; change HEADLINES in workbook/front.py")
        first = mine.iloc[0]
        told = re.split(r"; (?:paired by|2 points)", first["ours"])[0].removeprefix("1 point: ")
        for pattern, plain in PLAIN.items():
            told = re.sub(pattern, plain, told)
        if "smaller in" in told and "non-zeros counted alone" in first["setting"]:
            told += " (only non-zero weights counted)"
        # the first of two is for one point lost
        verdict, *others = (holds.split(" / ")[0].replace("-", "not measured") for holds in mine["holds"])
        unlike = [other for other in others if other != verdict]
        more = f"; other setting{'s' * (len(unlike) > 1)}: {', '.join(dict.fromkeys(unlike))}" if unlike else ""
        lines.append([f"{paper}: {words}", told if verdict == "not measured" else f"**{verdict}**: {told}{more}"])
    return markdown(["claim", "we found"], lines)


def _supported(true: bool, finding: str, numbers: pd.Series) -> None:
    if not true:
        raise RunError(
            f"the rows no longer support the finding that {finding} ({numbers.round(3).to_dict()}): "
            "change its words in workbook/front.py"
        )


def _paragraph(source: Source, write: Callable[[Mapping[str, str]], str]) -> str:
    return write(source.tables)


BLOCKS: dict[str, Callable[[Source], str]] = {
    "notebooks": notebooks_block,
    "factors": factors_block,
    "ranks": ranks_block,
    "papers": papers_block,
    **{name: partial(_paragraph, write=write) for name, write in PARAGRAPHS.items()},
}


# ---- pages -------------------------------------------------------------------------------------------------------


def pages() -> list[Path]:
    """Return the pages that may hold numbers: the README and those in docs."""
    return [path for path in (paths.ROOT / "README.md", *sorted((paths.ROOT / "docs").glob("*.md"))) if path.is_file()]


def filled(text: str, source: Source | None = None) -> str:
    """Return the text of a page with its blocks and its tables of the gallery written anew.

    Raises RunError for a block that nobody writes, one that does not end, and a finding that the rows do not support.

    >>> filled("# A page\\nwithout blocks.\\n")
    '# A page\\nwithout blocks.\\n'
    """

    source = source or Source()

    def written(found: re.Match[str]) -> str:
        start, name, _, end = found.groups()
        if name not in BLOCKS:
            raise RunError(f"nobody writes a block {name!r}; known: {', '.join(BLOCKS)}")
        try:
            return f"{start}{BLOCKS[name](source)}\n{end}"
        except (KeyError, IndexError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
            raise RunError(
                f"the block {name!r} cannot be written from these rows ({said}): see workbook/front.py"
            ) from error

    whole = BLOCK.findall(text)
    if text.count("<!-- begin ") != len(whole) or text.count("<!-- end ") != len(whole):
        raise RunError("a block begins that does not end, or the other way round")
    text = BLOCK.sub(written, text)
    known = {gallery.CLAIMS}.union(*(chapter.CAPTIONS for chapter in chapters.every().values()))
    if known & set(re.findall(r"^#+ (.*)$", text, re.M)):
        text = _captioned(gallery.quote(text, source.tables))
    return text


def _captioned(text: str) -> str:
    """Return a page with the words between a heading and its table as the chapters have them, which the gallery shows too."""
    for chapter in chapters.every().values():
        for heading, caption in chapter.CAPTIONS.items():
            between = rf"(?m)^(#+ {re.escape(heading)}\n)(?:(?![#|]).*\n)*(?=\|)"
            text = re.sub(between, lambda found, caption=caption: f"{found[1]}\n{caption}\n\n", text)
    return text


def digest(rows: pd.DataFrame) -> str:
    """Return a short digest of the numbers that a picture shows: four digits of each, so that it is the same on every machine.

    >>> digest(pd.DataFrame({"a": [1.00001, 2]})) == digest(pd.DataFrame({"a": [1.0, 2]}))
    True
    """
    told = rows.to_csv(index=False, float_format="%.4g")
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def drawn(name: str, source: Source) -> tuple[Figure, str]:
    """Return a picture of the front page and the `digest` of its rows. Raises RunError for an unknown name."""
    if name not in DRAWN:
        raise RunError(f"nobody draws a picture {name!r}; known: {', '.join(DRAWN)}")
    rows = getattr(source, name)
    return DRAWN[name](rows), digest(rows)


def _pictures(texts: list[str]) -> list[str]:
    return sorted({name for text in texts for name in PICTURE.findall(text)})


def _place(name: str) -> Path:
    return paths.ROOT / "docs" / "figures" / f"{name}.png"


def recorded(path: Path) -> str:
    """Return the digest that a picture was drawn from, "" where there is no picture or it does not say."""
    from PIL import Image

    if not path.is_file():
        return ""
    with Image.open(path) as image:
        return json.loads(image.info.get("Comment", "{}")).get("rows", "")


def _explorer(source: Source) -> dict[Path, str]:
    """Return {path: text} of the explorer's page, nothing where its numbers or the page's own parts are not there (a wheel has no docs)."""
    numbers = source.folder / f"{explorer.NAME}.json"
    if not (numbers.is_file() and explorer_page.PAGE.is_dir()):
        return {}
    try:
        explorer.read(numbers)
    except ValueError as error:
        raise RunError(f"the page of the explorer cannot be written: {error}") from error
    return {paths.ROOT / EXPLORER: explorer_page.whole(numbers)}


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text("utf-8") == text


def stale(folder: str | Path | None = None) -> list[Path]:
    """Return the pages and pictures that no longer say what the rows say, and the explorer's page where it holds other numbers."""
    source = Source(folder)
    texts = {path: path.read_text("utf-8") for path in pages()}
    old = [path for path, text in texts.items() if filled(text, source) != text]
    names = _pictures(list(texts.values()))
    old += [_place(name) for name in names if recorded(_place(name)) != digest(getattr(source, name))]
    return old + [path for path, text in _explorer(source).items() if not _holds(path, text)]


def write(folder: str | Path | None = None) -> list[Path]:
    """Write the blocks, tables and pictures of the README and of docs, and the explorer's page; return the paths that changed.

    Nothing is written where one of them cannot be.
    """
    source, changed = Source(folder), []
    texts = {path: path.read_text("utf-8") for path in pages()}
    new = {path: filled(text, source) for path, text in texts.items()} | _explorer(source)
    figures = {_place(name): drawn(name, source) for name in _pictures(list(texts.values()))}
    for path, text in new.items():
        if not _holds(path, text):
            with paths.atomic_write(path) as temporary:
                temporary.write_text(text, "utf-8")
            changed.append(path)
    for path, (figure, mark) in figures.items():
        if recorded(path) != mark:
            about = {"Software": None, "Comment": json.dumps({"rows": mark})}
            with paths.atomic_write(path) as temporary:
                figure.savefig(temporary, format="png", metadata=about)
            changed.append(path)
    return changed
