"""The solver behind `ddlr.solve`: ADMM with Anderson acceleration, and the certificate of its answer."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from lowrank_utils.factors.anderson import Anderson

RANK_TOLERANCE = 1e-6  # singular values (weights, for l1) below this share of the largest count as zero
FEASIBLE = 1e-9  # relative violation that float64 rounding explains
CHECK_EVERY = 10  # iterations between certificates, at most
PATIENCE = 1.5  # times the iterations so far until the penalty may change again
PATIENT = 200  # iterations without a gap smaller by a tenth, after which something else is tried
RELAXATION = 1.95  # of ADMM: 1 is plain, below 2 converges
FIRST_PENALTY = 3.0  # times (rank / norm) of the first feasible point
BALANCE = 3.0  # of the errors of the lower and the upper bound, to which the penalty is moved
DAMPINGS = (1e-3, 1e-7, 1e-11)  # of the search for a first point, as shares of the largest eigenvalue of X^T X


class Infeasible(ValueError):
    """No weights were found that keep the outputs within epsilon.

    ``smallest`` is the smallest epsilon that was found to be feasible, by ``weights`` (d_in x d_out; zero weights have
    an error of 1), and ``bound`` one below which none is (0 where none was proved).
    """

    def __init__(self, message: str, smallest: float, bound: float = 0.0, weights: torch.Tensor | None = None) -> None:
        super().__init__(message)
        self.smallest, self.bound, self.weights = smallest, bound, weights


def power_of_two(values: torch.Tensor) -> float:
    """The power of two below the largest entry, 1 where all are zero."""
    size = float(values.abs().max())
    return 2.0 ** math.floor(math.log2(size)) if size else 1.0


def balanced(multiplier: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Return the nearest multiplier whose sum over the samples is 0 for each output, and that is not positive off O.

    Parameters: `multiplier` G, N x d_out; `active` O, N x d_out (booleans), with at least one sample for each output. The nearest
    point is G - t on O and min(G - t, 0) elsewhere. Its sum falls with t and is linear between the entries off O, so t is found exactly.

    >>> g = balanced(torch.tensor([[3.0], [-1.0], [-0.5]]), torch.tensor([[True], [False], [False]]))
    >>> g.flatten().tolist()
    [2.5, -1.5, -1.0]
    """
    off = torch.where(active, math.inf, multiplier).sort(0).values  # those below t are the ones that count
    whole = torch.where(active, multiplier, 0).sum(0)
    so_far = torch.where(torch.isinf(off), 0, off).cumsum(0)
    start, end = torch.zeros_like(whole)[None], torch.full_like(whole, math.inf)[None]
    count = active.sum(0) + torch.arange(len(off) + 1).to(whole)[:, None]
    t = (whole + torch.cat([start, so_far])) / count
    first = (t <= torch.cat([off, end])).int().argmax(0, keepdim=True)
    moved = multiplier - t.gather(0, first)
    return torch.where(active, moved, moved.clamp(max=0))


def _turned(x):
    # (Q, F): a basis of the rows of X, and X in it, whose columns stand at right angles
    rows, core = None, x
    if len(x) < x.shape[1]:  # few samples: the row space first, exactly orthogonal
        rows, triangle = torch.linalg.qr(x.T)
        core = triangle.T
    squares, vectors = torch.linalg.eigh(core.T @ core)
    vectors = vectors[:, squares > 1e-13 * squares[-1]].contiguous()
    return vectors if rows is None else rows @ vectors, core @ vectors


class Problem:
    """One layer in the coordinates that the iterations use, all float64.

    ``basis`` Q (d_in x k) spans the rows of X, ``turned`` F = X Q (N x k) has orthogonal columns of squared length
    ``squares`` (k). Weights are k x d_out (Q^T U, of the same nuclear norm) for the nuclear norm; l1 is not
    invariant, its weights stay d_in x d_out.

    With ``free_bias`` the norm leaves out the bias, the last row, whose input is the same in all samples. The other inputs are
    then centred, and the bias takes their means: so its column stands at right angles to all others, and stays the last one.
    """

    def __init__(
        self, x: torch.Tensor, y: torch.Tensor, epsilon: float, relu: bool, penalty: str, free_bias: bool = False
    ) -> None:
        self.y, self.epsilon, self.relu, self.nuclear = y, epsilon, relu, penalty == "nuclear"
        self.penalty, self.free_bias = penalty, free_bias
        self.means = x[:, :-1].mean(0) / x[0, -1] if free_bias else None  # in units of the bias
        if self.means is not None:
            x = torch.cat([x[:, :-1] - self.means * x[0, -1], x[:, -1:]], 1)
        self.x = x
        self.active = y > 0 if relu else torch.ones_like(y, dtype=torch.bool)
        self.on = self.active.double()  # a product is ten times faster than torch.where
        self.radius = epsilon * float(y.norm())
        self.basis, self.turned = _turned(x[:, :-1] if free_bias else x)
        if free_bias:
            self.basis = torch.block_diag(self.basis, torch.ones(1, 1).to(x))
            self.turned = torch.cat([self.turned, x[:, -1:]], 1)
        self.squares = (self.turned**2).sum(0)
        self.left_out = float(((x - self.turned @ self.basis.T) ** 2).sum())  # of X, by cutting at 1e-13
        self.size = len(self.squares) if self.nuclear else x.shape[1]
        self.operator = self.turned if self.nuclear else x
        self._find_lift()
        self._inward = None

    def _find_lift(self):
        """Find the direction that raises every sample's output: the bias, or what acts like one."""
        self.lift, self.height = None, None
        if self.free_bias:
            self.lift = torch.zeros(self.operator.shape[1], dtype=torch.float64, device=self.x.device)
            self.lift[-1], self.height = 1 / self.x[0, -1], torch.ones_like(self.x[:, -1])
            return
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
    def kind(self) -> tuple:
        """What a warm start must agree with."""
        return self.size, *self.y.shape, self.penalty, self.free_bias

    @property
    def liftable(self) -> bool:
        """Whether wrong signs can be mended by lowering biases (or there are none to mend)."""
        return self.lift is not None or not self.relu

    def inside(self, weights: torch.Tensor) -> torch.Tensor:
        if self.means is not None:
            weights = torch.cat([weights[:-1], weights[-1:] + self.means @ weights[:-1]])
        return self.basis.T @ weights if self.nuclear else weights

    def outside(self, u: torch.Tensor) -> torch.Tensor:
        weights = self.basis @ u if self.nuclear else u
        if self.means is not None:
            weights = torch.cat([weights[:-1], weights[-1:] - self.means @ weights[:-1]])
        return weights

    def norm(self, u: torch.Tensor) -> float:
        u = u[:-1] if self.free_bias else u
        return float(torch.linalg.svdvals(u).sum() if self.nuclear else u.abs().sum())

    def shrink(self, s: torch.Tensor, threshold: float) -> tuple[torch.Tensor, float]:
        """The proximal map of the norm, and the norm of what it returns."""
        if self.free_bias:
            shrunk, norm = self._shrink(s[:-1], threshold)
            return torch.cat([shrunk, s[-1:]]), norm
        return self._shrink(s, threshold)

    def _shrink(self, s, threshold):
        if self.nuclear:
            # By the smaller Gram matrix, in float64: half the time of an SVD, and what it blurs (1e-8 of the
            # largest singular value) is far below the threshold; where it is not, the SVD after all.
            wide = s.shape[0] < s.shape[1]
            tall = (s.T if wide else s).double()
            squares, vectors = torch.linalg.eigh(tall.T @ tall)
            values = squares.clamp(min=0).sqrt()
            if threshold > 1e-5 * float(values[-1]):
                first = len(values) - int((values > threshold).sum())  # they rise
                values, vectors = values[first:], vectors[:, first:]
                left, right = (vectors * (1 - threshold / values)).to(s.dtype), vectors.T.to(s.dtype)
                shrunk = left @ (right @ s) if wide else (s @ left) @ right
                return shrunk, float(values.sum()) - threshold * len(values)
            u, values, vt = torch.linalg.svd(s, full_matrices=False)
            values = (values - threshold).clamp(min=0)
            return (u * values) @ vt, float(values.sum())
        z = torch.nn.functional.softshrink(s, threshold)
        return z, float(z.abs().sum())

    def error(self, reached: torch.Tensor) -> torch.Tensor:
        return (reached - self.y) * self.on

    def lower(self, u: torch.Tensor, reached: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lower each unit's bias by its worst positive output off O."""
        if self.lift is None or self.height is None or not self.relu:
            return u, reached
        margin = 1e-12 * self.y.max()
        worst = torch.where(self.active, -margin, reached / self.height[:, None]).amax(0) + margin
        worst = worst.clamp(min=0)
        u = u - torch.outer(self.lift, worst)
        return u, self.operator @ u

    def scale(self, u: torch.Tensor, reached: torch.Tensor) -> torch.Tensor | None:
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

    def blend(
        self, u: torch.Tensor, reached: torch.Tensor, anchor: torch.Tensor, signs_only: bool = False
    ) -> torch.Tensor:
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

    def holds(self, u: torch.Tensor) -> bool:
        """Whether the constraints hold, signs exactly up to rounding."""
        reached = self.operator @ u
        sign = float(torch.where(self.active, 0, reached).max())
        return float(self.error(reached).norm()) <= self.radius and sign <= 1e-11 * float(self.y.abs().max())

    def repair(self, u: torch.Tensor, anchor: torch.Tensor) -> tuple[float, torch.Tensor | None, bool]:
        """Return the best feasible point near `u`, its norm, and whether it had to be moved to the anchor.

        A point is lowered and scaled where that is enough, which keeps its rank (but one) and zeros; moved to the
        anchor, its rank is up to the sum of both (its zeros, those that both have).
        """
        u, reached = self.lower(u, self.operator @ u)
        signed = self.blend(u, reached, anchor, signs_only=True)
        scaled, moved = self.scale(signed, self.operator @ signed), False
        if scaled is None or not self.holds(scaled):
            scaled, moved = self.blend(u, reached, anchor), True
        return (self.norm(scaled), scaled, moved) if self.holds(scaled) else (math.inf, None, moved)

    def bound(self, multiplier: torch.Tensor) -> float:
        """The lower bound that `multiplier` (N x d_out, not positive off O) proves.

        A free bias costs nothing, so that <G, X U> is bounded only where the multiplier's sum over the samples vanishes for each
        output: the nearest such multiplier takes its place.
        """
        if self.free_bias:
            multiplier = balanced(multiplier, self.active)
        on = torch.where(self.active, multiplier, 0)
        value = float((on * self.y).sum()) - self.radius * float(on.norm())
        size = self._pull(multiplier)
        if value <= 0 or size <= 0:
            return 0.0
        return value / size * (1 - 1e-12)  # rounding of the sums above

    def _pull(self, multiplier):
        """The dual norm of X^T G, never too small: the spectral norm, or the largest entry for l1."""
        if not self.nuclear:
            pulled = self.x.T @ multiplier
            return float((pulled[:-1] if self.free_bias else pulled).abs().max())
        pulled = self.turned.T @ multiplier
        pulled = pulled[:-1] if self.free_bias else pulled
        gram = pulled @ pulled.T if len(pulled) < pulled.shape[1] else pulled.T @ pulled
        largest = float(torch.linalg.eigvalsh(gram)[-1])  # of a Gram matrix the largest eigenvalue is exact to rounding
        # what the basis left out of X stands at right angles to it
        return math.sqrt(max(largest, 0.0) + self.left_out * float((multiplier**2).sum()))

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

    def anchor(self, original: torch.Tensor | None, ends: float = math.inf) -> torch.Tensor:
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

    def inward(self, ends: float = math.inf) -> tuple[torch.Tensor, torch.Tensor]:
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

    def closest(
        self, ends: float = math.inf, tolerance: float = 2e-3, steps: int = 10000
    ) -> tuple[torch.Tensor, float]:
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
        anderson = Anderson(s.flatten())

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
            s = anderson.next(s.flatten(), value.flatten()).view_as(s)
        return best, min(float(bounds.norm()) * (1 - 1e-9), float(errors.norm()))

    def _with_room(self, u, ends=math.inf):
        """Move inwards, off the signs, by as much as costs a third of what the ball leaves."""
        if not self.relu:
            return u
        left = self.radius - float(self.error(self.operator @ u).norm())
        inner, inside = self.inward(ends)
        if self.lift is None or self.height is None:
            step = torch.where(inside, inner - u, 0)
            cost = float(torch.where(self.active, self.operator @ step, 0).norm())
            moved = u + step * min(left / (3 * max(cost, 1e-300)), 0.5)
            return moved if self.holds(moved) else u
        height = torch.where(torch.isinf(self.height), 0, self.height)
        cost = float(torch.where(self.active, height[:, None], 0).norm())
        lowered = u - self.lift[:, None] * (left / (3 * max(cost, 1e-300)))
        return lowered if self.holds(lowered) else u


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
