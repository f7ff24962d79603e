"""Test images made worse: what each corruption does, and that a seed decides it."""

import pytest
import torch
from torch import nn

from lowrank_utils.lab import corruptions, data


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", corruptions.NAMES)
def test_a_seed_decides_and_severity_grows(pixels, name):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    found = corruptions.corrupted(pixels, name, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)  # of torch's global state nothing is taken
    torch.manual_seed(6)
    assert torch.equal(corruptions.corrupted(pixels, name, seed=3), found)
    assert found.shape == pixels.shape and found.min() >= 0 and found.max() <= 1
    away = [float((corruptions.corrupted(pixels, name, s) - pixels).square().mean()) for s in range(1, 6)]
    assert away[0] > 0 and away == sorted(away)
    if name in ("noise", "rotation", "occlusion"):
        assert not torch.equal(corruptions.corrupted(pixels, name, seed=4), found)


@pytest.mark.parametrize("name", corruptions.NAMES)
def test_standardised_images_are_corrupted_as_their_pixels(pixels, name):
    mean, std = (0.2, 0.4, 0.6), (0.1, 0.3, 0.5)
    m, s = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    found = corruptions.corrupted((pixels - m) / s, name, mean=mean, std=std)
    assert torch.allclose(found * s + m, corruptions.corrupted(pixels, name), atol=1e-5)
    bytes_ = (255 * pixels).round().to(torch.uint8)
    assert torch.allclose(corruptions.corrupted(bytes_, name) / 255, corruptions.corrupted(bytes_ / 255, name))


def test_what_each_does_to_pixels_that_can_be_checked_by_hand():
    grey = torch.full((200, 1, 20, 20), 0.5)
    noisy = corruptions.corrupted(grey, "noise", 3)
    assert float((noisy - grey).std()) == pytest.approx(0.12, rel=0.02)
    assert torch.allclose(corruptions.corrupted(grey, "blur", 5), grey, atol=1e-6)
    assert torch.allclose(corruptions.corrupted(grey, "contrast", 5), grey, atol=1e-6)
    halves = torch.cat([torch.zeros(1, 1, 8, 4), torch.ones(1, 1, 8, 4)], 3)
    weak = corruptions.corrupted(halves, "contrast", 2)
    assert weak.unique().tolist() == pytest.approx([0.25, 0.75])  # half of the contrast, about the mean
    covered = corruptions.corrupted(grey, "occlusion", 3).eq(0)
    assert set(covered.flatten(1).sum(1).tolist()) == {36}  # 0.3 of 20 pixels is 6
    assert len({tuple(place.nonzero()[0].tolist()) for place in covered}) > 20
    dot = torch.zeros(100, 1, 21, 21)
    dot[:, :, 2, 10] = 1.0  # straight above the centre
    columns = corruptions.corrupted(dot, "rotation", 5).sum((1, 2)).argmax(1)
    assert set(columns.tolist()) == {6, 14}  # 8 sin(30 degrees) to either side


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "fog"}, "unknown corruption 'fog'; known: noise, blur, contrast, rotation, occlusion"),
        ({"severity": 0}, "severity=0 is not a whole number from 1 to 5"),
        ({"severity": 2.5}, "severity=2.5 is not a whole number from 1 to 5"),
        ({"seed": -1}, "seed=-1 is not a whole number of at least 0"),
        ({"images": torch.zeros(4, 4)}, "images must be a tensor of N x channels x height x width"),
        ({"images": torch.full((1, 1, 4, 4), 2.0)}, "pixels lie outside .0, 1.; pass the mean= and std="),
        ({"images": torch.full((1, 1, 4, 4), float("nan"))}, "pixels lie outside"),
        ({"mean": (0.5,)}, "mean= and std= go together"),
    ],
)
def test_bad_input_is_named(change, sentence):
    given = {"images": torch.zeros(1, 1, 4, 4), "name": "noise"} | change
    with pytest.raises(ValueError, match="^" + sentence):
        corruptions.corrupted(given.pop("images"), given.pop("name"), **given)


def test_a_network_has_a_column_for_each_corruption():
    digits = data.load("digits")
    sets = corruptions.corrupted_sets(digits, limit=60)
    images, labels = digits.tensors("test", 60)
    assert list(sets) == list(corruptions.NAMES)
    assert all(given[0].shape == images.shape and torch.equal(given[1], labels) for given in sets.values())

    class Constant(nn.Module):
        def forward(self, x):
            return torch.eye(10)[torch.full((len(x),), 3)]

    found = corruptions.accuracy_under(Constant(), sets)
    share = float((labels == 3).double().mean())
    assert found == dict.fromkeys([*(f"accuracy_{name}" for name in corruptions.NAMES)], share) | {
        "accuracy_corrupted": pytest.approx(share)
    }
    with pytest.raises(ValueError, match="there are no corrupted images"):
        corruptions.accuracy_under(Constant(), {})
