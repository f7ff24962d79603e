"""Texts by name, checked by content and split into train, valid and test; and windows of tokens cut from them.

``python-topics`` (the language reference in every Python), ``wikitext-2`` and ``file:PATH``. Selection and calibration
use train and valid, never test. A text knows no tokens: the tokenizer belongs to the model (`lab.language`).
"""

from __future__ import annotations

import hashlib
import http.client
import platform
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_utils import paths
from lowrank_utils.checks import check_count
from lowrank_utils.lab.fetch import DataUnavailable, patience, said, sha256, unpack

if TYPE_CHECKING:
    import torch

NAMES = ("python-topics", "wikitext-2")
SPLITS = ("train", "valid", "test")

ARCHIVE = "wikitext-2-raw-v1.zip"
ADDRESSES = (  # where it was published, its first author's own copy, and a copy that many tools fetch
    f"https://s3.amazonaws.com/research.metamind.io/wikitext/{ARCHIVE}",
    f"https://wikitext.smerity.com/{ARCHIVE}",
    f"https://huggingface.co/datasets/ggml-org/ci/resolve/927b3642933080f1b0e811e2f916e14c292992f9/{ARCHIVE}",
)
ARCHIVE_SHA256 = "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11"
PUBLISHED = {  # SHA-256 of the files in the archive
    "train": "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",
    "valid": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
    "test": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
}
CONTENT = {  # SHA-256 of what `_lines` makes of a file, whatever its line ends and blank lines
    ("raw", "test"): "bbf94c53a05abe9ee670d3b6343608095822c85e26de37c70b24fc571964574a",
    ("tokens", "valid"): "a3c995f97e3c638c50876bdfe8a82b0aa5113355f3e71d9c0f82eb37eba0812b",
    ("tokens", "test"): "3c4f057954afa44296895bdb25edc1ecf624ca56523ce1df4f1848b67f0fccc2",
}
TRAIN_WORDS = 2_051_910  # 2 088 628 tokens in Merity et al. 2016, table 1, less one for the end of each of 36 718 lines


@dataclass(frozen=True, eq=False)
class Text:
    """A text in three splits.

    `parts` holds them by name, ``{"train": str, "valid": str, "test": str}``; of WikiText-2 some may be `absent`, each
    with a sentence that says which file is missing. `fingerprint` names the content, `version` what it comes from where
    that matters, `note` what was done to it.
    """

    name: str
    parts: Mapping[str, str]
    absent: Mapping[str, str]
    fingerprint: str
    version: str
    note: str

    def split(self, name: str) -> str:
        """Return one split; raise ValueError for an unknown one, DataUnavailable for one that is not on this machine."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}: choose train, valid or test")
        if name in self.absent:
            raise DataUnavailable(self.absent[name])
        return self.parts[name]

    @property
    def train(self) -> str:
        """The split to calibrate on."""
        return self.split("train")

    @property
    def valid(self) -> str:
        """The split to tune on."""
        return self.split("valid")

    @property
    def calibration(self) -> str:
        """The training split, or the validation split where the training split is not on this machine."""
        return self.valid if "train" in self.absent else self.train

    @property
    def test(self) -> str:
        """The split for the score, looked at last."""
        return self.split("test")


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of tokens: `ids` (int64, N x length), with what a score needs to know of them.

    Every token but the first of a window is scored: `tokens` counts these, `bytes` the UTF-8 bytes of their text.
    `fingerprint` is the SHA-256 of the ids and the length.
    """

    ids: torch.Tensor
    bytes: int
    tokens: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)


def load(name: str = "python-topics", root: str | Path | None = None) -> Text:
    """Return the text `name`, fetched first where it needs a file that is not on disk.

    `python-topics` is `pydoc_data.topics` of the running Python, some 370 kB of English that need no file. `wikitext-2` is
    Merity et al. 2016, raw or tokenised (`_wikitext`). `file:PATH` is a UTF-8 text of your own: its paragraphs, in order,
    are 80 % train, 10 % valid and 10 % test by size; a relative PATH starts at the project root.

    `root` is where data lie (default: the project's data folder). Raises ValueError for an unknown name, other content
    than was published, and a text that cannot be split; DataUnavailable where no source has it.

    >>> text = load("python-topics")
    >>> len(text.train) > 4 * len(text.test) > 0
    True
    """
    if name == "python-topics":
        return _topics()
    if name == "wikitext-2":
        return _wikitext(Path(root or paths.DATA) / name)
    if is_text(name):
        return _own(name)
    raise ValueError(f"unknown text {name!r}: choose {', '.join(NAMES)} or file:PATH")


def is_text(name: Any) -> bool:
    """Return whether `name` is that of a text.

    >>> is_text("wikitext-2"), is_text("file:my.txt"), is_text("file:"), is_text("mnist")
    (True, True, False, False)
    """
    return isinstance(name, str) and (name in NAMES or (name.startswith("file:") and name != "file:"))


def describe(name: str, root: str | Path | None = None) -> str:
    """Return a few aligned lines about a text, fetched if need be: its splits with their sizes, and its fingerprint.

    >>> print(describe("python-topics"))  # doctest: +ELLIPSIS
    text         python-topics
    version      Python ...
    train        ... bytes
    valid        ... bytes
    test         ... bytes
    fingerprint  ...
    note         ...
    """
    text = load(name, root)
    rows = {"text": name} | ({"version": text.version} if text.version else {})
    for split in SPLITS:
        rows[split] = text.absent[split] if split in text.absent else f"{len(text.parts[split].encode()):,} bytes"
    rows |= {"fingerprint": text.fingerprint} | ({"note": text.note} if text.note else {})
    return "\n".join(f"{key:<11}  {value}" for key, value in rows.items())


def windows(text: str, tokenizer: Any, length: int, count: int | None = None, seed: int | None = None) -> Windows:
    """Return `Windows` of `length` tokens, cut from `text` one behind the other; what is left at its end is dropped.

    Without `seed` they are the first `count` (None: all there are), with it `count` of them drawn without replacement. No
    token that is not in the text is added, such as one for its beginning: the first token of a window is only read.

    Parameters
    ----------
    text : one split of a `Text`.
    tokenizer : that of the model, a fast one of transformers (`lab.language.Language.tokenizer`).
    length : tokens a window, at least 2.

    Raises
    ------
    ValueError for a text that is shorter than the windows asked for, and for a tokenizer that does not say where in the
    text its tokens begin.
    """
    import torch

    check_count(2, length=length)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"the tokenizer {type(tokenizer).__name__} is a slow one, which does not say where its tokens begin: load a fast one"
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False) if text else None
    ids, offsets = (encoded["input_ids"], encoded["offset_mapping"]) if encoded else ([], [])
    there = len(ids) // length
    wanted = max(there, 1) if count is None else count
    check_count(count=wanted)
    if wanted > there:
        raise ValueError(
            f"the text has {len(ids)} tokens, fewer than {wanted} x {length}: take a longer text, or fewer or shorter windows"
        )
    chosen = torch.arange(there)[:wanted]
    if seed is not None:
        check_count(0, seed=seed)
        chosen = torch.randperm(there, generator=torch.Generator().manual_seed(seed))[:wanted]
    cut = torch.tensor(ids[: there * length], dtype=torch.int64).view(there, length)[chosen]
    # a token's text reaches to where the next one begins, so that no byte counts twice where tokens share a character
    begins = [begin for begin, _ in offsets] + [len(text)]
    spans = ((begins[at * length + 1], begins[(at + 1) * length]) for at in chosen.tolist())
    digest = hashlib.sha256(f"{length}\n".encode() + cut.numpy().tobytes()).hexdigest()
    return Windows(cut, sum(len(text[a:b].encode()) for a, b in spans), wanted * (length - 1), digest)


def _text(name, parts, absent=None, version="", note=""):
    digests = [f"{split} {hashlib.sha256(parts[split].encode()).hexdigest()}" for split in SPLITS if split in parts]
    fingerprint = hashlib.sha256("\n".join([version, *digests]).encode()).hexdigest()
    return Text(name, parts, absent or {}, fingerprint, version, note)


def _paragraphs(text: str) -> list[str]:
    return [part.rstrip() for part in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")) if part.strip()]


# The topics of the running Python.


def _topics() -> Text:
    """Return the text of `pydoc_data.topics`.

    A topic's name, not its text, decides on its split: names hardly change from one Python to the next. Long topics hold
    shorter ones whole; a paragraph that stands in several is kept once, in test before valid before train, so that no
    calibration text comes back in the score.
    """
    from pydoc_data.topics import topics

    named = {split: [name for name in sorted(topics) if _split_of(name) == split] for split in SPLITS}
    seen, parts = set(), {}
    for split in reversed(SPLITS):
        kept = []
        for paragraph in (part for name in named[split] for part in _paragraphs(topics[name])):
            words = " ".join(paragraph.split())
            if words not in seen:
                seen.add(words)
                kept.append(paragraph)
        parts[split] = "\n\n".join(kept) + "\n"
    counts = ", ".join(f"{len(named[split])} {split}" for split in SPLITS)
    note = f"topics: {counts}; a paragraph that stands in several is kept once"
    return _text("python-topics", parts, version=f"Python {platform.python_version()}", note=note)


def _split_of(topic: str) -> str:
    first = hashlib.sha256(topic.encode()).digest()[0]  # a tenth of 256 each to test and valid
    return "test" if first < 26 else "valid" if first < 52 else "train"


# WikiText-2: files put by hand, or the published archive.


def _wikitext(folder: Path) -> Text:
    """Return WikiText-2 from the files in `folder`: for each split the raw form, else the tokenised one.

    Raw is ``wiki.SPLIT.raw``; tokenised ``wiki.SPLIT.tokens`` or ``SPLIT.txt``, from which ``<unk>`` is dropped, its share
    told in the note. A text is the lines that are not blank, so that it is the same from every source.
    """
    if not any(_file(folder, split) for split in SPLITS):
        _fetch_wikitext(folder)
    parts, absent, notes = {}, {}, []
    for split in SPLITS:
        if (path := _file(folder, split)) is None:
            absent[split] = (
                f"wikitext-2 has no {split} text on this machine: put wiki.{split}.raw into {folder}, or empty that folder "
                "and run `python -m lowrank_utils data wikitext-2`"
            )
            continue
        parts[split] = _checked(path, split)
        if path.suffix != ".raw":
            words = parts[split].split()
            share = words.count("<unk>") / len(words)
            parts[split] = parts[split].replace(" <unk>", "")
            notes.append(f"{split} is the tokenised form, of whose words {share:.1%} were <unk> and are dropped")
    return _text("wikitext-2", parts, absent, note="; ".join(notes))


def _file(folder: Path, split: str) -> Path | None:
    names = (f"wiki.{split}.raw", f"wiki.{split}.tokens", f"{split}.txt")
    return next((folder / name for name in names if (folder / name).exists()), None)


def _lines(content: bytes) -> str:
    """Return the lines that are not blank, each as published: between two spaces."""
    stripped = (line.strip() for line in content.decode().split("\n"))
    return "".join(f" {line} \n" for line in stripped if line)


def _checked(path: Path, split: str) -> str:
    form = "raw" if path.suffix == ".raw" else "tokens"
    content = path.read_bytes()
    try:
        text = _lines(content)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not WikiText-2: {said(error)}; delete or replace it") from error
    whole, lines = (hashlib.sha256(held).hexdigest() for held in (content, text.encode()))
    if (form, split) == ("tokens", "train"):  # no digest is on record; its words are counted in the paper
        right = len(text.split()) == TRAIN_WORDS
    else:
        right = lines == CONTENT.get((form, split)) or (form == "raw" and whole == PUBLISHED[split])
    if not right:
        raise ValueError(
            f"{path} is not the published {split} text of WikiText-2 (SHA-256 {whole[:12]}...): delete or replace it"
        )
    return text


def _fetch_wikitext(folder: Path) -> None:
    import torch

    tried = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataUnavailable(f"{folder} cannot be made ({said(error)}): make its folder writable") from error
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        for address in ADDRESSES:
            print(f"wikitext-2: asking {address}", file=sys.stderr)
            archive = Path(temporary, ARCHIVE)
            try:
                with patience(20):
                    torch.hub.download_url_to_file(address, str(archive), progress=False)
                if sha256(archive) != ARCHIVE_SHA256:
                    raise OSError(f"its SHA-256 starts with {sha256(archive)[:12]}, not {ARCHIVE_SHA256[:12]}")
                for split in SPLITS:
                    unpack(archive, f"wikitext-2-raw/wiki.{split}.raw", folder / f"wiki.{split}.raw")
                return
            except (OSError, http.client.HTTPException, zipfile.BadZipFile) as error:
                tried.append(f"{address} said: {said(error)}")
    raise DataUnavailable(
        f"no source has wikitext-2: {'; '.join(tried)}. Put wiki.train.raw, wiki.valid.raw and wiki.test.raw into {folder} "
        "yourself, or take text=python-topics, which needs no file"
    )


# A text of the reader's own.


def _own(name: str) -> Text:
    path = paths.ROOT / Path(name.removeprefix("file:")).expanduser()
    try:
        paragraphs = _paragraphs(path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({said(error)}): name a text file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({said(error)}): save it as UTF-8") from error
    held = _in_order(paragraphs, (0.8, 0.9))
    if not all(held):
        raise ValueError(
            f"{path} has {len(paragraphs)} paragraphs, too few or too unequal to give a tenth each to valid and test: "
            "part them by blank lines, or take a longer text"
        )
    return _text(name, {split: "\n\n".join(part) + "\n" for split, part in zip(SPLITS, held)})


def _in_order(paragraphs: Iterable[str], ends: tuple[float, ...]) -> list[list[str]]:
    """Return the paragraphs in groups: each belongs where its middle lies, `ends` as shares of all characters."""
    paragraphs = list(paragraphs)
    total, before = sum(map(len, paragraphs)), 0
    groups: list[list[str]] = [[] for _ in range(len(ends) + 1)]
    for paragraph in paragraphs:
        middle = (before + len(paragraph) / 2) / total
        groups[sum(middle >= end for end in ends)].append(paragraph)
        before += len(paragraph)
    return groups
