"""A plan and factors become a new network: layers replaced by stock thin ones."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from lowrank_utils.checks import is_whole
from lowrank_utils.factors import svd
from lowrank_utils.factors.sequential import sweep
from lowrank_utils.network import unfold
from lowrank_utils.network.graph import owners
from lowrank_utils.network.modules import fold_bias_into_norm, replaced
from lowrank_utils.network.profile import Lazily, Plan, Profile, check_resource
from lowrank_utils.network.unfold import parse_entry

log = logging.getLogger(__name__)
SWEEPS = (
    "sequential",
    "relu-aware",
    "fisher-weighted",
)  # factors that depend on the whole plan: see `sequential.sweep`
LAYERWISE = "fisher-layerwise"  # data-aware in the metric of the Fisher information, each layer on its own
KNOWN = (*svd.METHODS, *svd.SCALED, LAYERWISE, *SWEEPS)


def apply_plan(
    profile: Profile,
    plan: Plan,
    *,
    factors: str | Mapping[str, svd.Factors] = "svd",
    resource: str | None = "either",
    **options: Any,
) -> nn.Module:
    """Return a new model with the planned layers replaced by stock thin ones; the profile and its model stay as they were.

    Parameters: `profile` of the network; `plan`, ``{layer name: rank}``, or ``(scheme, rank)`` for a convolution; `factors`, a method of
    `svd.METHODS`, `LAYERWISE`, one of `SWEEPS`, or the factors themselves, ``{layer name: svd.Factors}`` as `decompose_layers`
    returns them; methods that need data take the calibration of the profile; `options` of `sequential.sweep`. A
    rank that would not be cheaper in `resource` than the layer leaves the layer dense, and says so in the log. `resource`:
    "macs", "parameters", "either" (a rank that is cheaper in one of the two is built, so that the plan of any chooser is
    built as it stands), or None, with which every rank is built. MACs are those on inputs of the profile's shape; where it knows none, those of a
    large image, which are others on small or odd maps. Where factors need a bias and the layer has none, the batch norm that follows takes it into its
    running mean.

    Raises ValueError for a layer that is not there or cannot be factored, a scheme that it does not have, and a rank
    outside 1..full.

    >>> from torch import nn
    >>> from lowrank_utils import profile
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> apply_plan(profile(model), {"1": 4})[1]
    Sequential(
      (first): Linear(in_features=64, out_features=4, bias=False)
      (second): Linear(in_features=4, out_features=10, bias=True)
    )
    """
    if not hasattr(profile, "check_unchanged"):
        raise ValueError(
            f"apply_plan needs a profile, not a {type(profile).__name__}; make one with lowrank_utils.profile"
        )
    profile.check_unchanged()
    model, calibration = profile.model, profile.calibration
    if resource not in (None, "either"):
        check_resource(resource)
    chosen = {}
    for name, entry in plan.items():
        scheme, rank = _checked_entry(model, name, entry)
        if resource is not None and not _pays(profile, name, scheme, rank, resource):
            log.info("%s stays dense: rank %d costs no less than the whole layer in %s", name, rank, resource)
            continue
        chosen[name] = (scheme, rank)
    if isinstance(factors, str) and factors in SWEEPS:
        if calibration is None:
            raise ValueError(f"factors={factors!r} need calibration images; make the profile with calibration=")
        options = {"relu-aware": {"relu": True}, "fisher-weighted": {"weighted": True}}.get(factors, {}) | options
        return sweep(profile, {name: (scheme, max(rank, 1)) for name, (scheme, rank) in chosen.items()}, **options)
    if options:
        raise ValueError(f"factors={factors!r} take no option {', '.join(options)}; those of a sweep do")
    if isinstance(factors, str):
        factors = _decomposed(profile, {name: scheme for name, (scheme, _) in chosen.items()}, factors)
    missing = [name for name in chosen if name not in factors]
    if missing:
        raise ValueError(f"no factors were given for the planned layers {', '.join(missing)}")
    thin: dict[str, nn.Module] = {
        name: _thin(model, name, scheme, rank, factors[name]) for name, (scheme, rank) in chosen.items()
    }
    for name in list(thin):
        second: Any = thin[name].get_submodule("second")
        if model.get_submodule(name).bias is None and second.bias is not None:
            norm: Any = profile.followers[name].norm
            thin[norm] = fold_bias_into_norm(model.get_submodule(norm), second)
    return replaced(model, thin)


def _checked_entry(model, name, entry):
    # (scheme, rank) of what a plan says of a layer, or an error that names it
    modules = dict(model.named_modules())
    if name not in modules:
        raise ValueError(f"the plan names a layer {name!r} that the model does not have")
    layer = modules[name]
    if not unfold.schemes_of(layer):
        raise ValueError(f"layer {name!r} of type {type(layer).__name__} cannot be factored: {unfold.why_not(layer)}")
    if "weight" not in layer._parameters:
        raise ValueError(f"layer {name!r} has a weight computed from other parameters, so it cannot be factored")
    if len(owners(model).get(id(layer.weight), ())) > 1:
        raise ValueError(f"layer {name!r} shares its weight with another, so it cannot be factored alone")
    scheme, rank = parse_entry(entry)
    try:
        scheme = unfold.check_scheme(layer, scheme)
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error
    full = unfold.rank_costs(layer)[scheme].full_rank
    if not is_whole(rank) or not 0 <= rank <= full:
        raise ValueError(f"rank {rank!r} of layer {name!r} is not a whole number from 1 to {full}")
    return scheme, int(rank)


def _pays(profile, name, scheme, rank, resource):
    # a layer of zeros has rank 0 and is written as one component
    layer, rank = profile.model.get_submodule(name), max(rank, 1)
    fewer_parameters = rank * unfold.rank_costs(layer)[scheme].parameters < layer.weight.numel()
    if resource == "parameters":
        return fewer_parameters
    # where the positions are not known, those of one output far from the borders
    seen = profile.uses.get(name, unfold.one_output(layer))
    fewer_macs = rank * unfold.rank_costs(layer, **seen)[scheme].macs < layer.weight.numel() * seen["outputs"]
    return fewer_macs or (resource == "either" and fewer_parameters)


def _thin(model, name, scheme, rank, found):
    layer = model.get_submodule(name)
    if found.scheme != scheme:
        raise ValueError(f"the plan wants layer {name!r} in scheme {scheme!r}, its factors are in {found.scheme!r}")
    wanted, held = unfold.rank_costs(layer)[scheme].shape, (found.left.shape[-2], found.right.shape[-1])
    if wanted != held:
        what = f"{wanted}{unfold.in_words(scheme)}"
        raise ValueError(f"layer {name!r} has weights of shape {what}, its factors make {held}")
    return found.layers(rank)


def decompose_layers(
    profile: Profile, names: Collection[str] | Mapping[str, str | None], method: str = "svd"
) -> dict[str, svd.Factors]:
    """Return ``{name: svd.Factors}`` for the named layers, good for every rank.

    `names` is a list, or ``{name: scheme}``. One decomposition serves a whole sweep of plans. Methods that need data take
    the moments of the profile; `LAYERWISE` its Fisher information too. See `svd.decompose_layer`, and `svd.scaled_layer`
    for `svd.SCALED`, which are of linear layers only.
    """
    return dict(_decomposed(profile, names, method))


def _decomposed(profile, names, method):
    # {layer: its factors}, each computed when it is read: those of a language model, at all ranks, take gigabytes
    profile.check_unchanged()
    if method not in KNOWN or method in SWEEPS:
        raise ValueError(f"unknown factors {method!r}; known: {', '.join((*svd.METHODS, *svd.SCALED, LAYERWISE))}")
    if method != "svd" and names and profile.calibration is None:
        raise ValueError(f"factors={method!r} need calibration images; make the profile with calibration=")
    make = _scaled if method in svd.SCALED else _layerwise
    one: Any = make(profile, list(names), method) if names else None

    def function(name):
        try:
            return one(name, names[name] if isinstance(names, dict) else None)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error

    return Lazily(names, function)


def _layerwise(profile, names, method):
    metrics = profile.metric_of(names) if method == LAYERWISE else {}
    moments = profile.moments_of(names) if method != "svd" else {}
    method = "data-aware" if method == LAYERWISE else method

    def one(name, scheme):
        layer: Any = profile.model.get_submodule(name)
        centred = profile.takes_mean(name) if method != "svd" else layer.bias is not None
        return svd.decompose_layer(layer, method, moments.get(name), scheme, centred, metrics.get(name))

    return one


def _scaled(profile, names, method):
    seen = profile.moments_of(names) if method == "asvd" else profile.rows_of(names)

    def one(name, scheme):
        layer: Any = profile.model.get_submodule(name)
        if method == "asvd":
            return svd.scaled_layer(layer, columns=seen[name].mean_absolute ** svd.ALPHA)
        return svd.scaled_layer(layer, rows=seen[name].sqrt())

    return one
