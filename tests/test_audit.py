"""The comparison card: what is published passes, and each rule can be broken."""

import json
import re
from types import SimpleNamespace

import pandas as pd
import pytest
from typer.testing import CliRunner

from lowrank_utils.__main__ import app
from lowrank_utils.workbook import audit, chapters, controls, gallery
from lowrank_utils.workbook.chapters import arsvd
from lowrank_utils.workbook.verdicts import Claim, Verdict


@pytest.fixture(scope="module")
def published():
    return audit.findings()


# ---- the published tables --------------------------------------------------------------------------------------------


def test_no_published_table_or_claim_breaks_a_rule_without_a_reason(published):
    assert [one for one in published if one.broken] == []
    subjects = {one.subject for one in published}
    assert set(gallery.published_tables()) - {gallery.CLAIMS} <= subjects
    assert len([one for one in published if one.rule == 1]) > len(gallery.every_claim())
    every = [*audit.NO_METHODS, *audit.PAGES]
    pages = [name for name in every if (gallery.paths.GALLERY / f"{name.replace('_', '-')}.csv").is_file()]
    assert len(pages) == len(every) == len(set(every))
    assert all(set(reasons) == set(audit.RULES) for reasons in audit.PAGES.values())
    assert {f"page: {name}" for name in pages} <= subjects
    networks = controls.published().groupby(["network", "dataset"]).groups
    assert {f"controls: {network} on {dataset}" for network, dataset in networks} <= subjects
    assert all([one.rule for one in published if one.subject == subject] == list(audit.RULES) for subject in subjects)


def test_no_reason_stands_for_a_rule_that_is_kept(published):
    used = {(one.rule, one.reason) for one in published if one.problem}
    for chapter in chapters.every().values():
        for heading, reasons in getattr(chapter, "UNMET", {}).items():
            assert heading == "*" or heading in {one.subject for one in published} | {gallery.CLAIMS}
            assert {(rule, reason) for rule, reason in reasons.items()} <= used
        for claim in getattr(chapter, "CLAIMS", ()):
            assert {(rule, reason) for rule, reason in claim.unmet.items()} <= used
    for reasons in controls.UNMET.values():
        assert set(reasons.items()) <= used


def test_reasons_that_point_to_the_controls_have_rows_there():
    known, shown = controls.published(), 0
    measured = {
        "from scratch": known["tuned"] == "from scratch",
        "andom ranks": known["chooser"] == "random",
        "ine-tuned networks": known["tuned"] == "fine-tuned",
        "recalibrated batch norms": known["tuned"] == "recalibrated",
        "orrupted images": known["accuracy_corrupted"].notna(),
    }
    for chapter in chapters.every().values():
        for text in getattr(chapter, "UNMET", {}).get("*", {}).values():
            for told in re.findall(r"[^.]*\*Controls and rivals\*[^.]*\.", text):
                networks = [
                    name for name, words in (("lenet300", "LeNet-300-100"), ("vgg_small", "vgg_small")) if words in told
                ]
                for network in networks or ["lenet300"]:
                    for words, rows in measured.items():
                        asked = words in told and not (network == "lenet300" and "recalibrated" in words)
                        assert not asked or (rows & (known["network"] == network)).any(), (told, network, words)
                        shown += asked
    assert shown > 10


def test_the_command_fails_where_a_reason_is_taken_away(monkeypatch):
    reasons = {rule: text for rule, text in arsvd.UNMET["*"].items() if rule != 5}
    monkeypatch.setattr(arsvd, "UNMET", {"*": reasons | {6: "  "}})
    found = CliRunner().invoke(app, ["audit"])
    assert found.exit_code == 1 and "**broken**" in found.stdout
    assert "breaks rule 5, more than test accuracy" in found.stderr and "breaks rule 6" in found.stderr
    assert (
        "ARSVD: adaptive ranks" in found.stderr and "Accuracy at equal size, with spread: breaks rule 5" in found.stderr
    )
    assert "breaks rule 4" not in found.stderr and "DDLR" not in found.stderr


def test_the_command_shows_the_card(published, monkeypatch):
    monkeypatch.setattr(audit, "findings", lambda: published)
    found = CliRunner().invoke(app, ["audit"])
    assert found.exit_code == 0 and found.stdout.startswith("| table or claim | 1 | 2 | 3 | 4 | 5 | 6 | 7 |")


# ---- each rule -------------------------------------------------------------------------------------------------------


def rows(*choosers, **about):
    """Rows that keep every rule, one a chooser, in two runs with five draws each."""
    base = {
        "dataset": "mnist",
        "network": "lenet300",
        "factors": "svd",
        "scope": "every layer",
        "budget_kind": "kept",
        "budget": 0.2,
    }
    base |= {
        "refit": "none",
        "tuned": "none",
        "tuned_accuracy": 0.9,
        "cut": "none",
        "correct": "8:x",
        "memory_64": 1.0,
        "latency_ms_1": 1.0,
    }
    base |= {"accuracy_corrupted": 0.5, "calibration_images": 100, "run_parameters": "{}"} | about
    names = choosers or ("fixed", "random", "from scratch")
    return pd.DataFrame(
        [base | {"chooser": name, "seed": seed, "draw": draw} for name in names for seed in (0, 1) for draw in range(5)]
    )


def test_rows_that_keep_every_rule():
    assert audit.by_rows(rows()) == dict.fromkeys(range(1, 7), "")
    assert audit.by_rows(rows("dense")) == audit.by_rows(rows()[:0]) == dict.fromkeys(range(1, 7), "")


def changed(**some):
    table = rows()
    for name, value in some.items():
        table.loc[0, name] = value
    return table


@pytest.mark.parametrize(
    "rule, table, problem",
    [
        (1, changed(calibration_images=50), "lenet300 on mnist has several counts of calibration images"),
        (1, changed(budget_kind="macs"), "sizes count parameters in some rows and MACs in others"),
        (1, rows(run_parameters=json.dumps({"samples": 50, "calibration_images": 100})), "see fewer images than the others: 50 of 100"),
        (1, rows().assign(finetuned_epochs=[1, 2] * 15), "fine-tuning takes different numbers of epochs"),
        (2, rows("energy"), "no row has energy at its own threshold"),
        (2, rows("DDLR", budget_kind="epsilon"), "no row has DDLR on its own curve over epsilon"),
        (2, rows("ENC-Map", factors="sequential"), "no row has ENC-Map in plain factors"),
        (3, rows("fixed", "random"), "no row is a control: from scratch"),
        (3, rows("fixed", "from scratch"), "no row is a control: random"),
        (3, rows(network="resnet20"), "no row is a control: batch norm recalibrated"),
        (3, rows(tuned_accuracy=None), "no row is a control: fine-tuned"),
        (3, pd.concat([rows(), rows("fixed", "random").assign(dataset="digits")]), "no row is a control: from scratch (lenet300 on digits)"),
        (4, changed(correct=None), "1 of 30 rows do not record which test images are right"),
        (4, rows().query("seed == 0 and draw == 0"), "one run alone: lenet300 on mnist"),
        (5, rows().drop(columns="accuracy_corrupted"), "not measured in every row: corrupted test images"),
        (5, changed(accuracy_corrupted=None), "not measured in every row: corrupted test images"),
        (5, changed(memory_64=None), "not measured in every row: memory"),
        (5, changed(latency_ms_1=None), "not measured in every row: time"),
        (6, rows().query("draw < 4"), "4 draws of calibration images, not 5"),
        (6, rows().assign(draw=None), "1 draw of calibration images, not 5"),
    ],
)  # fmt: skip
def test_each_rule_can_be_broken_by_rows(rule, table, problem):
    assert problem in audit.by_rows(table)[rule]


@pytest.mark.parametrize(
    "rule, table",
    [
        (1, rows().assign(finetuned_epochs=[1, 2] * 15, tuned=["fine-tuned", "from scratch"] * 15)),
        (2, rows("energy", budget_kind="threshold", budget=0.9)),
        (2, rows("DDLR", budget_kind="epsilon").assign(budget=[0.1, 0.2] * 5)),
        (3, changed(refit="recalibrated").assign(network="resnet20")),
    ],
)
def test_each_rule_can_be_kept(rule, table):
    assert audit.by_rows(table)[rule] == ""


def test_a_size_that_no_table_shows_is_named():
    chapter = SimpleNamespace(CAPTIONS={"Sizes": "With 20 % kept."}, UNMET={"Sizes": {7: "They stand in a figure."}})
    table = pd.concat([rows(), rows(budget=0.45)])
    (*_, found) = audit.judge_table(chapter, table, "Sizes", "| 10 % kept |\n| --- |\n| 45.0 |", audit.by_rows(table))
    assert (found.rule, found.problem) == (7, "sizes of the rows that it does not show: 45 %")
    assert found.reason == "They stand in a figure." and not found.broken
    (*_, found) = audit.judge_table(chapter, table, "Sizes", "| kept |\n| --- |\n| 45 % |", audit.by_rows(table))
    assert found.problem == ""
    for unmet in (
        chapter.UNMET,
        {"*": {7: "The figures show every size."}},
    ):  # what excuses all tables excuses no table's gaps
        chapter.UNMET = unmet
        (*_, found) = audit.judge_table(chapter, table, "Others", "| 20 % | \n| --- |\n", audit.by_rows(table))
        assert found.broken


def judge(verdict, chapter=None, problems=None, **about):
    claim = Claim("ENC", "better", "here", about.pop("rule", "ahead"), "-", lambda table: None, "", **about)
    found = audit.judge_claim(chapter or SimpleNamespace(), claim, verdict, problems or dict.fromkeys(range(1, 7), ""))
    return {one.rule: one for one in found}


GOOD = Verdict("", "yes", 2, {"a": "why"}, ("images and draws", "images and seeds"))


def test_a_claim_can_break_each_rule():
    assert not any(one.problem for one in judge(GOOD).values())
    assert judge(GOOD, rule="as in the paper")[1].broken
    assert (
        judge(Verdict("not measured: no row", "-", 0, {"a": "no row"}), posed=True)[2].problem == "not measured: no row"
    )
    assert judge(Verdict("", "yes", 1, {}, ("seeds",)))[4].problem == "paired by seeds, not by test images"
    assert judge(Verdict("", "yes", 1, {}, ("images",)))[4].problem == "one run alone in 1 settings"
    assert judge(Verdict("", "yes", 1, {}, ("images",)))[4].broken
    assert judge(Verdict("", "yes", 1, {"a": " "}))[7].problem == "left out without a reason: a"
    assert judge(Verdict("", "-", 0))[7].broken
    for rule in (1, 3, 5, 6):
        assert judge(GOOD, problems=dict.fromkeys(range(1, 7), "") | {rule: "broken by rows"})[rule].broken


def test_a_rule_that_has_nothing_to_say_of_a_claim_does_not_count_as_kept():
    size = judge(Verdict("", "yes", 1), rule="size")
    assert not size[2].applies and not size[4].applies and size[1].applies
    assert judge(GOOD)[4].applies and not judge(GOOD)[2].applies and judge(GOOD, posed=True)[2].applies
    text = audit.card([*size.values()])
    assert "| kept | - | kept | - | kept | kept | kept |" in text


def test_a_reason_of_the_claim_or_of_its_chapter_counts():
    verdict = Verdict("", "yes", 1, {}, ("seeds",))
    assert not judge(verdict, unmet={4: "one seed"})[4].broken
    assert not judge(verdict, SimpleNamespace(UNMET={"*": {4: "one seed"}}))[4].broken
    assert not judge(verdict, SimpleNamespace(UNMET={gallery.CLAIMS: {4: "one seed"}}))[4].broken
    assert judge(verdict, SimpleNamespace(UNMET={"another table": {4: "one seed"}}))[4].broken


def test_the_card_numbers_reasons_and_counts():
    found = [
        audit.Finding("a", 1, "", ""),
        audit.Finding("a", 2, "wrong", "because"),
        audit.Finding("b", 1, "wrong", ""),
        audit.Finding("b", 2, "also wrong", "because"),
    ]
    text = audit.card(found)
    assert "| a | kept | no (1) |" in text and "| b | **broken** | no (1) |" in text and text.endswith("1. because")
    assert "| 1 | one rule for all: size, drop, calibration images, fine-tuning | 1 | 0 | 0 | 1 |" in audit.summary(
        found
    )
    assert "| 2 | every method also as its authors pose it | 0 | 2 | 0 | 0 |" in audit.summary(found)
