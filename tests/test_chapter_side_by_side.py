"""Chapter 06: the experiment's rows, and what figures and tables read from them."""

import numpy as np
import pytest
import torch
from torch import nn

from lowrank_utils.lab import columns, data, export, score, training
from lowrank_utils.workbook import benchmark
from lowrank_utils.workbook.chapters import side_by_side

ABOUT = {"dataset": "digits", "seed": 0}
FEW = {"calibration_images": 100, "measure_images": 60}
TIMES = {"latency_ms_1": 0.5, "faster_1": 1.0, "latency_ms_64": 4.0, "faster_64": 2.0}


@pytest.fixture(scope="module")
def images():
    return data.load("digits", seed=0)


@pytest.fixture(scope="module")
def model(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))
    training.fit(model, images, training.Recipe(2, 32), 0, "cpu", progress=False)
    return model.eval()


@pytest.fixture(scope="module")
def rows(images, model):
    finetuning = {"images": 100, "valid": 50, "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "clock", lambda *_: TIMES)  # which has a test of its own
        return side_by_side.experiment(
            images, {"mlp": model}, shares=(0.4,), factorisers=("svd", "sequential"), evaluations=2, convex=True, max_seconds=2,
            finetuned=("dense", "exact-Fisher", "magnitude"), finetuning=finetuning, **FEW, **ABOUT
        )  # fmt: skip


def test_each_row_is_one_network_in_columns(rows):
    columns.check(rows)
    assert not rows.duplicated([name for name in (*columns.RUN, *columns.KEY) if name in rows]).any()
    torch_rows = rows[rows["runtime"] == "torch"]
    counts = torch_rows["chooser"].value_counts()
    assert (counts[list(benchmark.NEEDS)] == 2).all()  # two kinds of factors
    others = ["dense", "evbmf", "units", "units then ranks", "magnitude", "DDLR", "Net-Trim"]
    assert (counts[others] == 1).all() and len(torch_rows) == 18 + 7
    assert (rows[list(TIMES)] == list(TIMES.values())).all(axis=None)


@pytest.mark.parametrize("in_onnx", [False, True])
def test_the_clock_compares_with_the_dense_network_of_the_same_moment(images, tmp_path, in_onnx):
    large, small = (
        nn.Sequential(nn.Flatten(), nn.Linear(64, d), nn.ReLU(), nn.Linear(d, 10)).eval() for d in (4000, 8)
    )
    if in_onnx:
        export.to_onnx(small, tmp_path / "small.onnx", images.tensors("test", limit=8)[0])
        small = export.onnx_session(tmp_path / "small.onnx", 1)
    times = benchmark.clock(small, large, images.input_shape, 1)
    assert set(times) == set(TIMES)
    assert times["faster_64"] > 2 and min(times.values()) > 0


def test_sizes_are_met(rows):
    sized = rows[rows["budget_kind"] == "macs"]
    assert (sized["macs_kept"] <= sized["budget"]).all()
    zeros = rows[rows["chooser"] == "magnitude"]
    assert np.allclose(zeros["parameters_kept"], zeros["budget"], atol=0.03)  # a pointer a row is not in the budget
    dense = rows[rows["chooser"] == "dense"].iloc[0]
    assert (zeros["bytes"] < dense["bytes"]).all() and (zeros["macs_kept"] == 1).all()


def test_each_kind_says_what_it_is(rows):
    first = rows[rows["runtime"] == "torch"].drop_duplicates("chooser").set_index("chooser")
    assert first.loc["dense", ["factors", "scope", "stored_as"]].tolist() == ["none", "none", "dense"]
    assert first.loc["units", ["stored_as", "refit", "factors"]].tolist() == ["units", "least squares", "none"]
    assert first.loc["units then ranks", ["stored_as", "factors"]].tolist() == ["both", "fisher-weighted"]
    assert first.loc["DDLR", ["program", "cut", "cut_below", "factors"]].tolist() == [
        "as posed",
        "fixed",
        0.05,
        "convex",
    ]
    assert first.loc["Net-Trim", ["stored_as", "cut_below", "factors"]].tolist() == ["sparse", 0.01, "none"]
    assert set(rows.loc[rows["chooser"] == "exact", "scope"]) == {"hidden layers"}
    assert first.loc["ENC-Inf", "needs"] == "labels" and first.loc["ENC-Inf", "evaluations"] > 2
    assert first.loc["exact-Fisher", "needs"] == "images" and first.loc["fixed", "needs"] == "nothing"


def test_files_for_onnxruntime_stand_beside_what_they_came_from(rows):
    onnx = rows[rows["runtime"] == "onnxruntime"].set_index(["chooser", "bits"])
    whole = ("dense", "exact-Fisher", "units", "units then ranks")
    assert set(onnx.index) == {(name, 32) for name in whole} | {("dense", 8), ("exact-Fisher", 8)}
    here = rows[(rows["runtime"] == "torch") & (rows["budget"].isna() | (rows["budget"] == 0.4))]
    for name in whole:
        own = here[(here["chooser"] == name) & here["factors"].isin(["none", "sequential", "fisher-weighted"])].iloc[0]
        assert onnx.loc[(name, 32), "accuracy"] == pytest.approx(own["accuracy"], abs=0.01)
        assert onnx.loc[(name, 32), "parameters"] == own["parameters"]
    assert (onnx.xs(8, level=1)["bytes"] < onnx.xs(32, level=1)["bytes"][["dense", "exact-Fisher"]]).all()


def test_fine_tuning_is_for_those_named(rows):
    tuned = rows[rows["tuned_accuracy"].notna()]
    assert set(tuned["chooser"]) == {"dense", "exact-Fisher", "magnitude"} and set(tuned["runtime"]) == {"torch"}
    assert len(tuned) == 1 + 2 + 1 and (tuned["tuned_seconds"] > 0).all()


def test_fine_tuning_leaves_zeros_and_the_network_alone(images, model):
    one = benchmark.subject(images, "mlp", model, **FEW)
    net = benchmark.zeroed(one, 0.3)
    gone = [p.detach() == 0 for p in net.parameters()]
    before = [p.clone() for p in net.parameters()]
    after = benchmark._tuned(net, images, training.Recipe(1, 64), True, 0, "cpu")
    weights = [m.weight for m in after.modules() if isinstance(m, nn.Linear)]
    assert all((w[g] == 0).all() for w, g in zip(weights, [g for g in gone if g.ndim == 2], strict=True))
    assert any((w != b).any() for w, b in zip(weights, [b for b in before if b.ndim == 2], strict=True))
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_sparse_storage_by_hand():
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0, 0, 2], [0, 0, 3, 0]]))
    counts = benchmark.stored_sparse(nn.Sequential(layer), nn.Sequential(layer))
    assert counts["parameters"] == round(3 + 2 + 1.5 + 3)  # non-zeros, biases, half an index each, pointers
    assert counts["parameters_kept"] == counts["parameters"] / 10
    assert score.bytes_on_disk(nn.Sequential(layer)) - counts["bytes"] == round(4 * (5 - 1.5 - 3))


def test_figure_and_tables_read_the_rows(rows):
    labels = {text for axis in side_by_side.figure(rows).axes for text in axis.get_legend_handles_labels()[1]}
    assert {"dense", "low rank", "units", "zeros", "8 bit", "in onnxruntime"} == labels
    crossed, ways = side_by_side.tables(rows).values()
    assert "| exact, Fisher |" in crossed and crossed.count("\n") == 1 + 9
    assert "| exact, Fisher | sequential in onnxruntime, 8 bit | macs 0.40 |" in ways
    assert "| Net-Trim, cut, refit | refit | epsilon 0.1 |" in ways and "| evbmf | sequential | own size |" in ways
    assert side_by_side.usable(rows).all()
    assert len(side_by_side.ledger(rows).data) == len(rows)


def test_bad_input_is_named(images, model):
    with pytest.raises(ValueError, match="names no network"):
        side_by_side.experiment(images, {}, **ABOUT)
    with pytest.raises(ValueError, match="share=0 is not a share"):
        side_by_side.experiment(images, {"mlp": model}, shares=(0,), **ABOUT)
    with pytest.raises(ValueError, match="curve='loss' is neither"):
        side_by_side.experiment(images, {"mlp": model}, curve="loss", **ABOUT)
    bench = benchmark.Bench(images, 1, ABOUT)
    with pytest.raises(ValueError, match="finetuned names 'exact, Fisher', which is no method of the table"):
        benchmark.fine_tune(bench, ["exact, Fisher"])
    with pytest.raises(ValueError, match="the table has no 'units' of 'mlp'"):
        bench.entry("mlp", "units")
