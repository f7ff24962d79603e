"""Chapter 07: every chooser and every kind of factors on a tiny Llama, rows that are not made twice, pictures and sentences."""

import dataclasses
import hashlib
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from torch import nn

from conftest import byte_tokenizer, small_llama
from lowrank_utils.lab import columns, language, perplexity
from lowrank_utils.lab.language import Language
from lowrank_utils.lab.text import Windows
from lowrank_utils.network import modules
from lowrank_utils.network.profile import Profile
from lowrank_utils.workbook import plots
from lowrank_utils.workbook.chapters import language_lesson as lesson
from lowrank_utils.workbook.chapters import language_model as chapter
from lowrank_utils.workbook.exercises import check

pytest.importorskip("transformers")
KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PAIRS = [(chooser, "svd") for chooser in chapter.CHOOSERS] + [("one share", kind) for kind in chapter.FACTORS[1:]]


def cut(count, seed):
    """Windows of 16 random bytes."""
    ids = torch.randint(0, 256, (count, 16), generator=torch.Generator().manual_seed(seed))
    return Windows(ids, count * 15, count * 15, hashlib.sha256(ids.numpy().tobytes()).hexdigest())


def made(**about):
    language = Language("tiny", small_llama(), byte_tokenizer(), "random weights")
    return chapter.Bench(language, cut(6, 1), cut(3, 2), dataset="toy", draw=0, **about)


@pytest.fixture(scope="module")
def bench():
    return made()


@pytest.fixture(scope="module")
def rows(bench):
    return chapter.experiment(bench, (0.8, 0.6), PAIRS)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_each_pair_is_a_row_at_each_size(rows, bench):
    columns.check(rows)
    assert len(rows) == 1 + 2 * len(PAIRS)
    small = rows[rows["chooser"] != "dense"]
    assert list(zip(small["chooser"], small["factors"])) == 2 * PAIRS and rows.iloc[0]["chooser"] == "dense"
    assert set(rows["notebook"]) == {"07_language_model"} and set(rows["dataset"]) == {"toy"}
    assert set(rows["calibration_tokens"]) == {96} and set(rows["calibration_images"]) == {6}
    assert rows.iloc[0]["rise"] == 0 and rows.iloc[0]["blocks_kept"] == 1
    assert np.allclose(rows["rise"], rows["loss"] - bench.dense)
    assert np.isfinite(small["rise"]).all() and (small["rise"].abs() > 1e-6).all()


def test_the_budget_is_one_of_the_blocks(rows, bench):
    small, model = rows[rows["chooser"] != "dense"], bench.language.model
    assert (small["blocks_kept"] <= small["budget"]).all()
    near = small[small["chooser"] != "ASVD search"]  # which has three sizes a matrix only
    assert (near["blocks_kept"] > near["budget"] - 0.05).all()
    blocks = sum(part.weight.numel() for part in model.model.layers.modules() if isinstance(part, nn.Linear))
    whole = sum(value.numel() for value in model.parameters())
    assert np.allclose(small["parameters_kept"], 1 - (1 - small["blocks_kept"]) * blocks / whole)


def test_the_loss_of_a_row_is_that_of_the_network_built(rows, bench):
    row = rows[(rows["chooser"] == "exact") & (rows["budget"] == 0.6)].iloc[0]
    plan, _ = bench.plan("exact", 0.6)
    small = bench.small(plan, "svd")
    assert row["loss"] == pytest.approx(perplexity.perplexity(small, bench.test).loss)
    name = next(iter(plan))
    u, s, vt = torch.linalg.svd(bench.language.model.get_submodule(name).weight.detach().double(), full_matrices=False)
    layer, rank = small.get_submodule(name), plan[name]
    product = (layer.second.weight @ layer.first.weight).double()
    assert torch.allclose(product, (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-5)


def test_every_kind_of_factors_makes_another_network(bench, rows):
    small = rows[(rows["chooser"] == "one share") & (rows["budget"] == 0.6)]
    assert small["loss"].round(7).nunique() == len(chapter.FACTORS)
    plans = {chooser: str(sorted(bench.plan(chooser, 0.6)[0].items())) for chooser in chapter.CHOOSERS}
    assert len(set(plans.values())) >= len(plans) - 2  # SVD-LLM V2 may come out as one share


def test_test_windows_do_not_change_what_is_built(bench):
    other = chapter.Bench(bench.language, bench.calibration, cut(3, 9))
    for chooser in chapter.CHOOSERS:
        assert other.plan(chooser, 0.6)[0] == bench.plan(chooser, 0.6)[0]
    plan = bench.plan("exact", 0.6)[0]
    ours, theirs = (one.small(plan, "fisher-layerwise") for one in (bench, other))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))


def test_plans_and_statistics_are_made_once(bench, rows, monkeypatch):
    monkeypatch.setattr(chapter.published, "one_share", None)
    monkeypatch.setattr(Profile, "fisher_of", None)
    before = dict(bench.seconds)
    assert bench.plan("one share", 0.6)[0]
    bench.collect()
    assert bench.seconds == before and {"statistics", "curves", "sensitivities"} <= set(before)


def test_a_run_that_was_cut_off_goes_on(bench, rows, monkeypatch):
    done, written, measured = rows.iloc[: len(PAIRS) - 2], [], []
    original = chapter.Bench.measured
    monkeypatch.setattr(
        chapter.Bench, "measured", lambda self, *given: measured.append(given[:3]) or original(self, *given)
    )
    whole = chapter.experiment(bench, (0.8,), PAIRS, done=done, write=written.append)
    assert measured == [(*pair, 0.8) for pair in PAIRS[len(PAIRS) - 3 :]]
    assert [(row["chooser"], row["factors"]) for row in written] == PAIRS[len(PAIRS) - 3 :]
    expected = rows.iloc[: 1 + len(PAIRS)]
    assert list(whole["factors"][1:]) == list(expected["factors"][1:]) and (whole["chooser"] == "dense").sum() == 1
    assert np.allclose(whole["loss"], expected["loss"])
    nothing = chapter.experiment(bench, (0.8,), PAIRS, done=whole, write=written.append)
    assert len(written) == 3 and len(nothing) == len(whole)


def test_rows_are_written_as_they_come(bench, monkeypatch):
    written = []

    def fail(self, *_):
        raise KeyError("interrupted")

    monkeypatch.setattr(chapter.Bench, "measured", fail)
    with pytest.raises(KeyError, match="interrupted"):
        chapter.experiment(bench, (0.8,), PAIRS, write=written.append)
    assert [row["chooser"] for row in written] == ["dense"]


def test_networks_are_held_on_request_and_measured_once(bench, monkeypatch):
    pair = ("one share", "svd")
    rows = chapter.experiment(bench, (0.7,), [pair, ("one share", "asvd")], hold=[pair])
    assert list(bench.held) == [(*pair, 0.7)]
    small, theirs = bench.network(*pair, 0.7), dict(bench.language.model.named_modules())
    cut = bench.plan("one share", 0.7)[0]
    shared = [name for name, part in small.named_modules() for p in part._parameters.values() if p is not None
              and name in theirs and any(p.data_ptr() == q.data_ptr() for q in theirs[name].parameters(recurse=False))]  # fmt: skip
    assert "model.embed_tokens" in shared and not set(shared) & set(cut)
    again = bench.small(cut, "asvd")
    monkeypatch.setattr(chapter.perplexity, "perplexity", lambda *_: 1 / 0)
    assert bench.rise(small) == rows.iloc[1]["rise"] and bench.rise(bench.language.model) == 0
    with pytest.raises(ZeroDivisionError):
        bench.rise(again)
    rounded = chapter.rounded_to_8_bits(bench.language.model, bench.names)
    assert rounded.model.embed_tokens.weight is bench.language.model.model.embed_tokens.weight


def test_what_becomes_of_a_cut_network_leaves_the_dense_one_alone():
    dense = small_llama()
    dense.lm_head.weight = dense.model.embed_tokens.weight  # tied
    small = chapter.sharing(modules.copied(dense), dense)
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert small.lm_head.weight.data_ptr() == dense.lm_head.weight.data_ptr()
    small.requires_grad_(False).half()
    assert {(value.dtype, value.requires_grad) for value in small.parameters()} == {(torch.float16, False)}
    assert {(value.dtype, value.requires_grad) for value in dense.parameters()} == {(torch.float32, True)}
    assert small.lm_head.weight is small.model.embed_tokens.weight


def test_a_network_that_was_changed_is_measured_again():
    one = made()
    small = modules.copied(one.language.model)
    assert one.rise(small) == 0
    with torch.no_grad():
        small.get_submodule(one.names[0]).weight.zero_()
    assert one.rise(small) == perplexity.perplexity(small, one.test).loss - one.dense != 0


def test_statistics_are_collected_again_where_they_were_let_go():
    one = made()
    one.collect()
    first, second = one.names[:2]
    before = one.profile.moments_of([first])[first].scatter, one.profile.fisher_of([first])[first]
    one.profile.forget(keep=[second])
    assert set(one.profile._moments) == {second} and {name for name, _ in one.profile._fisher} == {second}
    after = one.profile.moments_of([first])[first].scatter, one.profile.fisher_of([first])[first]
    assert after[0] is not before[0] and all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(after, before))


def test_statistics_that_were_let_go_are_collected_outside_what_is_timed():
    one = made()
    one.collect()
    other = one.profile.but(dense=one.names[:1])
    one.profile.forget()
    assert other.has_statistics(one.names) and not one.profile.has_statistics(one.names)
    one.collect()
    assert one.profile.has_statistics(one.names)
    one.profile._fisher.popitem()
    assert not one.profile.has_statistics(one.names)


def test_speed_is_measured_on_request(bench):
    assert math.isnan(bench.dense_row()["tokens_per_second"])
    assert bench.dense_row(threads=1)["tokens_per_second"] > 0
    assert bench.measured("one share", "svd", 0.8, threads=1)["tokens_per_second"] > 0


def test_unknown_choosers_and_factors_are_refused(bench):
    with pytest.raises(ValueError, match="unknown chooser 'best'; known: one share, energy"):
        bench.plan("best", 0.8)
    with pytest.raises(ValueError, match="unknown factors 'magic'; known: svd, asvd"):
        bench.small({}, "magic")
    for chooser in ("one share", "exact", "SVD-LLM V2", "ASVD search"):
        with pytest.raises(ValueError, match="cannot be reached"):
            bench.plan(chooser, 0.005)
    with pytest.raises(ValueError, match="is not a share"):
        bench.plan("one share", 1.5)


def test_blocks_are_all_matrices_but_the_head(bench):
    for tied in (True, False):
        model = small_llama(tied=tied)
        names = chapter.blocks(Profile(model, bench.calibration.ids), model)
        assert names == [
            name for name, part in model.model.named_modules(prefix="model") if isinstance(part, nn.Linear)
        ]
        assert len(names) == 14
    plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    assert chapter.blocks(Profile(plain, torch.zeros(2, 8)), plain) == ["0", "1"]
    with pytest.raises(ValueError, match="no matrix of this Sequential can be factored"):
        chapter.blocks(Profile(plain, torch.zeros(2, 8), dense=["0", "1"]), plain)


def test_tables_of_kinds_and_blocks(bench):
    found = chapter.kinds(bench)
    assert list(found.index) == KINDS and set(found["matrices"]) == {2}
    assert found.loc["up_proj", "shape"] == "48 x 32" and found.loc["up_proj", "break-even rank"] == 19
    whole = sum(value.numel() for value in bench.language.model.parameters())
    assert found.loc["up_proj", "share of all parameters"] == pytest.approx(2 * 48 * 32 / whole)
    held = chapter.energy_at_break_even(bench, [0, 1, 2, 3])
    shares = []
    for block in bench.language.model.model.layers:
        energy = torch.linalg.svdvals(block.mlp.up_proj.weight.detach().double()).square()
        shares.append(float(energy[:19].sum() / energy.sum()))
    assert held["up_proj"] == pytest.approx(np.mean(shares), rel=1e-4) and (held < 1).all()


def test_values_are_laid_out_by_kind_and_block():
    table = chapter.by_block({"h.10.b": 4.0, "h.2.a": 1.0, "h.10.a": 3.0, "h.2.b": 2.0})
    assert list(table.index) == ["b", "a"] and list(table.columns) == [2, 10]
    assert table.to_numpy().tolist() == [[2.0, 4.0], [1.0, 3.0]]
    assert chapter.depth_of("head") == 0 and chapter.kind_of("head") == "head"


def test_damage_is_the_predicted_rise_a_token(bench):
    found = chapter.damage(bench, 0.7)
    plan, _ = bench.plan("one share", 0.7)
    assert set(found) <= set(bench.names) and len(found) >= 12 and min(found.values()) > 0
    name = next(iter(found))
    own = next(own for own in bench.options if own.name == name)
    assert found[name] == bench.losses[name][own.entries.index(plan[name])] / 16
    assert sum(chapter.damage(bench, 0.5).values()) > sum(found.values())


def test_rounding_to_8_bits_moves_each_weight_by_half_a_step_at_most(bench):
    model, names = bench.language.model, bench.names[:2]
    rounded = chapter.rounded_to_8_bits(model, names)
    for name in bench.names:
        old, new = (net.get_submodule(name).weight for net in (model, rounded))
        step = old.abs().amax(1, keepdim=True) / 127
        assert torch.equal(old, new) == (name not in names)
        assert ((old - new).abs() <= 0.5001 * step).all()
        assert name not in names or torch.allclose(new / step, (new / step).round(), atol=1e-3)


def test_other_sentences_are_read_too(bench):
    small = bench.small(bench.plan("one share", 0.6)[0], "svd")
    found = chapter.elsewhere(bench, {"dense": bench.language.model, "cut": small}, "Plain words. " * 5)
    assert found.loc["dense"].tolist() == [0, 0] and list(found.columns) == ["test text", "other sentences"]
    row = bench.measured("one share", "svd", 0.6)
    assert found.loc["cut", "test text"] == pytest.approx(row["rise"])
    assert found.loc["cut", "other sentences"] not in (0, found.loc["cut", "test text"])


# ---- pictures and sentences

METHODS = {("one share", "svd"): 0.4, ("one share", "asvd"): 0.2, ("exact", "fisher-layerwise"): 0.05}
DENSE = {"chooser": "dense", "factors": None, "budget": np.nan, "rise": 0.0, "loss": 3.0}


def table(methods=METHODS, sizes=(0.9, 0.8), draws=2):
    """Rows as the experiment makes them: at 80 % twice the rise of 90 %, and draws that differ by a hundredth."""
    found = [DENSE]
    for (chooser, factors), rise in methods.items():
        for size in sizes:
            for draw in range(draws):
                here = rise * (1 if size == 0.9 else 2) + 0.01 * (draw - (draws - 1) / 2)
                found.append({"chooser": chooser, "factors": factors, "budget": size, "rise": here, "loss": 3.0 + here})
    return pd.DataFrame(found)


def test_lines_hold_the_means_and_bands_the_range():
    (axis,) = chapter.figure(table()).axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert list(lines) == ["plain SVD", "ASVD", "exact ranks, our factors"]  # the dearest first
    assert np.allclose(lines["ASVD"].get_ydata(), [0.4, 0.2]) and list(lines["ASVD"].get_xdata()) == [0.8, 0.9]
    low, high = axis.collections[1].get_paths()[0].get_extents().intervaly
    assert (low, high) == pytest.approx((0.195, 0.405))
    assert axis.get_yscale() == "log" and axis.get_legend() is None
    assert [line.get_linestyle() for line in axis.get_lines()] == ["--", "--", "-"]  # one share, exact ranks
    named = {text.get_text(): (text.xy, text.get_color()) for text in axis.texts}
    assert named.keys() == lines.keys()
    for method, (end, colour) in named.items():
        assert end == (0.9, pytest.approx(lines[method].get_ydata()[1])) and colour == lines[method].get_color()


def test_a_method_has_its_colour_in_every_figure():
    (lines,), (points,) = chapter.figure(table()).axes, chapter.points(table(sizes=(0.9,))).axes
    names = [text.get_text() for text in points.get_yticklabels()]
    colours = dict(zip(names, points.collections[0].get_facecolors()))
    for line in lines.get_lines():
        assert np.allclose(to_rgba(line.get_color()), colours[line.get_label()])
    assert len({to_rgba(chapter.LOOKS[name]) for name in names}) == 3
    assert chapter.LOOKS["exact ranks, our factors"] == plots.COLOURS["exact, Fisher"]
    assert set(chapter.LOOKS) == set(chapter.TITLES.values())


def test_points_have_the_least_at_the_top():
    (axis,) = chapter.points(table({**METHODS, ("energy", "svd"): -0.5}, sizes=(0.9,)), "at 90 %").axes
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names == ["plain SVD", "ASVD", "exact ranks, our factors", "energy, plain SVD"]
    at = np.asarray(axis.collections[0].get_offsets())
    assert np.allclose(at, [[0.4, 0], [0.2, 1], [0.05, 2], [0.001, 3]])
    assert [note.get_text() for note in axis.texts] == ["0.4", "0.2", "0.05", "-0.5"]  # no logarithm of what is no rise
    assert axis.get_title() == "at 90 %" and axis.get_xscale() == "log" and not axis.patches
    low, high = axis.get_xlim()
    assert low < at[:, 0].min() and high > at[:, 0].max()


def test_pairs_without_a_title_are_no_lines_beside_those_with_one():
    pairs = {("energy", "svd"): 0.4, ("exact", "data-aware"): 0.1}
    (axis,) = chapter.figure(table(pairs)).axes
    assert [line.get_label() for line in axis.get_lines()] == ["exact ranks, whitening"]
    (axis,) = chapter.figure(table({("energy", "svd"): 0.4, ("entropy", "magic"): 0.3})).axes
    assert [line.get_label() for line in axis.get_lines()] == ["energy, plain SVD", "entropy, magic"]


def test_no_row_is_said():
    nothing = pd.DataFrame([DENSE])
    (axis,) = chapter.figure(nothing).axes
    assert [text.get_text() for text in axis.texts] == ["no row to draw"]
    (axis,) = chapter.points(nothing).axes
    assert [text.get_text() for text in axis.texts] == ["no row to draw"]
    assert chapter.reading(nothing) == "No method was measured." and chapter.tables(nothing) == {}
    assert chapter.aims(nothing) == ""


def test_heat_maps_show_the_values_of_a_plan(bench):
    plan, _ = bench.plan("exact", 0.6)
    axis, bar = chapter.plan_picture(bench, plan).axes
    shown = axis.images[0].get_array()
    assert shown.shape == (7, 2) and [text.get_text() for text in axis.get_yticklabels()] == KINDS
    name = next(name for name in plan if name.endswith("1.mlp.up_proj"))
    assert shown[KINDS.index("up_proj"), 1] == pytest.approx(plan[name] * 80 / (48 * 32))
    dense = chapter.plan_picture(bench, {}).axes[0].images[0].get_array()
    assert (dense == 1).all()
    values = {name: 10.0 ** -chapter.depth_of(name) for name in bench.names}
    axis, bar = chapter.heat_map(values, "damage", "nats", log=True).axes
    assert np.allclose(axis.images[0].get_array(), [[0, -1]] * 7) and bar.get_ylabel() == "log10 of nats"


def test_spectra_are_drawn_for_each_kind(bench):
    axes = [axis for axis in chapter.spectra_figure(bench.profile, bench.names, [0, 1]).axes if axis.axison]
    assert [axis.get_title() for axis in axes] == KINDS
    lines = [line for line in axes[0].get_lines() if str(line.get_label()).startswith("block")]
    values = bench.profile["model.layers.1.self_attn.q_proj"].singular_values
    assert len(lines) == 2 and np.allclose(lines[1].get_ydata(), values / values[0])
    assert lines[0].get_color() != lines[1].get_color()
    (line,) = [line for line in axes[5].get_lines() if line.get_label() == "break-even"]
    assert line.get_xdata()[0] == pytest.approx(19 / 32)


def test_the_reading_says_what_the_rows_say():
    told = chapter.reading(table())
    assert told.startswith("At 90% of the blocks' parameters:")
    assert "of the published methods with one share, ASVD costs least, 0.200 nats a token;" in told
    assert "exact ranks and Fisher-weighted factors cost 0.050; that is 25% of the rise of the best" in told
    other = chapter.reading(table({("one share", "svd"): 0.1, ("one share", "asvd"): 0.2}))
    assert "plain SVD costs least, 0.100" in other and "Fisher" not in other and "that is" not in other
    ours = chapter.reading(table({("exact", "data-aware"): 0.3}))
    assert "published" not in ours and "exact ranks with the factors of SVD-LLM cost 0.300." in ours


def test_aims_are_judged_by_the_rows():
    told = chapter.aims(table({("one share", "svd"): 0.5, ("exact", "fisher-layerwise"): 0.045}))
    assert told == ("At 90% kept the aim of at most 10% is met: 9%. At 80% kept the aim of at most 20% is met: 9%.")
    rows = table({("one share", "data-aware"): 0.4, ("exact", "fisher-layerwise"): 0.1}, sizes=(0.8,))
    assert chapter.aims(rows) == "At 80% kept the aim of at most 20% is not met: 25%."
    assert chapter.aims(table({("one share", "svd"): 0.5})) == ""


def test_tables_hold_means_and_perplexities():
    ((heading, text),) = chapter.tables(table()).items()
    assert heading in chapter.CAPTIONS
    lines = [re.split(r"\s*\|\s*", line.strip("| ")) for line in text.strip().splitlines()]
    assert lines[0] == ["method", "90%", "80%"]
    assert lines[3] == ["ASVD", f"0.200 ({math.exp(3.2):.1f})", f"0.400 ({math.exp(3.4):.1f})"]
    some = table()
    some = some[(some["factors"] != "asvd") | (some["budget"] == 0.9)]
    ((_, text),) = chapter.tables(some).items()
    assert "| ASVD | 0.200" in text and "nan" not in text


def test_pictures_and_sentences_of_the_experiment(rows):
    (axis,) = chapter.figure(rows).axes
    assert {line.get_label() for line in axis.get_lines()} <= set(chapter.TITLES.values()) and len(axis.get_lines()) > 3
    (axis,) = chapter.points(rows[rows["budget"] == 0.8]).axes
    assert len(axis.get_yticklabels()) == len(PAIRS)
    titles = set(chapter.titled(rows[rows["chooser"] != "dense"]))
    assert {"plain SVD", "SVD-LLM (whitening)", "energy, plain SVD"} <= titles and len(titles) == len(PAIRS)
    best = rows[(rows["budget"] == 0.8) & (rows["chooser"] == "one share")].set_index("factors")["rise"]
    best = best[[factors for _, factors in chapter.PUBLISHED]]
    assert f"costs least, {best.min():.3f} nats" in chapter.reading(rows)


# ---- what the notebook says, and its exercises


def test_sentences_name_what_costs_least_and_most(bench):
    alone = chapter.damage(bench, 0.6)
    means = chapter.by_block(alone).mean(axis=1).sort_values()
    told = lesson.about_worth(bench, 0.6)
    least, most = (sorted(means.index[two], key=KINDS.index) for two in (slice(2), slice(-2, None)))
    assert f"`{least[0]}` and `{least[1]}` cost least, `{most[0]}` and `{most[1]}` most." in told
    dearest = max(alone, key=alone.get)
    assert f"`{chapter.kind_of(dearest)}` of block {chapter.depth_of(dearest)}" in told
    told = lesson.about_plan(bench, {"model.layers.0.mlp.up_proj": 3, "model.layers.1.mlp.up_proj": 3})
    counts = [f"{2 if kind == 'up_proj' else 0} of 2 `{kind}`" for kind in KINDS]
    assert told == f"The plan cuts 2 of 14 matrices: {', '.join(counts)}."
    told = lesson.about_spectra(pd.Series({"a": 0.9, "b": 0.75}))
    assert "lost 10.0% (`a`) to 25.0% (`b`)" in told


def test_words_of_sentences_keep_their_places_where_numbers_move_a_little(bench, monkeypatch):
    def told(costs):
        alone = {f"h.0.{kind}": cost for kind, cost in zip(KINDS, costs)}
        monkeypatch.setattr(chapter, "damage", lambda *_: alone)
        return re.findall("`(.*?)`", lesson.about_worth(bench))

    assert told([1, 1.01, 3, 3, 3, 9, 9.01]) == told([1.01, 1, 3, 3, 3, 9, 9.01])
    assert told([1, 1.01, 3, 3, 3, 9, 9.01]) == ["q_proj", "k_proj", "up_proj", "down_proj", "down_proj"]
    assert [lesson.in_words(value) for value in (14.76, 1000.0, 63471.5)] == ["14.8", "1000.0", "> 1 000"]


def test_a_loss_that_falls_does_not_rise_by_less_than_nothing():
    told = lesson.about_eight_bits(-0.0032, 0.074, 0.9)
    assert (
        "changes by -0.0032 nats" in told
        and "changes by +0.074, at 90%" in told
        and "Eight bits are the better" in told
    )
    assert "Here low rank costs less." in lesson.about_eight_bits(0.1, 0.05, 0.9)
    other = pd.DataFrame({"test text": [1.0, 2.0], "other sentences": [0.5, 3.0]}, index=["a", "b"])
    assert lesson.about_elsewhere(other) == (
        "On the other sentences a costs less than on the test text. On the other sentences b costs more than on the test text."
    )


def test_exercises_accept_what_is_right_and_nothing_else(bench, capsys):
    assert check({"gate_proj": 19, "q_proj": 15}, lesson.largest_ranks(bench))
    assert not check({"gate_proj": 20, "q_proj": 16}, lesson.largest_ranks(bench))
    counts = lesson.cut_counts(bench, (0.9, 0.6))
    assert counts == {share: len(bench.plan("exact", share)[0]) for share in (0.9, 0.6)} and counts[0.9] < counts[0.6]
    plan = bench.plan("exact", 0.6)[0]
    few = chapter.Bench(
        bench.language, dataclasses.replace(bench.calibration, ids=bench.calibration.ids[:1]), bench.test
    )
    rise = perplexity.perplexity(few.small(plan, "data-aware"), bench.test).loss - bench.dense
    right = lesson.rise_from(bench, plan, 1)
    assert check(rise, test=right) and not check(rise + 0.3 * abs(rise), test=right)
    assert not check(bench.measured("exact", "data-aware", 0.6)["rise"] * 10, test=right)


def test_the_weighted_spectrum_is_that_of_the_symmetric_roots(bench):
    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    name = bench.names[3]
    metric = bench.profile.metric_of([name])[name].double()
    second = bench.profile.moments_of([name])[name].second_moment
    weight = bench.profile.model.get_submodule(name).weight.detach().double()
    by_hand = torch.linalg.svdvals(root(metric) @ weight @ root(second))
    found = lesson.weighted_spectrum(bench, name)
    assert torch.allclose(found, by_hand, rtol=1e-4, atol=1e-6 * float(by_hand[0]))
    (axis,) = lesson.spectra_by_weight(torch.linalg.svdvals(weight), found, name).axes
    assert len(axis.get_lines()) == 2 and np.allclose(axis.get_lines()[1].get_ydata()[0], 1)
    (axis,) = lesson.spectra_by_weight(torch.linalg.svdvals(weight), ..., name).axes
    assert len(axis.get_lines()) == 1 and "no answer" in axis.texts[-1].get_text()


def test_a_text_goes_on_with_the_network_that_is_given(bench):
    small = bench.small(bench.plan("one share", 0.6)[0], "svd")
    assert lesson.continued(bench.language, bench.language.model, "ab", 4) == language.complete(bench.language, "ab", 4)
    assert lesson.continued(bench.language, small, "ab", 4) == language.complete(
        dataclasses.replace(bench.language, model=small), "ab", 4
    )
