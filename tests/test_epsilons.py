"""One epsilon a layer: equal to looking at every choice, costs and damages checked on the networks themselves."""

import itertools

import pytest
import torch
from torch import nn

import lowrank_utils
from lowrank_utils.factors import ddlr_network
from lowrank_utils.lab import score
from lowrank_utils.ranks import epsilons

TRIED = (0.1, 0.3, 0.6)


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    for layer in net[::2]:  # spectra that fall, so that ranks follow epsilon
        u, s, vt = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        layer.weight.data = 3 * u * 0.6 ** torch.arange(len(s)) @ vt
    profile = lowrank_utils.profile(net, torch.randn(80, 30))
    answers = {e: ddlr_network.solve_network(profile, e, tolerance=0.05, max_seconds=5) for e in TRIED}
    return profile, answers, epsilons.layer_options(profile, answers)


def network_of(profile, answers, choice):
    return ddlr_network.low_rank(profile, {name: answers[e][name] for name, e in choice.items()})[0]


def test_options_are_answers_and_dense_by_rising_cost(made):
    profile, answers, options = made
    assert [own.name for own in options] == ["0", "2", "4"]
    assert sum(len(own.epsilons) for own in options) >= 8  # most answers are smaller than their layer
    for own in options:
        assert list(own.costs) == sorted(own.costs) and None in own.epsilons
        for epsilon, rank, cost, damage in zip(own.epsilons, own.ranks, own.costs, own.damages, strict=True):
            if epsilon is None:
                assert rank is None and damage == 0 and cost == profile[own.name].parameters
                continue
            net = network_of(profile, answers, {own.name: epsilon})
            rest = score.parameters(profile.model) - profile[own.name].parameters
            assert score.parameters(net) == rest + cost
            assert damage == pytest.approx(epsilons.divergence(profile, net)) and damage > 0


def test_the_damage_is_the_divergence_of_the_answers(made):
    profile, answers, _ = made
    net = network_of(profile, answers, {"0": 0.3})
    with torch.no_grad():
        p, q = (each(profile.calibration).double().softmax(1) for each in (profile.model, net))
    assert epsilons.divergence(profile, net) == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-6)
    assert epsilons.divergence(profile, profile.model) == 0


@pytest.mark.parametrize("share", [0.55, 0.7, 0.85, 1.0])
def test_equal_to_looking_at_every_choice(made, share):
    profile, answers, options = made
    whole = score.parameters(profile.model)
    least = whole - sum(own.costs.max() - own.costs.min() for own in options)
    size = int(max(share * whole, least))
    found = epsilons.choose(profile, answers, options, size)
    best = min(
        sum(own.damages[j] for own, j in zip(options, places, strict=True))
        for places in itertools.product(*(range(len(own.costs)) for own in options))
        if whole - sum(own.costs.max() - own.costs[j] for own, j in zip(options, places, strict=True)) <= size
    )
    assert found.damage == pytest.approx(best, abs=1e-12) and found.gap == pytest.approx(0, abs=1e-12)
    net = network_of(profile, answers, found.epsilons)
    assert score.parameters(net) == found.parameters <= size
    assert {name: one.epsilon for name, one in found.solutions.items()} == found.epsilons


def test_one_epsilon_for_all_is_never_less_damage(made):
    profile, answers, options = made
    for epsilon, solutions in answers.items():
        size = score.parameters(ddlr_network.low_rank(profile, solutions)[0])
        alike = sum(
            own.damages[own.epsilons.index(epsilon)] if epsilon in own.epsilons else 0.0 for own in options
        )  # a layer that would not be smaller stays dense
        assert epsilons.choose(profile, answers, options, size).damage <= alike + 1e-12


def test_layers_that_are_not_named_stay_dense(made):
    profile, answers, _ = made
    options = epsilons.layer_options(profile, answers, ["0"])
    found = epsilons.choose(profile, answers, options, score.parameters(profile.model) - 1)
    assert set(found.epsilons) == {"0"}


def test_bad_input_is_named(made):
    profile, answers, options = made
    with pytest.raises(ValueError, match="answers is empty"):
        epsilons.layer_options(profile, {})
    with pytest.raises(ValueError, match="there is no layer to choose"):
        epsilons.layer_options(profile, answers, [])
    with pytest.raises(ValueError, match="at epsilon 0.1 have none for layer 'fc9'"):
        epsilons.layer_options(profile, answers, ["fc9"])
    with pytest.raises(ValueError, match="no choice of epsilons has 10 parameters: the smallest network has"):
        epsilons.choose(profile, answers, options, 10)
    with pytest.raises(ValueError, match="calibration"):
        epsilons.layer_options(lowrank_utils.profile(profile.model, input_shape=(30,)), answers)
