"""The measurement behind the defaults of compress."""

import pandas as pd
import pytest
import torch
from torch import nn

from lowrank_utils.workbook import shortcuts


@pytest.fixture(scope="module")
def rows():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5)
    ).eval()  # fmt: skip
    x, unseen = torch.randn(60, 1, 10, 10), torch.randn(40, 1, 10, 10)
    settings = {name: shortcuts.SETTINGS[name] for name in ("everything", shortcuts.DEFAULT)}
    return shortcuts.measure(model, x, unseen, (0.8, 0.6), settings, network="small", draw=0)


def test_each_setting_and_budget_has_a_row(rows):
    assert list(rows["kept"]) == [0.8, 0.8, 0.6, 0.6] and set(rows["network"]) == {"small"}
    assert (rows["seconds"] > 0).all() and (rows["divergence"] > 0).all()
    assert (rows.groupby("setting")["divergence"].agg(lambda own: own.iloc[1] > own.iloc[0])).all()  # a smaller network


def test_the_figure_has_a_panel_a_budget_and_every_setting(rows):
    drawn = shortcuts.figure(pd.concat([rows, rows.assign(draw=1)]))
    assert [axis.get_title() for axis in drawn.axes] == ["80% of the MACs kept", "60% of the MACs kept"]
    assert [text.get_text() for text in drawn.axes[-1].get_legend().get_texts()] == ["everything", shortcuts.DEFAULT]
