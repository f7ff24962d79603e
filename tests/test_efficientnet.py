"""EfficientNet-Lite0: its padding, its size, and weights that are read in order or refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lowrank_utils import paths
from lowrank_utils.lab import data, efficientnet, imagenet_sample, models, score

WEIGHTS = paths.DATA / efficientnet.NAME
IMAGES = paths.DATA / f"{imagenet_sample.NAME}.npz"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return efficientnet.build((3, 64, 48), 7).eval()


def tensorflow_convolution(x, weight, stride, groups=1):
    """The definition of "same": ceil(side / stride) outputs, an odd zero at the end."""
    kernel, pads = weight.shape[-1], []
    for side in (x.shape[3], x.shape[2]):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def test_parameters_and_work_are_those_of_the_published_network():
    network = models.build("efficientnet-lite0", (3, 224, 224), 1000)
    assert score.parameters(network) == 4_652_008
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 49 and sum(layer.kernel_size == (1, 1) for layer in convolutions) == 32
    assert score.macs(network, (3, 224, 224)) == 385_187_552


@settings(max_examples=15, deadline=None)
@given(st.integers(32, 70), st.integers(32, 70))
def test_every_convolution_pads_as_tensorflow_does(height, width):
    network = efficientnet.build((3, height, width), 5).eval()
    seen = {}

    def keep(module, inputs, output):
        seen[module] = (inputs[0], output)

    strided = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ZeroPad2d))]
    for module in strided:
        module.register_forward_hook(keep)
    with torch.no_grad():
        network(torch.randn(1, 3, height, width))
    before = None
    for module in strided:
        if isinstance(module, nn.ZeroPad2d):
            before = seen[module][0]
            continue
        x = seen[module][0] if before is None else before
        expected = tensorflow_convolution(x, module.weight, module.stride[0], module.groups)
        assert torch.allclose(seen[module][1], expected, atol=1e-5)
        before = None


def test_shortcuts_are_where_nothing_changes_shape(network):
    blocks = [block for name, stage in network.named_children() if name.startswith("stage") for block in stage]
    assert len(blocks) == 16 and sum(block.shortcut for block in blocks) == 9
    with torch.no_grad():
        block = next(block for block in blocks if block.shortcut)
        block.bn2.weight.zero_()
        block.bn2.bias.zero_()
        x = torch.randn(2, block.project.out_channels, 8, 8)
        assert torch.equal(block(x), x)


def test_it_is_traced(network):
    x = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(network)(x), network(x))


def renamed(network):
    return {
        f"theirs.{i}.{name.rpartition('.')[2]}": v.clone() for i, (name, v) in enumerate(network.state_dict().items())
    }


def test_weights_under_other_names_are_read_in_order(network):
    other = efficientnet.build((3, 64, 48), 7).eval()
    efficientnet.fill(other, renamed(network), "some.pth")
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def dropped(held):
    held.pop(next(iter(held)))


def swapped(held):
    names = list(held)
    at = next(i for i, n in enumerate(names) if n.endswith("running_mean"))
    values = [(n, held[n]) for n in names]
    values[at], values[at + 1] = values[at + 1], values[at]
    held.clear()
    held.update(values)


def reshaped(held):
    name = next(iter(held))
    held[name] = held[name][:, :, :2]


def poisoned(held):
    held[next(iter(held))][0] = float("nan")


@pytest.mark.parametrize(
    "damage, said",
    [
        (dropped, "some.pth holds 295 tensors, and efficientnet-lite0 has 296"),
        (swapped, r"some.pth has theirs.4.running_var of shape \(32,\) where efficientnet-lite0 has bn1.running_mean"),
        (reshaped, r"some.pth has theirs.0.weight of shape \(32, 3, 2, 3\) where .* has conv1.weight of shape \(32, 3, 3, 3\)"),
        (poisoned, "some.pth holds NaN or infinite values in theirs.0.weight"),
    ],
)  # fmt: skip
def test_other_weights_are_refused_and_nothing_is_changed(network, damage, said):
    other = efficientnet.build((3, 64, 48), 7)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    held = renamed(network)
    damage(held)
    with pytest.raises(ValueError, match=said):
        efficientnet.fill(other, held, "some.pth")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_small_images_and_unknown_weights_are_refused():
    with pytest.raises(
        ValueError, match=r"efficientnet-lite0 needs images of at least 32 x 32 pixels, not \(3, 31, 40\)"
    ):
        models.build("efficientnet-lite0", (3, 31, 40), 10)
    with pytest.raises(ValueError, match="efficientnet-lite0 has no weights 'V1'; known: DEFAULT"):
        models.pretrained("efficientnet-lite0", "V1")


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.exists() or not IMAGES.exists(), reason="its weights or images are not below data")
def test_the_published_weights_know_the_images():
    network, told = models.pretrained("efficientnet-lite0")
    held = data.load(imagenet_sample.NAME).test
    pixels = torch.from_numpy(held.images[:100]).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        found = torch.cat([network((batch - 127) / 128) for batch in pixels.split(25)]).argmax(1)
    assert (found.numpy() == held.labels[:100]).mean() > 0.85
    assert told["classes"] == 1000 and not network.training
    scale = [(127 / 255 - mean) / std for mean, std in zip(told["mean"], told["std"])]
    assert scale == pytest.approx([0, 0, 0]) and told["std"] == pytest.approx([128 / 255] * 3)
