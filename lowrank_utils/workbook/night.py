"""Every published row by one command, on Dask workers, and on from where it stopped: `make gallery`.

outputs/gallery/plan.yaml names the jobs. Each finished job leaves two tracked files in outputs/gallery/jobs:

    NAME.record.json  how it ended, its seconds, digest of its code, data fingerprint, parameters, versions, commit
    NAME.parquet      the rows of a notebook (NAME.csv: of a section), until they are put into the gallery's own tables

so that any clone goes on from there. Rows that were published before count as done. What rows rest on older code is listed
so, and measured again only where that is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import inspect
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from lowrank_utils import paths
from lowrank_utils.workbook import cluster, digests, gallery, jobs, results, runs, sweeps

SCHEMA = 1  # of a job's record
SCRATCH = ".gallery"  # below outputs/runs: executed notebooks on their way, and the lock
DONE, OLDER, UNKNOWN = "done", "older code", "published"
MISSING, PART, FAILED = "missing", "begun", "failed"
WAITING = (MISSING, PART, FAILED)
STATES = {
    DONE: "its rows are there",
    OLDER: "its rows are there, measured with other code than today's; --renew measures them again",
    UNKNOWN: "its rows are there, but not on record with which code they were measured",
    MISSING: "it has no rows yet",
    PART: "it was begun, or is to be measured again",
    FAILED: "it failed; the next run tries it again",
}


@dataclass(frozen=True)
class Section:
    """A part of the gallery's page with a table of its own: the ``module`` of `workbook` whose `renew` measures it, the
    ``table`` it fills, and the ``data`` it reads. Where several share a table, ``network`` says whose rows are meant. ``reads``: the
    notebooks whose published rows it builds on, so that it runs after them, and is of older code where they changed."""

    module: str
    table: str
    data: tuple[str, ...]
    network: str = ""
    reads: tuple[str, ...] = ()

    @property
    def code(self) -> str:
        """The digest of its code today, and of the published rows that it reads."""
        rows = f"-{_rows_digest(self.reads)}" if self.reads else ""
        return f"{_code(self.module)}{rows}"

    def renew(self, path: Path) -> None:
        """Measure the rows that the file `path` lacks, each written to it at once."""
        module = importlib.import_module(f"lowrank_utils.workbook.{self.module}")
        if self.module == "explorer":
            module.renew(path=path)
        elif self.network:
            module.renew(path, [case for case in module.CASES if case.network == self.network])
        else:
            module.renew(path)

    def parameters(self) -> dict[str, Any]:
        """Return the constants of the module and the defaults of its `renew`, fit for JSON.

        Rows beside those of `workbook.language` hold the constants of that module too, under "grid".
        """
        module = importlib.import_module(f"lowrank_utils.workbook.{self.module}")
        found = _constants(module)
        if self.module == "language_more":
            found["grid"] = _constants(module.grid)
        defaults = inspect.signature(module.renew).parameters
        given = {name: _plain(one.default) for name, one in defaults.items() if one.default not in (None, one.empty)}
        return found | given | ({"network": self.network} if self.network else {})

    def fingerprints(self) -> dict[str, str]:
        """Return {data set or text: its fingerprint}. Raises OSError where one cannot be had."""
        from lowrank_utils.lab import sentences

        known = {"stsbenchmark": "-".join(sentences.SHA256[split][:16] for split in sorted(sentences.SHA256))}
        return {name: known.get(name) or jobs._fingerprint(name) for name in self.data}


WORDS = (*digests.WORDS, "NAME", "COLUMNS", "SHOWN", "PANELS")  # what a page says decides on no number


def _constants(module):
    return {name: _plain(value) for name, value in vars(module).items() if name.isupper() and name not in WORDS}


def _plain(value):
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | int | float) else getattr(value, "__name__", str(value))


SECTIONS = {
    "prediction": Section(
        "prediction", "prediction.csv", ("fashion-mnist", "mnist", "digits", "cifar10", "wikitext-2", "python-topics")
    ),
    "shortcuts": Section("shortcuts", "shortcuts.csv", ("cifar10",)),
    "controls-lenet300": Section("control_rows", "controls.csv", ("fashion-mnist",), "lenet300"),
    "controls-vgg_small": Section("control_rows", "controls.csv", ("fashion-mnist",), "vgg_small"),
    "controls-resnet20": Section("control_rows", "controls.csv", ("cifar10",), "resnet20"),
    "controls-resnet56": Section("control_rows", "controls.csv", ("cifar10",), "resnet56"),
    "batch-norm": Section("batch_norm", "batch-norm.csv", ("cifar10",), reads=("05_rank_search",)),
    "enc-gap": Section("enc_gap", "enc-gap.csv", ("cifar10",)),
    "search-times": Section("search_times", "search-times.csv", ()),
    "imagenet": Section("imagenet", "imagenet.csv", ("imagenet-sample",)),
    "language": Section("language", "language.csv", ("wikitext-2",)),
    "language-more": Section("language_more", "language-more.csv", ("wikitext-2",)),
    "encoder": Section("encoder", "encoder.csv", ("stsbenchmark",)),
    "spectra": Section("spectra", "spectra.csv", ("stsbenchmark", "python-topics")),
    "explorer": Section(
        "explorer",
        "explorer.json",
        ("fashion-mnist", "mnist", "digits", "cifar10"),
        reads=("05_rank_search", "06_side_by_side"),
    ),
}


@dataclass(frozen=True)
class Work:
    """A job of the gallery: its ``name``, the ``minutes`` it is expected to take, its ``state`` (`STATES`) and the digest of its
    ``code`` today; a ``job`` of a notebook, or a ``section``. ``error`` says why it failed."""

    name: str
    minutes: float
    state: str
    code: str
    job: jobs.Job | None = None
    section: Section | None = None
    error: str = field(default="", compare=False)


# ---- what there is to do ---------------------------------------------------------------------------------------------


def folder() -> Path:
    """Return the folder of the records: outputs/gallery/jobs."""
    return paths.GALLERY / "jobs"


def read_plan(path: str | Path | None = None) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return (lines of notebooks, {section: minutes}) of a plan. Raises ValueError, in a sentence, for one that is none."""
    path = Path(path or paths.GALLERY / "plan.yaml")
    plan = jobs.read_yaml(path, "plan")
    lines, sections = plan.get("notebooks") or [], plan.get("sections") or {}
    known = {"notebook", "preset", "seeds", "draws", "minutes", "set"}
    for line in lines:
        if not isinstance(line, dict) or "notebook" not in line or set(line) - known:
            raise ValueError(
                f"{path.name} has a line that names no notebook, or more than {', '.join(sorted(known))}: {line}"
            )
    if strange := sorted(set(sections) - SECTIONS.keys()):
        raise ValueError(f"{path.name} names an unknown section {strange[0]!r}; known: {', '.join(SECTIONS)}")
    return lines, {name: float(minutes) for name, minutes in sections.items()}


def planned(path: str | Path | None = None) -> list[Work]:
    """Return every job of a plan (default: that of the gallery) with its state, notebooks first. Raises ValueError as `read_plan`."""
    lines, sections = read_plan(path)
    there, found = _published_labels(), []
    for line in lines:
        for draw in line.get("draws") or [None]:
            settings = {**line.get("set", {}), **({} if draw is None else {"draw": draw})}
            preset = line.get("preset")
            for job in jobs.list_jobs([str(line["notebook"])], preset, settings, line.get("seeds") or []):
                found.append(_of_notebook(job, float(line.get("minutes", 10)), there))
    found += [_of_section(name, minutes) for name, minutes in sections.items()]
    names = [work.name for work in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the plan has two jobs that are called {twice[0]}")
    return found


def selected(works: Sequence[Work], only: Sequence[str]) -> list[Work]:
    """Return the jobs whose names begin with a word of `only` (empty: all). Raises ValueError for a word that fits none."""
    for word in only:
        if not any(work.name.startswith(word) for work in works):
            raise ValueError(
                f"no job of the gallery begins with {word!r}; see them with: python -m lowrank_utils gallery --list"
            )
    return [work for work in works if not only or any(work.name.startswith(word) for word in only)]


def _published_labels():
    rows = gallery._published(paths.GALLERY)
    return set(rows["address"].dropna().str.rsplit("-", n=1).str[0]) if len(rows) else set()


@lru_cache
def _code(*modules):
    return digests.of_code(*modules)


def _rows_digest(notebooks):
    # eight hexadecimal digits of what the published rows of some notebooks say
    rows = gallery._published(paths.GALLERY)
    if not len(rows):
        return "none"
    told = [
        "dataset",
        "network",
        "seed",
        "draw",
        "chooser",
        "factors",
        "tuned",
        "budget_kind",
        "budget",
        "plan",
        "accuracy",
    ]
    mine = rows[rows["notebook"].isin(notebooks)].reindex(columns=told).sort_values(told, kind="stable")
    return hashlib.sha256(mine.to_csv(index=False).encode()).hexdigest()[:8]


def _is_module(name):
    return (digests.PACKAGE / "workbook" / f"{name}.py").is_file()


def _of_notebook(job, minutes, there):
    chapter = f"chapters/{job.notebook.partition('_')[2]}"
    own = [name for name in (f"{chapter}_experiment", chapter) if _is_module(name)][:1]
    code = f"{_code('benchmark', 'contest', 'laboratory', *own)}-{job.source[:12]}"
    record, rows = read_record(job.label), (folder() / f"{job.label}.parquet").is_file()
    return _work(job.label, minutes, record, rows or job.label in there, rows, code, job=job)


def _of_section(name, minutes):
    section = SECTIONS[name]
    part = _part(name).is_file()
    return _work(name, minutes, read_record(name), _has_rows(section), part, section.code, section=section)


def _work(name, minutes, record, there, part, code, **kind):
    state = MISSING
    if record.get("status") == FAILED:
        state = FAILED
    elif (part and record.get("status") != "done") or record.get("status") == PART:
        state = PART
    elif there:
        state = UNKNOWN if not record.get("code") else DONE if record["code"] == code else OLDER
    seconds = record.get("processor_seconds", record.get("seconds", 60 * minutes))  # older records have the latter only
    return Work(name, seconds / 60, state, code, error=record.get("error", ""), **kind)


def _has_rows(section):
    path = paths.GALLERY / section.table
    if not path.is_file():
        return False
    if section.module == "explorer":
        from lowrank_utils.workbook import explorer

        return {subject.name for subject in explorer.SUBJECTS} <= {
            own["name"] for own in explorer.read(path)["networks"]
        }
    import pandas as pd

    if section.module in ("language", "language_more"):  # hours; a file may hold the first rows only
        return len(pd.read_csv(path)) >= len(
            importlib.import_module(f"lowrank_utils.workbook.{section.module}").asked()
        )
    if not section.network:
        return True
    from lowrank_utils.workbook import control_rows

    return control_rows.is_complete(pd.read_csv(path), section.network)


def _part(name):
    return folder() / f"{name}{Path(SECTIONS[name].table).suffix}"


def _record_path(name):
    return folder() / f"{name}.record.json"


def read_record(name: str) -> dict[str, Any]:
    """Return the record of a job, {} for none. Raises RunError, naming the file, where it is damaged or of another version."""
    path = _record_path(name)
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text())
        version = record["schema"]
    except (ValueError, KeyError, TypeError):
        raise runs.RunError(f"{path} is damaged; remove it, and its job counts as published or runs again") from None
    if version != SCHEMA:
        raise runs.RunError(
            f"{path} is of version {version}, and this package reads {SCHEMA}; remove it, and its job runs again"
        )
    return record


# ---- doing it --------------------------------------------------------------------------------------------------------


def run(
    only: Sequence[str] = (),
    *,
    renew: bool = False,
    workers: int | None = None,
    threads: int = 1,
    progress: bool = True,
    plan: str | Path | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Run the jobs that wait and are `selected` by `only`, publish; return (names done, {name: error}).

    With `renew` also those whose rows rest on older code, or on code that is not on record. Long jobs begin first; sections that read published
    rows come after the others are published. What a job left is kept at once, so that the same call goes on after whatever ends it. Raises ValueError for a
    plan or a name that is none, RunError where another gallery run is at work, the disk is full, or a file is of another version.
    """
    with _alone():
        works = [w for w in selected(planned(plan), only) if w.state in WAITING or (renew and w.state != DONE)]
        works.sort(key=lambda work: -work.minutes)
        ended: list[str] = []
        failed: dict[str, str] = {}
        with _room():
            runs.check_writable(_made(folder()))
            _forget([work for work in works if work.state not in WAITING])
            runs.fetch(runs.needed([work.job for work in works if work.job]))
            last = [work.name for work in works if work.section and work.section.reads]
            for reads in (False, True):
                if reads and not last:
                    break
                wave = [work for work in works if work.name not in last]
                if reads:  # again, for what they read was published a moment ago
                    wave = [work for work in planned(plan) if work.name in last]
                for work, error in _worked(wave, workers, threads, progress):
                    _keep(work, error)
                    if error:
                        failed[work.name] = error
                    else:
                        ended.append(work.name)
                publish()
    return ended, failed


def _made(place):
    place.mkdir(parents=True, exist_ok=True)
    return place


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(runs.locked(paths.RUNS / SCRATCH))
        except runs.RunError as error:
            process = str(error).rpartition("process ")[2].partition(":")[0]
            raise runs.RunError(f"another gallery run is at work here (process {process}): wait for its end") from None
        yield


@contextlib.contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in runs.FULL:
            raise
        reason = f"the disk cannot take the rows ({error.strerror or error})"
        raise runs.RunError(
            f"{reason}; what was finished is kept: make room, then go on with the same command"
        ) from None


def _forget(works):
    # a renewal, once begun, goes on without being asked for; published rows stay until new ones take their place
    for work in works:
        for path in folder().glob(f"{work.name}.*"):
            path.unlink()
        if work.job:
            shutil.rmtree(paths.RUNS / SCRATCH / work.job.address, ignore_errors=True)
        runs.write_json(_record_path(work.name), {"schema": SCHEMA, "name": work.name, "status": PART, "code": ""})


def _worked(works, workers, threads, progress):
    """Yield (job, error) as each job ends, the error "" for none; a job whose kernel died is tried once more."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker
    from tqdm import tqdm

    if not works:
        return
    root, again = str(_made(paths.RUNS / SCRATCH)), set()
    bar = tqdm(total=len(works), desc="jobs", unit="job", disable=None if progress else True)
    with bar, cluster.cluster_client(None, workers, threads, len(works)) as client:
        at_work = {_submit(client, work, root, threads): work for work in works}
        waiting = as_completed(list(at_work))
        for future in waiting:
            work = at_work[future]
            try:
                error = future.result()
            except KilledWorker as failure:
                error = f"{failure.allowed_failures + 1} workers died over it, perhaps for want of memory"
            if runs.DIED in error and work.name not in again:
                again.add(work.name)
                future = _submit(client, work, root, threads, "again")
                at_work[future] = work
                waiting.add(future)
                continue
            yield work, error
            bar.set_postfix({"last": work.name}, refresh=False)
            bar.update()


def _submit(client, work, root, threads, word=""):
    how = {"key": f"{work.name}@{root}{word}", "retries": 0, "pure": False}
    if work.job is None:
        return client.submit(_measure, work.name, root, threads, **how)
    from fsspec.implementations.local import LocalFileSystem

    return client.submit(sweeps.run_cell, work.job, LocalFileSystem(), root, threads, **how)


def _measure(name: str, root: str, threads: int) -> str:
    """Measure the rows of a section on a worker; return its error in words, "" for none."""
    import torch
    from filelock import FileLock

    cluster.settle(threads)
    torch.set_num_threads(threads)
    began, busy, section = time.time(), runs.processor_seconds(), SECTIONS[name]
    locks = _made(Path(root) / "locks")
    with FileLock(locks / name):  # a worker of a run that was killed may still be at it
        part, table = _part(name), paths.GALLERY / section.table
        again = read_record(name).get("status") == PART  # nothing of the published rows is kept
        if not part.is_file() and not again and table.is_file():
            _copy_rows(section, table, part)
        code, begun, whole = section.code, Path(root) / f"{name}.begun", not part.is_file()
        if whole:
            begun.write_text(code)
        try:
            section.renew(part)
            told: dict[str, Any] = {"parameters": section.parameters()}
            if not begun.is_file() or begun.read_text() != code:
                told["code"] = ""  # its first rows are of other code, or of code that nobody knows
            if whole:  # of a measurement that went on from earlier rows, they would say too little
                told["seconds"] = round(time.time() - began, 1)
                told["processor_seconds"] = round(runs.processor_seconds() - busy, 1)
            told["data_fingerprint"] = section.fingerprints()
        except Exception as error:
            if getattr(error, "errno", None) in runs.FULL:
                raise
            return f"{name} failed: {type(error).__name__}: {' '.join(str(error).split())}"
        runs.write_json(Path(root) / f"{name}.json", told)
    return ""


def _copy_rows(section, table, part):
    import pandas as pd

    if table.suffix != ".csv":
        with paths.atomic_write(part) as temporary:
            shutil.copyfile(table, temporary)
        return
    rows = pd.read_csv(table)
    rows = rows[rows["network"] == section.network] if section.network else rows
    if len(rows):
        with paths.atomic_write(part) as temporary:
            rows.to_csv(temporary, index=False)


def _keep(work: Work, error: str) -> None:
    """Write what a finished job leaves: its rows, then its record."""
    made = runs.provenance()
    record = {"schema": SCHEMA, "name": work.name, "status": FAILED if error else "done", "code": work.code}
    record |= {"versions": made["versions"], "commit": made["commit"], "finished": runs.now()}
    place = paths.RUNS / SCRATCH
    if error:
        record["error"] = error
    elif work.job:
        done = results.read_done(place / work.job.address)
        rows = results.job_rows(place / work.job.address).assign(code=work.code)
        _check_fit(work.name, rows)
        with paths.atomic_write(folder() / f"{work.name}.parquet") as temporary:
            rows.to_parquet(temporary, index=False)
        record |= {
            "parameters": work.job.parameters,
            "data_fingerprint": work.job.fingerprint,
            "seconds": done["seconds"],
        }
        if "processor_seconds" in done:
            record["processor_seconds"] = done["processor_seconds"]
    else:
        record |= json.loads((place / f"{work.name}.json").read_text())
    runs.write_json(_record_path(work.name), record)
    if work.job and not error:
        shutil.rmtree(place / work.job.address, ignore_errors=True)


def _check_fit(name, rows):
    if found := gallery.machine_paths(rows.select_dtypes("string").fillna("").to_dict("list")):
        raise runs.RunError(f"the rows of {name} are not fit to be published, they hold {found[0]}")


# ---- publishing it ---------------------------------------------------------------------------------------------------


def publish() -> list[Path]:
    """Put the rows of finished jobs into the gallery's tables, and write its pages, pictures and claims; return the paths written.

    Nothing is written where no job has left rows. Raises RunError for a row file of an older version that cannot be converted.
    """
    left = [path for path in sorted(folder().glob("*.parquet")) if read_record(path.stem).get("status") == "done"]
    fresh = [_rows_of(path) for path in left]  # rows without a record were cut off between the two
    finished = [name for name in SECTIONS if _part(name).is_file() and read_record(name).get("status") == "done"]
    if not fresh and not finished:
        return []
    written = []
    if fresh:
        table = gallery.merged(gallery._published(paths.GALLERY), results.joined(fresh))
        with paths.atomic_write(paths.GALLERY / "results.parquet") as temporary:
            gallery.write_rows(table, temporary)
        with paths.atomic_write(paths.GALLERY / "results.csv.gz") as temporary:
            table.to_csv(temporary, index=False, compression={"method": "gzip", "mtime": 0})
        written += [paths.GALLERY / "results.parquet", paths.GALLERY / "results.csv.gz"]
    for name in finished:
        written.append(_publish_section(SECTIONS[name], _part(name)))
    written += gallery.renew()
    for path in [*left, *map(_part, finished)]:
        path.unlink()  # only now: until here the next run would publish them again
    return written


def _rows_of(path):
    import pandas as pd

    from lowrank_utils.lab import columns
    from lowrank_utils.workbook import conversion

    try:
        rows = pd.read_parquet(path)
    except Exception as error:
        raise runs.RunError(
            f"{path} cannot be read ({type(error).__name__}); remove it, and its job runs again"
        ) from None
    if not len(rows):
        return rows
    try:
        columns.check(rows)
        return rows
    except ValueError as error:
        reason = error
    try:
        return conversion.convert(rows)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise runs.RunError(f"{path} is of an older version ({reason}); remove it, and its job runs again") from None


def _publish_section(section, part):
    import pandas as pd

    target = paths.GALLERY / section.table
    if section.network and target.is_file():
        others = pd.read_csv(target)
        rows = pd.concat([others[others["network"] != section.network], pd.read_csv(part)], ignore_index=True)
        with paths.atomic_write(target) as temporary:
            rows.to_csv(temporary, index=False)
    else:
        with paths.atomic_write(target) as temporary:
            shutil.copyfile(part, temporary)
    return target


# ---- telling it ------------------------------------------------------------------------------------------------------


def listing(works: Sequence[Work], workers: int = 2) -> str:
    """Return the jobs as lines of text: name, expected minutes, state; below them what is left to do, in hours."""
    width = max((len(work.name) for work in works), default=4)
    lines = [f"{'job':<{width}}  minutes  rows"]
    lines += [
        f"{w.name:<{width}}  {w.minutes:7.1f}  {w.state}{': ' * bool(w.error)}{w.error.splitlines()[0] if w.error else ''}"
        for w in works
    ]
    left = [work.minutes for work in works if work.state in WAITING]
    told = "; ".join(f"{state}: {text}" for state, text in STATES.items() if any(work.state == state for work in works))
    every = sum(work.minutes for work in works)
    hours = f"{len(left)} of {len(works)} jobs wait, {sum(left) / 60:.1f} hours on one core, about {_hours(left, workers):.1f} on {workers}"
    whole = f"all of them would take {every / 60:.1f} hours on one core, about {_hours([w.minutes for w in works], workers):.1f} on {workers}"
    return "\n".join([*lines, "", f"{hours}; {whole}.", told])


def _hours(minutes, workers):
    # longest first, each to the worker that is free first
    busy = [0.0] * workers
    for each in sorted(minutes, reverse=True):
        busy[busy.index(min(busy))] += each
    return max(busy) / 60
