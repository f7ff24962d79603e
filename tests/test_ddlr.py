"""The convex solver against CVXPY, hand-made cases, and constraints checked again in numpy."""

import time
from itertools import pairwise

import cvxpy
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lowrank_utils.factors import ddlr, program


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_layer(samples, d_in, d_out, seed=0, relu=True, bias=False, dead=0, rank=None):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, d_in))
    if rank:
        x = x[:, :rank] @ rng.standard_normal((rank, d_in))
    if bias:
        x[:, -1] = 1
    u = rng.standard_normal((d_in, d_out)) / np.sqrt(d_in)
    y = np.maximum(x @ u, 0) if relu else x @ u
    if dead:  # units that no sample activates: a bias so low that it needs the column of ones
        u[-1, :dead] = -10 * np.abs(x @ u).max()
        y = np.maximum(x @ u, 0)
    return x, y, u


def digits_layer(samples, d_out, seed=0, relu=True):
    """Scikit-learn's digits at 64 pixels (some always dark) with a column of ones, through a random layer."""
    x = np.column_stack([load_digits().data[:samples] / 16, np.ones(samples)])
    u = np.random.default_rng(seed).standard_normal((x.shape[1], d_out)) / 8
    return x, np.maximum(x @ u, 0) if relu else x @ u, u


def size(weights, penalty):
    w = weights.numpy()
    return np.linalg.norm(w, "nuc") if penalty == "nuclear" else np.abs(w).sum()


def assert_feasible(found, x, y, relu=True):
    """The constraints in numpy float64, and every number of the solution against its weights."""
    w = found.weights.numpy()
    on = y > 0 if relu else np.ones(y.shape, dtype=bool)
    assert np.linalg.norm((x @ w - y)[on]) <= found.epsilon * np.linalg.norm(y) * (1 + 1e-9)
    assert on.all() or (x @ w)[~on].max() <= 1e-9 * np.abs(y).max()
    assert found.violation <= 1e-9
    assert found.objective == pytest.approx(size(found.weights, found.penalty), rel=1e-9)
    assert 0 <= found.bound <= found.objective
    assert found.gap == found.objective - found.bound
    s = np.linalg.svd(w, compute_uv=False)
    assert found.rank == (s > 1e-6 * s[0]).sum()
    assert found.nonzeros == (np.abs(w) > 1e-6 * np.abs(w).max()).sum()


PROBLEMS = {
    # name: (layer, epsilon, relu, penalty, solver)
    "nuclear": (random_layer(20, 6, 5), 0.1, True, "nuclear", "CLARABEL"),
    "nuclear, bias": (random_layer(20, 6, 5, 1, bias=True), 0.3, True, "nuclear", "CLARABEL"),
    "nuclear, few samples": (random_layer(6, 10, 5, 2), 0.2, True, "nuclear", "CLARABEL"),
    "nuclear, no relu": (random_layer(20, 6, 5, 3, relu=False), 0.1, False, "nuclear", "CLARABEL"),
    "nuclear, no relu, few samples": (
        random_layer(5, 9, 4, 4, relu=False),
        0.5,
        False,
        "nuclear",
        "CLARABEL",
    ),
    "nuclear, dead units": (
        random_layer(20, 7, 5, 5, bias=True, dead=2),
        0.1,
        True,
        "nuclear",
        "CLARABEL",
    ),
    "nuclear, small epsilon": (random_layer(15, 6, 5, 6), 0.02, True, "nuclear", "CLARABEL"),
    "nuclear, large epsilon": (random_layer(15, 6, 5, 7), 0.8, True, "nuclear", "CLARABEL"),
    "nuclear, rank-deficient": (random_layer(20, 8, 5, 8, rank=4), 0.1, True, "nuclear", "CLARABEL"),
    "nuclear, larger": (random_layer(40, 16, 10, 9, bias=True), 0.1, True, "nuclear", "SCS"),
    "nuclear, digits": (digits_layer(30, 8), 0.1, True, "nuclear", "SCS"),
    "nuclear, digits, many samples": (digits_layer(90, 6), 0.3, True, "nuclear", "SCS"),
    "nuclear, digits, no relu": (digits_layer(90, 8, relu=False), 0.05, False, "nuclear", "SCS"),
    "nuclear, one unit": (random_layer(12, 6, 1, 10), 0.2, True, "nuclear", "CLARABEL"),
    "l1": (random_layer(20, 6, 5), 0.1, True, "l1", "CLARABEL"),
    "l1, bias": (random_layer(20, 6, 5, 1, bias=True), 0.02, True, "l1", "CLARABEL"),
    "l1, few samples": (random_layer(6, 10, 5, 2), 0.2, True, "l1", "CLARABEL"),
    "l1, no relu": (random_layer(20, 6, 5, 3, relu=False), 0.1, False, "l1", "CLARABEL"),
    "l1, no relu, few samples": (random_layer(5, 9, 4, 4, relu=False), 0.8, False, "l1", "CLARABEL"),
    "l1, dead units": (random_layer(20, 7, 5, 5, bias=True, dead=2), 0.1, True, "l1", "CLARABEL"),
    "l1, rank-deficient": (random_layer(20, 8, 5, 8, rank=4), 0.1, True, "l1", "CLARABEL"),
    "l1, digits": (digits_layer(30, 8), 0.1, True, "l1", "CLARABEL"),
    "l1, digits, many samples": (digits_layer(90, 6), 0.3, True, "l1", "CLARABEL"),
    "l1, digits, no relu": (digits_layer(90, 8, relu=False), 0.05, False, "l1", "CLARABEL"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_agrees_with_cvxpy(name):
    (x, y, u), epsilon, relu, penalty, solver = PROBLEMS[name]
    options = {"eps": 1e-6, "max_iters": 20000} if solver == "SCS" else {}
    there = ddlr.reference(x, y, epsilon, relu, penalty, solver, **options)
    assert there.status == "optimal"
    here = ddlr.solve(x, y, epsilon, relu, penalty, u, tolerance=2e-4, max_iterations=20000)
    assert here.converged and here.relative_gap <= 2e-4
    assert_feasible(here, x, y, relu)
    assert here.objective == pytest.approx(there.objective, rel=1e-3)
    slack = 1e-4 if solver == "SCS" else 1e-6  # the reference meets its constraints to its own tolerance only
    # the history holds bounds as they were proved, not cut off at the objective
    assert here.bound <= there.objective * (1 + slack) and here.history["bound"].max() == here.bound
    # no original given
    blind = ddlr.solve(x, y, epsilon, relu, penalty, tolerance=1e-3, max_iterations=20000)
    assert_feasible(blind, x, y, relu)
    assert blind.converged and blind.bound <= here.objective and here.bound <= blind.objective


def test_two_by_two_by_hand():
    # inputs I: the weights are the outputs; singular values 3 and 4 shrink evenly by t, 2 t^2 = (eps 5)^2
    x, y = np.eye(2), np.diag([3.0, 4.0])
    t = 0.2 * 5 / np.sqrt(2)
    assert ddlr.solve(x, y, 0.2, tolerance=1e-7).objective == pytest.approx(7 - 2 * t, rel=1e-6)
    # with the ReLU, entries off the diagonal may be negative at no cost; without it the answer is unique
    found = ddlr.solve(x, y, 0.2, relu=False, tolerance=1e-7)
    assert found.objective == pytest.approx(7 - 2 * t, rel=1e-6)
    assert np.allclose(found.weights, np.diag([3 - t, 4 - t]), atol=1e-3)
    # at 0.9, all of the 3 and sqrt(4.5^2 - 9) of the 4 fit into the ball: rank 1
    found = ddlr.solve(x, y, 0.9, relu=False, tolerance=1e-7)
    assert found.objective == pytest.approx(4 - np.sqrt(4.5**2 - 9), rel=1e-6)
    assert np.allclose(found.weights, np.diag([0, 4 - np.sqrt(4.5**2 - 9)]), atol=1e-3)
    # the sign constraint costs: one weight, samples 1 and -2 and outputs 1 and 0 hold for any weight >= 0
    assert ddlr.solve([[1.0], [-2.0]], [[1.0], [0.0]], 0.25, tolerance=1e-7).objective == pytest.approx(0.75, rel=1e-6)


def test_known_violations():
    x, y = np.eye(2), np.array([[2.0, 0.0], [0.0, 0.0]])
    found = ddlr.check([[1.0, 0.5], [0.0, -3.0]], x, y, epsilon=0.6)
    assert (found.error, found.sign, found.violation, found.feasible) == (0.5, 0.25, 0.25, False)
    assert ddlr.check([[1.0, -0.5], [0.0, -3.0]], x, y, epsilon=0.6).feasible
    assert ddlr.check([[1.0, -0.5], [0.0, 0.0]], x, y, 0.6, relu=False).error == pytest.approx(np.sqrt(1.25) / 2)


@pytest.mark.parametrize("penalty", ddlr.PENALTIES)
def test_objective_falls_as_epsilon_grows(penalty):
    x, y, u = digits_layer(60, 8)
    found = [ddlr.solve(x, y, e, penalty=penalty, original=u) for e in (0.02, 0.1, 0.3, 0.6, 0.9)]
    assert all(a.bound > b.objective for a, b in pairwise(found))


@pytest.mark.parametrize("penalty", ddlr.PENALTIES)
def test_bias_keeps_the_answer_truly_sparse(penalty):
    x, y, u = digits_layer(60, 12)
    found = ddlr.solve(x, y, 0.3, penalty=penalty, original=u)
    if penalty == "nuclear":
        assert found.rank < 12 == np.linalg.matrix_rank(u)
    else:
        assert (found.weights == 0).float().mean() > 0.5


@pytest.mark.parametrize("samples", [30, 100])
def test_warm_start_along_a_path_needs_fewer_iterations(samples):
    x, y, u = digits_layer(samples, 8)
    options = {"original": u, "tolerance": 1e-4}
    cold = ddlr.solve(x, y, 0.11, **options)
    warm = ddlr.solve(x, y, 0.11, warm_start=ddlr.solve(x, y, 0.1, **options), **options)
    assert warm.converged and warm.iterations < cold.iterations
    assert warm.objective == pytest.approx(cold.objective, rel=1e-4)
    assert_feasible(warm, x, y)


@pytest.mark.parametrize("penalty", ddlr.PENALTIES)
def test_warm_start_goes_on_where_the_budget_ended(penalty):
    x, y, u = digits_layer(100, 8)
    options = {"penalty": penalty, "original": u, "tolerance": 1e-4}
    whole = ddlr.solve(x, y, 0.1, **options)
    part = ddlr.solve(x, y, 0.1, max_iterations=whole.iterations - program.CHECK_EVERY, **options)
    assert whole.converged and not part.converged
    rest = ddlr.solve(x, y, 0.1, warm_start=part, **options)
    assert rest.converged and rest.iterations < whole.iterations / 2
    assert rest.objective == pytest.approx(whole.objective, rel=1e-4)
    assert ddlr.solve(x, y, 0.1, warm_start=whole, **options).iterations <= program.CHECK_EVERY
    assert_feasible(rest, x, y)


def test_budget_gives_the_best_certified_answer_so_far():
    x, y, u = random_layer(60, 24, 16, bias=True)
    optimum = ddlr.solve(x, y, 0.1, original=u, tolerance=1e-5)
    for budget in ({"max_iterations": 1}, {"max_iterations": 30}, {"max_seconds": 1e-9}):
        found = ddlr.solve(x, y, 0.1, original=u, tolerance=1e-9, **budget)
        assert not found.converged
        assert found.iterations <= budget.get("max_iterations", 1)
        assert_feasible(found, x, y)
        assert 0 < found.bound <= optimum.objective and optimum.bound <= found.objective
        assert found.relative_gap > 1e-9
        assert found.note.startswith(f"the budget ended after {found.iterations} iterations, at a relative gap of ")
    assert ddlr.solve(x, y, 0.1, original=u, max_seconds=30).converged and not optimum.note


def test_history_tells_the_best_so_far():
    x, y, u = digits_layer(60, 8)
    found = ddlr.solve(x, y, 0.1, original=u, tolerance=1e-4)
    history = found.history
    assert (history["objective"].diff().dropna() <= 0).all() and (history["bound"].diff().dropna() >= 0).all()
    assert (history["seconds"].diff().dropna() > 0).all()
    last = history.iloc[-1]
    assert last["iteration"] == found.iterations
    assert last["objective"] == pytest.approx(found.objective, rel=1e-9) and last["bound"] == found.bound


@pytest.mark.parametrize("penalty", ddlr.PENALTIES)
def test_float32_and_float64_agree(penalty):
    x, y, u = digits_layer(100, 8)
    double, single = (
        ddlr.solve(x, y, 0.1, penalty=penalty, original=u, tolerance=1e-4, dtype=d)
        for d in (torch.float64, torch.float32)
    )
    assert single.converged and single.weights.dtype == torch.float64
    assert_feasible(single, x, y)
    assert single.objective == pytest.approx(double.objective, rel=1e-4)
    assert single.bound <= double.objective and double.bound <= single.objective
    assert not torch.equal(single.weights, double.weights)


def test_float32_reaches_gaps_below_its_precision():
    x, y, u = random_layer(40, 16, 10, bias=True)
    found = ddlr.solve(x, y, 0.1, original=u, tolerance=1e-9, max_iterations=20000, dtype=torch.float32)
    assert found.converged and found.relative_gap <= 1e-9
    assert_feasible(found, x, y)


def test_scale_of_inputs_and_outputs_does_not_matter():
    x, y, u = random_layer(40, 16, 10, bias=True)
    plain = ddlr.solve(x, y, 0.1, original=u)
    scaled = ddlr.solve(x * 1e-3, y * 1e4, 0.1, original=u * 1e7)
    assert scaled.iterations == plain.iterations
    assert scaled.objective == pytest.approx(plain.objective * 1e7, rel=1e-6)


def test_dead_units_get_no_weights_and_change_nothing():
    x, y, u = digits_layer(60, 6)
    u[:, 2] = -np.abs(u[:, 2])
    y = np.maximum(x @ u, 0)
    assert not y[:, 2].any()
    rest = [0, 1, 3, 4, 5]
    with_dead = ddlr.solve(x, y, 0.1, original=u, tolerance=1e-5)
    without = ddlr.solve(x, y[:, rest], 0.1, original=u[:, rest], tolerance=1e-5)
    assert not with_dead.weights[:, 2].any()
    assert with_dead.objective == pytest.approx(without.objective, rel=1e-6)


def test_duplicate_samples_change_nothing():
    x, y, u = digits_layer(40, 6)
    once = ddlr.solve(x, y, 0.1, original=u, tolerance=1e-5)
    twice = ddlr.solve(np.vstack([x, x]), np.vstack([y, y]), 0.1, original=u, tolerance=1e-5)
    assert twice.objective == pytest.approx(once.objective, rel=2e-5)


def test_samples_of_zeros_change_nothing():
    x, y, u = random_layer(30, 8, 5)
    plain = ddlr.solve(x, y, 0.1, original=u, tolerance=1e-5)
    padded = ddlr.solve(np.vstack([x, 0 * x]), np.vstack([y, 0 * y]), 0.1, original=u, tolerance=1e-5)
    assert padded.objective == pytest.approx(plain.objective, rel=2e-5)


def test_zero_weights_where_they_are_the_answer():
    x, y, u = digits_layer(20, 4)
    for epsilon in (1.0, 3):
        found = ddlr.solve(x, y, epsilon, original=u)
        assert not found.weights.any() and found.objective == found.bound == found.rank == 0
        assert found.converged and "zero weights pass" in found.note
    found = ddlr.solve(x, 0 * y, 0.1)
    assert not found.weights.any() and "no unit is active" in found.note
    assert not ddlr.solve(x, y, 0.5, original=u).note


def test_torch_in_and_progress(capsys):
    x, y, u = (torch.from_numpy(part).float() for part in digits_layer(40, 6))
    y = torch.relu(x @ u)
    found = ddlr.solve(x, y, 0.1, original=u, progress=True)
    assert "gap" in capsys.readouterr().err
    assert_feasible(found, x.double().numpy(), y.double().numpy())
    quiet = ddlr.solve(x, y, 0.1, original=u)
    assert capsys.readouterr().err == "" and torch.equal(quiet.weights, found.weights)


def unreachable(relu):
    """One input, the same for both samples, two outputs: the best weight is their mean."""
    return [[1.0], [1.0]], [[1.0], [3.0]], relu


@pytest.mark.parametrize("relu", [True, False])
def test_unreachable_outputs_name_the_smallest_epsilon(relu):
    x, y, _ = unreachable(relu)
    smallest = np.sqrt(2 / 10)
    with pytest.raises(ValueError, match=f"smallest feasible epsilon (found )?is {smallest:.4g}"):
        ddlr.solve(x, y, 0.9 * smallest, relu)
    found = ddlr.solve(x, y, 1.001 * smallest, relu)
    assert found.violation <= 1e-9 and found.objective == pytest.approx(2, rel=0.05)


def test_signs_that_make_outputs_unreachable():
    # samples 1 and 2 with outputs 1 and 0: no positive weight is allowed, and zero has an error of 1
    with pytest.raises(ValueError, match="no weights were found .* smallest feasible epsilon found is 1"):
        ddlr.solve([[1.0], [2.0]], [[1.0], [0.0]], 0.5)


X, Y, U = random_layer(12, 5, 4)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("epsilon=0 is not a number above 0", {"epsilon": 0}),
        ("epsilon=-0.1 is not a number above 0", {"epsilon": -0.1}),
        ("epsilon=nan is not a number above 0", {"epsilon": float("nan")}),
        ("epsilon='0.1' is not a number above 0", {"epsilon": "0.1"}),
        ("epsilon=True is not a number above 0", {"epsilon": True}),
        ("inputs hold 11 samples and outputs 12", {"inputs": X[:11]}),
        (r"inputs must be a matrix that is not empty, not of shape \(12,\)", {"inputs": X[:, 0]}),
        (r"outputs must be a matrix that is not empty, not of shape \(12, 0\)", {"outputs": Y[:, :0]}),
        ("inputs must be a matrix of numbers", {"inputs": [["a"]]}),
        ("inputs hold NaN", {"inputs": np.where(X > 1, np.nan, X)}),
        ("outputs hold NaN or infinite", {"outputs": np.where(Y > 1, np.inf, Y)}),
        ("outputs go down to -.* use relu=False", {"outputs": Y - 1}),
        ("unknown penalty 'l2'; known: nuclear, l1", {"penalty": "l2"}),
        (r"original has shape \(4, 5\); this layer needs \(5, 4\)", {"original": U.T}),
        ("original hold NaN", {"original": U * np.nan}),
        (
            "original is not feasible: relative error 0.5 against epsilon 0.1, sign violation 0 ",
            {"original": U / 2},
        ),
        ("original is not feasible: .* sign violation [^0]", {"original": -U}),
        ("original is not feasible: .* sign violation 0 ", {"original": U * (0.9 - 1e-4)}),
        ("tolerance=0 must be a number above 0", {"tolerance": 0}),
        ("tolerance='a' must be a number above 0", {"tolerance": "a"}),
        ("max_iterations=-1 must be a whole number above 0", {"max_iterations": -1}),
        ("max_iterations=2.5 must be a whole number above 0", {"max_iterations": 2.5}),
        ("max_iterations=None must be a whole number above 0", {"max_iterations": None}),
        ("max_seconds=nan must be a number above 0", {"max_seconds": float("nan")}),
        ("warm_start is a ndarray, not an earlier Solution", {"warm_start": U}),
        ("device='foo' cannot be used here", {"device": "foo"}),
        ("inputs must be a matrix of numbers: complex", {"inputs": X + 1j}),
        ("relu='no' is neither True nor False", {"relu": "no"}),
        ("need weights that float64 cannot hold", {"outputs": Y * 1e300, "inputs": X * 1e-300, "original": None}),
        ("dtype torch.float16 is not one of", {"dtype": torch.float16}),
    ],
)
def test_bad_input_is_named(message, change):
    arguments = {"inputs": X, "outputs": Y, "epsilon": 0.1, "original": U}
    ddlr.solve(**arguments)
    with pytest.raises(ValueError, match=message):
        ddlr.solve(**{**arguments, **change})


def test_warm_start_of_another_layer_is_refused():
    other = ddlr.solve(X, Y[:, :3], 0.1)
    with pytest.raises(ValueError, match=r"warm_start has weights of shape \(5, 3\), this layer \(5, 4\)"):
        ddlr.solve(X, Y, 0.1, warm_start=other)


def test_a_device_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(ValueError, match="device='cuda' cannot be used here"):
        ddlr.solve(X, Y, 0.1, device="cuda")


@pytest.mark.parametrize("epsilon", [float("nan"), -1, "a", None])
def test_check_refuses_what_is_no_epsilon(epsilon):
    with pytest.raises(ValueError, match="is not a number of at least 0"):
        ddlr.check(U, X, Y, epsilon)


def test_only_rounding_counts_as_feasible():
    assert ddlr.Check(0.1 + 5e-10, 0.0, 0.1).feasible and ddlr.Check(0.1, 5e-10, 0.1).feasible
    assert not ddlr.Check(0.1 + 5e-8, 0.0, 0.1).feasible and not ddlr.Check(0.1, 5e-8, 0.1).feasible


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1e200), (1, 1e-200), (1e-200, 1), (1e100, 1e-100)])
def test_extreme_scales_give_the_same_answer(inputs, outputs):
    plain = ddlr.solve(X, Y, 0.1)
    found = ddlr.solve(X * inputs, Y * outputs, 0.1)
    assert found.objective == pytest.approx(plain.objective * (outputs / inputs), rel=1e-6)
    assert found.converged and found.violation <= program.FEASIBLE and found.iterations == plain.iterations
    assert ddlr.check(found.weights, X * inputs, Y * outputs, 0.1).error == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("relu", [True, False])
def test_inputs_of_zeros_reach_nothing(relu):
    for x in (np.zeros((4, 3)), np.zeros((2, 3))):
        with pytest.raises(program.Infeasible, match="the inputs are all zero") as caught:
            ddlr.solve(x, np.ones((len(x), 2)), 0.1, relu)
        assert caught.value.smallest == caught.value.bound == 1.0 and not caught.value.weights.any()


def smallest_epsilon(x, y):
    """By CVXPY: the least error that the signs allow, relative to the outputs."""
    u = cvxpy.Variable((x.shape[1], y.shape[1]))
    limits = [cvxpy.multiply(y <= 0, x @ u) <= 0]
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm(cvxpy.multiply(y > 0, x @ u - y), "fro")), limits)
    problem.solve(solver="CLARABEL")
    return problem.value / np.linalg.norm(y)


@pytest.mark.parametrize("seed", range(12))
def test_the_smallest_epsilon_is_found_and_proved(seed):
    rng = np.random.default_rng(100 + seed)
    samples, d_in, d_out = [(8, 3, 2), (20, 8, 3), (6, 2, 2), (30, 12, 4)][seed % 4]
    x = rng.standard_normal((samples, d_in))  # no bias that could mend signs
    y = np.maximum(x @ rng.standard_normal((d_in, d_out)) + 0.3 * rng.standard_normal((samples, d_out)), 0)
    exact = smallest_epsilon(x, y)
    penalty = ddlr.PENALTIES[seed // 4 % 2]
    with pytest.raises(
        program.Infeasible, match=r"smallest feasible epsilon found is .*, and none below .* is"
    ) as caught:
        ddlr.solve(x, y, 0.9 * exact, penalty=penalty)
    error = caught.value
    assert exact * (1 - 1e-6) <= error.smallest <= 1.02 * exact
    assert 0.98 * exact <= error.bound <= exact * (1 + 1e-6)
    attained = ddlr.check(error.weights, x, y, 0.9 * exact)
    assert attained.error == pytest.approx(error.smallest) and attained.sign <= 1e-9
    for share in (1.02, 1.05):
        found = ddlr.solve(x, y, share * exact, penalty=penalty, tolerance=1e-2, max_iterations=3000)
        assert_feasible(found, x, y)
    assert found.converged or seed == 10  # a unit there has no weights but on the border: feasible, and no gap proved


def test_time_holds_for_the_search_of_a_first_point_too():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((400, 120)), np.maximum(rng.standard_normal((400, 60)), 0)
    begin = time.process_time()
    with pytest.raises(program.Infeasible, match="in the time given"):
        ddlr.solve(x, y, 0.3, max_seconds=0.2)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("seed", range(6))
def test_badly_scaled_inputs_need_no_original(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((12, 7)) * 10.0 ** rng.integers(-4, 4, size=7)
    y = np.maximum(x @ rng.standard_normal((7, 5)), 0)
    found = ddlr.solve(x, y, 0.01)
    assert_feasible(found, x, y)
    assert found.converged and found.objective < 10


def test_acceleration_saves_iterations():
    x, y, u = random_layer(60, 24, 16, bias=True)
    found = ddlr.solve(x, y, 0.1, original=u, tolerance=1e-6)
    assert found.converged and found.iterations <= 130  # 101; without acceleration 260


@pytest.mark.parametrize(
    ("samples", "units", "relu", "iterations", "certificates"),
    [(60, 32, True, 100, 12), (200, 48, True, 180, 20), (200, 48, False, 65, 9)],  # 80, 140, 52; 10, 16, 7
)
def test_few_iterations_and_certificates_reach_a_small_gap(samples, units, relu, iterations, certificates):
    x, y, u = digits_layer(samples, units, relu=relu)
    found = ddlr.solve(x, y, 0.1, relu, original=u, tolerance=1e-4)
    assert found.converged and found.relative_gap <= 1e-4
    assert found.iterations <= iterations and len(found.history) <= certificates
    assert_feasible(found, x, y, relu)


def test_what_the_basis_leaves_out_is_counted_against_the_bound():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 8)) * np.geomspace(1, 1e-8, 8), rng.standard_normal((30, 5))
    ours = program.Problem(torch.from_numpy(x), torch.from_numpy(y), 0.1, False, "nuclear")
    assert ours.basis.shape[1] < 8
    kept, _ = torch.linalg.qr(ours.turned)
    for g in (ours.y, ours.y - kept @ (kept.T @ ours.y)):  # the second is all but invisible in the basis
        value = float((g * ours.y).sum()) - ours.radius * float(g.norm())
        assert 0 < ours.bound(g) <= value / np.linalg.norm(x.T @ g.numpy(), 2)


def problem(x, y, epsilon=0.1, penalty="nuclear"):
    return program.Problem(torch.from_numpy(x), torch.from_numpy(y), epsilon, True, penalty)


@pytest.mark.parametrize("penalty", ddlr.PENALTIES)
def test_biases_are_lowered_by_no_more_than_the_worst_sign(penalty):
    x, y, u = digits_layer(60, 8)
    ours = problem(x, y, penalty=penalty)
    raised = ours.inside(torch.from_numpy(u + np.eye(len(u))[:, [-1]] * 0.1))
    _, reached = ours.lower(raised, ours.operator @ raised)
    before = torch.where(ours.active, -torch.inf, ours.operator @ raised).amax(0)
    after = torch.where(ours.active, -torch.inf, reached).amax(0)
    assert (before > 0).sum() > 3 and (after[before > 0].abs() <= 1e-9).all()
    assert torch.allclose(after[before <= 0], before[before <= 0])


def test_the_first_point_leaves_room_in_ball_and_signs():
    x, y, u = digits_layer(60, 8)
    for inputs, outputs, weights in ((x, y, u), random_layer(20, 8, 3)):
        ours = problem(inputs, outputs)
        for original in (None, torch.from_numpy(weights)):
            point = ours.anchor(original)
            reached = ours.operator @ point
            share = float(ours.error(reached).norm()) / ours.radius
            assert share < 0.999 and (original is None or 0.1 < share < 0.5)
            assert float(torch.where(ours.active, -torch.inf, reached).max()) < 0


def test_a_step_to_the_first_point_ends_on_the_ball():
    x, y, u = digits_layer(60, 8)
    ours = problem(x, y)
    anchor = ours.anchor(torch.from_numpy(u))
    outside = 0.5 * anchor
    point = ours.blend(outside, ours.operator @ outside, anchor)
    assert ours.holds(point) and not ours.holds(outside)
    assert float(ours.error(ours.operator @ point).norm()) == pytest.approx(ours.radius, rel=1e-6)


def test_thresholds_below_the_precision_of_squares():
    x, y, _ = random_layer(12, 6, 5)
    u, _, vt = torch.linalg.svd(torch.randn(6, 5, dtype=torch.float64), full_matrices=False)
    values = torch.tensor([1.0, 1e-3, 1e-7, 3e-10, 1e-12], dtype=torch.float64)
    shrunk, norm = problem(x, y).shrink((u * values) @ vt, 1e-10)
    wanted = (values - 1e-10).clamp(min=0)
    assert torch.allclose(torch.linalg.svdvals(shrunk), wanted, rtol=1e-4, atol=1e-14)
    assert norm == pytest.approx(float(wanted.sum()), rel=1e-12)


def test_few_samples_cost_little_however_many_inputs():
    x, y, _ = random_layer(10, 4000, 3)
    begin = time.process_time()
    ours = problem(x, y)
    assert time.process_time() - begin < 1.5  # the eigenvectors of 4000 x 4000 take many seconds
    assert ours.size == 10 and torch.allclose(ours.turned @ ours.basis.T, torch.from_numpy(x))
