"""The command line: quick help, clear refusals, exit codes."""

import os
import subprocess
import sys

import pytest

from conftest import make_project
from lowrank_utils import paths
from lowrank_utils.__main__ import main


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("cli") / "project")


def test_help_answers_within_a_second(toy):
    seconds = []
    for _ in range(3):
        start = sum(os.times()[2:4])  # of the children: other tests run beside this one
        shown = toy.call("--help")
        seconds.append(sum(os.times()[2:4]) - start)
    assert shown.code == 0 and min(seconds) < 1
    assert all(
        word in shown.out for word in ("run", "sweep", "data", "report", "parameters", "twins", "publish-checkpoint")
    )


@pytest.mark.parametrize(
    "module",
    ["__main__", "workbook.runs", "workbook.jobs", "workbook.results", "workbook.gallery", "workbook.sweeps", "paths"],
)
def test_heavy_libraries_come_late(module):
    heavy = "{'torch', 'pandas', 'papermill', 'matplotlib', 'sklearn', 'distributed'}"
    code = f"import sys, lowrank_utils.{module}; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rum"], "No such command 'rum'"),
        (["run", "--onyl", "01"], "No such option"),
        (["run", "--set", "threshold"], "--set 'threshold' is not of the form name=value"),
        (["run", "--set", "seed=1", "--set", "seed=2"], "--set gives seed twice"),
        (["run", "--set", "threshold=2"], "error: threshold=2.0 is out of range"),
        (["run", "--set", "thresold=1"], "did you mean threshold?"),
        (["run", "--only", "07"], "unknown notebook '07'"),
        (["run", "--seeds", "0,x"], "--seeds '0,x' is not a list of whole numbers"),
        (["run", "02"], "use --only 02 for one notebook"),
        (["run", "--resume", "--only", "01"], "it takes no other parameters"),
        (["run", "--resume"], "there is no unfinished run"),
        (["report"], "there is no run yet"),
        (["report", "nowhere"], "there is no run 'nowhere'"),
        (
            ["data", "mnits"],
            "unknown data set 'mnits': choose fashion-mnist, mnist, cifar10, cifar100, digits, imagenet-sample, folder:PATH, python-topics",
        ),
        (["data", "file:nowhere.txt"], "nowhere.txt cannot be read"),
        (["refresh", "07"], "unknown notebook '07'; known: 01_first, 02_second"),
        (
            ["refresh", "01", "notebooks/solutions/02_second.ipynb"],
            "there is no notebook 'notebooks/solutions/02_second",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(project, words, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lowrank_utils", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and says in capsys.readouterr().err
    assert not project.runs.exists()


def test_a_mistake_shows_no_traceback(toy):
    result = toy.call("run", "--set", "threshold=2")
    assert result.code == 2 and result.out == ""
    assert result.err == "error: threshold=2.0 is out of range: it must be a share in (0, 1]\n"


def test_refresh_takes_a_number_or_a_file_and_leaves_the_other_notebooks_alone(project):
    before = project.second.read_text()
    assert 'execution_count": null' in project.first.read_text()
    for word in ("01", str(project.first)):
        result = project.call("refresh", word)
        assert result.code == 0 and result.out.split("/")[-1] == "01_first.ipynb\n"
    assert 'execution_count": null' not in project.first.read_text().split("parameters")[1]
    assert project.second.read_text() == before


def test_refresh_names_a_mistake_before_it_executes_anything(project):
    before = project.first.read_text()
    assert project.call("refresh", "01", "09").err.startswith(
        "error: unknown notebook '09'; known: 01_first, 02_second"
    )
    assert project.first.read_text() == before


def test_a_failing_notebook_is_exit_code_1(project):
    result = project.call("run", "--only", "02", "--set", "word=boom")
    assert result.code == 1 and "error: 02_second failed in cell 3" in result.err
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_resume_says_what_has_changed(project):
    assert project.call("run", "--quiet", "--only", "02", "--set", "word=boom").code == 1
    project.second.write_text(project.second.read_text().replace("went wrong", "still wrong"))
    result = project.call("run", "--resume", "--quiet")
    assert result.code == 1 and "still wrong" in result.err
    assert "0 of 1 notebooks are finished" in result.out and "02_second has changed since this run" in result.out


def test_parameters_are_explained(toy):
    shown = toy.call("parameters", "02").out
    assert shown.splitlines()[0] == "02_second" and "01_first" not in shown
    assert "threshold: float = 0.9" in shown and "share of energy kept, at most 1" in shown


def test_data_shows_shape_classes_and_fingerprint(toy):
    shown = toy.call("data", "digits")
    assert shown.code == 0, shown.err
    assert "1433 x 8 x 8" in shown.out and "fingerprint" in shown.out


@pytest.mark.slow
def test_presets_run_from_any_folder(project, tmp_path):
    presets = paths.NOTEBOOKS / "presets"
    presets.mkdir()
    (presets / "loose.yaml").write_text("threshold: 0.3\n")
    result = project.call("run", "--only", "01", "--preset", "loose", "--seeds", "3,4", "--quiet", cwd=tmp_path)
    assert result.code == 0, result.err
    shown = project.call("report", "--gallery")
    assert shown.out.count(" 0.1") == 2
    assert sorted(p.name for p in paths.GALLERY.iterdir()) == [
        "README.md",
        "results.parquet",
    ]
