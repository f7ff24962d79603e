"""A convolution as a matrix in three ways: exact over the grid of what a convolution can be, and as good as it gets at each rank."""

import ast
import itertools
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lowrank_utils
from lowrank_utils.factors import replace, svd
from lowrank_utils.lab import checkpoints
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


def zero_pair(layer, scheme, rank, bias):
    count, (rows, columns) = unfold.groups(layer), unfold.rank_costs(layer)[scheme].shape
    bias = torch.zeros(layer.weight.shape[0]) if bias else None
    return unfold.thin_layers(layer, scheme, torch.zeros(count, rows, rank), torch.zeros(count, rank, columns), bias)


@pytest.mark.parametrize("bias", [True, False])
def test_recognising_inverts_making_for_every_scheme(bias):
    assert unfold.recognise(zero_pair(nn.Linear(5, 7), None, 3, bias)) == (None, 3)
    seen = set()
    for kernel, stride, padding, dilation, groups in itertools.product(KERNELS, (1, 2), (0, 1, "same"), (1, 2), (1, 2)):
        if padding == "same" and stride != 1:
            continue
        layer = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups)
        for scheme in unfold.schemes_of(layer):
            for rank in (1, 2):
                assert unfold.recognise(zero_pair(layer, scheme, rank, bias)) == (scheme, rank), (layer, scheme)
            seen.add((scheme, groups))
    assert seen == set(itertools.product(unfold.NAMES, (1, 2)))


def test_other_pairs_of_layers_are_not_recognised():
    def pair(first, second, names=("first", "second")):
        module = nn.Sequential()
        for name, layer in zip(names, (first, second)):
            module.add_module(name, layer)
        return unfold.recognise(module)

    assert pair(nn.Linear(5, 3, bias=False), nn.Linear(3, 7)) == (None, 3)
    assert pair(nn.Linear(5, 3, bias=False), nn.Linear(3, 7), ("0", "1")) is None
    assert pair(nn.Linear(5, 3), nn.Linear(3, 7)) is None  # a bias between the two
    assert pair(nn.Linear(5, 3, bias=False), nn.Linear(4, 7)) is None
    assert pair(nn.Linear(5, 3, bias=False), nn.Conv2d(3, 7, 1)) is None
    assert pair(nn.Conv2d(4, 2, 3, bias=False), nn.Conv2d(2, 6, 1)) == ("channel", 2)
    assert pair(nn.Conv2d(4, 2, 3, bias=False), nn.Conv2d(2, 6, 3)) is None
    assert pair(nn.Conv2d(4, 2, 3, bias=False), nn.Conv2d(2, 6, 1, stride=2)) is None
    assert pair(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 6, 1)) is None  # depthwise separable


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scheme", unfold.NAMES)
def test_factors_applied_to_a_patch_are_their_matrix_times_the_patch(scheme, groups):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 2), groups=groups)
    rows, columns = unfold.rank_costs(layer)[scheme].shape
    left, right = torch.randn(groups, rows, 3), torch.randn(groups, 3, columns)
    patch = torch.randn(groups, 4 // groups * 6)
    whole = unfold.from_matrix(layer, scheme, left @ right)
    answer = unfold.apply_factors(layer, scheme, left, right, patch)
    assert torch.allclose(answer, (whole @ patch[:, :, None]).flatten(), atol=1e-5)


def test_no_other_file_asks_which_scheme_it_has():
    package = Path(lowrank_utils.__file__).parent
    own = package / "network" / "unfold.py"
    assert asked_schemes(own.read_text())  # the search finds what it looks for
    found = {
        f"{path.relative_to(package)}:{line}"
        for path in package.rglob("*.py")
        if path != own
        for line in asked_schemes(path.read_text())
    }
    assert not found


def asked_schemes(source):
    # lines where a scheme's name is compared with, matched, or the key of a table; or a scheme is compared with None
    lines = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        else:
            continue
        constants = [part.value for part in parts if isinstance(part, ast.Constant)]
        names = [getattr(part, "attr", getattr(part, "id", "")) for part in parts]
        if set(unfold.NAMES) & {value for value in constants if isinstance(value, str)}:
            lines.add(node.lineno if hasattr(node, "lineno") else parts[0].lineno)
        if isinstance(node, ast.Compare) and "scheme" in names and None in constants:
            lines.add(node.lineno)
    return sorted(lines)


class Across(unfold.Convolution):
    """(O kh) x (I kw): 1 x kw, then kh x 1, the spatial scheme with its axes exchanged."""

    name = "across"
    first_axes = (1,)

    def takes(self, high, wide):
        return min(high, wide) > 1

    def positions(self, layer, inputs, outputs, between):
        return outputs * layer.stride[0] if between is None else inputs * outputs // between


@pytest.fixture
def across(monkeypatch):
    monkeypatch.setattr(unfold, "SCHEMES", (*unfold.SCHEMES, Across()))
    monkeypatch.setattr(unfold, "NAMES", (*unfold.NAMES, "across"))


@pytest.mark.usefixtures("across")
def test_one_class_is_all_that_a_new_scheme_needs(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 12, (3, 5), (1, 2), padding=2, groups=2), nn.ReLU(), nn.Conv2d(12, 8, 3)).eval()
    images = torch.randn(30, 4, 14, 14).cumsum(2)
    read = lowrank_utils.profile(model, images, scheme="across")
    assert [layer.scheme for layer in read] == ["across"] * 2
    plan = {"0": ("across", 3), "2": ("across", 5)}
    for kind in ("svd", "data-aware", "sequential"):
        small = replace.apply_plan(read, plan, factors=kind, resource=None)
        assert {name: unfold.recognise(small.get_submodule(name)) for name in plan} == plan
        assert [tuple(layer.kernel_size) for layer in small[0]] == [(1, 5), (3, 1)]
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        small(images[:1])
    assert profile.plan_cost(read, plan, "macs") == counter.get_total_flops() // 2
    full = {name: ("across", read[name].full_rank) for name in plan}
    whole = replace.apply_plan(read, full, factors="data-aware", resource=None)
    assert torch.allclose(whole(images), model(images), atol=1e-3)
    path = tmp_path / "small.safetensors"
    checkpoints.save_compressed(small, path, plan, original=model)
    again, metadata = checkpoints.load_compressed(path, model)
    assert metadata["plan"] == plan and torch.equal(again(images), small(images))
