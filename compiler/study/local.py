"""Run jobs in processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from lmmprune.errors import LmmpruneError, require

Job = TypeVar("Job")


def run_locally(jobs: Sequence[Job], workers: int, on_done: Callable[[str], None], work: Callable[[Job], str]) -> None:
    """Run jobs, as many at a time as there are workers.

    On any exception, Ctrl-C included, running jobs are ended; finished ones have their results on disk.

    Args:
        jobs: In the order in which they are started.
        workers: Processes.
        on_done: Called with the name of each one when it is finished.
        work: What to do; returns the job's name.

    Raises:
        LmmpruneError: A job's, or a worker process was killed.
    """
    if not jobs:
        return
    # Forked copies of a process that has threads of PyTorch and ONNX Runtime can hang.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_start_worker)
    try:
        futures = [pool.submit(work, job) for job in jobs]
        for future in as_completed(futures):
            on_done(future.result())
    except BaseException as error:
        # A worker that is only asked to end takes that for a job's failure, and goes on with the next one.
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise LmmpruneError(
                "a worker process was ended from outside, perhaps for want of memory: try fewer than"
                f" {workers} --workers; what is finished is kept"
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is gone, even by SIGKILL: a pool's workers would wait on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Its own lock is one between processes, which outlives a killed worker and makes Python warn at exit.
    require("tqdm", "export").tqdm.set_lock(threading.RLock())
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
