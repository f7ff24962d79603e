"""Ways to compress beside each other: what each keeps, and what figure, table and page make of the rows."""

import pandas as pd
import pytest
import torch
from torch import nn

from lowrank_utils import profile
from lowrank_utils.lab import score
from lowrank_utils.workbook import imagenet, rivals

SHAPE = (1, 10, 10)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    steps = [nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU()]
    return nn.Sequential(*steps, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5)).eval()


@pytest.fixture(scope="module")
def inputs():
    drawn = torch.randn(140, *SHAPE, generator=torch.Generator().manual_seed(1))
    return drawn[:80], drawn[80:]


@pytest.fixture(scope="module")
def rows(model, inputs, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "imagenet.csv"
    calibration, images = inputs
    labels = model(images).argmax(1)
    labels[:6] = (labels[:6] + 1) % 5  # the dense network is wrong six times
    return imagenet.measure(model, calibration, images, labels, path, kept=(0.8, 0.6), dense=("0", "8"), network="toy")


def test_every_way_keeps_what_was_asked_for_and_the_layers_that_stay_dense(model, inputs):
    read = profile(model, inputs[0], dense=("0", "8"))
    for method in rivals.METHODS:
        small = rivals.compressed(read, method, 0.7)
        kept = score.macs(small, SHAPE) / score.macs(model, SHAPE)
        assert 0.55 < kept <= 0.7, method
        assert isinstance(small.get_submodule("0"), nn.Conv2d) and isinstance(small.get_submodule("8"), nn.Linear)
        halved = rivals.compressed(read, method, 0.6, resource="parameters")
        assert score.parameters(halved) <= 0.6 * score.parameters(model), method
    with pytest.raises(ValueError, match="unknown method 'magic'; known: plain SVD, one share, plain SVD, ENC-Map"):
        rivals.compressed(read, "magic", 0.5)


def test_a_budget_may_belong_to_named_layers(model, inputs):
    read = profile(model, inputs[0])
    inside = ["2", "4"]
    whole, size = (
        sum(p.numel() for name in names for p in model.get_submodule(name).parameters())
        for names in (("0", "2", "4", "8"), inside)
    )
    for method in rivals.METHODS:
        small = rivals.compressed(read, method, 0.6, resource="parameters", within=inside)
        assert 0.45 * size < score.parameters(small) - (whole - size) <= 0.6 * size, method
        assert all(isinstance(small.get_submodule(name), (nn.Conv2d, nn.Linear)) for name in ("0", "8"))


def test_each_network_has_a_row_and_the_dense_one_is_the_first(rows):
    assert list(rows["method"]) == ["dense", *rivals.METHODS, *rivals.METHODS]
    assert list(rows["kept"]) == [1.0] + 5 * [0.8] + 5 * [0.6] and set(rows["network"]) == {"toy"}
    dense, cut = rows.iloc[0], rows.iloc[1:]
    assert dense["accuracy"] == 0.9 and dense["agreement"] == 1 and abs(dense["divergence"]) < 1e-9
    assert (cut["macs_kept"] <= cut["kept"]).all() and (cut["divergence"] > 0).all()
    assert (rows["images"] == 60).all() and (rows["calibration_images"] == 80).all()
    at = cut[cut["kept"] == 0.6].set_index("method")["divergence"]
    assert at["compress, not refined"] < at["plain SVD, one share"]


def test_a_measurement_goes_on_where_it_was_cut_off(model, inputs, rows, tmp_path, monkeypatch):
    path = tmp_path / "imagenet.csv"
    rows.iloc[:4].to_csv(path, index=False)
    made = []

    def count(read, method, kept):
        made.append((method, kept))
        return model

    monkeypatch.setattr(rivals, "compressed", count)
    labels = torch.zeros(60, dtype=torch.long)
    again = imagenet.measure(model, *inputs, labels, path, kept=(0.8,), dense=("0", "8"), network="toy")
    assert made == [("compress, not refined", 0.8), ("compress", 0.8)] and len(again) == 6
    pd.testing.assert_frame_equal(again.iloc[:4], pd.read_csv(path).iloc[:4])


def test_figure_table_and_page_show_every_way(rows):
    drawn = imagenet.figure(rows)
    assert [axis.get_title() for axis in drawn.axes] == ["accuracy", "same class as the dense network"]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == [*rivals.METHODS, "dense"]
    table = imagenet.table(rows)
    assert list(table.index) == list(rivals.METHODS)
    assert list(table) == [f"{what}, {share} kept" for what in ("accuracy", "agreement") for share in ("80%", "60%")]
    first = rows[(rows["method"] == "compress") & (rows["kept"] == 0.6)]["accuracy"].item()
    assert table.loc["compress", "accuracy, 60% kept"] == pytest.approx(100 * first)
    page = imagenet.section(rows)
    assert "the dense network has 90.0, and one image is 1.7 points" in page and "| compress, not refined |" in page


def test_the_gallery_is_shown_unless_shares_are_named(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "published", lambda: rows)
    assert imagenet.rows() is rows
    asked = []
    monkeypatch.setattr(imagenet, "renew", lambda path, kept: asked.append((path.name, path.parent, kept)))
    imagenet.rows([0.7], tmp_path)
    assert asked == [("imagenet.csv", tmp_path, [0.7])]
    with pytest.raises(ValueError, match="kept=1.2 is not a share"):
        imagenet.rows([1.2])
    monkeypatch.setattr(imagenet, "published", lambda: None)
    with pytest.raises(OSError, match=r"the gallery has no imagenet.csv: name the shares"):
        imagenet.rows()
