"""Predicted before cutting: the constants are those of the rows, and a prediction says what compress then does."""

import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import conftest
import lowrank_utils
from lowrank_utils import paths
from lowrank_utils.ranks import prediction
from lowrank_utils.workbook import plots
from lowrank_utils.workbook import prediction as measured


@pytest.fixture(scope="module")
def rows():
    return measured.parts(measured.published())[0]


def test_the_scale_for_tokens_is_fitted_to_the_rows():
    again, known = prediction.fit(measured.parts(measured.published())[1]), prediction.TOKENS
    assert again.scale == pytest.approx(known.scale, abs=2e-3)
    assert again.factor == pytest.approx(known.factor, rel=0.01)


@pytest.fixture(scope="module")
def read():
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(1))
    return lowrank_utils.profile(conftest.mlp((12, 30, 30, 4)), x, estimator="signs", draws=1, samples=20_000)


def test_the_constants_are_fitted_to_the_rows(rows):
    again, known = prediction.fit(rows), prediction.MEASURED
    assert again.scale == pytest.approx(known.scale, abs=2e-3)
    assert again.factor == pytest.approx(known.factor, rel=0.01)
    assert again.accuracy == pytest.approx(known.accuracy, rel=0.01)
    assert again.spread == pytest.approx(known.spread, rel=0.01)


def test_the_range_holds_the_stated_share_of_losses_of_networks_left_out(rows):
    inside, felt = prediction.covered(rows), prediction.left_out(rows) >= prediction.LEAST
    for some in (inside, inside[felt]):
        assert some.mean() >= prediction.SHARE - 2 * (prediction.SHARE * (1 - prediction.SHARE) / len(some)) ** 0.5
    # the divergence alone tells too little: with the factor that holds 90 % of the divergences, less than half lie inside
    factor, measured_loss = prediction.MEASURED.factor, 100 * (rows["dense_accuracy"] - rows["accuracy"])
    apart = prediction.left_out(rows)
    alone = (prediction.lost(apart / factor) <= measured_loss) & (measured_loss <= prediction.lost(apart * factor))
    assert alone.mean() < 0.5 and inside.sum() == 42 and len(inside) == 45
    assert rows["images"].agg(["min", "max"]).tolist() == [143, 2000] and prediction.IMAGES == 2000


def test_the_range_is_not_wide_and_no_network_left_out_falls_far_out_of_it(rows):
    assert 1 < prediction.MEASURED.spread < 2.3
    least, most = prediction.lost_range(prediction.left_out(rows), rows["images"])
    assert np.median(most - least) < 2.2  # points
    each = prediction.covered(rows).groupby(rows["dataset"] + " " + rows["network"]).agg(["sum", "size"])
    outside = (each["size"] - each["sum"]).to_dict()
    assert outside.pop("cifar10 mlp") <= 2 and outside.pop("cifar10 resnet56") <= 1 and not any(outside.values())


def test_every_text_says_what_the_range_held(rows):
    inside, told = prediction.covered(rows), [lowrank_utils.predict.__doc__, prediction.lost_range.__doc__]
    told += [(paths.CODE / name).read_text() for name in ("docs/running.md", "CHANGELOG.md")]
    for text in told:
        plain = " ".join(text.split())
        assert f"{inside.sum()} of {len(inside)}" in plain and "143 to 2 000 validation images" in plain
        assert "more images it was not measured" in plain


def test_fewer_images_and_deeper_cuts_make_the_range_wider():
    widths = [np.subtract(*prediction.lost_range(d, n)[::-1]) for d, n in ((0.01, 10_000), (0.01, 100), (0.1, 100))]
    assert 0 < widths[0] < widths[1] < widths[2]
    least, most = prediction.lost_range([0.0, 0.5, 50.0], 1000)
    assert least[0] == most[0] == 0 and most[2] == 100 and (least < most)[1:].all()


def test_a_network_left_out_is_predicted_by_the_others_alone(rows):
    mine = (rows["dataset"] == "cifar10") & (rows["network"] == "resnet56")
    before, changed = prediction.left_out(rows), rows.copy()
    changed.loc[mine, "divergence"] *= 50
    after = prediction.left_out(changed)
    assert np.allclose(after[mine], before[mine])
    assert not np.allclose(after[~mine], before[~mine], rtol=0.1)


def test_calibration_is_better_than_the_raw_rise(rows):
    shown = rows[rows["divergence"] >= prediction.LEAST]
    raw = np.exp(np.log(shown["rise"] / shown["divergence"]).abs())
    missed = prediction.errors(rows)
    assert missed.median() < 2 < raw.median() and missed.quantile(0.9) < raw.quantile(0.9) / 3


def test_a_law_is_found_again():
    random = np.random.default_rng(0)
    made = pd.DataFrame({"dataset": "d", "network": np.repeat(["a", "b", "c", "e"], 10)})
    for name in ("rise", "positions", "entropy"):
        made[name] = random.uniform(0.05, 0.5, len(made))
    made["divergence"] = prediction.divergence(made["rise"], made["positions"], made["entropy"], (0.5, 1.2, -0.3, 0.2))
    made["images"] = 2000
    made["dense_accuracy"], made["accuracy"] = 0.9, 0.9 - 0.3 * made["divergence"] ** 0.8
    found = prediction.fit(made)
    assert found.scale == pytest.approx((0.5, 1.2, -0.3, 0.2)) and found.factor == pytest.approx(1)
    assert found.accuracy == pytest.approx((30, 0.8)) and found.spread == pytest.approx(1)
    assert prediction.covered(made).all()
    with pytest.raises(ValueError, match="at least three networks"):
        prediction.fit(made[made["network"] < "c"])


def test_the_plan_is_that_of_compress_and_smaller_budgets_cost_more(read):
    found = lowrank_utils.predict(read, (0.8, 0.6, 0.4))
    assert found.plans[0.6] == lowrank_utils.compress(read.model, read.calibration, kept=0.6).plan
    table = found.table
    for name in ("rise", "divergence", "lost"):
        assert table[name].is_monotonic_increasing and (table[name] > 0).all()
    assert (table["low"] < table["divergence"]).all() and (table["divergence"] < table["high"]).all()
    assert (table["lost_low"] < table["lost"]).all() and (table["lost"] < table["lost_high"]).all()
    few = lowrank_utils.predict(read, (0.8, 0.6, 0.4), images=100).table
    assert (few["lost_high"] > table["lost_high"]).all() and few["lost"].equals(table["lost"])
    assert "divergence" in str(found)


def test_a_budget_out_of_reach_is_a_row_with_a_note(read):
    table = lowrank_utils.predict(read, (0.6, 0.01)).table.set_index("kept")
    assert np.isfinite(table.loc[0.6, "divergence"])
    assert table.loc[0.01, ["rise", "divergence", "low", "high", "lost", "lost_low", "lost_high"]].isna().all()
    assert "cannot be reached: the smallest possible is 0." in table.loc[0.01, "note"]


def test_nothing_cut_costs_nothing(read):
    row = lowrank_utils.predict(read, 1.0).table.iloc[0]
    assert row["rise"] == row["divergence"] == row["lost"] == row["lost_low"] == row["lost_high"] == 0


def test_large_predictions_are_not_to_be_trusted(monkeypatch, read):
    monkeypatch.setattr(prediction, "MEASURED", prediction.Calibration((20.0, 1.0, 0.0, 0.0), 2.0, (20.0, 1.0)))
    row = lowrank_utils.predict(read, 0.4).table.iloc[0]
    assert row["divergence"] > 1 and "not to be trusted" in row["note"] and row["lost"] <= 100


def test_answers_that_are_no_logits_are_not_predicted():
    network = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 1))
    found = lowrank_utils.predict(lowrank_utils.profile(network, torch.randn(60, 12)), 0.6)
    assert found.table["divergence"].isna().all() and "one number each" in found.note and found.plans[0.6]


def test_bad_input_gets_a_sentence(read):
    for kept, said in (((), "kept is empty"), (0.0, "kept"), ((0.5, float("nan")), "kept")):
        with pytest.raises(ValueError, match=said):
            lowrank_utils.predict(read, kept)
    with pytest.raises(ValueError, match="images"):
        lowrank_utils.predict(read, 0.5, images=0)
    with pytest.raises(ValueError, match="unknown resource 'seconds'"):
        lowrank_utils.predict(read, 0.5, resource="seconds")
    with pytest.raises(ValueError, match="calibration"):
        lowrank_utils.predict(lowrank_utils.profile(read.model, input_shape=(12,)), 0.5)


def test_a_prediction_takes_a_second(read):
    lowrank_utils.predict(read)  # collects the statistics
    began = time.process_time()
    lowrank_utils.predict(read)
    assert time.process_time() - began < 1


def test_divergence_of_answers():
    dense, small = nn.Linear(3, 2), nn.Linear(3, 2)
    x = torch.randn(7, 3)
    p, q = dense(x).softmax(1), small(x).softmax(1)
    assert torch.allclose(measured.divergences(dense, small, x), (p * (p / q).log()).sum(1).double(), atol=1e-6)


def test_rows_are_measured_on_validation_images():
    found = measured.measure([("digits", "lenet300", "")], (0.25, 0.001), calibration_images=300, images=100)
    assert list(found["kept"]) == [0.25] and not found["seen"].any() and list(found["images"]) == [100]
    assert 0 < found["rise"].item() < found["divergence"].item() < 1


def test_the_picture_shows_every_network():
    rows = measured.published()
    said = plots.described(measured.figure(rows))
    assert all(f"{a} {b}" in said for a, b, _ in measured.NETWORKS)
    assert all(f"{text} smollm2-135m" in said for text in measured.TEXTS)
    assert "holds 42 of 45 measured losses, on 143 to 2 000 validation images" in measured.section(rows)
    assert measured.section(rows).strip() in (paths.GALLERY / "README.md").read_text()
    assert "factor of" in measured.section(rows) and "A text is predicted" in measured.section(rows)


@pytest.mark.parametrize("name", ["docs/running.md", "CHANGELOG.md", "compression.py", "ranks/prediction.py"])
def test_a_text_that_says_how_many_losses_the_range_holds_says_what_the_rows_say(rows, name):
    inside = prediction.covered(rows)
    path = paths.ROOT / name if name.endswith(".md") else Path(lowrank_utils.__file__).parent / name
    told = re.findall(r"(\d+) of (\d+) (?:measured\s+losses|rows of)", path.read_text())
    assert told and set(told) == {(str(inside.sum()), str(len(inside)))}


def _tokens(texts=("a", "b"), noise=0.0):
    made = pd.DataFrame({"dataset": np.repeat(texts, 4), "network": "model", "answers": 512, "positions": 512.0})
    made["rise"] = np.tile([0.001, 0.01, 0.05, 0.2], len(texts))
    made["entropy"] = 2.0
    made["divergence"] = 6 * made["rise"] ** 0.8 * np.exp(noise * (made["dataset"] == texts[0]))
    return made


def test_networks_that_answer_every_token_have_a_scale_of_their_own():
    found = prediction.fit(_tokens())
    assert found.scale == pytest.approx((np.log(6), 0.8, 0, 0)) and found.factor == pytest.approx(1)
    apart = prediction.fit(_tokens(noise=0.5))
    assert apart.factor == pytest.approx(np.exp(0.5))  # each text is predicted by the other alone
    with pytest.raises(ValueError, match="at least two texts"):
        prediction.fit(_tokens(("a",)))


class _Teller(nn.Module):
    # answers every token; counts how many inputs come at once
    def __init__(self):
        super().__init__()
        self.embed, self.one, self.head = nn.Embedding(11, 12), nn.Linear(12, 40), nn.Linear(40, 11)
        self.most = 0

    def forward(self, ids):
        self.most = max(self.most, len(ids))
        return self.head(torch.relu(self.one(self.embed(ids))))


def test_a_language_model_is_predicted_a_token_and_read_a_window_at_a_time():
    torch.manual_seed(0)
    teller, ids = _Teller(), torch.randint(0, 11, (6, 256))
    read = lowrank_utils.profile(teller, ids)
    prediction.entropy(read)
    assert teller.most <= 2  # 512 tokens
    found = lowrank_utils.predict(read, 0.8, resource="parameters")
    assert found.note == prediction.ONE_MODEL
    row = found.table.iloc[0]
    assert row["rise"] > 0
    assert row["divergence"] == pytest.approx(prediction.divergence(row["rise"], 1, 1, prediction.TOKENS.scale))
    assert row["low"] <= row["divergence"] <= row["high"] and np.isnan(row["lost"])
