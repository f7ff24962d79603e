"""The text twins: in step with their notebooks, complete but for outputs, and told apart when they are not."""

import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

from conftest import write_notebook
from lowrank_utils import paths
from lowrank_utils.workbook import runs, twins

ALL = twins.originals()


def each(files):
    return pytest.mark.parametrize("path", files, ids=lambda p: p.relative_to(paths.NOTEBOOKS).as_posix())


def cells(notebook):
    return [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in notebook.cells]


def test_there_are_notebooks_and_solutions_to_look_at():
    assert {paths.NOTEBOOKS, paths.SOLUTIONS} <= {path.parent for path in ALL} and len(ALL) >= 16


@each(ALL)
def test_the_twin_is_in_step(path):
    twin = twins.twin_of(path)
    assert twin.is_file(), "python -m lowrank_utils twins"
    assert twin.read_text("utf-8") == twins.text(path), "python -m lowrank_utils twins"


def test_no_twin_has_lost_its_notebook():
    there = {path for path in (paths.NOTEBOOKS / "text").rglob("*") if path.is_file()}
    assert there == {twins.twin_of(path) for path in ALL}


@each(ALL)
def test_the_twin_has_all_but_outputs(path):
    back = jupytext.reads(twins.text(path), fmt=twins.FORMAT)
    assert cells(back) == cells(nbformat.read(path, as_version=4))  # tags, parameters and tolerances are metadata
    assert back.metadata.kernelspec.name == "python3"
    assert not any(cell.get("outputs") for cell in back.cells)


def test_upgrades_of_jupytext_change_no_twin(monkeypatch):
    before = twins.text(ALL[0])
    monkeypatch.setattr("jupytext.header.__version__", "99.9")
    assert twins.text(ALL[0]) == before and "99.9" not in before


# ---- a project of two toy notebooks


@pytest.fixture
def toy(project):
    """The toy project, its notebooks executed and their twins written."""
    for path in (project.first, project.second):
        write_notebook(path, "print('computed', 6 * 7)")
        runs.refresh(path)
    twins.write()
    return project


def changed(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.slow
def test_outputs_stay_out_and_running_again_changes_nothing(toy):
    first = toy.root / "notebooks" / "text" / "01_first.md"
    assert "6 * 7" in first.read_text() and "42" in toy.first.read_text() and "42" not in first.read_text()
    before = first.stat().st_mtime_ns
    changed(toy.first, "computed 42", "computed 43")
    assert twins.write() == twins.stale() == [] and first.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [("# A toy", "# A longer toy"), ("6 * 7", "6 * 8"), ('"parameters"', '"parameters", "more"')],
    ids=["prose", "code", "tag"],
)
def test_a_change_of_the_notebook_is_found_and_written(toy, old, new):
    changed(toy.second, old, new)
    second = toy.root / "notebooks" / "text" / "02_second.md"
    assert twins.stale() == [second]
    assert twins.write() == [second] and twins.stale() == []


@pytest.mark.slow
def test_the_command_checks_writes_and_removes(toy):
    text = toy.root / "notebooks" / "text"
    (text / "01_first.md").write_text("edited by hand")
    toy.second.rename(toy.second.with_name("03_third.ipynb"))
    before = sorted(path.name for path in text.iterdir())
    done = toy.call("twins", "--check")
    assert done.code == 1 and "run python -m lowrank_utils twins" in done.err
    names = ["01_first.md", "02_second.md", "03_third.md"]
    assert done.out.splitlines() == [f"out of step: {Path('notebooks') / 'text' / name}" for name in names]
    assert (
        sorted(path.name for path in text.iterdir()) == before
        and (text / "01_first.md").read_text() == "edited by hand"
    )
    done = toy.call("twins")
    said = [line.partition(":")[0] for line in done.out.splitlines()]
    assert done.code == 0 and said == ["written", "removed", "written"]
    assert sorted(path.name for path in text.iterdir()) == ["01_first.md", "03_third.md"]
    assert toy.call("twins", "--check").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", ["{", "\udcff", '{"cells": null, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}']
)
def test_a_damaged_notebook_is_one_sentence(toy, content):
    toy.second.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(runs.RunError, match="02_second.ipynb is no notebook"):
        twins.write()


def test_a_notebook_elsewhere_has_no_twin(tmp_path):
    with pytest.raises(ValueError, match="is not below .*notebooks"):
        twins.twin_of(tmp_path / "mine.ipynb")


def test_without_jupytext_one_sentence_says_what_to_install():
    code = (
        "import sys; sys.modules['jupytext'] = None\n"
        "from lowrank_utils.workbook import runs, twins\n"
        "try:\n    twins.text(twins.originals()[0])\nexcept runs.RunError as error:\n    print(error)"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "jupytext, which is not installed" in said and "[test]" in said


def test_pre_commit_and_make_keep_them_in_step():
    hooks = yaml.safe_load((paths.ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (hook,) = [hook for hook in hooks if "lowrank_utils twins --check" in hook["entry"]]
    assert hook["files"] == r"^notebooks/.*\.(ipynb|md)$"
    assert "lowrank_utils twins" in (paths.ROOT / "Makefile").read_text()
    extras = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(line.startswith("jupytext") for line in extras["test"])
