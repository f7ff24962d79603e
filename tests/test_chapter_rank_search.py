"""Chapter 05: the experiment's rows, and what figures, tables and claims read from them."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lowrank_utils import profile
from lowrank_utils.lab import columns, data, training
from lowrank_utils.lab.fetch import DataUnavailable
from lowrank_utils.network.profile import plan_cost
from lowrank_utils.ranks import rules, search
from lowrank_utils.ranks.search import Options
from lowrank_utils.workbook import laboratory, scale
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


@pytest.fixture(scope="module")
def lab(images, model):
    return rank_search.laboratory(images, model, **FEW, **ABOUT)


@pytest.fixture(scope="module")
def values(lab):
    return rank_search.layer_values(lab.profile, lab.goodness)


def test_curves_of_options_are_those_of_the_values(values):
    found = rank_search.option_curves(values, "likelihood")
    assert found.columns[3] == "measured likelihood: -log y_m"
    assert len(found) == sum(len(own.entries) for own in values.options)
    own = values.options[0]
    mine = found[found["layer"] == own.name]
    dense = mine.iloc[-1]
    assert own.entries[-1] is None and dense["macs"] == 1 and dense["predicted loss"] == 0 and not dense["tried"]
    assert np.allclose(np.exp(-mine["energy: -log y_p"]), values.energy[own.name])
    mixed = next(o for o in values.mixed if o.name == own.name)
    known = dict(zip(mixed.entries, values.damage[own.name], strict=True))
    assert mine["predicted loss"].tolist() == [-known[entry] for entry in own.entries]
    assert mine["tried"].sum() == sum(map(len, search.measured_ranks(own).values()))
    assert rank_search.option_curves(values, panels=1)["layer"].nunique() == 1


def test_what_a_plan_keeps_of_each_layer_adds_up_to_its_cost(lab):
    read = lab.profile
    plan = rules.plan_at_size(read, 0.6)
    kept = rank_search.kept_by_layer(read, plan)
    assert list(kept) == [layer.name for layer in read if not layer.reason]
    left = sum(layer.macs * kept.get(layer.name, 1) for layer in read)
    assert left == pytest.approx(plan_cost(read, plan))


def test_a_promise_is_the_product_of_single_layers(lab, values):
    found = rank_search.searches(lab, values, [0.6], evaluations=2)
    measure = rank_search.plan_goodness(lab.profile, values, lab.goodness)
    some = {(0.6, "exact"): found[0.6, "exact"]}
    (row,) = rank_search.promised_and_measured(values, some, measure).to_dict("records")
    plan, product = found[0.6, "exact"].plan, 1.0
    for own in values.options:
        product *= values.measured[own.name][own.entries.index(plan.get(own.name))]
    assert row == {"kept": 0.6, "chooser": "exact", "A_m": pytest.approx(product), "measured": measure(plan)}


def test_every_stage_of_a_large_search_is_timed_and_agrees(model):
    large = scale.at_scale(model, (1, 8, 8), kept=0.5)
    stages = ["profile: spectra of all layers", "options and energy curves"]
    assert large.seconds.index.tolist() == stages + [f"search: {name}" for name in large.found]
    assert (large.seconds > 0).all() and large.found["exact"].gap < 1e-9
    assert large.found["bound only"].bound >= large.found["exact"].value - 1e-9
    read = profile(model, input_shape=(1, 8, 8))
    for one in large.found.values():
        assert plan_cost(read, one.plan) <= 0.5 * plan_cost(read, {})
    assert 0.01 < scale.peak_memory() < 1000


def test_the_large_network_says_what_its_weights_are(model, monkeypatch):
    asked = []

    def pretrained(*named):
        asked.append(named)
        return model, {}

    def missing(*named):
        raise DataUnavailable("no network")

    monkeypatch.setattr(scale.models, "build", lambda name, shape, classes: model)
    monkeypatch.setattr(scale.models, "pretrained", pretrained)
    assert scale.network() == (model, "efficientnet-lite0 has its published weights, trained on ImageNet.")
    assert scale.network("torchvision/toy", "V1") == (model, "torchvision/toy has the published weights V1.")
    assert scale.network("torchvision/toy") == (model, "torchvision/toy has random weights.")
    assert asked == [("efficientnet-lite0",), ("torchvision/toy", "V1")]
    monkeypatch.setattr(scale.models, "pretrained", missing)
    found, told = scale.network()
    assert found is model and told == (
        "The weights of efficientnet-lite0 are not at hand (no network), so torchvision/vgg16 with random weights stands in for it."
    )


def test_a_public_network_brings_the_scale_of_its_images(images, model, monkeypatch):
    known = {"mean": [0.1], "std": [0.2]}
    monkeypatch.setattr(laboratory.models, "pretrained", lambda name: (model, known))
    found, scaled = laboratory.trained_or_public(images, "torchvision/toy", checkpoint="public", device="cpu")
    assert found is model and (scaled.mean, scaled.std) == ((0.1,), (0.2,)) and scaled.name == images.name
    monkeypatch.setattr(laboratory.training, "trained", lambda *asked, **options: (model, {"asked": asked}))
    assert laboratory.trained_or_public(images, "efficientnet-lite0", checkpoint="public")[1].mean == (0.1,)
    for network, checkpoint in (("torchvision/toy", ""), ("resnet20", "public"), ("efficientnet-lite0", "")):
        found, same = laboratory.trained_or_public(images, network, checkpoint=checkpoint)
        assert found is model and same is images
