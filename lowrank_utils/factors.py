"""The numbers that go into the thin layers: a weight matrix W (d_out x d_in) written as left @ right.

A convolution is a matrix too, in one of the ways of `schemes`. Two factorizers for a layer on its own; one
decomposition serves every rank:

- ``"svd"``: the truncated singular value decomposition, the best W_r for the weights themselves;
- ``"data-aware"``: the best W_r for the layer's outputs on calibration data, no training, no matrix inverse. In the
  spatial and input schemes
  of a convolution the first factor meets shifted copies of one input, and there is no closed form: `schemes.low_rank`
  alternates.
"""

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import nn

from . import schemes
from .models import check_there, evaluating

METHODS = ("svd", "data-aware")


@dataclass
class Moments:
    """Mean and covariance of vectors that arrive in batches; memory does not grow with their number.

    ``count`` vectors seen, ``mean`` (d), ``scatter`` (d x d, sum of centred outer products), all float64
    (Chan, Golub & LeVeque 1979 for joining batches). With a first axis of groups for the patches of a grouped
    convolution.

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
    def empty(cls, size, device="cpu", groups=1):
        """Return moments of no vectors yet, of length `size`, for `groups` kinds of vectors (1: no first axis)."""
        first = () if groups == 1 else (groups,)
        zeros = torch.zeros(*first, size, dtype=torch.float64, device=device)
        return cls(0, zeros, torch.zeros(*first, size, size, dtype=torch.float64, device=device))

    def update(self, vectors, dtype=torch.float64):
        """Add `vectors` (n x d, or groups x n x d) in place, their products taken in `dtype`.

        Raises ValueError where they hold NaN or infinity.
        """
        x = vectors.detach().to(self.mean.device, dtype)
        if not torch.isfinite(x).all():
            raise ValueError("the calibration data make NaN or infinite activations; check images and weights")
        if x.shape[-2] == 0:
            return
        mean = x.mean(-2, keepdim=True)
        centred = x - mean
        total = self.count + x.shape[-2]
        delta = mean.squeeze(-2).double() - self.mean
        share = self.count * x.shape[-2] / total
        self.scatter += (centred.mT @ centred).double() + share * delta[..., :, None] * delta[..., None, :]
        self.mean = self.mean + delta * (x.shape[-2] / total)
        self.count = total

    @property
    def covariance(self):
        """Covariance (d x d), divided by the count."""
        return self.scatter / max(self.count, 1)

    @property
    def second_moment(self):
        """Mean outer product without centring (d x d), for layers that have no bias to take the mean."""
        return self.covariance + self.mean[..., :, None] * self.mean[..., None, :]


@dataclass(frozen=True)
class Factors:
    """W ~ left @ right at every rank: ``left`` (d_out x k), ``right`` (k x d_in), float64, best columns first.

    ``shift`` (d_out) and ``mean`` (d_in) are set by data-aware factors of a layer with a bias: at rank r the
    bias is b + W mean - left_r right_r mean, so that the mean output is kept exactly. For a convolution ``layer`` is
    it, ``scheme`` says which matrix is meant (rows and columns of `schemes.to_matrix`), ``mean`` is of patches, and
    grouped ones have a first axis of groups. ``spread``, the covariance of patches, is set where each rank has an
    answer of its own.
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

    @property
    def full_rank(self):
        """The largest rank these factors hold: min(rows, columns) of the matrix."""
        return self.left.shape[-1]

    def truncate(self, rank):
        """Return (left, right, bias) of `rank`, 1 <= rank <= full_rank, in float64.

        A zero matrix also takes rank 0, which is written as one component of zeros: a stock layer needs one.
        """
        if rank == 0 and not self.right.count_nonzero():
            rank = 1
        if not isinstance(rank, Integral) or isinstance(rank, bool) or not 1 <= rank <= self.full_rank:
            raise ValueError(f"rank {rank!r} is not a whole number from 1 to {self.full_rank}, the full rank")
        left, right, bias = self.left[..., :rank], self.right[..., :rank, :], self.bias
        if self.spread is not None and rank < self.full_rank:
            left, right = self._alternate(rank)
        if self.mean is not None:
            if self.scheme in (None, "channel") and self.mean.ndim == 1:
                kept = left @ (right @ self.mean)
            else:
                whole = schemes.from_matrix(
                    self.layer, self.scheme, (left @ right).reshape(schemes.groups(self.layer), left.shape[-2], -1)
                )
                kept = (whole @ self.mean.reshape(len(whole), -1, 1)).flatten()
            bias = (0.0 if bias is None else bias) + self.shift - kept
        return left, right, bias

    def _alternate(self, rank):
        count, offsets = schemes.groups(self.layer), schemes.shared(self.layer, self.scheme)
        place = schemes.in_order(self.layer, self.scheme).to(self.left.device)
        whole = (self.left @ self.right).reshape(count, self.left.shape[-2], -1)
        whole = schemes.from_matrix(self.layer, self.scheme, whole)[..., place]
        spread = self.spread.reshape(count, len(place), len(place))[:, place][:, :, place]
        pairs = [schemes.low_rank(w, c, offsets, rank) for w, c in zip(whole, spread)]
        left, right = (torch.stack(parts) for parts in zip(*pairs))
        return (left[0], right[0]) if count == 1 else (left, right)

    def layers(self, rank):
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
        return schemes.thin(layer, self.scheme, left, right, bias)


def decompose(layer, method="svd", moments=None, scheme=None, centred=None):
    """Return the `Factors` of a linear layer or convolution, good for every rank.

    ``"svd"`` (Eckart & Young 1936): W_r = U_r diag(s_r) V_r^T minimises ||W - W_r||_F.

    ``"data-aware"``: minimises ||(W - W_r)(X - mean)||_F over the calibration inputs X (the patches of a convolution).
    With C the covariance of X and U_r the top r eigenvectors of W C W^T, W_r = U_r U_r^T W; the squared residual is the
    sum of the dropped eigenvalues. No inverse of C is taken, so C may be singular. A layer without bias uses the second
    moment instead, as nothing can take the mean, unless `centred` is true: then the factors have a bias, for the caller
    to put into the batch norm that follows. C gets a ridge of 1e-8 of its mean diagonal: directions that the data never
    take are then kept longest first.

    Parameters: `layer`, an ``nn.Linear`` or ``nn.Conv2d``; `method`, one of `METHODS`; `moments`, the `Moments` of the
    layer's inputs (length d_in, or I kh kw of a patch), needed by ``"data-aware"``; `scheme`, one of `schemes.NAMES`
    for a convolution, None for the usual one.

    Raises ValueError for another kind of layer, an unknown method, missing or misshapen moments, NaN weights.

    >>> factors = decompose(nn.Linear(6, 4))
    >>> factors.full_rank
    4
    """
    if method not in METHODS:
        raise ValueError(f"unknown factors {method!r}; known: {', '.join(METHODS)}")
    scheme = schemes.check(layer, scheme)
    matrix = schemes.to_matrix(layer, scheme)
    bias = None if layer.bias is None else layer.bias.detach().double()
    if not torch.isfinite(matrix).all() or (bias is not None and not torch.isfinite(bias).all()):
        raise ValueError("the weights hold NaN or infinite values; a spectrum needs finite ones")
    count = len(matrix)

    def ungrouped(*parts):
        return [part[0] if count == 1 else part for part in parts]

    kind = {"dtype": layer.weight.dtype, "layer": layer, "scheme": scheme}
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
    about = {}
    if centred:
        weight, mean = layer.weight.detach().double().reshape(count, -1, size), moments.mean.to(matrix.device)
        about = {"mean": mean, "shift": (weight @ mean.reshape(count, size, 1)).flatten()}
    if schemes.shared(layer, scheme) > 1:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        spread = spread + ridge[:, None, None] * torch.eye(size).to(spread)
        return Factors(*ungrouped(u * s[:, None, :], vt), bias, **about, **kind, spread=spread)
    # In an orthonormal basis of the column space of W: full rank is then exact whatever the eigenvectors.
    basis, reduced = torch.linalg.qr(matrix)
    outputs = reduced @ spread @ reduced.mT + ridge[:, None, None] * (reduced @ reduced.mT)
    _, vectors = torch.linalg.eigh((outputs + outputs.mT) / 2)
    vectors = vectors.flip(2)  # eigh sorts upwards
    return Factors(*ungrouped(basis @ vectors, vectors.mT @ reduced), bias, **about, **kind)


def factorize(layer, rank, scheme=None, method="svd", moments=None):
    """Return `layer` as stock thin layers of `rank`: ``nn.Sequential(first, second)``.

    Shapes: a linear layer d_in -> d_out becomes d_in -> rank (no bias), rank -> d_out, at a cost of
    rank (d_in + d_out) weights; a convolution the two of its `scheme` (see `schemes`). See `decompose` for `method` and
    `moments`.

    Raises ValueError for a rank outside 1 to full rank, a scheme that the layer does not have, and as `decompose`.

    >>> layer = nn.Linear(6, 4)
    >>> x = torch.randn(3, 6)
    >>> bool(torch.allclose(factorize(layer, 4)(x), layer(x), atol=1e-5))
    True
    """
    return decompose(layer, method, moments, scheme).layers(rank)


def collect(model, names, calibration, batch_size=500):
    """Return ``{name: Moments}`` of the inputs of the named layers while `model` sees `calibration`.

    `calibration` is a tensor of network inputs (N first) and is fed in batches; what is kept is one d_in x d_in
    matrix a layer, whatever N. For a convolution the vectors are its patches (I kh kw numbers, one for each output
    position). The model runs in eval mode and is put back as it was.

    Raises ValueError for an empty or non-finite `calibration`, or images of a shape the network cannot take.
    """
    check_there(model)
    if not torch.is_tensor(calibration) or calibration.ndim < 2 or len(calibration) == 0:
        raise ValueError("calibration must be a tensor of at least one input, with the images along its first axis")
    first = next(model.parameters(), None)
    if first is None:
        raise ValueError("this network has no parameters, so it has no layer whose inputs could be collected")
    device, dtype = first.device, first.dtype
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules or not schemes.allowed(modules[name]):
            raise ValueError(
                f"there is no layer {name!r} in this network that is linear or a convolution, whose inputs could be collected"
            )
    found = {
        name: Moments.empty(modules[name].weight[0].numel(), device, schemes.groups(modules[name])) for name in names
    }

    def watch(name):
        def hook(module, args, kwargs):
            x = schemes.given(args, kwargs)
            if isinstance(module, nn.Linear):
                return found[name].update(schemes.patches(module, x)[0])
            for some in x.split(schemes.images_at_once(module, x)):
                seen = schemes.patches(module, some)
                # sums over many positions are too large for half precision
                wide = torch.promote_types(seen.dtype, torch.float32)
                found[name].update(seen[0] if len(seen) == 1 else seen, wide)

        return hook

    with evaluating(model):
        try:
            model(calibration[:1].to(device, dtype, copy=True))  # some networks write into their input
        except Exception as error:  # a reader's own network fails in errors of many kinds
            shape = tuple(calibration.shape[1:])
            raise ValueError(f"the network cannot take calibration images of shape {shape}: {error}") from error
    hooks = [modules[name].register_forward_pre_hook(watch(name), with_kwargs=True) for name in names]
    try:
        with evaluating(model):
            for batch in calibration.split(batch_size):
                if not torch.isfinite(batch).all():
                    raise ValueError("the calibration images hold NaN or infinite values")
                model(batch.to(device, dtype, copy=True))
    finally:
        for hook in hooks:
            hook.remove()
    unmet = [name for name in names if not found[name].count]
    if unmet:
        raise ValueError(
            f"no input reaches layer {unmet[0]!r} in a forward pass, so there is nothing to calibrate it with"
        )
    return found
