"""Chapter 05: the experiment's rows, and what figures, tables and claims read from them."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lowrank_utils.lab import columns, data, training
from lowrank_utils.ranks.search import Options
from lowrank_utils.workbook.chapters import rank_search

ABOUT = {"dataset": "digits", "network": "toy", "seed": 0}
FEW = {"calibration_images": 100, "measure_images": 60}


@pytest.fixture(scope="module")
def images():
    return data.load("digits", seed=0)


@pytest.fixture(scope="module")
def model(images):
    torch.manual_seed(0)
    convolutions = [
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    ]
    model = nn.Sequential(*convolutions, nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 10))
    training.fit(model, images, training.Recipe(2, 32), 0, "cpu", progress=False)
    return model.eval()


@pytest.fixture(scope="module")
def rows(images, model):
    recipe = training.Recipe(1, 64, 1e-4)
    return rank_search.experiment(
        images, model, shares=(0.6, 0.4), evaluations=3, recipe=recipe, device="cpu", **FEW, **ABOUT
    )


def test_each_row_is_one_network_in_columns(rows):
    columns.check(rows)
    assert not rows.duplicated([*columns.RUN, *columns.KEY]).any()
    assert (rows["chooser"] == "dense").sum() == 1 and (rows["budget_kind"] == "lossless").sum() == 1
    searched = rows[rows["budget_kind"] == "macs"]
    names = {"fixed", "ENC-Map", "ENC-Model", "ENC-Inf", "exact", "exact-Fisher"}
    assert set(searched["chooser"]) == names and len(searched) == 6 * 2 * 2 * 2
    assert (searched["tuned"] == "fine-tuned").sum() == 24
    assert set(searched["scope"]) == {"inner layers"} and (rows["calibration_images"] == 100).all()


def test_no_plan_exceeds_its_budget_and_exact_ones_are_proved(rows):
    searched = rows[rows["budget_kind"] == "macs"]
    assert (searched["macs_kept"] <= searched["budget"]).all()
    untouched = searched[searched["tuned"] == "none"]
    exact = untouched[untouched["chooser"].isin(["exact", "exact-Fisher"])]
    assert (exact["gap"] < 1e-9).all() and np.allclose(exact["value"], exact["bound"])
    bounds = untouched[untouched["chooser"] == "exact"].groupby("budget")["bound"].mean()
    enc = untouched[untouched["chooser"].str.startswith("ENC")]
    assert (enc["predicted"] <= enc["budget"].map(bounds) + 1e-9).all() and len(enc) == 12
    assert (enc.loc[enc["chooser"] == "ENC-Inf", "evaluations"].between(1, 3)).all()


def test_a_fine_tuned_network_has_the_size_of_the_one_it_came_from(rows):
    searched = rows[rows["budget_kind"] == "macs"]
    by = searched.pivot_table(["macs", "loss"], ["chooser", "factors", "budget"], "tuned")
    assert (by["macs", "none"] == by["macs", "fine-tuned"]).all()
    assert (by["loss", "none"] != by["loss", "fine-tuned"]).all()


def test_figures_tables_and_usable_read_the_rows(rows):
    assert rank_search.usable(rows).sum() == 48
    labels = {text for axis in rank_search.figure(rows).axes for text in axis.get_legend_handles_labels()[1]}
    assert labels == {"dense", "fixed", "ENC-Map", "ENC-Model", "ENC-Inf", "exact", "exact, Fisher"}
    told = rank_search.tables(pd.concat([rows, rows.assign(budget=rows["budget"].replace({0.6: 0.5}))]))
    assert list(told) == list(rank_search.CAPTIONS)
    assert "exact, Fisher" in next(iter(told.values())).splitlines()[0]


def test_goodness_is_a_share_of_the_dense_network(images, model):
    x, y = images.tensors("valid", limit=40)
    for curve in rank_search.CURVES:
        goodness = rank_search.Goodness(model, x, y, curve)
        assert goodness(model) == goodness(model, 10) == 1
    torch.manual_seed(1)
    untrained = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert goodness(untrained) < 1


def test_another_draw_sees_other_images(images, model):
    first, second = (rank_search.laboratory(images, model, draw=draw, **FEW, **ABOUT) for draw in (0, 1))
    assert not torch.equal(first.profile.calibration, second.profile.calibration)
    assert not torch.equal(first.goodness.images, second.goodness.images)
    assert len(first.fresh[1]) == len(images.tensors("valid")[1]) - 60
    assert second.about["draw"] == 1


def test_bad_input_is_named(images, model):
    with pytest.raises(ValueError, match="share=1.5 is not a share"):
        rank_search.experiment(images, model, shares=(1.5,), **ABOUT)
    with pytest.raises(ValueError, match="curve='loss' is neither accuracy nor likelihood"):
        rank_search.experiment(images, model, curve="loss", **ABOUT)
    with pytest.raises(ValueError, match="draw=99 lies beyond the"):
        rank_search.experiment(images, model, draw=99, **ABOUT)
    x = images.tensors("valid", limit=40)[0]
    wrong = (model(x).argmax(1) + 1) % 10
    with pytest.raises(ValueError, match="no measuring image is classified rightly"):
        rank_search.Goodness(model, x, wrong)


def test_values_are_read_off_known_options():
    known = [Options("a", (None, ("spatial", 4), ("spatial", 2)), np.zeros((3, 1)), {}, ("macs",))]
    asked = [Options("a", (("spatial", 2), ("input", 2), None), np.zeros((3, 1)), {}, ("macs",))]
    values = rank_search.values_where_known(asked, known, {"a": [0.0, -1.0, -2.0]})
    assert values["a"].tolist() == [-2.0, -np.inf, 0.0]
