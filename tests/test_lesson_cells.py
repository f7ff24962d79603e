"""All notebooks as lessons: short cells, numbers and no verdicts, exercises that their solutions answer."""

import ast
import re

import pytest

from conftest import check_calls as checks
from conftest import notebook_cells as cells
from lowrank_utils import paths

NAMES = tuple(sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")))
UNTIMED = ("01_training", "02b_convolutions")  # where only versions and speeds go uncompared
OWN_NAMES = ("05_rank_search", "06_side_by_side")  # whose solutions build what a check expects under other names
LESSONS = [paths.NOTEBOOKS / f"{name}.ipynb" for name in NAMES]
SOLUTIONS = [paths.SOLUTIONS / f"{name}.ipynb" for name in NAMES]


def asked_in_any_names(call):
    """What a check asks, without the expected value: name of the answer, tolerance, hint."""
    call = ast.parse(call).body[0].value
    return [ast.unparse(part) for part in (call.args[0], *(word.value for word in call.keywords))]


@pytest.mark.parametrize("path", LESSONS + SOLUTIONS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_cells_are_short_and_state_no_verdict(path):
    for cell in cells(path):
        parameters = "parameters" in cell.metadata.get("tags", [])
        assert parameters or len(cell.source.splitlines()) <= 12, cell.source
        assert cell.source.count("lambda") <= ("key=lambda" in cell.source), cell.source
        said = "".join(o.get("text", "") for o in cell.outputs)
        assert not re.search(r"(?<!=)\b(True|False)\b", said), said
    ignored = [cell.source for cell in cells(path) if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    if path.stem in UNTIMED:
        assert all("torch.__version__" in source or "speed" in source for source in ignored)


@pytest.mark.parametrize("lesson, solutions", list(zip(LESSONS, SOLUTIONS)), ids=NAMES)
def test_lesson_and_solutions_ask_the_same_of_four_answers(lesson, solutions):
    asked = checks(lesson)
    answered = checks(solutions)
    assert len(asked) == 4 and [*map(asked_in_any_names, answered)] == [*map(asked_in_any_names, asked)]
    if lesson.stem not in OWN_NAMES:
        assert answered == asked
    assert [o.text for c in cells(solutions) if "check(" in c.source for o in c.outputs] == ["right\n"] * 4
    assert [o.text for c in cells(lesson) if "check(\n" in c.source for o in c.outputs] == ["not answered\n"] * 4


@pytest.mark.parametrize("path", LESSONS[1:], ids=NAMES[1:])  # the first holds the glossary
def test_links_to_the_glossary_have_a_target(path):
    glossary = cells(paths.NOTEBOOKS / "00_low_rank_in_ten_minutes.ipynb", "markdown")
    words = re.findall(r"^##+ (.*)$", "\n".join(cell.source for cell in glossary), re.M)
    lesson = "\n".join(cell.source for cell in cells(path, "markdown"))
    linked = set(re.findall(r"ten_minutes\.ipynb#([\w-]+)", lesson))
    assert len(linked) > 3 and linked <= {word.lower().replace(" ", "-") for word in words}


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_prose_quotes_no_result(path):
    for cell in cells(path, "markdown"):
        assert not re.search(r"\d\.\d+ ?%|\d\.\d+ points", cell.source), cell.source
