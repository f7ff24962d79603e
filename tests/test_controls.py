"""Controls and rivals on one network: what each row keeps and says, how a measurement goes on, and what the page makes of it."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lowrank_utils import paths
from lowrank_utils.lab import columns, data, finetuning, score, training
from lowrank_utils.workbook import contest, control_rows, controls, stability
from lowrank_utils.workbook.contest import OURS, PAIRS, SPARSE
from lowrank_utils.workbook.control_rows import Case

pytestmark = pytest.mark.slow  # the rows take half a minute
CASE = Case("digits", "lenet300", (0.3,), 10)
FINE = {"steps": 4, "rates": (1e-3, 1e30)}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def model(digits):
    return training.trained(digits, "lenet300", device="cpu")[0]


@pytest.fixture(scope="module")
def one(digits, model):
    about = {"dataset": "digits", "network": "lenet300", "seed": 0}
    return contest.contest(digits, model, calibration_images=200, candidates=10, fine=FINE, timed=False, **about)


@pytest.fixture(scope="module", autouse=True)
def two_epochs():
    """The recipe of digits with two epochs, for what is trained from scratch; the dense network is a published one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "SMALL", dataclasses.replace(training.SMALL, epochs=2))
        yield


@pytest.fixture(scope="module")
def rows(digits, one, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "controls.csv"
    return control_rows.measure(CASE, digits, one, path)


def only(rows, **what):
    for name, value in what.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1, what
    return rows.iloc[0]


# ---- the rows --------------------------------------------------------------------------------------------------------


def test_rows_have_the_columns_of_the_house(rows):
    table = columns.table(rows)
    assert len(table) == 1 + 9 + 3 + 4 + 2 + 1 + 24 and not table["accuracy"].isna().any()
    assert set(table["chooser"]) == {"dense", *SPARSE, *(chooser for chooser, _ in PAIRS)}
    assert set(table["tuned"]) == {"none", "refined without labels", "fine-tuned", "distilled", "from scratch"}
    assert (table["scope"] == "hidden layers").sum() == 9 + 2 + 2 + 1 + 18
    setting = [*columns.KEY, "activations", "draw"]
    assert not table.duplicated(setting).any()


def test_every_method_keeps_what_was_asked_for(rows):
    low = rows[rows["stored_as"] == "low rank"]
    assert (low["macs_kept"] <= 0.3 + 1e-9).all() and (low["macs_kept"] > 0.2).all()
    thin = rows[rows["stored_as"] == "sparse"]
    assert (thin["parameters_kept"] - 0.3).abs().max() < 0.02
    cut, tuned = (thin[thin["tuned"] == state].set_index("chooser")["parameters"] for state in ("none", "fine-tuned"))
    assert (cut == tuned).all()  # zeros stay zeros


def test_a_plan_has_the_same_size_whatever_is_trained(rows):
    ours = rows[(rows["chooser"] == OURS[0]) & (rows["bits"] == 32) & (rows["tuned"] != "refined without labels")]
    assert set(ours["tuned"]) == {"none", "fine-tuned", "distilled", "from scratch"}
    assert ours["parameters"].nunique() == 1 and ours["plan"].nunique() == 1


def test_fine_tuning_that_diverged_is_a_row_with_a_note(rows, digits, model):
    tuned = rows[rows["tuned"].isin(["fine-tuned", "distilled"])]
    assert len(tuned) == 24 and tuned["note"].str.contains(r"Diverged at a rate of 1e\+30.").all()
    assert tuned["rate"].isin([0, 1e-3]).all() and (tuned["rate"] > 0).any()  # four steps help few networks
    assert (tuned["steps"] == 4).all() and (tuned["needs"] == "labels").all()
    untouched = tuned[tuned["rate"] == 0]
    assert (untouched["accuracy"] == untouched["untuned_accuracy"]).all()
    about = {"dataset": "digits", "network": "lenet300", "seed": 0}
    fine = {"steps": 4, "rates": (1e30,)}
    lost = contest.contest(digits, model, calibration_images=100, fine=fine, timed=False, severity=None, **about)
    (row,) = contest.rows(lost, [contest._low(("fixed", "svd"), 0.3, "fine-tuned")]).to_dict("records")
    assert row["accuracy"] == row["untuned_accuracy"] and np.isnan(row["rate"])
    assert row["note"].endswith("No rate was left: this is the network before fine-tuning.")


def test_training_from_scratch_that_diverges_is_a_row_with_a_note(digits, model, monkeypatch):
    about = {"dataset": "digits", "network": "lenet300", "seed": 0}
    one = contest.contest(digits, model, calibration_images=100, timed=False, paired=False, severity=None, **about)
    monkeypatch.setattr(training, "SMALL", dataclasses.replace(training.SMALL, learning_rate=1e30))
    row = contest.rows(one, contest.asked_scratch((0.3,), "lenet300")[1:]).iloc[0]
    assert row["note"].startswith("Training diverged (the training loss is NaN or infinite in epoch 1")
    assert row["accuracy"] < 0.4


def test_fresh_weights_are_not_those_of_the_dense_network(one):
    entry = contest._from_scratch(one, OURS[0], 0.3)
    ours = contest.cut_network(one, *OURS, 0.3)
    assert entry.plan == ours.plan and score.parameters(entry.net) == score.parameters(ours.net)
    first, second = (net.get_submodule("fc3").weight for net in (entry.net, ours.net))  # dense in both
    assert float(torch.corrcoef(torch.stack([first.detach().flatten(), second.detach().flatten()]))[0, 1]) < 0.3


def test_eight_bits_are_beside_thirty_two(rows):
    for chooser in ("dense", OURS[0]):
        whole = only(rows, chooser=chooser, bits=32, tuned="none")
        for how in ("dynamic", "static"):
            small = only(rows, chooser=chooser, bits=8, activations=how)
            assert small["runtime"] == "onnxruntime" and abs(small["accuracy"] - whole["accuracy"]) < 0.03
            assert small["bytes"] < 0.6 * whole["bytes"] and small["parameters"] == whole["parameters"]
    assert only(rows, chooser="dense", activations="static")["needs"] == "images"
    assert only(rows, chooser="dense", activations="dynamic")["needs"] == "nothing"


def test_images_that_one_alone_gets_right_are_counted(rows, one, digits, model):
    test = digits.tensors("test")
    ours = contest.cut_network(one, *OURS, 0.3).net
    other = contest.cut_network(one, "fixed", "svd", 0.3).net
    with torch.no_grad():
        mine, theirs = (net(test[0]).argmax(1) == test[1] for net in (ours, other))
    row = only(rows, chooser="fixed", factors="svd", tuned="none")
    assert (row["right_alone"], row["wrong_alone"]) == (int((theirs & ~mine).sum()), int((mine & ~theirs).sum()))
    own = only(rows, chooser=OURS[0], tuned="none", bits=32)
    assert np.isnan(own["right_alone"])
    paired = rows[rows["right_alone"].notna() & ~rows["tuned"].isin(["from scratch", "refined without labels"])]
    base = rows[(rows["chooser"] == OURS[0]) & (rows["factors"] == OURS[1]) & (rows["bits"] == 32)]
    gain = paired["accuracy"] - paired["tuned"].map(base.set_index("tuned")["accuracy"])
    np.testing.assert_allclose(gain, (paired["right_alone"] - paired["wrong_alone"]) / 364, atol=1e-5)


def test_predictions_stand_beside_what_rests_on_data(rows):
    expected = rows[rows["predicted_rise"].notna()]
    assert len(expected) == 6 and set(expected["tuned"]) == {"none"} and not (expected["factors"] == "svd").any()
    assert (expected["predicted_rise"] >= 0).all()
    dense, loss = only(rows, chooser="dense", bits=32), expected["loss"]
    np.testing.assert_allclose(expected["rise"], loss - dense["loss"], atol=1e-5)


def test_draws_differ_in_calibration_images_alone(digits, model, one):
    about = {"dataset": "digits", "network": "lenet300", "seed": 0}
    quick = {"calibration_images": 200, "timed": False, "paired": False, "severity": None, "candidates": 10}
    contest.cut_network(one, "AIMET greedy", "svd", 0.3)
    second = contest.contest(digits, model, draw=1, shared=one, **quick, **about)
    assert not torch.equal(second.profile.calibration, one.profile.calibration)
    assert second.held["AIMET"] is one.held["AIMET"]  # of the weights alone
    again = contest.contest(digits, model, draw=0, **quick, **about)
    assert torch.equal(again.profile.calibration, one.profile.calibration)
    assert len(control_rows.asked(CASE, second)) == 12


def test_a_measurement_goes_on_where_it_was_cut_off(digits, one, rows, tmp_path, monkeypatch):
    path, made = tmp_path / "controls.csv", []
    rows.iloc[:20].to_csv(path, index=False)
    monkeypatch.setattr(contest, "row", lambda one, asked: (made.append(asked), {**one.about, "accuracy": 0.5})[1])
    again = control_rows.measure(CASE, digits, one, path)
    assert len(made) == len(rows) - 20 and len(again) == len(rows)
    assert again["accuracy"].iloc[:20].tolist() == rows["accuracy"].iloc[:20].tolist()


def test_a_budget_out_of_reach_is_a_row_without_an_accuracy(digits, one, tmp_path):
    case = dataclasses.replace(CASE, kept=(0.01,))
    reached = control_rows.measure(case, digits, dataclasses.replace(one, draw=1), tmp_path / "controls.csv")
    assert reached["accuracy"].isna().sum() >= 9
    assert reached["note"].dropna().str.match("Out of reach: kept=0.01 of macs cannot be reached").all()
    other = ValueError("something else")
    with pytest.raises(ValueError, match="something else"):
        contest.unreachable(other, {})
    with pytest.raises(ValueError, match="unknown chooser 'magic'"):
        contest.cut_network(one, "magic", "svd", 0.3)


def test_processor_times_are_beside_the_dense_network():
    wide, narrow = (nn.Sequential(nn.Linear(64, n), nn.ReLU(), nn.Linear(n, 8)) for n in (4096, 16))
    found = contest.processor_times(narrow, wide, (64,))
    assert set(found) == {"latency_ms_1", "latency_ms_64", "faster_1", "faster_64"}
    assert found["faster_64"] > 3 and found["latency_ms_64"] > 0


def test_batch_norms_are_recalibrated_where_there_are_some(digits, model):
    assert contest.asked_recalibrated((0.3,), model) == []
    torch.manual_seed(0)
    steps = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    net = nn.Sequential(*steps, nn.Flatten(), nn.Linear(128, 10)).eval()
    about = {"dataset": "digits", "network": "lenet300", "seed": 0}
    one = contest.contest(digits, net, calibration_images=200, timed=False, severity=None, **about)
    asked = contest.asked_recalibrated((0.7,), net)
    assert [each["tuned"] for each in asked] == ["recalibrated", "recalibrated"]
    before = contest.cut_network(one, "fixed", "svd", 0.7).net
    after = contest._recalibrated(one, asked[1]).net
    fresh = training.recalibrate(before, one.profile.calibration)
    for new, old, expected in zip(after.modules(), before.modules(), fresh.modules(), strict=True):
        if isinstance(new, nn.BatchNorm2d):
            assert not torch.equal(new.running_mean, old.running_mean)
            assert torch.equal(new.running_mean, expected.running_mean)
    assert contest.rows(one, asked)["tuned"].tolist() == ["recalibrated", "recalibrated"]


@pytest.mark.parametrize(("network", "hours"), [("resnet20", True), ("resnet110", True), ("vgg_small", False)])
def test_public_resnets_say_why_nothing_is_trained_from_scratch(network, hours):
    assert bool(contest.why_not_scratch(network)) == hours
    assert len(contest.asked_scratch((0.5,), network)) == (0 if hours else 2)


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_says_what_is_ahead_of_ours(rows):
    own = (rows["chooser"] == OURS[0]) & (rows["factors"] == OURS[1]) & (rows["bits"] == 32) & (rows["tuned"] == "none")
    rival = (rows["chooser"] == "BALF") & (rows["tuned"] == "none")
    changed = rows.copy()
    others = (changed["tuned"] == "none") & ~own & ~rival
    changed.loc[others, ["accuracy", "right_alone", "wrong_alone"]] = [0.5, 0, 100]
    changed.loc[own, "accuracy"] = 0.8
    changed.loc[rival, ["accuracy", "right_alone", "wrong_alone"]] = [0.9, 40, 4]
    table = controls.beside_ours(changed)
    assert table.loc[table["gain"] > 0].query("state == 'none'")["method"].tolist() == ["BALF, whitened factors"]
    line = controls.verdicts(changed)[0]
    assert line.startswith(
        "- 30 % kept, cut: ours 80.0 %; **ahead of ours: BALF, whitened factors (90.0 %, clearly)**."
    )
    assert "Clearly behind: 9 of 10. Behind, but smaller: AIMET greedy, plain factors (24.8 % of the MACs)." in line
    changed.loc[rival, ["right_alone", "wrong_alone"]] = [12, 8]
    assert "(90.0 %)" in controls.verdicts(changed)[0]  # a difference that chance explains
    changed.loc[rival, ["accuracy", "right_alone", "wrong_alone"]] = [0.7, 4, 40]
    assert "ours 80.0 %; no control or rival is ahead of ours." in controls.verdicts(changed)[0]


def test_what_takes_training_can_be_left_out(rows, one):
    short = control_rows.asked(CASE, one, trained=False)
    assert {each["tuned"] for each in short} == {"none"} and len(short) == 1 + 12 + 4
    few = dataclasses.replace(control_rows.CASES[-1], kept=(0.3,))
    assert few.network == "resnet56"
    assert {each["chooser"] for each in control_rows.asked(few, one) if each["tuned"] == "from scratch"} == set()
    untrained = rows[(rows["tuned"] == "none") & (rows["network"] == "lenet300")]
    page = controls.section(untrained)
    assert "Nothing was fine-tuned or trained from scratch yet." in page and "fine-tuned |" not in page
    assert "One draw of calibration images only" in page and "nan" not in page


def test_the_page_names_what_was_cut_but_not_fine_tuned(rows):
    assert "but not fine-tuned" not in controls.section(rows)
    some = rows[~((rows["chooser"] == "BALF") & (rows["tuned"] != "none"))]
    assert "- lenet300: cut, but not fine-tuned, for each takes minutes: BALF, whitened factors." in controls.section(
        some
    )


def test_a_network_much_smaller_than_asked_for_is_not_called_behind(rows):
    budget = rows["budget"].max()
    mine = rows[(rows["budget"] == budget) & (rows["tuned"] == "none")]
    low = (mine["stored_as"] == "low rank") & (mine["bits"] == 32)
    worst = mine.assign(accuracy=mine["accuracy"].where(~low | (mine["chooser"] == "exact-Fisher"), 0.1))
    worst = worst.assign(right_alone=0, wrong_alone=300, macs_kept=worst["macs_kept"].where(~low, budget))
    small = worst.assign(macs_kept=worst["macs_kept"].where(worst["chooser"] != "AIMET greedy", budget - 0.02))

    def counted(table):
        (line,) = [one for one in controls.verdicts(table) if one.endswith(".") and ", cut:" in one]
        return line, int(re.search(r"Clearly behind: \d+ of (\d+)", line)[1])

    (plain, all_of_them), (line, some) = counted(worst), counted(small)
    assert "but smaller" not in plain and some == all_of_them - 1
    assert line.endswith(
        f"Behind, but smaller: AIMET greedy, plain factors ({100 * (budget - 0.02):.1f} % of the MACs)."
    )
    better = small.assign(accuracy=small["accuracy"].where(small["chooser"] != "AIMET greedy", 1.0))
    assert "ahead of ours: AIMET greedy" in counted(better)[0] and "but smaller" not in counted(better)[0]


def test_sizes_of_sparse_networks_and_odd_first_draws_are_told():
    table = controls.published()
    vgg, lenet = (table[table["network"] == name] for name in ("vgg_small", "lenet300"))
    (told,) = controls.about_sizes(vgg)
    first = vgg[(vgg["draw"] == 0) & (vgg["tuned"] == "none") & (vgg["bits"] == 32) & (vgg["budget"] == 0.25)]
    ours, sparse = (
        first.loc[first["chooser"] == name, "parameters_kept"].iloc[0] for name in ("exact-Fisher", "magnitude")
    )
    assert told.endswith(f"{100 * sparse:.0f} % against {100 * ours:.0f} %.") and controls.about_sizes(lenet) == []
    odd = [line for line in controls.section(table).splitlines() if "the first draw, the only one" in line]
    assert len(odd) == 1 and "ZS-SVD" in odd[0]
    usual = table.assign(accuracy=table["accuracy"].where(table["chooser"] != "ZS-SVD", 0.8))
    assert "the first draw, the only one" not in controls.section(usual)
    dense = lenet[(lenet["chooser"] == "dense") & (lenet["bits"] == 32)].head(1)
    chance = lenet[(lenet["chooser"] == "random") & (lenet["tuned"] == "none") & (lenet["budget"] == 0.1)]
    by = chance.set_index("draw")["accuracy"]
    assert f"{(by.drop(0) < by[0]).sum()} of 4 others at 10%" in controls.about_random(dense)


def test_a_network_of_one_draw_without_training_from_scratch_is_told_so(monkeypatch):
    table = pd.read_csv(paths.GALLERY / "controls.csv")
    lenet = table[table["network"] == "lenet300"]
    alone = lenet[(lenet["draw"] == 0) & (lenet["tuned"] != "from scratch")]
    dense = lenet[(lenet["chooser"] == "dense") & (lenet["bits"] == 32)].head(1)
    public = alone.assign(network="resnet20", dataset="cifar10", steps=alone["steps"].where(alone["steps"].isna(), 100))
    monkeypatch.setattr(controls, "published", lambda: public)
    told = controls.about_random(dense.assign(network="resnet20", dataset="cifar10"))
    assert "1 draw of ranks" in told and "after 100 steps" in told
    assert not any(words in told for words in ("others at", "from scratch", " to ", "nan"))
    page = controls.section(pd.concat([lenet, public]))
    assert "500 (lenet300) or 100 (resnet20) steps" in page and "5 draws (lenet300) or 1 draw (resnet20) for" in page
    tried = finetuning.RATES if "memory_64" in alone and alone["memory_64"].notna().any() else controls.THREE
    none, low, high = ((alone["rate"] == rate).sum() for rate in (0, tried[0], tried[-1]))
    told = f"of {alone['rate'].notna().sum()} networks of resnet20, no step was best for {none}, the lowest rate for {low}, the highest for {high}"
    assert told in page
    wider = public.assign(rate=public["rate"].where(public["rate"].isna(), finetuning.RATES[-1]), memory_64=1.0)
    told = controls.section(pd.concat([lenet.drop(columns="memory_64", errors="ignore"), wider]))
    assert "so that a wider range may gain more" in told
    assert "0.01, or no step at all (lenet300: one of 0.0003, 0.001, 0.003), on 2000 validation images" in told
    assert "or no step at all, on" in controls.section(wider)
    assert page.count("Kendall's tau between") == 1 and "One draw of calibration images only" in page
    seen = "The public resnet20 saw all training images"
    assert seen in page and seen not in controls.section(lenet)
    some = public[~((public["chooser"] == "SparseGPT") & (public["tuned"] != "none"))]
    assert "- resnet20: cut, but not fine-tuned, for each takes minutes: SparseGPT." in controls.section(some)


def test_networks_that_training_left_worse_are_named(rows):
    tuned = rows["tuned"] == "fine-tuned"
    one = tuned & (rows["chooser"] == "BALF")
    known = rows.assign(untuned_accuracy=rows["accuracy"].where(tuned))
    assert not list(controls._harmed(known))
    worse = known.assign(untuned_accuracy=known["untuned_accuracy"].where(~one, 0.987), rate=0.001)
    (line,) = controls._harmed(worse)
    assert line.startswith("- lenet300, BALF, whitened factors, 30 %, fine-tuned: 98.7 % before, ")
    assert line in controls.section(worse)


def test_each_network_gets_its_own_steps_and_draws(digits, model, monkeypatch, tmp_path):
    seen = []

    def contested(images, model, *, draw, fine, **about):
        seen.append((about["network"], draw, fine["steps"]))

    def measured(case, images, one, path, trained):
        pd.DataFrame({"network": [case.network]}).to_csv(path, index=False)

    monkeypatch.setattr(contest, "contest", contested)
    monkeypatch.setattr(control_rows, "measure", measured)
    cases = (dataclasses.replace(CASE, draws=2), dataclasses.replace(CASE, steps=7))
    control_rows.renew(tmp_path / "rows.csv", cases, draws=3)
    assert seen == [("lenet300", 0, 500), ("lenet300", 1, 500), *(("lenet300", draw, 7) for draw in range(3))]
    control_rows.renew(tmp_path / "rows.csv", cases[1:], draws=1, fine={"steps": 3})
    assert seen[-1] == ("lenet300", 0, 3)


def test_networks_from_scratch_are_held_against_ours_fine_tuned(rows):
    table = controls.beside_ours(rows)
    scratch = table[table["method"].str.endswith("from scratch")]
    tuned = only(rows, chooser=OURS[0], tuned="fine-tuned")["accuracy"]
    assert len(scratch) == 2 and (scratch["ours"] == tuned).all() and (scratch["state"] == "fine-tuned").all()


def test_figure_and_page_show_every_method(rows):
    both = pd.concat([rows, rows[(rows["tuned"] == "none") & (rows["bits"] == 32)].assign(draw=1)], ignore_index=True)
    drawn = controls.figure(both)
    assert [axis.get_title() for axis in drawn.axes] == [
        f"lenet300, {how}" for how in ("cut", "fine-tuned", "distilled")
    ]
    labels = [text.get_text() for text in drawn.axes[-1].get_legend().get_texts()]
    assert labels[0] == "ours" and set(labels[1:]) >= {"magnitude", "random, our factors", "from scratch", "dense"}
    page = controls.section(both)
    assert (
        page.startswith("## Controls and rivals\n\n![") and "Not measured yet: vgg_small, resnet20, resnet56." in page
    )
    accuracy = 100 * only(rows, chooser="BALF", tuned="none")["accuracy"]
    assert f"| BALF, whitened factors | {accuracy:.1f} |" in page
    assert "Kendall's tau" in page and "1.00 (least 1.00) at 30 % over 2 draws of 11 methods" in page
    assert "Diverged at a rate of 1e+30." in page and "nan" not in page and "Nothing was fine-tuned" not in page
    tuned, scratch = (only(rows, chooser=OURS[0], tuned=state)["accuracy"] for state in ("fine-tuned", "from scratch"))
    assert f"our plan, from scratch (2 epochs): {100 * scratch:.1f} %; ours cut" in page
    assert f"fine-tuned {100 * tuned:.1f} %." in page


def test_choosers_that_came_to_one_plan_are_named(rows):
    changed = rows.copy()
    changed.loc[(changed["chooser"] == "BALF") & (changed["tuned"] == "none"), "plan"] = "{}"
    changed.loc[(changed["chooser"] == "ZS-SVD") & (changed["tuned"] == "none"), "plan"] = "{}"
    assert "- 30 % kept: BALF, ZS-SVD chose the same plan." in controls.same_plans(changed)


# ---- stability -------------------------------------------------------------------------------------------------------


def test_predicted_rises_are_drawn_against_measured_ones(rows):
    table = rows.copy()
    place = table.index[table["predicted_rise"].notna()]
    table.loc[place, ["predicted_rise", "rise"]] = np.array([[0.01 * k, 0.04 * k] for k in range(1, 7)])
    drawn = stability.predicted_against_measured(table)
    assert drawn.axes[0].get_title() == "lenet300 on digits" and drawn.axes[0].get_xscale() == "log"
    assert sum(len(line.get_xdata()) for line in drawn.axes[0].lines[:-1]) == 6
    said = stability.prediction_in_words(table)
    assert said.startswith("Over 6 networks") and "tau of 1.00" in said and "is 4.0 times the prediction" in said
    table.loc[place[0], "rise"] = -0.1
    assert stability.predicted_against_measured(table).axes[0].get_title().endswith("(1 not drawn)")
    with pytest.raises(ValueError, match="no row has a predicted and a measured rise"):
        stability.predicted_against_measured(table.assign(rise=-1.0))


def test_random_ranks_stand_beside_ours_for_a_notebook():
    table = controls.published()
    table = table[(table["network"] == "lenet300") & (table["bits"] == 32)]
    mine = table[(table["chooser"] == "random") & (table["tuned"] == "none")]
    at = 100 * mine.loc[mine["budget"] == 0.1, "accuracy"]
    dense = table[table["chooser"] == "dense"].head(1)
    told = controls.about_random(dense)
    line = next(line for line in told.splitlines() if line.startswith("| random"))
    assert f"{at.mean():.1f} ({at.min():.1f} to {at.max():.1f})" in line and f"{len(at)} draws" in told
    lines = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in told.splitlines()[4:]}
    after = ["ours", "random, our factors"]
    after = [f"{name}, first draw, fine-tuned" for name in after] + ["our plan, first draw, from scratch"]
    assert list(lines) == ["ours", "random, our factors", "fixed, our factors", *after]
    scratch = table[(table["tuned"] == "from scratch") & (table["chooser"] == "exact-Fisher")].set_index("budget")
    assert [float(cell) for cell in lines[after[-1]]] == [
        round(100 * scratch["accuracy"][size], 1) for size in (0.2, 0.1, 0.05)
    ]
    drawn = table[(table["chooser"] == "random") & (table["draw"] == 0)].pivot_table("accuracy", "budget", "tuned")
    cut, tuned = (f"{100 * drawn.loc[0.05, how]:.1f}" for how in ("none", "fine-tuned"))
    assert lines[after[1]][2].strip() == f"{cut}, then {tuned}" and "first draw alone" in told
    assert f"the dense network has {100 * dense['accuracy'].item():.1f}." in told
    for other in ({"network": "lenet5"}, {"seed": 5}, {"accuracy": 0.5}):
        assert controls.about_random(dense.assign(**other)) == "The gallery has no controls of this network."
        assert not len(controls.beside(dense.assign(**other)))
    with pytest.raises(ValueError, match="too many values"):
        controls.of_network(pd.concat([dense, dense]))


def test_the_counts_of_mcnemar_belong_to_the_gain_that_is_shown():
    table = controls.shown(controls.published())
    first = table[(table["draw"] == 0) & (table["bits"] == 32)]
    for (_, network), mine in table.groupby(["dataset", "network"]):
        lines = controls.beside_ours(mine)
        assert len(lines)
        for line in lines.to_dict("records"):
            tuned = {line["state"], *(["from scratch"] if "from scratch" in line["method"] else [])}
            at = first[(first["network"] == network) & (first["method"] == line["method"])]
            at = at[(at["budget"] == line["budget"]) & at["tuned"].isin(tuned)]
            each = at.assign(gap=(at["accuracy"] - line["accuracy"]).abs()).sort_values("gap").iloc[0]
            alone = each["right_alone"] - each["wrong_alone"]
            assert alone == pytest.approx(100 * line["gain"], abs=1), (network, line)
