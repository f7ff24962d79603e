"""The rules of a verdict, against cases that can be counted by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_utils.lab.score import packed
from lowrank_utils.workbook import paired_tests, verdicts

RUN = {"dataset": "mnist", "network": "lenet300", "seed": 0}


def curve(points, **about):
    """Rows of one method: (kept, valid accuracy, test accuracy) of each network."""
    names = ["parameters_kept", "valid_accuracy", "accuracy"]
    return pd.DataFrame([RUN | about | {"budget": p[0]} | dict(zip(names, p, strict=True)) for p in points])


DENSE = curve([(1.0, 0.90, 0.89)])
CURVE = curve([(0.6, 0.90, 0.885), (0.4, 0.892, 0.87), (0.3, 0.889, 0.88), (0.2, 0.881, 0.86), (0.1, 0.5, 0.89)])


# ---- the smallest size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "points, chosen_on, kept, lost",
    [
        (0, "valid_accuracy", 0.6, 0.5),
        (1, "valid_accuracy", 0.4, 2.0),  # chosen on validation images, where 0.8 are lost; reported on test
        (1.1, "valid_accuracy", 0.3, 1.0),  # exactly as much as allowed
        (2, "valid_accuracy", 0.2, 3.0),
        (1, "accuracy", 0.1, 0.0),  # the test curve knows nothing of validation images
        (100, "valid_accuracy", 0.1, 0.0),
    ],
)
def test_the_smallest_network_is_chosen_on_one_set_and_reported_on_the_other(points, chosen_on, kept, lost):
    (row,) = verdicts.smallest_size(CURVE, DENSE, points, chosen_on=chosen_on).to_dict("records")
    assert row["kept"] == kept and row["lost"] == pytest.approx(lost) and row["networks"] == 5
    share = max(row["lost"], 0) / 100 if row["lost"] == row["lost"] else 0
    assert row["allowed"] == pytest.approx(points + 200 * math.sqrt(share * (1 - share) / 10_000))


def test_where_every_network_loses_more_there_is_no_size():
    (row,) = verdicts.smallest_size(CURVE[1:], DENSE, 0.5).to_dict("records")
    assert math.isnan(row["kept"]) and math.isnan(row["lost"])


def test_settings_are_kept_apart():
    rows = pd.concat([CURVE, CURVE.assign(seed=1, valid_accuracy=0.9)])
    found = verdicts.smallest_size(rows, pd.concat([DENSE, DENSE.assign(seed=1)]), 1).set_index("seed")["kept"]
    assert found.to_dict() == {0: 0.4, 1: 0.1}


@pytest.mark.parametrize("column", ["seed", "parameters_kept", "valid_accuracy", "accuracy"])
def test_a_column_that_the_size_needs_is_named(column):
    for rows, dense in ((CURVE.drop(columns=column), DENSE), (CURVE, DENSE.drop(columns=column))):
        with pytest.raises(ValueError, match=f"lack the column {column}, which the rule 'smallest size' needs"):
            verdicts.smallest_size(rows, dense, 1)


def test_a_gap_in_a_column_is_named():
    gap = CURVE.assign(valid_accuracy=[0.9, None, 0.9, 0.9, None])
    with pytest.raises(ValueError, match="2 of 5 rows have no valid_accuracy"):
        verdicts.smallest_size(gap, DENSE, 1)


def test_two_rows_cannot_claim_one_setting():
    with pytest.raises(ValueError, match=r"2 rows claim one setting: .*seed=0.*budget=0.4; keep one of them"):
        verdicts.smallest_size(pd.concat([CURVE, CURVE[1:2]]), DENSE, 1)
    with pytest.raises(ValueError, match="2 rows claim one setting: dataset=mnist"):
        verdicts.smallest_size(CURVE, pd.concat([DENSE, DENSE]), 1)


def test_a_run_without_its_dense_network_is_named():
    with pytest.raises(ValueError, match="no row is the dense network of mnist, lenet300, seed 1"):
        verdicts.smallest_size(CURVE.assign(seed=1), DENSE, 1)


def test_points_lost_are_not_negative():
    for wrong in (-1, math.nan):
        with pytest.raises(ValueError, match="points_lost=.* is below 0"):
            verdicts.smallest_size(CURVE, DENSE, wrong)


def test_a_size_is_judged_by_what_stays_and_by_what_is_lost_on_test():
    good = curve([(0.4, 0.895, 0.885)])
    found = verdicts.size_verdict(good, DENSE, points=[1])
    assert (found.said, found.holds, found.counts) == (
        "1 point: 40 % of the parameters, 0.5 points lost on test (no more than 1 in 1), holds in 1 of 1",
        "yes",
        "1 of 1",
    )
    assert verdicts.size_verdict(good.assign(parameters_kept=0.5), DENSE, points=[1]).holds == "no"
    # where 1.2 points are lost, two standard errors of a pair on 10 000 images are at least 0.22 points, and 0.23 where 1.3 are
    assert verdicts.size_verdict(good.assign(accuracy=0.878), DENSE, points=[1]).holds == "yes"
    assert verdicts.size_verdict(good.assign(accuracy=0.877), DENSE, points=[1]).holds == "no"


def test_what_may_be_lost_beyond_is_the_error_of_the_pairs_where_images_are_known():
    whole, right = (
        np.arange(10_000) < 8_900,
        np.arange(10_000) < 8_770,
    )  # 130 images that only the dense network gets right
    dense = DENSE.assign(correct=packed(whole))
    small = curve([(0.4, 0.895, 0.877)]).assign(correct=packed(right))
    error = 100 * math.sqrt(0.013 * (1 - 0.013) / 10_000)
    (row,) = verdicts.smallest_size(small, dense, 1).to_dict("records")
    assert row["allowed"] == pytest.approx(1 + 2 * error) and 2 * error == pytest.approx(0.227, abs=1e-3)
    found = verdicts.size_verdict(small, dense, points=[1])
    assert found.holds == "no" and "1.3 points lost on test (no more than 1 in 0)" in found.said
    unknown = verdicts.size_verdict(small.drop(columns="correct"), dense, points=[1])
    assert (
        unknown.holds == "no" and "holds in 0 of 1" in unknown.said
    )  # the least error that a pair can have is the same here
    with pytest.raises(ValueError, match="different test images"):
        verdicts.smallest_size(small.assign(correct=packed(right[:50])), dense, 1)


def test_two_drops_have_a_verdict_each_and_settings_without_rows_are_named():
    rows = curve([(0.7, 0.895, 0.885), (0.3, 0.885, 0.875)])
    settings = [("mnist", "lenet300", 0), ("mnist", "lenet300", 1)]
    found = verdicts.size_verdict(rows, DENSE, settings=settings, absent="never run")
    assert found.holds == "no / yes" and found.counts == "1 of 2; left out: mnist, lenet300, seed 1 (never run)"
    none = verdicts.size_verdict(rows[:0], DENSE, settings=settings, absent="never run")
    assert (none.said, none.holds, none.counted, none.settings) == ("not measured: never run", "-", 0, 2)


def test_a_curve_that_ends_too_early_settles_nothing():
    rows = curve([(0.4, 0.85, 0.85), (0.3, 0.8, 0.8)])
    found = verdicts.size_verdict(rows, DENSE)
    assert found.holds == "-" and found.counted == 0 and found.said.startswith("not measured: its curve ends at 40%")
    both = pd.concat([rows, CURVE.assign(seed=1)])
    found = verdicts.size_verdict(both, pd.concat([DENSE, DENSE.assign(seed=1)]))
    assert found.counts.startswith("1 of 2; left out: mnist, lenet300, seed 0 (its curve ends at 40%")
    two = curve([(0.4, 0.885, 0.875)])  # 1.5 points lost: settled at two points alone
    found = verdicts.size_verdict(pd.concat([two, CURVE.assign(seed=1)]), pd.concat([DENSE, DENSE.assign(seed=1)]))
    one, at_two = found.said.split("; ")
    assert "of 1, not counted mnist, lenet300, seed 0 (its curve ends at 40% of the parameters" in one
    assert "of 2" in at_two and "not counted" not in at_two and found.counts == "2 of 2"
    # the curve goes on to half of the network and more, so that it has its answer
    large = pd.concat([rows, curve([(0.5, 0.85, 0.85)])])
    assert verdicts.size_verdict(large, DENSE, points=[1]).said == "1 point: no size, holds in 0 of 1"


# ---- the smaller of two ----------------------------------------------------------------------------------------------


def at(*points):
    """Rows of one method: (kept, points lost on validation images and on test images)."""
    return curve([(kept, 0.90 - lost / 100, 0.89 - lost / 100) for kept, lost in points])


SIDES = {"names": ("A", "B")}
THEIRS = at((0.6, 0.2), (0.4, 0.8), (0.3, 1.7), (0.2, 5))


@pytest.mark.parametrize(
    "ours, verdicts_, said",
    [
        ([(0.5, 0.2), (0.35, 0.9), (0.25, 1.9)], ("smaller", "smaller"), "smaller in 1 of 1, larger in 0"),
        ([(0.5, 0.9), (0.35, 1.9)], ("larger", "larger"), "smaller in 0 of 1, larger in 1"),
        ([(0.5, 0.9), (0.25, 1.9)], ("larger", "smaller"), "smaller in 0 of 1, larger in 1"),
        ([(0.4, 0.3), (0.3, 2)], ("level", "level"), "smaller in 0 of 1, larger in 0, level in 1"),
    ],
)
def test_the_smaller_of_two_curves_has_fewer_parameters_at_the_same_loss(ours, verdicts_, said):
    ours = at(*ours)
    for points, verdict in zip((1, 2), verdicts_, strict=True):
        (line,) = verdicts.smaller_at_equal_loss(ours, THEIRS, DENSE, points).to_dict("records")
        assert line["verdict"] == verdict and line["kept_theirs"] == {1: 0.4, 2: 0.3}[points]
        sizes = verdicts.smallest_size(ours, DENSE, points).iloc[0]
        assert (line["kept_ours"], line["lost_ours"]) == (sizes["kept"], sizes["lost"])
        other = {"smaller": "larger", "larger": "smaller", "level": "level"}[verdict]
        assert verdicts.smaller_at_equal_loss(THEIRS, ours, DENSE, points)["verdict"].tolist() == [other]
    found = verdicts.smaller_verdict(ours, THEIRS, DENSE, **SIDES)
    assert said in found.said.partition("; 2 points")[0] and found.counts == "2 of 2"
    words = ["yes" if verdict == "smaller" else "no" for verdict in verdicts_]
    assert found.holds == " / ".join(dict.fromkeys(words))


def test_both_sizes_and_their_losses_on_test_are_told():
    ours = at((0.35, 0.9)).assign(accuracy=0.87)
    found = verdicts.smaller_verdict(ours, THEIRS, DENSE, points=[1], **SIDES)
    assert (
        found.said
        == "1 point: 35 % against 40 % of the parameters, 2.0 against 0.8 points lost on test, smaller in 1 of 1, larger in 0"
    )


def test_a_run_counts_only_where_both_methods_have_a_size():
    ours = at((0.5, 0.2), (0.45, 1.5))
    late = at((0.6, 1.4), (0.3, 3))  # no network within one point
    found = verdicts.smaller_verdict(ours, late, DENSE, **SIDES)
    assert found.said.startswith("1 point: no run in which both have a size; 2 points: 45 % against 60 %")
    assert found.holds == "- / yes" and found.counted == 1
    reason = "only the curve of A loses so little: that of B ends at 60% of the parameters"
    assert found.left_out == {"1 point, mnist, lenet300, seed 0": reason}
    found = verdicts.smaller_verdict(late, ours, DENSE, **SIDES)
    assert found.holds == "- / no" and "only the curve of B loses so little: that of A" in found.counts
    found = verdicts.smaller_verdict(late, late, DENSE, points=[1], **SIDES)
    assert found.holds == "-" and found.counts.startswith("0 of 1")
    assert found.said == (
        "not measured: neither curve loses so little: that of A ends at 60% and that of B ends at 60% of the parameters"
    )


def test_consistently_smaller_is_smaller_in_every_run():
    seeds = pd.concat([DENSE, DENSE.assign(seed=1)])
    theirs = pd.concat([THEIRS, THEIRS.assign(seed=1)])
    ours = pd.concat([at((0.35, 0.9), (0.25, 1.9)), at((0.5, 0.9), (0.25, 1.9)).assign(seed=1)])
    found = verdicts.smaller_verdict(ours, theirs, seeds, **SIDES)
    assert found.holds == "in part / yes" and "smaller in 1 of 2, larger in 1" in found.said and found.counted == 4
    assert verdicts.smaller_verdict(ours, theirs, seeds, consistently=True, **SIDES).holds == "no / yes"
    tie = pd.concat([ours[ours["seed"] == 0], THEIRS.assign(seed=1)])
    assert verdicts.smaller_verdict(tie, theirs, seeds, consistently=True, **SIDES).holds == "no"


def test_a_run_without_both_curves_is_named_with_its_reason():
    settings = [("mnist", "lenet300", seed) for seed in range(4)]
    ours = pd.concat([at((0.35, 0.9))] + [at((0.35, 0.9)).assign(seed=seed) for seed in (1, 2, 3)])
    theirs = pd.concat([THEIRS, THEIRS.assign(seed=2), THEIRS.assign(seed=3)])
    dense = pd.concat([DENSE, DENSE.assign(seed=1), DENSE.assign(seed=2, valid_accuracy=math.nan)])
    absent = {settings[1]: "B was never run"}
    found = verdicts.smaller_verdict(ours, theirs, dense, points=[1], settings=settings, absent=absent, **SIDES)
    assert found.counted == 1 and found.holds == "yes" and found.settings == 4
    assert [*found.left_out.values()] == [
        "B was never run", "no row of its dense network", "its dense network has no valid_accuracy"
    ]  # fmt: skip
    none = verdicts.smaller_verdict(ours[:0], theirs, dense, settings=settings, absent="never run", **SIDES)
    assert none.holds == "-" and none.said == "not measured: never run" and none.settings == 8
    assert verdicts.smaller_verdict(ours, theirs[:0], dense, settings=settings, **SIDES).said == "not measured: no row"


def test_two_rows_of_one_setting_have_no_smaller_one():
    with pytest.raises(ValueError, match="2 rows claim one setting"):
        verdicts.smaller_at_equal_loss(pd.concat([THEIRS, THEIRS[:1]]), THEIRS, DENSE, 1)


# ---- ahead at equal size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gained, lost", [(0, 0), (1, 0), (5, 1), (10, 10), (30, 12)])
def test_mcnemar_counts_coins(gained, lost):
    ours = np.array([True] * gained + [False] * lost + [True] * 7 + [False] * 3)
    theirs = np.array([False] * gained + [True] * lost + [True] * 7 + [False] * 3)
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    assert paired_tests.mcnemar(ours, theirs) == pytest.approx(min(1.0, 2 * tail))
    assert paired_tests.mcnemar(theirs, ours) == paired_tests.mcnemar(ours, theirs)


def test_mcnemar_needs_the_same_images():
    with pytest.raises(ValueError, match="3 and 2 answers are not about the same test images"):
        paired_tests.mcnemar(np.ones(3, bool), np.ones(2, bool))


def test_holm_by_hand():
    # 0.005 x 4, 0.01 x 3, then 0.03 x 2, and 0.04 x 1 is not below the one before
    assert paired_tests.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired_tests.holm([0.6, 0.9]).tolist() == [1.0, 1.0]
    assert paired_tests.holm([]).tolist() == []
    with_gap = paired_tests.holm([0.02, math.nan, 0.04])
    assert with_gap[[0, 2]] == pytest.approx([0.04, 0.04]) and math.isnan(with_gap[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_procedure(p):
    """A hypothesis falls at level a where it and all smaller ones are at most a / (how many are left)."""
    found = paired_tests.holm(p)
    for level in (0.01, 0.05, 0.2):
        falls = set()
        for step, i in enumerate(np.argsort(p, kind="stable")):
            if p[i] * (len(p) - step) > level:
                break
            falls.add(int(i))
        assert {i for i, value in enumerate(found) if value <= level} == falls


def test_the_bootstrap_draws_images_and_seeds():
    """Its spread is that of both means, taken from the exact formula."""
    rng = np.random.default_rng(0)
    values = rng.choice([-1, 0, 1], p=[0.05, 0.85, 0.1], size=(1, 4000)).astype(float)
    mean, low, high, p = paired_tests.paired_bootstrap(values)
    error = values.std() / math.sqrt(values.size)
    assert mean == values.mean() and (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert p == pytest.approx(2 / 10_001)
    # images that never differ: only the seeds are drawn, and all 27 draws of three are equally likely
    seeds = np.repeat([[0.0], [0.0], [1.0]], 50, axis=1)
    _, low, high, p = paired_tests.paired_bootstrap(seeds)
    means = sorted(sum(draw) / 3 for draw in itertools.product([0, 0, 1], repeat=3))
    assert low == means[0] and high == pytest.approx(means[-1]) and p == pytest.approx(2 * (8 / 27), abs=0.02)


def test_the_bootstrap_gives_the_same_numbers_again():
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], size=(3, 100))
    assert paired_tests.paired_bootstrap(values) == paired_tests.paired_bootstrap(values)


def answered(*patterns, budget=0.2, **about):
    """Rows of seeds 0, 1, ...: which images each gets right."""
    return pd.DataFrame(
        {"dataset": "mnist", "network": "lenet300", "budget": budget, "seed": seed, "accuracy": np.mean(right)}
        | {"correct": packed(np.array(right, bool))}
        | about
        for seed, right in enumerate(patterns)
    )


NONE, HALF = [False] * 40, [True] * 20 + [False] * 20


def test_one_seed_is_judged_by_mcnemar():
    (row,) = verdicts.ahead_at_equal_size(answered(HALF), answered(NONE)).to_dict("records")
    assert (row["gain"], row["paired_by"], row["pairs"], row["verdict"]) == (50.0, "images", 1, "ahead")
    assert row["p"] == 2 / 2**20 and row["mcnemar"] == (row["p"],) and row["low"] < 50 < row["high"]
    few = answered([True] * 3 + [False] * 37)
    assert verdicts.ahead_at_equal_size(few, answered(NONE))["verdict"].tolist() == ["not settled"]
    assert verdicts.ahead_at_equal_size(answered(NONE), answered(HALF))["verdict"].tolist() == ["behind"]


def test_several_seeds_are_judged_over_images_and_seeds():
    ours, theirs = answered(HALF, HALF, HALF), answered(NONE, NONE, NONE)
    (row,) = verdicts.ahead_at_equal_size(ours, theirs).to_dict("records")
    assert (row["paired_by"], row["pairs"], row["verdict"]) == ("images and seeds", 3, "ahead")
    assert row["mcnemar"] == (2 / 2**20,) * 3
    mixed = answered(HALF, NONE, NONE)  # one seed gains, two do not: seeds alone could not settle it
    assert verdicts.ahead_at_equal_size(mixed, theirs)["verdict"].tolist() == ["not settled"]


def plain(*accuracies, **about):
    about = {"dataset": "mnist", "network": "lenet300", "budget": 0.2} | about
    return pd.DataFrame([about | {"seed": seed, "accuracy": value} for seed, value in enumerate(accuracies)])


def test_without_images_seeds_alone_are_judged_by_students_t():
    (row,) = verdicts.ahead_at_equal_size(plain(0.92, 0.94, 0.93), plain(0.90, 0.91, 0.89)).to_dict("records")
    gains = np.array([2.0, 3.0, 4.0])
    t = gains.mean() / (gains.std(ddof=1) / math.sqrt(3))
    # the distribution of Student with two degrees of freedom has a closed form
    p = 1 - t / math.sqrt(2 + t * t)
    assert row["gain"] == pytest.approx(3) and row["p"] == pytest.approx(p) and row["paired_by"] == "seeds"
    assert row["mcnemar"] == () and row["verdict"] == "ahead" and p < 0.05
    half = 4.302652729911275 * gains.std(ddof=1) / math.sqrt(3)  # the 97.5 % quantile
    assert (row["low"], row["high"]) == pytest.approx((3 - half, 3 + half))


@pytest.mark.parametrize("ours, theirs", [((0.9,), (0.8,)), ((0.9, 0.9), (0.8, 0.8))])
def test_one_seed_or_seeds_that_do_not_differ_say_nothing_without_images(ours, theirs):
    ours, theirs = (plain(*each).assign(dataset="digits") for each in (ours, theirs))
    (row,) = verdicts.ahead_at_equal_size(ours, theirs).to_dict("records")
    assert (row["paired_by"], row["verdict"]) == ("nothing", "not measured") and math.isnan(row["p_holm"])
    found = verdicts.ahead_verdict(ours, theirs)
    assert found.holds == "-" and found.counted == 0
    assert found.said.startswith("not measured: one pair, or one difference in all pairs")


def test_of_one_pair_on_10_000_images_the_counts_settle_what_they_can():
    (row,) = verdicts.ahead_at_equal_size(plain(0.9), plain(0.8)).to_dict("records")
    assert (row["paired_by"], row["verdict"]) == ("counts of images", "ahead")
    # at most 1 000 images are right in theirs alone: all that ours gets wrong
    assert row["p"] == paired_tests.mcnemar_of_counts(2000, 1000) > 0
    rng = np.random.default_rng(0)
    for _ in range(20):  # no two networks with these counts have a larger p
        a, b = (rng.permutation(np.arange(60) < count) for count in (40, 33))
        assert paired_tests.mcnemar(a, b) <= paired_tests.mcnemar_at_worst(40, 33, 60) + 1e-12
    (near,) = verdicts.ahead_at_equal_size(plain(0.8005), plain(0.8)).to_dict("records")
    assert near["verdict"] == "not settled"
    (other,) = verdicts.ahead_at_equal_size(plain(0.90001), plain(0.8)).to_dict("records")  # not of 10 000 images
    assert other["verdict"] == "not measured"


def test_draws_that_are_one_pair_of_networks_count_once():
    ours, theirs = (answered(each, each, each).rename(columns={"seed": "draw"}) for each in (HALF, NONE))
    (row,) = verdicts.ahead_at_equal_size(ours, theirs, over="draw").to_dict("records")
    assert (row["pairs"], row["paired_by"], row["p"]) == (1, "images", row["mcnemar"][0])


def test_where_nothing_is_settled_the_verdict_says_so():
    near = verdicts.ahead_verdict(plain(0.8005), plain(0.8))
    assert near.holds == "not settled" and near.p == (near.p[0],) and near.settled == 0
    behind = verdicts.ahead_verdict(plain(0.8), plain(0.9))
    assert behind.holds == "no" and behind.settled == 1
    assert verdicts.ahead_verdict(plain(0.8), plain(0.8)).said.startswith(
        "0.0 to 0.0 points; ahead in 0 of 1, behind in 0, equal in 1"
    )


def test_the_same_accuracies_in_several_seeds_are_level():
    (row,) = verdicts.ahead_at_equal_size(plain(0.9, 0.8), plain(0.9, 0.8)).to_dict("records")
    assert (row["p_holm"], row["verdict"], row["paired_by"]) == (1.0, "not settled", "seeds")


def test_one_row_without_its_images_leaves_the_seeds():
    ours = answered(HALF, HALF)
    ours.loc[1, "correct"] = None
    (row,) = verdicts.ahead_at_equal_size(ours, answered(NONE, NONE)).to_dict("records")
    assert row["paired_by"] == "counts of images"  # the two seeds have the same difference


def test_many_settings_are_corrected():
    """Six images of six are p = 0.031: enough for one setting, not for two."""
    six = answered([True] * 6 + [False] * 34)
    assert verdicts.ahead_at_equal_size(six, answered(NONE))["verdict"].tolist() == ["ahead"]
    found = verdicts.ahead_at_equal_size(
        pd.concat([six, six.assign(budget=0.3)]), pd.concat([answered(NONE), answered(NONE, budget=0.3)])
    )
    assert found["p_holm"].tolist() == [4 / 2**6] * 2 and found["verdict"].tolist() == ["not settled"] * 2


@pytest.mark.parametrize("column", ["budget", "seed", "accuracy"])
def test_a_column_that_the_comparison_needs_is_named(column):
    with pytest.raises(ValueError, match=f"lack the column {column}, which the rule 'ahead at equal size' needs"):
        verdicts.ahead_at_equal_size(plain(0.9).drop(columns=column), plain(0.8))


def test_rows_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match="2 rows claim one setting: .*budget=0.2, seed=0; keep one"):
        verdicts.ahead_at_equal_size(pd.concat([plain(0.9), plain(0.8)]), plain(0.8))
    with pytest.raises(ValueError, match="mnist, lenet300, budget 0.2 differ in their test images"):
        verdicts.ahead_at_equal_size(plain(0.9, data_fingerprint="a"), plain(0.8, data_fingerprint="b"))
    with pytest.raises(ValueError, match="mnist, lenet300, budget 0.2 differ in their test images"):
        verdicts.ahead_at_equal_size(answered(HALF, HALF[:30]), answered(NONE, NONE[:30]))


def test_a_verdict_counts_settings_and_names_those_left_out():
    ours = pd.concat([answered(HALF), answered(NONE, budget=0.1)])
    theirs = pd.concat([answered(NONE), answered(NONE, budget=0.1)])
    settings = [("mnist", "lenet300", size) for size in (0.1, 0.2, 0.3)]
    found = verdicts.ahead_verdict(ours, theirs, settings=settings, absent="out of reach", than="none")
    assert (
        found.said
        == "0.0 to +50.0 points against none; ahead in 1 of 2, behind in 0, equal in 1; paired by images in 2"
    )
    assert found.holds == "in part" and found.counts == "2 of 3; left out: mnist, lenet300, budget 0.3 (out of reach)"
    assert verdicts.ahead_verdict(ours, theirs, consistently=True).holds == "not settled"
    assert verdicts.ahead_verdict(answered(HALF), theirs, consistently=True).holds == "yes"


# ---- the dense network -----------------------------------------------------------------------------------------------


def test_the_dense_network_gets_its_validation_accuracy_from_an_equal_one_alone():
    dense = DENSE.assign(notebook="02_arsvd", chooser="dense", tuned="none", loss=0.3, valid_accuracy=math.nan)
    other = DENSE.assign(notebook="04_ddlr", chooser="dense", tuned="none", loss=0.3)
    assert verdicts.dense_rows(pd.concat([dense, other]), "02_arsvd")["valid_accuracy"].tolist() == [0.9]
    for change in (
        {"loss": 0.3001},
        {"accuracy": 0.88},
        {"seed": 1},
        {"parameters_kept": 0.9},
        {"tuned": "fine-tuned"},
    ):
        found = verdicts.dense_rows(pd.concat([dense, other.assign(**change)]), "02_arsvd")
        assert found["valid_accuracy"].isna().all()
