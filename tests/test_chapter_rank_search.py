"""Chapter 05: the experiment's rows, and what figures, tables and claims read from them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lowrank_utils import profile
from lowrank_utils.factors import replace
from lowrank_utils.lab import columns, data, training
from lowrank_utils.lab.fetch import DataUnavailable
from lowrank_utils.network import unfold
from lowrank_utils.network.profile import plan_cost
from lowrank_utils.ranks import rules, search
from lowrank_utils.ranks.search import Options
from lowrank_utils.workbook import laboratory, scale, search_lab
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
    assert (rows["chooser"] == "dense").sum() == 1 and (rows["budget_kind"] == "lossless").sum() == 4
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
    assert labels == {"fixed", "ENC-Map", "ENC-Model", "ENC-Inf", "exact", "exact, Fisher"}
    told = rank_search.tables(pd.concat([rows, rows.assign(budget=rows["budget"].replace({0.6: 0.5}))]))
    assert list(told) == list(rank_search.CAPTIONS)
    assert "exact, Fisher" in next(iter(told.values())).splitlines()[0]


def test_goodness_is_a_share_of_the_dense_network(images, model):
    x, y = images.tensors("valid", limit=40)
    for curve in search_lab.CURVES:
        goodness = search_lab.Goodness(model, x, y, curve)
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
        search_lab.Goodness(model, x, wrong)


def test_values_are_read_off_known_options():
    known = [Options("a", (None, ("spatial", 4), ("spatial", 2)), np.zeros((3, 1)), {}, ("macs",))]
    asked = [Options("a", (("spatial", 2), ("input", 2), None), np.zeros((3, 1)), {}, ("macs",))]
    values = search_lab.values_where_known(asked, known, {"a": [0.0, -1.0, -2.0]})
    assert values["a"].tolist() == [-2.0, -np.inf, 0.0]


@pytest.fixture(scope="module")
def lab(images, model):
    return rank_search.laboratory(images, model, **FEW, **ABOUT)


@pytest.fixture(scope="module")
def values(lab):
    return rank_search.layer_values(lab.profile, lab.goodness)


def test_damage_is_foretold_and_measured_at_the_same_options(lab, values):
    table = search_lab.damage(lab, values, "data-aware", levels=(0.3, 0.7), images=40, layers=2)
    assert len(table) == 2 * 2 and table["level"].tolist() == [0.3, 0.7] * 2
    own = values.options[0]
    first = table.iloc[0]
    shares = own.costs[:-1, 0] / own.costs[-1, 0]
    at = int(np.abs(shares - 0.3).argmin())
    assert first["layer"] == own.name and first["macs"] == shares[at]
    assert first["energy"] == pytest.approx(-np.log(values.energy[own.name][at]))
    mixed = next(o for o in values.mixed if o.name == own.name)
    assert first["predicted loss"] == -values.damage[own.name][mixed.entries.index(own.entries[at])]
    cut = replace.apply_plan(lab.profile, {own.name: own.entries[at]}, factors="data-aware")
    p, q = (net(lab.goodness.images[:40]).detach().double().log_softmax(1) for net in (lab.model, cut))
    assert first["divergence"] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4, abs=1e-9)
    assert first["divergence"] > table.iloc[1]["divergence"] >= 0


def test_searches_are_timed_by_medians_and_inf_pays_for_its_networks(lab, values):
    times = search_lab.search_times(lab, values, 0.6, evaluations=5, repeats=3).set_index("chooser")
    assert list(times.index) == ["fixed", "ENC-Map", "ENC-Model", "ENC-Inf", "exact", "exact-Fisher"]
    assert times["networks"].tolist() == [0, 0, 0, 5, 0, 0] and (times["seconds"] > 0).all()
    assert times.loc["ENC-Inf", "seconds"] > times.loc["ENC-Model", "seconds"]
    assert "ENC-Inf measures 5 networks" in rank_search.about_times(times.reset_index(), values)


def test_statistics_that_a_chooser_reads_are_counted(lab, monkeypatch):
    values = rank_search.layer_values(lab.profile, lab.goodness)
    assert min(values.seconds.values()) > 0
    known = dict(zip(("energy", "measured", "moments", "fisher", "losses"), (1.0, 10.0, 100.0, 200.0, 300.0)))
    values = dataclasses.replace(values, seconds=known)
    found = rank_search.searches(lab, values, [0.6], evaluations=2)
    told = rank_search.promises(lab, values, found)
    alone = [row | {"seconds_to_find": 0.5} for row in search_lab.searched_rows(lab, found, told, ["svd"])]
    monkeypatch.setattr(search_lab, "searched_rows", lambda *_: alone)
    rows = rank_search.searched_rows(lab, values, found, told, ["svd"])
    assert {row["chooser"]: row["seconds_to_find"] for row in rows} == {
        "fixed": 0.5, "ENC-Map": 1.5, "ENC-Model": 11.5, "ENC-Inf": 11.5, "exact": 11.5, "exact-Fisher": 600.5
    }  # fmt: skip
    times = search_lab.search_times(lab, values, 0.6, evaluations=2, repeats=1)
    assert "spectra took 1.0 s, the measured curves 10 s" in rank_search.about_times(times, values)


def test_two_budgets_are_kept_and_one_out_of_reach_says_why(lab, values):
    table = search_lab.within_budgets(lab, values, [(0.6, 1.0), (0.6, 0.5), (0.6, 1e-4)])
    within = table.iloc[:2]
    assert (within["MACs kept"] <= within["MACs asked"]).all() and (within["gap"] < 1e-6).all()
    assert (within["parameters kept"] <= within["parameters asked"]).all() and (within["note"] == "").all()
    assert within["predicted loss"].is_monotonic_increasing
    assert table["note"].iloc[2].startswith("kept=0.0001 of parameters cannot be reached")


def test_plans_of_exercises_are_within_their_budgets(lab, values):
    free = search.exact_search(lab.profile, 0.6, options=values.mixed, values=values.damage)
    restricted = search_lab.one_scheme(lab, values, 0.6)
    assert restricted.value <= free.value and plan_cost(lab.profile, restricted.plan) <= 0.6 * plan_cost(
        lab.profile, {}
    )
    table = search_lab.block_costs(values, block=4)
    own = values.mixed[0]
    for entry, cost in zip(own.entries[:-1], own.costs[:, 0]):
        rank = unfold.parse_entry(entry)[1]
        assert table[own.name][entry] == pytest.approx(cost / rank * 4 * -(-rank // 4))
    plan = search_lab.in_blocks(lab, values, 0.6, block=4).plan
    spent = sum(each[plan.get(name)] for name, each in table.items())
    assert spent <= 0.6 * sum(each[None] for each in table.values())
    assert rank_search.about_blocks({"a": 8}, {"a": 8, "b": ("spatial", 3)}) == (
        "Multiples of 8: 1 of 1 ranks under the budget of MACs and 1 of 2 ranks under the budget of blocks."
    )


def test_a_curve_from_few_images_gives_a_plan_of_its_own(lab, values):
    few, every = search_lab.from_few_images(lab, values, 0.6, few=5)
    assert 0 < few <= 1.2 and 0 < every <= 1.2


def test_the_same_plan_is_measured_once(lab, values, monkeypatch):
    found = {(0.6, name): search_lab.one_scheme(lab, values, 0.6) for name in ("exact", "exact-Fisher")}
    told = pd.DataFrame({"kept": 0.6, "chooser": ["exact", "exact-Fisher"], "predicted": [-1.0, -2.0]})
    measured = []
    row = type(lab).row
    monkeypatch.setattr(type(lab), "row", lambda self, net, **more: measured.append(net) or row(self, net, **more))
    first, second = search_lab.searched_rows(lab, found, told, ["svd"])
    assert len(measured) == 1 and first["accuracy"] == second["accuracy"]
    assert (first["chooser"], second["chooser"], second["predicted"]) == ("exact", "exact-Fisher", -2.0)


def test_sentences_and_figures_of_the_lesson_read_their_tables(lab, values, rows):
    table = search_lab.damage(lab, values, "data-aware", levels=(0.3, 0.7), images=40)
    told = rank_search.about_damage(table)
    assert "Spearman" in told and "for the predicted loss" in told
    maps = rank_search.damage_maps(table).axes
    assert [axis.get_title() for axis in maps][2:] == ["predicted loss (nats)", "measured divergence (nats)"]
    assert len(maps[3].texts) == len(table)
    searches = rank_search.searches(lab, values, [0.6], evaluations=2)
    boxes = rank_search.about_box(rank_search.promises(lab, values, searches), searches)
    count = searches[0.6, "ENC-Model"].candidates
    assert boxes.startswith(f"- 60% of the MACs: ENC-Model compares {count:,} plan") and boxes.count("\n") == 0
    (axis,) = rank_search.where_it_goes(lab.profile, searches).axes
    assert len(axis.texts) == 6 * len([own for own in lab.profile if not own.reason])
    work = rank_search.work(lab.profile).axes
    assert [len(axis.patches) for axis in work] == [len(lab.profile)] * 2
    assert "of the work" in rank_search.about_work(lab.profile)
    name = values.options[0].name
    assert rank_search.one_layer(values, name).axes[1].get_title() == f"{name}: predicted loss"
    gains = rank_search.about_gains(rows)
    assert "`toy`, plain factors" in gains and "at 60%" in gains and "at 40%" in gains
    assert len(rank_search.gained(rows).axes) == 2


def test_gains_are_over_the_fixed_share_of_the_same_draw():
    about = {
        "dataset": "d",
        "network": "n",
        "factors": "svd",
        "budget": 0.5,
        "seed": 0,
        "budget_kind": "macs",
        "tuned": "none",
    }
    each = [("fixed", 0, 0.5), ("exact", 0, 0.6), ("fixed", 1, 0.7), ("exact", 1, 0.6), ("ENC-Map", 1, 0.7)]
    rows = pd.DataFrame([about | {"chooser": c, "draw": d, "accuracy": a} for c, d, a in each])
    assert rank_search._gains(rows).set_index(["chooser", "draw"])["gain"].round(6).to_dict() == {
        ("exact", 0): 10, ("exact", 1): -10, ("ENC-Map", 1): 0,
    }  # fmt: skip
    told = rank_search.about_gains(rows)
    assert "+0.0 points at 50%" in told and "no network is right" not in told
    broken = rank_search.about_gains(rows.assign(accuracy=rows["accuracy"] / 2))
    assert "at 50% (ENC-Map, but no network is right about more than 35%)" in broken


def test_the_knapsack_by_hand():
    values = [np.array([0.0, 5.0, 6.0]), np.array([0.0, 3.0, 7.0])]
    costs = [np.array([1, 4, 6]), np.array([2, 3, 6])]
    assert rank_search.spent_exactly(values, costs) == {3, 4, 7, 10, 12}
    bound = rank_search.knapsack(values, costs, 8).axes[1].lines[0]
    assert bound.get_ydata().min() == pytest.approx(28 / 3, abs=0.01)
    drawn = rank_search.ranks_in_blocks({"plain": {"a": 5}, "blocks": ...})
    assert any("no answer yet" in text.get_text() for text in drawn.axes[0].texts)


def test_batch_norms_stand_beside_the_paper():
    rows = pd.DataFrame({"network": "resnet56", "chooser": ["ENC-Map", "exact", "fixed"], "accuracy": 0.8})
    rows["recalibrated"] = [0.91, 0.92, 0.9]
    told = rank_search.about_batch_norms(rows)
    assert "- ENC-Map: 80.0 % as cut, 91.0 % recalibrated; 89.8 % in the paper." in told and "exact" not in told
    assert told.endswith("- one fixed share: 80.0 % as cut, 90.0 % recalibrated.")


def test_what_a_plan_keeps_of_each_layer_adds_up_to_its_cost(lab):
    read = lab.profile
    plan = rules.plan_at_size(read, 0.6)
    kept = search_lab.kept_by_layer(read, plan)
    assert list(kept) == [layer.name for layer in read if not layer.reason]
    left = sum(layer.macs * kept.get(layer.name, 1) for layer in read)
    assert left == pytest.approx(plan_cost(read, plan))


def test_a_promise_is_the_product_of_single_layers(lab, values):
    found = rank_search.searches(lab, values, [0.6], evaluations=2)
    measure = search_lab.plan_goodness(lab.profile, values, lab.goodness)
    some = {(0.6, "exact"): found[0.6, "exact"]}
    (row,) = search_lab.promised_and_measured(values, some, measure).to_dict("records")
    plan, product = found[0.6, "exact"].plan, 1.0
    for own in values.options:
        product *= values.measured[own.name][own.entries.index(plan.get(own.name))]
    assert rank_search.promised(pd.DataFrame([row])).axes[0].get_xlabel().startswith("accuracy")
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
