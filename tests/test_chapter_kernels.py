"""Chapter 02b, its pictures and toys: they show the numbers that they are given, and the toys are cut as the package cuts."""

import numpy as np
import pytest
import torch
from torch import nn

from lowrank_utils.factors import svd
from lowrank_utils.network import profile, unfold
from lowrank_utils.workbook.chapters import kernels
from lowrank_utils.workbook.exercises import check


@pytest.fixture(scope="module")
def read():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
    ).eval()
    draw = torch.Generator().manual_seed(1)
    return profile.profile(model, torch.rand(30, 1, 8, 8, generator=draw), dense=("0", "7"))


def test_work_adds_up_and_the_layers_with_most_of_it_are_named(read):
    table = kernels.work(read)
    assert table["share of MACs"].sum() == pytest.approx(1) and table["weights"].tolist()[1] == "16x8x3x3"
    told = kernels.about_work(table)
    assert told.startswith("`2` does") and "`7` holds" in told
    one = kernels.about_work(table.iloc[:2].assign(parameters=[1, 2], MACs=[1, 2]))
    assert "No layer holds more parameters" in one
    bars = kernels.where_work(table).axes[0].patches
    assert [bar.get_height() for bar in bars] == [*table["share of parameters"], *table["share of MACs"]]


def test_the_busiest_layer_has_no_stride(read):
    assert kernels.busiest(read) == "2"
    with pytest.raises(ValueError, match="no square convolution"):
        kernels.busiest(read.but(dense=("0", "2", "4", "7")))


def test_a_kernel_of_rank_one_is_drawn_as_what_it_does():
    picture, column, row = torch.eye(6), torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    axes = kernels.taken_apart(picture, column, row).axes
    assert [text.get_text() for text in axes[1].texts] == ["1", "2", "1"]
    at_once = nn.functional.conv2d(picture[None, None], torch.outer(column, row)[None, None], padding=1)
    assert np.allclose(axes[5].images[0].get_array(), at_once[0, 0])


@pytest.mark.parametrize("size, squares", [(3, 9), (5, 4)])
def test_the_unfoldings_hold_the_same_numbers_and_frame_one_kernel(size, squares):
    layer = nn.Conv2d(6, 5, size)
    (axis,) = kernels.unfolded(layer).axes
    meshes = [np.asarray(mesh.get_array()) for mesh in axis.collections]
    assert len(meshes) == squares + 3
    numbers = np.sort(np.concatenate([mesh.ravel() for mesh in meshes[:-3]]))
    for matrix in meshes[-3:]:
        assert np.allclose(np.sort(matrix.ravel()), numbers)
    frames = sorted((int(p.get_width()), int(p.get_height())) for p in axis.patches)
    assert frames == sorted([(size, size), (size, size), (size**2, 1), (1, size**2)])


def test_errors_fall_with_the_rank_and_data_help(read):
    draw = torch.Generator().manual_seed(2)
    table = kernels.errors(read, "2", torch.rand(20, 1, 8, 8, generator=draw), (0.25, 0.75))
    assert set(table["scheme"]) == set(unfold.NAMES) and len(table) == 3 * 2 * 2
    layer, few = read.model[2], torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        x = read.model[:2](few)
        y = layer(x)
        mine = table[(table["scheme"] == "channel") & (table["factors"] == "svd")].iloc[0]
        off = (svd.factorize(layer, int(mine["rank"]), "channel")(x) - y).square().sum()
    energy = (y - y.mean((0, 2, 3), keepdim=True)).square().sum()
    assert mine["lost"] == pytest.approx(float(off / energy), rel=1e-4)
    by = table.pivot(index=["scheme", "factors"], columns="share", values="lost")
    assert (by[0.75] < by[0.25]).all()
    figure = kernels.error_curves(table, "2")
    assert [axis.get_title() for axis in figure.axes] == list(unfold.NAMES)
    assert "in 6 of 6 cases" in kernels.about_errors(table.assign(lost=np.where(table["factors"] == "svd", 0.5, 0.1)))
    with pytest.raises(ValueError, match="share=0"):
        kernels.errors(read, "2", torch.rand(2, 1, 8, 8), (0,))


def test_toys_are_swept_better_than_cut_layer_by_layer():
    x = kernels.signals(500)
    assert torch.corrcoef(x.T)[0, 1] > 0.4
    for model in (kernels.two_layers(), kernels.Block()):
        with torch.no_grad():
            wanted = model(x)
        swept, alone = (
            kernels.lost(kernels.outputs(model, x, 3, kind), wanted) for kind in ("sequential", "data-aware")
        )
        assert 0 < swept < alone
    with pytest.raises(ValueError, match="depth=0"):
        kernels.chain(0)


def test_sweeps_of_toys_are_drawn_in_the_order_of_their_loss():
    x = kernels.signals(2000)
    toy, block = kernels.two_layers(), kernels.Block()
    with torch.no_grad():
        table = kernels.sweeps(
            x,
            toy,
            lambda rank: kernels.outputs(toy, x, rank, "sequential"),
            block,
            lambda rank, repair=True: kernels.outputs(block, x, rank, "sequential" if repair else "svd"),
            (2, 3),
        )
    assert len(table) == 2 * 5
    two, three = kernels.sweep_curves(table).axes
    assert [text.get_text() for text in two.texts] == ["each layer alone", "front to back"]
    assert len(three.lines) == 3 and three.lines[1].get_linestyle() == "--"
    assert len(kernels.block_drawing().axes[0].patches) > 5


def test_the_pair_of_a_scheme_is_recognised():
    layer = nn.Conv2d(3, 5, 3, padding=1)
    test = kernels.is_pair_of(layer, 2, "channel")
    assert test(lambda layer, rank: svd.factorize(layer, rank, "channel"))
    assert not check(5, test=test)
    assert not check(lambda layer, rank: svd.factorize(layer, rank, "spatial"), test=test)
    assert not check(lambda layer, rank: None, test=test)
    assert not check(lambda layer, rank: svd.factorize(nn.Conv2d(3, 5, 3, padding=1), rank, "channel"), test=test)


def test_the_running_mean_takes_what_the_cut_changes():
    net, weight, cut, mean, after = kernels.before_norm()
    assert torch.allclose(after, net[1].running_mean - (weight - cut) @ mean)
    assert torch.linalg.matrix_rank(cut) == 2 and (after - net[1].running_mean).norm() > 0.01


@pytest.mark.parametrize("answer", [..., None, "many", [0.5], [[0.1, 0.2]]])
def test_depths_without_an_answer_are_told_in_the_figure(answer):
    (axis,) = kernels.depth_curves([0.1, 0.2], answer, (1, 2)).axes
    assert len(axis.lines) == 1 and "no answer of 2 numbers yet" in " ".join(t.get_text() for t in axis.texts)


def test_depths_are_drawn_and_told_as_they_are():
    alone, swept = (
        kernels.depth_errors(kernels.signals(400, 20), 4, kind, (1, 3)) for kind in ("data-aware", "sequential")
    )
    assert alone[0] == pytest.approx(swept[0]) and swept[1] < alone[1]
    (axis,) = kernels.depth_curves(alone, swept, (1, 3)).axes
    assert list(axis.lines[1].get_ydata()) == swept
    assert f"{alone[1]:.0%}" in kernels.about_depths(alone, swept, (1, 3))


def test_lost_is_a_share_of_the_energy():
    wanted = torch.tensor([[0.0], [2.0]])
    assert kernels.lost(wanted, wanted) == 0 and kernels.lost(torch.ones(2, 1), wanted) == 1
