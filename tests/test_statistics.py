"""Statistics of data in a network: moments, who shares an input, Fisher information of answers and of rows, against sums by hand."""

import pytest
import torch
from torch import nn

from conftest import mlp
from lowrank_utils.network import inputs, modules, statistics
from lowrank_utils.network.statistics import Moments


class Attention(nn.Module):
    """Tokens of width 8; query, key and value read one tensor. Answers are N x T x 5."""

    def __init__(self, between=None):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 6, bias=False) for _ in range(3))
        self.out, self.between = nn.Linear(6, 5), between

    def forward(self, x):
        q, k = self.q(x), self.k(x)
        if self.between is not None:
            x = self.between(x)
        return self.out((q @ k.mT / 3).softmax(-1) @ self.v(x))


NAMES = ["q", "k", "v", "out"]


def attention(between=None):
    torch.manual_seed(0)
    return Attention(between).eval()


def tokens(count=4, seed=1):
    return torch.randn(count, 3, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("between", "first"),
    [
        (None, "q"),
        (lambda x: x + 0, "v"),  # another tensor with the same numbers
        (lambda x: x.mul_(2), "v"),  # the same tensor with other numbers
    ],
)
def test_layers_that_read_one_tensor_share_its_moments(between, first):
    model, x = attention(between), tokens()
    assert statistics.shared_inputs(model, NAMES, x[:1]) == {"q": "q", "k": "q", "v": first, "out": "out"}
    found = statistics.collect_moments(model, NAMES, x)
    assert found["q"] is found["k"] and (found["q"] is found["v"]) == (first == "q")
    for name in NAMES:
        alone = statistics.collect_moments(model, [name], x)[name]
        assert torch.allclose(found[name].scatter, alone.scatter) and found[name].count == alone.count == 12
    assert statistics.shared_inputs(model, ["k", "v"], x[:1])["k"] == "k"
    with pytest.raises(ValueError, match=r"cannot take calibration images of shape \(3, 7\)"):
        statistics.shared_inputs(model, NAMES, x[:1, :, :7])


def test_a_layer_used_twice_shares_nothing():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) + self.a(self.b(x))

    assert statistics.shared_inputs(Twice(), ["a", "b"], torch.zeros(1, 4)) == {"a": "a", "b": "b"}


@pytest.mark.parametrize("wide", [3, 7, 8, 11, 16])
def test_outer_products_in_blocks_are_those_of_the_whole(wide):
    for shape in ((5, wide), (2, 5, wide)):
        rows = torch.randn(shape, dtype=torch.float64)
        found = statistics.outer(rows, block=4)
        assert torch.allclose(found, rows.mT @ rows) and torch.equal(found, found.mT)


def test_the_prior_of_tokens_is_added_to_the_diagonal():
    x = torch.randn(30, 5, dtype=torch.float64) + 1
    seen = Moments.empty(5)
    seen.update(x)
    plain, raw = seen.covariance, seen.second_moment
    seen.prior = 10
    for found, before in ((seen.covariance, plain), (seen.second_moment, raw)):
        even = before.diagonal().mean() * torch.eye(5).double()
        assert torch.allclose(found, before + 10 / 30 * even)
    model, x = attention(), tokens()
    assert statistics.collect_moments(model, ["q"], x)["q"].prior == statistics.TOKEN_PRIOR
    assert statistics.collect_moments(nn.Sequential(model.q), ["0"], x[:, 0])["0"].prior == 0


def test_mean_absolute_values_do_not_depend_on_the_batches():
    x = torch.randn(20, 5)
    seen = statistics.collect_moments(nn.Sequential(nn.Linear(5, 2)), ["0"], x, batch_size=7)["0"]
    assert torch.allclose(seen.mean_absolute, x.double().abs().mean(0), atol=1e-6)


def answers_by_hand(model, x):
    """For each input and each answer (t, class): its share and its log-probability, which autograd can follow."""
    for one in x.split(1):
        logs = model(one).log_softmax(-1).reshape(-1, 5)
        yield [(row.detach().exp(), row) for row in logs]


def outputs_information(model, name, x):
    """Exact Fisher information at the outputs of a layer: the T answers are independent, so their information adds up."""
    total = 0
    held = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, out: held.append(out))
    for rows in answers_by_hand(model, x):
        out = held.pop()
        for shares, logs in rows:
            for share, log in zip(shares, logs):
                (slope,) = torch.autograd.grad(log, out, retain_graph=True)
                slope = slope.reshape(-1, out.shape[-1]).double()
                total = total + float(share) * slope.T @ slope
    handle.remove()
    return total / len(x)


@pytest.mark.parametrize("estimator", ["signs", "draws"])
def test_the_information_of_tokens_is_exact_in_the_mean(estimator):
    model, x = attention(), tokens()
    found = statistics.fisher(model, NAMES, x, draws=3000, estimator=estimator, batch_size=3)
    for name in NAMES:
        exact = outputs_information(model, name, x)
        assert found[name].dtype == torch.float32
        assert (found[name] - exact).norm() < 0.1 * exact.norm()
        few = statistics.fisher(model, [name], x, draws=1, estimator=estimator)[name]
        assert (few - exact).norm() > 0.01 * exact.norm()  # else the bound above would say nothing


@pytest.mark.parametrize("estimator", ["signs", "draws"])
def test_the_information_of_rows_is_that_of_a_loop(estimator):
    model, x = attention(), tokens()
    exact = {name: torch.zeros(len(model.get_submodule(name).weight), dtype=torch.float64) for name in NAMES}
    for rows in answers_by_hand(model, x):
        for shares, logs in rows:
            for share, log in zip(shares, logs):
                for name in NAMES:
                    (slope,) = torch.autograd.grad(log, model.get_submodule(name).weight, retain_graph=True)
                    exact[name] += float(share) * slope.double().square().sum(1) / len(x)
    found = statistics.row_information(model, NAMES, x, draws=2000, estimator=estimator)
    for name in NAMES:
        assert found[name].dtype == torch.float64
        assert torch.allclose(found[name], exact[name], rtol=0.15, atol=0.03 * float(exact[name].mean()))


def test_the_information_of_rows_of_few_classes_is_exact():
    model, x = mlp(), torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    exact = torch.zeros(9, dtype=torch.float64)
    for one in x.split(1):
        logs = model(one).log_softmax(1)[0]
        for log in logs:
            (slope,) = torch.autograd.grad(log, model[0].weight, retain_graph=True)
            exact += float(log.detach().exp()) * slope.double().square().sum(1) / 7
    found = statistics.row_information(model, ["0"], x, draws=4, estimator="exact")["0"]
    assert torch.allclose(found, exact, rtol=1e-4)
    one, two = (statistics.row_information(model, ["0"], x, seed=seed)["0"] for seed in (0, 1))
    again = statistics.row_information(model, ["0"], x)["0"]
    assert torch.equal(one, again) and not torch.equal(one, two)
    joined = statistics.row_information(model, ["0"], x, draws=500, batch_size=7)["0"]
    assert not torch.allclose(joined, exact, rtol=0.05)  # slopes of a batch are summed before they are squared


def test_flags_of_gradients_are_put_back_also_after_an_error():
    model = mlp()
    model[2].weight.requires_grad_(False)
    flags = [value.requires_grad for value in model.parameters()]

    def fail():
        with modules.frozen(model):
            assert not any(value.requires_grad for value in model.parameters())
            raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        fail()
    assert [value.requires_grad for value in model.parameters()] == flags
    bad = torch.full((3, 12), torch.nan)
    for use in (statistics.fisher, statistics.row_information):
        with pytest.raises(ValueError, match="NaN or infinite"):
            use(model, ["0"], bad)
        assert [value.requires_grad for value in model.parameters()] == flags
        use(model, ["0", "2"], torch.randn(3, 12))  # also of the frozen layer
        assert [value.requires_grad for value in model.parameters()] == flags
        assert all(value.grad is None for value in model.parameters())


@pytest.mark.parametrize(
    ("batch", "size", "count"),
    [
        (torch.zeros(8, 3, 32, 32), 500, 500),
        (torch.zeros(8, 128, dtype=torch.int64), 50, 4),
        (torch.zeros(8, 128, dtype=torch.int64), 2, 2),
        (torch.zeros(8, 2048, dtype=torch.int64), 50, 1),
        (torch.zeros(0, 2048, dtype=torch.int64), 50, 50),
        (inputs.Inputs((torch.zeros(8, 256, dtype=torch.int64),), {"mask": torch.ones(8, 999)}), 50, 2),
        (inputs.Inputs((torch.zeros(8, 5), torch.zeros(8, 7))), 50, 50),
    ],
)
def test_so_many_inputs_pass_that_about_512_tokens_do(batch, size, count):
    assert inputs.at_once(batch, size) == count
