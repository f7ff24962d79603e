"""DDLR and Net-Trim over a whole network: a convex program for each linear layer, then thin or sparse layers.

`solve` gives one certified answer a layer, `search` the epsilon that a task asks for; `low_rank` and `sparse` make
networks of the answers, with the steps after the convex one (cut, refit; `cut_for` finds the cut of a size), and
`constraints` asks again what those did to the constraints.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import pandas as pd
import torch
from torch import nn

from lowrank_utils.checks import check_count, check_number
from lowrank_utils.factors import ddlr, program, svd
from lowrank_utils.factors.sequential import FEW, RIDGE, cross_validated_ridge, sweep
from lowrank_utils.network.graph import before_relu
from lowrank_utils.network.hooks import hooked
from lowrank_utils.network.modules import evaluating, linear, replaced
from lowrank_utils.network.profile import Profile
from lowrank_utils.network.unfold import call_input

Epsilon: TypeAlias = float | dict[str, float]  # one for all layers, or {layer: number}
Solutions: TypeAlias = Mapping[str, ddlr.Solution]
_UNITS = 32  # units of a sparse layer that its ridge is chosen on


def _linear_layers(model):
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ValueError("the network has no linear layer, and DDLR is about linear layers")
    return found


def _layer(model, name) -> nn.Linear:
    modules = dict(model.named_modules())
    if name not in modules:
        known = ", ".join(_linear_layers(model))
        raise ValueError(f"there is no layer {name!r} in this network; linear layers: {known}")
    if not isinstance(modules[name], nn.Linear):
        raise ValueError(f"layer {name!r} is a {type(modules[name]).__name__}, and DDLR is about linear layers")
    return modules[name]


def _images(images):
    if not torch.is_tensor(images) or images.ndim < 2 or len(images) == 0:
        shape = f" of shape {tuple(images.shape)}" if hasattr(images, "shape") else ""
        raise ValueError(
            f"calibration images are a {type(images).__name__}{shape}; they must be a tensor of at least one image, "
            "the images along its first axis"
        )
    return images


def _share(cut):
    check_number(lambda value: 0 <= value < 1, "a share from 0 to below 1", cut=cut)
    return float(cut)


def _batches(model, name, images, outputs_of=None, batch_size=1000):
    """Yield (inputs, outputs) of a layer, batch by batch: rows in float64, as they are, without ones and ReLU."""
    source = model if outputs_of is None else outputs_of
    caught = {}

    def catch(key, value):
        # a ReLU in place must not overwrite it
        caught[key] = value.detach().reshape(-1, value.shape[-1]).to(torch.float64, copy=True)

    def catch_input(module, args, kwargs, out):
        catch("in", call_input(args, kwargs))

    def catch_output(module, args, kwargs, out):
        catch("out", out)

    held = hooked(model, {name: catch_input}), hooked(source, {name: catch_output})
    with evaluating(model), evaluating(source), held[0], held[1]:
        try:
            for batch in images.split(batch_size):
                batch = batch.to(next(model.parameters()))
                model(batch)
                if source is not model:
                    source(batch)
                yield caught["in"], caught["out"]
        except RuntimeError as error:
            shape = tuple(images.shape[1:])
            raise ValueError(f"the network cannot take calibration images of shape {shape}: {error}") from error


def layer_data(
    profile: Profile, name: str, *, inputs_of: nn.Module | None = None, batch_size: int = 1000
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Return (inputs, outputs, relu) of one linear layer over the calibration inputs, in float64, as `ddlr.solve` takes them.

    Shapes: inputs N x d_in, with a last column of ones for a layer with a bias; outputs N x d_out, after the ReLU
    where one follows (relu True), else as they are. `inputs_of`: the network that the inputs are taken from, where it is
    another one than the profile's (the network compressed so far, in a cascade). Networks run in eval mode.
    Raises ValueError for a layer that is not there or not linear, and images that do not fit.
    """
    profile.check_unchanged()
    layer, images = _layer(profile.model, name), _images(profile.calibration)
    relu = name in before_relu(profile.model)
    pairs = _batches(inputs_of or profile.model, name, images, profile.model, batch_size)
    inputs, targets = zip(*pairs)
    x, y = torch.cat(inputs), torch.cat(targets)
    if layer.bias is not None:
        x = torch.cat([x, torch.ones(len(x), 1).to(x)], 1)
    return x, y.clamp(min=0) if relu else y, relu


def matrix(layer: nn.Linear) -> torch.Tensor:
    """Return the weights of a linear layer as the solver takes them: d_in x d_out, the bias as a last row (float64)."""
    weight = layer.weight.detach().double().T
    return weight if layer.bias is None else torch.cat([weight, layer.bias.detach().double()[None]])


def solve_network(
    profile: Profile,
    epsilon: Epsilon,
    *,
    penalty: str = "nuclear",
    cascade: bool = False,
    warm_start: dict[str, ddlr.Solution] | None = None,
    workers: int = 1,
    **options: Any,
) -> dict[str, ddlr.Solution]:
    """Return ``{layer: ddlr.Solution}`` for every linear layer of the profile's network, in its order.

    Each layer on its own, from the activations of the original network (independent programs: `workers` threads at
    once), or, with ``cascade=True``, one after the other: inputs as the network compressed so far gives them, outputs
    those of the original network. There the epsilon may be out of reach; then it is raised to 1.05 times the smallest
    one that was found feasible, which the solution's ``epsilon`` and ``note`` tell.

    Parameters: `profile`, with calibration inputs; `epsilon`, one number or ``{layer: number}``, where a layer
    that is absent stays as it is; `penalty`, "nuclear" or "l1";
    `warm_start`, an earlier answer of this function; `options` of `ddlr.solve` (tolerance, max_seconds, dtype ...).
    Raises ValueError as `ddlr.solve`, naming the layer.
    """
    model = profile.model
    names, wanted = _epsilons(model, epsilon)
    names = [name for name in names if name in wanted]
    check_count(workers=workers)
    if warm_start is not None and not isinstance(warm_start, dict):
        raise ValueError(f"warm_start is a {type(warm_start).__name__}, not an earlier answer {{layer: Solution}}")
    _images(profile.calibration)

    def answer(name, x, y, relu, original):
        start = None if warm_start is None else warm_start.get(name)
        try:
            return ddlr.solve(x, y, wanted[name], relu, penalty, original, warm_start=start, **options)
        except program.Infeasible as error:
            if not cascade:
                raise program.Infeasible(
                    f"layer {name!r}: {error}", error.smallest, error.bound, error.weights
                ) from error
            if error.smallest >= 1 > error.bound + 0.1:  # nothing was found, nor proved: no reason for zero weights
                raise program.Infeasible(
                    f"layer {name!r}: {error}", error.smallest, error.bound, error.weights
                ) from error
            raised = 1.05 * error.smallest
            # what the failed search found is feasible now, so nothing is looked for again
            found = ddlr.solve(x, y, raised, relu, penalty, error.weights, warm_start=start, **options)
            note = f"epsilon {wanted[name]:g} was out of reach in the cascade and raised to {raised:.4g}"
            return dataclasses.replace(found, note="; ".join(filter(None, [note, found.note])))
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error

    if not cascade:
        # the network itself runs in this thread only: hooks would catch what another thread sends through it
        data = [(name, *layer_data(profile, name), matrix(_layer(model, name))) for name in names]
        with ThreadPoolExecutor(workers) as pool:
            return dict(zip(names, pool.map(lambda one: answer(*one), data)))
    small, found = replaced(model, {}), {}
    for name in names:
        data = layer_data(profile, name, inputs_of=small)
        # the layer's own weights are feasible on the original inputs; behind a changed layer they may not be
        found[name] = answer(name, *data, None if found else matrix(_layer(model, name)))
        small = replaced(small, {name: dense(_layer(model, name), found[name].weights)})
    return found


def _epsilons(model, epsilon):
    # names of all linear layers, and {layer: epsilon} of those that are wanted
    names = _linear_layers(model)
    wanted = epsilon if isinstance(epsilon, dict) else dict.fromkeys(names, epsilon)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f"epsilon names {unknown[0]!r}, which is no linear layer of this network: {', '.join(names)}")
    if not wanted:
        raise ValueError(f"epsilon names no layer; linear layers of this network: {', '.join(names)}")
    return names, wanted


def search_epsilon(
    profile: Profile,
    *,
    good: Callable[[dict[str, ddlr.Solution]], bool],
    low: float = 0.02,
    high: float = 0.8,
    steps: int = 6,
    penalty: str = "nuclear",
    largest: bool = True,
    **options: Any,
) -> tuple[float, dict[str, ddlr.Solution], pd.DataFrame]:
    """Return (epsilon, its solutions, DataFrame of all evaluations) for the epsilon that a condition asks for.

    ``largest=True``: the largest epsilon whose answers are good, for conditions that hold while epsilon is small
    ("accuracy on valid images within one point"). ``largest=False``: the smallest one, for conditions that hold once
    epsilon is large ("parameters at most a budget"). Bisection on log epsilon: both ends, then `steps` values between,
    each solved from the nearest answer so far; the true value lies within a factor (high / low)^(2^-steps).

    Parameters: `good`, a function of ``{layer: Solution}`` that says True or False; `low`, `high`, the ends, 0 < low <
    high; `options` of `solve_network` (cascade, workers, tolerance ...). The DataFrame has the columns epsilon, good, seconds.
    Raises ValueError where no end is good, and as `solve_network`.
    """
    check_number(lambda value: value > 0, "a number above 0", low=low, high=high)
    if not low < high:
        raise ValueError(f"low={low!r} must be below high={high!r}")
    check_count(0, steps=steps)
    if not callable(good):
        raise ValueError(f"good={good!r} is not a function of the solutions")
    answers, rows = {}, []

    def passes(epsilon):
        begin = time.perf_counter()
        nearest = min(answers, key=lambda other: abs(math.log(other / epsilon)), default=None)
        answers[epsilon] = solve_network(profile, epsilon, penalty=penalty, warm_start=answers.get(nearest), **options)
        fine = bool(good(answers[epsilon]))
        rows.append({"epsilon": epsilon, "good": fine, "seconds": time.perf_counter() - begin})
        return fine

    # `inner` is the end that must be good, `outer` the one that would be best
    inner, outer = (float(low), float(high)) if largest else (float(high), float(low))
    if not passes(inner):
        raise ValueError(
            f"the answers at epsilon {inner:g} are not good, and those at a {'larger' if largest else 'smaller'} one "
            f"would be less so; {'lower `low`' if largest else 'raise `high`'} or ask for less"
        )
    if passes(outer):
        inner = outer
    else:
        for _ in range(steps):
            middle = math.sqrt(inner * outer)
            inner, outer = (middle, outer) if passes(middle) else (inner, middle)
    return inner, answers[inner], pd.DataFrame(rows)


def dense(layer: nn.Linear, weights: torch.Tensor) -> nn.Linear:
    """Return a linear layer like `layer` with solver weights (d_in x d_out, the bias as a last row)."""
    bias = None if layer.bias is None else weights[-1]
    return linear(weights[: layer.in_features].T, bias, layer)


def reweighted(
    inputs: ddlr.Array,
    outputs: ddlr.Array,
    epsilon: float,
    relu: bool = True,
    original: ddlr.Array | None = None,
    rounds: int = 2,
    damping: float = 0.05,
    start: ddlr.Solution | None = None,
    **options: Any,
) -> ddlr.Solution:
    """Return a `ddlr.Solution` of lower rank: the program solved again with a norm that charges large directions less.

    After each answer U the next one minimises ||L U'||_* with L = (U U^T + (damping s_1)^2)^(-1/2), a step of the
    majorise-minimise scheme for the logarithm of the determinant, one-sided (Fazel, Hindi & Boyd 2003). As ||L U'||_*
    with inputs X is ||V||_* with inputs X L^-1, the same solver does it, and the constraints hold.

    All fields describe ``weights`` in the plain program: ``objective``, their plain nuclear norm; ``bound``, that of
    the plain answer, so that the gap says what the lower rank costs; ``history``, one row a round; ``converged``,
    whether every program reached its tolerance. There is no state for a warm start.

    Parameters: as `ddlr.solve`; `rounds` of reweighting; `damping` as a share of the largest singular value, above 0;
    `start`, the plain solution where it is known (solved at a smaller epsilon it proves no bound: 0).
    Raises ValueError as `ddlr.solve`, for another penalty than the nuclear norm, and for a start that does not fit.
    """
    begin = time.perf_counter()
    if options.pop("penalty", "nuclear") != "nuclear" or (start is not None and start.penalty != "nuclear"):
        raise ValueError("reweighting is of the nuclear norm; there is none for penalty='l1'")
    if options.pop("free_bias", False):
        raise ValueError("the bias is a row of the norm that reweighting changes; there is none for free_bias=True")
    check_count(rounds=rounds)
    check_number(lambda value: value > 0, "a number above 0", damping=damping)
    if start is None:
        found = ddlr.solve(inputs, outputs, epsilon, relu, original=original, **options)
    else:
        found = start
        shape = torch.as_tensor(inputs).shape[1], torch.as_tensor(outputs).shape[1]
        if tuple(start.weights.shape) != shape:
            raise ValueError(f"start has weights of shape {tuple(start.weights.shape)}; this layer needs {shape}")
        error = ddlr.check(start.weights, inputs, outputs, epsilon, relu)
        if not error.feasible:
            raise ValueError(
                f"start is not feasible at epsilon {epsilon:g}: it was solved at {start.epsilon:g} and has a relative "
                f"error of {error.error:.3g} and a sign violation of {error.sign:.3g} on these data"
            )
    # what holds at a larger epsilon holds here, not the other way round
    bound = found.bound if found.epsilon >= epsilon else 0.0
    x = torch.as_tensor(inputs, dtype=torch.float64)
    weights, rows, converged, iterations = found.weights, [], found.converged, found.iterations
    for count in range(rounds):
        if not weights.any():
            break
        values, vectors = torch.linalg.eigh(weights @ weights.T)
        scale = (values.clamp(min=0) / values[-1] + damping**2).sqrt()
        back = (vectors * scale) @ vectors.T  # L^-1 up to a factor
        forth = (vectors / scale) @ vectors.T
        better = ddlr.solve(x @ back.to(x), outputs, epsilon, relu, original=forth @ weights, **options)
        weights = back @ better.weights
        converged, iterations = converged and better.converged, iterations + better.iterations
        norm = float(torch.linalg.svdvals(weights).sum())
        rows.append({"iteration": count + 1, "seconds": time.perf_counter() - begin, "objective": norm, "bound": bound})
    spectrum = torch.linalg.svdvals(weights)
    objective = float(spectrum.sum())
    return dataclasses.replace(
        found,
        weights=weights,
        objective=objective,
        bound=min(bound, objective),
        violation=ddlr.check(weights, inputs, outputs, epsilon, relu).violation,
        rank=int((spectrum > program.RANK_TOLERANCE * spectrum[0]).sum()),
        nonzeros=int((weights.abs() > program.RANK_TOLERANCE * weights.abs().max()).sum()),
        iterations=iterations,
        converged=converged,
        seconds=time.perf_counter() - begin,
        history=pd.DataFrame(rows) if rows else found.history,
        epsilon=float(epsilon),
        state=None,
        note=f"reweighted {len(rows)} times; the bound is that of the plain program" if rows else found.note,
    )


def ranks(profile: Profile, solutions: Solutions, *, cut: float = program.RANK_TOLERANCE) -> dict[str, int]:
    """Return the plan ``{layer: rank}`` of DDLR answers: singular values of the weights above `cut` of the largest.

    The bias, a row of U, is kept whole and does not count. Layers whose factors would not pay are absent: they stay
    as they were. Raises ValueError for a `cut` outside 0 <= cut < 1 and answers that do not fit the network.
    """
    return _plan(profile.model, _spectra(profile.model, solutions), _share(cut))


def _spectra(model, solutions):
    return {name: torch.linalg.svdvals(_weight(model, name, solution)) for name, solution in solutions.items()}


def _weight(model, name, solution):
    # the weights of an answer without the bias, d_in x d_out
    wanted = tuple(matrix(_layer(model, name)).shape)
    if tuple(solution.weights.shape) != wanted:
        raise ValueError(f"the answer of layer {name!r} has shape {tuple(solution.weights.shape)}, the layer {wanted}")
    return solution.weights[: model.get_submodule(name).in_features]


def _plan(model, spectra, cut):
    found = {}
    for name, values in spectra.items():
        rank = max(int((values > cut * values[0]).sum()), 1)
        rows, columns = _layer(model, name).weight.shape
        if rank * (rows + columns) < rows * columns:
            found[name] = rank
    return found


def cut_for(profile: Profile, solutions: Solutions, kept: float, *, kind: str, index_bits: int = 16) -> float:
    """Return the smallest cut at which the network of these answers keeps at most a share `kept` of the parameters.

    Bisection on the cut, no data. `kept`: share of all parameters of the network, 0 < kept <= 1. `kind`: "low_rank", thin
    layers as `low_rank` makes them with the same answers and this cut, or "non-zeros" or "indices", as `stored` counts
    what `sparse` makes ("indices" with `index_bits` each).
    Raises ValueError for a share that no cut reaches, with the shares that can be reached.
    """
    model = profile.model
    check_number(lambda value: 0 < value <= 1, "a share above 0 and at most 1", kept=kept)
    whole = sum(p.numel() for p in model.parameters())
    if kind == "low_rank":
        spectra = _spectra(model, solutions)

        def low_rank_size(cut):
            saved = 0
            for name, rank in _plan(model, spectra, cut).items():
                rows, columns = _layer(model, name).weight.shape
                saved += rows * columns - rank * (rows + columns)
            return whole - saved

        size = low_rank_size
    elif kind in ("non-zeros", "indices"):
        kinds = {name: _layer(model, name).weight.dtype for name in solutions}
        weights = {name: _weight(model, name, solution) for name, solution in solutions.items()}
        others = {name: int(_layer(model, name).weight.count_nonzero()) for name in _linear_layers(model)}

        def sparse_size(cut):
            counts = {name: int(_cut(w, cut).to(kinds[name]).count_nonzero()) for name, w in weights.items()}
            return _counted(model, others | counts, index_bits)["non-zeros" if kind == "non-zeros" else "with indices"]

        size = sparse_size
    else:
        raise ValueError(f"unknown kind {kind!r}; known: low_rank, non-zeros, indices")
    last = math.nextafter(1.0, 0.0)
    if size(last) > kept * whole:
        raise ValueError(
            f"kept={kept:g} is out of reach: cuts of these answers keep from {size(last) / whole:.4f} "
            f"to {size(0.0) / whole:.4f} of the {whole} parameters"
        )
    low, high = 0.0, last
    if size(low) <= kept * whole:
        return low
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if size(middle) <= kept * whole else (middle, high)
    return high


def low_rank(
    profile: Profile,
    solutions: Solutions,
    *,
    cut: float = program.RANK_TOLERANCE,
    refit: bool = False,
    relu: bool = False,
    iterations: int = 10,
) -> tuple[nn.Module, dict[str, int]]:
    """Return a new model with the layers of DDLR answers as stock thin layers, and the plan that it has.

    `cut`: singular values below this share of the largest go. `refit`: the factors are fitted again to the original network's outputs, in the output subspace that DDLR chose (the nuclear norm shrinks
    what it keeps), layer after layer on what the network gives so far; ``relu=True`` fits what is left after the ReLU
    (`sequential.sweep`, with its `iterations`). Layers that stay dense keep their original weights, refitted where
    `refit` is given. Raises ValueError as `ranks`, and for images that do not fit.
    """
    model, plan = profile.model, ranks(profile, solutions, cut=cut)
    if refit:
        _images(profile.calibration)
    left, thin = {}, {}
    for name, rank in plan.items():
        layer = _layer(model, name)
        u, s, vt = torch.linalg.svd(solutions[name].weights[: layer.in_features].T, full_matrices=False)
        left[name] = u[:, :rank]
        root = s[:rank].sqrt()
        bias = None if layer.bias is None else solutions[name].weights[-1]
        kind = layer.weight.dtype
        factors = svd.Factors(u[:, :rank] * root, root[:, None] * vt[:rank], bias, dtype=kind)
        thin[name] = factors.layers(rank).to(layer.weight.device)
    if refit:
        return sweep(profile, plan, relu=relu, within=left, iterations=iterations), plan
    return replaced(model, thin), plan


def _cut(weight, cut):
    return torch.where(weight.abs() <= cut * weight.abs().max(), 0, weight)


def sparse(
    profile: Profile,
    solutions: Solutions,
    *,
    cut: float = program.RANK_TOLERANCE,
    refit: bool = False,
    ridge: float | None = None,
) -> nn.Module:
    """Return a new model with the layers of Net-Trim answers, weights below `cut` of the largest zero; stored densely.

    `refit`: the weights that are left are fitted again on the calibration inputs by least squares, w_S = (C_SS +
    ridge)^-1 (B_S + ridge w0_S) for each unit with support S, C the covariance of the inputs x, B that with the target
    and w0 the original weights; the bias is free. Layer after layer: inputs as the sparse network so far gives them,
    targets the original network's outputs. Linear layers without an answer keep their original weights, refitted
    (all of them) once a layer before them has changed, as in `low_rank`. `ridge`: share of the mean variance; by default
    as in `sequential.sweep`: 1e-6, but where there are fewer than 20 images for an input the one, for the whole layer,
    that `sequential.cross_validated_ridge` finds on the supports of 32 units.
    Raises ValueError as `ranks`, and for images that do not fit.
    """
    model, cut, new = profile.model, _share(cut), {}
    for name, solution in solutions.items():
        layer = _layer(model, name)
        weight = _cut(_weight(model, name, solution), cut)
        new[name] = dense(layer, torch.cat([weight, solution.weights[layer.in_features :]]))
    if not refit:
        return replaced(model, new)
    small, changed = replaced(model, {}), False
    for name in _linear_layers(model):
        if name in new or changed:
            support = (new[name] if name in new else _layer(model, name)).weight.detach() != 0
            if name not in new:
                support = torch.ones_like(support)
            fitted = _least_squares(small, model, name, _images(profile.calibration), support, ridge)
            small, changed = replaced(small, {name: fitted}), True
    return small


def _least_squares(small, model, name, images, support, ridge):
    """Return the layer with weights on `support` (d_out x d_in) that come nearest to the original outputs."""
    layer = _layer(model, name)
    start = layer.weight.detach().double()
    support = support.to(start.device)
    count = 0
    sums: list[Any] = [0.0] * 5
    for x, t in _batches(small, name, images, outputs_of=model):
        count += len(x)
        sums = [old + new for old, new in zip(sums, (x.T @ x, t.T @ x, t.square().sum(0), x.sum(0), t.sum(0)))]
    xx, tx, tt, x_mean, t_mean = (part / count for part in sums)
    if layer.bias is not None:
        xx, tx, tt = xx - torch.outer(x_mean, x_mean), tx - torch.outer(t_mean, x_mean), tt - t_mean.square()
    if not (torch.isfinite(xx).all() and torch.isfinite(tx).all()):
        raise ValueError(f"layer {name!r}: the calibration images make NaN or infinite activations")
    if ridge is None:
        ridge = _ridge(xx, tx, tt, start * support, support, count)
    scale = float(xx.diagonal().mean())
    damping = ridge * scale if scale > 0 else 1.0  # inputs that never move: the original weights
    damped = xx + damping * torch.eye(len(xx)).to(xx)
    wanted = tx + damping * start
    weight = torch.zeros_like(start)
    for row, on in enumerate(support):
        if on.any():
            weight[row, on] = torch.linalg.solve(damped[on][:, on], wanted[row, on])
    return linear(weight, None if layer.bias is None else t_mean - weight @ x_mean, layer)


def _ridge(xx, tx, tt, start, support, count):
    # the errors are those of the original weights on the support, which an infinite ridge leaves as they are
    if count >= FEW * len(xx):
        return RIDGE
    some = torch.linspace(0, len(start) - 1, min(len(start), _UNITS)).long().to(start.device)
    start, tx, support = start[some], tx[some], support[some]
    reached = start @ xx
    energy = (tt[some] - 2 * (start * tx).sum(1) + (start * reached).sum(1)).clamp(min=0)
    return cross_validated_ridge(xx, tx - reached, energy, count, support)


def stored(model: nn.Module, index_bits: int = 16) -> dict[str, int]:
    """Return {"non-zeros": n, "with indices": m}: the size of a sparse network in parameters of 32 bits.

    Non-zero weights and all biases; with indices, each linear layer in compressed sparse rows: one column index of
    `index_bits` for each non-zero and one 32-bit pointer for each row. Layers that are smaller dense count as dense;
    layers that are not linear count in full both times.
    """
    counts = {name: int(_layer(model, name).weight.count_nonzero()) for name in _linear_layers(model)}
    return _counted(model, counts, index_bits)


def _counted(model, counts, index_bits):
    # sizes of a network whose linear layers have so many non-zero weights
    plain = whole = 0
    rest = sum(p.numel() for p in model.parameters())
    for name, count in counts.items():
        layer = _layer(model, name)
        packed = count * (1 + index_bits / 32) + layer.out_features + 1
        plain += count
        whole += min(packed, layer.weight.numel())
        rest -= layer.weight.numel()
    return {"non-zeros": plain + rest, "with indices": round(whole) + rest}


ROUNDING = {torch.float64: program.FEASIBLE, torch.float32: 1e-6}  # relative violation that the stored dtype explains


def constraints(
    profile: Profile,
    compressed: nn.Module,
    epsilon: Epsilon,
    *,
    inputs_of: nn.Module | None = None,
    tolerance: float | None = None,
) -> pd.DataFrame:
    """Return a DataFrame with one row a layer: do the weights of `compressed` keep the original layer's constraints?

    Columns: layer, error, epsilon, sign, feasible (`ddlr.check`); a thin layer counts as the product of its factors.
    Outputs are the original network's. Inputs are the original network's, too, or those of the network `inputs_of`:
    ``inputs_of=compressed`` asks what a cascade or a refit was made for. `epsilon`: one number or ``{layer: number}``,
    where absent layers are left out. `tolerance`: relative violation that passes for feasible; by default what the
    stored numbers can hold, 1e-9 for float64, 1e-6 for float32 and 1e-2 for anything less.
    Raises ValueError for layers that are not there and networks that do not match.
    """
    names, wanted = _epsilons(profile.model, epsilon)
    if tolerance is not None:
        check_number(lambda value: value >= 0, "a number of at least 0", tolerance=tolerance)
    rows = []
    for name in names:
        if name not in wanted:
            continue
        for network, which in ((compressed, "compressed"), (inputs_of, "inputs_of")):
            if network is not None and name not in dict(network.named_modules()):
                raise ValueError(f"the network {which} has no layer {name!r}")
        small = compressed.get_submodule(name)
        weights = _product(name, small)
        x, y, relu = layer_data(profile, name, inputs_of=inputs_of)
        found = ddlr.check(weights, x, y, wanted[name], relu)
        allowed = ROUNDING.get(next(small.parameters()).dtype, 1e-2) if tolerance is None else tolerance
        row = {"layer": name, "error": found.error, "epsilon": found.epsilon, "sign": found.sign}
        rows.append(row | {"feasible": found.violation <= allowed})
    return pd.DataFrame(rows)


def _product(name, layer):
    if isinstance(layer, nn.Linear):
        return matrix(layer)
    parts = list(layer.children())
    if len(parts) != 2 or not all(isinstance(part, nn.Linear) for part in parts):
        raise ValueError(f"layer {name!r} of the compressed network is neither linear nor two linear layers: {layer}")
    first, second = parts
    weight = second.weight.detach().double() @ first.weight.detach().double()
    return weight.T if second.bias is None else torch.cat([weight.T, second.bias.detach().double()[None]])
