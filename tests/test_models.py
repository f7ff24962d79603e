"""Networks by name and their files: what is saved is what is loaded, and a bad file is refused in words."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_utils import models, paths

ABOUT = {"network": "lenet300", "input_shape": [1, 8, 8], "classes": 10, "seed": 3}


@pytest.fixture
def network():
    return models.build("lenet300", (1, 8, 8), 10, seed=3)


@pytest.fixture
def stored(network, tmp_path):
    models.save(network, tmp_path / "net.safetensors", ABOUT)
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
    again, told = models.load(stored, (1, 8, 8), 10)
    assert told == {**ABOUT, "dtype": "float32"}
    assert not again.training and all(p.requires_grad for p in again.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_half_precision_file_is_half_as_large_and_loads_as_float32(network, stored, tmp_path):
    half = tmp_path / "half.safetensors"
    models.save(network, half, ABOUT, dtype="float16")
    assert 0.45 < half.stat().st_size / stored.stat().st_size < 0.55
    again, told = models.load(half)
    assert told["dtype"] == "float16" and again.fc1.weight.dtype == torch.float32
    assert torch.equal(again.fc1.weight, network.fc1.weight.half().float())


def test_whole_numbers_in_a_network_stay_whole_numbers(tmp_path):
    models.save(nn.BatchNorm1d(3), tmp_path / "norm.safetensors", ABOUT, dtype="float16")
    kept = load_file(tmp_path / "norm.safetensors")
    assert kept["num_batches_tracked"].dtype == torch.int64 and kept["weight"].dtype == torch.float16


def test_save_refuses_and_leaves_what_was_there(network, stored):
    before = stored.read_bytes()
    with pytest.raises(ValueError, match="must name classes"):
        models.save(network, stored, {"network": "lenet300", "input_shape": [1, 8, 8]})
    with pytest.raises(ValueError, match="dtype='int8' is not one"):
        models.save(network, stored, ABOUT, dtype="int8")
    with torch.no_grad():
        network.fc2.bias[0] = 70000
    with pytest.raises(ValueError, match="fc2.bias holds weights above 65504"):
        models.save(network, stored, ABOUT, dtype="float16")
    with torch.no_grad():
        network.fc2.bias[0] = float("nan")
    with pytest.raises(ValueError, match="fc2.bias holds NaN"):
        models.save(network, stored, ABOUT)
    assert stored.read_bytes() == before
    assert [p.name for p in stored.parent.iterdir()] == [stored.name]


def test_a_failure_while_writing_leaves_no_file(network, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(models, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        models.save(network, tmp_path / "net.safetensors", ABOUT)
    assert not list(tmp_path.iterdir())


def test_missing_file_says_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*no.safetensors; notebook 01"):
        models.load(tmp_path / "no.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 100, 50_000])
def test_truncated_files_are_refused(stored, kept):
    stored.write_bytes(stored.read_bytes()[:kept])
    refused_as_damaged(stored)


def test_files_of_another_kind_are_refused(stored):
    stored.write_bytes(b"x" * 100)
    refused_as_damaged(stored)


def refused_as_damaged(stored):
    with pytest.raises(ValueError, match="is damaged or no safetensors file") as refusal:
        models.load(stored)
    assert "\n" not in str(refusal.value)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        models.load(tmp_path)


def test_other_shapes_than_asked_for_are_refused(stored):
    with pytest.raises(ValueError, match=r"is for input_shape \[1, 8, 8\], not \(1, 28, 28\)"):
        models.load(stored, input_shape=(1, 28, 28))
    with pytest.raises(ValueError, match="is for classes 10, not 100"):
        models.load(stored, classes=100)


def rewrite(path, tensors=None, **changed):
    held = load_file(path) if tensors is None else tensors
    about = {k: json.dumps(v) for k, v in (ABOUT | changed).items() if v is not None}
    save_file(held, path, about)


def test_unknown_network_in_a_file_is_refused(stored):
    rewrite(stored, network="alexnet")
    with pytest.raises(ValueError, match="net.safetensors: unknown network 'alexnet'"):
        models.load(stored)


def test_a_file_without_its_story_is_refused(stored):
    rewrite(stored, network=None)
    with pytest.raises(ValueError, match="does not say its network"):
        models.load(stored)


def test_tensors_that_do_not_fit_are_named(stored):
    rewrite(stored, {**load_file(stored), "fc2.weight": torch.zeros(100, 299)})
    with pytest.raises(ValueError, match=r"fc2.weight has shape \(100, 299\) where \(100, 300\) belongs"):
        models.load(stored)
    tensors = load_file(stored) | {"fc2.weight": torch.zeros(100, 300)}
    del tensors["fc3.bias"]
    rewrite(stored, tensors)
    with pytest.raises(ValueError, match=r"fc3.bias has shape None where \(10,\) belongs"):
        models.load(stored)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(stored, bad):
    tensors = load_file(stored)
    tensors["fc1.weight"][4, 5] = bad
    rewrite(stored, tensors)
    with pytest.raises(ValueError, match="fc1.weight holds NaN or infinite values"):
        models.load(stored)


def test_published_place():
    assert models.published("mnist", "mlp", 2) == paths.CHECKPOINTS / "mnist-mlp-seed2.safetensors"


def test_evaluating_puts_every_module_back_as_it_was():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()  # a frozen batch norm in a network that trains
    with pytest.raises(RuntimeError, match="stop"):
        with models.evaluating(model):
            assert not any(m.training for m in model.modules()) and not torch.is_grad_enabled()
            raise RuntimeError("stop")
    assert [m.training for m in model.modules()] == [True, True, False] and torch.is_grad_enabled()


def test_every_published_checkpoint_loads_and_scores_as_it_says():
    shipped = sorted(paths.CHECKPOINTS.glob("*.safetensors"))
    assert sum(path.stat().st_size for path in shipped) < 20e6
    for path in shipped:
        _, told = models.load(path)
        assert models.published(told["dataset"], told["network"], told["seed"]) == path
        assert {"data_fingerprint", "recipe", "versions", "scores", "threads", "dtype"} <= told.keys()
        assert 0 < told["scores"]["test"]["accuracy"] < 1


def test_lenet5_has_the_published_layers():
    network = models.build("lenet5", (1, 28, 28), 10)
    assert sum(p.numel() for p in network.parameters()) == 61706  # LeCun et al. 1998, with full connections in conv2
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert models.build("lenet5", (3, 32, 32), 100)(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
    with pytest.raises(ValueError, match=r"lenet5 needs images of at least 12 x 12 pixels, not \(1, 8, 8\)"):
        models.build("lenet5", (1, 8, 8), 10)
