"""Chapter 04: the experiment's rows, and what figures and tables read from them."""

import json

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from lowrank_utils import paths
from lowrank_utils.factors import ddlr_network
from lowrank_utils.factors.ddlr import solve
from lowrank_utils.lab import columns, data, score, training
from lowrank_utils.workbook import controls, gallery, plots
from lowrank_utils.workbook.chapters import arsvd, ddlr, ddlr_lesson
from lowrank_utils.workbook.tables import thousands

ABOUT = {"dataset": "digits", "network": "toy", "seed": 0}


@pytest.fixture(scope="module")
def images():
    return data.load("digits", seed=0)


@pytest.fixture(scope="module")
def model(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    x, y = images.tensors("train")
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def rows(images, model):
    options = {"tolerance": 0.05, "max_seconds": 5}
    return ddlr.experiment(
        images, model, epsilon=0.3, epsilons=[0.3, 0.5], samples=60, calibration_images=60, options=options, shares=(0.3, 0.6), **ABOUT
    )  # fmt: skip


def test_each_row_is_one_network_in_columns(rows):
    columns.check(rows)
    keys = [*columns.RUN, *columns.KEY]
    assert not rows.duplicated([key for key in keys if key in rows]).any()
    assert (rows["chooser"] == "dense").sum() == 1 and set(rows["notebook"]) == {"04_ddlr"}
    assert rows["accuracy"].between(0, 1).all() and rows["valid_accuracy"].notna().all()


def test_sizes_are_met_and_the_rest_is_said(rows):
    sized = rows[rows["budget_kind"] == "kept"]
    assert (sized["parameters_kept"] <= sized["budget"]).all()
    assert {"energy", "component output"} <= set(sized["chooser"])
    sparse = sized[sized["chooser"] == "Net-Trim"]
    assert (sparse["parameters_kept"] == sparse["stored"]).all() and len(sparse)
    posed = rows[(rows["budget_kind"] == "epsilon") & (rows["chooser"] == "DDLR")]
    posed = posed[posed["program"] != "epsilon by layer"]
    steps = posed[(posed["scope"] == "hidden layers") & (posed["budget"] == 0.3)]
    assert len(steps) == 8 and set(steps["program"]) == {"as posed", "cascade", "reweighted", "free bias"}
    assert steps.loc[steps["cut"] == "fixed", "cut_below"].tolist() == [0.05] * 4
    assert posed.loc[posed["scope"] == "every layer", "budget"].tolist() == [0.3, 0.5]


def test_both_programs_have_a_curve_of_their_own(rows):
    for chooser in ("DDLR", "Net-Trim"):
        for scope in ("every layer", "hidden layers"):
            curve = ddlr.as_posed(rows, chooser, scope)
            curve = curve[curve["budget_kind"] == "epsilon"].set_index("budget")
            assert sorted(curve.index) == [0.3, 0.5]
            assert curve.loc[0.5, "parameters_kept"] < curve.loc[0.3, "parameters_kept"]
    trimmed = rows[(rows["chooser"] == "Net-Trim") & (rows["budget_kind"] == "epsilon")]
    by = trimmed.pivot_table("parameters_kept", ["scope", "budget"], "stored_as")
    assert (by["non-zeros"] < by["sparse"]).all()  # indices are stored beside the weights


def test_net_trim_as_posed_is_counted_with_and_without_its_indices(rows):
    with_them, alone = (ddlr.as_posed(rows, "Net-Trim", "every layer", indices) for indices in (True, False))
    assert set(with_them["stored_as"]) == {"sparse"} and set(alone["stored_as"]) == {"non-zeros"}
    both = with_them.merge(alone, on=["budget", "accuracy"], suffixes=("", "_alone"))
    assert len(both) == 2 and (both["parameters_kept_alone"] < both["parameters_kept"]).all()
    posed = [claim for claim in ddlr.CLAIMS if claim.posed and claim.paper == "Net-Trim"]
    assert len(posed) == 4 and len({claim.setting for claim in posed}) == 4


def test_an_epsilon_for_each_layer_takes_no_more_than_one_for_all(rows):
    for scope in ("every layer", "hidden layers"):
        alike = ddlr.as_posed(rows, "DDLR", scope)
        alike = alike[alike["budget_kind"] == "epsilon"].set_index("budget")["parameters_kept"]
        each = rows[(rows["program"] == "epsilon by layer") & (rows["scope"] == scope)].set_index("budget")
        assert sorted(each.index) == sorted(alike.index) == [0.3, 0.5]
        assert (each["parameters_kept"] <= alike[each.index]).all() and (each["gap"] <= 1e-12).all()
        chosen = [json.loads(text) for text in each["plan"]]
        assert all(set(one) <= {"1", "3"} and set(one.values()) <= {0.3, 0.5} for one in chosen)
        assert scope == "every layer" or not any("3" in one for one in chosen)


def test_every_row_says_which_test_images_are_right(rows, images):
    right = [score.unpacked(text) for text in rows["correct"]]
    assert {len(one) for one in right} == {len(images.test)}
    assert [one.mean() for one in right] == pytest.approx(rows["accuracy"].tolist())


def test_a_refit_helps_the_answer_that_it_refits(rows):
    steps = rows[(rows["scope"] == "hidden layers") & (rows["budget_kind"] == "epsilon") & (rows["chooser"] == "DDLR")]
    steps = steps[(steps["budget"] == 0.3) & (steps["program"] == "as posed")]
    by = steps.set_index("refit")
    assert by.loc["least squares", "valid_accuracy"] >= by.loc[by["cut"] == "fixed"].loc["none", "valid_accuracy"]


def test_names_in_words_are_those_of_tables_and_figure(rows):
    shown = ddlr.named(rows)
    assert set(shown["method"]) <= set(ddlr.METHODS) and "dense" not in set(shown["chooser"])
    assert len(shown) == len(rows) - 24  # the dense network, eight steps, and fifteen programs as posed
    drawn = shown["method"].isin(ddlr.COMPARED)
    assert ddlr.usable(rows).sum() == drawn.sum() < len(shown)
    table = ddlr.accuracy_at(rows, (0.3,))
    assert list(table) == ["kept 0.30"] and "%" in table.loc["ARSVD", "kept 0.30"]
    labels = {text for axis in ddlr.figure(rows).axes for text in axis.get_legend_handles_labels()[1]}
    assert {"ARSVD", "data-aware"} <= labels <= set(ddlr.COMPARED)
    assert list(ddlr.tables(rows)) == list(ddlr.CAPTIONS)


def test_a_size_that_one_seed_did_not_reach_is_left_out(rows):
    more = pd.concat([rows, rows[rows["budget"] != 0.3].assign(seed=1)], ignore_index=True)
    assert not ddlr.usable(more)[more["budget"] == 0.3].any()
    assert ddlr.usable(more)[(more["budget"] == 0.6) & (more["chooser"] == "energy")].all()


@pytest.fixture(scope="module")
def solved(images, model):
    options = {"tolerance": 0.05, "max_seconds": 5}
    lab = ddlr.laboratory(images, model, samples=60, calibration_images=100, options=options, **ABOUT)
    answers = {
        kind: ddlr_network.solve_network(lab.samples, 0.3, penalty=kind, **options) for kind in ("nuclear", "l1")
    }
    return lab, answers


def test_certificates_are_those_of_the_solutions(solved):
    lab, answers = solved
    found = ddlr_lesson.certificates(lab, answers["nuclear"])
    assert found.index.tolist() == lab.layers == ["1", "3"] and found["full rank"].tolist() == [24, 10]
    assert (found["bound"] <= found["norm"]).all() and (found["rank"] <= found["full rank"]).all()
    assert found.loc["1", "relative gap"] == answers["nuclear"]["1"].relative_gap


def test_a_layer_is_stored_in_three_ways_that_compute_what_they_should(solved):
    lab, answers = solved
    layers = ddlr_lesson.as_stored(lab, answers["nuclear"], answers["l1"], "1", share=0.5)
    dense, rows_, thin = layers.values()
    x = torch.rand(7, 64)
    assert torch.equal(dense(x), lab.model[1](x))
    filled = rows_.weight.to_dense()
    assert torch.allclose(rows_(x), x @ filled.T + rows_.bias, atol=1e-5)
    assert 0 < rows_.weight.values().numel() == int(filled.count_nonzero()) < 0.5 * lab.size
    weights = sum(m.weight.numel() for m in thin.modules() if isinstance(m, nn.Linear))
    assert weights < 0.5 * lab.size and thin(x).shape == (7, 24)


def test_layers_are_timed_in_turn():
    times = ddlr_lesson.milliseconds({"wide": nn.Linear(500, 4000), "narrow": nn.Linear(500, 4)}, 500)
    assert times.index.tolist() == ["wide", "narrow"] and times.columns.tolist() == ["batch 1", "batch 64"]
    assert (times.loc["narrow"] < times.loc["wide"]).all() and (times > 0).all(axis=None)


# ---- the lesson


MORE, EPSILONS = list(ddlr.CAPTIONS)[2:]
CONTROLS = {"random ranks", "from scratch", *ddlr.TRAINED_FURTHER.values()}


def cells_of(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_both_programs_and_the_variants_are_shown_at_each_epsilon(rows):
    head = ddlr.tables(rows)[EPSILONS].splitlines()[0]
    assert [cell.strip() for cell in head.split("|")[4:-1]] == [*ddlr.POSED, *ddlr.VARIANTS]
    low, high = cells_of(ddlr.tables(rows)[EPSILONS])
    assert low[:3] == ["digits", "toy", "0.3"] and high[2] == "0.5"
    one = ddlr.as_posed(rows, "DDLR", "every layer").set_index("budget")
    assert low[3] == "{:.1f} / {:.1f}".format(*(100 * one.loc[0.3, ["parameters_kept", "accuracy"]]))
    alone, both = (ddlr.as_posed(rows, "Net-Trim", "hidden layers", way).set_index("budget") for way in (False, True))
    sizes = [100 * part.loc[0.5, "parameters_kept"] for part in (alone, both)]
    assert high[6] == f"{sizes[0]:.1f} ({sizes[1]:.1f}) / {100 * both.loc[0.5, 'accuracy']:.1f}"
    (free,) = rows[rows["program"] == "free bias"].to_dict("records")
    assert low[8] == f"{100 * free['parameters_kept']:.1f} / {100 * free['accuracy']:.1f}"
    assert "-" not in low[3:] and high[7:] == ["-"] * 3
    other = pd.concat([rows, rows[rows["budget"] != 0.5].assign(seed=1)])
    low, high = cells_of(ddlr.tables(other)[EPSILONS])
    assert "-" not in low and high[3:] == ["-"] * 7  # one seed alone has the larger epsilon


def end_names(axis):
    return {text.get_text() for text in axis.texts}


def test_curves_of_both_programs_are_named_at_their_ends(rows):
    (axis,) = ddlr_lesson.own_curves(rows).axes
    names = {f"{program}, {where}" for program in ("DDLR", "Net-Trim") for where in ("every layer", "classifier dense")}
    assert end_names(axis) == names and len(axis.lines) == 4
    (empty,) = ddlr_lesson.own_curves(rows[rows["budget"] != 0.5]).axes
    assert end_names(empty) == {"no program has answers at two values of epsilon"}


def test_one_epsilon_for_all_and_one_a_layer_have_a_panel_a_scope(rows):
    panels = ddlr_lesson.one_or_each(rows).axes
    assert [axis.get_title() for axis in panels] == ["every layer", "classifier dense"]
    assert all({"one for all", "one a layer"} <= end_names(axis) for axis in panels)


def test_the_figure_of_equal_sizes_has_a_colour_a_method_and_says_when_it_is_empty(rows):
    (axis,) = ddlr.programs(rows).axes
    looks = [(line.get_color(), line.get_marker()) for line in axis.lines]
    assert len(set(looks)) == len(looks) >= 5
    assert axis.get_xlim()[0] > axis.get_xlim()[1]  # sizes fall to the right
    (empty,) = ddlr.programs(rows[rows["chooser"] == "dense"]).axes
    assert end_names(empty) == {"no method reached a size in every seed"}


def test_all_methods_of_the_figure_have_colours_of_their_own():
    looks = {name: (plots.colour_of(name), name in plots.DASHED) for name in ddlr.COMPARED}
    assert len(set(looks.values())) == len(ddlr.COMPARED) == 9
    assert len({colour for colour, _ in looks.values()}) == 7  # with and without a refit a program keeps its colour


def test_points_lost_are_means_over_seeds(rows):
    one = ddlr.as_posed(rows, "DDLR", "every layer")
    both = pd.concat([rows, rows.assign(seed=1, accuracy=rows["accuracy"] - 0.1)], ignore_index=True)
    line = ddlr.mean_lost(both, ddlr.as_posed(both, "DDLR", "every layer"))
    dense = rows.loc[rows["chooser"] == "dense", "accuracy"].iloc[0]
    wanted = (100 * (dense - one.set_index("budget")["accuracy"])).clip(lower=ddlr.LEAST)
    assert line["mean"].to_dict() == pytest.approx(wanted.to_dict())  # the second seed's dense network is as much lower
    assert line["kept"].is_monotonic_increasing


def test_sentences_hold_the_numbers_of_the_rows(rows):
    sizes = ddlr_lesson.own_sizes(rows)
    assert sizes.index.tolist() == [
        "DDLR, classifier dense", "DDLR, every layer", "Net-Trim, classifier dense", "Net-Trim, every layer"
    ]  # fmt: skip
    said = ddlr_lesson.about_layers(rows)
    assert "of 2 cases" in said and "every layer under the program" in said
    means = 100 * ddlr.named(rows).query("budget == 0.3").groupby("method")["accuracy"].mean()
    line = ddlr_lesson.about_equal_size(rows, (0.3,))
    assert f"{means.max():.1f} %" in line and means.idxmax() in line
    verdict = ddlr_lesson.about_verdict(rows)
    by = ddlr.named(rows).pivot_table("accuracy", "budget", "method")
    gain = 100 * (by["DDLR, cut, refit"] - by["ARSVD"]).dropna()
    assert f"| ARSVD | {(gain > 0).sum()} of {len(gain)} | {ddlr_lesson._signed(gain.mean())} |" in verdict
    nothing = rows[rows["chooser"] == "dense"]
    assert "no epsilon for each layer" in ddlr_lesson.about_layers(nothing)
    assert ddlr_lesson.about_verdict(nothing).startswith("No network of DDLR")
    assert "no network of DDLR" in ddlr_lesson.about_equal_size(nothing, (0.1,))


@pytest.fixture(scope="module")
def controlled(images):
    model, _ = training.trained(images, "lenet300", 0, device="cpu")
    patch = pytest.MonkeyPatch()
    patch.setattr(training, "recipe_for", lambda *_: training.Recipe(epochs=2, batch_size=64))
    options = {"tolerance": 0.05, "max_seconds": 5}
    about = {"dataset": "digits", "network": "lenet300", "seed": 0, "samples": 60, "calibration_images": 60}
    yield ddlr.experiment(
        images, model, epsilon=0.3, epsilons=[0.3, 0.5], options=options, shares=(0.02, 0.05, 0.1), controls=True, training_steps=5, **about
    )  # fmt: skip
    patch.undo()


def test_controls_are_rows_of_their_own_that_no_other_reader_sees(controlled):
    columns.check(controlled)
    cut = controlled[controlled["chooser"] != "dense"]
    assert cut[["accuracy_corrupted", "memory_64", "latency_ms_1", "correct"]].notna().all(axis=None)
    random = ddlr.of_control(controlled, "random")
    assert (
        random["budget"].tolist() == [0.05, 0.1] and (random["factors"] == "fisher-weighted").all()
    )  # 2 % is out of reach
    tuned = controlled[controlled["tuned"] == "fine-tuned"]
    assert tuned["chooser"].tolist() == ["component output", "random", "DDLR", "Net-Trim"] and set(tuned["budget"]) == {
        0.1
    }
    assert (tuned["steps"] == 5).all() and (tuned["needs"] == "labels").all()
    before = ddlr.named(controlled).set_index(["method", "budget"])["parameters_kept"]
    sizes = tuned.set_index("chooser")["parameters_kept"]
    for chooser, method in (("DDLR", "DDLR, cut, refit"), ("Net-Trim", "Net-Trim, cut, refit, with indices")):
        assert sizes[chooser] == before[method, 0.1]
    scratch = ddlr.of_control(controlled, "from scratch")
    assert scratch["parameters_kept"].tolist() == [sizes["component output"]]
    left = controlled[(controlled["tuned"] == "none") & (controlled["chooser"] != "random")]
    tables, before = ddlr.tables(controlled), ddlr.tables(left)
    more = tables.pop(MORE), before.pop(MORE)
    assert tables == before
    assert {tuple(line) for line in cells_of(more[0])} - {tuple(line) for line in cells_of(more[1])} == {
        tuple(line) for line in cells_of(more[0]) if line[2] in CONTROLS and line[3] != "-"
    }
    assert ddlr.accuracy_at(controlled).equals(ddlr.accuracy_at(left))
    assert (ddlr.usable(controlled)[left.index] == ddlr.usable(left)).all() and ddlr.usable(
        controlled
    ).sum() == ddlr.usable(left).sum()


def test_more_than_accuracy_is_shown_of_each_method_and_control(controlled):
    found = {line[2]: line[3:] for line in cells_of(ddlr.tables(controlled)[MORE])}
    assert [name for name in found if name not in CONTROLS] == ["dense", *ddlr_lesson.BESIDE]
    at = controlled[controlled["budget"] == 0.1]
    named = {"dense": controlled[controlled["chooser"] == "dense"]}
    named |= {name: part for name, part in ddlr.named(at).groupby("method") if name in found}
    tuned = at[at["tuned"] == "fine-tuned"].set_index("chooser")
    named |= {
        f"{words.partition(', cut')[0]}, fine-tuned": tuned.loc[[name]] for name, words in ddlr_lesson.TUNED.items()
    }
    named |= {"random ranks": ddlr.of_control(at, "random"), "from scratch": at[at["tuned"] == "from scratch"]}
    assert set(named) == set(found)
    for name, part in named.items():
        one = part.iloc[0]
        shares = [f"{100 * one[column]:.1f}" for column in ("accuracy", "accuracy_corrupted")]
        assert found[name] == [*shares, f"{one['faster_64']:.1f}", f"{one['memory_64']:.2f}"] and len(part) == 1
    assert found["dense"][2] == "1.0" and float(found["Fisher-weighted"][3]) < float(found["dense"][3])


def test_what_was_not_measured_in_every_seed_is_a_dash(controlled):
    second = controlled.assign(seed=1, accuracy=controlled["accuracy"] - 0.1)
    both = pd.concat([controlled, second], ignore_index=True)
    found = {line[2]: line[3:] for line in cells_of(ddlr.tables(both)[MORE])}
    whole = controlled.loc[controlled["chooser"] == "dense", "accuracy"].item()
    assert found["dense"][0] == f"{100 * whole - 5:.1f}"
    older = controlled.drop(columns="memory_64")
    found = {line[2]: line[3:] for line in cells_of(ddlr.tables(older)[MORE])}
    assert {line[3] for line in found.values()} == {"-"} and "-" not in {line[0] for line in found.values()}
    mixed = both.assign(memory_64=both["memory_64"].where(both["seed"] == 0))
    found = {line[2]: line[3:] for line in cells_of(ddlr.tables(mixed)[MORE])}
    assert {line[3] for line in found.values()} == {"-"}
    one_lacks = both[(both["seed"] == 0) | (both["tuned"] != "from scratch")]
    found = {line[2]: line[3:] for line in cells_of(ddlr.tables(one_lacks)[MORE])}
    assert found["from scratch"] == ["-"] * 4 and found["dense"][0] != "-"
    gone = both.assign(rate=both["rate"].where((both["seed"] == 0) | (both["chooser"] != "DDLR")))
    found = {line[2]: line[3:] for line in cells_of(ddlr.tables(gone)[MORE])}
    assert found["DDLR, fine-tuned"] == ["-"] * 4 and found["Net-Trim, fine-tuned"] != ["-"] * 4


def test_controls_stand_beside_the_programs_and_are_counted(controlled):
    def cells(rows):
        head, table, told = ddlr_lesson.about_controls(rows).split("\n\n")
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
        return {tuple(line[:2]): line[2:] for line in lines}, told, head

    def accuracy(rows, size):
        return f"{100 * rows.loc[rows['budget'] == size, 'accuracy'].item():.1f}"

    found, told, head = cells(controlled)
    assert f"the dense network has {100 * controlled['accuracy'].iloc[0]:.1f}. For seed 0." in head
    random, tuned, scratch = (ddlr.of_control(controlled, which) for which in ("random", "fine-tuned", "from scratch"))
    assert found["random ranks", "no"] == ["-", accuracy(random, 0.1), accuracy(random, 0.05)]
    fresh = ("fresh weights, the ranks of Fisher-weighted", "2 epochs")
    assert found[fresh] == ["-", accuracy(scratch, 0.1), "-"]
    after = tuned.set_index("chooser")["accuracy"]
    for chooser, words in ddlr_lesson.TUNED.items():
        assert found[words, "5 steps"] == ["-", f"{100 * after[chooser]:.1f}", "-"]
    mine = ddlr.named(controlled).set_index(["method", "budget"])["accuracy"]
    chance = random.set_index("budget")["accuracy"]
    gains = {size: 100 * (mine["Fisher-weighted", size] - chance[size]) for size in (0.1, 0.05)}
    points = [f"{gains[size]:+.1f}".replace("+0.0", "0.0") for size in (0.1, 0.05)]
    assert "{} at 10% kept, {} at 5% kept".format(*points) in told
    assert f"Random ranks are ahead in {sum(gain < 0 for gain in gains.values())} of 2 networks" in told
    before = [mine[name, 0.1] for name in ddlr_lesson.BESIDE] + [chance[0.1]]
    apart = [100 * (max(values) - min(values)) for values in (before, after)]
    assert f"lie {apart[0]:.1f} points apart at 10% kept as they are, and {apart[1]:.1f} points after 5 steps" in told
    value = scratch["accuracy"].item()
    beaten = [int(value > one) for one in (mine["DDLR, cut, refit", 0.1], after["DDLR"], after["component output"])]
    assert "{} of 1 networks; of the same network fine-tuned in {} of 1; and of fine-tuned".format(*beaten) in told
    assert f"of the same ranks in {beaten[2]} of 1." in told
    lucky = controlled.assign(accuracy=controlled["accuracy"].where(controlled["chooser"] != "random", 1.0))
    assert "Random ranks are ahead in 2 of 2 networks" in cells(lucky)[1]
    other = controlled.assign(seed=1, accuracy=controlled["accuracy"] - 0.1)
    high, low = random["accuracy"].iloc[0], random["accuracy"].iloc[0] - 0.1
    both, _, head = cells(pd.concat([controlled, other]))
    assert both["random ranks", "no"][2] == f"{50 * (high + low):.1f} ({100 * low:.1f} to {100 * high:.1f})"
    assert "Means over 2 seeds" in head
    one_lacks = cells(pd.concat([controlled, other[other["tuned"] != "from scratch"]]))[0]
    assert one_lacks.pop(fresh) == ["-", "-", "-"] and both.pop(fresh) != ["-", "-", "-"] and one_lacks == both
    none = controlled[controlled["chooser"] != "random"]
    assert ddlr_lesson.about_controls(none).startswith("These rows hold no control.")
    plain = ddlr_lesson.about_controls(controlled[controlled["tuned"] == "none"])
    assert "steps" not in plain and "Fine-tuning" not in plain and "The choice of ranks" in plain


def test_the_gallery_names_its_magnitude_pruning_beside_the_rows(controlled):
    rows = gallery.published_rows(dataset="fashion-mnist", notebook="04_ddlr", network="lenet300")
    known = controls.published()
    known = known[(known["network"] == "lenet300") & (known["bits"] == 32)].set_index("budget")
    known = known.loc[(known["tuned"] == "fine-tuned") & (known["chooser"] == "magnitude"), "accuracy"]
    more = controlled[controlled["chooser"] == "random"].assign(dataset="fashion-mnist")
    told = ddlr_lesson.about_controls(pd.concat([rows[rows["seed"] == 0], more]))
    assert (
        f"indices): {known[0.05]:.1%} at 5% kept, {known[0.1]:.1%} at 10% kept, {known[0.2]:.1%} at 20% kept." in told
    )


def test_controls_are_judged_as_claims_and_no_other_claim_reads_them(controlled):
    claims = {claim.claim: claim for claim in ddlr.CLAIMS if claim.claim.startswith("control")}
    ranks, random, scratch = claims.values()
    for claim in claims.values():
        assert claim.measure(controlled[:0]) is None
    plain = controlled[(controlled["tuned"] == "none") & (controlled["chooser"] != "random")]
    assert random.measure(plain).said == "not measured: no row of random ranks"
    assert scratch.measure(plain).said == "not measured: no row of DDLR, fine-tuned and of training from scratch"
    for claim in (ranks, random):
        found = claim.measure(controlled)
        assert found.counted == 2 and "against random ranks" in found.said and found.paired_by == ("images",) * 2
    assert ranks.measure(controlled).said != random.measure(controlled).said
    found = scratch.measure(controlled)
    assert found.counted == 1
    assert list(found.left_out.values()) == ["no row of DDLR, fine-tuned and of training from scratch"]
    apart = controlled[(controlled["chooser"] != "random") | (controlled["budget"] != 0.05)]
    assert list(random.measure(apart).left_out.values()) == ["no row of random ranks"]
    others = [claim for claim in (*ddlr.CLAIMS, *arsvd.CLAIMS) if claim.claim not in claims]
    for claim in others:
        assert claim.measure(controlled) == claim.measure(plain), claim.claim


def test_only_training_that_diverged_altogether_is_left_out(controlled):
    scratch = next(claim for claim in ddlr.CLAIMS if "from scratch" in claim.claim)
    one_rate = controlled.assign(
        note=controlled["tuned"].map({"fine-tuned": "Diverged at a rate of 0.003."}).astype(object)
    )
    assert scratch.measure(one_rate) == scratch.measure(controlled)
    assert ddlr_lesson.about_controls(one_rate) == ddlr_lesson.about_controls(controlled)
    lost = {
        "DDLR, fine-tuned": one_rate.assign(rate=None),
        "training from scratch": controlled.assign(note=controlled["tuned"].map({"from scratch": "Training diverged"})),
    }
    for side, rows in lost.items():
        found = scratch.measure(rows)
        assert found.said == f"not measured: training diverged: {side}" and found.holds == "-"
        assert f"lenet300, budget 0.1 (training diverged: {side})" in found.counts
        assert "budget 0.2 (no row of DDLR, fine-tuned and of training from scratch)" in found.counts
    none = lost["training from scratch"].query("tuned != 'fine-tuned'")
    assert scratch.measure(none).said == "not measured: no row of DDLR, fine-tuned"


def test_one_seed_whose_training_diverged_is_named_beside_the_others(controlled):
    scratch = next(claim for claim in ddlr.CLAIMS if "from scratch" in claim.claim)
    second = controlled.assign(seed=1)
    worse = second.assign(rate=second["rate"].where(second["chooser"] != "DDLR"))
    found = scratch.measure(pd.concat([controlled, worse]))
    assert (
        found.said
        == f"{scratch.measure(controlled).said}; digits, lenet300, budget 0.1, seed 1: training diverged (DDLR, fine-tuned)"
    )
    assert found.counted == 1 and found.counts == scratch.measure(controlled).counts
    first = controlled.assign(note=controlled["tuned"].map({"from scratch": "Training diverged"}))
    apart = scratch.measure(pd.concat([first, worse]))
    assert apart.said == "not measured: no seed that both have"


@pytest.fixture(scope="module")
def stepped(solved):
    lab, answers = solved
    return ddlr.steps(lab, answers["nuclear"], 0.3)[1]


def test_steps_are_told_and_drawn_from_their_table(stepped):
    figure = ddlr_lesson.step_bars(stepped, 0.9)
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == pytest.approx(stepped["kept %"].tolist())
    assert [bar.get_width() for bar in right.patches] == pytest.approx((90 - stepped["valid accuracy %"]).tolist())
    said = ddlr_lesson.about_steps(stepped, 0.9, 0.3)
    kept, accuracy = stepped.loc["as posed", ["kept %", "valid accuracy %"]]
    assert f"{kept:.1f} % of the parameters stay and {90 - accuracy:.1f} points are lost" in said
    assert stepped.loc[["as posed", "free bias", "reweighted"], "feasible"].all()


def test_spectra_are_drawn_before_and_after(solved):
    lab, answers = solved
    figure = ddlr_lesson.spectra(lab, answers["nuclear"], 0.05)
    assert [axis.get_title() for axis in figure.axes] == ["1", "3"]
    before, after, cut = figure.axes[0].lines
    assert len(before.get_ydata()) == 24 and len(after.get_ydata()) <= 24
    assert cut.get_ydata()[0] == pytest.approx(0.05 * after.get_ydata()[0])
    said = ddlr_lesson.about_spectra(lab, answers["nuclear"])
    assert "In 1 the sum of the singular values falls from" in said
    assert f"which the table above counts too, there are {answers['nuclear']['1'].rank}." in said


@pytest.mark.parametrize(
    ("program", "fit", "said"),
    [(0.896, 0.897, "-0.1 points. Less than 0.5 points count as level. So at these ranks the directions of the program and those of the fit cannot be told apart on so many images"),
     (0.80, 0.897, "-9.7 points. Less than 0.5 points count as level. So at these ranks the relaxation costs accuracy"),
     (0.897, 0.80, "+9.7 points. Less than 0.5 points count as level. So at these ranks the program finds the better")],
)  # fmt: skip
def test_the_cost_of_the_relaxation_is_told_from_the_accuracies(program, fit, said):
    told = ddlr_lesson.about_relaxation(0.303, program, fit, 5000)
    assert (
        said in told
        and "With 30.3% of the parameters, on 5,000 validation images" in told
        and f"ReLU-aware {fit:.1%}" in told
    )


def test_outputs_and_units_are_drawn(solved):
    lab, answers = solved
    inputs, _, _ = ddlr_network.layer_data(lab.samples, "1")
    original = ddlr_network.matrix(lab.model[1])
    figure = ddlr_lesson.kept_outputs(inputs, original, {"new": answers["nuclear"]["1"].weights})
    (axis,) = figure.axes
    on, off = axis.lines[:2]
    assert (on.get_xdata() > 0).all() and (off.get_xdata() <= 0).all() and off.get_ydata().max() <= 1e-6
    rows_of_images = {"original": original[:-1], "new": answers["l1"]["1"].weights[:-1]}
    assert len(ddlr_lesson.units_as_images(rows_of_images, (1, 8, 8)).axes) == 2 * ddlr_lesson.DRAWN
    assert len(ddlr_lesson.units_as_images({"hidden": torch.rand(24, 3)}, (1, 8, 8)).axes) == 3  # not pixels


def test_the_exercises_have_their_answers(solved):
    lab, _ = solved
    falls = ddlr_lesson.rank_falls([5, 3, 1])
    for rank, epsilon in ((2, falls["to 2"]), (1, falls["to 1"])):
        for side, wanted in ((0.98, rank + 1), (1.02, rank)):
            found = solve(
                torch.eye(3), torch.diag(torch.tensor([5.0, 3.0, 1.0])), side * epsilon, relu=False, tolerance=1e-7
            )
            assert int((torch.linalg.svdvals(found.weights) > 1e-3).sum()) == wanted
    errors = ddlr_lesson.errors_elsewhere(lab, "1", [20, 100], 0.3)
    assert errors[0] > errors[1] > 0.3
    (axis,) = ddlr_lesson.error_curve([20, 100], 0.3, errors).axes
    assert axis.lines[-1].get_ydata().tolist() == errors
    for answer in (..., [1.0], "a text"):
        (axis,) = ddlr_lesson.error_curve([20, 100], 0.3, answer).axes
        assert "no answer of 2 numbers yet" in end_names(axis)
    with pytest.raises(TypeError, match="layer '2' is a ReLU, not linear"):
        ddlr_lesson.linear_layer(lab, "2")


def test_the_bound_of_the_exercise_is_one_and_is_met_by_its_own_multiplier():
    x, y = torch.eye(2).double(), torch.diag(torch.tensor([3.0, 4.0])).double()
    least = solve(x, y, 0.2, penalty="l1", tolerance=1e-7).objective
    multipliers = [torch.diag(torch.tensor([1.0, c])).double() for c in (0.2, 1.0, 3.0)]
    bounds = [ddlr_lesson.l1_bound(x, y, g, 0.2) for g in multipliers]
    assert max(bounds) <= least * (1 + 1e-6) and bounds[1] == pytest.approx(least, rel=1e-5)  # both shrink by as much


def test_errors_elsewhere_are_told():
    said = ddlr_lesson.about_errors([75, 300, 1200], 0.1, [0.2, 0.15, 0.11], 301)
    assert "falls from 0.200 with 75 samples to 0.110 with 1,200" in said
    assert "The layer has 301 inputs; with 300 samples the error is 0.150, where epsilon is 0.1." in said


def test_speed_is_told_from_the_times():
    times = pd.DataFrame({"batch 1": [1.0, 2.0, 0.5], "batch 64": [4.0, 1.0, 2.0]}, index=["dense", "sparse", "thin"])
    said = ddlr_lesson.about_speed(times)
    assert "sparse rows take 2.00 times as long" in said and "64 images: sparse rows take 0.25 times" in said


def test_published_rows_are_shown_where_they_hold_both_curves(rows):
    assert ddlr_lesson.richer(rows, rows[:1]) is rows
    assert ddlr_lesson.about_source(rows, rows) == "the gallery: seed 0, 2 values of epsilon"
    older, here = rows[rows["chooser"] != "Net-Trim"], rows[rows["budget"] != 0.5]
    assert ddlr_lesson.richer(older, here) is here
    assert ddlr_lesson.about_source(here, older) == "this run: seed 0, 1 values of epsilon"
    assert ddlr_lesson.richer(rows[:0], here) is here


@pytest.mark.parametrize("path", sorted(paths.PRESETS.glob("ddlr-*.yaml")), ids=lambda path: path.stem)
def test_presets_have_a_curve_and_give_all_methods_the_same_images(path):
    preset = yaml.safe_load(path.read_text())
    assert min(preset["epsilons"]) < 0.1 and 0.1 in preset["epsilons"] and len(preset["epsilons"]) >= 6
    assert preset["samples"] == preset["calibration_images"]


def test_the_caption_names_how_many_images_notebook_02_takes():
    rows = gallery.published_rows(notebook="02_arsvd")
    assert (rows["factors"] == "data-aware").any() and (rows["chooser"] == "energy").any()
    seen = {
        (name, json.loads(text)["calibration_images"])
        for name, text in rows[["dataset", "run_parameters"]].drop_duplicates().itertuples(index=False)
    }
    caption = next(iter(ddlr.CAPTIONS.values()))
    for name, count in seen:
        words = thousands(count) + " of CIFAR" * name.startswith("cifar")
        assert words in caption, (name, count)
