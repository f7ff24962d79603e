"""The numbers that go into the thin layers: a weight matrix W (d_out x d_in) written as left @ right.

A convolution is a matrix too, in one of the ways of `unfold`. Two factorizers for a layer on its own; one
decomposition serves every rank:

- ``"svd"``: the truncated singular value decomposition, the best W_r for the weights themselves;
- ``"data-aware"``: the best W_r for the layer's outputs on calibration data, no training, no matrix inverse. In the
  spatial and input schemes
  of a convolution the first factor meets shifted copies of one input, and there is no closed form: `svd.alternating_low_rank`
  alternates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from lowrank_utils.checks import is_whole
from lowrank_utils.network import unfold
from lowrank_utils.network.statistics import Moments

Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # left, right


def alternating_low_rank(
    target: torch.Tensor,
    covariance: torch.Tensor,
    offsets: int,
    rank: int,
    metric: torch.Tensor | None = None,
    start: Pair | None = None,
    rounds: int = 40,
    tolerance: float = 1e-3,
) -> Pair:
    """Return (left, right) of the rank-r matrix of a scheme that minimises E|(T - W) x|^2 over patches x, for one group.

    Shapes: `target` T (O x offsets n) and `covariance` C (offsets n square) with columns in the order of `in_order`;
    left is (O offsets) x r, right r x n: row (o, b) of left tells what output o takes at offset b of the second layer.
    With one offset the answer is exact (the top eigenvectors of T C T^T). Else least squares for left and for right in
    turn (conjugate gradients), from the singular value decomposition weighted by the mean covariance of one offset; it
    stops when a round lowers the error by less than `tolerance` of itself. `metric` M (O x O, positive definite)
    measures errors by e^T M e. `start`: (left, right) to begin with instead.
    """
    if offsets == 1:
        return _closed_form(target, covariance, rank, metric)
    back = None
    if metric is not None:
        values, vectors = torch.linalg.eigh(metric)
        root = values.clamp(min=1e-12 * values[-1]).sqrt()
        target, back = (vectors * root) @ (vectors.T @ target), (vectors / root) @ vectors.T
    rows, size = len(target), target.shape[1] // offsets
    if not target.any():  # least squares would divide by zero
        return torch.eye(rows * offsets, rank).to(target), target.new_zeros(rank, size)
    blocks = covariance.reshape(offsets, size, offsets, size)
    mean = torch.stack([blocks[b, :, b] for b in range(offsets)]).mean(0)
    values, vectors = torch.linalg.eigh(mean)
    values = values.clamp(min=1e-7 * values[-1]) if values[-1] > 0 else torch.ones_like(values)
    root, inverse = vectors * values.sqrt(), vectors / values.sqrt()
    if start is None:
        matrix = target.reshape(rows * offsets, size)
        u, s, vt = torch.linalg.svd(matrix @ root, full_matrices=False)
        left, right = u[:, :rank] * s[:rank], vt[:rank] @ inverse.T
    else:
        left, right = start
        if back is not None:
            raise ValueError("start= goes without a metric")
    seen = target @ covariance  # O x (offsets n)
    whole = (seen * target).sum()
    error = torch.inf
    for _ in range(rounds):
        # left: least squares on right @ x at every offset
        spread = covariance.reshape(-1, offsets, size) @ right.T  # (offsets n) x offsets x r
        gram = (right @ spread.reshape(offsets, size, -1)).reshape(offsets * rank, offsets * rank)
        cross = (seen.reshape(rows, offsets, size) @ right.T).reshape(rows, -1)
        damped = gram + 1e-10 * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        flat = left.reshape(rows, offsets, rank).reshape(rows, -1)
        flat = flat + torch.linalg.solve(damped, (cross - flat @ gram).T).T  # what the data do not decide stays
        before, error = error, whole - (flat * cross).sum()
        stacked = flat.reshape(rows * offsets, rank)
        left, mix = torch.linalg.qr(stacked)  # one gauge: right carries the size
        right = mix @ right
        if before < torch.inf and not before - error > tolerance * before:
            break
        if rank == min(rows * offsets, size):
            continue
        right = _right(left.reshape(rows, offsets, rank), right, seen, blocks, inverse)
    return (left if back is None else (back @ left.reshape(rows, -1)).reshape(rows * offsets, rank)), right


def _closed_form(target, covariance, rank, metric):
    # the components of L^T T R that count most, with M = L L^T and C = R R^T, from an eigenproblem of its smaller side
    lower = None if metric is None else cholesky_root(metric.to(target))
    target = target if lower is None else lower.T @ target
    vectors = _leading(target, covariance, rank)
    left = vectors if lower is None else torch.linalg.solve_triangular(lower.T, vectors, upper=True)
    return left, vectors.T @ target


def _leading(target, covariance, rank):
    # the leading eigenvectors of T C T^T, orthonormal
    gram, seen = _smaller_gram(target, covariance)
    vectors = torch.linalg.eigh(gram)[1].flip(1)[:, :rank]
    return vectors if seen is None else torch.linalg.qr(seen @ vectors)[0]


def _smaller_gram(target, covariance):
    # (T C T^T, None), or with C = R R^T (R^T T^T T R, T R) where that is smaller: their eigenvalues above zero are the same
    rows, columns = target.shape
    seen = None if rows <= columns else target @ cholesky_root(covariance)
    gram = target @ covariance @ target.T if seen is None else seen.T @ seen
    return (gram + gram.T) / 2, seen


def cholesky_root(matrix: torch.Tensor) -> torch.Tensor:
    """Return lower triangular L with L L^T = `matrix` (symmetric, positive semidefinite) and a ridge where it is singular.

    The ridge is the least of 1e-12, 1e-9, 1e-6 and 1e-3 of the mean diagonal with which the factor exists. It is ten times
    cheaper than an eigenproblem. Raises ValueError for a matrix that is far from positive semidefinite.

    >>> cholesky_root(torch.diag(torch.tensor([4.0, 9.0], dtype=torch.float64))).diagonal().round(decimals=4).tolist()
    [2.0, 3.0]
    """
    scale = matrix.diagonal().mean()
    scale = scale if scale > 0 else torch.ones_like(scale)
    for ridge in (1e-12, 1e-9, 1e-6, 1e-3):
        factor, failed = torch.linalg.cholesky_ex(matrix + ridge * scale * torch.eye(len(matrix)).to(matrix))
        if not failed:
            return factor
    raise ValueError("a matrix of moments is not positive semidefinite; it has no root")


def errors_by_rank(
    target: torch.Tensor, covariance: torch.Tensor, offsets: int, metric: torch.Tensor | None = None
) -> torch.Tensor:
    """Return E|(T - W_r) x|^2 for every rank r = 0..full rank (float64), from one eigenproblem; for one group.

    Shapes and `metric` as in `alternating_low_rank`. With one offset these are the exact least errors, the sums of the
    dropped eigenvalues of T C T^T. Else the second layer is the best one for the first r directions where the
    alternation starts, so the errors are upper bounds; one Cholesky factor of the Gram matrix of all directions at all
    offsets gives them for every rank, since its leading blocks are those of the lower ranks.

    >>> t = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    >>> errors_by_rank(t, torch.eye(3, dtype=torch.float64), 1).tolist()
    [14.0, 5.0, 1.0, 0.0]
    """
    if metric is not None and offsets > 1:
        values, vectors = torch.linalg.eigh(metric)
        target = values.clamp(min=0).sqrt()[:, None] * (vectors.T @ target)
    rows, size = len(target), target.shape[1] // offsets
    if offsets == 1:
        target = target if metric is None else cholesky_root(metric.to(target)).T @ target
        kept = torch.linalg.eigvalsh(_smaller_gram(target, covariance)[0]).clamp(min=0).flip(0)
        return torch.cat([kept.flip(0).cumsum(0).flip(0), kept.new_zeros(1)])
    whole = ((target @ covariance) * target).sum()
    blocks = covariance.reshape(offsets, size, offsets, size)
    mean = torch.stack([blocks[b, :, b] for b in range(offsets)]).mean(0)
    values, vectors = torch.linalg.eigh(mean)
    if not whole > 0 or not values[-1] > 0:
        return whole * torch.zeros(min(rows * offsets, size) + 1).to(target)
    values = values.clamp(min=1e-7 * values[-1])
    root, inverse = vectors * values.sqrt(), vectors / values.sqrt()
    vt = torch.linalg.svd(target.reshape(rows * offsets, size) @ root, full_matrices=False)[2]
    right = vt @ inverse.T  # k x n: the directions, best first
    rank = len(right)
    # (direction, offset) in the order in which ranks take them in
    half = covariance.reshape(-1, offsets, size) @ right.T  # (offsets n) x offsets x k
    gram = torch.einsum("kn,bnco->kbco", right, half.reshape(offsets, size, offsets, rank)).permute(0, 1, 3, 2)
    gram = gram.reshape(rank * offsets, rank * offsets)
    cross = (
        ((target @ covariance).reshape(rows, offsets, size) @ right.T).permute(2, 1, 0).reshape(rank * offsets, rows)
    )
    factor = gram
    for damping in (1e-9, 1e-6, 1e-3):  # more where the data leave directions alike, as few inputs do
        damped = gram + damping * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            break
    explained = torch.linalg.solve_triangular(factor, cross, upper=False).square().sum(1)
    each = explained.reshape(rank, offsets).sum(1)
    return torch.cat([whole[None], whole - each.cumsum(0)]).clamp(min=0)


def _right(left, right, seen, blocks, inverse, steps=8):
    # conjugate gradients on the normal equations for right, preconditioned by the mean covariance of an offset
    rows, offsets, rank = left.shape
    size = right.shape[1]
    inner = torch.einsum("obr,ocs->bcrs", left, left)  # offsets x offsets x r x r

    def normal(v):
        # sum over b, c of inner[b, c] v C[c, b]
        moved = (v @ blocks.reshape(offsets, size, offsets * size)).reshape(offsets, rank, offsets, size)  # c r b n
        return torch.einsum("bcrs,csbn->rn", inner, moved)

    goal = torch.einsum("obr,obn->rn", left, seen.reshape(rows, offsets, size))
    residual = goal - normal(right)
    direction, rho = None, None
    for _ in range(steps):
        z = residual @ inverse @ inverse.T
        now = (residual * z).sum()
        if not now > 1e-20 * (goal * goal).sum().clamp(min=1e-300):
            break
        direction = z if direction is None else z + now / rho * direction
        image = normal(direction)
        step = now / (direction * image).sum()
        right, residual, rho = right + step * direction, residual - step * image, now
    return right


def metric_block(metric: torch.Tensor | None, group: int, rows: int) -> torch.Tensor | None:
    """Return the part of a metric (d_out x d_out) that is about the `rows` outputs of one group of a convolution."""
    own = slice(group * rows, (group + 1) * rows)
    return None if metric is None else metric[own, own]


METHODS = ("svd", "data-aware")
SCALED = (
    "asvd",
    "fwsvd",
)  # the singular value decomposition of the weights with scaled columns or rows, as published for language models
ALPHA = 0.5  # ASVD's exponent


@dataclass(frozen=True)
class Factors:
    """W ~ left @ right at every rank: ``left`` (d_out x k), ``right`` (k x d_in), float64, best columns first.

    ``shift`` (d_out) and ``mean`` (d_in) are set by data-aware factors of a layer with a bias: at rank r the
    bias is b + W mean - left_r right_r mean, so that the mean output is kept exactly. For a convolution ``layer`` is
    it, ``scheme`` says which matrix is meant (rows and columns of `unfold.to_matrix`), ``mean`` is of patches, and
    grouped ones have a first axis of groups. ``spread``, the covariance of patches, and ``metric`` of the errors are set
    where each rank has an answer of its own.
    """

    left: torch.Tensor
    right: torch.Tensor
    bias: torch.Tensor | None
    mean: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    dtype: torch.dtype = torch.float32
    layer: nn.Module | None = None
    scheme: str | None = None
    spread: torch.Tensor | None = None
    metric: torch.Tensor | None = None

    @property
    def full_rank(self) -> int:
        """The largest rank these factors hold: min(rows, columns) of the matrix."""
        return self.left.shape[-1]

    def truncate(self, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return (left, right, bias) of `rank`, 1 <= rank <= full_rank, in float64.

        A zero matrix also takes rank 0, which is written as one component of zeros: a stock layer needs one.
        """
        if rank == 0 and not self.right.count_nonzero():
            rank = 1
        if not is_whole(rank) or not 1 <= rank <= self.full_rank:
            raise ValueError(f"rank {rank!r} is not a whole number from 1 to {self.full_rank}, the full rank")
        left, right, bias = self.left[..., :rank], self.right[..., :rank, :], self.bias
        if self.spread is not None and rank < self.full_rank:
            left, right = self._alternate(rank, self.spread)
        if self.mean is not None and self.shift is not None:
            kept = unfold.apply_factors(self.layer, self.scheme, left, right, self.mean)
            bias = (0.0 if bias is None else bias) + self.shift - kept
        return left, right, bias

    def _alternate(self, rank, spread):
        count, offsets = unfold.groups(self.layer), unfold.shared(self.layer, self.scheme)
        whole = (self.left @ self.right).reshape(count, self.left.shape[-2] // offsets, -1)  # one row an output
        blocks = unfold.by_offset(self.layer, self.scheme, spread)
        rows = whole.shape[1]
        metrics = [metric_block(self.metric, g, rows) for g in range(count)]
        pairs = [alternating_low_rank(w, c, offsets, rank, m) for w, c, m in zip(whole, blocks, metrics)]
        left, right = (torch.stack(parts) for parts in zip(*pairs))
        return (left[0], right[0]) if count == 1 else (left, right)

    def layers(self, rank: int) -> nn.Sequential:
        """Return ``nn.Sequential(first, second)`` of stock layers: d_in -> rank -> d_out, or the two convolutions of the scheme.

        >>> small = factorize(nn.Linear(8, 5), rank=2)
        >>> [tuple(p.shape) for p in small.parameters()]
        [(2, 8), (5, 2), (5,)]
        """
        left, right, bias = self.truncate(rank)
        layer = self.layer
        if layer is None:
            like = {"dtype": self.dtype, "device": left.device}
            layer = nn.utils.skip_init(nn.Linear, right.shape[1], left.shape[0], **like)
        return unfold.thin_layers(layer, self.scheme, left, right, bias)


def decompose_layer(
    layer: nn.Linear | nn.Conv2d,
    method: str = "svd",
    moments: Moments | None = None,
    scheme: str | None = None,
    centred: bool | None = None,
    metric: torch.Tensor | None = None,
) -> Factors:
    """Return the `Factors` of a linear layer or convolution, good for every rank.

    ``"svd"`` (Eckart & Young 1936): W_r = U_r diag(s_r) V_r^T minimises ||W - W_r||_F.

    ``"data-aware"``: minimises ||(W - W_r)(X - mean)||_F over the calibration inputs X (the patches of a convolution).
    With C the covariance of X and U_r the top r eigenvectors of W C W^T, W_r = U_r U_r^T W; the squared residual is the
    sum of the dropped eigenvalues. No inverse of C is taken, so C may be singular. A layer without bias uses the second
    moment instead, as nothing can take the mean, unless `centred` is true: then the factors have a bias, for the caller
    to put into the batch norm that follows. C gets a ridge of 1e-8 of its mean diagonal: directions that the data never
    take are then kept longest first.

    Parameters: `layer`, an ``nn.Linear`` or ``nn.Conv2d``; `method`, one of `METHODS`; `moments`, the `Moments` of the
    layer's inputs (length d_in, or I kh kw of a patch), needed by ``"data-aware"``; `scheme`, one of `unfold.NAMES`
    for a convolution, None for the usual one; `metric` M (d_out x d_out, positive definite), which data-aware factors
    measure errors of the outputs by, as e^T M e: those of M^(1/2) W, and back.

    Raises ValueError for another kind of layer, an unknown method, missing or misshapen moments, NaN weights.

    >>> factors = decompose_layer(nn.Linear(6, 4))
    >>> factors.full_rank
    4
    """
    if method not in METHODS:
        raise ValueError(f"unknown factors {method!r}; known: {', '.join(METHODS)}")
    scheme = unfold.check_scheme(layer, scheme)
    matrix = unfold.to_matrix(layer, scheme)
    bias = None if layer.bias is None else layer.bias.detach().double()
    if not torch.isfinite(matrix).all() or (bias is not None and not torch.isfinite(bias).all()):
        raise ValueError("the weights hold NaN or infinite values; a spectrum needs finite ones")
    count = len(matrix)

    def ungrouped(left: torch.Tensor, right: torch.Tensor) -> Pair:
        return (left[0], right[0]) if count == 1 else (left, right)

    kind: dict[str, Any] = {"dtype": layer.weight.dtype, "layer": layer, "scheme": scheme}
    if method == "svd":
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        root = s.sqrt()  # shared evenly: both thin layers get weights of one scale, good for fine-tuning
        return Factors(*ungrouped(u * root[:, None, :], root[..., None] * vt), bias, **kind)

    if moments is None or moments.count == 0:
        raise ValueError("data-aware factors need calibration images; none were given")
    size = layer.weight[0].numel()
    if moments.mean.shape != ((size,) if count == 1 else (count, size)):
        raise ValueError(f"moments of length {moments.mean.shape[-1]} do not fit a layer with {size} inputs")
    centred = bias is not None if centred is None else centred
    spread = (moments.covariance if centred else moments.second_moment).to(matrix.device).reshape(count, size, size)
    ridge = 1e-8 * spread.diagonal(dim1=1, dim2=2).mean(1)
    ridge = torch.where(ridge > 0, ridge, 1.0)  # one image, or constant inputs: nothing to weight by
    about: dict[str, Any] = {}
    if centred:
        weight, mean = layer.weight.detach().double().reshape(count, -1, size), moments.mean.to(matrix.device)
        about = {"mean": mean, "shift": (weight @ mean.reshape(count, size, 1)).flatten()}
    if unfold.shared(layer, scheme) > 1:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        spread = spread + ridge[:, None, None] * torch.eye(size).to(spread)
        return Factors(*ungrouped(u * s[:, None, :], vt), bias, **about, **kind, spread=spread, metric=metric)
    if metric is not None:
        spread = spread + ridge[:, None, None] * torch.eye(size).to(spread)
        full, rows = min(matrix.shape[1:]), matrix.shape[1]
        pairs = [
            alternating_low_rank(matrix[g], spread[g], 1, full, metric_block(metric.to(matrix), g, rows))
            for g in range(count)
        ]
        left, right = (torch.stack(parts) for parts in zip(*pairs))
        return Factors(*ungrouped(left, right), bias, **about, **kind)
    # In an orthonormal basis of the column space of W: full rank is then exact whatever the eigenvectors.
    basis, reduced = torch.linalg.qr(matrix)
    outputs = reduced @ spread @ reduced.mT + ridge[:, None, None] * (reduced @ reduced.mT)
    _, vectors = torch.linalg.eigh((outputs + outputs.mT) / 2)
    vectors = vectors.flip(2)  # eigh sorts upwards
    return Factors(*ungrouped(basis @ vectors, vectors.mT @ reduced), bias, **about, **kind)


def scaled_layer(layer: nn.Linear, columns: torch.Tensor | None = None, rows: torch.Tensor | None = None) -> Factors:
    """Return the `Factors` of a linear layer from the truncated SVD of diag(rows) W diag(columns), scales taken back after.

    Without scales these are the factors of the plain SVD.

    ASVD (Yuan et al. 2023) takes ``columns`` = (mean |x_j|)^(1/2) (d_in), FWSVD (Hsu et al. 2022) ``rows`` = the square root of
    the Fisher information of a row's weights (d_out). None is ones. A scale of zero is raised to 1e-6 of the largest.

    Raises ValueError for another kind of layer, and scales that are negative, not finite or of another length.

    >>> layer = nn.Linear(6, 4)
    >>> left, right, bias = scaled_layer(layer, columns=torch.rand(6)).truncate(4)
    >>> bool(torch.allclose((left @ right).float(), layer.weight, atol=1e-4))
    True
    """
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"scaled factors are of linear layers; this is a {type(layer).__name__}")
    weight = layer.weight.detach().double()
    scales = []
    for what, given, size in (("rows", rows, len(weight)), ("columns", columns, weight.shape[1])):
        scale = torch.ones(size).to(weight) if given is None else given.to(weight)
        if scale.shape != (size,) or not torch.isfinite(scale).all() or (scale < 0).any():
            raise ValueError(f"{what} must be {size} finite numbers, none below zero")
        scales.append(scale.clamp(min=1e-6 * float(scale.max()) if scale.max() > 0 else 1.0))
    by_row, by_column = scales
    weighed = by_row[:, None] * weight
    full = min(weight.shape)
    left = _leading(weighed, torch.diag(by_column.square()), full)  # no inverse of the columns' scales is taken
    bias = None if layer.bias is None else layer.bias.detach().double()
    kind: dict[str, Any] = {"dtype": layer.weight.dtype, "layer": layer}
    return Factors(left / by_row[:, None], left.T @ weighed, bias, **kind)


def factorize(
    layer: nn.Linear | nn.Conv2d,
    rank: int,
    scheme: str | None = None,
    method: str = "svd",
    moments: Moments | None = None,
) -> nn.Sequential:
    """Return `layer` as stock thin layers of `rank`: ``nn.Sequential(first, second)``.

    Shapes: a linear layer d_in -> d_out becomes d_in -> rank (no bias), rank -> d_out, at a cost of
    rank (d_in + d_out) weights; a convolution the two of its `scheme` (see `unfold`). See `decompose_layer` for `method` and
    `moments`.

    Raises ValueError for a rank outside 1 to full rank, a scheme that the layer does not have, and as `decompose_layer`.

    >>> layer = nn.Linear(6, 4)
    >>> x = torch.randn(3, 6)
    >>> bool(torch.allclose(factorize(layer, 4)(x), layer(x), atol=1e-5))
    True
    """
    return decompose_layer(layer, method, moments, scheme).layers(rank)


def reduced_rank(
    covariance: torch.Tensor,
    cross: torch.Tensor,
    rank: int | None = None,
    ridge: float = 1e-6,
    metric: torch.Tensor | None = None,
    start: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return (left, right) of the rank-r matrix W that minimises E|t - W x|^2, or (None, W) for `rank` None.

    With a `metric` M (o x o, positive definite) it minimises E (t - W x)^T M (t - W x): the same for M^(1/2) t, and
    back.

    With C the covariance of x (d x d), B the cross covariance of t and x (o x d), W* = W_0 + (B - W_0 C)(C + ridge)^-1
    and U_r the top r eigenvectors of W* (C + ridge) W*^T, the answer is U_r U_r^T W*: left = U_r (o x r), right = U_r^T
    W* (r x d). The ridge is a share of the mean variance; with it a singular C is normal input, and in directions that
    x never takes W* is `start` W_0 (default: zero).

    Source: reduced-rank regression, Izenman 1975.

    >>> c, b = torch.eye(3, dtype=torch.float64), torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    >>> left, right = reduced_rank(c, b, 2, ridge=0)
    >>> (left @ right).diagonal().tolist()
    [3.0, 2.0, 0.0]
    """
    scale = covariance.diagonal().mean()
    damped = covariance + (ridge * scale if scale else 1.0) * torch.eye(len(covariance)).to(covariance)
    start = torch.zeros_like(cross) if start is None else start
    best = start + torch.linalg.solve(damped, (cross - start @ covariance).T).T
    if rank is None:
        return None, best
    return alternating_low_rank(best, damped, 1, rank, metric)
