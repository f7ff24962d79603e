"""Fine-tuning alike: the rate is chosen on validation images, zeros stay, a teacher is followed, what diverges is said."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowrank_utils.lab import data, finetuning, models, training
from lowrank_utils.lab.finetuning import fine_tune


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def network(digits):
    return models.build("lenet300", digits.input_shape, 10, seed=0)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_rate_of_the_best_validation_accuracy_is_taken(digits, network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = fine_tune(network, digits, steps=30, rates=(3e-3, 1e-6), device="cpu")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert found.table["rate"].tolist() == [0, 1e-6, 3e-3] and found.rate == 3e-3 and not found.note
    none, low, high = found.table["valid_accuracy"]
    assert none == training.evaluate(network, *digits.tensors("valid")).accuracy
    assert high > 0.7 > low and not found.model.training
    assert training.evaluate(found.model, *digits.tensors("valid")).accuracy == high
    again = fine_tune(network, digits, steps=30, rates=(3e-3,), device="cpu")
    assert same(found.model, again.model)
    assert not same(found.model, fine_tune(network, digits, steps=30, rates=(3e-3,), seed=1, device="cpu").model)


def test_a_tie_takes_the_lowest_rate(digits, network, monkeypatch):
    accuracies = iter([0.5, 0.6, 0.6])
    monkeypatch.setattr(training, "evaluate", lambda *given: training.Scores(next(accuracies), 0.5, 1.0))
    found = fine_tune(network, digits, steps=1, rates=(2e-9, 1e-9), device="cpu")
    assert found.table["valid_accuracy"].tolist() == [0.5, 0.6, 0.6] and found.rate == 1e-9


def test_a_network_that_no_rate_makes_better_stays_as_it_was(digits, network):
    good = fine_tune(network, digits, steps=60, rates=(3e-3,), device="cpu").model
    found = fine_tune(good, digits, steps=3, rates=(0.3, 1.0), device="cpu")
    assert found.rate == 0 and not found.note and same(found.model, good) and not found.model.training
    assert found.table["valid_accuracy"].idxmax() == 0 and len(found.table) == 3


def test_the_number_of_steps_is_what_was_asked_for(digits, network, monkeypatch):
    steps, real = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a: (steps.append(1), real(self, *a))[1])
    fine_tune(network, digits, steps=25, rates=(1e-3,), device="cpu")  # an epoch has 11 batches
    assert len(steps) == 25


def test_zeros_stay_zero_only_where_asked(digits, network):
    sparse = models.build("lenet300", digits.input_shape, 10, seed=0)
    layers = [module for module in sparse.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            layer.weight[torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.8] = 0.0
    count = [int(layer.weight.count_nonzero()) for layer in layers]
    for keep in (True, False):
        found = fine_tune(sparse, digits, steps=10, rates=(1e-3,), keep_zeros=keep, device="cpu").model
        assert sorted(found.state_dict()) == sorted(sparse.state_dict())
        after = [int(module.weight.count_nonzero()) for module in found.modules() if isinstance(module, nn.Linear)]
        assert (after == count) == keep


def test_a_teacher_is_followed_beside_the_labels(digits, network):
    teacher = models.build("lenet300", digits.input_shape, 10, seed=5).eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    images, _ = digits.tensors("train")

    def apart(model):
        with torch.no_grad():
            p, q = ((net(images) / 4).log_softmax(1) for net in (teacher, model))
        return float(F.kl_div(q, p, reduction="batchmean", log_target=True))

    alone, taught = (
        fine_tune(network, digits, steps=60, rates=(3e-3,), teacher=one, device="cpu").model for one in (None, teacher)
    )
    assert apart(taught) < 0.5 * apart(alone)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_the_loss_with_a_teacher_is_the_mean_of_both_parts(digits):
    run = finetuning._Run(digits, 1, 8, 0.0, False, 2.0, 0, torch.device("cpu"))
    logits, wanted = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 2.0], [2.0, 2.0]])
    loss = run._loss(logits, torch.tensor([0, 1]), wanted)
    p, q = (wanted / 2).softmax(1), (logits / 2).softmax(1)
    expected = (F.cross_entropy(logits, torch.tensor([0, 1])) + 4 * (p * (p / q).log()).sum(1).mean()) / 2
    assert float(loss) == pytest.approx(float(expected))


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(64, 10), []

    def forward(self, x):
        self.seen.append(x.clone())
        return self.layer(x.flatten(1))


def test_a_teacher_answers_each_batch_once_for_all_rates(digits, network):
    def taught(*rates):
        teacher = Teacher()
        nn.init.eye_(teacher.layer.weight)
        nn.init.zeros_(teacher.layer.bias)
        return fine_tune(network, digits, steps=6, rates=rates, teacher=teacher, augment=True, device="cpu"), teacher

    (alone, _), (both, teacher) = taught(3e-3), taught(1e-9, 3e-3)
    assert len(teacher.seen) == 6 and both.rate == 3e-3 and same(both.model, alone.model)


class Viewing(nn.Sequential):
    def forward(self, x):
        x = self[0](x)
        return self[1](x.view(len(x), -1))  # cannot take channels last


@pytest.mark.parametrize("kind", [nn.Sequential, Viewing])
def test_weights_come_back_in_the_usual_order_whatever_a_network_can_take(digits, kind):
    torch.manual_seed(0)
    convolutions, last = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)), nn.Linear(4 * 16, 10)
    model = kind(convolutions, last) if kind is Viewing else kind(convolutions, nn.Flatten(), last)
    usual, seen = convolutions[1].weight.stride(), []
    convolutions[1].register_forward_hook(
        lambda layer, given, answer: seen.append((layer.weight.stride(), len(answer)))
    )
    found = fine_tune(model, digits, steps=3, rates=(1e-3, 3e-3), device="cpu").model
    assert found[0][1].weight.stride() == model[0][1].weight.stride() == usual
    trained = [stride for stride, images in seen if images == finetuning.BATCH]
    assert len(trained) == 6 and {stride == usual for stride in trained} == {kind is Viewing}
    assert sum(images == 2 for _, images in seen) == 1  # tried once, not once a rate


def test_what_diverges_is_said_and_not_taken(digits, network):
    found = fine_tune(network, digits, steps=20, rates=(1e-3, 1e30), device="cpu")
    assert found.rate == 1e-3 and found.note == "Diverged at a rate of 1e+30."
    assert np.isnan(found.table["valid_accuracy"][2]) and "NaN or infinite" in found.table["note"][2]
    lost = fine_tune(network, digits, steps=20, rates=(1e30,), device="cpu")
    assert np.isnan(lost.rate) and same(lost.model, network)
    assert lost.note == "Diverged at a rate of 1e+30. No rate was left: this is the network before fine-tuning."


def test_batches_are_augmented_where_asked(digits, network):
    plain, moved = (
        fine_tune(network, digits, steps=5, rates=(1e-3,), augment=augment, device="cpu").model
        for augment in (False, True)
    )
    assert not same(plain, moved)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "steps=0 is not a whole number of at least 1"),
        ({"rates": ()}, "rates is empty"),
        ({"rates": (1e-3, -1.0)}, "rate=-1.0 is not a rate above 0"),
        ({"temperature": 0}, "temperature=0 is not a temperature above 0"),
    ],
)
def test_bad_input_is_named(digits, network, change, sentence):
    with pytest.raises(ValueError, match="^" + sentence):
        fine_tune(network, digits, **change)
