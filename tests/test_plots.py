"""Figures show what they are given: lines, bands, labels with units; none stays open in pyplot."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import LogNorm
from matplotlib.patches import Circle

from lowrank_utils.factors.ddlr import solve
from lowrank_utils.lab import columns
from lowrank_utils.workbook import plots
from lowrank_utils.workbook.chapters import (
    arsvd,
    arsvd_lesson,
    ddlr,
    ddlr_lesson,
    entropy_pruning,
    rank_search,
    side_by_side,
    training,
)


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    assert plt.get_fignums() == []


def rows():
    return pd.DataFrame(
        {"chooser": chooser, "factors": factors, "scope": "hidden layers", "budget_kind": "kept", "budget": kept,
         "parameters_kept": kept, "accuracy": kept + 0.01 * seed, "f1": kept, "seed": seed}
        for chooser in ("energy", "fixed") for factors in ("svd", "data-aware") for kept in (0.1, 0.3, 0.2) for seed in (0, 1)
    )  # fmt: skip


def test_frontier_draws_the_mean_of_the_seeds_and_a_band():
    figure = plots.frontier(rows(), "accuracy", baseline=0.9)
    assert [axis.get_title() for axis in figure.axes] == ["svd factors, test images", "data-aware factors, test images"]
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert set(lines) == {"energy", "fixed", "dense"}
    assert np.allclose(lines["energy"].get_xdata(), [0.1, 0.2, 0.3])
    assert np.allclose(lines["energy"].get_ydata(), [0.105, 0.205, 0.305])
    assert np.allclose(lines["dense"].get_ydata(), 0.9)
    assert len(figure.axes[0].collections) == 2
    assert figure.axes[0].get_xlabel() == "parameters kept (share of dense)"


def test_frontier_by_scope_from_a_floor():
    figure = plots.frontier(rows(), "f1", floor=0.15, panels="scope")
    assert len(figure.axes) == 1 and figure.axes[0].get_ylim()[0] == 0.15
    assert figure.axes[0].get_ylabel() == "macro F1"


def test_spectra_and_rank_curves_have_one_panel_a_layer():
    values = {"fc1": np.array([3.0, 1.0]), "fc2": np.array([2.0])}
    figure = arsvd_lesson.spectra(values, values)
    assert [axis.get_title() for axis in figure.axes] == ["fc1: 2 components", "fc2: 1 components"]
    table = pd.DataFrame(
        {"layer": name, "rule": rule, "threshold": t, "rank": 2, "full_rank": 4, "break_even": 3}
        for name in ("fc1", "fc2") for rule in ("energy", "entropy") for t in (0.5, 1.0)
    )  # fmt: skip
    figure = arsvd_lesson.rank_curves(table)
    assert [line.get_label() for line in figure.axes[0].lines] == ["energy", "entropy", "break-even"]


def test_history_confusion_and_images():
    table = pd.DataFrame(
        {
            "epoch": [1, 2],
            "train_loss": [1, 0.5],
            "valid_loss": [1, 0.7],
            "valid_accuracy": [0.5, 0.6],
            "valid_f1": [0.4, 0.6],
        }
    )
    assert [axis.get_xlabel() for axis in training.history(table).axes] == ["epoch", "epoch"]
    figure = training.confusion([[3, 1], [0, 0]], ("cat", "dog"))
    assert [text.get_text() for text in figure.axes[0].texts] == ["75", "25", "0", "0"]
    images = np.zeros((3, 4, 4, 3), np.uint8)
    figure = plots.image_grid(images, [0, 1, 1], ("cat", "dog"), columns=2)
    assert [axis.get_title() for axis in figure.axes] == ["cat", "dog", "dog", ""]


def test_the_gap_and_the_ball_are_drawn():
    history = pd.DataFrame({"iteration": [0, 20], "objective": [8.0, 5.0], "bound": [1.0, 4.0]})
    figure = ddlr_lesson.gap(history, "fc1")
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[8, 5], [1, 4]]
    assert figure.axes[1].lines[0].get_ydata().tolist() == pytest.approx([7 / 8, 0.2])
    (flat,) = ddlr_lesson.touching().axes
    assert len(flat.patches) >= 2
    discs, lines = [patch for patch in flat.patches if isinstance(patch, Circle)], flat.lines[2:]  # after the two axes
    for disc, ball, star in zip(discs, lines[0::2], lines[1::2]):  # the worked case of notebook 04
        touch, centre = np.array(star.get_data()).ravel(), np.array(disc.center)
        assert np.hypot(*(touch - centre)) == pytest.approx(disc.radius)  # on the rim of what is allowed,
        assert touch.sum() == pytest.approx(np.max(ball.get_xdata()))  # on the ball,
        found = solve(torch.eye(2), torch.diag(torch.tensor([3.0, 4.0])), disc.radius / 5, relu=False, tolerance=1e-7)
        assert torch.linalg.svdvals(found.weights).flip(0).numpy() == pytest.approx(
            touch, abs=1e-3
        )  # and where the solver ends


def sized(**more):
    """Rows of two seeds, two sizes and a chooser of somebody else's, in two kinds of factors."""
    rows = [
        {
            "chooser": c,
            "factors": f,
            "scope": "every layer",
            "stored_as": "low rank",
            "refit": "none",
            "tuned": "none",
            "budget_kind": "kept",
            "budget": k,
            "parameters_kept": k,
            "seed": seed,
            "accuracy": k + 0.1 * seed + bonus,
        }
        for (c, bonus), f, k, seed in itertools.product(
            {"energy": 0.1, "mine": 0.0}.items(), ("svd", "data-aware"), (0.2, 0.4), (0, 1)
        )
    ]
    rows += [
        {
            "chooser": "dense",
            "factors": "none",
            "scope": "none",
            "stored_as": "dense",
            "budget_kind": "dense",
            "seed": s,
            "accuracy": 0.9 + 0.02 * s,
        }
        for s in (0, 1)
    ]
    return pd.DataFrame(rows).assign(**more)


def drawn(figure):
    """{panel: {line: (x, y)}} of a figure."""
    lines = {axis.get_title(): {x.get_label(): x for x in axis.lines} for axis in figure.axes if axis.axison}
    return {
        panel: {name: (list(x.get_xdata()), list(x.get_ydata())) for name, x in mine.items()}
        for panel, mine in lines.items()
    }


def test_rules_have_a_panel_for_each_scope_and_factors_and_draw_any_chooser():
    figure = arsvd.rules(sized(), "2 seeds")
    panels = drawn(figure)
    assert list(panels) == ["every layer cut, svd, 2 seeds", "every layer cut, data-aware, 2 seeds"]
    for mine in panels.values():
        assert mine["energy"][1] == pytest.approx([0.35, 0.55]) and mine["mine"][1] == pytest.approx(
            [0.25, 0.45]
        )  # means of seeds
        assert mine["dense"][1] == pytest.approx([0.91, 0.91])
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(0.3) and band.max() == pytest.approx(0.6)  # from the lowest to the highest seed


def test_rankings_and_programs_show_their_panels_and_cut_offs():
    rows = sized()
    units = rows["factors"] == "svd"
    rows.loc[units, ["factors", "stored_as", "refit"]] = ["none", "units", "folded"]
    figure = entropy_pruning.rankings(rows)
    assert [p.split(",")[0] for p in drawn(figure)] == ["components", "units"]
    assert "units, mean folded, test images" in drawn(
        figure
    ) and "components, data-aware factors, test images" in drawn(figure)
    assert figure.axes[0].get_ylim()[0] == pytest.approx(0.51)  # 40 points below the dense network


def test_programs_show_points_lost_by_size():
    rows = sized(program="none", cut="none", refit="none", stored_as="low rank")
    ours = rows["chooser"] == "energy"
    rows.loc[ours, ["chooser", "program", "cut"]] = ["DDLR", "as posed", "to budget"]
    rows["chooser"] = rows["chooser"].replace({"mine": "energy"})
    short = rows[~((rows["chooser"] == "energy") & (rows["budget"] == 0.4) & (rows["seed"] == 1))]
    lines = {line.get_label(): line for line in ddlr.programs(short).axes[0].lines}
    assert set(lines) == {"DDLR, cut", "ARSVD"}
    assert list(lines["DDLR, cut"].get_xdata()) == pytest.approx([0.2, 0.4])
    assert list(lines["ARSVD"].get_xdata()) == pytest.approx([0.2])  # the other size lacks a seed


def test_choosers_have_a_row_a_network_and_a_band_over_draws():
    table = pd.DataFrame(
        {"dataset": "d", "network": network, "chooser": chooser, "factors": factors, "budget_kind": "macs", "budget": kept, "tuned": "none", "macs_kept": kept,
         "accuracy": kept + 0.1 * draw, "draw": draw}
        for network in ("n", "m") for chooser in ("ENC-Map", "exact") for factors in ("svd", "sequential", "data-aware")
        for kept in (0.5, 0.25) for draw in (0, 1)
    )  # fmt: skip
    dense = {
        "dataset": "d",
        "network": "n",
        "chooser": "dense",
        "factors": "none",
        "budget_kind": "dense",
        "tuned": "none",
        "macs_kept": 1.0,
        "accuracy": 0.9,
    }
    lossless = dense | {"chooser": "exact", "factors": "svd", "budget_kind": "lossless"}
    figure = rank_search.choosers(pd.concat([pd.DataFrame([dense, lossless]), table]))
    assert len(figure.axes) == 6 and figure.axes[3].get_title() == "m on d, plain factors"
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert np.allclose(lines["exact"].get_xdata(), [0.5, 0.25]) and np.allclose(lines["exact"].get_ydata(), [35, 60])
    assert len(figure.axes[0].collections) == 2 and figure.axes[0].get_yscale() == "log"


def ways():
    kinds = {
        "dense": (1000, 10.0, 0.9),
        "low rank": (300, 4.0, 0.88),
        "8 bit": (250, 30.0, 0.895),
        "zeros": (400, 10.0, 0.5),
    }
    stored = {"8 bit": "low rank", "zeros": "sparse"}
    return pd.DataFrame(
        {"dataset": "digits", "network": "lenet300", "chooser": way, "stored_as": stored.get(way, way), "bits": 8 if way == "8 bit" else 32,
         "runtime": "torch", "tuned": "none", "bytes": 1000 * size, "faster_64": 10 / time, "accuracy": accuracy, "tuned_accuracy": 0.89 if way == "low rank" else np.nan}
        for way, (size, time, accuracy) in kinds.items()
    )  # fmt: skip


def test_trade_off_names_what_nothing_beats():
    figure = side_by_side.trade_off(ways())
    left, right = figure.axes
    assert left.get_xlabel() == "kB on disk" and right.get_xlabel() == "time for 64 inputs (dense network in torch: 1)"
    (steps,) = [line for line in left.lines if line.get_drawstyle() == "steps-post"]
    assert list(steps.get_xdata()) == [250, 1000] and np.allclose(steps.get_ydata(), [0.5, 0.1])
    (steps,) = [line for line in right.lines if line.get_drawstyle() == "steps-post"]
    assert list(steps.get_xdata()) == [0.4, 1] and np.allclose(steps.get_ydata(), [2, 0.1])
    assert [text.get_text() for text in left.texts] == ["1 lose more", "8 bit, 8 bit", "dense"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["dense", "low rank", "zeros", "8 bit", "Pareto front"]


def test_trade_off_draws_means_over_seeds():
    about = {"notebook": "06_side_by_side", "scope": "hidden layers", "budget_kind": "own", "factors": "svd"}
    one = columns.table(ways().assign(seed=0, **about))
    two = one.assign(seed=1, accuracy=one["accuracy"] - 0.02)
    left, _ = side_by_side.trade_off(pd.concat([one, two])).axes
    lines = {line.get_label(): line for line in left.lines}
    assert list(lines["8 bit"].get_xdata()) == [250] and np.allclose(lines["8 bit"].get_ydata(), 0.5)
    (steps,) = [line for line in left.lines if line.get_drawstyle() == "steps-post"]
    assert np.allclose(steps.get_ydata(), [0.5, 0.1])  # not the best of the seeds


def test_a_heat_map_writes_each_number_where_it_can_be_read():
    _, (axis,) = plots.canvas()
    cells = pd.DataFrame({"x": [0.1, np.nan], "y": [10.0, 1.0]}, index=["a", "b"])
    plots.heat_map(axis, cells, LogNorm(0.1, 10), cells.map("{:.1f}".format))
    texts = {text.get_text(): text.get_color() for text in axis.texts}
    assert texts == {"0.1": "black", "nan": "black", "10.0": "white", "1.0": "black"}
    assert [t.get_text() for t in axis.get_xticklabels()] == ["x", "y"]
