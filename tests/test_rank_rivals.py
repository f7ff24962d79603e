"""Rivals' rules for ranks, against plans worked out by hand or by trying everything; random ranks within the budget."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import mlp
from lowrank_utils import profile
from lowrank_utils.factors import replace
from lowrank_utils.network.profile import plan_cost
from lowrank_utils.ranks import published, rivals


@pytest.fixture
def read():
    return profile(mlp((12, 10, 10, 4)), torch.randn(60, 12, generator=torch.Generator().manual_seed(1)), dense=["4"])


@pytest.fixture
def convolutional():
    torch.manual_seed(0)
    steps = [nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)]
    return profile(nn.Sequential(*steps).eval(), torch.randn(30, 2, 8, 8), scheme="channel")


def share(read, plan, resource="macs"):
    return plan_cost(read, plan, resource) / plan_cost(read, {}, resource)


# ---- random ranks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", ["macs", "parameters"])
def test_random_ranks_meet_the_budget_and_differ_by_seed(resource):
    read = profile(mlp((40, 30, 30, 30, 20)), input_shape=(40,))
    plans = [rivals.random_plan(read, 0.4, seed=seed, resource=resource) for seed in range(6)]
    assert all(0.38 < share(read, plan, resource) <= 0.4 for plan in plans)
    assert rivals.random_plan(read, 0.4, seed=3, resource=resource) == plans[3]
    assert len({str(plan) for plan in plans}) == 6
    assert rivals.random_plan(read, 1.0, resource=resource) == {}
    with pytest.raises(ValueError, match="kept=0.001 of .* cannot be reached"):
        rivals.random_plan(read, 0.001, resource=resource)


def test_random_ranks_have_no_favourite_layer():
    read = profile(mlp((30, 30, 30, 30), bias=False), input_shape=(30,))
    ranks = np.array([[rivals.random_plan(read, 0.5, seed=seed).get(name, 15) for name in "024"] for seed in range(60)])
    assert ranks.std() > 2 and np.ptp(ranks.mean(0)) < 2


def test_random_ranks_leave_dense_layers_alone(read):
    for seed in range(5):
        assert "4" not in rivals.random_plan(read, 0.6, seed=seed)


# ---- BALF ------------------------------------------------------------------------------------------------------------


def test_balf_takes_the_most_normalised_energy_within_the_budget(read):
    x = read.calibration.double()
    first, second = (read.model.get_submodule(name) for name in ("0", "2"))
    hidden = F.relu(x @ first.weight.detach().double().T + first.bias.detach().double())
    energies = []
    for layer, seen in ((first, x), (second, hidden)):
        squares = torch.linalg.svdvals(seen @ layer.weight.detach().double().T).square()  # mean not taken out
        energies.append(torch.cat([torch.zeros(1), squares.cumsum(0) / squares.sum()]).numpy())
    mine = rivals.whitened_energies(read, ["0", "2"])
    np.testing.assert_allclose(mine["0"], energies[0], atol=1e-9)
    np.testing.assert_allclose(mine["2"], energies[1], atol=1e-6)
    for kept in (0.4, 0.5, 0.8, 0.95):
        found = rivals.balf(read, kept)
        plans = [
            {name: rank for name, rank in (("0", a), ("2", b)) if rank}
            for a, b in itertools.product(range(6), range(5))  # 0 is dense
        ]
        worth = {
            i: sum(energies[j][plan[name]] if name in plan else 1.0 for j, name in enumerate(("0", "2")))
            for i, plan in enumerate(plans)
            if share(read, plan) <= kept
        }
        assert found.value == pytest.approx(max(worth.values()), abs=1e-5)
        assert found.plan == plans[max(worth, key=worth.__getitem__)] and found.gap == pytest.approx(0, abs=1e-9)


def test_whitened_factors_are_the_best_for_the_outputs_and_leave_the_bias(read):
    layer, x = read.model.get_submodule("0"), read.calibration
    whole = x @ layer.weight.T
    small = replace.apply_plan(read, {"0": 3}, factors=rivals.whitened_factors(read, ["0"])).get_submodule("0")
    error = float((whole + layer.bias - small(x)).detach().square().sum())
    tail = torch.linalg.svdvals(whole.detach().double())[3:].square().sum()
    assert error == pytest.approx(float(tail), rel=1e-4)
    assert torch.equal(small.get_submodule("second").bias, layer.bias)
    assert share(read, {"0": 3}) < 1 and rivals.whitened_network(read, {"0": 3}).get_submodule("0")[0].out_features == 3


def test_balf_wants_the_channel_scheme(convolutional):
    found = rivals.balf(convolutional, 0.5)
    assert share(convolutional, found.plan) <= 0.5
    assert all(entry[0] == "channel" for name, entry in found.plan.items() if name != "5")
    assert rivals.whitened_network(convolutional, found.plan)(convolutional.calibration).shape == (30, 3)
    with pytest.raises(ValueError, match=r"layer '0' is seen in the spatial scheme.*profile.but\(scheme="):
        rivals.balf(convolutional.but(scheme="spatial"), 0.5)


# ---- AIMET -----------------------------------------------------------------------------------------------------------


def test_aimet_takes_the_highest_threshold_that_meets_the_budget():
    read = profile(mlp((40, 40, 40, 4)), input_shape=(40,), dense=["4"])
    options = published.ratio_options(read, ["0", "2"], [0.25, 0.5, 0.75], "macs")
    assert [own.entries for own in options] == [(5, 10, 15, None)] * 2  # 80 a rank, of 1600
    # a dip at the middle ratio of layer 2: from 0.75 down, 0.5 falls below 85, so that the better 0.25 is not seen
    scores = {"0": np.array([60.0, 80.0, 88.0, 90.0]), "2": np.array([86.0, 70.0, 89.0, 90.0])}

    def plan(inside):
        kept = read.whole_share(inside, "macs", ["0", "2"])
        return rivals.aimet_greedy(read, kept, measure=never, candidates=4, scores=scores).plan

    assert plan(1.0) == {}
    assert plan(0.9) == {"2": 15}  # threshold 88.5: layer 0 stays dense
    assert plan(0.75) == {"0": 15, "2": 15}
    # 86 > threshold > 80: layer 2 takes the smallest, whose score is above; layer 0 its 0.75
    assert plan(0.5) == {"0": 15, "2": 5}
    assert plan(0.4) == {"0": 10, "2": 5}
    assert plan(0.25) == {"0": 5, "2": 5}
    with pytest.raises(ValueError, match="cannot be reached: the smallest possible is "):
        plan(0.2)


def never(model):
    raise AssertionError("the scores were given")


def test_aimet_scores_each_layer_alone(read):
    seen = []

    def measure(model):
        seen.append(sum(value.numel() for value in model.parameters()))
        with torch.no_grad():
            return -float((model(read.calibration) - read.model(read.calibration)).square().mean())

    found = rivals.aimet_greedy(read, 0.6, measure=measure, candidates=5)
    assert share(read, found.plan) <= 0.6 and found.evaluations == len(seen)
    assert seen.count(max(seen)) == 1  # the dense one, once


# ---- zero-sum SVD ----------------------------------------------------------------------------------------------------


def test_first_order_effects_are_slopes_of_the_loss(read):
    labels = torch.randint(4, (60,), generator=torch.Generator().manual_seed(2))
    gradients = rivals.loss_gradients(read, ["0", "2"], labels)
    factors = rivals.whitened_factors(read, ["0", "2"])
    effects = rivals.first_order_effects(read, factors, gradients)
    model, step = mlp((12, 10, 10, 4)).double(), 1e-5
    x = read.calibration.double()

    def loss():
        with torch.no_grad():
            return float(F.cross_entropy(model(x), labels))

    for name in ("0", "2"):
        for i in range(10):
            change = step * factors[name].left[:, [i]] @ factors[name].right[[i]]
            weight = model.get_submodule(name).weight.data
            weight -= change
            lower = loss()
            weight += 2 * change
            higher = loss()
            weight -= change
            assert effects[name][i] == pytest.approx((lower - higher) / (2 * step), rel=1e-3, abs=1e-6)


def test_first_order_effects_of_convolutions_add_up(convolutional):
    labels = torch.randint(3, (30,))
    gradients = rivals.loss_gradients(convolutional, ["0", "2"], labels)
    effects = rivals.first_order_effects(convolutional, rivals.whitened_factors(convolutional, ["0", "2"]), gradients)
    for name in ("0", "2"):  # all components together are the layer
        whole = float((gradients[name] * convolutional.model.get_submodule(name).weight.detach().double()).sum())
        assert effects[name].sum() == pytest.approx(-whole, rel=1e-6, abs=1e-9)


def test_zero_sum_keeps_the_running_sum_near_zero():
    read = profile(mlp((6, 6, 6, 2), bias=False), input_shape=(6,), dense=["4"])  # 12 a rank, of 36: break-even 2
    effects = {"0": np.array([9.0, 9, 5, 4, -2, 1]), "2": np.array([9.0, 9, 9, -3, 6, -0.5])}
    # 2: -0.5 (sum -0.5); now positive ones are wanted: 0: 1 (0.5); negative: 0: -2 (-1.5); positive: 0: 4 (2.5);
    # negative is neither 5 nor 6, so the smaller: 0: 5 (7.5), 0 is at rank 2 and saves 12 of 84
    assert rivals.zero_sum(read, 72 / 84, effects=effects) == {"0": 2}
    # 2: 6 (13.5), negative: 2: -3 (10.5), then 0: 9 comes before 2: 9 (a tie), which saves 12 more
    assert rivals.zero_sum(read, 60 / 84, effects=effects) == {"0": 1}
    assert rivals.zero_sum(read, 1.0, effects=effects) == {}
    assert rivals.zero_sum(read, 36 / 84, effects=effects) == {"0": 1, "2": 1}
    with pytest.raises(ValueError, match="rank 1 in every layer keeps 0.4286"):
        rivals.zero_sum(read, 0.4, effects=effects)
    with pytest.raises(ValueError, match="the effects of layer '2' are not one a component"):
        rivals.zero_sum(read, 0.8, effects={"0": effects["0"]})


def test_labels_go_with_the_calibration_inputs(read):
    with pytest.raises(ValueError, match="59 labels do not go with 60 calibration inputs"):
        rivals.loss_gradients(read, ["0"], torch.zeros(59, dtype=torch.long))
