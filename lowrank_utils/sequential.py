"""Factors found in one sweep from input to output, each layer repairing what those before it lost.

`sweep` needs a plan, calibration images and no training. At each layer, X are its inputs in the network as compressed so
far, T its outputs in the original network; the layer becomes the best one of its rank from X to T.
"""

import logging
from numbers import Integral

import torch
from torch import fx, nn
from torch.nn import functional as F

from .factors import Factors
from .models import evaluating, linear, replaced

log = logging.getLogger(__name__)


class _Reached(Exception):
    """Ends a forward pass at the layer that was wanted."""


def reduced_rank(covariance, cross, rank=None, ridge=1e-6, metric=None, start=None):
    """Return (left, right) of the rank-r matrix W that minimises E|t - W x|^2, or (None, W) for `rank` None.

    With a `metric` M (o x o, positive definite) it minimises E (t - W x)^T M (t - W x): the same for M^(1/2) t, and back.

    With C the covariance of x (d x d), B the cross covariance of t and x (o x d), W* = W_0 + (B - W_0 C)(C + ridge)^-1 and U_r the
    top r eigenvectors of W* C W*^T, the answer is U_r U_r^T W*: left = U_r (o x r), right = U_r^T W* (r x d). The ridge is a share
    of the mean variance; with it a singular C is normal input, and in directions that x never takes W* is `start` W_0 (default: zero).

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
    back = None
    if metric is not None:
        values, vectors = torch.linalg.eigh(metric)
        root = values.clamp(min=1e-12 * values[-1]).sqrt()
        best, back = (vectors * root) @ (vectors.T @ best), (vectors / root) @ vectors.T
    outputs = best @ damped @ best.T
    vectors = torch.linalg.eigh((outputs + outputs.T) / 2)[1].flip(1)[:, :rank]
    return (vectors if back is None else back @ vectors), vectors.T @ best


def fisher(model, names, images, batch_size=500):
    """Return ``{layer: matrix}`` (d_out x d_out, float64): how much the network's answer feels errors in a layer's outputs.

    The Fisher information of the predicted distribution with respect to the layer's outputs t, E_x E_{y ~ p(y|x)} [g g^T] with
    g = d log p(y|x) / dt: a small error e changes the distribution by e^T F e / 2 (Kullback-Leibler divergence, to
    second order). No labels are used. One backward pass for each class and batch; the model runs in eval mode.

    Source: Amari 1998; as a metric for layers, Martens & Grosse 2015.

    >>> layer = nn.Linear(3, 2)
    >>> found = fisher(nn.Sequential(layer), ["0"], torch.zeros(1, 3))["0"]  # p (1 - p) times [[1, -1], [-1, 1]]
    >>> p = layer.bias.softmax(0)[0].item()
    >>> bool(torch.allclose(found, p * (1 - p) * torch.tensor([[1.0, -1], [-1, 1]]).double(), atol=1e-6))
    True
    """
    caught, hooks = {}, []
    for name in names:
        layer = model.get_submodule(name)
        hooks.append(layer.register_forward_hook(lambda module, inputs, out, name=name: caught.__setitem__(name, out)))
    first = next(model.parameters())
    found = {name: 0.0 for name in names}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
            for batch in images.split(batch_size):
                logs = model(batch.to(first.device, first.dtype)).log_softmax(1)
                for k in range(logs.shape[1]):
                    slopes = torch.autograd.grad(logs[:, k].sum(), [caught[name] for name in names], retain_graph=True)
                    share = logs[:, k].detach().double().exp()
                    for name, slope in zip(names, slopes):
                        rows = slope.flatten(0, -2).double()
                        weight = share.repeat_interleave(len(rows) // len(share))
                        found[name] = found[name] + rows.T @ (weight[:, None] * rows)
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
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # fx passes on whatever the traced code raises
        log.warning("the network cannot be traced by torch.fx, so no layer counts as followed by a ReLU: %s", error)
        return set()
    modules, found = dict(model.named_modules()), set()
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], nn.Linear) and len(node.users) == 1:
            (user,) = node.users
            module = user.op == "call_module" and isinstance(modules[user.target], nn.ReLU)
            function = user.op == "call_function" and user.target in (torch.relu, F.relu)
            if module or function or (user.op == "call_method" and user.target in ("relu", "relu_")):
                found.add(node.target)
    return found


def _order(model, names, image):
    # the planned layers as a forward pass meets them
    met = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda module, inputs, name=name: met.append(name))
        for name in names
    ]
    try:
        with evaluating(model):
            model(image)
    except RuntimeError as error:
        raise ValueError(f"the network cannot take calibration images of shape {tuple(image.shape[1:])}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    twice = sorted({name for name in met if met.count(name) > 1})
    if twice:
        raise ValueError(f"layer {twice[0]!r} is used {met.count(twice[0])} times in one pass; sequential factors need one use")
    return met


def _inputs(model, name, batch):
    # what the named layer sees of a batch, as rows in float64; the rest of the network is not run
    caught = []

    def catch(module, inputs):
        caught.append(inputs[0])
        raise _Reached

    hook = model.get_submodule(name).register_forward_pre_hook(catch)
    try:
        model(batch)
    except _Reached:
        pass
    finally:
        hook.remove()
    return caught[0].reshape(-1, caught[0].shape[-1]).double()


class _Cross:
    """Means, covariance of x and cross covariance of t and x of rows that arrive in batches (float64)."""

    def __init__(self, columns, rows, device):
        self.count = 0
        self.x, self.t = (torch.zeros(n, dtype=torch.float64, device=device) for n in (columns, rows))
        self.xx = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        self.tx = torch.zeros(rows, columns, dtype=torch.float64, device=device)

    def update(self, x, t, covariance=True):
        if not (torch.isfinite(x).all() and torch.isfinite(t).all()):
            raise ValueError("the calibration data make NaN or infinite activations; check images and weights")
        total = self.count + len(x)
        x_mean, t_mean = x.mean(0), t.mean(0)
        dx, dt = x_mean - self.x, t_mean - self.t
        weight = self.count * len(x) / total
        centred = x - x_mean
        if covariance:
            self.xx += centred.T @ centred + weight * torch.outer(dx, dx)
        self.tx += (t - t_mean).T @ centred + weight * torch.outer(dt, dx)
        self.x += dx * (len(x) / total)
        self.t += dt * (len(x) / total)
        self.count = total


def sweep(model, plan, calibration, relu=False, refit=True, within=None, weighted=False, iterations=10, batch_size=1000):
    """Return a new model with the planned layers replaced by thin ones, found layer after layer on calibration images.

    Each planned layer becomes the rank-r answer to min E|T - W X - b|^2 (`reduced_rank`), X its inputs in the network as
    compressed so far, T its outputs in the original one. ``relu=True``: where a ReLU follows, only max(., 0) matters, so the
    target is T where it is positive and min(current, 0) elsewhere; the problem is solved again `iterations` times with
    momentum (a majorise-minimise scheme; each step lowers the error after the ReLU but for the momentum). ``refit=True``: linear layers
    that stay dense get the full-rank answer, which costs no parameters. ``within``: {layer: orthonormal columns, d_out x rank} holds
    the outputs of a layer in a subspace that was chosen elsewhere, and only refits the rest. ``weighted=True``: errors count as much as the network's
    answer feels them, in the metric 0.7 F / mean(diag F) + 0.3 I with F of `fisher`; with ``relu=True`` the iteration is then a heuristic.

    Memory does not depend on the number of images: each pass keeps one d_in x d_in and one d_out x d_in matrix.
    The model runs in eval mode. Parameters: `plan`, ``{layer: rank}`` of linear layers; `calibration`, network inputs (N first).
    Raises ValueError for layers that are not there or not linear, ranks outside 1..full rank, layers that are used more than once
    in one pass, and calibration data that are no images of this network.

    >>> model = nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> [type(layer).__name__ for layer in sweep(model, {"0": 2}, torch.randn(50, 9))]
    ['Sequential', 'ReLU', 'Linear']
    """
    if not torch.is_tensor(calibration) or calibration.ndim < 2 or len(calibration) == 0:
        raise ValueError("calibration must be a tensor of at least one input, with the images along its first axis")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations={iterations!r} is not a whole number of at least 1")
    modules = dict(model.named_modules())
    for name, rank in plan.items():
        if not isinstance(modules.get(name), nn.Linear):
            what = "is not in the model" if name not in modules else f"of type {type(modules[name]).__name__} is not linear"
            raise ValueError(f"layer {name!r} {what}; sequential factors need linear layers")
        full = min(modules[name].weight.shape)
        if isinstance(rank, bool) or not isinstance(rank, Integral) or not 1 <= rank <= full:
            raise ValueError(f"rank {rank!r} of layer {name!r} is not a whole number from 1 to {full}")
    for name, subspace in (within or {}).items():
        fits = name in plan and subspace.shape == (modules[name].out_features, plan[name])
        if not fits or not torch.allclose(subspace.T @ subspace, torch.eye(plan[name]).to(subspace), atol=1e-4):
            raise ValueError(f"within= of layer {name!r} is not d_out x rank with orthonormal columns")
    first = next(model.parameters())
    wanted = [name for name, module in modules.items() if name in plan or (refit and isinstance(module, nn.Linear))]
    relus = before_relu(model) if relu else set()
    order = _order(model, wanted, calibration[:1].to(first.device, first.dtype))
    unmet = [name for name in plan if name not in order]
    if unmet:
        raise ValueError(f"no input reaches layer {unmet[0]!r} in a forward pass")
    metrics = {}
    if weighted and plan:
        for name, found in fisher(model, list(plan), calibration).items():
            scale = found.diagonal().mean()
            metrics[name] = (0.7 / scale if scale else 0.0) * found + 0.3 * torch.eye(len(found)).to(found)
    small = replaced(model, {})
    changed = False
    for name in order:
        if name not in plan and not changed:
            continue  # nothing was lost yet
        layer = model.get_submodule(name)
        steps = iterations if name in relus else 1
        held = (within or {}).get(name), metrics.get(name)
        thin = _answer(model, small, name, layer, plan.get(name), held, calibration, steps, batch_size)
        small = replaced(small, {name: thin})
        changed = True
    return small


def _answer(model, small, name, layer, rank, held, images, iterations, batch_size):
    weight, bias = layer.weight.detach().double(), 0.0 if layer.bias is None else layer.bias.detach().double()
    rows, columns = weight.shape
    found, before, xx = None, None, None
    for step in range(iterations):
        seen = _Cross(columns, rows, weight.device)
        with evaluating(model), evaluating(small):
            for batch in images.split(batch_size):
                if not torch.isfinite(batch).all():
                    raise ValueError("the calibration images hold NaN or infinite values")
                batch = batch.to(layer.weight.device, layer.weight.dtype)
                x = _inputs(small, name, batch)
                t = _inputs(model, name, batch) @ weight.T + bias
                if found is not None:
                    current = x @ found[0].T + found[1]
                    if before is not None:  # momentum, Nesterov 1983
                        current = current + step / (step + 3) * (current - x @ before[0].T - before[1])
                    t = torch.where(t > 0, t, current.clamp(max=0))
                seen.update(x, t, covariance=xx is None)
        xx = seen.xx / seen.count if xx is None else xx
        left, right = _fit(layer, xx, seen, rank, *held)
        whole = right if left is None else left @ right
        shift = seen.t - whole @ seen.x if layer.bias is not None else torch.zeros(rows).to(weight)
        before, found = found, (whole, shift)
    shift = None if layer.bias is None else shift
    if left is not None:
        return Factors(left, right, shift, dtype=layer.weight.dtype).layers(rank)
    return linear(whole, shift, layer)


def _fit(layer, xx, seen, rank, subspace, metric):
    cross = seen.tx / seen.count
    if layer.bias is None:  # nothing takes the means: second moments instead
        xx, cross = xx + torch.outer(seen.x, seen.x), cross + torch.outer(seen.t, seen.x)
    if subspace is None:
        return reduced_rank(xx, cross, rank, metric=metric, start=layer.weight.detach().to(xx))
    left = subspace.to(xx)
    return left, left.T @ reduced_rank(xx, cross, start=layer.weight.detach().to(xx))[1]
