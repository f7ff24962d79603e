"""Columns of result rows, and the conversion of old rows that told their setting in phrases."""

import struct
from pathlib import Path

import pandas as pd
import pytest

from lowrank_utils.lab import columns
from lowrank_utils.workbook import conversion

SAMPLE = Path(__file__).parent / "data" / "old_rows.csv"
ROW = {"notebook": "02_arsvd", "dataset": "mnist", "network": "lenet300", "seed": 0, "accuracy": 0.5}
ROW |= {"chooser": "energy", "scope": "every layer", "budget_kind": "kept", "budget": 0.2, "stored_as": "low rank"}


@pytest.fixture
def old():
    return pd.read_csv(SAMPLE, dtype=str, keep_default_na=False)


def converted(table, **what):
    """Return the new rows of those old ones that have these values, as dicts."""
    for name, value in what.items():
        table = table[table[name] == value]
    assert len(table), what
    return conversion.convert(table).to_dict("records")


# ---- the columns -------------------------------------------------------------------------------------------


def test_every_column_has_a_known_dtype_and_a_meaning():
    for name, column in columns.COLUMNS.items():
        assert column.dtype in ("string", "float64", "int64", "Int64"), name
        assert column.meaning, name
        assert not column.allowed or column.default in (None, *column.allowed), name


def test_the_lists_of_columns_name_columns():
    for listed in (
        columns.RESULT_COLUMNS,
        columns.LANGUAGE_COLUMNS,
        columns.PROVENANCE_COLUMNS,
        columns.RUN,
        columns.KEY,
    ):
        assert set(listed) <= set(columns.COLUMNS)
        assert len(set(listed)) == len(listed)


def test_defaults_and_dtypes():
    rows = columns.table([ROW, ROW | {"tuned": "fine-tuned", "evaluations": 3.0, "run_kept": "[0.2]"}])
    assert rows["refit"].tolist() == ["none", "none"]
    assert rows["tuned"].tolist() == ["none", "fine-tuned"]
    assert rows["bits"].tolist() == [32, 32]
    assert rows["evaluations"].isna().tolist() == [True, False]
    assert str(rows["evaluations"].dtype) == "Int64"
    assert list(rows)[-1] == "run_kept"
    assert "plan" not in rows
    pd.testing.assert_frame_equal(columns.table(rows), rows)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"target": "kept 0.20"}, "'target' is no column of a result row"),
        ({"refit": "somehow"}, "refit='somehow' is none of none, folded"),
        ({"tuned": "a little"}, "tuned='a little' is none of none, refined without labels, fine-tuned"),
        ({"scope": "some layers"}, "scope='some layers' is none of"),
        ({"stored_as": "zeros"}, "stored_as='zeros' is none of"),
        ({"budget_kind": "size"}, "budget_kind='size' is none of"),
        ({"bits": 4}, "bits=4 is none of 32, 8"),
        ({"chooser": "DDLR, cut"}, "chooser='DDLR, cut' has a comma"),
        ({"chooser": None}, "a row has no chooser"),
        ({"accuracy": float("nan")}, "a row has no accuracy: share of the images that are right; and no perplexity"),
        ({"accuracy": "half"}, "accuracy: 'half' is not a number"),
        ({"seed": 0.5}, "seed: 0.5 is not a whole number"),
        ({"plan": {"fc1": 3}}, "plan: {'fc1': 3} is not text"),
        ({"budget": None}, "budget=nan does not go with budget_kind='kept', whose budget is in"),
        ({"budget": 1.5}, "budget=1.5 does not go with budget_kind='kept'"),
        ({"budget_kind": "own"}, "budget=0.2 does not go with budget_kind='own', whose budget has no number"),
        ({"budget_kind": "epsilon", "budget": 0}, "budget=0.0 does not go with budget_kind='epsilon'"),
        ({"budget_kind": "epsilon", "budget": float("nan")}, "budget=nan does not go with budget_kind='epsilon'"),
        ({"budget_kind": "drop", "budget": -0.1}, "budget=-0.1 does not go with budget_kind='drop'"),
        ({"cut": "fixed"}, "cut_below=nan does not go with cut='fixed'"),
        ({"cut": "fixed", "cut_below": 1.0}, "cut_below=1.0 does not go with cut='fixed'"),
        ({"cut": "none", "cut_below": 2.0}, "cut_below=2.0 does not go with cut='none'"),
        ({"cut_below": 0.05}, "cut_below=0.05 does not go with cut='none'"),
    ],
)
def test_what_does_not_belong_is_refused_in_a_sentence(change, sentence):
    columns.check([ROW])
    with pytest.raises(ValueError, match="^" + sentence.replace("(", r"\(").replace("{", r"\{")):
        columns.check([ROW | change])


@pytest.mark.parametrize("name", [name for name, column in columns.COLUMNS.items() if column.required])
def test_a_missing_column_is_named(name):
    with pytest.raises(ValueError, match=f"the rows lack the column {name}: "):
        columns.check([{key: value for key, value in ROW.items() if key != name}])


def test_a_language_model_has_a_perplexity_in_place_of_an_accuracy():
    row = {key: value for key, value in ROW.items() if key != "accuracy"}
    measured = row | {"perplexity": 30.2, "bits_per_byte": 1.19, "tokens_per_second": 300, "peak_memory": 1.7}
    assert columns.table([measured])["perplexity"].tolist() == [30.2]
    columns.check([ROW, measured])
    for some in ([row], [ROW, row], [ROW, row | {"perplexity": None}]):
        with pytest.raises(ValueError, match="^a row has no accuracy: .* and no perplexity in its place$"):
            columns.check(some)


def test_budgets_at_their_ends():
    sized = {"drop": 0.0, "kept": 1.0, "epsilon": 2.0}
    columns.check([ROW | {"budget_kind": kind, "budget": budget} for kind, budget in sized.items()])


# ---- the conversion ----------------------------------------------------------------------------------------


def test_the_sample_has_every_notebook(old):
    assert set(old["notebook"]) == set(conversion._READERS)


def test_no_two_settings_become_one(old):
    new = conversion.convert(old)
    before = old.groupby(["notebook", "network"])[["chooser", "factors", "scope", "target", "way"]]
    after = new.groupby(["notebook", "network"])[list(columns.KEY)]
    count = {key: len(part.drop_duplicates()) for key, part in before}
    assert {key: len(part.drop_duplicates()) for key, part in after} == count
    assert sum(count.values()) < len(old)  # the same setting under two seeds stays the same


def test_two_spellings_of_one_setting_are_refused(old):
    row = old[old["target"] == "kept 0.20"].iloc[:1]
    with pytest.raises(ValueError, match=r"kept 0\.20' and .*kept 0\.2' would become one setting of 02_arsvd"):
        conversion.convert(pd.concat([row, row.assign(target="kept 0.2")]))


def test_rank_rules(old):
    for row in converted(old, notebook="02_arsvd", target="kept 0.20"):
        assert (row["chooser"], row["factors"], row["scope"]) == ("energy", "svd", "hidden layers")
        assert (row["budget_kind"], row["budget"], row["stored_as"]) == ("kept", 0.2, "low rank")
    (row,) = converted(old, notebook="02_arsvd", target="drop 0.010")
    assert (row["budget_kind"], row["budget"]) == ("drop", 0.01)
    (row,) = converted(old, notebook="02_arsvd", target="own size")
    assert (row["chooser"], row["budget_kind"]) == ("evbmf", "own")
    assert row["budget"] != row["budget"]


def test_targets_that_no_gallery_row_has(old):
    row = old[(old["notebook"] == "02_arsvd") & (old["target"] == "kept 0.20")].iloc[:1]
    (new,) = converted(row.assign(target="threshold", threshold="0.9"))
    assert (new["budget_kind"], new["budget"]) == ("threshold", 0.9)
    row = old[(old["notebook"] == "05_rank_search") & old["target"].str.startswith("macs")].iloc[:1]
    (new,) = converted(row.assign(target="macs 0.25, fine-tuned"))
    assert (new["budget_kind"], new["budget"], new["tuned"]) == ("macs", 0.25, "fine-tuned")


def test_components_and_units(old):
    pruned = old[old["notebook"] == "03_entropy_pruning"]
    for factors, refit in {"nothing": "none", "folded": "folded", "refitted": "least squares"}.items():
        for row in converted(pruned, factors=factors):
            assert (row["stored_as"], row["factors"], row["refit"]) == ("units", "none", refit)
    (row,) = converted(pruned, chooser="unit entropy, one range")
    assert row["chooser"] == "unit entropy one range"
    for name, scope in {"arsvd, every layer": "every layer", "arsvd, classifier dense": "hidden layers"}.items():
        (row,) = converted(pruned, chooser=name)
        assert (row["chooser"], row["scope"]) == ("energy", scope)
    (row,) = converted(pruned, chooser="dense control")
    assert (row["chooser"], row["tuned"], row["budget_kind"]) == ("dense control", "fine-tuned", "dense")


@pytest.mark.parametrize(
    ("chooser", "factors", "expected"),
    [
        ("DDLR", "as posed", ("DDLR", "low rank", "as posed", "none", "none")),
        ("DDLR", "cascade", ("DDLR", "low rank", "cascade", "none", "none")),
        ("DDLR", "cut 5 %", ("DDLR", "low rank", "as posed", "fixed", "none")),
        ("DDLR", "cut 5 %, refit", ("DDLR", "low rank", "as posed", "fixed", "least squares")),
        ("DDLR", "reweighted", ("DDLR", "low rank", "reweighted", "none", "none")),
        ("DDLR", "cut 5 %, refit after the ReLU", ("DDLR", "low rank", "as posed", "fixed", "relu-aware")),
        ("DDLR", "reweighted, cut 5 %, refit", ("DDLR", "low rank", "reweighted", "fixed", "least squares")),
        ("DDLR, cut", "own", ("DDLR", "low rank", "as posed", "to budget", "none")),
        ("DDLR, cut, refit", "own", ("DDLR", "low rank", "as posed", "to budget", "least squares")),
        ("Net-Trim, non-zeros", "own", ("Net-Trim", "non-zeros", "as posed", "to budget", "none")),
        ("Net-Trim, with indices", "own", ("Net-Trim", "sparse", "as posed", "to budget", "none")),
        ("Net-Trim, cut, refit, non-zeros", "own", ("Net-Trim", "non-zeros", "as posed", "to budget", "least squares")),
        ("Net-Trim, cut, refit, with indices", "own", ("Net-Trim", "sparse", "as posed", "to budget", "least squares")),
        ("ARSVD", "svd", ("energy", "low rank", "none", "none", "none")),
        ("ReLU-aware", "relu-aware", ("component output", "low rank", "none", "none", "none")),
        ("units first", "fisher-weighted", ("both output", "both", "none", "none", "least squares")),
    ],
)
def test_convex_programs(old, chooser, factors, expected):
    for row in converted(old, notebook="04_ddlr", chooser=chooser, factors=factors):
        assert tuple(row[name] for name in ("chooser", "stored_as", "program", "cut", "refit")) == expected
        assert row["scope"] == "hidden layers"


def test_a_step_of_ddlr_has_its_epsilon_and_its_cut(old):
    (row,) = converted(old, notebook="04_ddlr", factors="cut 5 %, refit")
    assert (row["budget_kind"], row["budget"], row["cut_below"]) == ("epsilon", 0.1, 0.05)
    own = converted(old, notebook="04_ddlr", chooser="DDLR", factors="own")
    assert {(row["budget_kind"], row["scope"]) for row in own} == {("kept", "every layer"), ("epsilon", "every layer")}


def test_searches(old):
    (row,) = converted(old, notebook="05_rank_search", target="lossless")
    assert (row["chooser"], row["scope"], row["budget_kind"]) == ("exact-Fisher", "inner layers", "lossless")


def test_ways_and_runtimes(old):
    mine = old[old["notebook"] == "06_side_by_side"]
    runs = {"": ("torch", 32), " in onnxruntime": ("onnxruntime", 32), " in onnxruntime, 8 bit": ("onnxruntime", 8)}
    for ending, run in runs.items():
        for row in converted(mine, chooser="dense", factors=f"dense{ending}"):
            assert (row["runtime"], row["bits"]) == run
            assert (row["factors"], row["stored_as"], row["scope"]) == ("none", "dense", "none")
    for row in converted(mine, factors="relu-aware in onnxruntime, 8 bit"):
        assert (row["chooser"], row["factors"], row["stored_as"]) == ("exact-Fisher", "relu-aware", "low rank")
    scopes = {"lenet300": "hidden layers", "resnet20": "inner layers"}
    found = {(row["network"], row["scope"]) for row in converted(mine, way="low rank")}
    assert found == set(scopes.items())
    (ddlr,) = converted(mine, chooser="DDLR, cut, refit")
    (trimmed,) = converted(mine, chooser="Net-Trim, cut, refit")
    assert (ddlr["chooser"], ddlr["factors"], ddlr["cut_below"]) == ("DDLR", "convex", 0.05)
    assert (trimmed["chooser"], trimmed["factors"], trimmed["cut_below"]) == ("Net-Trim", "none", 0.01)
    for row in converted(mine, way="units"):
        assert row["stored_as"] == ("units" if row["chooser"] == "units" else "both")
        assert row["refit"] == "least squares"
    for row in converted(mine, way="zeros"):
        assert (row["stored_as"], row["factors"]) == ("sparse", "none")
        assert row["cut"] == ("fixed" if row["chooser"] == "Net-Trim" else "none")


@pytest.mark.parametrize(
    ("notebook", "change"),
    [
        ("02_arsvd", {"chooser": "energetic"}),
        ("02_arsvd", {"factors": "sequential"}),
        ("02_arsvd", {"scope": "some layers"}),
        ("02_arsvd", {"target": "kept a fifth"}),
        ("02_arsvd", {"target": "kept 0.20, half-tuned"}),
        ("02_arsvd", {"target": "steps", "epsilon": ""}),
        ("02_arsvd", {"target": "dense"}),
        ("02_arsvd", {"way": "low rank"}),
        ("02b_convolutions", {"scope": "every layer"}),
        ("03_entropy_pruning", {"chooser": "unit luck"}),
        ("04_ddlr", {"factors": "cut 7 %"}),
        ("05_rank_search", {"chooser": "ENC-Guess"}),
        ("06_side_by_side", {"way": "16 bit"}),
        ("06_side_by_side", {"factors": "svd in tensorrt"}),
        ("07_new", {}),
    ],
)
def test_an_unknown_phrase_is_named(old, notebook, change):
    rows = old[(old["notebook"] == notebook) & (old["chooser"] != "dense")]
    rows = rows if len(rows) else old[1:2].assign(notebook=notebook)
    with pytest.raises(ValueError, match=r"is no .* that rows of") as raised:
        conversion.convert(rows.assign(**change))
    assert str(next(iter(change.values()), notebook)) in str(raised.value)


def test_numbers_survive_to_the_last_bit(old):
    old.loc[0, ["accuracy", "loss", "f1"]] = ["0.30000000000000004", "5e-324", "0.1"]
    new = conversion.convert(old)
    checked = 0
    for name in old.columns.intersection(list(columns.COLUMNS)):
        if columns.COLUMNS[name].dtype == "string" or name in columns.KEY:
            continue
        for before, after in zip(old[name], new[name], strict=True):
            if before == "":
                assert pd.isna(after), name
            else:
                assert struct.pack("d", float(before)) == struct.pack("d", float(after)), name
                checked += 1
    assert checked > 10 * len(old)


def test_text_survives(old):
    new = conversion.convert(old)
    for name in ("notebook", "dataset", "network", "plan", "scheme", "needs", "address"):
        assert new[name].fillna("").tolist() == old[name].tolist(), name


def test_typed_rows_convert_as_text_does(old):
    typed = pd.read_csv(SAMPLE, low_memory=False)
    pd.testing.assert_frame_equal(conversion.convert(typed), conversion.convert(old))


def test_the_command_writes_typed_parquet(old, tmp_path, capsys):
    conversion.main([str(SAMPLE), str(tmp_path / "new.parquet")])
    read = pd.read_parquet(tmp_path / "new.parquet")
    pd.testing.assert_frame_equal(read, conversion.convert(old))
    pd.testing.assert_frame_equal(columns.table(read), read)
    assert [p.name for p in tmp_path.iterdir()] == ["new.parquet"]
    assert f"03_entropy_pruning: {(old['notebook'] == '03_entropy_pruning').sum()} rows" in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["phrase", "no file", "no arguments"])
def test_the_command_says_why_it_cannot(old, tmp_path, broken):
    place = tmp_path / "old.csv"
    if broken == "phrase":
        old.assign(target="somehow").to_csv(place, index=False)
    given = [] if broken == "no arguments" else [str(place), str(tmp_path / "new.parquet")]
    said = {"phrase": "'somehow' is no target", "no file": "old.csv is not converted", "no arguments": "usage: "}
    with pytest.raises(SystemExit, match=said[broken]):
        conversion.main(given)
    assert not (tmp_path / "new.parquet").exists()
