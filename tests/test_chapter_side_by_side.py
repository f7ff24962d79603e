"""Chapter 06: the experiment's rows, and what figures and tables read from them."""

import copy

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
from lowrank_utils.workbook import bench_figures as draw
from lowrank_utils.workbook import benchmark, controls
from lowrank_utils.workbook.chapters import side_by_side, side_by_side_experiment

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
    seen, unseen = compression.held_apart(calibration, 0)
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
    right = [float(each.mean()) for each in bench.right]
    assert right == [row["accuracy"] for row, _ in bench.entries] and len({each.shape for each in bench.right}) == 1


def test_refinement_is_asked_for_at_every_share_or_not_at_all(images, model, monkeypatch):
    asked = []
    for name in ("searched", "low_rank_rows", "other_rows", "onnx_rows", "fine_tune", "subject"):
        monkeypatch.setattr(side_by_side_experiment, name, lambda *_, **__: None)
    monkeypatch.setattr(benchmark.Bench, "table", lambda self: None)
    monkeypatch.setattr(
        side_by_side_experiment, "refined_rows", lambda bench, one, share, steps: asked.append((share, steps))
    )
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
    assert {"dense", "low rank", "units", "zeros", "8 bit", "refined", "Pareto front"} == labels
    assert list(side_by_side.tables(rows))[1:] == list(side_by_side.CAPTIONS)[1:]
    crossed, ways, refined = side_by_side.tables(rows).values()
    assert "| exact, Fisher |" in crossed and crossed.count("\n") == 1 + 9
    assert "| exact, Fisher | sequential in onnxruntime, 8 bit | macs 0.40 |" in ways
    assert "| Net-Trim, cut, refit | refit | epsilon 0.1 |" in ways and "| evbmf | sequential | own size |" in ways
    assert refined.count("\n") == 1 + 3 and "| exact, Fisher | fisher-weighted |" in refined
    assert side_by_side.usable(rows).all()


def test_refined_rows_change_no_table_and_no_front_of_the_others(rows):
    best = rows.assign(accuracy=rows["accuracy"].where(rows["tuned"] == "none", 1.0))  # as if they won everywhere
    without = rows[rows["tuned"] == "none"]
    assert list(side_by_side.tables(best).values())[:2] == list(side_by_side.tables(without).values())

    def steps(table):
        lines = [line for axis in side_by_side.figure(table).axes for line in axis.lines]
        return [line.get_xydata().tolist() for line in lines if line.get_drawstyle() == "steps-post"]

    assert steps(best) == steps(without)


def test_what_tuning_gains_is_read_off_the_rows():
    about = {"network": "mlp", "budget": 0.25, "tuned": "refined without labels", "tuned_accuracy": np.nan}
    ours = about | {"chooser": "exact-Fisher", "factors": "fisher-weighted", "untuned_accuracy": 0.9, "accuracy": 0.91}
    rivals = [
        about | {"chooser": "ENC-Map", "factors": "svd", "untuned_accuracy": 0.6, "accuracy": 0.85},
        about | {"chooser": "fixed", "factors": "data-aware", "untuned_accuracy": 0.8, "accuracy": 0.87},
    ]
    learned = {"network": "mlp", "budget": 0.25, "tuned": "none", "chooser": "fixed", "accuracy": 0.9, "factors": "svd"}
    table = pd.DataFrame([learned | {"tuned_accuracy": 0.93}, learned | {"tuned_accuracy": 0.89}, ours, *rivals])
    assert side_by_side.refined_beside(table)["gained"].round(6).tolist() == [1, 25, 7]
    assert side_by_side.about_tuned(table) == (
        "- `mlp` at 25 % of the MACs, refined without labels: +1.0 (exact, Fisher, fisher-weighted), +25.0 (ENC-Map, plain), "
        "+7.0 (fixed, data-aware) points.\n- `mlp`, fine-tuned with labels: -1.0 to +3.0 points; 1 of 2 networks became worse."
    )


def test_the_decision_table_reads_each_choice_and_leaves_open_what_was_not_measured(rows):
    told = side_by_side.decision(rows, 0.4)
    lines = told.splitlines()
    assert lines[0] == "| situation | take | trained | mlp |" and len(lines) == 2 + len(side_by_side.CASES)
    units = rows[(rows["chooser"] == "units") & (rows["runtime"] == "torch")].iloc[0]
    dense = rows[(rows["chooser"] == "dense") & (rows["runtime"] == "torch")].iloc[0]
    change = 100 * (units["accuracy"] - dense["accuracy"])
    assert f"| units removed | no | {change:+.1f} points, {units['bytes'] / 1000:.0f} kB |" in told
    assert "| `compress`, which refines | without labels |" in told
    without = side_by_side.decision(rows[rows["chooser"] != "units"], 0.4)
    assert "| units removed | no | - |" in without


def test_sentences_and_figures_of_the_lesson_read_the_rows(rows):
    told = side_by_side.about_crossed(rows, 0.4)
    assert told.count("plain") == 1 and "sequential" in told
    (axis,) = draw.crossed(rows, 0.4).axes
    assert len(axis.texts) == 9 * 2 and "exact, Fisher (images)" in [t.get_text() for t in axis.get_yticklabels()]
    (axis,) = draw.tuned(rows).axes
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert sum(name.endswith("refined") for name in names) == 3 and "magnitude, fine-tuned" in names
    (axis,) = draw.speed(rows).axes
    assert "dense" not in [text.get_text() for text in axis.get_yticklabels()]
    slow, fast = (side_by_side.about_speed(rows.assign(faster_1=ratio)) for ratio in (1.1, 3.0))
    assert "gains next to nothing" in slow and "gains next to nothing" not in fast
    speeds = {"torch": 1.0, "onnxruntime": 5.0}
    ours = rows["chooser"] == "exact-Fisher"
    runtimes = [speeds[name] + 2 * (name == "onnxruntime" and low) for name, low in zip(rows["runtime"], ours)]
    told = side_by_side.about_speed(rows.assign(faster_1=runtimes, faster_64=runtimes))
    assert "in onnxruntime 1.4 and 1.4 times. The dense network itself is 5.0 and 5.0 times" in told


def test_the_pareto_front_has_nothing_that_was_trained_after_the_cut(rows):
    front = draw.pareto(rows.assign(accuracy=rows["accuracy"].where(rows["tuned"] == "none", 1.0)), "bytes")
    assert (front["tuned"] == "none").all() and front["bytes"].is_monotonic_increasing
    assert front["accuracy"].is_monotonic_increasing and front["accuracy"].is_unique


def test_the_ledger_by_hand():
    counted = side_by_side.ledger(300, 784, 20, 0.1)
    assert counted.loc["dense"].tolist() == [235_200, 235_200, 940_800]
    assert counted.loc["90% zeros, with indices"].tolist() == [35_280, 23_520, 141_120]
    assert counted.loc["90% zeros, stored dense"].equals(counted.loc["dense"].rename("90% zeros, stored dense"))
    assert [len(axis.patches) for axis in draw.ledger_bars(counted).axes] == [6, 6, 6]


def test_seeds_are_held_against_their_own_dense_network():
    about = {"network": "a", "dataset": "d", "runtime": "torch", "bits": 32, "tuned": "none", "budget": 0.25}
    cut = about | {"factors": "svd", "budget_kind": "macs"}
    rows = [
        about | {"chooser": "dense", "budget_kind": "dense", "seed": s, "accuracy": a} for s, a in ((0, 0.9), (1, 0.8))
    ]
    rows += [cut | {"chooser": "fixed", "seed": s, "accuracy": a} for s, a in ((0, 0.85), (1, 0.77))]
    rows += [cut | {"chooser": "exact", "seed": s, "accuracy": 0.8} for s in (0, 1)]
    table = pd.DataFrame(rows)
    lost = draw.lost_by_seed(table, 0.25, ["svd"]).set_index(["chooser", "seed"])["lost"].round(6)
    assert lost.to_dict() == {("fixed", 0): 5, ("fixed", 1): 3, ("exact", 0): 10, ("exact", 1): 0}
    assert "- `a`: plain 1.0 (seeds " in side_by_side.about_seeds(table, 0.25, ["svd"])
    assert len(draw.over_seeds(table, 0.25, ["svd"]).axes) == 1
    none = table[table["network"] == "b"]
    assert side_by_side.about_seeds(none, 0.25, ["svd"]).startswith("The gallery has no rows")
    assert "no rows" in draw.over_seeds(none, 0.25, ["svd"]).axes[0].texts[0].get_text()


def test_ties_are_counted_by_the_exact_test(images, model):
    bench = benchmark.Bench(images, 1)
    x, y = images.tensors("test")
    about = {"network": "mlp", "budget_kind": "macs", "budget": 0.4, "stored_as": "low rank", "tuned": "none"}
    about |= {
        "notebook": "06_side_by_side",
        "dataset": "digits",
        "seed": 0,
        "scope": "hidden layers",
        "factors": "svd",
        "bits": 32,
        "runtime": "torch",
    }
    torch.manual_seed(5)
    for chooser, net in (
        ("exact", model),
        ("fixed", copy.deepcopy(model)),
        ("ENC-Map", nn.Sequential(nn.Flatten(), nn.Linear(64, 10))),
    ):
        accuracy = training.evaluate(net, x, y).accuracy
        bench.entries.append((about | {"chooser": chooser, "plan": chooser, "accuracy": accuracy}, net))
        bench.right.append((training.outputs(net, x).argmax(1) == y).numpy())
    right = {"mlp": side_by_side.answers(bench, "mlp", 0.4)}
    assert right["mlp"].shape == (3, len(x)) and right["mlp"][0].mean() == training.evaluate(model, x, y).accuracy
    told = side_by_side.about_ties(right)
    assert "`mlp`: of the other 2 networks, 1 cannot be told from the best one." in told
    assert "of 3 on the other half. Among networks that are all equally good it would be about number 2.0." in told
    assert "- `mlp`: " in side_by_side.about_best(right, 0.4)


def test_a_choice_on_one_half_is_judged_on_the_other():
    draw = np.random.default_rng(0)
    clear = np.stack([draw.random(400) < chance for chance in (0.2, 0.9, 0.5)])
    assert side_by_side.place_elsewhere(clear) == 1.0
    alike = draw.random((9, 400)) < 0.7  # the best on one half is anyone on the other, and rather worse
    assert 4 < side_by_side.place_elsewhere(alike) < 9
    few = np.repeat(np.arange(8) < 6, 50)[None]  # 300 of 400 right
    assert "75.0% right, with a standard error of 2.17 points" in side_by_side.about_best({"few": few}, 0.25)


def test_controls_that_win_are_named():
    said = side_by_side.about_controls(controls.published())
    assert (
        "ahead of ours" in said
        and "- 8 bits, dynamic, points against 32 bits: dense" in said
        and "- 8 bits, static" in said
        and "batch norms recalibrated" in said
    )
    mine = controls.published()
    mine = controls.shown(mine[(mine["network"] == "vgg_small") & (mine["draw"] == 0) & (mine["bits"] == 32)])
    by = mine.set_index(["tuned", "method", "budget"])["accuracy"]
    change = 100 * (by["recalibrated"] - by["none"]).dropna()
    assert len(change) == 4
    told = side_by_side.about_controls(controls.published()).split("**`vgg_small`**")[1]
    assert f"recalibrated, of all networks that were: {change.min():+.1f} to {change.max():+.1f} points" in told
    assert draw.beaten(controls.published()).axes[0].get_xlabel() == "points ahead of ours"


def test_what_learners_are_asked_for(one, images, model):
    share, cells = side_by_side.at_tight_budget(one, ["svd"], evaluations=1)
    assert share in side_by_side.TIGHT and list(cells) == ["svd"] and len(cells) == len(benchmark.NEEDS)
    plan = side_by_side.plan_by_parameters(one, 0.4)
    assert plan_cost(one.profile, plan, "parameters") <= 0.4 * plan_cost(one.profile, {}, "parameters")
    smaller = {k: lowrank_utils.compress(model, one.profile.calibration, kept=k, refine=False) for k in (0.8, 0.4)}
    lost = side_by_side.points_lost(model, smaller, images)
    valid = images.tensors("valid")
    dense, cut = (training.evaluate(net, *valid).accuracy for net in (model, smaller[0.4].model))
    assert lost[1] == 100 * (dense - cut)
    told = side_by_side.about_rises(smaller, [-2 * one.found.value for one in smaller.values()])
    assert (
        told == "The measured rise of the loss is 2.0 to 2.0 times the predicted one. It is larger in 2 of 2 networks."
    )
    assert "no answer" in draw.foretold(smaller, ...).axes[0].texts[0].get_text()
    assert len(draw.foretold(smaller, lost).axes[0].lines) == 1
    assert len(side_by_side.few(images, 7).train.labels) == 7


def test_published_convex_rows_are_those_of_the_same_size_networks_and_seed():
    row = {"network": "a", "seed": 1, "budget_kind": "kept", "budget": 0.2, "refit": "least squares"}
    row |= {"cut": "to budget", "stored_as": "low rank", "bytes": 80.0, "parameters_kept": 0.2}
    others = {"network": "b", "seed": 0, "budget": 0.1, "refit": "none", "cut": "fixed", "stored_as": "dense"}
    published = [row, row | {"stored_as": "sparse", "bytes": 400.0}, *(row | {k: v} for k, v in others.items())]
    found = side_by_side.published_convex_rows(pd.DataFrame(published), {"a": 100}, seed=1)
    assert found[["stored_as", "bytes"]].to_numpy().tolist() == [["low rank", 80], ["sparse", 4 * 0.2 * 100]]
    assert set(found["source"]) == {"gallery"} and set(found["needs"]) == {"images"}


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
