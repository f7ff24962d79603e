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
