"""Weights set to zero layer by layer, the others adjusted so that the layer's outputs stay: SparseGPT, from our moments.

One covariance a layer is all it takes, the same that data-aware factors rest on, so that sparse and low-rank networks can be
compared on the same calibration inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lowrank_utils import checks
from lowrank_utils.network import unfold
from lowrank_utils.network.modules import check_finite, replaced
from lowrank_utils.network.profile import Profile

DAMPING = 0.01  # of the mean diagonal, as in the paper
BLOCK = 128  # columns at once, as in the paper


def inverse_factor(moment: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """Return the upper Cholesky factor U of the inverse of a damped second moment H (d x d): H^-1 = U^T U, float64.

    Row j of U, over its diagonal, is the update that removing column j asks of the columns after it; its diagonal squared
    is [H_F^-1]_jj with F the columns j, j + 1, ... Inputs that are always zero get a one on the diagonal.
    """
    checks.check_number(lambda value: value > 0, "a number above 0", damping=damping)
    held = moment.double().clone()
    dead = held.diagonal() <= 0
    held[dead, dead] = 1.0
    damped = held + damping * held.diagonal().mean() * torch.eye(len(held)).to(held)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def sparsegpt(
    weight: torch.Tensor,
    moment: torch.Tensor,
    density: float,
    *,
    block: int = BLOCK,
    damping: float = DAMPING,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return weights (d_out x d_in, float64) of which a share `density` is not zero, for outputs close to those of `weight`.

    Columns go from left to right. Of each block of columns the entries with the smallest w^2 / [H_F^-1]_jj are set to zero,
    H the second moment of the inputs and F the columns not yet passed (the optimal brain surgeon's saliency); after each
    column the ones right of it take over what its zeros lost, w_F -= w_j / [H_F^-1]_jj [H_F^-1]_j:.

    Parameters
    ----------
    moment : H, d_in x d_in, such as `Moments.second_moment`.
    density : share of the entries of each block that stays, in (0, 1], rounded down.
    block, damping : see `BLOCK` and `inverse_factor`.
    mask : which entries stay (d_out x d_in, bool), in place of the choice by saliency.

    Raises ValueError for shapes that do not fit, weights that are not finite, and a density that is no share.
    Source: Frantar & Alistarh 2023 (SparseGPT, algorithm 1); Hassibi & Stork 1993 for the update.

    >>> found = sparsegpt(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.9], [0.9, 1.0]]), 0.5, damping=1e-9)
    >>> found.round(decimals=2).tolist()  # the second input nearly says what the first one did
    [[0.0, 2.9]]
    """
    checks.check_share(density=density)
    checks.check_count(block=block)
    size = weight.shape[1]
    if moment.shape != (size, size):
        raise ValueError(f"a moment of shape {tuple(moment.shape)} does not fit weights with {size} inputs")
    if mask is not None and mask.shape != weight.shape:
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit weights of shape {tuple(weight.shape)}")
    if not torch.isfinite(weight).all():
        raise ValueError("the weights hold NaN or infinite values")
    new = weight.detach().double().clone()
    new[:, moment.diagonal() <= 0] = 0.0  # an input that is always zero
    factor = inverse_factor(moment.to(new.device), damping)
    scale = factor.diagonal()
    for start in range(0, size, block):
        end = min(start + block, size)
        own, lost = new[:, start:end], torch.zeros(len(new), end - start).to(new)
        gone = ~mask[:, start:end] if mask is not None else _least(own / scale[start:end], density)
        for j in range(end - start):
            at = start + j
            lost[:, j] = torch.where(gone[:, j], own[:, j], 0.0) / scale[at]
            own[:, j:] -= lost[:, [j]] * factor[at, at:end]
            own[:, j] = torch.where(gone[:, j], 0.0, own[:, j])
        new[:, end:] -= lost @ factor[start:end, end:]
    return new


def _least(saliency, density):
    # which entries are the smallest, so that a share `density` of them all stays
    gone = saliency.numel() - int(density * saliency.numel())
    found = torch.zeros(saliency.numel(), dtype=torch.bool, device=saliency.device)
    found[saliency.abs().flatten().argsort(stable=True)[:gone]] = True
    return found.view(saliency.shape)


def pruned(profile: Profile, density: float | Mapping[str, float], **options: Any) -> nn.Module:
    """Return a new network whose layers are `sparsegpt`'s: a share `density` of the weights of each is not zero.

    `density` is one share for all linear layers and convolutions, dense ones of the profile among them, or ``{layer: share}``
    of those to prune. Each layer is pruned for its inputs in the dense network, with the moments of the profile; the paper takes those of
    the network pruned so far. Biases stay. `options` of `sparsegpt`.

    Raises ValueError for a layer that the profile does not have, and as `sparsegpt`.
    """
    every = [layer.name for layer in profile if unfold.schemes_of(profile.model.get_submodule(layer.name))]
    shares = dict(density) if isinstance(density, Mapping) else dict.fromkeys(every, density)
    strange = sorted(set(shares) - set(every))
    if strange:
        raise ValueError(f"there is no layer {strange[0]!r} to prune; there are {', '.join(every)}")
    moments, found = profile.moments_of(list(shares)), {}
    for name, share in shares.items():
        layer = replaced(profile.model.get_submodule(name), {})
        found[name] = _with_weights(layer, moments[name].second_moment, share, options)
    new = replaced(profile.model, found)
    check_finite(new)
    return new


def _with_weights(layer: Any, moment: torch.Tensor, share: float, options: dict[str, Any]) -> nn.Module:
    count, size = unfold.groups(layer), layer.weight[0].numel()
    each = zip(layer.weight.detach().reshape(count, -1, size), moment.reshape(count, size, size))
    weights = torch.stack([sparsegpt(weight, own, share, **options) for weight, own in each])
    with torch.no_grad():
        layer.weight.copy_(weights.reshape(layer.weight.shape))
    return layer
