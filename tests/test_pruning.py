"""Entropy pruning: rankings against hand-made cases, removal that changes nothing where nothing is lost."""

import copy
import logging
import subprocess
import sys
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from conftest import mlp
from lowrank_utils.factors import replace, svd
from lowrank_utils.lab import data, score, training
from lowrank_utils.network import graph, profile, statistics
from lowrank_utils.network.profile import Profile
from lowrank_utils.ranks import components, rules
from lowrank_utils.ranks.units import UNIT_RULES, rank_units, remove_units, units_that_stay, units_then_components


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").tensors("train")[0].flatten(1)


def diagonal(*sizes):
    layer = nn.Linear(len(sizes), len(sizes), bias=False)
    layer.weight.data = torch.diag(torch.tensor(sizes))
    return layer


# ---- components


def test_scores_of_two_layers_by_hand():
    # p = (4, 1, 1, 1)/7 and (9, 1)/10
    model = nn.Sequential(diagonal(2.0, 1.0, 1.0, 1.0), nn.Linear(4, 2, bias=False))
    model[1].weight.data = torch.tensor([[3.0, 0, 0, 0], [0, 1.0, 0, 0]])
    cards = profile.read_layers(model, (4,))
    found = components.rank_components(cards, "entropy").set_index(["layer", "component"])["score"]
    wanted = {("0", 1): 4 / 7 * np.log(7 / 4), ("0", 2): np.log(7) / 7, ("1", 1): 0.9 * np.log(1 / 0.9)}
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-6)
    energy = components.rank_components(cards, "energy")
    assert list(zip(energy["layer"], energy["component"]))[:2] == [("1", 2), ("0", 4)]
    assert energy["score"].iloc[-1] == pytest.approx(0.9)
    magnitude = components.rank_components(cards, "magnitude")
    assert magnitude["score"].iloc[-1] == pytest.approx(3)


def test_a_dominant_component_never_goes_before_a_smaller_one():
    model = nn.Sequential(diagonal(10.0, 1.0, 1.0, 1.0))
    found = components.rank_components(profile.read_layers(model, (4,)), "entropy")
    raw = found.set_index("component")["score"]
    assert raw[1] < raw[2]  # the trap is there
    assert found["component"].tolist() == [4, 3, 2, 1]
    assert found["key"].is_monotonic_increasing


def budget_above(least, way):
    """A share kept that some plan can meet: `way` in [0, 1] leads from the least that can be reached to all."""
    return min(1.0, least + way * (1 - least) + 1e-9)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(2, 14), min_size=2, max_size=4),
    st.sampled_from(components.COMPONENT_RULES),
    st.floats(0, 1),
    st.sampled_from(profile.RESOURCES),
    st.integers(0, 99),
)
def test_plans_meet_the_budget_and_count_what_is_really_saved(sizes, rule, way, resource, seed):
    model = mlp(sizes, seed)
    cards = profile.read_layers(model, (sizes[0],))
    names = [card.name for card in cards]
    moments = statistics.collect_moments(model, names, torch.randn(50, sizes[0]))
    bases = replace.decompose_layers(Profile(model), names)
    kept = budget_above(rules.least_kept(cards, resource), way)
    plan = components.components_plan(
        cards, kept, rule=rule, resource=resource, factors=bases, moments=moments, seed=seed
    )
    built = replace.apply_plan(Profile(model), plan, resource=resource)
    cost = score.parameters(built) if resource == "parameters" else score.macs(built, (sizes[0],))
    total = score.parameters(model) if resource == "parameters" else score.macs(model, (sizes[0],))
    assert cost <= kept * total + 1e-6
    assert cost == profile.plan_cost(cards, plan, resource)
    assert all(1 <= r <= next(c for c in cards if c.name == n).break_even(resource) for n, r in plan.items())


def test_plans_come_close_to_the_budget_in_a_real_network():
    cards = profile.read_layers(mlp((784, 300, 100, 10)), (784,))
    for rule in ("entropy", "energy", "magnitude", "random"):
        for kept in (0.1, 0.2, 0.3, 0.6):
            size = profile.plan_cost(
                cards, components.components_plan(cards, kept, rule=rule, resource="parameters"), "parameters"
            ) / profile.plan_cost(cards, {}, "parameters")
            assert kept - 0.005 < size <= kept, (rule, kept, size)


@pytest.mark.parametrize("method", svd.METHODS)
def test_output_shares_are_the_energies_of_the_outputs_on_data(method, digits):
    torch.manual_seed(0)
    layer = nn.Linear(64, 20)
    moments = statistics.Moments.empty(64)
    moments.update(digits)
    found = svd.decompose_layer(layer, method, moments)
    shares = components.output_shares(found, moments)
    x = digits.double() - digits.double().mean(0)
    whole = (x @ layer.weight.detach().double().T).square().sum()
    for i in (0, 3, 19):
        part = (x @ torch.outer(found.left[:, i], found.right[i]).T).square().sum()
        assert shares[i] == pytest.approx(float(part / whole), rel=1e-6, abs=1e-12)
    assert shares.sum() == pytest.approx(1)
    if method == "data-aware":
        assert (np.diff(shares) < 1e-9).all()


def test_components_of_zero_change_no_output():
    torch.manual_seed(0)
    model = mlp((40, 30, 5))
    model[0].weight.data = torch.randn(30, 6) @ torch.randn(6, 40)  # rank 6
    cards = profile.read_layers(model, (40,))
    plan = components.components_plan(cards, 1.0, resource="parameters")
    assert plan == {"0": 6}
    x = torch.randn(64, 40)
    assert torch.allclose(replace.apply_plan(Profile(model), plan, resource="parameters")(x), model(x), atol=1e-4)
    assert components.rank_components(cards)["key"].eq(0).sum() == 24


def test_a_layer_of_zeros_goes_to_rank_zero():
    model = mlp((40, 30, 5))
    model[0].weight.data.zero_()
    cards = profile.read_layers(model, (40,))
    plan = components.components_plan(cards, 0.9, resource="parameters")
    assert plan["0"] == 0
    x = torch.randn(3, 40)
    assert torch.allclose(replace.apply_plan(Profile(model), {"0": 0}, resource="parameters")(x), model(x))


def test_wrong_component_requests_are_refused_in_words():
    cards = profile.read_layers(mlp(), (12,))
    with pytest.raises(ValueError, match="unknown rule 'entropie' for components; known: entropy, energy"):
        components.components_plan(cards, 0.5, rule="entropie", resource="parameters")
    with pytest.raises(ValueError, match=r"needs factors and moments of every layer; missing: 0, 2, 4"):
        components.components_plan(cards, 0.5, rule="output", resource="parameters")
    with pytest.raises(
        ValueError, match=r"kept=0.01 of parameters cannot be reached: rank 1 in every layer keeps 0\.\d+"
    ):
        components.components_plan(cards, 0.01, resource="parameters")
    for wrong in (1.5, 0, -1, "half", True):
        with pytest.raises(ValueError, match="is not a share in"):
            components.components_plan(cards, wrong, resource="parameters")
    with pytest.raises(ValueError, match="no layer of this network can be factored: 0: a layer of type Conv1d"):
        components.components_plan(
            profile.read_layers(nn.Sequential(nn.Conv1d(1, 2, 3)), (1, 8)), 0.5, resource="parameters"
        )


# ---- activations


def test_histograms_and_moments_are_those_of_numpy(digits):
    model = mlp((64, 20, 10, 3))
    seen = statistics.collect_activations(model, digits, bins=16, batch_size=100)
    with torch.no_grad():
        x = digits
        for i, name in ((1, "0"), (3, "2")):
            values = model[: i + 1](x).double().numpy()
            for unit in range(values.shape[1]):
                column = values[:, unit]
                counts = np.histogram(column, 16)[0] if np.ptp(column) else np.array([len(column)] + [0] * 15)
                mine = seen[name].histogram[unit].numpy()
                assert np.abs(mine - counts).sum() <= 4  # a value on the edge of a bin may fall to either side
                q = counts / counts.sum()
                assert float(seen[name].entropy[unit]) == pytest.approx(-(q[q > 0] * np.log(q[q > 0])).sum(), abs=0.01)
            assert np.allclose(seen[name].mean, values.mean(0))
            assert np.allclose(seen[name].variance, values.var(0))
            assert np.allclose(seen[name].low, values.min(0)) and np.allclose(seen[name].high, values.max(0))
    assert set(seen) == {"0", "2"}


def test_batches_do_not_matter_and_one_range_serves_a_layer(digits):
    model = mlp((64, 20, 10, 3))
    whole, split = (statistics.collect_activations(model, digits, batch_size=size) for size in (5000, 7))
    assert (whole["0"].histogram - split["0"].histogram).abs().sum() <= 4
    assert torch.allclose(whole["2"].variance, split["2"].variance)
    layer = statistics.collect_activations(model, digits, span="layer")["0"]
    assert layer.edges.unique(dim=0).shape == (1, 2)
    assert layer.histogram.sum(1).eq(len(digits)).all()


def test_wrong_calibration_data_are_refused_in_words(digits):
    model = mlp((64, 20, 10, 3))
    with pytest.raises(ValueError, match="at least two calibration images: one gives every unit one value"):
        statistics.collect_activations(model, digits[:1])
    spoiled = digits[:10].clone()
    spoiled[3, 5] = torch.nan
    with pytest.raises(ValueError, match="the calibration images hold NaN or infinite values"):
        statistics.collect_activations(model, spoiled)
    with pytest.raises(ValueError, match=r"cannot take calibration images of shape \(30,\)"):
        statistics.collect_activations(model, digits[:10, :30])
    broken = mlp((64, 20, 10, 3))
    broken[0].bias.data[2] = torch.inf
    with pytest.raises(ValueError, match="the units of layer '0' become NaN or infinite"):
        statistics.collect_activations(broken, digits[:10])
    for bins in (1, 0, 2.5, True):
        with pytest.raises(ValueError, match=f"bins={bins} is not a whole number of at least 2"):
            statistics.collect_activations(model, digits, bins)
    with pytest.raises(ValueError, match="unknown span 'network'; known: unit, layer"):
        statistics.collect_activations(model, digits, span="network")
    assert model.training


def test_constant_activations_have_no_entropy_and_can_all_go_but_one():
    model = mlp((12, 9, 7, 4))
    x = torch.ones(20, 12)
    seen = statistics.collect_activations(model, x)
    assert all(s.entropy.eq(0).all() and s.variance.abs().max() < 1e-9 for s in seen.values())
    small = remove_units(Profile(model), {"0": [0], "2": [0]}, activations=seen)
    assert torch.allclose(small(x), model(x), atol=1e-5)


# ---- which units can go


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.twice = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        x = F.gelu(self.a(x))  # read by b alone
        y = self.b(x).relu()  # goes to two places
        y = y + self.twice(y)
        y = self.norm(self.twice(y))
        return self.c(y)


def test_hidden_layers_are_traced_through_functions_and_methods():
    found = {h.name: h for h in graph.hidden_layers(Branches())}
    assert (found["a"].reader, found["a"].reason) == ("b", "")
    assert found["b"].reason == "its output goes to more than one place"
    assert found["twice"].reason.startswith("it is used more than once")
    assert found["c"].reason == "its units are the outputs of the network"


def test_a_module_used_twice_keeps_its_units_and_those_that_feed_it():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(6, 2))
    found = graph.hidden_layers(model)
    assert found[0].reason == "the layer that reads it, 2, is used more than once, or shares its weight"
    assert found[1].reason == "it is used more than once, or shares its weight"
    with pytest.raises(ValueError, match=r"no hidden unit of this network can be removed \(0: the layer that reads it"):
        statistics.collect_activations(model, torch.randn(9, 6))
    with pytest.raises(ValueError, match="no unit of layer '2' can be removed: it is used more than once"):
        remove_units(Profile(model), {"2": [0]})


def test_what_cannot_be_traced_or_is_not_element_wise_is_said():
    class Control(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match="the network cannot be traced by torch.fx"):
        graph.hidden_layers(Control())
    soft = nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2))
    assert graph.hidden_layers(soft)[0].reason == "its output goes through Softmax, which is not element-wise"
    with pytest.raises(ValueError, match="it has no linear layer and no convolution"):
        statistics.collect_activations(nn.Sequential(nn.BatchNorm2d(1)), torch.randn(4, 1, 8, 8))


# ---- rankings and plans of units


def test_units_are_ranked_as_the_formulas_say(digits):
    model = mlp((64, 20, 10, 3))
    seen = statistics.collect_activations(model, digits)
    for rule in UNIT_RULES:
        order = rank_units(Profile(model), seen, rule)
        assert len(order) == 30 and order["score"].is_monotonic_increasing
    by = rank_units(Profile(model), seen, "output").set_index(["layer", "unit"])["score"]
    with torch.no_grad():
        h = torch.relu(model[0](digits)).double()
        gains = torch.stack(
            [torch.outer(h[:, j] - h[:, j].mean(), model[2].weight[:, j].double()).square().sum() for j in range(20)]
        )
    assert np.allclose(by["0"].sort_index(), (gains / gains.sum()).numpy(), rtol=1e-5)
    norms = model[0].weight.detach().double().norm(dim=1)
    by = rank_units(Profile(model), seen, "magnitude").set_index(["layer", "unit"])["score"]
    assert np.allclose(by["0"].sort_index(), norms / norms.mean())
    draws = [rank_units(Profile(model), seen, "random", seed=seed)["unit"].tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    with pytest.raises(ValueError, match="unknown rule 'energy' for units; known: entropy, output, magnitude, random"):
        rank_units(Profile(model), seen, "energy")
    with pytest.raises(ValueError, match="the activations are not of this network: layer '0' has 21 units"):
        rank_units(Profile(mlp((64, 21, 10, 3))), seen)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(2, 14), min_size=3, max_size=5),
    st.floats(0, 1),
    st.sampled_from(profile.RESOURCES),
    st.booleans(),
)
def test_unit_plans_cost_what_they_say(sizes, way, resource, bias):
    model = mlp(sizes, bias=bias)
    seen = statistics.collect_activations(model, torch.randn(60, sizes[0]))
    order = rank_units(Profile(model), seen)
    count = score.parameters if resource == "parameters" else lambda net: score.macs(net, (sizes[0],))
    one_each = mlp([sizes[0], *[1] * (len(sizes) - 2), sizes[-1]], bias=bias)  # no hidden layer goes below one unit
    kept = budget_above(count(one_each) / count(model), way)
    plan = units_that_stay(Profile(model, input_shape=(sizes[0],)), order, kept, resource=resource)
    built = remove_units(Profile(model), plan)  # nothing folded in: a layer without bias stays without
    assert count(built) <= kept * count(model)
    # one unit more would be above the budget: the last that went comes back
    gone = [(n, u) for n, u in zip(order["layer"], order["unit"]) if u not in plan[n]]
    if gone:
        name, unit = gone[-1]
        assert count(remove_units(Profile(model), plan | {name: [*plan[name], unit]})) > kept * count(model)


def test_a_layer_that_would_lose_every_unit_keeps_a_floor_and_says_so(caplog):
    model = mlp((12, 9, 7, 4))
    model[0].weight.data.zero_()
    model[0].bias.data.fill_(-1)  # every unit of the first layer is dead
    seen = statistics.collect_activations(model, torch.randn(50, 12))
    order = rank_units(Profile(model), seen)
    with caplog.at_level(logging.WARNING):
        plan = units_that_stay(Profile(model, input_shape=(12,)), order, 0.2, resource="parameters")
    assert len(plan["0"]) == 1 and 1 < len(plan["2"]) < 7
    assert caplog.messages == ["every unit of 0 would go: it keeps its last 1"]
    assert len(units_that_stay(Profile(model, input_shape=(12,)), order, 0.5, floor=3, resource="parameters")["0"]) == 3
    with pytest.raises(
        ValueError, match=r"kept=0.01 of parameters cannot be reached .*: 1 unit in every hidden layer keeps 0\.\d+"
    ):
        units_that_stay(Profile(model, input_shape=(12,)), order, 0.01, resource="parameters")
    with pytest.raises(ValueError, match="floor=0 is not a whole number of at least 1"):
        units_that_stay(Profile(model, input_shape=(12,)), order, 0.5, floor=0, resource="parameters")
    with pytest.raises(ValueError, match=r"kept=1.5 is not a share"):
        units_that_stay(Profile(model, input_shape=(12,)), order, 1.5, resource="parameters")


# ---- removal


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("way", ["folded", "refitted"])
def test_dead_and_constant_units_go_without_a_trace(bias, way, digits):
    model = mlp((64, 20, 10, 3), bias=bias)
    with torch.no_grad():
        model[0].weight[4] = 0  # dead without a bias
        if bias:
            model[0].bias[4] = -1
            model[0].weight[5], model[0].bias[5] = 0, 2.5  # constant
    gone = {4, 5} if bias else {4}
    seen = statistics.collect_activations(model, digits)
    moments = statistics.collect_moments(model, ["2", "4"], digits)
    stay = {"0": [u for u in range(20) if u not in gone]}
    small = (
        remove_units(Profile(model), stay, activations=seen)
        if way == "folded"
        else remove_units(Profile(model), stay, moments=moments)
    )
    assert torch.allclose(small(digits), model(digits), atol=1e-5)
    assert small[0].weight.shape == (20 - len(gone), 64) and small[2].weight.shape[1] == 20 - len(gone)
    assert (small[2].bias is None) == (not bias)
    assert type(small[0]) is nn.Linear


def test_a_reader_without_bias_gets_one_when_a_mean_is_folded_in(digits):
    model = mlp((64, 20, 3), bias=False)
    seen = statistics.collect_activations(model, digits)
    small = remove_units(Profile(model), {"0": list(range(15))}, activations=seen)
    gone = seen["0"].mean[15:].float()
    assert torch.allclose(small[2].bias, model[2].weight[:, 15:] @ gone, atol=1e-5)
    assert torch.allclose(small(digits).mean(0), model(digits).mean(0), atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_refitting_is_the_least_squares_answer(bias, digits):
    model = mlp((64, 20, 3), bias=bias)
    moments = statistics.collect_moments(model, ["2"], digits)
    stay = list(range(0, 20, 2))
    small = remove_units(Profile(model), {"0": stay}, moments=moments)
    with torch.no_grad():
        h = torch.relu(model[0](digits))[:, stay].double()
        wanted = model(digits).double()
        ones = torch.ones(len(h), 1).double()
        a = torch.cat([h, ones], 1) if bias else h
        best = a @ torch.linalg.lstsq(a, wanted, driver="gelsd").solution
        assert torch.allclose(small(digits).double(), best, atol=1e-4)
        folded = remove_units(Profile(model), {"0": stay}, activations=statistics.collect_activations(model, digits))
        errors = [(net(digits) - wanted).square().sum() for net in (small, folded)]
    assert errors[0] < (0.9 if bias else 1) * errors[1]  # folding may add a bias, refitting does not


def test_removal_leaves_the_model_as_it_was_and_keeps_type_and_mode(digits):
    model = mlp((64, 20, 10, 3)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model[0].eval()
    small = remove_units(Profile(model), {"0": [1, 2], "2": [0]})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert small[0].weight.dtype == torch.float64 and not small[0].training and small[2].training
    everything = remove_units(Profile(model), {"0": list(range(20)), "2": list(range(10))})
    assert torch.allclose(everything(digits.double()), model(digits.double()))


def test_wrong_removals_are_refused_in_words():
    model = mlp((12, 9, 7, 4))
    with pytest.raises(ValueError, match="every unit of layer '0' would go; a layer keeps at least one"):
        remove_units(Profile(model), {"0": []})
    with pytest.raises(ValueError, match="layer '0' has units 0 to 8, the plan names 1 to 9"):
        remove_units(Profile(model), {"0": [1, 9]})
    with pytest.raises(ValueError, match="no unit of layer '4' can be removed: its units are the outputs"):
        remove_units(Profile(model), {"4": [0]})
    with pytest.raises(ValueError, match="no unit of layer 'fc9' can be removed: there is no linear layer"):
        remove_units(Profile(model), {"fc9": [0]})


def test_both_meets_the_budget_and_beats_each_alone(digits):
    images = data.load("digits")

    model, _ = training.trained(images, "lenet300", 0)
    x, _ = images.tensors("train")
    with torch.inference_mode():
        wanted = model(x)
    found = units_then_components(Profile(model, x), 0.1, units=0.5)
    assert 0.09 < score.parameters(found) / score.parameters(model) <= 0.1
    seen = statistics.collect_activations(model, x)
    stay = units_that_stay(
        Profile(model, input_shape=images.input_shape),
        rank_units(Profile(model), seen, "output"),
        0.1,
        resource="parameters",
    )
    units = remove_units(Profile(model), stay, moments=statistics.collect_moments(model, ["fc2", "fc3"], x))
    with torch.inference_mode():
        assert (found(x) - wanted).square().mean() < (units(x) - wanted).square().mean()
    with pytest.raises(ValueError, match="kept=0.6 is more than the share 0.5 that the removal of units leaves"):
        units_then_components(Profile(model, x), 0.6, units=0.5)
    with pytest.raises(ValueError, match="the activations of units need calibration inputs: make the profile with"):
        units_then_components(Profile(model, input_shape=images.input_shape), 0.1, units=0.5)


def test_a_million_parameters_are_ranked_and_pruned_within_a_second():
    model = mlp((784, 1000, 250, 10))
    x = torch.rand(500, 784)
    assert score.parameters(model) > 1e6
    seen = statistics.collect_activations(model, x)
    cards = profile.read_layers(model, (784,))
    bases = replace.decompose_layers(Profile(model), [card.name for card in cards])
    readings = []
    for _ in range(3):
        began = time.process_time()  # other tests run beside this one
        stay = units_that_stay(
            Profile(model, input_shape=(784,)), rank_units(Profile(model), seen), 0.3, resource="parameters"
        )
        remove_units(Profile(model), stay, activations=seen)
        replace.apply_plan(
            Profile(model),
            components.components_plan(cards, 0.3, resource="parameters"),
            factors=bases,
            resource="parameters",
        )
        readings.append(time.process_time() - began)
    assert min(readings) < 1


# ---- what a strict reader found


def test_a_random_order_is_the_same_chance_for_every_layer():
    cards = profile.read_layers(mlp((784, 300, 100, 10)), (784,))
    places = []
    for seed in range(30):
        order = components.rank_components(cards, "random", seed=seed)
        places.append(order.assign(place=np.arange(len(order)) / len(order)).groupby("layer")["place"].mean())
    means = sum(places) / len(places)
    assert (means - 0.5).abs().max() < 0.06
    assert not places[0].equals(places[1])


def test_constant_units_have_no_entropy_whatever_the_batches():
    model = mlp((12, 90, 4))
    seen = statistics.collect_activations(model, torch.randn(1, 12).expand(501, 12), batch_size=500)["0"]
    assert seen.entropy.max() == 0


def test_output_shares_of_layers_without_bias_and_without_output():
    layer = nn.Linear(6, 4, bias=False)
    moments = statistics.Moments.empty(6)
    x = torch.rand(40, 6) + 1
    moments.update(x)
    found = svd.decompose_layer(layer, "svd")
    shares = components.output_shares(found, moments)
    energy = [(x.double() @ torch.outer(found.left[:, i], found.right[i]).T).square().sum() for i in range(4)]
    assert np.allclose(shares, torch.stack(energy) / torch.stack(energy).sum())
    silent = statistics.Moments.empty(6)
    silent.update(torch.zeros(5, 6))
    assert (components.output_shares(found, silent) == 0).all()
    other = statistics.Moments.empty(5)
    with pytest.raises(ValueError, match="moments of 5 inputs do not fit factors of 6"):
        components.output_shares(found, other)


def test_dropout_is_off_while_activations_are_collected():
    model = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 4)).train()
    x = torch.randn(50, 12)
    one, two = (statistics.collect_activations(model, x)["0"] for _ in range(2))
    assert torch.equal(one.mean, two.mean) and model.training


def test_shared_and_computed_weights_keep_their_units():
    tied = mlp((6, 6, 6, 6))
    tied[2].weight = tied[0].weight
    reasons = [h.reason for h in graph.hidden_layers(tied)]
    assert reasons[0] == reasons[1] == "it is used more than once, or shares its weight"
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2))
    assert graph.hidden_layers(normed)[0].reason == "its weight is computed from other parameters"

    class Peeks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(input=torch.relu(self.a(x))) + self.a.weight.sum()

    assert "read outside of its call" in graph.hidden_layers(Peeks())[0].reason
    wide = nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, 2))
    assert graph.hidden_layers(wide)[0].reason == "its output goes through PReLU, which is not element-wise"


def test_refitting_survives_units_that_say_the_same():
    model = mlp((6, 8, 3))
    with torch.no_grad():
        model[0].weight[1] = model[0].weight[0]
        model[0].bias[1] = model[0].bias[0]
        model[0].weight[2], model[0].bias[2] = 0, -1  # dead, and stays
    x = torch.randn(200, 6)
    moments = statistics.collect_moments(model, ["2"], x)
    small = remove_units(Profile(model), {"0": [0, 2, 3, 4, 5, 6, 7]}, moments=moments)
    assert torch.allclose(small(x), model(x), atol=1e-4)


def test_units_of_sequences_are_counted_at_every_position():
    model = mlp((6, 8, 3))
    x = torch.randn(30, 5, 6)
    seen = statistics.collect_activations(model, x)
    assert seen["0"].count == 150
    order = rank_units(Profile(model), seen)
    stay = units_that_stay(Profile(model, input_shape=(5, 6)), order, 0.5, resource="macs")
    small = remove_units(Profile(model), stay, activations=seen)
    assert score.macs(small, (5, 6)) <= 0.5 * score.macs(model, (5, 6)) < score.macs(small, (5, 6)) + 5 * 9


def test_one_range_for_a_layer_hides_a_quiet_unit():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model[0].weight.data, model[0].bias.data = torch.diag(torch.tensor([1.0, 100.0])), torch.zeros(2)
    x = torch.rand(500, 2)
    own, one = (statistics.collect_activations(model, x, span=span)["0"].entropy for span in ("unit", "layer"))
    assert own.min() > 3 and one[0] == 0 and one[1] > 3


def test_orders_units_and_moments_of_another_network_are_refused():
    model, other = mlp((12, 9, 7, 4)), mlp((12, 11, 7, 4))
    x = torch.randn(40, 12)
    order = rank_units(Profile(other), statistics.collect_activations(other, x))
    with pytest.raises(ValueError, match="the order does not name every hidden unit of this network once"):
        units_that_stay(Profile(model, input_shape=(12,)), order, 0.5, resource="parameters")
    mine = rank_units(Profile(model), statistics.collect_activations(model, x))
    with pytest.raises(ValueError, match="the order does not name every hidden unit of this network once"):
        units_that_stay(Profile(model, input_shape=(12,)), mine.iloc[:-1], 0.5, resource="parameters")
    for wrong in ([0.5, 1.7], torch.ones(9, dtype=torch.bool), [True]):
        with pytest.raises(ValueError, match="the units of layer '0' that stay must be whole numbers"):
            remove_units(Profile(model), {"0": wrong})
    with pytest.raises(ValueError, match="the activations do not fit this network: layer '0' needs those of 9 units"):
        remove_units(Profile(model), {"0": [1]}, activations=statistics.collect_activations(other, x))
    with pytest.raises(ValueError, match="the moments do not fit this network: layer '2' needs those of 9 units"):
        remove_units(Profile(model), {"0": [1]}, moments={})
    with pytest.raises(ValueError, match="this profile has no spectra"):
        components.components_plan(profile.read_layers(model, (12,), spectra=False), 0.5, resource="parameters")
    with pytest.raises(ValueError, match="batch_size=0 is not a whole number of at least 1"):
        statistics.collect_activations(model, x, batch_size=0)
    assert statistics.collect_activations(model, x, np.int64(8))["0"].histogram.shape == (9, 8)


MEMORY = """
import resource, sys, torch
from torch import nn
from lowrank_utils.network import statistics
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 250), nn.ReLU(), nn.Linear(250, 10))
images = torch.rand(500, 784)
statistics.collect_activations(model, images)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
# one image shown many times: the images themselves take no memory
statistics.collect_activations(model, images[:1].expand(int(sys.argv[1]), 784))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_images():
    grown = []
    for images in (2000, 20000):
        done = subprocess.run([sys.executable, "-c", MEMORY, str(images)], capture_output=True, text=True, check=True)
        grown.append(float(done.stdout))
    # the activations of 20 000 images would be 80 MiB in the first layer alone
    assert grown[1] < grown[0] + 20


def test_both_heeds_each_of_its_arguments():
    images = data.load("digits")

    model, _ = training.trained(images, "lenet300", 0)
    x, _ = images.tensors("train")
    shape = images.input_shape
    with torch.inference_mode():
        wanted = model(x)
        found = units_then_components(Profile(model, x), 0.1, units=0.5)
        cards = profile.read_layers(model, shape)
        names = [card.name for card in cards]
        bases = replace.decompose_layers(Profile(model, x), names, "data-aware")
        plan = components.components_plan(
            cards,
            0.1,
            rule="output",
            factors=bases,
            moments=statistics.collect_moments(model, names, x),
            resource="parameters",
        )
        alone = replace.apply_plan(Profile(model), plan, factors=bases, resource="parameters")
        assert (found(x) - wanted).square().mean() < (alone(x) - wanted).square().mean()
    units = [
        units_then_components(Profile(model, x), 0.1, units=0.5, rules=(rule, "output"))
        for rule in ("output", "magnitude")
    ]
    parts = [
        units_then_components(Profile(model, x), 0.2, units=0.5, rules=("output", rule))
        for rule in ("output", "magnitude")
    ]
    for one, two in (units, parts):
        assert [p.shape for p in one.parameters()] != [p.shape for p in two.parameters()]
    dense = units_then_components(Profile(model, x, dense=("fc3",)), 0.2, units=0.5, rules=("output", "magnitude"))
    assert isinstance(dense.fc3, nn.Linear) and not isinstance(parts[1].fc3, nn.Linear)


# ---- channels of convolutions


class Written(nn.Module):
    """A network written as its forward function, `run(self, x)`, over the modules given by name."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.run(self, x)


class Block(nn.Module):
    """A residual block: the channels between its two convolutions are its own, all others belong to the sum."""

    def __init__(self, channels=6, inner=5):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def settled(model, seed=0):
    """`model` in eval mode, its batch norms as if they had seen something."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.3)
            if module.track_running_stats:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def convnet(padding=1, bias=True, norm=True, seed=0):
    """conv1 (7), bn1, relu1, conv2 (5), bn2, relu2, pool, flatten, fc on images of 3 x 8 x 8."""
    torch.manual_seed(seed)
    steps = {"conv1": nn.Conv2d(3, 7, 3, padding=padding, bias=bias), "bn1": nn.BatchNorm2d(7), "relu1": nn.ReLU()}
    steps |= {"conv2": nn.Conv2d(7, 5, 3, padding=padding, bias=bias), "bn2": nn.BatchNorm2d(5), "relu2": nn.ReLU()}
    steps |= {"pool": nn.MaxPool2d(2), "flatten": nn.Flatten(), "fc": nn.Linear(5 * (4 if padding else 2) ** 2, 4)}
    return settled(nn.Sequential(OrderedDict((k, v) for k, v in steps.items() if norm or not k.startswith("bn"))))


def silenced(model, staying, behind, x):
    """What `model` makes of x when the channels that do not stay are zero behind the module that `behind` names."""
    model, hooks = copy.deepcopy(model), []
    for name, units in staying.items():
        mask = torch.zeros(model.get_submodule(name).weight.shape[0])
        mask[list(units)] = 1

        def silence(module, inputs, y, mask=mask):
            return y * mask.to(y).view(-1, *[1] * (y.ndim - 2))

        hooks.append(model.get_submodule(behind[name]).register_forward_hook(silence))
    with torch.inference_mode():
        return model(x)


def seen_by(model, name, x):
    """What the layer `name` reads."""
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(x)
    hook.remove()
    return seen[0]


def patches(model, name, x):
    """The patches that a zero-padded convolution reads, one a row, in the order of its weights."""
    layer = model.get_submodule(name)
    columns = F.unfold(seen_by(model, name, x), layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.movedim(1, -1).flatten(0, 1).double()


def moments_of(rows):
    moments = statistics.Moments.empty(rows.shape[1])
    moments.update(rows)
    return moments


def norm_parameters(model):
    return sum(score.parameters(m) for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_removed_channel_is_one_that_was_always_zero(padding, mode):
    model, x = convnet(padding), torch.randn(6, 3, 8, 8)
    model.train(mode == "train")
    staying = {"conv1": [0, 2, 3, 6], "conv2": [1, 4]}
    small = remove_units(Profile(model), staying)
    wanted = silenced(model, staying, {"conv1": "relu1", "conv2": "pool"}, x)
    with torch.inference_mode():
        assert torch.allclose(small(x), wanted, atol=1e-5)
    assert small.conv1.weight.shape == (4, 3, 3, 3) and small.conv2.weight.shape == (2, 4, 3, 3)
    assert small.bn1.num_features == 4 and small.bn2.running_var.shape == (2,)
    assert small.fc.weight.shape == (4, 2 * (16 if padding else 4))
    assert {type(m) for m in small} == {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear}
    assert all(m.training == (mode == "train") for m in small)


POOLED = {
    "flatten": lambda m, x: torch.flatten(F.max_pool2d(m.conv(x).relu(), 2), 1),
    "flatten method": lambda m, x: F.avg_pool2d(torch.relu(m.conv(x)), kernel_size=2).flatten(start_dim=1),
    "view": lambda m, x: F.relu(m.pool(m.conv(x)), inplace=True).view(x.size(0), -1),
    "view of the shape": lambda m, x: (lambda y: y.view(y.shape[0], -1))(m.pool(m.conv(x))),
    "reshape": lambda m, x: (lambda y: y.reshape((y.size()[0], -1)))(F.max_pool2d(m.conv(x), 2, return_indices=False)),
    "unpacked": lambda m, x: (lambda y: torch.reshape(y, (y.size(0), -1)))(torch.max_pool2d(m.conv(x), 2)),
    "norm behind it": lambda m, x: torch.relu(m.norm(F.adaptive_avg_pool2d(F.dropout2d(m.conv(x), 0), 4).flatten(1))),
    "padded": lambda m, x: F.pad(F.adaptive_max_pool2d(m.conv(x) * 0.5, (2, 4)), (0, 0, 1, 1)).flatten(1),
}


@pytest.mark.parametrize("way", POOLED)
def test_every_way_to_pool_and_flatten_finds_the_columns_of_a_channel(way):
    torch.manual_seed(0)
    modules = {"conv": nn.Conv2d(3, 6, 3, padding=1), "pool": nn.AvgPool2d(2), "norm": nn.BatchNorm1d(96)}
    model = settled(Written(lambda m, x: m.fc(POOLED[way](m, x)), **modules, fc=nn.Linear(96, 4)))
    (found, _) = graph.hidden_layers(model)
    assert (found.reader, found.span, found.along) == ("fc", 16, ("norm",) if "norm" in way else ())
    x, stay = torch.randn(5, 3, 8, 8), [1, 2, 5]
    small = remove_units(Profile(model), {"conv": stay})
    cut = copy.deepcopy(model)
    cut.fc.weight.data.view(4, 6, 16)[:, [0, 3, 4]] = 0
    with torch.inference_mode():
        assert torch.allclose(small(x), cut(x), atol=1e-5)


def test_a_mean_over_height_and_width_leaves_one_column_a_channel():
    def whole(m, x):
        return m.fc(torch.mean(m.conv(x), [2, 3]))

    def kept(m, x):
        return m.fc(m.conv(x).mean((-2, -1), keepdim=True).flatten(1))

    for run in (whole, kept):
        model = Written(run, conv=nn.Conv2d(3, 6, 3), fc=nn.Linear(6, 2))
        assert graph.hidden_layers(model)[0] == graph.HiddenLayer("conv", "fc", 6)


REFUSED = {
    "goes through view, which": lambda m, x: m.fc(m.conv(x).view(-1, 96)),
    "goes through reshape, which": lambda m, x: m.fc(m.conv(x).reshape(x.size(0), 96)),
    "goes through flatten, which": lambda m, x: m.fc(m.conv(x).flatten(2)),
    "goes through pad, which": lambda m, x: m.fc(F.pad(m.conv(x), (0, 0, 0, 0, 1, 1)).flatten(1)),
    "goes through softmax, which": lambda m, x: m.fc(F.softmax(m.conv(x), 1).flatten(1)),
    "PReLU, which is not known to treat each channel alone": lambda m, x: m.fc(m.prelu(m.conv(x)).flatten(1)),
    "goes through GroupNorm, which": lambda m, x: m.fc(m.group(m.conv(x)).flatten(1)),
    "the layer that reads it, fc, does so along another axis": lambda m, x: m.fc(m.conv(x)),
    "goes to more than one place": lambda m, x: (lambda y: m.fc(y.view(y.size(0), y.size(1) * 16)))(m.conv(x)),
    "is added to another": lambda m, x: (lambda y: y + m.two(x))(m.conv(x)),
    "is multiplied with another": lambda m, x: m.conv(x).mul(m.two(x)),
    "is joined with others by concatenation": lambda m, x: torch.cat([m.conv(x), m.two(x)], 1),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_channels_that_cannot_be_followed_stay_and_it_is_said_why(reason):
    modules = {"conv": nn.Conv2d(3, 6, 3), "two": nn.Conv2d(3, 6, 3), "prelu": nn.PReLU(6), "group": nn.GroupNorm(2, 6)}
    model = Written(REFUSED[reason], **modules, fc=nn.Linear(96, 4))
    found = graph.hidden_layers(model)[0]
    assert reason in found.reason and found.reader == ""


def test_only_the_inner_channels_of_residual_blocks_can_go():
    model = settled(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), Block(), Block(), nn.Flatten(), nn.Linear(6 * 64, 4)))
    found = {h.name: h for h in graph.hidden_layers(model)}
    assert [name for name, h in found.items() if not h.reason] == ["1.conv1", "2.conv1"]
    assert found["1.conv1"] == graph.HiddenLayer("1.conv1", "1.conv2", 5, "", 9, ("1.bn1",), "1.bn2")
    assert found["0"].reason == "its output goes to more than one place"
    assert found["1.conv2"].reason == "its output is added to another, and its units are tied to those of the other"
    x, staying = torch.randn(4, 3, 8, 8), {"1.conv1": [0, 3], "2.conv1": [1, 2, 4]}
    cut = copy.deepcopy(model)
    cut[1].conv2.weight.data[:, [1, 2, 4]] = 0
    cut[2].conv2.weight.data[:, [0, 3]] = 0
    with torch.inference_mode():
        assert torch.allclose(remove_units(Profile(model), staying)(x), cut(x), atol=1e-5)
    with pytest.raises(ValueError, match="no unit of layer '1.conv2' can be removed: its output is added to another"):
        remove_units(Profile(model), {"1.conv2": [0]})


def test_in_resnet18_the_first_convolution_of_every_block_can_go():
    from torchvision.models import resnet18

    found = [h for h in graph.hidden_layers(resnet18()) if not h.reason]
    assert [h.name for h in found] == [f"layer{i}.{j}.conv1" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert all(h.reader == h.absorber.replace("bn2", "conv2") and h.span == 9 for h in found)


def test_grouped_convolutions_keep_their_channels_and_depthwise_ones_follow():
    grouped = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1))
    reasons = [h.reason for h in graph.hidden_layers(grouped)]
    assert reasons[0] == "its output goes through a grouped convolution, 2 (groups=2)"
    assert reasons[1] == "it is a grouped convolution (groups=2)"
    steps = [nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6()]
    steps += [nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU6()]
    model = settled(nn.Sequential(*steps, nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(64, 3)))
    found = graph.hidden_layers(model)
    assert (found[0].reader, found[0].along) == ("6", ("1", "3", "4"))
    assert found[1].reason == "it is a grouped convolution (groups=8)"
    x, staying = torch.randn(4, 3, 8, 8), {"0": [1, 5, 6]}
    small = remove_units(Profile(model), staying)
    assert small[3].groups == small[3].in_channels == 3 and small[3].stride == (2, 2)
    with torch.inference_mode():
        assert torch.allclose(small(x), silenced(model, staying, {"0": "5"}, x), atol=1e-5)


def test_batch_norms_of_every_kind_are_cut():
    steps = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=0.1, affine=False), nn.BatchNorm2d(6, track_running_stats=False)]
    steps += [nn.BatchNorm2d(6, momentum=None), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 2)]
    model = settled(nn.Sequential(*steps)).double()
    staying, x = {"0": [0, 4, 5], "4": [1, 2]}, torch.randn(7, 3, 8, 8).double()
    small = remove_units(Profile(model), staying)
    cut = copy.deepcopy(model)
    cut[4].weight.data[:, [1, 2, 3]] = 0
    cut[7].weight.data.view(2, 4, 16)[:, [0, 3]] = 0
    with torch.inference_mode():
        assert torch.allclose(small(x), cut(x))
    assert small[1].eps == 0.1 and small[1].weight is None and small[2].running_mean is None
    assert small[3].momentum is None and small[6].num_features == 32 and small[6].weight.dtype == torch.float64
    linear = settled(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)))
    rows, staying = torch.randn(9, 6), {"0": [1, 3]}
    with torch.inference_mode():
        small = remove_units(Profile(linear), staying)
        assert torch.allclose(small(rows), silenced(linear, staying, {"0": "2"}, rows), atol=1e-6)
    twice = nn.BatchNorm2d(6)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), twice, nn.Conv2d(6, 6, 3), twice, nn.Conv2d(6, 2, 1))
    reason = graph.hidden_layers(model)[0].reason
    assert reason == "the batch norm after it, 1, is used more than once, or shares its weight"
    sequences = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    with pytest.raises(ValueError, match="layer '2' reads sequences"):
        statistics.collect_activations(sequences, torch.randn(4, 5, 6))


@pytest.mark.parametrize(
    "options",
    [{"stride": 2, "padding": 1}, {"dilation": 2, "padding": "same"}, {"padding": 2, "padding_mode": "circular"}],
)
def test_geometry_and_type_are_kept(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, (3, 5), **options), nn.GELU(), nn.Conv2d(6, 4, 3, **options)).double().eval()
    x = torch.randn(2, 3, 16, 16).double()
    small = remove_units(Profile(model), {"0": [5, 0]})
    with torch.inference_mode():
        assert torch.allclose(small(x), silenced(model, {"0": [0, 5]}, {"0": "1"}, x))
    for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode"):
        assert all(getattr(model[i], name) == getattr(small[i], name) for i in (0, 2))


# ---- what channels say over data


def test_values_of_a_channel_are_those_at_all_positions_of_all_images():
    model, x = convnet(), torch.randn(50, 3, 8, 8)
    seen = statistics.collect_activations(model, x, bins=16)
    for name, reader, channels in (("conv1", "conv2", 7), ("conv2", "fc", 5)):
        read, found = seen_by(model, reader, x), seen[name]
        values = read.view(50, channels, -1).movedim(1, -1).flatten(0, 1).double().numpy()
        assert found.count == len(values) and found.mean.shape == (channels,)
        assert np.allclose(found.mean, values.mean(0)) and np.allclose(found.variance, values.var(0))
        assert np.allclose(found.low, values.min(0)) and np.allclose(found.high, values.max(0))
        for unit in range(channels):
            counts = np.histogram(values[:, unit], 16)[0]
            assert np.abs(found.histogram[unit].numpy() - counts).sum() <= 4
    read = seen_by(model, "fc", x).double()
    assert torch.allclose(seen["conv2"].column_mean.flatten(), read.mean(0))
    assert torch.allclose(seen["conv2"].column_variance.flatten(), read.var(0, correction=0))
    split = statistics.collect_activations(model, x, bins=16, batch_size=7)
    assert torch.allclose(split["conv2"].variance, seen["conv2"].variance)
    assert (split["conv1"].histogram - seen["conv1"].histogram).abs().sum() <= 4


def test_channels_are_ranked_as_the_formulas_say():
    model, x = convnet(), torch.randn(50, 3, 8, 8)
    seen = statistics.collect_activations(model, x)
    assert all(len(rank_units(Profile(model), seen, rule)) == 12 for rule in UNIT_RULES)
    found = rank_units(Profile(model), seen, "output").set_index(["layer", "unit"])["score"]
    read = [seen_by(model, name, x).double() for name in ("conv2", "fc")]
    gains = read[0].var((0, 2, 3), correction=0) * model.conv2.weight.detach().double().square().sum((0, 2, 3))
    assert np.allclose(found["conv1"].sort_index(), gains / gains.sum())
    gains = (read[1].var(0, correction=0) * model.fc.weight.detach().double().square().sum(0)).view(5, 16).sum(1)
    assert np.allclose(found["conv2"].sort_index(), gains / gains.sum())
    norms = model.conv2.weight.detach().double().square().sum((1, 2, 3)).sqrt()
    found = rank_units(Profile(model), seen, "magnitude").set_index(["layer", "unit"])["score"]
    assert np.allclose(found["conv2"].sort_index(), norms / norms.mean())


@pytest.mark.parametrize("resource", profile.RESOURCES)
@pytest.mark.parametrize("kept", [0.7, 0.3])
@pytest.mark.parametrize("padding", [0, 1])
def test_plans_of_channels_cost_what_the_smaller_network_costs(resource, kept, padding):
    wide = [nn.Conv2d(4, 12, 1), nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3, groups=12), nn.ReLU(), nn.Conv2d(12, 3, 1)]
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Block(4, 9), nn.Sequential(*wide), convnet(padding))
    shape = (3, 10, 10)

    def cost(net):
        return score.parameters(net) - norm_parameters(net) if resource == "parameters" else score.macs(net, shape)

    order = rank_units(Profile(model), statistics.collect_activations(model, torch.randn(20, *shape)), "random")
    assert set(order["layer"]) == {"1.conv1", "2.0", "2.4", "3.conv1", "3.conv2"}
    plan = units_that_stay(Profile(model, input_shape=shape), order, kept, resource=resource)
    small = remove_units(Profile(model), plan)
    cards = profile.read_layers(small, shape, spectra=False)
    assert cost(small) == sum(card.cost(None, resource) for card in cards) <= kept * cost(model)
    assert norm_parameters(small) < norm_parameters(model)
    name, unit = [(n, u) for n, u in zip(order["layer"], order["unit"]) if u not in plan[n]][-1]
    assert cost(remove_units(Profile(model), plan | {name: [*plan[name], unit]})) > kept * cost(model)
    least = {name: [0] for name in plan}
    share = cost(remove_units(Profile(model), least)) / cost(model)
    with pytest.raises(ValueError, match=f"1 unit in every hidden layer keeps {share:.4f}"):
        units_that_stay(Profile(model, input_shape=shape), order, share * 0.99, resource=resource)
    plan = units_that_stay(Profile(model, input_shape=shape), order, share, resource=resource)
    assert all(len(units) == 1 for units in plan.values())


# ---- folding and refitting of channels


@pytest.mark.parametrize("bias", [True, False])
def test_a_channel_of_zeros_goes_without_a_trace_at_the_border_too(bias):
    model, x = convnet(1, bias), torch.randn(30, 3, 8, 8)
    with torch.no_grad():
        model.bn1.weight[2], model.bn1.bias[2] = 0, -1
    staying = {"conv1": [0, 1, 3, 4, 5, 6]}
    refit = {"conv2": moments_of(patches(model, "conv2", x))}
    for how in ({"activations": statistics.collect_activations(model, x)}, {"moments": refit}, {}):
        small = remove_units(Profile(model), staying, **how)
        with torch.inference_mode():
            assert torch.allclose(small(x), model(x), atol=1e-4)
        assert (small.conv2.bias is None) == (not bias)


def test_a_constant_channel_folds_exactly_but_at_a_border_of_zeros():
    staying, x = {"conv1": [0, 1, 3, 4, 5, 6]}, torch.randn(30, 3, 8, 8)
    for padding in (0, 1):
        model = convnet(padding)[:4]  # ends with conv2
        with torch.no_grad():
            model.bn1.weight[2], model.bn1.bias[2] = 0, 2
            wanted = model(x)
            folded = (
                remove_units(Profile(model), staying, activations=statistics.collect_activations(model, x))(x) - wanted
            )
            moments = {"conv2": moments_of(patches(model, "conv2", x))}
            refitted = remove_units(Profile(model), staying, moments=moments)(x) - wanted
        inside = slice(padding, 8 - padding)
        assert folded[..., inside, inside].abs().max() < 1e-5
        assert (folded.abs().max() > 0.1) == (padding == 1)
        assert (refitted.abs().max() > 0.1) == (padding == 1)
        assert refitted.square().mean() < 0.5 * folded.square().mean() or padding == 0


@pytest.mark.parametrize("options", [{}, {"stride": 2, "dilation": 2}, {"padding": "same", "padding_mode": "reflect"}])
def test_folding_keeps_the_mean_output_where_no_zeros_pad(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, **options))
    x = torch.rand(40, 3, 12, 12) * torch.linspace(0, 1, 12)  # positions differ
    plain, folded = (
        remove_units(Profile(model), {"0": [2, 5]}, activations=seen)
        for seen in (None, statistics.collect_activations(model, x))
    )
    with torch.inference_mode():
        wanted = model(x)
        assert torch.allclose(folded(x).mean((0, 2, 3)), wanted.mean((0, 2, 3)), atol=1e-5)
        assert (folded(x) - wanted).square().mean() < (plain(x) - wanted).square().mean()


def test_means_are_folded_column_by_column_after_a_flatten():
    model = convnet()
    x = torch.randn(1, 3, 8, 8).expand(5, 3, 8, 8)  # every position is constant over the images, none equals another
    seen = statistics.collect_activations(model, x)
    with torch.inference_mode():
        assert torch.allclose(remove_units(Profile(model), {"conv2": [3]}, activations=seen)(x), model(x), atol=1e-5)


def test_a_batch_norm_behind_the_reader_takes_what_is_folded():
    model, x = convnet(0, bias=False), torch.randn(40, 3, 8, 8)
    assert [h.absorber for h in graph.hidden_layers(model)] == ["bn2", "", ""]
    seen, staying = statistics.collect_activations(model, x), {"conv1": [0, 2, 5], "conv2": [0, 1, 3]}
    small = remove_units(Profile(model), staying, activations=seen)
    assert small.conv2.bias is None
    rise = (model.conv2.weight.double().flatten(2) * seen["conv1"].column_mean)[:, [1, 3, 4, 6]].sum((1, 2))
    assert torch.allclose(small.bn2.running_mean.double(), (model.bn2.running_mean - rise)[[0, 1, 3]], atol=1e-6)
    plain = remove_units(Profile(model[:4]), {"conv1": [0, 2, 5]}, activations=seen)  # no batch norm behind
    with torch.inference_mode():
        assert torch.allclose(model.bn2(plain(x))[:, [0, 1, 3]], small[:5](x), atol=1e-5)
        small.train(), model.train()  # where the batch decides the mean, the fold makes no difference
        assert torch.allclose(model.bn2(plain.train()(x))[:, [0, 1, 3]], small[:5](x), atol=1e-4)


@pytest.mark.parametrize("bias,norm", [(True, True), (False, True), (False, False)])
def test_refitting_a_convolution_is_the_least_squares_answer(bias, norm):
    model, x = convnet(1, bias, norm), torch.randn(30, 3, 8, 8)
    rows = patches(model, "conv2", x)
    stay = [0, 2, 3, 6]
    small = remove_units(Profile(model), {"conv1": stay}, moments={"conv2": moments_of(rows)})
    with torch.inference_mode():
        wanted = model.conv2(seen_by(model, "conv2", x)).movedim(1, -1).flatten(0, 2).double()
        found = small.conv2(seen_by(small, "conv2", x)).movedim(1, -1).flatten(0, 2).double()
        if norm:
            found = found - small.bn2.running_mean
            wanted = wanted - model.bn2.running_mean
    kept = rows.view(len(rows), 7, 9)[:, stay].flatten(1)
    a = torch.cat([kept, torch.ones(len(kept), 1)], 1) if bias or norm else kept
    assert torch.allclose(found, a @ torch.linalg.lstsq(a, wanted, driver="gelsd").solution, atol=1e-4)
    assert (small.conv2.bias is None) == (not bias)
    with pytest.raises(ValueError, match="layer 'conv2' needs those of 7 units of 9 columns each"):
        remove_units(Profile(model), {"conv1": stay}, moments={"conv2": moments_of(rows[:, :7])})


def test_refitting_a_linear_layer_after_a_flatten():
    model, x = convnet(0), torch.randn(200, 3, 8, 8)
    rows = seen_by(model, "fc", x).double()
    small = remove_units(Profile(model), {"conv2": [1, 2, 4]}, moments=statistics.collect_moments(model, ["fc"], x))
    a = torch.cat([rows.view(200, 5, 4)[:, [1, 2, 4]].flatten(1), torch.ones(200, 1)], 1)
    with torch.inference_mode():
        best = a @ torch.linalg.lstsq(a, model(x).double(), driver="gelsd").solution
        assert torch.allclose(small(x).double(), best, atol=1e-4)


CHANNEL_MEMORY = """
import resource, torch
from torch import nn
from lowrank_utils.network import statistics
torch.set_num_threads(1)
steps = [nn.Conv2d(3, 32, 3, padding=1)]
for _ in range(3):
    steps += [nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)]
model = nn.Sequential(*steps)
images = torch.rand(2, 3, 32, 32)
statistics.collect_activations(model, images)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for count in (150, 450):
    statistics.collect_activations(model, images[:1].expand(count, 3, 32, 32))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_peak_memory_of_channels_does_not_grow_with_the_images():
    done = subprocess.run([sys.executable, "-c", CHANNEL_MEMORY], capture_output=True, text=True, check=True)
    few, many = map(float, done.stdout.split())
    # one layer's activations of 450 images would be 56 MiB in float32, and several of them are held at once
    assert many < few + 20 < 170
