"""Chapter 02b: the experiment's rows, and what figure and table read from them."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lowrank_utils import profile
from lowrank_utils.factors import svd
from lowrank_utils.lab import columns, data, training
from lowrank_utils.ranks import rules
from lowrank_utils.workbook.chapters import convolutions

ABOUT = {"dataset": "digits", "network": "toy", "seed": 0}


@pytest.fixture(scope="module")
def images():
    return data.load("digits", seed=0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
    ).eval()


@pytest.fixture(scope="module")
def rows(images, model):
    return convolutions.experiment(images, model, shares=(0.75, 0.5), calibration_images=40, **ABOUT)


def test_each_row_is_one_network_in_columns(rows):
    columns.check(rows)
    assert not rows.duplicated([key for key in (*columns.RUN, *columns.KEY) if key in rows]).any()
    assert len(rows) == 1 + 2 * 2 * 5 and rows["chooser"].iloc[0] == "dense" and rows["latency_ms_1"].iloc[0] > 0
    cut = rows[1:]
    assert set(cut["scope"]) == {"inner layers"} and set(cut["factors"]) == set(convolutions.KINDS)
    assert (cut["calibration_images"] == 40).all() and (cut["seconds_to_find"] > 0).all()


def test_work_is_within_the_budget_and_the_ends_stay_dense(rows):
    cut = rows[1:]
    assert (cut["macs_kept"] <= cut["budget"]).all() and (cut["macs_kept"] > cut["budget"] - 0.15).all()
    assert all(set(json.loads(plan)) <= {"2", "5"} for plan in cut["plan"])


def test_figure_and_table_read_the_rows(rows):
    assert convolutions.usable(rows).sum() == len(rows) - 1
    energy, fixed = convolutions.figure(rows).axes
    dense = rows["accuracy"].iloc[0]
    for axis, chooser in ((energy, "energy"), (fixed, "fixed")):
        assert chooser in axis.get_title()
        for line, kind in zip(axis.lines, convolutions.KINDS, strict=True):
            mine = rows[(rows["chooser"] == chooser) & (rows["factors"] == kind)].sort_values("macs_kept")
            lost = (100 * (dense - mine["accuracy"])).clip(lower=convolutions.LEAST)
            assert np.allclose(line.get_ydata(), lost) and np.allclose(line.get_xdata(), mine["macs_kept"])
    (table,) = convolutions.tables(rows).values()
    fixed, energy = table.splitlines()[2:]
    assert "one fixed share" in fixed and "energy" in energy and fixed.count(" / - / -") == 5


def made(**accuracies):
    """Rows of a dense network at 90 % and of plain and sequential factors at half of the MACs: {chooser: (plain, sequential)}."""
    about = {"dataset": "d", "network": "n", "seed": 0}
    rows = [about | {"chooser": "dense", "factors": "none", "budget": np.nan, "accuracy": 0.9, "macs_kept": 1.0}]
    for chooser, values in accuracies.items():
        for kind, accuracy in zip(("svd", "sequential"), values, strict=True):
            cut = {"chooser": chooser, "factors": kind, "budget": 0.5, "accuracy": accuracy, "macs_kept": 0.5}
            rows.append(about | cut | {"plan": "{}"})
    return pd.DataFrame(rows)


def test_what_decides_is_told_as_measured():
    told = convolutions.about_factors(made(energy=(0.5, 0.8), fixed=(0.6, 0.85)))
    assert "ranks by energy: plain 40.0, sequential 10.0" in told and "by up to 30.0 points" in told
    assert "the factors matter more" in told and "in 0 of 2 cases" in told
    other = convolutions.about_factors(made(energy=(0.5, 0.55), fixed=(0.8, 0.85)))
    assert "the ranks matter more" in other and "changes it by up to 30.0" in other


def test_published_networks_are_told_one_by_one():
    both = pd.concat(
        [made(energy=(0.5, 0.8), fixed=(0.6, 0.85)), made(energy=(0.6, 0.85), fixed=(0.5, 0.8)).assign(network="m")]
    )
    told = convolutions.about_published(both)
    assert "on m in 2 of 2 cases, on n in 0 of 2 cases" in told and "better one on every network" in told
    assert "better one on every" not in convolutions.about_published(made(energy=(0.5, 0.8), fixed=(0.6, 0.85)))
    assert len(convolutions.by_work(both).axes) == 4


def test_a_figure_without_rows_says_so():
    (axis,) = convolutions.by_work(made()).axes
    assert "no network of this kind" in axis.texts[0].get_text()


def test_a_spatial_pair_with_both_strides_first_is_another_convolution():
    layer, x = nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.randn(1, 3, 9, 9)
    pair = svd.factorize(layer, 9, "spatial")
    wrong = convolutions.twice_the_stride(pair)
    assert pair[0].stride == (2, 1) and wrong[0].stride == (2, 2) and wrong[1].stride == (1, 1)
    assert wrong(x).shape == layer(x).shape
    assert (pair(x) - layer(x)).norm() < 1e-4 and (wrong(x) - layer(x)).norm() > 0.1


@pytest.fixture(scope="module")
def normed(images):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)),
    ).eval()


def test_batch_norms_are_recalibrated_where_there_are_some(images, model, normed):
    about = {"calibration_images": 30, **ABOUT}
    table = convolutions.experiment(images, normed, shares=(0.5,), methods=("svd",), **about)
    lab = convolutions.prepared(images, normed, **about)
    found = convolutions.recalibrated(lab, table)
    assert found["chooser"].tolist() == ["dense", "fixed", "energy"]
    assert found["svd"].tolist() == pytest.approx([table["accuracy"].iloc[0], *table["accuracy"].iloc[1:]])
    net = training.recalibrate(normed, lab.profile.calibration)
    assert found["again"].iloc[0] == training.evaluate(net, *images.tensors("test")).accuracy
    (axis,) = convolutions.norms(found).axes
    lost = (100 * (found["svd"].iloc[0] - found["again"].iloc[1:])).clip(lower=convolutions.LEAST)
    assert np.allclose(axis.lines[1].get_xdata(), lost)
    none = convolutions.recalibrated(convolutions.prepared(images, model, **about), table)
    assert not len(none) and "nothing to recalibrate" in convolutions.norms(none).axes[0].texts[0].get_text()
    assert "nothing was recalibrated" in convolutions.about_norms(none)


def test_recalibration_is_told_as_measured():
    table = pd.DataFrame(
        [
            {"budget": 1.0, "chooser": "dense", "svd": 0.9, "again": 0.91},
            {"budget": 0.5, "chooser": "fixed", "svd": 0.5, "again": 0.8, "sequential": 0.85},
        ]
    )
    told = convolutions.about_norms(table)
    assert "40.0 points lost as cut, 10.0 when recalibrated" in told and "cause 75% of the loss" in told
    assert "Sequential factors are ahead of recalibrated plain ones in 1 of 1 cases" in told and "+1.0 points" in told
    assert "no rows of recalibrated" in convolutions.about_gallery_norms(table[:0])


def test_few_images_are_drawn_and_told(images, model):
    lab = convolutions.prepared(images, model, calibration_images=30, **ABOUT)
    table = convolutions.few_images(lab, {"2": ("spatial", 4)}, [3, 30])
    assert table["images"].tolist() == [0, 3, 30]
    (axis,) = convolutions.image_curve(table, 0.9).axes
    assert list(axis.lines[-1].get_ydata()) == table["accuracy"].tolist()[1:]
    told = convolutions.about_images(pd.DataFrame({"images": [0, 2, 9], "accuracy": [0.5, 0.4, 0.6]}))
    assert "With 2 images they are behind plain factors" in told
    assert "None of them" in convolutions.about_images(pd.DataFrame({"images": [0, 9], "accuracy": [0.5, 0.6]}))


def test_speed_is_told_as_measured():
    table = pd.DataFrame([{"MACs kept": 0.25, "on paper": 4.0, "batch 1": 2.0, "batch 64": 1.5}])
    assert "4.0 times faster. It is 2.0" in convolutions.about_speed(
        table
    ) and "At 1 of 1 sizes" in convolutions.about_speed(table)
    assert [bar.get_width() for bar in convolutions.speed(table).axes[0].patches] == [4.0, 2.0, 1.5]


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"shares": (0.0,)}, "share=0.0 is not a share"),
        ({"methods": ("svd", "magic")}, "unknown factors 'magic'"),
        ({"calibration_images": 0}, "calibration_images=0 is not a whole number"),
        ({"scheme": "sideways"}, "sideways"),
    ],
)
def test_bad_input_is_refused(images, model, bad, words):
    with pytest.raises(ValueError, match=words):
        convolutions.experiment(images, model, **{"calibration_images": 20} | bad, **ABOUT)


@pytest.fixture(scope="module")
def read(images, model):
    return profile(model, images.tensors("train", limit=60)[0], dense=("0", "8"))


def test_times_faster_stand_beside_what_the_macs_promise(read):
    plans = [{}, rules.plan_at_size(read, 0.5)]
    found = convolutions.times_faster(read, plans, repeats=3)
    assert found["MACs kept"].iloc[0] == 1 and found["MACs kept"].iloc[1] <= 0.5
    assert (found["MACs kept"] * found["on paper"]).tolist() == pytest.approx([1, 1])
    assert list(found.columns[2:]) == ["batch 1", "batch 64"] and (found[["batch 1", "batch 64"]] > 0).all(axis=None)
