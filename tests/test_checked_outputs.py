"""Outputs of notebooks compared within a cell's tolerance: by the module's functions, and by nbval itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pandas as pd
import pytest

from lowrank_utils.workbook import checked
from lowrank_utils.workbook.checked import Tolerance

ROOT = Path(__file__).resolve().parents[1]
HALF = {"abs": 0.5}

# ---- words and numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("plain 97.1%, data-aware 96.05 %", ["97.1", "96.05"]),
        ("-1 +2 \u22123 (-4) [-5] x=-6 |-7|", ["-1", "2", "-3", "-4", "-5", "-6", "-7"]),
        ("0.7-1.2 points, 5%-6%, (3)-2", ["0.7", "1.2", "5", "6", "3", "2"]),  # hyphens
        ("1,234 and 1,234,567.8", ["1234", "1234567.8"]),
        ("[1,2] 12,34 1,234,56 fc1,123,456", ["1", "2", "12", "34", "1", "234", "56", "123", "456"]),  # commas of lists
        ("1e-05 3.2E+4 1.e-05 .5 7.", ["0.00001", "3.2E+4", "0.00001", "0.5", "7"]),
        ("nan NaN inf -inf", ["NaN", "NaN", "Infinity", "-Infinity"]),
        ("3ms 4k 1.5x 2nd", ["3", "4", "1.5", "2"]),
        ("fc1 conv2d seed0 x_3 _7 ResNet-56 top-5 lenet-300-100 layer1.0.bn2 nano info x.5", []),
        ("28x28 3x3 0x1f 3f2a9c 1.2.3 2.4.0rc1 v2.1 2026-11-24 02b 007 0.weight 1_000", []),
    ],
)
def test_what_is_a_number(text, numbers):
    found = [number.value for number in checked.split(text)[1]]
    assert [str(value) for value in found] == [str(checked.Decimal(number)) for number in numbers]


def test_inside_tags_nothing_is_a_number():
    text = '<style>td {width: 3em}</style><td colspan="2">4</td>&#39;<!-- 5 -->'
    assert [number.text for number in checked.split(text, tags=True)[1]] == ["4"]


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        ("a  9.9\nb 10.1", "a 10.1\nb  9.9"),
        ("[ 9.9 -0.1]", "[10.1  0.1]"),
        ("[2. 3.]", "[2.4 3. ]"),
        ("it is 9.", "it is 9.4."),  # the sentence's full stop
        ("rank 83 of 100", "rank 83.5 of 99.5"),
        ("|  9.9 |\n|-----:|", "| 10.1 |\n|------:|"),
        ("nan inf -inf", "nan inf -inf"),
        ("1,000", "999.5"),
    ],
)
def test_numbers_may_differ_by_half(stored, computed):
    assert checked.difference(stored, computed, Tolerance(abs=0.5)) == ""
    assert checked.difference(computed, stored, Tolerance(abs=0.5)) == ""


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        ("9.9", "10.5"),
        ("0.4", "-0.2"),
        ("a 1", "b 1"),
        ("a 1", "A 1"),
        ("1 a", "1 b"),
        ("1%", "1"),
        ("1,000", "1.0"),
        ("fc1 1", "fc2 1"),
        ("conv2d", "conv3d"),
        ("28x28", "28x29"),
        ("torch 2.4.0", "torch 2.4.1"),
        ("nan", "0.1"),
        ("nan", "inf"),
        ("inf", "-inf"),
        ("12 3", "123"),
        ("1 2", "1 2 2"),
        ("1\n2\n2", "1\n2"),
        ("1 2", "1\n2"),
        ("is 3.", "is 3"),
        ("0.1-0.2", "0.1 -0.2"),
        ("a b 1", "ab 1"),
    ],
)
@pytest.mark.parametrize("tags", [False, True])
def test_what_differs(stored, computed, tags):
    assert checked.difference(stored, computed, Tolerance(abs=0.5), tags)
    assert checked.difference(computed, stored, Tolerance(abs=0.5), tags)


def test_decimals_are_compared_as_printed():
    assert not checked.difference("0.1", "0.4", Tolerance(abs=0.3))
    assert checked.difference("0.1", "0.41", Tolerance(abs=0.3))


def test_either_tolerance_will_do():
    both = Tolerance(abs=0.5, rel=0.01)
    assert not checked.difference("1.0 1000", "1.5 1010", both)
    assert (
        checked.difference("1000", "1011", both) == "1000 is stored, 1011 was computed: not within abs 0.5 or rel 0.01"
    )


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"abs": -1}, "abs is below 0"),
        ({"rel": -0.1}, "rel is a share"),
        ({"rel": 1}, "rel is a share"),
        ({"abs": "0.5"}, "abs is not a finite number"),
        ({"abs": True}, "abs is not a finite number"),
        ({"abs": float("nan")}, "abs is not a finite number"),
        ({"rel": float("inf")}, "rel is not a finite number"),
        ({"absolute": 1}, "write"),
        ({"abs": 1, "digits": 2}, "write"),
        ({}, "write"),
        (0.5, "write"),
        (None, "write"),
    ],
)
def test_an_ill_formed_tolerance_is_refused(entry, says):
    with pytest.raises(ValueError, match=f"^tolerance .*{says}"):
        checked.read(entry)


@pytest.mark.parametrize(("kind", "tags"), [("text/plain", False), ("text/html", True)])
def test_rows_of_a_table_keep_their_names_number_and_order(kind, tags):
    def text(names, accuracies):
        return table(names, accuracies)[1][0]["data"][kind]

    stored = text(["fc1", "fc2"], [9.9, 50.0])
    assert not checked.difference(stored, text(["fc1", "fc2"], [10.1, 50.4]), Tolerance(abs=0.5), tags)
    for names, accuracies in (
        (["fc1", "fc2"], [9.9, 50.6]),
        (["fc1", "fc3"], [9.9, 50.0]),
        (["fc1"], [9.9]),
        (["fc1", "fc2", "fc2"], [9.9, 50.0, 50.0]),
        (["fc2", "fc1"], [50.0, 9.9]),
    ):
        assert checked.difference(stored, text(names, accuracies), Tolerance(abs=0.5), tags)


def test_outputs_are_left_as_they_are_and_only_texts_are_settled():
    def outputs(number):
        drawing = {"text/plain": f"at {number}", "image/svg+xml": f"<svg>{number}</svg>", "text/latex": f"${number}$"}
        return [
            {"output_type": "stream", "name": "stdout", "text": f"now {number}"},
            {"output_type": "display_data", "data": drawing, "metadata": {}},
        ]

    settled, sentences = checked.settle(outputs(3.1), outputs(3), Tolerance(abs=0.5))
    assert sentences == []
    assert settled[0] == outputs(3)[0]
    assert settled[1]["data"] == {**outputs(3.1)[1]["data"], "text/plain": "at 3"}
    computed = outputs(3.1)
    checked.settle(computed, outputs(3), Tolerance(abs=0.5))
    assert computed == outputs(3.1)


def test_tags_are_looked_for_where_they_can_be():
    def outputs(text):
        return [{"output_type": "display_data", "data": dict.fromkeys(checked.TEXTS, text), "metadata": {}}]

    _, sentences = checked.settle(outputs('<td width="3">'), outputs('<td width="4">'), Tolerance(abs=1))
    assert [sentence.partition(":")[0] for sentence in sentences] == ["text/html", "text/markdown"]


# ---- nbval itself: each case is a cell, what it has stored, its metadata, and what its failure says ("" if it passes)


def printed(text):
    return [nbformat.v4.new_output("stream", name="stdout", text=text)]


def shown(**data):
    kinds = {"plain": "text/plain", "html": "text/html", "markdown": "text/markdown", "svg": "image/svg+xml"}
    return [nbformat.v4.new_output("display_data", data={kinds[key]: value for key, value in data.items()})]


def table(names, accuracies):
    frame = pd.DataFrame({"layer": names, "accuracy": accuracies, "rank": [8] * len(names)})
    result = shown(plain=repr(frame), html=frame._repr_html_())
    return f"display(pd.DataFrame({frame.to_dict('list')}))", result


def tabled(names, accuracies, stored_names=("fc1", "fc2", "fc3"), stored=(9.9, 50.0, 99.25)):
    return table(names, accuracies)[0], table(list(stored_names), list(stored))[1]


NAMES = ["fc1", "fc2", "fc3"]
DRAWN = "display({'text/plain': 'a drawing 3.1', 'image/svg+xml': '<svg>3.1</svg>'}, raw=True)"
CASES = {
    "begins": ("import pandas as pd", [], None, ""),
    "text within": ("print('plain 10.2%, fc1')", printed("plain 9.9%, fc1\n"), HALF, ""),
    "text within a share": ("print(f'{1040:,} bytes')", printed("1,000 bytes\n"), {"rel": 0.05}, ""),
    "either": ("print(1.4, 1040)", printed("1.0 1000\n"), {"abs": 0.5, "rel": 0.05}, ""),
    "table within": (*tabled(NAMES, [10.1, 50.25, 99.0]), HALF, ""),
    "markdown within": (
        "display({'text/plain': '<x>', 'text/markdown': 'It loses **1.1** points.'}, raw=True)",
        shown(plain="<x>", markdown="It loses **0.9** points."),
        HALF,
        "",
    ),
    "number outside": ("print('loss 0.9')", printed("loss 0.2\n"), HALF, "0.2 is stored, 0.9 was computed"),
    "a share outside": ("print(1060)", printed("1000\n"), {"rel": 0.05}, "not within rel 0.05"),
    "number in a table outside": (
        *tabled(NAMES, [9.9, 51.0, 99.25]),
        HALF,
        "text/plain: 50.00 is stored, 51.00 was computed",
    ),
    "number in Markdown outside": (
        "display({'text/plain': '<x>', 'text/markdown': '**1.9** points'}, raw=True)",
        shown(plain="<x>", markdown="**0.9** points"),
        HALF,
        "text/markdown: 0.9 is stored, 1.9 was computed",
    ),
    "word changed": (
        "print('energy 0.9')",
        printed("entropy 0.9\n"),
        HALF,
        "'entropy' is stored, 'energy' was computed",
    ),
    "name changed": ("print('fc2 0.9')", printed("fc1 0.9\n"), HALF, "'fc1' is stored, 'fc2' was computed"),
    "word in a table changed": (*tabled(["fc1", "fc2", "fc4"], [9.9, 50.0, 99.25]), HALF, "mismatch"),
    "row missing": (*tabled(NAMES[:2], [9.9, 50.0]), HALF, "mismatch"),
    "row missing, tolerance large": (*tabled(NAMES[:2], [9.9, 50.0]), {"abs": 1e6}, "mismatch"),
    "row too many": (*tabled([*NAMES, "fc3"], [9.9, 50.0, 99.25, 99.25]), HALF, "mismatch"),
    "table reordered": (*tabled(["fc2", "fc1", "fc3"], [50.0, 9.9, 99.25]), HALF, "mismatch"),
    "table reordered, numbers alike": (
        *tabled(["fc2", "fc1", "fc3"], [9.8, 9.9, 9.9], stored=(9.9, 9.8, 9.9)),
        HALF,
        "'fc1' is stored, 'fc2' was computed",
    ),
    "output missing": ("print(1)", printed("1\n") + shown(plain="2"), HALF, "Missing output fields"),
    "output too many": (
        "print(1); display(2); display(2)",
        printed("1\n") + shown(plain="2"),
        HALF,
        "dissimilar number",
    ),
    "drawings exact": (DRAWN, shown(plain="a drawing 3.0", svg="<svg>3.0</svg>"), HALF, "image/svg+xml"),
    "cleaned before": ("print('by Ada: 0.3')", printed("by Bob: 0.4\n"), HALF, ""),
    "no entry, equal": ("print('loss 0.3001')", printed("loss 0.3001\n"), None, ""),
    "no entry, last digit": ("print('loss 0.3001')", printed("loss 0.3002\n"), None, "Cell outputs differ"),
    "no entry, a space": ("print('loss  0.3')", printed("loss 0.3\n"), None, "Cell outputs differ"),
    "no entry, table": (*tabled(NAMES, [9.9, 50.0, 99.26]), None, "Cell outputs differ"),
    "stderr is passed over": ("import sys; print(1); print(9, file=sys.stderr)", printed("1\n"), HALF, ""),
    "ill-formed": (
        "after = 1; print(2)",
        printed("2\n"),
        {"abs": -1},
        "of toy.ipynb: tolerance {'abs': -1}: abs is below 0",
    ),
    "ill-formed, unknown": ("print(2)", printed("2\n"), {"digits": 1}, "of toy.ipynb: tolerance {'digits': 1}: write"),
    "behind an ill-formed one": ("print(after)", printed("1\n"), None, ""),
    "the check of an exercise": (
        "from lowrank_utils.workbook.exercises import check\nanswer = ...\ncheck(answer, 2)",
        printed("not answered\n"),
        None,
        "",
    ),
}


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """What nbval says of each cell of one notebook that has all cases, next to the project's own conftest.py."""
    folder, new, cells = tmp_path_factory.mktemp("checked"), nbformat.v4, []
    for i, (source, outputs, tolerance, _) in enumerate(CASES.values(), 1):
        metadata = {} if tolerance is None else {"tolerance": tolerance}
        cells.append(new.new_code_cell(source, outputs=outputs, metadata=metadata, execution_count=i))
    nbformat.write(new.new_notebook(cells=cells), folder / "toy.ipynb")
    shutil.copy(ROOT / "conftest.py", folder)
    (folder / "clean.cfg").write_text("[names]\nregex: by \\w+\nreplace: by NAME\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--nbval-current-env",
        "--nbval-sanitize-with=clean.cfg",
        "--color=no",
        "--junitxml=said.xml",
        ".",
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1, done.stdout + done.stderr
    said = {}
    for case in ElementTree.parse(folder / "said.xml").iter("testcase"):
        parts = [part.get("message", "") + (part.text or "") for part in case]
        said[case.get("name")] = "".join(parts)
    return dict(zip(CASES, (said[f"Cell {i}"] for i in range(len(CASES))), strict=True))


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_nbval_compares_within_the_tolerance(failures, case):
    expected = CASES[case][3]
    if expected:
        assert expected in failures[case]
    else:
        assert failures[case] == ""
