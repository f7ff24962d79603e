"""Model surgery: a network copied, checked, held in eval mode, its layers replaced."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn


def check_there(model: nn.Module) -> None:
    """Raise ValueError for a `model` on the meta device, which has shapes and no numbers."""
    if any(value.is_meta for value in (*model.parameters(), *model.buffers())):
        raise ValueError("the network is on the meta device, where there are no numbers; build it on the CPU")


def check_finite(model: nn.Module) -> None:
    """Raise ValueError naming the first parameter or buffer of `model` that holds NaN or infinity."""
    check_there(model)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or infinite values; train it again or load another network")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Hold `model` in eval mode without gradients, then put each of its modules back as it was found.

    >>> layer = nn.Dropout()
    >>> with evaluating(layer):
    ...     layer.training
    False
    >>> layer.training
    True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        for module, training in modes:
            module.training = training


def frozen(model: nn.Module) -> contextlib.AbstractContextManager[nn.Module]:
    """Hold the parameters of `model` as constants, so that autograd keeps nothing for their sake, then put each back.

    >>> layer = nn.Linear(2, 2)
    >>> with frozen(layer):
    ...     layer(torch.zeros(1, 2)).requires_grad
    False
    >>> layer(torch.zeros(1, 2)).requires_grad
    True
    """
    return requiring_grad(model, False)


@contextlib.contextmanager
def requiring_grad(model: nn.Module, wanted: bool) -> Iterator[nn.Module]:
    """Hold ``requires_grad`` of all floating-point parameters of `model` at `wanted`, then put each back."""
    flags = [(value, value.requires_grad) for value in model.parameters() if value.is_floating_point()]
    try:
        for value, _ in flags:
            value.requires_grad_(wanted)
        yield model
    finally:
        for value, flag in flags:
            value.requires_grad_(flag)


def replaced(model: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """Return a new model with the named modules replaced, ``{name: module}``; `model` is left as it was.

    What is replaced is never copied, and each new module takes the train or eval mode of the old one.

    >>> replaced(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), {"0": nn.Linear(4, 2)})
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
      (1): ReLU()
    )
    """
    for name, new in replacements.items():
        new.train(model.get_submodule(name).training)
    if "" in replacements:
        return replacements[""]
    # deepcopy takes these for copied already
    return copied(model, {id(model.get_submodule(name)): new for name, new in replacements.items()})


def with_linear_layers(model: nn.Module) -> nn.Module:
    """Return `model` with the ``Conv1D`` layers of transformers (weights d_in x d_out) as ``nn.Linear``; itself where it has none.

    They compute the same. The layers are known by name and shape, so transformers need not be installed.
    """
    found = {}
    for name, layer in model.named_modules():
        weight: Any = getattr(layer, "weight", None)
        if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf") and torch.is_tensor(weight) and weight.ndim == 2:
            like = nn.Linear(1, 1, device=weight.device, dtype=weight.dtype)
            found[name] = linear(weight.detach().T, cast(Any, layer).bias.detach(), like)
    return replaced(model, found) if found else model


def with_conv1d_layers(model: nn.Module, original: nn.Module) -> nn.Module:
    """Return `model` with those linear layers as ``Conv1D`` that are so in `original`; itself where there is none.

    The inverse of `with_linear_layers`, so that transformers' ``save_pretrained`` writes what ``from_pretrained`` expects.
    Layers of other shapes than in `original` keep theirs, and pairs of low-rank factors stay what they are.
    """
    found, modules = {}, dict(model.named_modules())
    for name, old in original.named_modules():
        layer = modules.get(name) if type(old).__name__ == "Conv1D" else None
        if type(layer) is nn.Linear:
            new: Any = cast(Any, type(old))(layer.out_features, layer.in_features)
            new.weight = nn.Parameter(layer.weight.detach().T.contiguous())
            new.bias = nn.Parameter(
                torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias.detach().clone()
            )
            found[name] = new
    return replaced(model, found) if found else model


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of `model`, without the history of activations that a module keeps; `memo` as `copy.deepcopy` takes it.

    Raises ValueError for a network that cannot be copied.
    """
    kept = [value for module in model.modules() for value in vars(module).values() if torch.is_tensor(value)]
    memo = {id(value): value.detach().clone() for value in kept if not value.is_leaf} | (memo or {})
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"the network cannot be copied, for a module of it keeps what cannot: {error}") from error


def linear(weight: torch.Tensor, bias: torch.Tensor | None, like: nn.Linear) -> nn.Linear:
    """Return an ``nn.Linear`` of `weight` (d_out x d_in) and `bias` (d_out, or None), with the type and device of the layer `like`."""
    layer = nn.utils.skip_init(
        nn.Linear,
        weight.shape[1],
        weight.shape[0],
        bias is not None,
        device=like.weight.device,
        dtype=like.weight.dtype,
    )
    return _holding(layer, weight, bias)  # pyright: ignore[reportReturnType]  # skip_init is typed as giving any module


def conv2d(weight: torch.Tensor, bias: torch.Tensor | None, like: nn.Conv2d) -> nn.Conv2d:
    """Return an ``nn.Conv2d`` of `weight` (d_out x d_in x height x width) and `bias` (d_out, or None), else as the layer `like`.

    Of a convolution with groups, which has to be depthwise, the group of each row goes with it.
    """
    groups = weight.shape[0] if like.groups > 1 else 1
    layer = nn.utils.skip_init(
        nn.Conv2d, weight.shape[1] * groups, weight.shape[0], like.kernel_size, stride=like.stride,
        padding=like.padding, dilation=like.dilation, groups=groups, bias=bias is not None,
        padding_mode=like.padding_mode, device=like.weight.device, dtype=like.weight.dtype,
    )  # fmt: skip
    return _holding(layer, weight, bias)  # pyright: ignore[reportReturnType]  # skip_init is typed as giving any module


def _holding(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def fold_bias_into_norm(norm: nn.Module, layer: nn.Module) -> nn.Module:
    """Return a copy of the batch norm `norm` that takes over the bias of `layer`, the one that it follows; `layer` is left without.

    The running mean goes down by the bias, so that outputs stay as they are in eval mode (and training would have
    cancelled it).
    """
    new: Any = copy.deepcopy(norm).eval()
    with torch.no_grad():
        new.running_mean -= cast(torch.Tensor, layer.bias).to(new.running_mean)
    layer.bias = None  # pyright: ignore[reportArgumentType]  # torch types a bias as always there
    return new
