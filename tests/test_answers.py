"""Answers of older rows: a network that is built again from its plan must have the accuracy of its row."""

import pandas as pd
import pytest

from lowrank_utils.lab.score import unpacked
from lowrank_utils.workbook import answers
from lowrank_utils.workbook.gallery import published_rows


@pytest.fixture
def rows():
    table = published_rows(dataset="digits", notebook="02_arsvd", network="lenet300")
    table = table[table["bits"].eq(32) & table["tuned"].eq("none")].drop(columns="correct", errors="ignore")
    sized = table["budget_kind"].eq("kept") & table["budget"].isin([0.2, 0.3]) & table["chooser"].eq("energy")
    return table[table["seed"].eq(0) & (sized | table["chooser"].eq("dense"))].reset_index(drop=True)


def test_plain_factors_and_the_dense_network_are_built_again(rows):
    can = answers.can_be_rebuilt(rows)
    assert set(rows[can]["factors"]) == {"svd", "none"} and set(rows[~can]["factors"]) == {"data-aware"}
    for row in rows[can].to_dict("records"):
        right = unpacked(answers.answers(row))
        assert len(right) == 364 and right.mean() == pytest.approx(row["accuracy"], abs=1e-12)


def test_another_plan_or_accuracy_is_no_answer(rows):
    plain = rows[rows["factors"].eq("svd") & rows["scope"].eq("every layer")].sort_values("budget")
    small, large = plain.to_dict("records")
    assert small["accuracy"] != large["accuracy"]
    assert answers.answers(small | {"plan": large["plan"]}) is None
    assert answers.answers(small | {"accuracy": small["accuracy"] + 1 / 364}) is None


def test_answers_are_filled_in_where_they_are_wanted(rows, monkeypatch):
    wanted, told = rows["scope"] != "hidden layers", []
    found, left = answers.recorded(rows, wanted, 100, told.append)
    assert left == 0 and len(told) == 3 and all("agrees" in line for line in told)
    assert found["correct"].notna().tolist() == (answers.can_be_rebuilt(rows) & wanted).tolist()
    pd.testing.assert_frame_equal(found.drop(columns="correct"), rows.drop(columns="correct", errors="ignore"))
    monkeypatch.setattr(answers, "answers", lambda row: pytest.fail("what is known is not measured again"))
    pd.testing.assert_frame_equal(answers.recorded(found, wanted, 100)[0], found)


def test_it_stops_once_the_seconds_are_spent(rows):
    found, left = answers.recorded(rows, rows["factors"].eq("svd"), -1)
    assert left == 3 and found["correct"].notna().sum() == 1


def test_a_network_with_another_accuracy_records_nothing(rows):
    found, left = answers.recorded(rows.assign(accuracy=0.5), rows["chooser"].eq("dense"), 100)
    assert left == 0 and found["correct"].isna().all()


def test_answers_are_kept_beside_the_rows_and_belong_to_one_network(rows, tmp_path):
    found, _ = answers.recorded(rows, rows["chooser"].eq("dense"), 100)
    assert answers.known(rows, tmp_path) is rows
    answers.keep(found, tmp_path)
    again = answers.known(rows, tmp_path)
    assert (
        again["correct"].fillna("").tolist() == found["correct"].fillna("").tolist()
        and again["correct"].notna().sum() == 1
    )
    for change in ({"accuracy": 0.5}, {"seed": 1}, {"notebook": "03_entropy_pruning"}):
        assert answers.known(rows.assign(**change), tmp_path)["correct"].isna().all()
    fresh = rows.assign(correct="8:fresh")  # what the row itself says stays
    assert set(answers.known(fresh, tmp_path)["correct"]) == {"8:fresh"}
