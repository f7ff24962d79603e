"""DDLR over whole networks: constraints that truly hold, steps that say when they leave them, honest sizes."""

import conftest
import pytest
import torch
from torch import nn

from lowrank_utils import ddlr, layers, score
from lowrank_utils import ddlr_network as dn


def mlp(sizes=(10, 8, 6, 3), **options):
    return conftest.mlp(sizes, **options)


@pytest.fixture(scope="module")
def x():
    return torch.randn(60, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def solved(x):
    return dn.solve(mlp(), x, 0.3, tolerance=1e-3)


def test_layer_data_are_what_the_layer_sees_and_says(x):
    model = mlp()
    inputs, outputs, relu = dn.layer_data(model, "2", x, batch_size=7)
    with torch.no_grad():
        hidden = torch.relu(model[0](x))
    assert relu and inputs.shape == (60, 9) and torch.equal(inputs[:, -1], torch.ones(60).double())
    assert torch.allclose(inputs[:, :-1].float(), hidden, atol=1e-6)
    assert torch.allclose(outputs.float(), torch.relu(model[2](hidden)), atol=1e-6)
    inputs, outputs, relu = dn.layer_data(mlp(bias=False), "4", x)
    assert not relu and inputs.shape == (60, 6) and (outputs < 0).any()
    with pytest.raises(ValueError, match=r"cannot take calibration images of shape \(4,\)"):
        dn.layer_data(model, "0", x[:, :4])


def test_every_layer_keeps_its_constraints_and_is_certified(solved, x):
    model = mlp()
    assert list(solved) == ["0", "2", "4"]
    for found in solved.values():
        assert found.converged and found.violation <= ddlr.FEASIBLE and 0 < found.bound <= found.objective
    whole = {name: dn.dense(model.get_submodule(name), s.weights) for name, s in solved.items()}
    from lowrank_utils.models import replaced

    table = dn.constraints(model, replaced(model, whole), x, 0.3)
    assert (table["error"] <= 0.3 + 1e-5).all() and (table["sign"] <= 1e-5).all()
    assert table["layer"].tolist() == ["0", "2", "4"]


def test_layers_in_threads_give_the_same_answer(solved, x):
    for _ in range(5):
        again = dn.solve(mlp(), x, 0.3, tolerance=1e-3, workers=3)
        for name, found in solved.items():
            assert again[name].objective == pytest.approx(found.objective, rel=1e-9)


def test_epsilon_by_layer_leaves_absent_layers_alone(x):
    found = dn.solve(mlp(), x, {"2": 0.5})
    assert list(found) == ["2"] and found["2"].epsilon == 0.5
    with pytest.raises(ValueError, match="epsilon names 'fc', which is no linear layer of this network: 0, 2, 4"):
        dn.solve(mlp(), x, {"fc": 0.5})
    with pytest.raises(ValueError, match="layer '0': epsilon=-1 is not a number above 0"):
        dn.solve(mlp(), x, -1)
    with pytest.raises(ValueError, match="the network has no linear layer"):
        dn.solve(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.randn(4, 1, 8, 8), 0.1)


def test_the_cascade_aims_at_the_original_outputs(x):
    model = mlp()
    found = dn.solve(model, x, 0.3, cascade=True, tolerance=1e-3)
    from lowrank_utils.models import replaced

    small = replaced(model, {name: dn.dense(model.get_submodule(name), s.weights) for name, s in found.items()})
    with torch.no_grad():
        error = float((small(x) - model(x)).norm() / model(x).norm())
    assert error <= found["4"].epsilon + 1e-4  # the last layer answers for all that came before
    alone = dn.solve(model, x, 0.3, tolerance=1e-3)
    beside = replaced(model, {name: dn.dense(model.get_submodule(name), s.weights) for name, s in alone.items()})
    with torch.no_grad():
        assert error < float((beside(x) - model(x)).norm() / model(x).norm())


def test_an_epsilon_out_of_reach_in_the_cascade_is_raised_and_told(x):
    torch.manual_seed(3)
    model = mlp((10, 3, 8, 2))  # a bottleneck whose error later layers cannot repair
    found = dn.solve(model, x, {"0": 0.9, "2": 0.01}, cascade=True)
    assert found["2"].epsilon > 0.01 and found["2"].note.startswith("epsilon 0.01 was out of reach in the cascade")
    assert found["2"].violation <= ddlr.FEASIBLE


def test_reweighting_keeps_the_constraints_and_lowers_the_rank():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 20, generator=generator).double()
    original = torch.randn(20, 4, generator=generator).double() @ torch.randn(4, 12, generator=generator).double()
    original += 0.3 * torch.randn(20, 12, generator=generator).double()
    inputs = torch.cat([inputs, torch.ones(80, 1).double()], 1)  # a bias, zero in the original
    original = torch.cat([original, torch.zeros(1, 12).double()])
    outputs = (inputs @ original).clamp(min=0)
    plain = ddlr.solve(inputs, outputs, 0.3, original=original)
    better = dn.reweighted(inputs, outputs, 0.3, original=original, start=plain)
    assert ddlr.check(better.weights, inputs, outputs, 0.3).feasible
    assert better.violation <= ddlr.FEASIBLE and better.rank < plain.rank
    assert torch.linalg.matrix_norm(better.weights, "nuc") >= plain.bound - 1e-6  # the certificate of the plain norm
    assert better.note.startswith("objective and bound are those of the reweighted norm")


def test_low_rank_networks_do_what_the_answers_say(solved, x):
    model = mlp()
    net, plan = dn.low_rank(model, solved)
    assert plan == dn.ranks(model, solved)
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
    found = dn.solve(model, x, 0.2)
    plans = [dn.ranks(model, found, cut) for cut in (0.3, 0.5, 0.9)]
    sizes = [layers.plan_cost(layers.survey(model, (10,)), plan) for plan in plans]
    assert sizes[0] > sizes[1] > sizes[2] and len(plans[0]) >= 2
    net, plan = dn.low_rank(model, found, 0.3, refit=x)
    for name, rank in plan.items():
        left = torch.linalg.svd(found[name].weights[:-1].T, full_matrices=False)[0][:, :rank].float()
        second = net.get_submodule(name).second.weight
        assert torch.allclose(left @ (left.T @ second), second, atol=1e-4)
    raw, _ = dn.low_rank(model, found, 0.3)
    with torch.no_grad():
        assert (net(x) - model(x)).norm() < (raw(x) - model(x)).norm()
    free = layers.apply(model, plan, "sequential", x)
    with torch.no_grad():  # the subspace is a restriction
        assert (free[0](x) - model[0](x)).norm() <= (net[0](x) - model[0](x)).norm() + 1e-5


def test_sparse_networks_are_counted_both_ways(x):
    model = mlp((10, 20, 16, 3))
    found = dn.solve(model, x, 0.4, "l1")
    net = dn.sparse(model, found, cut=1e-3)
    counted = dn.stored(net)
    nonzeros = {name: int(net.get_submodule(name).weight.count_nonzero()) for name in found}
    assert counted["non-zeros"] == sum(nonzeros.values()) + 39
    by_hand = 0
    for name in found:
        rows, columns = net.get_submodule(name).weight.shape
        by_hand += min(nonzeros[name] * 1.5 + rows + 1, rows * columns) + rows
    assert counted["with indices"] == round(by_hand)
    assert nonzeros["0"] < 200 and counted["non-zeros"] < counted["with indices"]
    assert dn.stored(model) == {"non-zeros": score.parameters(model), "with indices": score.parameters(model)}


def test_convolutions_count_in_full_and_stay():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 3))
    images = torch.randn(40, 1, 8, 8)
    found = dn.solve(model, images, 0.5, "l1", tolerance=0.05)
    net = dn.sparse(model, found)
    assert torch.equal(net[0].weight, model[0].weight) and list(found) == ["3", "5"]
    assert dn.stored(net)["non-zeros"] == 20 + sum(int(net[i].weight.count_nonzero()) for i in (3, 5)) + 23


def test_a_layer_with_no_active_unit_gets_zero_weights(x):
    model = mlp()
    model[0].bias.data.fill_(-100)
    found = dn.solve(model, x, 0.1)
    assert found["0"].note.startswith("no unit is active") and found["0"].objective == 0
    net, plan = dn.low_rank(model, {"0": found["0"]})
    assert plan["0"] == 1 and torch.isfinite(net(x)).all()
