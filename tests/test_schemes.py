"""A convolution as a matrix in three ways: exact over the grid of what a convolution can be, and as good as it gets at each rank."""

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_utils.factors import svd
from lowrank_utils.network import profile, statistics, unfold

KERNELS = (1, 3, (3, 2), (1, 3), (4, 1), 5)
STRIDES = (1, 2, (2, 1), (1, 3))
PADDINGS = (0, 1, (2, 1), "same", "valid")
MODES = ("zeros", "reflect", "replicate", "circular")


def grid():
    found = itertools.product(KERNELS, STRIDES, PADDINGS, (1, 2, (1, 2)), (1, 2), (True, False), MODES)
    for kernel, stride, padding, dilation, groups, bias, mode in found:
        if padding == "same" and stride != 1:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that an even kernel under "same" copies its input
            yield nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups, bias, mode).double()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_every_scheme_is_exact_at_full_rank_whatever_the_convolution():
    torch.manual_seed(0)
    x, seen = torch.randn(1, 4, 10, 11).double(), 0
    for layer in grid():
        y = layer(x)
        for scheme in unfold.schemes_of(layer):
            full = unfold.rank_costs(layer)[scheme].full_rank
            pair = svd.factorize(layer, full, scheme)
            assert torch.allclose(pair(x), y, atol=1e-10), (layer, scheme)
            seen += 1
    assert seen > 5000


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_patches_times_the_weights_are_the_outputs():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 10, 11).double()
    for layer in itertools.islice(grid(), 0, None, 7):
        y, count = layer(x), layer.groups
        seen = unfold.patches(layer, x)
        weight = layer.weight.reshape(count, -1, layer.weight[0].numel())
        product = torch.einsum("gpc,goc->gop", seen, weight).reshape(6, len(x), -1).transpose(0, 1).reshape(y.shape)
        assert torch.allclose(product + (0 if layer.bias is None else layer.bias[:, None, None]), y), layer
        assert torch.equal(
            unfold.patches(layer, x, 3), seen.reshape(count, 2, -1, seen.shape[2])[:, :, ::3].flatten(1, 2)
        )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scheme", unfold.NAMES)
def test_matrices_go_there_and_back(scheme, groups):
    layer = nn.Conv2d(4, 6, (3, 2), groups=groups)
    matrix = unfold.to_matrix(layer, scheme)
    assert matrix.shape == (groups, *unfold.rank_costs(layer)[scheme].shape)
    assert torch.equal(unfold.from_matrix(layer, scheme, matrix).reshape(layer.weight.shape), layer.weight.double())


@pytest.mark.parametrize("stride", [1, 2, (2, 1), (1, 2)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scheme", unfold.NAMES)
def test_costs_are_those_of_the_layers_that_are_built(scheme, groups, stride):
    model = nn.Sequential(nn.Conv2d(8, 12, (3, 5), stride, (1, 2), groups=groups))
    card = profile.read_layers(model, (8, 13, 16), scheme=scheme)[0]
    built = svd.factorize(model[0], 2, scheme)
    assert card.scheme == scheme and card.cost(2, resource="parameters") == sum(p.numel() for p in built.parameters())
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        built(torch.zeros(1, 8, 13, 16))
    assert card.cost((scheme, 2), "macs") == counter.get_total_flops() // 2


def test_break_even_ranks_of_a_strided_layer_differ_between_resources():
    card = profile.read_layers(nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, bias=False)), (16, 16, 16))[0]
    assert card.break_even("parameters") == 31  # 9 * 16 * 32 / (3 * 48) = 32 does not pay
    assert card.break_even("macs") == 23  # 9 * 16 * 32 / (3 * (2 * 16 + 32)) = 24 does not


def seen_by(layer, images):
    return statistics.collect_moments(nn.Sequential(layer), ["0"], images)["0"]


def loss(layer, pair, x):
    return float((pair(x) - layer(x)).detach().square().mean())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scheme", unfold.NAMES)
def test_data_aware_pairs_lose_less_on_data_than_plain_ones(scheme, groups):
    torch.manual_seed(1)
    layer = nn.Conv2d(8, 12, 3, padding=1, groups=groups)
    x = torch.randn(40, 8, 9, 9).cumsum(2) + 1
    for rank in (1, 2, 3):
        plain = svd.factorize(layer, rank, scheme)
        aware = svd.factorize(layer, rank, scheme, "data-aware", seen_by(layer, x))
        assert loss(layer, aware, x) < 0.9 * loss(layer, plain, x)
        assert torch.allclose(aware(x).mean((0, 2, 3)), layer(x).mean((0, 2, 3)), atol=1e-4)
    full = unfold.rank_costs(layer)[scheme].full_rank
    exact = svd.factorize(layer, full, scheme, "data-aware", seen_by(layer, x))
    fresh = torch.randn(3, 8, 9, 9)
    assert torch.allclose(exact(fresh), layer(fresh), atol=1e-4)


def test_the_channel_scheme_reaches_the_sum_of_the_dropped_eigenvalues():
    torch.manual_seed(1)
    layer = nn.Conv2d(5, 7, 3).double()
    x = torch.randn(30, 5, 8, 8).double().cumsum(3)
    moments = seen_by(layer, x)
    weight = layer.weight.detach().reshape(7, -1)
    dropped = torch.linalg.eigvalsh(weight @ moments.covariance @ weight.T)[:4].sum()
    pair = svd.factorize(layer, 3, "channel", "data-aware", moments)
    with torch.no_grad():
        assert loss(layer, pair, x) * 7 == pytest.approx(float(dropped), rel=1e-6)


@pytest.mark.parametrize("scheme", ["spatial", "input"])
def test_alternation_ends_where_gradient_descent_finds_nothing_better(scheme):
    torch.manual_seed(2)
    layer = nn.Conv2d(6, 8, 3).double()
    x = torch.randn(60, 6, 7, 7).double().cumsum(2).cumsum(3)
    moments = seen_by(layer, x)
    place = unfold.in_order(layer, scheme)
    target, spread = layer.weight.detach().reshape(8, -1)[:, place], moments.covariance[place][:, place]
    offsets = unfold.shared(layer, scheme)

    def error(left, right):
        gone = target - (left.reshape(8, offsets, -1) @ right).reshape(8, -1)
        return ((gone @ spread) * gone).sum()

    first, last = (svd.alternating_low_rank(target, spread, offsets, 3, rounds=n, tolerance=1e-7) for n in (1, 200))
    assert error(*last) < 0.95 * error(*first)
    left, right = (part.contiguous().clone().requires_grad_() for part in last)
    descent = torch.optim.LBFGS([left, right], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        descent.zero_grad()
        value = error(left, right) / error(*last).detach()
        value.backward()
        return value

    descent.step(closure)
    assert error(left, right) > 0.999 * error(*last)


def test_a_metric_moves_the_error_to_where_it_counts_less():
    torch.manual_seed(3)
    target, spread = torch.randn(6, 12).double(), torch.eye(12).double()
    metric = torch.diag(torch.tensor([100.0, 100, 1, 1, 1, 1])).double()
    for offsets in (1, 3):
        errors = []
        for m in (None, metric):
            left, right = svd.alternating_low_rank(target, spread, offsets, 2, m)
            gone = target - (left.reshape(6, offsets, -1) @ right).reshape(6, -1)
            errors.append(gone.square().sum(1))
        assert errors[1][:2].sum() < 0.5 * errors[0][:2].sum() and errors[1].sum() > errors[0].sum()


def test_singular_and_empty_covariances_are_normal_input():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3)
    dead = torch.zeros(20, 4, 8, 8)
    dead[:, 0] = torch.randn(20, 8, 8)
    for scheme in unfold.NAMES:
        for x in (dead, torch.zeros(1, 4, 8, 8), torch.ones(3, 4, 8, 8)):
            pair = svd.factorize(layer, 3, scheme, "data-aware", seen_by(layer, x))
            if x is not dead:
                assert torch.allclose(pair(x), layer(x), atol=1e-4)
            assert all(torch.isfinite(p).all() for p in pair.parameters())


def test_kernels_of_zeros_have_rank_zero():
    layer = nn.Conv2d(4, 6, 3)
    layer.weight.data.zero_()
    for scheme in unfold.NAMES:
        pair = svd.factorize(layer, 0, scheme)
        assert torch.allclose(pair(torch.randn(1, 4, 5, 5)), layer.bias[:, None, None].expand(6, 3, 3), atol=1e-6)


def test_what_cannot_be_factored_is_said():
    assert unfold.schemes_of(nn.Conv2d(8, 8, 3, groups=8)) == () == unfold.schemes_of(nn.Conv2d(4, 8, 3, groups=4))
    assert unfold.why_not(nn.ConvTranspose2d(2, 2, 3)) == "a layer of type ConvTranspose2d is not factored"
    assert unfold.schemes_of(nn.Conv2d(8, 8, 1)) == ("channel",) and unfold.schemes_of(nn.Conv2d(8, 8, (1, 3))) == (
        "channel",
        "input",
    )
    with pytest.raises(ValueError, match="scheme 'tucker' is not one of this layer, which has spatial, channel, input"):
        svd.factorize(nn.Conv2d(4, 4, 3), 2, "tucker")
    with pytest.raises(ValueError, match="rank 13 is not a whole number from 1 to 12, the full rank"):
        svd.factorize(nn.Conv2d(4, 4, 3), 13, "spatial")
    with pytest.raises(ValueError, match="moments of length 9 do not fit a layer with 36 inputs"):
        svd.decompose_layer(nn.Conv2d(4, 4, 3), "data-aware", seen_by(nn.Conv2d(1, 1, 3), torch.randn(2, 1, 5, 5)))
