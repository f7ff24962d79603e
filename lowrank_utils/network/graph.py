"""The graph of a network, read with torch.fx: what follows each layer, shortcuts, hidden layers, the order of execution."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from lowrank_utils.network import inputs
from lowrank_utils.network.hooks import hooked
from lowrank_utils.network.inputs import Batch
from lowrank_utils.network.modules import evaluating

log = logging.getLogger(__name__)


def before_relu(model: nn.Module) -> set[str]:
    """Return the names of the linear layers whose output goes to a ReLU and nowhere else (by ``torch.fx``).

    >>> sorted(before_relu(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))))
    ['0']
    """
    try:
        with evaluating(model):
            graph = fx.symbolic_trace(model).graph
    except Exception as error:  # fx passes on whatever the traced code raises
        log.warning("the network cannot be traced by torch.fx, so no layer counts as followed by a ReLU: %s", error)
        return set()
    modules, found = dict(model.named_modules()), set()
    for node in graph.nodes:
        linear = node.op == "call_module" and isinstance(modules[node.target], nn.Linear)
        if linear and len(node.users) == 1 and _is_relu(next(iter(node.users)), modules):
            found.add(node.target)
    return found


@dataclass(frozen=True)
class Followers:
    """What becomes of a layer's output: the batch norm ``norm`` that alone reads it (its name), the node ``other`` that the result is
    added to, and whether a ReLU follows, after all of it; None, None and False where there is no such thing."""

    norm: str | None = None
    other: fx.Node | None = None
    relu: bool = False


class _Tracer(fx.Tracer):
    # looks into no layer that is wanted, and into every module that holds one
    def __init__(self, wanted):
        super().__init__()
        self.wanted = set(wanted)

    def is_leaf_module(self, module, name):
        holds = any(w.startswith(f"{name}.") for w in self.wanted)
        return name in self.wanted or (super().is_leaf_module(module, name) and not holds)


def owners(model: nn.Module) -> dict[int, list[str]]:
    """Return ``{id of a parameter: names of the layers that hold it}``; a shared one has several."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for value in module._parameters.values():
            if value is not None:
                found.setdefault(id(value), []).append(name)
    return found


def weight_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Conv2d)]


def trace(model: nn.Module, wanted: Iterable[str], absent: Mapping[str, Any] | None = None) -> fx.Graph | None:
    """Return the graph of `model` with the `wanted` layers as leaves; None, with a warning, where torch.fx cannot trace it.

    `absent`: ``{name: value}`` of parameters of ``forward`` that no input is given for (`inputs.not_given`): the graph
    is that of a call with these values, and has no place for them.
    """
    try:
        if isinstance(model, (nn.Linear, nn.Conv2d)):
            return None  # one layer: nothing to trace
        with evaluating(model):  # tracing writes down what the model does in its present mode
            graph = _Tracer(wanted).trace(model, dict(absent) if absent else None)
            return _without(graph, absent or {})
    except Exception as error:  # fx passes on whatever the traced code raises
        log.warning(
            "this network cannot be traced by torch.fx, so shortcuts, batch norms and ReLUs are not seen: each layer has its own outputs as target (%s)",
            error,
        )
        return None


def _without(graph, absent):
    # fx leaves a placeholder for each value that it was given, and nodes that compare the two
    last = [n for n in graph.nodes if n.op == "placeholder" and n.target.rpartition("_")[0] in absent]
    gone = []
    while last:
        gone.append(last.pop())
        last += [user for user in gone[-1].users if user not in gone]
    for node in sorted(gone, key=list(graph.nodes).index, reverse=True):
        graph.erase_node(node)
    return graph


def followed_by(model: nn.Module, graph: fx.Graph | None = None, images: Batch | None = None) -> dict[str, Followers]:
    """Return ``{layer: Followers}`` of the linear layers and convolutions of `model`, by ``torch.fx``; {} where it cannot be traced.

    With `images` (two are enough) shapes are checked: a sum of tensors of different shapes is no shortcut, and a batch
    norm only counts where its channels are the layer's outputs (not for tokens, N x T x C).

    >>> followed_by(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()))["0"]
    Followers(norm='1', other=None, relu=True)
    """
    graph = trace(model, weight_layers(model)) if graph is None else graph
    if graph is None:
        return {}
    modules: dict[str, Any] = dict(model.named_modules())
    shapes = _shapes(model, graph, images)
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    found = {}
    for node in graph.nodes:
        if node.op != "call_module" or type(modules[node.target]) not in (nn.Linear, nn.Conv2d):
            continue
        norm, other, at = None, None, node
        user, own = _only(at), shapes.get(node)
        has_norm = user is not None and user.op == "call_module" and _is_norm(modules[user.target])
        axes = 4 if type(modules[node.target]) is nn.Conv2d else 2
        fits = user is not None and has_norm and modules[user.target].num_features == len(modules[node.target].weight)
        if user is not None and fits and (own is None or len(own) == axes) and calls.count(user.target) == 1:
            norm, at = user.target, user
            user = _only(at)
        if user is not None and _is_sum(user):
            rest = [arg for arg in user.args if arg is not at]
            if len(rest) == 1 and isinstance(rest[0], fx.Node) and shapes.get(rest[0]) == own:
                other, at = rest[0], user
        users = list(at.users)
        relu = bool(users) and (
            all(_is_relu(u, modules) for u in users) or (_is_relu(users[0], modules) and _inplace(users[0], modules))
        )
        found[node.target] = Followers(norm, other, relu)
    return found


class _Shapes(fx.Interpreter):
    def __init__(self, module):
        super().__init__(module)
        self.found = {}

    def run_node(self, node):
        value = super().run_node(node)
        self.found[node] = getattr(value, "shape", None)
        return value


def _shapes(model, graph, images):
    # {node: shape of its value}; {} without images
    if images is None:
        return {}
    with evaluating(model):
        runs = _Shapes(fx.GraphModule(model, graph))
        first = next(model.parameters())
        some = inputs.fed(images[:2], first)
        runs.run(some) if torch.is_tensor(some) else runs.run(*some.args, *_by_place(graph, some))
    return runs.found


def _by_place(graph, some):
    # the inputs that are given by name, in the order in which the graph takes those after the positional ones
    names = [node.target for node in graph.nodes if node.op == "placeholder"][len(some.args) :]
    return [some.kwargs.get(name) for name in names]


def _only(node) -> Any:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op != "output" else None


def _is_norm(module):
    return type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) and module.running_mean is not None


def _is_sum(node):
    function = node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add)
    return (
        (function or (node.op == "call_method" and node.target in ("add", "add_")))
        and len(node.args) == 2
        and not node.kwargs
    )


def _is_relu(node, modules):
    module = node.op == "call_module" and isinstance(modules[node.target], nn.ReLU)
    function = node.op == "call_function" and node.target in (torch.relu, F.relu)
    return module or function or (node.op == "call_method" and node.target in ("relu", "relu_"))


def _inplace(node, modules):
    if node.op == "call_module":
        return modules[node.target].inplace
    return node.target == "relu_" or bool(node.kwargs.get("inplace"))


def execution_order(model: nn.Module, names: Iterable[str], image: Batch) -> list[str]:
    """Return the named layers in the order in which a forward pass of `image` (N first) meets them, each time it does.

    Raises ValueError for an image that the network cannot take.

    >>> execution_order(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), ["2", "0"], torch.zeros(1, 4))
    ['0', '2']
    """
    met = []
    try:
        with evaluating(model), hooked(model, {name: partial(_note, met, name) for name in names}, before=True):
            inputs.call(model, image)
    except Exception as error:  # a reader's own network fails in errors of many kinds
        raise ValueError(
            f"the network cannot take calibration images of shape {inputs.in_words(image)}: {error}"
        ) from error
    return met


def _note(met, name, module, args, kwargs):
    met.append(name)


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
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_SUMS = (operator.add, operator.iadd, operator.sub, torch.add, torch.sub, "add", "add_", "sub", "sub_")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_JOINS = (torch.cat, torch.concat, torch.stack)


@dataclass(frozen=True)
class HiddenLayer:
    """A hidden layer whose units can go: layer `name` of `units` outputs, read by layer `reader` alone.

    Both are linear layers or convolutions; a unit of a convolution is an output channel. ``span``: columns of the
    reader's weight matrix (outputs x the rest) that read one unit: 1 between linear layers, kh kw for a convolution,
    the positions of a channel after a flatten. ``along``: the batch norms and depthwise convolutions between, which
    lose the same units; ``absorber``: the batch norm right behind a convolution that reads, or "". ``beside``: the linear
    layers whose outputs meet those of `name` unit by unit, as in a gated feed-forward layer. ``folds``: whether a bias of
    the reader may take the mean of what goes. ``reason`` says why no unit of it can be removed, and is empty where they
    can; where it stands, ``reader`` is "".
    """

    name: str
    reader: str
    units: int
    reason: str = ""
    span: int = 1
    along: tuple[str, ...] = ()
    absorber: str = ""
    beside: tuple[str, ...] = ()
    folds: bool = True


def hidden_layers(model: nn.Module) -> list[HiddenLayer]:
    """Return a list of `HiddenLayer`, one for every linear layer and Conv2d of `model`, in the order of the forward pass.

    The forward pass is traced with ``torch.fx``. Between a layer and its one reader there may be element-wise functions
    (activations, dropout) and batch norms; behind a convolution also what treats each channel alone (pooling, padding,
    resizing, depthwise convolutions) and one flatten. Channels that meet others in a residual sum or a concatenation
    stay: in a ResNet only the inner channels of a block can go. Raises ValueError where the network cannot be traced.

    >>> [(h.name, h.reader, h.units) for h in hidden_layers(nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2)))]
    [('0', '2', 5), ('2', '', 2)]
    >>> hidden_layers(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2)))[0]
    HiddenLayer(name='0', reader='3', units=4, reason='', span=9, along=('1',), absorber='', beside=(), folds=True)
    """
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # fx passes on whatever the traced code raises
        raise ValueError(
            f"the network cannot be traced by torch.fx, so its hidden units are not known: {error}"
        ) from error
    modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
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
        if type(module) not in (nn.Linear, nn.Conv2d, *NORMS):
            return f"{it} is of type {type(module).__name__}, which may compute something else"
        return ""

    found = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], (nn.Linear, nn.Conv2d)):
            continue
        reader: Any = None
        layer, along, span, absorber = modules[node.target], (), 1, ""
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
        if reason or reader is None:
            found.append(HiddenLayer(node.target, "", units, reason))
            continue
        behind = _users(reader)
        if isinstance(modules[reader.target], nn.Conv2d) and len(behind) == 1 and behind[0].op == "call_module":
            norm = behind[0].target
            absorber = norm if type(modules[norm]) is nn.BatchNorm2d and not fault(norm) else ""
        span = modules[reader.target].weight[0].numel() // units
        found.append(HiddenLayer(node.target, reader.target, units, "", span, along, absorber))
    return found


def _kind(module):
    return "batch norm" if isinstance(module, NORMS) else "depthwise convolution"


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
        elif not (alone and (_elementwise(user, module) or (form == "channels" and _channelwise(user, module)))):
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
