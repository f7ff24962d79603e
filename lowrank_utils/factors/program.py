"""One layer of the convex program in the solver's coordinates: constraints, repair of a point that breaks them, and bounds."""

from __future__ import annotations

import math
import time

import torch

from lowrank_utils.factors.anderson import Anderson

RANK_TOLERANCE = 1e-6  # singular values (weights, for l1) below this share of the largest count as zero
FEASIBLE = 1e-9  # relative violation that float64 rounding explains
CHECK_EVERY = 10  # iterations between certificates, at most
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
