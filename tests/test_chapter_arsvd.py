"""Chapters 01 and 02: the experiments' rows, and what figures and tables read from them."""

import pytest
import torch
from torch import nn

from lowrank_utils.lab import columns, data
from lowrank_utils.lab.training import Recipe, fit
from lowrank_utils.ranks import rules
from lowrank_utils.workbook.chapters import arsvd
from lowrank_utils.workbook.chapters import training as chapter_training

ABOUT = {"dataset": "digits", "network": "toy", "seed": 0}
SHARES = (0.2, 0.3, 0.6)


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
    found = arsvd.ranks_by_threshold(lab.profile, (0.5, 0.9, 1.0))
    assert len(found) == 3 * 2 * 3 and not found.duplicated(["layer", "rule", "threshold"]).any()
    by = found.set_index(["layer", "rule", "threshold"])
    for layer in lab.profile:
        assert by.loc[(layer.name, "entropy", 0.9), "rank"] == rules.rank(layer.singular_values, 0.9, "entropy")
        assert by.loc[(layer.name, "energy", 1.0), ["full_rank", "break_even"]].tolist() == [
            layer.full_rank,
            layer.break_even(),
        ]
    lines = [line for axis in arsvd.rank_curves(found).axes for line in axis.lines if line.get_label() == "energy"]
    assert [list(line.get_ydata()) for line in lines] == [
        by.xs((layer.name, "energy"))["rank"].tolist() for layer in lab.profile
    ]
