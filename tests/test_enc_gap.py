"""The experiments on ENC's number for ResNet-56: each change is told apart, and what is left is called unexplained."""

import pandas as pd
import pytest

from conftest import mlp
from lowrank_utils.network.profile import plan_cost, profile
from lowrank_utils.ranks import search
from lowrank_utils.workbook import enc_gap


@pytest.fixture
def rows():
    made = []
    for scheme, of_scheme in (("spatial", 0.0), ("channel", -0.1)):
        for first, of_first in (("dense", 0.0), ("cut", 0.02)):
            for chooser, of_chooser in (("fixed", 0.0), ("ENC-Map", 0.03)):
                right = 0.7 + of_scheme + of_first + of_chooser
                made.append({"scheme": scheme, "first": first, "chooser": chooser, "dense": 0.94, "accuracy": right})
    return pd.DataFrame(made).assign(recalibrated=0.9, images=2000)


def test_each_change_is_told_apart(rows):
    found = enc_gap.effects(rows)
    assert found["channel scheme"] == pytest.approx((-10, -10)) and found["first layer cut"] == pytest.approx((2, 2))
    assert found["ENC-Map in place of one fixed share"] == pytest.approx((3, 3))
    low, high = found["batch norms recalibrated"]
    assert (low, high) == pytest.approx((15, 30))
    assert "channel scheme" not in enc_gap.effects(rows[rows["scheme"] == "spatial"])


def test_the_page_says_what_is_left(rows):
    page = enc_gap.section(rows)
    assert "The best of these networks of ENC-Map has 75.0 % as cut and 90.0 %" in page and "unexplained" in page
    assert "| ENC-Map | channel | cut | 65.0 | 90.0 |" in page and "nan" not in page
    labels = [label.get_text() for label in enc_gap.figure(rows).axes[0].get_yticklabels()]
    assert labels[3] == "ENC-Map, spatial, first layer cut" and len(labels) == 8


@pytest.mark.parametrize("chooser", enc_gap.CHOOSERS)
def test_plans_meet_their_budget(chooser):
    read = profile(mlp((20, 18, 16, 4)), input_shape=(20,), dense=("4",))
    plan = enc_gap.plan_of(read, chooser, 0.6)
    assert plan and plan_cost(read, plan) <= 0.6 * plan_cost(read, {})


def test_squares_make_the_curve_of_energy():
    read = profile(mlp((20, 18, 16, 4)), input_shape=(20,), dense=("4",))
    options = search.rank_options(read)
    curves, plain = enc_gap.squared(read, options), search.energy(read, options)
    own = options[0]
    s, (most,) = read[own.name].singular_values, own.full.values()
    rank = own.entries[2]
    assert curves[own.name][2] == pytest.approx((s[1:rank] ** 2).sum() / (s[1:most] ** 2).sum())
    assert (curves[own.name] >= plain[own.name] - 1e-12).all() and curves[own.name][-1] == 1
