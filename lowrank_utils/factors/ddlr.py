"""Data-driven low-rank layers (DDLR): the convex program, solved with a certificate, and Net-Trim beside it.

For a layer with inputs X (N x d_in, samples are rows; a bias is a column of ones that the caller appends) and
outputs Y (N x d_out), O = {Y > 0}:

    minimise ||U||_*  subject to  ||(X U - Y) on O||_F <= epsilon ||Y||_F  and  (X U) off O <= 0,

the lowest-rank weights, relaxed, that keep what the layer does on data. With ``relu=False`` (a last layer) the ball
holds over all entries and no sign is asked for. ``penalty="l1"`` puts the sum of absolute weights in place of the
nuclear norm: Net-Trim (Aghasi, Abdi, Nguyen & Romberg 2017). ``free_bias=True`` leaves the bias, the last row of U, out of the norm.

Every answer is a point that truly satisfies the constraints together with a lower bound on what any weights can
reach, both in float64 whatever the iterations were computed in.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, TypeAlias, cast

import cvxpy
import numpy as np
import pandas as pd
import torch

from lowrank_utils.checks import check_number
from lowrank_utils.factors.admm import iterate
from lowrank_utils.factors.program import FEASIBLE, RANK_TOLERANCE, Infeasible, Problem, power_of_two

Array: TypeAlias = np.ndarray | torch.Tensor
PENALTIES = ("nuclear", "l1")


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
    def violation(self) -> float:
        """The larger of error - epsilon and sign, 0 where both constraints hold."""
        return max(self.error - self.epsilon, self.sign, 0.0)

    @property
    def feasible(self) -> bool:
        """Whether the violation is rounding: at most 1e-9."""
        return self.violation <= FEASIBLE


@dataclass(frozen=True)
class Solution:
    """Feasible weights and the proof of how good they are; every number describes the one point ``weights``.

    ``weights`` (d_in x d_out, float64); ``objective``, their nuclear or l1 norm; ``bound``, which no feasible weights
    can go below; ``violation`` as in `Check`; ``rank``, the singular values above 1e-6 of the largest;
    ``nonzeros``, the weights above 1e-6 of the largest; ``converged``, whether the relative gap reached the tolerance;
    ``history``, a DataFrame of the best objective and bound after ``iteration`` and ``seconds`` (an answer of lower
    rank within the tolerance goes before the best objective); ``note``, what is particular about this answer, or empty.
    With a free bias, objective, rank and nonzeros are those of the weights without their last row.
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
    state: dict[str, Any] | None = field(default=None, repr=False)  # where a warm start goes on

    @property
    def gap(self) -> float:
        """The objective less the bound, at least 0: the optimum lies between the two."""
        return max(self.objective - self.bound, 0.0)

    @property
    def relative_gap(self) -> float:
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


def check(weights: Array, inputs: Array, outputs: Array, epsilon: float, relu: bool = True) -> Check:
    """Return the `Check` of any weights (d_in x d_out), computed in float64; asked again after every cut or refit.

    Parameters: `inputs` N x d_in, `outputs` N x d_out, `epsilon` the relative error allowed, at least 0, `relu` as in
    `solve`. Raises ValueError for shapes that do not fit, NaN, and an epsilon that is no number of at least 0.

    >>> found = check(torch.eye(2), torch.eye(2), 2 * torch.eye(2), epsilon=0.4)
    >>> round(found.error, 6), found.sign, round(found.violation, 6), found.feasible
    (0.5, 0.0, 0.1, False)
    """
    x, y = _data(inputs, outputs, relu)
    check_number(lambda value: value >= 0, "a number of at least 0", epsilon=epsilon)
    u = _weights(weights, x, y, "weights")
    scale = power_of_two(y)  # squares of very large or small numbers would overflow or vanish
    size = power_of_two(u)
    reached, y = x @ (u / size) * (size / scale), y / scale
    active = y > 0 if relu else torch.ones_like(y, dtype=torch.bool)
    error = float((reached - y)[active].norm() / y.norm()) if y.any() else float(reached[active].norm() > 0)
    sign = max(float(reached[~active].max()), 0.0) if not active.all() else 0.0
    return Check(error, sign / (float(y.abs().max()) or 1.0), float(epsilon))


def reference(
    inputs: Array,
    outputs: Array,
    epsilon: float,
    relu: bool = True,
    penalty: str = "nuclear",
    solver: str = "SCS",
    free_bias: bool = False,
    **options: Any,
) -> Reference:
    """Return the `Reference` of the same program as `solve`, written in CVXPY and given to the named solver.

    Parameters as in `solve`; `options` go to the solver (``eps=1e-6`` for SCS). Its weights are feasible only to
    the solver's own tolerance. Raises ValueError for bad input as `solve`.

    >>> reference(torch.eye(2), 2 * torch.eye(2), epsilon=0.5, solver="CLARABEL").status
    'optimal'
    """
    x, y = (part.cpu().numpy() for part in _data(inputs, outputs, relu))
    _settings(epsilon, penalty)
    _check_bias(x, free_bias)
    u = cvxpy.Variable((x.shape[1], y.shape[1]))
    charged = u[:-1] if free_bias else u
    norm = cvxpy.normNuc(charged) if penalty == "nuclear" else cvxpy.sum(cvxpy.abs(charged))
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
    return Reference(weights, float(cast(float, problem.value)), time.perf_counter() - start, problem.status, solver)


def solve(
    inputs: Array,
    outputs: Array,
    epsilon: float,
    relu: bool = True,
    penalty: str = "nuclear",
    original: Array | None = None,
    *,
    free_bias: bool = False,
    tolerance: float = 1e-3,
    max_iterations: int = 5000,
    max_seconds: float | None = None,
    warm_start: Solution | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Solution:
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
    free_bias : leave the last row of U, the bias, out of the norm; the last column of `inputs` is then the same in all samples. For a
        bound the multiplier's sum over the samples must vanish for each output, so that G is first projected onto that (`program.balanced`).
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
    _check_bias(x, free_bias)
    _check_run(tolerance, max_iterations, max_seconds, dtype)
    device = _usable(device or x.device)
    _check_start(warm_start, x, y)
    given = None if original is None else _feasible(original, x, y, epsilon, relu)
    if note := _why_zero(y, epsilon):
        return _zero(_zeros(x, y), penalty, epsilon, note, start)
    if free_bias and check(alone := _bias_alone(x, y, relu), x, y, epsilon, relu).feasible:
        return _zero(alone, penalty, epsilon, "the bias alone keeps these outputs", start)
    layer = _Layer.of(x, y, epsilon, relu, penalty, device, free_bias)
    anchor = layer.anchor(given, math.inf if max_seconds is None else start + max_seconds)
    state = None if warm_start is None else layer.state(warm_start)
    best, bound, rows, iterations, converged, state = iterate(
        layer.problem, anchor, state, tolerance, max_iterations, max_seconds, dtype, progress, start
    )
    weights = layer.whole(best)
    sizes = _sizes(weights[:-1] if free_bias else weights, penalty)
    bound = min(bound * layer.unit, sizes["objective"])
    if not converged:
        gap = 1 - bound / sizes["objective"]
        note = f"the budget ended after {iterations} iterations, at a relative gap of {gap:.2g}"
    history = pd.DataFrame(rows)
    history[["objective", "bound"]] *= layer.unit
    return Solution(
        weights=weights,
        **sizes,
        bound=bound,
        violation=check(weights, x, y, epsilon, relu).violation,
        iterations=iterations,
        converged=converged,
        seconds=time.perf_counter() - start,
        history=history,
        penalty=penalty,
        epsilon=epsilon,
        note=note,
        state=state | {"scales": layer.scales},
    )


@dataclass(frozen=True)
class _Layer:
    # the program with inputs and outputs of about 1, and without the units that are never active
    problem: Problem
    alive: torch.Tensor  # which units (d_out, bool) the problem is about
    scales: tuple[float, float]  # of inputs and outputs: powers of two, which take no rounding
    inputs: int
    home: torch.device

    @classmethod
    def of(cls, x, y, epsilon, relu, penalty, device, free_bias=False) -> _Layer:
        home, alive, scales = x.device, (y != 0).any(0), (power_of_two(x), power_of_two(y))
        if not 1e-300 < scales[1] / scales[0] < 1e300:
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
                _zeros(x, y),
            )
        x, y = (x / scales[0]).to(device), (y[:, alive] / scales[1]).to(device)
        problem = Problem(x, y, epsilon, relu, penalty, free_bias)
        return cls(problem, alive, scales, x.shape[1], home)

    @property
    def unit(self) -> float:
        return self.scales[1] / self.scales[0]

    def whole(self, u: torch.Tensor) -> torch.Tensor:
        # A unit that is never active gets zero weights: they satisfy its constraints, and no norm grows by it.
        weights = torch.zeros(self.inputs, len(self.alive), dtype=torch.float64, device=self.home)
        weights[:, self.alive] = self.problem.outside(u).to(self.home) * self.unit
        return weights

    def anchor(self, given: torch.Tensor | None, ends: float) -> torch.Tensor:
        # feasible weights to begin with: `given` ones, or some that are found before the clock says `ends`
        own = None if given is None else (given[:, self.alive] / self.unit).to(self.problem.x.device)
        try:
            return self.problem.anchor(own, ends)
        except Infeasible as error:
            error.weights = None if error.weights is None else self.whole(error.weights)
            raise

    def state(self, earlier: Solution) -> dict[str, Any] | None:
        # where an earlier answer ended, in the units of this layer; None where it is of another size
        if earlier.state is None or earlier.state["fits"] != self.problem.kind:
            return None
        return _rescaled(earlier.state, self.scales)


def _zeros(x, y):
    return torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)


def _why_zero(y, epsilon):
    if not y.any():
        return "no unit is active in these outputs: zero weights are the answer"
    return f"epsilon {epsilon:g} is at least 1, so that zero weights pass" if epsilon >= 1 else ""


def _bias_alone(x, y, relu):
    # the best weights that are zero but for the bias: a unit that is off in some sample may not be lifted there
    weights = _zeros(x, y)
    weights[-1] = torch.where(((y > 0) | (not relu)).all(0), y.mean(0), 0) / x[0, -1]
    return weights


def _zero(weights, penalty, epsilon, note, start):
    seconds = time.perf_counter() - start
    history = pd.DataFrame([{"iteration": 0, "seconds": seconds, "objective": 0.0, "bound": 0.0}])
    return Solution(weights, 0.0, 0.0, 0.0, 0, 0, 0, True, seconds, history, penalty, epsilon, note)


def _sizes(weights, penalty) -> dict[str, Any]:
    spectrum = torch.linalg.svdvals(weights)
    return {
        "objective": float(spectrum.sum() if penalty == "nuclear" else weights.abs().sum()),
        "rank": int((spectrum > RANK_TOLERANCE * spectrum[0]).sum()),
        "nonzeros": int((weights.abs() > RANK_TOLERANCE * weights.abs().max()).sum()),
    }


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
        raise ValueError(f"outputs go down to {float(y.min()):.3g}, but after a ReLU none is negative; use relu=False")
    return x, y


def _weights(values, x, y, name):
    u = _matrix(values, name).to(x.device)
    if u.shape != (x.shape[1], y.shape[1]):
        raise ValueError(f"{name} has shape {tuple(u.shape)}; this layer needs {(x.shape[1], y.shape[1])}")
    return u


def _settings(epsilon, penalty):
    number = isinstance(epsilon, (int, float, np.floating, np.integer)) and not isinstance(epsilon, bool)
    if not number or not math.isfinite(epsilon) or epsilon <= 0:
        raise ValueError(f"epsilon={epsilon!r} is not a number above 0")
    if penalty not in PENALTIES:
        raise ValueError(f"unknown penalty {penalty!r}; known: {', '.join(PENALTIES)}")
    return float(epsilon)


def _check_bias(x, free_bias):
    if not isinstance(free_bias, (bool, np.bool_)):
        raise ValueError(f"free_bias={free_bias!r} is neither True nor False")
    if not free_bias:
        return
    last, others = x[:, -1], x[:, :-1]
    if not (last == last[0]).all() or last[0] == 0:
        raise ValueError(
            "free_bias asks for a bias: the last column of inputs must be one number in all samples, not 0"
        )
    if (others == others[:1]).all():
        raise ValueError("the inputs beside the bias are the same in all samples, so that nothing is left to charge")


def _check_run(tolerance, max_iterations, max_seconds, dtype):
    seconds = math.inf if max_seconds is None else max_seconds
    asked: list[tuple[str, Any, type]] = [("tolerance", tolerance, Real), ("max_iterations", max_iterations, Integral)]
    for name, value, kind in (*asked, ("max_seconds", seconds, Real)):
        if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
            raise ValueError(f"{name}={value!r} must be a {'whole ' if kind is Integral else ''}number above 0")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype {dtype} is not one of torch.float32 and torch.float64")


def _usable(device):
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device={str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return found


def _check_start(warm_start, x, y):
    if warm_start is None:
        return
    if not isinstance(warm_start, Solution):
        raise ValueError(f"warm_start is a {type(warm_start).__name__}, not an earlier Solution")
    if warm_start.weights.shape != (x.shape[1], y.shape[1]):
        raise ValueError(
            f"warm_start has weights of shape {tuple(warm_start.weights.shape)}, this layer {(x.shape[1], y.shape[1])}"
        )


def _feasible(original, x, y, epsilon, relu):
    given = _weights(original, x, y, "original")
    found = check(given, x, y, epsilon, relu)
    # outputs that were computed in float32 leave the weights that made them a little outside
    if found.violation > 1e-5:
        raise ValueError(
            f"original is not feasible: relative error {found.error:.3g} against epsilon {epsilon:.3g}, "
            f"sign violation {found.sign:.3g} of the largest output"
        )
    return given
