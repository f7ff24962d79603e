"""Chapter 00, low rank in ten minutes: its experiment, figures and sentences, and the cells of its notebook."""

import ast
import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import lowrank_utils
from conftest import check_calls as checks
from conftest import notebook_cells as cells
from lowrank_utils import paths
from lowrank_utils.lab import columns, data, models
from lowrank_utils.lab.training import Recipe, fit
from lowrank_utils.network.profile import LayerProfile
from lowrank_utils.workbook import plots
from lowrank_utils.workbook.chapters import ten_minutes as chapter

ABOUT = {"dataset": "digits", "network": "toy", "seed": 0, "calibration_images": 300}
GREY, COLOUR = (1, 8, 8), (3, 8, 8)
CARD = LayerProfile("fc", "linear", (300, 784), True, 1, 235500, 235200)
NOTEBOOK = paths.NOTEBOOKS / f"{chapter.NOTEBOOK}.ipynb"
SOLUTIONS = paths.SOLUTIONS / NOTEBOOK.name


@pytest.fixture(scope="module")
def images():
    return data.load("digits", seed=0)


@pytest.fixture(scope="module")
def trained(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 10))
    fit(model, images, Recipe(6, 64, 5e-3, 0.0), seed=0, device="cpu", progress=False)
    return model.eval()


@pytest.fixture(scope="module")
def read(images, trained):
    return lowrank_utils.profile(trained, images.tensors("train", 300)[0])


@pytest.fixture(scope="module")
def table(images, read):
    return chapter.by_rank(read, images, "1", rank=7)


@pytest.fixture(scope="module")
def small(trained, read):
    return lowrank_utils.compress(trained, read.calibration, kept=0.5, resource="parameters", refine=False)


@pytest.fixture(scope="module")
def rows(images, trained, small):
    return chapter.experiment(images, trained, small, kept=0.5, **ABOUT)


# ---- the numbers


def test_the_first_layer_is_the_one_that_sees_the_pixels(images, trained):
    assert chapter.first_layer(trained, images.input_shape) == ("1", trained[1])
    with pytest.raises(ValueError, match="first layer is a Conv2d.*choose network lenet300 or mlp"):
        chapter.first_layer(models.build("lenet5", (1, 28, 28), 10), (1, 28, 28))
    with pytest.raises(ValueError, match="first layer is a Linear"):
        chapter.first_layer(trained, (1, 9, 9))  # it sees something else than these pixels
    with pytest.raises(ValueError, match="rank=41 is above the full rank of 1: choose one from 1 to 40"):
        chapter.first_layer(trained, images.input_shape, 41)
    for rank in (0, -1, 2.5):
        with pytest.raises(ValueError, match="rank"):
            chapter.first_layer(trained, images.input_shape, rank)


def test_energy_is_that_of_the_truncated_matrix():
    matrix = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).double()
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    for rank in range(7):
        held = ((u[:, :rank] * s[:rank]) @ vt[:rank]).square().sum() / matrix.square().sum()
        assert chapter.energy(s, rank) == pytest.approx(float(held))
    with pytest.raises(ValueError, match="rank"):
        chapter.energy(s, -1)


def test_smoothness_tells_a_slope_from_a_chessboard_and_from_noise():
    ramp = torch.arange(8.0).repeat(8, 1)
    chessboard = (torch.arange(64) // 8 + torch.arange(64)) % 2
    noise = torch.randn(3 * 64, generator=torch.Generator().manual_seed(0))
    assert chapter.smoothness(ramp.flatten(), GREY) > 0.8
    assert chapter.smoothness(ramp.repeat(3, 1, 1).flatten(), COLOUR) > 0.8
    assert chapter.smoothness(chessboard, GREY) == pytest.approx(-1, abs=0.02)
    assert abs(chapter.smoothness(noise, COLOUR)) < 0.2
    assert chapter.smoothness(torch.ones(64), GREY) == 0


def test_ranks_lose_what_theory_says(read, table, trained, images):
    assert set(table["factors"]) == {"svd", "data-aware"}
    for _, line in table.groupby("factors"):
        assert line["rank"].tolist() == [1, 2, 5, 7, 10, 20, 40] and line["lost"].is_monotonic_decreasing
        assert line["lost"].iloc[-1] < 1e-9  # full rank loses nothing
    x, _ = images.tensors("valid")
    centred = x.flatten(1).double() - x.flatten(1).double().mean(0)
    weight = trained[1].weight.detach().double()
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    gone = centred @ (weight - (u[:, :7] * s[:7]) @ vt[:7]).T
    expected = float(gone.square().sum() / (centred @ weight.T).square().sum())
    mine = table[(table["factors"] == "svd") & (table["rank"] == 7)]
    assert mine["lost"].item() == pytest.approx(expected, rel=1e-4)
    whole = table[table["rank"] == 40]["accuracy"]
    assert whole.nunique() == 1 and table["accuracy"].min() < whole.iloc[0] <= 1


def test_rows_are_the_dense_and_the_compressed_network(rows, small, images, trained):
    columns.check(rows)
    dense, cut = rows.to_dict("records")
    assert dense["chooser"] == "dense" and dense["parameters_kept"] == 1 and dense["notebook"] == chapter.NOTEBOOK
    assert cut["stored_as"] == "low rank" and cut["budget"] == 0.5 and cut["parameters_kept"] <= 0.5
    assert cut["parameters_kept"] == pytest.approx(small.kept["parameters"]) and cut["tuned"] == "none"
    (written,) = chapter.tables(rows).values()
    assert list(chapter.tables(rows)) == list(chapter.CAPTIONS)
    assert f"{100 * cut['accuracy']:.1f} |" in written and written.count("\n") == 3
    with pytest.raises(ValueError, match="kept"):
        chapter.experiment(images, trained, small, kept=1.5, **ABOUT)


def test_plain_directions_are_counted_up_to_the_same_share():
    shares = {"svd": torch.tensor([0.1, 0.2, 0.3, 0.4]), "data-aware": torch.tensor([0.6, 0.2, 0.1, 0.1])}
    assert [chapter.plain_directions_needed(shares, rank) for rank in (1, 2, 3, 4)] == [3, 4, 4, 4]
    assert chapter.plain_directions_needed({"svd": shares["svd"], "data-aware": shares["svd"]}, 3) == 3


def test_shuffling_keeps_the_energy_and_flattens_the_spectrum():
    weight = torch.outer(
        torch.randn(30, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 50)
    ).double()
    found, again = chapter.shuffled_spectrum(weight), chapter.shuffled_spectrum(weight, seed=1)
    assert float(found.square().sum()) == pytest.approx(float(weight.square().sum()))
    assert chapter.energy(found, 1) < 0.5 < chapter.energy(torch.linalg.svdvals(weight), 1)
    assert not torch.equal(found, again)


# ---- sentences are about the run at hand


def spectrum(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_sentences_follow_the_numbers():
    steep, flat = spectrum(*(2.0**-i for i in range(20))), torch.ones(20)
    slope, noise = torch.linspace(-1, 1, 64), torch.randn(64, generator=torch.Generator().manual_seed(0))
    shape = chapter.about_components(steep, torch.stack([slope, noise]), flat, GREY)
    assert "first pattern is smooth" in shape and "has gathered" in shape and "Before training they held 50.0%" in shape
    other = chapter.about_components(flat, torch.stack([noise, slope]), steep, GREY)
    assert "hardly smoother" in other and "hardly" in other
    assert (
        chapter.about_strip(spectrum(3, 2, 1)) == "Half of the energy is back at rank 1, and 90% of it at rank 2 of 3."
    )
    assert "10 x (300 + 784) = 10,840" in (told := chapter.about_break_even(CARD, 10)) and "is less than" in told
    assert "216, and the full rank is 300" in told and "not less than" in chapter.about_break_even(CARD, 217)
    assert "it is not the places" in chapter.about_shuffled(flat, flat, 10)
    assert "So the places" in chapter.about_shuffled(steep, flat, 10)


@pytest.mark.parametrize(
    ("aware", "said"), [(0.8, "30.0 points ahead"), (0.4, "10.0 points behind"), (0.5, "level"), (0.50049, "level")]
)
def test_the_better_directions_are_named_as_measured(aware, said):
    table = pd.DataFrame({"factors": ["svd", "data-aware"], "rank": 5, "lost": [0.4, 0.1], "accuracy": [0.5, aware]})
    told = chapter.about_curves(table, 5)
    assert said in told and "40%" in told and f"{aware:.1%}" in told
    with pytest.raises(ValueError, match=r"rank=6 was not measured: choose one of \[5\]"):
        chapter.about_curves(table, 6)


@pytest.mark.parametrize(("after", "said"), [(0.88, "2.0 points less"), (0.91, "1.0 points more"), (0.9, "no change")])
def test_the_call_is_told_as_measured(after, said):
    rows = pd.DataFrame(
        {"chooser": ["dense", "exact-Fisher"], "parameters": [1000, 250], "accuracy": [0.9, after]}
        | {"parameters_kept": [1.0, 0.25]}
    )
    told = chapter.about_call(rows, 10_000)
    assert said in told and "25.0% of the parameters" in told and "standard error of 0.3 points" in told


def test_a_difference_is_that_of_the_numbers_beside_it():
    table = pd.DataFrame({"factors": ["svd", "data-aware"], "rank": 5, "lost": 0.5, "accuracy": [0.5194, 0.8016]})
    told = chapter.about_curves(table, 5)
    assert "51.9%" in told and "80.2%" in told and "28.3 points" in told  # not 28.2, as the unrounded numbers have it


def test_the_layer_is_told_as_it_is(trained):
    assert "turns the 64 numbers of an image into 40 outputs" in chapter.about_layer(trained, "1")
    assert "2,560 weights, which are 71% of the 3,630" in chapter.about_layer(trained, "1")


# ---- figures


def pixels(axis):
    return np.asarray(axis.images[0].get_array())


def test_images_show_the_weights(images, trained, read):
    weight = trained[1].weight.detach().double()
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    first = chapter.weights(images, weight)
    longest = int(weight.norm(dim=1).argmax())
    drawn = next(axis for axis in first.axes if axis.get_title() == f"output {longest}")
    assert np.allclose(pixels(drawn).ravel(), weight[longest])
    strip = chapter.strip(weight, u, s, vt, GREY)
    assert [axis.get_title().split("\n")[0] for axis in strip.axes[:7]] == [
        *(f"rank {r}" for r in (1, 2, 5, 10, 20)),
        "rank 40 (full)",
        "",
    ]
    full = next(axis for axis in strip.axes if "full" in axis.get_title())
    assert np.allclose(pixels(full).ravel(), weight[longest]) and "100% of energy" in full.get_title()
    told = chapter.components(s, vt, s.flip(0), GREY)
    assert {"component 1", "20", "40"} <= {axis.get_title() for axis in told.axes}
    upright = pixels(told.axes[0])
    assert np.abs(upright).max() == upright.max() > 0  # whatever sign the decomposition gave it


def test_colour_images_are_tints_of_grey():
    axis = plots.tiles(1, 1)[1][0, 0]
    pattern = torch.zeros(3, 8, 8)
    pattern[0, 2, 3], pattern[2, 4, 4] = 2.0, -2.0
    plots.draw_signed(axis, pattern.flatten(), COLOUR)
    shown = pixels(axis)
    assert shown.shape == (8, 8, 3) and shown[0, 0].tolist() == [0.5] * 3
    assert shown[2, 3].tolist() == [1, 0.5, 0.5] and shown[4, 4].tolist() == [0.5, 0.5, 0]


def test_areas_in_the_drawing_are_numbers_of_weights():
    for card in (CARD, LayerProfile("fc", "linear", (300, 64), True, 1, 19500, 19200)):
        figure = chapter.break_even(card, 10)
        areas = [sum(p.get_width() * p.get_height() for p in axis.patches) for axis in figure.axes]
        d_out, d_in = card.shape
        assert areas == pytest.approx([d_out * d_in, 10 * (d_out + d_in), card.break_even() * (d_out + d_in)])
        assert all(f"{round(area):,} weights" in axis.get_title(loc="left") for axis, area in zip(figure.axes, areas))


def test_directions_carry_their_shares():
    patterns = {"svd": torch.eye(64)[:4], "data-aware": -torch.eye(64)[:12]}
    shares = {"svd": spectrum(0.4, 0.3, 0.2, 0.1), "data-aware": spectrum(0.7, 0.1, 0.1, 0.1)}
    figure = chapter.directions(patterns, shares, GREY)
    assert [axis.get_title() for axis in figure.axes] == ["40%", "30%", "20%", "10%", "70%", "10%", "10%", "10%"]
    assert all(
        pixels(axis).max() == 1 for axis in figure.axes
    )  # signs are turned so that the largest entry is positive


def test_curves_show_the_table_and_where_nothing_is_saved(table, read):
    left, right = chapter.curves(table, read["1"], 0.9).axes
    plain = table[table["factors"] == "svd"]
    assert right.lines[0].get_ydata().tolist() == plain["accuracy"].tolist()
    assert (
        left.lines[0].get_xdata().tolist() == plain["rank"].tolist()[:-1]
    )  # full rank loses nothing, and has no logarithm
    assert {text.get_text() for text in left.texts} == {"plain", "data-aware"}
    zone = right.patches[0]
    assert zone.get_x() == read["1"].break_even() and zone.get_x() + zone.get_width() > 40
    assert right.get_ylim()[1] > chapter.curves(table, read["1"], 1.0).axes[1].lines[-1].get_ydata()[0]


def test_bars_are_the_parameters_of_the_layers(small, read):
    (axis,) = chapter.ledger(small, read).axes
    dense, kept = ([bar.get_width() for bar in axis.patches[i::2]] for i in (0, 1))
    assert dense == [card.parameters for card in read]
    assert sum(kept) / sum(dense) == pytest.approx(small.kept["parameters"])
    assert len(axis.texts) == len(small.layers) and "dense: 100%" in axis.texts[-1].get_text()


@pytest.mark.parametrize("answer", [..., None, "steep", [1.0, 2.0], [[1.0, 2.0, 3.0]], object()])
def test_an_exercise_without_an_answer_says_so_in_the_figure(answer):
    (axis,) = chapter.two_spectra(spectrum(3, 2, 1), answer).axes
    assert len(axis.lines) == 1 and "no answer of 3 numbers yet" in axis.texts[-1].get_text()


def test_an_answer_is_drawn_beside_the_trained_layer():
    for answer in ([2.0, 2.0, 1.0], spectrum(2, 2, 1)):
        (axis,) = chapter.two_spectra(spectrum(3, 2, 1), answer).axes
        assert axis.lines[1].get_ydata().tolist() == [2, 2, 1]


# ---- the notebook


@pytest.mark.parametrize("path", [NOTEBOOK, SOLUTIONS], ids=["lesson", "solutions"])
def test_cells_are_short_and_state_no_verdict(path):
    for cell in cells(path):
        assert len(cell.source.splitlines()) <= 12 and "lambda" not in cell.source, cell.source
        said = "".join(o.get("text", "") for o in cell.outputs)
        assert not re.search(r"(?<!=)\b(True|False)\b", said), said


def test_lesson_and_solutions_ask_the_same_of_four_answers():
    asked = checks(NOTEBOOK)
    assert len(asked) == 4 and checks(SOLUTIONS) == asked
    lesson = "\n".join(cell.source for cell in cells(NOTEBOOK))
    solved = "\n".join(cell.source for cell in cells(SOLUTIONS))
    for call in asked:
        name = ast.parse(call).body[0].value.args[0].id
        assert re.search(rf"^{name} = \.\.\.", lesson, re.M) and not re.search(rf"^{name} = \.\.\.", solved, re.M)
    assert [o.text for c in cells(SOLUTIONS) if "check(" in c.source for o in c.outputs] == ["right\n"] * 4


def test_only_versions_are_not_compared():
    ignored = [cell.source for cell in cells(NOTEBOOK) if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    assert len(ignored) == 1 and "torch.__version__" in ignored[0]


def test_figures_come_early_and_often():
    drawn = [any("image/png" in o.get("data", {}) for o in cell.outputs) for cell in cells(NOTEBOOK)]
    assert sum(drawn) >= 5 and drawn.index(True) <= 2  # behind imports and parameters


def test_every_word_of_the_glossary_is_a_link_target_everywhere():
    glossary = next(cell.source for cell in cells(NOTEBOOK, "markdown") if "## Glossary" in cell.source)
    words = re.findall(r"^### (.*)$", glossary, re.M)
    assert len(words) == len(set(words)) > 20 and words == sorted(words)
    # JupyterLab keeps capitals and signs of a heading in its address, GitHub and Sphinx do not
    assert all(re.fullmatch(r"[a-z]+([ -][a-z]+)*", word) for word in words)
