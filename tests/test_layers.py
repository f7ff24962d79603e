"""Cards, costs and replaced layers: the ledger must agree with the networks that are really built."""

import logging
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_utils.factors import replace
from lowrank_utils.network import profile
from lowrank_utils.network.profile import Profile


def mlp(sizes=(30, 20, 12, 5), seed=0):
    torch.manual_seed(seed)
    steps = []
    for i, (d_in, d_out) in enumerate(zip(sizes, sizes[1:])):
        steps += [(f"fc{i + 1}", nn.Linear(d_in, d_out)), (f"relu{i + 1}", nn.ReLU())]
    return nn.Sequential(OrderedDict(steps[:-1]))


def counted(model, shape):
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


def test_cards_of_a_small_network():
    cards = profile.read_layers(mlp(), (30,))
    assert [(c.name, c.kind, c.shape) for c in cards] == [
        ("fc1", "linear", (20, 30)),
        ("fc2", "linear", (12, 20)),
        ("fc3", "linear", (5, 12)),
    ]
    assert [c.parameters for c in cards] == [620, 252, 65]
    assert [c.macs for c in cards] == [600, 240, 60]
    assert [c.break_even(resource="parameters") for c in cards] == [11, 7, 3]  # 600/50 = 12 exactly does not pay
    assert all(np.all(np.diff(c.singular_values) <= 0) for c in cards)


def test_macs_agree_with_torch_also_for_sequences_and_convolutions():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(2), nn.Linear(9, 7)
    )
    cards = profile.read_layers(model, (3, 10, 10))
    assert sum(c.macs for c in cards) == counted(model, (3, 10, 10))
    assert cards[2].positions == 8
    assert [c.reason for c in cards] == ["", "", ""] and [c.scheme for c in cards] == ["spatial", "spatial", None]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 14), min_size=2, max_size=4), st.booleans(), st.data())
def test_costs_on_the_cards_are_those_of_the_network_built(sizes, twice, draw):
    model = mlp(sizes)
    shape = (3, sizes[0]) if twice else (sizes[0],)
    cards = profile.read_layers(model, shape)
    plan = {c.name: draw.draw(st.integers(1, c.full_rank), label=c.name) for c in cards if draw.draw(st.booleans())}
    smaller = replace.apply_plan(Profile(model), plan, resource="parameters")
    assert profile.plan_cost(cards, plan, "parameters") == sum(p.numel() for p in smaller.parameters())
    assert profile.plan_cost(cards, plan, "macs") == counted(smaller, shape)
    assert profile.plan_cost(cards, plan, "macs") <= profile.plan_cost(cards, {}, "macs")


def test_apply_leaves_the_model_alone_and_shares_nothing():
    model = mlp()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    smaller = replace.apply_plan(Profile(model), {"fc1": 3}, resource="parameters")
    with torch.no_grad():
        for p in smaller.parameters():
            p.zero_()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())
    assert isinstance(smaller.fc1, nn.Sequential) and isinstance(smaller.fc2, nn.Linear)
    assert {type(m) for m in smaller.modules()} <= {nn.Sequential, nn.Linear, nn.ReLU}


def test_a_rank_that_does_not_pay_stays_dense_and_says_so(caplog):
    model = mlp()
    with caplog.at_level(logging.INFO):
        smaller = replace.apply_plan(Profile(model), {"fc1": 12, "fc2": 7}, resource="parameters")
    assert isinstance(smaller.fc1, nn.Linear) and isinstance(smaller.fc2, nn.Sequential)
    assert "fc1 stays dense: rank 12 costs no less" in caplog.text and "fc2" not in caplog.text


def test_one_decomposition_serves_every_rank():
    model, x = mlp(), torch.randn(80, 30)
    bases = replace.decompose_layers(Profile(model, x), ["fc1", "fc2"], "data-aware")
    for ranks in ({"fc1": 2}, {"fc1": 9, "fc2": 4}):
        direct = replace.apply_plan(Profile(model, x), ranks, factors="data-aware", resource="parameters")
        assert torch.allclose(
            replace.apply_plan(Profile(model), ranks, factors=bases, resource="parameters")(x), direct(x), atol=1e-5
        )


def test_a_network_that_is_one_layer():
    layer = nn.Linear(10, 10)
    assert isinstance(replace.apply_plan(Profile(layer), {"": 2}, resource="parameters"), nn.Sequential)


def test_what_cannot_be_factored_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(self.a(x)))

    cards = {c.name: c for c in profile.read_layers(Odd(), (6,))}
    assert cards["a"].reason == "its weight is shared with b" and cards["a"].positions == 2
    assert cards["unused"].reason == "no input reaches it in a forward pass"


def test_layers_left_dense_on_request_are_counted_and_untouched():
    cards = profile.read_layers(mlp(), (30,), dense=("fc3",))
    assert [c.reason for c in cards] == ["", "", "left dense on request"]
    assert profile.plan_cost(cards, {}, "parameters") == 937
    with pytest.raises(ValueError, match="does not have: fc9"):
        profile.read_layers(mlp(), (30,), dense=("fc9",))


def test_bad_input_is_refused_in_words():
    model = mlp()
    for plan, words in [
        ({"fc9": 2}, "a layer 'fc9' that the model does not have"),
        ({"relu1": 2}, "layer 'relu1' of type ReLU cannot be factored"),
        ({"fc1": 21}, "rank 21 of layer 'fc1' is not a whole number from 1 to 20"),
        ({"fc1": 2.5}, "rank 2.5 of layer 'fc1'"),
        ({"fc1": 0}, "layer|rank 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            replace.apply_plan(Profile(model), plan, resource="parameters")
    with pytest.raises(ValueError, match="need calibration images"):
        replace.apply_plan(Profile(model), {"fc1": 2}, factors="data-aware", resource="parameters")
    with pytest.raises(ValueError, match="unknown factors 'best'; known: svd, data-aware"):
        replace.apply_plan(Profile(model, torch.zeros(2, 30)), {"fc1": 2}, factors="best", resource="parameters")
    with pytest.raises(ValueError, match="no factors were given for the planned layers fc2"):
        replace.apply_plan(
            Profile(model), {"fc2": 2}, factors=replace.decompose_layers(Profile(model), ["fc1"]), resource="parameters"
        )
    with pytest.raises(ValueError, match="unknown resource 'flops'; known: parameters, macs"):
        replace.apply_plan(Profile(model), {}, resource="flops")
    with pytest.raises(ValueError, match=r"cannot take one input of shape \(31,\)"):
        profile.read_layers(model, (31,))
    model.fc2.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match="'fc2' holds NaN or infinite weights"):
        profile.read_layers(model, (30,))


def test_computed_weights_and_subclasses_are_named_and_left():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(20, 20)), Doubled(20, 20), nn.Linear(20, 9))
    reasons = [card.reason for card in profile.read_layers(model, (20,))]
    assert reasons == ["its weight is computed from other parameters", "a layer of type Doubled is not factored", ""]
    with pytest.raises(ValueError, match="layer '1' of type Doubled cannot be factored"):
        replace.apply_plan(Profile(model), {"1": 2}, resource="parameters")


def test_tied_weights_count_once_and_are_not_untied():
    tied = nn.Sequential(nn.Linear(20, 20, bias=False), nn.ReLU(), nn.Linear(20, 20, bias=False))
    tied[2].weight = tied[0].weight
    assert (
        profile.plan_cost(profile.read_layers(tied, (20,)), {}, "parameters")
        == 400
        == sum(p.numel() for p in tied.parameters())
    )
    with pytest.raises(ValueError, match="layer '0' shares its weight with another"):
        replace.apply_plan(Profile(tied), {"0": 3}, resource="parameters")


def test_a_zero_layer_that_one_component_would_not_pay_for_stays_dense():
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 1))
    model[2].weight.data.zero_()
    cards = profile.read_layers(model, (30,))
    assert profile.if_cheaper(cards[1], 0, "parameters") is None
    for plan in ({"2": 0}, {"0": 3, "2": 0}):
        built = replace.apply_plan(Profile(model), plan, resource="parameters")
        assert profile.plan_cost(cards, plan, "parameters") == sum(p.numel() for p in built.parameters())


def test_frozen_modules_are_put_back_as_they_were():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).train()
    model[1].eval()
    profile.read_layers(model, (6,))
    replace.decompose_layers(Profile(model, torch.randn(9, 6)), ["0"], "data-aware")
    assert model.training and model[0].training and not model[1].training


def test_factors_of_another_layer_are_refused():
    model = nn.Sequential(nn.Linear(8, 8))
    other = replace.decompose_layers(Profile(nn.Sequential(nn.Linear(8, 9))), ["0"])
    with pytest.raises(ValueError, match=r"layer '0' has weights of shape \(8, 8\), its factors make \(9, 8\)"):
        replace.apply_plan(Profile(model), {"0": 2}, factors=other, resource="parameters")
    assert replace.apply_plan(Profile(model), {"0": np.int64(2)}, resource="parameters")[0].first.weight.shape == (2, 8)


@pytest.mark.parametrize("bias", [True, False])
def test_the_cost_of_a_plan_without_biases(bias):
    model = nn.Sequential(nn.Linear(30, 20, bias=bias), nn.ReLU(), nn.Linear(20, 12, bias=bias))
    built = replace.apply_plan(Profile(model), {"0": 4}, resource="parameters")
    assert profile.plan_cost(profile.read_layers(model, (30,)), {"0": 4}, "parameters") == sum(
        p.numel() for p in built.parameters()
    )
