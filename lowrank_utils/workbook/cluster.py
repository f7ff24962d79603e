"""Dask workers: those of a running scheduler, or some on this machine that end with the work."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

from lowrank_utils.workbook import runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    import distributed

ANSWER = 10  # seconds that a scheduler has to answer, and to name a worker
# Dask has malloc give freed memory back at once. Each large tensor then takes new pages: notebook 06 took twice as long.
# Workers that are started here are not told so, and those of a running scheduler do not pass it on to kernels.
TRIM = "MALLOC_TRIM_THRESHOLD_"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def settle(threads: int) -> None:
    """Prepare a worker for notebooks: its kernels compute with `threads` threads, and papermill says nothing beside the bar."""
    os.environ.update(dict.fromkeys(THREADS, str(threads)))  # kernels inherit it
    os.environ.pop(TRIM, None)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it says is on record


@contextlib.contextmanager
def cluster_client(
    scheduler: str | None, workers: int | None, threads: int, cells: int
) -> Iterator[distributed.Client]:
    """Yield a client of the running `scheduler`, or of workers started here: as many as named, or as the cores feed, at most `cells`.

    Raises RunError where the scheduler does not answer or has no worker.
    """
    import dask.config
    import distributed
    from dask.system import CPU_COUNT

    for name in ("distributed", "distributed.client"):  # their remarks would cut the progress bar in two
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not scheduler:
        runs.check_kernel()
        options: dict[str, Any] = {"threads_per_worker": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
        # Where no dashboard is wanted, distributed takes its port all the same, and warns where another sweep has it.
        options |= {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
        count = min(workers or max(1, CPU_COUNT // threads), cells)
        environment = {"distributed.nanny.pre-spawn-environ": dict.fromkeys(THREADS, threads)}
        with (
            dask.config.set(environment),  # a worker reads it as it starts
            distributed.LocalCluster(n_workers=count, **options) as started,
            distributed.Client(started) as client,
        ):
            yield client
        return
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:  # in a notebook this thread has a loop already
            pool.submit(asyncio.run, _handshake(scheduler)).result()
        client = distributed.Client(scheduler, timeout=ANSWER)
    except (OSError, ValueError):
        reason = f"no scheduler answers at {scheduler} within {ANSWER} s"
        raise runs.RunError(f"{reason}; start one with: dask scheduler") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=ANSWER)
        except TimeoutError:
            reason = f"the scheduler at {scheduler} has no worker"
            raise runs.RunError(f"{reason}; start one with: dask worker {scheduler} --nthreads 1") from None
        yield client


async def _handshake(scheduler):
    """Raise TimeoutError where `scheduler` takes the connection and says nothing: distributed would wait for ever."""
    from distributed import Security
    from distributed.comm.core import connect

    arguments = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(scheduler, timeout=ANSWER, **arguments), ANSWER)
    comm.abort()
