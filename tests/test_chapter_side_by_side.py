"""Chapter 06: the experiment's rows, and what figures and tables read from them."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import lowrank_utils
from lowrank_utils import compression
from lowrank_utils.factors import refine, replace
from lowrank_utils.lab import columns, data, export, score, training
from lowrank_utils.network.profile import plan_cost
from lowrank_utils.network.unfold import parse_entry
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
def one(images, model):
    return benchmark.subject(images, model, network="mlp", **FEW, **ABOUT)


@pytest.fixture(scope="module")
def rows(images, model):
    finetuning = {"images": 100, "valid": 50, "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "clock", lambda *_: TIMES)  # which has a test of its own
        return side_by_side.experiment(
            images, {"mlp": model}, shares=(0.4,), factorisers=("svd", "sequential"), evaluations=2, refine_steps=20, convex=True, max_seconds=2,
            finetuned=("dense", "exact-Fisher", "magnitude"), finetuning=finetuning, **FEW, **ABOUT
        )  # fmt: skip


def test_each_row_is_one_network_in_columns(rows):
    columns.check(rows)
    assert not rows.duplicated([name for name in (*columns.RUN, *columns.KEY) if name in rows]).any()
    torch_rows = rows[(rows["runtime"] == "torch") & (rows["tuned"] == "none")]
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


def test_refined_rows_say_so_and_have_the_same_inputs_steps_and_seed(rows, images, one):
    refined = rows[rows["tuned"] == "refined without labels"]
    assert refined[["chooser", "factors"]].to_numpy().tolist() == [
        ["exact-Fisher", "fisher-weighted"],
        ["ENC-Map", "svd"],
        ["fixed", "data-aware"],
    ]
    assert (refined["needs"] == "images").all() and refined["tuned_accuracy"].isna().all()
    assert rows.loc[rows["tuned"] == "none", "untuned_accuracy"].isna().all()
    calibration, test = one.profile.calibration, images.tensors("test")
    ours = lowrank_utils.compress(
        one.model, calibration, kept=0.4, floor=0.02, dense=one.profile.dense, refine_steps=20
    )
    assert refined["accuracy"].iloc[0] == training.evaluate(ours.model, *test).accuracy
    seen, unseen = calibration[:85], calibration[85:]
    plan = benchmark.choosers(one, 0.4)["fixed"]()
    before = replace.apply_plan(one.profile.but(calibration=seen), plan, factors="data-aware")
    rival = refine.refine(one.model, before, seen, held_out=unseen, steps=20, seed=0)
    measured = [training.evaluate(net, *test).accuracy for net in (before, rival.model)]
    assert refined[["untuned_accuracy", "accuracy"]].iloc[2].tolist() == measured


def test_units_then_ranks_are_not_refined(one, monkeypatch):
    def refined(*_, **__):
        raise AssertionError("a network of the training-free table was refined")

    monkeypatch.setattr(compression.refinement, "refine", refined)
    net, _ = benchmark.units_then_ranks(one, 0.4)
    assert score.macs(net, (1, 8, 8)) <= 0.4 * score.macs(one.model, (1, 8, 8))


def test_a_plan_is_timed_once(one, images, monkeypatch):
    clocked = []
    monkeypatch.setattr(benchmark, "clock", lambda net, *_: clocked.append(net) or TIMES)
    bench, plan = benchmark.Bench(images, 1), {"1": 5, "3": 4}
    plans = {0.4: dict.fromkeys(benchmark.NEEDS, benchmark.TimedPlan(plan, 0.0, 0))}
    benchmark.low_rank_rows(bench, one, plans, ("svd", "data-aware"))
    assert len(bench.entries) == 1 + 2 * len(benchmark.NEEDS) and len(clocked) == 2  # the dense network, and the plan
    assert all(row["faster_64"] == TIMES["faster_64"] for row, _ in bench.entries)


def test_refinement_is_asked_for_at_every_share_or_not_at_all(images, model, monkeypatch):
    asked = []
    for name in ("searched", "low_rank_rows", "other_rows", "onnx_rows", "fine_tune", "subject"):
        monkeypatch.setattr(side_by_side, name, lambda *_, **__: None)
    monkeypatch.setattr(benchmark.Bench, "table", lambda self: None)
    monkeypatch.setattr(side_by_side, "refined_rows", lambda bench, one, share, steps: asked.append((share, steps)))
    for steps in (0, 7):
        side_by_side.experiment(images, {"mlp": model}, shares=(0.4, 0.2), refine_steps=steps, **ABOUT)
    assert asked == [(0.4, 7), (0.2, 7)]


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
    here = rows[(rows["runtime"] == "torch") & (rows["tuned"] == "none")]
    here = here[here["budget"].isna() | (here["budget"] == 0.4)]
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
    one = benchmark.subject(images, model, network="mlp", **FEW, **ABOUT)
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
    assert {"dense", "low rank", "units", "zeros", "8 bit", "refined", "in onnxruntime"} == labels
    assert list(side_by_side.tables(rows))[1:] == list(side_by_side.CAPTIONS)[1:]
    crossed, ways, refined = side_by_side.tables(rows).values()
    assert "| exact, Fisher |" in crossed and crossed.count("\n") == 1 + 9
    assert "| exact, Fisher | sequential in onnxruntime, 8 bit | macs 0.40 |" in ways
    assert "| Net-Trim, cut, refit | refit | epsilon 0.1 |" in ways and "| evbmf | sequential | own size |" in ways
    assert refined.count("\n") == 1 + 3 and "| exact, Fisher | fisher-weighted |" in refined
    assert side_by_side.usable(rows).all()
    assert len(side_by_side.ledger(rows).data) == len(rows) - 3


def test_refined_rows_change_no_table_and_no_front_of_the_others(rows):
    best = rows.assign(accuracy=rows["accuracy"].where(rows["tuned"] == "none", 1.0))  # as if they won everywhere
    without = rows[rows["tuned"] == "none"]
    assert list(side_by_side.tables(best).values())[:2] == list(side_by_side.tables(without).values())
    assert side_by_side.ledger(best).data.equals(side_by_side.ledger(without).data)

    def steps(table):
        lines = [line for axis in side_by_side.figure(table).axes for line in axis.lines]
        return [line.get_xydata().tolist() for line in lines if line.get_drawstyle() == "steps-post"]

    assert steps(best) == steps(without)


def test_what_refinement_gains_is_read_off_the_rows():
    about = {"network": "mlp", "budget": 0.25, "tuned": "refined without labels"}
    ours = about | {"chooser": "exact-Fisher", "factors": "fisher-weighted", "untuned_accuracy": 0.9, "accuracy": 0.91}
    rivals = [
        about | {"chooser": "ENC-Map", "factors": "svd", "untuned_accuracy": 0.6, "accuracy": 0.85},
        about | {"chooser": "fixed", "factors": "data-aware", "untuned_accuracy": 0.8, "accuracy": 0.87},
    ]
    untouched = {"network": "mlp", "budget": 0.25, "tuned": "none", "chooser": "fixed", "accuracy": 0.99}
    table = pd.DataFrame([untouched, ours, *rivals])
    assert side_by_side.refined_beside(table)["gained"].round(6).tolist() == [1, 25, 7]
    assert side_by_side.refined_in_words(table) == (
        "- `mlp` at 25 % of the MACs: refinement gains 1.0 points for *exact, Fisher* (fisher-weighted), 25.0 points for "
        "*ENC-Map* (svd), 7.0 points for *fixed* (data-aware). Then *exact, Fisher* has 91.0 %, the better of the other two "
        "87.0 %."
    )


# ---- what notebook 06 says beside its table


def bench_of(images, **rows):
    """A table with one network; rows: {chooser: columns}, a second file of a chooser behind an underscore."""
    bench = benchmark.Bench(images, 1)
    for name, columns_ in rows.items():
        chooser = name.split("_")[0].replace("Fisher", "exact-Fisher")
        bench.entries.append(({"network": "mlp", "chooser": chooser} | columns_, None))
    return bench


TABLE = {
    "dense": {"accuracy": 0.9, "bytes": 1200},
    "dense_8": {"accuracy": 0.896, "bytes": 300, "runtime": "onnxruntime", "bits": 8},
    "Fisher": {"accuracy": 0.89, "tuned_accuracy": 0.9, "factors": "svd"},
    "Fisher_8": {"accuracy": 0.885, "bytes": 99, "factors": "svd", "runtime": "onnxruntime", "bits": 8},
    "units": {"accuracy": 0.87},
    "magnitude": {"accuracy": 0.85, "tuned_accuracy": 0.88},
}


@pytest.mark.parametrize(
    ("chooser", "column", "value", "untrue"),
    [
        ("dense_8", "accuracy", 0.894, "8 bit loses less than half a point"),
        ("Fisher_8", "bytes", 101, "low rank and 8 bit: a twelfth of the file, less than 2 points lost"),
        ("Fisher_8", "accuracy", 0.879, "low rank and 8 bit: a twelfth of the file, less than 2 points lost"),
        ("units", "accuracy", 0.885, "low rank more than a point ahead of units"),
        ("magnitude", "accuracy", 0.885, "low rank more than a point ahead of zeros by magnitude"),
        ("magnitude", "tuned_accuracy", 0.895, "the same, both fine-tuned"),
    ],
)
def test_each_statement_is_read_off_its_own_numbers(images, chooser, column, value, untrue):
    held = side_by_side.statements(bench_of(images, **TABLE), "mlp", "svd")
    assert len(held) == 5 and all(held.values())
    changed = TABLE | {chooser: TABLE[chooser] | {column: value}}
    held = side_by_side.statements(bench_of(images, **changed), "mlp", "svd")
    assert [statement for statement, holds in held.items() if not holds] == [untrue]


def test_a_statement_without_its_entry_says_so(images):
    with pytest.raises(ValueError, match="the table has no 'dense' of 'cnn'"):
        side_by_side.statements(bench_of(images, **TABLE), "cnn", "svd")


def test_published_convex_rows_are_those_of_the_same_size_networks_and_seed():
    row = {"network": "a", "seed": 1, "budget_kind": "kept", "budget": 0.2, "refit": "least squares"}
    row |= {"cut": "to budget", "stored_as": "low rank", "bytes": 80.0, "parameters_kept": 0.2}
    others = {"network": "b", "seed": 0, "budget": 0.1, "refit": "none", "cut": "fixed", "stored_as": "dense"}
    published = [row, row | {"stored_as": "sparse", "bytes": 400.0}, *(row | {k: v} for k, v in others.items())]
    found = side_by_side.published_convex_rows(pd.DataFrame(published), {"a": 100}, seed=1)
    assert found[["stored_as", "bytes"]].to_numpy().tolist() == [["low rank", 80], ["sparse", 4 * 0.2 * 100]]
    assert set(found["source"]) == {"gallery"} and set(found["needs"]) == {"images"}


def test_right_answers_and_mcnemar_by_hand(model, images):
    inputs, labels = images.tensors("test", limit=120)
    right = side_by_side.right_answers(model, inputs, labels)
    assert float(right.double().mean()) == pytest.approx(training.evaluate(model, inputs, labels).accuracy)
    assert not side_by_side.right_answers(model, inputs, model(inputs).argmin(1)).any()
    best, other = torch.ones(9).bool(), torch.tensor([True] * 5 + [False] * 4)
    best[0] = False  # alone right 4 times, the other once
    assert side_by_side.mcnemar([other, best]) == pytest.approx([3 / 5**0.5, 0])


def test_code_runs_in_a_new_process_and_a_failure_is_one_sentence(tmp_path):
    (tmp_path / "word").write_text("here")
    assert side_by_side.in_new_process("print(open('word').read())", tmp_path) == "here"
    with pytest.raises(RuntimeError, match="the new process failed: ZeroDivisionError: division by zero"):
        side_by_side.in_new_process("1 / 0", tmp_path)


def test_relative_difference_by_hand():
    expected = torch.tensor([3.0, 4.0], requires_grad=True)
    assert side_by_side.relative_difference(torch.tensor([3.0, 5.0]), expected) == pytest.approx(0.2)


def test_even_ranks_are_multiples_as_large_as_fit(one):
    plan, multiple = side_by_side.even_plan(one, 0.5, 4)
    assert multiple == 4 and plan and all(parse_entry(entry)[1] % 4 == 0 for entry in plan.values())
    assert plan_cost(one.profile, plan) <= 0.5 * plan_cost(one.profile, {})
    plan, multiple = side_by_side.even_plan(one, 0.3, 64)  # no layer has 64 components
    assert multiple < 64 and all(parse_entry(entry)[1] % multiple == 0 for entry in plan.values())
    with pytest.raises(ValueError):
        side_by_side.even_plan(one, 0.01, 4)  # the dense layers alone hold more


def test_speed_is_told_beside_accuracy(images):
    large, small = (nn.Sequential(nn.Flatten(), nn.Linear(64, d), nn.ReLU(), nn.Linear(d, 10)) for d in (4000, 8))
    test = images.tensors("test", limit=100)
    faster = side_by_side.faster_than_dense({("even", "torch"): (small.eval(), large.eval())}, test)
    accuracy = 100 * training.evaluate(small, *test).accuracy
    assert faster.index.tolist() == [(f"even, {accuracy:.1f} %", "torch")]
    assert faster.columns.tolist() == ["batch 1", "batch 64"] and faster["batch 64"].iloc[0] > 2


def test_time_by_operation_is_shares_of_one(model, images):
    spent = side_by_side.time_by_operation(model, images.tensors("test", limit=64)[0], repeats=3)
    assert spent.sum() == pytest.approx(1) and spent.is_monotonic_decreasing
    assert "aten::addmm" in spent.index


def test_the_explorer_measures_each_plan_once_and_shows_what_is_asked(one, monkeypatch):
    measured = []
    scores = type(one.goodness).scores
    monkeypatch.setattr(type(one.goodness), "scores", lambda self, net: measured.append(net) or scores(self, net))
    explored = side_by_side.PlanExplorer(one, 0.4)
    figure = explored.figure()
    assert len(measured) == 2 and explored.figure(0.9, 0.4) and len(measured) == 2
    explored.figure(0.5)
    assert len(measured) == 3  # another threshold, the same exact plan
    left, _, right = figure.axes
    assert left.get_title().startswith(explored.layers[len(explored.layers) // 2])
    points = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in right.lines}
    assert points["dense"] == (1, one.goodness.dense().accuracy)
    assert points["exact, 40% of MACs"][0] <= 0.4
    assert "dense" in explored.figure(1.0, layer=explored.layers[0]).axes[0].get_title()


def test_sliders_draw_the_figure_again(one):
    controls = side_by_side.PlanExplorer(one, 0.4).sliders().children
    threshold, kept, layer, picture = controls
    assert (threshold.value, kept.value) == (0.9, 0.4) and list(layer.options) == ["1", "3"]
    before = bytes(picture.value)
    layer.value = layer.options[0] if layer.value != layer.options[0] else layer.options[1]
    assert picture.value != before and io.BytesIO(picture.value).read(4) == b"\x89PNG"


def test_bad_input_is_named(images, model):
    with pytest.raises(ValueError, match="names no network"):
        side_by_side.experiment(images, {}, **ABOUT)
    with pytest.raises(ValueError, match="share=0 is not a share"):
        side_by_side.experiment(images, {"mlp": model}, shares=(0,), **ABOUT)
    with pytest.raises(ValueError, match="curve='loss' is neither"):
        side_by_side.experiment(images, {"mlp": model}, curve="loss", **ABOUT)
    with pytest.raises(ValueError, match="refine_steps=-1 is not a whole number of at least 0"):
        side_by_side.experiment(images, {"mlp": model}, refine_steps=-1, **ABOUT)
    bench = benchmark.Bench(images, 1)
    with pytest.raises(ValueError, match="finetuned names 'exact, Fisher', which is no method of the table"):
        benchmark.fine_tune(bench, ["exact, Fisher"])
    with pytest.raises(ValueError, match="the table has no 'units' of 'mlp'"):
        bench.entry("mlp", "units")
