"""Factors: optimal, exact at full rank, and safe on the inputs that break other implementations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowrank_utils.factors import replace, svd
from lowrank_utils.network import statistics
from lowrank_utils.network.profile import Profile

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def make(d_in, d_out, seed, bias=True):
    torch.manual_seed(seed)
    return nn.Linear(d_in, d_out, bias=bias)


def seen(inputs):
    moments = statistics.Moments.empty(inputs.shape[1])
    moments.update(inputs)
    return moments


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.booleans(), st.sampled_from(svd.METHODS), st.integers(1, 20), st.integers(0, 99))
def test_full_rank_is_exact_even_with_few_samples(shape, bias, method, samples, seed):
    layer = make(*shape, seed, bias)
    inputs = torch.randn(samples, shape[0])
    thin = svd.factorize(layer, min(shape), method=method, moments=seen(inputs))
    x = torch.randn(5, shape[0])
    assert torch.allclose(thin(x), layer(x), atol=1e-5)
    assert (thin.second.bias is not None) == bias


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.integers(0, 99), st.data())
def test_svd_error_is_the_dropped_energy(shape, seed, draw):
    layer = make(*shape, seed)
    rank = draw.draw(st.integers(1, min(shape)))
    thin = svd.factorize(layer, rank)
    error = torch.linalg.norm(thin.second.weight.double() @ thin.first.weight.double() - layer.weight.double())
    dropped = torch.linalg.svdvals(layer.weight.double())[rank:].norm()
    assert torch.allclose(error, dropped, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.integers(0, 99), st.data())
def test_data_aware_residual_is_the_sum_of_dropped_eigenvalues(shape, seed, draw):
    layer = make(*shape, seed)
    rank = draw.draw(st.integers(1, min(shape)))
    x = torch.randn(60, shape[0]) @ torch.randn(shape[0], shape[0]) + 3
    thin = svd.factorize(layer, rank, method="data-aware", moments=seen(x))
    weight, centred = layer.weight.double(), (x - x.mean(0)).double()
    covariance = (centred.T @ centred) / len(x)
    eigenvalues = torch.linalg.eigvalsh(weight @ covariance @ weight.T)
    dropped = eigenvalues[: len(eigenvalues) - rank].clamp(min=0).sum()
    difference = weight - thin.second.weight.double() @ thin.first.weight.double()
    residual = (difference @ centred.T).pow(2).sum() / len(x)
    assert torch.allclose(residual, dropped, rtol=1e-3, atol=1e-5 * float(eigenvalues[-1].detach()))
    plain = svd.factorize(layer, rank)
    worse = ((weight - plain.second.weight.double() @ plain.first.weight.double()) @ centred.T).pow(2).sum() / len(x)
    assert residual <= worse * (1 + 1e-5) + 1e-9


def test_data_aware_keeps_the_mean_output():
    layer = make(9, 6, 0)
    x = torch.randn(50, 9) + 5
    thin = svd.factorize(layer, 2, method="data-aware", moments=seen(x))
    assert torch.allclose(thin(x).mean(0), layer(x).mean(0), atol=1e-4)
    plain = svd.factorize(layer, 2)
    assert not torch.allclose(plain(x).mean(0), layer(x).mean(0), atol=1e-2)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 6), st.lists(st.integers(1, 29), max_size=3), st.integers(0, 99))
def test_moments_do_not_depend_on_the_batches(count, size, cuts, seed):
    x = torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + 100
    moments = statistics.Moments.empty(size)
    for batch in torch.tensor_split(x, sorted(c for c in cuts if c < count)):
        moments.update(batch)
    assert moments.count == count
    assert torch.allclose(moments.mean, x.double().mean(0))
    assert torch.allclose(moments.covariance, torch.cov(x.T.double(), correction=0).reshape(size, size), atol=1e-7)
    assert torch.allclose(moments.second_moment, x.T.double() @ x.double() / count)


def test_singular_covariance_is_normal_input():
    layer = make(20, 10, 0)
    x = torch.zeros(40, 20)
    x[:, :3] = torch.randn(40, 3)  # seventeen dead pixels
    thin = svd.factorize(layer, 3, method="data-aware", moments=seen(x))
    assert torch.allclose(thin(x), layer(x), atol=1e-4)
    for constant in (torch.zeros(1, 20), torch.ones(7, 20)):
        thin = svd.factorize(layer, 4, method="data-aware", moments=seen(constant))
        assert torch.allclose(thin(constant), layer(constant), atol=1e-5)


def test_collect_sees_the_inputs_of_each_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.Dropout(0.5)).train()
    x = torch.randn(23, 5)
    moments = statistics.collect_moments(model, ["0", "2"], x, batch_size=7)
    hidden = model[:2](x).detach().double()
    assert moments["0"].count == moments["2"].count == 23
    assert torch.allclose(moments["2"].covariance, torch.cov(hidden.T, correction=0), atol=1e-6)
    assert model.training and not model[0]._forward_pre_hooks


def test_factored_layers_keep_dtype_and_are_stock():
    layer = make(8, 8, 0).to(torch.float16)
    thin = svd.factorize(layer, 2)
    assert [type(module) for module in thin] == [nn.Linear, nn.Linear]
    assert {p.dtype for p in thin.parameters()} == {torch.float16}


def test_a_zero_matrix_outputs_its_bias():
    layer = make(6, 4, 0)
    layer.weight.data.zero_()
    for method in svd.METHODS:
        thin = svd.factorize(layer, 0, method=method, moments=seen(torch.randn(9, 6)))
        assert torch.allclose(thin(torch.randn(3, 6)), layer.bias.expand(3, 4), atol=1e-6)


@pytest.mark.parametrize("rank", [0, -1, 5, 2.0, True, None])
def test_ranks_outside_are_refused(rank):
    with pytest.raises(ValueError, match="not a whole number from 1 to 4"):
        svd.factorize(make(6, 4, 0), rank)


def test_other_bad_input_is_refused_in_words():
    layer = make(6, 4, 0)
    with pytest.raises(ValueError, match="unknown factors 'pca'; known: svd, data-aware"):
        svd.decompose_layer(layer, "pca")
    with pytest.raises(ValueError, match="need calibration images"):
        svd.decompose_layer(layer, "data-aware")
    with pytest.raises(ValueError, match="moments of length 5 do not fit a layer with 6 inputs"):
        svd.decompose_layer(layer, "data-aware", seen(torch.randn(4, 5)))
    with pytest.raises(
        ValueError, match="a depthwise convolution: each channel is one small kernel, so it cannot be factored"
    ):
        svd.decompose_layer(nn.Conv2d(3, 3, 3, groups=3))
    with pytest.raises(ValueError, match="scheme 'spatial'"):
        svd.factorize(layer, 2, scheme="spatial")
    layer.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        svd.decompose_layer(layer)
    model = nn.Sequential(make(6, 4, 0))
    with pytest.raises(ValueError, match="calibration images hold NaN"):
        statistics.collect_moments(model, ["0"], torch.full((2, 6), float("nan")))
    with pytest.raises(ValueError, match=r"cannot take calibration images of shape \(7,\)"):
        statistics.collect_moments(model, ["0"], torch.zeros(2, 7))
    with pytest.raises(ValueError, match="at least one input"):
        statistics.collect_moments(model, ["0"], torch.zeros(0, 6))
    with pytest.raises(ValueError, match="NaN or infinite activations"):
        statistics.Moments.empty(2).update(torch.tensor([[1.0, float("inf")]]))


@pytest.mark.parametrize("bias", [True, False])
def test_the_residual_of_a_layer_with_a_mean_is_the_sum_of_dropped_eigenvalues(bias):
    torch.manual_seed(0)
    layer = nn.Linear(8, 6, bias=bias).double()
    x = torch.randn(50, 8).double() @ torch.randn(8, 8).double() + 3  # a mean that matters
    moments = statistics.Moments.empty(8)
    moments.update(x)
    spread = torch.cov(x.T, correction=0) if bias else x.T @ x / 50
    dropped = torch.linalg.eigvalsh(layer.weight @ spread @ layer.weight.T)[:4].sum()
    small = svd.decompose_layer(layer, "data-aware", moments).layers(2)
    with torch.no_grad():
        assert torch.allclose((small(x) - layer(x)).square().sum(1).mean(), dropped, rtol=1e-5)


def test_directions_that_the_data_never_take_are_kept_longest_first():
    layer = nn.Linear(4, 4, bias=False).double()
    layer.weight.data = torch.diag(torch.tensor([1.0, 5.0, 3.0, 2.0])).double()
    moments = statistics.Moments.empty(4)
    moments.update(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))  # the first input alone
    found = svd.decompose_layer(layer, "data-aware", moments)
    order = [int((found.left[:, i : i + 1] @ found.right[i : i + 1]).abs().sum(0).argmax()) for i in range(4)]
    assert order == [0, 1, 2, 3]


def test_collecting_runs_without_dropout_and_names_what_it_cannot_watch():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)).train()
    x = torch.ones(40, 5)
    seen = statistics.collect_moments(model, ["1"], x)["1"]
    assert torch.equal(seen.mean, torch.ones(5).double()) and seen.covariance.abs().max() == 0
    for name in ("2", "9"):
        with pytest.raises(
            ValueError, match=f"there is no layer '{name}' in this network that is linear or a convolution"
        ):
            statistics.collect_moments(model, [name], x)

    class First(nn.Sequential):
        def forward(self, x):
            return self[1](x)

    with pytest.raises(ValueError, match="no input reaches layer '3' in a forward pass"):
        statistics.collect_moments(First(*model), ["3"], x)


def test_layerwise_fisher_factors_lose_least_in_their_metric():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)), torch.randn(300, 20) * torch.rand(20)
    read = Profile(model, x)
    metric = read.metric_of(["0"])["0"].float()
    built = {kind: replace.apply_plan(read, {"0": 5}, factors=kind) for kind in ("data-aware", replace.LAYERWISE)}

    def lost(small):
        error = (small[0](x) - model[0](x)).detach()
        return float(((error @ metric) * error).sum())

    assert lost(built[replace.LAYERWISE]) < 0.99 * lost(built["data-aware"])
    whole = replace.apply_plan(read, {"0": 20}, factors=replace.LAYERWISE, resource=None)
    assert torch.allclose(whole(x), model(x), atol=1e-4)


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (8, 8)])
def test_scaled_factors_are_the_svd_of_the_scaled_weights(shape):
    layer = make(shape[1], shape[0], 3)
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.rand(size, generator=generator).double() + 0.1 for size in shape)
    weight = layer.weight.detach().double()
    for by_row, by_column in ((None, None), (None, columns), (rows, None), (rows, columns)):
        s, d = torch.ones(shape[0]).double() if by_row is None else by_row, by_column
        d = torch.ones(shape[1]).double() if d is None else d
        u, values, vt = torch.linalg.svd(s[:, None] * weight * d, full_matrices=False)
        found = svd.scaled_layer(layer, columns=by_column, rows=by_row)
        assert found.full_rank == min(shape)
        for rank in (1, 4, min(shape)):
            left, right, bias = found.truncate(rank)
            by_hand = (u[:, :rank] * values[:rank]) @ vt[:rank] / s[:, None] / d
            assert torch.allclose(left @ right, by_hand, atol=1e-6) and torch.equal(bias, layer.bias.double())


def test_the_names_of_scaled_factors_are_those_published():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 4)), torch.randn(60, 12) * torch.arange(1, 13)
    read = Profile(model, x, estimator="signs", draws=2)
    scales = {"asvd": {"columns": x.abs().mean(0).sqrt()}, "fwsvd": {"rows": read.rows_of(["0"])["0"].sqrt()}}
    for name, scale in scales.items():
        left, right, _ = svd.scaled_layer(model[0], **scale).truncate(3)
        built = replace.apply_plan(read, {"0": 3}, factors=name)[0]
        assert torch.allclose(built.second.weight @ built.first.weight, (left @ right).float(), atol=1e-4)


def test_scales_of_zero_lose_nothing_at_full_rank():
    layer, columns, rows = make(7, 5, 0), torch.ones(7), torch.ones(5)
    columns[:3], rows[0] = 0, 0
    for scale in ({"columns": columns}, {"rows": rows}, {"columns": torch.zeros(7), "rows": torch.zeros(5)}):
        left, right, _ = svd.scaled_layer(layer, **scale).truncate(5)
        assert torch.allclose(left @ right, layer.weight.double(), atol=1e-6)


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ({"columns": torch.ones(6)}, "columns must be 7 finite numbers, none below zero"),
        ({"rows": torch.ones(7)}, "rows must be 5 finite numbers"),
        ({"rows": -torch.ones(5)}, "rows must be 5 finite numbers, none below zero"),
        ({"columns": torch.full((7,), torch.inf)}, "columns must be 7 finite"),
        ({"columns": torch.full((7,), torch.nan)}, "columns must be 7 finite"),
    ],
)
def test_scales_that_are_none_are_refused(scale, words):
    with pytest.raises(ValueError, match=words):
        svd.scaled_layer(make(7, 5, 0), **scale)
    with pytest.raises(ValueError, match="scaled factors are of linear layers; this is a Conv2d"):
        svd.scaled_layer(nn.Conv2d(3, 4, 3), **scale)


def positive(size, samples, seed):
    """A second moment of so many samples: singular where there are fewer than `size`."""
    x = torch.randn(samples, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.T @ x / samples


def test_the_cholesky_root_is_a_root_also_of_singular_matrices():
    for matrix in (positive(6, 30, 0), positive(6, 3, 1), torch.zeros(6, 6).double(), 1e12 * positive(6, 3, 2)):
        root = svd.cholesky_root(matrix)
        assert torch.equal(root, root.tril())
        scale = float(matrix.diagonal().mean()) or 1.0
        assert torch.allclose(root @ root.T / scale, matrix / scale, atol=1e-8)
    with pytest.raises(ValueError, match="a matrix of moments is not positive semidefinite"):
        svd.cholesky_root(torch.diag(torch.tensor([1.0, -1.0]).double()))


def least_error(target, covariance, metric, rank):
    """The best product of this rank in the metric, and its error, from symmetric square roots and the plain SVD."""

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values.clamp(min=1e-14).sqrt()) @ vectors.T

    first, last = root(metric), root(covariance)
    u, s, vt = torch.linalg.svd(first @ target @ last, full_matrices=False)
    best = torch.linalg.inv(first) @ (u[:, :rank] * s[:rank]) @ vt[:rank] @ torch.linalg.inv(last)
    return best, float(s[rank:].square().sum())


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_closed_form_agrees_with_square_roots(shape, weighted):
    target = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    covariance, metric = positive(shape[1], 40, 0), positive(shape[0], 40, 1)
    given_metric = metric if weighted else None
    metric = metric if weighted else torch.eye(shape[0]).double()
    errors = svd.errors_by_rank(target, covariance, 1, given_metric)
    assert len(errors) == min(shape) + 1 and errors[-1] == 0
    for rank in range(1, min(shape) + 1):
        left, right = svd.alternating_low_rank(target, covariance, 1, rank, given_metric)
        best, error = least_error(target, covariance, metric, rank)
        assert left.shape == (shape[0], rank) and torch.allclose(left @ right, best, atol=1e-6)
        lost = target - left @ right
        assert float(torch.trace(lost.T @ metric @ lost @ covariance)) == pytest.approx(error, abs=1e-8)
        assert float(errors[rank]) == pytest.approx(error, abs=1e-8)
    assert float(errors[0]) == pytest.approx(least_error(target, covariance, metric, 0)[1])


def test_the_closed_form_takes_singular_covariances_of_tall_matrices():
    target = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance, metric = positive(6, 3, 0), positive(12, 40, 1)
    left, right = svd.alternating_low_rank(target, covariance, 1, 3, metric)
    lost = target - left @ right
    assert float(torch.trace(lost.T @ metric @ lost @ covariance)) < 1e-6  # three samples span three directions
    assert float(svd.errors_by_rank(target, covariance, 1, metric)[3]) < 1e-6
    left, right = svd.alternating_low_rank(target, covariance, 1, 6, metric)
    assert torch.allclose(left @ right, target, atol=1e-6)
