"""Refinement: nearer to the dense answers on unseen inputs, never further on the held-out ones, and plain words where it cannot."""

import copy
import math

import pytest
import torch
from torch import nn

from conftest import mlp
from lowrank_utils.factors import refine as module
from lowrank_utils.factors import replace
from lowrank_utils.factors.refine import cut_and_paste, refine
from lowrank_utils.network.profile import Profile

IMAGE = (3, 8, 8)


def inputs(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def thin(model, plan):
    return replace.apply_plan(Profile(model, input_shape=(12,)), plan, factors="svd", resource=None)


def divergence(model, small, x):
    with torch.no_grad():
        p, q = model(x).log_softmax(-1), small(x).log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.fixture
def pair():
    model = mlp((12, 30, 20, 5)).eval()
    for value in model.parameters():
        value.data *= 2  # answers that say something
    return model, thin(model, {"0": 5, "2": 4})


def pixels():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    model(3 * inputs(200, *IMAGE) + 1)  # running statistics
    model[-1].weight.data *= 8
    return model.eval()


def test_unseen_inputs_get_answers_nearer_to_the_dense_ones(pair):
    model, small = pair
    found = refine(model, small, inputs(400, 12), steps=80, rate=0.03)
    assert found.after < 0.9 * found.before and found.note == "" and found.steps == 80
    unseen = inputs(500, 12, seed=2)
    assert divergence(model, found.model, unseen) < 0.95 * divergence(model, small, unseen)
    assert found.history[0] == (0, found.history[0][1], found.before)
    assert min(value for *_, value in found.history) == found.after
    assert len(found.history) == module.LOOKS + 1 and found.history[-1][0] == 80


def test_nothing_that_was_given_is_changed(pair):
    model, small = pair
    model.train()
    small[0].first.weight.requires_grad_(False)
    before = [copy.deepcopy(network.state_dict()) for network in pair]
    x = inputs(60, 12)
    seen = x.clone()
    random = torch.random.get_rng_state()
    found = refine(model, small, x, steps=5)
    for network, state in zip(pair, before):
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        assert all(value.grad is None for value in network.parameters())
    assert torch.equal(x, seen) and torch.equal(random, torch.random.get_rng_state())
    assert all(part.training for part in model.modules()) and not any(part.training for part in found.model.modules())
    flags = {name: value.requires_grad for name, value in found.model.named_parameters()}
    assert flags == {name: value.requires_grad for name, value in small.named_parameters()}
    assert all(value.grad is None for value in found.model.parameters())
    assert type(found.model[0]) is nn.Sequential and found.model[0].first.weight.shape == (5, 12)


def test_it_is_never_worse_than_where_it_began(pair):
    model, small = pair
    found = refine(model, small, inputs(60, 12), steps=2, rate=3.0)
    assert found.after == found.before and "which is kept" in found.note
    kept = found.model.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in small.state_dict().items())


def test_it_stops_at_the_last_good_state_where_the_loss_is_not_finite(pair):
    model, small = pair
    calls = []

    def spoil(x, generator):
        calls.append(1)
        return x * math.nan if len(calls) == 9 else x

    found = refine(model, small, inputs(400, 12), steps=20, rate=3e-3, augment=spoil)
    assert "not finite at step" in found.note and found.steps < 20
    assert 0 < found.after < found.before
    assert all(torch.isfinite(value).all() for value in found.model.parameters())


def test_answers_that_are_not_finite_to_begin_with_are_named(pair):
    model, small = pair
    small[0].first.weight.data *= 1e30
    small[0].second.weight.data *= 1e30
    found = refine(model, small, inputs(40, 12), steps=5)
    assert "answers are not finite" in found.note and found.steps == 0


def test_one_input_and_constant_answers_are_left_alone(pair):
    model, small = pair
    found = refine(model, small, inputs(1, 12))
    assert "one input" in found.note and found.steps == 0 and math.isnan(found.after)
    x = inputs(40, 12)
    assert torch.equal(found.model(x), small(x))
    constant = copy.deepcopy(model)
    constant[-1].weight.data.zero_()
    found = refine(constant, small, x)
    assert "the same answer" in found.note and found.steps == 0
    assert torch.equal(found.model(x), small(x)) and found.model is not small


def test_budgets_in_seconds_and_in_steps_hold(pair):
    model, small = pair
    x = inputs(200, 12)
    found = refine(model, small, x, seconds=0.5)
    assert 0.1 <= found.seconds < 1.5 and found.steps > 5
    assert refine(model, small, x, seconds=30, steps=3).steps == 3
    still = refine(model, small, x, steps=0)
    assert still.steps == 0 and still.after == still.before


def test_seeds_decide(pair):
    model, small = pair
    x = inputs(100, 12)
    one, two, other = (refine(model, small, x, steps=6, seed=seed) for seed in (0, 0, 1))
    same = one.model.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in two.model.state_dict().items())
    assert one.after == two.after and one.after != other.after


def test_batch_norms_keep_their_statistics_and_images_are_pasted():
    model = pixels()
    x = 3 * inputs(160, *IMAGE) + 1
    small = replace.apply_plan(Profile(model, x), {"3": ("spatial", 3)}, factors="svd", resource=None)
    found = refine(model, small, x, steps=30, rate=5e-3, batch_size=40)
    assert found.after < 0.9 * found.before
    for at in (1, 4):
        old, new = small[at], found.model[at]
        assert torch.equal(old.running_mean, new.running_mean) and torch.equal(old.running_var, new.running_var)
        assert not torch.equal(old.weight, new.weight)
    plain = refine(model, small, x, steps=30, rate=5e-3, batch_size=40, paste=False)
    assert plain.before == found.before and plain.after < plain.before and plain.after != found.after


def test_networks_that_flatten_with_view_are_taken():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 6, 3), nn.Linear(216, 4)

        def forward(self, x):
            return self.last(self.conv(x).relu().view(len(x), -1))

    torch.manual_seed(0)
    model = Viewing().eval()
    model.last.weight.data *= 10
    x = inputs(50, *IMAGE)
    small = replace.apply_plan(Profile(model, x), {"conv": ("spatial", 2)}, factors="svd", resource=None)
    found = refine(model, small, x, steps=20, rate=3e-3)
    assert found.after < found.before


def test_sequences_are_refined_by_their_relative_error():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(30, 16)
            self.mix = nn.Linear(16, 24)
            self.last = nn.Linear(24, 7)

        def forward(self, ids):
            hidden = self.embed(ids).cumsum(1)
            return self.last(self.mix(hidden).relu())

    torch.manual_seed(0)
    model = Tokens().eval()
    ids = torch.randint(30, (80, 9), generator=torch.Generator().manual_seed(3))
    small = copy.deepcopy(model)
    small.mix = nn.Sequential()
    u, s, vt = torch.linalg.svd(model.mix.weight.detach(), full_matrices=False)
    first, second = nn.Linear(16, 4, bias=False), nn.Linear(4, 24)
    first.weight.data, second.weight.data = s[:4, None] * vt[:4], u[:, :4].clone()
    second.bias.data = model.mix.bias.data.clone()
    small.mix.add_module("first", first)
    small.mix.add_module("second", second)
    found = refine(model, small, ids, steps=40, rate=3e-3)
    with torch.no_grad():
        wanted, was = model(ids), small(ids)
    unseen = torch.randint(30, (60, 9), generator=torch.Generator().manual_seed(4))
    spread = (wanted - wanted.mean(0)).square().mean()
    assert found.before == pytest.approx(float((was - wanted).square().mean() / spread), rel=0.5)
    assert found.after < 0.8 * found.before
    errors = [(net(unseen) - model(unseen)).square().mean() for net in (found.model, small)]
    assert errors[0] < 0.8 * errors[1]
    as_classes = refine(model, small, ids, steps=40, rate=3e-3, loss="divergence")
    assert as_classes.after < as_classes.before != found.before


@pytest.mark.parametrize(
    "model, x, once",
    [
        (mlp((12, 30, 5)), inputs(2, 12), True),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), inputs(2, *IMAGE), True),
        (pixels(), inputs(2, *IMAGE), False),
        (nn.Linear(4, 3), inputs(2, 7, 4), False),  # sequences
        (nn.ReLU(), inputs(2, 4), False),
    ],
)
def test_layers_that_see_one_position_an_input_are_told_from_others(model, x, once):
    assert module._one_position(model, x) is once


def test_inputs_that_overflow_leave_the_network_as_it_is_and_say_so():
    model, x = pixels(), inputs(100, *IMAGE)
    small = replace.apply_plan(Profile(model, input_shape=IMAGE), {"3": 8}, factors="svd", resource=None)
    for size, words in ((1e19, "Nothing was refined"), (1e30, "answers are not finite")):
        strange = x.clone()
        strange[:50] *= size
        found = refine(model, small, strange, steps=2)
        assert words in found.note and "finite" in found.note, found.note
        assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), small.parameters()))


def test_only_networks_with_many_positions_get_a_curvature(pair, monkeypatch):
    def refused(*args):
        raise AssertionError("the curvature was measured")

    monkeypatch.setattr(module, "_Preconditioner", refused)
    assert refine(*pair, inputs(100, 12), steps=2).steps == 2
    model = pixels()
    small = replace.apply_plan(Profile(model, input_shape=IMAGE), {"3": 8}, factors="svd", resource=None)
    with pytest.raises(AssertionError, match="the curvature was measured"):
        refine(model, small, inputs(100, *IMAGE), steps=2)


def test_cut_and_paste_takes_pixels_from_one_other_image():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 8, 10)
    mixed = cut_and_paste(images, torch.Generator().manual_seed(0))
    assert mixed.shape == images.shape and not torch.equal(mixed, images)
    for image in mixed:
        assert len(image.unique()) <= 2 and torch.equal(image[0], image[1])


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"steps": -1}, "steps=-1 is not a whole number"),
        ({"seconds": 0}, "seconds=0 is not a number above 0"),
        ({"rate": math.nan}, "rate=nan is not a number above 0"),
        ({"held_out": 1}, "held_out=1 is not a number between 0 and 1"),
        ({"loss": "kl"}, "unknown loss 'kl'; known: divergence, error"),
        ({"augment": 3}, "augment=3 is not a function"),
        ({"batch_size": 0}, "batch_size=0 is not a whole number"),
    ],
)
def test_a_bad_argument_is_named(pair, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        refine(*pair, inputs(20, 12), **wrong)


def test_bad_inputs_and_networks_are_named(pair):
    model, small = pair
    x = inputs(20, 12)
    with pytest.raises(ValueError, match="NaN or infinite"):
        refine(model, small, x * math.nan)
    with pytest.raises(ValueError, match="at least one input"):
        refine(model, small, x[:0])
    with torch.inference_mode(), pytest.raises(ValueError, match="call it outside"):
        refine(model, small, x)
    broken = copy.deepcopy(small)
    broken[4].bias.data[0] = math.nan
    with pytest.raises(ValueError, match="4.bias holds NaN"):
        refine(model, broken, x)
    with pytest.raises(ValueError, match="answers with int"):
        refine(type("Counting", (nn.Linear,), {"forward": lambda self, x: len(x)})(12, 5), small, x)
