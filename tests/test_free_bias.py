"""The bias outside the norm: against CVXPY, the bound checked by hand, and the projection of the multiplier."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

import lowrank_utils
from lowrank_utils.factors import ddlr, ddlr_network, program


def layer(samples=30, d_in=8, d_out=5, seed=0, relu=True, shift=1.0):
    """A random layer whose inputs are far from centred and whose biases are large, the column of ones last."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.standard_normal((samples, d_in)) + shift, np.ones(samples)])
    u = rng.standard_normal((d_in + 1, d_out)) / 3
    u[-1] += 1.0
    y = x @ u
    return x, np.maximum(y, 0) if relu else y, u


@pytest.mark.parametrize("samples", [30, 6])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("penalty", ddlr.PENALTIES)
def test_agrees_with_cvxpy(samples, relu, penalty):
    x, y, u = layer(samples, relu=relu)
    there = ddlr.reference(x, y, 0.2, relu, penalty, "CLARABEL", free_bias=True)
    here = ddlr.solve(x, y, 0.2, relu, penalty, u, free_bias=True, tolerance=1e-5, max_iterations=20000)
    assert there.status == "optimal" and here.converged and here.violation <= program.FEASIBLE
    assert here.objective == pytest.approx(there.objective, rel=1e-4)
    assert here.bound <= there.objective * (1 + 1e-6)
    assert here.objective <= ddlr.solve(x, y, 0.2, relu, penalty, u, tolerance=1e-5).objective * (1 + 1e-5)


def test_the_numbers_are_those_of_the_weights_without_the_bias():
    x, y, u = layer()
    found = ddlr.solve(x, y, 0.3, original=u, free_bias=True, tolerance=1e-5)
    values = np.linalg.svd(found.weights[:-1].numpy(), compute_uv=False)
    assert found.objective == pytest.approx(values.sum()) and found.rank == (values > 1e-6 * values[0]).sum()
    assert ddlr.check(found.weights, x, y, 0.3).feasible


def test_a_shift_of_the_inputs_changes_nothing():
    # the bias takes it up at no cost, which it cannot where it is charged
    near, far = (layer(shift=shift, relu=False) for shift in (0.0, 5.0))
    norms = {
        free: [
            ddlr.solve(x, near[1], 0.2, relu=False, free_bias=free, tolerance=1e-6).objective for x in (near[0], far[0])
        ]
        for free in (True, False)
    }
    assert norms[True][0] == pytest.approx(norms[True][1], rel=1e-5)
    assert norms[False][1] != pytest.approx(norms[False][0], rel=1e-2)


@pytest.mark.parametrize("relu", [True, False])
def test_the_bound_holds_for_weights_with_any_bias(relu):
    # <G, X U> <= ||X^T G|| ||W|| for all U needs a multiplier whose sums vanish: any multiplier is made into one
    x, y, u = layer(relu=relu)
    problem = program.Problem(torch.tensor(x), torch.tensor(y), 0.2, relu, "nuclear", True)
    best = ddlr.reference(x, y, 0.2, relu, solver="CLARABEL", free_bias=True).objective
    draw = torch.Generator().manual_seed(0)
    bounds = []
    for _ in range(50):
        g = torch.tensor(y) + torch.randn(y.shape, generator=draw).double()
        bounds.append(problem.bound(torch.where(problem.active, g, g.clamp(max=0))))
    assert 0 < max(bounds) <= best * (1 + 1e-6)
    charged = program.Problem(torch.tensor(x), torch.tensor(y), 0.2, relu, "nuclear")
    assert charged.norm(charged.inside(torch.tensor(u))) > problem.norm(problem.inside(torch.tensor(u)))


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_the_projection_is_the_nearest_point(seed, on, off):
    rng = np.random.default_rng(seed)
    active = torch.tensor([True] * on + [False] * off)[:, None]
    g = torch.tensor(rng.normal(size=(on + off, 1)) * 10 ** rng.uniform(-3, 3))
    g = torch.where(active, g, g.clamp(max=0))
    found = program.balanced(g, active)
    size = float(g.abs().max())
    assert float(found.sum().abs()) <= 1e-12 * size * len(g) and float(found[~active].sum()) <= 0
    assert (found[~active] <= 0).all()
    # optimal: moved by one number t where it is free, and no further than 0 elsewhere
    t = float((g - found)[0])
    assert torch.allclose(found, torch.where(active, g - t, (g - t).clamp(max=0)), atol=1e-9 * size)


def test_the_projection_agrees_with_a_general_solver():
    g = torch.tensor([[3.0, -1.0], [-1.0, 2.0], [-0.5, -4.0], [0.0, -0.2]]).double()
    active = torch.tensor([[True, True], [False, True], [False, False], [False, False]])
    found = program.balanced(g, active).numpy()
    for j in range(2):
        limits = [(None, None if on else 0) for on in active[:, j]]
        there = minimize(
            lambda h, j=j: ((h - g[:, j].numpy()) ** 2).sum(),
            np.zeros(4),
            bounds=limits,
            constraints={"type": "eq", "fun": np.sum},
            tol=1e-12,
        )
        assert np.allclose(found[:, j], there.x, atol=1e-5)


def test_outputs_that_the_bias_keeps_alone_cost_nothing():
    x, _, _ = layer()
    y = np.tile([1.0, 2.0, 0.0], (len(x), 1)) + 0.01 * np.random.default_rng(0).random((len(x), 3))
    y[:, 2] = 0
    found = ddlr.solve(x, y, 0.1, free_bias=True)
    assert found.objective == found.bound == 0 and found.rank == 0 and "bias alone" in found.note
    assert found.weights[-1].numpy() == pytest.approx(y.mean(0)) and found.violation == 0


def test_warm_starts_go_on_and_another_program_does_not():
    x, y, u = layer()
    first = ddlr.solve(x, y, 0.2, original=u, free_bias=True, tolerance=1e-5)
    again = ddlr.solve(x, y, 0.2, original=u, free_bias=True, tolerance=1e-5, warm_start=first)
    assert again.iterations <= program.CHECK_EVERY < first.iterations
    charged = ddlr.solve(x, y, 0.2, original=u, tolerance=1e-5, warm_start=first)
    assert charged.objective == pytest.approx(ddlr.solve(x, y, 0.2, original=u, tolerance=1e-5).objective, rel=1e-4)


def test_bad_input_is_named():
    x, y, _ = layer()
    with pytest.raises(ValueError, match="free_bias asks for a bias: the last column"):
        ddlr.solve(x[:, :-1], y, 0.2, free_bias=True)
    with pytest.raises(ValueError, match="free_bias asks for a bias"):
        ddlr.reference(np.column_stack([x, np.zeros(len(x))]), y, 0.2, free_bias=True)
    with pytest.raises(ValueError, match="free_bias='yes' is neither True nor False"):
        ddlr.solve(x, y, 0.2, free_bias="yes")
    with pytest.raises(ValueError, match="the same in all samples"):
        ddlr.solve(np.ones((5, 3)), np.ones((5, 2)), 0.2, free_bias=True)
    with pytest.raises(ValueError, match="the bias is a row of the norm that reweighting changes"):
        ddlr_network.reweighted(x, y, 0.2, free_bias=True)


def test_a_layer_without_a_bias_is_named():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="layer '0': free_bias asks for a bias"):
        ddlr_network.solve_network(lowrank_utils.profile(net, torch.randn(20, 6)), 0.2, free_bias=True)
