"""SparseGPT from our moments, against the optimal brain surgeon step by step on a tiny layer."""

import pytest
import torch
from torch import nn

from conftest import mlp
from lowrank_utils import profile
from lowrank_utils.factors import sparse


@pytest.fixture
def tiny():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    inputs = torch.randn(200, 7, generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    return weight, inputs.T @ inputs / 200, inputs


def surgeon(weight, moment, mask, damping=1e-9):
    """Brute force: each row on its own, column by column, with the inverse of what is left taken anew at every step."""
    damped, rows = moment + damping * moment.diagonal().mean() * torch.eye(len(moment)).to(moment), []
    for row, stays in zip(weight.clone(), mask):
        for j in range(len(row)):
            if not stays[j]:
                inverse = torch.linalg.inv(damped[j:, j:])
                row[j:] -= row[j] / inverse[0, 0] * inverse[0]
                row[j] = 0.0
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_the_update_is_the_surgeons_for_any_mask_and_block(tiny, block):
    weight, moment, _ = tiny
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    found = sparse.sparsegpt(weight, moment, 1.0, mask=mask, block=block, damping=1e-9)
    torch.testing.assert_close(found, surgeon(weight, moment, mask), atol=1e-6, rtol=1e-6)
    assert torch.equal(found != 0, mask)


def test_the_last_column_left_alone_takes_the_least_squares_answer(tiny):
    weight, moment, inputs = tiny
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[:, -1] = True
    found = sparse.sparsegpt(weight, moment, 1.0, mask=mask, damping=1e-9)
    best = torch.linalg.lstsq(inputs[:, -1:], inputs @ weight.T).solution
    torch.testing.assert_close(found[:, -1], best[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("block", [2, 7])
def test_each_block_loses_its_smallest_saliencies(tiny, block):
    weight, moment, _ = tiny
    found, current = sparse.sparsegpt(weight, moment, 0.4, block=block, damping=1e-9), weight.clone()
    for start in range(0, 7, block):
        end = min(start + block, 7)
        before = current[:, start:end]
        diagonals = torch.tensor([torch.linalg.inv(moment[j:, j:])[0, 0] for j in range(start, end)])
        saliency = before.square() / diagonals
        count = int(0.4 * saliency.numel())
        staying = saliency.flatten().argsort(descending=True)[:count]
        mask = torch.zeros(saliency.numel(), dtype=torch.bool).index_fill(0, staying, True).view(saliency.shape)
        assert torch.equal(found[:, start:end] != 0, mask)
        whole = torch.ones_like(weight, dtype=torch.bool)
        whole[:, start:end] = mask
        current = surgeon(current, moment, whole)
    torch.testing.assert_close(found, current, atol=1e-5, rtol=1e-5)


def test_it_is_closer_than_zeros_by_magnitude(tiny):
    weight, moment, inputs = tiny
    found = sparse.sparsegpt(weight, moment, 0.5)
    by_size = torch.where(weight.abs() > weight.abs().flatten().kthvalue(18).values, weight, 0.0)
    assert int(found.count_nonzero()) == int(by_size.count_nonzero()) == 17
    errors = [float((inputs @ (new - weight).T).square().sum()) for new in (found, by_size)]
    assert errors[0] < 0.7 * errors[1]
    torch.testing.assert_close(sparse.sparsegpt(weight, moment, 1.0), weight)


def test_inputs_that_are_always_zero_get_no_weight(tiny):
    weight, moment, _ = tiny
    moment[2] = moment[:, 2] = 0.0
    found = sparse.sparsegpt(weight, moment, 0.8)
    assert torch.isfinite(found).all() and not found[:, 2].any()


def test_a_network_is_pruned_layer_by_layer():
    model, images = mlp((12, 10, 10, 4)), torch.randn(80, 12, generator=torch.Generator().manual_seed(1))
    read = profile(model, images, dense=["4"])
    new = sparse.pruned(read, 0.5)
    for name in ("0", "2", "4"):  # the classifier, too
        weight = new.get_submodule(name).weight
        assert int(weight.count_nonzero()) == weight.numel() // 2
        assert torch.equal(new.get_submodule(name).bias, model.get_submodule(name).bias)
    assert model.get_submodule("0").weight.count_nonzero() == 120  # left as it was
    one = sparse.pruned(read, {"2": 0.3})
    assert one.get_submodule("2").weight.count_nonzero() == 30 and one.get_submodule("0").weight.count_nonzero() == 120
    with pytest.raises(ValueError, match="there is no layer '1' to prune; there are 0, 2, 4"):
        sparse.pruned(read, {"1": 0.5})


def test_groups_of_a_convolution_have_moments_of_their_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3)).eval()
    images = torch.randn(40, 4, 5, 5)
    new = sparse.pruned(profile(model, images), {"0": 0.5})
    assert new[0].weight.count_nonzero() == 2 * int(0.5 * 54)
    with torch.no_grad():
        error = (new(images) - model(images)).square().mean() / model(images).square().mean()
        cut = replaced_by_magnitude(model)
        assert error < (cut(images) - model(images)).square().mean() / model(images).square().mean()


def replaced_by_magnitude(model):
    new = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3)).eval()
    new.load_state_dict(model.state_dict())
    weight = new[0].weight.data
    weight[weight.abs() <= weight.abs().flatten().kthvalue(54).values] = 0.0
    return new


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"density": 0.0}, "density=0.0 is not a share"),
        ({"moment": torch.eye(4)}, "a moment of shape .4, 4. does not fit weights with 7 inputs"),
        ({"mask": torch.ones(2, 7, dtype=torch.bool)}, "a mask of shape .2, 7. does not fit weights of shape .5, 7."),
        ({"weight": torch.full((5, 7), float("nan"))}, "the weights hold NaN"),
        ({"damping": 0}, "damping=0 is not a number above 0"),
        ({"block": 0}, "block=0 is not a whole number"),
    ],
)
def test_bad_input_is_named(tiny, change, sentence):
    given = {"weight": tiny[0], "moment": tiny[1], "density": 0.5} | change
    with pytest.raises(ValueError, match=sentence):
        sparse.sparsegpt(**given)
