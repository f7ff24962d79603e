"""The solver behind `ddlr.solve`: ADMM with Anderson acceleration, and the certificate of its answer."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from lowrank_utils.factors.anderson import Anderson
from lowrank_utils.factors.program import CHECK_EVERY, Problem

PATIENCE = 1.5  # times the iterations so far until the penalty may change again
PATIENT = 200  # iterations without a gap smaller by a tenth, after which something else is tried
RELAXATION = 1.95  # of ADMM: 1 is plain, below 2 converges
FIRST_PENALTY = 3.0  # times (rank / norm) of the first feasible point
BALANCE = 3.0  # of the errors of the lower and the upper bound, to which the penalty is moved


class _Step(NamedTuple):
    """What one step of ADMM took a point to (``value``), and its parts: the two copies of the weights, Z and U, Z's norm, V and its multiplier."""

    value: torch.Tensor
    z: torch.Tensor
    u: torch.Tensor
    norm: float
    v: torch.Tensor
    multiplier: torch.Tensor


class _Map:
    """ADMM as a fixed-point map (Douglas-Rachford) on s = (Z + A, V + B), A and B the scaled multipliers.

    The outputs' half is scaled by ``root``, the root of the ratio of both penalties, so that the map is monotone in
    the plain inner product, which Anderson acceleration needs.
    """

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        self.problem, self.dtype = problem, dtype
        self.root = 1 / math.sqrt(float(problem.squares.mean()))
        self.turned = (self.root * problem.turned).to(dtype)
        self.y = (self.root * problem.y).to(dtype)
        self.radius = self.root * problem.radius
        self.on = problem.active.to(dtype)  # a product is ten times faster than torch.where
        self.off = 1 - self.on
        self.inverse = (1 / (1 + self.root**2 * problem.squares))[:, None].to(dtype)
        self.basis = problem.basis.to(dtype)
        self.split = problem.size * problem.y.shape[1]

    def parts(self, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return s[: self.split].view(self.problem.size, -1), s[self.split :].view_as(self.y)

    def __call__(self, s: torch.Tensor, rho: float) -> _Step:
        first, second = self.parts(s)
        z, norm = self.problem.shrink(first, 1 / rho)
        away = (second - self.y).mul_(self.on)
        size = float(torch.linalg.vector_norm(away))
        share = max(1 - self.radius / size, 0.0) if size else 0.0
        multiplier = second.clamp(min=0).mul_(self.off).add_(away, alpha=share)
        v = second - multiplier
        wanted = torch.sub(z, first, alpha=0.5).mul_(2)
        pulled = self.turned.T @ (v - multiplier)
        if self.problem.nuclear:
            u = wanted.add_(pulled).mul_(self.inverse)
            reached = self.turned @ u
        else:
            seen = self.basis.T @ wanted
            solved = (seen + pulled) * self.inverse
            u, reached = wanted + self.basis @ (solved - seen), self.turned @ solved
        value = s.clone()
        to_first, to_second = self.parts(value)
        to_first.add_(u - z, alpha=RELAXATION)
        to_second.add_(reached.sub_(v), alpha=RELAXATION)
        return _Step(value, z, u, norm, v, multiplier)

    def bound(self, step: _Step, rho: float) -> float:
        """The lower bound that the multiplier of a step proves."""
        return self.problem.bound(-rho * self.root * step.multiplier.double())

    def rescaled(self, step: _Step, change: float) -> torch.Tensor:
        """The point after `step` for a penalty `change` times as large: the scaled multipliers shrink by as much."""
        for part, fixed in zip(self.parts(step.value), (step.z, step.v)):
            part.sub_(fixed).div_(change).add_(fixed)
        return step.value


class _Certified:
    """The best feasible points so far, what is proved about them, and the rows of the history."""

    def __init__(self, problem: Problem, anchor: torch.Tensor, start: float) -> None:
        self.problem, self.anchor, self.start = problem, anchor, start
        self.best, self.upper = anchor, problem.norm(anchor)
        self.thin, self.thin_norm = None, math.inf  # the best point that was not moved to the anchor
        self.lower = problem.bound(torch.where(problem.active, problem.y, 0))
        self.rows = []
        self.note(0)

    @property
    def gap(self) -> float:
        return self.upper - self.lower

    def note(self, iteration):
        now = time.perf_counter() - self.start
        self.rows.append({"iteration": iteration, "seconds": now, "objective": self.upper, "bound": self.lower})

    def add(self, step: _Step, proved: float, iteration: int) -> float:
        """Take in a step and the bound that it proves; return the norm of the feasible point near it."""
        problem = self.problem
        # Lowering and scaling keep Z's rank (but one) and zeros; without a bias only U is near enough.
        near = step.z if problem.liftable else step.u
        objective, point, moved = problem.repair(near.double(), self.anchor)
        if point is not None and objective < self.upper:
            self.best, self.upper = point, objective
        if objective < self.thin_norm and not (moved and problem.liftable):
            self.thin, self.thin_norm = point, objective
        self.lower = max(self.lower, proved)
        self.note(iteration)
        return objective

    def done(self, tolerance: float) -> bool:
        # a small norm is asked for because the rank is: the gap alone is no reason to stop at a sum of two points
        return self.thin is not None and self.thin_norm - self.lower <= tolerance * self.thin_norm


class _Penalty:
    """The penalty ``rho``, moved until the errors of the upper and the lower bound balance.

    Changes grow rarer, so that ADMM converges between them. A balance that does not come, however the penalty moves,
    would drive it away: then back to where the gap last fell, and stay for as long again.
    """

    def __init__(self, rho: float) -> None:
        self.rho, self.proven, self.changed = rho, rho, 0
        self.smallest, self.since = math.inf, 0

    def observe(self, gap: float, iteration: int) -> None:
        """Remember whether the gap fell by a tenth."""
        if gap < 0.9 * self.smallest:
            self.smallest, self.proven, self.since = gap, self.rho, iteration

    def stalled(self, iteration: int) -> bool:
        return iteration - self.since >= PATIENT

    def change(self, above: float, below: float, iteration: int) -> float:
        """Return the factor by which the penalty changes now, for relative errors of the upper and the lower bound."""
        above, below = BALANCE * max(above, 1e-12), max(below, 1e-12)
        change = min(max(math.sqrt(above / below), 0.5), 2.0)
        if self.stalled(iteration):
            change, self.since, self.changed = self.proven / self.rho, iteration, 2 * iteration
        elif max(above, below) <= 2 * min(above, below) or iteration < PATIENCE * self.changed:
            return 1.0
        else:
            self.changed = iteration
        self.rho *= change
        return change


def _next_check(rows, tolerance):
    """The iterations until the next certificate: fewer where the gap is about to reach the tolerance."""
    (before, old), (now, new) = ((row["iteration"], 1 - row["bound"] / row["objective"]) for row in rows[-2:])
    if not 0 < new < old:
        return CHECK_EVERY
    left = math.log(max(new / tolerance, 1.0)) / math.log(old / new) * (now - before)
    return int(min(max(left, CHECK_EVERY / 4), CHECK_EVERY))


def _begin(problem, anchor, state, root):
    """The first penalty and point: the anchor's, or where a warm start goes on."""
    if state is None:
        spread = min(anchor.shape) if problem.nuclear else anchor.numel()
        # the anchor's norm is several times the least one
        return FIRST_PENALTY * spread / problem.norm(anchor), torch.cat([anchor.flatten(), root * problem.y.flatten()])
    s = root * state["s"].to(problem.y.device, torch.float64)
    # eigenvectors have arbitrary signs: the state is kept in the inputs' coordinates
    return state["rho"], torch.cat([problem.inside(state["first"].to(s)).flatten(), s])


def iterate(
    problem: Problem,
    anchor: torch.Tensor,
    state: dict[str, Any] | None,
    tolerance: float,
    max_iterations: int,
    max_seconds: float | None,
    dtype: torch.dtype,
    progress: bool,
    start: float,
) -> tuple[torch.Tensor, float, list[dict[str, float]], int, bool, dict[str, Any]]:
    """Run ADMM between certificates, until the certified relative gap is at most `tolerance` or a budget ends.

    Returns (weights, lower bound, rows of the history, iterations, whether the gap was reached, state of a warm start).
    """
    ends = math.inf if max_seconds is None else start + max_seconds
    found = _Certified(problem, anchor, start)
    run = _Map(problem, dtype)
    rho, s = _begin(problem, anchor, state, run.root)
    penalty, s = _Penalty(rho), s.to(dtype)
    anderson = Anderson(s)
    bar = tqdm(total=max_iterations, disable=not progress, desc=f"epsilon {problem.epsilon:g}", leave=False)
    iteration, check_at, done = 0, CHECK_EVERY, found.gap <= tolerance * found.upper
    while not done and iteration < max_iterations:
        iteration += 1
        step = run(s, penalty.rho)
        late = time.perf_counter() >= ends
        if not (late or iteration in (check_at, max_iterations)):
            s = anderson.next(s, step.value)
            continue
        proved = run.bound(step, penalty.rho)
        objective = found.add(step, proved, iteration)
        bar.update(iteration - bar.n)
        bar.set_postfix_str(f"gap {found.gap / found.upper:.1e}")
        penalty.observe(found.gap, iteration)
        check_at = iteration + _next_check(found.rows, tolerance)
        done = found.done(tolerance)
        if done or late:
            s = step.value
            break
        if run.dtype == torch.float32 and penalty.stalled(iteration):  # float32 has given what it can
            penalty.since = iteration
            run, s = _Map(problem, torch.float64), step.value.double()
            anderson = Anderson(s)
            continue
        errors = (objective - step.norm) / found.upper, (step.norm - proved) / found.upper
        change = penalty.change(*errors, iteration)
        if change == 1:
            s = anderson.next(s, step.value)
        else:
            s = run.rescaled(step, change)
            anderson.restart()
    bar.close()
    best = found.thin if done and found.thin is not None else found.best
    first, second = run.parts(s.double())
    state = {
        "fits": problem.kind,
        "first": problem.outside(first),
        "s": second.flatten() / run.root,
        "rho": penalty.rho,
    }
    return best, found.lower, found.rows, iteration, found.gap <= tolerance * found.upper, state
