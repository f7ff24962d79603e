"""Sequential and ReLU-aware factors: exact where nothing is lost, least squares where something is."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import mlp
from lowrank_utils.factors import replace, sequential
from lowrank_utils.factors.sequential import sweep
from lowrank_utils.factors.svd import reduced_rank
from lowrank_utils.lab.score import parameters
from lowrank_utils.network import graph, profile, statistics
from lowrank_utils.network.graph import before_relu
from lowrank_utils.network.profile import Profile
from lowrank_utils.network.statistics import fisher


@pytest.fixture
def x():
    return torch.randn(300, 12, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.linspace(0.2, 2, 12))


def test_reduced_rank_beats_every_other_matrix_of_that_rank():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator).double() @ torch.randn(6, 6, generator=generator).double()
    t = x @ torch.randn(6, 5, generator=generator).double() + 0.5 * torch.randn(200, 5, generator=generator).double()
    left, right = reduced_rank(x.T @ x / 200, t.T @ x / 200, 2, ridge=0)
    assert left.shape == (5, 2) and right.shape == (2, 6)
    best = (t - x @ (left @ right).T).square().sum()
    # truncating the plain least-squares answer is the usual wrong way
    plain = torch.linalg.lstsq(x, t).solution.T
    u, s, vt = torch.linalg.svd(plain)
    truncated = u[:, :2] @ torch.diag(s[:2]) @ vt[:2]
    assert best < (t - x @ truncated.T).square().sum()
    for _ in range(50):
        other = (left + 0.05 * torch.randn(5, 2, generator=generator).double()) @ (
            right + 0.05 * torch.randn(2, 6, generator=generator).double()
        )
        assert best <= (t - x @ other.T).square().sum()


def test_a_singular_covariance_and_constant_inputs_are_normal_input():
    x = torch.ones(50, 12)
    model = mlp()
    small = sweep(Profile(model, x), {"0": 2, "2": 3}, relu=True)
    assert torch.allclose(small(x), model(x), atol=1e-4)
    thin = torch.randn(300, 3) @ torch.randn(3, 12)  # three directions in twelve
    small = sweep(Profile(model, thin), {"0": 3})
    assert torch.allclose(small(thin), model(thin), atol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_full_rank_changes_nothing(bias, relu, x):
    model = mlp(bias=bias)
    small = sweep(Profile(model, x), {"0": 9, "2": 7, "4": 4}, relu=relu, iterations=3)
    assert torch.allclose(small(x), model(x), atol=2e-3)
    thin = sweep(Profile(model, x * (torch.arange(12) > 3)), {"0": 9, "2": 7, "4": 4}, relu=relu, iterations=3)
    assert torch.allclose(thin(x), model(x), atol=2e-3)  # also in directions that the calibration data never took
    assert parameters(small) == 9 * 21 + 7 * 16 + 4 * 11 + (20 if bias else 0)


@pytest.mark.parametrize("bias", [True, False])
def test_a_sweep_loses_less_than_factors_that_look_at_one_layer_each(bias, x):
    model = mlp((12, 11, 10, 4), bias=bias)
    plan = {"0": 3, "2": 3}
    alone = replace.apply_plan(Profile(model, x), plan, factors="data-aware", resource="parameters")
    swept = sweep(Profile(model, x), plan)
    without = sweep(Profile(model, x), plan, refit_dense=False)
    errors = [(net(x) - model(x)).square().mean().item() for net in (alone, without, swept)]
    assert errors[2] < errors[1] and errors[2] < 0.9 * errors[0]
    assert torch.equal(without[4].weight, model[4].weight) and not torch.equal(swept[4].weight, model[4].weight)


def test_iterations_lower_the_error_after_the_relu(x):
    model = mlp((12, 11, 4))
    errors = []
    for steps in (1, 3, 30):
        small = sweep(Profile(model, x), {"0": 3}, relu=True, refit_dense=False, iterations=steps)
        errors.append((small[:2](x) - model[:2](x)).square().mean().item())
    assert max(errors[1:]) < 0.99 * errors[0]  # momentum: not every step is lower than the one before


def test_images_in_batches_give_the_same_answer(x):
    model = mlp()
    one, many = (
        sweep(Profile(model, x), {"0": 3, "2": 3}, relu=True, iterations=4, batch_size=size) for size in (1000, 17)
    )
    assert torch.allclose(one(x), many(x), atol=1e-4)


def test_outputs_stay_within_a_given_subspace(x):
    model = mlp()
    within = torch.linalg.qr(torch.randn(9, 2).double())[0]
    small = sweep(Profile(model, x), {"0": 2}, within={"0": within})
    product = small[0].second.weight.double() @ small[0].first.weight.double()
    assert torch.allclose(within @ (within.T @ product), product, atol=1e-5)
    for wrong in (within[:, :1], 2 * within, within[:5]):
        with pytest.raises(ValueError, match="within= of layer '0' is not d_out x rank with orthonormal columns"):
            sweep(Profile(model, x), {"0": 2}, within={"0": wrong})


def test_which_layers_a_relu_follows():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            x = F.relu(self.a(x))
            x = self.b(x).relu()
            y = self.c(x)
            return self.d(torch.relu(y) + y)

    assert before_relu(Net()) == {"a", "b"}


def test_a_network_that_cannot_be_traced_is_said_and_swept_without_relu(x, caplog):
    class Control(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 9)

        def forward(self, x):
            return self.fc(x).relu() if len(x.shape) == 2 and x.sum() < 1e9 else x

    model = Control()
    with caplog.at_level(logging.WARNING):
        small = sweep(Profile(model, x), {"fc": 3}, relu=True)
    assert "cannot be traced by torch.fx" in caplog.text
    assert small.fc.first.weight.shape == (3, 12)


def test_apply_takes_both_sweeps_by_name(x):
    model = mlp((12, 11, 10, 4))
    plan = {"0": 3, "2": 3}
    by_name = replace.apply_plan(Profile(model, x), plan, factors="relu-aware", resource="parameters")
    assert torch.allclose(by_name(x), sweep(Profile(model, x), plan, relu=True)(x), atol=1e-5)
    assert torch.allclose(
        replace.apply_plan(Profile(model, x), plan, factors="sequential", resource="parameters")(x),
        sweep(Profile(model, x), plan)(x),
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="factors='sequential' need calibration images"):
        replace.apply_plan(Profile(model), plan, factors="sequential", resource="parameters")


def test_wrong_requests_are_refused_in_words(x):
    model = mlp()
    model.train()
    for plan, words in (
        ({"9": 2}, "layer '9' is not in the model"),
        ({"1": 2}, "layer '1': a layer of type ReLU is not factored"),
        ({"0": 0}, "rank 0 of layer '0' is not a whole number from 1 to 9"),
        ({"0": 10}, "rank 10 of layer '0'"),
        ({"0": 2.0}, "rank 2.0 of layer '0'"),
    ):
        with pytest.raises(ValueError, match=words):
            sweep(Profile(model, x), plan)
    spoiled = x.clone()
    spoiled[7, 3] = torch.inf
    with pytest.raises(ValueError, match="the calibration images hold NaN or infinite values"):
        sweep(Profile(model, spoiled), {"0": 2})
    with pytest.raises(ValueError, match=r"cannot take calibration images of shape \(5,\)"):
        sweep(Profile(model, x[:, :5]), {"0": 2})
    with pytest.raises(ValueError, match="calibration must be a tensor of at least one input"):
        sweep(Profile(model, x[:0]), {"0": 2})
    with pytest.raises(ValueError, match="iterations=0 is not a whole number of at least 1"):
        sweep(Profile(model, x), {"0": 2}, relu=True, iterations=0)
    shared = nn.Linear(6, 6)
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    with pytest.raises(ValueError, match="layer '0' is used 2 times in one pass"):
        sweep(Profile(twice, torch.randn(9, 6)), {"0": 2})

    class Idle(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    with pytest.raises(ValueError, match="no input reaches layer '1' in a forward pass"):
        sweep(Profile(Idle(nn.Linear(12, 9), nn.Linear(9, 9)), x), {"1": 2})
    assert model.training


def test_the_model_is_left_as_it_was_and_dropout_is_off(x):
    model = nn.Sequential(nn.Linear(12, 11), nn.ReLU(), nn.Dropout(0.9), nn.Linear(11, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, two = (sweep(Profile(model, x), {"0": 3}) for _ in range(2))
    assert model.training and one.training
    assert torch.equal(one.eval()(x), two.eval()(x))  # dropout in the sweep would differ from call to call
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_metric_moves_the_error_where_it_counts_less():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator).double()
    t = x @ torch.randn(6, 5, generator=generator).double()
    metric = torch.diag(torch.tensor([100.0, 1, 1, 1, 1])).double()
    plain, weighted = (reduced_rank(x.T @ x / 200, t.T @ x / 200, 2, 0, m) for m in (None, metric))
    errors = [(t - x @ (left @ right).T).square().mean(0) for left, right in (plain, weighted)]
    assert errors[1][0] < 0.1 * errors[0][0] and errors[1].sum() > errors[0].sum()
    assert (errors[1] * metric.diagonal()).sum() < (errors[0] * metric.diagonal()).sum()
    same = reduced_rank(x.T @ x / 200, t.T @ x / 200, 2, 0, 3 * torch.eye(5).double())
    assert torch.allclose(same[0] @ same[1], plain[0] @ plain[1], atol=1e-9)


def test_the_fisher_information_predicts_the_change_of_the_answer(x):
    model = mlp((12, 9, 4)).double()
    found = fisher(model, ["0"], x.double(), batch_size=77)["0"]
    assert torch.allclose(found, found.T) and torch.linalg.eigvalsh(found)[0] > -1e-12
    generator = torch.Generator().manual_seed(2)
    error = 1e-3 * torch.randn(9, generator=generator).double()
    with torch.no_grad():
        before, after = (model[2](torch.relu(model[0](x.double()) + e)).log_softmax(1) for e in (0.0, error))
        divergence = (before.exp() * (before - after)).sum(1).mean()
    assert float(divergence) == pytest.approx(float(error @ found @ error) / 2, rel=0.05)
    assert model.training


def test_weighted_factors_change_the_answer_less(x):
    model = mlp((12, 11, 10, 4), seed=4)
    model[4].weight.data *= 4  # answers that are sure of themselves
    plan = {"0": 3, "2": 2}
    with torch.no_grad():
        before = model(x).log_softmax(1)
        plain, weighted = (
            (
                before.exp()
                * (
                    before
                    - replace.apply_plan(Profile(model, x), plan, factors=way, resource="parameters")(x).log_softmax(1)
                )
            )
            .sum(1)
            .mean()
            for way in ("sequential", "fisher-weighted")
        )
    assert weighted < plain


def relu_error(small, model, x):
    with torch.no_grad():
        return float((F.relu(small[0](x)) - F.relu(model[0](x))).square().mean())


@pytest.mark.parametrize("seed", range(3))
def test_momentum_gets_further_in_as_many_steps(seed):
    x = torch.randn(400, 20, generator=torch.Generator().manual_seed(seed))
    model = mlp((20, 16, 4), seed)
    model[0].bias.data -= 0.5
    small = sweep(Profile(model, x), {"0": 4}, relu=True, refit_dense=False, iterations=10)
    assert relu_error(small, model, x) < 0.98 * plain_majorisation(model, x, 4, 10)


def plain_majorisation(model, x, rank, steps):
    with torch.no_grad():
        t, found = model[0](x).double(), None
        x, mean = x.double(), x.double().mean(0)
        centred = x - mean
        for _ in range(steps):
            goal = t if found is None else torch.where(t > 0, t, (x @ found[0].T + found[1]).clamp(max=0))
            cross = (goal - goal.mean(0)).T @ centred / len(x)
            left, right = reduced_rank(centred.T @ centred / len(x), cross, rank, start=model[0].weight.double())
            found = left @ right, goal.mean(0) - left @ right @ mean
        return float((F.relu(x @ found[0].T + found[1]) - F.relu(t)).square().mean())


def test_more_iterations_never_end_far_above_fewer(x):
    for seed in range(4):
        model = mlp((12, 11, 4), seed)
        errors = [
            relu_error(sweep(Profile(model, x), {"0": 3}, relu=True, refit_dense=False, iterations=n), model, x)
            for n in (1, 10, 40)
        ]
        assert errors[1] <= errors[0] and errors[2] <= 1.02 * errors[1]


def test_a_layer_without_bias_is_fitted_to_second_moments():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=generator) + 2  # a mean that nothing can take
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(6, 3, bias=False))
    small = sweep(Profile(model, x), {"0": 2})
    with torch.no_grad():
        target, seen = model(x).double(), small[0](x).double()
        best = torch.linalg.pinv(seen, rtol=1e-4) @ target
        assert torch.allclose(seen @ small[1].weight.double().T, seen @ best, atol=1e-2)
        u = torch.linalg.svd((x @ model[0].weight.T).double().T, full_matrices=False)[0][:, :2]
        y = (x @ model[0].weight.T).double()
        assert torch.allclose(small[0](x).double(), y @ u @ u.T, atol=1e-3)


def test_within_a_subspace_the_metric_and_the_refit_count(x):
    model = mlp()
    within = torch.linalg.qr(torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).double())[0]
    plain, weighted = (sweep(Profile(model, x), {"0": 2}, within={"0": within}, weighted=w)[0] for w in (False, True))
    assert not torch.allclose(plain(x), weighted(x), atol=1e-3)
    metric = fisher(model, ["0"], x)["0"]
    metric = 0.7 * metric / metric.diagonal().mean() + 0.3 * torch.eye(9).double()

    def felt(small):
        with torch.no_grad():
            gone = (small(x) - model[0](x)).double()
        return float(((gone @ metric) * gone).sum(1).mean())

    assert felt(weighted) < felt(plain)
    by_hand = within @ torch.linalg.solve(within.T @ metric @ within, within.T @ metric) @ model[0].weight.double()
    assert torch.allclose(weighted.second.weight.double() @ weighted.first.weight.double(), by_hand, atol=1e-3)


def test_the_fisher_information_of_a_frozen_network_and_in_draws():
    model = mlp()
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))
    exact = fisher(model, ["0", "4"], x)
    frozen = fisher(mlp().requires_grad_(False), ["0", "4"], x)
    drawn = fisher(model, ["0", "4"], x, draws=3)  # of four classes
    for name in exact:
        assert torch.allclose(exact[name], frozen[name])
        assert 0 < (drawn[name] - exact[name]).norm() < 0.2 * exact[name].norm()
    for images, words in [(x[:0], "at least one image"), (torch.full_like(x, torch.nan), "NaN or infinite")]:
        with pytest.raises(ValueError, match=words):
            fisher(model, ["0"], images)
    with pytest.raises(ValueError, match="there is no layer '9'"):
        fisher(model, ["9"], x)


def test_as_many_images_as_inputs_do_not_fit_the_noise():
    # least squares is at its worst where samples and inputs are equally many; the ridge is then chosen by cross-validation
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 5))
    fresh = torch.randn(2000, 60)

    def lost(count, **options):
        small = sequential.sweep(
            Profile(model, torch.randn(count, 60, generator=torch.Generator().manual_seed(1))),
            {"0": 20, "2": 20},
            **options,
        )
        with torch.no_grad():
            return float((small(fresh) - model(fresh)).square().mean() / model(fresh).var(0).mean())

    plain = {count: lost(count, ridge=1e-6) for count in (30, 62, 2000)}
    chosen = {count: lost(count) for count in (30, 62, 2000)}
    assert plain[62] > 2 * chosen[62] and chosen[30] < plain[30]
    assert chosen[2000] == pytest.approx(plain[2000], rel=1e-6)  # enough samples: nothing is chosen
    assert chosen[2000] < chosen[62] < 1


def test_the_cross_validated_ridge_is_large_for_noise_and_small_for_a_law():
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(80, n, generator=generator, dtype=torch.float64) for n in (40, 6))
    x, noise = x - x.mean(0), noise - noise.mean(0)
    law = x @ torch.randn(40, 6, generator=generator, dtype=torch.float64)

    def ridge(e):
        return sequential.cross_validated_ridge(x.T @ x / 80, e.T @ x / 80, e.square().sum() / 80, 80)

    assert ridge(law) < 1e-4 and ridge(noise) > 0.3 and ridge(law) < ridge(law + 5 * noise) < ridge(noise)
    # the definition itself: the score of the chosen one, by the hat matrix, is not beaten by its neighbours

    def score(e, share):
        hat = x @ torch.linalg.solve(x.T @ x / 80 + share * (x * x).mean(0).mean() * torch.eye(40).double(), x.T) / 80
        return float((e - hat @ e).square().sum() / (1 - (1 + hat.trace()) / 80) ** 2)

    e = law + 5 * noise
    best = ridge(e)
    assert score(e, best) <= score(e, best * 10**0.25) + 1e-9 and score(e, best) <= score(e, best / 10**0.25) + 1e-9
    assert (
        sequential.cross_validated_ridge(torch.zeros(3, 3).double(), torch.zeros(2, 3).double(), torch.tensor(0.0), 5)
        == 1e-6
    )


class Dropping(nn.Module):
    """Dropout as a function, and a layer that only evaluation uses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(12, 10), nn.Linear(10, 10), nn.Linear(10, 4)

    def forward(self, x):
        x = F.dropout(F.relu(self.a(x)), 0.5, self.training)
        return self.c(x if self.training else F.relu(self.b(x)))


def test_the_network_is_traced_in_eval_mode(x):
    model = Dropping().train()
    assert graph.followed_by(model)["b"].relu and before_relu(model) == {"a", "b"}
    small = sweep(Profile(model, x), {"b": 5})
    assert model.training and torch.equal(small.eval()(x), sweep(Profile(model.eval(), x), {"b": 5})(x))


def test_a_layer_that_fx_does_not_see_is_said(x, caplog):
    class Hiding(Dropping):
        def forward(self, x):
            x = F.relu(self.a(x))
            return self.c(F.relu(self.b(x)) if isinstance(x, torch.Tensor) else x)

    with caplog.at_level(logging.WARNING):
        small = sweep(Profile(Hiding(), x), {"a": 5, "b": 5})
    assert "does not see where layer 'b' is called" in caplog.text and small.b.first.weight.shape == (5, 10)


def test_linear_layers_over_a_grid_are_those_over_a_list():
    class Grid(nn.Module):
        def __init__(self, flat):
            super().__init__()
            torch.manual_seed(0)
            self.flat, self.a, self.b, self.o = flat, nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = x.flatten(1, 2) if self.flat else x
            return self.o(F.relu(self.b(F.relu(self.a(x)))).flatten(1, -2).mean(1))

    grid, flat = Grid(False), Grid(True)
    z = torch.randn(30, 8, 8, 6, generator=torch.Generator().manual_seed(0))  # as many rows as outputs
    for relu in (False, True):
        one, other = (sweep(Profile(m, z), {"a": 3, "b": 3}, relu=relu) for m in (grid, flat))
        assert torch.allclose(one(z), other(z), atol=1e-5)
    assert torch.allclose(fisher(grid, ["a"], z)["a"], fisher(flat, ["a"], z)["a"], atol=1e-6)


@pytest.mark.parametrize("tokens", [7, 16])
def test_a_batch_norm_over_tokens_is_not_one_of_the_outputs(tokens):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.n = nn.Linear(12, 16, bias=False), nn.BatchNorm1d(tokens)
            self.b = nn.Linear(16, 4)

        def forward(self, x):
            return self.b(F.relu(self.n(self.a(x)))).mean(1)

    model = Tokens().eval()
    z = torch.randn(50, tokens, 12, generator=torch.Generator().manual_seed(0)) + 1 + torch.arange(12.0) / 4
    for kind in ("sequential", "data-aware"):
        small = replace.apply_plan(Profile(model, z), {"a": 5}, factors=kind, resource="parameters")
        assert torch.equal(small.n.running_mean, model.n.running_mean)
        assert (small(z) - model(z)).square().mean() < 0.05 * model(z).square().mean()


def test_tied_weights_stay_tied_and_are_not_refitted(x):
    model = mlp((12, 9, 9, 9, 3))
    model[4].weight = model[2].weight
    small = sweep(Profile(model, x), {"0": 3})
    assert small[4].weight is small[2].weight
    assert parameters(small) == parameters(model) - 108 + 3 * 21
    with pytest.raises(ValueError, match="layer '2' shares its weight with another"):
        sweep(Profile(model, x), {"2": 4})


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.idle = nn.Linear(12, 9), nn.Linear(9, 9), nn.Linear(9, 4), nn.Linear(9, 3)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.b(F.relu(self.a(x))))))
        self.idle(x)
        return self.c(x)


def test_a_layer_that_is_used_twice_is_left_as_it_is(x):
    model = Twice()
    reasons = {card.name: card.reason for card in profile.read_layers(model, (12,))}
    assert reasons == {"a": "", "b": "it is used 2 times in one pass", "c": "", "idle": ""}
    small = sweep(Profile(model, x), {"a": 3})
    assert torch.equal(small.b.weight, model.b.weight) and not torch.equal(small.c.weight, model.c.weight)
    with pytest.raises(ValueError, match="layer 'b' is used 2 times in one pass; the Fisher information needs one"):
        fisher(model, ["b"], x)
    assert not fisher(model, ["idle"], x)["idle"].any()  # the answer does not depend on it


def test_layers_may_be_called_by_keyword(x):
    class Keyword(nn.Module):
        def __init__(self, named):
            super().__init__()
            torch.manual_seed(0)
            self.named, self.a, self.b = named, nn.Linear(12, 10), nn.Linear(10, 4)

        def forward(self, x):
            if self.named:
                return self.b(input=F.relu(self.a(input=x)))
            return self.b(F.relu(self.a(x)))

    named, plain = Keyword(True), Keyword(False)
    assert [c.macs for c in profile.read_layers(named, (12,))] == [c.macs for c in profile.read_layers(plain, (12,))]
    for kind in ("data-aware", "sequential"):
        one, other = (
            replace.apply_plan(Profile(m, x), {"a": 4}, factors=kind, resource="parameters") for m in (named, plain)
        )
        assert torch.allclose(one(x), other(x), atol=1e-6)


class Choosy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 9), nn.Linear(12, 9), nn.Linear(9, 9)

    def forward(self, x):
        _n, width = x.shape
        torch._assert(width == 12, "wrong width")
        return self.a(x) if x.sum() > 0 else self.b(x)


def test_networks_that_cannot_be_swept_are_refused_in_one_sentence(x):
    model, empty = Choosy(), nn.Sequential(nn.ReLU())
    some = torch.cat([x[:50].abs(), -x[:50].abs()])
    calls = [
        (
            lambda: sweep(Profile(model, some), {"a": 3}, batch_size=50),
            "some calibration images do not reach layer 'a'",
        ),
        (
            lambda: sweep(Profile(model, x[:, :5]), {"a": 3}),
            r"cannot take calibration images of shape \(5,\): wrong width",
        ),
        (lambda: sweep(Profile(model, x[:, None]), {"a": 3}), r"cannot take calibration images of shape \(1, 12\)"),
        (lambda: statistics.collect_moments(model, ["a"], x[:, :5]), r"cannot take calibration images of shape \(5,\)"),
        (lambda: profile.read_layers(model, (5,)), r"cannot take one input of shape \(5,\)"),
        (lambda: profile.read_layers(model, (2, 12)), r"cannot take one input of shape \(2, 12\)"),
        (lambda: fisher(model, ["a"], x[:, :5]), r"cannot take images of shape \(5,\)"),
        (lambda: fisher(model, ["c"], x), "layer 'c' is used 0 times in one pass"),
        (lambda: fisher(nn.Conv2d(3, 2, 1), [""], torch.zeros(2, 3, 5, 5)), "whose answers are N x classes"),
        (lambda: fisher(empty, ["0"], x), "this network has no parameters"),
        (lambda: sweep(Profile(empty, x), {}), "this network has no parameters"),
        (lambda: statistics.collect_moments(empty, [], x), "this network has no parameters"),
    ]
    for call, words in calls:
        with pytest.raises(ValueError, match=words):
            call()


def test_the_largest_ridge_is_taken_where_none_leaves_a_degree_of_freedom():
    z, e = torch.randn(3, 1000, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    z, e = z - z.mean(0), e - e.mean(0)
    assert sequential.cross_validated_ridge(z.T @ z / 3, e.T @ z / 3, e.square().sum() / 3, 3) == pytest.approx(10)
