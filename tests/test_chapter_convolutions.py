"""Chapter 02b: the experiment's rows, and what figure and table read from them."""

import json

import pytest
import torch
from torch import nn

from lowrank_utils.lab import columns, data
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
