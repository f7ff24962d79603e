"""The committed notebooks: fit to be read and rerun anywhere, and compared so that a wrong number shows."""

import ast
import copy
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml
from click.testing import CliRunner
from papermill import cli

from conftest import write_notebook
from lowrank_utils import paths
from lowrank_utils.workbook import chapters, gallery, jobs, runs

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
ALL = NOTEBOOKS + sorted(paths.SOLUTIONS.glob("*.ipynb"))
LARGEST = 3 * 2**20  # bytes; a larger file is slow to open and to review


def each(files):
    return pytest.mark.parametrize("path", files, ids=lambda p: p.relative_to(paths.NOTEBOOKS).as_posix())


def read(path):
    return nbformat.read(path, as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


def parameters_cells(notebook):
    return [cell for cell in notebook.cells if "parameters" in tags(cell)]


def outputs(notebook):
    return [(i, o) for i, cell in enumerate(notebook.cells, 1) for o in cell.get("outputs", [])]


# ---- hygiene


def test_the_notebooks_are_there():
    wanted = {chapter.NOTEBOOK for chapter in chapters.every().values()}
    assert len(wanted) >= 7 and {path.stem for path in NOTEBOOKS} == wanted
    assert [p.name for p in NOTEBOOKS] == [p.name for p in sorted(paths.SOLUTIONS.glob("*.ipynb"))]


@each(ALL)
def test_file_is_valid_and_small(path):
    nbformat.validate(read(path))
    assert path.stat().st_size < LARGEST


@each(ALL)
def test_every_cell_was_run_in_order_and_without_error(path):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert gallery.errors(notebook) == []


@each(ALL)
def test_nothing_of_one_machine_or_one_run_is_kept(path):
    notebook = read(path)
    assert gallery.machine_paths(notebook) == []
    assert not [cell for cell in notebook.cells if "injected-parameters" in tags(cell)]
    assert "papermill" not in notebook.metadata and not [c for c in notebook.cells if "papermill" in c.metadata]
    assert not [c for c in notebook.cells if "execution" in c.metadata], "timings: run make notebooks"
    assert not [i for i, o in outputs(notebook) if o.get("name") == "stderr"], "stderr: run make notebooks"


@each(ALL)
def test_nothing_waits_to_be_written_or_published(path):
    notebook = read(path)
    for cell in notebook.cells:
        assert not re.search(r"\b(TODO|TAKE|READ\d*|RUNTIME)\b", cell.source), cell.source
    said = "".join(o.get("text", "") for _, o in outputs(notebook))
    assert "no gallery rows" not in said, "the gallery has no rows for the default run"


@each(ALL)
def test_kernel_is_named(path):
    assert read(path).metadata.kernelspec.name == "python3"


@each(ALL)
def test_every_image_is_a_png(path):
    kinds = {kind for _, o in outputs(read(path)) for kind in o.get("data", {}) if kind.startswith("image/")}
    assert kinds <= {"image/png"}


@each(NOTEBOOKS)
def test_parameters_are_typed_and_explained(path):
    (cell,) = parameters_cells(read(path))
    lines = list(ast.parse(cell.source).body)
    assert all(isinstance(line, ast.AnnAssign) for line in lines)
    written = [line.target.id for line in lines]
    seen = jobs.inspect(path)
    assert list(seen) == written, "papermill passes over a line with a second = sign, in its comment too"
    assert all(kind != "None" and text for kind, _, text in seen.values())
    assert seen["output_folder"][:2] == ("str", "")


@each(NOTEBOOKS)
def test_output_folder_is_used(path):
    assert "save(output_folder" in "".join(c.source for c in read(path).cells if c.cell_type == "code")


@each(ALL)
def test_numbers_are_compared(path):
    assert compared(read(path)), "no cell with a number in its output is compared by nbval"


def compared(notebook):
    """Positions of the code cells whose output nbval compares and that hold a number as text."""
    found = []
    for i, cell in enumerate(notebook.cells):
        ignored = {"nbval-ignore-output", "nbval-skip"} & set(tags(cell)) or "NBVAL_" in cell.source
        if cell.cell_type == "code" and not ignored and any(number(o) for o in cell.outputs):
            found.append(i)
    return found


def number(output):
    data = output.get("data", {})
    if output.get("name") == "stderr" or "image/png" in data:  # a figure's text is its size
        return False
    return re.search(r"\d", output.get("text") or data.get("text/plain", ""))


# ---- nbval, with the options of make test


def nbval(path):
    """Run pytest on one notebook in its folder as make test runs it on all; return (exit code, output)."""
    for name in ("pyproject.toml", "conftest.py"):
        shutil.copy(paths.ROOT / name, path.parent)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "-n0", path.name]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, timeout=580)
    return done.returncode, done.stdout + done.stderr


def with_wrong_digit(notebook, position):
    """The notebook with the last digit of one cell's stored output changed."""
    wrong = copy.deepcopy(notebook)
    output = next(o for o in wrong.cells[position].outputs if number(o))
    holder, key = (output, "text") if "text" in output else (output.data, "text/plain")
    holder[key] = re.sub(r"\d(?=\D*$)", lambda m: str((int(m[0]) + 1) % 10), holder[key])
    return wrong


def code_position(notebook, position):
    return sum(cell.cell_type == "code" for cell in notebook.cells[:position])


@pytest.mark.slow
@each(NOTEBOOKS)
def test_nbval_fails_on_a_wrong_number(path, tmp_path):
    notebook = read(path)
    exact = [place for place in compared(notebook) if "tolerance" not in notebook.cells[place].metadata]
    position = exact[0]  # a wrong digit may be within a tolerance
    notebook.cells = notebook.cells[: position + 1]  # what comes before is enough, and quick
    copied = tmp_path / path.name
    nbformat.write(with_wrong_digit(notebook, position), copied)
    code, output = nbval(copied)
    cell = code_position(notebook, position)
    assert code == 1 and f"::Cell {cell} " in output, output
    assert re.search(rf"1 failed, {cell} passed", output), output


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A toy notebook, executed: text, a table, an error stream, and a cell that is ignored."""
    path = tmp_path_factory.mktemp("toy") / "toy.ipynb"
    write_notebook(
        path,
        "import sys, time\nprint('rank 12 of 300')",
        "import pandas\npandas.DataFrame({'accuracy': [0.5]})",
        "print(time.time(), file=sys.stderr)",
        "# NBVAL_IGNORE_OUTPUT\nprint(time.time())",
    )

    runs.refresh(path)
    return path


@pytest.mark.slow
def test_nbval_passes_over_stderr_and_what_is_ignored(toy, tmp_path):
    code, output = nbval(shutil.copy(toy, tmp_path / "toy.ipynb"))
    assert code == 0 and "5 passed" in output, output


@pytest.mark.slow
def test_nbval_compares_text_and_tables(toy, tmp_path):
    notebook = read(toy)
    for position in (2, 3):
        notebook = with_wrong_digit(notebook, position)
    copied = tmp_path / "toy.ipynb"
    nbformat.write(notebook, copied)
    code, output = nbval(copied)
    assert code == 1 and "2 failed, 3 passed" in output, output
    assert re.findall(r"FAILED toy.ipynb::(Cell \d)", output) == ["Cell 1", "Cell 2"]


# ---- papermill alone, from another folder


def papermill(*words, folder):
    command = [sys.executable, "-m", "papermill", *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=580)


@each(NOTEBOOKS)
def test_papermill_explains_every_parameter(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(cli.papermill, ["--help-notebook", str(path)]).stdout
    for name, (kind, _, text) in jobs.inspect(path).items():
        assert f"{name}: {kind} (default" in shown and text in shown


# What a notebook takes minutes for at its defaults, which nbval runs.
LESS = {
    "dataset": "digits",
    "epochs": 2,
    "networks": ["lenet300"],
    "evaluations": 2,
    "measure_images": 100,
    "big": "torchvision/alexnet",
    "window": 64,
    "test_windows": 1,
    "pairs": ["exact, fisher-layerwise"],
}


@pytest.mark.slow
@each(NOTEBOOKS)
def test_papermill_runs_it_from_another_folder(path, tmp_path):
    words = ["-p", "output_folder", tmp_path / "out", "--no-progress-bar"]
    for name in LESS.keys() & jobs.inspect(path):
        words += ["-y", yaml.safe_dump({name: LESS[name]})]
    done = papermill(path, "out.ipynb", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "unknown parameter" not in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"out", "out.ipynb"}
    assert (tmp_path / "out" / "results.csv").stat().st_size > 0
