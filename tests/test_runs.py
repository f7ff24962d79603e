"""jobs.py, runs.py, results.py and report.py, on toy notebooks."""

import base64
import errno
import io
import json
import os
import pickle
import signal

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import SAVE, WORK, make_project, mounted, wait_for, write_notebook
from lowrank_utils import paths
from lowrank_utils.lab import data, language, text
from lowrank_utils.workbook import gallery, jobs, results, runs

pytestmark = pytest.mark.slow  # each starts kernels

EMPTY = {"only": [], "preset": {}, "settings": {}, "seeds": []}


def go(project, progress=False, workers=1, **request):
    request = {**EMPTY, **request}
    return runs.run(jobs.list_jobs(**request), request, progress=progress, workers=workers)


def statuses(place):
    return [entry["status"] for entry in runs.read_run(place)["jobs"]]


# ---- jobs: what to run


def test_plan_takes_defaults_then_preset_then_settings(project):
    preset = project.root / "small.yaml"
    preset.write_text("threshold: 0.5\nword: preset\n")
    first, second = jobs.list_jobs(preset=str(preset), settings={"threshold": "0.25"})
    assert (first.notebook, second.notebook) == ("01_first", "02_second")
    assert first.parameters == {"seed": 0, "threshold": 0.25, "word": "preset"}


def test_plan_goes_seed_after_seed(project):
    planned = [(job.parameters["seed"], job.notebook) for job in jobs.list_jobs(seeds=[2, 0])]
    assert planned == [(2, "01_first"), (2, "02_second"), (0, "01_first"), (0, "02_second")]


@pytest.mark.parametrize("word", ["02", "2", "02_second", "notebooks/02_second.ipynb"])
def test_a_notebook_is_named_by_number_or_name(project, word):
    assert [job.notebook for job in jobs.list_jobs(only=[word])] == ["02_second"]


def test_notebook_zero_has_a_number_too(project):
    write_notebook(project.root / "notebooks" / "00_zero.ipynb", "1")
    for word in ("00", "0", "00_zero"):
        assert list(jobs.select([word])) == ["00_zero"]
    with pytest.raises(ValueError, match="unknown notebook ''"):
        jobs.select([""])


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (
            {"settings": {"treshold": "1"}},
            r"'treshold' \(did you mean threshold\?\); known: seed, threshold, word",
        ),
        ({"preset": {"epochs": 3}}, "no chosen notebook has a parameter 'epochs'"),
        ({"settings": {"output_folder": "x"}}, "output_folder is given by the run itself"),
        ({"settings": {"threshold": "abc"}}, "threshold='abc' is not a float"),
        ({"settings": {"threshold": "true"}}, "threshold=True is not a float"),
        ({"settings": {"threshold": ".nan"}}, "threshold=nan is not a float"),
        ({"settings": {"threshold": "1.5"}}, r"out of range: it must be a share in \(0, 1\]"),
        ({"settings": {"threshold": "0"}}, "out of range"),
        ({"settings": {"seed": "1.0"}}, "seed=1.0 is not an int"),
        ({"settings": {"seed": "true"}}, "seed=True is not an int"),
        ({"settings": {"seed": "-1"}}, "out of range"),
        ({"settings": {"seed": ""}}, "seed=None is not an int"),
        ({"preset": {"word": 3}}, "word=3 is not a str"),
        ({"settings": {"seed": "1"}, "seeds": [1]}, "given twice"),
        ({"seeds": [1, 1]}, "named twice in 1, 1"),
        ({"only": ["03"]}, "unknown notebook '03'; known: 01_first, 02_second"),
        ({"only": ["02_secnd"]}, "did you mean 02_second"),
        ({"preset": "mnits"}, "unknown preset 'mnits'; known: mnist .did you mean mnist"),
    ],
)
def test_plan_refuses_in_one_sentence(project, request_, says):
    presets = paths.NOTEBOOKS / "presets"
    presets.mkdir()
    (presets / "mnist.yaml").write_text("threshold: 0.5\n")
    with pytest.raises(ValueError, match=says) as error:
        jobs.list_jobs(**request_)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["- a\n", "word: [\n", "just text"])
def test_a_preset_that_is_no_mapping_is_refused(project, content):
    preset = project.root / "odd.yaml"
    preset.write_text(content)
    with pytest.raises(ValueError, match="odd.yaml"):
        jobs.list_jobs(preset=str(preset))


def test_text_is_read_as_the_parameter_needs_it(project):
    (job,) = jobs.list_jobs(only=["1"], settings={"threshold": "1e-1", "word": "no", "seed": "7"})
    assert job.parameters == {"seed": 7, "threshold": 0.1, "word": "no"}
    (job,) = jobs.list_jobs(only=["1"], settings={"threshold": "1"})
    assert isinstance(job.parameters["threshold"], float)


def test_unknown_data_sets_and_networks_are_refused(project):
    write_notebook(paths.NOTEBOOKS / "03_third.ipynb", parameters='dataset: str = "digits"  # images\n')
    assert jobs.list_jobs()[2].fingerprint != ""
    with pytest.raises(ValueError, match="unknown data set 'digts'"):
        jobs.list_jobs(settings={"dataset": "digts"})
    write_notebook(paths.NOTEBOOKS / "04_fourth.ipynb", parameters='network: str = "mlp"  # network\n')
    assert jobs.list_jobs(settings={"network": "lenet300"})[3].parameters == {"network": "lenet300"}
    with pytest.raises(ValueError, match="unknown network 'lenet'; known: "):
        jobs.list_jobs(settings={"network": "lenet"})
    torchvision = {"network": "torchvision/mobilenet_v3_small"}
    assert jobs.list_jobs(settings=torchvision)[3].parameters == torchvision
    write_notebook(paths.NOTEBOOKS / "05_fifth.ipynb", parameters='networks: list[str] = ["mlp"]  # networks\n')
    with pytest.raises(ValueError, match="unknown network 'torchvision/resnet99'"):
        jobs.list_jobs(settings={"networks": "[mlp, torchvision/resnet99]"})


def test_an_address_depends_on_code_parameters_and_data_alone(project):
    (job,) = jobs.list_jobs(only=["02"])
    assert job.address.startswith("02_second-seed0-")
    assert jobs.list_jobs(only=["02"], settings={"threshold": 0.9})[0].address == job.address
    assert jobs.list_jobs(only=["02"], settings={"threshold": 0.8})[0].address != job.address
    notebook = nbformat.read(project.second, as_version=4)
    notebook.cells[0].source = "# Other words"
    nbformat.write(notebook, project.second)
    assert jobs.list_jobs(only=["02"])[0].address == job.address
    notebook.cells[2].source += "\nprint(1)"
    nbformat.write(notebook, project.second)
    assert jobs.list_jobs(only=["02"])[0].address != job.address
    other = jobs.Job(job.notebook, job.path, job.parameters, "another fingerprint", job.source)
    assert other.address != job.address


def test_an_address_says_data_set_network_and_seed():
    parameters = {"dataset": "folder:/data/my pets/", "network": "mlp", "seed": 3}
    assert jobs.Job("02_arsvd", "x", parameters, "", "").label == "02_arsvd-folder_my_pets-mlp-seed3"


LANGUAGE = """\
corpus: str = "python-topics"  # the text
language_model: str = "smollm2-135m"  # by name
seed: int = 0  # random numbers
draw: int = 0  # of the calibration windows
"""


def test_an_address_says_text_language_model_and_draw():
    parameters = {"corpus": "file:/texts/my book.txt", "language_model": "hf:some/model", "seed": 3, "draw": 2}
    assert jobs.Job("07_language_model", "x", parameters, "", "").label == (
        "07_language_model-file_my_book.txt-hf_some_model-seed3-draw2"
    )
    first = jobs.Job("07_language_model", "x", parameters | {"draw": 0}, "", "")
    assert first.label == "07_language_model-file_my_book.txt-hf_some_model-seed3"
    both = parameters | {"dataset": "mnist", "network": "mlp"}
    assert jobs.Job("08_x", "x", both, "", "").label == "08_x-mnist-mlp-seed3-draw2"


def test_the_text_and_the_language_model_of_a_job_are_checked(project):
    write_notebook(paths.NOTEBOOKS / "07_language_model.ipynb", parameters=LANGUAGE)
    (job,) = jobs.list_jobs(only=["07"])
    assert job.fingerprint == text.load("python-topics").fingerprint
    book = paths.ROOT / "book.txt"
    held = []
    for word in ("One", "Two"):
        book.write_text("\n\n".join(f"{word} paragraph, number {i}." for i in range(40)))
        (own,) = jobs.list_jobs(only=["07"], settings={"corpus": "file:book.txt", "language_model": "hf:some/model"})
        assert own.label == "07_language_model-file_book.txt-hf_some_model-seed0"
        held.append(own)
    assert held[0].fingerprint != held[1].fingerprint and held[0].address != held[1].address
    for name, value, words in (
        ("corpus", "python-topic", "unknown .*'python-topic'"),
        ("corpus", "file:none.txt", "none.txt cannot be read"),
        ("language_model", "smollm", "unknown language model 'smollm': choose smollm2-135m or hf:NAME"),
    ):
        with pytest.raises(ValueError, match=words) as told:
            jobs.list_jobs(only=["07"], settings={name: value})
        assert "\n" not in str(told.value)


def test_what_jobs_need_is_fetched_by_name(project, monkeypatch):
    write_notebook(paths.NOTEBOOKS / "07_language_model.ipynb", parameters=LANGUAGE)
    write_notebook(paths.NOTEBOOKS / "08_images.ipynb", parameters='dataset: str = "digits"  # images\n')
    needed = runs.needed(jobs.list_jobs())
    assert needed == {"python-topics", "smollm2-135m", "digits"}
    assert runs.needed(jobs.list_jobs(only=["01"])) == set()
    fetched = []
    monkeypatch.setattr(language, "fetch", fetched.append)
    monkeypatch.setattr(data, "fetch", fetched.append)
    runs.fetch(needed | {"mnist", "hf:some/model", "file:book.txt"})
    assert fetched == ["smollm2-135m", "mnist"]  # digits and the topics of Python lie on every machine


@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.booleans())))
def test_a_job_is_a_value(parameters):
    job = jobs.Job("01_x", "x.ipynb", parameters, "f", "s")
    again = pickle.loads(pickle.dumps(job))
    shuffled = jobs.Job("01_x", "elsewhere.ipynb", dict(reversed(parameters.items())), "f", "s")
    assert again == job and hash(again) == hash(job) and again.address == job.address == shuffled.address


@given(st.floats(min_value=0, max_value=1, exclude_min=True))
def test_every_share_passes_and_comes_back_exactly(share):
    assert jobs.typed("threshold", "float", repr(share)) == share


def test_a_parameter_without_a_literal_default_is_refused(project):
    write_notebook(project.first, parameters="seed: int = 2 * 3  # computed\n")
    with pytest.raises(ValueError, match="01_first.ipynb: the default of seed is not a literal"):
        jobs.list_jobs()


# ---- results: what a notebook leaves


def test_save_orders_columns_and_writes_figures(project):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    rows = [{"extra": 1, "accuracy": 0.1 + 0.2, "notebook": "x"}]
    results.save("outputs/here", rows, {"curve": figure}, {"t.csv": pd.DataFrame({"a": [1]}), "b.bin": b"\0"})
    folder = project.root / "outputs" / "here"
    assert sorted(p.name for p in folder.iterdir()) == ["b.bin", "curve.png", "results.csv", "results.parquet", "t.csv"]
    assert (folder / "results.csv").read_text() == "notebook,accuracy,extra\nx,0.30000000000000004,1\n"
    kept = pd.read_parquet(folder / "results.parquet")
    assert kept.to_dict("records") == [{"notebook": "x", "accuracy": 0.1 + 0.2, "extra": 1}]
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_save_without_a_folder_writes_nothing(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert results.save("", [{"accuracy": 1}]) is None
    assert sorted(tmp_path.rglob("*")) == before


# ---- runs: one run


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A project whose two notebooks have run once, by the command line, with progress bars."""
    made = make_project(tmp_path_factory.mktemp("ran") / "project")
    made.result = made.call("run", "--workers", 1, "--set", "threshold=0.7")
    (made.place,) = made.runs.iterdir()
    return made


def test_a_run_leaves_notebooks_rows_and_provenance(ran):
    assert ran.result.code == 0, ran.result.err
    assert f"2 executed notebooks: outputs/runs/{ran.place.name}" in ran.result.out
    assert "01_first-seed0: 100%" in ran.result.err and "5/5" not in ran.result.out
    names = {p.name: sorted(q.name for q in p.iterdir()) for p in ran.place.iterdir() if p.is_dir()}
    assert [name.rsplit("-", 1)[0] for name in sorted(names)] == ["01_first-seed0", "02_second-seed0"]
    assert set(map(tuple, names.values())) == {
        ("big.bin", "done.json", "notebook.ipynb", "results.csv", "results.parquet")
    }
    record = json.loads((ran.place / "run.json").read_text())
    assert record["status"] == "done" and [job["status"] for job in record["jobs"]] == ["done", "done"]
    assert record["provenance"]["versions"]["python"] and record["provenance"]["cores"]
    rows = pd.read_csv(ran.place / "results.csv")
    assert list(rows.columns[:4]) == ["notebook", "dataset", "network", "seed"]
    assert list(rows["accuracy"]) == [0.7 / 3] * 2 and set(rows["address"]) == set(names)
    assert json.loads(rows["run_parameters"][0])["threshold"] == 0.7


def test_executed_notebooks_hold_the_parameters_but_no_place(ran):
    for path in ran.place.glob("*/notebook.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        (injected,) = [c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])]
        assert "threshold = 0.7" in injected.source and "output_folder" not in injected.source
        assert gallery.machine_paths(notebook) == []
        assert notebook.metadata.papermill.parameters == {"seed": 0, "threshold": 0.7, "word": "plain"}
        assert str(ran.root) not in path.read_text()


def test_nothing_to_resume_is_said(ran, tmp_path):
    done = ran.call("run", "--resume")
    assert done.code == 2 and "there is no unfinished run" in done.err
    named = ran.call("run", "--resume", ran.place.name)
    assert named.code == 2 and f"run {ran.place.name} is complete" in named.err
    unknown = ran.call("run", "--resume", "20010101-000000")
    assert unknown.code == 2 and f"the latest are: {ran.place.name}" in unknown.err


def test_report_shows_the_newest_run(ran):
    shown = ran.call("report")
    assert shown.code == 0 and "02_second" in shown.out and "0.233333" in shown.out


def test_a_failing_notebook_stops_the_run_and_can_be_mended(project):
    with pytest.raises(runs.NotebookFailed) as error:
        go(project, settings={"word": "boom"}, only=["02"])
    message, where, hint = str(error.value).splitlines()
    assert message == "02_second failed in cell 3 (In [3]), which begins `import time, os`: ValueError: went wrong"
    assert where.endswith("failed.ipynb") and "--resume" in hint
    (place,) = project.runs.iterdir()
    assert statuses(place) == ["failed"] and not list(place.glob("*/notebook.ipynb"))
    assert nbformat.read(next(place.glob("*/failed.ipynb")), as_version=4).cells

    write_notebook(project.second, WORK.replace("raise", "pass #"), SAVE % 0)
    found, request, planned, changed = runs.resume()
    assert found == place and changed == ["02_second"]
    assert runs.run(planned, request, progress=False, into=place) == place
    assert runs.is_complete(place) and len(pd.read_csv(place / "results.csv")) == 1


def test_a_failure_keeps_what_was_finished(project):
    with pytest.raises(runs.NotebookFailed):
        go(project, settings={"word": "boom"})
    (place,) = project.runs.iterdir()
    assert statuses(place) == ["done", "failed"] and len(pd.read_csv(place / "results.csv")) == 1


def test_a_dead_kernel_is_named(project, monkeypatch):
    with pytest.raises(runs.NotebookFailed, match="02_second failed: its kernel died"):
        go(project, settings={"word": "die"}, only=["02"])
    monkeypatch.setattr(runs, "QUIET", ["--help"])  # it ends while papermill waits for its first word
    with pytest.raises(runs.NotebookFailed, match="01_first failed: its kernel died"):
        go(project, only=["01"])


def test_what_a_kernel_says_beside_its_cells_goes_to_its_log(project):
    write_notebook(project.first, "import os, time\nos.write(2, b'no room')\ntime.sleep(1)\nos._exit(1)")
    failed = project.call("run", "--only", "01")
    assert failed.code == 1 and "01_first failed: its kernel died" in failed.err and "kernel.log" in failed.err
    assert "no room" not in failed.err
    assert next(project.runs.rglob("kernel.log")).read_text() == "no room"


def test_a_kernel_that_complains_on_its_way_out_is_not_heard(project):
    write_notebook(project.first, "import os\nos.write(2, b'Traceback of the end')", SAVE % 0)
    done = project.call("run", "--only", "01")
    assert done.code == 0 and "Traceback" not in done.err
    assert not list(project.runs.rglob("kernel.log"))


def test_a_notebook_edited_after_planning_is_not_run(project):
    planned = jobs.list_jobs(only=["01"])
    write_notebook(project.first, "print('edited')")
    with pytest.raises(runs.RunError, match="01_first has changed since"):
        runs.execute(planned[0], project.runs / "x", progress=False)


def test_a_missing_kernel_is_named(project, monkeypatch):
    from jupyter_client import kernelspec

    def none(self, name):
        raise kernelspec.NoSuchKernel(name)

    monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", none)
    with pytest.raises(runs.RunError, match="no Jupyter kernel 'python3'"):
        go(project)
    assert not project.runs.exists()


def test_a_kernel_of_another_python_is_refused(project, monkeypatch):
    from jupyter_client import kernelspec

    other = kernelspec.KernelSpec(argv=["/usr/bin/other-python"])
    monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", lambda self, name: other)
    with pytest.raises(runs.RunError, match="starts /usr/bin/other-python, not this Python"):
        runs.check_kernel()


# ---- runs: cut off, and at once


def partial_of_second(project):
    return list(project.runs.glob("*/02_second-*/.partial.ipynb"))


@pytest.mark.slow
def test_a_killed_run_resumes_where_it_stopped(project):
    process = project.start("run", "--workers", 1, "--quiet", "--set", "word=hold")
    wait_for(lambda: partial_of_second(project))
    (place,) = project.runs.iterdir()

    second = project.call("run", "--resume")
    assert second.code == 2 and f"is being worked on by process {process.pid}" in second.err

    process.send_signal(signal.SIGKILL)
    process.communicate()
    (finished,) = place.glob("01_first-*/done.json")
    before = finished.stat().st_mtime_ns
    (project.root / "go").touch()
    resumed = project.call("run", "--resume", "--quiet")
    assert resumed.code == 0 and "1 of 2 notebooks are finished" in resumed.out, resumed.err
    assert finished.stat().st_mtime_ns == before and runs.is_complete(place)
    assert [p.name for p in place.rglob(".*")] == []
    assert len(pd.read_csv(place / "results.csv")) == 2


@pytest.mark.slow
def test_ctrl_c_ends_in_a_sentence_and_resumes(project):
    process = project.start("run", "--workers", 1, "--quiet", "--set", "word=hold")
    # within a cell: before, an import may be cut off in exec, for which Python dies by the signal instead of by 130
    wait_for(lambda: any('"status": "running"' in path.read_text() for path in partial_of_second(project)))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    (place,) = project.runs.iterdir()
    assert process.returncode == 130 and "Traceback" not in err
    assert f"interrupted; go on with: python -m lowrank_utils run --resume {place.name}" in err
    assert statuses(place) == ["done", "interrupted"]
    (project.root / "go").touch()
    assert project.call("run", "--resume", place.name, "--quiet").code == 0


def test_a_run_killed_after_its_last_notebook_is_brought_to_an_end(project):
    place = go(project, only=["01"])
    record = runs.read_run(place)
    (place / "run.json").write_text(json.dumps({**record, "status": "running"}))
    (place / "results.csv").unlink()
    found, request, planned, changed = runs.resume()
    assert found == place and changed == []
    runs.run(planned, request, progress=False, into=place)
    assert runs.is_complete(place) and len(pd.read_csv(place / "results.csv")) == 1


def test_runs_that_start_in_one_second_get_a_folder_each(tmp_path):
    made = [runs.new_run(tmp_path) for _ in range(12)]
    assert len(set(made)) == 12
    for place in made:
        (place / "run.json").write_text("{}")
    assert runs.all_runs(tmp_path) == sorted(made, key=made.index)


# ---- runs: several notebooks at once

MEET = """\
import os, time
from lowrank_utils import paths
paths.ROOT.joinpath("%s").write_text(str(os.getpid()))
end = time.time() + 60
while not paths.ROOT.joinpath("%s").exists():
    assert time.time() < end, "nobody came"
    time.sleep(0.05)
"""


def is_gone(file):
    """Whether the kernel that wrote its number into `file` runs no more."""
    try:
        os.kill(int(file.read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def test_two_notebooks_are_executed_at_once(project):
    write_notebook(project.first, MEET % ("one", "two"), SAVE % 0)
    write_notebook(project.second, MEET % ("two", "one"), SAVE % 0)  # each waits for the other
    done = project.call("run", "--workers", 2)
    assert done.code == 0 and "2 executed notebooks" in done.out and "Traceback" not in done.err, done.err
    assert done.err.startswith("running 01_first-seed0, 02_second-seed0\n")
    assert "01_first-seed0: finished" in done.err and "02_second-seed0: finished" in done.err
    (place,) = project.runs.iterdir()
    assert runs.is_complete(place) and statuses(place) == ["done", "done"]
    assert list(pd.read_csv(place / "results.csv")["notebook"]) == ["01_first", "02_second"]


def test_each_of_several_notebooks_has_its_share_of_the_cores(project):
    from dask.system import CPU_COUNT

    threads = f"import os\nassert os.environ['OMP_NUM_THREADS'] == '{max(1, CPU_COUNT // 2)}', os.environ"
    threads += (
        "\nassert 'MALLOC_TRIM_THRESHOLD_' not in os.environ"  # Dask's own setting, with which large tensors are slow
    )
    for path in (project.first, project.second):
        write_notebook(path, threads, SAVE % 0)
    assert runs.is_complete(go(project, workers=8))  # more than there are notebooks


def test_a_full_folder_ends_the_notebook_that_is_under_way(project, monkeypatch):
    write_notebook(project.first, MEET % ("one", "two"), SAVE % 0)
    write_notebook(project.second, MEET % ("two", "never"), SAVE % 0)

    def full(place):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "write_results", full)
    with pytest.raises(runs.RunError, match=r"No space left on device.*make room there.*--resume"):
        go(project, workers=2)
    wait_for(lambda: is_gone(project.root / "two"), seconds=20)
    (place,) = project.runs.iterdir()
    assert statuses(place) == ["done", "interrupted"]


def test_an_error_of_files_that_is_no_full_folder_is_said_as_it_is(project, monkeypatch):
    def torn(place):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "results")

    monkeypatch.setattr(runs, "write_results", torn)
    with pytest.raises(runs.RunError, match=r"No such file or directory: 'results'; go on with") as error:
        go(project)
    assert "make room" not in str(error.value)


def test_a_failure_ends_the_notebooks_beside_it_and_the_run_resumes(project):
    write_notebook(project.first, MEET % ("one", "go"), SAVE % 0)
    write_notebook(project.second, MEET % ("two", "one"), WORK, SAVE % 0)
    failed = project.call("run", "--workers", 2, "--quiet", "--set", "word=boom")
    assert failed.code == 1 and "02_second failed in cell 4" in failed.err and "Traceback" not in failed.err
    assert "go on with: python -m lowrank_utils run --resume" in failed.err
    (place,) = project.runs.iterdir()
    assert statuses(place) == ["interrupted", "failed"]
    wait_for(lambda: is_gone(project.root / "one"), seconds=20)
    (project.root / "go").touch()
    write_notebook(project.second, WORK.replace("raise", "pass #"), SAVE % 0)
    again = project.call("run", "--resume", "--workers", 2, "--quiet")
    assert again.code == 0 and runs.is_complete(place), again.err


def test_ctrl_c_ends_all_notebooks_and_the_run_resumes(project):
    write_notebook(project.first, MEET % ("one", "go"), SAVE % 0)
    write_notebook(project.second, MEET % ("two", "go"), SAVE % 0)
    process = project.start("run", "--workers", 2, "--quiet", start_new_session=True)
    wait_for(lambda: (project.root / "one").exists() and (project.root / "two").exists())
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
    _, err = process.communicate(timeout=120)
    (place,) = project.runs.iterdir()
    assert process.returncode == 130 and "Traceback" not in err, err
    assert f"interrupted; go on with: python -m lowrank_utils run --resume {place.name}" in err
    assert statuses(place) == ["interrupted", "interrupted"]
    wait_for(lambda: is_gone(project.root / "one") and is_gone(project.root / "two"), seconds=20)
    (project.root / "go").touch()
    assert project.call("run", "--resume", place.name, "--quiet").code == 0


def test_a_notebook_over_which_workers_die_is_named(project):
    deadly = 'import os\nfrom lowrank_utils import paths\npaths.ROOT.joinpath("begun").open("a").write("x")\n'
    write_notebook(project.second, deadly + "os.kill(os.getppid(), 9)")
    killed = project.call("run", "--workers", 2, "--quiet")
    assert killed.code == 1 and "02_second failed: its worker died, perhaps for want of memory" in killed.err
    (place,) = project.runs.iterdir()
    assert statuses(place)[1] == "failed" and (project.root / "begun").read_text() == "x"  # it is not started again


# ---- runs: no room


@pytest.mark.parametrize(("options", "reason"), [("size=1m", "No space left"), ("ro", "Read-only file system")])
def test_a_folder_without_room_is_refused_before_any_work(project, tmp_path, options, reason):
    with mounted(tmp_path / "small", options) as folder:
        result = project.call("run", "--output-folder", folder)
        assert result.code == 2 and reason in result.err and result.err.count("\n") == 1
        assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_folder_that_fills_up_is_named(project, tmp_path):
    write_notebook(project.second, WORK, SAVE % (8 * 2**20))
    with mounted(tmp_path / "small", "size=7m") as folder:
        result = project.call("run", "--quiet", "--output-folder", folder)
        assert result.code in (1, 2) and "No space left" in result.err and "Traceback" not in result.err
        (place,) = folder.iterdir()
        assert statuses(place) == ["done", "failed"]


def test_a_file_in_the_place_of_the_folder_is_named(project):
    project.runs.parent.mkdir()
    project.runs.write_text("in the way")
    with pytest.raises(runs.RunError, match="runs cannot take the results"):
        go(project)


# ---- report: runs put together, and the gallery


@pytest.mark.slow
def test_gallery_takes_the_place_of_older_rows(project):
    assert (
        list(gallery.published_rows().columns[:3]) == ["notebook", "dataset", "network"]
        and len(gallery.published_rows()) == 0
    )
    both = go(project, settings={"threshold": 0.3})
    assert [p.name for p in gallery.publish(both)] == ["results.parquet", "README.md"]
    before = pd.read_parquet(paths.GALLERY / "results.parquet")
    newer = go(project, only=["01"], settings={"threshold": 0.6})
    gallery.publish(newer)
    after = pd.read_parquet(paths.GALLERY / "results.parquet")
    assert before.iloc[1].equals(after.iloc[1]) and not before.iloc[0].equals(after.iloc[0])
    table = gallery.published_rows()
    assert list(table["accuracy"]) == [0.6 / 3, 0.3 / 3] and list(table["seed"]) == [0, 0]
    assert list(gallery.published_rows(notebook="02_second")["accuracy"]) == [0.3 / 3]
    assert len(gallery.published_rows(notebook="03_third")) == 0
    assert len(gallery.gather(both, newer)) == 3


def test_gallery_refuses_twins_errors_paths_and_unfinished_runs(project):
    place = go(project, only=["01"])
    with pytest.raises(runs.RunError, match="two of these jobs would be published as 01_first-seed0"):
        gallery.publish(place, place)
    (executed,) = place.glob("*/notebook.ipynb")
    notebook = nbformat.read(executed, as_version=4)
    rows = pd.read_parquet(executed.parent / "results.parquet")
    rows.assign(source=f"{project.root}/x and /tmp/y").to_parquet(executed.parent / "results.parquet")
    with pytest.raises(runs.RunError, match="not fit to be published, it holds .*/x"):
        gallery.publish(place)
    notebook.cells[3].outputs = [nbformat.v4.new_output("error", ename="E", evalue="e", traceback=[])]
    nbformat.write(notebook, executed)
    with pytest.raises(runs.RunError, match="an error in cell 4"):
        gallery.publish(place)
    os.remove(executed.parent / "done.json")
    with pytest.raises(runs.RunError, match="is not complete"):
        gallery.publish(place)
    assert not paths.GALLERY.exists()


def test_refresh_drops_timings_and_stderr(project):
    write_notebook(project.first, "import sys\nprint(7)\nprint('bar', file=sys.stderr)")
    runs.refresh(project.first)
    notebook = nbformat.read(project.first, as_version=4)
    assert [c.get("execution_count") for c in notebook.cells] == [None, 1, 2]
    assert [o.text for o in notebook.cells[2].outputs] == ["7\n"] and "execution" not in notebook.cells[2].metadata
    assert "injected-parameters" not in project.first.read_text()
    write_notebook(project.first, "1 / 0")
    before = project.first.read_bytes()
    with pytest.raises(runs.NotebookFailed, match="01_first.ipynb failed: ZeroDivisionError"):
        runs.refresh(project.first)
    assert project.first.read_bytes() == before


def test_refresh_makes_pictures_small_and_leaves_what_they_show(project):
    draw = "from PIL import Image\nimport numpy as np\nx = np.linspace(0, 1, 300)\n"
    draw += "red, green = np.meshgrid(x, x**2)\ncolours = np.stack([red, green, 0.5 + 0 * red], 2)\n"
    draw += "colours += np.random.default_rng(0).uniform(-0.02, 0.02, colours.shape)\n"  # tens of thousands
    draw += "Image.fromarray((255 * colours.clip(0, 1)).astype('uint8'))"
    write_notebook(project.first, draw)
    runs.refresh(project.first)
    data = nbformat.read(project.first, as_version=4).cells[2].outputs[0].data
    raw = base64.b64decode(data["image/png"])
    shown = Image.open(io.BytesIO(raw))
    names = {}
    exec(draw.replace("Image.fromarray(", "whole = Image.fromarray("), names)
    apart = np.abs(np.asarray(shown.convert("RGB"), int) - np.asarray(names["whole"]))
    names["whole"].save(plain := io.BytesIO(), "PNG")
    assert shown.mode == "P" and apart.max() <= 40 and apart.mean() < 8 and len(raw) < 0.6 * len(plain.getvalue())
    before = data["image/png"]
    runs.slim(notebook := nbformat.read(project.first, as_version=4))
    assert notebook.cells[2].outputs[0].data["image/png"] == before  # a second time changes nothing


def test_refresh_says_that_the_kernel_died_and_leaves_the_file(project):
    write_notebook(project.first, "import os\nos.kill(os.getpid(), 9)")
    before = project.first.read_bytes()
    with pytest.raises(runs.NotebookFailed, match="01_first.ipynb failed: its kernel died"):
        runs.refresh(project.first)
    assert project.first.read_bytes() == before


def test_a_readable_but_incomplete_record_is_damaged(project):
    place = project.runs / "20200101-000000"
    place.mkdir(parents=True)
    for content in ("{}", "[]", '{"status": "failed"}', "{"):
        (place / "run.json").write_text(content)
        with pytest.raises(runs.RunError, match="is damaged; remove the run folder"):
            runs.is_complete(place)


def test_a_wrong_device_is_refused_before_any_work():

    assert jobs.typed("device", "str", "cuda:1") == "cuda:1"
    with pytest.raises(ValueError, match="device='gpu' is not known; known: auto, cpu, cuda"):
        jobs.typed("device", "str", "gpu")
