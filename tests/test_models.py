"""Networks by name and their files: what is saved is what is loaded, and a bad file is refused in words."""

import hashlib
import json
import urllib.error

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_utils import paths
from lowrank_utils.lab import checkpoints, models, score
from lowrank_utils.network import modules

ABOUT = {"network": "lenet300", "input_shape": [1, 8, 8], "classes": 10, "seed": 3}


@pytest.fixture
def network():
    return models.build("lenet300", (1, 8, 8), 10, seed=3)


@pytest.fixture
def stored(network, tmp_path):
    checkpoints.save(network, tmp_path / "net.safetensors", ABOUT)
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize(
    "name, shape, classes, sizes",
    [("lenet300", (1, 28, 28), 10, (784, 300, 100, 10)), ("mlp", (3, 32, 32), 100, (3072, 1024, 512, 100))],
)
def test_layers_and_their_shapes(name, shape, classes, sizes):
    model = models.build(name, shape, classes)
    assert [n for n, _ in model.named_children()] == ["flatten", "fc1", "relu1", "fc2", "relu2", "fc3"]
    weights = [model.fc1.weight, model.fc2.weight, model.fc3.weight]
    assert [tuple(w.shape) for w in weights] == list(zip(sizes[1:], sizes))
    assert all(w.dtype == torch.float32 for w in weights)


def test_the_seed_alone_decides_the_weights_and_the_global_generator_is_untouched():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = models.build("lenet300", (1, 8, 8), 10, seed=1).fc1.weight
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    assert torch.equal(first, models.build("lenet300", (1, 8, 8), 10, seed=1).fc1.weight)
    assert not torch.equal(first, models.build("lenet300", (1, 8, 8), 10, seed=2).fc1.weight)


@pytest.mark.parametrize(
    "name, shape, classes, said",
    [
        ("resnet99", (1, 8, 8), 10, "unknown network 'resnet99'; known: lenet300, mlp"),
        ("torchvision/resnet99", (3, 64, 64), 10, "unknown network 'torchvision/resnet99'"),
        ("torchvision/googlenet", (3, 64, 64), 10, "unknown network 'torchvision/googlenet'"),
        ("vgg_small", (1, 7, 28), 10, r"vgg_small needs images of at least 8 x 8 pixels, not \(1, 7, 28\)"),
        ("vgg_small", (784,), 10, r"vgg_small needs images of at least 8 x 8 pixels, not \(784,\)"),
        ("vgg16", (1, 28, 28), 10, r"vgg16 needs images of at least 32 x 32 pixels, not \(1, 28, 28\)"),
        ("resnet20", (3, 3, 3), 10, r"resnet20 needs images of at least 4 x 4 pixels, not \(3, 3, 3\)"),
        ("torchvision/resnet18", (1, 64, 64), 10, r"resnet18 needs colour images, .*, not \(1, 64, 64\)"),
        ("torchvision/alexnet", (3, 32, 32), 10, r"alexnet cannot take images of 32 x 32 pixels \(.*\); 224 x 224"),
        ("mlp", (0, 8, 8), 10, r"input_shape=\(0, 8, 8\) is not"),
        ("mlp", 64, 10, "input_shape=64 is not"),
        ("mlp", (1, 8, 8), 1, "classes=1 is not"),
        ("mlp", (1, 8, 8), 10.0, r"classes=10\.0 is not"),
    ],
)
def test_bad_networks_are_refused(name, shape, classes, said):
    with pytest.raises(ValueError, match=said):
        models.build(name, shape, classes)


def test_saved_and_loaded_is_the_same_network(network, stored):
    again, told = checkpoints.load(stored, (1, 8, 8), 10)
    assert told == {**ABOUT, "dtype": "float32"}
    assert not again.training and all(p.requires_grad for p in again.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_half_precision_file_is_half_as_large_and_loads_as_float32(network, stored, tmp_path):
    half = tmp_path / "half.safetensors"
    checkpoints.save(network, half, ABOUT, dtype="float16")
    assert 0.45 < half.stat().st_size / stored.stat().st_size < 0.55
    again, told = checkpoints.load(half)
    assert told["dtype"] == "float16" and again.fc1.weight.dtype == torch.float32
    assert torch.equal(again.fc1.weight, network.fc1.weight.half().float())


def test_whole_numbers_in_a_network_stay_whole_numbers(tmp_path):
    checkpoints.save(nn.BatchNorm1d(3), tmp_path / "norm.safetensors", ABOUT, dtype="float16")
    kept = load_file(tmp_path / "norm.safetensors")
    assert kept["num_batches_tracked"].dtype == torch.int64 and kept["weight"].dtype == torch.float16


def test_save_refuses_and_leaves_what_was_there(network, stored):
    before = stored.read_bytes()
    with pytest.raises(ValueError, match="must name classes"):
        checkpoints.save(network, stored, {"network": "lenet300", "input_shape": [1, 8, 8]})
    with pytest.raises(ValueError, match="dtype='int8' is not one"):
        checkpoints.save(network, stored, ABOUT, dtype="int8")
    with torch.no_grad():
        network.fc2.bias[0] = 70000
    with pytest.raises(ValueError, match="fc2.bias holds weights above 65504"):
        checkpoints.save(network, stored, ABOUT, dtype="float16")
    with torch.no_grad():
        network.fc2.bias[0] = float("nan")
    with pytest.raises(ValueError, match="fc2.bias holds NaN"):
        checkpoints.save(network, stored, ABOUT)
    assert stored.read_bytes() == before
    assert [p.name for p in stored.parent.iterdir()] == [stored.name]


def test_a_failure_while_writing_leaves_no_file(network, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(network, tmp_path / "net.safetensors", ABOUT)
    assert not list(tmp_path.iterdir())


def test_missing_file_says_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*no.safetensors; notebook 01"):
        checkpoints.load(tmp_path / "no.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 100, 50_000])
def test_truncated_files_are_refused(stored, kept):
    stored.write_bytes(stored.read_bytes()[:kept])
    refused_as_damaged(stored)


def test_files_of_another_kind_are_refused(stored):
    stored.write_bytes(b"x" * 100)
    refused_as_damaged(stored)


def refused_as_damaged(stored):
    with pytest.raises(ValueError, match="is damaged or no safetensors file") as refusal:
        checkpoints.load(stored)
    assert "\n" not in str(refusal.value)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        checkpoints.load(tmp_path)


def test_other_shapes_than_asked_for_are_refused(stored):
    with pytest.raises(ValueError, match=r"is for input_shape \[1, 8, 8\], not \(1, 28, 28\)"):
        checkpoints.load(stored, input_shape=(1, 28, 28))
    with pytest.raises(ValueError, match="is for classes 10, not 100"):
        checkpoints.load(stored, classes=100)


def rewrite(path, tensors=None, **changed):
    held = load_file(path) if tensors is None else tensors
    about = {k: json.dumps(v) for k, v in (ABOUT | changed).items() if v is not None}
    save_file(held, path, about)


def test_unknown_network_in_a_file_is_refused(stored):
    rewrite(stored, network="alexnet")  # torchvision's goes by torchvision/alexnet
    with pytest.raises(ValueError, match="net.safetensors: unknown network 'alexnet'"):
        checkpoints.load(stored)


def test_a_file_without_its_story_is_refused(stored):
    rewrite(stored, network=None)
    with pytest.raises(ValueError, match="does not say its network"):
        checkpoints.load(stored)


def test_tensors_that_do_not_fit_are_named(stored):
    rewrite(stored, {**load_file(stored), "fc2.weight": torch.zeros(100, 299)})
    with pytest.raises(ValueError, match=r"fc2.weight has shape \(100, 299\) where \(100, 300\) belongs"):
        checkpoints.load(stored)
    tensors = load_file(stored) | {"fc2.weight": torch.zeros(100, 300)}
    del tensors["fc3.bias"]
    rewrite(stored, tensors)
    with pytest.raises(ValueError, match=r"fc3.bias has shape None where \(10,\) belongs"):
        checkpoints.load(stored)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(stored, bad):
    tensors = load_file(stored)
    tensors["fc1.weight"][4, 5] = bad
    rewrite(stored, tensors)
    with pytest.raises(ValueError, match="fc1.weight holds NaN or infinite values"):
        checkpoints.load(stored)


def test_published_place():
    assert checkpoints.published_path("mnist", "mlp", 2) == paths.CHECKPOINTS / "mnist-mlp-seed2.safetensors"
    inner = checkpoints.published_path("mnist", "torchvision/vgg16")
    assert inner == paths.CHECKPOINTS / "mnist-torchvision-vgg16-seed0.safetensors"


def test_evaluating_puts_every_module_back_as_it_was():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()  # a frozen batch norm in a network that trains
    with pytest.raises(RuntimeError, match="stop"), modules.evaluating(model):  # noqa: PT012
        assert not any(m.training for m in model.modules()) and not torch.is_grad_enabled()
        raise RuntimeError("stop")
    assert [m.training for m in model.modules()] == [True, True, False] and torch.is_grad_enabled()


def test_every_published_checkpoint_loads_and_scores_as_it_says():
    shipped = sorted(paths.CHECKPOINTS.glob("*.safetensors"))
    assert sum(path.stat().st_size for path in shipped) < 20e6
    for path in shipped:
        _, told = checkpoints.load(path)
        assert checkpoints.published_path(told["dataset"], told["network"], told["seed"]) == path
        assert {"data_fingerprint", "recipe", "versions", "scores", "threads", "dtype"} <= told.keys()
        assert 0 < told["scores"]["test"]["accuracy"] < 1


def test_lenet5_has_the_published_layers():
    network = models.build("lenet5", (1, 28, 28), 10)
    assert sum(p.numel() for p in network.parameters()) == 61706  # LeCun et al. 1998, with full connections in conv2
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert models.build("lenet5", (3, 32, 32), 100)(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
    with pytest.raises(ValueError, match=r"lenet5 needs images of at least 12 x 12 pixels, not \(1, 8, 8\)"):
        models.build("lenet5", (1, 8, 8), 10)


# networks of convolutions


def convolution_macs(*layers):
    """By hand: filters x channels x 9 x positions, summed."""
    return sum(filters * channels * 9 * side**2 for channels, filters, side in layers)


def test_vgg_small_by_hand():
    network = models.build("vgg_small", (1, 28, 28), 10)
    names = [name for name, _ in network.named_children()]
    assert names[:7] == ["conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "pool1"]
    assert names[-6:] == ["relu6", "pool3", "flatten", "fc1", "relu7", "fc2"]
    convolutions = convolution_macs((1, 16, 28), (16, 16, 28), (16, 32, 14), (32, 32, 14), (32, 128, 7), (128, 128, 7))
    assert score.macs(network, (1, 28, 28)) == convolutions + 9 * 128 * 128 + 1280 == 13_809_152
    assert score.parameters(network) == 350_170
    for shape in ((1, 8, 8), (3, 32, 32), (2, 9, 30)):
        assert models.build("vgg_small", shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


def test_vgg16_is_configuration_d():
    network = models.build("vgg16", (3, 32, 32), 10)
    widths = [m.out_channels for m in network if isinstance(m, nn.Conv2d)]
    assert widths == [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network) == 13
    assert [tuple(m.weight.shape) for m in network if isinstance(m, nn.Linear)] == [(10, 512)]
    # batch norms have two parameters a channel, of 4224 in all; pooling halves the side after 2, 4, 7, 10 convolutions
    sides = [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]
    convolutions = list(zip([3, *widths], widths, sides))
    weights = convolution_macs(*((channels, filters, 1) for channels, filters, _ in convolutions))
    assert score.parameters(network) == weights + 2 * 4224 + 5130 == 14_724_042
    assert score.macs(network, (3, 32, 32)) == convolution_macs(*convolutions) + 5120


@pytest.mark.parametrize("name, parameters, blocks", [("resnet20", 269_722, 3), ("resnet56", 853_018, 9)])
def test_residual_networks_have_the_published_size(name, parameters, blocks):
    network = models.build(name, (3, 32, 32), 10)
    assert score.parameters(network) == parameters  # 0.27 and 0.85 million in He et al. 2016, table 6
    stages = [(3, 16, 32), (16, 32, 16), (32, 64, 8)] + blocks * [(16, 16, 32)]
    stages += blocks * [(16, 16, 32)] + (2 * blocks - 1) * [(32, 32, 16), (64, 64, 8)]
    assert score.macs(network, (3, 32, 32)) == convolution_macs(*stages) + 640
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_residual_block_subsamples_and_pads_with_zeros():
    block = models.build("resnet20", (3, 32, 32), 10).layer2[0].eval()
    with torch.no_grad():
        block.bn2.weight.zero_()  # the convolutions say nothing: the shortcut alone is left
        x = torch.rand(1, 16, 8, 8)
        y = block(x)
    assert y.shape == (1, 32, 4, 4) and torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


@pytest.mark.parametrize("name", ["vgg_small", "vgg16", "resnet20"])
def test_networks_of_convolutions_can_be_traced(name):
    network = models.build(name, (3, 32, 32), 10).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(network)(x), network(x))


def test_torchvision_networks_by_name():
    network = models.build("torchvision/resnet18", (3, 64, 64), 5, seed=1)
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 5) and network.fc.out_features == 5
    again = models.build("torchvision/resnet18", (3, 64, 64), 5, seed=1)
    assert torch.equal(network.conv1.weight, again.conv1.weight)
    other = models.build("torchvision/squeezenet1_1", (3, 64, 64), 5)  # not on the list, yet torchvision's
    assert other(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def no_network(monkeypatch):
    def refused(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    monkeypatch.setattr("torch.hub.urlopen", refused)


def test_published_weights_of_torchvision(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    no_network(monkeypatch)
    address = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
    with pytest.raises(OSError) as refusal:
        models.pretrained("torchvision/squeezenet1_1")
    place = tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    assert str(refusal.value) == (
        "the weights of torchvision/squeezenet1_1 cannot be fetched (Name or service not known): "
        f"put the file from {address} at {place}"
    )
    place.parent.mkdir(exist_ok=True)
    network = models.build("torchvision/squeezenet1_1", (3, 224, 224), 1000, seed=4)
    torch.save(network.state_dict(), place)
    again, told = models.pretrained("torchvision/squeezenet1_1")
    assert torch.equal(again.classifier[1].weight, network.classifier[1].weight) and not again.training
    assert told["input_shape"] == [3, 224, 224] and told["classes"] == 1000 and told["weights"] == "IMAGENET1K_V1"
    assert told["mean"] == [0.485, 0.456, 0.406] and told["std"] == [0.229, 0.224, 0.225]
    checkpoints.save(again, tmp_path / "kept.safetensors", told)
    assert checkpoints.load(tmp_path / "kept.safetensors")[1]["weights"] == "IMAGENET1K_V1"
    with pytest.raises(ValueError, match="has no weights 'V9'; known: IMAGENET1K_V1"):
        models.pretrained("torchvision/squeezenet1_1", "V9")
    with pytest.raises(ValueError, match="vgg16 is no network of torchvision"):
        models.pretrained("vgg16")


# public networks, from a file like theirs


@pytest.fixture
def theirs():
    """A ResNet-20 whose batch norms are no identity."""
    network = models.build("resnet20", (3, 32, 32), 10, seed=5).train()
    with torch.no_grad():
        network(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return network.eval()


@pytest.fixture
def th(theirs, tmp_path):
    held = {n: v for n, v in theirs.state_dict().items() if not n.endswith("num_batches_tracked")}
    return write_th(tmp_path / "resnet20.th", held)


def write_th(path, held, **more):
    torch.save({"best_prec1": 10.0, "state_dict": {f"module.{name}": v for name, v in held.items()}, **more}, path)
    return path


def test_public_weights_are_read_as_they_are(theirs, th):
    network, told = checkpoints.load_public(th)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x), theirs(x))
    assert not network.training and told["network"] == "resnet20" and told["source"] == "resnet20.th"
    assert told["input_shape"] == [3, 32, 32] and told["classes"] == 10
    assert told["sha256"] == hashlib.sha256(th.read_bytes()).hexdigest()


def test_images_on_another_scale_give_the_same_outputs_and_the_scale_is_kept(theirs, th, tmp_path):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    pixels = torch.rand(4, 3, 32, 32)

    def scaled(mean, std):
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    network, told = checkpoints.load_public(th, mean, std)
    with torch.no_grad():
        expected = theirs(scaled((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        assert (network(scaled(mean, std)) - expected).abs().max() < 1e-5
        assert (theirs(scaled(mean, std)) - expected).abs().max() > 1e-2
        assert (torch.fx.symbolic_trace(network)(scaled(mean, std)) - expected).abs().max() < 1e-5
    assert score.parameters(network) == 269_722 and score.macs(network, (3, 32, 32)) == score.macs(theirs, (3, 32, 32))
    checkpoints.save(network, tmp_path / "kept.safetensors", told)
    again, _ = checkpoints.load(tmp_path / "kept.safetensors", (3, 32, 32), 10)
    network.train(), again.train()  # the scale is no batch norm: training leaves it alone
    with torch.no_grad():
        assert torch.equal(again(scaled(mean, std)), network(scaled(mean, std)))


@pytest.mark.parametrize("given", [{"mean": (0.4, 0.5, 0.6)}, {"std": (0.2, 0.25, 0.3)}])
def test_half_a_scale_is_refused(th, given):
    with pytest.raises(ValueError, match="mean and std of the images belong together; give both, or neither"):
        checkpoints.load_public(th, **given)


def test_the_file_says_how_deep_the_network_is(tmp_path):
    held = models.build("resnet32", (3, 32, 32), 100).state_dict()
    network, told = checkpoints.load_public(write_th(tmp_path / "some.th", held), classes=100)
    assert told["network"] == "resnet32" and len(network.layer2) == 5 and network.linear.out_features == 100
    with pytest.raises(ValueError, match="some.th is for classes 100, not 10"):
        checkpoints.load_public(tmp_path / "some.th", classes=10)
    with pytest.raises(ValueError, match=r"some.th is for input_shape \[3, 32, 32\], not \(1, 28, 28\)"):
        checkpoints.load_public(tmp_path / "some.th", input_shape=(1, 28, 28))


@pytest.mark.parametrize("kept", [0, 5, 100, 100_000])
def test_truncated_public_files_are_refused(th, kept):
    th.write_bytes(th.read_bytes()[:kept])
    with pytest.raises(ValueError, match="resnet20.th is damaged or no file of PyTorch weights: ") as refusal:
        checkpoints.load_public(th)
    assert "\n" not in str(refusal.value)


def test_other_content_is_refused(theirs, tmp_path):
    path = tmp_path / "other.th"
    for content in ([1, 2], {"state_dict": [1]}, {"state_dict": {"conv1.weight": 3}}, {"a": torch.zeros(1)}, {}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="other.th holds no CIFAR ResNet .* known: resnet20, resnet32"):
            checkpoints.load_public(path)
    torch.save({"state_dict": theirs}, path)  # a whole pickled network could run code
    with pytest.raises(ValueError, match="other.th is damaged or no file of PyTorch weights"):
        checkpoints.load_public(path)
    held = theirs.state_dict()
    write_th(path, {**held, "layer2.0.conv1.weight": torch.zeros(32, 16, 1, 1)})
    with pytest.raises(ValueError, match=r"is no resnet20: layer2.0.conv1.weight has shape \(32, 16, 1, 1\)"):
        checkpoints.load_public(path)
    write_th(path, {name: value for name, value in held.items() if name != "bn1.bias"})
    with pytest.raises(ValueError, match="is no resnet20: bn1.bias has shape None"):
        checkpoints.load_public(path)
    write_th(path, held | {"bn1.bias": torch.full((16,), torch.nan)})
    with pytest.raises(ValueError, match="other.th: bn1.bias holds NaN"):
        checkpoints.load_public(path)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*none.th; `checkpoints.fetch_public`"):
        checkpoints.load_public(tmp_path / "none.th")


def test_public_weights_are_fetched_once_and_checked(th, tmp_path, monkeypatch):
    digest = hashlib.sha256(th.read_bytes()).hexdigest()
    name = f"resnet20-{digest[:8]}.th"
    monkeypatch.setattr(checkpoints, "PUBLIC", {"resnet20": digest})
    monkeypatch.setattr(checkpoints, "PUBLIC_ADDRESS", tmp_path.as_uri())
    th.rename(tmp_path / name)
    path = checkpoints.fetch_public("resnet20", tmp_path / "local")
    assert path == tmp_path / "local" / name and path.read_bytes() == (tmp_path / name).read_bytes()
    no_network(monkeypatch)
    assert checkpoints.fetch_public("resnet20", tmp_path / "local") == path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"is not the published resnet20: .*, not {digest[:8]}; delete it"):
        checkpoints.fetch_public("resnet20", tmp_path / "local")
    with pytest.raises(ValueError, match="there are no public weights for 'mlp'; there are for resnet20"):
        checkpoints.fetch_public("mlp")


def test_public_weights_that_cannot_be_fetched(tmp_path, monkeypatch):
    no_network(monkeypatch)
    with pytest.raises(OSError) as refusal:
        checkpoints.fetch_public("resnet56", tmp_path)
    said = r"resnet56-4bfd9763.th cannot be downloaded (Name or service not known): put the file from https://github"
    assert str(refusal.value).startswith(said) and str(refusal.value).endswith(f"at {tmp_path}/resnet56-4bfd9763.th")
    assert not list(tmp_path.iterdir())


def test_other_bytes_than_were_published_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PUBLIC_ADDRESS", tmp_path.as_uri())
    (tmp_path / "resnet20-12fca82f.th").write_bytes(b"an error page")
    with pytest.raises(ValueError, match="is not the published resnet20"):
        checkpoints.fetch_public("resnet20", tmp_path / "local")
    assert not (tmp_path / "local").exists()
