"""Runs one notebook over a grid of parameters on Dask workers, each cell of the grid by the executor of `runs`.

A *sweep* is a folder laid out like a run, here or at any fsspec address:

    SWEEP/run.json                   what was asked, the cells and how they stand, provenance
    SWEEP/results.csv, .parquet      the rows of all finished cells, with run_NAME for every parameter NAME
    SWEEP/summary.csv, .parquet      their means and standard deviations over seeds
    SWEEP/NOTEBOOK-....png           the figures of the notebooks, drawn from these rows
    SWEEP/ADDRESS/...                what the notebook left, and done.json or failed.json, written last

A worker executes a cell in a scratch folder of its own and then puts it in its place, so that whatever is
killed leaves either a finished cell or none.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_utils import paths
from lowrank_utils.lab.columns import PROVENANCE_COLUMNS, RESULT_COLUMNS
from lowrank_utils.workbook import cluster, gallery, jobs, results, runs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import pandas as pd

KEYS = ("dataset", "network", "seed")  # parameters that are columns of every row already
TABLES = ("results.csv", "results.parquet", "summary.csv", "summary.parquet")
RECORDS = ("done.json", "failed.json")


# ---- what to run -------------------------------------------------------------------------------------------


def read_grid(words: Iterable[str]) -> dict[str, list[Any]]:
    """Return {parameter: list of values} of texts such as `seed=0,1,2`, or of YAML files that hold the same.

    Values stay text, to be read as the parameter needs them; a comma in brackets does not part two values.
    Raises ValueError for a text of another form, an unreadable file, or a parameter that is given twice.

    >>> read_grid(["dataset=mnist,digits", "shares=[0.5, 0.25],[0.1]"])
    {'dataset': ['mnist', 'digits'], 'shares': ['[0.5, 0.25]', '[0.1]']}
    """
    grid = {}
    for word in words:
        name, equals, text = word.partition("=")
        if os.path.isfile(word):  # no error for a text that is too long for a name
            part = jobs.read_yaml(word, "grid")
            part = {key: value if isinstance(value, list) else [value] for key, value in part.items()}
        elif equals and name.strip():
            part = {name.strip(): [v.strip() for v in re.split(r",(?![^\[]*\])", text) if v.strip()]}
        else:
            raise ValueError(f"{word!r} is neither of the form name=value,value nor a YAML file that is there")
        if twice := sorted(grid.keys() & part.keys()):
            raise ValueError(f"the grid names {twice[0]} twice")
        grid |= part
    return grid


def list_sweep_jobs(
    notebook: str, grid: Mapping[str, list[Any]], preset: str | Path | None = None, folder: str | Path | None = None
) -> tuple[list[jobs.Job], dict[str, Any]]:
    """Return (jobs, request): one job for each combination of values, and what `jobs.list_jobs` makes them of again.

    Parameters: `notebook`, a name, number or file; `grid`, {parameter: list of values}; `preset`, for the
    other parameters; `folder` of the notebooks. Raises ValueError, before anything runs, for an empty grid, a
    value that stands twice, and whatever `jobs.list_jobs` refuses.
    """
    empty = [name for name, values in grid.items() if not values]
    if empty or not grid:
        why = f"{empty[0]} has no value" if empty else "name parameters and their values"
        raise ValueError(f"the grid is empty: {why}, as in --grid threshold=0.8,0.9 seed=0,1,2")
    only = list(jobs.select([notebook], folder))
    request = {"only": only, "preset": jobs.read_preset(preset) if preset else {}, "grid": grid}
    planned = jobs.list_jobs(**request, folder=folder)
    for name, values in grid.items():
        if len({json.dumps(job.parameters[name]) for job in planned}) < len(values):
            raise ValueError(f"the grid gives a value of {name} twice: {', '.join(map(str, values))}")
    return planned, request


# ---- running it --------------------------------------------------------------------------------------------


def run(
    planned: Sequence[jobs.Job],
    request: dict[str, Any],
    to: str | Path | None = None,
    workers: int | None = None,
    threads: int = 1,
    scheduler: str | None = None,
    retry: bool = False,
    progress: bool = True,
) -> tuple[str, set[str], dict[str, str]]:
    """Execute the cells missing at `to`, gather the tables; return (place, done addresses, {failed address: error}).

    A cell that fails is recorded with its error and stops no other; it runs again with `retry` only.

    Parameters: `planned` and `request`, of `list_sweep_jobs`; `to`, a folder or an fsspec address (default
    outputs/sweeps/NOTEBOOK); `workers` of a cluster on this machine (default: as many as its cores can feed),
    or `scheduler`, the address of a running one; `threads` that a notebook computes with. Raises ValueError
    for an unusable address; RunError where another sweep of this machine works in the same place, the scheduler
    does not answer, has no worker or ends meanwhile, and where the place is full, fills up or cannot be
    written. What was finished stays, and the same call goes on from there.
    """
    from tqdm import tqdm

    to = str(to or paths.SWEEPS / planned[0].notebook)
    fs, root = _locate(to)
    lock = Path(root) if _is_local(fs) else paths.SWEEPS / re.sub(r"[^\w.-]+", "-", to)[-100:]
    record = {"run": Path(root).name, "status": "running", "started": runs.now(), "request": request}
    with _in_words(to), runs.locked(lock):
        done, failed = _scan(fs, root, planned)
        missing = [job for job in planned if job.address not in done and (retry or job.address not in failed)]
        if missing:
            _check_room(fs, root)
            runs.fetch(runs.needed(missing))
            with cluster.cluster_client(scheduler, workers, threads, len(missing)) as client:
                _record(fs, root, record, planned, done, failed)
                options = {"unit": "cell", "initial": len(planned) - len(missing)}
                try:
                    with tqdm(total=len(planned), desc="cells", disable=None if progress else True, **options) as bar:
                        for address, error in _work(client, missing, fs, root, threads):
                            failed.pop(address, None)
                            if error:
                                failed[address] = error
                            else:
                                done.add(address)
                            bar.set_postfix({"failed": len(failed)} if failed else {}, refresh=False)
                            bar.update()
                except BaseException as error:
                    record["status"] = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                    with contextlib.suppress(OSError):  # a full folder must not hide why the sweep ended
                        _record(fs, root, record, planned, done, failed)
                        gather([job for job in planned if job.address in done], to)
                    raise
        if missing or not _is_current(fs, root, planned, done):
            rows, _ = gather([job for job in planned if job.address in done], to)
            record.update(status="failed" if failed else "done", finished=runs.now())
            _record(fs, root, record, planned, done, failed)
            _draw(fs, root, rows)
    return (root if _is_local(fs) else to), done, failed


def _work(client, missing, fs, root, threads):
    """Yield (address, error) of each cell as it ends, the error "" for a finished one."""
    from distributed import CancelledError, as_completed
    from distributed.scheduler import KilledWorker

    keys = {f"{job.address}@{root}": job.address for job in missing}
    futures = client.map(run_cell, missing, key=list(keys), fs=fs, root=root, threads=threads)
    for future in as_completed(futures):
        address = keys[future.key]
        try:
            yield address, future.result()
        except KilledWorker as failure:
            error = f"{failure.allowed_failures + 1} workers died over it, perhaps for want of memory"
            content = {"address": address, "error": error, "finished": runs.now()}
            _put(fs, f"{root}/{address}/failed.json", json.dumps(content, indent=1).encode())
            yield address, error
        except CancelledError:
            raise runs.RunError("the scheduler has gone away; go on with the same command once it is back") from None
        except (runs.RunError, OSError):
            raise
        except Exception as error:
            raise runs.RunError(f"a worker cannot run {address}: {type(error).__name__}: {error}") from None


def run_cell(job: jobs.Job, fs: Any, root: str, threads: int) -> str:
    """Execute one cell on a worker and put it in its place below `root` of the file system; return its error in words, "" for none."""
    from distributed import get_worker

    cluster.settle(threads)
    with _alone(fs, root, job.address), tempfile.TemporaryDirectory(dir=get_worker().local_directory) as scratch:
        fs.invalidate_cache()
        if fs.exists(f"{root}/{job.address}/done.json"):
            return ""  # finished for a sweep that was killed, or by a worker that was lost before it could say so
        try:
            _store(runs.execute(job, scratch, progress=False), fs, root)
            return ""
        except Exception as failure:
            ours = isinstance(failure, runs.NotebookFailed)
            if (isinstance(failure, runs.RunError) and not ours) or getattr(failure, "errno", None) in runs.FULL:
                raise
            _check_room(fs, root)  # the notebook may have failed for want of it
            error = str(failure).split("\n  as far as it came")[0]
            content = {"address": job.address, "notebook": job.notebook, "parameters": job.parameters}
            content["error"] = error if ours else f"{job.notebook} failed: {type(failure).__name__}: {error}"
            folder = Path(scratch) / job.address
            runs.write_json(folder / "failed.json", {**content, "finished": runs.now(), **runs.provenance()})
            _store(folder, fs, root)
            return content["error"]


@contextlib.contextmanager
def _alone(fs, root, address):
    """Wait until no other worker is at this cell, as one may still be for a sweep that was killed."""
    if not _is_local(fs):
        yield
        return
    from filelock import FileLock

    locks = Path(root) / "locks"  # not in the cell's own folder, which is replaced as a whole
    locks.mkdir(exist_ok=True)
    with FileLock(locks / address):
        yield


# ---- its place ---------------------------------------------------------------------------------------------


def _locate(to):
    import fsspec

    try:
        fs, root = fsspec.url_to_fs(str(to))
    except (ImportError, ValueError) as error:  # a package that an address needs is missing, or it is none
        raise ValueError(f"--to {to} cannot be used: {error}") from None
    return fs, root.rstrip("/")


def _is_local(fs):
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


@contextlib.contextmanager
def _in_words(to):
    try:
        yield
    except OSError as error:
        reason = f"{to} cannot take the results ({error.strerror or error})"
        raise runs.RunError(f"{reason}: make room there, then go on with the same command") from None


def _check_room(fs, root):
    if _is_local(fs):
        runs.check_writable(root)


def _put(fs, path, content):
    if _is_local(fs):
        with paths.atomic_write(path) as temporary:
            temporary.write_bytes(content)
    else:  # object stores show a file once it is whole
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(path, content)


def _store(folder, fs, root):
    """Put a cell in its place, its record last; one that is finished there stays."""
    place = f"{root}/{folder.name}"
    if fs.exists(f"{place}/done.json"):
        return
    if fs.exists(place):
        fs.rm(place, recursive=True)  # what an earlier try left
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name in RECORDS):
        _put(fs, f"{place}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def _scan(fs, root, planned):
    """Return (addresses of the finished cells, {address: error} of the failed ones) of those planned."""
    fs.invalidate_cache()
    found = {tuple(path.split("/")[-2:]) for path in fs.find(root, maxdepth=2)}
    done = {job.address for job in planned if (job.address, "done.json") in found}
    failed = [job.address for job in planned if (job.address, "failed.json") in found and job.address not in done]
    return done, {address: json.loads(fs.cat_file(f"{root}/{address}/failed.json"))["error"] for address in failed}


def _is_current(fs, root, planned, done):
    """Return whether the record and the tables at `root` were made from these very cells."""
    names = {path.rpartition("/")[2] for path in fs.find(root, maxdepth=1)}
    if not {"run.json", *TABLES} <= names:
        return False
    record = json.loads(fs.cat_file(f"{root}/run.json"))
    then = [cell["address"] for cell in record["jobs"] if cell["status"] == "done"]
    return "finished" in record and then == [job.address for job in planned if job.address in done]


def _record(fs, root, record, planned, done, failed):
    cells = []
    for job in planned:
        status = "done" if job.address in done else "failed" if job.address in failed else "pending"
        cell = {"address": job.address, "notebook": job.notebook, "parameters": job.parameters, "status": status}
        cells.append({**cell, "error": failed[job.address]} if status == "failed" else cell)
    content = {**record, "provenance": runs.provenance(), "jobs": cells}
    _put(fs, f"{root}/run.json", json.dumps(content, indent=1).encode())


# ---- its tables --------------------------------------------------------------------------------------------


def gather(finished: Collection[jobs.Job], to: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write results and summary (.csv and .parquet) of the `finished` jobs at `to`; return both as DataFrames.

    Rows are joined by the names of their columns: what an older version did not write is empty. Raises OSError
    where `to` is full or cannot be written.
    """
    fs, root = _locate(to)
    tables = []
    with _here(fs, root, finished) as place:
        for job in finished:
            given = {f"run_{name}": value for name, value in job.parameters.items() if name not in KEYS}
            given = {
                name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in given.items()
            }
            tables.append(results.job_rows(place / job.address).assign(**given))
    rows = results.joined(tables)
    means = over_seeds(rows)
    for name, table in (("results", rows), ("summary", results.typed(means))):
        _put(fs, f"{root}/{name}.csv", table.to_csv(index=False).encode())
        _put(fs, f"{root}/{name}.parquet", table.to_parquet(index=False))
    return rows, means


def _draw(fs, root, rows):
    """Write the figures of the notebooks, drawn from the rows of all cells."""
    for name, figure in gallery.drawn_figures(rows).items():
        with io.BytesIO() as drawn:
            figure.savefig(drawn, format="png")
            _put(fs, f"{root}/{name}.png", drawn.getvalue())


@contextlib.contextmanager
def _here(fs, root, finished):
    """Yield a folder of this machine that holds the records and rows of the finished cells."""
    if _is_local(fs):
        yield Path(root)
        return
    with tempfile.TemporaryDirectory() as folder:
        for job in finished:
            for path in fs.ls(f"{root}/{job.address}", detail=False):
                if path.endswith(("/done.json", "/results.parquet")):
                    Path(folder, job.address).mkdir(exist_ok=True)
                    fs.get_file(path, str(Path(folder, job.address, path.rpartition("/")[2])))
        yield Path(folder)


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return the means and standard deviations over seeds of all numbers in `table`, results as `gather` has them.

    Rows belong together that agree in every parameter but the seed and in what they name: `chooser`, `factors`
    and each other text whose values are the same under every seed. Of a run's rows that agree in all this, the
    first belongs with the first, the second with the second. `seeds` says how many runs stand behind a row.

    >>> import pandas as pd
    >>> rows = {"chooser": "energy", "seed": [0, 1], "address": ["a", "b"], "run_kept": 0.5, "accuracy": [0.5, 0.7]}
    >>> over_seeds(pd.DataFrame(rows)).round(3).to_dict("records")
    [{'chooser': 'energy', 'run_kept': 0.5, 'seeds': 2, 'accuracy_mean': 0.6, 'accuracy_std': 0.141}]
    """
    import pandas as pd

    known = [c for c in map(str, table.dropna(axis=1, how="all")) if c not in (*PROVENANCE_COLUMNS, "seed")]
    measured = [c for c in map(str, table[known].select_dtypes("number")) if not c.startswith("run_")]
    settings = [c for c in known if c.startswith("run_") or c in ("notebook", *KEYS)]

    def is_name(column):
        if column in measured or column in settings or column in RESULT_COLUMNS:
            return column not in measured
        values = table.groupby([*settings, "address"], dropna=False)[column].agg(lambda v: frozenset(v.dropna()))
        return values.groupby(settings, dropna=False).nunique().max() == 1

    names = [c for c in known if is_name(c)]
    nth = table.groupby(["address", *names], dropna=False).cumcount()
    groups = table.assign(nth=nth).groupby([*names, "nth"], dropna=False, sort=False)
    columns = [groups["address"].nunique().rename("seeds")]
    for name in measured:
        columns += [groups[name].mean().rename(f"{name}_mean"), groups[name].std().rename(f"{name}_std")]
    return pd.concat(columns, axis=1).reset_index().drop(columns="nth")
