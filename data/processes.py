"""Works on a dataset in several processes of one machine, with one progress meter for all."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from data.errors import UserError
from data.progress import ProgressMeter

Job = TypeVar("Job")
Result = TypeVar("Result")
Work = Callable[[Job, Callable[[int], None]], Result]


class _Stopped(Exception):
    """Another job has failed, so this one need not be finished."""


def run_jobs(
    work: Work, jobs: Sequence[Job], num_processes: int, progress: tuple[str, int]
) -> list[Result]:
    """Calls `work(job, advance)` for every job and returns the results in the order of the jobs.

    Args:
        work: a function of a module. It calls `advance` with the number of images done since its
            last call.
        jobs: can be pickled, like the results.
        num_processes: 0 and 1 work in this process.
        progress: what is done, such as "Converting", and the number of images.

    Raises:
        UserError: a process died. Errors of `work` end the other jobs and are raised unchanged.
    """
    num_processes = min(num_processes, len(jobs))
    meter = functools.partial(ProgressMeter, *progress)
    if num_processes <= 1:
        with meter() as bar:
            return [work(job, bar.update) for job in jobs]
    # A fork shares the modules already imported, but not the threads that TensorFlow would need.
    can_fork = sys.platform == "linux" and "tensorflow" not in sys.modules
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    counter = context.Value("q", 0)
    stop = context.RawValue("b", 0)  # has no lock that a killed process could keep
    gc.freeze()  # garbage collection would touch, and so copy, every page that processes share
    with futures.ProcessPoolExecutor(
        num_processes, context, initializer=_start_worker, initargs=(counter, stop)
    ) as executor:
        try:
            tasks = [executor.submit(_run_in_worker, work, job) for job in jobs]
            with meter() as bar:
                return _collect(tasks, lambda: bar.update(counter.get_obj().value - bar.n))
        except BrokenProcessPool:
            raise UserError(
                "a worker process died, possibly because memory ran out; run the same command "
                "again with fewer --num_processes to continue."
            ) from None
        finally:
            stop.value = 1
            executor.shutdown(wait=True, cancel_futures=True)
            gc.unfreeze()


def _collect(tasks: Sequence[futures.Future], show_progress: Callable) -> list:
    pending = set(tasks)
    while pending:
        done, pending = futures.wait(pending, timeout=0.2, return_when=futures.FIRST_EXCEPTION)
        show_progress()
        for task in done:
            task.result()
    return [task.result() for task in tasks]


_WORKER: dict = {}  # state that a worker process shares with its parent


def _start_worker(counter, stop) -> None:
    """Prepares a worker process: it ignores Ctrl-C and exits with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _WORKER.update(counter=counter, stop=stop)


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _run_in_worker(work: Work, job: Job) -> Result:
    def advance(num_images: int = 1) -> None:
        if _WORKER["stop"].value:
            raise _Stopped
        with _WORKER["counter"].get_lock():
            _WORKER["counter"].value += num_images

    return work(job, advance)
