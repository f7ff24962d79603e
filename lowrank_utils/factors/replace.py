"""A plan and factors become a new network: layers replaced by stock thin ones."""

import logging

import numpy as np
import torch

from lowrank_utils.factors import svd
from lowrank_utils.factors.sequential import sweep
from lowrank_utils.network import statistics, unfold
from lowrank_utils.network.graph import followed_by, owners
from lowrank_utils.network.modules import check_there, fold_bias_into_norm, replaced
from lowrank_utils.network.profile import check_resource, count_uses
from lowrank_utils.network.unfold import parse_entry

log = logging.getLogger(__name__)
SWEEPS = (
    "sequential",
    "relu-aware",
    "fisher-weighted",
)  # factors that depend on the whole plan: see `sequential.sweep`


def apply_plan(model, plan, factors="svd", calibration=None, resource="parameters", input_shape=None, **options):
    """Return a new model with the planned layers replaced by stock thin ones; `model` is left as it was.

    Parameters: `plan`, ``{layer name: rank}``, or ``(scheme, rank)`` for a convolution; `factors`, a method of
    `svd.METHODS`, one of `SWEEPS`, or the factors themselves, ``{layer name: svd.Factors}`` as `decompose_layers`
    returns them; `calibration`, network inputs (N first) for methods that need data; `options` of `sequential.sweep`. A
    rank that would not be cheaper in `resource` than the layer leaves the layer dense, and says so in the log; with
    `resource` None every rank is built. MACs are those on inputs of `input_shape` (default: the shape of the
    `calibration`), as on the cards of `read_layers`; without either those of a large image, which are not the cards' on
    small or odd maps. Where factors need a bias and the layer has none, the batch norm that follows takes it into its
    running mean.

    Raises ValueError for a layer that is not there or cannot be factored, a scheme that it does not have, and a rank
    outside 1..full.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> apply_plan(model, {"1": 4})[1]
    Sequential(
      (first): Linear(in_features=64, out_features=4, bias=False)
      (second): Linear(in_features=4, out_features=10, bias=True)
    )
    """
    check_there(model)
    if resource is not None:
        check_resource(resource)
    if input_shape is None and torch.is_tensor(calibration) and calibration.ndim > 1:
        input_shape = calibration.shape[1:]
    uses = count_uses(model, input_shape)[0] if plan and resource == "macs" and input_shape is not None else {}
    modules, holders = dict(model.named_modules()), owners(model)
    chosen = {}
    for name, planned in plan.items():
        if name not in modules:
            raise ValueError(f"the plan names a layer {name!r} that the model does not have")
        layer = modules[name]
        if not unfold.schemes_of(layer):
            raise ValueError(
                f"layer {name!r} of type {type(layer).__name__} cannot be factored: {unfold.why_not(layer)}"
            )
        if "weight" not in layer._parameters:
            raise ValueError(f"layer {name!r} has a weight computed from other parameters, so it cannot be factored")
        if len(holders.get(id(layer.weight), ())) > 1:
            raise ValueError(f"layer {name!r} shares its weight with another, so it cannot be factored alone")
        scheme, rank = parse_entry(planned)
        try:
            scheme = unfold.check_scheme(layer, scheme)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
        each = unfold.rank_costs(layer)[scheme]
        if not isinstance(rank, (int, np.integer)) or isinstance(rank, bool) or not 0 <= rank <= each.full_rank:
            raise ValueError(f"rank {rank!r} of layer {name!r} is not a whole number from 1 to {each.full_rank}")
        whole, per_rank = layer.weight.numel(), each.parameters
        if resource == "macs" and scheme is not None:
            # where the positions are not known, those of one output far from the borders
            seen = uses.get(name, {"inputs": layer.stride[0] * layer.stride[1], "outputs": 1})
            whole, per_rank = whole * seen["outputs"], unfold.rank_costs(layer, **seen)[scheme].macs
        if resource is not None and max(int(rank), 1) * per_rank >= whole:
            log.info("%s stays dense: rank %d costs no less than the whole layer in %s", name, rank, resource)
            continue
        chosen[name] = (scheme, int(rank))
    if isinstance(factors, str) and factors in SWEEPS:
        if calibration is None:
            raise ValueError(f"factors={factors!r} need calibration images; pass calibration=")
        options = {"relu-aware": {"relu": True}, "fisher-weighted": {"weighted": True}}.get(factors, {}) | options
        return sweep(
            model, {name: (scheme, max(rank, 1)) for name, (scheme, rank) in chosen.items()}, calibration, **options
        )
    if options:
        raise ValueError(f"factors={factors!r} take no option {', '.join(options)}; those of a sweep do")
    if isinstance(factors, str):
        factors = decompose_layers(model, {name: scheme for name, (scheme, _) in chosen.items()}, factors, calibration)
    missing = [name for name in chosen if name not in factors]
    if missing:
        raise ValueError(f"no factors were given for the planned layers {', '.join(missing)}")
    thin = {}
    for name, (scheme, rank) in chosen.items():
        layer, found = modules[name], factors[name]
        if found.scheme != scheme:
            raise ValueError(f"the plan wants layer {name!r} in scheme {scheme!r}, its factors are in {found.scheme!r}")
        wanted, held = unfold.rank_costs(layer)[scheme].shape, (found.left.shape[-2], found.right.shape[-1])
        if wanted != held:
            what = tuple(layer.weight.shape) if scheme is None else f"{wanted} in scheme {scheme!r}"
            raise ValueError(f"layer {name!r} has weights of shape {what}, its factors make {held}")
        thin[name] = found.layers(rank)
    norms = (
        followed_by(model, None, calibration)
        if any(modules[name].bias is None and thin[name].second.bias is not None for name in thin)
        else {}
    )
    for name in list(thin):
        if modules[name].bias is None and thin[name].second.bias is not None:
            thin[norms[name].norm] = fold_bias_into_norm(model.get_submodule(norms[name].norm), thin[name].second)
    return replaced(model, thin)


def decompose_layers(model, names, method="svd", calibration=None, moments=None):
    """Return ``{name: svd.Factors}`` for the named layers of `model`, good for every rank.

    `names` is a list, or ``{name: scheme}``. One decomposition serves a whole sweep of plans. `moments`, ``{name:
    Moments}`` of `statistics.collect_moments`, take the place of `calibration` where they are at hand. See `svd.decompose_layer`.
    """
    check_there(model)
    moments, norms = moments or {}, {}
    if method != "svd" and names:
        missing = [name for name in names if name not in moments]
        if missing and calibration is None:
            raise ValueError(f"factors={method!r} need calibration images; pass calibration=")
        if method in svd.METHODS:
            if missing:
                moments = moments | statistics.collect_moments(model, missing, calibration)
            norms = followed_by(model, None, calibration)
    found = {}
    for name in names:
        layer, scheme = model.get_submodule(name), names[name] if isinstance(names, dict) else None
        centred = layer.bias is not None or (name in norms and norms[name].norm is not None)
        try:
            found[name] = svd.decompose_layer(layer, method, moments.get(name), scheme, centred)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
    if not names and method not in svd.METHODS:
        raise ValueError(f"unknown factors {method!r}; known: {', '.join(svd.METHODS + SWEEPS)}")
    return found
