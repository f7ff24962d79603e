"""Published networks with their batch norms recalibrated: built again from their plans, and shown with the numbers of the rows."""

import pandas as pd
import pytest
import torch
from torch import nn

from lowrank_utils import paths
from lowrank_utils.lab import training
from lowrank_utils.workbook import answers, batch_norm, gallery


@pytest.fixture
def rows():
    made = [("resnet20", "fixed", 0.58, 0.85), ("resnet20", "ENC-Map", 0.70, 0.88), ("resnet56", "fixed", 0.6, 0.9)]
    return pd.DataFrame(
        [
            {
                "network": network,
                "chooser": chooser,
                "dense": 0.92,
                "accuracy": cut,
                "recalibrated": again,
                "images": 2000,
            }
            for network, chooser, cut, again in made
        ]
    )


def test_the_section_says_what_the_rows_say(rows):
    told = batch_norm.section(rows)
    assert "18.0 to 30.0 points" in told and "| resnet20 | ENC-Map | 92.0 | 70.0 | 88.0 |" in told
    assert [axis.get_title() for axis in batch_norm.figure(rows).axes] == ["resnet20", "resnet56"]


class Images:
    """Two classes of images that differ in their mean, with the tensors of a data set."""

    mean, std = (0.0,), (1.0,)

    def tensors(self, split, count=None):
        x = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(int(split == "test")))
        labels = torch.arange(200) % 2
        return (x + 2 * labels[:, None, None, None])[:count], labels[:count]


def test_statistics_of_another_network_are_mended(tmp_path, monkeypatch):
    net = nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(1, 2)).eval()
    net[-1].weight.data, net[-1].bias.data = torch.tensor([[-1.0], [1.0]]), torch.zeros(2)
    net[0].running_mean += 9  # everything is on one side
    images = Images()
    before = training.evaluate(net, *images.tensors("test")).accuracy
    published = pd.DataFrame(
        [
            {"network": "resnet20", "chooser": chooser, "factors": factors, "tuned": "none", "budget": 0.5, "draw": 0, "accuracy": right}
            for chooser, factors, right in (("dense", None, 1.0), ("fixed", "svd", before), ("magnitude", "svd", 0.1))
        ]
    )  # fmt: skip
    monkeypatch.setattr(gallery, "published_rows", lambda **_: published)
    monkeypatch.setattr(answers, "rebuilt", lambda row: (net, images))
    monkeypatch.setattr(training, "augmentation", lambda data: None)
    (found,) = batch_norm.renew(tmp_path / "rows.csv").to_dict("records")
    assert before == 0.5 and found["accuracy"] == 0.5 and found["recalibrated"] > 0.9 and found["dense"] == 1
    monkeypatch.setattr(answers, "rebuilt", None)  # what is in the file is not measured again
    assert len(batch_norm.renew(tmp_path / "rows.csv")) == 1


def test_the_published_rows_are_those_of_the_gallery():
    mine = batch_norm.published()
    theirs = gallery.published_rows(notebook=batch_norm.NOTEBOOK)
    assert mine is not None and len(mine) and (paths.GALLERY / "batch-norm.png").is_file()
    for row in mine.to_dict("records"):
        same = theirs[(theirs["network"] == row["network"]) & (theirs["chooser"] == row["chooser"])]
        same = same[(same["budget"] == 0.5) & (same["draw"] == 0) & (same["factors"] == "svd")]
        assert abs(same["accuracy"] - row["accuracy"]).min() < 1e-6
