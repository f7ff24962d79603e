"""DDLR over whole networks: constraints that truly hold, steps that say when they leave them, honest sizes."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import conftest
from lowrank_utils.factors import ddlr, ddlr_network, program, replace, sequential
from lowrank_utils.lab import score
from lowrank_utils.network import profile
from lowrank_utils.network.modules import replaced
from lowrank_utils.network.profile import Profile


def mlp(sizes=(10, 8, 6, 3), **options):
    return conftest.mlp(sizes, **options)


@pytest.fixture(scope="module")
def x():
    return torch.randn(60, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def solved(x):
    return ddlr_network.solve_network(Profile(mlp(), x), 0.3, tolerance=1e-3)


def test_layer_data_are_what_the_layer_sees_and_says(x):
    model = mlp()
    inputs, outputs, relu = ddlr_network.layer_data(Profile(model, x), "2", batch_size=7)
    with torch.no_grad():
        hidden = torch.relu(model[0](x))
    assert relu and inputs.shape == (60, 9) and torch.equal(inputs[:, -1], torch.ones(60).double())
    assert torch.allclose(inputs[:, :-1].float(), hidden, atol=1e-6)
    assert torch.allclose(outputs.float(), torch.relu(model[2](hidden)), atol=1e-6)
    inputs, outputs, relu = ddlr_network.layer_data(Profile(mlp(bias=False), x), "4")
    assert not relu and inputs.shape == (60, 6) and (outputs < 0).any()
    with pytest.raises(ValueError, match=r"cannot take calibration images of shape \(4,\)"):
        ddlr_network.layer_data(Profile(model, x[:, :4]), "0")


def test_every_layer_keeps_its_constraints_and_is_certified(solved, x):
    model = mlp()
    assert list(solved) == ["0", "2", "4"]
    for found in solved.values():
        assert found.converged and found.violation <= program.FEASIBLE and 0 < found.bound <= found.objective
    whole = {name: ddlr_network.dense(model.get_submodule(name), s.weights) for name, s in solved.items()}
    table = ddlr_network.constraints(Profile(model, x), replaced(model, whole), 0.3)
    assert (table["error"] <= 0.3 + 1e-5).all() and (table["sign"] <= 1e-5).all()
    assert table["layer"].tolist() == ["0", "2", "4"]


def test_layers_in_threads_give_the_same_answer(solved, x):
    for _ in range(5):
        again = ddlr_network.solve_network(Profile(mlp(), x), 0.3, tolerance=1e-3, workers=3)
        for name, found in solved.items():
            assert again[name].objective == pytest.approx(found.objective, rel=1e-9)


def test_epsilon_by_layer_leaves_absent_layers_alone(x):
    found = ddlr_network.solve_network(Profile(mlp(), x), {"2": 0.5})
    assert list(found) == ["2"] and found["2"].epsilon == 0.5
    with pytest.raises(ValueError, match="epsilon names 'fc', which is no linear layer of this network: 0, 2, 4"):
        ddlr_network.solve_network(Profile(mlp(), x), {"fc": 0.5})
    with pytest.raises(ValueError, match="layer '0': epsilon=-1 is not a number above 0"):
        ddlr_network.solve_network(Profile(mlp(), x), -1)
    with pytest.raises(ValueError, match="the network has no linear layer"):
        ddlr_network.solve_network(Profile(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.randn(4, 1, 8, 8)), 0.1)


def test_the_cascade_aims_at_the_original_outputs(x):
    model = mlp()
    found = ddlr_network.solve_network(Profile(model, x), 0.3, cascade=True, tolerance=1e-3)
    small = replaced(
        model, {name: ddlr_network.dense(model.get_submodule(name), s.weights) for name, s in found.items()}
    )
    with torch.no_grad():
        error = float((small(x) - model(x)).norm() / model(x).norm())
    assert error <= found["4"].epsilon + 1e-4  # the last layer answers for all that came before
    alone = ddlr_network.solve_network(Profile(model, x), 0.3, tolerance=1e-3)
    beside = replaced(
        model, {name: ddlr_network.dense(model.get_submodule(name), s.weights) for name, s in alone.items()}
    )
    with torch.no_grad():
        assert error < float((beside(x) - model(x)).norm() / model(x).norm())


def test_an_epsilon_out_of_reach_in_the_cascade_is_raised_and_told(x):
    torch.manual_seed(3)
    model = mlp((10, 3, 8, 2))  # a bottleneck whose error later layers cannot repair
    found = ddlr_network.solve_network(Profile(model, x), {"0": 0.9, "2": 0.01}, cascade=True)
    assert found["2"].epsilon > 0.01 and found["2"].note.startswith("epsilon 0.01 was out of reach in the cascade")
    assert found["2"].violation <= program.FEASIBLE
    small = replaced(model, {"0": ddlr_network.dense(model[0], found["0"].weights)})
    data = ddlr_network.layer_data(Profile(model, x), "2", inputs_of=small)
    with pytest.raises(program.Infeasible) as caught:
        ddlr.solve(*data[:2], 0.01, data[2])
    assert found["2"].epsilon == pytest.approx(1.05 * caught.value.smallest, rel=1e-2)
    short = ddlr_network.solve_network(
        Profile(model, x), {"0": 0.9, "2": 0.01}, cascade=True, tolerance=1e-12, max_iterations=3
    )["2"]
    assert "raised to" in short.note and "the budget ended after 3 iterations" in short.note


def test_a_layer_that_gets_only_zeros_in_the_cascade_becomes_zero(x):
    model = mlp(bias=False)
    model[0].weight.data[:] = model[0].weight.data[:1]
    first = {"0": 0.9, "2": 0.1}
    images = torch.cat([x[:1], -x[:1]]).repeat(5, 1)
    images = images if (model[0](images) > 0).any() else -images
    small = replaced(model, {"0": ddlr_network.dense(model[0], torch.zeros(10, 8).double())})
    with pytest.raises(program.Infeasible, match="inputs are all zero"):
        ddlr.solve(*ddlr_network.layer_data(Profile(model, images), "2", inputs_of=small)[:2], 0.1)
    assert list(ddlr_network.solve_network(Profile(model, images), first, cascade=True)) == ["0", "2"]


def test_a_warm_start_of_the_network_saves_iterations(x):
    cold = ddlr_network.solve_network(Profile(mlp(), x), 0.2, tolerance=1e-5)
    warm = ddlr_network.solve_network(
        Profile(mlp(), x),
        0.2,
        tolerance=1e-5,
        warm_start=ddlr_network.solve_network(Profile(mlp(), x), 0.21, tolerance=1e-5),
    )
    again = ddlr_network.solve_network(Profile(mlp(), x), 0.2, tolerance=1e-5, warm_start=cold)
    assert sum(s.iterations for s in again.values()) <= 3 * program.CHECK_EVERY
    assert sum(s.iterations for s in warm.values()) < sum(s.iterations for s in cold.values())


def test_the_relu_is_that_of_the_network_of_the_outputs(x):
    torch.manual_seed(0)
    with_relu, without = nn.Sequential(nn.Linear(10, 4), nn.ReLU()), nn.Sequential(nn.Linear(10, 4))
    _inputs, outputs, relu = ddlr_network.layer_data(Profile(with_relu, x), "0", inputs_of=without)
    assert relu and (outputs >= 0).all() and torch.allclose(outputs.float(), with_relu(x), atol=1e-6)
    assert not ddlr_network.layer_data(Profile(without, x), "0", inputs_of=with_relu)[2]


def test_reweighting_keeps_the_constraints_and_lowers_the_rank():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 20, generator=generator).double()
    original = torch.randn(20, 4, generator=generator).double() @ torch.randn(4, 12, generator=generator).double()
    original += 0.3 * torch.randn(20, 12, generator=generator).double()
    inputs = torch.cat([inputs, torch.ones(80, 1).double()], 1)  # a bias, zero in the original
    original = torch.cat([original, torch.zeros(1, 12).double()])
    outputs = (inputs @ original).clamp(min=0)
    plain = ddlr.solve(inputs, outputs, 0.3, original=original)
    better = ddlr_network.reweighted(inputs, outputs, 0.3, original=original, start=plain)
    assert ddlr.check(better.weights, inputs, outputs, 0.3).feasible
    assert better.violation <= program.FEASIBLE and better.rank < plain.rank
    assert torch.linalg.matrix_norm(better.weights, "nuc") >= plain.bound - 1e-6  # the certificate of the plain norm
    assert better.objective == pytest.approx(float(torch.linalg.matrix_norm(better.weights, "nuc")))
    assert better.bound == plain.bound and better.gap == better.objective - plain.bound > 0
    assert better.note == "reweighted 2 times; the bound is that of the plain program" and len(better.history) == 2
    tighter = ddlr_network.reweighted(inputs, outputs, 0.4, start=plain)  # a bound at 0.3 proves nothing at 0.4
    assert tighter.bound == 0 and tighter.epsilon == 0.4


@pytest.mark.parametrize(("seed", "samples", "size", "units"), [(9, 100, 40, 30), (12, 60, 30, 24), (39, 40, 60, 30)])
def test_reweighting_does_not_stop_at_a_sum_of_two_answers(seed, samples, size, units):
    # in these problems a step towards the plain answer closes the gap first, at a rank above that of the plain answer
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(size, size, generator=generator).double())
    inputs = torch.randn(samples, size, generator=generator).double() / torch.arange(1, size + 1)
    inputs = torch.cat([inputs @ turn, torch.ones(samples, 1).double()], 1)
    original = torch.randn(size + 1, units, generator=generator).double()
    outputs = (inputs @ original).clamp(min=0)
    plain = ddlr.solve(inputs, outputs, 0.03, original=original, tolerance=0.01)
    better = ddlr_network.reweighted(inputs, outputs, 0.03, start=plain, rounds=1, tolerance=0.01)
    assert better.converged and better.violation <= program.FEASIBLE
    assert better.rank < plain.rank


def test_one_round_of_reweighting_minimises_the_weighted_norm():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 8, generator=generator).double()
    outputs = (inputs @ torch.randn(8, 5, generator=generator).double()).clamp(min=0)
    plain = ddlr.solve(inputs, outputs, 0.3, tolerance=1e-5)
    better = ddlr_network.reweighted(inputs, outputs, 0.3, start=plain, rounds=1, damping=0.1, tolerance=1e-5)
    values, vectors = torch.linalg.eigh(plain.weights @ plain.weights.T)
    scale = (values.clamp(min=0) / values[-1] + 0.1**2).sqrt()
    least = ddlr.solve(inputs @ (vectors * scale) @ vectors.T, outputs, 0.3, tolerance=1e-5)
    weighted = torch.linalg.matrix_norm((vectors / scale) @ vectors.T @ better.weights, "nuc")
    assert float(weighted) == pytest.approx(least.objective, rel=3e-5)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("there is none for penalty='l1'", {"penalty": "l1"}),
        ("rounds=0 is not a whole number of at least 1", {"rounds": 0}),
        ("damping=0 is not a number above 0", {"damping": 0}),
        ("start is not feasible at epsilon 0.1: it was solved at 0.3", {"epsilon": 0.1}),
        (r"start has weights of shape \(9, 6\); this layer needs \(11, 8\)", {"start": "2"}),
    ],
)
def test_reweighting_says_what_it_cannot_do(message, change, solved, x):
    inputs, outputs, _ = ddlr_network.layer_data(Profile(mlp(), x), "0")
    with pytest.raises(ValueError, match=message):
        ddlr_network.reweighted(
            inputs, outputs, **{"epsilon": 0.3} | change | {"start": solved[change.get("start", "0")]}
        )


def test_low_rank_networks_do_what_the_answers_say(solved, x):
    model = mlp()
    net, plan = ddlr_network.low_rank(Profile(model), solved)
    assert plan == ddlr_network.ranks(Profile(model), solved)
    for name in ("0", "2", "4"):
        layer = net.get_submodule(name)
        if name in plan:
            product = layer.second.weight @ layer.first.weight
            assert torch.allclose(product.T, solved[name].weights[:-1].float(), atol=1e-4)
            assert torch.allclose(layer.second.bias, solved[name].weights[-1].float(), atol=1e-5)
            assert plan[name] < layer.first.in_features * layer.second.out_features / (
                layer.first.in_features + layer.second.out_features
            )
        else:
            assert torch.equal(layer.weight, model.get_submodule(name).weight)
    assert plan, "no layer became thinner, so this test saw nothing"
    assert score.parameters(net) < score.parameters(model)


def test_cuts_lower_ranks_and_refits_stay_in_the_subspace(x):
    torch.manual_seed(0)
    model = mlp((10, 20, 16, 3))
    found = ddlr_network.solve_network(Profile(model, x), 0.2)
    plans = [ddlr_network.ranks(Profile(model), found, cut=cut) for cut in (0.3, 0.5, 0.9)]
    sizes = [profile.plan_cost(profile.read_layers(model, (10,)), plan, "parameters") for plan in plans]
    assert sizes[0] > sizes[1] > sizes[2] and len(plans[0]) >= 2
    net, plan = ddlr_network.low_rank(Profile(model, x), found, cut=0.3, refit=True)
    for name, rank in plan.items():
        left = torch.linalg.svd(found[name].weights[:-1].T, full_matrices=False)[0][:, :rank].float()
        second = net.get_submodule(name).second.weight
        assert torch.allclose(left @ (left.T @ second), second, atol=1e-4)
    raw, _ = ddlr_network.low_rank(Profile(model), found, cut=0.3)
    with torch.no_grad():
        assert (net(x) - model(x)).norm() < (raw(x) - model(x)).norm()
    free = replace.apply_plan(Profile(model, x), plan, factors="sequential", resource="parameters")
    with torch.no_grad():  # the subspace is a restriction
        assert (free[0](x) - model[0](x)).norm() <= (net[0](x) - model[0](x)).norm() + 1e-5


def test_sparse_networks_are_counted_both_ways(x):
    model = mlp((10, 20, 16, 3))
    found = ddlr_network.solve_network(Profile(model, x), 0.4, penalty="l1")
    net = ddlr_network.sparse(Profile(model), found, cut=1e-3)
    counted = ddlr_network.stored(net)
    nonzeros = {name: int(net.get_submodule(name).weight.count_nonzero()) for name in found}
    assert counted["non-zeros"] == sum(nonzeros.values()) + 39
    by_hand = 0
    for name in found:
        rows, columns = net.get_submodule(name).weight.shape
        by_hand += min(nonzeros[name] * 1.5 + rows + 1, rows * columns) + rows
    assert counted["with indices"] == round(by_hand)
    assert nonzeros["0"] < 200 and counted["non-zeros"] < counted["with indices"]
    assert ddlr_network.stored(model) == {"non-zeros": score.parameters(model), "with indices": score.parameters(model)}


def test_convolutions_count_in_full_and_stay():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 3))
    images = torch.randn(40, 1, 8, 8)
    found = ddlr_network.solve_network(Profile(model, images), 0.5, penalty="l1", tolerance=0.05)
    net = ddlr_network.sparse(Profile(model), found)
    assert torch.equal(net[0].weight, model[0].weight) and list(found) == ["3", "5"]
    assert ddlr_network.stored(net)["non-zeros"] == 20 + sum(int(net[i].weight.count_nonzero()) for i in (3, 5)) + 23


def test_a_layer_with_no_active_unit_gets_zero_weights(x):
    model = mlp()
    model[0].bias.data.fill_(-100)
    found = ddlr_network.solve_network(Profile(model, x), 0.1)
    assert found["0"].note.startswith("no unit is active") and found["0"].objective == 0
    net, plan = ddlr_network.low_rank(Profile(model), {"0": found["0"]})
    assert plan["0"] == 1 and torch.isfinite(net(x)).all()


def test_cuts_are_relative_to_the_largest(solved, x):
    model = mlp()
    louder = {name: dataclasses.replace(s, weights=100 * s.weights) for name, s in solved.items()}
    for cut in (0.1, 0.3, 0.6):
        assert ddlr_network.ranks(Profile(model), louder, cut=cut) == ddlr_network.ranks(
            Profile(model), solved, cut=cut
        )


def test_refits_get_what_they_were_given(solved, x, monkeypatch):
    seen = {}
    monkeypatch.setattr(ddlr_network, "sweep", lambda profile, plan, **options: seen.update(options) or profile.model)
    ddlr_network.low_rank(Profile(mlp(), x), solved, relu=True, iterations=3, refit=True)
    assert (
        seen["relu"] is True
        and seen["iterations"] == 3
        and set(seen["within"]) == set(ddlr_network.ranks(Profile(mlp()), solved))
    )


def test_sparse_cuts_do_not_look_at_the_bias(x):
    model = mlp((4, 3, 2))
    found = ddlr_network.solve_network(Profile(model, x[:, :4]), {"0": 0.5}, penalty="l1")
    weights = torch.tensor([[1.0, 0.2, 0.0], [0.5, 0.01, 0.3], [0.1, 0.1, 0.1], [0.0, 0.0, 1.0], [50.0, 0.0, 0.0]])
    found["0"] = dataclasses.replace(found["0"], weights=weights.double())
    net = ddlr_network.sparse(Profile(model), found, cut=0.15)
    assert torch.equal(net[0].weight.T, torch.where(weights[:4] > 0.15, weights[:4], 0))
    assert torch.equal(net[0].bias, weights[4]) and torch.equal(net[2].weight, model[2].weight)


@pytest.mark.parametrize("bias", [True, False])
def test_a_refit_is_least_squares_on_the_support(x, bias):
    model = mlp((10, 20, 16, 3), bias=bias)
    found = ddlr_network.solve_network(Profile(model, x), {"0": 0.4, "2": 0.4}, penalty="l1")
    cut = ddlr_network.sparse(Profile(model), found, cut=0.05)
    net = ddlr_network.sparse(Profile(model, x), found, cut=0.05, ridge=1e-12, refit=True)
    small = mlp((10, 20, 16, 3), bias=bias)  # becomes the sparse network, layer after layer
    for name in ("0", "2", "4"):
        inputs = ddlr_network.layer_data(Profile(small, x), name)[0].numpy()
        with torch.no_grad():
            targets = model[: int(name) + 1](x).double().numpy()
        support = np.ones((3, 16), bool) if name == "4" else cut.get_submodule(name).weight.detach().numpy() != 0
        layer = net.get_submodule(name)
        reached = inputs @ ddlr_network.matrix(layer).numpy()
        for unit, on in enumerate(support):
            assert not layer.weight[unit, ~torch.from_numpy(on)].any()
            kept = inputs[:, np.append(on, True) if bias else on]
            best = kept @ np.linalg.lstsq(kept, targets[:, unit], rcond=None)[0]
            least, ours = (np.linalg.norm(targets[:, unit] - some) for some in (best, reached[:, unit]))
            assert ours <= least * (1 + 1e-4) + 1e-4
        small = replaced(small, {name: layer})
    with torch.no_grad():
        assert (net(x) - model(x)).norm() < 0.9 * (cut(x) - model(x)).norm()
    assert ddlr_network.stored(net)["non-zeros"] == ddlr_network.stored(cut)["non-zeros"]


def test_a_refit_of_the_whole_support_is_that_of_sweep(x):
    model = mlp((10, 20, 16, 3))
    whole = {"0": ddlr_network.solve_network(Profile(model, x), {"0": 0.4}, penalty="l1")["0"]}
    weights = ddlr_network.matrix(model[0])
    weights[:-1] += 0.01 * (weights[:-1] == 0)
    whole["0"] = dataclasses.replace(whole["0"], weights=weights)
    net = ddlr_network.sparse(Profile(model, x), whole, cut=0.0, refit=True)
    with torch.no_grad():
        assert torch.allclose(net(x), model(x), atol=1e-3)  # nothing was lost, and the refit loses nothing
    assert torch.equal(ddlr_network.sparse(Profile(model, x), {}, refit=True)[4].weight, model[4].weight)


def test_with_few_images_the_ridge_of_a_refit_is_cross_validated():
    model, generator = mlp((60, 20, 16, 3)), torch.Generator().manual_seed(2)
    some, fresh = (torch.randn(n, 60, generator=generator) for n in (60, 2000))  # as many images as inputs
    found = ddlr_network.solve_network(Profile(model, some), {"0": 0.3, "2": 0.3}, penalty="l1")

    def away(**how):
        net = ddlr_network.sparse(Profile(model, some), found, cut=0.02, **how)
        with torch.no_grad():
            return float((net(fresh) - model(fresh)).norm() / model(fresh).norm())

    plain, chosen = away(refit=True, ridge=1e-6), away(refit=True)
    assert chosen < 0.95 * plain and chosen < away()
    assert away(refit=True, ridge=1e-6) == plain  # a ridge that is given is taken


def test_the_ridge_of_a_sparse_layer_is_the_one_with_the_least_score_on_its_supports():
    generator = torch.Generator().manual_seed(3)
    x, e = (torch.randn(50, n, generator=generator).double() for n in (30, 4))
    x, e = x - x.mean(0), 2 * (e - e.mean(0))
    e += x[:, :4]
    support = torch.rand(4, 30, generator=generator) < 0.2
    support[3] = False  # a unit without weights

    def score(ridge):
        total = 0.0
        for unit, on in enumerate(support):
            kept = x[:, on]
            damping = 50 * ridge * float(x.square().mean()) * torch.eye(kept.shape[1]).double()
            hat = kept @ torch.linalg.solve(kept.T @ kept + damping, kept.T)
            total += float((e[:, unit] - hat @ e[:, unit]).square().sum() / (1 - (1 + hat.trace()) / 50) ** 2)
        return total

    found = sequential.cross_validated_ridge(x.T @ x / 50, e.T @ x / 50, e.square().mean(0), 50, support)
    assert found == min(sequential.GRID, key=score)
    assert found != sequential.cross_validated_ridge(x.T @ x / 50, e.T @ x / 50, e.square().sum() / 50, 50)


def test_indices_cost_their_bits(x):
    model = mlp((10, 20, 16, 3))
    net = ddlr_network.sparse(Profile(model), ddlr_network.solve_network(Profile(model, x), 0.6, penalty="l1"), cut=0.1)
    found = {bits: ddlr_network.stored(net, index_bits=bits) for bits in (8, 16)}
    by_hand = 0
    for layer in (net[0], net[2], net[4]):
        packed = int(layer.weight.count_nonzero()) * 1.25 + layer.out_features + 1
        by_hand += min(packed, layer.weight.numel()) + layer.out_features
    assert found[8]["with indices"] == round(by_hand) < found[16]["with indices"]
    assert found[8]["non-zeros"] == found[16]["non-zeros"]


@pytest.mark.parametrize("kind", ["low_rank", "non-zeros", "indices"])
def test_the_smallest_cut_of_a_size(x, kind):
    model = mlp((10, 20, 16, 3))
    found = ddlr_network.solve_network(Profile(model, x), 0.3, penalty="nuclear" if kind == "low_rank" else "l1")

    def share(cut):
        if kind == "low_rank":
            return score.parameters(ddlr_network.low_rank(Profile(model), found, cut=cut)[0]) / score.parameters(model)
        counted = ddlr_network.stored(ddlr_network.sparse(Profile(model), found, cut=cut))
        return counted["non-zeros" if kind == "non-zeros" else "with indices"] / score.parameters(model)

    for kept in (0.35, 0.45, 0.5):
        cut = ddlr_network.cut_for(Profile(model), found, kept, kind=kind)
        assert cut > 0 and share(cut) <= kept < share(cut * (1 - 1e-6))
    assert ddlr_network.cut_for(Profile(model), found, 1, kind=kind) == 0
    with pytest.raises(ValueError, match=r"kept=0.01 is out of reach: cuts of these answers keep from 0\.[0-9]+ to "):
        ddlr_network.cut_for(Profile(model), found, 0.01, kind=kind)


def test_a_search_for_accuracy_ends_at_the_largest_epsilon_that_has_it(x):
    model = mlp((10, 16, 12, 3))
    labels = model(x).argmax(1)

    def good(solutions):
        net = replaced(
            model, {name: ddlr_network.dense(model.get_submodule(name), s.weights) for name, s in solutions.items()}
        )
        return float((net(x).argmax(1) == labels).double().mean()) >= 0.9

    epsilon, solutions, table = ddlr_network.search_epsilon(
        Profile(model, x), good=good, low=0.05, high=0.95, steps=5, tolerance=1e-2
    )
    assert table.columns.tolist() == ["epsilon", "good", "seconds"] and len(table) == 7
    assert good(solutions) and all(s.epsilon == epsilon for s in solutions.values())
    assert epsilon == table.loc[table["good"], "epsilon"].max()
    worse = table.loc[~table["good"], "epsilon"].min()
    assert 1 < worse / epsilon <= (0.95 / 0.05) ** (2**-5) * (1 + 1e-9)


def test_a_search_for_a_budget_ends_at_the_smallest_epsilon_that_keeps_it(x):
    model = mlp((10, 16, 12, 3))

    def good(solutions):
        return score.parameters(
            ddlr_network.low_rank(Profile(model), solutions, cut=0.01)[0]
        ) <= 0.8 * score.parameters(model)

    epsilon, solutions, table = ddlr_network.search_epsilon(
        Profile(model, x), good=good, low=0.05, high=0.9, steps=4, largest=False, tolerance=1e-2
    )
    assert good(solutions) and epsilon == table.loc[table["good"], "epsilon"].min()
    assert 1 < epsilon / table.loc[~table["good"], "epsilon"].max() <= (0.9 / 0.05) ** (2**-4) * (1 + 1e-9)
    assert table["epsilon"].tolist()[:2] == [0.9, 0.05]


def test_searches_without_an_answer_say_so(x):
    options = {"tolerance": 0.1, "steps": 1}
    with pytest.raises(ValueError, match="the answers at epsilon 0.02 are not good, .* lower `low`"):
        ddlr_network.search_epsilon(Profile(mlp(), x), good=lambda solutions: False, **options)
    with pytest.raises(ValueError, match="the answers at epsilon 0.8 are not good, .* raise `high`"):
        ddlr_network.search_epsilon(Profile(mlp(), x), good=lambda solutions: False, largest=False, **options)
    assert ddlr_network.search_epsilon(Profile(mlp(), x), good=lambda solutions: True, **options)[0] == 0.8
    for change, message in (
        ({"low": 0}, "low=0 is not a number above 0"),
        ({"low": 0.9}, "low=0.9 must be below high=0.8"),
        ({"steps": -1}, "steps=-1 is not a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            ddlr_network.search_epsilon(Profile(mlp(), x), good=lambda solutions: True, **change)


def test_constraints_allow_for_the_rounding_of_stored_numbers(x):
    model = mlp((10, 30, 20, 3))
    found = ddlr_network.solve_network(Profile(model, x), 0.4)
    net, plan = ddlr_network.low_rank(Profile(model), found)
    wanted = dict.fromkeys(plan, 0.4)
    table = ddlr_network.constraints(Profile(model, x), net, wanted)
    assert table["layer"].tolist() == list(plan) == ["2"] and table["feasible"].all()
    tight = dict(zip(plan, table["error"] - 1e-7))  # within the rounding of float32, not of float64
    assert ddlr_network.constraints(Profile(model, x), net, tight)["feasible"].all()
    assert not ddlr_network.constraints(Profile(model, x), net, tight, tolerance=1e-9)["feasible"].any()
    assert not ddlr_network.constraints(Profile(model, x.double()), net.double(), tight)["feasible"].any()
    assert len(ddlr_network.constraints(Profile(model, x), net.float(), {"0": 0.4, "4": 0.4})) == 2


def test_constraints_are_asked_on_the_inputs_that_are_named(x):
    model = mlp((10, 20, 16, 3))
    found = ddlr_network.solve_network(Profile(model, x), 0.3, cascade=True)
    small = replaced(
        model, {name: ddlr_network.dense(model.get_submodule(name), s.weights) for name, s in found.items()}
    )
    wanted = {name: s.epsilon for name, s in found.items()}
    fitted = ddlr_network.constraints(Profile(model, x), small, wanted, inputs_of=small)
    original = ddlr_network.constraints(Profile(model, x), small, wanted)
    assert fitted["feasible"].all() and not original["feasible"].all()
    assert fitted["error"][0] == original["error"][0] and fitted["error"][2] != original["error"][2]
    data = ddlr_network.layer_data(Profile(model, x), "4", inputs_of=small)
    assert fitted["error"][2] == ddlr.check(found["4"].weights.float(), *data[:2], 0.3, data[2]).error
    thin, plan = ddlr_network.low_rank(Profile(model), ddlr_network.solve_network(Profile(model, x), 0.2))
    assert len(ddlr_network.constraints(Profile(model, x), thin, dict.fromkeys(plan, 0.2), inputs_of=thin)) == len(plan)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("epsilon names no layer", lambda model, x, found: ddlr_network.solve_network(Profile(model, x), {})),
        (
            "workers=0 is not a whole number",
            lambda model, x, found: ddlr_network.solve_network(Profile(model, x), 0.3, workers=0),
        ),
        (
            "images are a ndarray of shape",
            lambda model, x, found: ddlr_network.solve_network(Profile(model, x.numpy()), 0.3),
        ),
        (
            r"images are a Tensor of shape \(0, 10\)",
            lambda model, x, found: ddlr_network.solve_network(Profile(model, x[:0]), 0.3),
        ),
        (
            "warm_start is a Solution",
            lambda model, x, found: ddlr_network.solve_network(Profile(model, x), 0.3, warm_start=found["0"]),
        ),
        ("there is no layer '99'", lambda model, x, found: ddlr_network.layer_data(Profile(model, x), "99")),
        ("layer '1' is a ReLU", lambda model, x, found: ddlr_network.layer_data(Profile(model, x), "1")),
        ("epsilon names 'fc'", lambda model, x, found: ddlr_network.constraints(Profile(model, x), model, {"fc": 0.1})),
        (
            "network compressed has no layer '2'",
            lambda model, x, found: ddlr_network.constraints(Profile(model, x), model[:2], 0.1),
        ),
        (
            "tolerance=nan is not",
            lambda model, x, found: ddlr_network.constraints(
                Profile(model, x), model, 0.1, inputs_of=None, tolerance=float("nan")
            ),
        ),
        ("cut=1 is not a share", lambda model, x, found: ddlr_network.low_rank(Profile(model), found, cut=1)),
        ("cut=-0.1 is not a share", lambda model, x, found: ddlr_network.ranks(Profile(model), found, cut=-0.1)),
        (
            "cut=nan is not a share",
            lambda model, x, found: ddlr_network.sparse(Profile(model), found, cut=float("nan")),
        ),
        (
            "kept=0 is not a share",
            lambda model, x, found: ddlr_network.cut_for(Profile(model), found, 0, kind="low_rank"),
        ),
        (
            "unknown kind 'x'; known: low_rank",
            lambda model, x, found: ddlr_network.cut_for(Profile(model), found, 0.5, kind="x"),
        ),
        (
            r"answer of layer '0' has shape \(9, 6\)",
            lambda model, x, found: ddlr_network.ranks(Profile(model), {"0": found["2"]}),
        ),
    ],
)
def test_bad_input_is_named(message, call, solved, x):
    with pytest.raises(ValueError, match=message):
        call(mlp(), x, solved)
