"""Entropy pruning of a whole network at once: singular components, and hidden units.

*Components*: every singular component of every layer is a candidate, ranked over the whole network; what is left is a
plan of ranks (`rank_components`, `plan`). *Units*: hidden units are ranked by what their activations say over data, and
removed for good, their mean folded into the next bias (`collect`, `rank_units`, `plan_units`, `remove`). The result is
made of smaller stock layers, never of masks. `both` does units first, components second.
"""

import logging
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import pandas as pd
import torch
from scipy.special import entr
from torch import fx, nn
from torch.nn import functional as F

from . import factors as factors_room
from . import layers
from .arsvd import energy_shares
from .models import evaluating, linear, replaced

log = logging.getLogger(__name__)

COMPONENT_RULES = ("entropy", "energy", "output", "magnitude", "random")
UNIT_RULES = ("entropy", "output", "magnitude", "random")


# Components -----------------------------------------------------------------------------------------------------------


def output_shares(factors, moments):
    """Return each component's share of the layer's output energy on data (length k, sums to 1; zeros for no output).

    Component i of W = left @ right gives outputs of mean square |left_i|^2 right_i C right_i^T, with C the covariance of
    the layer's inputs (second moment without a bias). As the left columns are orthogonal, these add up to the
    whole output: for plain factors they are s_i^2 v_i^T C v_i, for data-aware factors the eigenvalues of W C W^T.

    Parameters: `factors`, a `factors.Factors` of full rank; `moments`, the `factors.Moments` of the inputs.
    """
    if factors.right.shape[1] != len(moments.mean):
        raise ValueError(f"moments of {len(moments.mean)} inputs do not fit factors of {factors.right.shape[1]}")
    spread = moments.second_moment if factors.bias is None else moments.covariance
    spread = spread.to(factors.right.device)
    energy = factors.left.square().sum(0) * ((factors.right @ spread) * factors.right).sum(1)
    energy = energy.clamp(min=0).cpu().numpy()
    return energy / energy.sum() if energy.sum() else energy


def rank_components(cards, rule="entropy", factors=None, moments=None, seed=0):
    """Return a DataFrame of all components of the layers that can be factored, the first to be dropped first.

    Columns: layer, component (1 is the largest), share (of the layer's energy, p_i), score (what `rule` gives it) and
    key (the highest score among it and the smaller ones of its layer). Components are sorted by key, so that within a
    layer a larger one never goes before a smaller one. Components whose singular value is zero in float32 come first
    (score and key 0).

    `rule`: ``"entropy"`` -p_i log p_i; ``"energy"`` p_i; ``"output"`` the share of output energy on data
    (`output_shares`); ``"magnitude"`` s_i, not normalised by layer; ``"random"`` uniform numbers from `seed`, the largest of a layer for
    its first component. Parameters: `cards` of `layers.survey`; `factors`, ``{name: Factors}`` of `layers.decompose`, and `moments`, ``{name: Moments}``
    of `factors.collect`, both for ``"output"`` only.

    Raises ValueError for an unknown rule, for "output" without factors and moments of every layer, and where no
    layer can be factored. Source: Cherukuri & Lala 2025 (entropy); within a layer the order of the values is kept.

    >>> from torch import nn
    >>> layer = nn.Linear(3, 3)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0, 1.0])))
    >>> found = rank_components(layers.survey(nn.Sequential(layer), (3,)))
    >>> found[["component", "score", "key"]].round(3).values.tolist()
    [[3.0, 0.218, 0.218], [2.0, 0.218, 0.218], [1.0, 0.164, 0.218]]
    """
    if rule not in COMPONENT_RULES:
        raise ValueError(f"unknown rule {rule!r} for components; known: {', '.join(COMPONENT_RULES)}")
    free = [card for card in cards if not card.reason]
    if any(card.singular_values is None for card in free):
        raise ValueError("these cards have no spectrum; make them with survey(..., spectra=True)")
    if not free:
        raise ValueError("no layer of this network can be factored: " + "; ".join(f"{c.name}: {c.reason}" for c in cards))
    lacking = [card.name for card in free if card.name not in (factors or {}) or card.name not in (moments or {})]
    if rule == "output" and lacking:
        raise ValueError(f"rule 'output' needs factors and moments of every layer; missing: {', '.join(lacking)}")
    generator = np.random.default_rng(seed)
    tables = []
    for card in free:
        s = np.sort(np.asarray(card.singular_values))[::-1]
        p = energy_shares(s)
        if rule == "output":
            score = output_shares(factors[card.name], moments[card.name])
            if len(score) != len(s):
                raise ValueError(f"the factors of layer {card.name!r} hold {len(score)} of its {len(s)} components")
        elif rule == "magnitude":
            score = s.copy()
        elif rule == "random":
            score = np.sort(generator.random(len(s)))[::-1]  # sorted: else a long layer would protect itself by chance
        else:
            score = entr(p) if rule == "entropy" else p.copy()
        score[_zero(s, card.shape)] = 0.0
        key = np.maximum.accumulate(score[::-1])[::-1]
        tables.append(
            pd.DataFrame(
                {"layer": card.name, "component": np.arange(1, len(s) + 1), "share": p, "score": score, "key": key}
            )
        )
    table = pd.concat(tables, ignore_index=True)
    place = {card.name: i for i, card in enumerate(free)}
    table = table.assign(place=table["layer"].map(place))
    table = table.sort_values(["key", "place", "component"], ascending=[True, True, False], kind="stable")
    return table.drop(columns="place").reset_index(drop=True)


def _zero(s, shape):
    # weights are float32: what lies below its rounding is no component
    return s <= s[0] * max(shape) * torch.finfo(torch.float32).eps if s[0] else np.ones(len(s), bool)


def plan(cards, kept, rule="entropy", resource="parameters", factors=None, moments=None, seed=0):
    """Return the plan ``{layer: rank}`` left when components are dropped over the whole network until the budget is met.

    Components go in the order of `rank_components`; each layer keeps at least one. Above a layer's break-even
    rank a dropped component saves nothing: the layer stays dense, and is counted so, until its rank is below. Components
    of zero are dropped whatever the budget.

    Parameters: `kept`, share of the carded layers' cost in (0, 1]; `resource`, "parameters" or "macs"; the others as in
    `rank_components`. Raises ValueError where rank 1 in every layer is above the budget.

    >>> from torch import nn
    >>> cards = layers.survey(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 16)), (64,))
    >>> found = plan(cards, 0.3)
    >>> 0.28 < layers.plan_cost(cards, found) / layers.plan_cost(cards, {}) <= 0.3
    True
    """
    layers.check_share(kept=kept)
    order = rank_components(cards, rule, factors, moments, seed)
    order = order[(order["key"] > 0) & (order["component"] > 1)][::-1]
    steps = [(name, int(component)) for name, component in zip(order["layer"], order["component"])]
    return layers.grow(cards, steps, kept, resource)


# Units ----------------------------------------------------------------------------------------------------------------

_ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Identity, nn.Dropout, nn.AlphaDropout,
)  # fmt: skip
_ELEMENTWISE_FUNCTIONS = (
    torch.relu, torch.tanh, torch.sigmoid, F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish,
    F.softplus, F.tanh, F.sigmoid, F.hardtanh, F.hardswish, F.dropout,
)  # fmt: skip
_ELEMENTWISE_METHODS = ("relu", "tanh", "sigmoid", "relu_", "tanh_", "sigmoid_", "contiguous", "clone")


@dataclass(frozen=True)
class Hidden:
    """A hidden layer whose units can go: linear layer `name` of `units` outputs, read by linear layer `reader` alone.

    ``reason`` says why no unit of it can be removed, and is empty where they can; ``reader`` is then "".
    """

    name: str
    reader: str
    units: int
    reason: str = ""


def hidden_layers(model):
    """Return a list of `Hidden`, one for every linear layer of `model`, in the order of the forward pass.

    The forward pass is traced with ``torch.fx``; between a layer and its reader there may be element-wise functions
    only (activations, dropout). Raises ValueError where the network cannot be traced.

    >>> [(h.name, h.reader, h.units) for h in hidden_layers(nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2)))]
    [('0', '2', 5), ('2', '', 2)]
    """
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # fx passes on whatever the traced code raises
        raise ValueError(f"the network cannot be traced by torch.fx, so its hidden units are not known: {error}") from error
    modules = dict(model.named_modules(remove_duplicate=False))
    calls, owners = {}, {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(id(modules[node.target]), []).append(node)
    for module in modules.values():
        if isinstance(module._parameters.get("weight"), torch.Tensor):
            owners.setdefault(id(module.weight), set()).add(id(module))
    attributes = {node.target.rsplit(".", 1)[0] for node in graph.nodes if node.op == "get_attr"}

    def shared(module):
        return len(calls.get(id(module), ())) != 1 or len(owners[id(module.weight)]) > 1

    def computed(module):  # as by weight_norm: what stands in .weight is made anew at each call
        return "weight" not in module._parameters

    found = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.Linear):
            continue
        layer, reader, reason = modules[node.target], "", ""
        if computed(layer):
            reason = "its weight is computed from other parameters"
        elif shared(layer):
            reason = "it is used more than once, or shares its weight"
        elif node.target in attributes:
            reason = "its weight is also read outside of its call"
        else:
            reader, reason = _reader(node, modules)
            if reader and computed(modules[reader]):
                reader, reason = "", f"the layer that reads it, {reader}, has a weight computed from other parameters"
            elif reader and shared(modules[reader]):
                reader, reason = "", f"the layer that reads it, {reader}, is used more than once, or shares its weight"
        found.append(Hidden(node.target, reader, layer.out_features, reason))
    return found


def _reader(node, modules):
    # follow the one path from a layer's output through element-wise functions to the linear layer that reads it
    while True:
        users = list(node.users)
        if len(users) != 1:
            return "", "its output goes to more than one place" if users else "nothing reads its output"
        (user,) = users
        if user.op == "output":
            return "", "its units are the outputs of the network"
        module = modules.get(user.target) if user.op == "call_module" else None
        if isinstance(module, nn.Linear):
            return (user.target, "") if user.args else ("", "the layer that reads it is called with a keyword")
        elementwise = (
            isinstance(module, _ELEMENTWISE_MODULES)
            and not (isinstance(module, nn.PReLU) and module.num_parameters > 1)
            or (user.op == "call_function" and user.target in _ELEMENTWISE_FUNCTIONS)
            or (user.op == "call_method" and user.target in _ELEMENTWISE_METHODS)
        )
        if not elementwise:
            what = type(module).__name__ if module is not None else getattr(user.target, "__name__", user.target)
            return "", f"its output goes through {what}, which is not element-wise"
        node = user


@dataclass(frozen=True)
class Activations:
    """What the units of one hidden layer did over data, after the activation function.

    ``count`` values seen of each unit; ``mean``, ``variance``, ``low``, ``high`` (units, float64); ``histogram`` (units x
    bins, counts) between the bounds ``edges`` (units x 2).
    """

    count: int
    mean: torch.Tensor
    variance: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    histogram: torch.Tensor
    edges: torch.Tensor

    @property
    def entropy(self):
        """H = -sum_b q_b log q_b in nats for each unit, q the histogram as shares; from 0 to log(bins).

        With each unit's own range 0 means that the unit was constant over the data; with one range for the layer, that
        it stayed within one bin. Source: Luo & Wu 2017, equation 2.
        """
        shares = self.histogram.double() / self.count
        return torch.special.entr(shares).sum(1)


def collect(model, images, bins=32, span="unit", batch_size=500):
    """Return ``{layer: Activations}`` of every hidden layer whose units can go, while `model` sees `images` twice.

    The first pass finds the range, mean and variance of each unit, the second counts the histogram of `bins` equal
    bins. ``span="unit"``: between the unit's own lowest and highest value (Luo & Wu 2017); ``"layer"``: one range for
    all units of a layer. Nothing is stored but units x bins counts, whatever the number of images (N first).

    Raises ValueError for fewer than two images, NaN, images of a shape the network cannot take, a wrong `bins` or
    `span`, and a network without hidden units that can go.
    """
    if isinstance(bins, bool) or not isinstance(bins, Integral) or bins < 2:
        raise ValueError(f"bins={bins!r} is not a whole number of at least 2")
    if span not in ("unit", "layer"):
        raise ValueError(f"unknown span {span!r}; known: unit, layer")
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} is not a whole number of at least 1")
    if not torch.is_tensor(images) or images.ndim < 2:
        raise ValueError("calibration images must be a tensor with the images along its first axis")
    if len(images) < 2:
        raise ValueError("entropy needs at least two calibration images: one gives every unit one value")
    hidden = _removable(model)
    parameter = next(model.parameters())
    seen = {h.name: None for h in hidden}

    def watch(name, update):
        return lambda module, inputs: update(name, inputs[0].reshape(-1, inputs[0].shape[-1]).double())

    def passing(update):
        hooks = [model.get_submodule(h.reader).register_forward_pre_hook(watch(h.name, update)) for h in hidden]
        try:
            with evaluating(model):
                for batch in images.split(batch_size):
                    if not torch.isfinite(batch).all():
                        raise ValueError("the calibration images hold NaN or infinite values")
                    model(batch.to(parameter.device, parameter.dtype))
        except RuntimeError as error:
            raise ValueError(f"the network cannot take calibration images of shape {tuple(images.shape[1:])}: {error}") from error
        finally:
            for hook in hooks:
                hook.remove()

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

    passing(summarise)
    edges, counts = {}, {}
    for name, (_, low, high, _, _) in seen.items():
        if span == "layer":
            low, high = low.min().expand_as(low), high.max().expand_as(high)
        edges[name] = torch.stack([low, high], 1)
        counts[name] = torch.zeros(len(low), bins, dtype=torch.int64, device=low.device)

    def count(name, x):
        low, high = edges[name].unbind(1)
        # rounding differs with the size of a batch: a range of a few float32 steps of the layer's values is a constant
        varies = high - low > 8 * torch.finfo(torch.float32).eps * torch.maximum(low.abs(), high.abs()).max()
        width = torch.where(varies, high - low, torch.inf)
        place = ((x - low) / width * bins).long().clamp(0, bins - 1)
        units = torch.arange(x.shape[1], device=x.device) * bins
        counts[name] += torch.bincount((place + units).flatten(), minlength=x.shape[1] * bins).view(-1, bins)

    passing(count)
    return {
        name: Activations(n, mean, scatter / n, low, high, counts[name], edges[name])
        for name, (n, low, high, mean, scatter) in seen.items()
    }


def _removable(model):
    every = hidden_layers(model)
    found = [h for h in every if not h.reason]
    if not found:
        why = "; ".join(f"{h.name}: {h.reason}" for h in every) or "it has no linear layer"
        raise ValueError(f"no hidden unit of this network can be removed ({why})")
    return found


def rank_units(model, activations, rule="entropy", seed=0):
    """Return a DataFrame of all hidden units that can go, the first to be dropped first: layer, unit (from 0), score.

    `rule`: ``"entropy"`` of the activation histogram; ``"output"`` the variance that the unit gives the next layer,
    var |w_out|^2, as a share of its layer; ``"magnitude"`` the norm of its incoming weights over the layer's mean norm (Li
    et al. 2017, with the Euclidean norm); ``"random"`` uniform numbers from `seed`. Ties keep the order of the network.
    Raises ValueError for an unknown rule, and for activations that are not of this network.
    """
    if rule not in UNIT_RULES:
        raise ValueError(f"unknown rule {rule!r} for units; known: {', '.join(UNIT_RULES)}")
    generator, parameter = np.random.default_rng(seed), next(model.parameters())
    tables = []
    for h in _removable(model):
        if h.name not in activations or len(activations[h.name].mean) != h.units:
            raise ValueError(f"the activations are not of this network: layer {h.name!r} has {h.units} units")
        seen = activations[h.name]
        with torch.no_grad():
            if rule == "entropy":
                score = seen.entropy
            elif rule == "output":
                score = seen.variance.to(parameter.device) * model.get_submodule(h.reader).weight.double().square().sum(0)
                score = score / score.sum().clamp(min=torch.finfo(torch.float64).tiny)
            elif rule == "magnitude":
                score = model.get_submodule(h.name).weight.double().norm(dim=1)
                score = score / score.mean().clamp(min=torch.finfo(torch.float64).tiny)
            else:
                score = torch.from_numpy(generator.random(h.units))
        tables.append(pd.DataFrame({"layer": h.name, "unit": np.arange(h.units), "score": score.cpu().numpy()}))
    table = pd.concat(tables, ignore_index=True)
    return table.sort_values("score", kind="stable").reset_index(drop=True)


def plan_units(model, order, kept, input_shape, resource="parameters", floor=1):
    """Return ``{layer: sorted list of the units that stay}`` after units were dropped in `order` until the budget is met.

    Each unit takes its row of one layer and its column of the next along; what is saved is counted as it then is. The size
    comes out less than one unit below the budget, unless the floor holds it up.

    Parameters: `order`, the DataFrame of `rank_units`; `kept`, share of the model's cost in (0, 1], counted over the
    layers of `layers.survey`; `input_shape` of one input; `floor`, units that every layer keeps at least.
    Raises ValueError where the budget is below what `floor` units a layer cost, and says what can be reached.
    """
    layers.check_share(kept=kept)
    if isinstance(floor, bool) or not isinstance(floor, Integral) or floor < 1:
        raise ValueError(f"floor={floor!r} is not a whole number of at least 1: a layer without units passes nothing on")
    hidden = {h.name: h for h in _removable(model)}
    every = [(h.name, unit) for h in hidden.values() for unit in range(h.units)]
    if sorted(zip(order["layer"], order["unit"])) != sorted(every):
        raise ValueError("the order does not name every hidden unit of this network once; make it with rank_units")
    cards = {card.name: card for card in layers.survey(model, input_shape, spectra=False)}
    sizes = {name: list(card.shape) for name, card in cards.items()}  # rows, columns as units go
    total = sum(card.cost(None, resource) for card in cards.values())

    def cost():
        return sum(_dense_cost(cards[name], sizes[name], resource) for name in cards)

    def drop(name, count=1):
        sizes[name][0] -= count
        sizes[hidden[name].reader][1] -= count

    for name, h in hidden.items():
        drop(name, max(h.units - floor, 0))
    least = cost() / total
    if least > kept:
        raise ValueError(
            f"kept={kept} of {resource} cannot be reached by removing units: "
            f"{floor} unit{'s' * (floor > 1)} in every hidden layer keep{'s' * (floor == 1)} {least:.4f}"
        )
    for name, h in hidden.items():
        drop(name, -max(h.units - floor, 0))
    staying = {name: set(range(h.units)) for name, h in hidden.items()}
    at_floor = set()
    size = cost()
    for name, unit in zip(order["layer"], order["unit"]):
        if size <= kept * total:
            break
        if len(staying[name]) <= floor:
            if name not in at_floor:
                log.warning("every unit of %s would go: it keeps its last %d", name, floor)
            at_floor.add(name)
            continue
        staying[name].discard(int(unit))
        drop(name)
        size = cost()
    return {name: sorted(units) for name, units in staying.items()}


def _dense_cost(card, shape, resource):
    rows, columns = shape
    return rows * columns * card.positions if resource == "macs" else rows * columns + (rows if card.bias else 0)


def remove(model, staying, activations=None, moments=None):
    """Return a new model with only the `staying` units of each hidden layer; `model` is left as it was.

    A removed unit takes its row of the layer and its column of the next one along. What it gave the next layer is made up for in
    one of two ways. By `activations`, its mean over data is folded into the next bias, b + sum over removed j of w_j mean_j (a
    layer without a bias gets one where that is not zero). By `moments`, the next layer is refitted by least squares: with K the units
    that stay, G those that go, C the covariance of all, W_K + W_G C_GK C_KK^+ and the bias that keeps the mean output
    (second moments and no bias where the layer has none). Either way a unit that is constant over the data goes without
    any change of the outputs there.

    Parameters: `staying`, ``{layer: units that stay, from 0}`` of `plan_units`; `activations` of `collect`; `moments`,
    ``{reader: Moments}`` of `factors.collect` for the layers that read them, which takes the place of folding.
    Raises ValueError for a layer whose units cannot go, an empty list, and units that are not there.

    >>> model = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> remove(model, {"0": [0, 3]})
    Sequential(
      (0): Linear(in_features=9, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=2, bias=True)
    )
    """
    hidden = {h.name: h for h in hidden_layers(model)}
    rows, inputs = {}, {}
    for name, units in staying.items():
        if name not in hidden or hidden[name].reason:
            why = hidden[name].reason if name in hidden else "there is no linear layer of this name"
            raise ValueError(f"no unit of layer {name!r} can be removed: {why}")
        if any(isinstance(u, bool) or not isinstance(u, Integral) for u in units):
            raise ValueError(f"the units of layer {name!r} that stay must be whole numbers, counted from 0")
        h, units = hidden[name], sorted({int(u) for u in units})
        if not units:
            raise ValueError(f"every unit of layer {name!r} would go; a layer keeps at least one")
        if units[0] < 0 or units[-1] >= h.units:
            raise ValueError(f"layer {name!r} has units 0 to {h.units - 1}, the plan names {units[0]} to {units[-1]}")
        reader = model.get_submodule(h.reader)
        rows[name] = torch.tensor(units, device=reader.weight.device)
        gone = torch.tensor(sorted(set(range(h.units)) - set(units)), dtype=torch.long, device=reader.weight.device)
        mean = _fitting(activations, name, h.units, "activations")
        about = _fitting(moments, h.reader, h.units, "moments")
        inputs[h.reader] = _without(reader, rows[name], gone, mean, about)
    thin = {}
    for name in rows.keys() | inputs.keys():
        layer = model.get_submodule(name)
        weight, bias = inputs.get(name, (layer.weight.detach(), None if layer.bias is None else layer.bias.detach()))
        if name in rows:
            weight, bias = weight[rows[name]], None if bias is None else bias[rows[name]]
        thin[name] = linear(weight, bias, layer)
    return replaced(model, thin)


def _fitting(found, name, units, what):
    if found is None:
        return None
    if name not in found or len(found[name].mean) != units:
        raise ValueError(f"the {what} do not fit this network: layer {name!r} needs those of {units} units")
    return found[name].mean if what == "activations" else found[name]


def _without(reader, stay, gone, mean, moments):
    # weight and bias (float64) of the layer that reads the units, when the units `gone` are no longer there
    weight = reader.weight.detach().double()
    bias = None if reader.bias is None else reader.bias.detach().double()
    kept = weight[:, stay]
    if moments is not None and len(gone):
        spread = (moments.second_moment if bias is None else moments.covariance).to(weight.device)
        kept = kept + weight[:, gone] @ spread[gone][:, stay] @ torch.linalg.pinv(spread[stay][:, stay], rtol=1e-10, hermitian=True)
        if bias is not None:
            mean = moments.mean.to(weight.device)
            bias = bias + weight @ mean - kept @ mean[stay]
    elif mean is not None and len(gone):
        extra = weight[:, gone] @ mean.to(weight.device)[gone]
        if bias is not None or extra.count_nonzero():
            bias = extra if bias is None else bias + extra
    return kept, bias


def both(model, calibration, kept, units, input_shape, rules=("output", "output"), factors="data-aware", dense=()):
    """Return a new model with at most a share `kept` of the layers' parameters: units first, components of the rest second.

    `units` is the share of parameters, from `kept` to 1, that the removal of units leaves (the next layer refitted); the rest of
    the way is gone by dropping singular components. `rules`: one of `UNIT_RULES`, one of `COMPONENT_RULES`; `factors`,
    a method of `factors.METHODS`; `dense`, layers that stay unfactored. Raises ValueError as the two steps do.
    """
    layers.check_share(kept=kept, units=units)
    if kept > units:
        raise ValueError(f"kept={kept} is more than the share {units} that the removal of units leaves")
    seen = collect(model, calibration)
    order = rank_units(model, seen, rules[0])
    readers = [h.reader for h in _removable(model)]
    moments = factors_room.collect(model, readers, calibration)
    fewer = remove(model, plan_units(model, order, units, input_shape), moments=moments)
    whole = layers.plan_cost(layers.survey(model, input_shape, spectra=False), {})
    cards = layers.survey(fewer, input_shape, dense=dense)
    names = [card.name for card in cards if not card.reason]
    moments = factors_room.collect(fewer, names, calibration)
    bases = {name: factors_room.decompose(fewer.get_submodule(name), factors, moments[name]) for name in names}
    share = min(1.0, kept * whole / layers.plan_cost(cards, {}))
    return layers.apply(fewer, plan(cards, share, rules[1], factors=bases, moments=moments), bases)
