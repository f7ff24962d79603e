"""Pairs of sentences with a similarity judged by people: the STS benchmark (Cer et al. 2017), checked by content.

Its files are fetched where there is a network, or put by hand; git tracks none of them. The scores are under CC BY-SA 4.0,
and each source of sentences has a licence of its own, which the benchmark's LICENSE.txt names.
"""

from __future__ import annotations

import http.client
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank_utils import paths
from lowrank_utils.lab.fetch import DataUnavailable, patience, said, sha256

NAME = "stsbenchmark"
ADDRESS = (  # the copy in plain ASCII that the digests below are of
    "https://github.com/zhangzhenhu/Semantic-Texual-Similarity-Toolkits/raw/"
    "c55a72f51bd15a8bd75114247c06984b432050f9/data/stsbenchmark"
)
SHA256 = {
    "train": "0f71910b59aa1ad973c5897f0791f3b0965a92b8f82b1a95f3eea9f4162fda82",
    "dev": "5d7e944d8b02734b07bfdb5df67db3420c64bed153fcaa1ba47ad03480cf4234",
    "test": "affe45928a66ee5a708531233c95b7dacbbdc57f974f002a3d32ea0180cf816a",
}


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of sentences, ``first`` and ``second``, and their ``scores`` from 0 (unrelated) to 5 (the same)."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, some: slice) -> Pairs:
        return Pairs(self.first[some], self.second[some], self.scores[some])

    @property
    def sentences(self) -> list[str]:
        """All sentences, each once, in the order of the pairs."""
        return list(dict.fromkeys(sentence for pair in zip(self.first, self.second) for sentence in pair))


def fetch(split: str, folder: str | Path | None = None) -> Path:
    """Return the path of data/stsbenchmark/sts-SPLIT.csv, downloaded first where it is missing.

    `split` is "train", "dev" or "test"; `folder` stands for data. Raises ValueError for another split and a file with
    other content, DataUnavailable where it cannot be fetched.
    """
    if split not in SHA256:
        raise ValueError(f"unknown split {split!r}: choose {', '.join(SHA256)}")
    path = Path(folder or paths.DATA) / NAME / f"sts-{split}.csv"
    if not path.is_file():
        _download(f"{ADDRESS}/{path.name}", path)
    if (found := sha256(path)) != SHA256[split]:
        raise ValueError(
            f"{path} is not the file on record: its SHA-256 starts with {found[:8]}, not {SHA256[split][:8]}; "
            f"delete it, or replace it by {ADDRESS}/{path.name}"
        )
    return path


def _download(address, path):
    import torch

    try:
        with tempfile.TemporaryDirectory() as scratch, patience(20):
            torch.hub.download_url_to_file(address, f"{scratch}/{path.name}", progress=False)
            content = Path(scratch, path.name).read_bytes()
        with paths.atomic_write(path) as temporary:
            temporary.write_bytes(content)
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or said(error)
        raise DataUnavailable(f"{path.name} cannot be had ({why}): put the file from {address} at {path}") from error


def load(split: str, folder: str | Path | None = None) -> Pairs:
    """Return the `Pairs` of a split of the STS benchmark: 5 749 of "train", 1 500 of "dev", 1 379 of "test".

    Raises as `fetch` does.
    """
    return parsed(fetch(split, folder).read_text(encoding="utf-8").splitlines())


def describe(name: str = NAME, folder: str | Path | None = None) -> str:
    """Return a few aligned lines about the benchmark, fetched if need be: its splits and their digests."""
    rows = {"pairs": name}
    rows |= {split: f"{len(load(split, folder)):,} pairs, SHA-256 {digest}" for split, digest in SHA256.items()}
    return "\n".join(f"{key:<11}  {value}" for key, value in rows.items())


def parsed(lines: Sequence[str]) -> Pairs:
    """Return the `Pairs` of lines as the benchmark has them: genre, file, year, number, score, two sentences, between tabs.

    Raises ValueError for a line with less.

    >>> parsed(["news\\tMSRpar\\t2012\\t1\\t2.5\\tOne.\\tTwo.\\tlicence"])[:1]
    Pairs(first=('One.',), second=('Two.',), scores=(2.5,))
    """
    rows = []
    for number, line in enumerate(lines, start=1):
        columns = line.split("\t")
        try:
            rows.append((columns[5].strip(), columns[6].strip(), float(columns[4])))
        except (IndexError, ValueError) as error:
            raise ValueError(f"line {number} has no score and two sentences between tabs: {line[:60]!r}") from error
    first, second, scores = zip(*rows) if rows else ((), (), ())
    return Pairs(first, second, scores)
