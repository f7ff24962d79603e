"""sweeps.py: grids of toy notebooks on real workers, some of which are killed."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import nbformat
import pandas as pd
import pytest

from conftest import make_project, mounted, wait_for, write_notebook
from lowrank_utils.__main__ import main
from lowrank_utils.workbook import cluster, gallery, results, runs, sweeps

BEGIN = """\
import os, time
from lowrank_utils import paths
def note(text):
    with open(paths.ROOT / "log", "a") as log:
        log.write(f"{text} {seed} {os.getpid()} {os.getppid()}\\n")
note("begin")
if word == "boom" and not (paths.ROOT / "mended").exists():
    raise ValueError("went wrong")
while word == "hold" and seed and not (paths.ROOT / "go").exists():
    time.sleep(0.05)
"""
END = """\
from lowrank_utils.workbook import results
threads = os.environ["OMP_NUM_THREADS"]
rows = [{"chooser": c, "accuracy": threshold * 0.1 + seed * k, "note": f"by seed {seed}", "threads": threads}
        for k, c in enumerate(["energy", "fixed"])]
results.save(output_folder, rows, files={"big.bin": bytes(%d)})
note("end")
"""


def equip(made, size=0):
    """Give a toy project a second notebook that writes down when it begins and ends, and who runs it."""
    write_notebook(made.second, BEGIN, END % size)
    made.sweep = made.root / "outputs" / "sweeps" / "02_second"
    return made


@pytest.fixture
def toy(project):
    return equip(project)


def logged(made, word):
    """The (seed, kernel, worker) of every line of the log that begins with `word`."""
    log = made.root / "log"
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [tuple(map(int, line[1:])) for line in lines if line[0] == word]


def states(place):
    """When each cell that is finished was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in place.glob("*/done.json")}


def forged(made, planned, place):
    """Write what finished cells leave, without running them."""
    for job in planned:
        row = {"chooser": "energy", "accuracy": job.parameters["seed"] / 100}
        results.save(place / job.address, [row])
        done = {"address": job.address, "notebook": job.notebook, "parameters": job.parameters}
        (place / job.address / "done.json").write_text(json.dumps(done))


@contextlib.contextmanager
def scheduler_of(made, workers):
    """A scheduler and workers, processes of their own; yields its address and the processes of the workers."""
    environment = {**os.environ, "LOWRANK_ROOT": str(made.root)}
    quiet = {"env": environment, "cwd": made.root, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    port = address.rpartition(":")[2]
    dask = [sys.executable, "-m", "dask"]
    words = ["scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]
    processes = [subprocess.Popen([*dask, *words], **quiet)]
    try:
        words = ["worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        processes += [subprocess.Popen([*dask, *words], **quiet) for _ in range(workers)]
        yield address, processes[1:]
    finally:
        for process in processes[::-1]:
            process.kill()
            process.wait()


# ---- a sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A project whose notebook was swept by the command line, over four cells with two workers."""
    made = equip(make_project(tmp_path_factory.mktemp("swept") / "project"))
    made.words = ["sweep", "notebooks/02_second.ipynb", "--workers", "2", "--grid", "threshold=0.3,0.6", "seed=0,1"]
    made.result = made.call(*made.words)
    return made


@pytest.mark.slow
def test_a_sweep_runs_every_cell_once_at_its_address(swept):
    assert swept.result.code == 0, swept.result.err
    assert swept.result.out == "4 of 4 cells are done: outputs/sweeps/02_second\n"
    assert len(logged(swept, "begin")) == len(logged(swept, "end")) == 4
    for done in swept.sweep.glob("*/done.json"):
        content = json.loads(done.read_text())
        assert done.parent.name == content["address"] and re.search(r"seed[01]-\w{8}$", content["address"])
        names = {path.name for path in done.parent.iterdir()}
        assert names == {"notebook.ipynb", "results.parquet", "results.csv", "big.bin", "done.json"}
        assert gallery.machine_paths(nbformat.read(done.parent / "notebook.ipynb", as_version=4)) == []
    assert runs.is_complete(swept.sweep) and not list(swept.sweep.rglob(".*"))


@pytest.mark.slow
def test_the_rows_carry_parameters_seeds_and_provenance(swept):
    table = pd.read_parquet(swept.sweep / "results.parquet")
    read = pd.read_csv(swept.sweep / "results.csv")
    pd.testing.assert_frame_equal(table.astype(object).fillna(""), read.astype(object).fillna(""), check_dtype=False)
    assert len(table) == 8 and {"address", "versions", "finished", "run_word"} <= set(table)
    cells = set(zip(table["run_threshold"], table["seed"]))
    assert cells == {(0.3, 0), (0.3, 1), (0.6, 0), (0.6, 1)}
    assert set(table["threads"]) == {1}


@pytest.mark.slow
def test_the_summary_holds_mean_and_spread_over_seeds(swept):
    means = pd.read_csv(swept.sweep / "summary.csv").set_index(["run_threshold", "chooser"])
    assert len(means) == 4 and set(means["seeds"]) == {2} and "note" not in means
    assert means.loc[(0.3, "energy"), "accuracy_mean"] == pytest.approx(0.03)
    assert means.loc[(0.3, "energy"), "accuracy_std"] == 0
    assert means.loc[(0.6, "fixed"), "accuracy_mean"] == pytest.approx(0.56)
    assert means.loc[(0.6, "fixed"), "accuracy_std"] == pytest.approx(0.5**0.5)


@pytest.mark.slow
def test_a_wider_sweep_does_only_what_is_missing_and_other_threads_are_no_other_cell(swept, tmp_path):
    before, count = states(swept.sweep), len(logged(swept, "begin"))
    grid = tmp_path / "grid.yaml"
    grid.write_text("threshold: 0.3\nseed: [0, 1, 2]\nword: [plain]\n")
    wider = swept.call("sweep", "02", "--grid", grid, "--workers", "1", "--threads", "2")
    assert wider.code == 0 and wider.out.startswith("3 of 3 cells"), wider.err
    after = states(swept.sweep)
    assert len(after) == 5 and before.items() <= after.items() and len(logged(swept, "begin")) == count + 1
    table = pd.read_csv(swept.sweep / "results.csv")
    assert set(table.loc[table["seed"] == 2, "threads"]) == {2} and len(table) == 6


def test_rows_of_an_older_version_are_joined_by_name(toy):
    planned, _ = sweeps.list_sweep_jobs("02", {"seed": [0, 1]})
    forged(toy, planned, toy.sweep)
    older = toy.sweep / planned[0].address / "results.parquet"
    pd.DataFrame({"accuracy": [0.5], "gone": [7]}).to_parquet(older)
    table, means = sweeps.gather(planned, toy.sweep)
    assert list(table["accuracy"]) == [0.5, 0.01] and table["chooser"].tolist()[1] == "energy"
    assert table[["chooser", "gone"]].isna().to_numpy().tolist() == [[True, False], [False, True]]
    assert set(pd.read_parquet(toy.sweep / "summary.parquet")["seeds"]) == {1} and len(means) == 2


def test_a_text_that_depends_on_the_seed_parts_no_rows_also_where_a_seed_is_missing():
    cells = [(0.1, 0), (0.1, 1), (0.2, 0)]
    rows = [(f"{k}-{s}", s, k, f"{k} {t}", f"{s} {t}", t + s) for k, s in cells for t in (1, 2)]
    means = sweeps.over_seeds(pd.DataFrame(rows, columns=["address", "seed", "run_kept", "target", "plan", "f1"]))
    assert list(means["target"]) == ["0.1 1", "0.1 2", "0.2 1", "0.2 2"] and "plan" not in means
    assert list(means["seeds"]) == [2, 2, 1, 1] and list(means["f1_mean"]) == [1.5, 2.5, 1, 2]
    assert list(means["f1_std"].isna()) == [False, False, True, True]


def test_a_finished_sweep_of_100_cells_is_checked_at_once(toy, monkeypatch):
    monkeypatch.setattr(cluster, "cluster_client", None)  # no workers are started
    grid = sweeps.read_grid(["seed=" + ",".join(map(str, range(100)))])
    planned, request = sweeps.list_sweep_jobs("02", grid)
    forged(toy, planned, toy.sweep)
    first = sweeps.run(planned, request)
    start = time.process_time()
    planned, request = sweeps.list_sweep_jobs("02", grid)
    assert sweeps.run(planned, request) == first and len(first[1]) == 100
    assert time.process_time() - start < 0.5
    (toy.sweep / "summary.csv").unlink()
    sweeps.run(planned, request)
    assert pd.read_csv(toy.sweep / "summary.csv")["seeds"].tolist() == [100]


@pytest.mark.slow
def test_results_go_to_any_fsspec_address_and_a_failed_cell_waits_for_retry(toy):
    to = f"dir://all::file://{toy.root}/bucket"
    words = ["sweep", "02", "--to", to, "--workers", "1", "--grid", "word=boom,plain"]
    first = toy.call(*words)
    assert first.code == 1 and "1 of 2 cells are done" in first.out and "Traceback" not in first.err
    assert "ValueError: went wrong" in first.err and "add --retry" in first.err
    place = toy.root / "bucket" / "all"
    (failed,) = place.glob("*/failed.json")
    content = json.loads(failed.read_text())
    assert content["error"].endswith("ValueError: went wrong") and content["parameters"]["word"] == "boom"
    assert sorted(cell["status"] for cell in runs.read_run(place)["jobs"]) == ["done", "failed"]
    assert nbformat.read(failed.parent / "failed.ipynb", as_version=4).cells
    (toy.root / "mended").touch()
    planned, request = sweeps.list_sweep_jobs("02", {"word": ["boom", "plain"]})
    again = sweeps.run(planned, request, to=to)
    assert again == (to, {planned[1].address}, {planned[0].address: content["error"]})
    assert len(logged(toy, "begin")) == 2
    retried = toy.call(*words, "--retry")
    assert retried.code == 0 and len(logged(toy, "begin")) == 3, retried.err
    assert not list(place.glob("*/failed.*")) and len(pd.read_parquet(place / "results.parquet")) == 4


# ---- cut off


def held(made, seed, tries=1):
    """The (seed, kernel, worker) of the cell of this seed, once it has begun so many times."""
    return wait_for(lambda: [line for line in logged(made, "begin") if line[0] == seed][tries - 1 :])[0]


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_a_cell_that_goes_on_without_its_sweep_is_not_done_twice(toy):
    with scheduler_of(toy, workers=2) as (address, workers):
        words = ["--grid", "seed=0,1,2", "word=hold", "--scheduler", address, "--quiet"]
        first = toy.start("sweep", "02", *words)
        try:
            (_, kernel, victim), _ = held(toy, 1), held(toy, 2)
        finally:
            first.kill()
            first.communicate()
        kept = states(toy.sweep)
        second = toy.start("sweep", "02", *words)
        wait_for(lambda: json.loads((toy.sweep / "run.json").read_text())["jobs"][0]["status"] == "done")
        next(worker for worker in workers if worker.pid == victim).send_signal(signal.SIGKILL)
        wait_for(lambda: not os.path.exists(f"/proc/{kernel}"))  # a kernel ends with its worker
        (toy.root / "go").touch()
        out, err = second.communicate(timeout=120)
    assert second.returncode == 0 and out.startswith("3 of 3 cells are done"), err
    assert sorted(line[0] for line in logged(toy, "begin")) == [0, 1, 1, 2]
    assert sorted(line[0] for line in logged(toy, "end")) == [0, 1, 2]
    assert kept.items() <= states(toy.sweep).items() and len(pd.read_csv(toy.sweep / "results.csv")) == 6


def test_a_worker_waits_for_another_at_the_same_cell_only(tmp_path):
    fs, root = sweeps._locate(tmp_path)
    held = "with s._alone(*s._locate(sys.argv[1]), 'x-0000000a'): print(flush=True), time.sleep(60)"
    words = [
        sys.executable,
        "-c",
        f"import sys, time; from lowrank_utils.workbook import sweeps as s\n{held}",
        str(tmp_path),
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with sweeps._alone(fs, root, "x-0000000b"):
            pass
        start = time.monotonic()
        threading.Timer(0.5, other.kill).start()
        with sweeps._alone(fs, root, "x-0000000a"):
            assert time.monotonic() - start > 0.4


@pytest.fixture
def beside_another():
    """Hold the port of distributed's dashboard, as another sweep on this machine may."""
    with socket.socket() as holder:
        with contextlib.suppress(OSError):  # somebody holds it already
            holder.bind(("127.0.0.1", 8787))
            holder.listen()
        yield


@pytest.mark.slow
def test_whatever_ends_a_sweep_it_goes_on_where_it_stopped(toy, beside_another):
    words = ["sweep", "02", "--workers", "1", "--grid", "seed=0,1,2", "word=hold", "--quiet"]
    sweep = toy.start(*words)
    try:
        _, kernel, worker = held(toy, 1)
        before = states(toy.sweep)
        with pytest.raises(runs.RunError, match=f"02_second is being worked on by process {sweep.pid}"):
            sweeps.run(*sweeps.list_sweep_jobs("02", {"seed": [0]}))
    finally:
        sweep.kill()
        sweep.communicate()
    wait_for(lambda: not os.path.exists(f"/proc/{worker}") and not os.path.exists(f"/proc/{kernel}"))
    assert len(before) == 1 and states(toy.sweep) == before
    assert {cell["status"] for cell in runs.read_run(toy.sweep)["jobs"]} == {"pending"}

    sweep = toy.start(*words, start_new_session=True)
    os.kill(held(toy, 1, tries=2)[1], signal.SIGKILL)  # a kernel: its cell has failed, the next one begins
    held(toy, 2)
    os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    out, err = sweep.communicate(timeout=120)
    assert (sweep.returncode, out, err) == (130, "", "interrupted; go on with the same command\n")
    record = runs.read_run(toy.sweep)
    assert [cell["status"] for cell in record["jobs"]] == ["done", "failed", "pending"]
    assert record["status"] == "interrupted" and "its kernel died" in record["jobs"][1]["error"]
    assert states(toy.sweep) == before and len(pd.read_csv(toy.sweep / "results.csv")) == 2
    assert [line[0] for line in logged(toy, "end")] == [0]


@pytest.mark.slow
def test_a_folder_that_fills_up_ends_the_sweep_and_leaves_only_whole_cells(project, tmp_path):
    made = equip(project, 5 * 2**20)
    with mounted(tmp_path / "small", "size=8m") as folder:
        result = made.call("sweep", "02", "--workers", "1", "--to", folder, "--grid", "seed=0,1,2,3,4,5,6,7", "--quiet")
        assert result.code == 2 and "cannot take the results (No space left" in result.err, result.err
        assert result.err.count("\n") == 1 and len(states(folder)) == 1
        for done in folder.glob("*/done.json"):
            assert (done.parent / "big.bin").stat().st_size == 5 * 2**20
    assert len(logged(made, "begin")) < 8  # not one after the other to the end


def test_a_full_folder_is_refused_before_any_work(toy, tmp_path):
    with mounted(tmp_path / "small", "size=1m") as folder:
        with pytest.raises(runs.RunError, match="small cannot take the results .No space left on device.: make"):
            sweeps.run(*sweeps.list_sweep_jobs("02", {"seed": [0]}), to=folder)
        assert not logged(toy, "begin") and [path.name for path in folder.iterdir()] == ["run.lock"]


# ---- refusals


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "the grid is empty: name parameters and their values"),
        (["--grid", "seed="], "the grid is empty: seed has no value"),
        (["--grid", "treshold=0.5"], "no chosen notebook has a parameter 'treshold' (did you mean threshold?)"),
        (["--grid", "threshold=0.5,2"], "threshold=2.0 is out of range"),
        (["--grid", "seed=0", "threshold=a"], "threshold='a' is not a float"),
        (["--grid", "threshold=0.5,0.50"], "the grid gives a value of threshold twice: 0.5, 0.50"),
        (["--grid", "seed=0", "seed=1"], "the grid names seed twice"),
        (["--grid", "nowhere.yaml"], "'nowhere.yaml' is neither"),
        (["--grid", "output_folder=x"], "output_folder is given by the run itself"),
        (["--grid", "seed=0", "--to", "nosuch://x"], "--to nosuch://x cannot be used: Protocol not known"),
        (["--grid", "seed=0", "--workers", "2", "--scheduler", "tcp://x:1"], "--workers is for a cluster on this"),
        (["--grid", "seed=0", "--scheduler", "tcp://127.0.0.1:1"], "no scheduler answers at tcp://127.0.0.1:1"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_runs(toy, words, says, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "ANSWER", 0.5)
    monkeypatch.setattr(sys, "argv", ["lowrank_utils", "sweep", "02", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and says in said and said.count("\n") == 1
    assert not logged(toy, "begin") and not list(toy.root.rglob("run.json"))


def test_a_grid_file_that_is_no_mapping_is_refused(tmp_path):
    (tmp_path / "odd.yaml").write_text("- seed\n")
    with pytest.raises(ValueError, match="grid odd.yaml must hold lines of the form name: value"):
        sweeps.read_grid([str(tmp_path / "odd.yaml")])


def test_something_else_that_listens_is_no_scheduler(monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        words = f"no scheduler answers at {address} within 0.5 s"
        with pytest.raises(runs.RunError, match=words), cluster.cluster_client(address, None, 1, 1):
            pass


@pytest.mark.slow
def test_a_scheduler_without_workers_is_refused(toy, monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 5)
    with scheduler_of(toy, workers=0) as (address, _):
        words = f"the scheduler at {address} has no worker"
        with pytest.raises(runs.RunError, match=words), cluster.cluster_client(address, None, 1, 1):
            pass


def test_a_worker_is_settled_before_its_first_notebook(monkeypatch):
    monkeypatch.setattr(os, "environ", {"MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "HOME": "here"})
    cluster.settle(3)  # on a worker of a running scheduler, whose settings are Dask's own
    assert os.environ == {**dict.fromkeys(cluster.THREADS, "3"), "HOME": "here"}
