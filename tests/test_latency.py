"""A budget in milliseconds: tables, interpolation, what is said where time cannot be had or told apart."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from torch import nn

import lowrank_utils
from lowrank_utils.lab import latency, score
from lowrank_utils.lab.latency import Clock
from lowrank_utils.ranks import search


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    ).eval()  # fmt: skip


class Counted(Clock):
    """A clock whose milliseconds are thousands of parameters, and one more for a network, so that every answer is known."""

    noise = 0.0

    def calls(self, layers, x):
        return [score.parameters(layer) / 1000 for layer in layers]

    def network(self, model, batch):
        return 1 + score.parameters(model) / 1000

    def time(self, calls):
        random = np.random.default_rng(0)
        return [list(ms * (1 + self.noise * random.standard_normal(self.repeats))) for ms in calls]


class Noisy(Counted):
    noise = 2.0


@pytest.fixture(scope="module")
def read():
    return lowrank_utils.profile(net(), torch.randn(100, 64), dense=["6"])


def test_the_table_holds_what_the_clock_says_and_layers_of_one_shape_are_timed_once(read):
    asked = []

    class Asked(Counted):
        def calls(self, layers, x):
            asked.append(tuple(x.shape))
            return super().calls(layers, x)

    times = latency.measure(read, Asked())
    assert asked == [(64, 64), (64, 128)]  # two of three layers are alike
    assert times.whole.ms == pytest.approx(1 + score.parameters(read.model) / 1000)
    for name in ("0", "2", "4"):
        layer = read.model.get_submodule(name)
        for entry, ms in times.layers[name].items():
            weights = layer.weight.numel() if entry is None else entry * sum(layer.weight.shape)
            assert ms == pytest.approx((weights + len(layer.bias)) / 1000, rel=0.02)  # those between are interpolated
    assert times.share({}) == pytest.approx(1) and math.isnan(times.share({"0": 17}))
    assert times.spread == 0 and times.note() == ""


def test_a_plan_found_by_the_table_takes_no_longer_than_the_budget(read):
    times = latency.measure(read, Counted())
    options = search.rank_options(read, ("latency",), mixed=True, tables=times.tables)
    values, _ = search.predicted_values(read, options, points=None)

    def find(budget):
        return search.exact_search(read, budget, resource="latency", options=options, values=values)

    found = latency.plan_within(times, read, 0.6, find)
    assert 0.5 < times.share(found.plan) <= 0.6
    assert latency.plan_within(times, read, 0.9, find).value > found.value


def test_a_budget_below_the_fastest_plan_names_the_smallest_share(read):
    times = latency.measure(read, Counted())
    smallest = (times.outside + times.least()) / times.whole.ms
    with pytest.raises(
        ValueError, match=r"kept=0.01 of the latency cannot be reached: the fastest plan takes 0\.\d{4}"
    ) as told:
        times.budget(0.01)
    assert float(str(told.value).split("takes ")[1].split()[0]) == pytest.approx(smallest, abs=1e-4)
    assert times.budget(math.ceil(1e4 * smallest) / 1e4) >= times.least()


def test_noise_larger_than_the_differences_is_said_with_the_spread(read):
    times = latency.measure(read, Noisy())
    assert "differ by less than their spread" in times.note() and f"{times.spread:.0%}" in times.note()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"runtime": "abacus"}, "unknown runtime 'abacus'"),
        ({"batch": 0}, "batch"),
        ({"threads": 0}, "threads"),
        ({"multiple": 0}, "multiple"),
        ({"kept": 0.001}, "the fastest plan takes"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(given, words):
    with pytest.raises(ValueError, match=words):
        lowrank_utils.compress(net(), torch.randn(60, 64), resource="latency", refine=False, **given)


def test_a_runtime_that_is_not_installed_is_named(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else there(name))
    with pytest.raises(ValueError, match="needs onnxruntime, which is not installed; pip install onnxruntime"):
        Clock("onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_compress_holds_a_share_of_the_time(runtime):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    ).eval()  # fmt: skip
    found = lowrank_utils.compress(
        model, torch.randn(200, 256), kept=0.7, resource="latency", runtime=runtime, refine=False
    )
    seen = found.latency
    assert found.plan and seen is not None and "ms" in str(found)
    # a loaded machine may miss the budget by more than two per cent and the spread, which is then said
    assert seen.low <= 0.7 or seen.kept <= 1.02 * 0.7 or "By the clock" in found.note
    assert found.kept["latency"] == seen.kept < 0.95
    assert {"ms_dense", "ms"} <= set(found.layers.columns)
