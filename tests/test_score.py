"""The ledger: every count by hand, every measurement left without trace on the model."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lowrank_utils.lab import models, score
from lowrank_utils.lab.columns import RESULT_COLUMNS


@pytest.mark.parametrize(
    "name, shape, classes, parameters, macs",
    [
        # weights 784 x 300 + 300 x 100 + 100 x 10, and one bias a unit
        ("lenet300", (1, 28, 28), 10, 266610, 266200),
        # 3072 x 1024 + 1024 x 512 + 512 x 10, and 1024 + 512 + 10 biases
        ("mlp", (3, 32, 32), 10, 3676682, 3675136),
        ("mlp", (3, 32, 32), 100, 3722852, 3721216),
    ],
)
def test_networks_counted_by_hand(name, shape, classes, parameters, macs):
    model = models.build(name, shape, classes)
    assert score.parameters(model) == parameters
    assert score.macs(model, shape) == macs


def test_convolutions_counted_by_hand():
    # 9 x 9 outputs at stride 1 without padding, 4 of 8 input channels seen by each of the 6 filters
    conv = nn.Conv2d(8, 6, 3, groups=2)
    assert score.parameters(conv) == 6 * 4 * 9 + 6
    assert score.macs(conv, (8, 11, 11)) == 9 * 9 * 6 * 4 * 9
    strided = nn.Conv2d(3, 5, (3, 1), stride=2, padding=(1, 0), bias=False)
    assert score.parameters(strided) == 5 * 3 * 3
    assert score.macs(strided, (3, 8, 8)) == 4 * 4 * 5 * 3 * 3


def test_shared_parameters_count_once_but_work_every_time():
    first = nn.Linear(6, 6)
    twice = nn.Sequential(first, nn.ReLU(), first)
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    assert score.parameters(twice) == 42 and score.macs(twice, (6,)) == 72
    assert score.parameters(tied) == 48 and score.macs(tied, (6,)) == 72
    assert score.bytes_on_disk(tied) - score.bytes_on_disk(nn.Linear(6, 6)) < 36 * 4  # no second weight


def test_bytes_are_those_of_the_file(tmp_path):
    model = models.build("lenet300", (1, 8, 8), 10)
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    assert score.bytes_on_disk(model) == (tmp_path / "net.safetensors").stat().st_size
    assert score.bytes_on_disk(model.half()) < 0.6 * (tmp_path / "net.safetensors").stat().st_size


def test_the_bytes_of_every_type_and_name_are_counted_right(tmp_path):
    kinds = [torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16, torch.int16]
    kinds += [torch.int8, torch.uint8, torch.bool, torch.complex64]  # the last one is written, not counted
    for last in range(len(kinds)):
        net = nn.Sequential(nn.Linear(7, 3), nn.BatchNorm1d(3))
        net.add_module("größe", nn.Linear(3, 1000))
        for at, kind in enumerate(kinds[: last + 1]):
            net.register_buffer(f"z{at}", torch.ones(3 + 40 * at).to(kind))
        save_file(net.state_dict(), tmp_path / "net.safetensors")
        assert score.bytes_on_disk(net) == (tmp_path / "net.safetensors").stat().st_size


def test_tensors_that_are_one_are_counted_once_and_views_as_they_are_written(tmp_path):
    base = torch.arange(64.0).reshape(8, 8)
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    net[1].weight = net[0].weight  # tied: one object
    net[2].weight = nn.Parameter(net[0].weight.detach())  # two objects, one storage
    for name, value in {
        "view": base[2:5],
        "again": base[2:5],  # the same view, another object
        "wider": base[2:6],  # begins at the same place
        "across": base.T,  # not contiguous, of the shape of the whole
        "whole": base,
        "spread": base[:1].expand(5, 8),
        "none": torch.zeros(0, 3),
        "nothing": torch.zeros(0, 3),
    }.items():
        net.register_buffer(name, value)
    twice = {"0.weight", "1.weight", "view"}  # of each the last name stays
    written = {name: value.clone(memory_format=torch.contiguous_format) for name, value in net.state_dict().items()}
    save_file({name: value for name, value in written.items() if name not in twice}, tmp_path / "net.safetensors")
    assert score.bytes_on_disk(net) == (tmp_path / "net.safetensors").stat().st_size


def test_measuring_leaves_modes_gradients_and_threads_as_they_were():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)).train()
    model[2].eval()  # frozen, in a network that trains
    threads, mean = torch.get_num_threads(), model[1].running_mean.clone()
    score.macs(model, (4,))
    score.latency(model, (4,), batch=2, threads=threads + 1, repeats=2, warmup=1)
    score.latency_ratio(model, model, (4,), repeats=2, warmup=1)
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert torch.get_num_threads() == threads
    assert torch.equal(model[1].running_mean, mean) and all(p.grad is None for p in model.parameters())


def test_threads_are_restored_when_the_network_fails():
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        score.latency(nn.Linear(4, 4), (5,), threads=threads + 1)
    assert torch.get_num_threads() == threads


def test_latency_is_measured_on_the_threads_that_are_asked_for():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append((torch.get_num_threads(), self.training, torch.is_inference_mode_enabled(), len(x)))
            return x

    assert score.latency(Spy(), (3,), batch=7, threads=2, repeats=2, warmup=3) > 0
    assert set(seen) == {(2, False, True, 7)} and len(seen) >= 3 + 2


def test_two_networks_are_timed_in_turn():
    calls = []

    class Named(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            calls.append(self.name)
            for _ in range(30):  # long enough that a reading is a few passes
                x = (x @ torch.ones(300, 300)).clamp(0, 1)
            return x

    score.latencies([Named("a"), Named("b")], (300,), batch=64, repeats=4, warmup=1)
    turns = [name for i, name in enumerate(calls) if i == 0 or name != calls[i - 1]]
    assert turns == ["a", "b"] * 5


class Repeated(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x):
        for _ in range(self.times):
            y = x @ x
        return y


def test_far_less_work_takes_less_time():
    little, much = Repeated(1), Repeated(200)
    middle, low, high = score.latency_ratio(little, much, (200,), batch=200, repeats=7, warmup=2)
    assert 0 < low <= middle <= high
    assert middle > 2  # 200 times the work: `model` is the faster one


@pytest.mark.parametrize("name", ["threads", "batch", "repeats", "warmup"])
@pytest.mark.parametrize("bad", [0, 1.5, True])
def test_bad_counts_are_refused(name, bad):
    with pytest.raises(ValueError, match=f"{name}={bad} is not a whole number of at least 1"):
        score.latency(nn.Linear(4, 4), (4,), **{name: bad})


def test_one_reading_has_no_quartiles():
    with pytest.raises(ValueError, match="repeats=1 has no quartiles"):
        score.latency_ratio(nn.Linear(4, 4), nn.Linear(4, 4), (4,), repeats=1)


@pytest.fixture
def case():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 20))
    thin = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False), nn.Linear(4, 20))
    return dense, thin, (torch.randn(50, 1, 8, 8), torch.arange(50) % 20)


def test_row_beside_its_original(case):
    dense, thin, test = case
    row = score.row(thin, dense, test, notebook="02_arsvd", seed=1, chooser="energy", evaluations=7)
    assert set(RESULT_COLUMNS) <= row.keys()
    assert row["parameters"] == 64 * 4 + 4 * 20 + 20 and row["macs"] == 64 * 4 + 4 * 20
    assert row["parameters_kept"] == row["parameters"] / (64 * 20 + 20)
    assert row["macs_kept"] == row["macs"] / (64 * 20)
    assert (row["notebook"], row["seed"], row["chooser"], row["evaluations"]) == ("02_arsvd", 1, "energy", 7)
    assert row["accuracy"] == float((thin(test[0]).argmax(1) == test[1]).double().mean())
    assert math.isnan(row["latency_ms_1"]) and math.isnan(row["latency_ms_64"]) and math.isnan(row["threads"])
    assert row["torch"] == torch.__version__ and row["lowrank_utils"]


def test_row_of_the_original_keeps_all(case):
    dense, _, test = case
    row = score.row(dense, dense, test)
    assert row["parameters_kept"] == row["macs_kept"] == 1


def test_row_with_latency_says_on_how_many_threads(case):
    dense, thin, test = case
    row = score.row(thin, dense, test, timed=True, threads=2)
    assert row["latency_ms_1"] > 0 and row["latency_ms_64"] > 0 and row["threads"] == 2


def test_row_refuses_weights_that_are_no_numbers(case):
    dense, thin, test = case
    with torch.no_grad():
        thin[1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="1.weight holds NaN or infinite values"):
        score.row(thin, dense, test)


def test_a_row_tells_which_images_are_right_only_where_it_is_asked(case):
    dense, thin, test = case
    row = score.row(thin, dense, test, keep_correct=True)
    right = (thin(test[0]).argmax(1) == test[1]).numpy()
    assert score.unpacked(row["correct"]).tolist() == right.tolist()
    assert row["accuracy"] == right.mean()
    assert "correct" not in score.row(thin, dense, test)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 10_000])
def test_which_images_are_right_survives_packing(count):
    right = np.random.default_rng(count).random(count) < 0.9
    text = score.packed(right)
    assert (score.unpacked(text) == right).all() and len(text) < 30 + count / 6 + 20


def test_packing_refuses_what_is_not_one_answer_an_image():
    for wrong in ([0, 1], np.ones((2, 2), bool), [0.5]):
        with pytest.raises(ValueError, match="a row of booleans"):
            score.packed(wrong)
    good = score.packed([True] * 9)
    for wrong in ("", "nonsense", "9:####", "9:" + good[5:], "x" + good, "-1" + good[1:]):
        with pytest.raises(ValueError, match="does not say which test images are right"):
            score.unpacked(wrong)


def test_the_smallest_good_size_was_measured():
    tried = []

    def build(share):
        tried.append(share)
        return share

    share, built, evaluations = score.smallest(build, lambda built: built >= 0.3, low=0.0, tolerance=0.01)
    assert built == share and 0.3 <= share < 0.31 and evaluations == len(tried) == 7
    assert any(0 < share - other <= 0.01 for other in tried if other < 0.3)


def test_where_no_smaller_size_is_good_the_largest_is_built():
    assert score.smallest(lambda share: share, lambda built: False, low=0.0, tolerance=0.1) == (1.0, 1.0, 4)


def test_a_network_in_another_form_is_counted_by_the_one_it_came_from():
    class Runs(nn.Module):  # as onnxruntime does: no parameters of its own
        def __init__(self, network):
            super().__init__()
            self.run = [network]

        def forward(self, x):
            return self.run[0](x)

    torch.manual_seed(0)
    dense, small = nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 1, bias=False), nn.Linear(1, 3))
    test = torch.randn(20, 6), torch.arange(20) % 3
    plain = score.row(small, dense, test)
    other = score.row(Runs(small), dense, test, counted=small, bytes=7)
    assert other["bytes"] == 7 and plain["bytes"] != 7
    for name in ("parameters", "parameters_kept", "macs", "macs_kept", "accuracy", "f1", "loss"):
        assert other[name] == plain[name]
    assert score.row(Runs(small), dense, test)["parameters"] == 0
