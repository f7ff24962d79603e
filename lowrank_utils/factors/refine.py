"""A compressed network tuned as a whole, without labels, until its answers meet the dense network's.

The sweep (`factors.sequential`) repairs each layer once, front to back. `refine` goes on from there with gradient steps on
all parameters at once, towards the answers that the dense network gives to the calibration inputs: distillation without
labels (Hinton, Vinyals & Dean 2015).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lowrank_utils import checks
from lowrank_utils.network.hooks import hooked
from lowrank_utils.network.inputs import (
    Batch,
    Inputs,
    about_layout,
    at_once,
    call,
    check_some,
    divergence,
    fed,
    is_plain,
    logits,
)
from lowrank_utils.network.inputs import check_finite as check_finite_inputs
from lowrank_utils.network.modules import check_finite, copied, evaluating
from lowrank_utils.network.unfold import call_input, groups, output_rows, patches, schemes_of
from lowrank_utils.progress import track

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
LOSSES = ("divergence", "error")
MEANT = {"divergence": "divergence (nats) from", "error": "squared error over the variance of"}
STEPS, TOKEN_STEPS, POINT_STEPS = 480, 40, 1000  # the budget where none is given; the last of fully connected networks
BATCH, POINT_BATCH = 25, 100  # inputs
POINT_RATE = 0.004
LOOKS = 10  # at the held-out inputs, evenly over the budget
PATIENCE = 10  # looks without a better state after which it stops: the first steps lose what the last ones win back
MOST_HELD_OUT = 250  # inputs
SAMPLE = 200  # inputs from which the curvature is measured
DAMPING = 0.01  # share of the mean eigenvalue
WIDEST = 2048  # vectors longer than that have a diagonal curvature
WARM_UP = 0.1  # share of the budget


@dataclass(frozen=True)
class Refined:
    """What `refine` made: the new ``model`` in eval mode, and how it came about.

    ``before``, ``after``: ``loss`` ("error" or "divergence", see `refine`) on the held-out calibration inputs (NaN where it
    was not measured); ``steps`` taken;
    ``best_step``: after which the state was reached that was kept, 0 for the network that it began with; ``seconds`` of processor time; ``note``: what the reader should know, or empty; ``history``: (step, seconds, held-out
    loss) of each look at the held-out inputs.
    """

    model: nn.Module = field(repr=False)
    before: float
    after: float
    steps: int
    seconds: float
    note: str = ""
    history: tuple[tuple[int, float, float], ...] = field(default=(), repr=False)
    best_step: int = 0
    loss: str = "error"

    @property
    def changed(self) -> bool:
        """Whether any step was kept."""
        return self.best_step > 0

    def __str__(self) -> str:
        if not self.changed:
            return f"Refinement without labels kept none of its {self.steps} steps; {self.seconds:.0f} s."
        return (
            f"Refined in {self.steps} steps without labels: {MEANT[self.loss]} the dense answers on held-out inputs is "
            f"{self.before:.3g} before, {self.after:.3g} after; {self.seconds:.0f} s."
        )


def refine(
    model: nn.Module,
    small: nn.Module,
    calibration: Batch,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    augment: Augment | None = None,
    paste: bool = True,
    loss: str = "error",
    rate: float | None = None,
    batch_size: int | None = None,
    held_out: float | Batch = 0.15,
    seed: int = 0,
) -> Refined:
    """Return `small` tuned so that its answers meet those of `model` on the calibration inputs, as `Refined`; no labels.

    Nothing that is given is changed. Batch norms keep their statistics, and their scales and shifts are tuned with all
    other parameters. A share `held_out` of the inputs (at most 250) is never learnt from: the loss on these decides when
    to stop, and which state is kept, so the result is never worse there than `small` (better on other inputs is likely,
    not certain), neither in the loss nor in the divergence of the answers. These inputs are looked at as they are. The
    optimiser is ``torch.optim.SGD`` with Nesterov momentum on gradients preconditioned by the curvature
    (`_Preconditioner`). In a network whose layers see one position an input, as fully connected ones do, a few hundred
    inputs tell too little of the curvature: there it is ``torch.optim.Adam``. Both have a short warm-up and half a cosine over
    the budget.

    Parameters
    ----------
    model : the dense network; it answers a batch with a floating-point tensor, or an object with such `.logits`.
    small : the compressed network, with the same inputs and answers.
    calibration : inputs, N first, a tensor or `inputs.Inputs`; hundreds at least, and more are better. Floating-point ones
        are cast to the type of `model`.
    seconds, steps : budget, in seconds of processor time of this process (all threads) from the call on, or in steps; the
        first to end counts. A step or a look at the held-out inputs is finished once begun. Default: 480 steps, 40 for token ids,
        1 000 for fully connected networks. With `seconds` the number of steps, so the result, depends on the machine.
    augment : function of (inputs, generator) that returns changed inputs, as `lab.training.crop_flip`; default none.
    paste : whether images (N x C x H x W, floating point) have rectangles of one another pasted in (`cut_and_paste`).
    loss : "error" (the default), the mean squared error relative to the variance of the dense answers, or "divergence",
        the Kullback-Leibler divergence of the answers as logits over the last axis.
    rate : largest learning rate (None: 0.01, and 0.004 of fully connected networks).
    batch_size : inputs in a step (None: 25, 100 of fully connected networks, and of token ids about 512 tokens).
    held_out : share of `calibration` that is not learnt from, in (0, 1), or other inputs for that end: best are some that
        `small` was not made with either, since it looks better than it is on those that it was made with.
    seed : of splits, batches and pasted images.

    Raises ValueError for a bad argument, NaN in inputs or weights, answers of another kind, and inside
    ``torch.inference_mode()``. One input, constant dense answers or answers that are not finite leave the network as
    it is, and the note says so.

    Measured (ResNet-20, CIFAR-10, a quarter of the MACs, draw 0, one thread; 2 000 training images outside the
    calibration set: divergence from the dense answers under flips and shifts, and share of images with the dense class;
    steps of 50 images, 240 of which take about 35 s):

    ======================================  ==========  ==========
    recipe                                  divergence  same class
    ======================================  ==========  ==========
    before                                  0.72        81.5 %
    divergence, rate 0.02, 120 steps        0.48        80.8 %
    divergence, rate 0.005, 120 steps       0.51        81.9 %
    error, rate 0.005, 120 steps            0.61        83.0 %
    error, rate 0.01, 240 steps             0.55        84.7 %
    ======================================  ==========  ==========

    All with flips, shifts and pasted rectangles: the divergence falls fastest where it is the loss, but mostly by
    answers that are less sure of themselves.
    As `compress` calls it (480 steps of 25 images, without flips and shifts, judged by 150 inputs that the sweep did not see), test
    accuracy goes from 83.4 to 84.8 % (means of three draws of 1 000 images; `compress` takes 35 s in all).

    Fully connected, LeNet-300-100, 5 000 inputs, means of three networks: at a twentieth of the parameters MNIST's test accuracy
    goes from 90.6 to 93.1 %, at a tenth from 97.3 to 97.5 %; Fashion-MNIST's stays within 0.3 points. Language model,
    SmolLM2-135M, 16 windows of 512 tokens: no state was better on two held-out windows than the one it began with.

    >>> dense = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> small = nn.Sequential(nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 8)), nn.ReLU(), nn.Linear(8, 3))
    >>> found = refine(dense, small, torch.randn(64, 6), steps=5)
    >>> found.after <= found.before, found.steps
    (True, 5)
    """
    began = time.process_time()
    _check(model, small, calibration, augment, loss)
    if rate is not None:
        checks.check_number(lambda value: value > 0, "a number above 0", rate=rate)
    if isinstance(held_out, (torch.Tensor, Inputs)):
        check_some(held_out)
    else:
        checks.check_number(lambda value: 0 < value < 1, "a number between 0 and 1", held_out=held_out)
    points = is_plain(calibration) and _one_position(
        small, fed(calibration[:2], next(small.parameters(), torch.empty(0)))
    )
    if batch_size is None:
        batch_size = POINT_BATCH if points else at_once(calibration, BATCH)
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
    usual = POINT_STEPS if points else STEPS if is_plain(calibration) else TOKEN_STEPS
    budget = _Budget(began, seconds, usual if steps is None and seconds is None else steps)
    task = _Task(model, calibration, augment, paste, loss, batch_size, held_out, seed)
    if not task.finite():
        return _unchanged(new, began, "Nothing was refined: the dense network's answers are not finite.")
    if task.constant():
        return _unchanged(
            new, began, "Nothing was refined: the dense network gives all calibration inputs the same answer."
        )
    return _tune(new, task, budget, rate or (POINT_RATE if points else 0.01), points)


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

    def running(self) -> Iterator[tuple[int, float]]:
        # (steps taken, share spent) before each step; under a bar where the number of steps is known
        def steps():
            step = 0
            while (spent := self.spent(step)) < 1:
                yield step, spent
                step += 1

        return track(steps(), "refinement", self.steps) if self.steps else steps()


class _Task:
    """Inputs and the dense network's answers to them, in shuffled batches and held out."""

    def __init__(self, model, calibration, augment, paste, loss, batch_size, held_out, seed):
        self.model, self.augment, self.batch_size = model, augment, batch_size
        first = next(model.parameters(), None)
        self.like = torch.empty(0) if first is None else first
        self.images = is_plain(calibration) and calibration.ndim == 4
        self.paste = paste and self.images
        self.generator = torch.Generator().manual_seed(seed)
        count = len(calibration)
        order = torch.randperm(count, generator=self.generator)
        given = isinstance(held_out, (torch.Tensor, Inputs))
        held = 0 if given else min(max(round(held_out * count), 1), count - 1, MOST_HELD_OUT)
        self.seen, self.calibration, self.queue = order[held:], calibration, order[:0]
        self.layout = self._fastest(calibration[order[:2]])
        inputs = self._ready(held_out[:MOST_HELD_OUT]) if given else self._load(order[:held])
        answers = [self.answer(some) for some in inputs.split(batch_size)]
        self.loss = loss
        sample = torch.cat([*answers, self.answer(self._load(self.seen[:batch_size]))])
        self.spread = float((sample - sample.mean(0)).square().mean())
        self.size = float(sample.square().mean())
        # as they are, neither pasted nor augmented: what counts is the network on real inputs
        self.looks = list(zip(inputs.split(batch_size), answers))
        self.logits = answers[0].ndim in (2, 3) and answers[0].shape[-1] > 1

    def constant(self) -> bool:
        return self.spread <= 1e-10 * self.size

    def finite(self) -> bool:
        return math.isfinite(self.size)

    def _fastest(self, inputs):
        # channels_last takes a sixth less time; networks that flatten with view() cannot take it
        if self.images:
            try:
                self.layout = torch.channels_last
                self.answer(self._arranged(fed(inputs, self.like)))
                return torch.channels_last
            except RuntimeError as error:
                if not about_layout(error):
                    raise
        return torch.contiguous_format

    def _arranged(self, inputs):
        return inputs.contiguous(memory_format=self.layout) if self.images else inputs

    def _load(self, indices):
        return self._ready(self.calibration[indices])

    def _ready(self, inputs):
        check_finite_inputs(inputs)
        return self._arranged(fed(inputs, self.like))

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

    def answer(self, inputs: Batch) -> torch.Tensor:
        with evaluating(self.model):
            found = _tensor(call(self.model, fed(inputs, self.like)))
        return found.clone()  # outside of inference mode, so that autograd takes it

    def distance(self, answers: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if self.loss == "error":
            return F.mse_loss(answers, wanted) / self.spread
        return divergence(wanted, answers).mean()

    def sample(self) -> torch.Tensor:
        return self._varied(self._load(self.seen[: min(SAMPLE, SAMPLE // BATCH * self.batch_size)]), self.generator)

    def drawn(self, answers: torch.Tensor) -> torch.Tensor:
        # a loss whose gradients have the Fisher information as their second moment: answers drawn from the network itself
        if self.loss == "error":
            return (answers * torch.randn(answers.shape, generator=self.generator).to(answers)).sum()
        logits = answers.reshape(-1, answers.shape[-1])
        drawn = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=self.generator)[:, 0]
        return F.cross_entropy(logits, drawn.to(logits.device), reduction="sum")

    @torch.no_grad()
    def held_out(self, small: nn.Module) -> tuple[float, float]:
        """Return (the loss on the held-out inputs, the divergence of the answers as logits; 0 where they are none)."""
        losses, divergences = [], []
        for x, wanted in self.looks:
            answers = _tensor(call(small, fed(x, self.like)))
            losses.append(float(self.distance(answers, wanted)) * len(x))
            divergences.append(float(divergence(wanted, answers).mean()) * len(x) if self.logits else 0.0)
        count = sum(len(x) for x, _ in self.looks)
        return sum(losses) / count, sum(divergences) / count


def _one_position(model, inputs):
    # whether each layer is applied once to an input, as those of fully connected networks are
    rows = []

    def hook(layer, args, kwargs, out):
        rows.append(len(output_rows(layer, out)[0]))

    layers = {name: layer for name, layer in model.named_modules() if schemes_of(layer)}
    with hooked(model, dict.fromkeys(layers, hook)), evaluating(model):
        call(model, inputs)
    return bool(rows) and max(rows) <= len(inputs)


def _tune(new, task, budget, rate, points):
    flags = [(value, value.requires_grad) for value in new.parameters()]
    tuned = [value.requires_grad_(True) for value in new.parameters() if value.is_floating_point()]
    optimiser: Any = torch.optim.Adam(tuned, rate) if points else torch.optim.SGD(tuned, rate, 0.9, nesterov=True)
    look = _Looks(new, task, budget)
    look(0)
    note = "" if math.isfinite(look.best) else "Nothing was refined: the compressed network's answers are not finite."
    step = 0
    with torch.enable_grad():
        curvature = None
        if not note and not points:
            try:
                curvature = _Preconditioner(new, task)
            except OverflowError:
                note = "Nothing was refined: the gradients on the calibration inputs are not finite."
        for step, spent in () if note else budget.running():
            for group in optimiser.param_groups:
                group["lr"] = rate * _schedule(spent)
            inputs, wanted = task.batch()
            value = task.distance(_tensor(call(new, inputs)), wanted)
            optimiser.zero_grad()
            value.backward()
            if curvature is not None:
                curvature.apply()
            optimiser.step()
            step += 1
            due = budget.spent(step) * LOOKS >= len(look.history)
            if not torch.isfinite(value) or (due and not math.isfinite(look(step))):
                note = f"The loss was not finite at step {step}; the network is that of step {look.best_step}."
            if note or look.stale():
                break
    if not note and look.history[-1][0] < step:
        look(step)
    look.restore()
    for value, flag in flags:
        value.grad = None
        value.requires_grad_(flag)
    if not note and look.best_step == 0:
        note = "No state was better on the held-out inputs than the one it began with, which is kept."
    return Refined(
        new.eval(),
        look.history[0][2],
        look.best,
        step,
        budget.elapsed(),
        note,
        tuple(look.history),
        look.best_step,
        loss=task.loss,
    )


class _Looks:
    # the held-out loss from time to time, and the best state so far
    def __init__(self, new, task, budget):
        self.new, self.task, self.budget = new, task, budget
        self.best, self.best_step, self.history = math.inf, 0, []
        self.state = self._state()

    def _state(self):
        return [value.detach().clone() for value in self.new.parameters()]

    def __call__(self, step):
        found, divergence = self.task.held_out(self.new)
        if not self.history:
            self.most = divergence
        self.history.append((step, self.budget.elapsed(), found))
        # networks that are sure of their training inputs can come nearer in error and farther in what they answer
        if found < self.best and divergence <= self.most:
            self.best, self.best_step, self.state = found, step, self._state()
        return found

    def stale(self):
        return len(self.history) > PATIENCE and min(value for *_, value in self.history[-PATIENCE:]) > self.best

    @torch.no_grad()
    def restore(self):
        for value, kept in zip(self.new.parameters(), self.state):
            value.copy_(kept)


class _Preconditioner:
    """The curvature of the loss, in Kronecker factors for each layer, measured once; it turns gradients into better directions.

    The Fisher information of a layer's weights is nearly C (x) G with C the second moment of its inputs (patches) and G that
    of the gradients of its outputs: the direction is G^-1 (gradient) C^-1 (Martens & Grosse 2015; convolutions, Grosse &
    Martens 2016). Both are scaled to a mean eigenvalue of 1 and damped.
    """

    def __init__(self, small, task):
        held = [id(value) for layer in small.modules() for value in layer._parameters.values()]
        layers = {
            name: layer
            for name, layer in small.named_modules()
            if schemes_of(layer) and groups(layer) == 1 and held.count(id(layer.weight)) == 1
        }
        self.seen, self.slopes = {}, {}
        with hooked(small, {name: self._watch(name, layer) for name, layer in layers.items()}):
            for inputs in task.sample().split(task.batch_size):
                task.drawn(_tensor(call(small, fed(inputs, task.like)))).backward()
        for value in small.parameters():
            value.grad = None
        met = [name for name in layers if name in self.slopes]
        self.inverses = [(layers[name].weight, _inverse(self.slopes[name]), _inverse(self.seen[name])) for name in met]
        covered = {id(weight) for weight, _, _ in self.inverses}
        self.others = [value for value in small.parameters() if id(value) not in covered]

    def _watch(self, name, layer):
        def hook(module, args, kwargs, out):
            x = call_input(args, kwargs).detach()
            positions = out[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
            # neighbouring patches say nearly the same; an odd stride meets all columns
            rows = patches(layer, x, every=max(1, positions // 64) | 1)[0]
            self.seen[name] = self.seen.get(name, 0) + _outer(rows)
            out.register_hook(add)

        def add(slope):
            self.slopes[name] = self.slopes.get(name, 0) + _outer(output_rows(layer, slope)[0])

        return hook

    @torch.no_grad()
    def apply(self):
        """Precondition the gradients in place, and shorten a step that is longer than 1 in this metric."""
        length = sum(float(value.grad.square().sum()) for value in self.others if value.grad is not None)
        changed = [value for value in self.others if value.grad is not None]
        for weight, left, right in self.inverses:
            if weight.grad is not None:
                plain = weight.grad.flatten(1)
                better = _times(_times(plain.T, left).T, right)
                length += float((plain * better).sum())
                weight.grad = better.reshape(weight.shape)
                changed.append(weight)
        if length > 1:
            for value in changed:
                value.grad /= math.sqrt(length)


def _times(rows, inverse):
    return rows * inverse if inverse.ndim == 1 else rows @ inverse


def _outer(rows):
    # the sum of outer products; of very long vectors only the diagonal, for the inverse of a matrix would take minutes
    return rows.T @ rows if rows.shape[1] <= WIDEST else rows.square().sum(0)


def _inverse(moment):
    if not torch.isfinite(moment).all():
        raise OverflowError("second moments are not finite")
    if moment.ndim == 1:
        return _reciprocal(moment)
    values, vectors = torch.linalg.eigh(moment.double())
    return ((vectors * _reciprocal(values)) @ vectors.T).to(moment.dtype)


def _reciprocal(values):
    # of eigenvalues, scaled to a mean of 1 and damped; 1 where all are zero
    mean = values.mean()
    return (1 + DAMPING) / (values.clamp(min=0) / mean + DAMPING) if mean > 0 else torch.ones_like(values)


def _schedule(spent):
    # a short warm-up, for Adam's first steps are its largest, then half a cosine
    return min(spent / WARM_UP + 0.1, 1.0) * 0.5 * (1 + math.cos(math.pi * spent))


def _tensor(answers: Any) -> torch.Tensor:
    answers = logits(answers)
    if not torch.is_tensor(answers) or not answers.is_floating_point():
        raise ValueError(
            f"the network answers with {type(answers).__name__}; refine needs a tensor of floating-point numbers"
        )
    return answers


def _unchanged(new, began, note):
    return Refined(new, math.nan, math.nan, 0, time.process_time() - began, note)


def _check(model, small, calibration, augment, loss):
    check_some(calibration)
    if torch.is_inference_mode_enabled():
        raise ValueError("refine follows gradients, which torch.inference_mode() forbids; call it outside")
    if augment is not None and not callable(augment):
        raise ValueError(f"augment={augment!r} is not a function of (inputs, generator)")
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}")
    for network in (model, small):
        check_finite(network)
