"""All notebooks as lessons: short cells, numbers and no verdicts, exercises that their solutions answer."""

import ast
import re

import nbformat
import pytest

from lowrank_utils import paths

NAMES = tuple(sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")))
UNTIMED = ("01_training", "02b_convolutions")  # where only versions and speeds go uncompared
LESSONS = [paths.NOTEBOOKS / f"{name}.ipynb" for name in NAMES]
SOLUTIONS = [paths.SOLUTIONS / f"{name}.ipynb" for name in NAMES]


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def checks(path):
    """What the check calls of a notebook ask: name of the answer, its tolerance and hint. The solution may say it in names of its own."""
    calls = [node for cell in cells(path) for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
    found = [call for call in calls if getattr(call.func, "id", "") == "check"]
    return [[ast.unparse(part) for part in (call.args[0], *(word.value for word in call.keywords))] for call in found]


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
    assert len(asked) == 4 and checks(solutions) == asked
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
