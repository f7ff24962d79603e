"""night.py: the gallery's jobs on a toy project, killed at every moment that a night may have."""

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest

from conftest import mounted, wait_for, write_notebook
from lowrank_utils import paths
from lowrank_utils.lab import data
from lowrank_utils.workbook import batch_norm, explorer, gallery, language, night, results, runs

REAL = paths.GALLERY  # before a test puts a toy in its place
CONTROLS = REAL / "controls.csv"
PLAN = """\
notebooks:
  - {notebook: "01", seeds: [0], minutes: 1}
  - {notebook: "02", seeds: [0, 1], minutes: 2}
"""
ROWS = """\
from lowrank_utils.workbook import results
row = {"chooser": "energy", "factors": "svd", "scope": "every layer", "budget_kind": "kept", "budget": threshold, "stored_as": "low rank", "dataset": "toys", "network": "mlp"}
results.save(output_folder, [row | {"accuracy": (seed + 1) * threshold / 3}])
"""
BEGUN = """\
import os, time
from lowrank_utils import paths
with open(paths.ROOT / "log", "a") as log:
    print("begin", seed, os.getpid(), os.getppid(), file=log)
while (paths.ROOT / "hold").exists():
    time.sleep(0.05)
"""


@pytest.fixture
def toy(project, monkeypatch):
    """A toy project with a plan of three jobs; its notebooks wait while the file `hold` is there."""
    write_notebook(project.first, ROWS)
    write_notebook(project.second, BEGUN, ROWS)
    (project.root / "outputs" / "gallery").mkdir(parents=True)
    (project.root / "outputs" / "gallery" / "plan.yaml").write_text(PLAN)
    return project


def night_of(made, *words):
    """Call `gallery` on one worker and return what it said; a busy machine may take minutes."""
    process = made.start("gallery", "--quiet", "--workers", "1", *words)
    out, err = process.communicate(timeout=500)
    return SimpleNamespace(code=process.returncode, out=out, err=err)


def rows_of(made):
    table = pd.read_parquet(made.root / "outputs" / "gallery" / "results.parquet")
    return table[["notebook", "seed", "budget", "accuracy"]].sort_values(["notebook", "seed"]).to_dict("records")


EXPECTED = [
    {"notebook": name, "seed": seed, "budget": 0.9, "accuracy": pytest.approx((seed + 1) * 0.3)}
    for name, seeds in (("01_first", (0,)), ("02_second", (0, 1)))
    for seed in seeds
]


def begun(made, count=1):
    log = made.root / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return len(lines) >= count and [tuple(map(int, line.split()[1:])) for line in lines]


def states(made):
    said = made.call("gallery", "--list").out
    return dict(line.split(None, 2)[::2] for line in said.splitlines() if line.startswith(("01", "02")))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_night_runs_every_job_once_and_the_next_has_nothing_to_do(toy):
    assert set(states(toy).values()) == {"missing"}
    done = night_of(toy)
    assert done.code == 0 and done.out == "3 jobs done\n", done.err
    assert rows_of(toy) == EXPECTED
    held = toy.root / "outputs" / "gallery"
    assert sorted(p.name for p in (held / "jobs").iterdir()) == sorted(
        f"{name}-seed{seed}.record.json"
        for name, seeds in (("01_first", (0,)), ("02_second", (0, 1)))
        for seed in seeds
    )
    assert (held / "README.md").is_file() and len(pd.read_csv(held / "results.csv.gz")) == 3
    record = json.loads((held / "jobs" / "02_second-seed1.record.json").read_text())
    assert {"parameters", "data_fingerprint", "versions", "commit", "code", "seconds", "finished"} <= record.keys()
    assert 0.5 < record["processor_seconds"] < 600  # a kernel takes longer than that to start
    table = pd.read_parquet(held / "results.parquet")
    assert table["code"].str.len().min() > 20 and table["run_parameters"].str.contains("threshold").all()
    again = night_of(toy)
    assert again.code == 0 and again.out == "nothing to do: all rows are there\n"
    assert set(states(toy).values()) == {"done"}
    assert len(begun(toy)) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_older_code_is_listed_and_measured_again_only_where_asked(toy):
    assert night_of(toy, "--only", "01").code == 0
    write_notebook(toy.first, ROWS.replace("/ 3", "/ 6"))
    assert states(toy)["01_first-seed0"] == "older code"
    assert night_of(toy, "--only", "01").out.startswith("nothing to do")
    assert night_of(toy, "--only", "01", "--renew").out == "1 job done\n"
    assert [row["accuracy"] for row in rows_of(toy)] == pytest.approx([0.15])
    assert states(toy)["01_first-seed0"] == "done"
    shutil.rmtree(toy.root / "outputs" / "gallery" / "jobs")  # as rows that were published before there were records
    assert states(toy)["01_first-seed0"] == "published"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["command", "worker", "kernel"])
def test_killed_it_ends_with_the_same_rows(toy, victim):
    (toy.root / "hold").touch()
    first = toy.start("gallery", "--quiet", "--workers", "1", start_new_session=True)
    try:
        ((_, kernel, worker),) = wait_for(lambda: begun(toy), 300)
        os.kill({"command": first.pid, "worker": worker, "kernel": kernel}[victim], signal.SIGKILL)
        if victim == "command":
            first.communicate(timeout=60)
            wait_for(
                lambda: not os.path.exists(f"/proc/{kernel}"), 300
            )  # a kernel ends with its worker, and that with its scheduler
        else:
            wait_for(lambda: begun(toy, 2), 300)  # it is tried once more
        (toy.root / "hold").unlink()
        out, err = first.communicate(timeout=400) if victim != "command" else ("", "")
    finally:
        (toy.root / "hold").unlink(missing_ok=True)
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    if victim == "command":
        done = night_of(toy)
        assert done.code == 0, done.err
    else:
        assert first.returncode == 0 and out == "3 jobs done\n", err
    assert rows_of(toy) == EXPECTED


# ---- killed at any moment --------------------------------------------------------------------------------------------

STEPS = """\
import time
from lowrank_utils import paths
from lowrank_utils.workbook import results
import numpy as np
rows = []
for step in range(4):
    left = np.linalg.svd(np.random.default_rng([seed, step]).normal(size=(40, 30)), compute_uv=False)
    rows.append({"chooser": "energy", "factors": "svd", "scope": "every layer", "budget_kind": "kept", "budget": (step + 1) / 4, "stored_as": "low rank", "dataset": "toys", "network": "mlp", "accuracy": left[step] / left.sum()})
    time.sleep(0.2)
while seed == 1 and (paths.ROOT / "hold").exists():
    time.sleep(0.05)
results.save(output_folder, rows)
"""
SECTION = """\
import time
from functools import partial
import matplotlib.pyplot as plt
from lowrank_utils.workbook import results, rivals

NAME = "spectra"
published = partial(rivals.published, NAME)

def renew(path=None):
    def row(asked):
        time.sleep(0.4)
        return {**asked, "lost": asked["kept"] ** 0.5 / 3}
    return results.completed(path, [{"kept": k / 8} for k in range(1, 7)], row)

def figure(rows):
    return plt.figure()

def section(rows):
    return f"## Spectra\\n\\n{len(rows)} rows\\n"
"""
AHEAD = """\
import lowrank_utils.workbook
lowrank_utils.workbook.__path__.insert(0, {place!r})
"""


@pytest.fixture
def brief(toy, tmp_path, monkeypatch):
    """A night of two notebooks of a second each and one section, which takes the place of `spectra` in every process."""
    for path in (toy.first, toy.second):
        write_notebook(path, STEPS)
    (paths.GALLERY / "plan.yaml").write_text(PLAN.replace("seeds: [0, 1]", "seeds: [1]") + "sections: {spectra: 1}\n")
    (tmp_path / "ahead").mkdir()
    (tmp_path / "ahead" / "spectra.py").write_text(SECTION)
    (tmp_path / "ahead" / "sitecustomize.py").write_text(AHEAD.format(place=str(tmp_path / "ahead")))
    found = os.pathsep.join(filter(None, (str(tmp_path / "ahead"), os.environ.get("PYTHONPATH"))))
    # the environment of `toy.start` was made before
    start = partial(toy.start, env={**os.environ, "LOWRANK_ROOT": str(toy.root), "PYTHONPATH": found})
    return SimpleNamespace(root=toy.root, start=start)


def processes(command, kind):
    """Return the processes of one kind that a running `command` has: itself, its Dask workers, or kernels of notebooks."""
    word = {"worker": "multiprocessing.spawn", "kernel": "ipykernel_launcher"}.get(kind)
    with contextlib.suppress(psutil.NoSuchProcess):
        own = psutil.Process(command.pid)
        if word is None:
            return [own] * own.is_running()
        return [each for each in own.children(recursive=True) if word in " ".join(_words(each))]
    return []


def _words(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def struck(made, seed, longest=5.0):
    """Start a night, kill command, worker and kernel in any order at random moments, go on until it is done; return what was killed."""
    chance, told = random.Random(seed), []
    victims = chance.sample(["command", "worker", "kernel"], 3)
    (made.root / "hold").touch()  # one job waits for the last of them, so that none comes too late
    how = {"start_new_session": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = made.start("gallery", "--quiet", "--workers", "1", **how)
    try:
        for victim in victims:
            time.sleep(chance.uniform(0, longest))
            end = time.time() + 300
            while not (found := command.poll() is None and processes(command, victim)):
                assert time.time() < end, f"there is no {victim} to be killed after {told}"
                if command.poll() is not None:  # what was killed before has ended it
                    command = made.start("gallery", "--quiet", "--workers", "1", **how)
                time.sleep(0.05)
            chosen = chance.choice(found)
            with contextlib.suppress(psutil.NoSuchProcess):
                chosen.send_signal(signal.SIGKILL)
                told.append(victim)
        (made.root / "hold").unlink()
        ended = SimpleNamespace(code=command.wait(timeout=300), err="")
    finally:
        (made.root / "hold").unlink(missing_ok=True)
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)
    for _ in range(2):
        ended = ended if ended.code == 0 else night_of(made)
    assert ended.code == 0, f"after {told} it does not end: {ended.err}"
    return told


def published_by(made):
    """Return the rows that a night has left, without what tells of time and place, and the jobs that are on record as done."""
    held = made.root / "outputs" / "gallery"
    table = pd.read_parquet(held / "results.parquet").sort_values(["notebook", "seed", "budget"])
    records = [json.loads(path.read_text()) for path in sorted((held / "jobs").glob("*.record.json"))]
    left = sorted(path.name for path in (held / "jobs").iterdir() if not path.name.endswith(".record.json"))
    return {
        "rows": table.drop(columns=["finished", "seconds"], errors="ignore").to_csv(index=False),
        "section": (held / "spectra.csv").read_text(),
        "page": (held / "README.md").read_text(),
        "records": [{key: each.get(key) for key in ("name", "status", "code", "parameters")} for each in records],
        "left": left,
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [int(word) for word in os.environ.get("LOWRANK_KILLS", "0").split()])
def test_killed_at_random_moments_it_ends_with_the_same_rows(brief, seed):
    assert night_of(brief).code == 0
    undisturbed = published_by(brief)
    assert len(undisturbed["records"]) == 3 and undisturbed["left"] == []
    for path in paths.GALLERY.iterdir():
        if path.name != "plan.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(paths.RUNS)
    assert sorted(struck(brief, seed)) == ["command", "kernel", "worker"]
    assert published_by(brief) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_failed_job_stops_no_other_and_is_tried_again(toy):
    write_notebook(toy.second, "if seed == 1: raise ValueError('went wrong')", ROWS)
    done = night_of(toy)
    assert done.code == 1 and done.out == "2 jobs done\n"
    assert "02_second-seed1: 02_second failed in cell 3" in done.err and "1 of 3 jobs failed" in done.err
    assert states(toy)["02_second-seed1"].startswith("failed: 02_second failed")
    write_notebook(toy.second, ROWS)
    assert night_of(toy).out == "1 job done\n"
    assert rows_of(toy) == EXPECTED


def test_a_second_gallery_at_once_is_refused_in_one_sentence(toy, tmp_path):
    with (
        runs.locked(paths.RUNS / night.SCRATCH),
        pytest.raises(runs.RunError, match="another gallery run is at work") as told,
    ):
        night.run()
    assert str(os.getpid()) in str(told.value) and "\n" not in str(told.value)


def finished(name="01_first-seed0", **row):
    """Leave the rows of a finished job, as a clone may find them."""
    row = {"notebook": "01_first", "dataset": "toys", "network": "mlp", "seed": 0, "accuracy": 0.5, "chooser": "energy",
           "scope": "every layer", "budget_kind": "kept", "budget": 0.2, "stored_as": "low rank", "address": f"{name}-0"} | row  # fmt: skip
    night._made(night.folder())
    pd.DataFrame([row]).to_parquet(night.folder() / f"{name}.parquet", index=False)
    record = {"schema": night.SCHEMA, "name": name, "status": "done", "code": "x", "seconds": 90}
    runs.write_json(night.folder() / f"{name}.record.json", record)


def test_a_clone_goes_on_from_rows_that_were_not_published_yet(toy):
    finished()
    work = next(each for each in night.planned() if each.name == "01_first-seed0")
    assert (work.state, work.minutes) == (night.OLDER, 1.5)
    record = night.read_record(work.name)
    runs.write_json(
        night._record_path(work.name), record | {"processor_seconds": 60.0}
    )  # a busy machine stretches the other
    assert next(each for each in night.planned() if each.name == work.name).minutes == 1.0
    runs.write_json(night._record_path(work.name), record | {"code": ""})
    assert next(each for each in night.planned() if each.name == work.name).state == night.UNKNOWN
    written = night.publish()
    assert paths.GALLERY / "results.parquet" in written and not list(night.folder().glob("*.parquet"))
    assert len(gallery._published(paths.GALLERY)) == 1
    assert night.publish() == []


def test_rows_that_were_cut_off_before_their_record_wait_for_it(toy):
    finished()
    (night.folder() / "01_first-seed0.record.json").unlink()
    assert next(each for each in night.planned() if each.name == "01_first-seed0").state == night.PART
    assert night.publish() == [] and len(list(night.folder().glob("*.parquet"))) == 1


def test_rows_of_an_older_version_are_converted_or_refused_by_name(toy):
    finished(size=3)
    with pytest.raises(runs.RunError, match=r"01_first-seed0.parquet is of an older version \('size' is no column"):
        night.publish()
    (night.folder() / "01_first-seed0.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(runs.RunError, match="01_first-seed0.parquet cannot be read"):
        night.publish()
    (night.folder() / "01_first-seed0.parquet").unlink()
    (night.folder() / "01_first-seed0.record.json").write_text('{"schema": 0}')
    with pytest.raises(runs.RunError, match="record.json is of version 0, and this package reads 1"):
        night.planned()
    (night.folder() / "01_first-seed0.record.json").write_text('{"sch')
    with pytest.raises(runs.RunError, match="record.json is damaged"):
        night.planned()


def test_a_full_disk_is_said_and_nothing_is_lost(toy, monkeypatch):
    finished()
    before = {path: path.read_bytes() for path in paths.GALLERY.rglob("*") if path.is_file()}
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(runs, "check_writable", lambda folder: (_ for _ in ()).throw(full))
    with pytest.raises(runs.RunError, match="the disk cannot take the rows .No space left.*make room"):
        night.run()
    assert {path: path.read_bytes() for path in paths.GALLERY.rglob("*") if path.is_file()} == before


FILLING = """\
if (paths.ROOT / "fill").exists():
    (paths.ROOT / "fill").unlink()
    with open(paths.ROOT / "filler", "wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)):
                pass
        except OSError:
            pass
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_disk_that_fills_up_ends_the_night_and_room_lets_it_go_on(toy, tmp_path):
    write_notebook(toy.first, BEGUN, ROWS, FILLING)  # nothing of the notebook itself can be kept then
    with mounted(tmp_path / "small", "size=16m") as small:
        shutil.move(toy.root, small / "project")
        root = small / "project"
        (root / "fill").touch()
        environment = {**os.environ, "LOWRANK_ROOT": str(root)}
        words = [sys.executable, "-m", "lowrank_utils", "gallery", "--quiet", "--workers", "1", "--only", "01"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=400)
        assert shutil.disk_usage(small).free < 2**20 < (root / "filler").stat().st_size
        assert done.returncode == 2, done.stderr
        assert "the disk cannot take the rows" in done.stderr and done.stderr.count("\n") == 1
        (root / "filler").unlink()
        again = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=400)
        assert again.returncode == 0, again.stderr
        assert len(pd.read_parquet(root / "outputs" / "gallery" / "results.parquet")) == 1


# ---- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_published_plan_has_every_published_row():
    works = [work for work in night.planned() if work.job]
    missing = {work.name for work in works if work.state == night.MISSING}
    assert night._published_labels() == {work.name for work in works} - missing
    assert not missing or all("lenet5" in name for name in missing)  # notebook 02 on LeNet-5 is not measured yet


@pytest.mark.slow
def test_the_pages_say_how_long_all_jobs_take():
    minutes, text = [work.minutes for work in night.planned()], (paths.DOCS / "running.md").read_text()
    told = re.search(r"about (\d+) hours on one core and (\d+) hours on two", text)
    assert [float(hours) for hours in told.groups()] == pytest.approx(
        [sum(minutes) / 60, night._hours(minutes, 2)], rel=0.25
    )


def test_every_section_of_the_gallery_has_a_job():
    _, sections = night.read_plan(paths.GALLERY / "plan.yaml")
    assert set(sections) == set(night.SECTIONS)
    tables = {section.table for section in night.SECTIONS.values()}
    assert {path.name for path in paths.GALLERY.glob("*.csv")} <= tables
    for section in night.SECTIONS.values():
        module = __import__(f"lowrank_utils.workbook.{section.module}", fromlist=["renew"])
        assert callable(module.renew)


def test_a_plan_that_is_none_is_refused(tmp_path):
    path = tmp_path / "plan.yaml"
    for text, said in (
        ("notebooks: [{preset: digits}]", "names no notebook"),
        ("notebooks: [{notebook: '01', hours: 3}]", "names no notebook, or more than"),
        ("sections: {weather: 3}", "unknown section 'weather'; known: prediction"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            night.read_plan(path)


def test_names_pick_jobs_by_their_beginning():
    works = [
        night.Work(name, minutes, night.MISSING, "") for name, minutes in (("05_a", 60.0), ("05_b", 30.0), ("x", 30.0))
    ]
    assert [work.name for work in night.selected(works, ["05"])] == ["05_a", "05_b"]
    assert night.selected(works, []) == works
    with pytest.raises(ValueError, match="no job of the gallery begins with '7'"):
        night.selected(works, ["7"])
    said = night.listing(works)
    assert "3 of 3 jobs wait, 2.0 hours on one core, about 1.0 on 2" in said


def test_a_section_is_renewed_into_a_file_of_its_own_and_takes_its_place_in_the_table(toy, monkeypatch):
    table = pd.DataFrame({"network": ["lenet300", "vgg_small"], "accuracy": [0.5, 0.6]})
    table.to_csv(paths.GALLERY / "controls.csv", index=False)
    section = night.SECTIONS["controls-lenet300"]
    part = night._part("controls-lenet300")
    night._made(night.folder())
    night._copy_rows(section, paths.GALLERY / "controls.csv", part)
    assert pd.read_csv(part).to_dict("records") == [{"network": "lenet300", "accuracy": 0.5}]
    pd.DataFrame({"network": ["lenet300"], "accuracy": [0.7]}).to_csv(part, index=False)
    night._publish_section(section, part)
    found = pd.read_csv(paths.GALLERY / "controls.csv").set_index("network")["accuracy"].to_dict()
    assert found == {"lenet300": 0.7, "vgg_small": 0.6}
    monkeypatch.setattr(night.Section, "renew", lambda self, path: time.sleep(0))
    assert night._measure("batch-norm", str(night._made(paths.RUNS / night.SCRATCH)), 1) == ""
    night._keep(night.Work("batch-norm", 1.0, night.MISSING, "abc", section=night.SECTIONS["batch-norm"]), "")
    record = night.read_record("batch-norm")
    assert {"seconds", "versions", "commit", "finished"} <= record.keys() and record["code"] == "abc"
    assert record["parameters"]["IMAGES"] == batch_norm.IMAGES and record["parameters"]["BUDGET"] == batch_norm.BUDGET
    assert record["data_fingerprint"] == {"cifar10": data.dataset_fingerprint("cifar10")}


def test_a_section_that_goes_on_from_earlier_rows_records_no_seconds_and_only_code_that_is_known(toy, monkeypatch):
    monkeypatch.setattr(night.Section, "renew", lambda self, path: path.write_text("accuracy\n0.5\n"))
    scratch, section = str(night._made(paths.RUNS / night.SCRATCH)), night.SECTIONS["batch-norm"]
    night._made(night.folder())
    work = night.Work("batch-norm", 1.0, night.MISSING, "abc", section=section)

    def record():
        assert night._measure("batch-norm", scratch, 1) == ""
        night._keep(work, "")
        return night.read_record("batch-norm")

    first, again = record(), record()  # the second finds the rows of the first, as after a kill
    assert {"seconds", "processor_seconds"} <= first.keys() and first["code"] == "abc"
    assert not {"seconds", "processor_seconds"} & again.keys() and again["code"] == "abc"
    monkeypatch.setattr(night, "_code", lambda *modules: "edited")
    assert record()["code"] == ""
    assert night._of_section("batch-norm", 6.0).minutes == 6.0


def test_a_table_that_was_begun_is_not_taken_for_a_whole_one(toy):
    published = paths.GALLERY / "controls.csv"
    rows = pd.read_csv(CONTROLS)
    mine = rows[rows["network"] == "lenet300"]
    section = night.SECTIONS["controls-lenet300"]
    last = mine[mine["tuned"] == "distilled"].index[-1]
    for table, whole in ((mine, True), (mine[mine["draw"] < 4], False), (mine.drop(last), False), (mine[:0], False)):
        table.to_csv(published, index=False)
        assert night._has_rows(section) == whole
    published.unlink()
    assert not night._has_rows(section)


def test_data_that_cannot_be_had_fail_one_section_only(toy, monkeypatch):
    def missing(self):
        raise OSError("no connection")

    monkeypatch.setattr(night.Section, "renew", lambda self, path: None)
    monkeypatch.setattr(night.Section, "fingerprints", missing)
    found = night._measure("batch-norm", str(night._made(paths.RUNS / night.SCRATCH)), 1)
    assert found == "batch-norm failed: OSError: no connection"


DATA = {  # section -> what its rows were measured on
    "prediction": ("fashion-mnist", "mnist", "digits", "cifar10", "wikitext-2", "python-topics"),
    "controls-lenet300": ("fashion-mnist",),
    "controls-vgg_small": ("fashion-mnist",),
    "controls-resnet20": ("cifar10",),
    "controls-resnet56": ("cifar10",),
    "imagenet": ("imagenet-sample",),
    "search-times": (),
    "language": ("wikitext-2",),
    "language-more": ("wikitext-2",),
    "encoder": ("stsbenchmark",),
    "spectra": ("stsbenchmark", "python-topics"),
    "explorer": ("fashion-mnist", "mnist", "digits", "cifar10"),
} | dict.fromkeys(("shortcuts", "batch-norm", "enc-gap"), ("cifar10",))
# tables without a column of data sets: their networks say what they were measured on
OF_NETWORKS = {
    "spectra": {"all-minilm-l6-v2", "smollm2-135m"},
    "shortcuts": {"resnet20"},
    "batch-norm": {"resnet20", "resnet56"},
    "enc-gap": {"resnet56"},
}


def test_sections_name_their_data_and_their_parameters():
    for name, section in night.SECTIONS.items():
        path, said = paths.GALLERY / section.table, json.dumps(section.parameters())
        assert len(said) > 40 and " at 0x" not in said and "function" not in said, name
        assert set(section.data) == set(DATA[name]), name
        if path.suffix == ".csv" and path.is_file():
            table = pd.read_csv(path)
            if "dataset" in table and not section.network:
                assert set(table["dataset"]) == set(section.data), name
            if "network" in table and name in OF_NETWORKS:
                assert set(table["network"]) == OF_NETWORKS[name], name
    more = night.SECTIONS["language-more"].parameters()
    assert more["grid"]["TEST_SEED"] == language.TEST_SEED and "CAPTION" not in more["grid"] and "PRIORS" in more
    subjects = {subject.dataset for subject in explorer.SUBJECTS}
    assert subjects == set(night.SECTIONS["explorer"].data)
    assert night.SECTIONS["language"].data == (language.CORPUS,)
    assert len(night.SECTIONS["encoder"].fingerprints()["stsbenchmark"]) > 30
    assert night.SECTIONS["controls-lenet300"].parameters()["network"] == "lenet300"


def test_what_reads_published_rows_is_measured_after_they_are_published(toy, monkeypatch):
    works = [
        night.Work(name, 1.0, night.MISSING, night.SECTIONS[name].code, section=night.SECTIONS[name])
        for name in ("batch-norm", "spectra")
    ]
    log = []
    monkeypatch.setattr(night, "planned", lambda plan: works)
    monkeypatch.setattr(night, "publish", lambda: log.append("publish"))
    monkeypatch.setattr(night, "_keep", lambda work, error: log.append(work.name))
    monkeypatch.setattr(night, "_worked", lambda wave, *how: [(work, "") for work in wave])
    assert night.run(progress=False) == (["spectra", "batch-norm"], {})
    assert log == ["spectra", "publish", "batch-norm", "publish"]


def test_a_section_is_older_once_the_rows_that_it_reads_change(toy):
    section, other = night.SECTIONS["batch-norm"], night.SECTIONS["spectra"]
    row = {"notebook": "05_rank_search", "dataset": "cifar10", "network": "resnet20", "seed": 0, "chooser": "exact"}

    def codes(**more):
        made = results.joined([pd.DataFrame([row | {"accuracy": 0.5} | more])])
        gallery.write_rows(made, paths.GALLERY / "results.parquet")
        return section.code, other.code

    first, same, moved, elsewhere = codes(), codes(), codes(accuracy=0.6), codes(accuracy=0.5, notebook="02_arsvd")
    assert first == same and first[0] != moved[0] and first[1] == moved[1] == elsewhere[1]
    assert elsewhere[0] != first[0]


def test_the_published_explorer_shows_the_published_rows():
    for own in explorer.read(REAL / "explorer.json")["networks"]:
        subject = next(each for each in explorer.SUBJECTS if each.name == own["name"])
        if not subject.measured:
            assert own["published"] == explorer.published(subject, REAL), own["name"]
