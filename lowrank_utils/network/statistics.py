"""Statistics of data on its way through a network: moments of layer inputs, Fisher information of layer outputs, activations of hidden units.

With `hooks` this is the one place that watches data pass through a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lowrank_utils.checks import check_count
from lowrank_utils.network import inputs, unfold
from lowrank_utils.network.graph import HiddenLayer, hidden_layers
from lowrank_utils.network.hooks import hooked, watch
from lowrank_utils.network.inputs import Batch, check_some
from lowrank_utils.network.modules import check_there, evaluating, frozen
from lowrank_utils.network.unfold import output_rows
from lowrank_utils.progress import track

# Of token ids, a multiple of the identity stands beside what was seen, as if it had been seen so often: few tokens leave directions
# empty that other text needs. Chosen on validation text of WikiText-2 with SmolLM2-135M, at 8 192 tokens; `Moments.prior`.
TOKEN_PRIOR = 100  # samples
FISHER_PRIOR = 440  # tokens


@dataclass
class Moments:
    """Mean and covariance of vectors that arrive in batches; memory does not grow with their number.

    ``count`` vectors seen, ``mean`` (d), ``scatter`` (d x d, sum of centred outer products), ``size`` (d, sum of absolute
    values), all float64 (Chan, Golub & LeVeque 1979 for joining batches). With a first axis of groups for the patches of a grouped
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
    size: torch.Tensor | float = 0.0
    prior: float = 0.0

    @classmethod
    def empty(cls, size: int, device: torch.device | str = "cpu", groups: int = 1) -> Moments:
        """Return moments of no vectors yet, of length `size`, for `groups` kinds of vectors (1: no first axis)."""
        first = () if groups == 1 else (groups,)
        zeros = torch.zeros(*first, size, dtype=torch.float64, device=device)
        return cls(0, zeros, torch.zeros(*first, size, size, dtype=torch.float64, device=device))

    def update(self, vectors: torch.Tensor, dtype: torch.dtype = torch.float64) -> None:
        """Add `vectors` (n x d, or groups x n x d) in place, their products taken in `dtype`.

        Raises ValueError where they hold NaN or infinity.
        """
        x = vectors.detach().to(self.mean.device, dtype)
        if x.shape[-2] == 0:
            return
        mean = x.mean(-2, keepdim=True)
        centred = x - mean
        total = self.count + x.shape[-2]
        delta = mean.squeeze(-2).double() - self.mean
        share = self.count * x.shape[-2] / total
        products = outer(centred).double()
        if not (torch.isfinite(delta).all() and torch.isfinite(products.diagonal(dim1=-2, dim2=-1)).all()):
            raise ValueError("the calibration data make NaN or infinite activations; check images and weights")
        if self.count:
            products += share * delta[..., :, None] * delta[..., None, :]
        self.scatter += products
        self.mean = self.mean + delta * (x.shape[-2] / total)
        self.size = self.size + x.abs().sum(-2).double()
        self.count = total

    @property
    def covariance(self) -> torch.Tensor:
        """Covariance (d x d), divided by the count, with the prior."""
        return self._with_prior(self.scatter / max(self.count, 1))

    def _with_prior(self, matrix):
        if not self.prior:
            return matrix
        even = self.prior / max(self.count, 1) * matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
        return matrix + even[..., None, None] * torch.eye(matrix.shape[-1]).to(matrix)

    @property
    def mean_absolute(self) -> torch.Tensor:
        """Mean of the absolute values (d)."""
        return self.size / max(self.count, 1) + torch.zeros_like(self.mean)

    @property
    def second_moment(self) -> torch.Tensor:
        """Mean outer product without centring (d x d), for layers that have no bias to take the mean."""
        plain = self.scatter / max(self.count, 1) + self.mean[..., :, None] * self.mean[..., None, :]
        return self._with_prior(plain)


def outer(rows: torch.Tensor, block: int = 512) -> torch.Tensor:
    """Return R^T R of `rows` R (n x d, or groups x n x d); of wide rows in blocks, whose lower half mirrors the upper one.

    >>> outer(torch.tensor([[1.0, 2.0], [0.0, 3.0]])).tolist()
    [[1.0, 2.0], [2.0, 13.0]]
    """
    wide = rows.shape[-1]
    if wide < 2 * block:
        return rows.mT @ rows
    product = rows.new_empty(*rows.shape[:-2], wide, wide)
    for at in range(0, wide, block):
        end = min(at + block, wide)
        part = rows[..., at:end].mT @ rows[..., at:]
        product[..., at:end, at:] = part
        product[..., end:, at:end] = part[..., end - at :].mT
    return product


def collect_moments(
    model: nn.Module,
    names: Sequence[str],
    calibration: Batch,
    batch_size: int = 500,
    samples: int | None = None,
    seed: int = 0,
) -> dict[str, Moments]:
    """Return ``{name: Moments}`` of the inputs of the named layers while `model` sees `calibration`.

    `calibration` is a tensor of network inputs (N first) and is fed in batches; what is kept is one d_in x d_in
    matrix a layer, whatever N. For a convolution the vectors are its patches (I kh kw numbers, one for each output
    position). With `samples` no layer looks at many more vectors than that: each input gives equally many, at random
    positions (`seed`). The model runs in eval mode and is put back as it was.

    Raises ValueError for an empty or non-finite `calibration`, or images of a shape the network cannot take.
    """
    check_there(model)
    check_some(calibration)
    if next(model.parameters(), None) is None:
        raise ValueError("this network has no parameters, so it has no layer whose inputs could be collected")
    found, hooks = _moment_hooks(model, names, calibration, samples, seed)
    watch(model, calibration.split(batch_size), hooks)
    _check_met(found)
    return found


def positions_each(samples: int | None, inputs: int) -> int | None:
    """Return how many positions of each of `inputs` inputs make `samples` in all; None, all of them, for None.

    >>> positions_each(20_000, 1500)
    14
    """
    if samples is None:
        return None
    check_count(samples=samples)
    return -(-samples // inputs)


def _moment_hooks(model, names, calibration, samples, seed):
    # ({name: Moments}, {name: hook that fills them from what the layer reads}); layers that read one tensor share theirs
    each = positions_each(samples, len(calibration))
    modules: dict[str, Any] = dict(model.named_modules())
    for name in names:
        if name not in modules or not unfold.schemes_of(modules[name]):
            raise ValueError(
                f"there is no layer {name!r} in this network that is linear or a convolution, whose inputs could be collected"
            )
    device = next(model.parameters()).device
    first = shared_inputs(model, names, calibration[:1])
    found = {
        name: Moments.empty(modules[name].weight[0].numel(), device, unfold.groups(modules[name]))
        for name in names
        if first[name] == name
    }
    found = {name: found[first[name]] for name in names}
    generator = torch.Generator().manual_seed(seed)

    def update(name):
        def hook(module, args, kwargs, output):
            x = unfold.call_input(args, kwargs).detach()
            if x.ndim == 3 and isinstance(module, nn.Linear):
                found[name].prior = TOKEN_PRIOR
            at = None if each is None else unfold.sampled_positions(module, x, each, generator)
            exact = isinstance(module, nn.Linear) and at is None and x.ndim == 2  # many tokens are summed in blocks
            for some in (x,) if exact or at is not None else x.split(unfold.images_at_once(module, x)):
                seen = unfold.patches(module, some, at=at)
                # sums over many positions are too large for half precision
                wide = torch.float64 if exact else torch.promote_types(seen.dtype, torch.float32)
                found[name].update(seen[0] if len(seen) == 1 else seen, wide)

        return hook

    return found, {name: update(name) for name in names if first[name] == name}


def shared_inputs(model: nn.Module, names: Sequence[str], example: Batch) -> dict[str, str]:
    """Return ``{layer: the first of the linear layers that read the very tensor that it reads}``, itself where there is none.

    Query, key and value matrices of attention read one tensor, so one covariance serves them. `example` is one input.

    >>> class Two(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 4)
    ...     def forward(self, x):
    ...         return self.a(x).sum() + self.b(x).sum()
    >>> shared_inputs(Two(), ["a", "b"], torch.zeros(1, 3))
    {'a': 'a', 'b': 'a'}
    """
    linear = [name for name in names if isinstance(model.get_submodule(name), nn.Linear)]
    first = {name: name for name in names}
    if len(linear) < 2:
        return first
    read: dict[str, list[tuple[torch.Tensor, int]]] = {}  # the tensors, and how often each was written to before

    def note(name):
        def hook(module, args, kwargs, output):
            x = unfold.call_input(args, kwargs)
            read.setdefault(name, []).append((x, 0 if x.is_inference() else x._version))

        return hook

    like, notes = next(model.parameters()), {name: note(name) for name in linear}
    # not in inference mode, where nothing counts how often a tensor was written to
    with evaluating(model), torch.inference_mode(False), torch.no_grad(), hooked(model, notes):
        try:
            inputs.call(model, inputs.fed(example, like))
        except Exception as error:  # a reader's own network fails in errors of many kinds
            shape = inputs.in_words(example)
            raise ValueError(f"the network cannot take calibration images of shape {shape}: {error}") from error
    once = {name: calls[0] for name, calls in read.items() if len(calls) == 1}
    for name, (tensor, version) in once.items():
        first[name] = next(other for other, (x, at) in once.items() if x is tensor and at == version)
    return first


def _check_met(found):
    unmet = [name for name in found if not found[name].count]
    if unmet:
        raise ValueError(
            f"no input reaches layer {unmet[0]!r} in a forward pass, so there is nothing to calibrate it with"
        )


ESTIMATORS = ("exact", "signs", "draws")


def fisher(
    model: nn.Module,
    names: Sequence[str],
    images: Batch,
    draws: int = 10,
    seed: int = 0,
    batch_size: int = 50,
    estimator: str = "exact",
) -> dict[str, torch.Tensor]:
    """Return ``{layer: matrix}`` (d_out x d_out, float64; float32 where answers are N x T x classes): how much the network's answer feels errors in a layer's outputs.

    The Fisher information of the predicted distribution with respect to the layer's outputs t, E_x E_{y ~ p(y|x)} [g
    g^T] with g = d log p(y|x) / dt, summed over the positions of a convolution: a small error e changes the
    distribution by e^T F e / 2 (Kullback-Leibler divergence, to second order). No labels are used. The model runs in
    eval mode. Answers are logits, N x classes; of N x T x classes, as a language model gives, the log-probabilities of
    all T answers of an input are summed, which only "signs" and "draws" can estimate.

    estimator : "exact", one backward pass for each class and batch (more than `draws` classes: as "draws"); "signs",
        `draws` passes, each for sum_k s_k sqrt(p_k) log p_k with random signs s, whose g g^T has the exact F as its
        mean and takes every class into account; "draws", `draws` classes drawn from p(y|x) for each image, one pass each.
    draws, seed : how many random passes, and their seed.

    Raises ValueError for layers that are not there or not used exactly once in a pass, no images or images that the
    network cannot take, and NaN. Sources: Amari 1998; as a metric for layers, Martens & Grosse 2015; random signs
    in place of a sum over classes, Hutchinson 1990.

    >>> layer = nn.Linear(3, 2)
    >>> found = fisher(nn.Sequential(layer), ["0"], torch.zeros(1, 3))["0"]  # p (1 - p) times [[1, -1], [-1, 1]]
    >>> p = layer.bias.softmax(0)[0].item()
    >>> bool(torch.allclose(found, p * (1 - p) * torch.tensor([[1.0, -1], [-1, 1]]).double(), atol=1e-6))
    True
    """
    return _fisher(model, names, images, _Passes(estimator, draws, seed), batch_size, {})


def moments_and_fisher(
    model: nn.Module,
    names: Sequence[str],
    images: Batch,
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 50,
    estimator: str = "signs",
    samples: int | None = None,
) -> tuple[dict[str, Moments], dict[str, torch.Tensor]]:
    """Return what `collect_moments` and `fisher` return, from one pass over the images instead of two."""
    check_there(model)
    found, hooks = _moment_hooks(model, names, images, samples, seed)
    metric = _fisher(model, names, images, _Passes(estimator, draws, seed), batch_size, hooks)
    _check_met(found)
    return found, metric


@dataclass
class _Passes:
    # which sums of log-probabilities are followed backwards, for one batch after the other
    estimator: str
    draws: int
    seed: int

    def __post_init__(self):
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"unknown estimator {self.estimator!r}; known: {', '.join(ESTIMATORS)}")
        check_count(draws=self.draws)
        self.generator = torch.Generator().manual_seed(self.seed)

    def rounds(self, logits):
        # (end, its slope, how much the slopes of each input count, whether another round comes), one round after the other
        few = self.estimator == "exact" and logits.ndim == 2 and logits.shape[1] <= self.draws
        count = logits.shape[1] if few else self.draws
        found = self.of(logits.log_softmax(-1)) if logits.ndim == 2 else self.slopes(logits)
        return ((*one, left > 0) for left, one in zip(range(count - 1, -1, -1), found))

    def of(self, logs):
        # (sum to follow, its slope, how much the slopes of each input count) for logs, N x classes
        shares = logs.detach().double().exp()
        if self.estimator == "exact" and logs.shape[1] <= self.draws:
            return [(logs[:, k].sum(), None, shares[:, k]) for k in range(logs.shape[1])]
        even = torch.full((len(logs),), 1 / self.draws, dtype=torch.float64, device=logs.device)
        if self.estimator == "signs":
            root = shares.sqrt().to(logs.dtype)
            return [((self._signs(root) * root * logs).sum(), None, even) for _ in range(self.draws)]
        drawn = self._drawn(shares)
        return [(logs.gather(1, drawn[:, [k]]).sum(), None, even) for k in range(self.draws)]

    @torch.no_grad()
    def slopes(self, logits):
        # The same for N x T x classes, one pass after the other, by the slopes at the logits: those of sum c log p are
        # c - p sum(c). A vocabulary times tokens is large, so nothing of it is kept for autograd. Slopes count alike.
        shares = logits.softmax(-1)
        drawn = None if self.estimator == "signs" else self._drawn(shares.flatten(0, -2))
        root = 1 / math.sqrt(self.draws)
        for k in range(self.draws):
            if drawn is None:
                weights = shares.sqrt()
                weights *= self._signs(weights)
                weights.addcmul_(shares, weights.sum(-1, keepdim=True), value=-1)
            else:
                weights = -shares
                flat = weights.view(-1, shares.shape[-1])
                flat.scatter_add_(1, drawn[:, [k]], torch.ones(len(flat), 1).to(flat))
            yield logits, weights.mul_(root), None

    def _drawn(self, shares):
        drawn = torch.multinomial(shares.cpu(), self.draws, replacement=True, generator=self.generator)
        return drawn.to(shares.device)

    def _signs(self, like):
        drawn = torch.randint(0, 2, like.shape, generator=self.generator, dtype=torch.int8)
        return (2 * drawn - 1).to(like)


def _fisher(model, names, images, passes, batch_size, also):
    check_there(model)
    modules: dict[str, Any] = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise ValueError(f"there is no layer {name!r} in this network")
    if not isinstance(images, (torch.Tensor, inputs.Inputs)) or len(images) == 0:
        raise ValueError("the Fisher information needs at least one image, the images along the first axis of a tensor")
    first = next(model.parameters(), None)
    if first is None:
        raise ValueError("this network has no parameters, so there is no Fisher information of its layers")
    follow = _Follow(modules, names)
    watched = hooked(model, also, {name: follow.hook(name) for name in names})
    with evaluating(model), torch.inference_mode(False), torch.enable_grad(), frozen(model), watched:
        for batch in track(images.split(batch_size), "Fisher information"):
            follow.begin()
            logits = _answered(model, inputs.fed(batch, first))
            follow.check_once()
            for end, slope, share, more in passes.rounds(logits):
                follow.back(end, slope, share, retain=more)
    return {name: value.div_(len(images)) for name, value in follow.products().items()}


class _Follow:
    """Slopes of the answers at the outputs of layers: their products are taken as the slopes arrive, and the slopes let go."""

    def __init__(self, modules, names):
        self.modules, self.names = modules, names
        self.found = {}
        self.share = torch.ones(1)
        self.begin()

    def begin(self):
        self.met, self.ends = dict.fromkeys(self.names, 0), []

    def hook(self, name):
        def seen(module, args, kwargs, out):
            self.met[name] += 1
            if out.requires_grad:
                out.register_hook(self._add(name))
                return None
            # the first outputs are where following ends: frozen parameters ask for nothing
            out.requires_grad_().register_hook(self._add(name))
            self.ends.append(out)
            return out + 0  # a ReLU in place must not overwrite it

        return seen

    def _add(self, name):
        def arrived(slope):
            rows = output_rows(self.modules[name], slope)[0]
            if self.share is None:  # of tokens, in float32: wide matrices by the hundred, and the estimate is no better
                product = outer(rows)
            else:
                weight = self.share.repeat_interleave(len(rows) // len(self.share)).to(rows)
                product = (rows.T @ (weight[:, None] * rows)).double()
            self.found[name] = self.found[name].add_(product) if name in self.found else product

        return arrived

    def check_once(self):
        for name, count in self.met.items():
            if count != 1:
                raise ValueError(
                    f"layer {name!r} is used {count} times in one pass; the Fisher information needs one use"
                )

    def back(self, end, slope, share, retain):
        self.share = share
        if end.requires_grad:
            torch.autograd.grad(end, self.ends, slope, retain_graph=retain, allow_unused=True)

    def products(self):
        # an output that the answer does not need has slope zero
        def zeros(name):
            weight = self.modules[name].weight
            return torch.zeros(len(weight), len(weight), dtype=torch.float64, device=weight.device)

        return {name: self.found[name] if name in self.found else zeros(name) for name in self.names}


def _answered(model, batch):
    # logits, N x classes or N x T x classes
    try:
        answers = inputs.logits(inputs.call(model, batch))
    except Exception as error:  # a reader's own network fails in errors of many kinds
        raise ValueError(f"the network cannot take images of shape {inputs.in_words(batch)}: {error}") from error
    if not torch.is_tensor(answers) or answers.ndim not in (2, 3):
        raise ValueError("the Fisher information needs a network whose answers are N x classes or N x T x classes")
    if not torch.isfinite(answers.log_softmax(-1) if answers.ndim == 2 else answers.detach().sum()).all():
        raise ValueError("the network's outputs on these images are NaN or infinite; check its weights and the images")
    return answers


def row_information(
    model: nn.Module,
    names: Sequence[str],
    images: Batch,
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 1,
    estimator: str = "signs",
) -> dict[str, torch.Tensor]:
    """Return ``{layer: vector}`` (d_out, float64): the Fisher information of the weights of each row, summed over the row.

    E_x E_{y ~ p(y|x)} sum_j (d log p(y|x) / d w_ij)^2 over inputs x, one at a time unless `batch_size` is larger (then the
    slopes of a batch are summed before they are squared, as in much published code). `draws`, `seed` and `estimator` as in `fisher`.
    Source: Hsu et al. 2022 (FWSVD), equation 6, there with labels of the data in place of y.

    >>> found = row_information(nn.Sequential(nn.Linear(3, 2)), ["0"], torch.ones(4, 3))["0"]
    >>> found.shape, bool((found > 0).all())
    (torch.Size([2]), True)
    """
    check_there(model)
    check_some(images)
    first = next(model.parameters())
    passes = _Passes(estimator, draws, seed)
    weights: dict[str, Any] = {name: model.get_submodule(name).weight for name in names}
    found = {name: torch.zeros(len(weight), dtype=torch.float64) for name, weight in weights.items()}
    with evaluating(model), torch.inference_mode(False), torch.enable_grad(), frozen(model):
        for weight in weights.values():
            weight.requires_grad_(True)
        for batch in track(images.split(batch_size), "information of the rows"):
            logits = _answered(model, inputs.fed(batch, first))
            for end, slope, share, more in passes.rounds(logits):
                scale = 1.0 if share is None else float(share.mean())
                slopes = torch.autograd.grad(
                    end, list(weights.values()), slope, retain_graph=more, allow_unused=True, materialize_grads=True
                )
                for name, each in zip(weights, slopes):
                    found[name] += scale * each.flatten(1).square().sum(1).double().cpu()
    return {name: value / len(images) for name, value in found.items()}


class CrossMoments:
    """Means, covariance of x and cross covariance of e and x of rows that arrive in batches, for each group (accumulated in float64)."""

    def __init__(self, groups: int, columns: int, rows: int, device: torch.device | str) -> None:
        self.count = 0
        self.x = torch.zeros(groups, columns, dtype=torch.float64, device=device)
        self.e = torch.zeros(groups, rows, dtype=torch.float64, device=device)
        self.xx = torch.zeros(groups, columns, columns, dtype=torch.float64, device=device)
        self.ex = torch.zeros(groups, rows, columns, dtype=torch.float64, device=device)
        self.ee = torch.zeros(groups, dtype=torch.float64, device=device)

    def update(self, x: torch.Tensor, e: torch.Tensor, covariance: bool = True) -> None:
        total = self.count + x.shape[1]
        x_mean, e_mean = x.mean(1), e.mean(1)
        dx, de = x_mean - self.x, e_mean - self.e
        weight = self.count * x.shape[1] / total
        centred = x - x_mean[:, None]
        if covariance:
            self.xx += (centred.mT @ centred).double() + weight * dx[:, :, None] * dx[:, None]
        self.ex += ((e - e_mean[:, None]).mT @ centred).double() + weight * de[:, :, None] * dx[:, None]
        self.ee += (e - e_mean[:, None]).square().sum((1, 2)).double() + weight * de.square().sum(1)
        self.x += dx * (x.shape[1] / total)
        self.e += de * (x.shape[1] / total)
        self.count = total


_PASS_NUMBERS = 2**21  # of the largest activation of one pass: 8 MiB in float32
_PIECE_NUMBERS = 2**18  # counted at once, in float64 and int64: a few times 2 MiB


@dataclass(frozen=True)
class Activations:
    """What the units of one hidden layer did over data, as the next layer reads them (after activation, norm, pooling).

    ``count`` values seen of each unit (a channel has one at every position of every image); ``mean``, ``variance``,
    ``low``, ``high`` (units, float64); ``histogram`` (units x bins, counts) between the bounds ``edges`` (units x 2);
    ``column_mean``, ``column_variance`` (units x span): of what each column of the reader's weight matrix reads of the
    unit. For a convolution the mean is over the places where that kernel entry reads the image and no zero that pads
    it, the variance that of the whole channel.
    """

    count: int
    mean: torch.Tensor
    variance: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    histogram: torch.Tensor
    edges: torch.Tensor
    column_mean: torch.Tensor
    column_variance: torch.Tensor

    @property
    def entropy(self) -> torch.Tensor:
        """H = -sum_b q_b log q_b in nats for each unit, q the histogram as shares; from 0 to log(bins).

        With each unit's own range 0 means that the unit was constant over the data; with one range for the layer, that
        it stayed within one bin. Source: Luo & Wu 2017, equation 2.
        """
        shares = self.histogram.double() / self.count
        return torch.special.entr(shares).sum(1)


def collect_activations(
    model: nn.Module,
    images: Batch,
    bins: int = 32,
    span: str = "unit",
    batch_size: int = 500,
    hidden: Sequence[HiddenLayer] | None = None,
) -> dict[str, Activations]:
    """Return ``{layer: Activations}`` of every hidden layer whose units can go, while `model` sees `images` twice.

    `hidden` are these layers, such as the feed-forward ones of a transformer (`feedforward.feed_forward_layers`); by
    default those that torch.fx finds (`graph.hidden_layers`).

    The first pass finds the range, mean and variance of each unit, the second counts the histogram of `bins` equal
    bins. ``span="unit"``: between the unit's own lowest and highest value (Luo & Wu 2017); ``"layer"``: one range for
    all units of a layer. The values of a channel are those at all positions of all images (Luo & Wu average each
    image's map first; here every position counts). Nothing is stored but units x bins counts and one mean map a layer,
    whatever the number of images (N first); `batch_size` images pass at once, fewer where their activations would take
    more than 8 MiB a layer.

    Raises ValueError for fewer than two images, NaN, images of a shape the network cannot take, a wrong `bins` or
    `span`, and a network without hidden units that can go.
    """
    check_count(2, bins=bins)
    if span not in ("unit", "layer"):
        raise ValueError(f"unknown span {span!r}; known: unit, layer")
    check_count(batch_size=batch_size)
    if not isinstance(images, inputs.Inputs) and (not torch.is_tensor(images) or images.ndim < 2):
        raise ValueError("calibration images must be a tensor with the images along its first axis")
    if len(images) < 2:
        raise ValueError("entropy needs at least two calibration images: one gives every unit one value")
    hidden = removable_layers(model) if hidden is None else hidden
    seen: dict[str, Any] = {h.name: None for h in hidden}
    maps, sizes = {}, []

    def measure(module, args, kwargs, output):
        sizes.append(output.numel() if torch.is_tensor(output) else 0)

    def read(h, update):
        def hook(module, args, kwargs):
            for piece in _values(h, module, unfold.call_input(args, kwargs)):
                update(h.name, piece.double())
            if update is summarise and isinstance(module, nn.Conv2d):
                for some in _few(unfold.call_input(args, kwargs)):
                    maps[h.name] = maps.get(h.name, 0) + some.double().sum(0)

        return hook

    def summarise(name, x):
        if not torch.isfinite(x).all():
            raise ValueError(f"the units of layer {name!r} become NaN or infinite on the calibration images")
        low, high, mean = x.amin(0), x.amax(0), x.mean(0)
        scatter = (x - mean).square().sum(0)
        if seen[name] is not None:  # joined as Chan, Golub & LeVeque 1979
            count, old_low, old_high, old_mean, old_scatter = seen[name]
            total, delta = count + len(x), mean - old_mean
            low, high = torch.minimum(low, old_low), torch.maximum(high, old_high)
            scatter = old_scatter + scatter + delta.square() * (count * len(x) / total)
            mean = old_mean + delta * (len(x) / total)
            seen[name] = total, low, high, mean, scatter
        else:
            seen[name] = len(x), low, high, mean, scatter

    watch(model, [images[:2]], {name: measure for name, _ in model.named_modules()})
    batches = images.split(max(1, min(batch_size, 2 * _PASS_NUMBERS // max(sizes))))
    watch(model, batches, *({h.reader: read(h, summarise)} for h in hidden), before=True)
    edges, counts, owner = {}, {}, {}
    for h in hidden:
        low, high = (bound.view(h.units, -1) for bound in seen[h.name][1:3])
        low, high = low.amin(1), high.amax(1)
        owner[h.name] = torch.arange(h.units, device=low.device).repeat_interleave(len(seen[h.name][1]) // h.units)
        if span == "layer":
            low, high = low.min().expand_as(low), high.max().expand_as(high)
        edges[h.name] = torch.stack([low, high], 1)
        counts[h.name] = torch.zeros(h.units, bins, dtype=torch.int64, device=low.device)

    def count(name, x):
        low, high = edges[name].unbind(1)
        # rounding differs with the size of a batch: a range of a few float32 steps of the layer's values is a constant
        varies = high - low > 8 * torch.finfo(torch.float32).eps * torch.maximum(low.abs(), high.abs()).max()
        width, unit = torch.where(varies, high - low, torch.inf), owner[name]
        place = ((x - low[unit]) / width[unit] * bins).long().clamp(0, bins - 1)
        counts[name] += torch.bincount((place + unit * bins).flatten(), minlength=len(low) * bins).view(-1, bins)

    watch(model, batches, *({h.reader: read(h, count)} for h in hidden), before=True)
    found = {}
    for h in hidden:
        n, low, high, mean, scatter = seen[h.name]
        low, high, mean, variance = (x.view(h.units, -1) for x in (low, high, mean, scatter / n))
        spread = variance.mean(1) + mean.var(1, correction=0)
        bounds = low.amin(1), high.amax(1)
        about = n * mean.shape[1], mean.mean(1), spread, *bounds, counts[h.name], edges[h.name]
        if h.name in maps:
            images_seen = n / maps[h.name][0].numel()
            mean = _kernel_means(maps[h.name] / images_seen, model.get_submodule(h.reader))
            variance = variance.expand(h.units, h.span)
        found[h.name] = Activations(*about, mean, variance)
    return found


def _kernel_means(image, reader):
    # C x kh kw: what each kernel entry reads of the mean image (C x H x W) on average, leaving out zeros that pad
    mode = "constant" if reader.padding_mode == "zeros" else reader.padding_mode
    pads = reader._reversed_padding_repeated_twice  # also for padding="same"

    def summed(x):
        padded = F.pad(x[None], pads, mode)
        columns = F.unfold(padded, reader.kernel_size, reader.dilation, stride=reader.stride)[0]
        return columns.sum(1).view(len(x), -1)

    return summed(image) / summed(torch.ones_like(image)).clamp(min=1)


def _values(h, reader, x):
    # what a layer reads, as rows of values x columns, in pieces that take little memory
    if isinstance(reader, nn.Conv2d):
        return (some.movedim(1, -1).flatten(0, 2) for some in _few(x))  # each position is a row
    if x.ndim > 2 and (h.span > 1 or h.along):
        raise ValueError(
            f"layer {h.reader!r} reads sequences, and a batch norm or flatten before it mixes their positions"
        )
    return _few(x.reshape(-1, x.shape[-1]))


def _few(x):
    return x.split(max(1, _PIECE_NUMBERS // x[0].numel()))


def removable_layers(model: nn.Module) -> list[HiddenLayer]:
    every = hidden_layers(model)
    found = [h for h in every if not h.reason]
    if not found:
        why = "; ".join(f"{h.name}: {h.reason}" for h in every) or "it has no linear layer and no convolution"
        raise ValueError(f"no hidden unit of this network can be removed ({why})")
    return found
