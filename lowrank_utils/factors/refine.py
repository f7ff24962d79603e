"""A compressed network tuned as a whole, without labels, until its answers meet the dense network's.

The sweep (`factors.sequential`) repairs each layer once, front to back. `refine` goes on from there with gradient steps on
all parameters at once, towards the answers that the dense network gives to the calibration inputs: distillation without
labels (Hinton, Vinyals & Dean 2015).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lowrank_utils import checks
from lowrank_utils.network.modules import check_finite, copied, evaluating

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
LOSSES = ("divergence", "error")
STEPS = 120  # the budget where none is given
LOOKS = 10  # at the held-out inputs, evenly over the budget
PATIENCE = 5  # looks without a better state after which it stops
MOST_HELD_OUT = 250  # inputs
WARM_UP = 0.1  # share of the budget


@dataclass(frozen=True)
class Refined:
    """What `refine` made: the new ``model`` in eval mode, and how it came about.

    ``before``, ``after``: loss on the held-out calibration inputs (NaN where it was not measured); ``steps`` taken;
    ``seconds`` of processor time; ``note``: what the reader should know, or empty; ``history``: (step, seconds, held-out
    loss) of each look at the held-out inputs.
    """

    model: nn.Module = field(repr=False)
    before: float
    after: float
    steps: int
    seconds: float
    note: str = ""
    history: tuple[tuple[int, float, float], ...] = field(default=(), repr=False)


def refine(
    model: nn.Module,
    small: nn.Module,
    calibration: torch.Tensor,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    augment: Augment | None = None,
    paste: bool = True,
    loss: str | None = None,
    rate: float = 5e-4,
    batch_size: int = 100,
    held_out: float = 0.15,
    seed: int = 0,
) -> Refined:
    began = time.process_time()
    _check(model, small, calibration, augment, loss)
    checks.check_number(lambda value: value > 0, "a number above 0", rate=rate)
    checks.check_number(lambda value: 0 < value < 1, "a number between 0 and 1", held_out=held_out)
    checks.check_count(batch_size=batch_size)
    if seconds is not None:
        checks.check_number(lambda value: value > 0, "a number above 0", seconds=seconds)
    if steps is not None:
        checks.check_count(0, steps=steps)
    new = copied(small).eval()
    if len(calibration) < 2:
        return _unchanged(new, began, "Nothing was refined: one input leaves none to hold out.")
    if not any(value.is_floating_point() for value in new.parameters()):
        return _unchanged(new, began, "Nothing was refined: the compressed network has no parameters.")
    budget = _Budget(began, seconds, STEPS if steps is None and seconds is None else steps)
    task = _Task(model, calibration, augment, paste, loss, batch_size, held_out, seed)
    if task.constant():
        return _unchanged(
            new, began, "Nothing was refined: the dense network gives all calibration inputs the same answer."
        )
    return _tune(new, task, budget, rate)


def cut_and_paste(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return `images` (N x C x H x W), a rectangle of each replaced by that of another of them (CutMix, Yun et al. 2019).

    The share of the area is uniform in [0, 1] before what sticks out is cut off. No label has to be mixed, for the dense
    network answers the pasted images too; they show it more than the calibration images alone would.

    >>> mixed = cut_and_paste(torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8), torch.Generator().manual_seed(0))
    >>> mixed.shape, mixed.unique().tolist()
    (torch.Size([4, 1, 8, 8]), [0.0, 1.0, 2.0, 3.0])
    """
    count, _, *size = images.shape
    other = images[torch.randperm(count, generator=generator)]
    side = torch.rand(count, 1, generator=generator).sqrt()
    inside = []
    for length in size:
        centre = torch.rand(count, 1, generator=generator) * length
        inside.append((torch.arange(length) - centre).abs() < side * length / 2)
    mask = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(mask.to(images.device), other, images)


@dataclass(frozen=True)
class _Budget:
    # processor seconds since `began`, steps, or both: the first to end
    began: float
    seconds: float | None
    steps: int | None

    def spent(self, step: int) -> float:
        # share of the budget, 1 or more where it is used up
        shares = [1.0 if not self.steps else step / self.steps] if self.steps is not None else []
        return max(shares + ([self.elapsed() / self.seconds] if self.seconds else []))

    def elapsed(self) -> float:
        return time.process_time() - self.began


class _Task:
    """Inputs and the dense network's answers to them, in shuffled batches and held out."""

    def __init__(self, model, calibration, augment, paste, loss, batch_size, held_out, seed):
        self.model, self.augment, self.batch_size = model, augment, batch_size
        first = next(model.parameters(), None)
        self.device = calibration.device if first is None else first.device
        self.dtype = first.dtype if first is not None and calibration.is_floating_point() else calibration.dtype
        self.paste = paste and calibration.ndim == 4 and calibration.is_floating_point()
        self.generator = torch.Generator().manual_seed(seed)
        count = len(calibration)
        order = torch.randperm(count, generator=self.generator)
        held = min(max(round(held_out * count), 1), count - 1, MOST_HELD_OUT)
        self.seen, self.calibration, self.queue = order[held:], calibration, order[:0]
        self.layout = self._fastest(calibration[order[:2]])
        inputs = self._load(order[:held])
        answers = [self.answer(some) for some in inputs.split(batch_size)]
        if loss is None:
            loss = "divergence" if answers[0].ndim == 2 and answers[0].shape[1] > 1 else "error"
        self.loss = loss
        sample = torch.cat([*answers, self.answer(self._load(self.seen[:batch_size]))])
        self.spread = float((sample - sample.mean(0)).square().mean())
        self.size = float(sample.square().mean())
        # the same pasted and augmented inputs at each look
        looks = [self._varied(some, torch.Generator().manual_seed(seed)) for some in inputs.split(batch_size)]
        self.looks = [(some, self.answer(some)) for some in looks]

    def constant(self) -> bool:
        return self.spread <= 1e-10 * self.size

    def _fastest(self, inputs):
        # channels_last takes a sixth less time; networks that flatten with view() cannot take it
        if inputs.ndim == 4:
            try:
                self.layout = torch.channels_last
                self.answer(self._arranged(inputs.to(self.device, self.dtype)))
                return torch.channels_last
            except RuntimeError:
                pass
        return torch.contiguous_format

    def _arranged(self, inputs):
        return inputs.contiguous(memory_format=self.layout)

    def _load(self, indices):
        inputs = self.calibration[indices]
        if inputs.is_floating_point() and not torch.isfinite(inputs).all():
            raise ValueError("the calibration inputs hold NaN or infinite values")
        return self._arranged(inputs.to(self.device, self.dtype))

    def _varied(self, inputs, generator):
        if self.augment is not None:
            inputs = self.augment(inputs, generator)
        if self.paste:
            inputs = cut_and_paste(inputs, generator)
        return self._arranged(inputs)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        if len(self.queue) < min(self.batch_size, len(self.seen)):
            self.queue = self.seen[torch.randperm(len(self.seen), generator=self.generator)]
        taken, self.queue = self.queue[: self.batch_size], self.queue[self.batch_size :]
        inputs = self._varied(self._load(taken), self.generator)
        return inputs, self.answer(inputs)

    def answer(self, inputs: torch.Tensor) -> torch.Tensor:
        with evaluating(self.model):
            found = _tensor(self.model(inputs.clone()))  # some networks write into their input
        return found.clone()  # outside of inference mode, so that autograd takes it

    def distance(self, answers: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if self.loss == "error":
            return F.mse_loss(answers, wanted) / self.spread
        log_p, log_q = wanted.log_softmax(-1), answers.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean()

    @torch.no_grad()
    def held_out(self, small: nn.Module) -> float:
        losses = [float(self.distance(_tensor(small(x.clone())), y)) * len(x) for x, y in self.looks]
        return sum(losses) / sum(len(x) for x, _ in self.looks)


def _tune(new, task, budget, rate):
    flags = [(value, value.requires_grad) for value in new.parameters()]
    tuned = [value.requires_grad_(True) for value in new.parameters() if value.is_floating_point()]
    optimiser = torch.optim.Adam(tuned, lr=rate, betas=(0.9, 0.99))
    look = _Looks(new, task, budget)
    look(0)
    note = "" if math.isfinite(look.best) else "Nothing was refined: the compressed network's answers are not finite."
    step = 0
    with torch.enable_grad():
        while not note and (spent := budget.spent(step)) < 1:
            for group in optimiser.param_groups:
                group["lr"] = rate * _schedule(spent)
            inputs, wanted = task.batch()
            value = task.distance(_tensor(new(inputs)), wanted)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            step += 1
            due = budget.spent(step) * LOOKS >= len(look.history)
            if not torch.isfinite(value) or (due and not math.isfinite(look(step))):
                note = f"The loss was not finite at step {step}; the network is that of step {look.best_step}."
            elif look.stale():
                break
    if not note and look.history[-1][0] < step:
        look(step)
    look.restore()
    for value, flag in flags:
        value.grad = None
        value.requires_grad_(flag)
    if not note and look.best_step == 0:
        note = "No state was better on the held-out inputs than the one it began with, which is kept."
    return Refined(new.eval(), look.history[0][2], look.best, step, budget.elapsed(), note, tuple(look.history))


class _Looks:
    # the held-out loss from time to time, and the best state so far
    def __init__(self, new, task, budget):
        self.new, self.task, self.budget = new, task, budget
        self.best, self.best_step, self.history = math.inf, 0, []
        self.state = self._state()

    def _state(self):
        return [value.detach().clone() for value in self.new.parameters()]

    def __call__(self, step):
        found = self.task.held_out(self.new)
        self.history.append((step, self.budget.elapsed(), found))
        if found < self.best:
            self.best, self.best_step, self.state = found, step, self._state()
        return found

    def stale(self):
        return len(self.history) > PATIENCE and min(value for *_, value in self.history[-PATIENCE:]) > self.best

    @torch.no_grad()
    def restore(self):
        for value, kept in zip(self.new.parameters(), self.state):
            value.copy_(kept)


def _schedule(spent):
    # a short warm-up, for Adam's first steps are its largest, then half a cosine
    return min(spent / WARM_UP + 0.1, 1.0) * 0.5 * (1 + math.cos(math.pi * spent))


def _tensor(answers: Any) -> torch.Tensor:
    answers = getattr(answers, "logits", answers)
    if not torch.is_tensor(answers) or not answers.is_floating_point():
        raise ValueError(
            f"the network answers with {type(answers).__name__}; refine needs a tensor of floating-point numbers"
        )
    return answers


def _unchanged(new, began, note):
    return Refined(new, math.nan, math.nan, 0, time.process_time() - began, note)


def _check(model, small, calibration, augment, loss):
    if not torch.is_tensor(calibration) or calibration.ndim < 2 or len(calibration) == 0:
        raise ValueError("calibration must be a tensor of at least one input, with the inputs along its first axis")
    if torch.is_inference_mode_enabled():
        raise ValueError("refine follows gradients, which torch.inference_mode() forbids; call it outside")
    if augment is not None and not callable(augment):
        raise ValueError(f"augment={augment!r} is not a function of (inputs, generator)")
    if loss not in (None, *LOSSES):
        raise ValueError(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}")
    for network in (model, small):
        check_finite(network)
