"""Fine-tuning alike for every method: a stated number of steps, the rate chosen on validation images, with or without a teacher."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from lowrank_utils.checks import check_count, check_number
from lowrank_utils.lab import training
from lowrank_utils.network import modules

if TYPE_CHECKING:
    from lowrank_utils.lab.data import Dataset

STEPS = 500
BATCH = 128
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # peaks of the one-cycle schedule, all tried
TEMPERATURE = 4.0


@dataclass(frozen=True)
class Tuned:
    """What `fine_tune` made: the ``model`` (in eval mode), the ``rate`` that was best on validation images, and how it went.

    ``table``: one row a rate, with rate, valid_accuracy (NaN where it diverged) and note; the first row, at rate 0, is the network
    as it was given. Where no rate is better on validation images, the model is that one and ``rate`` is 0. Where every rate diverged,
    ``rate`` is NaN and the ``note`` says so. ``seconds`` of all rates together.
    """

    model: nn.Module = field(repr=False)
    rate: float
    table: pd.DataFrame = field(repr=False)
    seconds: float
    note: str = ""


def fine_tune(
    model: nn.Module,
    data: Dataset,
    *,
    steps: int = STEPS,
    rates: Sequence[float] = RATES,
    teacher: nn.Module | None = None,
    temperature: float = TEMPERATURE,
    batch_size: int = BATCH,
    weight_decay: float = 1e-2,
    augment: bool = False,
    valid_images: int | None = None,
    keep_zeros: bool = False,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Tuned:
    """Return `model` after `steps` steps on the training images, as `Tuned`; it is left as it was.

    AdamW under a one-cycle learning rate, as in `training.fit`, from the given weights once for each of `rates`; the rate of the
    highest accuracy on validation images is taken (the lowest of several), and none where no rate is better than no step. The loss is the cross-entropy of the labels. With a
    `teacher`, the dense network, it is the mean of that and of T^2 KL(p_T || q_T), where p_T and q_T are the teacher's and the
    network's answers at temperature T.

    A rate at which the loss or a weight becomes NaN or infinite has diverged: it stops, is written into the table, and is
    not taken.

    Parameters
    ----------
    augment : whether each batch is varied as in training (`training.augmentation`).
    valid_images : how many validation images decide (None: all).
    keep_zeros : whether weights of zero stay zero, for sparse networks.
    seed : of the batches and the augmentation, the same for every rate.

    Raises ValueError for counts, rates or a temperature that are none.
    Sources: Hinton, Vinyals & Dean 2015, section 2, for distillation; Blalock et al. 2020 for fine-tuning alike.
    """
    check_count(steps=steps, batch_size=batch_size)
    if not rates:
        raise ValueError("rates is empty; give at least one learning rate, such as 1e-3")
    for rate in rates:
        check_number(lambda value: value > 0, "a rate above 0", rate=rate)
    check_number(lambda value: value > 0, "a temperature above 0", temperature=temperature)
    began, device = time.perf_counter(), training.device_for(device)
    run = _Run(data, steps, batch_size, weight_decay, augment, temperature, seed, device)
    run.layout = training.layout_for(model, run.images[:2])
    valid = data.tensors("valid", valid_images)
    given = modules.copied(model).to(device).eval()
    best, chosen = given, 0.0
    rows: list[dict[str, Any]] = [
        {"rate": 0.0, "valid_accuracy": training.evaluate(given, *valid).accuracy, "note": ""}
    ]
    for rate in sorted(rates):
        new, note = run.tuned(model, teacher, rate, keep_zeros)
        accuracy = np.nan if note else training.evaluate(new, *valid).accuracy
        if not note and not any(accuracy <= row["valid_accuracy"] for row in rows):
            best, chosen = new, rate
        rows.append({"rate": rate, "valid_accuracy": accuracy, "note": note})
    diverged = [f"{row['rate']:g}" for row in rows if row["note"]]
    note = f"Diverged at a rate of {', '.join(diverged)}." if diverged else ""
    if len(diverged) == len(rates):
        chosen = np.nan
        note = f"{note} No rate was left: this is the network before fine-tuning."
    return Tuned(best, float(chosen), pd.DataFrame(rows), time.perf_counter() - began, note)


class _Run:
    # the images, read once, and one training of a copy at one rate

    def __init__(self, data, steps, batch_size, weight_decay, augment, temperature, seed, device):
        self.images, self.labels = (tensor.to(device) for tensor in data.tensors("train"))
        self.steps, self.batch_size, self.weight_decay = steps, batch_size, weight_decay
        self.augment = training.augmentation(data) if augment else None
        self.temperature, self.seed, self.device = temperature, seed, device
        self.layout = torch.contiguous_format
        self.wanted = []  # the teacher's answers, step by step: the batches of all rates are the same

    def tuned(self, model, teacher, rate, keep_zeros):
        # (a tuned copy in eval mode, why it diverged or nothing)
        new = modules.copied(model).to(self.device)
        new = new.to(memory_format=self.layout).train()
        holders = _masked(new) if keep_zeros else []
        adam = torch.optim.AdamW(new.parameters(), lr=rate, weight_decay=self.weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, rate, total_steps=max(self.steps, 2))
        for step, (batch, labels) in enumerate(self._batches()):
            if teacher is not None and step == len(self.wanted):
                with modules.evaluating(teacher):
                    answer = teacher(batch)
                self.wanted.append(answer.clone())
            loss = self._loss(new(batch), labels, self.wanted[step] if self.wanted else None)
            if not torch.isfinite(loss):
                return new, f"the loss became NaN or infinite at step {step + 1}"
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
        for module in holders:
            prune.remove(module, "weight")
        if not all(torch.isfinite(value).all() for value in new.state_dict().values() if value.is_floating_point()):
            return new, "weights became NaN or infinite"
        return new.to(memory_format=torch.contiguous_format).eval(), ""

    def _loss(self, logits, labels, wanted):
        loss = F.cross_entropy(logits, labels)
        if wanted is None:
            return loss
        softened = [(each / self.temperature).log_softmax(1) for each in (logits, wanted)]
        apart = F.kl_div(*softened, reduction="batchmean", log_target=True)
        return (loss + self.temperature**2 * apart) / 2

    def _batches(self):
        generator, left = torch.Generator().manual_seed(self.seed), self.steps
        while left:
            order = torch.randperm(len(self.images), generator=generator).to(self.device)
            for index in order.split(self.batch_size)[:left]:
                batch = self.images[index]
                yield batch if self.augment is None else self.augment(batch, generator), self.labels[index]
                left -= 1


def _masked(model: nn.Module) -> list[nn.Module]:
    # hold the zeros of all linear layers and convolutions; return these layers
    holders: list[Any] = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for module in holders:
        prune.custom_from_mask(module, "weight", module.weight != 0)
    return holders
