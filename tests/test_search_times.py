"""The seconds of ENC's searches: every stage is there, and the sentences say what the rows hold."""

import pandas as pd
import pytest
import torch
from torch import nn

from lowrank_utils.workbook import search_claims, search_times


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 5)
    )  # fmt: skip
    return search_times.measure(model.eval(), (3, 8, 8), dense=("5",), kept=0.7)


def test_every_stage_is_timed(found):
    assert found["layers"] == 2 and found["options"] > 10 and found["networks"] > 2
    assert all(found[name] > 0 for name in (*search_times.STAGES, "image"))


def test_the_page_adds_statistics_to_the_search():
    row = {"network": "torchvision/vgg16", "kept": 0.5, "layers": 13, "options": 5200, "spectra": 7.5, "ENC-Map": 0.02}
    row |= {"ENC-Model": 0.3, "exact": 0.1, "networks": 120, "image": 0.25}
    page = search_times.section(pd.DataFrame([row]))
    assert "- vgg16: ENC-Map takes 7.5 s" in page and "ask for 120 networks, 30 s for each image" in page
    assert "| vgg16 | 13 | 5,200 | 7.5 | 0.02 | 0.3 | 0.1 |" in page
    assert len(search_times.figure(pd.DataFrame([row])).axes[0].get_yticklabels()) == 4


ENC = pd.DataFrame({"notebook": ["05_rank_search"]})


@pytest.mark.parametrize(("spectra", "holds"), [(49, "yes"), (51, "no")])
def test_the_claim_of_the_search_time_counts_the_statistics(monkeypatch, spectra, holds):
    row = {"network": "torchvision/vgg16", "spectra": spectra, "ENC-Map": 0.01, "networks": 120, "image": 0.25}
    monkeypatch.setattr(search_times, "published", lambda: pd.DataFrame([row]))
    of_map, of_model = (search_claims.search_time(name)(ENC) for name in ("ENC-Map", "ENC-Model"))
    assert of_map.holds == holds and of_map.counted == 1
    assert of_model.holds == "-" and "30 s for each image" in of_model.said
    monkeypatch.setattr(search_times, "published", lambda: None)
    assert search_claims.search_time("ENC-Map")(ENC).holds == "-"
    assert search_claims.search_time("ENC-Map")(ENC[:0]) is None
