"""Chapters 01 and 02: the experiments' rows, and what figures and tables read from them."""

import dataclasses
import json
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
from lowrank_utils.lab import columns, data, training
from lowrank_utils.lab.training import Recipe, fit
from lowrank_utils.network.profile import profile
from lowrank_utils.ranks import rules
from lowrank_utils.workbook import audit, contest
from lowrank_utils.workbook.chapters import arsvd
from lowrank_utils.workbook.chapters import arsvd_lesson as lesson
from lowrank_utils.workbook.chapters import training as chapter_training

ABOUT = {"dataset": "digits", "network": "toy", "seed": 0}
SHARES = (0.2, 0.3, 0.6)
NOTEBOOK = paths.NOTEBOOKS / f"{arsvd.NOTEBOOK}.ipynb"
SOLUTIONS = paths.SOLUTIONS / NOTEBOOK.name


@pytest.fixture(scope="module")
def images():
    return data.load("digits", seed=0)


@pytest.fixture(scope="module")
def trained(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 10))
    history = fit(model, images, Recipe(6, 64, 5e-3, 0.0), seed=0, device="cpu", progress=False)
    return model.eval(), history


@pytest.fixture(scope="module")
def rows(images, trained):
    return arsvd.experiment(
        images, trained[0], threshold=0.6, drop=0.02, calibration_images=300, shares=SHARES, **ABOUT
    )


def test_each_row_is_one_network_in_columns(rows):
    columns.check(rows)
    assert not rows.duplicated([key for key in (*columns.RUN, *columns.KEY) if key in rows]).any()
    assert (rows["chooser"] == "dense").sum() == 1 and set(rows["notebook"]) == {"02_arsvd"}
    cut = rows[rows["chooser"] != "dense"]
    assert cut["valid_accuracy"].notna().all() and set(cut["scope"]) == {"every layer", "hidden layers"}
    assert set(cut["budget_kind"]) == {"kept", "own", "drop", "threshold"} and set(cut["factors"]) == {
        "svd",
        "data-aware",
    }


def nets():
    """The trained network of the tests of controls."""
    return training.trained(data.load("digits", seed=0), "lenet300", 0, device="cpu")[0]


@pytest.fixture(scope="module")
def controlled(images):
    model, _ = training.trained(images, "lenet300", 0, device="cpu")
    about = {"dataset": "digits", "network": "lenet300", "seed": 0}
    return arsvd.experiment(
        images, model, calibration_images=100, shares=(0.1, 0.2), drop=0.02, controls=True, steps=5, **about
    )


def test_controls_are_rows_of_their_own_that_no_comparison_of_the_rules_reads(controlled):
    columns.check(controlled)
    tuned = controlled[controlled["tuned"] != "none"]
    assert sorted(zip(tuned["budget"], tuned["tuned"], tuned["chooser"])) == sorted(
        (share, *how)
        for share in arsvd.TRAINED
        for how in (*((how, rule) for how in contest.TRAINED for rule in arsvd.CHOSEN), ("from scratch", "energy"))
    )
    cut = controlled[controlled["chooser"] != "dense"]
    assert (
        cut[["accuracy_corrupted", "accuracy_noise", "memory_64", "latency_ms_1", "faster_64"]].notna().all(axis=None)
    )
    kept = {
        (rule, share): set(part["plan"])
        for (rule, share), part in cut[cut["scope"] == "hidden layers"].groupby(["chooser", "budget"])
    }
    assert kept["random", 0.1].isdisjoint(kept["energy", 0.1]) and (cut["parameters_kept"] <= 1).all()
    problems = audit.by_rows(controlled)
    assert (
        problems[3] == ""
        and problems[5] == ""
        and "one run alone" in problems[4]
        and "do not record" not in problems[4]
    )
    for part in arsvd.tables(controlled.assign(budget=controlled["budget"].replace(0.02, 0.01))).values():
        assert "nan" not in part
    assert not arsvd.usable(tuned).any() and lesson.about_sizes(controlled, 0.2) == lesson.about_sizes(
        controlled.drop(tuned.index), 0.2
    )


def test_random_ranks_are_drawn_anew_for_each_size_and_kept_when_they_are_trained(controlled):
    random = controlled[(controlled["chooser"] == "random") & (controlled["scope"] == "hidden layers")]
    for _, part in random.groupby("budget"):
        assert part["plan"].nunique() == 1 and set(part["tuned"]) == {"none", *contest.TRAINED}
    small, large = (json.loads(random.loc[random["budget"] == share, "plan"].iloc[0]) for share in (0.1, 0.2))
    # of one draw that only grew, no rank could fall, and the smallest layer would stay the smallest
    lab = arsvd.prepared(data.load("digits", seed=0), nets(), calibration_images=20, **ABOUT | {"network": "lenet300"})
    plans = {
        share: [
            arsvd.plan_of(dataclasses.replace(lab, about=lab.about | {"seed": seed}), "hidden layers", "random", share)
            for seed in range(6)
        ]
        for share in (0.1, 0.2)
    }
    assert len({json.dumps(plan) for plan in plans[0.1]}) > 3
    assert any(two[name] < one[name] for one, two in zip(plans[0.1], plans[0.2]) for name in set(one) & set(two))
    assert small != large


def test_controls_are_told_as_measured(controlled):
    told = lesson.about_controls(controlled)
    scratch = controlled[(controlled["tuned"] == "from scratch") & (controlled["budget"] == 0.1)]
    assert (
        f"trained from scratch for {scratch['finetuned_epochs'].item()} epochs: {scratch['accuracy'].item():.1%}"
        in told
    )
    assert told.count("**Random ranks**") == 2 and "fine-tuned for 5 steps" in told
    dense = controlled.iloc[0]
    assert (
        f"right about {dense['accuracy_corrupted']:.1%} of them, and about {dense['accuracy']:.1%} of all clean" in told
    )
    at = controlled[
        (controlled["budget"] == 0.2) & (controlled["scope"] == "hidden layers") & (controlled["factors"] == "svd")
    ]
    at = at[(at["chooser"] == "random") & (at["tuned"] == "none")].iloc[0]
    clean, poor = (100 * (dense[name] - at[name]) for name in ("accuracy", "accuracy_corrupted"))
    assert told.endswith(f"random ranks {clean:.1f} and {poor:.1f}.")
    ahead = controlled.assign(accuracy=controlled["accuracy"].where(controlled["tuned"] != "from scratch", 1.0))
    assert "Fine-tuning is ahead in 0 of 1 seeds" in lesson.about_controls(ahead)
    behind = controlled.assign(accuracy=controlled["accuracy"].where(controlled["tuned"] != "from scratch", 0.0))
    assert "Fine-tuning is ahead in 1 of 1 seeds" in lesson.about_controls(behind)
    assert lesson.about_controls(made(0.8, 0.7, 0.4)) == "These rows hold no control."


def test_claims_of_controls_count_what_is_there_and_name_what_is_not(controlled):
    every = pd.concat([controlled.assign(dataset="mnist", seed=seed) for seed in (0, 1)], ignore_index=True)
    claims = {
        claim.claim: claim
        for claim in arsvd.CLAIMS
        if claim.claim.startswith("control") and "classifier dense" in claim.setting
    }
    scratch = claims["control: cut and fine-tuned beats the same small network trained from scratch"].measure(every)
    chance = claims["control: adaptive ranks (energy) beat random ranks"].measure(every)
    assert scratch.settings == 2 and chance.settings == 2 and set(chance.paired_by) == {"images and seeds"}
    second = (every["tuned"] == "from scratch") & (every["seed"] == 1)
    lost = claims["control: cut and fine-tuned beats the same small network trained from scratch"].measure(
        every.assign(note=second.map({True: "Training diverged", False: None}))
    )
    assert lost.settings == 2 and scratch.said != lost.said
    assert lost.said.endswith("mnist, lenet300, budget 0.2, seed 1: training diverged (training from scratch)")
    old = every[(every["chooser"] != "random") & (every["tuned"] == "none")]
    chance = claims["control: adaptive ranks (energy) beat random ranks"].measure(old)
    assert chance.holds == "-" and set(chance.left_out.values()) == {"no row of random ranks in plain factors"}


def test_sizes_are_met_and_the_drop_is_kept(rows):
    sized = rows[rows["budget_kind"] == "kept"]
    assert (sized["parameters_kept"] <= sized["budget"]).all()
    reached = sized[(sized["scope"] == "every layer") & (sized["chooser"] == "energy")]
    assert set(reached["budget"]) == set(SHARES)  # each is above what rank 1 in every layer costs
    spread = sized[sized["budget"] == 0.6].groupby("scope")["parameters_kept"].agg(lambda kept: kept.max() - kept.min())
    assert spread.max() < 0.05
    dense = rows.loc[rows["chooser"] == "dense"].iloc[0]
    searched = rows[rows["budget_kind"] == "drop"]
    assert (
        len(searched) == 2 * len(rules.RULES) * 2
        and searched["evaluations"].notna().all()
        and searched["latency_ms_64"].notna().all()
    )
    assert dense["latency_ms_64"] > 0


def test_the_searches_lose_no_more_than_was_allowed(images, trained):
    lab = arsvd.prepared(images, trained[0], calibration_images=300, **ABOUT)
    found, searches = arsvd.within_drop(lab, 0.02)
    assert len(found) == len(searches)
    for search, (_, row) in zip(searches, found.iterrows(), strict=True):
        assert row["valid_accuracy"] == pytest.approx(search.accuracy)
        assert search.accuracy >= lab.valid(lab.model) - 0.02 - 1e-9 and row["threshold"] == search.threshold


def test_figure_and_tables_read_the_rows(rows):
    cut = rows[arsvd.usable(rows)]
    assert set(cut["budget_kind"]) == {"kept", "own"}
    assert len(arsvd.rules(rows).axes) == 4
    small, equal, spread = arsvd.tables(
        rows.assign(budget=rows["budget"].where(rows["budget_kind"] != "drop", 0.01))
    ).values()
    assert len(small.splitlines()) == 2 + 4 and len(equal.splitlines()) == 2 + 4
    assert len(spread.splitlines()) == 2 + 4 * 2  # 20 and 30 %, which are of the sizes of the tables


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"threshold": 0}, "threshold=0 is not a share"),
        ({"drop": -1}, "drop -1 is not a share"),
        ({"calibration_images": 0}, "calibration_images=0 is not a whole number"),
        ({"shares": (2,)}, "share=2 is not a share"),
    ],
)
def test_numbers_outside_their_range_are_refused(images, trained, bad, words):
    with pytest.raises(ValueError, match=words):
        arsvd.experiment(images, trained[0], **{"shares": (0.3,), "calibration_images": 50} | bad, **ABOUT)


def test_training_has_one_row_of_the_dense_network(images, trained):
    model, history = trained
    (row,) = chapter_training.experiment(images, model, history, **ABOUT).to_dict("records")
    assert row["chooser"] == "dense" and row["budget_kind"] == "dense" and row["notebook"] == "01_training"
    assert row["parameters"] == sum(p.numel() for p in model.parameters()) and row["parameters_kept"] == 1
    assert row["valid_accuracy"] == history["valid_accuracy"].iloc[-1]
    with pytest.raises(ValueError, match="has no epoch"):
        chapter_training.experiment(images, model, history[:0], **ABOUT)


def test_ranks_by_threshold_are_those_of_the_rules_and_drawn_for_each_layer(images, trained):
    lab = arsvd.prepared(images, trained[0], calibration_images=50, **ABOUT)
    found = lesson.ranks_by_threshold(lab.profile, (0.5, 0.9, 1.0))
    assert len(found) == 3 * 2 * 3 and not found.duplicated(["layer", "rule", "threshold"]).any()
    by = found.set_index(["layer", "rule", "threshold"])
    for layer in lab.profile:
        assert by.loc[(layer.name, "entropy", 0.9), "rank"] == rules.rank(layer.singular_values, 0.9, "entropy")
        assert by.loc[(layer.name, "energy", 1.0), ["full_rank", "break_even"]].tolist() == [
            layer.full_rank,
            layer.break_even(),
        ]
    lines = [line for axis in lesson.rank_curves(found).axes for line in axis.lines if line.get_label() == "energy"]
    assert [list(line.get_ydata()) for line in lines] == [
        by.xs((layer.name, "energy"))["rank"].tolist() for layer in lab.profile
    ]


# ---- the lesson


@pytest.fixture(scope="module")
def lab(images, trained):
    return arsvd.prepared(images, trained[0], calibration_images=300, **ABOUT)


def test_the_toy_has_the_spectra_that_it_says():
    toy = lesson.toy()
    assert torch.allclose(torch.linalg.svdvals(toy.second.weight), 1 / torch.arange(1.0, 11), atol=1e-5)
    assert torch.equal(toy.first.weight, lesson.toy().first.weight)
    inputs = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    same = lesson.agreement(toy, inputs)
    assert same({}) == 1 and 0 <= same({"first": 1, "second": 1}) < 1


def test_a_spoiled_network_answers_as_before_while_its_spectrum_does_not(lab, images):
    before = [p.clone() for p in lab.model.parameters()]
    net = lesson.spoiled(lab.profile)
    assert all(torch.equal(a, b) for a, b in zip(before, lab.model.parameters(), strict=True))
    assert abs(lab.valid(net) - lab.valid(lab.model)) < 0.05
    assert rules.rank(profile(net, input_shape=images.input_shape)[0].singular_values, 0.9) == 1


def test_layers_alone_are_cut_to_shares_of_their_rank_and_drawn(lab):
    table = lesson.alone(lab, (0.3, 1.0))
    assert len(table) == 3 * 2 * 2 and table["of_parameters"].sum() == pytest.approx(2 * 2)
    whole = table[table["share"] == 1]
    assert whole["rank"].tolist() == [40, 40, 20, 20, 10, 10] and (whole["lost"].abs() < 1).all()
    assert [axis.get_title().split(":")[0] for axis in lesson.layers_alone(table).axes] == ["1", "3", "5"]


def alone_table(*lost):
    return pd.DataFrame(
        {"layer": ["a", "b"], "of_parameters": [0.9, 0.1], "factors": "data-aware", "share": 0.3, "lost": lost}
    )


def test_the_layer_that_breaks_is_named_as_measured():
    assert "`b`, with 10.0% of the parameters. It is the classifier." in lesson.about_alone(alone_table(1.0, 20.0))
    assert "`a`, with 90.0% of the parameters. It is not the classifier." in lesson.about_alone(alone_table(20.0, 1.0))


def made(energy, entropy, fixed, *, hidden=(0.9, 0.9, 0.9)):
    """Rows of a dense network at 90 % and of three rules with plain and data-aware factors at 20 %."""
    rows = [{"chooser": "dense", "budget_kind": "dense", "scope": "none", "factors": "none", "accuracy": 0.9}]
    for scope, accuracies in (("every layer", (energy, entropy, fixed)), ("hidden layers", hidden)):
        for rule, accuracy in zip(rules.RULES, accuracies, strict=True):
            for factors in lesson.NAMES:
                rows.append(
                    {"chooser": rule, "budget_kind": "kept", "budget": 0.2, "scope": scope}
                    | {"factors": factors, "accuracy": accuracy, "parameters_kept": 0.2}
                )
    return pd.DataFrame(rows).assign(seed=0, tuned="none")


def test_sizes_are_told_as_measured():
    told = lesson.about_sizes(made(0.8, 0.7, 0.4), 0.25)
    assert "energy 10.0, entropy 20.0, fixed 50.0" in told and "20% of the parameters" in told
    assert "by 40.0 points" in told and "Most of that lead came from the classifier" in told
    other = lesson.about_sizes(made(0.8, 0.7, 0.7, hidden=(0.8, 0.7, 0.6)), 0.2)
    assert "classifier explains no lead here" in other


def test_rules_are_compared_in_pairs_of_equal_size():
    rows = made(0.8, 0.7, 0.4)
    energy, entropy = lesson.about_questions(rows).split("Does entropy")
    assert "every layer cut it is ahead in 2 of 2 comparisons, level in 0 and behind in 0" in energy
    assert "classifier dense it is ahead in 0 of 2 comparisons, level in 2 and behind in 0" in energy
    assert "every layer cut it is ahead in 0 of 2 comparisons, level in 0 and behind in 2" in entropy
    table = lesson.about_seeds(rows).splitlines()
    assert len(table) == 2 + 6 and "+40.0 (+40.0 to +40.0), ahead in 2 of 2" in table[2]
    assert "not reached" in table[2]  # no size below 10 %
    every, hidden = lesson.advantage(rows).axes
    assert {text.get_text() for text in every.texts} == {"plain", "data-aware"}
    assert np.allclose(every.lines[1].get_ydata(), 40) and np.allclose(hidden.lines[1].get_ydata(), 0)


def test_points_lost_are_drawn_from_the_rows(rows):
    figure = lesson.points_lost(rows)
    dense = rows.loc[rows["chooser"] == "dense", "accuracy"].item()
    mine = rows[(rows["scope"] == "every layer") & (rows["factors"] == "svd") & (rows["chooser"] == "energy")]
    mine = mine[mine["budget_kind"] == "kept"].sort_values("parameters_kept")
    line = next(line for line in figure.axes[0].lines if line.get_label() == "energy")
    assert np.allclose(line.get_ydata(), (100 * (dense - mine["accuracy"])).clip(lower=lesson.LEAST))
    assert {text.get_text() for text in figure.axes[0].texts} == {"energy", "entropy", "fixed", "random", "EVBMF"}


def test_the_smallest_networks_are_drawn_and_told(rows):
    figure = lesson.smallest(rows)
    found = rows[rows["budget_kind"] == "drop"]
    assert sum(len(axis.patches) for axis in figure.axes) == len(found)
    assert f"keeps {found['parameters_kept'].min():.1%}" in lesson.about_drop(rows, 0.02)
    assert f"of the {len(found)} networks" in lesson.about_drop(rows, 0.02)


def test_directions_stand_in_the_order_of_the_rank():
    patterns = {"svd": torch.eye(64)[:12], "data-aware": -torch.eye(64)[:12]}
    even = torch.full((12,), 1 / 12, dtype=torch.float64)
    figure = lesson.directions(patterns, {"svd": even, "data-aware": even}, (1, 8, 8), [7])
    titles = [axis.get_title() for axis in figure.axes]
    assert [t.split()[1] for t in titles[:7]] == ["1", "2", "3", "5", "7", "10", "12"] and len(titles) == 14
    assert titles[5].endswith("83%") and titles[6].endswith("100%")
    assert "takes 11 plain directions, or 1 data-aware" in lesson.about_directions(
        {"svd": even, "data-aware": torch.tensor([0.95, 0.05])}
    )


def test_the_bisection_is_drawn_at_the_places_of_its_thresholds():
    curve = pd.DataFrame({"threshold": [0.2, 0.5, 0.9, 1.0], "accuracy": [0.1, 0.6, 0.8, 1.0]})
    (axis,) = lesson.bisection(curve, curve.iloc[[1, 2]], 0.7).axes
    assert [line.get_xdata()[0] for line in axis.lines[2:]] == [2, 3]
    assert [line.get_markerfacecolor() == "white" for line in axis.lines[2:]] == [True, False]


def test_spectra_are_told_as_they_changed():
    flat, steep = np.ones(4), np.array([8.0, 1.0, 1.0, 1.0])
    told = lesson.about_spectra({"a": flat, "b": flat}, {"a": steep, "b": flat})
    assert "4.0 before" in told and "8.0 times the median" in told and "of `a` only" in told
    assert "every layer" in lesson.about_spectra({"a": flat}, {"a": steep})
    assert "in no layer" in lesson.about_spectra({"a": steep}, {"a": flat})


def test_fewer_images_are_told_as_measured(lab):
    told = lesson.about_calibration([10, 30, 100], 0.5, [0.4, 0.6, 0.61])
    assert "From 30 images on" in told and "30 images bring" in told
    assert "not ahead" in lesson.about_calibration([10, 30], 0.5, [0.6, 0.5])
    share = lesson.small_share(lab.scopes["hidden layers"])
    found = lesson.by_calibration(lab, [10, 300], share)
    plan = rules.plan_at_size(lab.scopes["hidden layers"], share, resource="parameters")
    assert found[1] == pytest.approx(lab.valid(lab.small(plan, "data-aware")), abs=0.01)


@pytest.mark.parametrize("answer", [..., None, "many", [0.5], [[0.1, 0.2]], object()])
def test_a_curve_without_an_answer_says_so_in_the_figure(answer):
    (axis,) = lesson.calibration_curve([10, 30], 0.5, answer).axes
    assert len(axis.lines) == 1 and "no answer of 2 numbers yet" in axis.texts[-1].get_text()
    (axis,) = lesson.calibration_curve([10, 30], 0.5, [0.4, 0.6]).axes
    assert axis.lines[1].get_ydata().tolist() == [0.4, 0.6]


@pytest.mark.parametrize("path", [NOTEBOOK, SOLUTIONS], ids=["lesson", "solutions"])
def test_cells_are_short_and_state_no_verdict(path):
    for cell in cells(path):
        assert len(cell.source.splitlines()) <= 12 and "lambda" not in cell.source, cell.source
        said = "".join(o.get("text", "") for o in cell.outputs)
        assert not re.search(r"(?<!=)\b(True|False)\b", said), said
    ignored = [cell.source for cell in cells(path) if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    assert len(ignored) == 1 and "torch.__version__" in ignored[0]


def test_lesson_and_solutions_ask_the_same_of_four_answers():
    asked = checks(NOTEBOOK)
    assert len(asked) == 4 and checks(SOLUTIONS) == asked
    assert [o.text for c in cells(SOLUTIONS) if "check(" in c.source for o in c.outputs] == ["right\n"] * 4
    assert [o.text for c in cells(NOTEBOOK) if "check(\n" in c.source for o in c.outputs] == ["not answered\n"] * 4


def test_links_to_the_glossary_have_a_target():
    glossary = nbformat.read(paths.NOTEBOOKS / "00_low_rank_in_ten_minutes.ipynb", as_version=4)
    words = re.findall(r"^##+ (.*)$", "\n".join(c.source for c in glossary.cells if c.cell_type == "markdown"), re.M)
    lesson = "\n".join(c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells)
    linked = set(re.findall(r"ten_minutes\.ipynb#([\w-]+)", lesson))
    assert len(linked) > 8 and linked <= {word.lower().replace(" ", "-") for word in words}
