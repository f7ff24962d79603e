"""DDLR and Net-Trim over a whole network: a convex program for each linear layer, then thin or sparse layers.

`solve` gives one certified answer a layer; `low_rank` and `sparse` make networks of them, with the steps after the convex one
(cut, refit), and `constraints` asks again what they did to the constraints.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import torch
from torch import nn

from . import ddlr, layers
from .models import evaluating, linear, replaced
from .sequential import before_relu, sweep


def _linear_layers(model):
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ValueError("the network has no linear layer, and DDLR is about linear layers")
    return found


def layer_data(model, name, images, outputs_of=None, batch_size=1000):
    """Return (inputs, outputs, relu) of one linear layer over `images`, in float64, as `ddlr.solve` takes them.

    Shapes: inputs N x d_in, with a last column of ones for a layer with a bias; outputs N x d_out, after the ReLU where one follows
    (relu True), else as they are. `outputs_of`: the network that the outputs are taken from, where it is another one (the
    original network, in a cascade). The model runs in eval mode.
    """
    relu = name in before_relu(outputs_of or model)
    inputs, targets = [], []

    def catch(store, which):
        def hook(module, ins, out):
            value = ins[0] if which == "in" else out
            store.append(value.detach().reshape(-1, value.shape[-1]).double())

        return hook

    with evaluating(model), evaluating(outputs_of or model):
        hooks = [model.get_submodule(name).register_forward_hook(catch(inputs, "in"))]
        hooks.append((outputs_of or model).get_submodule(name).register_forward_hook(catch(targets, "out")))
        try:
            for batch in images.split(batch_size):
                batch = batch.to(next(model.parameters()))
                model(batch)
                if outputs_of is not None:
                    outputs_of(batch)
        except RuntimeError as error:
            shape = tuple(images.shape[1:])
            raise ValueError(f"the network cannot take calibration images of shape {shape}: {error}") from error
        finally:
            for hook in hooks:
                hook.remove()
    x, y = torch.cat(inputs), torch.cat(targets)
    if model.get_submodule(name).bias is not None:
        x = torch.cat([x, torch.ones(len(x), 1).to(x)], 1)
    return x, y.clamp(min=0) if relu else y, relu


def matrix(layer):
    """Return the weights of a linear layer as the solver takes them: d_in x d_out, the bias as a last row (float64)."""
    weight = layer.weight.detach().double().T
    return weight if layer.bias is None else torch.cat([weight, layer.bias.detach().double()[None]])


def solve(model, calibration, epsilon, penalty="nuclear", cascade=False, warm_start=None, workers=1, **options):
    """Return ``{layer: ddlr.Solution}`` for every linear layer of `model`, in the order of the network.

    Each layer on its own, from the activations of the original network (independent programs: `workers` threads at once), or,
    with ``cascade=True``, one after the other: inputs as the network compressed so far gives them, outputs those of the original network.
    There the epsilon may be out of reach; then it is raised to just above the smallest one that was found feasible, which
    the solution's ``epsilon`` and ``note`` tell.

    Parameters: `calibration`, images (N first); `epsilon`, one number or ``{layer: number}``, where a layer
    that is absent stays as it is; `penalty`, "nuclear" or "l1";
    `warm_start`, an earlier answer of this function; `options` of `ddlr.solve` (tolerance, max_seconds, dtype ...).
    Raises ValueError as `ddlr.solve`, naming the layer.
    """
    names = _linear_layers(model)
    wanted = epsilon if isinstance(epsilon, dict) else dict.fromkeys(names, epsilon)
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise ValueError(f"epsilon names {unknown[0]!r}, which is no linear layer of this network: {', '.join(names)}")
    names = [name for name in names if name in wanted]

    def answer(name, x, y, relu, original):
        start = None if warm_start is None else warm_start.get(name)
        try:
            return ddlr.solve(x, y, wanted[name], relu, penalty, original, warm_start=start, **options)
        except ddlr.Infeasible as error:
            if not cascade:
                raise ddlr.Infeasible(f"layer {name!r}: {error}", error.smallest) from error
            raised = 1.05 * error.smallest
            found = ddlr.solve(x, y, raised, relu, penalty, warm_start=start, **options)
            note = f"epsilon {wanted[name]:g} was out of reach in the cascade and raised to {raised:.4g}"
            return dataclasses.replace(found, note=note)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error

    if not cascade:
        # the network itself runs in this thread only: hooks would catch what another thread sends through it
        data = [(name, *layer_data(model, name, calibration), matrix(model.get_submodule(name))) for name in names]
        with ThreadPoolExecutor(workers) as pool:
            return dict(zip(names, pool.map(lambda one: answer(*one), data)))
    small, found = replaced(model, {}), {}
    for name in names:
        data = layer_data(small, name, calibration, outputs_of=model)
        # the layer's own weights are feasible on the original inputs; behind a changed layer they may not be
        found[name] = answer(name, *data, None if found else matrix(model.get_submodule(name)))
        small = replaced(small, {name: dense(model.get_submodule(name), found[name].weights)})
    return found


def dense(layer, weights):
    """Return a linear layer like `layer` with solver weights (d_in x d_out, the bias as a last row)."""
    bias = None if layer.bias is None else weights[-1]
    return linear(weights[: layer.in_features].T, bias, layer)


def reweighted(inputs, outputs, epsilon, relu=True, original=None, rounds=2, damping=0.05, start=None, **options):
    """Return a `ddlr.Solution` of lower rank: the program solved again with a norm that charges large directions less.

    After each answer U the next one minimises ||L U'||_* with L = (U U^T + (damping s_1)^2)^(-1/2), a step of the
    majorise-minimise scheme for the logarithm of the determinant, one-sided (Fazel, Hindi & Boyd 2003). As ||L U'||_* with inputs X is
    ||V||_* with inputs X L^-1, the same solver does it. The constraints are the same and hold; ``objective`` and ``bound`` are those of
    the last weighted norm, and say nothing about the plain one.

    Parameters: as `ddlr.solve`; `rounds` of reweighting, `damping` as a share of the largest singular value, `start`, the plain
    solution where it is known. Raises ValueError as `ddlr.solve`.
    """
    found = start or ddlr.solve(inputs, outputs, epsilon, relu, original=original, **options)
    x = torch.as_tensor(inputs, dtype=torch.float64)
    for _ in range(rounds):
        if found.objective == 0:
            break
        gram = found.weights @ found.weights.T
        values, vectors = torch.linalg.eigh(gram)
        scale = (values.clamp(min=0) / values[-1] + damping**2).sqrt()
        back = (vectors * scale) @ vectors.T  # L^-1 up to a factor
        forth = (vectors / scale) @ vectors.T
        better = ddlr.solve(x @ back, outputs, epsilon, relu, original=forth @ found.weights, **options)
        weights = back @ better.weights
        spectrum = torch.linalg.svdvals(weights)
        found = dataclasses.replace(
            better,
            weights=weights,
            violation=ddlr.check(weights, inputs, outputs, epsilon, relu).violation,
            rank=int((spectrum > ddlr.RANK_TOLERANCE * spectrum[0]).sum()),
            nonzeros=int((weights.abs() > ddlr.RANK_TOLERANCE * weights.abs().max()).sum()),
            state=None,
            note="objective and bound are those of the reweighted norm",
        )
    return found


def ranks(model, solutions, cut=ddlr.RANK_TOLERANCE, resource="parameters"):
    """Return the plan ``{layer: rank}`` of DDLR answers: singular values of the weights above `cut` of the largest.

    The bias, a row of U, is kept whole and does not count. Layers whose factors would not pay are absent: they stay as they were.
    """
    found = {}
    for name, solution in solutions.items():
        layer = model.get_submodule(name)
        values = torch.linalg.svdvals(solution.weights[: layer.in_features])
        rank = max(int((values > cut * values[0]).sum()), 1)
        rows, columns = layer.weight.shape
        if rank * (rows + columns) < rows * columns:
            found[name] = rank
    return found


def low_rank(model, solutions, cut=ddlr.RANK_TOLERANCE, refit=None, relu=False, iterations=10):
    """Return a new model with the layers of DDLR answers as stock thin layers, and the plan that it has.

    `cut`: singular values below this share of the largest go. `refit`, calibration images or None: the factors are fitted
    again to the original network's outputs, in the output subspace that DDLR chose (the nuclear norm shrinks what it keeps), layer after layer
    on what the network gives so far; ``relu=True`` fits what is left after the ReLU (`sequential.sweep`). Layers that
    stay dense keep their original weights, refitted where `refit` is given.
    """
    plan = ranks(model, solutions, cut)
    left, thin = {}, {}
    for name, rank in plan.items():
        layer = model.get_submodule(name)
        u, s, vt = torch.linalg.svd(solutions[name].weights[: layer.in_features].T, full_matrices=False)
        left[name] = u[:, :rank]
        root = s[:rank].sqrt()
        bias = None if layer.bias is None else solutions[name].weights[-1]
        factors = layers.factors_room.Factors(u[:, :rank] * root, root[:, None] * vt[:rank], bias, dtype=layer.weight.dtype)
        thin[name] = factors.layers(rank).to(layer.weight.device)
    if refit is not None:
        return sweep(model, plan, refit, relu=relu, within=left, iterations=iterations), plan
    return replaced(model, thin), plan


def sparse(model, solutions, cut=ddlr.RANK_TOLERANCE):
    """Return a new model with the layers of Net-Trim answers, weights below `cut` of the largest set to zero; dense storage."""
    new = {}
    for name, solution in solutions.items():
        layer, weights = model.get_submodule(name), solution.weights.clone()
        weight = weights[: layer.in_features]
        weight[weight.abs() <= cut * weight.abs().max()] = 0
        new[name] = dense(layer, weights)
    return replaced(model, new)


def stored(model, index_bits=16):
    """Return {"non-zeros": n, "with indices": m}: the size of a sparse network in parameters of 32 bits.

    Non-zero weights and all biases; with indices, each linear layer in compressed sparse rows: one column index of
    `index_bits` for each non-zero and one 32-bit pointer for each row. Layers that are smaller dense count as dense;
    layers that are not linear count in full both times.
    """
    plain = whole = 0
    linear = {name: model.get_submodule(name) for name in _linear_layers(model)}
    for layer in linear.values():
        count, bias = int(layer.weight.count_nonzero()), 0 if layer.bias is None else layer.bias.numel()
        plain += count + bias
        packed = count * (1 + index_bits / 32) + layer.out_features + 1
        whole += min(packed, layer.weight.numel()) + bias
    rest = sum(p.numel() for p in model.parameters())
    rest -= sum(sum(p.numel() for p in layer.parameters()) for layer in linear.values())
    return {"non-zeros": plain + rest, "with indices": round(whole) + rest}


def constraints(model, compressed, calibration, epsilon):
    """Return a DataFrame with one row a layer: do the weights of `compressed` keep the constraints of the original layer?

    Columns: layer, error, epsilon, sign, feasible (`ddlr.check`), on the original network's inputs and outputs of each layer.
    A thin layer counts as the product of its factors.
    """
    rows = []
    for name in _linear_layers(model):
        if isinstance(epsilon, dict) and name not in epsilon:
            continue
        x, y, relu = layer_data(model, name, calibration)
        wanted = epsilon[name] if isinstance(epsilon, dict) else epsilon
        found = ddlr.check(_product(compressed.get_submodule(name)), x, y, wanted, relu)
        rows.append({"layer": name, "error": found.error, "epsilon": wanted, "sign": found.sign, "feasible": found.feasible})
    return pd.DataFrame(rows)


def _product(layer):
    if isinstance(layer, nn.Linear):
        return matrix(layer)
    first, second = layer
    weight = second.weight.detach().double() @ first.weight.detach().double()
    return weight.T if second.bias is None else torch.cat([weight.T, second.bias.detach().double()[None]])
