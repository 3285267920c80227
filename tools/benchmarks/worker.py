"""The process of one program of a benchmark, its job and its reports.

Started with a `Job` as JSON, it reports when it is ready, and does its work once for each line that
it reads. It also runs in the interpreters of peers, so it needs only the standard library to start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

if __package__ is None:  # started as a script, perhaps by an interpreter without this package
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

from data.errors import UserError
from data.settings import SettingError
from tools.benchmarks import memory
from tools.benchmarks.peers import PeerSettings
from tools.benchmarks.stages import OURS, STAGES, Workload

_PROCESSES = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN


@dataclasses.dataclass(frozen=True)
class Job:
    """The job of a process.

    Attributes:
        name: `OURS`, or one of `tools.benchmarks.peers`.
        what: one of `STAGES`.
        python: the interpreter to run it with.
        argv: command line, only for `OURS`.
        settings: settings of the work; a peer takes its `PeerSettings` from them.
        label: what tells it from other programs of that name.
    """

    name: str
    what: str
    python: str
    argv: tuple[str, ...]
    settings: dict
    label: str = ""

    @property
    def title(self) -> str:
        """Its name in the results."""
        return f"{self.name} {self.label}".strip()


@dataclasses.dataclass(frozen=True)
class Sample:
    """One timed run, and the memory of the process after it in MB."""

    images: int
    wall_seconds: float
    cpu_seconds: float
    rss_mb: float = 0.0

    def value(self, unit: str) -> float:
        """Returns the figure in "images/s", "s/step", "s", "s/image" or "ms/image"."""
        if unit == "images/s":
            return self.images / self.wall_seconds
        if unit in ("s/step", "s"):
            return self.wall_seconds
        return self.wall_seconds / self.images * (1000.0 if unit == "ms/image" else 1.0)


def serve(job: Job, turns: Iterator[str], answer: Callable[[dict], None]) -> None:
    """Prepares the work, reports when it is ready, and does it once for each turn."""
    try:
        work, packages = _prepare(job)
    except ImportError as error:
        answer({"error": f"{error}; install it for {job.python} or leave this program out."})
        return
    except (UserError, SettingError) as error:
        answer({"error": str(error)})
        return
    answer({"versions": _versions(packages)})
    for _ in turns:
        if STAGES[job.what].streams:
            work()
        wall, cpu = time.perf_counter(), _cpu_seconds()
        images = work()
        sample = Sample(
            images, time.perf_counter() - wall, _cpu_seconds() - cpu, memory.current_mb()
        )
        answer(dataclasses.asdict(sample))
    answer({"peak_rss_mb": max(memory.peak_mb(), memory.peak_mb_of_children())})


def _prepare(job: Job) -> tuple[Workload, Sequence[str]]:
    if job.name == OURS:
        from tools.benchmarks import workloads

        params, settings = workloads.parse_settings(["benchmark", *job.argv])
        return workloads.make(job.what, params, settings), workloads.PACKAGES
    peer = importlib.import_module(f"{PeerSettings.__module__}.{job.name}")
    return peer.WORKLOADS[job.what](PeerSettings.from_dict(job.settings)), peer.PACKAGES


def _versions(packages: Sequence[str]) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _cpu_seconds() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, _PROCESSES))


def _main() -> None:
    # The packages' output must not mix with the reports.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    job = Job(**json.loads(sys.argv[1]))
    turns = iter(sys.stdin.readline, "")
    serve(job, turns, lambda answer: print(json.dumps(answer), file=answers, flush=True))


if __name__ == "__main__":
    _main()
