"""Anderson acceleration: the next point of a fixed-point iteration from its last few steps."""

from __future__ import annotations

import math

import torch

MEMORY = 12  # steps that the acceleration looks back


class Anderson:
    """Anderson acceleration of a fixed-point map, type II, with the newest `MEMORY` differences kept.

    `like`: a point of the map, a vector of length L; the differences take 2 x MEMORY x L numbers.
    Source: Walker & Ni 2011.
    """

    def __init__(self, like: torch.Tensor) -> None:
        self.steps = torch.empty(MEMORY, len(like), dtype=like.dtype, device=like.device)
        self.values = torch.empty_like(self.steps)
        self.gram = torch.zeros(MEMORY, MEMORY, dtype=torch.float64)
        self.eye = torch.eye(MEMORY, dtype=torch.float64)
        self.restart()

    def restart(self) -> None:
        """Forget all differences."""
        self.count, self.last, self.size = 0, None, math.inf

    def next(self, x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return the next point after the map took `x` to `value`."""
        step = value - x
        size = float(torch.linalg.vector_norm(step))
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
        # one difference is new, so one row of the Gram matrix is
        self.gram[at, :kept] = self.gram[:kept, at] = (steps @ steps[at]).double().cpu()
        gram = self.gram[:kept, :kept]
        damped = torch.add(gram, self.eye[:kept, :kept], alpha=1e-8 * float(gram.trace()))
        mix, failed = torch.linalg.solve_ex(damped, (steps @ step).double().cpu())
        if int(failed) or not math.isfinite(float(mix.sum())):
            return value
        return value - mix.to(value.device, value.dtype) @ self.values[:kept]
