"""Executes jobs with papermill: each in a folder of its own, with progress, and on from where it stopped.

A *run* is a folder of jobs:

    RUN/run.json              what was asked, the jobs and how they stand, provenance
    RUN/results.parquet, .csv  the rows of all finished jobs, gathered again after each
    RUN/ADDRESS/notebook.ipynb, results.parquet and .csv, figures, done.json (written last: only now the job counts)
    RUN/ADDRESS/failed.ipynb, kernel.log   of a notebook that failed: as far as it came, and what its kernel said
"""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_utils import paths
from lowrank_utils.workbook import results
from lowrank_utils.workbook.jobs import GIVEN, code_digest, escaped, list_jobs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lowrank_utils.workbook.jobs import Job

LIBRARIES = ("lowrank-workbook", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "papermill")
QUIET = ["--log-level=CRITICAL"]  # the kernel's own remarks would cut the progress bar in two
DIED = "failed: its kernel died, perhaps for want of memory"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # nothing could be stored any more: the work stops
REFRESH = 1  # seconds between two looks at the bar of notebooks
PROBE_BYTES = 4 * 2**20  # about what one executed notebook with its figures takes


class RunError(Exception):
    """A run that cannot start, go on or be found; the message is one sentence for the reader."""


class NotebookFailed(RunError):
    """A notebook that raised; the message names the notebook, the cell and the error."""


# ---- one job -----------------------------------------------------------------------------------------------


def is_done(job: Job, run: str | Path) -> bool:
    """Return whether `job` is finished in the run folder `run`: whether its done.json is there."""
    return (Path(run) / job.address / "done.json").is_file()


def execute(job: Job, run: str | Path, progress: bool = True) -> Path:
    """Execute `job` in the folder `run`/ADDRESS, emptied of what an earlier try left; return that folder.

    Raises NotebookFailed where a cell raises or the kernel dies (the notebook as far as it came is kept as
    failed.ipynb), RunError where there is no kernel, OSError where the folder is full or cannot be written.
    """
    import papermill

    if code_digest(job.path) != job.source:
        raise RunError(f"{job.notebook} has changed since this run was planned; start it again with --resume")
    folder = Path(run).resolve() / job.address
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    inside = folder.relative_to(paths.ROOT) if folder.is_relative_to(paths.ROOT) else folder
    partial, log = folder / ".partial.ipynb", folder / "kernel.log"
    started, busy = time.time(), processor_seconds()
    # below the bar over notebooks, which only a terminal can show; elsewhere each line stays, as a record
    bar: Any = {"desc": job.label, "leave": not sys.stderr.isatty()} if progress else False
    try:
        with open(log, "wb") as file:
            papermill.execute_notebook(
                escaped(job.path),
                escaped(partial),
                {**job.parameters, GIVEN: inside.as_posix()},
                kernel_name=check_kernel(),
                kernel_manager_class=_kernels_that_log(file),
                progress_bar=bar,
                extra_arguments=QUIET,
            )
    except (papermill.PapermillExecutionError, RuntimeError) as error:
        if not hasattr(error, "cell_index") and "kernel died" not in str(error).lower():  # at work or while it starts
            raise
        kept = partial.rename(folder / "failed.ipynb")
        said = f"\n  what its kernel said: {log}" if log.stat().st_size else ""
        raise NotebookFailed(f"{_report(job, error)}\n  as far as it came: {kept}{said}") from None
    _finish_notebook(partial, folder / "notebook.ipynb", job)
    partial.unlink()
    log.unlink()  # what a notebook writes stands in its cells; the rest tells why a kernel died
    done = {
        "address": job.address,
        "notebook": job.notebook,
        "label": job.label,
        "parameters": job.parameters,
        "data_fingerprint": job.fingerprint,
        "source": job.source,
        "finished": now(),
        "seconds": round(time.time() - started, 2),
        "processor_seconds": round(processor_seconds() - busy, 2),
        **provenance(),
    }
    write_json(folder / "done.json", done)
    return folder


def processor_seconds() -> float:
    """Return the seconds of processor time that this process has used, and its children that have ended.

    A busy machine stretches them far less than seconds by the clock.
    """
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _kernels_that_log(file):
    # a kernel may complain on its way out, though its notebook is done; that must not look like a failure of the run
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        def start_kernel(self, **options):
            return super().start_kernel(stderr=file, **options)

    return Manager


def check_kernel() -> str:
    """Return "python3", the kernel that notebooks run in, after a check that it is this very Python."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        raise RunError("there is no Jupyter kernel 'python3' here; install it with: pip install ipykernel") from None
    # jupyter_client puts this interpreter in the place of a bare "python"
    if not re.fullmatch(r"python[\d.]*", command) and not Path(command).resolve() == Path(sys.executable).resolve():
        raise RunError(f"the Jupyter kernel 'python3' starts {command}, not this Python ({sys.executable})")
    return "python3"


def _report(job, error):
    import nbformat

    if not hasattr(error, "cell_index"):
        return f"{job.notebook} {DIED}"
    position = error.cell_index
    tags = [c.metadata.get("tags", []) for c in nbformat.read(job.path, as_version=4).cells]
    if any("parameters" in t for t in tags[:position]):
        position -= 1  # papermill has put a cell behind the parameters
    source = next((line for line in error.source.splitlines() if line.strip()), "")
    return (
        f"{job.notebook} failed in cell {position + 1} (In [{error.exec_count}]), which begins"
        f" `{source.strip()}`: {error.ename}: {error.evalue}"
    )


def _finish_notebook(partial, path, job):
    """Write the executed notebook without the places of this machine, so that it reads the same anywhere."""
    import nbformat

    notebook = nbformat.read(partial, as_version=4)
    record = notebook.metadata.papermill
    record.update(input_path=f"{job.notebook}.ipynb", output_path=path.name)
    record.parameters.pop(GIVEN, None)
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            lines = cell.source.splitlines()
            cell.source = "\n".join(line for line in lines if not line.startswith(f"{GIVEN} = "))
    with paths.atomic_write(path) as temporary:
        nbformat.write(notebook, temporary)


def refresh(path: str | Path) -> None:
    """Execute a notebook in place with its defaults; drop timings and what it wrote to stderr, and make its pictures small.

    Raises NotebookFailed where a cell raises or the kernel dies; the file stays as it was.
    """
    import nbclient.exceptions
    import nbformat
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(paths.ROOT)}}
    options = {"kernel_name": check_kernel(), "record_timing": False, "extra_arguments": QUIET}
    client = nbclient.NotebookClient(notebook, resources=resources, **options)
    try:
        client.execute()
    except CellExecutionError as error:
        raise NotebookFailed(f"{Path(path).name} failed: {error.ename}: {error.evalue}") from None
    except (DeadKernelError, AssertionError):  # the second from nbclient's clearing up after the first
        raise NotebookFailed(f"{Path(path).name} {DIED}") from None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            cell.metadata.pop("execution", None)
    slim(notebook)
    with paths.atomic_write(path) as temporary:
        nbformat.write(notebook, temporary)


def slim(notebook: Any) -> None:
    """Write the PNG pictures among a notebook's outputs with a palette of 256 colours, in about a third of the bytes."""
    from PIL import Image

    shown = [o.data for cell in notebook.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
    for data in shown:
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
        if picture.mode == "P":
            continue
        small = io.BytesIO()
        few = picture.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(small, "PNG", optimize=True)
        found = base64.b64encode(small.getvalue()).decode()
        if len(found) < len(data["image/png"]):
            data["image/png"] = found


# ---- a run of jobs -----------------------------------------------------------------------------------------


def new_run(folder: str | Path | None = None) -> Path:
    """Make and return a new run folder below `folder` (default outputs/runs), named by the time.

    Two runs that start at once get two folders. Raises RunError where `folder` is full or cannot be written.
    """
    folder = Path(folder or paths.RUNS)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(1, 1000):
            run = folder / (stamp if k == 1 else f"{stamp}-{k}")
            with contextlib.suppress(FileExistsError):
                run.mkdir()
                break
        check_writable(run)
    except OSError as error:
        with contextlib.suppress(OSError, UnboundLocalError):
            run.rmdir()
        raise RunError(_no_room(folder, error)) from None
    return run


def check_writable(folder: str | Path) -> None:
    """Write and remove a few MB in `folder`; raises OSError where it is full or cannot be written."""
    probe = Path(folder) / ".probe"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(PROBE_BYTES))
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _no_room(folder, error):
    reason = error.strerror or str(error)
    return f"{folder} cannot take the results ({reason}): make room there, or choose another --output-folder"


def run(
    jobs: Sequence[Job],
    request: dict[str, Any],
    folder: str | Path | None = None,
    progress: bool = True,
    into: str | Path | None = None,
    workers: int = 1,
) -> Path:
    """Execute `jobs` and return the run folder: a new one, or `into`, of a broken run.

    Jobs that are finished there are skipped. One worker executes the others in their order, on all cores. Several share
    the cores and begin with the last job, because later notebooks take longer. The first failure ends the run. `request`
    is kept in run.json for a later resume. Raises NotebookFailed, RunError or OSError; what was finished stays, and the
    run can be resumed.
    """
    from tqdm import tqdm

    check_kernel()
    place = Path(into) if into else new_run(folder)
    try:
        fetch(needed(jobs))
    except BaseException:
        with contextlib.suppress(OSError):  # nothing has begun; a folder that holds something stays
            place.rmdir()
        raise
    with locked(place):
        record = {"run": place.name, "status": "running", "started": now(), "request": request}
        if into:
            check_writable(place)
            record["started"] = read_run(place)["started"]
        record |= {"provenance": provenance(), "jobs": [_entry(job, is_done(job, place)) for job in jobs]}

        def save():
            write_json(place / "run.json", record)

        missing = [(job, entry) for job, entry in zip(jobs, record["jobs"]) if entry["status"] != "done"]
        save()
        try:
            options = {"unit": "notebook", "initial": len(jobs) - len(missing)}
            with tqdm(total=len(jobs), desc="notebooks", disable=None if progress else True, **options) as bar:
                if workers > 1 and len(missing) > 1:
                    ended = _side_by_side(missing, place, save, workers, bar, progress)
                else:
                    ended = _in_turn(missing, place, save, progress)
                with contextlib.closing(ended):  # its workers end with it
                    for entry in ended:
                        entry["status"] = "done"
                        bar.update()
                        write_results(place)
                        save()
            if not missing:  # of a run that was killed after its last notebook
                write_results(place)
            record.update(status="done", finished=now())
        except BaseException as error:
            record["status"] = _status(error)
            _interrupt(missing, place)
            name = place.name if place.parent == paths.RUNS else place
            hint = f"go on with: python -m lowrank_utils run --resume {name}"
            if isinstance(error, NotebookFailed):
                raise NotebookFailed(f"{error}\n  {hint}") from None
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(hint) from None
            if isinstance(error, OSError) and error.errno in FULL:
                raise RunError(f"{_no_room(place, error)}; then {hint}") from None
            if isinstance(error, OSError):
                raise RunError(f"{error}; {hint}") from None
            raise
        finally:
            with contextlib.suppress(OSError):  # a full folder must not hide why the run ended
                save()
    return place


def _status(error):
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


@contextlib.contextmanager
def _on_record(entry):
    # keeps in a job's entry why it did not end well
    try:
        yield
    except BaseException as error:
        entry.update(status=_status(error), error=str(error))
        raise


def _interrupt(missing, place):
    # records how the jobs stand that ran beside the one which failed; one may have come to its end unnoticed
    for job, entry in missing:
        if entry["status"] == "running":
            entry["status"] = "done" if is_done(job, place) else "interrupted"
    with contextlib.suppress(Exception):  # nothing hides why the run ended
        write_results(place)


def _in_turn(missing, place, save, progress):
    # executes one job after the other, and yields its entry as it ends
    for job, entry in missing:
        entry["status"] = "running"
        save()
        with _on_record(entry):
            execute(job, place, progress)
        yield entry


def _tell(bar, progress, running, ended=None):
    # which notebooks run and which has ended: beside the bar in a terminal, elsewhere in a line
    numbers = ", ".join(sorted(job.notebook.split("_")[0] for job in running))  # all fit beside the bar
    bar.set_postfix_str(f"running {numbers}" if numbers else "")
    if progress and not sys.stderr.isatty():
        told = [f"{ended.label}: finished"] if ended else []
        told += ["running " + ", ".join(sorted(job.label for job in running))] if running else []
        print("; ".join(told), file=sys.stderr, flush=True)


def _side_by_side(missing, place, save, workers, bar, progress):
    # the same on workers, the last job first
    import dask.config
    from dask.system import CPU_COUNT
    from distributed import CancelledError, wait
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    from lowrank_utils.workbook import cluster

    workers = min(workers, len(missing))
    threads = max(1, CPU_COUNT // workers)
    waiting, under_way = list(missing), {}
    # a notebook that brought a worker down is not started again
    patience = dask.config.set({"distributed.scheduler.allowed-failures": 0})
    with patience, cluster.cluster_client(None, workers, threads, workers) as client:

        def begin():
            job, entry = waiting.pop()
            entry["status"] = "running"
            under_way[client.submit(_on_worker, job, place, threads, pure=False)] = job, entry
            save()

        def running():
            return [job for job, _ in under_way.values()]

        for _ in range(workers):
            begin()
        _tell(bar, progress, running())
        while under_way:
            try:
                found: Any = wait(list(under_way), timeout=REFRESH, return_when="FIRST_COMPLETED")
            except TimeoutError:
                bar.refresh()
                continue
            for future in found.done:
                job, entry = under_way.pop(future)
                with _on_record(entry):
                    try:
                        future.result()
                    except KilledWorker:
                        reason = "its worker died, perhaps for want of memory"
                        raise NotebookFailed(f"{job.notebook} failed: {reason}") from None
                    except (CancelledError, CommClosedError):
                        raise RunError("the workers have gone away; start the run again with --resume") from None
                if waiting:
                    begin()
                yield entry
                _tell(bar, progress, running(), job)


def _on_worker(job, place, threads):
    from lowrank_utils.workbook import cluster

    cluster.settle(threads)
    execute(job, place, progress=False)


def needed(jobs: Iterable[Job]) -> set[str]:
    """Return the names of the data sets, texts and language models that `jobs` ask for."""
    words = ("dataset", "corpus", "language_model")
    return {job.parameters[word] for job in jobs for word in words if word in job.parameters}


def fetch(names: set[str]) -> None:
    """Bring the data sets and language models with these names onto the machine, where they are not there yet."""
    if not names:
        return
    from lowrank_utils.lab import data, language

    for name in sorted(names.intersection(language.NAMES)):
        language.fetch(name)
    for name in sorted(names.intersection(data.NAMES) - {"digits"}):  # scikit-learn holds digits
        data.fetch(name)


def _entry(job, done):
    return {
        "address": job.address,
        "notebook": job.notebook,
        "parameters": job.parameters,
        "status": "done" if done else "pending",
    }


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    """Hold the folder `place`, made if it is missing, for this process alone; raises RunError where another has it."""
    from filelock import FileLock, Timeout

    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / "run.lock")
    owner = place / "run.owner"  # beside the lock, which Windows lets nobody else read
    try:
        lock.acquire(timeout=0)
    except Timeout:
        named = ""
        with contextlib.suppress(OSError):
            named = owner.read_text().strip()
        raise RunError(f"run {place.name} is being worked on by process {named or '?'}: wait for its end") from None
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def resume(
    name: str | Path | None = None, folder: str | Path | None = None, notebooks_folder: str | Path | None = None
) -> tuple[Path, dict[str, Any], list[Job], list[str]]:
    """Return (run folder, request, jobs, changed) of a broken run; `changed` lists notebooks edited since.

    Without a name the newest run that is not complete. The jobs are planned anew from the recorded request,
    so that an edited notebook has a new address and runs again. Raises RunError where nothing can be resumed.
    """
    folder = Path(folder or paths.RUNS)
    if name:
        place = find_run(name, folder)
        if is_complete(place):
            raise RunError(f"run {place.name} is complete; there is nothing to resume")
    else:
        place = next((p for p in all_runs(folder)[::-1] if not is_complete(p)), None)
        if place is None:
            raise RunError(f"there is no unfinished run in {folder}; there is nothing to resume")
    record = read_run(place)
    jobs = list_jobs(**record["request"], folder=notebooks_folder)
    before = {entry["address"] for entry in record["jobs"]}
    return place, record["request"], jobs, sorted({j.notebook for j in jobs if j.address not in before})


def all_runs(folder: str | Path | None = None) -> list[Path]:
    """Return the run folders below `folder` (default outputs/runs), oldest first."""
    found = [p.parent for p in Path(folder or paths.RUNS).glob("*/run.json")]
    return sorted(found, key=lambda p: [int(part) if part.isdigit() else 0 for part in p.name.split("-")])


def find_run(name: str | Path, folder: str | Path | None = None) -> Path:
    """Return the folder of the run `name` (a name below `folder`, or a path); raises RunError for none."""
    for place in (Path(folder or paths.RUNS) / name, Path(name)):
        if (place / "run.json").is_file():
            return place
    known = [p.name for p in all_runs(folder)][-5:]
    raise RunError(f"there is no run {str(name)!r}; the latest are: {', '.join(known) or 'none yet'}")


def read_run(place: str | Path) -> dict[str, Any]:
    """Return the content of a run's run.json; raises RunError where it is damaged."""
    try:
        record = json.loads((Path(place) / "run.json").read_text())
        if not {"status", "request", "jobs"} <= set(record):
            raise ValueError("not a run's record")
        return record
    except (ValueError, TypeError):
        raise RunError(f"{Path(place) / 'run.json'} is damaged; remove the run folder") from None


def is_complete(place: str | Path) -> bool:
    """Return whether the run came to its end and every job still has its done.json."""
    record = read_run(place)
    return record["status"] == "done" and len(finished(place)) == len(record["jobs"])


def finished(place: str | Path) -> list[Path]:
    """Return the folders of a run's finished jobs, in the order of its jobs."""
    folders = [Path(place) / entry["address"] for entry in read_run(place)["jobs"]]
    return [folder for folder in folders if (folder / "done.json").is_file()]


def write_results(place: str | Path) -> None:
    """Write the run's results (.parquet and .csv) from all its finished jobs."""
    results.write(results.joined([results.job_rows(folder) for folder in finished(place)]), Path(place) / "results")


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """Return what computes here: versions of Python and libraries, system, cores, commit ("" for none)."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    system = f"{platform.system()} {platform.machine()}"
    return {"versions": versions, "platform": system, "cores": os.cpu_count(), "commit": _commit()}


def _commit():
    git = ["git", "-C", str(paths.ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        edits = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+changes" if edits.stdout.strip() else "")


def write_json(path: str | Path, content: Any) -> None:
    with paths.atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
