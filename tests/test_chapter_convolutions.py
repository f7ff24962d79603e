"""Chapter 02b: the experiment's rows, and what figure and table read from them."""

import json

import pytest
import torch
from torch import nn

from lowrank_utils import profile
from lowrank_utils.factors import svd
from lowrank_utils.lab import columns, data, score
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
    (axis,) = convolutions.figure(rows).axes
    whole = [line for line in axis.lines if line.get_linestyle() == "-" and line.get_label() in convolutions.KINDS]
    assert len(whole) == 5 and all(len(line.get_xdata()) == 2 for line in whole)
    (table,) = convolutions.tables(rows).values()
    fixed, energy = table.splitlines()[2:]
    assert "one fixed share" in fixed and "energy" in energy and fixed.count(" / - / -") == 5


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


def test_work_is_each_layers_share_of_the_macs(read):
    found = convolutions.work(read).set_index("layer")
    assert found.loc["2", ["weights", "parameters", "MACs"]].tolist() == ["16x8x3x3", 16 * 8 * 9 + 16, 64 * 16 * 8 * 9]
    assert found["MACs"].sum() == score.macs(read.model, read.input_shape)
    assert found["share of MACs"].sum() == pytest.approx(1, abs=0.002)


def test_error_by_scheme_is_measured_on_the_outputs_of_the_layer(read, images):
    few = images.tensors("valid", limit=50)[0]
    found = convolutions.error_by_scheme(read, "2", few).set_index("scheme")
    assert list(found.index) == ["spatial", "channel", "input"]
    assert (found["rank"] == found["break-even (MACs)"] // 2).all() and (found["data-aware"] < found["svd"]).all()
    layer = read.model[2]
    with torch.no_grad():
        x = read.model[:2](few)
        y = layer(x)
        off = svd.factorize(layer, int(found.loc["channel", "rank"]), "channel")(x) - y
        spread = (y - y.mean((0, 2, 3), keepdim=True)).norm()
    assert found.loc["channel", "svd"] == pytest.approx(float(off.norm() / spread), rel=1e-4)


def test_times_faster_stand_beside_what_the_macs_promise(read):
    plans = [{}, rules.plan_at_size(read, 0.5)]
    found = convolutions.times_faster(read, plans, "svd", repeats=3)
    assert found["MACs kept"].iloc[0] == 1 and found["MACs kept"].iloc[1] <= 0.5
    assert (found["MACs kept"] * found["on paper"]).tolist() == pytest.approx([1, 1])
    assert list(found.columns[2:]) == ["batch 1", "batch 64"] and (found[["batch 1", "batch 64"]] > 0).all(axis=None)
