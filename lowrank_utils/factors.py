"""The numbers that go into the thin layers: a weight matrix W (d_out x d_in) written as left @ right.

Two factorizers for a layer on its own, both with nested ranks (the factors of rank r are the first r columns and rows of the
factors of full rank, so that one decomposition serves every rank):

- ``"svd"``: the truncated singular value decomposition, the best W_r for the weights themselves;
- ``"data-aware"``: the best W_r for the layer's outputs on calibration data, no training, no matrix inverse.
"""

from collections import OrderedDict
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import nn

from .models import evaluating

METHODS = ("svd", "data-aware")


@dataclass
class Moments:
    """Mean and covariance of vectors that arrive in batches; memory does not grow with their number.

    ``count`` vectors seen, ``mean`` (d), ``scatter`` (d x d, sum of centred outer products), all float64
    (Chan, Golub & LeVeque 1979 for joining batches).

    >>> x = torch.arange(12.0).reshape(6, 2)
    >>> seen = Moments.empty(2)
    >>> for batch in x.split(4):
    ...     seen.update(batch)
    >>> bool(torch.allclose(seen.covariance, torch.cov(x.T.double(), correction=0)))
    True
    """

    count: int
    mean: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def empty(cls, size, device="cpu"):
        """Return moments of no vectors yet, of length `size`."""
        zeros = torch.zeros(size, dtype=torch.float64, device=device)
        return cls(0, zeros, torch.zeros(size, size, dtype=torch.float64, device=device))

    def update(self, vectors):
        """Add `vectors` (n x d) in place; raises ValueError where they hold NaN or infinity."""
        x = vectors.detach().to(self.mean.device, torch.float64)
        if not torch.isfinite(x).all():
            raise ValueError("the calibration data make NaN or infinite activations; check images and weights")
        if len(x) == 0:
            return
        mean = x.mean(0)
        centred = x - mean
        total = self.count + len(x)
        delta = mean - self.mean
        self.scatter.addmm_(centred.T, centred)
        self.scatter.addr_(delta, delta, alpha=self.count * len(x) / total)
        self.mean = self.mean + delta * (len(x) / total)
        self.count = total

    @property
    def covariance(self):
        """Covariance (d x d), divided by the count."""
        return self.scatter / max(self.count, 1)

    @property
    def second_moment(self):
        """Mean outer product without centring (d x d), for layers that have no bias to take the mean."""
        return self.covariance + torch.outer(self.mean, self.mean)


@dataclass(frozen=True)
class Factors:
    """W ~ left @ right at every rank: ``left`` (d_out x k), ``right`` (k x d_in), float64, best columns first.

    ``shift`` (d_out) and ``mean`` (d_in) are set by data-aware factors of a layer with a bias: at rank r the
    bias is b + W mean - left_r right_r mean, so that the mean output is kept exactly.
    """

    left: torch.Tensor
    right: torch.Tensor
    bias: torch.Tensor | None
    mean: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    dtype: torch.dtype = torch.float32

    @property
    def full_rank(self):
        """The largest rank these factors hold: min(d_out, d_in)."""
        return self.left.shape[1]

    def truncate(self, rank):
        """Return (left, right, bias) of `rank`, 1 <= rank <= full_rank, in float64.

        A zero matrix also takes rank 0, which is written as one component of zeros: a stock layer needs one.
        """
        if rank == 0 and not self.right.count_nonzero():
            rank = 1
        if not isinstance(rank, Integral) or isinstance(rank, bool) or not 1 <= rank <= self.full_rank:
            raise ValueError(f"rank {rank!r} is not a whole number from 1 to {self.full_rank}, the full rank")
        left, right, bias = self.left[:, :rank], self.right[:rank], self.bias
        if self.mean is not None:
            bias = bias + self.shift - left @ (right @ self.mean)
        return left, right, bias

    def layers(self, rank):
        """Return ``nn.Sequential(first, second)`` of stock linear layers, d_in -> rank -> d_out.

        >>> small = factorize(nn.Linear(8, 5), rank=2)
        >>> [tuple(p.shape) for p in small.parameters()]
        [(2, 8), (5, 2), (5,)]
        """
        left, right, bias = self.truncate(rank)
        first = nn.utils.skip_init(nn.Linear, right.shape[1], right.shape[0], bias=False, dtype=self.dtype)
        second = nn.utils.skip_init(
            nn.Linear, right.shape[0], left.shape[0], bias=bias is not None, dtype=self.dtype
        )
        with torch.no_grad():
            first.weight.copy_(right)
            second.weight.copy_(left)
            if bias is not None:
                second.bias.copy_(bias)
        return nn.Sequential(OrderedDict(first=first, second=second)).to(left.device)


def decompose(layer, method="svd", moments=None):
    """Return the `Factors` of a linear layer, good for every rank.

    ``"svd"`` (Eckart & Young 1936): W_r = U_r diag(s_r) V_r^T minimises ||W - W_r||_F.

    ``"data-aware"``: minimises ||(W - W_r)(X - mean)||_F over the calibration inputs X. With C the covariance
    of X and U_r the top r eigenvectors of W C W^T, W_r = U_r U_r^T W; the squared residual is the sum of the
    dropped eigenvalues. No inverse of C is taken, so C may be singular. A layer without bias uses the second
    moment in place of the covariance. Directions that the data never excite are ordered by a ridge of 1e-8 of
    the mean variance.

    Parameters: `layer`, an ``nn.Linear``; `method`, one of `METHODS`; `moments`, the `Moments` of the layer's
    inputs (length d_in), needed by ``"data-aware"``.

    Raises ValueError for another kind of layer, an unknown method, missing or misshapen moments, NaN weights.

    >>> factors = decompose(nn.Linear(6, 4))
    >>> factors.full_rank
    4
    """
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"a layer of type {type(layer).__name__} cannot be factored here; nn.Linear can")
    if method not in METHODS:
        raise ValueError(f"unknown factors {method!r}; known: {', '.join(METHODS)}")
    weight = layer.weight.detach().double()
    bias = None if layer.bias is None else layer.bias.detach().double()
    if not torch.isfinite(weight).all() or (bias is not None and not torch.isfinite(bias).all()):
        raise ValueError("the weights hold NaN or infinite values; a spectrum needs finite ones")
    if method == "svd":
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        root = s.sqrt()  # shared evenly: both thin layers get weights of one scale, good for fine-tuning
        return Factors(u * root, root[:, None] * vt, bias, dtype=layer.weight.dtype)

    if moments is None or moments.count == 0:
        raise ValueError("data-aware factors need calibration images; none were given")
    if moments.mean.shape != (weight.shape[1],):
        raise ValueError(
            f"moments of length {moments.mean.shape[0]} do not fit a layer with {weight.shape[1]} inputs"
        )
    spread = moments.second_moment if bias is None else moments.covariance
    spread = spread.to(weight.device)
    ridge = 1e-8 * spread.diagonal().mean()
    if ridge == 0:  # one image, or constant inputs: nothing to weight by
        ridge = torch.ones((), dtype=torch.float64, device=weight.device)
    # In an orthonormal basis of the column space of W: full rank is then exact whatever the eigenvectors.
    basis, reduced = torch.linalg.qr(weight)
    outputs = reduced @ spread @ reduced.T + ridge * (reduced @ reduced.T)
    _, vectors = torch.linalg.eigh((outputs + outputs.T) / 2)
    vectors = vectors.flip(1)  # eigh sorts upwards
    left, right = basis @ vectors, vectors.T @ reduced
    if bias is None:
        return Factors(left, right, None, dtype=layer.weight.dtype)
    mean = moments.mean.to(weight.device)
    return Factors(left, right, bias, mean, weight @ mean, layer.weight.dtype)


def factorize(layer, rank, scheme=None, method="svd", moments=None):
    """Return `layer` as stock thin layers of `rank`: ``nn.Sequential(first, second)``.

    Shapes: a linear layer d_in -> d_out becomes d_in -> rank (no bias), rank -> d_out, at a cost of
    rank (d_in + d_out) weights. `scheme` is None for linear layers. See `decompose` for `method` and `moments`.

    Raises ValueError for a rank outside 1..min(d_in, d_out), an unknown scheme, and as `decompose`.

    >>> layer = nn.Linear(6, 4)
    >>> x = torch.randn(3, 6)
    >>> bool(torch.allclose(factorize(layer, 4)(x), layer(x), atol=1e-5))
    True
    """
    if scheme is not None:
        raise ValueError(f"scheme {scheme!r} is not one of a linear layer, which has only scheme=None")
    return decompose(layer, method, moments).layers(rank)


def collect(model, names, calibration, batch_size=500):
    """Return ``{name: Moments}`` of the inputs of the named linear layers while `model` sees `calibration`.

    `calibration` is a tensor of network inputs (N first) and is fed in batches; what is kept is one d_in x d_in
    matrix a layer, whatever N. The model runs in eval mode and is put back as it was.

    Raises ValueError for an empty or non-finite `calibration`, or images of a shape the network cannot take.
    """
    if not torch.is_tensor(calibration) or calibration.ndim < 2 or len(calibration) == 0:
        raise ValueError("calibration must be a tensor of at least one input, with the images along its first axis")
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    modules = dict(model.named_modules())
    for name in names:
        if not isinstance(modules.get(name), nn.Linear):
            raise ValueError(f"there is no linear layer {name!r} in this network whose inputs could be collected")
    found = {name: Moments.empty(model.get_submodule(name).weight.shape[1], device) for name in names}

    def watch(name):
        return lambda module, inputs: found[name].update(inputs[0].reshape(-1, inputs[0].shape[-1]))

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        with evaluating(model):
            for batch in calibration.split(batch_size):
                if not torch.isfinite(batch).all():
                    raise ValueError("the calibration images hold NaN or infinite values")
                model(batch.to(device, dtype))
    except RuntimeError as error:
        shape = tuple(calibration.shape[1:])
        raise ValueError(f"the network cannot take calibration images of shape {shape}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    unmet = [name for name in names if not found[name].count]
    if unmet:
        raise ValueError(f"no input reaches layer {unmet[0]!r} in a forward pass, so there is nothing to calibrate it with")
    return found
