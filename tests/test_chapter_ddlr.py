"""Chapter 04: the experiment's rows, and what figures and tables read from them."""

import json
import logging

import pandas as pd
import pytest
import torch
from torch import nn

from lowrank_utils.factors import ddlr_network
from lowrank_utils.lab import columns, data, score
from lowrank_utils.workbook.chapters import ddlr

ABOUT = {"dataset": "digits", "network": "toy", "seed": 0}


@pytest.fixture(scope="module")
def images():
    return data.load("digits", seed=0)


@pytest.fixture(scope="module")
def model(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    x, y = images.tensors("train")
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def rows(images, model):
    options = {"tolerance": 0.05, "max_seconds": 5}
    return ddlr.experiment(
        images, model, epsilon=0.3, epsilons=[0.3, 0.5], samples=60, calibration_images=200, options=options, shares=(0.3, 0.6), **ABOUT
    )  # fmt: skip


def test_each_row_is_one_network_in_columns(rows):
    columns.check(rows)
    keys = [*columns.RUN, *columns.KEY]
    assert not rows.duplicated([key for key in keys if key in rows]).any()
    assert (rows["chooser"] == "dense").sum() == 1 and set(rows["notebook"]) == {"04_ddlr"}
    assert rows["accuracy"].between(0, 1).all() and rows["valid_accuracy"].notna().all()


def test_sizes_are_met_and_the_rest_is_said(rows):
    sized = rows[rows["budget_kind"] == "kept"]
    assert (sized["parameters_kept"] <= sized["budget"]).all()
    assert {"energy", "component output", "DDLR"} <= set(sized["chooser"])
    sparse = sized[sized["chooser"] == "Net-Trim"]
    assert (sparse["parameters_kept"] == sparse["stored"]).all() and len(sparse)
    posed = rows[(rows["budget_kind"] == "epsilon") & (rows["chooser"] == "DDLR")]
    posed = posed[posed["program"] != "epsilon by layer"]
    steps = posed[(posed["scope"] == "hidden layers") & (posed["budget"] == 0.3)]
    assert len(steps) == 8 and set(steps["program"]) == {"as posed", "cascade", "reweighted", "free bias"}
    assert steps.loc[steps["cut"] == "fixed", "cut_below"].tolist() == [0.05] * 4
    assert posed.loc[posed["scope"] == "every layer", "budget"].tolist() == [0.3, 0.5]


def test_both_programs_have_a_curve_of_their_own(rows):
    for chooser in ("DDLR", "Net-Trim"):
        for scope in ("every layer", "hidden layers"):
            curve = ddlr.as_posed(rows, chooser, scope)
            curve = curve[curve["budget_kind"] == "epsilon"].set_index("budget")
            assert sorted(curve.index) == [0.3, 0.5]
            assert curve.loc[0.5, "parameters_kept"] < curve.loc[0.3, "parameters_kept"]
    trimmed = rows[(rows["chooser"] == "Net-Trim") & (rows["budget_kind"] == "epsilon")]
    by = trimmed.pivot_table("parameters_kept", ["scope", "budget"], "stored_as")
    assert (by["non-zeros"] < by["sparse"]).all()  # indices are stored beside the weights


def test_an_epsilon_for_each_layer_takes_no_more_than_one_for_all(rows):
    for scope in ("every layer", "hidden layers"):
        alike = ddlr.as_posed(rows, "DDLR", scope)
        alike = alike[alike["budget_kind"] == "epsilon"].set_index("budget")["parameters_kept"]
        each = rows[(rows["program"] == "epsilon by layer") & (rows["scope"] == scope)].set_index("budget")
        assert sorted(each.index) == sorted(alike.index) == [0.3, 0.5]
        assert (each["parameters_kept"] <= alike[each.index]).all() and (each["gap"] <= 1e-12).all()
        chosen = [json.loads(text) for text in each["plan"]]
        assert all(set(one) <= {"1", "3"} and set(one.values()) <= {0.3, 0.5} for one in chosen)
        assert scope == "every layer" or not any("3" in one for one in chosen)


def test_every_row_says_which_test_images_are_right(rows, images):
    right = [score.unpacked(text) for text in rows["correct"]]
    assert {len(one) for one in right} == {len(images.test)}
    assert [one.mean() for one in right] == pytest.approx(rows["accuracy"].tolist())


def test_a_refit_helps_the_answer_that_it_refits(rows):
    steps = rows[(rows["scope"] == "hidden layers") & (rows["budget_kind"] == "epsilon") & (rows["chooser"] == "DDLR")]
    steps = steps[(steps["budget"] == 0.3) & (steps["program"] == "as posed")]
    by = steps.set_index("refit")
    assert by.loc["least squares", "valid_accuracy"] >= by.loc[by["cut"] == "fixed"].loc["none", "valid_accuracy"]


def test_names_in_words_are_those_of_tables_and_figure(rows):
    shown = ddlr.named(rows)
    assert set(shown["method"]) <= set(ddlr.METHODS) and "dense" not in set(shown["chooser"])
    assert (
        len(shown) == len(rows) - 22
    )  # the dense network, eight steps, and thirteen programs as posed that figures do not show
    assert ddlr.usable(rows).sum() == len(shown)
    table = ddlr.accuracy_at(rows, (0.3,))
    assert list(table) == ["kept 0.30"] and "%" in table.loc["ARSVD", "kept 0.30"]
    labels = {text for axis in ddlr.figure(rows).axes for text in axis.get_legend_handles_labels()[1]}
    assert {"DDLR", "ARSVD", "dense"} <= labels
    assert list(ddlr.tables(rows)) == list(ddlr.CAPTIONS)


def test_a_size_that_one_seed_did_not_reach_is_left_out(rows):
    more = pd.concat([rows, rows[rows["budget"] != 0.3].assign(seed=1)], ignore_index=True)
    assert not ddlr.usable(more)[more["budget"] == 0.3].any()
    assert ddlr.usable(more)[(more["budget"] == 0.6) & (more["chooser"] == "energy")].all()


def test_a_budget_out_of_reach_has_no_row_and_says_why(images, caplog):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).eval()
    lab = ddlr.laboratory(images, model, samples=40, calibration_images=50, options={"tolerance": 0.2}, **ABOUT)
    with caplog.at_level(logging.WARNING):
        found, tried, note = ddlr.at_budget(lab, 0.001, 0.5)
    assert found == [] and len(tried) == 0 and "are not good" in note


@pytest.fixture(scope="module")
def solved(images, model):
    options = {"tolerance": 0.05, "max_seconds": 5}
    lab = ddlr.laboratory(images, model, samples=60, calibration_images=100, options=options, **ABOUT)
    answers = {
        kind: ddlr_network.solve_network(lab.samples, 0.3, penalty=kind, **options) for kind in ("nuclear", "l1")
    }
    return lab, answers


def test_certificates_are_those_of_the_solutions(solved):
    lab, answers = solved
    found = ddlr.certificates(lab, answers["nuclear"])
    assert found.index.tolist() == lab.layers == ["1", "3"] and found["full rank"].tolist() == [24, 10]
    assert (found["bound"] <= found["norm"]).all() and (found["rank"] <= found["full rank"]).all()
    assert found.loc["1", "relative gap"] == answers["nuclear"]["1"].relative_gap


def test_a_layer_is_stored_in_three_ways_that_compute_what_they_should(solved):
    lab, answers = solved
    layers = ddlr.as_stored(lab, answers["nuclear"], answers["l1"], "1", share=0.5)
    dense, rows_, thin = layers.values()
    x = torch.rand(7, 64)
    assert torch.equal(dense(x), lab.model[1](x))
    filled = rows_.weight.to_dense()
    assert torch.allclose(rows_(x), x @ filled.T + rows_.bias, atol=1e-5)
    assert 0 < rows_.weight.values().numel() == int(filled.count_nonzero()) < 0.5 * lab.size
    weights = sum(m.weight.numel() for m in thin.modules() if isinstance(m, nn.Linear))
    assert weights < 0.5 * lab.size and thin(x).shape == (7, 24)


def test_layers_are_timed_in_turn():
    times = ddlr.milliseconds({"wide": nn.Linear(500, 4000), "narrow": nn.Linear(500, 4)}, 500)
    assert times.index.tolist() == ["wide", "narrow"] and times.columns.tolist() == ["batch 1", "batch 64"]
    assert (times.loc["narrow"] < times.loc["wide"]).all() and (times > 0).all(axis=None)
