"""All notebooks as lessons: short cells, numbers and no verdicts, exercises that their solutions answer."""

import ast
import re
from pathlib import Path

import pytest

from conftest import check_calls as checks
from conftest import notebook_cells as cells
from lowrank_utils import paths
from lowrank_utils.workbook import gallery, language
from lowrank_utils.workbook.chapters import (
    arsvd,
    convolutions,
    ddlr_lesson,
    entropy_lesson,
    kernels,
    language_lesson,
    language_model,
    rank_search,
    side_by_side,
    ten_minutes,
    training,
)

NAMES = tuple(sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")))
UNTIMED = ("01_training", "02b_convolutions")  # where only versions and speeds go uncompared
OWN_NAMES = ("05_rank_search", "06_side_by_side")  # whose solutions build what a check expects under other names
LESSONS = [paths.NOTEBOOKS / f"{name}.ipynb" for name in NAMES]
SOLUTIONS = [paths.SOLUTIONS / f"{name}.ipynb" for name in NAMES]

CHAPTERS = (
    ten_minutes,
    training,
    arsvd,
    convolutions,
    kernels,
    entropy_lesson,
    ddlr_lesson,
    rank_search,
    side_by_side,
    language_lesson,
    language_model,
)
OF_THE_GALLERY = ("about_gallery_norms", "about_batch_norms")  # they speak of published rows of public networks only


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


# ---- nothing that is true of the default run alone may stand in a run with other data or another network

DEFAULTS = (
    "dataset",
    "network",
    "networks",
    "corpus",
    "language_model",
    "big",
)  # parameters that name what is looked at
OF_ONE_RUN = r"(?:fc|conv)\d+"  # layers of one network


def default_names(path):
    """A pattern of the names of data and networks in the parameters of a lesson, of their spellings, and of layers."""
    (cell,) = [cell for cell in cells(path) if "parameters" in cell.metadata.get("tags", [])]
    given = {line.target.id: ast.literal_eval(line.value) for line in ast.parse(cell.source).body}
    names = [
        one for key in DEFAULTS for one in ([given[key]] if isinstance(given.get(key), str) else given.get(key, []))
    ]
    spelt = {re.split(r"-\d", name)[0] for name in names} | {"LeNet-300", "T-shirt", "Trouser"}
    return re.compile(rf"(?i)\b(?:{'|'.join(map(re.escape, spelt))}|{OF_ONE_RUN})\b")


def sentences_of_one_run(prose, names):
    """The sentences that name what the default run looks at and do not say that they speak of it or of the gallery."""
    prose = re.sub(r"`(?:python -m|papermill|make) [^`]*`", "", prose)
    said = re.split(r"(?<=[.?!])\s+(?=[A-Z(*`])|\n", prose)
    return [s for s in said if names.search(s) and not re.search(r"(?i)default|gallery|preset", s)]


@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_prose_says_where_it_speaks_of_the_default_run(path):
    names = default_names(path)
    for cell in cells(path, "markdown"):
        prose = cell.source.split("## References")[0]
        assert sentences_of_one_run(prose, names) == []


def test_a_sentence_of_the_default_run_is_found():
    names = default_names(paths.NOTEBOOKS / "07_language_model.ipynb")
    told = "SmolLM2-135M has 134.5 million parameters. The default model, SmolLM2-135M, is small. It loses little in `fc1`."
    assert sentences_of_one_run(told, names) == [told.split(". ")[0] + ".", "It loses little in `fc1`."]


def written_texts(module):
    """What the functions of a chapter that write sentences hold as text: (function, text)."""
    tree = ast.parse(Path(module.__file__).read_text("utf-8"))
    writers = [
        f for f in tree.body if isinstance(f, ast.FunctionDef) and re.match(r"_?(about|reading|decision)", f.name)
    ]
    found = []
    for function in writers:
        body = function.body[1:] if ast.get_docstring(function) else function.body
        texts = [node.value for part in body for node in ast.walk(part) if isinstance(node, ast.Constant)]
        found += [(function.name, text) for text in texts if isinstance(text, str)]
    return found


@pytest.mark.parametrize("module", CHAPTERS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_sentences_take_names_of_data_and_networks_from_the_rows(module):
    known = re.compile(rf"(?i)fashion|mnist|cifar|lenet|vgg|smollm|wikitext|shirt|\b{OF_ONE_RUN}\b")
    texts = [one for one in written_texts(module) if one[0] not in OF_THE_GALLERY]
    assert [one for one in texts if known.search(one[1])] == []


def of_another_run(rows):
    """The rows as if they were of other data, other networks and with other results."""
    rows = rows.copy()
    if "network" in rows:
        names = {name: f"other_net_{i}" for i, name in enumerate(rows["network"].unique())}
        rows["network"], rows["dataset"] = rows["network"].map(names), "other-images"
    for column in ("accuracy", "valid_accuracy", "rise"):
        if column in rows:
            # the accuracies turn round, so that what was best is now worst
            rows[column] = (1.1 if column == "rise" else 1) * rows[column].max() + rows[column].min() - rows[column]
    return rows


def told_of(rows, notebook):
    """All sentences of a lesson that are written from rows alone."""
    if notebook == "04_ddlr":
        writers = (ddlr_lesson.about_layers, ddlr_lesson.about_equal_size, ddlr_lesson.about_verdict)
        return [write(rows) for write in writers]
    if notebook == "05_rank_search":
        return [rank_search.about_gains(rows)]
    if notebook == "06_side_by_side":
        kinds = ["svd", "data-aware", "sequential"]
        told = [write(rows, 0.25) for write in (side_by_side.about_crossed, side_by_side.decision)]
        told += [side_by_side.about_tuned(rows), side_by_side.about_seeds(rows, 0.25, kinds)]
        return told
    return [language_model.reading(rows)]


@pytest.mark.parametrize(
    "notebook, networks",
    [("04_ddlr", ["lenet300"]), ("05_rank_search", None), ("06_side_by_side", ["lenet300", "vgg_small"]), ("07", None)],
)
def test_sentences_of_another_run_are_written_from_its_rows(notebook, networks):
    rows = language.published() if notebook == "07" else gallery.published_rows(notebook=notebook)
    if networks:
        rows = rows[rows["network"].isin(networks) & (rows["dataset"] == "fashion-mnist")]
    before, after = told_of(rows, notebook), told_of(of_another_run(rows), notebook)
    names = [] if notebook == "07" else rows["network"].unique()
    for one, other in zip(before, after):
        assert not re.search(rf"(?i)fashion|mnist|cifar|lenet|vgg|resnet|smollm|wikitext|\b{OF_ONE_RUN}\b", other), (
            other
        )
        assert one != other or one.startswith("These rows hold no"), (
            one
        )  # the results are others, and so is what is said
        assert ("other_net_0" in other) == any(name in one for name in names)
