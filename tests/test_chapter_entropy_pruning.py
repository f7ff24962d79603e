"""Chapter 03: the ways to prune, their rows, what figures, tables and sentences read from them, and the lesson's cells."""

import dataclasses
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from conftest import check_calls as checks
from conftest import notebook_cells as cells
from lowrank_utils import paths
from lowrank_utils.lab import columns, data, score, training
from lowrank_utils.network.profile import plan_cost
from lowrank_utils.ranks import components, units
from lowrank_utils.workbook import controls
from lowrank_utils.workbook.chapters import entropy_lesson as lesson
from lowrank_utils.workbook.chapters import entropy_pruning as chapter
from lowrank_utils.workbook.chapters import entropy_pruning_experiment

NOTEBOOK = paths.NOTEBOOKS / f"{chapter.NOTEBOOK}.ipynb"
SOLUTIONS = paths.SOLUTIONS / NOTEBOOK.name

ABOUT = {"dataset": "digits", "network": "lenet300"}
TWO = ("from scratch", "magnitude")


@pytest.fixture(scope="module")
def lab():
    images = data.load("digits", seed=0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))
    x, y = images.tensors("train")
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return chapter.laboratory(images, model.eval(), calibration_images=200, bins=8, seed=0, **ABOUT)


@pytest.fixture(scope="module")
def rows(lab):
    some = [way for way in chapter.ways() if "output" in way.chooser or way.chooser == "energy"]
    made = [lab.dense_row(), *chapter.at_sizes(lab, some, (0.3, 0.6)), *chapter.smallest(lab, 0.02, some[:2])]
    return columns.table(made + chapter.fine_tuned(lab, 5, [some[0]], [0.5], "cpu"))


@pytest.fixture(scope="module")
def taught(lab):
    return chapter.experiment(lab, shares=(0.2, 0.3, 0.6), drop=0.05, finetune_steps=3, device="cpu")


def test_ways_are_31_and_each_has_a_name_of_its_own():
    ways = chapter.ways()
    assert len(ways) == len(set(ways)) == len({(way.method, way.written_as) for way in ways}) == 31
    assert set(chapter.TUNED) < set(chapter.TAUGHT) == set(chapter.ways_of("six")) < set(chapter.ways_of("all"))
    with pytest.raises(ValueError, match="rankings='seven' is unknown"):
        chapter.ways_of("seven")


@pytest.mark.parametrize("way", chapter.ways(), ids=lambda way: f"{way.method}, {way.written_as}")
def test_every_way_meets_its_budget_and_leaves_the_network_alone(lab, way):
    before = [p.clone() for p in lab.model.parameters()]
    small = chapter.build(lab, way, 0.5)
    assert 0.35 < score.parameters(small) / lab.size <= 0.5
    assert all(torch.equal(a, b) for a, b in zip(before, lab.model.parameters(), strict=True))


def test_rows_are_one_network_each_in_columns(rows):
    columns.check(rows)
    assert not rows.duplicated([key for key in (*columns.RUN, *columns.KEY) if key in rows]).any()
    sized = rows[rows["budget_kind"] == "kept"]
    assert (sized["parameters_kept"] <= sized["budget"]).all()
    assert (rows["tuned"] == "fine-tuned").sum() == 2
    control = rows[rows["chooser"] == "dense control"]
    assert control["parameters_kept"].tolist() == [1.0] and control["budget_kind"].tolist() == ["dense"]


def test_the_smallest_network_loses_no_more_than_asked(lab, rows):
    found = rows[rows["budget_kind"] == "drop"]
    assert len(found) == 2 and (found["valid_accuracy"] >= lab.valid(lab.model) - 0.02 - 1e-9).all()
    assert (found["evaluations"] > 3).all() and (found["latency_ms_64"] > 0).all()


def test_figure_and_tables_name_the_rows_in_words(rows):
    shown = chapter.named(chapter.at_equal_size(rows))
    assert {"arsvd, every layer", "arsvd, classifier dense", "unit output"} <= set(shown["method"])
    assert set(shown.loc[shown["stored_as"] == "units", "written_as"]) == {"nothing", "folded", "refitted"}
    assert chapter.usable(rows).sum() == len(shown) - 2  # units without a refit stand in the table alone
    titles = " ".join(axis.get_title() for axis in chapter.figure(rows).axes)
    assert all(form in titles for form in chapter.FORMS.values())
    assert list(chapter.tables(rows)) == list(chapter.CAPTIONS)


def test_unit_damage_is_the_rise_of_the_loss_without_one_unit(lab):
    found = chapter.unit_damage(lab, "3")
    assert found.columns.tolist() == ["unit", "entropy", "output", "loss"] and found["unit"].tolist() == list(range(16))
    assert torch.allclose(torch.tensor(found["entropy"]), lab.activations["3"].entropy.cpu().double())
    valid = lab.images.tensors("valid")
    one = int(found["loss"].idxmax())  # the unit that is missed most
    rest = units.remove_units(lab.profile, {"3": [u for u in range(16) if u != one]}, activations=lab.activations)
    rise = training.evaluate(rest, *valid).loss - training.evaluate(lab.model, *valid).loss
    assert found["loss"][one] == pytest.approx(rise) and rise > 0
    drawn = [axis.lines[1].get_xydata() for axis in lesson.damage(found).axes]
    assert [len(points) for points in drawn] == [16, 16]
    assert drawn[1][one].tolist() == found.loc[one, ["output", "loss"]].tolist()
    with pytest.raises(ValueError, match="layer '5' has no hidden units"):
        chapter.unit_damage(lab, "5")  # the classifier


def test_without_a_component_a_layer_has_one_rank_less():
    net = nn.Sequential(nn.Linear(3, 3, bias=False))
    net[0].weight.data = torch.diag(torch.tensor([1.0, 5.0, 2.0]))
    rest = chapter.without_component(net, "0", 2)  # the second largest
    assert torch.allclose(rest[0].weight, torch.diag(torch.tensor([1.0, 5.0, 0.0])), atol=1e-6)
    assert net[0].weight[2, 2] == 2
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"component={wrong} is not one of the 3 components of layer '0'"):
            chapter.without_component(net, "0", wrong)


def test_an_experiment_is_all_of_it(taught):
    columns.check(taught)
    sizes = taught["budget_kind"].value_counts().to_dict()
    assert sizes == {"kept": 6 * 3 + 2, "drop": 6, "dense": 2}
    assert taught.loc[taught["tuned"] == "fine-tuned", "steps"].tolist() == [3] * 3
    assert set(taught.loc[taught["tuned"] == "fine-tuned", "rate"]) <= {0, *chapter.RATES}


def test_an_experiment_on_all_rankings_has_their_rows_too(lab, monkeypatch):
    few = [chapter.ways()[0], chapter.ways()[-1]]
    monkeypatch.setattr(entropy_pruning_experiment, "ways", lambda: few)
    found = chapter.experiment(lab, rankings="all", shares=(0.5,), finetune_steps=1, device="cpu")
    # the dense network, both ways at one size and at the drop, and the dense network fine-tuned and distilled
    assert len(found) == 1 + 2 + 2 + 2 and {"component entropy", "both output"} <= set(found["chooser"])
    assert sorted(found.loc[found["tuned"] != "none", "tuned"]) == ["distilled", "fine-tuned"]


# ---- single looks


def test_units_are_made_up_for_in_three_ways(lab):
    found = chapter.by_fill(lab, shares=(0.3, 0.6)).set_index(["fill", "share"])["lost"]
    net = chapter.fewer_units(lab, "unit entropy", 0.3, "folded")
    assert found["folded", 0.3] == pytest.approx(100 * (lab.valid(lab.model) - lab.valid(net)))
    assert len(found) == 6 and found["refitted", 0.3] < found["nothing", 0.3]


def test_random_plans_leave_the_classifier_dense(lab):
    found = chapter.random_plans(lab, 0.5, 3)
    assert len(found) == 3 and len(set(found)) > 1 and all(0 < accuracy < 1 for accuracy in found)


def test_bins_are_those_of_the_histogram(lab):
    few, usual = chapter.by_bins(lab, (2, 8), 0.4)
    assert usual == pytest.approx(lab.valid(chapter.build(lab, chapter.TAUGHT[3], 0.4)))
    assert 0 < few <= 1


def test_scores_for_each_parameter_favour_cheap_components(lab):
    read = lab.profile
    usual = components.components_plan(read, 0.4, rule="entropy", resource="parameters")
    plan = chapter.per_parameter_plan(read, 0.4)
    assert plan_cost(read, plan, "parameters") <= 0.4 * plan_cost(read, {}, "parameters")
    costly = max(read, key=lambda card: sum(card.shape)).name
    assert plan[costly] <= usual[costly]


def test_controls_are_those_of_the_same_network_only(taught):
    assert not len(controls.beside(taught, TWO))  # the gallery has none on digits
    dense = {"chooser": "dense", "dataset": "fashion-mnist", "network": "lenet300", "seed": 0}
    rows = controls.published()
    accuracy = rows.loc[
        (rows["network"] == "lenet300") & (rows["chooser"] == "dense") & (rows["bits"] == 32), "accuracy"
    ].iloc[0]
    found = controls.beside(pd.DataFrame([dense | {"accuracy": accuracy}]), TWO)
    assert set(found["method"]) == set(lesson.CONTROLS) and found["budget"].tolist() == [0.05, 0.1, 0.2] * 2
    assert not len(
        controls.beside(pd.DataFrame([dense | {"accuracy": accuracy - 0.1}]))
    )  # another network of this name
    assert not len(controls.beside(pd.DataFrame([dense | {"accuracy": accuracy, "seed": 1}])))


# ---- figures and sentences of the lesson


def test_units_are_drawn_as_weights_and_histograms():
    answers = torch.stack([torch.zeros(9), torch.arange(9.0)], 1)
    figure = lesson.units(torch.randn(2, 16), answers, [0.0, 2.0], [0, 1], 3, (1, 4, 4))
    above, below = figure.axes[:2], figure.axes[2:]
    assert [axis.get_title() for axis in above] == ["unit 0: H = 0.00", "unit 1: H = 2.00"]
    assert [axis.get_title() for axis in below] == ["0 for 100% of the images", "0 for 11% of the images"]
    assert [bar.get_height() for bar in below[1].patches] == [3, 3, 3]
    told = lesson.about_units({"fc1": np.array([0.0, 3.0])}, 32)
    assert "from 0.00 to 3.00 nats" in told and "50% of the 2 units" in told


def test_fills_are_drawn_and_told_as_measured():
    table = pd.DataFrame(
        {"fill": fill, "share": share, "lost": lost}
        for fill, both in (("nothing", (30, 5)), ("folded", (40, 4)), ("refitted", (3, 1)))
        for share, lost in zip((0.1, 0.6), both, strict=True)
    )
    told = lesson.about_fills(table, 0.15)
    assert "With 10% of the parameters kept, 30.0 points" in told and "40.0 if the means are folded" in told
    assert "ahead of doing nothing at 1 of 2 sizes" in told and "ahead of both at 2 of 2" in told
    (axis,) = lesson.fills(table).axes
    assert {text.get_text() for text in axis.texts} == {"nothing", "folded", "refitted"}


def test_the_ranking_shows_what_stays():
    rows = [("fc1", c, 1 / c, 2 / c) for c in (1, 2, 3)] + [("fc2", c, 1 / c, 1 / c) for c in (1, 2)]
    table = pd.DataFrame(rows, columns=["layer", "component", "score", "key"]).sample(frac=1, random_state=0)
    figure = lesson.ranking(table, {"fc1": 2})
    assert [axis.get_title() for axis in figure.axes] == ["fc1: 2 of 3 stay", "fc2: 2 of 2 stay"]
    term, stays, dropped = figure.axes[0].lines
    assert term.get_ydata().tolist() == [1, 0.5, 1 / 3]
    assert stays.get_xdata().tolist() == [1, 2] and dropped.get_ydata().tolist() == [2 / 3]
    assert len(figure.axes[1].lines) == 2  # no line of its own where score and key agree


def test_the_plan_is_told_as_it_is(lab):
    told = lesson.about_ranking(lab.profile, {"1": 3, "3": 2}, {"1": 3, "3": 2})
    assert told.startswith("`5` stays dense.") and told.endswith("The plan by energy is the same.")
    other = lesson.about_ranking(lab.profile, {"1": 3, "3": 2, "5": 1}, {"1": 4})
    assert other.startswith("No layer stays dense.") and "another one: {'1': 4}" in other


def test_a_share_above_the_peak_is_told_as_one(lab):
    (card,) = [card for card in lab.profile if card.name == "3"]
    assert "below 1/e" in lesson.about_ranking([card], {}, {})
    steep = dataclasses.replace(card, singular_values=np.array([10.0] + [1.0] * 15))
    assert "above 1/e" in lesson.about_ranking([steep], {}, {})
    marks = lesson.entropy_terms([0.9, 0.1], {"a": 0.2, "b": 0.5}).axes[0].texts
    assert {"a, its largest", "b, its largest"} <= {text.get_text() for text in marks}


def made(**accuracies):
    """Rows of a dense network at 90 % and of the six rankings at 20 % and at one point lost; of those not named at 80 %."""
    rows = [
        {
            "chooser": "dense",
            "factors": "none",
            "refit": "none",
            "stored_as": "dense",
            "budget_kind": "dense",
            "accuracy": 0.9,
        }
    ]
    for way in chapter.TAUGHT:
        accuracy = accuracies.get(way.chooser.replace(" ", "_"), 0.8)
        for kind, budget in (("kept", 0.2), ("drop", 0.01)):
            rows.append(
                way.columns
                | {"budget_kind": kind, "budget": budget, "accuracy": accuracy, "parameters_kept": 1 - accuracy}
            )
    return pd.DataFrame(rows).assign(seed=0, tuned="none")


def test_six_rankings_are_told_as_measured():
    rows = made(unit_entropy=0.7, unit_output=0.85, component_entropy=0.89)
    told = lesson.about_sizes(rows, 0.25)
    parts, units_told = told.split("- **Units**")
    assert (
        "20% of the parameters" in parts
        and "entropy 1.0, output 10.0, random 10.0" in parts
        and "random at 1 of 1 sizes" in parts
    )
    assert "entropy 20.0, output 5.0, random 10.0" in units_told and "random at 0 of 1" in units_told
    assert "output is ahead of entropy at 1 of 1" in units_told
    drop = lesson.about_drop(rows, 0.01)
    assert (
        "Components by entropy need 11.0% of the parameters, by output" in drop
        and "Units by entropy need 30.0% of the parameters, by output 15.0%, and in a random order 20.0%" in drop
    )
    assert "5 of the 6 networks lose more than the 1 point " in drop  # 1.0 point is within it


def test_seeds_are_counted_as_measured():
    rows = made(unit_entropy=0.7, unit_output=0.803)
    line = next(line for line in lesson.about_seeds(rows).splitlines() if "units | entropy minus random" in line)
    assert "not reached | -10.0 (-10.0 to -10.0); 0 / 0 / 1 | not reached" in line
    near = next(line for line in lesson.about_seeds(rows).splitlines() if "units | output minus random" in line)
    assert "+0.3 (+0.3 to +0.3); 0 / 1 / 0" in near
    answer = lesson.about_answer(rows)
    assert "We count seed 0" in answer and "entropy is ahead in 0, level in 0 and behind in 1" in answer
    assert "entropy 30%, output 20%, random 20%" in answer


def test_random_orders_are_told_beside_the_classifier(lab):
    read = list(lab.profile)
    told = lesson.about_random(
        read, {"entropy": {"1": 2}, "random": {"5": 3}}, {"entropy": [1.0], "random": [2.0, 4.0]}
    )
    assert "Entropy leaves it dense, the random order leaves it rank 3" in told
    assert "lose 2.0 to 4.0 points" in told and "ahead of every draw" in told
    for mine, words in ((3.0, "within these draws"), (5.0, "behind every draw")):
        assert words in lesson.about_random(
            read, {"entropy": {}, "random": {}}, {"entropy": [mine], "random": [2.0, 4.0]}
        )


def test_damage_is_told_as_correlated():
    table = pd.DataFrame({"entropy": [1.0, 2, 3], "output": [3.0, 1, 2], "loss": [-1.0, 0, 1]})
    told = lesson.about_damage(table, "fc2")
    assert (
        "1.00 for entropy and -0.50 for output" in told
        and "unit of `fc2`" in told
        and "For 2 of the 3 the loss" in told
    )


def test_controls_are_told_where_they_are_ahead():
    rows = made(component_entropy=0.8, unit_entropy=0.7)
    tuned = [
        way.columns
        | {"budget_kind": "kept", "budget": 0.2, "accuracy": 0.85, "parameters_kept": 0.2, "tuned": "fine-tuned"}
        for way in chapter.TUNED
    ]
    control = chapter.CONTROL.columns | {"budget_kind": "dense", "accuracy": 0.91, "tuned": "fine-tuned"}
    rows = pd.concat([rows, pd.DataFrame([*tuned, control]).assign(seed=0)], ignore_index=True)
    beside = pd.DataFrame(
        {"method": ["from scratch", "magnitude"], "budget": 0.2, "parameters_kept": 0.2, "accuracy": [0.86, 0.852]}
    )
    told = lesson.about_controls(rows, beside)
    assert "- *trained from scratch*: +1.0 at 20% kept. It is ahead by 0.5 points or more at 1 of 1 sizes." in told
    assert "- *magnitude, fine-tuned*: +0.2 at 20% kept. It is ahead by 0.5 points or more at 0 of 1 sizes." in told
    assert "| 20% | 80.0 | 85.0 | 70.0 | 85.0 | 86.0 | 85.2 |" in told
    assert "-1.0 at 20% kept" in lesson.about_controls(rows, beside.assign(accuracy=0.84))
    assert "from 90.0 to 91.0%" in lesson.about_fine_tuning(rows)
    names = [text.get_text() for text in lesson.controls(rows, beside).axes[0].texts]
    assert sorted(names) == sorted(["entropy, cut", "entropy, fine-tuned", *lesson.CONTROLS.values()])


def test_figures_of_a_run_without_controls_say_so(taught):
    none = controls.beside(taught, TWO)
    assert "no controls of this network" in lesson.about_controls(taught, none)
    assert "no controls of this network in the gallery" in [
        t.get_text() for t in lesson.controls(taught, none).axes[0].texts
    ]
    assert [len(axis.lines) for axis in lesson.points_lost(taught).axes] == [3, 3]
    assert len(lesson.smallest(taught).axes[0].patches) == 6
    assert [len(axis.lines) for axis in lesson.advantage(taught).axes] == [5, 5]


@pytest.mark.parametrize("answer", [..., None, "many", [0.5], [[0.1, 0.2]], object()])
def test_a_curve_without_an_answer_says_so_in_the_figure(answer):
    others = {"output": 0.8, "random": 0.6}
    (axis,) = lesson.bins_curve([2, 8], others, answer).axes
    assert len(axis.lines) == 2 and "no answer of 2 numbers yet" in " ".join(text.get_text() for text in axis.texts)
    (axis,) = lesson.bins_curve([2, 8], others, [0.7, 0.75]).axes
    assert axis.lines[2].get_ydata().tolist() == [0.7, 0.75]
    told = lesson.about_bins([2, 8], others, [0.7, 0.75])
    assert (
        "With 8 bins" in told
        and "The worst number of bins gives 70.0%" in told
        and "output 80.0% and random 60.0%" in told
    )


# ---- the notebook and its solutions


@pytest.mark.parametrize("path", [NOTEBOOK, SOLUTIONS], ids=["lesson", "solutions"])
def test_cells_are_short_and_state_no_verdict(path):
    for cell in cells(path):
        assert len(cell.source.splitlines()) <= 12 or "parameters" in cell.metadata.get("tags", []), cell.source
        assert "lambda" not in cell.source
        said = "".join(o.get("text", "") for o in cell.outputs)
        assert not re.search(r"(?<!=)\b(True|False)\b", said), said
    ignored = [cell.source for cell in cells(path) if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    assert len(ignored) == 1 and "torch.__version__" in ignored[0]


def test_lesson_and_solutions_ask_the_same_of_four_answers():
    asked = checks(NOTEBOOK)
    assert len(asked) == 4 and checks(SOLUTIONS) == asked
    for path, words in ((SOLUTIONS, "right\n"), (NOTEBOOK, "not answered\n")):
        checked = [cell for cell in cells(path) if "check(\n" in cell.source]
        assert ["".join(output.text for output in cell.outputs) for cell in checked] == [words] * 4


def test_links_to_the_glossary_have_a_target():
    glossary = nbformat.read(paths.NOTEBOOKS / "00_low_rank_in_ten_minutes.ipynb", as_version=4)
    words = re.findall(r"^##+ (.*)$", "\n".join(c.source for c in glossary.cells if c.cell_type == "markdown"), re.M)
    text = "\n".join(c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells)
    linked = set(re.findall(r"ten_minutes\.ipynb#([\w-]+)", text))
    assert len(linked) > 8 and linked <= {word.lower().replace(" ", "-") for word in words}
