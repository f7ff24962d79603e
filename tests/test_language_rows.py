"""The published rows of the language model, on a tiny Llama: what is asked, what is measured, what the page says of it."""

import types

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from conftest import byte_tokenizer, small_llama
from lowrank_utils.lab import perplexity
from lowrank_utils.lab.language import Language
from lowrank_utils.network.statistics import TOKEN_PRIOR
from lowrank_utils.workbook import gallery
from lowrank_utils.workbook import language as grid
from lowrank_utils.workbook import language_more as more
from lowrank_utils.workbook.chapters import language_model as chapter

pytest.importorskip("transformers")
LETTERS = np.array(list("abcdefghij "))


def words(count, seed):
    return "".join(np.random.default_rng(seed).choice(LETTERS, count))


@pytest.fixture
def toy(monkeypatch):
    """A model and a text in place of the real ones: 16 tokens a window, 3 test windows."""
    model = Language("tiny", small_llama(), byte_tokenizer(), "random weights")
    articles = "".join(f" = Title {i} = \n {words(150, i)} \n = = part = = \n {words(50, 50 + i)} \n" for i in range(6))
    corpus = types.SimpleNamespace(valid=words(4000, 99), test=articles)
    monkeypatch.setattr(grid.language, "load", lambda: model)
    monkeypatch.setattr(grid.text, "load", lambda name: corpus)
    for name, value in {"WINDOW": 16, "TEST": 3, "CALIBRATION": 4}.items():
        monkeypatch.setattr(grid, name, value)
    yield model, corpus
    plt.close("all")


def test_the_grid_asks_for_all_pairs_and_follows_six():
    asked = grid.asked()
    assert len(asked) == 83 and asked[0]["chooser"] == "dense"
    keys = [tuple(one[name] for name in grid.KEY) for one in asked]
    assert len(set(keys)) == len(keys)
    assert {key[:2] for key in keys if key[2:] == (0.8, 0)} == set(grid.PAIRS)
    assert {key[:2] for key in keys if key[2:] == (0.95, 0)} == set(grid.SIX)


def test_rows_are_measured_once_and_the_page_says_what_is_missing(toy, tmp_path, monkeypatch):
    path = tmp_path / "language.csv"
    part = [((0.8, 0.6), (("one share", "data-aware"), ("exact", "fisher-layerwise")), (0,))]
    rows = grid.renew(path, part)
    assert len(rows) == 5 and list(rows["budget"]) == [1, 0.8, 0.8, 0.6, 0.6]
    assert np.allclose(rows["rise"], rows["loss"] - rows["loss"][0], atol=1e-5)
    monkeypatch.setattr(chapter.Bench, "measured", None)
    assert grid.renew(path, part)["loss"].equals(rows["loss"])
    told = grid.section(rows)
    assert "5 of 83 planned rows are measured so far." in told and "there is one draw." in told
    assert "Missing: 20 of draw 0 at 90%, 18 of draw 0 at 80%, 6 of draw 0 at 70%, 4 of draw 0 at 60%" in told
    assert list(grid.pictures(rows)) == ["language-pairs"] and "](language-pairs.png)" in told
    assert grid.pictures(rows[:1]) == {}


def test_the_seconds_of_factors_are_not_those_of_statistics(toy, monkeypatch):
    desk = more.Desk()
    bench = desk.bench(more.VALID, 4)
    order = []
    collect, small = chapter.Bench.collect, chapter.Bench.small
    monkeypatch.setattr(chapter.Bench, "collect", lambda self: order.append("statistics") or collect(self))
    monkeypatch.setattr(chapter.time, "process_time", lambda: order.append("clock") or 0.0)
    monkeypatch.setattr(chapter.Bench, "small", lambda self, *given: order.append("factors") or small(self, *given))
    bench.plan("one share", 0.6)
    del order[:]
    bench.measured("one share", "asvd", 0.6)
    assert order.index("statistics") < order.index("factors") and order[order.index("factors") - 1] == "clock"


def test_the_tuned_rows_take_moments_alone(toy, monkeypatch):
    desk = more.Desk()
    bench = desk.bench(more.VALID, 4)
    bench.plan("one share", 0.6)
    monkeypatch.setattr(more, "PRIORS", (1.0,))
    monkeypatch.setattr(type(bench.profile), "fisher_of", None)
    asked = {"calibration_text": more.VALID, "calibration_windows": 4, "scored_on": "", "question": "100 000 tokens"}
    row = desk.row(asked | {"budget": 0.6})
    assert row["statistics_seconds"] > 0 and bench.profile.has_statistics(bench.names, fisher=False)


def test_every_question_has_rows_and_each_is_one_of_a_kind():
    asked = more.asked()
    assert {one["question"] for one in asked} == set(more.QUESTIONS)
    assert len({tuple(one.values()) for one in asked}) == len(asked)
    assert [one["calibration_windows"] for one in more.asked(["sequence"])] == [4, 4, 8, 8, 16, 16]
    assert {one["scored_on"] for one in more.asked(["in-domain"])} == {more.OTHER}


def test_articles_of_one_half_are_not_in_the_other(toy):
    _, corpus = toy
    first, second = more.halves(corpus.test)
    assert first + second == corpus.test and second.startswith(" = Title 3 = \n")
    titles = [{line for line in part.splitlines() if line.startswith(" = T")} for part in (first, second)]
    assert len(titles[0]) == len(titles[1]) == 3 and not titles[0] & titles[1]


def test_in_domain_rows_calibrate_on_one_half_and_score_on_the_other(toy):
    _, corpus = toy
    bench = more.Desk().bench(more.IN_DOMAIN, 4)
    for windows, part in zip((bench.calibration, bench.test), more.halves(corpus.test)):
        assert all(bench.language.tokenizer.decode(ids) in part for ids in windows.ids)


def test_the_ridge_is_the_best_of_those_tried_on_other_windows(toy, monkeypatch):
    judged = []
    scored = perplexity.perplexity

    def perplexity_of(model, windows, *given):
        found = scored(model, windows, *given)
        judged.append((len(windows.ids), found.loss))
        return found

    monkeypatch.setattr(more.perplexity, "perplexity", perplexity_of)
    monkeypatch.setattr(more, "PRIORS", (1.0, 1e5))
    monkeypatch.setattr(more, "ALL", 20)
    desk = more.Desk()
    row = desk.row(more.asked(["100 000 tokens"])[1] | {"calibration_windows": 20, "budget": 0.6})
    tried = [loss for count, loss in judged if count == more.JUDGES]
    assert len(tried) == 2 and row["prior"] == (1.0, 1e5)[int(np.argmin(tried))]
    seen = desk.held[1].calibration.ids.tolist()
    judges = desk.cut(desk.corpus.valid, 20 + more.JUDGES, 0).ids[20:].tolist()
    assert not [ids for ids in judges if ids in seen]
    assert "fisher" not in row and desk.held[1].profile._fisher == {}  # whitening needs none
    assert row["calibration_tokens"] == 320


def test_rows_say_on_which_text_they_were_scored(toy, tmp_path):
    questions = ["whole text", "speed"]
    rows = more.renew(tmp_path / "more.csv", questions)
    assert len(rows) == 7 and list(rows["scored_on"][:3]) == [more.WHOLE] * 3
    whole = perplexity.perplexity(toy[0].model, more.Desk().cut(toy[1].test, None, None))
    assert whole.tokens > 3 * 15 and rows["loss"][0] == pytest.approx(whole.loss, abs=1e-4)
    assert rows["rise"][0] == 0 and (rows["prior"][1:3] == TOKEN_PRIOR).all()
    fast = rows[rows["question"] == "speed"]
    assert (
        list(fast["threads"]) == [1, 1, 2, 2]
        and (fast[["tokens_per_second", "dense_tokens_per_second"]] > 0).to_numpy().all()
    )
    told = more.section(rows)
    assert "**The whole test text instead of 40 windows.**" in told and "| threads |" in told
    assert f"{len(more.asked()) - 7} of {len(more.asked())} planned rows are not measured yet." in told


def test_the_dense_network_reads_the_whole_text_once(toy, monkeypatch):
    read, scored = [], perplexity.perplexity

    def perplexity_of(model, windows, *given):
        read.append((model is toy[0].model, len(windows.ids)))
        return scored(model, windows, *given)

    monkeypatch.setattr(perplexity, "perplexity", perplexity_of)
    desk = more.Desk()
    rows = [desk.row(one) for one in more.asked(["whole text"])]
    whole = len(desk.cut(toy[1].test, None, None).ids)
    assert read.count((True, whole)) == 1 and read.count((False, whole)) == 2
    assert rows[0]["rise"] == 0 and rows[1]["rise"] == pytest.approx(rows[1]["loss"] - rows[0]["loss"])


def rows_of(rises, question="more text", tokens=32768):
    return pd.DataFrame(
        [
            {"question": question, "chooser": chooser, "factors": factors, "budget": kept, "calibration_windows": 64}
            | {"calibration_tokens": tokens, "rise": rise, "perplexity": 30 * np.exp(rise), "threads": 0, "draw": 0}
            for (chooser, factors, kept), rise in rises.items()
        ]
    )


def test_the_picture_joins_few_and_many_tokens():
    many = {("one share", "data-aware", 0.8): 1.2, ("exact", "fisher-layerwise", 0.8): 0.3}
    few = rows_of({key: 1.5 * rise for key, rise in many.items()} | {("energy", "svd", 0.8): 9.0}, tokens=8192)
    (axis,) = more.figure(rows_of(many), few).axes
    lines = {text.get_text(): line for text, line in zip(axis.texts, axis.get_lines())}
    assert set(lines) == {"SVD-LLM (whitening)", "exact ranks, our factors"}
    assert axis.get_xscale() == axis.get_yscale() == "log" and axis.get_title() == "80% of the blocks kept"
    for line in axis.get_lines():
        assert list(line.get_xdata()) == [8192, 32768] and line.get_ydata()[0] == pytest.approx(
            1.5 * line.get_ydata()[1]
        )
    plt.close("all")


def test_ratios_are_of_the_smallest_of_ours():
    rows = rows_of(
        {
            ("one share", "data-aware", 0.8): 1.2,
            ("exact", "fisher-layerwise", 0.8): 0.3,
            ("exact", "fisher-weighted", 0.8): 0.24,
            ("exact", "data-aware", 0.9): 0.1,
        }
    )
    assert more.ratios(rows) == "At 80% the smallest rise of ours is 20% of that of whitening with one share."
    told = more.section(rows)
    assert (
        "| our factors in sequence" not in told and "| exact, our factors in sequence | 80% | 32768 | 0.240 |" in told
    )


def test_factors_in_sequence_stand_beside_those_layer_by_layer():
    by_layer, swept = ("exact", "fisher-layerwise", 0.9), ("exact", "fisher-weighted", 0.9)
    few = rows_of({by_layer: 0.2, swept: 0.19}, "sequence", 2048).assign(factor_seconds=[10.0, 50.0])
    many = rows_of({by_layer: 0.1, swept: 0.12}).assign(factor_seconds=[10.0, 400.0])
    alone = rows_of({("exact", "fisher-weighted", 0.8): 0.1}).assign(factor_seconds=1.0)
    told = more.in_sequence(pd.concat([few, many, alone], ignore_index=True)).splitlines()
    assert told[2:] == [
        "| 90% | 2,048 | 0.2000 | 0.1900 | -5 % | 10 | 50 |",
        "| 90% | 32,768 | 0.1000 | 0.1200 | +20 % | 10 | 400 |",
    ]
    assert more.in_sequence(alone) == ""
    assert told[2] in more.section(pd.concat([few, many], ignore_index=True))


def test_the_gallery_shows_both(tmp_path, monkeypatch):
    rows = rows_of({("one share", "data-aware", 0.8): 1.2, ("exact", "fisher-layerwise", 0.8): 0.3})
    rows.assign(loss=4.0).to_csv(tmp_path / "language-more.csv", index=False)
    rows.assign(loss=4.0).drop(columns="question").to_csv(tmp_path / "language.csv", index=False)
    written = {path.name for path in gallery.renew(tmp_path)}
    assert {"language.png", "language-pairs.png", "language-more.png"} <= written
    page = (tmp_path / "README.md").read_text()
    assert page.index("## A language model\n") < page.index("## A language model: further questions\n")
    assert not [
        line
        for line in page.splitlines()
        if "](" in line and ".png)" in line and "language" in line and not any(name in line for name in written)
    ]
