"""What people feed a network with: a tensor, several at once, or the batches of a loader; and what comes out of it.

Everything that looks at data goes through here, so that a network of token ids and a mask is read like one of images.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F


class Inputs:
    """Several tensors that a network takes at once, cut and fed as if they were one: each has the inputs along its first axis.

    >>> both = Inputs((torch.zeros(5, 2),), {"mask": torch.ones(5)})
    >>> len(both), [len(part) for part in both.split(2)], both[:1].shapes
    (5, [2, 2, 1], '(2,), ()')
    """

    def __init__(self, args: tuple[torch.Tensor, ...], kwargs: Mapping[str, torch.Tensor] | None = None) -> None:
        self.args, self.kwargs = tuple(args), dict(kwargs or {})
        if not self.tensors or not all(torch.is_tensor(part) and part.ndim for part in self.tensors):
            raise ValueError("calibration of several inputs needs tensors, each with the inputs along its first axis")
        counts = sorted({len(part) for part in self.tensors})
        if len(counts) > 1:
            raise ValueError(f"the inputs that belong together differ in number: {', '.join(map(str, counts))}")

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All tensors, the positional ones first."""
        return (*self.args, *self.kwargs.values())

    @property
    def shapes(self) -> str:
        """The shapes of one input, in words."""
        return ", ".join(str(tuple(part.shape[1:])) for part in self.tensors)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
        """Return the same with `function` of every tensor."""
        return Inputs(
            tuple(function(part) for part in self.args), {name: function(part) for name, part in self.kwargs.items()}
        )

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, some: slice | torch.Tensor) -> Inputs:
        return self.map(lambda part: part[some])

    def split(self, size: int) -> list[Inputs]:
        """Return parts of `size` inputs, the last one smaller."""
        return [self[at : at + size] for at in range(0, len(self), size)]


Batch: TypeAlias = torch.Tensor | Inputs


def as_inputs(calibration: Any) -> Batch:
    """Return `calibration` as a tensor or `Inputs`.

    A tensor stays what it is. A tuple or list is what the network takes by position, a mapping (also a transformers
    ``BatchEncoding``) what it takes by name. Anything else that can be run through, such as a ``DataLoader``, gives
    batches, which are joined: tensors, mappings, or pairs (inputs, what is to be predicted), of which the first counts.

    Raises ValueError for other things, no input at all, and batches that do not fit together.

    >>> as_inputs([torch.zeros(4, 2), torch.zeros(4)]).shapes
    '(2,), ()'
    >>> as_inputs(iter([(torch.zeros(4, 2), "labels"), (torch.zeros(1, 2), "labels")])).shape
    torch.Size([5, 2])
    """
    if torch.is_tensor(calibration) or isinstance(calibration, Inputs):
        return calibration
    if isinstance(calibration, Mapping) or hasattr(calibration, "input_ids"):
        return Inputs((), {name: value for name, value in calibration.items() if value is not None})
    if isinstance(calibration, (tuple, list)) and calibration and all(torch.is_tensor(part) for part in calibration):
        return Inputs(tuple(calibration))
    form = getattr(calibration, "shape", None)
    if not isinstance(calibration, Iterable) or isinstance(calibration, (str, bytes)) or form is not None:
        shape = "" if form is None else f" of shape {tuple(form)}"
        raise ValueError(
            f"calibration images are a {type(calibration).__name__}{shape}; they must be a tensor, the images along its "
            "first axis, or tensors in a tuple or dict, or a DataLoader"
        )
    return _joined(calibration)


def _joined(loader):
    batches = []
    try:
        for batch in loader:
            batches.append(as_inputs(batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch))
    except RuntimeError as error:  # what a loader raises where its samples cannot be stacked
        raise ValueError(f"the loader of calibration inputs failed after {len(batches)} batches: {error}") from error
    if not batches:
        raise ValueError("the loader of calibration inputs gave no batch; an iterator can be run through only once")
    shapes = list(dict.fromkeys(in_words(batch) for batch in batches))
    if len(shapes) > 1:
        raise ValueError(
            f"the batches of calibration inputs differ in shape ({shapes[0]} and {shapes[1]}); pad or cut them to one"
        )
    if torch.is_tensor(batches[0]):
        return torch.cat(batches)
    parts = [torch.cat([batch.tensors[place] for batch in batches]) for place in range(len(batches[0].tensors))]
    count = len(batches[0].args)
    return Inputs(tuple(parts[:count]), dict(zip(batches[0].kwargs, parts[count:])))


def in_words(batch: Batch) -> str:
    """Return the shape of one input of `batch` in words.

    >>> in_words(torch.zeros(7, 3, 8, 8))
    '(3, 8, 8)'
    """
    return str(tuple(batch.shape[1:])) if torch.is_tensor(batch) else batch.shapes


def is_plain(batch: Batch | None) -> bool:
    """Return whether `batch` is one tensor of real numbers, as images are.

    >>> is_plain(torch.zeros(2, 3)), is_plain(torch.tensor([[1, 2]]))
    (True, False)
    """
    return torch.is_tensor(batch) and batch.is_floating_point()


TOKENS_AT_ONCE = 512


def at_once(batch: Batch, size: int) -> int:
    """Return how many inputs pass at once: `size`, or fewer of token ids, so that about 512 tokens pass.

    A language model answers every token with a number for each entry of its vocabulary.

    >>> at_once(torch.zeros(8, 3), 50), at_once(torch.zeros(8, 512, dtype=torch.int64), 50)
    (50, 1)
    """
    tokens = max((part[0].numel() for part in _ids(batch) if len(part)), default=1)
    return max(1, min(size, TOKENS_AT_ONCE // max(tokens, 1)))


def random_batch(model: nn.Module, input_shape: Sequence[int], count: int = 1) -> torch.Tensor:
    """Return `count` random inputs of `input_shape`, the same at each call, on the device and in the type of the parameters.

    >>> random_batch(nn.Linear(4, 3).double(), (4,), 2).dtype
    torch.float64
    """
    like = next(model.parameters(), torch.empty(0))
    return torch.randn(count, *input_shape, generator=torch.Generator().manual_seed(0)).to(like)


def tokens_of(batch: Batch) -> int:
    """Return how many token ids `batch` holds, 0 where its tensors are of real numbers.

    >>> tokens_of(torch.zeros(8, 512, dtype=torch.int64)), tokens_of(torch.zeros(8, 3))
    (4096, 0)
    """
    return max((part.numel() for part in _ids(batch)), default=0)


def id_range(batch: Batch) -> tuple[int, int]:
    """Return the (smallest, largest) token id that `batch` holds.

    >>> id_range(torch.tensor([[3, 0], [7, 2]]))
    (0, 7)
    """
    ids = _ids(batch)
    return min(int(part.min()) for part in ids), max(int(part.max()) for part in ids)


def _ids(batch):
    # the tensors of whole numbers
    return [part for part in _tensors(batch) if not part.is_floating_point()]


def _tensors(batch):
    return (batch,) if torch.is_tensor(batch) else batch.tensors


def fed(batch: Batch, like: torch.Tensor) -> Batch:
    """Return a copy of `batch` on the device of `like`, real numbers in its type; whole numbers, such as token ids, stay whole.

    A copy, since some networks write into their inputs.
    """

    def one(part):
        return part.to(like.device, like.dtype if part.is_floating_point() else part.dtype, copy=True)

    return one(batch) if torch.is_tensor(batch) else batch.map(one)


def call(model: nn.Module, batch: Batch) -> Any:
    """Return what `model` answers to `batch`.

    >>> call(nn.Bilinear(2, 3, 4), Inputs((torch.zeros(5, 2), torch.zeros(5, 3)))).shape
    torch.Size([5, 4])
    """
    return model(batch) if torch.is_tensor(batch) else model(*batch.args, **batch.kwargs)


def about_layout(error: RuntimeError) -> bool:
    """Return whether an error says that the network cannot take the order in which its inputs lie in memory.

    >>> about_layout(RuntimeError("view size is not compatible with input tensor's size and stride"))
    True
    """
    return any(word in str(error) for word in ("view size", "stride", "contiguous"))


def not_given(model: nn.Module, batch: Batch | None) -> dict[str, Any]:
    """Return ``{name: default}`` of the parameters of ``model.forward`` that `batch` (None: one tensor) says nothing of.

    >>> class Masked(nn.Module):
    ...     def forward(self, x, mask=None):
    ...         return x
    >>> not_given(Masked(), None), not_given(Masked(), Inputs((torch.zeros(1, 2), torch.zeros(1, 2))))
    ({'mask': None}, {})
    """
    taken, named = (len(batch.args), batch.kwargs) if isinstance(batch, Inputs) else (1, {})
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [value for value in inspect.signature(model.forward).parameters.values() if value.kind in places]
    return {
        value.name: value.default
        for value in known[taken:]
        if value.name not in named and value.default is not inspect.Parameter.empty
    }


def check_some(batch: Any) -> Batch:
    """Return `batch`; raise ValueError where it is no tensor, or `Inputs`, of at least one input."""
    several = isinstance(batch, Inputs) or (torch.is_tensor(batch) and batch.ndim > 1)
    if not several or len(batch) == 0:
        raise ValueError("calibration must be a tensor of at least one input, with the images along its first axis")
    return batch


def check_finite(batch: Batch) -> None:
    """Raise ValueError where `batch` holds NaN or infinite values."""
    for part in _tensors(batch):
        if not torch.isfinite(part).all():
            raise ValueError("the calibration images hold NaN or infinite values")


def logits(answers: Any) -> Any:
    """Return the tensor of logits in what a network answered: itself, its ``logits``, or the first of several.

    >>> logits({"logits": 3}), logits((1, 2)), logits(4)
    (3, 1, 4)
    """
    if isinstance(answers, Mapping) and "logits" in answers:
        return answers["logits"]
    found = getattr(answers, "logits", None)
    if found is not None:
        return found
    return answers[0] if isinstance(answers, (tuple, list)) and answers else answers


def divergence(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergence (nats) of the answers `found` from those `wanted`, one number an answer.

    Both are logits of shape (..., classes). The result has their precision.

    >>> round(float(divergence(torch.zeros(2), torch.tensor([1.0, 3.0]).log())), 4)  # log 2 - log(3) / 2
    0.1438
    """
    log_p, log_q = wanted.log_softmax(-1), found.log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
