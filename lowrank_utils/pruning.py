"""Entropy pruning of a whole network at once: singular components, and hidden units.

*Components*: every singular component of every layer is a candidate, ranked over the whole network; what is left is a
plan of ranks (`rank_components`, `plan`). *Units*: hidden units, and channels of convolutions, are ranked by what their
activations say over data, and removed for good, their mean folded into the next bias (`collect`, `rank_units`,
`plan_units`, `remove`). The result is
made of smaller stock layers, never of masks. `both` does units first, components second.
"""

import logging
import operator
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import pandas as pd
import torch
from scipy.special import entr
from torch import fx, nn
from torch.nn import functional as F

from . import factors as factors_room
from . import layers, schemes
from .arsvd import energy_shares
from .models import conv2d, evaluating, linear, replaced

log = logging.getLogger(__name__)

COMPONENT_RULES = ("entropy", "energy", "output", "magnitude", "random")
UNIT_RULES = ("entropy", "output", "magnitude", "random")


# Components -----------------------------------------------------------------------------------------------------------


def output_shares(factors, moments):
    """Return each component's share of the layer's output energy on data (length k, sums to 1; zeros for no output).

    Component i of W = left @ right gives outputs of mean square |left_i|^2 right_i C right_i^T, with C the covariance
    of the layer's inputs (second moment without a bias). As the left columns are orthogonal, these add up to the whole
    output: for plain factors they are s_i^2 v_i^T C v_i, for data-aware factors the eigenvalues of W C W^T. In the
    spatial and input schemes of a convolution a component is left_i at every offset of the second layer, and components
    overlap: the shares are of the sum of their own energies.

    Parameters: `factors`, a `factors.Factors` of full rank; `moments`, the `factors.Moments` of the inputs (patches).
    """
    count, offsets = (
        (1, 1)
        if factors.layer is None
        else (schemes.groups(factors.layer), schemes.shared(factors.layer, factors.scheme))
    )
    left, right = (part.reshape(count, *part.shape[-2:]) for part in (factors.left, factors.right))
    if offsets * right.shape[2] != moments.mean.shape[-1]:
        raise ValueError(f"moments of {moments.mean.shape[-1]} inputs do not fit factors of {offsets * right.shape[2]}")
    centred = factors.bias is not None or factors.mean is not None
    spread = (moments.covariance if centred else moments.second_moment).to(right.device)
    spread = spread.reshape(count, *spread.shape[-2:])
    if offsets > 1:
        place = schemes.in_order(factors.layer, factors.scheme).to(spread.device)
        spread = spread[:, place][:, :, place]
    spread = spread.reshape(count, offsets, right.shape[2], offsets, right.shape[2])
    own = left.reshape(count, -1, offsets, left.shape[2])
    own = torch.einsum("gobr,gocr->grbc", own, own)
    energy = torch.einsum("grbc,grn,gbncm,grm->r", own, right, spread, right)
    energy = energy.clamp(min=0).cpu().numpy()
    return energy / energy.sum() if energy.sum() else energy


def rank_components(cards, rule="entropy", factors=None, moments=None, seed=0):
    """Return a DataFrame of all components of the layers that can be factored, the first to be dropped first.

    Columns: layer, component (1 is the largest), share (of the layer's energy, p_i), score (what `rule` gives it) and
    key (the highest score among it and the smaller ones of its layer). Components are sorted by key, so that within a
    layer a larger one never goes before a smaller one. Components whose singular value is zero in float32 come first
    (score and key 0).

    `rule`: ``"entropy"`` -p_i log p_i; ``"energy"`` p_i; ``"output"`` the share of output energy on data
    (`output_shares`); ``"magnitude"`` s_i, not normalised by layer; ``"random"`` uniform numbers from `seed`, the
    largest of a layer for its first component. Parameters: `cards` of `layers.survey`; `factors`, ``{name: Factors}``
    of `layers.decompose`, and `moments`, ``{name: Moments}`` of `factors.collect`, both for ``"output"`` only.

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
        raise ValueError(
            "no layer of this network can be factored: " + "; ".join(f"{c.name}: {c.reason}" for c in cards)
        )
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
    rank a dropped component saves nothing: the layer stays dense, and is counted so, until its rank is below.
    Components of zero are dropped whatever the budget.

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
    nn.Dropout2d, nn.FeatureAlphaDropout,
)  # fmt: skip
_ELEMENTWISE_FUNCTIONS = (
    torch.relu, torch.relu_, torch.tanh, torch.sigmoid, torch.clamp, F.relu, F.relu6, F.leaky_relu, F.elu, F.selu,
    F.celu, F.gelu, F.silu, F.mish, F.softplus, F.tanh, F.sigmoid, F.hardtanh, F.hardswish, F.hardsigmoid, F.dropout, F.dropout2d,
)  # fmt: skip
_ELEMENTWISE_METHODS = (
    "relu", "tanh", "sigmoid", "relu_", "tanh_", "sigmoid_", "clamp", "clamp_", "contiguous", "clone",
)  # fmt: skip
_CHANNELWISE_MODULES = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d, nn.ZeroPad2d, nn.ConstantPad2d,
    nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d, nn.Upsample,
)  # fmt: skip
_CHANNELWISE_FUNCTIONS = (
    F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.lp_pool2d,
    F.interpolate,
)  # fmt: skip
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_SUMS = (operator.add, operator.iadd, operator.sub, torch.add, torch.sub, "add", "add_", "sub", "sub_")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_JOINS = (torch.cat, torch.concat, torch.stack)

_PASS_NUMBERS = 2**21  # of the largest activation of one pass: 8 MiB in float32
_PIECE_NUMBERS = 2**18  # counted at once, in float64 and int64: a few times 2 MiB


@dataclass(frozen=True)
class Hidden:
    """A hidden layer whose units can go: layer `name` of `units` outputs, read by layer `reader` alone.

    Both are linear layers or convolutions; a unit of a convolution is an output channel. ``span``: columns of the
    reader's weight matrix (outputs x the rest) that read one unit: 1 between linear layers, kh kw for a convolution,
    the positions of a channel after a flatten. ``along``: the batch norms and depthwise convolutions between, which
    lose the same units; ``absorber``: the batch norm right behind a convolution that reads, or "". ``reason`` says why
    no unit of it can be removed, and is empty where they can; where it stands, ``reader`` is "".
    """

    name: str
    reader: str
    units: int
    reason: str = ""
    span: int = 1
    along: tuple = ()
    absorber: str = ""


def hidden_layers(model):
    """Return a list of `Hidden`, one for every linear layer and Conv2d of `model`, in the order of the forward pass.

    The forward pass is traced with ``torch.fx``. Between a layer and its one reader there may be element-wise functions
    (activations, dropout) and batch norms; behind a convolution also what treats each channel alone (pooling, padding,
    resizing, depthwise convolutions) and one flatten. Channels that meet others in a residual sum or a concatenation
    stay: in a ResNet only the inner channels of a block can go. Raises ValueError where the network cannot be traced.

    >>> [(h.name, h.reader, h.units) for h in hidden_layers(nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2)))]
    [('0', '2', 5), ('2', '', 2)]
    >>> hidden_layers(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2)))[0]
    Hidden(name='0', reader='3', units=4, reason='', span=9, along=('1',), absorber='')
    """
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # fx passes on whatever the traced code raises
        raise ValueError(
            f"the network cannot be traced by torch.fx, so its hidden units are not known: {error}"
        ) from error
    modules = dict(model.named_modules(remove_duplicate=False))
    calls, owners = {}, {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(id(modules[node.target]), []).append(node)
    for module in modules.values():
        if isinstance(module._parameters.get("weight"), torch.Tensor):
            owners.setdefault(id(module.weight), set()).add(id(module))
    attributes = {node.target.rsplit(".", 1)[0] for node in graph.nodes if node.op == "get_attr"}

    def fault(name, it="it"):
        # why the weights of this module cannot be cut, or ""
        module = modules[name]
        weight = "its weight" if it == "it" else f"the weight of {it}"
        if "weight" not in module._parameters:  # as by weight_norm: what stands in .weight is made anew at each call
            return f"{weight} is computed from other parameters"
        if len(calls[id(module)]) != 1 or (module.weight is not None and len(owners[id(module.weight)]) > 1):
            return f"{it} is used more than once, or shares its weight"
        if name in attributes:
            return f"{weight} is also read outside of its call"
        if type(module) not in (nn.Linear, nn.Conv2d, *_NORMS):
            return f"{it} is of type {type(module).__name__}, which may compute something else"
        return ""

    found = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], (nn.Linear, nn.Conv2d)):
            continue
        layer, reader, along, span, absorber = modules[node.target], None, (), 1, ""
        units = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        reason = fault(node.target)
        if not reason and isinstance(layer, nn.Conv2d) and layer.groups > 1:
            reason = f"it is a grouped convolution (groups={layer.groups})"
        if not reason:
            reader, along, reason = _reader(node, modules)
        if reader is not None:
            faults = [fault(reader.target, f"the layer that reads it, {reader.target},")]
            faults += [fault(name, f"the {_kind(modules[name])} after it, {name},") for name in along]
            reason = next(filter(None, faults), "")
        if reason:
            found.append(Hidden(node.target, "", units, reason))
            continue
        behind = _users(reader)
        if isinstance(modules[reader.target], nn.Conv2d) and len(behind) == 1 and behind[0].op == "call_module":
            norm = behind[0].target
            absorber = norm if type(modules[norm]) is nn.BatchNorm2d and not fault(norm) else ""
        span = modules[reader.target].weight[0].numel() // units
        found.append(Hidden(node.target, reader.target, units, "", span, along, absorber))
    return found


def _kind(module):
    return "batch norm" if isinstance(module, _NORMS) else "depthwise convolution"


def _reader(node, modules):
    # follow the one path from a layer's output to the layer that reads it: its node or None, the modules that are cut
    # along, the reason where there is none
    layer = modules[node.target]
    # where the units are: the last axis, the channels of N x C x H x W, or blocks of columns after a flatten
    form = "channels" if isinstance(layer, nn.Conv2d) else "last"
    units, path, along = layer.weight.shape[0], [], []
    while True:
        path.append(node)
        users = _users(node)
        if len(users) != 1:
            return None, (), "its output goes to more than one place" if users else "nothing reads its output"
        (user,) = users
        if user.op == "output":
            return None, (), "its units are the outputs of the network"
        module = modules.get(user.target) if user.op == "call_module" else None
        name = None if user.op == "call_module" else user.target
        alone = user.all_input_nodes == [node]
        if isinstance(module, nn.Conv2d) and module.groups > 1 and form == "channels":
            if not module.groups == module.in_channels == module.out_channels == units:
                grouped = f"{user.target} (groups={module.groups})"
                return None, (), f"its output goes through a grouped convolution, {grouped}"
            along.append(user.target)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            if not user.args:
                return None, (), "the layer that reads it is called with a keyword"
            if isinstance(module, nn.Conv2d) != (form == "channels"):
                reads = f"the layer that reads it, {user.target}, does so"
                return None, (), f"{reads} along another axis than that of its units"
            return user, tuple(along), ""
        elif type(module) is (nn.BatchNorm2d if form == "channels" else nn.BatchNorm1d):
            along.append(user.target)
        elif form != "last" and _flattens(user, module, path):
            form = "flat"
        elif form == "channels" and alone and _averages(user):
            form = "flat" if _averages(user) == "flat" else form
        elif not alone and name in _SUMS:
            return None, (), "its output is added to another, and its units are tied to those of the other"
        elif not alone and name in _PRODUCTS:
            return None, (), "its output is multiplied with another, and its units are tied to those of the other"
        elif name in _JOINS:
            return None, (), "its output is joined with others by concatenation"
        elif not (alone and (_elementwise(user, module) or form == "channels" and _channelwise(user, module))):
            what = type(module).__name__ if module is not None else getattr(user.target, "__name__", user.target)
            which = "is not element-wise" if form == "last" else "is not known to treat each channel alone"
            return None, (), f"its output goes through {what}, which {which}"
        node = user


def _elementwise(user, module):
    if module is not None:
        wide = isinstance(module, nn.PReLU) and module.num_parameters > 1
        return isinstance(module, _ELEMENTWISE_MODULES) and not wide
    if user.op == "call_function":
        return user.target in _ELEMENTWISE_FUNCTIONS + _SUMS + _PRODUCTS  # with a number
    return user.op == "call_method" and user.target in _ELEMENTWISE_METHODS + _SUMS + _PRODUCTS


def _channelwise(user, module):
    if module is not None:
        return isinstance(module, _CHANNELWISE_MODULES)
    if user.op == "call_function" and user.target is F.pad:
        return len(user.args[1] if len(user.args) > 1 else user.kwargs["pad"]) <= 4  # height and width alone
    return user.op == "call_function" and user.target in _CHANNELWISE_FUNCTIONS


def _users(node):
    # those that read more of a tensor than how many images it holds
    def counts(user):
        read = [u for u in user.users if u.users] if _is_shape(user) else [user]
        return all(_counted(u) is not None for u in read)

    return [user for user in node.users if not counts(user)]


def _is_shape(node):
    if node.op == "call_method" and node.target == "size":
        return len(node.args) == 1 and not node.kwargs
    return node.op == "call_function" and node.target is getattr and node.args[1] == "shape"


def _counted(node):
    # the tensor whose number of images this node is: x.size(0), x.size()[0], x.shape[0]; else None
    if node.op == "call_method" and node.target == "size" and not _is_shape(node):
        return node.args[0] if (node.args[1:] or (node.kwargs.get("dim"),))[0] == 0 else None
    if node.op == "call_function" and node.target is operator.getitem and _is_shape(node.args[0]):
        return node.args[0].args[0] if node.args[1] == 0 else None
    return None


def _flattens(user, module, path):
    # whether N x C x H x W become N x CHW here
    if module is not None:
        return type(module) is nn.Flatten and module.start_dim == 1 and module.end_dim in (-1, 3)
    if user.target in (torch.flatten, "flatten"):
        given = dict(zip(("start_dim", "end_dim"), user.args[1:])) | user.kwargs
        return given.get("start_dim", 0) == 1 and given.get("end_dim", -1) in (-1, 3)
    if user.target in (torch.reshape, "view", "reshape") and len(user.args) > 1:
        shape = user.args[1] if isinstance(user.args[1], (tuple, list)) else user.args[1:]
        if len(shape) != 2 or shape[1] != -1 or not isinstance(shape[0], fx.Node):
            return False  # a number that is written down would be wrong once channels are gone
        counted = _counted(shape[0])
        return counted is not None and (counted.op == "placeholder" or counted in path)
    return False


def _averages(user):
    # "flat" or "channels": what is left by a mean over height and width; else ""
    if (user.op, user.target) not in (("call_function", torch.mean), ("call_method", "mean")):
        return ""
    given = dict(zip(("dim", "keepdim"), user.args[1:])) | user.kwargs
    axes = given.get("dim")
    if not isinstance(axes, (tuple, list)) or sorted(axis % 4 for axis in axes) != [2, 3]:
        return ""
    return "channels" if given.get("keepdim") else "flat"


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
    all units of a layer. The values of a channel are those at all positions of all images (Luo & Wu average each
    image's map first; here every position counts). Nothing is stored but units x bins counts and one mean map a layer,
    whatever the number of images (N first); `batch_size` images pass at once, fewer where their activations would take
    more than 8 MiB a layer.

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
    seen, maps, sizes = {h.name: None for h in hidden}, {}, []

    def passing(batches, hooks):
        try:
            with evaluating(model):
                for batch in batches:
                    if not torch.isfinite(batch).all():
                        raise ValueError("the calibration images hold NaN or infinite values")
                    model(batch.to(parameter.device, parameter.dtype))
        except RuntimeError as error:
            raise ValueError(
                f"the network cannot take calibration images of shape {tuple(images.shape[1:])}: {error}"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()

    def measure(module, inputs, output):
        sizes.append(output.numel() if torch.is_tensor(output) else 0)

    def watch(h, update):
        def hook(module, inputs):
            for piece in _values(h, module, inputs[0]):
                update(h.name, piece.double())

        return model.get_submodule(h.reader).register_forward_pre_hook(hook)

    def add_maps(h):
        def hook(module, inputs):
            for some in _few(inputs[0]):
                maps[h.name] = maps.get(h.name, 0) + some.double().sum(0)

        return model.get_submodule(h.reader).register_forward_pre_hook(hook)

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

    passing([images[:2]], [module.register_forward_hook(measure) for module in model.modules()])
    batches = images.split(max(1, min(batch_size, 2 * _PASS_NUMBERS // max(sizes))))
    convolved = [h for h in hidden if isinstance(model.get_submodule(h.reader), nn.Conv2d)]
    passing(batches, [watch(h, summarise) for h in hidden] + [add_maps(h) for h in convolved])
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

    passing(batches, [watch(h, count) for h in hidden])
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


def _removable(model):
    every = hidden_layers(model)
    found = [h for h in every if not h.reason]
    if not found:
        why = "; ".join(f"{h.name}: {h.reason}" for h in every) or "it has no linear layer and no convolution"
        raise ValueError(f"no hidden unit of this network can be removed ({why})")
    return found


def rank_units(model, activations, rule="entropy", seed=0):
    """Return a DataFrame of all hidden units that can go, the first to be dropped first: layer, unit (from 0), score.

    `rule`: ``"entropy"`` of the activation histogram; ``"output"`` the variance that the unit gives the next layer,
    var |w_out|^2, as a share of its layer (w_out: all weights that read it; the positions of a channel count as if they
    did not depend on each other, though neighbours do); ``"magnitude"`` the norm of its incoming weights over the
    layer's mean norm (Li et al. 2017, with the Euclidean norm; a batch norm behind them is not looked at);
    ``"random"`` uniform numbers from `seed`. Ties keep the order of the network.
    Raises ValueError for an unknown rule, and for activations that are not of this network.
    """
    if rule not in UNIT_RULES:
        raise ValueError(f"unknown rule {rule!r} for units; known: {', '.join(UNIT_RULES)}")
    generator = np.random.default_rng(seed)
    tables = []
    for h in _removable(model):
        if h.name not in activations or len(activations[h.name].mean) != h.units:
            raise ValueError(f"the activations are not of this network: layer {h.name!r} has {h.units} units")
        seen = activations[h.name]
        with torch.no_grad():
            if rule == "entropy":
                score = seen.entropy
            elif rule == "output":
                gains = model.get_submodule(h.reader).weight.double().flatten(1).square().sum(0).view(h.units, h.span)
                score = (seen.column_variance.to(gains.device) * gains).sum(1)
                score = score / score.sum().clamp(min=torch.finfo(torch.float64).tiny)
            elif rule == "magnitude":
                score = model.get_submodule(h.name).weight.double().flatten(1).norm(dim=1)
                score = score / score.mean().clamp(min=torch.finfo(torch.float64).tiny)
            else:
                score = torch.from_numpy(generator.random(h.units))
        tables.append(pd.DataFrame({"layer": h.name, "unit": np.arange(h.units), "score": score.cpu().numpy()}))
    table = pd.concat(tables, ignore_index=True)
    return table.sort_values("score", kind="stable").reset_index(drop=True)


def plan_units(model, order, kept, input_shape, resource="parameters", floor=1):
    """Return ``{layer: sorted list of the units that stay}``: units are dropped in `order` until the budget is met.

    Each unit takes its row of one layer and its columns of the next along (kh kw of a convolution, one a position of a
    linear layer after a flatten), and its row of a depthwise convolution between; what is saved is counted as it then
    is. Costs are those of the cards, in which no batch norm stands. The size comes out less than one unit below the
    budget, unless the floor holds it up. The order alone decides, whatever a unit costs.

    Parameters: `order`, the DataFrame of `rank_units`; `kept`, share of the model's cost in (0, 1], counted over the
    layers of `layers.survey`; `input_shape` of one input; `floor`, units that every layer keeps at least.
    Raises ValueError where the budget is below what `floor` units a layer cost, and says what can be reached.
    """
    layers.check_share(kept=kept)
    if isinstance(floor, bool) or not isinstance(floor, Integral) or floor < 1:
        raise ValueError(
            f"floor={floor!r} is not a whole number of at least 1: a layer without units passes nothing on"
        )
    hidden = {h.name: h for h in _removable(model)}
    every = [(h.name, unit) for h in hidden.values() for unit in range(h.units)]
    if sorted(zip(order["layer"], order["unit"])) != sorted(every):
        raise ValueError("the order does not name every hidden unit of this network once; make it with rank_units")
    cards = {card.name: card for card in layers.survey(model, input_shape, spectra=False)}
    sizes = {name: list(card.shape) for name, card in cards.items()}  # rows, columns as units go
    total = sum(card.cost(None, resource) for card in cards.values())

    def drop(name, count=1):
        # what it saves to take `count` units more from a layer
        h = hidden[name]
        touched = [name, h.reader, *(n for n in h.along if n in cards)]
        before = sum(_dense_cost(cards[n], sizes[n], resource) for n in touched)
        sizes[h.reader][1] -= count * h.span
        for n in touched:
            sizes[n][0] -= count * (n != h.reader)
        return before - sum(_dense_cost(cards[n], sizes[n], resource) for n in touched)

    above = {name: max(h.units - floor, 0) for name, h in hidden.items()}
    least = (total - sum(drop(name, count) for name, count in above.items())) / total
    if least > kept:
        raise ValueError(
            f"kept={kept} of {resource} cannot be reached by removing units: "
            f"{floor} unit{'s' * (floor > 1)} in every hidden layer keep{'s' * (floor == 1)} {least:.4f}"
        )
    for name, count in above.items():
        drop(name, -count)
    staying = {name: set(range(h.units)) for name, h in hidden.items()}
    at_floor = set()
    size = total
    for name, unit in zip(order["layer"], order["unit"]):
        if size <= kept * total:
            break
        if len(staying[name]) <= floor:
            if name not in at_floor:
                log.warning("every unit of %s would go: it keeps its last %d", name, floor)
            at_floor.add(name)
            continue
        staying[name].discard(int(unit))
        size -= drop(name)
    return {name: sorted(units) for name, units in staying.items()}


def _dense_cost(card, shape, resource):
    rows, columns = shape
    return rows * columns * card.positions if resource == "macs" else rows * columns + (rows if card.bias else 0)


def remove(model, staying, activations=None, moments=None):
    """Return a new model with only the `staying` units of each hidden layer; `model` is left as it was.

    A removed unit takes its row of the layer and its columns of the next one along, and its entries of the batch norms
    and depthwise convolutions between. What it gave the next layer is made up for in one of two ways. By `activations`,
    its mean over data is folded into the next bias, b + sum over removed j of w_j mean_j, which keeps the mean output
    where no zeros pad. By `moments`, the next layer is refitted by least squares: with K the columns that stay, G those
    that go, C the covariance of all, W_K + W_G C_GK C_KK^+ and the bias that keeps the mean output. A layer without a
    bias gets one where the fold is not zero, and is refitted to second moments without one; but where a convolution has
    a batch norm right behind it, that takes the bias off its running mean (in train mode it would remove it anyhow).

    A unit that is constant over the data goes without any change of the outputs there, with one exception: a
    convolution that pads with zeros sees the constant break off at the border. There the fold is exact in the interior
    only, the refit the best compromise. A channel that is zero goes without a trace everywhere.

    Parameters: `staying`, ``{layer: units that stay, from 0}`` of `plan_units`; `activations` of `collect`; `moments`,
    ``{reader: Moments}`` of `factors.collect` for the layers that read them, which takes the place of folding: for a
    convolution those of its patches, I kh kw numbers in the order of ``weight[0].flatten()``.
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
    rows, inputs, shifts = {}, {}, {}
    for name, units in staying.items():
        if name not in hidden or hidden[name].reason:
            why = hidden[name].reason if name in hidden else "there is no linear layer or convolution of this name"
            raise ValueError(f"no unit of layer {name!r} can be removed: {why}")
        if any(isinstance(u, bool) or not isinstance(u, Integral) for u in units):
            raise ValueError(f"the units of layer {name!r} that stay must be whole numbers, counted from 0")
        h, units = hidden[name], sorted({int(u) for u in units})
        if not units:
            raise ValueError(f"every unit of layer {name!r} would go; a layer keeps at least one")
        if units[0] < 0 or units[-1] >= h.units:
            raise ValueError(f"layer {name!r} has units 0 to {h.units - 1}, the plan names {units[0]} to {units[-1]}")
        gone = sorted(set(range(h.units)) - set(units))
        rows |= {n: _columns(units, _entries(model.get_submodule(n)) // h.units) for n in (name, *h.along)}
        mean = _fitting(activations, name, h.units, 1, "activations")
        about = _fitting(moments, h.reader, h.units, h.span, "moments")
        mean = None if mean is None else mean.flatten()
        reader, stay, gone = model.get_submodule(h.reader), _columns(units, h.span), _columns(gone, h.span)
        inputs[h.reader], shift = _without(reader, stay, gone, mean, about, bool(h.absorber))
        if shift is not None:
            shifts[h.absorber] = shift
    thin = {}
    for name in rows.keys() | inputs.keys() | shifts.keys():
        layer = model.get_submodule(name)
        if isinstance(layer, _NORMS):
            thin[name] = _batch_norm(layer, rows.get(name), shifts.get(name))
            continue
        weight, bias = inputs.get(name, (layer.weight.detach(), None if layer.bias is None else layer.bias.detach()))
        if name in rows:
            weight, bias = weight[rows[name]], None if bias is None else bias[rows[name]]
        thin[name] = linear(weight, bias, layer) if isinstance(layer, nn.Linear) else conv2d(weight, bias, layer)
    return replaced(model, thin)


def _entries(module):
    return module.num_features if isinstance(module, _NORMS) else module.weight.shape[0]


def _columns(units, span):
    return [unit * span + i for unit in units for i in range(span)]


def _fitting(found, name, units, span, what):
    if found is None:
        return None
    if name not in found or len(found[name].mean) != units * span:
        of = f" of {span} columns each" if span > 1 else ""
        raise ValueError(f"the {what} do not fit this network: layer {name!r} needs those of {units} units{of}")
    return found[name].column_mean if what == "activations" else found[name]


def _without(reader, stay, gone, mean, moments, absorbed):
    # weight and bias (float64) of the layer that reads the units, when the columns `gone` are no longer there, and what
    # its outputs rise by, where a batch norm behind it takes that
    weight = reader.weight.detach().double().flatten(1)
    bias = None if reader.bias is None else reader.bias.detach().double()
    kept, rise = weight[:, stay], None
    if moments is not None and gone:
        centred = bias is not None or absorbed
        spread = (moments.covariance if centred else moments.second_moment).to(weight.device)
        inverse = torch.linalg.pinv(spread[stay][:, stay], rtol=1e-10, hermitian=True)
        kept = kept + weight[:, gone] @ spread[gone][:, stay] @ inverse
        if centred:
            about = moments.mean.to(weight.device)
            rise = weight @ about - kept @ about[stay]
    elif mean is not None and gone:
        rise = weight[:, gone] @ mean.to(weight.device)[gone]
    kept = kept.unflatten(1, (-1, *reader.weight.shape[2:])) if isinstance(reader, nn.Conv2d) else kept
    if rise is None or bias is not None:
        return (kept, bias if rise is None else bias + rise), None
    if absorbed:
        return (kept, None), rise
    return (kept, rise if rise.count_nonzero() else None), None


def _batch_norm(like, stay, rise):
    # `like` with the entries `stay` alone, after a rise that its inputs no longer have
    state = like.state_dict()
    if rise is not None and like.running_mean is not None:
        state["running_mean"] = state["running_mean"] - rise.to(state["running_mean"])
    stay = range(like.num_features) if stay is None else stay
    kind = next((value for value in state.values() if value.ndim), torch.empty(0))
    layer = type(like)(
        len(stay), like.eps, like.momentum, like.affine, like.track_running_stats, device=kind.device, dtype=kind.dtype
    )
    layer.load_state_dict({name: value[list(stay)] if value.ndim else value for name, value in state.items()})
    return layer


def both(model, calibration, kept, units, input_shape, rules=("output", "output"), factors="data-aware", dense=()):
    """Return a new model with at most a share `kept` of the layers' parameters: units first, components of the rest second.

    `units` is the share of parameters, from `kept` to 1, that the removal of units leaves (the next layer refitted);
    the rest of the way is gone by dropping singular components. `rules`: one of `UNIT_RULES`, one of `COMPONENT_RULES`;
    `factors`, a method of `factors.METHODS`; `dense`, layers that stay unfactored. Raises ValueError as the two steps
    do.
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
