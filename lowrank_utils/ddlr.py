"""Data-driven low-rank layers (DDLR): the convex program, solved with a certificate, and Net-Trim beside it.

For a layer with inputs X (N x d_in, samples are rows; a bias is a column of ones that the caller appends) and
outputs Y (N x d_out), O = {Y > 0}:

    minimise ||U||_*  subject to  ||(X U - Y) on O||_F <= epsilon ||Y||_F  and  (X U) off O <= 0,

the lowest-rank weights, relaxed, that keep what the layer does on data. With ``relu=False`` (a last layer) the ball
holds over all entries and no sign is asked for. ``penalty="l1"`` puts the sum of absolute weights in place of the
nuclear norm: Net-Trim (Aghasi, Abdi, Nguyen & Romberg 2017).

Every answer is a point that truly satisfies the constraints together with a lower bound on what any weights can
reach, both in float64 whatever the iterations were computed in.
"""

import math
import time
from dataclasses import dataclass, field
from numbers import Integral, Real

import cvxpy
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

PENALTIES = ("nuclear", "l1")
RANK_TOLERANCE = 1e-6  # singular values (weights, for l1) below this share of the largest count as zero
FEASIBLE = 1e-9  # relative violation that float64 rounding explains
CHECK_EVERY = 20  # iterations between certificates
PATIENCE = 1.2  # times the iterations so far until the penalty may change again
PATIENT_CHECKS = 10  # certificates without a gap smaller by a tenth, after which something else is tried
MEMORY = 5  # steps that Anderson acceleration looks back
DAMPINGS = (1e-3, 1e-7, 1e-11)  # of the search for a first point, as shares of the largest eigenvalue of X^T X


class Infeasible(ValueError):
    """No weights were found that keep the outputs within epsilon.

    ``smallest`` is the smallest epsilon that was found to be feasible, by ``weights`` (d_in x d_out; zero weights have
    an error of 1), and ``bound`` one below which none is (0 where none was proved).
    """

    def __init__(self, message, smallest, bound=0.0, weights=None):
        super().__init__(message)
        self.smallest, self.bound, self.weights = smallest, bound, weights


@dataclass(frozen=True)
class Check:
    """How far weights are from the constraints of a layer, relative to its outputs.

    ``error`` = ||(X U - Y) on O||_F / ||Y||_F, to be at most ``epsilon``; ``sign`` = the largest positive entry of
    X U off O over the largest |Y|, to be 0 (always 0 for ``relu=False``).
    """

    error: float
    sign: float
    epsilon: float

    @property
    def violation(self):
        """The larger of error - epsilon and sign, 0 where both constraints hold."""
        return max(self.error - self.epsilon, self.sign, 0.0)

    @property
    def feasible(self):
        """Whether the violation is rounding: at most 1e-9."""
        return self.violation <= FEASIBLE


@dataclass(frozen=True)
class Solution:
    """Feasible weights and the proof of how good they are; every number describes the one point ``weights``.

    ``weights`` (d_in x d_out, float64); ``objective``, their nuclear or l1 norm; ``bound``, which no feasible weights
    can go below; ``violation`` as in `Check`; ``rank``, the singular values above 1e-6 of the largest;
    ``nonzeros``, the weights above 1e-6 of the largest; ``converged``, whether the relative gap reached the tolerance;
    ``history``, a DataFrame of the best objective and bound after ``iteration`` and ``seconds``; ``note``, what
    is particular about this answer, or empty.
    """

    weights: torch.Tensor
    objective: float
    bound: float
    violation: float
    rank: int
    nonzeros: int
    iterations: int
    converged: bool
    seconds: float
    history: pd.DataFrame = field(repr=False)
    penalty: str
    epsilon: float
    note: str = ""
    state: dict | None = field(default=None, repr=False)  # where a warm start goes on

    @property
    def gap(self):
        """The objective less the bound, at least 0: the optimum lies between the two."""
        return max(self.objective - self.bound, 0.0)

    @property
    def relative_gap(self):
        """The gap over the objective, from 0 to 1."""
        return self.gap / self.objective if self.objective else 0.0


@dataclass(frozen=True)
class Reference:
    """What CVXPY answers: ``weights`` (d_in x d_out, float64; None without an answer), ``objective``, ``status``."""

    weights: torch.Tensor | None
    objective: float
    seconds: float
    status: str
    solver: str


def check(weights, inputs, outputs, epsilon, relu=True):
    """Return the `Check` of any weights (d_in x d_out), computed in float64; asked again after every cut or refit.

    Parameters: `inputs` N x d_in, `outputs` N x d_out, `epsilon` the relative error allowed, at least 0, `relu` as in
    `solve`. Raises ValueError for shapes that do not fit, NaN, and an epsilon that is no number of at least 0.

    >>> found = check(torch.eye(2), torch.eye(2), 2 * torch.eye(2), epsilon=0.4)
    >>> round(found.error, 6), found.sign, round(found.violation, 6), found.feasible
    (0.5, 0.0, 0.1, False)
    """
    x, y = _data(inputs, outputs, relu)
    if isinstance(epsilon, bool) or not isinstance(epsilon, Real) or not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon={epsilon!r} is not a number of at least 0")
    u = _weights(weights, x, y, "weights")
    scale = _power(y)  # squares of very large or small numbers would overflow or vanish
    size = _power(u)
    reached, y = x @ (u / size) * (size / scale), y / scale
    active = y > 0 if relu else torch.ones_like(y, dtype=torch.bool)
    error = float((reached - y)[active].norm() / y.norm()) if y.any() else float(reached[active].norm() > 0)
    sign = max(float(reached[~active].max()), 0.0) if not active.all() else 0.0
    return Check(error, sign / (float(y.abs().max()) or 1.0), float(epsilon))


def reference(inputs, outputs, epsilon, relu=True, penalty="nuclear", solver="SCS", **options):
    """Return the `Reference` of the same program as `solve`, written in CVXPY and given to the named solver.

    Parameters as in `solve`; `options` go to the solver (``eps=1e-6`` for SCS). Its weights are feasible only to
    the solver's own tolerance. Raises ValueError for bad input as `solve`.

    >>> reference(torch.eye(2), 2 * torch.eye(2), epsilon=0.5, solver="CLARABEL").status
    'optimal'
    """
    x, y = (part.cpu().numpy() for part in _data(inputs, outputs, relu))
    _settings(epsilon, penalty)
    u = cvxpy.Variable((x.shape[1], y.shape[1]))
    norm = cvxpy.normNuc(u) if penalty == "nuclear" else cvxpy.sum(cvxpy.abs(u))
    reached = cvxpy.vec(x @ u, order="C")
    active = y.ravel() > 0 if relu else np.ones(y.size, dtype=bool)
    limits = []
    if active.any():
        limits.append(cvxpy.norm(reached[active] - y.ravel()[active]) <= epsilon * np.linalg.norm(y))
    if not active.all():
        limits.append(reached[~active] <= 0)
    problem = cvxpy.Problem(cvxpy.Minimize(norm), limits)
    start = time.perf_counter()
    problem.solve(solver=solver, **options)
    weights = None if u.value is None else torch.from_numpy(np.ascontiguousarray(u.value))
    return Reference(weights, float(problem.value), time.perf_counter() - start, problem.status, solver)


def solve(
    inputs,
    outputs,
    epsilon,
    relu=True,
    penalty="nuclear",
    original=None,
    *,
    tolerance=1e-3,
    max_iterations=5000,
    max_seconds=None,
    warm_start=None,
    dtype=torch.float64,
    device=None,
    progress=False,
):
    """Return the `Solution` of a layer: weights of the least norm that keep its outputs, and a bound that proves it.

    min ||U||_* (or the sum of |U|) such that ||(X U - Y) on O||_F <= epsilon ||Y||_F and (X U) off O <= 0, O = {Y > 0};
    for ``relu=False`` O is everything.

    Method: ADMM on U = Z, X U = V, in the eigenbasis of X^T X, with over-relaxation and Anderson acceleration; the
    penalty balances the errors of the upper and the lower bound. Upper bound: the iterate, each unit's bias lowered
    until no sign is wrong, then all of it scaled up until the ball is reached (along U the norm pays the least for
    that, to first order), or moved towards `original`. Lower bound, for any G that is not positive off O:
    max(0, (<G, Y>_O - epsilon ||Y||_F ||G on O||_F) / ||X^T G||), spectral norm (l1: largest entry).

    Parameters
    ----------
    inputs, outputs : N x d_in and N x d_out, numpy or torch; outputs are those after the ReLU if `relu`.
    epsilon : relative error allowed, above 0; from 1 on zero weights pass and are the answer.
    original : d_in x d_out, feasible weights (the layer's own). None: some are looked for.
    tolerance : relative certified gap, (objective - bound) / objective, at which to stop.
    max_iterations, max_seconds : budget; when it ends the best certified answer so far comes back, not converged.
    warm_start : an earlier `Solution` of the same layer, say at the next epsilon.
    dtype : of the iterations; float32 is faster, goes on in float64 where it stalls, and is certified all the same.
    device : torch device to compute on (default: where the inputs are). The answer comes back to the inputs' device.
    progress : show a bar.

    Raises ValueError for bad input, in one sentence, and `Infeasible`, one of them, for outputs that no weights were
    found to reach, or none in the time given; it tells the smallest epsilon found and a proved bound on it.

    Source: Gabay & Mercier 1976 (ADMM); Walker & Ni 2011 (Anderson acceleration); certificate by Lagrange duality.

    >>> found = solve(torch.eye(2), torch.diag(torch.tensor([3.0, 4.0])), epsilon=0.2, tolerance=1e-6)
    >>> round(found.objective, 3), found.converged  # 7 - sqrt(2) * 0.2 * 5
    (5.586, True)
    """
    start = time.perf_counter()
    x, y = _data(inputs, outputs, relu)
    epsilon = _settings(epsilon, penalty)
    for name, value, kind in (
        ("tolerance", tolerance, Real),
        ("max_iterations", max_iterations, Integral),
        ("max_seconds", math.inf if max_seconds is None else max_seconds, Real),
    ):
        if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
            raise ValueError(f"{name}={value!r} must be a {'whole ' if kind is Integral else ''}number above 0")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype {dtype} is not one of torch.float32 and torch.float64")
    home = x.device
    try:
        device = torch.device(device or home)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device={str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if warm_start is not None and not isinstance(warm_start, Solution):
        raise ValueError(f"warm_start is a {type(warm_start).__name__}, not an earlier Solution")
    given = None if original is None else _weights(original, x, y, "original")
    if warm_start is not None and warm_start.weights.shape != (x.shape[1], y.shape[1]):
        raise ValueError(
            f"warm_start has weights of shape {tuple(warm_start.weights.shape)}, "
            f"this layer {(x.shape[1], y.shape[1])}"
        )
    if given is not None:
        found = check(given, x, y, epsilon, relu)
        # outputs that were computed in float32 leave the weights that made them a little outside
        if found.violation > 1e-5:
            raise ValueError(
                f"original is not feasible: relative error {found.error:.3g} against epsilon {epsilon:.3g}, "
                f"sign violation {found.sign:.3g} of the largest output"
            )
    alive = (y != 0).any(0)
    note = ""
    if not alive.any():
        note = "no unit is active in these outputs: zero weights are the answer"
    elif epsilon >= 1:
        note = f"epsilon {epsilon:g} is at least 1, so that zero weights pass"
    if note:
        zero = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=home)
        rows = [{"iteration": 0, "seconds": time.perf_counter() - start, "objective": 0.0, "bound": 0.0}]
        history = pd.DataFrame(rows)
        spent = rows[0]["seconds"]
        return Solution(zero, 0.0, 0.0, 0.0, 0, 0, 0, True, spent, history, penalty, epsilon, note)

    # Powers of two take the scale out of both sides without rounding.
    scales = _power(x), _power(y)
    unit = scales[1] / scales[0]
    if not 1e-300 < unit < 1e300:
        raise ValueError(
            f"outputs up to {float(y.abs().max()):.3g} from inputs up to {float(x.abs().max()):.3g} need weights that "
            "float64 cannot hold; scale one of them"
        )
    if not x.any():
        raise Infeasible(
            f"the inputs are all zero, and so are the outputs of any weights: no epsilon below 1 is feasible, and "
            f"{epsilon:g} was asked for",
            1.0,
            1.0,
            torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=home),
        )

    def whole(u):
        # A unit that is never active gets zero weights: they satisfy its constraints, and no norm grows by it.
        weights = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=home)
        weights[:, alive] = problem.outside(u).to(home) * unit
        return weights

    problem = _Problem((x / scales[0]).to(device), (y[:, alive] / scales[1]).to(device), epsilon, relu, penalty)
    ends = math.inf if max_seconds is None else start + max_seconds
    try:
        anchor = problem.anchor(None if given is None else (given[:, alive] / unit).to(device), ends)
    except Infeasible as error:
        error.weights = whole(error.weights)
        raise
    state = None
    if warm_start is not None and warm_start.state is not None:
        same = (problem.size, y.shape[0], int(alive.sum()), penalty)
        state = _rescaled(warm_start.state, scales) if warm_start.state["fits"] == same else None
    best, bound, rows, iterations, converged, state = _iterate(
        problem, anchor, state, tolerance, max_iterations, max_seconds, dtype, progress, start
    )
    state["scales"] = scales
    history = pd.DataFrame(rows)
    history[["objective", "bound"]] *= unit
    weights = whole(best)
    spectrum = torch.linalg.svdvals(weights)
    objective = float(spectrum.sum() if penalty == "nuclear" else weights.abs().sum())
    bound = min(bound * unit, objective)
    if not converged:
        note = f"the budget ended after {iterations} iterations, at a relative gap of {1 - bound / objective:.2g}"
    return Solution(
        weights=weights,
        objective=objective,
        bound=bound,
        violation=check(weights, x, y, epsilon, relu).violation,
        rank=int((spectrum > RANK_TOLERANCE * spectrum[0]).sum()),
        nonzeros=int((weights.abs() > RANK_TOLERANCE * weights.abs().max()).sum()),
        iterations=iterations,
        converged=converged,
        seconds=time.perf_counter() - start,
        history=history,
        penalty=penalty,
        epsilon=epsilon,
        note=note,
        state=state,
    )


def _power(values):
    """The power of two below the largest entry, 1 where all are zero."""
    size = float(values.abs().max())
    return 2.0 ** math.floor(math.log2(size)) if size else 1.0


def _rescaled(state, scales):
    # a state in the units of these inputs and outputs
    inputs, outputs = state["scales"][0] / scales[0], state["scales"][1] / scales[1]
    return state | {
        "first": state["first"] * (outputs / inputs),
        "s": state["s"] * outputs,
        "rho": state["rho"] * inputs / outputs,
    }


def _matrix(values, name):
    try:
        found = torch.as_tensor(values).detach()
        if found.is_complex():
            raise TypeError("complex ones are not known here")
        found = found.to(torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a matrix of numbers: {error}") from error
    if found.ndim != 2 or 0 in found.shape:
        raise ValueError(f"{name} must be a matrix that is not empty, not of shape {tuple(found.shape)}")
    if not torch.isfinite(found).all():
        raise ValueError(f"{name} hold NaN or infinite values")
    return found


def _data(inputs, outputs, relu):
    if not isinstance(relu, (bool, np.bool_)):
        raise ValueError(f"relu={relu!r} is neither True nor False")
    x, y = _matrix(inputs, "inputs"), _matrix(outputs, "outputs").to(getattr(inputs, "device", "cpu"))
    if len(x) != len(y):
        raise ValueError(f"inputs hold {len(x)} samples and outputs {len(y)}; they must be as many")
    if relu and (y < 0).any():
        raise ValueError(
            f"outputs go down to {float(y.min()):.3g}, but after a ReLU none is negative; use relu=False"
        )
    return x, y


def _weights(values, x, y, name):
    u = _matrix(values, name).to(x.device)
    if u.shape != (x.shape[1], y.shape[1]):
        raise ValueError(
            f"{name} has shape {tuple(u.shape)}; this layer needs {(x.shape[1], y.shape[1])}"
        )
    return u


def _settings(epsilon, penalty):
    number = isinstance(epsilon, (int, float, np.floating, np.integer)) and not isinstance(epsilon, bool)
    if not number or not math.isfinite(epsilon) or epsilon <= 0:
        raise ValueError(f"epsilon={epsilon!r} is not a number above 0")
    if penalty not in PENALTIES:
        raise ValueError(f"unknown penalty {penalty!r}; known: {', '.join(PENALTIES)}")
    return float(epsilon)


class _Problem:
    """One layer in the coordinates that the iterations use, all float64.

    ``basis`` Q (d_in x k) spans the rows of X, ``turned`` F = X Q (N x k) has orthogonal columns of squared length
    ``squares`` (k). Weights are k x d_out (Q^T U, of the same nuclear norm) for the nuclear norm; l1 is not
    invariant, its weights stay d_in x d_out.
    """

    def __init__(self, x, y, epsilon, relu, penalty):
        self.x, self.y, self.epsilon, self.relu, self.nuclear = x, y, epsilon, relu, penalty == "nuclear"
        self.penalty = penalty
        self.active = y > 0 if relu else torch.ones_like(y, dtype=torch.bool)
        self.radius = epsilon * float(y.norm())
        if len(x) < x.shape[1]:  # few samples: the row space first, exactly orthogonal
            rows, triangle = torch.linalg.qr(x.T)
            core = triangle.T
        else:
            rows, core = None, x
        squares, vectors = torch.linalg.eigh(core.T @ core)
        vectors = vectors[:, squares > 1e-13 * squares[-1]].contiguous()
        self.basis = vectors if rows is None else rows @ vectors
        self.turned = core @ vectors
        self.squares = (self.turned**2).sum(0)
        self.size = len(self.squares) if self.nuclear else x.shape[1]
        self.operator = self.turned if self.nuclear else x
        self._find_lift()
        self._inward = None

    def _find_lift(self):
        """Find the direction that raises every sample's output: the bias, or what acts like one."""
        self.lift, self.height = None, None
        rows = self.x.abs().sum(1) > 0  # a sample of zeros has output 0 whatever the weights
        if not rows.any():
            return
        ones = torch.ones(len(self.x), dtype=torch.float64, device=self.x.device)
        lift = (self.turned.T @ ones) / (self.squares + 1e-12 * self.squares.max())
        if not self.nuclear:
            constant = (self.x == self.x[0]).all(0) & (self.x[0] != 0)
            lift = self.basis @ lift
            if constant.any():  # one weight a unit is the cheapest in l1
                at = int(constant.nonzero()[0])
                lift = torch.zeros_like(lift)
                lift[at] = 1 / self.x[0, at]
        height = self.operator @ lift
        if height[rows].min() > 1e-3 * height.max() > 0:
            self.lift, self.height = lift, torch.where(rows, height, torch.inf)

    @property
    def liftable(self):
        """Whether wrong signs can be mended by lowering biases (or there are none to mend)."""
        return self.lift is not None or not self.relu

    def inside(self, weights):
        return self.basis.T @ weights if self.nuclear else weights

    def outside(self, u):
        return self.basis @ u if self.nuclear else u

    def norm(self, u):
        return float(torch.linalg.svdvals(u).sum() if self.nuclear else u.abs().sum())

    def shrink(self, s, threshold):
        """The proximal map of the norm, and the norm of what it returns."""
        if self.nuclear:
            # By the smaller Gram matrix, in float64: half the time of an SVD, and what it blurs (1e-8 of the
            # largest singular value) is far below the threshold; where it is not, the SVD after all.
            wide = s.shape[0] < s.shape[1]
            tall = (s.T if wide else s).double()
            squares, vectors = torch.linalg.eigh(tall.T @ tall)
            values = squares.clamp(min=0).sqrt()
            if threshold > 1e-5 * float(values[-1]):
                kept = values > threshold
                values, vectors = values[kept], vectors[:, kept]
                keeper = ((vectors * (1 - threshold / values)) @ vectors.T).to(s.dtype)
                return keeper @ s if wide else s @ keeper, float((values - threshold).sum())
            u, values, vt = torch.linalg.svd(s, full_matrices=False)
            values = (values - threshold).clamp(min=0)
            return (u * values) @ vt, float(values.sum())
        z = torch.nn.functional.softshrink(s, threshold)
        return z, float(z.abs().sum())

    def error(self, reached):
        return torch.where(self.active, reached - self.y, 0)

    def lower(self, u, reached):
        """Lower each unit's bias by its worst positive output off O."""
        if self.lift is None or not self.relu:
            return u, reached
        margin = 1e-12 * self.y.max()
        worst = torch.where(self.active, -margin, reached / self.height[:, None]).amax(0) + margin
        worst = worst.clamp(min=0)
        u = u - torch.outer(self.lift, worst)
        return u, self.operator @ u

    def scale(self, u, reached):
        """Scale `u` up by the least factor that reaches the ball; None where no factor does."""
        inner = torch.where(self.active, reached, 0)
        error = self.error(reached)
        a, b = float((inner**2).sum()), float((inner * error).sum())
        c = float((error**2).sum()) - (self.radius * (1 - 1e-12)) ** 2
        if c <= 0:
            return u
        if b >= 0 or b * b < a * c:
            return None
        return u * (1 + c / (-b + math.sqrt(b * b - a * c)))

    def blend(self, u, reached, anchor, signs_only=False):
        """Step from `u` towards the feasible `anchor` until all constraints hold."""
        target = self.operator @ anchor
        over = torch.where(self.active, 0, reached).clamp(min=0)
        share = torch.where(over > 0, over / (over - target).clamp(min=1e-300), 0).max()
        share = float(share) * (1 + 1e-9)
        first, last = self.error(reached), self.error(target)
        if not signs_only and float(first.norm()) > self.radius * (1 - 1e-12):
            step = first - last
            a, b = float((step**2).sum()), float((step * last).sum())
            c = float((last**2).sum()) - (self.radius * (1 - 1e-12)) ** 2
            share = max(share, 1 - (-b + math.sqrt(max(b * b - a * c, 0.0))) / a)
        return u + min(share, 1.0) * (anchor - u)

    def holds(self, u):
        """Whether the constraints hold, signs exactly up to rounding."""
        reached = self.operator @ u
        sign = float(torch.where(self.active, 0, reached).max())
        return float(self.error(reached).norm()) <= self.radius and sign <= 1e-11 * float(
            self.y.abs().max()
        )

    def repair(self, u, anchor):
        """Return the best feasible point near `u` and its norm: lowered and scaled, or moved to the anchor."""
        u, reached = self.lower(u, self.operator @ u)
        signed = self.blend(u, reached, anchor, signs_only=True)
        scaled = self.scale(signed, self.operator @ signed)
        if scaled is None or not self.holds(scaled):
            scaled = self.blend(u, reached, anchor)
        return (self.norm(scaled), scaled) if self.holds(scaled) else (math.inf, None)

    def bound(self, multiplier):
        """The lower bound that `multiplier` (N x d_out, not positive off O) proves."""
        on = torch.where(self.active, multiplier, 0)
        value = float((on * self.y).sum()) - self.radius * float(on.norm())
        pulled = self.x.T @ multiplier
        size = float(torch.linalg.matrix_norm(pulled, 2) if self.nuclear else pulled.abs().max())
        if value <= 0 or size <= 0:
            return 0.0
        return value / size * (1 - 1e-12)  # rounding of the sums above

    def _descend(self, u, radius, margin, steps, damping=DAMPINGS[-1]):
        """Yield points ever nearer to the constraints, tightened: accelerated projection in the metric of X^T X.

        The more `damping`, the less moves where inputs are small, so that the first points found are of small norm.
        """
        solve = 1 / (self.squares + damping * self.squares.max())
        previous, momentum = u, 1.0
        for _ in range(steps):
            reached = self.operator @ u
            error = self.error(reached)
            share = max(1 - radius / max(float(error.norm()), 1e-300), 0.0)
            off = torch.where(self.active, 0, (reached + margin).clamp(min=0))
            step = solve[:, None] * (self.turned.T @ (share * error + off))
            new = u - (step if self.nuclear else self.basis @ step)
            yield new
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            u, previous = new + (momentum - 1) / following * (new - previous), new
            momentum = following

    def anchor(self, original, ends=math.inf):
        """Return feasible weights that leave room in every constraint where that is possible.

        `original`, or ridge regression; where that is not feasible, steps towards the constraints; where they lead
        nowhere, the least error that the signs allow (`closest`). Raises `Infeasible`, also where time `ends`.
        """
        zero = torch.zeros(self.size, self.y.shape[1], dtype=torch.float64, device=self.y.device)
        if original is not None:
            starts = [self.inside(original)]
        else:  # least squares where outputs are active
            starts = [next(self._descend(zero, 0.0, 0.0, 1, damping)) for damping in DAMPINGS]
        found = []
        for u in starts:
            u, _ = self.lower(u, self.operator @ u)
            if self.holds(u):
                found.append(self._with_room(u, ends))
        if found:
            return min(found, key=self.norm)
        if not self.relu:
            smallest = float(self.error(self.operator @ starts[-1]).norm() / self.y.norm())
            raise Infeasible(
                f"no weights reach these outputs within epsilon {self.epsilon:.4g}: "
                f"the smallest feasible epsilon is {smallest:.4g}",
                smallest,
                smallest * (1 - 1e-6),
                starts[-1],
            )
        for damping in DAMPINGS:  # no bias to lower, or none that helps
            for margin, steps in ((0.1, 100), (0.01, 200)):
                room = margin * self.epsilon * self._typical
                for count, u in enumerate(self._descend(starts[0], 0.9 * self.radius, room, steps, damping)):
                    if count % 20 == 19:
                        u, _ = self.lower(u, self.operator @ u)
                        if self.holds(u):
                            return self._with_room(u, ends)
                    if time.perf_counter() > ends:
                        break
        u, least = self.closest(ends)
        if self.holds(u):
            return self._with_room(u, ends)
        smallest = float(self.error(self.operator @ u).norm() / self.y.norm())
        least = least / float(self.y.norm())
        proof = f", and none below {least:.4g} is" if least > 0 else ""
        late = " in the time given" if time.perf_counter() > ends else ""
        raise Infeasible(
            f"no weights were found that reach these outputs within epsilon {self.epsilon:.4g}{late}: "
            f"the smallest feasible epsilon found is {smallest:.4g}{proof}",
            smallest,
            least,
            u,
        )

    @property
    def _typical(self):
        return float(self.y.norm()) / math.sqrt(self.active.sum())

    def inward(self, ends=math.inf):
        """Return weights whose outputs off O are negative, zero for units where none were found, and which were."""
        if self._inward is None:
            units = self.y.shape[1]
            u = torch.zeros(self.size, units, dtype=torch.float64, device=self.y.device)
            if self.lift is not None:
                u = -self.lift[:, None] * torch.full((1, units), self._typical).to(u)
                self._inward = u, torch.ones(units, dtype=torch.bool, device=u.device)
                return self._inward
            rows = self.x.abs().sum(1) > 0
            off = ~self.active & rows[:, None]
            done = torch.zeros(units, dtype=torch.bool, device=u.device)
            for damping in DAMPINGS:
                for count, new in enumerate(self._descend(0 * u, math.inf, self._typical, 200, damping)):
                    if count % 10 == 9:
                        worst = torch.where(off, self.operator @ new, -math.inf).amax(0)
                        better = (worst < -1e-2 * self._typical) & ~done
                        u[:, better] = new[:, better]
                        done = done | better
                    if done.all() or time.perf_counter() > ends:
                        break
            self._inward = u, done
        return self._inward

    def closest(self, ends=math.inf, tolerance=2e-3, steps=10000):
        """Return (weights, bound): those of the least error under the signs, and what the error cannot go below.

        min ||(V - Y) on O||^2 with V off O <= 0 and V = X U, by Douglas-Rachford with Anderson acceleration, unit by
        unit. Upper bound: the iterate, moved inwards until no sign is wrong. Lower bound, for G that is not positive
        off O: (<G, Y>_O - ||P G|| ||X U||) / ||G on O||, P the projection on the range of X, of which P G is close to
        zero; it counts weights whose outputs are up to a thousand times as large as Y.
        """
        y, on, f = self.y, self.active, self.turned
        inner, inside = self.inward(ends)
        target = self.operator @ inner
        best = torch.zeros_like(inner)
        errors = y.norm(dim=0)  # of zero weights
        limits, bounds = 1e3 * errors, torch.zeros_like(errors)
        small = 1e-12 * float(y.abs().max())
        s = y.clone()
        anderson = _Anderson(s.flatten())

        for step in range(steps):
            v = torch.where(on, (s + y) / 2, s.clamp(max=0))
            w = f @ ((f.T @ (2 * v - s)) / self.squares[:, None])
            value = s + 1.9 * (w - v)
            late = time.perf_counter() > ends
            if late or step % CHECK_EVERY == CHECK_EVERY - 1:
                u = (f.T @ v) / self.squares[:, None]
                u = u if self.nuclear else self.basis @ u
                over = torch.where(on, 0, self.operator @ u).clamp(min=0)
                share = torch.where(over > 0, over / (over - target).clamp(min=1e-300), 0).amax(0).clamp(max=1)
                share = torch.where(inside, share * (1 + 1e-9), 0)
                u = u + share * (inner - u)
                new = self.error(self.operator @ u).norm(dim=0)
                better = (inside | (over.amax(0) <= small)) & (new < errors)
                best, errors = torch.where(better, u, best), torch.where(better, new, errors)
                g = torch.where(on, y - v, (v - s).clamp(max=0))
                g = g - f @ ((f.T @ g) / self.squares[:, None])
                g = torch.where(on, g, g.clamp(max=0))
                rest = ((f.T @ g) ** 2 / self.squares[:, None]).sum(0).sqrt()
                proof = torch.where(on, g * y, 0).sum(0) - rest * limits
                bounds = torch.maximum(bounds, proof / torch.where(on, g, 0).norm(dim=0).clamp(min=1e-300))
                if late or float(errors.norm()) - float(bounds.norm()) <= tolerance * float(errors.norm()):
                    break
                if float(errors.norm()) <= 1e-3 * self.radius:
                    break
            s = anderson.next(s.flatten(), value.flatten(), lambda a, b: a @ b.T).view_as(s)
        return best, min(float(bounds.norm()) * (1 - 1e-9), float(errors.norm()))

    def _with_room(self, u, ends=math.inf):
        """Move inwards, off the signs, by as much as costs a third of what the ball leaves."""
        if not self.relu:
            return u
        left = self.radius - float(self.error(self.operator @ u).norm())
        inner, inside = self.inward(ends)
        if self.lift is None:
            step = torch.where(inside, inner - u, 0)
            cost = float(torch.where(self.active, self.operator @ step, 0).norm())
            moved = u + step * min(left / (3 * max(cost, 1e-300)), 0.5)
            return moved if self.holds(moved) else u
        height = torch.where(torch.isinf(self.height), 0, self.height)
        cost = float(torch.where(self.active, height[:, None], 0).norm())
        lowered = u - self.lift[:, None] * (left / (3 * max(cost, 1e-300)))
        return lowered if self.holds(lowered) else u


class _Anderson:
    """Anderson acceleration of a fixed-point map, type II, with the newest `MEMORY` differences kept."""

    def __init__(self, like):
        self.steps = torch.empty(MEMORY, len(like), dtype=like.dtype, device=like.device)
        self.values = torch.empty_like(self.steps)
        self.restart()

    def restart(self):
        self.count, self.last, self.size = 0, None, math.inf

    def next(self, x, value, weigh):
        """Return the next point after the map took `x` to `value`; `weigh(A, B)` is the inner product A B^T."""
        step = value - x
        size = math.sqrt(float(weigh(step[None], step[None])))
        if self.last is None or size > 2 * self.size:  # worse than before: begin anew with a plain step
            self.restart()
            self.last = step, value
            return value
        at = self.count % MEMORY
        torch.sub(step, self.last[0], out=self.steps[at])
        torch.sub(value, self.last[1], out=self.values[at])
        self.count, self.last, self.size = self.count + 1, (step, value), size
        kept = min(self.count, MEMORY)
        steps = self.steps[:kept]
        gram = weigh(steps, steps).double()
        gram += 1e-8 * gram.trace() * torch.eye(kept, dtype=gram.dtype, device=gram.device)
        mix = torch.linalg.lstsq(gram.cpu(), weigh(steps, step[None]).double().cpu()).solution
        mix = mix.to(value.device, value.dtype)[:, 0]
        return value - mix @ self.values[:kept] if torch.isfinite(mix).all() else value


def _iterate(problem, anchor, state, tolerance, max_iterations, max_seconds, dtype, progress, start):
    """Run ADMM (as Douglas-Rachford on s = (Z + A, V + B), A and B the scaled multipliers) between certificates."""
    units, samples = problem.y.shape[1], len(problem.y)
    n = problem.size * units
    best, upper = anchor, problem.norm(anchor)
    lower = problem.bound(torch.where(problem.active, problem.y, 0))
    ratio = 1 / float(problem.squares.mean())
    if state is None:
        spread = min(anchor.shape) if problem.nuclear else anchor.numel()
        rho = spread / upper
        s = torch.cat([anchor.flatten(), problem.y.flatten()])
    else:
        rho, s = state["rho"], state["s"].to(problem.y.device, torch.float64)
        if problem.nuclear:  # eigenvectors have arbitrary signs: the state is kept in the inputs' coordinates
            s = torch.cat([(problem.basis.T @ state["first"].to(s)).flatten(), s])
        else:
            s = torch.cat([state["first"].to(s).flatten(), s])
    rows = [{"iteration": 0, "seconds": time.perf_counter() - start, "objective": upper, "bound": lower}]

    def arrays(kind):
        return (part.to(kind) for part in (problem.turned, problem.squares, problem.y, problem.basis))

    turned, squares, y, basis = arrays(dtype)
    s = s.to(dtype)
    anderson = _Anderson(s)
    stalled, marked, proven, changed = 0, math.inf, rho, 0
    relaxation = 1.9
    bar = tqdm(
        total=max_iterations, disable=not progress, desc=f"epsilon {problem.epsilon:g}", leave=False
    )
    iteration, done = 0, upper - lower <= tolerance * upper
    while not done and iteration < max_iterations:
        iteration += 1
        first, second = s[:n].view(problem.size, units), s[n:].view(samples, units)
        z, norm = problem.shrink(first, 1 / rho)
        away = second - y
        size = float(torch.where(problem.active, away, 0).norm())
        share = max(1 - problem.radius / size, 0.0) if size else 0.0
        multiplier = torch.where(problem.active, share * away, second.clamp(min=0))
        v = second - multiplier
        wanted = 2 * z - first
        pulled = turned.T @ (v - multiplier)
        if problem.nuclear:
            u = (wanted + ratio * pulled) / (1 + ratio * squares)[:, None]
            reached = turned @ u
        else:
            seen = basis.T @ wanted
            solved = (seen + ratio * pulled) / (1 + ratio * squares)[:, None]
            u, reached = wanted + basis @ (solved - seen), turned @ solved
        value = s.clone()
        value[:n] += relaxation * (u - z).flatten()
        value[n:] += relaxation * (reached - v).flatten()

        late = max_seconds is not None and time.perf_counter() - start >= max_seconds
        if late or iteration % CHECK_EVERY == 0 or iteration == max_iterations:
            proved = problem.bound(-rho * ratio * multiplier.double())
            # Lowering and scaling keep Z's rank (but one) and zeros; without a bias only U is near enough.
            objective, point = problem.repair((z if problem.liftable else u).double(), anchor)
            if objective < upper:
                best, upper = point, objective
            lower = max(lower, proved)
            now = time.perf_counter() - start
            rows.append({"iteration": iteration, "seconds": now, "objective": upper, "bound": lower})
            bar.update(iteration - bar.n)
            bar.set_postfix_str(f"gap {(upper - lower) / upper:.1e}")
            done = upper - lower <= tolerance * upper
            if upper - lower < 0.9 * marked:
                marked, proven, stalled = upper - lower, rho, 0
            else:
                stalled += 1
            if done or late:
                s = value
                break
            if dtype == torch.float32 and stalled >= PATIENT_CHECKS:  # float32 has given what it can
                dtype, stalled = torch.float64, 0
                turned, squares, y, basis = arrays(dtype)
                s = value.double()
                anderson = _Anderson(s)
                continue
            above, below = (max(error / upper, 1e-12) for error in (objective - norm, norm - proved))
            change = min(max(math.sqrt(above / below), 0.5), 2.0)
            # Changes grow rarer, so that ADMM converges between them. A balance that does not come, however the
            # penalty moves, would drive it away: then back to where the gap last fell, and stay for as long again.
            if stalled >= PATIENT_CHECKS:
                change, stalled, changed = proven / rho, 0, 2 * iteration
            elif max(above, below) <= 2 * min(above, below) or iteration < PATIENCE * changed:
                change = 1.0
            else:
                changed = iteration
            if change != 1:
                for part, fixed in ((value[:n], z.flatten()), (value[n:], v.flatten())):
                    part.sub_(fixed).div_(change).add_(fixed)
                rho *= change
                s = value
                anderson.restart()
                continue

        def weigh(a, b):
            return a[:, :n] @ b[:, :n].T + ratio * (a[:, n:] @ b[:, n:].T)

        s = anderson.next(s, value, weigh)
    bar.close()
    kept = s.double()
    state = {
        "fits": (problem.size, samples, units, problem.penalty),
        "first": problem.outside(kept[:n].view(problem.size, units)),
        "s": kept[n:].clone(),
        "rho": rho,
    }
    return best, lower, rows, iteration, bool(done), state
