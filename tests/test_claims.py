"""The claim table: a verdict follows from the published rows, and turns with them."""

import pandas as pd
import pytest

from lowrank_utils import paths
from lowrank_utils.lab import columns
from lowrank_utils.workbook import conversion, jobs
from lowrank_utils.workbook.gallery import claims, published_tables


def gallery(folder, rows):
    columns.table(rows).to_parquet(folder / "results.parquet", index=False)
    found = claims(folder).set_index(["paper", "claim", "setting"])
    return [(row["ours"], row["holds"]) for _, row in found.iterrows()]


def adaptive(energy, scope="every layer"):
    about = {
        "notebook": "02_arsvd",
        "network": "lenet300",
        "seed": 0,
        "factors": "svd",
        "scope": scope,
        "budget_kind": "kept",
        "budget": 0.2,
        "stored_as": "low rank",
    }
    return [
        about | {"dataset": dataset, "chooser": chooser, "accuracy": accuracy, "parameters_kept": 0.2}
        for dataset, value in energy.items() for chooser, accuracy in (("energy", value), ("fixed", 0.5))
    ]  # fmt: skip


@pytest.mark.parametrize(
    "energy, verdict, said",
    [
        ({"mnist": 0.6, "cifar10": 0.55}, "yes", "energy +5.0 to +10.0"),
        ({"mnist": 0.6, "cifar10": 0.5}, "in part", "energy 0.0 to +10.0"),
        ({"mnist": 0.5, "cifar10": 0.4}, "no", "energy -10.0 to 0.0"),
        ({"mnist": 0.502}, "no", "+0.2 to +0.2"),  # within the noise of ten thousand images
        ({"digits": 0.9}, "-", "not measured"),  # a data set of which the paper says nothing
    ],
)
def test_a_verdict_follows_from_the_rows(tmp_path, energy, verdict, said):
    found = gallery(tmp_path, adaptive(energy))
    assert said in found[0][0] and found[0][1] == verdict
    assert all(row == ("not measured", "-") for row in found[1:])


def test_rows_of_other_notebooks_say_nothing(tmp_path):
    rows = [adaptive({"mnist": 0.6})[0] | {"notebook": "01_first"}]
    assert all(row == ("not measured", "-") for row in gallery(tmp_path, rows))


def test_every_scope_has_a_verdict_of_its_own(tmp_path):
    found = gallery(tmp_path, adaptive({"mnist": 0.6}) + adaptive({"mnist": 0.4}, "hidden layers"))
    assert [holds for _, holds in found[:2]] == ["yes", "no"]


def test_either_rule_must_be_ahead(tmp_path):
    rows = adaptive({"mnist": 0.6})
    found = gallery(tmp_path, [*rows, rows[0] | {"chooser": "entropy", "accuracy": 0.4}])
    assert found[0] == ("points ahead of the fixed rank: energy +10.0 to +10.0, entropy -10.0 to -10.0", "in part")


def test_compression_without_loss_needs_the_dense_network_of_the_same_seed(tmp_path):
    about = {"notebook": "02_arsvd", "dataset": "mnist", "network": "lenet300", "seed": 0}
    dense = about | {
        "chooser": "dense",
        "scope": "none",
        "budget_kind": "dense",
        "stored_as": "dense",
        "accuracy": 0.98,
        "parameters_kept": 1.0,
    }
    cut = about | {
        "chooser": "energy",
        "factors": "svd",
        "scope": "hidden layers",
        "stored_as": "low rank",
        "accuracy": 0.97,
    }
    cut |= {"budget_kind": "drop", "budget": 0.01, "parameters_kept": 0.15}
    assert gallery(tmp_path, [dense, cut])[3] == (
        "15 to 15 % of the parameters stay, 1.0 to 1.0 points lost on test",
        "yes",
    )
    assert gallery(tmp_path, [dense, cut | {"accuracy": 0.95}])[3][1] == "no"
    assert gallery(tmp_path, [dense, cut | {"parameters_kept": 0.6}])[3][1] == "no"
    found = gallery(tmp_path, [dense, cut, cut | {"scope": "every layer", "accuracy": 0.5}])
    assert [holds for _, holds in found[2:4]] == ["no", "yes"]


def ddlr(posed, refitted, trimmed, cut=0.9, rows_off=0.95):
    about = {
        "notebook": "04_ddlr",
        "dataset": "mnist",
        "network": "lenet300",
        "seed": 0,
        "factors": "own",
        "scope": "",
        "draw": "",
    }
    scores = {"DDLR": posed, "DDLR, cut, refit": refitted, "Net-Trim, cut, refit, with indices": trimmed,
              "DDLR, cut": cut, "Net-Trim, with indices": rows_off}  # fmt: skip
    rows = [
        about | {"chooser": name, "accuracy": value, "target": "kept 0.20", "parameters_kept": 0.2}
        for name, value in scores.items()
    ]
    dense = about | {"chooser": "dense", "factors": "none", "accuracy": 0.98, "target": "dense", "parameters_kept": 1.0}
    return conversion.convert(pd.DataFrame([dense, *rows])).to_dict("records")


@pytest.mark.parametrize(
    "scores, verdicts",
    [
        ((0.5, 0.97, 0.96), ("in part", "no", "yes")),
        ((0.97, 0.97, 0.975), ("yes", "no", "no")),
        ((0.97, 0.97, 0.969, 0.95, 0.9), ("yes", "yes", "no")),  # a tenth of a point is noise
        ((0.97, 0.9725, 0.97), ("yes", "no", "no")),  # between one standard error (0.17 points) and two
        ((0.97, 0.974, 0.97), ("yes", "no", "yes")),
    ],
)
def test_ddlr_as_posed_and_refitted_and_against_net_trim(tmp_path, scores, verdicts):
    assert tuple(holds for _, holds in gallery(tmp_path, ddlr(*scores))[4:7]) == verdicts


def test_ahead_at_one_size_is_not_consistently_ahead(tmp_path):
    rows = ddlr(0.97, 0.97, 0.96)
    other = [row | {"budget": 0.1} for row in ddlr(0.97, 0.95, 0.96)[1:]]
    ours, holds = gallery(tmp_path, rows + other)[6]
    assert ours.endswith("ahead in 1 of 2") and holds == "no"


def searched(fixed, map_, lossless):
    about = {
        "notebook": "05_rank_search",
        "dataset": "digits",
        "network": "vgg_small",
        "seed": 0,
        "draw": 0,
        "scope": "",
    }
    scores = {"fixed": fixed, "ENC-Map": map_, "ENC-Model": map_, "ENC-Inf": map_}
    rows = [
        about | {"chooser": name, "factors": "svd", "accuracy": value, "target": "macs 0.50", "macs_kept": 0.5}
        for name, value in scores.items()
    ]
    dense = about | {"chooser": "dense", "factors": "dense", "target": "dense", "macs_kept": 1.0, "accuracy": 0.9}
    whole = about | {
        "chooser": "exact, Fisher",
        "factors": "sequential",
        "target": "lossless",
        "macs_kept": 0.6,
        "accuracy": lossless,
    }
    return conversion.convert(pd.DataFrame([dense, *rows, whole])).to_dict("records")


def test_rank_search_against_one_fixed_share_and_without_loss(tmp_path):
    ahead, lossless = gallery(tmp_path, searched(0.7, 0.8, 0.9))[7:9]
    assert ahead == ("mean of Map, Model, Inf, points ahead: +10.0 to +10.0; ahead in 1 of 1", "yes")
    assert lossless == ("MACs kept: vgg_small 60 %; at most 0.0 points lost on test", "yes, by our search")
    ahead, lossless = gallery(tmp_path, searched(0.8, 0.7, 0.89))[7:9]
    assert ahead[1] == "no" and lossless[1] == "no, by our search"
    broken = gallery(tmp_path, searched(0.1, 0.3, 0.9))[7]  # nothing to be compared where all are broken
    assert "ahead in 0 of 0, 1 left out" in broken[0] and broken[1] == "-"


def test_the_three_searches_count_together_and_noise_is_no_loss(tmp_path):
    rows = searched(0.8, 0.79, 0.898)
    for row in rows:
        if row["chooser"] == "ENC-Inf":
            row["accuracy"] = 0.83  # alone it would be ahead by three points; the mean of three is by a third of one
    ahead, lossless = gallery(tmp_path, rows)[7:9]
    assert ahead == ("mean of Map, Model, Inf, points ahead: +0.3 to +0.3; ahead in 0 of 1", "no")
    assert lossless == ("MACs kept: vgg_small 60 %; at most 0.2 points lost on test", "yes, by our search")


def test_what_is_said_to_make_the_rows_again_is_there():

    presets = set()
    for row in claims().to_dict("records"):
        words = row["rerun"].strip("`").replace(";", " ; ").split()
        named = words[words.index("--preset") + 1]
        named = words[words.index("in") + 1 : words.index(";")] if named == "$p" else [named]
        presets |= set(named)
        assert jobs.select([words[words.index("--only") + 1]])
    assert {"mnist", "cifar100", "ddlr-mnist", "rank-search-resnet20", "rank-search-imagenet"} <= presets
    assert all((paths.NOTEBOOKS / "presets" / f"{name}.yaml").is_file() for name in presets)


def test_side_by_side_tells_means_over_seeds_and_leaves_open_what_nobody_asked_for(tmp_path):
    about = {
        "notebook": "06_side_by_side",
        "dataset": "mnist",
        "parameters_kept": 0.25,
        "macs_kept": 0.25,
        "bytes": 4000,
    }
    about |= {"scope": "hidden layers", "budget_kind": "macs", "stored_as": "low rank"}
    fisher = about | {"network": "a", "chooser": "exact-Fisher", "factors": "svd", "budget": 0.25}
    rows = [
        fisher | {"seed": seed, "accuracy": accuracy, "f1": accuracy, "faster_64": faster, "tuned_accuracy": tuned}
        for seed, accuracy, faster, tuned in ((0, 0.90, 1.0, 0.95), (1, 0.92, 2.0, 0.95))
    ]
    other = about | {"network": "b", "seed": 0, "chooser": "fixed", "factors": "data-aware", "budget": 0.5}
    rows.append(other | {"accuracy": 0.5, "f1": 0.5, "faster_64": 1.0, "tuned_accuracy": None})
    columns.table(rows).to_parquet(tmp_path / "results.parquet", index=False)
    crossed, ways = published_tables(tmp_path).values()
    assert crossed.splitlines()[2:] == [
        "| mnist | a | exact, Fisher | - / 91.0 | - / - |",
        "| mnist | b | fixed | - / - | 50.0 / - |",
    ]
    (row,) = ways.splitlines()[2:]
    assert row.endswith("| svd | macs 0.25 | 25 | 25 | 4 | 1.5 | 91.0 ± 1.4 | 91.0 ± 1.4 | 95.0 ± 0.0 | 2 |")
