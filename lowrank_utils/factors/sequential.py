"""Factors found in one sweep from input to output, each layer repairing what those before it lost.

`sweep` needs a plan, calibration images and no training. At each layer, X are its inputs in the network as compressed
so far, T its outputs in the original network; the layer becomes the best one of its rank from X to T. Where the output
is added to a shortcut, T is what the sum was, less what the shortcut now gives: the error so far is repaired along.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lowrank_utils.checks import check_count
from lowrank_utils.factors import svd
from lowrank_utils.factors.svd import reduced_rank
from lowrank_utils.network import unfold
from lowrank_utils.network.graph import Followers, execution_order, owners, weight_layers
from lowrank_utils.network.hooks import watch
from lowrank_utils.network.inputs import check_some, fed, is_plain, tokens_of
from lowrank_utils.network.lockstep import Lockstep, residual_streams
from lowrank_utils.network.modules import evaluating, fold_bias_into_norm, replaced
from lowrank_utils.network.profile import Plan, Profile
from lowrank_utils.network.statistics import CrossMoments, positions_each
from lowrank_utils.network.unfold import output_rows
from lowrank_utils.network.walk import Walk
from lowrank_utils.progress import track

log = logging.getLogger(__name__)


def _order(model, names, plan, image):
    # the named layers as a forward pass meets them; one that is met twice cannot be planned, and is not refitted
    met = execution_order(model, names, image)
    twice = [name for name in plan if met.count(name) > 1]
    if twice:
        raise ValueError(
            f"layer {twice[0]!r} is used {met.count(twice[0])} times in one pass; sequential factors need one use"
        )
    return [name for name in met if met.count(name) == 1]


RIDGE = 1e-6  # share of the mean variance, so that a singular covariance is normal input
FEW = 20  # samples for an input, under which the ridge is cross-validated
GRID = torch.logspace(-6, 1, 29, dtype=torch.float64).tolist()  # ridges that cross-validation tries


def cross_validated_ridge(
    covariance: torch.Tensor,
    cross: torch.Tensor,
    energy: torch.Tensor | float,
    count: int,
    support: torch.Tensor | None = None,
) -> float:
    """Return the ridge, as a share of the mean variance, that predicts unseen samples best (generalised cross-validation).

    For the regression of errors e (o) on inputs x (d): `covariance` of x (d x d), `cross` covariance of e and x (o x d),
    `energy` E|e - mean|^2, all from `count` samples. Minimises RSS / (1 - dof / count)^2 over a grid from 1e-6 to 10,
    dof = 1 + sum of s / (s + ridge) over the eigenvalues s of C. With about as many samples as inputs plain least squares
    fits the noise, and is worse than with half of the samples ("double descent"); a ridge keeps the answer near
    the original weights instead. Where even the largest leaves as many degrees of freedom as samples, it is the
    largest. Source: Golub, Heath & Wahba 1979.

    `support` (o x d, boolean): the inputs that each error may use, as in a sparse layer; `energy` then holds one number
    for each error (o), and the ridge is the one with the least sum of the scores of all errors.

    >>> x, e = torch.randn(50, 40, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)  # nothing to be learnt
    >>> cross_validated_ridge(x.T @ x / 50, e.T @ x / 50, e.square().sum() / 50, 50) > 0.1
    True
    """
    scale = covariance.diagonal().mean()
    if not scale or not torch.as_tensor(energy).any():
        return RIDGE
    if support is None:
        scores = _unseen_error(covariance, cross, energy, count, scale)
    else:
        scores = torch.zeros(len(GRID), dtype=torch.float64)
        for row, on, lost in zip(cross, support, torch.as_tensor(energy)):
            scores += _unseen_error(covariance[on][:, on], row[None, on], lost, count, scale)
    return GRID[int(scores.argmin())] if torch.isfinite(scores).any() else GRID[-1]


def _unseen_error(covariance, cross, energy, count, scale):
    # RSS / (1 - dof / count)^2 for each ridge of the grid; infinite with as many degrees of freedom as samples
    values, vectors = torch.linalg.eigh(covariance)
    values, share = values.clamp(min=0), (cross @ vectors).square().sum(0)
    scores = torch.full((len(GRID),), torch.inf, dtype=torch.float64)
    for k, ridge in enumerate(GRID):
        damped = values + ridge * scale
        left = 1 - (1 + (values / damped).sum()) / count
        if left > 0.02:
            unexplained = energy - (share * (values + 2 * ridge * scale) / damped.square()).sum()
            scores[k] = unexplained.clamp(min=0) / left.square()
    return scores


def sweep(
    profile: Profile,
    plan: Plan,
    *,
    relu: bool = False,
    refit_dense: bool = True,
    repair: bool = True,
    within: Mapping[str, torch.Tensor] | None = None,
    weighted: bool = False,
    images: int | None = None,
    fisher_images: int | None = None,
    iterations: int | None = None,
    ridge: float | None = None,
    batch_size: int | None = None,
    memory: float = 2.5e8,
) -> nn.Module:
    """Return a new model with the planned layers replaced by thin ones, found layer after layer on calibration images.

    Each planned layer becomes the rank-r answer to min E|T - W X - b|^2 (`reduced_rank`; `svd.alternating_low_rank` for a
    convolution), X its inputs (patches) in the network as compressed so far, T its outputs in the original one. Of a
    large feature map about 256 positions an image are taken, spread over all columns; of every layer about `samples` in
    all, at random, where the profile was made with `samples=`. Where a
    batch norm follows, errors count by its squared scale; where the result is added to a shortcut of the same shape, T
    is what the sum was less what the shortcut now gives. ``relu=True``: where a ReLU follows, only max(., 0) matters, so the target is
    T where it is positive and min(current, 0) elsewhere; the problem is solved again `iterations` times (10, or 3 in a
    network with convolutions) with momentum (a heuristic after the majorise-minimise scheme: most steps lower the error
    after the ReLU, not all do). ``refit_dense=True``: layers that stay dense get the full-rank answer, which costs no parameters
    (not those that share a weight or are used more than once).
    ``repair=False``: where torch.fx cannot trace the network, what its residual streams lost so far is left alone, and each
    layer has its own outputs as target.
    ``within``: {layer: orthonormal columns, d_out x rank} holds the outputs of a linear layer in a subspace that was
    chosen elsewhere, and only refits the rest. ``weighted=True``: errors count as much as the network's answer feels
    them, in the metric 0.7 F / mean(diag F) + 0.3 I with F of `fisher` from the first `fisher_images` calibration inputs (None: all). `ridge`: share of the mean
    variance of X, as in `reduced_rank`; by default 1e-6, but where there are fewer than 20 samples for an input (linear
    layers have one an image) the one that `cross_validated_ridge` finds.

    ``images``: the sweep sees the first so many calibration inputs only (None: all), since those whose activations do not
    fit into `memory` are run from the start for every layer.

    Memory does not depend on the number of images: each pass keeps one matrix of d_in x d_in and one of d_out x d_in
    numbers, the activations of one batch at work, and those of other batches up to `memory` bytes; what does not fit is
    computed again from the images for each layer. The model runs in eval mode. Parameters: `profile`, with
    calibration inputs; `plan`, ``{layer: rank}``, or ``(scheme, rank)``. A layer without bias keeps none: where a
    batch norm follows, its running mean takes the difference. Where torch.fx cannot trace the network, or does
    not see a layer, each layer has its own outputs as target, which a warning says. Raises ValueError for layers that
    are not there or cannot be factored, ranks outside 1..full rank, planned layers that share a weight, are used more
    than once in one pass or by some images only, a network without parameters or in half precision, and calibration
    data that are no images of this network.

    >>> from lowrank_utils import profile
    >>> model = nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> [type(layer).__name__ for layer in sweep(profile(model, torch.randn(50, 9)), {"0": 2})]
    ['Sequential', 'ReLU', 'Linear']
    """
    profile.check_unchanged()
    model, calibration = profile.model, check_some(profile.calibration)
    if images is not None:
        check_count(images=images)
        calibration = calibration[:images]
    if iterations is None:
        iterations = 10 if all(isinstance(model.get_submodule(name), nn.Linear) for name in weight_layers(model)) else 3
    check_count(iterations=iterations)
    modules = dict(model.named_modules())
    missing = [name for name in plan if name not in modules]
    if missing:
        raise ValueError(f"layer {missing[0]!r} is not in the model; sequential factors need layers of it")
    chosen = {name: unfold.planned_entry(modules[name], name, entry) for name, entry in plan.items()}
    for name, subspace in (within or {}).items():
        fits = (
            name in plan
            and isinstance(modules[name], nn.Linear)
            and subspace.shape == (modules[name].out_features, chosen[name][1])
        )
        if not fits or not torch.allclose(subspace.T @ subspace, torch.eye(subspace.shape[1]).to(subspace), atol=1e-4):
            raise ValueError(f"within= of layer {name!r} is not d_out x rank with orthonormal columns")
    first = next(model.parameters(), None)
    if first is None:
        raise ValueError("this network has no parameters, so there is nothing to factor")
    if not first.is_floating_point() or first.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"the network's weights are {first.dtype}; sequential factors need float32 or float64, so convert it with .float()"
        )
    holders = owners(model)

    def alone(name):  # a copy of a shared parameter would be one more
        return all(len(holders[id(value)]) == 1 for value in modules[name].parameters())

    refitted = [
        name for name in weight_layers(model) if refit_dense and "weight" in modules[name]._parameters and alone(name)
    ]
    wanted = [name for name in weight_layers(model) if name in plan or name in refitted]
    order = _order(model, wanted, plan, fed(calibration[:2], first))
    tied = [name for name in plan if not alone(name)]
    if tied:
        raise ValueError(f"layer {tied[0]!r} shares its weight with another, so it cannot be factored alone")
    unmet = [name for name in plan if name not in order]
    if unmet:
        raise ValueError(f"no input reaches layer {unmet[0]!r} in a forward pass")
    graph, after = profile.graph, profile.followers
    unseen = [name for name in order if name not in after]
    if graph is not None and unseen:
        log.warning(
            "torch.fx does not see where layer %r is called, so shortcuts, batch norms and ReLUs are not seen: each layer has its own outputs as target",
            unseen[0],
        )
        graph, after = None, {}
    elif graph is not None:
        order = [name for name in after if name in order]  # as the nodes stand
    metrics = {}
    if weighted and plan:
        metrics = profile.metric_of(list(plan), fisher_images)
    thin: dict[str, nn.Module] = {}
    each = positions_each(profile.samples, len(calibration))
    start = next((place for place, name in enumerate(order) if name in plan), len(order))  # before it nothing is lost
    order = order[start:]
    with _walk(model, graph, order, thin, calibration, batch_size or profile.batch_size or 100, memory, repair) as walk:
        for place, name in enumerate(track(order, "factors, layer by layer"), start):
            held = after.get(name, Followers())
            own = _Regression(model, name, held, chosen.get(name), metrics.get(name), (within or {}).get(name), ridge)
            for _ in range(iterations if relu and held.relu else 1):
                generator = torch.Generator().manual_seed(profile.seed + place)
                own.step(walk.at(name, held.other), each, generator)
            new = own.layers()
            layer = model.get_submodule(name)
            last: Any = new.get_submodule("second") if name in plan else new
            if layer.bias is None and last.bias is not None:
                norm: Any = held.norm
                thin[norm] = fold_bias_into_norm(model.get_submodule(norm), last)
            thin[name] = new.eval()
    return replaced(model, thin)


LARGEST = 5e8  # bytes of one activation of all inputs, with which two passes can stand side by side
TOKENS_AT_ONCE = 4096  # in one of these passes; fewer cost time, since each batch adds to matrices of d_in x d_in


def _walk(model, graph, order, thin, calibration, batch_size, memory, repair):
    # what yields the inputs of one layer after the other, now and in the original network
    if graph is None and order:
        sizes = dict.fromkeys(order, 0)

        def note(name):
            def hook(module, args, kwargs, output):
                sizes[name] = max(unfold.call_input(args, kwargs).nbytes, output.nbytes)

            return hook

        watch(model, [calibration[:1]], {name: note(name) for name in order})
        fits = max(sizes.values()) * len(calibration) <= LARGEST
        if fits and (not is_plain(calibration) or residual_streams(model, order, calibration[:1])):
            each = tokens_of(calibration[:1])
            size = max(TOKENS_AT_ONCE // each, 1) if each else batch_size
            return Lockstep(model, order, thin, calibration, repair, size)
    return contextlib.nullcontext(Walk(model, graph, thin, calibration, batch_size, memory))


def _step(high, wide):
    # a large image has many positions, and neighbours are alike: about 256 are enough, in all columns
    step = high * wide // 256 | 1
    while math.gcd(step, wide) > 1:
        step += 1
    return step


def _parts(layer, walked, each):
    # (inputs now, inputs in the original, what was lost) of so many inputs that their patches take little memory
    for x_now, x_then, lost in walked:
        if each is not None:
            yield x_now, x_then, lost
            continue
        at = 0
        for x, then in zip(*(v.split(unfold.images_at_once(layer, x_now)) for v in (x_now, x_then))):
            here = slice(at, at + len(x))
            at += len(x)
            yield x, then, None if lost is None else tuple(v[here] for v in lost)


class _Regression:
    # The answer of one layer: from its inputs now to what the original network wants of it. A step is one pass over the
    # data and one solution; with a ReLU behind, each step takes a new target from the last solution.

    def __init__(self, model, name, held, planned, metric, subspace, ridge):
        self.model, self.layer, self.planned = model, model.get_submodule(name), planned
        self.subspace, self.ridge = subspace, ridge
        self.groups, self.size = unfold.groups(self.layer), self.layer.weight[0].numel()
        self.start = self.layer.weight.detach().double().reshape(self.groups, -1, self.size)
        self.rows = self.start.shape[1]
        norm = model.get_submodule(held.norm) if held.norm else None
        self.takes_mean = self.layer.bias is not None or norm is not None
        self.gain, self.offset, self.undo, weight = _scale(norm, self.groups * self.rows, self.start)
        metric = weight if metric is None else metric
        self.metric = [svd.metric_block(metric, g, self.rows) for g in range(self.groups)]
        self.spread: Any = None  # of the inputs, with the ridges the same in every step
        self.ridges: list[float] = []
        self.before: Any = None  # (weights, bias) of the last two steps
        self.found: Any = None
        self.pairs: Any = None
        self.momentum, self.last = 0, torch.inf

    def step(self, walked, each, generator):
        seen = CrossMoments(self.groups, self.size, self.rows, self.layer.weight.device)
        error_now, first = 0.0, self.spread is None
        with evaluating(self.model):
            for x, then, lost in _parts(self.layer, walked, each):
                patches, y, error, other = self._samples(x, then, lost, each, generator)
                if self.found is not None:
                    error, missed = self._after_relu(patches, y, error, other)
                    error_now += missed
                seen.update(patches, error, covariance=first)
        if not (torch.isfinite(seen.ex).all() and torch.isfinite(seen.xx).all()):
            raise ValueError("the calibration data make NaN or infinite activations; check images and weights")
        if first:
            self.spread = seen.xx / seen.count
            self.ridges = [self._ridge(seen, g) for g in range(self.groups)]
        solution = self._solve(seen)
        # momentum begins anew where the last two steps lowered nothing (O'Donoghue & Candes 2015)
        again = self.found is not None and error_now > self.last
        self.last = torch.inf if self.found is None else error_now
        self.momentum = 0 if again else self.momentum + 1
        self.before, self.found = self.found, solution

    def _samples(self, x, then, lost, each, generator):
        # (patches, outputs of the original weights, what the answer must add to them, outputs of the other summand), groups x rows x ...
        layer, count = self.layer, self.groups
        kind = torch.float64 if isinstance(layer, nn.Linear) and x.ndim == 2 else x.dtype  # many tokens: in float32
        at = None if each is None else unfold.sampled_positions(layer, x, each, generator)
        if at is None:
            y, y_then = layer(x), layer(then)
            every = _step(*y.shape[-2:]) if isinstance(layer, nn.Conv2d) and each is None else 1
            seen = unfold.patches(layer, x, every).to(kind)
            y, y_then = (output_rows(layer, v, count, every).to(kind) for v in (y, y_then))
        else:  # of few positions the patches serve for the outputs too
            every, weight = 1, layer.weight.reshape(count, -1, self.size).mT.to(kind)
            bias = 0.0 if layer.bias is None else layer.bias.reshape(count, 1, -1).to(kind)
            seen, seen_then = (unfold.patches(layer, v, at=at).to(kind) for v in (x, then))
            y, y_then = seen @ weight + bias, seen_then @ weight + bias
        if lost is None:
            return seen, y, y_then - y, 0.0
        missing, other = (output_rows(layer, v, count, every, at).to(kind) for v in lost)
        return seen, y, y_then - y + missing * self.undo.reshape(count, 1, -1).to(kind), other

    def _after_relu(self, patches, y, error, other):
        # (what to add so that the outputs after the ReLU are met, the squared error after it now)
        def output(solution):
            return patches @ solution[0].mT.to(y) + solution[1][:, None].to(y)

        gain, offset, undo = (v.reshape(self.groups, 1, -1).to(y) for v in (self.gain, self.offset, self.undo))
        goal = gain * (y + error) + offset + other
        current = output(self.found)
        missed = (goal.clamp(min=0) - (gain * current + offset + other).clamp(min=0)).square().sum()
        if self.before is not None:  # momentum, Nesterov 1983
            current = current + self.momentum / (self.momentum + 3) * (current - output(self.before))
        aim = torch.where(goal > 0, goal, (gain * current + offset + other).clamp(max=0))
        return error + (aim - goal) * undo, float(missed)

    def _ridge(self, seen, group):
        if self.ridge is not None or seen.count >= FEW * self.size:
            return RIDGE if self.ridge is None else self.ridge
        cross, energy = seen.ex[group] / seen.count, seen.ee[group] / seen.count
        return cross_validated_ridge(self.spread[group], cross, energy, seen.count)

    def _solve(self, seen):
        # (weights, bias), groups x rows x size and groups x rows
        self.pairs = [self._fit(seen, g) for g in range(self.groups)]
        whole = torch.stack([w for _, _, w in self.pairs])
        if not self.takes_mean:
            return whole, torch.zeros(self.groups, self.rows).to(whole)
        # mean target less mean output: zero-mean error
        held = self.layer.bias
        bias = torch.zeros_like(self.gain) if held is None else held.detach().double()
        shift = seen.e + ((self.start - whole) @ seen.x[:, :, None]).squeeze(2)
        return whole, bias.reshape(self.groups, -1) + shift

    def _fit(self, seen, group):
        # (left, right, whole matrix) of one group
        xx, ex, start = self.spread[group], seen.ex[group] / seen.count, self.start[group]
        metric, ridge, subspace = self.metric[group], self.ridges[group], self.subspace
        if not self.takes_mean:  # nothing takes the means: second moments instead
            x, e = seen.x[group], seen.e[group]
            xx, ex = xx + torch.outer(x, x), ex + torch.outer(e, x)
        best = reduced_rank(xx, ex + start @ xx, None, ridge, start=start)[1]
        if self.planned is None:
            return None, None, best
        scheme, rank = self.planned
        if subspace is not None:
            left = subspace.to(xx)
            weighed = left.T if metric is None else left.T @ metric
            right = left.T @ best if metric is None else torch.linalg.solve(weighed @ left, weighed @ best)
            return left, right, left @ right
        target = unfold.to_matrix(self.layer, scheme, best).reshape(len(best), -1)  # one row an output
        scale = xx.diagonal().mean()
        damped = xx + (ridge * scale if scale else 1.0) * torch.eye(len(xx)).to(xx)
        spread, offsets = unfold.by_offset(self.layer, scheme, damped), unfold.shared(self.layer, scheme)
        left, right = svd.alternating_low_rank(target, spread, offsets, rank, metric)
        return left, right, unfold.from_matrix(self.layer, scheme, (left @ right)[None])[0]

    def layers(self):
        """Return the thin pair, or the layer with other weights where it stays dense."""
        whole, bias = self.found
        bias = bias.flatten() if self.takes_mean else None
        if self.planned is None:
            return _dense(self.layer, whole, bias)
        left, right = (torch.stack(parts) for parts in zip(*((a, b) for a, b, _ in self.pairs)))
        return unfold.thin_layers(self.layer, self.planned[0], left, right, bias)


def _scale(norm, size, like):
    # (gain, offset, how errors after the batch norm are taken back before it, metric of these errors); without one 1, 0, 1, None
    gain, offset = torch.ones(size).to(like), torch.zeros(size).to(like)
    if norm is None:
        return gain, offset, gain, None
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    gain = gain if norm.weight is None else gain * norm.weight.detach().double()
    offset = (0.0 if norm.bias is None else norm.bias.detach().double()) - gain * norm.running_mean.double()
    # a unit whose variance is hidden by eps is dead, and its gain of hundreds says nothing of the others
    floor = 0.05 * gain[norm.running_var > norm.eps].square().mean().sqrt()
    floor = floor if floor > 0 else torch.ones_like(floor)
    squared = gain.square() + floor.square()
    return gain, offset, gain / squared, torch.diag(squared)


def _dense(layer, whole, bias):
    # a copy of `layer` with other weights
    new = copy.deepcopy(layer)
    with torch.no_grad():
        new.weight.copy_(whole.reshape(new.weight.shape))
        if bias is not None:
            if new.bias is None:
                new.bias = nn.Parameter(torch.empty_like(new.weight[:, *[0] * (new.weight.ndim - 1)]))
            new.bias.copy_(bias)
    return new
