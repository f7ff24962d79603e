"""Factors found in one sweep from input to output, each layer repairing what those before it lost.

`sweep` needs a plan, calibration images and no training. At each layer, X are its inputs in the network as compressed
so far, T its outputs in the original network; the layer becomes the best one of its rank from X to T. Where the output
is added to a shortcut, T is what the sum was, less what the shortcut now gives: the error so far is repaired along.
"""

import copy
import logging
import math
import operator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from . import schemes
from .models import check_there, evaluating, replaced

log = logging.getLogger(__name__)


def reduced_rank(covariance, cross, rank=None, ridge=1e-6, metric=None, start=None):
    """Return (left, right) of the rank-r matrix W that minimises E|t - W x|^2, or (None, W) for `rank` None.

    With a `metric` M (o x o, positive definite) it minimises E (t - W x)^T M (t - W x): the same for M^(1/2) t, and
    back.

    With C the covariance of x (d x d), B the cross covariance of t and x (o x d), W* = W_0 + (B - W_0 C)(C + ridge)^-1
    and U_r the top r eigenvectors of W* (C + ridge) W*^T, the answer is U_r U_r^T W*: left = U_r (o x r), right = U_r^T
    W* (r x d). The ridge is a share of the mean variance; with it a singular C is normal input, and in directions that
    x never takes W* is `start` W_0 (default: zero).

    Source: reduced-rank regression, Izenman 1975.

    >>> c, b = torch.eye(3, dtype=torch.float64), torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    >>> left, right = reduced_rank(c, b, 2, ridge=0)
    >>> (left @ right).diagonal().tolist()
    [3.0, 2.0, 0.0]
    """
    scale = covariance.diagonal().mean()
    damped = covariance + (ridge * scale if scale else 1.0) * torch.eye(len(covariance)).to(covariance)
    start = torch.zeros_like(cross) if start is None else start
    best = start + torch.linalg.solve(damped, (cross - start @ covariance).T).T
    if rank is None:
        return None, best
    return schemes.low_rank(best, damped, 1, rank, metric)


def fisher(model, names, images, draws=10, seed=0, batch_size=50):
    """Return ``{layer: matrix}`` (d_out x d_out, float64): how much the network's answer feels errors in a layer's outputs.

    The Fisher information of the predicted distribution with respect to the layer's outputs t, E_x E_{y ~ p(y|x)} [g
    g^T] with g = d log p(y|x) / dt, summed over the positions of a convolution: a small error e changes the
    distribution by e^T F e / 2 (Kullback-Leibler divergence, to second order). No labels are used. Exact for up to
    `draws` classes, by one backward pass for each class and batch; beyond, `draws` classes are drawn from p(y|x) for
    each image (`seed`). The model runs in eval mode.

    Raises ValueError for layers that are not there or not used exactly once in a pass, no images or images that the
    network cannot take, and NaN. Source: Amari 1998; as a metric for layers,
    Martens & Grosse 2015.

    >>> layer = nn.Linear(3, 2)
    >>> found = fisher(nn.Sequential(layer), ["0"], torch.zeros(1, 3))["0"]  # p (1 - p) times [[1, -1], [-1, 1]]
    >>> p = layer.bias.softmax(0)[0].item()
    >>> bool(torch.allclose(found, p * (1 - p) * torch.tensor([[1.0, -1], [-1, 1]]).double(), atol=1e-6))
    True
    """
    check_there(model)
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise ValueError(f"there is no layer {name!r} in this network")
    if not torch.is_tensor(images) or len(images) == 0:
        raise ValueError("the Fisher information needs at least one image, the images along the first axis of a tensor")
    first = next(model.parameters(), None)
    if first is None:
        raise ValueError("this network has no parameters, so there is no Fisher information of its layers")
    caught, calls, hooks = {}, {}, []

    def catch(name):
        def hook(module, inputs, out):
            calls[name] += 1
            # a frozen network has no gradients of its own to follow
            caught[name] = out if out.requires_grad else out.requires_grad_()
            return caught[name] + 0  # a ReLU in place must not overwrite it

        return hook

    for name in names:
        hooks.append(modules[name].register_forward_hook(catch(name)))
    found = {name: 0.0 for name in names}
    modes = [(module, module.training) for module in model.modules()]
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    try:
        with torch.enable_grad():
            for batch in images.split(batch_size):
                calls.update(dict.fromkeys(names, 0))
                try:
                    answers = model(batch.to(first.device, first.dtype, copy=True))
                except Exception as error:  # a reader's own network fails in errors of many kinds
                    raise ValueError(f"the network cannot take images of shape {tuple(batch.shape[1:])}: {error}") from error
                if not torch.is_tensor(answers) or answers.ndim != 2:
                    raise ValueError("the Fisher information needs a network whose answers are N x classes")
                for name in names:
                    if calls[name] != 1:
                        raise ValueError(
                            f"layer {name!r} is used {calls[name]} times in one pass; the Fisher information needs one use"
                        )
                logs = answers.log_softmax(1)
                if not torch.isfinite(logs).all():
                    raise ValueError(
                        "the network's outputs on these images are NaN or infinite; check its weights and the images"
                    )
                shares = logs.detach().double().exp()
                if logs.shape[1] <= draws:
                    rounds = [(logs[:, k].sum(), shares[:, k]) for k in range(logs.shape[1])]
                else:
                    drawn = torch.multinomial(shares.cpu(), draws, replacement=True, generator=generator).to(
                        logs.device
                    )
                    rounds = [
                        (logs.gather(1, drawn[:, [k]]).sum(), torch.full_like(shares[:, 0], 1 / draws))
                        for k in range(draws)
                    ]
                for total, share in rounds:
                    outputs = [caught[name] for name in names]  # one that the answer does not need has slope zero
                    slopes = torch.autograd.grad(
                        total, outputs, retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                    for name, slope in zip(names, slopes):
                        rows = _rows(modules[name], slope)[0]
                        weight = share.repeat_interleave(len(rows) // len(share)).to(rows)
                        found[name] = found[name] + (rows.T @ (weight[:, None] * rows)).double()
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return {name: value / len(images) for name, value in found.items()}


def before_relu(model):
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
        if node.op == "call_module" and isinstance(modules[node.target], nn.Linear) and len(node.users) == 1:
            if _is_relu(*node.users, modules):
                found.add(node.target)
    return found


@dataclass(frozen=True)
class Followed:
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


def owners(model):
    """Return ``{id of a parameter: names of the layers that hold it}``; a shared one has several."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for value in module._parameters.values():
            if value is not None:
                found.setdefault(id(value), []).append(name)
    return found


def _weighty(model):
    return [name for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Conv2d)]


def _graph(model, wanted):
    try:
        if isinstance(model, (nn.Linear, nn.Conv2d)):
            return None  # one layer: nothing to trace
        with evaluating(model):  # tracing writes down what the model does in its present mode
            return _Tracer(wanted).trace(model)
    except Exception as error:  # fx passes on whatever the traced code raises
        log.warning(
            "this network cannot be traced by torch.fx, so shortcuts, batch norms and ReLUs are not seen: each layer has its own outputs as target (%s)",
            error,
        )
        return None


def followed_by(model, graph=None, images=None):
    """Return ``{layer: Followed}`` of the linear layers and convolutions of `model`, by ``torch.fx``; {} where it cannot be traced.

    With `images` (two are enough) shapes are checked: a sum of tensors of different shapes is no shortcut, and a batch
    norm only counts where its channels are the layer's outputs (not for tokens, N x T x C).

    >>> followed_by(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()))["0"]
    Followed(norm='1', other=None, relu=True)
    """
    graph = _graph(model, _weighty(model)) if graph is None else graph
    if graph is None:
        return {}
    modules, shapes = dict(model.named_modules()), _shapes(model, graph, images)
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    found = {}
    for node in graph.nodes:
        if node.op != "call_module" or type(modules[node.target]) not in (nn.Linear, nn.Conv2d):
            continue
        norm, other, at = None, None, node
        user, own = _only(at), shapes.get(node)
        has_norm = user is not None and user.op == "call_module" and _is_norm(modules[user.target])
        axes = 4 if type(modules[node.target]) is nn.Conv2d else 2
        fits = has_norm and modules[user.target].num_features == len(modules[node.target].weight)
        if fits and (own is None or len(own) == axes) and calls.count(user.target) == 1:
            norm, at = user.target, user
            user = _only(at)
        if user is not None and _is_sum(user):
            rest = [arg for arg in user.args if arg is not at]
            if len(rest) == 1 and isinstance(rest[0], fx.Node) and shapes.get(rest[0]) == own:
                other, at = rest[0], user
        users = list(at.users)
        relu = bool(users) and (
            all(_is_relu(u, modules) for u in users) or _is_relu(users[0], modules) and _inplace(users[0], modules)
        )
        found[node.target] = Followed(norm, other, relu)
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
        runs.run(images[:2].to(first.device, first.dtype, copy=True))
    return runs.found


def _only(node):
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


def into_norm(norm, layer):
    """Return a copy of the batch norm `norm` that takes over the bias of `layer`, the one that it follows; `layer` is left without.

    The running mean goes down by the bias, so that outputs stay as they are in eval mode (and training would have
    cancelled it).
    """
    norm = copy.deepcopy(norm).eval()
    with torch.no_grad():
        norm.running_mean -= layer.bias.to(norm.running_mean)
    layer.bias = None
    return norm


def met_in_a_pass(model, names, image):
    """Return the named layers in the order in which a forward pass of `image` (N first) meets them, each time it does.

    Raises ValueError for an image that the network cannot take.

    >>> met_in_a_pass(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), ["2", "0"], torch.zeros(1, 4))
    ['0', '2']
    """
    met = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda module, inputs, name=name: met.append(name))
        for name in names
    ]
    try:
        with evaluating(model):
            model(image)
    except Exception as error:  # a reader's own network fails in errors of many kinds
        raise ValueError(
            f"the network cannot take calibration images of shape {tuple(image.shape[1:])}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return met


def _order(model, names, plan, image):
    # the named layers as a forward pass meets them; one that is met twice cannot be planned, and is not refitted
    met = met_in_a_pass(model, names, image)
    twice = [name for name in plan if met.count(name) > 1]
    if twice:
        raise ValueError(
            f"layer {twice[0]!r} is used {met.count(twice[0])} times in one pass; sequential factors need one use"
        )
    return [name for name in met if met.count(name) == 1]


class _Reached(Exception):
    """Ends a forward pass at the layer that was wanted."""


class _Interpreter(fx.Interpreter):
    # runs nodes one at a time, with some modules in place of others
    def __init__(self, module, instead):
        super().__init__(module)
        self.instead = instead

    def call_module(self, target, args, kwargs):
        if target in self.instead:
            return self.instead[target](*args, **kwargs)
        return super().call_module(target, args, kwargs)


class _Walk:
    """The original network and the one compressed so far, side by side over the calibration images, from layer to layer.

    A traced network goes on from where it stood: what is alive there is kept for as many batches as `memory` bytes
    hold at any time, and computed again from the images for the others. A network that cannot be traced is run from the start each
    time.
    """

    def __init__(self, model, graph, instead, images, batch_size, memory):
        self.model, self.instead, self.memory = model, instead, memory
        first = next(model.parameters())
        self.device, self.dtype = first.device, first.dtype
        self.batches = images.split(batch_size)
        self.graph = graph
        if graph is not None:
            self.nodes = [node for node in graph.nodes if node.op != "output"]
            self.place = {node: i for i, node in enumerate(self.nodes)}
            self.layer = {node.target: node for node in self.nodes if node.op == "call_module"}
            module = fx.GraphModule(model, graph)
            self.runs = _Interpreter(module, {}), _Interpreter(module, instead)
            last = {source: self.place[node] for node in self.nodes for source in node.all_input_nodes}
            self.dies = {}
            for node, at in last.items():
                self.dies.setdefault(at, []).append(node)
            self.kept = {}

    def _batch(self, index):
        batch = self.batches[index]
        if not torch.isfinite(batch).all():
            raise ValueError("the calibration images hold NaN or infinite values")
        return batch.to(self.device, self.dtype)

    def _start(self, index):
        batch = self._batch(index)
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        given = {node: node.args[0] if node.args else None for node in inputs}
        # copies, for networks that write into their input
        return 0, *({**given, inputs[0]: batch.clone()} for _ in self.runs)

    def _advance(self, state, upto):
        at, *both = state
        for i in range(at, upto):
            node = self.nodes[i]
            for run, env in zip(self.runs, both):
                if node.op != "placeholder":
                    run.env = env
                    env[node] = run.run_node(node)
                for dead in self.dies.get(i, ()):
                    env.pop(dead, None)
        return upto, *both

    def _value(self, run, env, node):
        # of a node that may stand later than where the walk is; nothing is kept of it
        needed, ahead = set(), [node]
        while ahead:
            some = ahead.pop()
            if some not in env and some not in needed:
                needed.add(some)
                ahead += some.all_input_nodes
        live = {source for some in needed for source in some.all_input_nodes if source in env}
        run.env = {**env, **{source: _copied(env[source]) for source in live}}  # operations in place must not reach these
        for some in sorted(needed, key=self.place.get):
            run.env[some] = run.run_node(some)
        return run.env[node]

    def at(self, name, other=None):
        """Yield, batch by batch, (inputs now, inputs in the original, what `other` lost or None) of the named layer."""
        for index in range(len(self.batches)):
            if self.graph is None:
                batch = self._batch(index)
                yield _inputs(self.model, self.instead, name, batch), _inputs(self.model, {}, name, batch), None
                continue
            node = self.layer[name]
            state = self.kept.pop(index)[1] if index in self.kept else self._start(index)
            state = self._advance(state, self.place[node])
            _, original, now = state
            lost = None
            if other is not None:
                other_now = self._value(self.runs[1], now, other)
                lost = self._value(self.runs[0], original, other) - other_now, other_now
            source = schemes.given(node.args, node.kwargs)
            yield now[source], original[source], lost
            size = _held([list(env.values()) for env in state[1:]])
            if sum(kept for kept, _ in self.kept.values()) + size <= self.memory:
                self.kept[index] = size, state


def _held(value):
    # bytes that `value` keeps alive: parts of one tensor, such as those of chunk, share its memory
    stores = {}

    def note(part):
        if torch.is_tensor(part):
            stores[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()

    fx.node.map_aggregate(value, note)
    return sum(stores.values())


def _copied(value):
    return fx.node.map_aggregate(value, lambda part: part.clone() if torch.is_tensor(part) else part)


def _inputs(model, instead, name, batch):
    # what the named layer sees of a batch; the rest of the network is not run
    caught = []

    def catch(module, args, kwargs):
        caught.append(schemes.given(args, kwargs))
        raise _Reached

    def swap(new):
        return lambda module, args, kwargs, out: new(*args, **kwargs)

    hooks = [model.get_submodule(name).register_forward_pre_hook(catch, with_kwargs=True)]
    for other, new in instead.items():
        hooks.append(model.get_submodule(other).register_forward_hook(swap(new), with_kwargs=True))
    try:
        model(batch.clone())  # some networks write into their input
    except _Reached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if not caught:
        raise ValueError(f"some calibration images do not reach layer {name!r}; give it images that do, or leave it out")
    return caught[0]


RIDGE = 1e-6  # share of the mean variance, so that a singular covariance is normal input
FEW = 20  # samples for an input, under which the ridge is cross-validated


class _Cross:
    """Means, covariance of x and cross covariance of e and x of rows that arrive in batches, for each group (accumulated in float64)."""

    def __init__(self, groups, columns, rows, device):
        self.count = 0
        self.x = torch.zeros(groups, columns, dtype=torch.float64, device=device)
        self.e = torch.zeros(groups, rows, dtype=torch.float64, device=device)
        self.xx = torch.zeros(groups, columns, columns, dtype=torch.float64, device=device)
        self.ex = torch.zeros(groups, rows, columns, dtype=torch.float64, device=device)
        self.ee = torch.zeros(groups, dtype=torch.float64, device=device)

    def update(self, x, e, covariance=True):
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


def cross_validated_ridge(covariance, cross, energy, count):
    """Return the ridge, as a share of the mean variance, that predicts unseen samples best (generalised cross-validation).

    For the regression of errors e (o) on inputs x (d): `covariance` of x (d x d), `cross` covariance of e and x (o x d),
    `energy` E|e - mean|^2, all from `count` samples. Minimises RSS / (1 - dof / count)^2 over a grid from 1e-6 to 10,
    dof = 1 + sum of s / (s + ridge) over the eigenvalues s of C. With about as many samples as inputs plain least squares
    fits the noise, and is worse than with half of the samples ("double descent"); a ridge keeps the answer near
    the original weights instead. Where even the largest leaves as many degrees of freedom as samples, it is the
    largest. Source: Golub, Heath & Wahba 1979.

    >>> x, e = torch.randn(50, 40, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)  # nothing to be learnt
    >>> cross_validated_ridge(x.T @ x / 50, e.T @ x / 50, e.square().sum() / 50, 50) > 0.1
    True
    """
    scale = covariance.diagonal().mean()
    if not scale or not energy:
        return RIDGE
    values, vectors = torch.linalg.eigh(covariance)
    values, share = values.clamp(min=0), (cross @ vectors).square().sum(0)
    grid = torch.logspace(-6, 1, 29, dtype=torch.float64).tolist()
    best, found = torch.inf, grid[-1]
    for ridge in grid:
        damped = values + ridge * scale
        left = 1 - (1 + (values / damped).sum()) / count
        if left <= 0.02:
            continue  # as many degrees of freedom as samples
        unexplained = energy - (share * (values + 2 * ridge * scale) / damped.square()).sum()
        score = float(unexplained.clamp(min=0) / left.square())
        if score < best:
            best, found = score, ridge
    return found


def sweep(
    model,
    plan,
    calibration,
    relu=False,
    refit=True,
    within=None,
    weighted=False,
    iterations=None,
    ridge=None,
    batch_size=100,
    memory=2.5e8,
):
    """Return a new model with the planned layers replaced by thin ones, found layer after layer on calibration images.

    Each planned layer becomes the rank-r answer to min E|T - W X - b|^2 (`reduced_rank`; `schemes.low_rank` for a
    convolution), X its inputs (patches) in the network as compressed so far, T its outputs in the original one. Of a
    large feature map about 256 positions an image are taken, spread over all columns. Where a
    batch norm follows, errors count by its squared scale; where the result is added to a shortcut of the same shape, T
    is what the sum was less what the shortcut now gives. ``relu=True``: where a ReLU follows, only max(., 0) matters, so the target is
    T where it is positive and min(current, 0) elsewhere; the problem is solved again `iterations` times (10, or 3 in a
    network with convolutions) with momentum (a heuristic after the majorise-minimise scheme: most steps lower the error
    after the ReLU, not all do). ``refit=True``: layers that stay dense get the full-rank answer, which costs no parameters
    (not those that share a weight or are used more than once).
    ``within``: {layer: orthonormal columns, d_out x rank} holds the outputs of a linear layer in a subspace that was
    chosen elsewhere, and only refits the rest. ``weighted=True``: errors count as much as the network's answer feels
    them, in the metric 0.7 F / mean(diag F) + 0.3 I with F of `fisher`. `ridge`: share of the mean
    variance of X, as in `reduced_rank`; by default 1e-6, but where there are fewer than 20 samples for an input (linear
    layers have one an image) the one that `cross_validated_ridge` finds.

    Memory does not depend on the number of images: each pass keeps one matrix of d_in x d_in and one of d_out x d_in
    numbers, the activations of one batch at work, and those of other batches up to `memory` bytes; what does not fit is
    computed again from the images for each layer. The model runs in eval mode. Parameters: `plan`, ``{layer:
    rank}``, or ``(scheme, rank)``; `calibration`, network inputs (N first). A layer without bias keeps none: where a
    batch norm follows, its running mean takes the difference. Where torch.fx cannot trace the network, or does
    not see a layer, each layer has its own outputs as target, which a warning says. Raises ValueError for layers that
    are not there or cannot be factored, ranks outside 1..full rank, planned layers that share a weight, are used more
    than once in one pass or by some images only, a network without parameters or in half precision, and calibration
    data that are no images of this network.

    >>> model = nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> [type(layer).__name__ for layer in sweep(model, {"0": 2}, torch.randn(50, 9))]
    ['Sequential', 'ReLU', 'Linear']
    """
    check_there(model)
    if not torch.is_tensor(calibration) or calibration.ndim < 2 or len(calibration) == 0:
        raise ValueError("calibration must be a tensor of at least one input, with the images along its first axis")
    if iterations is None:
        iterations = 10 if all(isinstance(model.get_submodule(name), nn.Linear) for name in _weighty(model)) else 3
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations={iterations!r} is not a whole number of at least 1")
    modules = dict(model.named_modules())
    missing = [name for name in plan if name not in modules]
    if missing:
        raise ValueError(f"layer {missing[0]!r} is not in the model; sequential factors need layers of it")
    chosen = {name: schemes.planned(modules[name], name, entry) for name, entry in plan.items()}
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

    refitted = [name for name in _weighty(model) if refit and "weight" in modules[name]._parameters and alone(name)]
    wanted = [name for name in _weighty(model) if name in plan or name in refitted]
    order = _order(model, wanted, plan, calibration[:2].to(first.device, first.dtype, copy=True))
    tied = [name for name in plan if not alone(name)]
    if tied:
        raise ValueError(f"layer {tied[0]!r} shares its weight with another, so it cannot be factored alone")
    unmet = [name for name in plan if name not in order]
    if unmet:
        raise ValueError(f"no input reaches layer {unmet[0]!r} in a forward pass")
    graph = _graph(model, _weighty(model))
    after = followed_by(model, graph, calibration) if graph is not None else {}
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
        for name, found in fisher(model, list(plan), calibration).items():
            scale = found.diagonal().mean()
            metrics[name] = (0.7 / scale if scale else 0.0) * found + 0.3 * torch.eye(len(found)).to(found)
    thin = {}
    walk = _Walk(model, graph, thin, calibration, batch_size, memory)
    for name in order:
        if name not in plan and not thin:
            continue  # nothing was lost yet
        held = after.get(name, Followed())
        steps = iterations if relu and held.relu else 1
        new = _answer(
            model, walk, name, chosen.get(name), held, (within or {}).get(name), metrics.get(name), steps, ridge
        )
        layer = model.get_submodule(name)
        last = new.second if name in plan else new
        if layer.bias is None and last.bias is not None:
            thin[held.norm] = into_norm(model.get_submodule(held.norm), last)
        thin[name] = new.eval()
    return replaced(model, thin)


def _rows(layer, y, groups=1, every=1):
    # N x O x height x width, or N x ... x O of a linear layer -> groups x rows x O / groups
    wide = isinstance(layer, nn.Conv2d)
    rows = y.flatten(2)[:, :, ::every].transpose(1, 2).flatten(0, 1) if wide else y.reshape(-1, y.shape[-1])
    return rows.reshape(len(rows), groups, -1).transpose(0, 1)


def _step(high, wide):
    # a large image has many positions, and neighbours are alike: about 256 are enough, in all columns
    step = high * wide // 256 | 1
    while math.gcd(step, wide) > 1:
        step += 1
    return step


def _answer(model, walk, name, planned, held, subspace, metric, iterations, ridge):
    layer = model.get_submodule(name)
    count, size = schemes.groups(layer), layer.weight[0].numel()
    start = layer.weight.detach().double().reshape(count, -1, size)
    rows = start.shape[1]
    norm = model.get_submodule(held.norm) if held.norm else None
    gain, offset = torch.ones(count * rows).to(start), torch.zeros(count * rows).to(start)
    if norm is not None:
        gain = (norm.running_var.double() + norm.eps).rsqrt()
        gain = gain if norm.weight is None else gain * norm.weight.detach().double()
        offset = (0.0 if norm.bias is None else norm.bias.detach().double()) - gain * norm.running_mean.double()
    # a unit whose variance is hidden by eps is dead, and its gain of hundreds says nothing of the others
    alive = gain if norm is None else gain[norm.running_var > norm.eps]
    floor = 0.05 * alive.square().mean().sqrt()
    floor = floor if floor > 0 else torch.ones_like(floor)
    exact = isinstance(layer, nn.Linear)
    undo = gain / (gain.square() + floor.square()) if norm is not None else gain
    if norm is not None and metric is None:
        metric = torch.diag(gain.square() + floor.square())
    zero = torch.zeros(count * rows).to(start) if layer.bias is None else layer.bias.detach().double()
    found, before, xx, last, momentum = None, None, None, torch.inf, 0
    for step in range(iterations):
        error_now = 0.0
        seen = _Cross(count, size, rows, layer.weight.device)
        with evaluating(model):
            for x_now, x_then, lost in walk.at(name, held.other):
                at = 0
                for x, then in zip(*(v.split(schemes.images_at_once(layer, x_now)) for v in (x_now, x_then))):
                    here = slice(at, at + len(x))
                    at += len(x)
                    kind = torch.float64 if exact else x.dtype
                    y = layer(x)
                    every = 1 if exact else _step(*y.shape[-2:])
                    y, y_then = (_rows(layer, v, count, every).to(kind) for v in (y, layer(then)))
                    error = y_then - y  # of the original weights: what the answer must add
                    if lost is not None:
                        missing, other = (_rows(layer, v[here], count, every).to(kind) for v in lost)
                        error = error + missing * undo.reshape(count, 1, -1).to(kind)
                    seen_x = schemes.patches(layer, x, every).to(kind)
                    if found is not None:
                        g, h, u = (v.reshape(count, 1, -1).to(kind) for v in (gain, offset, undo))
                        other_now = other if lost is not None else 0.0
                        goal = g * (y + error) + h + other_now
                        current = seen_x @ found[0].mT.to(kind) + found[1][:, None].to(kind)
                        error_now += float(
                            (goal.clamp(min=0) - (g * current + h + other_now).clamp(min=0)).square().sum()
                        )
                        if before is not None:  # momentum, Nesterov 1983
                            past = seen_x @ before[0].mT.to(kind) + before[1][:, None].to(kind)
                            current = current + momentum / (momentum + 3) * (current - past)
                        current = g * current + h + other_now
                        error = error + (torch.where(goal > 0, goal, current.clamp(max=0)) - goal) * u
                    seen.update(seen_x, error, covariance=xx is None)
        if not (torch.isfinite(seen.ex).all() and torch.isfinite(seen.xx).all()):
            raise ValueError("the calibration data make NaN or infinite activations; check images and weights")
        if xx is None:
            xx = seen.xx / seen.count
            ridges = [ridge] * count
            if ridge is None:
                few = seen.count < FEW * size
                ridges = [
                    cross_validated_ridge(xx[g], seen.ex[g] / seen.count, seen.ee[g] / seen.count, seen.count)
                    if few
                    else RIDGE
                    for g in range(count)
                ]
        takes_mean = layer.bias is not None or norm is not None
        pairs = [
            _fit(
                layer,
                planned,
                xx[g],
                seen.ex[g] / seen.count,
                seen.x[g],
                seen.e[g],
                start[g],
                takes_mean,
                subspace,
                _block(metric, g, rows),
                ridges[g],
            )
            for g in range(count)
        ]
        whole = torch.stack([w for _, _, w in pairs])
        bias = None
        if takes_mean:  # mean target less mean output: zero-mean error
            shift = seen.e + ((start - whole) @ seen.x[:, :, None]).squeeze(2)
            bias = zero.reshape(count, -1) + shift
        # momentum begins anew where the last two steps lowered nothing (O'Donoghue & Candes 2015)
        momentum = 0 if step and error_now > last else momentum + 1
        last = error_now if step else torch.inf
        before, found = found, (whole, torch.zeros(count, rows).to(whole) if bias is None else bias)
    bias = None if bias is None else bias.flatten()
    if planned is None:
        return _dense(layer, whole, bias)
    left, right = (torch.stack(parts) for parts in zip(*((a, b) for a, b, _ in pairs)))
    return (
        schemes.thin(layer, planned[0], left, right, bias)
        if count > 1
        else schemes.thin(layer, planned[0], left[0], right[0], bias)
    )


def _block(metric, group, rows):
    return None if metric is None else metric[group * rows : (group + 1) * rows, group * rows : (group + 1) * rows]


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


def _fit(layer, planned, xx, ex, x, e, start, takes_mean, subspace, metric, ridge):
    # (left, right, whole matrix) of one group
    if not takes_mean:  # nothing takes the means: second moments instead
        xx, ex = xx + torch.outer(x, x), ex + torch.outer(e, x)
    best = (
        reduced_rank(xx, ex + start @ xx, None, ridge, start=start)[1]
        if planned is None or subspace is not None
        else None
    )
    if planned is None:
        return None, None, best
    scheme, rank = planned
    if subspace is not None:
        left = subspace.to(xx)
        right = left.T @ best if metric is None else torch.linalg.solve(left.T @ metric @ left, left.T @ metric @ best)
        return left, right, left @ right
    if schemes.shared(layer, scheme) == 1:
        left, right = reduced_rank(xx, ex + start @ xx, rank, ridge, metric, start)
        return left, right, left @ right
    best = reduced_rank(xx, ex + start @ xx, None, ridge, start=start)[1]
    place = schemes.in_order(layer, scheme).to(xx.device)
    scale = xx.diagonal().mean()
    damped = xx + (ridge * scale if scale else 1.0) * torch.eye(len(xx)).to(xx)
    left, right = schemes.low_rank(best[:, place], damped[place][:, place], schemes.shared(layer, scheme), rank, metric)
    whole = left.reshape(len(best), -1, rank) @ right
    back = torch.empty_like(place)
    back[place] = torch.arange(len(place), device=place.device)
    return left, right, whole.reshape(len(best), -1)[:, back]
