"""How well a language model foretells a text: perplexity, bits per byte, tokens per second, and a row of the ledger."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from lowrank_utils.checks import check_count
from lowrank_utils.lab import score
from lowrank_utils.lab.columns import LANGUAGE_COLUMNS, RESULT_COLUMNS
from lowrank_utils.network import inputs
from lowrank_utils.network.modules import check_finite, evaluating
from lowrank_utils.progress import track

if TYPE_CHECKING:
    from lowrank_utils.lab.text import Windows

CHUNK = 512  # positions whose logits stand in memory at a time
PROBE = 8  # tokens of the trial in which a network shows what it is


@dataclass(frozen=True)
class Perplexity:
    """`loss` in nats a token, `perplexity` = exp(loss), `bits_per_byte` of the text, over so many scored `tokens`."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int


def perplexity(model: nn.Module, windows: Windows, batch_size: int = 4) -> Perplexity:
    """Return the `Perplexity` of `model` on windows of tokens.

    With n scored tokens in b bytes of text, each token foretold from those before it in its window,
    loss = -1/n sum log p(token | those before), perplexity = exp(loss), bits per byte = n loss / (b log 2). Perplexities
    compare models with one tokenizer, bits per byte any.

    `batch_size` windows go through the network at once. Logits are computed for `CHUNK` positions at a time where the head
    can be told from the body, so that memory does not grow with vocabulary times length. The model is put back as it was.

    Raises ValueError for token ids outside the vocabulary, a model without a language-model head, an encoder, whose
    answers depend on later tokens, and answers that are NaN or infinite.
    """
    check_count(batch_size=batch_size)
    device = next(model.parameters(), windows.ids).device
    check_vocabulary(model, windows.ids)
    check_causal(model, windows.ids)
    total = 0.0
    with evaluating(model):
        body, head = _parts(model, windows.ids[:1, :PROBE].to(device))
        for ids in track(windows.ids.split(batch_size), "perplexity", -(-len(windows) // batch_size)):
            ids = ids.to(device)
            hidden, targets = body(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
            for some, right in zip(hidden.split(CHUNK), targets.split(CHUNK)):
                total += F.cross_entropy(head(some).float(), right, reduction="sum").double().item()
    if not math.isfinite(total):
        raise ValueError("the network's answers are NaN or infinite: check its weights")
    loss = total / windows.tokens
    exponential = math.exp(loss) if loss < 700 else math.inf
    return Perplexity(loss, exponential, total / windows.bytes / math.log(2), windows.tokens)


def check_vocabulary(model: nn.Module, ids: torch.Tensor) -> None:
    """Raise ValueError where `ids` are no whole numbers or lie outside the vocabulary of `model`, the rows of its embedding."""
    if ids.dtype not in (torch.int32, torch.int64) or ids.ndim != 2 or ids.numel() == 0:
        raise ValueError(
            f"token ids are {ids.dtype} of shape {tuple(ids.shape)}: they must be whole numbers, windows x length"
        )
    known = getattr(_part(model, "get_input_embeddings"), "num_embeddings", None)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (known is not None and high >= known):
        wrong = low if low < 0 else high
        raise ValueError(
            f"token id {wrong} is outside the vocabulary of {known} tokens: cut the windows with the tokenizer of this model"
        )


def check_causal(model: nn.Module, ids: torch.Tensor | None = None) -> None:
    """Raise ValueError where `model` has no language-model head, or answers for a token after a look at later ones.

    It is tried on the first tokens of `ids` (default: ids 0 to 7), of which the last one is changed.
    """
    device = next(model.parameters(), torch.empty(0)).device
    first = (torch.arange(PROBE)[None] if ids is None else ids[:1, :PROBE]).to(device)
    second = first.clone()
    second[0, -1] = first[0, -1] - 1 if first[0, -1] else 1
    with evaluating(model):
        before, after = (_logits(model, some).float() for some in (first, second))
    if not (before.isfinite().all() and after.isfinite().all()):
        raise ValueError("the network's answers are NaN or infinite: check its weights")
    change = (after - before).abs()
    noise = 1e-3 * change[:, -1].max() + 1e-6 * before.abs().max()
    if (change[:, :-1] > noise).any():
        raise ValueError(
            "the answer for a token changes with the tokens behind it, as an encoder's does: perplexity needs a causal "
            "language model"
        )


def _logits(model, ids):
    try:
        answers = inputs.logits(model(ids))
    except IndexError as error:  # of a network that does not say how many tokens its embedding knows
        raise ValueError(f"a token id up to {int(ids.max())} is outside the vocabulary of the network") from error
    if not torch.is_tensor(answers) or answers.shape[:-1] != ids.shape or answers.shape[-1] <= int(ids.max()):
        found = f"of shape {tuple(answers.shape)}" if torch.is_tensor(answers) else f"a {type(answers).__name__}"
        raise ValueError(
            f"the network answers to tokens of shape {tuple(ids.shape)} with {found}, not with a logit for each token of "
            "the vocabulary: it has no language-model head"
        )
    return answers


def _part(model: nn.Module, name: str) -> Any:
    """Return what a method of transformers such as `get_output_embeddings` gives, None where the model has none."""
    try:
        return getattr(model, name)()
    except (AttributeError, NotImplementedError):
        return None


def _parts(model: nn.Module, ids: torch.Tensor) -> tuple[Callable, Callable]:
    """Return (function from ids to hidden states, function from these to logits), found to give the model's own logits.

    Where a model does more than apply its head to its body's answers, the first one gives the logits at once.
    """
    head: Any = _part(model, "get_output_embeddings")
    base: Any = getattr(model, "base_model", model)

    def hidden(some):
        return base(some, use_cache=False).last_hidden_state

    if head is not None and base is not model:
        with contextlib.suppress(AttributeError, TypeError):  # a body of another kind
            parted, whole = head(hidden(ids)), _logits(model, ids)
            if parted.shape == whole.shape and torch.allclose(parted, whole, rtol=1e-4, atol=1e-4):
                return hidden, head
    return lambda some: _logits(model, some), lambda some: some


def tokens_per_second(model: nn.Module, ids: torch.Tensor, threads: int = 1, repeats: int = 3) -> float:
    """Return how many tokens `model` reads in a second: the median over `repeats` passes of `ids` (int64, N x length).

    `threads` CPU threads of torch while it lasts. Raises ValueError for ids outside the vocabulary and counts below 1.
    """
    check_vocabulary(model, ids)
    ids = ids.to(next(model.parameters(), ids).device)

    def read():
        model(ids)
        if ids.is_cuda:
            torch.cuda.synchronize(ids.device)

    with evaluating(model):
        (milliseconds,) = score.alternately([read], threads, repeats, warmup=1)
    return 1000 * ids.numel() / statistics.median(milliseconds)


def row(
    model: nn.Module,
    original: nn.Module,
    windows: Windows,
    threads: int = 1,
    timed: bool = False,
    original_macs: float | None = None,
    **columns: Any,
) -> dict[str, Any]:
    """Return one row of the results table: the language model `model` beside the `original` network it came from.

    As `score.row`, with perplexity in place of accuracy; MACs are those of one window. Tokens per second are measured
    where `timed` is true, on `threads` threads, and NaN otherwise. `original_macs` as in `score.sizes`. Raises ValueError as `perplexity` and for NaN weights.
    """
    check_finite(model)
    found = dict.fromkeys((*RESULT_COLUMNS, *LANGUAGE_COLUMNS), math.nan) | score.sizes(
        model, original, example=windows.ids[:1], original_macs=original_macs
    )
    scored = perplexity(model, windows)
    found |= {"loss": scored.loss, "perplexity": scored.perplexity, "bits_per_byte": scored.bits_per_byte}
    found["tokens_per_second"] = tokens_per_second(model, windows.ids[:1], threads) if timed else math.nan
    found["peak_memory"] = score.peak_memory()
    return found | columns | score.made_with(threads if timed else math.nan)
