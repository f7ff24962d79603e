"""What leaves the workbook: files that give the same outputs elsewhere, and a clear sentence for each that would not."""

import copy
import json
import logging
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_utils import paths
from lowrank_utils.factors import replace
from lowrank_utils.lab import checkpoints, export, models, score
from lowrank_utils.network import profile
from lowrank_utils.network.profile import Profile
from lowrank_utils.ranks import rules

SHAPES = {"lenet300": (1, 12, 12), "vgg_small": (1, 16, 16), "resnet20": (3, 16, 16)}


def compressed(name):
    """A network of the papers with random weights and statistics, and what it is at about a quarter."""
    shape = SHAPES[name]
    model, generator = models.build(name, shape, 10), torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    x = torch.randn(40, *shape, generator=generator)
    plan = rules.plan_at_size(profile.read_layers(model, shape), 0.25, rule="fixed", resource="parameters")
    factors = "data-aware" if name == "vgg_small" else "svd"  # its running means then take biases
    return SimpleNamespace(
        name=name, model=model, small=replace.apply_plan(Profile(model, x), plan, factors=factors, resource="parameters").eval(), plan=plan, x=x[:5],
        about={"network": name, "input_shape": shape, "classes": 10},
    )  # fmt: skip


@pytest.fixture(scope="module")
def networks():
    return {name: compressed(name) for name in SHAPES}


@pytest.fixture(scope="module")
def onnx(networks, tmp_path_factory):
    """Each network as an ONNX file, written once: {name: (path, difference)}."""
    folder, made = tmp_path_factory.mktemp("onnx"), {}
    for name, net in networks.items():
        path = folder / f"{name}.onnx"
        made[name] = path, export.to_onnx(net.small, path, net.x)
    assert {p.name for p in folder.iterdir()} == {f"{name}.onnx" for name in networks}
    return made


def outputs(model, x):
    with torch.no_grad():
        return model(x)


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def relative(y, wanted):
    return float((y - wanted).norm() / wanted.norm())


# ---- safetensors


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_saved_is_what_is_loaded(networks, name, tmp_path):
    net = networks[name]
    checkpoints.save_compressed(net.small, tmp_path / "net.safetensors", net.plan, seed=3, **net.about)
    again, told = checkpoints.load_compressed(tmp_path / "net.safetensors")
    assert not again.training and all(p.requires_grad for p in again.parameters())
    assert list(again.state_dict()) == list(net.small.state_dict()) and same(again, net.small.state_dict())
    assert torch.equal(outputs(again, net.x), outputs(net.small, net.x))
    assert relative(outputs(again, net.x), outputs(net.model, net.x)) > 0.01  # not the dense one
    assert told == {**net.about, "input_shape": list(SHAPES[name]), "seed": 3, "plan": net.plan}
    assert score.macs(again, SHAPES[name]) == score.macs(net.small, SHAPES[name])


@pytest.mark.slow
def test_a_new_process_gives_the_same_outputs(networks, tmp_path):
    for name, net in networks.items():
        checkpoints.save_compressed(net.small, tmp_path / f"{name}.safetensors", net.plan, **net.about)
    net = networks["vgg_small"]
    export.exported(net.small, net.x, tmp_path / "traced.pt2")
    save_file({name: net.x for name, net in networks.items()}, tmp_path / "x")
    code = """
import sys, torch
from safetensors.torch import load_file, save_file
x = load_file("x")
y = {"traced": torch.export.load("traced.pt2").module()(x["vgg_small"])}
assert "lowrank_utils" not in sys.modules
from lowrank_utils.lab import checkpoints
y |= {name: checkpoints.load_compressed(f"{name}.safetensors")[0](x[name]) for name in x}
save_file({name: value.detach() for name, value in y.items()}, "y")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "y")
    assert relative(found.pop("traced"), outputs(net.small, net.x)) < 1e-6
    assert found.keys() == networks.keys()
    for name, net in networks.items():
        assert relative(found[name], outputs(net.small, net.x)) < 1e-6, name


def odd():
    """Layers of all the forms that a plan may name."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 12, (1, 3), padding="same"), nn.ReLU(), nn.Conv2d(12, 24, 3, stride=(2, 1), dilation=2, groups=2),
        nn.BatchNorm2d(24), nn.Conv2d(24, 24, 1, bias=False), nn.Conv2d(24, 24, 3, padding=1, padding_mode="reflect"),
        nn.Flatten(), nn.Linear(24 * 2 * 4, 9, bias=False), nn.Linear(9, 9), nn.Linear(9, 4),
    ).eval()  # fmt: skip


def test_the_file_says_what_is_really_there_and_a_reader_brings_the_architecture(tmp_path):
    model, x, path = odd(), torch.randn(3, 4, 8, 8), tmp_path / "net.safetensors"
    with torch.no_grad():
        model[8].weight.zero_()
    plan = {
        "0": ("input", 2), "2": ("spatial", 3), "4": 5, "5": ["channel", 6], "7": 4, "8": 0, "9": 4
    }  # fmt: skip
    small = replace.apply_plan(Profile(model), plan, resource="parameters")
    checkpoints.save_compressed(small, path, plan, original=model)
    mine = copy.deepcopy(model).train()
    with torch.no_grad():
        mine[9].weight.fill_(torch.nan)  # the reader's weights do not matter
    before = copy.deepcopy(mine.state_dict())
    again, told = checkpoints.load_compressed(path, mine)
    held = {"0": ("input", 2), "2": ("spatial", 3), "4": ("channel", 5), "5": ("channel", 6), "7": 4, "8": 1}
    assert told == {"plan": held}
    assert torch.equal(outputs(again, x), outputs(small, x)) and str(again) == str(small) and not again.training
    assert mine.training and torch.equal(mine[2].weight, before["2.weight"]) and type(mine[2]) is nn.Conv2d
    checkpoints.save_compressed(small, path, held)  # nothing to check it by, but for the reader
    assert torch.equal(outputs(checkpoints.load_compressed(path, mine)[0], x), outputs(small, x))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_keep_their_type(networks, kind, tmp_path):
    net = networks["lenet300"]
    small = copy.deepcopy(net.small).to(kind)
    checkpoints.save_compressed(small, tmp_path / "net.safetensors", net.plan, **net.about)
    again = checkpoints.load_compressed(tmp_path / "net.safetensors")[0]
    assert {p.dtype for p in again.parameters()} == {kind} and same(again, small.state_dict())
    assert net.small.fc3.first.weight.dtype == torch.float32


def test_shared_weights_stay_shared(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    small = replace.apply_plan(Profile(model), {"2": 2}, resource="parameters")
    checkpoints.save_compressed(small, tmp_path / "net.safetensors", {"2": 2}, original=model)
    again = checkpoints.load_compressed(tmp_path / "net.safetensors", model)[0]
    assert again[1].weight is again[0].weight and again[1].weight is not model[1].weight
    assert same(again, small.state_dict()) and score.parameters(again) == score.parameters(small)


def test_a_network_for_images_on_another_scale(networks, tmp_path):
    net = networks["resnet20"]
    small = copy.deepcopy(net.small)
    small.normalise = models.Rescale([0.5, 2.0, 1.0], [0.1, 0.0, -1.0])
    checkpoints.save_compressed(small, tmp_path / "net.safetensors", net.plan, **net.about)
    assert torch.equal(
        outputs(checkpoints.load_compressed(tmp_path / "net.safetensors")[0], net.x), outputs(small, net.x)
    )


class Stateful(nn.Linear):
    def get_extra_state(self):
        return {"anything": 1}

    def set_extra_state(self, state):
        pass


def nan_in(model, name):
    model = copy.deepcopy(model)
    model.get_parameter(name).data.view(-1)[0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda net: {"plan": {"fc9": 3}}, "a layer 'fc9' that the network does not have"),
        (lambda net: {"plan": [3]}, r"plan=\[3\] is no plan"),
        (lambda net: {"plan": net.plan | {"fc1": 1}}, "the plan has 1 for layer 'fc1', the network .* \\(None, 2[0-9]\\)"),
        (lambda net: {"plan": net.plan | {"fc1": "2"}}, "the plan has '2' for layer 'fc1'"),
        (lambda net: {"plan": net.plan | {"fc1": ("spatial", net.plan["fc1"])}}, r"the plan has \('spatial', 2"),
        (lambda net: {"plan": {"relu1": 1}}, "'relu1' is a ReLU, neither dense nor a pair"),
        (lambda net: {"plan": {"fc1": net.plan["fc1"]}}, "layer 'fc2' is a pair of thin layers, and the plan does not name it"),
        (lambda net: {"classes": 9}, r"do not make this network: fc3.second.bias has shape \(10,\) where \(9,\) belongs"),
        (lambda net: {"original": models.build("vgg_small", (1, 12, 12), 10)}, "do not make this network: rank 1. of layer 'fc2' is not"),
        (lambda net: {"original": models.build("lenet300", (1, 11, 11), 10)}, "do not make this network: fc1.first.weight has shape"),
        (lambda net: {"network": "mine"}, "unknown network 'mine'"),
        (lambda net: {"note": {1, 2}}, r"metadata note=\{1, 2\} cannot be written as JSON"),
        (lambda net: {"model": nan_in(net.small, "fc2.first.weight")}, "fc2.first.weight holds NaN"),
        (lambda net: {"model": Stateful(3, 3), "plan": {}}, "_extra_state is a dict, no tensor"),
        (lambda net: {"model": copy.deepcopy(net.small).to("meta")}, "fc1.first.weight is on the meta device"),
    ],
)  # fmt: skip
def test_what_cannot_be_saved(networks, change, words, tmp_path):
    net, path = networks["lenet300"], tmp_path / "net.safetensors"
    path.write_text("older")
    given = {"model": net.small, "path": path, "plan": net.plan, **net.about} | change(net)
    with pytest.raises(ValueError, match=words):
        checkpoints.save_compressed(**given)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["older"]


def test_metadata_name_all_that_a_network_is_built_from_or_nothing(networks, tmp_path):
    net = networks["lenet300"]
    with pytest.raises(ValueError, match="the metadata name network but not input_shape, classes; give all"):
        checkpoints.save_compressed(net.small, tmp_path / "net.safetensors", net.plan, network="lenet300")
    checkpoints.save_compressed(net.small, tmp_path / "net.safetensors", net.plan, net.model, network="by another name")
    with pytest.raises(ValueError, match="net.safetensors does not say its input_shape, classes; pass the original"):
        checkpoints.load_compressed(tmp_path / "net.safetensors")
    assert same(checkpoints.load_compressed(tmp_path / "net.safetensors", net.model)[0], net.small.state_dict())


def without(mapping, name):
    return {key: value for key, value in mapping.items() if key != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, h: (t, without(h, "plan")), "holds no plan, so no compressed network"),
        (lambda t, h: (t, None), "holds no plan, so no compressed network"),
        (lambda t, h: (t, h | {"plan": "{"}), "is damaged or no safetensors file"),
        (lambda t, h: (t, h | {"plan": "[3]"}), r"is damaged: its plan is \[3\]"),
        (lambda t, h: (t, h | {"plan": '{"fc9": 3}'}), "cannot be loaded: it has no layer 'fc9', which the plan names"),
        (lambda t, h: (t, h | {"plan": '{"relu1": 3}'}), "layer 'relu1': a layer of type ReLU is not factored"),
        (lambda t, h: (t, h | {"plan": '{"fc1": ["spatial", 3]}'}), "layer 'fc1': scheme 'spatial'"),
        (lambda t, h: (t, h | {"plan": '{"fc1": [3]}'}), r"cannot be loaded: \(3,\) is no entry of a plan"),
        (lambda t, h: (t, h | {"plan": '{"fc1": 145}'}), "rank 145 of layer 'fc1' is not a whole number from 1 to 144"),
        (lambda t, h: (t, h | {"plan": '{"fc1": 0}'}), "rank 0 of layer 'fc1'"),
        (lambda t, h: (t, h | {"plan": '{"fc1": true}'}), "rank True of layer 'fc1'"),
        (lambda t, h: (t, h | {"plan": '{"fc1": 3}'}), r"is of another network: fc1.first.weight has shape \(2"),
        (lambda t, h: (t, without(h, "network")), "does not say its network; pass the original"),
        (lambda t, h: (t, h | {"network": '"resnet99"'}), "cannot be loaded: unknown network 'resnet99'"),
        (lambda t, h: (t, h | {"classes": "9"}), r"another network: fc3.second.bias has shape \(10,\) where \(9,\)"),
        (
            lambda t, h: (t, h | {"network": '"vgg_small"'}),
            "cannot be loaded: rank 1. of layer 'fc2' is not a whole number from 1 to 10",
        ),
        (lambda t, h: (without(t, "fc2.first.weight"), h), "another network: fc2.first.weight, of shape .* is missing"),
        (lambda t, h: (t | {"more": torch.ones(2)}, h), r"another network: it has no more, of shape \(2,\)"),
        (lambda t, h: (t | {"fc3.second.bias": torch.full((10,), torch.nan)}, h), "fc3.second.bias holds NaN"),
    ],
)
def test_a_bad_file(networks, change, words, tmp_path):
    net, path = networks["lenet300"], tmp_path / "net.safetensors"
    checkpoints.save_compressed(net.small, path, net.plan, **net.about)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert json.loads(header["plan"]) == net.plan
    tensors, header = change(load_file(path), header)
    save_file(tensors, path, header)
    with pytest.raises(ValueError, match=words) as raised:
        checkpoints.load_compressed(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_is_none(networks, tmp_path):
    net, path = networks["lenet300"], tmp_path / "net.safetensors"
    with pytest.raises(
        FileNotFoundError, match="no compressed network .*net.safetensors; `checkpoints.save_compressed` writes one"
    ):
        checkpoints.load_compressed(path)
    checkpoints.save_compressed(net.small, path, net.plan, **net.about)
    whole = path.read_bytes()
    for content in (whole[:-10], whole[:100], b"", b"no tensors at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or no safetensors file"):
            checkpoints.load_compressed(path)
    with pytest.raises(ValueError, match="is damaged or no safetensors file"):
        checkpoints.load_compressed(tmp_path)
    checkpoints.save(net.model, path, net.about)
    with pytest.raises(
        ValueError, match="holds no plan, so no compressed network; `checkpoints.load` reads dense ones"
    ):
        checkpoints.load_compressed(path)


def test_a_readers_network_that_is_not_the_one(networks, tmp_path):
    net, path = networks["lenet300"], tmp_path / "net.safetensors"
    checkpoints.save_compressed(net.small, path, net.plan, **net.about)
    for mine, words in (
        (
            net.small,
            "does not fit the network given as model=: layer 'fc1': a layer of type Sequential is not factored",
        ),
        (models.build("mlp", (1, 12, 12), 10), r"another network: fc1.first.weight has|another network: fc1.second"),
        (copy.deepcopy(net.model).to("meta"), "is on the meta device"),
    ):
        before = copy.deepcopy(mine.state_dict())
        with pytest.raises(ValueError, match=words):
            checkpoints.load_compressed(path, mine)
        assert mine.state_dict().keys() == before.keys()


# ---- ONNX and torch.export


@pytest.mark.parametrize("name", SHAPES)
def test_onnxruntime_gives_the_same_outputs_at_any_batch_size(networks, onnx, name):
    path, difference = onnx[name]
    session, net = export.onnx_session(path), networks[name]
    assert 0 <= difference < 1e-5
    for x in (net.x[:1], net.x, torch.randn(9, *SHAPES[name])):
        y = session(x)
        assert y.shape == (len(x), 10) and relative(y, outputs(net.small, x)) < 1e-5
    assert relative(session(net.x), outputs(net.model, net.x)) > 0.01
    content = path.read_bytes()
    assert len(content) < 1.1 * score.bytes_on_disk(net.small) + 100_000  # the weights once, and a graph
    assert not any(str(place).encode() in content for place in (paths.ROOT, torch.__file__.rpartition("/")[0]))


def test_a_network_in_training_is_written_as_it_answers_and_left_in_training(tmp_path):
    model, x = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(), nn.Linear(9, 2)), torch.randn(4, 6)
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    export.to_onnx(model, tmp_path / "net.onnx", x.double())
    export.exported(model, x)
    assert model.training and model[2].training and not model[1].training and same(model, before)
    assert relative(export.onnx_session(tmp_path / "net.onnx")(x), outputs(copy.deepcopy(model).eval(), x)) < 1e-5


def test_one_input_and_whole_numbers_will_do(tmp_path):
    model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2))
    assert export.to_onnx(model, tmp_path / "net.onnx", torch.tensor([[5, 6]])) < 1e-5
    x = torch.randint(7, (4, 2))
    assert relative(export.onnx_session(tmp_path / "net.onnx")(x), outputs(model, x)) < 1e-5


def test_a_traced_network_on_disk(networks, tmp_path):
    net, path = networks["resnet20"], tmp_path / "net.pt2"
    program = export.exported(net.small, net.x, path)
    again = torch.export.load(path).module()
    for x in (net.x[:1], net.x, torch.randn(9, 3, 16, 16)):
        assert relative(outputs(again, x), outputs(net.small, x)) < 1e-6
        assert torch.equal(outputs(program.module(), x), outputs(again, x))
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]
    content = path.read_bytes()  # stored, not compressed
    assert b"aten.conv" in content and not any(
        str(place).encode() in content for place in (paths.ROOT, tmp_path, torch.__file__.rpartition("/")[0])
    )
    assert net.x[0].numpy().tobytes() not in content


def test_a_program_that_cannot_be_written(monkeypatch, tmp_path):
    def refuse(*_):
        raise RuntimeError("no such thing\nin several lines")

    monkeypatch.setattr(torch.export, "save", refuse)
    with pytest.raises(ValueError, match="torch.export cannot write the network: no such thing$"):
        export.exported(nn.Linear(6, 2), X, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_the_latency_of_a_file_beside_a_network(tmp_path):
    small, large = nn.Linear(8, 2), nn.Sequential(*(nn.Linear(8 if i == 0 else 900, 900) for i in range(6)))
    export.to_onnx(small, tmp_path / "net.onnx", torch.randn(4, 8))
    for batch in (1, 64):
        middle, low, high = export.onnx_latency_ratio(tmp_path / "net.onnx", large, (8,), batch, repeats=7)
        assert 2 < low <= middle <= high  # the large network takes a hundred times as long
        assert score.latency(export.onnx_session(tmp_path / "net.onnx"), (8,), batch, repeats=3) > 0
    # the session has the threads that it is asked for
    assert export.onnx_session(tmp_path / "net.onnx", 2).session.get_session_options().intra_op_num_threads == 2


class Own(nn.Module):
    """A layer and a step of the reader's own."""

    def __init__(self, step, layer=None):
        super().__init__()
        self.layer, self.step = layer or nn.Linear(6, 6), step

    def forward(self, x):
        return self.step(self.layer(x), x)


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
REFUSED = [
    (Own(lambda y, x: y if y.sum() > 0 else -y), {}, "cannot follow the network: its control flow depends on the values"),
    (Own(lambda y, x: y if len(x) > 3 else 2 * y), {}, "cannot follow the network: it does not treat all batch sizes"),
    (Own(lambda y, x: y.reshape(4, 6)), {}, r"cannot take a batch of 1 inputs of shape \(6,\): shape '\[4, 6\]'"),
    (Own(lambda y, x: (y, y)), {}, "for 4 inputs the network gives type tuple"),
    (Own(lambda y, x: y.sum()), {}, r"for 4 inputs the network gives \(\)"),
    (Own(lambda y, x: y / 0), {}, "outputs are NaN or infinite"),
    (nan_in(nn.Linear(6, 2), "weight"), {}, "weight holds NaN or infinite"),
    (nn.Linear(6, 2).half(), {}, "weight is torch.float16; export a copy in float32"),
    (nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 2).bfloat16()), {}, "1.weight is torch.bfloat16"),
    (nn.Linear(6, 2, device="meta"), {}, "weight is on meta; export a copy on the CPU"),
    (Stateful(6, 2), {}, "_extra_state is a dict, no tensor"),
    (nn.Linear(5, 2), {}, r"cannot take a batch of 4 inputs of shape \(6,\): .*mat1 and mat2"),
    (nn.Linear(6, 2), {"example": X[:0]}, "example must be a tensor of at least one input"),
    (nn.Linear(6, 2), {"example": X[0]}, "example must be a tensor of at least one input"),
    (nn.Linear(6, 2), {"example": X.tolist()}, "example must be a tensor of at least one input"),
    (nn.Linear(6, 2), {"example": X / 0}, "the example holds NaN or infinite"),
    (nn.Linear(6, 2), {"tolerance": 0}, "tolerance=0 is not a positive number"),
    (nn.Linear(6, 2), {"tolerance": torch.nan}, "tolerance=nan is not a positive number"),
]  # fmt: skip
ONLY_ONNX = [
    (Own(lambda y, x: torch.linalg.eigvalsh(y[:, :, None] * y[:, None])), {}, "as ONNX: ONNX has no form of its operation aten._linalg_eigh"),
    (nn.Conv1d(1, 2, 3).double(), {"example": X[:, None]}, "onnxruntime cannot run the network: .* implementation for Conv"),
    (Own(lambda y, x: torch.tanh(y)), {"tolerance": 1e-15}, "onnxruntime's outputs for 4 inputs differ by .*e-.* more than tolerance=1.0e-15"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "model", "change", "words"),
    [(call, *row) for call in ("to_onnx", "exported") for row in REFUSED] + [("to_onnx", *row) for row in ONLY_ONNX],
)
def test_what_cannot_be_exported(call, model, change, words, tmp_path, capfd):
    path = tmp_path / "net.any"
    path.write_text("older")
    state, training = dict(model.state_dict().items()), model.training
    before = copy.deepcopy(state)
    given = {"example": X, "path": path} | change
    with pytest.raises(ValueError, match=words) as raised:
        getattr(export, call)(model, **given)
    assert "\n" not in str(raised.value) and str(tmp_path) not in str(raised.value)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["older"]
    assert model.training == training and all(
        value is state[name] or value.data_ptr() == state[name].data_ptr()
        for name, value in model.state_dict().items()
        if torch.is_tensor(value)
    )
    assert all(
        torch.equal(value, before[name]) or value.isnan().any()
        for name, value in state.items()
        if torch.is_tensor(value) and not value.is_meta
    )
    assert capfd.readouterr() == ("", "") and logging.root.manager.disable == logging.NOTSET


def test_outputs_that_differ_are_no_file(monkeypatch, tmp_path):
    # as if a writer were wrong
    traced = export._traced
    monkeypatch.setattr(export, "_traced", lambda network, inputs: traced(nn.Linear(6, 2), inputs))
    for call in (export.to_onnx, export.exported):
        with pytest.raises(ValueError, match="outputs for 4 inputs differ by .* in relative norm"):
            call(nn.Linear(6, 2), example=X, path=tmp_path / "net")
    monkeypatch.setattr(export, "_traced", lambda network, inputs: traced(nn.Linear(6, 3), inputs))
    with pytest.raises(ValueError, match=r"torch.export gives outputs of shape \(4, 3\), not \(4, 2\)"):
        export.exported(nn.Linear(6, 2), X)
    assert not list(tmp_path.iterdir())


def test_a_bad_onnx_file(onnx, tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(FileNotFoundError, match="no ONNX file .*net.onnx; `export.to_onnx` writes one"):
        export.onnx_session(path)
    whole = onnx["lenet300"][0].read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"nothing of the kind"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"onnxruntime cannot run .*net\.onnx: "):
            export.onnx_session(path)
    with pytest.raises(ValueError, match="onnxruntime cannot run"):
        export.onnx_session(tmp_path)
    for threads in (0, 1.0, True):
        with pytest.raises(ValueError, match=f"threads={threads} is not a whole number of at least 1"):
            export.onnx_session(onnx["lenet300"][0], threads)
    with pytest.raises(ValueError, match=r"the ONNX network cannot take inputs of shape \(2, 1, 9, 9\): ") as raised:
        export.onnx_session(onnx["lenet300"][0])(torch.zeros(2, 1, 9, 9))
    assert "\n" not in str(raised.value)


def test_eight_bits_are_a_quarter_of_the_file_and_nearly_the_same_network(tmp_path, caplog):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 10)), torch.randn(64, 300)
    path, small = tmp_path / "net.onnx", tmp_path / "net8.onnx"
    export.to_onnx(network, path, x)
    caplog.clear()
    export.to_int8(path, small)
    assert small.stat().st_size < 0.27 * path.stat().st_size and not caplog.records
    y, there = outputs(network, x), export.onnx_session(small)(x)
    difference = float((there - y).norm() / y.norm())
    assert 1e-4 < difference < 0.03  # rounded, and not by more than 8 bits explain
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net8.onnx"]


def test_eight_bits_of_a_convolution(onnx, networks, tmp_path):
    path, _ = onnx["vgg_small"]
    export.to_int8(path, tmp_path / "net8.onnx")
    y = outputs(networks["vgg_small"].small, networks["vgg_small"].x)
    assert float((export.onnx_session(tmp_path / "net8.onnx")(networks["vgg_small"].x) - y).norm() / y.norm()) < 0.1


def test_static_eight_bits_rest_on_calibration_inputs(tmp_path, caplog):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    x = torch.randn(150, 1, 8, 8)
    path, static, narrow = (tmp_path / f"{name}.onnx" for name in ("net", "static", "narrow"))
    export.to_onnx(network, path, x[:4])
    caplog.clear()
    export.to_int8(path, static, x, batch_size=64)
    export.to_int8(path, narrow, 0.1 * x)
    assert not caplog.records and sorted(p.name for p in tmp_path.iterdir()) == [
        "narrow.onnx",
        "net.onnx",
        "static.onnx",
    ]
    y = outputs(network, x)
    away = [float((export.onnx_session(file)(x) - y).norm() / y.norm()) for file in (static, narrow)]
    assert 1e-4 < away[0] < 0.05
    assert away[1] > 0.5  # what lies outside the range of the calibration inputs is cut off
    for wrong in (x[:0], [x]):
        with pytest.raises(ValueError, match="calibration must be a tensor of at least one input"):
            export.to_int8(path, static, wrong)


def test_eight_bits_are_right_on_processors_that_clip_signed_products(tmp_path):
    # onnxruntime multiplies unsigned activations by signed weights in 16 bits that saturate where there is no VNNI
    import onnx

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    x = torch.randn(50, 1, 8, 8)
    export.to_onnx(network, tmp_path / "net.onnx", x[:4])
    for given in (None, x):
        export.to_int8(tmp_path / "net.onnx", tmp_path / "net8.onnx", given)
        held = onnx.load(tmp_path / "net8.onnx").graph.initializer
        small = [part for part in held if part.data_type in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)]
        assert sum(math.prod(part.dims) for part in small) > 8 * 9 + 8 * 36 * 10
        assert {part.data_type for part in small} == {onnx.TensorProto.UINT8}


def test_eight_bits_of_what_is_no_network(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no ONNX file"):
        export.to_int8(tmp_path / "none.onnx", tmp_path / "net8.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a network at all")
    with pytest.raises(ValueError, match="bad.onnx is damaged or no ONNX file"):
        export.to_int8(tmp_path / "bad.onnx", tmp_path / "net8.onnx")
    assert not (tmp_path / "net8.onnx").exists()
