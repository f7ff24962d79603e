"""Chapter 03: the ways to prune, their rows, and what figures and tables read from them."""

import pandas as pd
import pytest
import torch
from torch import nn

from lowrank_utils.lab import columns, data, score, training
from lowrank_utils.ranks import units
from lowrank_utils.workbook.chapters import entropy_pruning as chapter

ABOUT = {"dataset": "digits", "network": "lenet300"}


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
    return columns.table(made + chapter.fine_tuned(lab, 0.5, 1, "cpu", [some[0], chapter.CONTROL])[0])


def test_ways_are_31_and_each_has_a_name_of_its_own():
    ways = chapter.ways()
    assert len(ways) == len(set(ways)) == len({(way.method, way.written_as) for way in ways}) == 31
    assert set(chapter.TUNED) - {chapter.CONTROL} <= set(ways)


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
    drawn = [axis.lines[0].get_xydata() for axis in chapter.damage(found).axes]
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


def test_an_experiment_is_all_of_it(lab, monkeypatch):
    few = [chapter.ways()[0], chapter.ways()[-1]]
    monkeypatch.setattr(chapter, "ways", lambda: few)
    monkeypatch.setattr(chapter, "TUNED", (few[0],))
    monkeypatch.setattr(chapter.fine_tuned, "__defaults__", ("cpu", (few[0],)))
    found = chapter.experiment(lab.images, lab.model, calibration_images=100, bins=8, shares=(0.5,), kept=0.5, **ABOUT)
    assert isinstance(found, pd.DataFrame) and len(found) == 1 + 2 + 2 + 1
