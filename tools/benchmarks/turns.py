"""Times programs in turns, each in its own process (`worker`).

A turn starts only once all processes are idle. So programs whose packages cannot be installed
together are timed seconds apart, each with its own memory use, and changes of the machine's speed
affect all of them equally.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence

from data.errors import UserError
from tools.benchmarks import worker as worker_script
from tools.benchmarks.worker import Job, Sample

# Pipelines continue to fill their buffers after a turn, and threads spin before they sleep.
_LOOK_SECONDS = 0.25
_REST_SHARE = 0.1
_LONGEST_REST_SECONDS = 120.0
_FAREWELL_SECONDS = 30.0


@dataclasses.dataclass
class Result:
    """The outcome for one program.

    Attributes:
        job: the job that it received.
        versions: versions of its packages.
        ready_seconds: time from the start of the process until it was ready.
        first_seconds: time of its first run, which is not counted.
        samples: the timed runs.
        peak_rss_mb: peak memory of its process, or of a process that it started.
    """

    job: Job
    versions: dict[str, str]
    ready_seconds: float
    first_seconds: float
    samples: list[Sample] = dataclasses.field(default_factory=list)
    peak_rss_mb: float = 0.0


class Worker:
    """A program in its own process.

    Args:
        job: what to do.
    """

    def __init__(self, job: Job):
        self._job = job
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (`kill` closes it)
        started = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                [job.python, worker_script.__file__, json.dumps(dataclasses.asdict(job))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
        except OSError as error:
            raise UserError(f"{job.python} cannot be run: {error.strerror}.") from error
        ready = self._read()
        seconds = time.perf_counter() - started
        self.result = Result(job, ready["versions"], seconds, self.take_turn().wall_seconds)

    def take_turn(self) -> Sample:
        """Lets the program do the work once."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
        return Sample(**self._read())

    def cpu_seconds(self) -> float:
        """Returns the CPU time of the process so far."""
        with open(f"/proc/{self._process.pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Ends the process and records its memory use."""
        try:
            self._process.stdin.close()
            self.result.peak_rss_mb = self._read()["peak_rss_mb"]
            # Long enough to remove its files; pipelines do not always release their threads.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_FAREWELL_SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _read(self) -> dict:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            self.kill()
            raise UserError(f"{self._job.title}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f"the process ended: {lines[-1] if lines else 'without output'}"


def take_turns(jobs: Sequence[Job], repeats: int) -> list[Result]:
    """Times the programs one after the other, `repeats` times.

    Raises:
        UserError: one of them cannot do its work.
    """
    with contextlib.ExitStack() as stack:
        workers = []
        for job in jobs:
            workers.append(Worker(job))
            stack.callback(workers[-1].kill)
        for _ in range(repeats):
            for worker in workers:
                _wait_for_rest(workers)
                worker.result.samples.append(worker.take_turn())
        for worker in workers:
            worker.close()
        return [worker.result for worker in workers]


def _wait_for_rest(workers: Sequence[Worker]) -> None:
    """Returns once none of them is computing."""
    give_up = time.monotonic() + _LONGEST_REST_SECONDS
    used = math.inf
    while used > _REST_SHARE * _LOOK_SECONDS and time.monotonic() < give_up:
        before = sum(worker.cpu_seconds() for worker in workers)
        time.sleep(_LOOK_SECONDS)
        used = sum(worker.cpu_seconds() for worker in workers) - before
